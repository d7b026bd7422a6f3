"""What an argument of the loss costs: a step from embeddings with it and without it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.common import command, reporting
from benchmarks.step_ratios.inputs import Sizes, Step, forward_and_backward, make_generator, make_ids, make_tables
from benchmarks.step_ratios.ratios import clock, compare
from cw_ext import ScoreCurve, cw_loss_from_embeddings

TEMPERATURE = 0.1
POSITIVE_TEMPERATURE = 0.125
KNOTS = 32


def measure(sizes: Sizes, rounds: int) -> dict[str, Any]:
    """Compare the step with each argument with the step that has none.

    Returns:
        A JSON-ready dict: the sizes, and for each of the ``"shapes"`` its ``"negatives"``, ``"items"`` and
        ``"arguments"``, what :func:`.ratios.compare` returns for with/without, by argument. The first argument is set
        to its default, so that its ratio shows the noise.
    """
    shapes = []
    with command.progress(sizes.embedding_sizes(), unit="shape") as progress:
        for negatives, items in progress:
            plain, steps = make_steps(sizes, negatives, items)
            found = {name: compare(clock(step), clock(plain), rounds) for name, step in steps.items()}
            shapes.append({"negatives": negatives, "items": items, "arguments": found})
    return {"batch_size": sizes.batch_size, "dim": sizes.dim, "shapes": shapes}


def make_steps(sizes: Sizes, negatives: int, items: int) -> tuple[Step, dict[str, Step]]:
    """Return the step without arguments, and the same with each argument."""
    generator = make_generator()
    tables = make_tables(sizes, items, generator)
    ids = make_ids(sizes, negatives, items, generator)
    log_weights = torch.randn(KNOTS, generator=generator)
    learned = log_weights.clone().requires_grad_()
    scalar = torch.tensor(TEMPERATURE, requires_grad=True)
    rows = torch.full((sizes.batch_size,), TEMPERATURE)
    learned_rows = rows.clone().requires_grad_()

    def step(*leaves: torch.Tensor, **arguments: Any) -> Step:
        loss = partial(cw_loss_from_embeddings, *tables, *ids, backend="fused", **arguments)
        return forward_and_backward(loss, [*tables, *leaves])

    return step(), {
        "temperature: number": step(temperature=TEMPERATURE),
        "temperature: scalar tensor, gradient": step(scalar, temperature=scalar),
        "temperature: one per row": step(temperature=rows),
        "temperature: one per row, gradient": step(learned_rows, temperature=learned_rows),
        f"score_curve: {KNOTS} knots": step(score_curve=ScoreCurve(-0.5, 0.5, log_weights)),
        f"score_curve: {KNOTS} knots, gradient": step(learned, score_curve=ScoreCurve(-0.5, 0.5, learned)),
        "return_above": step(return_above=True),
        "positive_temperature": step(positive_temperature=POSITIVE_TEMPERATURE),
    }


def describe(results: dict[str, Any]) -> str:
    """Return the results as a table: a row per argument, a column per shape."""
    shapes = [f"N={shape['negatives']} I={shape['items']}" for shape in results["shapes"]]
    found = [shape["arguments"] for shape in results["shapes"]]
    names = list(found[0])
    rows = [["no argument", *(f"{1e3 * costs[names[0]]['seconds'][1]:.2f} ms" for costs in found)]]
    for name in names:
        cells = ["{median:.2f} ({q25:.2f}-{q75:.2f})".format(**costs[name]["ratio"]) for costs in found]
        rows.append([name, *cells])
    return reporting.format_table(["with/without (quartiles)", *shapes], rows)
