#!/usr/bin/env bash
# torch 2.13.0: a process with DistributedDataParallel on gloo can hang for ever at its end, after
# destroy_process_group(). The DDP object, where it lives longer, is the last that holds the group, and its destructor
# waits for gloo's thread without giving up Python's lock, for which that thread waits to free a tensor. With the DDP
# object deleted first nothing hangs. (Guess, from a process that had hung for ten minutes: so it is.) One hang in 300
# rounds is enough. Downloads torch with its CUDA libraries, several gigabytes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >check.py <<'PY'
import faulthandler
import sys

import torch
import torch.distributed as dist
from torch import nn

for _ in range(300):
    faulthandler.dump_traceback_later(30, exit=True, file=open("stacks", "w"))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = nn.parallel.DistributedDataParallel(nn.Linear(4, 4))
    model(torch.randn(2, 4)).sum().backward()
    for _ in range(3):
        dist.all_reduce(torch.zeros(1))
    if sys.argv[1] == "before":
        del model
    dist.destroy_process_group()
    model = None
PY
python3 -m venv env
PIP_CONFIG_FILE=/dev/null env/bin/python -m pip install --quiet numpy torch==2.13.0
hung() { if OMP_NUM_THREADS=1 env/bin/python check.py "$1"; then echo no; else echo yes; fi; }
before=$(hung before) after=$(hung after)
echo "DDP object deleted before the group: hung $before; after it: hung $after"
[[ $before == no && $after == yes ]] && echo "A DDP object must not outlive its gloo group." || echo "This is no longer so."
[[ $before == no && $after == yes ]]
