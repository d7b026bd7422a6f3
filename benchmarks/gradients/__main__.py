# %% [markdown]
"""Draw what CW does to gradients, while the score of one negative moves.

A row has one positive and N negatives. All negatives but one stay where negatives typically are. The last one moves
from far below the positive (margin d = s⁻ − s⁺ = −1, the least that a half cosine allows) to far above it (d = +1). The
plots show two gradients of the row's loss, found by autograd through cw_loss: in the score of the negative that moves,
and in the positive's score.

    python -m benchmarks.gradients --out DIR

You can also run this file cell by cell in an editor that supports cells.
"""

# %% Imports
from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.common import command, reporting
from cw_ext import cw_loss, presets

# %% [markdown]
# The row. The margins of the other negatives are normally distributed, as in benchmarks.negative_mass. So are those of
# the extra positives, which the correction takes as samples of the positives that hide among the negatives. Quantiles
# take the place of draws, so that nothing depends on a seed. The positive's score only matters to the confidence.

# %% A typical row
TEMPERATURE = 0.1
POSITIVE = 0.2
NEGATIVES = 100
EXTRA_POSITIVES = 10
SPREAD = 0.1
NEGATIVE_MEAN, POSITIVE_MEAN = -0.2, 0.0


def quantiles(number: int, mean: float) -> Tensor:
    """`number` margins [number], fp64, spread as N(mean, SPREAD²) is."""
    places = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    return mean + SPREAD * torch.special.ndtri(places)


OTHERS = POSITIVE + quantiles(NEGATIVES - 1, NEGATIVE_MEAN)
EXTRAS = POSITIVE + quantiles(EXTRA_POSITIVES, POSITIVE_MEAN)
MARGINS = torch.linspace(-1, 1, 401, dtype=torch.float64)

# %% [markdown]
# The losses, as arguments of cw_loss. The first row of panels is about the weights ω. BPR sees only the negative that
# moves: log(1 + exp(d/τ)). SL has ω = 1. Weights count as constants in the gradient, except where a curve says
# otherwise.
#
# The second row adds one thing at a time to the sigmoid weights. With the class prior π = 0.1, π times the mass of the
# extra positives is subtracted. With π = 0.22, less than the floor ε = 0.3 would be left until the moving negative adds
# enough mass. At the floor the gradient is that of the uncorrected loss; above it, it is up to 1/ε times as large.


# %% The losses
class Curve(NamedTuple):
    """A loss to draw."""

    arguments: dict[str, Any]  # of cw_loss
    line: dict[str, Any]  # of matplotlib's
    others: bool = True  # whether it sees the other negatives
    extras: bool = False  # whether it sees the extra positives


_EASY = {"temperature": TEMPERATURE, "weight_temperature": 0.3}
PANELS: dict[str, dict[str, Curve]] = {
    "the weights": {
        "BPR: this negative alone": Curve(
            presets.infonce(TEMPERATURE), {"color": "#000000", "linestyle": ":"}, others=False
        ),
        "SL: no weights": Curve(presets.sl(TEMPERATURE), {"color": "#E69F00"}),
        "exponential, ρ = 0.3": Curve({"weighting": "exponential", **_EASY}, {"color": "#009E73", "linestyle": "--"}),
        "linear, ρ = 0.3": Curve({"weighting": "linear", **_EASY}, {"color": "#CC79A7", "linestyle": "-."}),
        "CW: sigmoid, ρ = τ": Curve(presets.cw(TEMPERATURE, prior=0.0), {"color": "#0072B2"}),
        "sigmoid, gradient through ω": Curve(
            {**presets.cw(TEMPERATURE, prior=0.0), "detach_weights": False}, {"color": "#56B4E9", "linestyle": "--"}
        ),
    },
    "on top of the sigmoid's weights": {
        "CW: sigmoid weights alone": Curve(presets.cw(TEMPERATURE, prior=0.0), {"color": "#0072B2"}),
        "π = 0.1": Curve(presets.cw(TEMPERATURE, prior=0.1), {"color": "#D55E00", "linestyle": "--"}, extras=True),
        "π = 0.22, floor 0.3": Curve(
            presets.cw(TEMPERATURE, prior=0.22), {"color": "#009E73", "linestyle": "-."}, extras=True
        ),
        "confidence, τ_c = 1.25": Curve(
            presets.cw(TEMPERATURE, prior=0.0, confidence_temperature=1.25), {"color": "#CC79A7", "linestyle": ":"}
        ),
    },
}

