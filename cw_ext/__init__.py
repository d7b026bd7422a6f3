"""cw_ext: the CW ("Correct and Weight") ranking loss for implicit feedback, with fused kernels for PyTorch."""

from cw_ext import presets, prior, samplers
from cw_ext.candidate_scores import candidate_scores
from cw_ext.extension import build_config
from cw_ext.false_negatives import FalseNegatives
from cw_ext.functional import cw_loss, cw_loss_from_embeddings
from cw_ext.in_batch import cw_loss_in_batch
from cw_ext.interactions import Candidates, Interactions
from cw_ext.likely_positives import LikelyPositives
from cw_ext.micro_batches import encode_in_micro_batches
from cw_ext.modules import CWEmbeddingLoss, CWFullLoss, CWInBatchLoss, CWLoss, CWSampledLoss
from cw_ext.negative_sampling import draw_negatives
from cw_ext.sampled_losses import cw_loss_full, sampled_cw_loss
from cw_ext.score_curve import ScoreCurve
from cw_ext.topk_threshold import TopKThreshold
from cw_ext.version import __version__

__all__ = [
    "CWEmbeddingLoss",
    "CWFullLoss",
    "CWInBatchLoss",
    "CWLoss",
    "CWSampledLoss",
    "Candidates",
    "FalseNegatives",
    "Interactions",
    "LikelyPositives",
    "ScoreCurve",
    "TopKThreshold",
    "__version__",
    "build_config",
    "candidate_scores",
    "cw_loss",
    "cw_loss_from_embeddings",
    "cw_loss_full",
    "cw_loss_in_batch",
    "draw_negatives",
    "encode_in_micro_batches",
    "presets",
    "prior",
    "sampled_cw_loss",
    "samplers",
]
