#!/usr/bin/env bash
# polars 2.1.0, read_csv: plain text whose first two characters are `x^` is taken for a zlib stream, and comes back as an empty
# table without an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet polars==2.1.0
cat >check.py <<'PY'
import sys

import polars as pl

print("polars", pl.__version__)
shapes = {}
for first in ("x^2", "y^2"):
    text = f"{first},item\n1,2\n3,4\n"
    table = pl.read_csv(text.encode())
    shapes[first] = table.shape
    print(f"  a csv of two rows and two columns that begins with {first!r}: shape {table.shape}, columns {table.columns}")
holds = shapes["y^2"] == (2, 2) and shapes["x^2"] != (2, 2)
print("Text that begins with x^ is read as something else, without an error." if holds else "This is no longer so.")
sys.exit(not holds)
PY
env/bin/python check.py
