"""The ratios of steps: what they are of, and what the command writes."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from benchmarks.common import reporting
from benchmarks.step_ratios import __main__ as step_ratios
from benchmarks.step_ratios import candidates, checkouts, grid, inputs, ratios

FLAGS = ["--quick", "--rounds", "2"]


def check(step: dict) -> None:
    assert 0 < step["ratio"]["q25"] <= step["ratio"]["median"] <= step["ratio"]["q75"]
    assert all(seconds > 0 for seconds in step["seconds"])


def test_ratios_are_of_neighbouring_samples():
    """The machine becomes ten times as slow meanwhile, which the ratios do not show, and the medians do."""
    order = []

    def clock(name: str, times: list[float]) -> ratios.Clock:
        left = iter([1.0, 1.0, *times])

        def seconds(repetitions: int) -> float:
            order.append(name)
            return next(left)

        return seconds

    first, second = clock("a", [3.0, 3.0, 20.0, 20.0, 60.0]), clock("b", [1.0, 2.0, 10.0, 10.0, 10.0])
    found = ratios.compare(first, second, rounds=5)
    # Sorted: 1.5, 2, 2, 3, 6.
    assert found == {"ratio": {"q25": 2.0, "median": 2.0, "q75": 3.0}, "seconds": [20.0, 10.0]}
    assert "".join(order) in ("aabb" + "baabbaabba", "aabb" + "abbaabbaab")


def test_a_clock_returns_the_mean_of_its_runs():
    runs = []
    seconds = ratios.clock(lambda: runs.append(sum(range(100_000))))
    assert seconds(3) > 0
    assert len(runs) == 4  # the first is not counted


def test_the_cost_of_arguments_is_written(kernels, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert step_ratios.main(["--out", str(out), *FLAGS]) == 0
    report = json.loads((out / "arguments.json").read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    assert [(shape["negatives"], shape["items"]) for shape in report["shapes"]] == [(3, 20), (3, 50), (6, 20), (6, 50)]
    for shape in report["shapes"]:
        assert {name.partition(":")[0] for name in shape["arguments"]} == {
            "temperature",
            "score_curve",
            "return_above",
            "positive_temperature",
        }
        for name, step in shape["arguments"].items():
            check(step)
            assert name in printed
            assert "{median:.2f} ({q25:.2f}-{q75:.2f})".format(**step["ratio"]) in printed
    assert report["environment"]["threads"] == 1


def test_choosing_by_scores_is_compared(kernels, tmp_path, capsys):
    assert step_ratios.main(["--steps", "candidates", "--clock", "wall", "--out", str(tmp_path), *FLAGS]) == 0
    report = json.loads((tmp_path / "candidates.json").read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    assert (report["clock"], report["candidates"]) == ("wall", {"scores": 6, "drawn by score": 3})
    assert [catalogue["items"] for catalogue in report["catalogues"]] == [20, 50]
    for catalogue in report["catalogues"]:
        assert [*catalogue["scores"]] == ["forward, with gradients", "forward, without"]
        assert [*catalogue["drawn by score"]] == ["step, ids given", "step, ids drawn"]
        for name, step in (catalogue["scores"] | catalogue["drawn by score"]).items():
            check(step)
            assert name in printed


def test_what_the_scores_are_compared_with(kernels):
    """The forward passes of the same ids; only the first is followed by gradients."""
    scores, others = candidates.score_steps(inputs.QUICK, 50)
    assert scores().shape == (8, 6)
    assert [step().requires_grad for step in others.values()] == [True, False]


def test_the_ids_of_the_training_steps(kernels, monkeypatch):
    """A tenth of the candidates, and as many as there are candidates."""
    seen = []
    loss = candidates.cw_loss_from_embeddings
    monkeypatch.setattr(
        candidates, "cw_loss_from_embeddings", lambda *a, **more: (seen.append(a[3].shape), loss(*a, **more))[1]
    )
    step, others = candidates.training_steps(dataclasses.replace(inputs.QUICK, few_negatives=20), 150)
    for one in (step, *others.values()):
        one()
    assert seen == [(8, 2), (8, 20), (8, 20)]


@pytest.mark.parametrize("flags", [["--steps", "grid"], ["--steps", "candidates", "--against", "elsewhere"]])
def test_steps_that_need_another_checkout_or_none(flags, capsys):
    with pytest.raises(SystemExit):
        step_ratios.main(flags)
    assert "--steps grid needs --against, and --steps candidates needs a run without it" in capsys.readouterr().err


def test_a_checkout_is_compared_with_itself(kernels, checkout, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkouts, "PAIRS", 2)
    assert step_ratios.main(["--against", str(checkout), "--out", str(tmp_path), *FLAGS]) == 0
    text = (tmp_path / "against.json").read_text(encoding="utf-8")
    report = json.loads(text)
    assert report["other"]["git_commit"] == reporting.git_commit(checkout)
    assert str(checkout) not in text
    printed = capsys.readouterr().out
    assert [name.partition(" N=")[0] for name in report["steps"]] == [
        "scores 4x4",
        "scores 4x4, no gradient",
        "scores 8x6",
        *4 * ["embeddings"],
        "sampled",
    ]
    for name, step in report["steps"].items():
        check(step)
        assert len(step["pairs"]) == 2
        assert f"{min(step['pairs']):.3f}-{max(step['pairs']):.3f}" in printed
        assert name in printed
        assert "{median:.3f} ({q25:.3f}-{q75:.3f})".format(**step["ratio"]) in printed


def test_many_shapes_are_compared_by_the_clock(kernels, checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(checkouts, "PAIRS", 1)
    flags = ["--steps", "grid", "--clock", "wall", "--threads", "2", *FLAGS]
    assert step_ratios.main(["--against", str(checkout), "--out", str(tmp_path), *flags]) == 0
    report = json.loads((tmp_path / "against.json").read_text(encoding="utf-8"))
    assert report["clock"] == "wall"
    assert report["environment"]["threads"] == 2
    assert [*report["steps"]] == [shape.label for shape in grid.QUICK]
    for step in report["steps"].values():
        check(step)


def test_every_shape_has_a_label_of_its_own():
    assert len({shape.label for shape in grid.FULL}) == len(grid.FULL)


def test_a_folder_without_kernels_is_refused(kernels, checkout, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name, complaint in {
        "empty": "expected a checkout of cw_ext, got no cw_ext/__init__.py there",
        "unbuilt": "expected a checkout with its kernels built, got: the compiled kernels of cw_ext are not in",
    }.items():
        other = tmp_path / name
        if name == "unbuilt":
            ignored = shutil.ignore_patterns("_C.*", "_cpu.*", "__pycache__")
            shutil.copytree(checkout / "cw_ext", other / "cw_ext", ignore=ignored)
        assert step_ratios.main(["--against", str(other), "--out", str(tmp_path / "out"), *FLAGS]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f"error: {other}: {complaint}")
    assert not list((tmp_path / "out").iterdir())


def test_the_other_checkouts_own_package_is_timed(kernels, checkout, tmp_path, capsys):
    """Here one whose cw_loss fails."""
    shutil.copytree(checkout / "cw_ext", tmp_path / "cw_ext", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "cw_ext" / "__init__.py").open("a", encoding="utf-8") as file:
        file.write("\n\ndef cw_loss(*_, **__):\n    raise RuntimeError\n")
    assert step_ratios.main(["--against", str(tmp_path), "--out", str(tmp_path / "out"), *FLAGS]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: {tmp_path}: the process that runs its cw_ext has failed"
