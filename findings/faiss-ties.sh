#!/usr/bin/env bash
# faiss-cpu 1.15.1: an exact inner-product index gives equal scores in descending order of their rows, and of more ties than
# places the last ones, so its top K differs from one that takes the lowest row first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet faiss-cpu==1.15.1 numpy==2.4.6
cat >check.py <<'PY'
import sys

import faiss
import numpy as np

vectors = np.ones((6, 2), dtype=np.float32)
index = faiss.IndexFlatIP(2)
index.add(vectors)
top = {k: index.search(vectors[:1], k)[1][0].tolist() for k in (3, 6)}
print("faiss", faiss.__version__)
print("six equal vectors, rows 0 to 5, the query equal to them; IndexFlatIP.search gives")
for k, rows in top.items():
    print(f"  k={k}: rows {rows}")
holds = top[3] != [0, 1, 2] and top[6] != list(range(6))
print(
    "Equal scores do not come lowest row first: comparing rankings with a stable sort needs scores, not ids."
    if holds
    else "This is no longer so."
)
sys.exit(not holds)
PY
env/bin/python check.py
