"""The comparison on pairs of images: what is planted, what the loss sees of it, and what is written."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("sklearn", reason="the images come with scikit-learn")

from benchmarks.image_pairs import __main__ as image_pairs  # noqa: E402
from benchmarks.image_pairs.__main__ import BATCH, DIM, LOSSES, NEGATIVES, SHARES  # noqa: E402
from cw_ext import cw_loss_in_batch, presets  # noqa: E402

PLANTED = [share for share in SHARES if share is not None]


@pytest.fixture(scope="module")
def split() -> image_pairs.Split:
    return image_pairs.load_split(0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def negatives_of(share: float | None) -> list[list[int]]:
    """Which positions of a batch are the negatives of each, as lists."""
    if share is None:
        return [[j for j in range(BATCH) if j != i] for i in range(BATCH)]
    known = image_pairs.left_out(share, generator())
    starts, items = known.starts.tolist(), known.items.tolist()
    out = [set(items[starts[i] : starts[i + 1]]) | {i} for i in range(BATCH)]
    return [[j for j in range(BATCH) if j not in out[i]] for i in range(BATCH)]


# --- the data ---


def test_every_image_has_one_use(split):
    ids = torch.cat([split.train, split.validation, split.test])
    assert ids.sort().values.tolist() == list(range(1797))
    assert split.images.shape == (1797, 8, 8)
    assert (split.images.min(), split.images.max()) == (0, 1)
    for part, share in ((split.train, 1 / 2), (split.validation, 1 / 4), (split.test, 1 / 4)):
        counts = torch.bincount(split.labels[part])
        assert (counts - share * torch.bincount(split.labels)).abs().max() <= 1
    other = image_pairs.load_split(1)
    assert sorted(other.train.tolist()) != sorted(split.train.tolist())


@pytest.mark.parametrize("share", SHARES)
def test_false_negatives_have_the_share_that_is_said(split, share):
    prior, number = image_pairs.rate(share)
    negatives = negatives_of(share)
    for ids in image_pairs.draw_batches(split, 3, generator()).tolist():
        labels = split.labels[ids].tolist()
        for row, chosen in enumerate(negatives):
            assert len(chosen) == number
            false = sum(labels[position] == labels[row] for position in chosen)
            assert false == pytest.approx(prior * number)
    if share is not None:
        assert (prior, number) == (share, NEGATIVES)


def test_batches_are_of_different_training_images(split):
    batches = image_pairs.draw_batches(split, 20, generator())
    assert batches.shape == (20, BATCH)
    assert set(batches.flatten().tolist()) <= set(split.train.tolist())
    assert all(len(set(batch)) == BATCH for batch in batches.tolist())
    first = split.labels[batches[:, 0]].tolist()  # the order of the digits changes
    assert len(set(first)) > 2


@pytest.mark.parametrize("share", [-0.1, 0.12, 0.55, 1.0, math.nan])
def test_a_share_that_cannot_be_planted_is_named(split, share):
    views = torch.zeros(1, 2 * BATCH, 8, 8)
    with pytest.raises(ValueError, match=f"share must be one of 0, 1/20, … 10/20, got {share}"):
        image_pairs.train(views, share, presets.infonce(0.1), 0)


@pytest.mark.parametrize("share", [None, 0.2])
def test_the_loss_sees_these_negatives_and_no_others(share):
    views = torch.randn(2, BATCH, DIM, generator=generator(1), dtype=torch.float64)
    positions = torch.arange(BATCH)
    known = {}
    if share is not None:
        known = {"query_ids": positions, "interactions": image_pairs.left_out(share, generator())}
    loss = presets.infonce(0.1)
    found = cw_loss_in_batch(*views, positions, log_q_correction=False, reduction="none", **known, **loss)
    queries, items = F.normalize(views, dim=-1)
    logits = queries @ items.T / 2 / 0.1
    expected = [
        F.cross_entropy(logits[row, [row, *chosen]], torch.tensor(0)) for row, chosen in enumerate(negatives_of(share))
    ]
    torch.testing.assert_close(found, torch.stack(expected))


def test_views_are_two_of_one_image_each(split, monkeypatch):
    mark = torch.arange(2 * BATCH).view(-1, 1, 1)  # whole numbers, exact on top of sixteenths
    monkeypatch.setattr(image_pairs, "augment", lambda images, generator: images + mark)
    views = image_pairs.make_views(split, 2, 0)
    assert views.shape == (2, 2 * BATCH, 8, 8)
    first, second = (views - mark).split(BATCH, dim=1)
    assert torch.equal(first, second)
    pixels = {tuple(image.flatten().tolist()) for image in split.images[split.train]}
    assert {tuple(image.tolist()) for image in first.flatten(0, 1).flatten(1)} <= pixels


def test_views_differ_and_the_seed_decides_them(split):
    views = image_pairs.make_views(split, 2, 0)
    first, second = views.split(BATCH, dim=1)
    assert (first - second).abs().amax((2, 3)).min() > 0.05
    assert torch.equal(views, image_pairs.make_views(split, 2, 0))
    assert not torch.equal(views, image_pairs.make_views(split, 2, 1))


def test_no_augmentation_leaves_images_alone(split, monkeypatch):
    for name in ("ROTATION", "SHIFT", "SCALE", "NOISE"):
        monkeypatch.setattr(image_pairs, name, 0.0)
    torch.testing.assert_close(image_pairs.augment(split.images[:9], generator()), split.images[:9])


# --- training ---


@pytest.mark.parametrize("name", LOSSES)
def test_training_beats_an_untrained_encoder(split, name):
    before = image_pairs.accuracy(image_pairs.make_encoder(0), split, split.test)
    loss = LOSSES[name].arguments(0.1, 0.0, NEGATIVES)
    encoder = image_pairs.train(image_pairs.make_views(split, 100, 0), 0.0, loss, 0)
    after = image_pairs.accuracy(encoder, split, split.test)
    assert before.few + 0.05 < after.few < 1


def test_training_is_reproducible(split):
    views = image_pairs.make_views(split, 3, 0)
    loss = LOSSES["cw"].arguments(0.1, 0.2, NEGATIVES)
    weights = [image_pairs.train(views, 0.2, loss, seed)[1].weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("prior", [0.0, 0.1, 0.5])
def test_pucls_share_of_the_unlabelled_is_the_planted_one(prior):
    assert LOSSES["pucl"].arguments(0.1, prior, NEGATIVES)["prior"] == pytest.approx(prior)


def test_the_temperature_is_that_of_the_best_validation(split, monkeypatch):
    """Two seeds are searched; the third only tests."""
    used = []

    def train(views, share, loss, seed):
        used.append((seed, loss["temperature"]))
        return loss["temperature"], seed

    def accuracy(encoder, split, ids):
        temperature, seed = encoder
        if ids is split.validation:
            return image_pairs.Accuracy({0.05: (0.6, 0.6), 0.1: (0.8, 0.3), 0.2: (0.5, 0.9)}[temperature][seed], 0.0)
        return image_pairs.Accuracy(0.1 * seed, temperature)

    monkeypatch.setattr(image_pairs, "TEMPERATURES", (0.05, 0.1, 0.2))
    monkeypatch.setattr(image_pairs, "train", train)
    monkeypatch.setattr(image_pairs, "accuracy", accuracy)
    found = image_pairs.measure([split] * 3, [torch.empty(0)] * 3, "dcl", 0.3)
    assert found["temperature"] == 0.2
    assert found["validation"] == [[0.05, 0.6], [0.1, pytest.approx(0.55)], [0.2, pytest.approx(0.7)]]
    assert (found["few"], found["all"]) == ([0.0, 0.1, 0.2], [0.2] * 3)
    assert used == [(seed, t) for t in (0.05, 0.1, 0.2) for seed in (0, 1)] + [(2, 0.2)]


# --- the command line ---


def test_a_comparison_is_written_whole(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(image_pairs, "SHARES", (None, 0.0, 0.5))
    monkeypatch.setattr(image_pairs, "TEMPERATURES", (0.1,))
    monkeypatch.setattr(image_pairs, "LABELLED_DRAWS", 1)
    out = tmp_path / "new" / "out"
    assert image_pairs.main(["--seeds", "2", "--steps", "2", "--out", str(out)]) == 0
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [(result["share"], result["loss"]) for result in report["results"]] == [
        (share, name) for share in (None, 0.0, 0.5) for name in LOSSES
    ]
    printed = capsys.readouterr().out
    for result in report["results"]:
        assert len(result["few"]) == len(result["all"]) == 2
        assert all(0 <= value <= 1 for value in result["few"] + result["all"])
        assert f"{sum(result['few']) / 2:.4f} ± " in printed
    # Nothing is corrected where the share is 0.
    accuracies = {(result["share"], result["loss"]): result["few"] for result in report["results"]}
    assert accuracies[0.0, "cw"] == accuracies[0.0, "cw-weights"]
    assert len({tuple(accuracies[0.5, name]) for name in LOSSES}) > 1


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--seeds", "0"], "--seeds: expected a whole number of at least 1, got '0'"),
        (["--steps", "many"], "--steps: expected a whole number of at least 1, got 'many'"),
    ],
)
def test_bad_arguments_are_named(tmp_path, capsys, flags, complaint):
    with pytest.raises(SystemExit) as caught:
        image_pairs.main([*flags, "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: argument {complaint}")
    assert not (tmp_path / "out").exists()


def test_missing_images_are_said_to_be_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(image_pairs.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    assert image_pairs.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("which is not installed: pip install scikit-learn\n")
