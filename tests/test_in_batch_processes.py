"""In-batch negatives of all processes: the loss and the gradients of one process with the whole batch."""

from __future__ import annotations

import random
import re
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import assert_near, generator
from memory import peak_of
from pair_cases import DIM, ITEMS, KNOWN, QUERIES, PairCase, pair_case
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrun import process_of_group, torchrun

from cw_ext import CWInBatchLoss, Interactions, cw_loss_in_batch
from cw_ext.collectives import gather_rows, row_numbers

# (rows, items) of each process: uneven, one with nothing, and one of a single row.
SIZES = {2: ((5, 6), (8, 4)), 3: ((4, 5), (0, 0), (7, 6)), 4: ((1, 3), (6, 4), (0, 2), (5, 5))}
SOFTMAX = {"include_positive": True, "weighting": "none", "similarity": "dot"}
KNOWN_ONES: dict[str, Any] = {"interactions": KNOWN}
ENCODED: dict[str, dict[str, Any]] = {
    "plain": {"log_q_correction": False},
    "counts": {"item_counts": KNOWN.item_counts},
    "known": KNOWN_ONES,
    "known, the softmax": KNOWN_ONES | SOFTMAX,
    "candidates": KNOWN_ONES | {"candidates": torch.arange(ITEMS) % 3 > 0},
    "all items": KNOWN_ONES | SOFTMAX | {"estimate_full": True},
    "confidence": KNOWN_ONES | {"confidence_temperature": 1.5, "positive_temperature": 0.3, "min_margin": -0.4},
    "weights in the gradient": KNOWN_ONES | {"detach_weights": False},
    "symmetric": KNOWN_ONES | {"symmetric": True},
    "symmetric, plain": {"symmetric": True, "log_q_correction": False},
    "symmetric, queries": {"symmetric": True, "log_q_correction": False, "interactions": None},
    "sum": KNOWN_ONES | {"reduction": "sum"},
}
TABLE: dict[str, dict[str, Any]] = {
    "plain": {"log_q_correction": False},
    "known": KNOWN_ONES,
    "mixed": KNOWN_ONES | {"num_negatives": 5, "seed": 3},
    "sparse": KNOWN_ONES | {"sparse_grad": True},
    "all items": KNOWN_ONES | SOFTMAX | {"estimate_full": True},
    "symmetric": KNOWN_ONES | {"symmetric": True},
}
IN_A_RING = TABLE.keys() - {"mixed", "sparse"}
BACKENDS = ("reference", "fused")


def _places(sizes: tuple[tuple[int, int], ...], rank: int) -> tuple[slice, slice]:
    found = []
    for i in range(2):
        begin = sum(size[i] for size in sizes[:rank])
        found.append(slice(begin, begin + sizes[rank][i]))
    return found[0], found[1]


def _arguments(form: dict[str, Any], case: PairCase) -> dict[str, Any]:
    """With the batch's query ids, where the known positives are given."""
    return form | ({"query_ids": case.query_ids} if "interactions" in form else {})


def _tau() -> Tensor:
    return torch.tensor(0.4, dtype=torch.float64, requires_grad=True)


def _gradients(loss: Tensor, **leaves: Tensor) -> dict[str, Tensor]:
    total = loss.sum()
    found = torch.autograd.grad(total, list(leaves.values()), retain_graph=True, allow_unused=True)
    dense = [torch.zeros_like(x) if g is None else g.to_dense() for x, g in zip(leaves.values(), found)]
    again = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    for one, two in zip(dense, again):
        assert two is None or torch.equal(one, two.to_dense()), "a second backward pass gives the same"
    return {"loss": loss.detach(), **dict(zip(leaves, dense))}


def _of_encoded(case: PairCase, form: dict[str, Any], **settings: Any) -> dict[str, Tensor]:
    leaves, tau = case.leaves(), _tau()
    loss = leaves.loss(**({"temperature": tau} | settings | _arguments(form, case)))
    return _gradients(loss, queries=leaves.queries, items=leaves.items, row_weights=leaves.row_weights, temperature=tau)


def _table_case(sizes: tuple[tuple[int, int], ...]) -> tuple[PairCase, Tensor]:
    """Rows whose ids are of a table that all have."""
    case = pair_case(sizes, seed=7)
    items = torch.randn(ITEMS, DIM, generator=generator(8), dtype=torch.float64)
    return case, items


