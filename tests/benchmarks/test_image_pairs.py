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
from benchmarks.image_pairs import methods, pairs, plot  # noqa: E402
from benchmarks.image_pairs.__main__ import SHARES, Data, train_with  # noqa: E402
from benchmarks.image_pairs.contestants import CONTESTANTS, LOSSES  # noqa: E402
from benchmarks.image_pairs.methods import InBatch, Method, Setting  # noqa: E402
from benchmarks.image_pairs.pairs import BATCH, DIM, NEGATIVES, PER_DIGIT  # noqa: E402
from cw_ext import presets  # noqa: E402

PLANTED = [share for share in SHARES if share is not None]


HELD_OUT = torch.zeros(0, 2 * BATCH, 8, 8)  # of methods that do not look at it


@pytest.fixture(scope="module")
def data() -> Data:
    return image_pairs.make_data(0, 100)


@pytest.fixture(scope="module")
def split(data) -> pairs.Split:
    return data.split


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the data ---


def test_every_image_has_one_use(split):
    ids = torch.cat([split.train, split.validation, split.test])
    assert ids.sort().values.tolist() == list(range(1797))
    assert split.images.shape == (1797, 8, 8)
    assert (split.images.min(), split.images.max()) == (0, 1)
    for part, share in ((split.train, 1 / 2), (split.validation, 1 / 4), (split.test, 1 / 4)):
        counts = torch.bincount(split.labels[part])
        assert (counts - share * torch.bincount(split.labels)).abs().max() <= 1
    other = pairs.load_split(1)
    assert sorted(other.train.tolist()) != sorted(split.train.tolist())


@pytest.mark.parametrize("share", SHARES)
def test_false_negatives_have_the_share_that_is_said(split, share):
    prior, number = pairs.rate(share)
    negatives = pairs.plant_negatives(share, generator()).tolist()
    for ids in pairs.draw_batches(split, split.train, 3, generator()).tolist():
        labels = split.labels[ids].tolist()
        for row, chosen in enumerate(negatives):
            assert row not in chosen
            assert len(set(chosen)) == len(chosen) == number
            false = sum(labels[position] == labels[row] for position in chosen)
            assert false == pytest.approx(prior * number)
    if share is not None:
        assert (prior, number) == (share, NEGATIVES)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_batches_are_of_different_images_of_one_part(split, part):
    images = getattr(split, part)
    batches = pairs.draw_batches(split, images, 20, generator())
    assert batches.shape == (20, BATCH)
    assert set(batches.flatten().tolist()) <= set(images.tolist())
    assert all(len(set(batch)) == BATCH for batch in batches.tolist())
    first = split.labels[batches[:, 0]].tolist()  # the order of the digits changes
    assert len(set(first)) > 2


@pytest.mark.parametrize("share", [-0.1, 0.12, 0.55, 1.0, math.nan])
def test_a_share_that_cannot_be_planted_is_named(share):
    with pytest.raises(ValueError, match=f"share must be one of 0, 1/20, … 10/20, got {share}"):
        pairs.plant_negatives(share, generator())


@pytest.mark.parametrize("share", [None, 0.2])
def test_the_loss_sees_these_negatives_and_no_others(share):
    views = torch.randn(2, BATCH, DIM, generator=generator(1), dtype=torch.float64)
    negatives = pairs.plant_negatives(share, generator())
    setting = Setting(0.1, 0.0, negatives, HELD_OUT)
    queries, items = F.normalize(views, dim=-1)
    logits = queries @ items.T / 2 / 0.1
    rows = [
        F.cross_entropy(logits[row, [row, *chosen]], torch.tensor(0)) for row, chosen in enumerate(negatives.tolist())
    ]
    expected = torch.stack(rows).mean()
    torch.testing.assert_close(InBatch(setting, presets.infonce(0.1)).loss(*views), expected)


def test_scores_are_half_cosines_of_the_right_pairs(split):
    views = torch.randn(2, BATCH, DIM, generator=generator(1), dtype=torch.float64)
    negatives = pairs.plant_negatives(0.3, generator())
    scores = Setting(0.1, 0.3, negatives, HELD_OUT).scores(*views)
    labels = split.labels[pairs.draw_batches(split, split.train, 1, generator())[0]].tolist()
    for row in (0, 57, BATCH - 1):
        cosines = F.cosine_similarity(views[0, row], views[1], dim=-1) / 2
        torch.testing.assert_close(scores.positives[row], cosines[row])
        torch.testing.assert_close(scores.negatives[row], cosines[negatives[row]])
        same = [position for position in range(BATCH) if labels[position] == labels[row] and position != row]
        assert len(same) == PER_DIGIT - 1
        torch.testing.assert_close(scores.same_digit[row], cosines[same])


