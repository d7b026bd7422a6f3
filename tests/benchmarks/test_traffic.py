"""What benchmarks.distributed counts is what is sent, and what it predicts is what it counts."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torchrun import process_of_group, torchrun

from benchmarks.distributed import __main__ as distributed
from benchmarks.distributed.measure import measure
from benchmarks.distributed.plot import plot_traffic
from benchmarks.distributed.sent import SENT, SentBytes
from benchmarks.distributed.traffic import DIM, WAYS, Step, predict
from cw_ext.distributed import RowShardedTable

pytestmark = pytest.mark.cpu_kernels

# What a process asks for of a table of 21 rows, of which the first one holds 11.
ASKED = ([0, 3, -1, 15, 20, 3], [3, 20])
ROWS = 6
# Bytes that a process sends to another so that both know that they make the same call, on the same table.
SMALL = 800
TINY = tuple(Step(way, items=50, negatives=4 if way in WAYS[:2] else 0, batch_size=ROWS) for way in WAYS)


def _sent(rank: int) -> dict[str, int]:
    table = RowShardedTable(21, 8)
    with SentBytes() as sent:
        sent.phase = "fetch"
        rows, _ = table(torch.tensor(ASKED[rank]))
        sent.phase = "backward"
        rows.sum().backward()
        sent.phase = None
        dist.all_reduce(torch.zeros(9))
    return dict(sent.total)


def _collectives(rank: int) -> dict[str, dict[str, int]]:
    """What is counted of each other call, of 6 numbers in fp32."""
    one, all_ = torch.zeros(6), torch.zeros(6 * dist.get_world_size())
    calls = {
        "all-gather": lambda: dist.all_gather_into_tensor(all_, one),
        "reduce-scatter": lambda: dist.reduce_scatter_tensor(one, all_),
        "all-reduce": lambda: dist.all_reduce(one),
        "send": lambda: dist.send(one, 1) if rank == 0 else dist.recv(one, 0) if rank == 1 else None,
    }
    found = {}
    for name, call in calls.items():
        with SentBytes() as sent:
            sent.phase = "loss"
            call()
        found[name] = dict(sent.total)
    return found


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("processes")
    torchrun(__file__, folder, processes=request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def test_bytes_of_a_table(found: list) -> None:
    """A count per asked process and the ids that the other holds; the rows that the other asked for; gradients."""
    if len(found) > 2:
        pytest.skip("counted by hand for two processes")
    id_, row = 8, 8 * 4
    assert found[0]["sent"] == {"sent_ids": id_ * (1 + 2), "sent_forward": row * 1, "sent_backward": row * 2}
    assert found[1]["sent"] == {"sent_ids": id_ * (1 + 1), "sent_forward": row * 2, "sent_backward": row * 1}


def test_bytes_of_other_calls(found: list) -> None:
    others = len(found) - 1
    for rank, process in enumerate(found):
        expected = {
            "all-gather": {"sent_forward": 24 * others},
            "reduce-scatter": {"sent_forward": 24 * others},
            "all-reduce": {"sent_forward": 2 * 24 * others // (others + 1)},
            "send": {"sent_forward": 24} if rank == 0 else {},
        }
        assert process["collectives"] == expected


def test_predicted_distinct_rows_are_the_mean_over_all_draws() -> None:
    sizes = [len(set(draws)) for draws in product(range(3), repeat=2 + 2 * 1)]
    step = Step("per row", items=3, negatives=1, batch_size=2)
    assert predict(step, 1)["distinct_rows"] == pytest.approx(sum(sizes) / len(sizes), rel=1e-12)
    shared = Step("shared", items=3, negatives=2, batch_size=2)
    assert predict(shared, 1) == predict(step, 1)
    assert predict(Step("per row", items=1, negatives=1), 1)["distinct_rows"] == 1


def test_what_is_sent_is_what_was_predicted(found: list) -> None:
    report = found[0]["report"]
    assert report["processes"] == len(found) and json.loads(json.dumps(report, allow_nan=False)) == report
    assert [measured["way"] for measured in report["measured"]] == [*WAYS]
    for measured in report["measured"]:
        predicted = measured["predicted"]
        if measured["negatives"]:
            most = ROWS + measured["negatives"] * (1 if measured["way"] == "shared" else ROWS)
            assert 1 < measured["distinct_rows"] <= most
            vectors = 4 * DIM / 8 * (measured["sent_ids"] - 8 * (len(found) - 1))
            assert measured["sent_forward"] == pytest.approx(vectors)
            assert measured["sent_backward"] == pytest.approx(vectors)
            assert predicted["held"] == 3 * 4 * DIM * -(-50 // len(found))
        else:
            for kind in SENT:
                small = SMALL * (len(found) - 1) if kind == "sent_forward" else 32
                assert predicted[kind] - 1 <= measured[kind] <= predicted[kind] + small, (measured["way"], kind)
        parts = [seconds["median"] for name, seconds in measured["seconds"].items() if name != "step"]
        assert 0 < max(parts) < measured["seconds"]["step"]["q80"]


def test_the_plot(found: list, tmp_path: Path) -> None:
    """Also of one process alone, which sends nothing."""
    report = found[0]["report"]
    silent = [step | dict.fromkeys(SENT, 0) | {"predicted": dict.fromkeys(SENT, 0)} for step in report["measured"]]
    for place, reports in enumerate(([report], [report | {"processes": 1, "measured": silent}])):
        plot_traffic(reports, tmp_path / f"{place}.png")
        assert (tmp_path / f"{place}.png").read_bytes().startswith(b"\x89PNG")


def test_without_torchrun_it_does_not_start(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        distributed.main([])
    assert error.value.code == 2 and "start this program with torchrun" in capsys.readouterr().err


if __name__ == "__main__":
    with process_of_group() as (rank, folder):
        results = {"collectives": _collectives(rank), "report": measure(TINY, repeats=2)}
        if dist.get_world_size() == 2:
            results["sent"] = _sent(rank)
        torch.save(results, folder / f"{rank}.pt")