def _of_table(case: PairCase, items: Tensor, rows: slice, form: dict[str, Any], **settings: Any) -> dict[str, Tensor]:
    queries, table, tau = case.queries[rows].clone().requires_grad_(), items.clone().requires_grad_(), _tau()
    pos_ids = torch.where(case.pos_ids[rows] >= 0, case.item_ids[case.pos_ids[rows].clamp(min=0)], -1)
    extra_ids = torch.where(case.extra_ids[rows] >= 0, case.item_ids[case.extra_ids[rows].clamp(min=0)], -1)
    who = {"query_ids": case.query_ids[rows]} if "interactions" in form else {}
    given = {"temperature": tau, "extra_pos_ids": extra_ids, "prior": case.prior[rows]} | form | who | settings
    loss = cw_loss_in_batch(queries, table, pos_ids, **given)
    return _gradients(loss, queries=queries, items=table, temperature=tau)


def _skewed(rank: int | None) -> tuple[PairCase, dict[str, Any]]:
    """One item is 10^12 times as popular as the others, and all that a row keeps; rank None: the whole batch."""
    counts = torch.ones(ITEMS, dtype=torch.float64)
    counts[0] = 1e12
    rare = torch.arange(1, ITEMS)
    known = Interactions(torch.zeros_like(rare), rare, num_queries=2, num_items=ITEMS)
    case = pair_case(((5, 5), (3, 3)))
    ids = torch.tensor([0, 1, 2, 3, 4, 0, 0, 0])
    query_ids = torch.tensor([1, 0, 1, 1, 1, 1, 1, 1])
    case = replace(case, pos_ids=torch.arange(8), extra_ids=case.pos_ids.view(8, 1), item_ids=ids, query_ids=query_ids)
    if rank is not None:
        case = case.part(*[(slice(0, 5), slice(5, 8), slice(8, 8), slice(8, 8))[rank]] * 2)
    return case, {"interactions": known, "query_ids": case.query_ids, "item_counts": counts, "reduction": "none"}


def _known_to(query_ids: Tensor) -> Interactions:
    """The known positives of these queries only."""
    owner = torch.arange(QUERIES).repeat_interleave(KNOWN.starts.diff())
    mine = torch.isin(owner, query_ids)
    return Interactions(owner[mine], KNOWN.items[mine], num_queries=QUERIES, num_items=ITEMS)


def _in_autocast(case: PairCase, enabled: bool = True, **settings: Any) -> Tensor:
    """The gradient of the queries where backward is called under autocast."""
    names = ("queries", "items", "row_weights", "prior")
    leaves = replace(case, **{name: getattr(case, name).float() for name in names}).leaves()
    arguments = _arguments(KNOWN_ONES | SOFTMAX, case) | {"similarity": "cosine", "temperature": 0.01}
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        loss = leaves.loss(backend="reference", reduction="sum", **arguments, **settings)
        return torch.autograd.grad(loss, leaves.queries)[0]


def _refusals(rank: int) -> list[str]:
    """What is said in every process of calls that differ, and of tables that do."""
    found = []
    group = dist.group.WORLD
    x = torch.randn(4, DIM, generator=generator(rank))
    ids = torch.arange(4)
    alike = 9 + torch.eye(4, DIM).roll(rank, 1)
    plain: dict[str, Any] = {"log_q_correction": False, "process_group": group}
    without_weight = nn.Embedding(4, DIM)  # which raises what no check of arguments does
    del without_weight.weight
    first_alone = dist.new_group([0])
    for call in (
        lambda: cw_loss_in_batch(x, x, ids, **plain),  # encoded vectors, without ids
        lambda: cw_loss_in_batch(x, alike, ids, symmetric=True, **plain),  # with the same sum
        lambda: cw_loss_in_batch(x, x, ids, ring=True, **plain),
        lambda: cw_loss_in_batch(x, x, ids, item_ids=ids, ring=rank == 0, **plain),
        lambda: cw_loss_in_batch(x, x, ids, item_ids=ids, symmetric=rank == 0, **plain),
        lambda: cw_loss_in_batch(x.clone().requires_grad_(rank == 0), x, ids, item_ids=ids, **plain),
        lambda: cw_loss_in_batch(
            x, x, ids, item_ids=ids, row_weights=x[:, 0].clone().requires_grad_(rank == 0), **plain
        ),
        lambda: cw_loss_in_batch(x, x, ids, item_ids=ids, temperature=torch.ones(4, requires_grad=rank == 0), **plain),
        lambda: cw_loss_in_batch(x, x, ids + 9 * rank, item_ids=ids, **plain),  # ids out of range, in all but the first
        lambda: cw_loss_in_batch(x, x, ids, item_ids=ids, extra_pos_ids=ids.view(4, 1) + 9 * rank, **plain),
        lambda: cw_loss_in_batch(x, without_weight if rank else x, ids, item_ids=ids, **plain),
        lambda: cw_loss_in_batch(x, x, ids, item_ids=ids, item_counts=ids + rank, process_group=group),
        lambda: cw_loss_in_batch(
            x, x, ids, item_ids=ids, query_ids=ids, interactions=_known_to(ids[: rank + 1]), process_group=group
        ),
        lambda: cw_loss_in_batch(x, x, ids, item_ids=ids, similarity="dot" if rank else "cosine", **plain),
        lambda: cw_loss_in_batch(x, x, ids, item_ids=ids, include_positive=rank == 0, **plain),
        lambda: gather_rows(x[:, : DIM - rank], group),
        lambda: gather_rows(x if rank else x.sum(), group),
        lambda: gather_rows(x, first_alone),
    ):
        try:
            call()
        except (AttributeError, IndexError, RuntimeError, ValueError) as error:
            found.append(f"{type(error).__name__}: {error}")
        else:
            found.append("none")
    return found


