"""The CW ("Correct and Weight") ranking loss for implicit feedback, with fused kernels for PyTorch.

You train a recommender on clicks, plays or purchases. For each interaction the loss compares the score of the item
(the positive) with those of other items (the negatives), some of which the user would like too. CW
(arXiv 2601.04291) corrects for that share and gives doubtful negatives less weight. With other settings it is the
sampled softmax, InfoNCE or another published loss. The kernels look up, score and differentiate in one pass,
without gathering the embeddings of the negatives.

    >>> import torch
    >>> from cw_ext import Interactions, sampled_cw_loss
    >>> users = torch.nn.Embedding(3, 16)
    >>> items = torch.nn.Embedding(50, 16)
    >>> user_ids = torch.tensor([0, 0, 1, 2])
    >>> item_ids = torch.tensor([10, 11, 11, 42])
    >>> known = Interactions(user_ids, item_ids, num_queries=3, num_items=50)
    >>> loss = sampled_cw_loss(users(user_ids), items, user_ids, item_ids, known, 20)
    >>> loss.backward()

The loss, for what you have:
    cw_loss: scores that your model computes.
    cw_loss_from_embeddings: embeddings, and the ids of positives and negatives.
    sampled_cw_loss: embeddings and known interactions; it draws the negatives.
    cw_loss_in_batch: the positives of the other rows are the negatives; also for encoders and several processes.
    cw_loss_full: all items are negatives.
    CWLoss, CWEmbeddingLoss, CWSampledLoss, CWInBatchLoss, CWFullLoss: the same as modules.
    presets: settings that make these another published loss, such as presets.infonce(0.1).

Data and negatives:
    Interactions: the known positives, from tensors, scipy matrices or files; Candidates: the items that can be
        negatives.
    draw_negatives: the ids that sampled_cw_loss draws.
    candidate_scores: the scores of some items for each query.
    samplers: negatives chosen by their scores.

Weights and corrections:
    ScoreCurve: a weight as a function of a negative's score.
    TopKThreshold: learns the score that an item needs to be among a query's first K.
    FalseNegatives: the probability that a negative is a positive in truth; prior.estimate_prior: the share of these.
    LikelyPositives: items that a query probably likes, for the correction.

Scale and other libraries:
    encode_in_micro_batches: large batches for encoders.
    cw_ext.distributed: several processes, and tables that one machine cannot hold.
    cw_ext.integrations: adapters for RecTools, RePlay, RecBole, sentence-transformers and others.
    build_config: how the kernels were built, or why they do not run.

Help: `help(cw_ext.sampled_cw_loss)` and so on. The documentation is in docs/ of the source repository; `make docs`
builds it as a site, which has guides, measurements and this reference.
"""

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
