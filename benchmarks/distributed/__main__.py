"""Measure what training steps over several processes send, and how long they take.

    for r in 1 2 4; do torchrun --nproc-per-node $r -m benchmarks.distributed --out DIR; done

Two kinds of steps are measured. In one, negatives are drawn from an item table whose rows are spread over the processes
(cw_ext.distributed). In the other, the negatives are the items of all processes' batches. DIR gets processes-R.json for
each number of processes R, with the measurements and with the traffic that larger steps would need, by arithmetic.
results.png shows all numbers of processes that are in DIR.
"""

from __future__ import annotations

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
    parser = command.make_parser("torchrun --nproc-per-node R -m benchmarks.distributed", __doc__)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results; without it they are printed")
    arguments = parser.parse_args(argv)
    if not dist.is_torchelastic_launched():
        parser.error("start this program with torchrun (see --help)")
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
            file = out / f"processes-{report['processes']}.json"
            reporting.write_json(file, report)
            reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("processes-*.json"))]
            plot_traffic(sorted(reports, key=lambda r: r["processes"]), out / "results.png")
            reporting.print_results(file, out / "results.png")
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
