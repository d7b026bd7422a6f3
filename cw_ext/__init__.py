"""cw_ext: the CW ("Correct and Weight") ranking loss for implicit feedback, with fused kernels for PyTorch."""

from cw_ext import presets
from cw_ext.extension import build_config
from cw_ext.functional import cw_loss, cw_loss_from_embeddings
from cw_ext.modules import CWEmbeddingLoss, CWLoss
from cw_ext.version import __version__

__all__ = [
    "CWEmbeddingLoss",
    "CWLoss",
    "__version__",
    "build_config",
    "cw_loss",
    "cw_loss_from_embeddings",
    "presets",
]
