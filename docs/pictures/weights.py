"""Draws docs/pictures/weights.svg: the weights ω(d), and what they make of a negative's mass.

The curves are computed with cw_ext.reference, at τ = 0.1, with ρ = τ for the sigmoid and 0.3 for the exponential and
linear weights. The colours are the site's own, in light and dark.

    python docs/pictures/weights.py
"""

from __future__ import annotations

from pathlib import Path

import torch

from cw_ext.parameters import resolve
from cw_ext.reference import log_surrogate, log_weight

TAU, RHO = 0.1, 0.3
LOW, HIGH = -0.45, 0.45
WIDTH, PANEL, LEFT, RIGHT, TOP, BOTTOM = 400, 210, 44, 10, 30, 42
# Weighting, its ρ, colour and dashes.
CURVES = (
    ("none", None, "var(--pst-color-text-muted)", ""),
    ("sigmoid", None, "var(--pst-color-primary)", ""),
    ("exponential", RHO, "var(--pst-color-accent)", "7 4"),
    ("linear", RHO, "var(--pst-color-warning)", "2 3"),
)


class Panel:
    """One plot: margins from left to right, values from 0 to `most` upwards."""

    def __init__(self, above: int, title: str, most: float, marks: tuple[float, ...]):
        self.above, self.most = above, most
        bottom = above + PANEL - BOTTOM
        self.parts = [f'<text x="{LEFT}" y="{above + 18}" class="title">{title}</text>']
        for mark in marks:
            y = self.y(mark)
            self.parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" class="grid" />')
            self.parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="tick" text-anchor="end">{mark:g}</text>')
        for mark in (-0.4, -0.2, 0.0, 0.2, 0.4):
            x = self.x(mark)
            self.parts.append(f'<path d="M{x:.1f} {above + TOP}V{bottom}" class="grid" />')
            text = f"{mark:g}".replace("-", "−")
            self.parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" class="tick" text-anchor="middle">{text}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        self.parts.append(f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle">margin d</text>')

    def x(self, margin: float) -> float:
        return LEFT + (margin - LOW) / (HIGH - LOW) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self.above + PANEL - BOTTOM - value / self.most * (PANEL - TOP - BOTTOM)

    def curve(self, margins: list[float], values: list[float], colour: str, dashes: str) -> None:
        points = [(self.x(d), self.y(value)) for d, value in zip(margins, values) if value <= self.most * 1.02]
        path = "".join(f"{'L' if k else 'M'}{x:.1f} {y:.1f}" for k, (x, y) in enumerate(points))
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.parts.append(f'<path d="{path}" style="stroke:{colour}"{dashed} class="curve" />')


def main() -> None:
    margins = torch.linspace(LOW, HIGH, 181, dtype=torch.float64)
    weights = Panel(0, "weight ω(d)", 2.0, (0, 0.5, 1, 1.5, 2))
    masses = Panel(PANEL, "mass ω(d) · exp(d/τ)", 4.0, (0, 1, 2, 3, 4))
    legend = []
    for k, (weighting, rho, colour, dashes) in enumerate(CURVES):
        p = resolve({"weighting": weighting, "weight_temperature": rho}).row
        log_omega = log_weight(margins, TAU, p)
        weights.curve(margins.tolist(), log_omega.exp().tolist(), colour, dashes)
        masses.curve(margins.tolist(), (log_omega + log_surrogate(margins, TAU, p)).exp().tolist(), colour, dashes)
        x, y = 44 + 180 * (k % 2), 2 * PANEL + 16 + 22 * (k // 2)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        legend.append(f'<path d="M{x} {y - 4}h28" style="stroke:{colour}"{dashed} class="curve" />')
        scale = {"none": "", "sigmoid": ", ρ = τ"}.get(weighting, f", ρ = {RHO}")
        legend.append(f'<text x="{x + 35}" y="{y}">{weighting}{scale}</text>')
    height = 2 * PANEL + 46
    label = (
        "Two plots against the margin d. Above: the weights. None is 1, sigmoid falls from 1 to 0 around d = 0, "
        "exponential and linear fall through 1 at d = 0, linear to 0 at d = ρ. Below: the mass of a negative. Without "
        "weights it grows exponentially, with sigmoid weights it levels off at 1, with exponential weights it grows "
        "more slowly, with linear weights it returns to 0."
    )
    lines = [
        f'<svg class="cw-weights" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}"',
        '  style="display:block;width:100%;max-width:32rem;height:auto;margin:1rem auto">',
        "<style>",
        ".cw-weights text { fill: var(--pst-color-text-base); font: 13px var(--pst-font-family-base, sans-serif); }",
        ".cw-weights .title { font-weight: 600; }",
        ".cw-weights .tick { fill: var(--pst-color-text-muted); font-size: 12px; }",
        ".cw-weights .grid { stroke: var(--pst-color-border); stroke-width: .6; }",
        ".cw-weights .curve { fill: none; stroke-width: 2.4; stroke-linejoin: round; }",
        "</style>",
        *weights.parts,
        *masses.parts,
        *legend,
        "</svg>",
    ]
    Path(__file__).with_suffix(".svg").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
