"""Measure what steps over several processes send and how long they take.

    for r in 1 2 4; do torchrun --nproc-per-node $r -m benchmarks.distributed --out DIR; done

Negatives are drawn from a table whose rows are spread over the processes (cw_ext.distributed), or are the items of all
processes' batches. DIR gets processes-R.json with what was measured and what larger steps would send by arithmetic,
and results.png with all numbers of processes that are there.
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
from benchmarks.distributed.plot import plot_traffic


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line in each process and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node R -m benchmarks.distributed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go; else they are printed")
    arguments = parser.parse_args(argv)
    if not dist.is_torchelastic_launched():
        parser.error("start it with torchrun (see --help)")
    return command.run(lambda: _run(arguments.out))


def _run(out: Path | None) -> None:
    if out is not None:
        reporting.make_writable_directory(out)
    dist.init_process_group("gloo")
    report = {**measure(), "environment": reporting.environment()}
    if dist.get_rank() == 0:
        if out is None:
            print(json.dumps(report, indent=2))
        else:
            reporting.write_json(out / f"processes-{report['processes']}.json", report)
            reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("processes-*.json"))]
            plot_traffic(sorted(reports, key=lambda r: r["processes"]), out / "results.png")
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
