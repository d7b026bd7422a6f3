#!/usr/bin/env bash
# pulearn 0.2.0: with its default smoothing, HistogramMatchPriorEstimator returns about twice the labelled share, however many
# positives hide among the unlabelled samples.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet pulearn==0.2.0 scikit-learn==1.7.2 numpy==2.4.6
cat >check.py <<'PY'
import sys

import numpy as np
import pulearn
from pulearn import HistogramMatchPriorEstimator

LABELLED, UNLABELLED = 500, 10_000
rng = np.random.default_rng(0)
estimates = {}
for share in (0.25, 0.5, 0.75):
    hidden = int(share * UNLABELLED)
    positives = rng.normal(2.0, 1.0, (LABELLED + hidden, 2))  # far from the negatives, labelled completely at random
    negatives = rng.normal(-2.0, 1.0, (UNLABELLED - hidden, 2))
    labels = np.r_[np.ones(LABELLED, dtype=int), np.zeros(UNLABELLED, dtype=int)]
    truth = (LABELLED + hidden) / (LABELLED + UNLABELLED)
    estimates[truth] = HistogramMatchPriorEstimator().estimate(np.concatenate([positives, negatives]), labels).pi
print("pulearn", pulearn.__version__)
print(f"two normal classes four deviations apart on both axes, {LABELLED} labelled of {LABELLED + UNLABELLED} samples")
for truth, estimate in estimates.items():
    print(f"  share of positives {truth:.3f}: estimated {estimate:.3f}")
twice = 2 * LABELLED / (LABELLED + UNLABELLED)
holds = all(abs(estimate - twice) < 0.01 for estimate in estimates.values())
print(
    f"The estimate is about twice the labelled share, {twice:.3f}, for all of them: the scores are probabilities of being\n"
    "labelled, which fill the lowest bins only, and in empty bins smoothing alone sets the ratio whose minimum is taken."
    if holds
    else "This is no longer so."
)
sys.exit(not holds)
PY
env/bin/python check.py
