"""Very large calls and very many steps, small here: what they check holds, and faults are noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.stress import memory_growth, scale

ROWS, NEGATIVES = 90, 40


def _embeddings(device: torch.device, tmp_path: Path) -> list[scale.Call]:
    return scale.embedding_calls(ROWS, NEGATIVES, 8, 30, device.type, tmp_path)


def _exact(device: torch.device, tmp_path: Path) -> list[scale.Call]:
    return scale.exact_call(ROWS, NEGATIVES, 8, 30, device.type, tmp_path)


def _scores(device: torch.device, tmp_path: Path) -> list[scale.Call]:
    return [scale.score_call(ROWS, NEGATIVES, device.type, tmp_path)]


def _table(device: torch.device, tmp_path: Path) -> list[scale.Call]:
    return [scale.table_call(500 * 8, 8, device.type, tmp_path)]


Calls = Callable[[torch.device, Path], list[scale.Call]]


def _failed(calls: list[scale.Call]) -> dict[str, list[str]]:
    return {call.name: [check.what for check in call.checks if not check.passed] for call in calls}


# --- large calls ---


@pytest.mark.parametrize("calls", [_embeddings, _exact, _scores, _table])
def test_calls_are_right(kernels: None, device: torch.device, tmp_path: Path, calls: Calls) -> None:
    found = calls(device, tmp_path)
    assert not any(_failed(found).values()), _failed(found)
    assert all(call.passed and call.pairs == call.shape["B"] * call.shape["N"] for call in found)
    assert not list(tmp_path.iterdir()), "the mapped input has left its file behind"


def test_a_part_of_the_rows_at_a_time_is_the_same(
    kernels: None, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "CHUNK_PAIRS", 7 * NEGATIVES)
    assert [len(range(ROWS)[part]) for part in scale.chunks(ROWS, NEGATIVES)] == [7] * 12 + [6]
    assert not any(_failed(_embeddings(device, tmp_path) + _scores(device, tmp_path)).values())


def _other_rows(ids: Tensor) -> Tensor:
    """As if the offset of the last row had wrapped around: it reads what the first one has."""
    wrapped = ids.clone()
    wrapped[-1] = ids[0]
    return wrapped


def test_ids_read_from_another_row_are_noticed(
    kernels: None, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = scale.cw_loss_from_embeddings

    def wrong(queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor, **others: Any) -> Tensor:
        neg_ids = _other_rows(neg_ids) if others["backend"] == "fused" else neg_ids
        return right(queries, items, pos_ids, neg_ids, **others)

    monkeypatch.setattr(scale, "cw_loss_from_embeddings", wrong)
    failed = _failed(_embeddings(device, tmp_path))
    assert not failed["sampled"] and not failed["sampled, recompute"]
    assert len(failed["embeddings"]) >= 5, failed
    assert len(_failed(_table(device, tmp_path))["embeddings, large table"]) == 3


def test_scores_read_from_another_row_are_noticed(
    kernels: None, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = scale.cw_loss

    def wrong(pos: Tensor, neg: Tensor, **others: Any) -> Tensor:
        return right(pos, _other_rows(neg) if others["backend"] == "fused" else neg, **others)

    monkeypatch.setattr(scale, "cw_loss", wrong)
    assert len(_failed(_scores(device, tmp_path))["scores, bf16"]) >= 3


def test_other_draws_are_noticed(
    kernels: None, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = scale.negative_sampling.draw
    monkeypatch.setattr(scale.negative_sampling, "draw", lambda *a, **k: _other_rows(right(*a, **k)))
    failed = _failed(_embeddings(device, tmp_path))
    of_draws = "ids of 64 rows that were not to be drawn"
    assert all(of_draws in what for what in failed.values())
    # The loss from embeddings is right about the ids that it is given.
    assert len(failed["sampled"]) >= 5 and len(failed["sampled, recompute"]) >= 5 and failed["embeddings"] == [of_draws]


def test_one_row_too_few_is_noticed_in_fp64(
    kernels: None, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the gradient of the items alone, where fp32 has no digits left for it."""
    right = scale.run

    def wrong(batch: scale.Batch, loss: Callable[[Tensor, Tensor], Tensor]) -> scale.Outcome:
        less = batch.weights.clone()
        less[5] = 0  # of the sum, not of what the truth is made with
        outcome = right(batch, loss)
        items = right(scale.replace(batch, weights=less), loss).all.items
        return scale.replace(outcome, all=scale.Gradients(outcome.all.queries, items))

    monkeypatch.setattr(scale, "run", wrong)
    assert _failed(_exact(device, tmp_path)) == {
        "sampled, recompute, fp64": [f"gradient of the items, from {ROWS} rows"]
    }


def test_a_number_that_is_none_is_noticed() -> None:
    expected = torch.ones(3)
    assert not scale.compared("", expected * torch.nan, expected, 1.0).passed
    assert scale.compared("", expected * 1.5, expected, 0.5).passed
    assert not scale.compared("", expected * 1.5, expected, 0.49).passed