# %% [markdown]
# One row per margin, and one call of autograd for all rows: the gradients of different rows do not interact.


# %% The gradients
def gradients(curve: Curve, margins: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiate a row's loss at each place of the negative that moves.

    Args:
        curve: which loss.
        margins: d = s⁻ − s⁺ of that negative [P], fp64.

    Returns:
        Gradients in its score [P] and in the positive's [P], per unit of score.
    """
    rows = len(margins)
    positive = torch.full((rows,), POSITIVE, dtype=torch.float64, requires_grad=True)
    moving = (POSITIVE + margins).requires_grad_()
    others = [OTHERS.expand(rows, -1)] if curve.others else []
    extras = EXTRAS.expand(rows, -1) if curve.extras else None
    negatives = torch.cat([moving.unsqueeze(1), *others], 1)
    loss = cw_loss(positive, negatives, extra_pos_scores=extras, **curve.arguments, reduction="sum")
    of_moving, of_positive = torch.autograd.grad(loss, (moving, positive))
    return of_moving, of_positive


# %% [markdown]
# What to look for. On the negative: SL pulls on a negative above the positive as hard as BPR does, by 1/τ, which is the
# row's whole pull. One false negative can then outweigh all others together. Sigmoid weights bound the share of any one
# negative, and hardly differ from SL below the positive. Weights that stay mild above it, such as the exponential ones,
# bound nothing. On the positive: as long as only margins matter, the pull is 1/τ, whatever weights, π and floor do to
# the negatives. Of the options here, only the confidence and a gradient through ω change it.


# %% The figure
def draw(path: Path) -> None:
    """Draw all curves into a PNG: the gradient on the negative on the left, on the positive on the right."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"Gradient of a row's loss while one of its {NEGATIVES} negatives moves: τ = {TEMPERATURE}, s⁺ = {POSITIVE}"
    )
    rows = figure.subfigures(len(PANELS), 1)
    for part, (title, curves) in zip(rows, PANELS.items(), strict=True):
        on_negative, on_positive = part.subplots(1, 2)
        for name, curve in curves.items():
            of_moving, of_positive = gradients(curve, MARGINS)
            on_negative.plot(MARGINS, of_moving, label=name, **curve.line)
            on_positive.plot(MARGINS, -of_positive, **curve.line)
        on_negative.plot(
            OTHERS - POSITIVE,
            torch.full_like(OTHERS, 0.02),
            "|",
            color="#777777",
            transform=on_negative.get_xaxis_transform(),
            label="the other negatives",
        )
        pull = 1 / TEMPERATURE
        on_positive.annotate(
            "1/τ: every curve not seen elsewhere", (-1, pull), (0, -6), textcoords="offset points", va="top"
        )
        on_negative.set(title=f"{title}: gradient on the negative", ylabel="∂L/∂s⁻")
        on_positive.set(title=f"{title}: pull on the positive", ylabel="−∂L/∂s⁺")
        for axes in (on_negative, on_positive):
            axes.set_xlabel("d = s⁻ − s⁺ of the negative that moves")
            axes.grid(alpha=0.3)
            axes.set_axisbelow(True)
        part.legend(*on_negative.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
        if title == "the weights":  # six decades
            on_negative.set(yscale="log", ylim=(1e-5, 20))
    reporting.save_figure(figure, path)


# %% The command line
DESCRIPTION = """Draw the gradients of a row's loss while the score of one of its negatives moves.

The left panels show the gradient in that negative's score, the right ones the pull on the positive, for several losses
and settings of CW.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = command.make_parser("python -m benchmarks.gradients", DESCRIPTION)
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/gradients"), help="folder for the plot")
    arguments = parser.parse_args(argv)
    return command.run(lambda: _run(arguments.out))


def _run(out: Path) -> None:
    reporting.make_writable_directory(out)
    path = out / "gradients.png"
    draw(path)
    reporting.print_results(path)


if __name__ == "__main__":
    sys.exit(main())
