#!/usr/bin/env bash
# torch 2.15.0: an op in C++ that throws std::invalid_argument raises RuntimeError in Python. With torch 2.14.1 the same
# library, one file on LibTorch's stable ABI, raises ValueError. (Guess before the run: ValueError with both.)
# Needs g++, and downloads torch twice with its CUDA libraries, several gigabytes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >probe.cpp <<'CPP'
#include <stdexcept>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

torch::stable::Tensor refuse(torch::stable::Tensor) { throw std::invalid_argument("no such value"); }

STABLE_TORCH_LIBRARY(probe, m) { m.def("refuse(Tensor x) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(probe, CPU, m) { m.impl("refuse", TORCH_BOX(&refuse)); }
CPP
cat >check.py <<'PY'
import sys

import torch

torch.ops.load_library("./probe.so")
try:
    torch.ops.probe.refuse(torch.ones(1))
except Exception as error:
    found = type(error).__name__
print(f"torch {torch.__version__}: std::invalid_argument arrives as {found}")
sys.exit(found != sys.argv[1])
PY
holds=yes
for case in 2.14.1:ValueError 2.15.0:RuntimeError; do
    python3 -m venv env
    PIP_CONFIG_FILE=/dev/null env/bin/python -m pip install --quiet numpy==2.4.6 "torch===${case%:*}"
    torch=$(env/bin/python -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)')
    if [[ ! -e probe.so ]]; then # built once, with the older
        g++ -std=c++20 -shared -fPIC -DTORCH_TARGET_VERSION=0x020b000000000000 -I"$torch/include" probe.cpp -o probe.so \
            -L"$torch/lib" -ltorch_cpu
    fi
    env/bin/python check.py "${case#*:}" || holds=no
    rm -rf env
done
[[ $holds == yes ]] && echo "The class of an op's exception depends on torch's version." || echo "This is no longer so."
[[ $holds == yes ]]
