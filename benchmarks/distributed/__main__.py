"""Measure what steps of several sizes on a row-sharded table send and how long they take.

    torchrun --nproc-per-node 2 -m benchmarks.distributed [--out FILE]

The table is that of examples/row_sharded.py. Prints as JSON what was measured, and what steps on tables of up to a
billion items would send, by arithmetic.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from benchmarks.common import command, reporting
from benchmarks.distributed.measure import measure


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line in each process and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node R -m benchmarks.distributed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file to write as well")
    arguments = parser.parse_args(argv)
    if not dist.is_torchelastic_launched():
        parser.error("start it with torchrun (see --help)")
    return command.run(lambda: _run(arguments.out))


def _run(out: Path | None) -> None:
    if out is not None:
        reporting.make_writable_directory(out.parent)
    dist.init_process_group("gloo")
    report = {**measure(), "environment": reporting.environment()}
    if dist.get_rank() == 0:
        print(json.dumps(report, indent=2))
        if out is not None:
            reporting.write_json(out, report)
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
