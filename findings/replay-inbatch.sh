#!/usr/bin/env bash
# RePlay 0.22.0, replay.models.nn.SasRec, negative_sampling_strategy="inbatch": what is kept out of the negatives depends
# on how the items are numbered, as ids are compared with places in the batch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
# TORCH names another build of torch, such as one without CUDA.
env/bin/python -m pip install --quiet "${TORCH:-torch==2.13.0}" "replay-rec[torch]==0.22.0"
cat >check.py <<'PY'
import copy
import sys
import warnings
from importlib.metadata import version

warnings.simplefilter("ignore")
import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.models.nn.sequential.sasrec import SasRec, SasRecTrainingBatch

ITEMS, SHIFT = 100, 50
source = TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")
schema = TensorSchema(
    TensorFeatureInfo(
        "item_id",
        is_seq=True,
        feature_type=FeatureType.CATEGORICAL,
        embedding_dim=8,
        padding_value=ITEMS,
        cardinality=ITEMS,
        feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[source],
    )
)
torch.manual_seed(0)
model = SasRec(
    schema,
    block_count=1,
    head_count=1,
    hidden_size=8,
    max_seq_len=3,
    dropout_rate=0.0,
    loss_type="CE",
    loss_sample_count=6,  # all six positives of the batch
    negative_sampling_strategy="inbatch",
    negatives_sharing=True,
).eval()
model.log = lambda *args, **kwargs: None  # there is no trainer


def loss_of(model, history, targets):
    there = torch.ones(2, 3, dtype=torch.bool)
    batch = SasRecTrainingBatch(torch.arange(2), there, {"item_id": history}, targets, there)
    with torch.no_grad():
        return model.training_step(batch, 0).item()


# The same items under other numbers: item i is i + 50, with the same vector, and the other way round.
renumbered = copy.deepcopy(model)
(table,) = [p for p in renumbered.parameters() if p.dim() == 2 and p.shape[0] >= ITEMS]
with torch.no_grad():
    table[:ITEMS] = table[:ITEMS].roll(SHIFT, 0)
history, targets = torch.tensor([[10, 11, 12], [13, 14, 15]]), torch.tensor([[0, 1, 2], [3, 4, 5]])
as_they_are = loss_of(model, history, targets)
moved = loss_of(renumbered, history + SHIFT, targets + SHIFT)
# By hand: each target against the batch's positives, with and without its own among them.
with torch.no_grad():
    there = torch.ones(2, 3, dtype=torch.bool)
    states = model._model.forward_step({"item_id": history}, there)[there]
    scores = model._model.get_logits(states, targets.flatten())
    own = torch.eye(6)


def by_hand(masked):
    left = 6 - masked.sum(1, keepdim=True)
    negatives = scores + torch.log(torch.tensor(5.0)) - 1e6 * masked - torch.log(left)
    logits = torch.cat([scores.diagonal().unsqueeze(1), negatives], 1)
    return torch.nn.functional.cross_entropy(logits, torch.zeros(6, dtype=torch.int64)).item()


print("replay-rec", version("replay-rec"))
print(f"one batch, targets numbered 0 to 5: loss {as_they_are:.6f}; the same numbered 50 to 55: {moved:.6f}")
print(f"by hand, own positive left out: {by_hand(own):.6f}; own positive among the negatives: {by_hand(0 * own):.6f}")
near = lambda a, b: abs(a - b) < 1e-5
holds = near(as_they_are, by_hand(own)) and near(moved, by_hand(0 * own)) and not near(as_they_are, moved)
print(
    "The loss depends on the numbering: a target's own item is rejected only where its id is its place among the batch's."
    if holds
    else "This is no longer so."
)
sys.exit(not holds)
PY
env/bin/python check.py
