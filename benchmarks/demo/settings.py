"""The demo's settings."""

from __future__ import annotations

from benchmarks.training.losses import LossOptions

# Each loss at its best on a grid of at most eight settings, by validation NDCG@20 averaged over seeds 0 to 2, the
# simplest where equal: learning rate and weight decay for BPR, at a learning rate of 0.1 τ for SL, τ and τ_w/τ
# (12.5, 20) for SL@20, τ and π (0.03, 0.1) for CW.
SETTINGS = {
    "bpr": (LossOptions(), {"lr": 0.003, "weight_decay": 4e-5}),
    "sl": (LossOptions(temperature=0.1), {"lr": 0.1}),
    "slk": (LossOptions(temperature=0.1, confidence_temperature=2.0), {"lr": 0.1}),
    "cw": (LossOptions(), {"lr": 0.1}),
}
EPOCHS = 30
EVAL_EVERY = 2
# A quarter of the protocol's 1000: there are about 1000 items here, and validation is no better with more.
NEGATIVES = 256
# Without compiled kernels a step is too slow for as many.
NEGATIVES_REFERENCE = 32