def test_the_rows_to_check_are_those_where_offsets_overflow() -> None:
    rows, negatives = 268_293, 8200
    chosen = set(scale.rows_to_check(rows, negatives).tolist())
    assert len(chosen) == scale.ROWS_CHECKED and chosen <= set(range(rows))
    assert {0, rows - 1} <= chosen
    for size in (width * numbers for width in (negatives, negatives + 1) for numbers in (1, 2, 4)):
        for limit in (2**31, 2**32):
            straddling = [row for row in chosen if row * size <= limit < (row + 1) * size]
            assert len(straddling) == (rows * size > limit), (size, limit)


def test_small_batches_are_checked_whole() -> None:
    assert scale.rows_to_check(5, 3).tolist() == [0, 1, 2, 3, 4]


# --- many steps ---


@pytest.fixture
def one_thread() -> Any:
    """glibc counts what is in use in the memory of the main thread only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


WARM_UP, STEPS, WINDOWS = 100, 100, 3


def _growth(training: memory_growth.Training) -> dict[str, float]:
    """By how much memory in use grows per step, in the window of steps in which it grows least: what is loaded or
    cached when something happens for the first time grows once, a leak always."""
    device = training.device.type
    known = training.interactions
    known.popularity(0.75)
    samples = []
    for steps in (WARM_UP, *(STEPS,) * WINDOWS):
        for _ in range(steps):
            training.step()
        training.interactions = known
        samples.append(memory_growth.sample(device))
    windows = list(zip(samples, samples[1:]))
    return {name: min((after[name] - before[name]) / STEPS for before, after in windows) for name in samples[0]}


# Per step. A leak of one object a step is 1 block or more, and of one tensor some 300 bytes beside its elements.
ALLOWED = {"python blocks": 0.5, "heap bytes": 150.0, "GPU bytes": 0.0}


def _leaks(growth: dict[str, float]) -> list[str]:
    return [name for name, allowed in ALLOWED.items() if growth.get(name, 0.0) > allowed]


@pytest.mark.cpu_kernels
def test_memory_is_flat(kernels: None, device: torch.device, one_thread: None) -> None:
    training = memory_growth.Training(device.type)
    growth = _growth(training)
    assert not _leaks(growth), growth
    every = {*(loss.__name__ for loss in memory_growth.BATCH_LOSSES), *(use.__name__ for use in memory_growth.USES)}
    assert set(training.counts) == every


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("kept", ["loss", "graph", "number"])
def test_a_leak_is_noticed(kernels: None, one_thread: None, monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    """Of one thing in each step."""
    leaked: list[Any] = []

    def leaking(t: memory_growth.Training, batch_loss: memory_growth.BatchLoss) -> None:
        loss = batch_loss(t, t.items)
        leaked.append({"loss": loss.detach(), "graph": loss, "number": float(len(leaked))}[kept])

    monkeypatch.setattr(memory_growth, "USES", (leaking,))
    monkeypatch.setattr(memory_growth, "WEIGHTS", (1,))
    leaks = _leaks(_growth(memory_growth.Training("cpu")))
    assert "python blocks" in leaks
    if kept != "number" and memory_growth.heap_bytes() is not None:
        assert "heap bytes" in leaks


def test_the_slope_is_that_of_a_line() -> None:
    assert memory_growth.slope([100, 200, 300], [5000, 5300, 5600]) == pytest.approx(3.0)
    assert memory_growth.slope([1, 2, 3, 4], [7, 9, 9, 7]) == pytest.approx(0.0)
    assert memory_growth.slope([1], [7]) == 0.0


# --- the command line ---

TINY = ["--pairs", "2000", "--negatives", "40", "--table", "5000", "--steps", "30"]


def test_each_part_writes_a_file(kernels: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "ITEMS", 30)
    monkeypatch.setattr(memory_growth, "EVERY", 10)
    assert scale.main(["--out", str(tmp_path), "--scratch", str(tmp_path), *TINY]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"{part}.json" for part in scale.PARTS}
    found = {part: json.loads((tmp_path / f"{part}.json").read_text(encoding="utf-8")) for part in scale.PARTS}
    assert all(part["environment"]["torch"] == torch.__version__ for part in found.values())
    assert [call["name"] for call in found["embeddings"]["calls"]] == ["sampled", "sampled, recompute", "embeddings"]
    assert all(call["passed"] for part in ("embeddings", "exact", "scores", "table") for call in found[part]["calls"])
    assert [step for step, _ in found["steps"]["memory"]["python blocks"]["samples"]] == [10, 20, 30]


def test_a_failed_check_is_the_exit_status(
    kernels: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scale, "tolerance", lambda *_: 0.0)
    assert scale.main(["--out", str(tmp_path), "--parts", "scores", *TINY]) == 1
    assert " NO" in capsys.readouterr().out
    assert not json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["calls"][0]["passed"]


def test_a_gpu_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert scale.main(["--device", "cuda", "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --device cuda: expected a GPU that torch can use, got none")
    assert not (tmp_path / "out").exists()