def test_views_are_two_of_one_image_each(split, monkeypatch):
    mark = torch.arange(2 * BATCH).view(-1, 1, 1)  # whole numbers, exact on top of sixteenths
    monkeypatch.setattr(pairs, "augment", lambda images, generator: images + mark)
    views = pairs.make_views(split, split.train, 2, 0)
    assert views.shape == (2, 2 * BATCH, 8, 8)
    first, second = (views - mark).split(BATCH, dim=1)
    assert torch.equal(first, second)
    pixels = {tuple(image.flatten().tolist()) for image in split.images[split.train]}
    assert {tuple(image.tolist()) for image in first.flatten(0, 1).flatten(1)} <= pixels


def test_views_differ_and_the_seed_decides_them(split):
    views = pairs.make_views(split, split.train, 2, 0)
    first, second = views.split(BATCH, dim=1)
    assert (first - second).abs().amax((2, 3)).min() > 0.05
    assert torch.equal(views, pairs.make_views(split, split.train, 2, 0))
    assert not torch.equal(views, pairs.make_views(split, split.train, 2, 1))


def test_no_augmentation_leaves_images_alone(split, monkeypatch):
    for name in ("ROTATION", "SHIFT", "SCALE", "NOISE"):
        monkeypatch.setattr(pairs, name, 0.0)
    torch.testing.assert_close(pairs.augment(split.images[:9], generator()), split.images[:9])


# --- training ---


@pytest.mark.parametrize("name", CONTESTANTS)
def test_training_beats_an_untrained_encoder(data, name):
    split = data.split
    before = pairs.accuracy(pairs.make_encoder(0), split, split.test)
    encoder, _ = train_with(name, 0.1, 0.0, data, 0)
    after = pairs.accuracy(encoder, split, split.test)
    assert before.few + 0.05 < after.few < 1


