#!/usr/bin/env bash
# torch 2.13.0, torch/csrc/stable: an op in C++ that takes a string loses memory at each call, the more the longer the string
# is. (Guess before the run: it loses nothing.)
# Needs g++.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet numpy==2.4.6 torch==2.13.0
cat >probe.cpp <<'CPP'
#include <string>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

using torch::stable::Tensor;
Tensor with_number(Tensor x, int64_t) { return x; }
Tensor with_string(Tensor x, std::string) { return x; }

STABLE_TORCH_LIBRARY(probe, m) {
  m.def("with_number(Tensor x, int n) -> Tensor");
  m.def("with_string(Tensor x, str s) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(probe, CPU, m) {
  m.impl("with_number", TORCH_BOX(&with_number));
  m.impl("with_string", TORCH_BOX(&with_string));
}
CPP
torch=$(env/bin/python -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)')
g++ -std=c++20 -shared -fPIC -I"$torch/include" probe.cpp -o probe.so -L"$torch/lib" -ltorch_cpu
cat >check.py <<'PY'
import sys
from pathlib import Path

import torch

torch.ops.load_library("./probe.so")
CALLS = 200_000


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def lost_per_call(op, argument) -> float:
    x = torch.ones(1)
    for _ in range(CALLS // 10):
        op(x, argument)
    before = resident()
    for _ in range(CALLS):
        op(x, argument)
    return (resident() - before) / CALLS


print("torch", torch.__version__)
lost = {}
for name, op, argument in (
    ("a number", torch.ops.probe.with_number, 1),
    ("a string of 4", torch.ops.probe.with_string, "mean"),
    ("a string of 400", torch.ops.probe.with_string, "m" * 400),
):
    lost[name] = lost_per_call(op, argument)
    print(f"  {name}: {lost[name]:.0f} bytes lost per call")
holds = lost["a number"] < 8 < 32 <= lost["a string of 4"] and lost["a string of 400"] >= 400
print("Strings are lost at each call." if holds else "This is no longer so.")
sys.exit(not holds)
PY
env/bin/python check.py