def _peaks(rank: int) -> dict[str, tuple[int, int]]:
    """Most bytes that a step holds at one time, and its largest allocation."""
    rows, ids = 512, torch.arange(512)
    queries, items = (torch.randn(rows, 16, generator=generator(rank + i)).requires_grad_() for i in (0, 9))
    groups = {"alone": [dist.new_group([r]) for r in range(dist.get_world_size())][rank], "all": dist.group.WORLD}

    def peak(group: Any, **form: bool) -> tuple[int, int]:
        numbers = row_numbers(rows, group)

        def step() -> None:
            settings = {"item_ids": numbers, "log_q_correction": False, "process_group": group}
            loss = cw_loss_in_batch(queries, items, ids, **settings, **form)
            torch.autograd.grad(loss, (queries, items))

        step()
        return peak_of(queries.device)(step)

    ring = {name: peak(group, ring=True) for name, group in groups.items()}
    return {**ring, "both ways": peak(groups["all"], ring=True, symmetric=True), "gathered": peak(groups["all"])}


class _TwoTowers(nn.Module):
    """Two encoders, a temperature that is learned, and the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.of_queries, self.of_items = (nn.Linear(DIM, DIM, dtype=torch.float64) for _ in range(2))
        self.log_tau = nn.Parameter(torch.tensor(-1.0, dtype=torch.float64))

    def forward(self, case: PairCase, **settings: Any) -> Tensor:
        encoded = replace(case, queries=self.of_queries(case.queries), items=self.of_items(case.items))
        settings |= {"query_ids": case.query_ids, "interactions": KNOWN}
        return encoded.loss(symmetric=True, temperature=self.log_tau.exp(), **settings)


def _trained(model: nn.Module, case: PairCase, **settings: Any) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(case, **settings).backward()
        optimizer.step()
    return {name.removeprefix("module."): x.detach() for name, x in model.named_parameters()}


def _process(rank: int, folder: Path) -> None:
    world, group = dist.get_world_size(), dist.group.WORLD
    sizes = SIZES[world]
    rows, items = _places(sizes, rank)
    noise = random.Random(rank)
    found: dict[Any, Any] = {}
    encoded = pair_case(sizes).part(rows, items)
    table_case, table = _table_case(sizes)
    for backend in BACKENDS:
        for ring in (False, True):
            settings = {"process_group": group, "ring": ring, "backend": backend}
            for name, form in ENCODED.items():
                time.sleep(noise.random() / 50)
                found["encoded", name, ring, backend] = _of_encoded(encoded, form, **settings)
            for name, form in TABLE.items():
                if not ring or name in IN_A_RING:
                    found["table", name, ring, backend] = _of_table(table_case, table, rows, form, **settings)
            settings |= {"gather_gradients": False}
            found["cheaper", ring, backend] = _of_encoded(encoded, KNOWN_ONES, **settings)
            above = {"return_above": True, "reduction": "none", "confidence_threshold": 0.05}
            settings |= {"query_ids": encoded.query_ids, "interactions": KNOWN}
            found["above", ring, backend] = encoded.loss(**above, **settings)[1]
    module = CWInBatchLoss(KNOWN, ring=True, temperature=0.4)
    ids = {"item_ids": encoded.item_ids, "query_ids": encoded.query_ids, "process_group": group}
    found["module"] = module(encoded.queries, encoded.items, encoded.pos_ids, **ids)
    compiled = torch.compile(lambda q, x: module(q, x, encoded.pos_ids, **ids), backend="aot_eager")
    found["compiled"] = compiled(encoded.queries, encoded.items)
    for ring in (False, True):
        skewed, skewed_form = _skewed(rank)
        found["skewed", ring] = skewed.loss(process_group=group, ring=ring, **skewed_form)
        shard = {"item_counts": KNOWN.item_counts, "process_group": group, "ring": ring}
        both = (KNOWN, _known_to(encoded.query_ids))
        found["shard", ring] = [encoded.loss(query_ids=encoded.query_ids, interactions=x, **shard) for x in both]
        found["autocast", ring] = _in_autocast(encoded, process_group=group, ring=ring)
        found["trained", ring] = _trained(
            DistributedDataParallel(_TwoTowers()), encoded, process_group=group, ring=ring
        )
    found["numbers"] = row_numbers(5, group)
    found["refusals"] = _refusals(rank)
    found["peaks"] = _peaks(rank)
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module", params=[2, 3, pytest.param(4, marks=pytest.mark.thorough)])
def found(request: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("processes")
    torchrun(__file__, folder, processes=request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def _is_whole(found: list[dict[Any, Any]], key: Any, expected: dict[str, Tensor], of_rows: list[str]) -> None:
    """The mean over the processes is that of one; tensors with a part of the rows in each are put together."""
    world = len(found)
    parts = [process[key] for process in found]
    scale = 1 if "sum" in key else world
    for name, whole in expected.items():
        if name in of_rows:
            mine = torch.cat([part[name] for part in parts]) / scale
        else:
            mine = torch.stack([part[name] for part in parts]).sum(0) / scale
        assert_near(mine, whole, torch.float64, f"{key}, {name}")


# In one worker: the processes of all tests are started once.
pytestmark = [pytest.mark.cpu_kernels, pytest.mark.xdist_group("in_batch_processes")]
both_forms = pytest.mark.parametrize("ring", [False, True], ids=["gathered", "ring"])


@both_forms
@pytest.mark.parametrize("form", ENCODED)
def test_encoded_items(kernels: None, found: list, form: str, ring: bool) -> None:
    expected = _of_encoded(pair_case(SIZES[len(found)]), ENCODED[form], backend="reference")
    for backend in BACKENDS:
        of_rows = ["queries", "items", "row_weights"]
        _is_whole(found, ("encoded", form, ring, backend), expected, of_rows)
    assert expected["items"].any() and expected["temperature"] != 0


@pytest.mark.parametrize(
    ("form", "ring"), [(form, ring) for form in TABLE for ring in (False, True) if not ring or form in IN_A_RING]
)
def test_a_table_that_all_hold(kernels: None, found: list, form: str, ring: bool) -> None:
    case, items = _table_case(SIZES[len(found)])
    expected = _of_table(case, items, slice(0, len(case.pos_ids)), TABLE[form], backend="reference")
    for backend in BACKENDS:
        _is_whole(found, ("table", form, ring, backend), expected, ["queries"])


@both_forms
def test_without_the_others_gradients(kernels: None, found: list, ring: bool) -> None:
    """Each process's items have the gradient of its own rows' loss alone; all else is the same."""
    sizes = SIZES[len(found)]
    case = pair_case(sizes)
    for rank, process in enumerate(found):
        rows, items = _places(sizes, rank)
        leaves = case.leaves()
        arguments = _arguments(KNOWN_ONES, case) | {"temperature": 0.4, "reduction": "none", "backend": "reference"}
        of_rows = leaves.loss(**arguments)[rows].sum()
        weight = leaves.row_weights.detach()[_has_loss(case, arguments)].sum() / len(found)
        gradient = torch.autograd.grad(of_rows / weight, leaves.items, allow_unused=True)[0]
        expected = torch.zeros_like(case.items) if gradient is None else gradient
        for backend in BACKENDS:
            got = process["cheaper", ring, backend]
            assert_near(got["items"], expected[items], torch.float64, "items")
            whole = process["encoded", "known", ring, backend]
            for name in ("loss", "queries", "row_weights", "temperature"):
                assert_near(got[name], whole[name], torch.float64, name)


def _has_loss(case: PairCase, arguments: dict[str, Any]) -> Tensor:
    return case.loss(**arguments, weights=False) != 0


@both_forms
def test_counts_above(kernels: None, found: list, ring: bool) -> None:
    case = pair_case(SIZES[len(found)])
    arguments = {"return_above": True, "reduction": "none", "confidence_threshold": 0.05, "interactions": KNOWN}
    expected = case.loss(query_ids=case.query_ids, backend="reference", **arguments)[1]
    for backend in BACKENDS:
        assert torch.equal(torch.cat([process["above", ring, backend] for process in found]), expected)
    assert expected.any()


@both_forms
def test_popular_items_beside_rare_ones(kernels: None, found: list, ring: bool) -> None:
    case, form = _skewed(None)
    expected = case.loss(backend="reference", **form)
    assert_near(torch.cat([process["skewed", ring] for process in found]), expected, torch.float64, "loss")
    assert expected[1] > 0, "the row that keeps popular items only"


@both_forms
def test_a_process_needs_what_its_own_queries_know(kernels: None, found: list, ring: bool) -> None:
    for process in found:
        whole, own = process["shard", ring]
        assert torch.equal(whole, own)


@both_forms
def test_backward_under_autocast(kernels: None, found: list, ring: bool) -> None:
    expected = _in_autocast(pair_case(SIZES[len(found)]), enabled=False)
    assert_near(torch.cat([process["autocast", ring] for process in found]), expected, torch.bfloat16, "queries")


def test_module_and_compiled(kernels: None, found: list) -> None:
    for process in found:
        assert_near(process["compiled"], process["module"], torch.float64, "compiled")
    case = pair_case(SIZES[len(found)])
    expected = cw_loss_in_batch(
        case.queries,
        case.items,
        case.pos_ids,
        item_ids=case.item_ids,
        query_ids=case.query_ids,
        interactions=KNOWN,
        temperature=0.4,
    )
    assert_near(torch.stack([process["module"] for process in found]).mean(), expected, torch.float64, "module")


@both_forms
def test_towers_learn_what_they_learn_in_one_process(kernels: None, found: list, ring: bool) -> None:
    """Under DistributedDataParallel, with uneven batches and a temperature that is learned."""
    expected = _trained(_TwoTowers(), pair_case(SIZES[len(found)]), backend="reference")
    for process in found:
        for name, value in expected.items():
            assert_near(process["trained", ring][name], value, torch.float64, name)
    assert expected["log_tau"] != -1


def test_row_numbers_are_distinct(kernels: None, found: list) -> None:
    assert len(torch.cat([process["numbers"] for process in found]).unique()) == 5 * len(found)


def test_a_ring_holds_one_part_at_a_time(kernels: None, found: list) -> None:
    """512 rows in each process: the scores of one part are 1 MiB."""
    scores = 512 * 512 * 4
    for process in found:
        (alone, _), (ring, largest) = process["peaks"]["alone"], process["peaks"]["all"]
        assert largest < 1.2 * scores and process["peaks"]["both ways"][1] < 1.2 * scores
        assert ring < alone + 0.5 * scores, "what travels, and nothing for each process"
        assert process["peaks"]["gathered"][0] > len(found) * scores, "that the measure sees the scores of all"


def test_calls_that_differ_are_refused_everywhere(kernels: None, found: list) -> None:
    for rank, process in enumerate(found):
        out_of_range = "IndexError: process 1 of the group raised IndexError"
        expected = [
            "ValueError: items must be the same table.*item_ids",
            "ValueError: items must be the same table.*item_ids",
            "ValueError: items must be the same table.*item_ids",
            "ValueError: .* ring: ",
            "ValueError: .* symmetric: ",
            "ValueError: .* queries require a gradient: ",
            "ValueError: .* row_weights require a gradient: ",
            "ValueError: .* temperature requires a gradient: ",
            "IndexError: pos_ids must be in .* got " if rank else out_of_range,
            "IndexError: extra_pos_ids must be in .* got " if rank else out_of_range,
            "AttributeError: .*weight" if rank else "RuntimeError: process 1 of the group raised RuntimeError",
            "ValueError: .* sum of the item counts: ",
            f"ValueError: .* interactions: {len(_known_to(torch.arange(rank + 1)))} pairs .* another value in process",
            "ValueError: .* similarity: ",
            "ValueError: .* include_positive: ",
            "ValueError: rows must have the",
            "ValueError: process 0 of the group raised" if rank else "ValueError: rows must have at least one",
            "ValueError: process_group must contain this process" if rank else "none",
        ]
        assert len(process["refusals"]) == len(expected)
        for message, said in zip(expected, process["refusals"]):
            assert re.search(message, said), said


if __name__ == "__main__":
    warnings.simplefilter("error", FutureWarning)  # of names that torch is to drop
    with process_of_group() as (rank, folder):
        _process(rank, folder)
