"""Contrastive learning on images with a known share of false negatives: fixed losses, and estimated weights.

The data are scikit-learn's 1,797 images of handwritten digits, 8x8 pixels each. Two augmented views of one image form a
pair, and the second views of the batch's other images are its negatives. A negative that shows the same digit is a
false one. Their share is planted: every batch has equally many images of each digit, and each row keeps 20 of its
negatives, chosen so that the share π of them is false. The batch is also used as it is, with 109 negatives of which 10
are false. Labels serve to plant negatives and to measure. Training sees pairs only, except where noted below.

InfoNCE, SL, DCL, PUCL and CW are arguments of the loss. CVIR, (TED)ⁿ, 1 − p_FN and FNE are InfoNCE with weights that
change during training. All methods that correct are given the true π, with two exceptions. FNE uses its authors'
number. (TED)ⁿ estimates π before each epoch from pairs of validation images. It does so twice: with the two views of an
image as positives, and with views of two images of one digit, for which it sees these images' labels. 1 − p_FN sees
them too.

All methods train on the same images and views, from the same first weights. Each has the same temperatures to choose
from, and takes the one with the best mean validation accuracy of the first two seeds. What is measured is the accuracy
of a nearest-neighbor classifier on the embeddings of images that training has not seen: with five labeled images per
digit (1 neighbor, mean of several choices of the five), which also decides the temperature, and with the labels of all
training images (5 neighbors).
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common import command, reporting
from benchmarks.common.arguments import add_out, positive_int
from benchmarks.image_pairs import pairs
from benchmarks.image_pairs.contestants import BASELINE, CONTESTANTS
from benchmarks.image_pairs.methods import EPOCH, LEARNING_RATE, Method, Setting, train
from benchmarks.image_pairs.pairs import Accuracy, Split, accuracy
from benchmarks.image_pairs.plot import plot_all

# None is the batch as it is, which has this name on the command line.
SHARES: tuple[float | None, ...] = (None, 0.0, 0.1, 0.2, 0.3, 0.5)
AS_IT_IS = "as-it-is"
# On the half cosine.
TEMPERATURES = (0.0125, 0.025, 0.05, 0.1, 0.2)
STEPS = 300
SEEDS = 5
SEARCH_SEEDS = 2
# Batches of validation pairs, for the estimates; so many show each image about twice.
HELD_OUT_BATCHES = 8


class Data(NamedTuple):
    """What a seed trains on."""

    split: Split
    views: Tensor  # of training images
    held_out: Tensor  # of validation images, for the estimates


def make_data(seed: int, steps: int) -> Data:
    """The images of a seed and their views."""
    split = pairs.load_split(seed)
    # The held-out views are drawn from a seed that no training views have.
    held_out = pairs.make_views(split, split.validation, HELD_OUT_BATCHES, 2**32 + seed)
    return Data(split, pairs.make_views(split, split.train, steps, seed), held_out)


def train_with(name: str, temperature: float, share: float | None, data: Data, seed: int) -> tuple[nn.Module, Method]:
    """Train an encoder with a contestant, and return what it has learnt beside it.

    Raises:
        ValueError: a share that cannot be had, or a bad argument of the loss.
    """
    negatives = pairs.plant_negatives(share, torch.Generator().manual_seed(seed))
    method = CONTESTANTS[name].method(Setting(temperature, pairs.rate(share)[0], negatives, data.held_out))
    return train(data.views, method, seed), method


def measure(data: Sequence[Data], name: str, share: float | None) -> dict[str, Any]:
    """Choose a loss's temperature on the first seeds, and test with it on all.

    Args:
        data: one per seed, from 0.
        name: key in :data:`benchmarks.image_pairs.contestants.CONTESTANTS`.
        share: of false negatives; None for the batch as it is.

    Returns:
        ``"loss"``, ``"share"``, ``"prior"`` (π), ``"negatives"``, ``"temperature"``; test accuracy of each seed,
        ``"few"`` and ``"all"``; ``"estimated_prior"`` of each seed, in the last epoch, or None; ``"validation"``: what
        was tried, [temperature, accuracy with few labels].
    """

    def trained(temperature: float, seeds: range) -> list[tuple[nn.Module, Method]]:
        return [train_with(name, temperature, share, data[seed], seed) for seed in seeds]

    searched = range(min(SEARCH_SEEDS, len(data)))
    tried = {temperature: trained(temperature, searched) for temperature in TEMPERATURES}
    found = {
        temperature: statistics.mean(accuracy(e, d.split, d.split.validation).few for (e, _), d in zip(results, data))
        for temperature, results in tried.items()
    }
    best = max(found, key=found.__getitem__)
    results = tried[best] + trained(best, range(len(searched), len(data)))
    tests = [accuracy(encoder, d.split, d.split.test) for (encoder, _), d in zip(results, data, strict=True)]
    prior, negatives = pairs.rate(share)
    return {
        "loss": name,
        "share": share,
        "prior": prior,
        "negatives": negatives,
        "temperature": best,
        "few": [test.few for test in tests],
        "all": [test.all for test in tests],
        "estimated_prior": [method.estimated_prior for _, method in results],
        "validation": [list(entry) for entry in found.items()],
    }


def run(seeds: int, steps: int, losses: Sequence[str], shares: Sequence[float | None]) -> dict[str, Any]:
    """Measure the losses at the shares, and return the content of results.json.

    Args:
        seeds, steps: numbers of them.
        losses: keys of :data:`benchmarks.image_pairs.contestants.CONTESTANTS`; the baseline is measured in any case.
        shares: of false negatives; None for the batch as it is.
    """
    # In one order, however they are given.
    names = [name for name in CONTESTANTS if name == BASELINE or name in losses]
    shares = sorted(set(shares), key=lambda share: -math.inf if share is None else share)
    data = [make_data(seed, steps) for seed in range(seeds)]
    splits = [seed_data.split for seed_data in data]
    untrained = {
        "pixels": [accuracy(nn.Flatten(), split, split.test) for split in splits],
        "untrained": [accuracy(pairs.make_encoder(seed), split, split.test) for seed, split in enumerate(splits)],
    }
    results = []
    with command.progress([(share, name) for share in shares for name in names], unit="loss") as progress:
        for share, name in progress:
            results.append(measure(data, name, share))
    return {
        "environment": reporting.environment(),
        "settings": {
            "seeds": seeds,
            "steps": steps,
            "epoch": EPOCH,
            "batch": pairs.BATCH,
            "dim": pairs.DIM,
            "hidden": pairs.HIDDEN,
            "learning_rate": LEARNING_RATE,
            "temperatures": list(TEMPERATURES),
            "labelled_per_digit": pairs.LABELLED,
        },
        "labels": {name: CONTESTANTS[name].label for name in names},
        "baseline": BASELINE,
        "without_training": {
            name: {kind: [getattr(test, kind) for test in tests] for kind in Accuracy._fields}
            for name, tests in untrained.items()
        },
        "results": results,
    }


def describe(report: Mapping[str, Any]) -> str:
    """Return the table: test accuracy, mean ± standard deviation over the seeds, the difference from InfoNCE, and π as
    (TED)ⁿ estimates it."""
    labels, baseline = report["labels"], report["baseline"]
    base = {result["share"]: result for result in report["results"] if result["loss"] == baseline}
    rows = [
        ["-", "-", label, "-", *(_spread(report["without_training"][name][kind]) for kind in Accuracy._fields), "", ""]
        for name, label in (("pixels", "pixels"), ("untrained", "untrained encoder"))
    ]
    for result in report["results"]:
        few, others = result["few"], base[result["share"]]["few"]
        against = "" if result["loss"] == baseline else _spread([a - b for a, b in zip(few, others)], "+z")
        cells = [
            f"{result['prior']:.3g}",
            str(result["negatives"]),
            labels[result["loss"]],
            f"{result['temperature']:g}",
        ]
        estimates = result["estimated_prior"]
        estimated = _spread(estimates) if None not in estimates else ""
        rows.append([*cells, _spread(few), _spread(result["all"]), against, estimated])
    number = report["settings"]["labelled_per_digit"]
    header = [
        "π",
        "N",
        "loss",
        "τ",
        f"{number} labels per digit",
        "all labels",
        f"- {labels[baseline]}, {number} labels",
        "estimated π",
    ]
    return reporting.format_table(header, rows)


def _spread(values: Sequence[float], sign: str = "") -> str:
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.4f}{deviation}"


def _share(text: str) -> float | None:
    if text == AS_IT_IS:
        return None
    try:
        pairs.false_negatives(share := float(text))
    except ValueError:
        most = (pairs.PER_DIGIT - 1) / pairs.NEGATIVES
        raise argparse.ArgumentTypeError(
            f"expected {AS_IT_IS}, or a number from 0 to {most:g} that makes a whole number of {pairs.NEGATIVES} "
            f"negatives, got {text!r}"
        ) from None
    return share


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = command.make_parser(
        "python -m benchmarks.image_pairs", __doc__, "bad arguments or no scikit-learn", "nothing is written"
    )
    parser.add_argument(
        "--losses", nargs="+", choices=CONTESTANTS, default=[*CONTESTANTS], metavar="NAME",
        help=f"losses to train with, besides {BASELINE}, which all others are compared with (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--shares", nargs="+", type=_share, default=SHARES, metavar="SHARE",
        help=f"shares of false negatives among the {pairs.NEGATIVES} of a row; {AS_IT_IS}: the batch as it is "
        f"(default: {AS_IT_IS} {' '.join(f'{share:g}' for share in SHARES if share is not None)})",
    )  # fmt: skip
    parser.add_argument("--seeds", type=positive_int, default=SEEDS, help="number of seeds, from 0")
    parser.add_argument("--steps", type=positive_int, default=STEPS, help="batches to train each encoder on")
    add_out(parser)
    arguments = parser.parse_args(argv)
    out = arguments.out or reporting.default_directory("image-pairs")
    grid = (arguments.seeds, arguments.steps, arguments.losses, arguments.shares)
    return command.run(lambda: _run(lambda: run(*grid), out))


def _run(measured: Callable[[], dict[str, Any]], out: Path) -> None:
    reporting.make_writable_directory(out)
    report = measured()
    reporting.write_json(out / "results.json", report)
    figures = plot_all(report, out)
    print(describe(report))
    reporting.print_results(out / "results.json", *figures)


if __name__ == "__main__":
    sys.exit(main())