@pytest.mark.parametrize("name", ["cw", "tedn", "fne"])
def test_training_is_reproducible(data, name, monkeypatch):
    monkeypatch.setattr(methods, "EPOCH", 1)
    short = data._replace(views=data.views[:14])
    weights = [train_with(name, 0.1, 0.2, short, seed)[0][1].weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_epochs_are_counted_and_see_the_encoder_as_it_is_then(data):
    seen = []

    class Recorder(InBatch):
        def start_epoch(self, epoch, encoder):
            seen.append((epoch, encoder[1].weight.detach().clone()))

    negatives = pairs.plant_negatives(0.2, generator())
    method = Recorder(Setting(0.1, 0.2, negatives, HELD_OUT), presets.infonce(0.1))
    encoder = methods.train(data.views[: 2 * methods.EPOCH], method, 0)
    assert [epoch for epoch, _ in seen] == [0, 1]
    assert torch.equal(seen[0][1], pairs.make_encoder(0)[1].weight)
    assert not torch.equal(seen[1][1], seen[0][1])
    assert not torch.equal(seen[1][1], encoder[1].weight)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_pucls_share_of_the_unlabelled_is_the_planted_one(share):
    negatives = pairs.plant_negatives(share, generator())
    method = LOSSES["pucl"].method(Setting(0.1, share, negatives, HELD_OUT))
    assert method.arguments["prior"] == pytest.approx(share)


def test_the_temperature_is_that_of_the_best_validation(data, monkeypatch):
    """Two seeds are searched; the third only tests."""
    used = []
    split = data.split

    def train(name, temperature, share, data, seed):
        used.append((seed, temperature))
        method = Method(Setting(temperature, share, torch.zeros(0), HELD_OUT))
        method.estimated_prior = temperature + seed
        return (temperature, seed), method

    def accuracy(encoder, split, ids):
        temperature, seed = encoder
        if ids is split.validation:
            return pairs.Accuracy({0.05: (0.6, 0.6), 0.1: (0.8, 0.3), 0.2: (0.5, 0.9)}[temperature][seed], 0.0)
        return pairs.Accuracy(0.1 * seed, temperature)

    monkeypatch.setattr(image_pairs, "TEMPERATURES", (0.05, 0.1, 0.2))
    monkeypatch.setattr(image_pairs, "train_with", train)
    monkeypatch.setattr(image_pairs, "accuracy", accuracy)
    found = image_pairs.measure([Data(split, torch.empty(0), HELD_OUT)] * 3, "dcl", 0.3)
    assert found["temperature"] == 0.2
    assert found["validation"] == [[0.05, 0.6], [0.1, pytest.approx(0.55)], [0.2, pytest.approx(0.7)]]
    assert (found["few"], found["all"]) == ([0.0, 0.1, 0.2], [0.2] * 3)
    assert found["estimated_prior"] == [0.2, 1.2, 2.2]
    assert used == [(seed, t) for t in (0.05, 0.1, 0.2) for seed in (0, 1)] + [(2, 0.2)]


# --- the command line ---


def test_a_comparison_is_written_whole(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(image_pairs, "SHARES", (None, 0.0, 0.5))
    monkeypatch.setattr(image_pairs, "TEMPERATURES", (0.1,))
    monkeypatch.setattr(pairs, "LABELLED_DRAWS", 1)
    out = tmp_path / "new" / "out"
    assert image_pairs.main(["--seeds", "2", "--steps", "2", "--out", str(out)]) == 0
    for figure in ("results.png", "estimated.png"):
        assert (out / figure).read_bytes().startswith(b"\x89PNG")
    report = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [(result["share"], result["loss"]) for result in report["results"]] == [
        (share, name) for share in (None, 0.0, 0.5) for name in CONTESTANTS
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


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(image_pairs, "TEMPERATURES", (0.05, 0.1))
    monkeypatch.setattr(methods, "EPOCH", 1)
    monkeypatch.setattr(pairs, "LABELLED_DRAWS", 1)


def compare(out, *flags: str) -> dict:
    assert image_pairs.main(["--seeds", "2", "--steps", "7", "--out", str(out), *flags]) == 0
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def test_a_part_of_the_grid_comes_out_as_in_the_whole(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(image_pairs, "SHARES", (None, 0.5))
    whole, part = (
        compare(tmp_path / name, *flags)
        for name, flags in (("whole", []), ("part", ["--losses", "tedn-same-digit", "fne", "cw", "--shares", ".5"]))
    )
    names = ["infonce", "cw", "tedn-same-digit", "fne"]  # with the baseline, and in the order of the whole
    assert [(result["share"], result["loss"]) for result in part["results"]] == [(0.5, name) for name in names]
    of_whole = [result for result in whole["results"] if result["share"] == 0.5 and result["loss"] in names]
    assert part["results"] == of_whole  # to the last bit
    assert len({tuple(result["few"]) for result in of_whole}) > 1
    assert part["without_training"] == whole["without_training"]
    assert part["labels"] == {name: CONTESTANTS[name].label for name in names}


@pytest.mark.parametrize(
    ("losses", "shares", "expected_shares", "figures"),
    [
        (["cw", "tedn"], [".5", "as-it-is", "0.25", "0.50"], [None, 0.25, 0.5], ["results.png", "estimated.png"]),
        (["tedn"], ["as-it-is"], [None], ["estimated.png"]),
        (["sl", "infonce"], ["0"], [0.0], ["results.png"]),
        (["infonce"], ["as-it-is", "0"], [None, 0.0], []),
    ],
)
def test_a_part_of_the_grid_is_drawn_and_printed(
    tmp_path, quick, monkeypatch, capsys, losses, shares, expected_shares, figures
):
    drawn = {}
    monkeypatch.setattr(
        plot.reporting, "save_figure", lambda figure, path: drawn.update({path.name: figure}) or path.touch()
    )
    report = compare(tmp_path, "--losses", *losses, "--shares", *shares)
    names = [name for name in CONTESTANTS if name in {"infonce", *losses}]
    assert [(result["share"], result["loss"]) for result in report["results"]] == [
        (share, name) for share in expected_shares for name in names
    ]
    printed = capsys.readouterr().out
    assert all(CONTESTANTS[name].label in printed for name in names)
    assert printed.splitlines()[-1] == "results: " + ", ".join(str(tmp_path / x) for x in ["results.json", *figures])
    assert sorted(drawn) == sorted(figures)
    for figure in drawn.values():
        figure.draw_without_rendering()
        ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
        assert sorted(ticks) == sorted("0.092\nof 109" if x is None else f"{x:g}" for x in expected_shares)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--losses", "ted"], f"--losses: invalid choice: 'ted' (choose from {', '.join(map(repr, CONTESTANTS))})"),
        *(
            (
                ["--shares", "0", share],
                "--shares: expected as-it-is, or a number from 0 to 0.5 that makes a whole number of 20 negatives, got "
                f"'{share}'",
            )
            for share in ("0.12", "0.55", "-0.1", "nan", "None")
        ),
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
    monkeypatch.setattr(pairs.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    assert image_pairs.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("which is not installed; run: pip install scikit-learn\n")
