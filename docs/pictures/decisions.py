"""Draws the decision trees of docs/choose: `python docs/pictures/decisions.py` writes choose-*.svg beside this file.

They are drawn inline, with the theme's colours, so that they can be read in light and dark and on a phone. Every tree
is a ladder: a question, the answer if one leaves there, and the way on to the next question.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, LINE, PADDING = 360, 20, 10
TRUNK, INDENT = 22, 66  # x of the way on, and of the answers


@dataclass
class Question:
    text: list[str]
    leave: str  # what one answers to leave
    answer: list[str]  # a line in backticks is code
    stay: str  # what one answers to go on


LOSS = [
    Question(
        ["Are your items rows of a table,", "trained on user–item interactions?"],
        "no",
        ["InfoNCE or SL, in the batch", "`presets.infonce(τ)`"],
        "yes",
    ),
    Question(
        ["Do rare items matter as much", "as popular ones?"],
        "yes",
        ["SL, the plain sampled softmax", "`presets.sl(τ)`"],
        "no",
    ),
    Question(
        ["More than about ten thousand items?"],
        "yes",
        ["SL@K, learned thresholds", "`presets.slk(τ, τ_c)`"],
        "no",
    ),
]
BEST = ["CW with likely positives", '`weighting="none", prior=0.1,`', "`extra_pos_ids=likely.draw(u, 20)`"]

NEGATIVES = [
    Question(
        ["Does an encoder compute the items", "of each batch?"],
        "yes",
        ["In-batch negatives", "`cw_loss_in_batch(q, v, rows)`"],
        "no",
    ),
    Question(
        ["Are there about as many items as", "negatives, a few thousand at most?"],
        "yes",
        ["All items, no sampling", "`cw_loss_full(…)`"],
        "no",
    ),
    Question(
        ["Does the loss take most of the", "time of a training step?"],
        "yes",
        ["One shared, larger set", "`sampled_cw_loss(…, shared=True)`"],
        "no",
    ),
]
UNIFORM = ["Uniform negatives for each row", "`sampled_cw_loss(…, 1000)`"]

PRIOR = [
    Question(
        ["Do you have user–item interactions", "in which items occur together?"],
        "yes",
        ["Likely positives, and π = 0.1", "`LikelyPositives.by_regression(…)`"],
        "no",
    ),
    Question(
        ["Do you know the share π of false", "negatives, and do they score", "highest in their row?"],
        "yes",
        ["Leave the highest out", "`cvir_log_weights(scores, π)`"],
        "no",
    ),
    Question(
        ["Do you have positives that training", "has not used and that score like", "hidden ones?"],
        "yes",
        ["Try weights 1 − p_FN", "`FalseNegatives.fit(…).curve()`"],
        "no",
    ),
]
NONE = ["No prior, the default", "`prior=0.0`"]


def box(x: int, y: int, lines: list[str], kind: str) -> tuple[str, int]:
    """A rounded box with its lines of text; and its height."""
    height = LINE * len(lines) + 2 * PADDING
    parts = [f'<rect class="{kind}" x="{x}" y="{y}" width="{WIDTH - 1 - x}" height="{height}" rx="6"/>']
    for number, line in enumerate(lines):
        is_code = line.startswith("`")
        style = "code" if is_code else "text"
        baseline = y + PADDING + LINE * number + 15
        parts.append(f'<text class="{style}" x="{x + 12}" y="{baseline}">{escape(line.strip("`"))}</text>')
    return "\n".join(parts), height


def ladder(title: str, questions: list[Question], last: list[str]) -> str:
    """The tree as an SVG element."""
    parts: list[str] = []
    told: list[str] = []
    y = 1
    for question in questions:
        drawn, height = box(1, y, question.text, "question")
        parts.append(drawn)
        y += height
        top = y
        y += 14
        drawn, height = box(INDENT, y, question.answer, "answer")
        middle = y + height // 2
        parts.append(drawn)
        parts.append(f'<path class="way" d="M{TRUNK} {middle}H{INDENT - 3}" marker-end="url(#tip)"/>')
        parts.append(f'<text class="word" x="{TRUNK + 6}" y="{middle - 6}">{question.leave}</text>')
        y += height + 26
        parts.append(f'<path class="way" d="M{TRUNK} {top}V{y - 3}" marker-end="url(#tip)"/>')
        parts.append(f'<text class="word" x="{TRUNK + 8}" y="{y - 9}">{question.stay}</text>')
        answer = " ".join(line.strip("`") for line in question.answer)
        told.append(f"{' '.join(question.text)} If {question.leave}: {answer}. If {question.stay}, go on.")
    drawn, height = box(1, y, last, "answer")
    parts.append(drawn)
    y += height + 1
    told.append(f"Otherwise: {' '.join(line.strip('`') for line in last)}.")
    style = (
        ".cw-tree{display:block;width:100%;max-width:440px;height:auto;margin:1rem 0}"
        ".cw-tree .question{fill:var(--pst-color-surface);stroke:var(--pst-color-border)}"
        ".cw-tree .answer{fill:var(--pst-color-background);stroke:var(--pst-color-primary);stroke-width:2}"
        ".cw-tree text{fill:var(--pst-color-text-base);font:600 14.5px var(--pst-font-family-base)}"
        ".cw-tree .code{font:13.5px var(--pst-font-family-monospace)}"
        ".cw-tree .word{fill:var(--pst-color-text-muted);font-weight:600;font-size:14px}"
        ".cw-tree .way{fill:none;stroke:var(--pst-color-text-muted);stroke-width:1.5}"
        ".cw-tree .tip{fill:var(--pst-color-text-muted)}"
    )
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    return "\n".join(
        [
            f'<svg class="cw-tree" viewBox="0 0 {WIDTH} {y}" role="img" aria-label="{escape(title)}. '
            f'{escape(" ".join(told))}" xmlns="http://www.w3.org/2000/svg">',
            f"<style>{style}</style>",
            f'<defs>{tip}<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>',
            *parts,
            "</svg>",
            "",
        ]
    )


TREES = {
    "choose-loss.svg": ladder("Which loss", LOSS, BEST),
    "choose-negatives.svg": ladder("Which negatives", NEGATIVES, UNIFORM),
    "choose-prior.svg": ladder("Which prior", PRIOR, NONE),
}

if __name__ == "__main__":
    for name, svg in TREES.items():
        (Path(__file__).parent / name).write_text(svg, encoding="utf-8")
