#!/usr/bin/env bash
# safetensors 0.8.0, safetensors.numpy: an array that is not contiguous (a transpose, a slice) is saved with its shape and the
# bytes of another array, without a word; the torch side refuses the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet safetensors==0.8.0 numpy==2.4.6
cat >check.py <<'PY'
import sys
from importlib.metadata import version

import numpy as np
from safetensors.numpy import load, save

print("safetensors", version("safetensors"), "numpy", version("numpy"))
table = np.arange(6, dtype=np.float32).reshape(2, 3)
wrong = []
for name, array in {"a transpose": table.T, "every second column": table[:, ::2]}.items():
    loaded = load(save({"x": array}))["x"]
    print(f"  {name}: saved {array.tolist()}, loaded {loaded.tolist()}")
    wrong.append(not np.array_equal(array, loaded))
holds = all(wrong)
print("What is loaded is not what was saved." if holds else "This is no longer so.")
sys.exit(not holds)
PY
env/bin/python check.py
