"""List the programs of `benchmarks` and `examples`: the command, what it is for, and about how long it takes.

Times are rough. They are for the default arguments on two CPU cores; none was taken on a GPU.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import NamedTuple


class Program(NamedTuple):
    """A program of the repository."""

    module: str
    purpose: str
    duration: str
    processes: str = ""  # how many torchrun starts, where it does

    @property
    def command(self) -> str:
        """What to type."""
        starter = f"torchrun --nproc-per-node {self.processes} -m" if self.processes else "python -m"
        return f"{starter} {self.module}"


GROUPS: dict[str, tuple[Program, ...]] = {
    "Start here": (
        Program(
            "benchmarks.demo",
            "Train on MovieLens-100K with BPR, SL, SL@20 and CW; compare, recommend films, and time a step (make demo)",
            "under a minute",
        ),
        Program(
            "benchmarks.training",
            "Train a recommender on your own data, or on MovieLens-100K, with one or more losses and compare them",
            "a few minutes on MovieLens-100K",
        ),
        Program(
            "benchmarks.recommend",
            "Write recommendations, similar items or vectors from a model that training saved",
            "seconds to minutes, by the number of users",
        ),
    ),
    "Time and memory": (
        Program(
            "benchmarks.throughput",
            "Compare a step of the loss with plain PyTorch and torch.compile, for many shapes",
            "half an hour; with --quick two minutes",
        ),
        Program(
            "benchmarks.throughput.front_figure",
            "Draw the documentation's front figure from the published measurements",
            "seconds",
        ),
        Program(
            "benchmarks.epoch",
            "Show where the time of a whole training step goes: sampling, loss, backward, optimizer",
            "half a minute on MovieLens-100K",
        ),
        Program("benchmarks.growth", "Show how a step's cost grows with the number of items", "minutes"),
        Program(
            "benchmarks.step_ratios",
            "Show what each argument of the loss costs, or compare this build with another checkout's",
            "minutes",
        ),
        Program("benchmarks.demo.step_cost", "Compare one step with the reference in eager PyTorch", "seconds"),
        Program(
            "benchmarks.micro_batches",
            "Show what encoding a batch in parts saves in memory and costs in time",
            "minutes",
        ),
        Program(
            "benchmarks.hstu_losses",
            "Compare CW with the sampled softmax of two HSTU code bases (needs a checkout of one)",
            "minutes",
        ),
        Program(
            "benchmarks.item_sums",
            "Compare two ways to sum the item table's gradient on a GPU (needs a GPU)",
            "not timed",
        ),
        Program(
            "benchmarks.stress.scale",
            "Check single calls beyond 2^31 pairs and a table beyond 2^31 numbers, and memory over 10,000 steps; "
            "smaller --pairs and --steps take less time",
            "an hour or more; tens of GB of disk",
        ),
    ),
    "Several processes": (
        Program(
            "benchmarks.distributed",
            "Measure what steps over several processes send, and how long they take",
            "a minute or two for each R",
            processes="R",
        ),
        Program(
            "benchmarks.scaling",
            "Compare an epoch on two processes of one thread with one process of two threads",
            "minutes on MovieLens-100K",
        ),
    ),
    "How the loss behaves": (
        Program(
            "benchmarks.gradients", "Draw the gradients of a negative and of the positive against the margin", "seconds"
        ),
        Program(
            "benchmarks.negative_mass",
            "Check how well the correction estimates the true negatives' mass, on made-up data",
            "two minutes",
        ),
        Program(
            "benchmarks.image_pairs",
            "Train on image pairs with a known share of false negatives (needs scikit-learn)",
            "6 minutes of one core",
        ),
    ),
    "Which loss ranks better": (
        Program(
            "benchmarks.negative_kinds",
            "Compare the kinds of negatives: the cost of a step, and how well the trained model ranks",
            "an hour or less",
        ),
        Program(
            "benchmarks.topk_threshold",
            "Compare SL@20 with two ways to find its thresholds (needs Amazon-Health)",
            "tens of minutes",
        ),
        Program(
            "benchmarks.study",
            "Run the whole study behind the ranking tables, and draw them (needs its data sets)",
            "days: the published runs took 38 hours of one thread",
        ),
        Program("benchmarks.study.step_times", "Time training steps with each number of negatives", "minutes"),
        Program(
            "benchmarks.study.shifted",
            "Split a data set again, with test items spread evenly over popularity",
            "seconds to minutes",
        ),
    ),
    "Examples to copy from": (
        Program(
            "examples.movielens",
            "The tutorial: train CW on MovieLens-100K, or on a file given as its only argument, and recommend by title",
            "a minute",
        ),
        Program("examples.two_towers", "Two encoders with a learned temperature (needs scikit-learn)", "a minute"),
        Program("examples.lightning_mf", "Matrix factorization in Lightning (needs lightning)", "seconds"),
        Program(
            "examples.lightgcn", "PyTorch Geometric's LightGCN trained with CW (needs torch_geometric)", "half a minute"
        ),
        Program(
            "examples.held_out_positives", "Keep some positives out of training, for the correction", "a minute or two"
        ),
        Program(
            "examples.hard_candidates", "Weight hard negatives by a learned false-negative probability", "a minute"
        ),
        Program("examples.delayed_positives", "Weights for positives that arrive late, on made-up data", "seconds"),
        Program(
            "examples.row_sharded",
            "Spread an item table over several processes, with checkpoints",
            "seconds",
            processes="R",
        ),
    ),
}


def describe() -> str:
    """Return all programs as text, at most 100 columns wide."""
    lines = ["Programs of benchmarks and examples. Add --help to a command, except the tutorial, for its options.", ""]
    lines += ["Times are rough, for the defaults on two CPU cores. None was taken on a GPU."]
    lines += ["R stands for a number of processes.", ""]
    for title, programs in GROUPS.items():
        lines += [title, ""]
        for program in programs:
            lines += [f"  {program.command}  [{program.duration}]"]
            lines += textwrap.wrap(
                f"{program.purpose}.", width=100, initial_indent="      ", subsequent_indent="      "
            )
        lines += [""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the list and return the exit status."""
    argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    print(describe(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
