"""The task: pairs of views of images, batches with a planted share of false negatives, an encoder and its accuracy."""

from __future__ import annotations

import importlib.util
import math
import statistics
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIGITS = 10
SIDE = 8
# Images of each digit in a batch.
PER_DIGIT = 11
BATCH = DIGITS * PER_DIGIT
# Of a row with a planted share; the shares make whole numbers of them, at most the 10 others of the row's digit.
NEGATIVES = 20

HIDDEN = 128
DIM = 32
# At most so many radians, pixels and parts of the size; standard deviation of the noise, where pixels are in [0, 1].
ROTATION, SHIFT, SCALE, NOISE = 0.25, 1.0, 0.2, 0.1

LABELLED = 5
LABELLED_DRAWS = 10
NEIGHBOURS = 5


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
        raise RuntimeError("the images come from scikit-learn, which is not installed; run: pip install scikit-learn")
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
    """The share π of false negatives and the number of negatives of a row; None for the batch as it is."""
    return (share, NEGATIVES) if share is not None else ((PER_DIGIT - 1) / (BATCH - 1), BATCH - 1)


def same_digit() -> Tensor:
    """Which positions of a batch laid out as by :func:`draw_batches` are other images of a position's digit:
    [BATCH, BATCH], bool."""
    digit = torch.arange(BATCH) // PER_DIGIT
    return (digit.unsqueeze(1) == digit) & ~torch.eye(BATCH, dtype=torch.bool)


def false_negatives(share: float) -> int:
    """How many of a row's :data:`NEGATIVES` are false ones.

    Raises:
        ValueError: it is no whole number, or more than there are others of a row's digit.
    """
    false, most = share * NEGATIVES, PER_DIGIT - 1
    if not 0 <= false <= most or abs(false - round(false)) > 1e-9:
        raise ValueError(f"share must be one of 0, 1/{NEGATIVES}, … {most}/{NEGATIVES}, got {share}")
    return round(false)


def plant_negatives(share: float | None, generator: torch.Generator) -> Tensor:
    """Choose the negatives of each row of a batch, so that the share of them is false.

    Args:
        share: π, as of :func:`false_negatives`. None for all others of the batch.
        generator: of the choice.

    Returns:
        Positions in batches laid out as by :func:`draw_batches`: [BATCH, N], in increasing order.

    Raises:
        ValueError: a share that cannot be had.
    """
    same = same_digit()
    own = torch.eye(BATCH, dtype=torch.bool)
    if share is None:
        return torch.nonzero(~own)[:, 1].view(BATCH, -1)
    false = false_negatives(share)
    order = torch.rand(BATCH, BATCH, generator=generator)
    chosen = torch.zeros(BATCH, BATCH, dtype=torch.bool)
    for candidates, number in ((same, false), (~same & ~own, NEGATIVES - false)):
        first = order.masked_fill(~candidates, math.inf).argsort(1)[:, :number]
        chosen.scatter_(1, first, True)
    return torch.nonzero(chosen)[:, 1].view(BATCH, -1)


def draw_batches(split: Split, images: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Ids [steps, BATCH] of some of the images: :data:`PER_DIGIT` different ones of each digit, one digit after the
    other in an order that changes from batch to batch."""
    labels = split.labels[images]
    per_digit = []
    for digit in range(DIGITS):
        ids = images[labels == digit]
        per_digit.append(ids[torch.rand(steps, len(ids), generator=generator).argsort(1)[:, :PER_DIGIT]])
    order = torch.rand(steps, DIGITS, generator=generator).argsort(1)
    return torch.stack(per_digit, 1)[torch.arange(steps).unsqueeze(1), order].flatten(1)


def make_views(split: Split, images: Tensor, steps: int, seed: int) -> Tensor:
    """Batches of pairs [steps, 2·BATCH, 8, 8]: the first views of a batch of the images, then the second."""
    generator = torch.Generator().manual_seed(seed)
    views = []
    for ids in draw_batches(split, images, steps, generator):
        batch = split.images[ids]
        views.append(augment(torch.cat([batch, batch]), generator))
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
