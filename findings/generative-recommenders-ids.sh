#!/usr/bin/env bash
# generative-recommenders (Meta) at commit db1bf8f, SampledSoftmaxLoss.forward: ids travel as fp32, so that of a catalogue
# of more than 2^24 items some are rounded, and a target's own item is then no longer left out of its negatives.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# GENERATIVE_RECOMMENDERS names a checkout.
checkout=$(realpath "${GENERATIVE_RECOMMENDERS:-$folder/checkout}")
cd "$folder"
if [ ! -e "$checkout" ]; then
    git clone --quiet https://github.com/meta-recsys/generative-recommenders "$checkout"
    git -C "$checkout" checkout --quiet db1bf8f2e8f6a92a738dafd52a245eafb25a222b
fi
python3 -m venv env
# TORCH names another build of torch, such as one without CUDA.
env/bin/python -m pip install --quiet "${TORCH:-torch==2.13.0}" fbgemm-gpu-cpu==1.8.0 numpy setuptools
cat >check.py <<'PY'
import sys

import fbgemm_gpu  # noqa: F401  # registers the ops that the loss calls
import torch
from generative_recommenders.research.modeling.sequential.autoregressive_losses import InBatchNegativesSampler
from generative_recommenders.research.modeling.sequential.losses.sampled_softmax import SampledSoftmaxLoss
from generative_recommenders.research.modeling.similarity_module import SequentialEncoderWithLearnedSimilarityModule
from generative_recommenders.research.rails.similarities.dot_product_similarity_fn import DotProductSimilarity

torch.manual_seed(0)
loss = SampledSoftmaxLoss(64, 0.05, SequentialEncoderWithLearnedSimilarityModule(DotProductSimilarity()))
queries, items = torch.nn.functional.normalize(torch.randn(2, 2, 8), dim=-1).unsqueeze(1)  # of one sequence, [1, 2, 8]


def loss_of(first: int, by_forward: bool) -> float:
    """Of two targets, numbered first and first + 2, among each other."""
    ids = torch.tensor([first, first + 2])
    sampler = InBatchNegativesSampler(l2_norm=True, l2_norm_eps=1e-6, dedup_embeddings=True)
    sampler.process_batch(ids, torch.ones(2, dtype=torch.bool), items[0])
    torch.manual_seed(1)  # the draws
    weights = torch.ones(1, 2)
    if by_forward:
        return loss(torch.tensor([2]), queries, ids.unsqueeze(0), items, weights, sampler)[0].item()
    return loss.jagged_forward(queries[0], ids, items[0], weights[0], sampler)[0].item()


few, many = loss_of(1, True), loss_of(2**24 + 1, True)
not_rounded = loss_of(2**24 + 1, False)
print(f"numbered from 1: loss {few:.6f}; the same items numbered from 2^24 + 1: {many:.6f}")
print(f"the latter by jagged_forward, to which ids go as they are: {not_rounded:.6f}")
holds = abs(few - not_rounded) < 1e-5 < abs(few - many)
print("The loss depends on the numbering." if holds else "This is no longer so.")
sys.exit(not holds)
PY
PYTHONPATH="$checkout" env/bin/python check.py
