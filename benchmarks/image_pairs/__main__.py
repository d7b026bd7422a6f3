"""Contrastive learning on images with a known share of false negatives: InfoNCE, SL, DCL, PUCL and CW.

Two augmented views of the same handwritten digit (scikit-learn's 1,797 images of 8x8 pixels) are a pair; the second
views of other images in the batch are its negatives. Those that show the same digit are false ones, and how many they
are is planted: a batch has as many images of each digit, and each row leaves out all but so many of the same and so
many of other digits that it has 20 negatives with the share π. Besides, the batch as it is: 109 negatives, of which 10
are false. The labels serve for this and to measure: training sees pairs alone.

All losses that correct are told the true π, and all train with the same images, views and first weights. Each has the
same temperatures to choose from, by the mean validation accuracy of the first two seeds. Measured is what a nearest
neighbour makes of the embeddings of images that training has not seen: with five labelled images per digit (1
neighbour, mean of several choices of the five), by which the temperature is chosen, and with the labels of all training
images (5 neighbours).
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.common import command, reporting
from benchmarks.common.arguments import add_out, positive_int
from benchmarks.image_pairs.plot import plot_accuracy
from cw_ext import Interactions, cw_loss_in_batch, presets
from cw_ext.parameters import LossArguments

DIGITS = 10
SIDE = 8
# Images of each digit in a batch.
PER_DIGIT = 11
BATCH = DIGITS * PER_DIGIT
# Of a row with a planted share; the shares make whole numbers of them, at most the 10 others of the row's digit.
NEGATIVES = 20
# None is the batch as it is.
SHARES: tuple[float | None, ...] = (None, 0.0, 0.1, 0.2, 0.3, 0.5)
# On the half cosine.
TEMPERATURES = (0.0125, 0.025, 0.05, 0.1, 0.2)

HIDDEN = 128
DIM = 32
LEARNING_RATE = 3e-3
STEPS = 300
SEEDS = 5
SEARCH_SEEDS = 2
# At most so many radians, pixels and parts of the size; standard deviation of the noise, where pixels are in [0, 1].
ROTATION, SHIFT, SCALE, NOISE = 0.25, 1.0, 0.2, 0.1

LABELLED = 5
LABELLED_DRAWS = 10
NEIGHBOURS = 5


class Contestant(NamedTuple):
    """A loss: its name in tables, and its arguments given τ, π and the number of negatives."""

    label: str
    arguments: Callable[[float, float, int], LossArguments]


def _pucl(temperature: float, prior: float, negatives: int) -> LossArguments:
    # Of a row's 1 + N samples 1 + πN are positives, one of which is labelled: π of the unlabelled are left.
    positives = 1 + prior * negatives
    return presets.pucl(temperature, positives / (1 + negatives), 1 / positives)


LOSSES = {
    "infonce": Contestant("InfoNCE", lambda temperature, prior, negatives: presets.infonce(temperature)),
    "sl": Contestant("SL", lambda temperature, prior, negatives: presets.sl(temperature)),
    "dcl": Contestant("DCL", lambda temperature, prior, negatives: presets.dcl(temperature, prior)),
    "pucl": Contestant("PUCL", _pucl),
    "cw-weights": Contestant("CW, weights alone", lambda temperature, prior, negatives: presets.cw(temperature, 0.0)),
    "cw": Contestant("CW", lambda temperature, prior, negatives: presets.cw(temperature, prior)),
}
BASELINE = "infonce"


class Split(NamedTuple):
    """The images, and which are for training, validation and test."""

    images: Tensor  # [n, 8, 8], in [0, 1]
    labels: Tensor  # [n]
    train: Tensor  # ids of images
    validation: Tensor
    test: Tensor


def load_split(seed: int) -> Split:
    """Split scikit-learn's digits: of each digit half for training, a quarter each for validation and test.

    Raises:
        RuntimeError: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise RuntimeError("the images are those of scikit-learn, which is not installed: pip install scikit-learn")
    from sklearn.datasets import load_digits

    data = load_digits()
    labels = torch.from_numpy(data.target)
    generator = torch.Generator().manual_seed(seed)
    parts: list[tuple[Tensor, ...]] = []
    for digit in range(DIGITS):
        ids = torch.nonzero(labels == digit).flatten()
        ids = ids[torch.randperm(len(ids), generator=generator)]
        parts.append(ids.tensor_split((len(ids) // 2, len(ids) * 3 // 4)))
    images = torch.from_numpy(data.images).float() / 16
    return Split(images, labels, *(torch.cat(part) for part in zip(*parts, strict=True)))


def rate(share: float | None) -> tuple[float, int]:
    """The share π of false negatives and the number of negatives of a row."""
    return (share, NEGATIVES) if share is not None else ((PER_DIGIT - 1) / (BATCH - 1), BATCH - 1)


def left_out(share: float, generator: torch.Generator) -> Interactions:
    """What each row of a batch leaves out, so that the share of its negatives is false.

    Args:
        share: π; of :data:`NEGATIVES` it must make a whole number, no more than there are others of a row's digit.
        generator: of the choice of those that stay.

    Returns:
        Positions in the batch of what each position leaves out (as its "known positives"), in batches laid out as by
        :func:`draw_batches`. The position itself, which the loss leaves out, is not among them.

    Raises:
        ValueError: a share that cannot be had.
    """
    false = share * NEGATIVES
    most = PER_DIGIT - 1
    if not 0 <= false <= most or abs(false - round(false)) > 1e-9:
        raise ValueError(f"share must be one of 0, 1/{NEGATIVES}, … {most}/{NEGATIVES}, got {share}")
    digit = torch.arange(BATCH) // PER_DIGIT
    same = digit.unsqueeze(1) == digit
    own = torch.eye(BATCH, dtype=torch.bool)
    order = torch.rand(BATCH, BATCH, generator=generator)
    stays = own.clone()
    for candidates, number in ((same & ~own, round(false)), (~same, NEGATIVES - round(false))):
        first = order.masked_fill(~candidates, math.inf).argsort(1)[:, :number]
        stays.scatter_(1, first, True)
    rows, positions = torch.nonzero(~stays, as_tuple=True)
    return Interactions(rows, positions, num_queries=BATCH, num_items=BATCH)


def draw_batches(split: Split, steps: int, generator: torch.Generator) -> Tensor:
    """Ids of training images [steps, BATCH]: :data:`PER_DIGIT` different ones of each digit, one digit after the other
    in an order that changes from batch to batch."""
    labels = split.labels[split.train]
    per_digit = []
    for digit in range(DIGITS):
        ids = split.train[labels == digit]
        per_digit.append(ids[torch.rand(steps, len(ids), generator=generator).argsort(1)[:, :PER_DIGIT]])
    order = torch.rand(steps, DIGITS, generator=generator).argsort(1)
    return torch.stack(per_digit, 1)[torch.arange(steps).unsqueeze(1), order].flatten(1)


def make_views(split: Split, steps: int, seed: int) -> Tensor:
    """Batches of pairs [steps, 2·BATCH, 8, 8]: the first views of a batch's training images, then the second."""
    generator = torch.Generator().manual_seed(seed)
    views = []
    for ids in draw_batches(split, steps, generator):
        images = split.images[ids]
        views.append(augment(torch.cat([images, images]), generator))
    return torch.stack(views)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, shift, scale and add noise: [n, 8, 8] to [n, 8, 8]."""
    number = len(images)

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=generator) - 1

    angle, scale = ROTATION * uniform(number), 1 + SCALE * uniform(number)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    linear = torch.stack([cosine, -sine, sine, cosine], 1).view(number, 2, 2)
    shift = SHIFT / (SIDE / 2) * uniform(number, 2, 1)
    grid = F.affine_grid(torch.cat([linear, shift], 2), [number, 1, SIDE, SIDE], align_corners=False)
    moved = F.grid_sample(images.unsqueeze(1), grid, align_corners=False).squeeze(1)
    return moved + NOISE * torch.randn(moved.shape, generator=generator)


def make_encoder(seed: int) -> nn.Module:
    """An encoder of images [n, 8, 8] to embeddings [n, DIM], with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = (nn.Linear(SIDE * SIDE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM))
    return nn.Sequential(nn.Flatten(), *layers)


def train(views: Tensor, share: float | None, loss: LossArguments, seed: int) -> nn.Module:
    """Train an encoder on pairs of views, a step per batch.

    Args:
        views: of :func:`make_views`.
        share: of false negatives; None for the batch as it is.
        loss: arguments of :func:`cw_ext.cw_loss_in_batch`.
        seed: of the first weights, and of which negatives stay.

    Raises:
        ValueError: a share that cannot be had, or a bad argument of the loss.
    """
    positions = torch.arange(BATCH)
    known = {}
    if share is not None:
        interactions = left_out(share, torch.Generator().manual_seed(seed))
        known = {"query_ids": positions, "interactions": interactions}
    encoder = make_encoder(seed)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=LEARNING_RATE, fused=True)
    for pairs in views:
        queries, items = encoder(pairs).split(BATCH)
        # Each image is a positive once: all are equally popular, and there is nothing to correct.
        value = cw_loss_in_batch(queries, items, positions, log_q_correction=False, **known, **loss)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return encoder


class Accuracy(NamedTuple):
    """Shares of images whose digit a nearest neighbour finds."""

    few: float  # with LABELLED labelled images per digit, 1 neighbour; mean over LABELLED_DRAWS choices of them
    all: float  # with all training images labelled, NEIGHBOURS neighbours


def accuracy(encoder: nn.Module, split: Split, ids: Tensor) -> Accuracy:
    """How well the cosine of embeddings finds the digits of the images `ids`."""
    from sklearn.neighbors import KNeighborsClassifier

    with torch.no_grad():
        embeddings = F.normalize(encoder(split.images), dim=1).numpy()  # their distances order as cosines do
    labels = split.labels.numpy()

    def score(labelled: Tensor, neighbours: int) -> float:
        classifier = KNeighborsClassifier(neighbours).fit(embeddings[labelled], labels[labelled])
        return float(classifier.score(embeddings[ids], labels[ids]))

    generator = torch.Generator().manual_seed(0)
    few = []
    for _ in range(LABELLED_DRAWS):
        shuffled = split.train[torch.randperm(len(split.train), generator=generator)]
        of_digit = [shuffled[split.labels[shuffled] == digit][:LABELLED] for digit in range(DIGITS)]
        few.append(score(torch.cat(of_digit), 1))
    return Accuracy(statistics.mean(few), score(split.train, NEIGHBOURS))


def measure(splits: Sequence[Split], views: Sequence[Tensor], name: str, share: float | None) -> dict[str, Any]:
    """Choose a loss's temperature on the first seeds, and test with it on all.

    Args:
        splits: one per seed, from 0.
        views: of their training images.
        name: key in :data:`LOSSES`.
        share: of false negatives; None for the batch as it is.

    Returns:
        ``"loss"``, ``"share"``, ``"prior"`` (π), ``"negatives"``, ``"temperature"``; test accuracy of each seed,
        ``"few"`` and ``"all"``; ``"validation"``: what was tried, [temperature, accuracy with few labels].
    """
    prior, negatives = rate(share)

    def encoders(temperature: float, seeds: range) -> list[nn.Module]:
        loss = LOSSES[name].arguments(temperature, prior, negatives)
        return [train(views[seed], share, loss, seed) for seed in seeds]

    searched = range(min(SEARCH_SEEDS, len(splits)))
    tried = {temperature: encoders(temperature, searched) for temperature in TEMPERATURES}
    found = {
        temperature: statistics.mean(accuracy(e, s, s.validation).few for e, s in zip(trained, splits))
        for temperature, trained in tried.items()
    }
    best = max(found, key=found.__getitem__)
    trained = tried[best] + encoders(best, range(len(searched), len(splits)))
    tests = [accuracy(encoder, split, split.test) for encoder, split in zip(trained, splits, strict=True)]
    return {
        "loss": name,
        "share": share,
        "prior": prior,
        "negatives": negatives,
        "temperature": best,
        "few": [test.few for test in tests],
        "all": [test.all for test in tests],
        "validation": [list(entry) for entry in found.items()],
    }


def run(seeds: int, steps: int) -> dict[str, Any]:
    """Measure all losses at all shares, and return the content of results.json."""
    splits = [load_split(seed) for seed in range(seeds)]
    views = [make_views(split, steps, seed) for seed, split in enumerate(splits)]
    untrained = {
        "pixels": [accuracy(nn.Flatten(), split, split.test) for split in splits],
        "untrained": [accuracy(make_encoder(seed), split, split.test) for seed, split in enumerate(splits)],
    }
    results = []
    with tqdm([(share, name) for share in SHARES for name in LOSSES], unit="loss") as progress:
        for share, name in progress:
            results.append(measure(splits, views, name, share))
    return {
        "environment": reporting.environment(),
        "settings": {
            "seeds": seeds,
            "steps": steps,
            "batch": BATCH,
            "dim": DIM,
            "hidden": HIDDEN,
            "learning_rate": LEARNING_RATE,
            "temperatures": list(TEMPERATURES),
            "labelled_per_digit": LABELLED,
        },
        "labels": {name: loss.label for name, loss in LOSSES.items()},
        "baseline": BASELINE,
        "without_training": {
            name: {kind: [getattr(test, kind) for test in tests] for kind in Accuracy._fields}
            for name, tests in untrained.items()
        },
        "results": results,
    }


def describe(report: Mapping[str, Any]) -> str:
    """Return the table: test accuracy, mean ± standard deviation over the seeds, and the difference from InfoNCE."""
    labels, baseline = report["labels"], report["baseline"]
    base = {result["share"]: result for result in report["results"] if result["loss"] == baseline}
    rows = [
        ["-", "-", label, "-", *(_spread(report["without_training"][name][kind]) for kind in Accuracy._fields), ""]
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
        rows.append([*cells, _spread(few), _spread(result["all"]), against])
    number = report["settings"]["labelled_per_digit"]
    header = [
        "π",
        "N",
        "loss",
        "τ",
        f"{number} labels per digit",
        "all labels",
        f"- {labels[baseline]}, {number} labels",
    ]
    return reporting.format_table(header, rows)


def _spread(values: Sequence[float], sign: str = "") -> str:
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.4f}{deviation}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.image_pairs",
        description=__doc__,
        epilog="Exit status: 0 done, 2 bad arguments or no scikit-learn, 130 ended by Ctrl-C (nothing is written).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seeds", type=positive_int, default=SEEDS, help="how many seeds, from 0")
    parser.add_argument("--steps", type=positive_int, default=STEPS, help="batches that each encoder is trained on")
    add_out(parser)
    arguments = parser.parse_args(argv)
    out = arguments.out or reporting.default_directory("image-pairs")
    return command.run(lambda: _run(arguments.seeds, arguments.steps, out))


def _run(seeds: int, steps: int, out: Path) -> None:
    reporting.make_writable_directory(out)
    report = run(seeds, steps)
    reporting.write_json(out / "results.json", report)
    plot_accuracy(report, out / "results.png")
    print(describe(report))
    print(f"results: {out / 'results.json'}, {out / 'results.png'}")


if __name__ == "__main__":
    sys.exit(main())
