"""Weights for positives that arrive late: DEFUSE (arXiv 2202.06472) on a made-up stream with known final labels.

Items are shown, and some are liked: either immediately, or only after the waiting time is over. Those liked late are
first observed as negatives, which makes them fake negatives, and later return as positives. The program prints three
things:

- how far the loss of a given model on such a stream is from its loss on the final labels;
- how good the models are that are trained on the stream;
- the negatives' mass, which is the mean of exp(margin/τ), in a ranking loss whose negatives are shown items that are
  not liked yet, without weights and with weights log(1 − z).

All probabilities are known here. In practice, f_dp and f are separate models, trained on older data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import benchmarks  # noqa: F401  # first, since it reports a missing package in one line

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import command
from benchmarks.common.arguments import non_negative_int, positive_int
from benchmarks.common.reporting import format_table
from cw_ext import cw_loss
from cw_ext.false_negatives import DelayedKind, delayed_weights

FEATURES = 6
SHOWN = 200_000
# A row of the ranking loss.
NEGATIVES, TEMPERATURE = 1000, 0.2
STEPS = 300


class Shown(NamedTuple):
    """Shown items, one per row; all [n] except the features."""

    features: Tensor  # [n, FEATURES]
    f_ip: Tensor  # probability of being liked immediately
    f_dp: Tensor  # probability of being liked late
    at_once: Tensor  # whether the item was liked immediately
    late: Tensor  # whether it was liked late

    @property
    def f(self) -> Tensor:
        """Probability of being liked in the end."""
        return self.f_ip + self.f_dp

    @property
    def z(self) -> Tensor:
        """Probability that an item that is not liked immediately will be liked late."""
        return self.f_dp / (self.f_dp + 1 - self.f)


def show(number: int, generator: torch.Generator) -> Shown:
    """Show items whose features decide how likely they are liked, immediately or late."""
    features = torch.randn(number, FEATURES, generator=generator)
    slopes = torch.linspace(1.0, -0.5, FEATURES)
    # The product of two features makes every linear model wrong. Which one is best then depends on the items' weights.
    f = torch.sigmoid(features @ slopes + features[:, 0] * features[:, 1] - 1)
    is_late = torch.sigmoid(1.5 * features[:, 0] - 0.5 * features[:, 2])
    f_ip, f_dp = f * (1 - is_late), f * is_late
    drawn = torch.rand(number, generator=generator)
    return Shown(features, f_ip, f_dp, drawn < f_ip, (drawn >= f_ip) & (drawn < f))


# How a stream combines each item's loss as a positive and its loss as a negative, all [n].
Way = Callable[[Shown, Tensor, Tensor], Tensor]


def in_the_end(shown: Shown, pos: Tensor, neg: Tensor) -> Tensor:
    """Final labels, which would need waiting."""
    return torch.where(shown.at_once | shown.late, pos, neg)


def first_seen(shown: Shown, pos: Tensor, neg: Tensor) -> Tensor:
    """Labels as first observed."""
    return torch.where(shown.at_once, pos, neg)


def come_back(shown: Shown, pos: Tensor, neg: Tensor) -> Tensor:
    """Labels as first observed, and again as a positive when the item returns."""
    return first_seen(shown, pos, neg) + torch.where(shown.late, pos, 0.0)


def divided(shown: Shown, pos: Tensor, neg: Tensor) -> Tensor:
    """DEFUSE's weights divided by 1 + f_dp: IP + (1 − z) RN + z FN + DP."""
    ip, rn, fn, dp = (
        delayed_weights(torch.full_like(shown.late, k, dtype=torch.long), shown.f_dp) for k in DelayedKind
    )
    waiting = (1 - shown.z) * rn * neg + shown.z * fn * pos
    return torch.where(shown.at_once, ip * pos, waiting) + torch.where(shown.late, dp * pos, 0.0)


def published(shown: Shown, pos: Tensor, neg: Tensor) -> Tensor:
    """DEFUSE's weights as published, divided by their mean."""
    return (1 + shown.f_dp) * divided(shown, pos, neg) / (1 + shown.f_dp).mean()


WAYS: dict[str, Way] = {
    "final labels": in_the_end,
    "labels as first observed": first_seen,
    "first observed, then returned": come_back,
    "DEFUSE's weights": published,
    "divided by 1 + f_dp": divided,
}


def losses(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logistic loss as a positive and as a negative."""
    return F.softplus(-logits), F.softplus(logits)


def off(way: Way, shown: Shown, logits: Tensor) -> tuple[float, float]:
    """Return how much a way's mean loss exceeds that of the final labels on the same draws, and its standard error."""
    pos, neg = losses(logits)
    difference = (way(shown, pos, neg) - in_the_end(shown, pos, neg)).double()
    return difference.mean().item(), (difference.std() / len(difference) ** 0.5).item()


def trained(way: Way, shown: Shown) -> nn.Linear:
    """Return a linear model of the features, trained on the whole stream."""
    model = nn.Linear(FEATURES, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        way(shown, *losses(model(shown.features).squeeze(1))).mean().backward()
        optimizer.step()
    return model


@torch.no_grad()
def true_loss(model: nn.Linear, shown: Shown) -> float:
    """Return the expected loss of the final labels, from probabilities instead of draws."""
    pos, neg = losses(model(shown.features).squeeze(1))
    return (shown.f * pos + (1 - shown.f) * neg).mean().item()


def masses(shown: Shown, scores: Tensor) -> dict[str, float]:
    """Return how far the mass of items not liked yet is from that of items never liked, relative to the latter.

    Args:
        shown: at least as many items as a row has. Items that don't fill a row are left out.
        scores: of the items, [n].
    """
    number = len(scores) // NEGATIVES * NEGATIVES
    neg, at_once, late, z = (
        value[:number].reshape(-1, NEGATIVES) for value in (scores, shown.at_once, shown.late, shown.z)
    )
    pos = torch.zeros(len(neg))

    def mass(log_weights: Tensor) -> Tensor:
        loss = cw_loss(
            pos, neg, neg_log_weights=log_weights, weighting="none", temperature=TEMPERATURE, reduction="none"
        )
        # The loss is log(N·G), where N counts the negatives that are not masked out.
        return (loss.exp() / (log_weights > -torch.inf).sum(1)).mean()

    not_yet = torch.where(at_once, -torch.inf, 0.0)
    never = mass(torch.where(at_once | late, -torch.inf, 0.0))
    weights = {"without weights": not_yet, "log(1 − z)": not_yet + torch.log1p(-z)}
    return {name: (mass(log_weights) / never).item() - 1 for name, log_weights in weights.items()}


def _number_shown(text: str) -> int:
    if (number := positive_int(text)) < NEGATIVES:
        raise argparse.ArgumentTypeError(
            f"expected at least {NEGATIVES}, which is a row of the ranking loss, got {text!r}"
        )
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, and return the exit status."""
    parser = command.make_parser("python -m examples.delayed_positives", __doc__)
    parser.add_argument("--shown", type=_number_shown, default=SHOWN, help="number of items shown")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="seed of everything that is drawn")
    arguments = parser.parse_args(argv)
    return command.run(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(arguments.seed)
    shown, test = (show(arguments.shown, generator) for _ in range(2))
    given = shown.features.sum(1) / 2  # a poor model
    rows = []
    for name, way in WAYS.items():
        bias, error = off(way, shown, given)
        rows.append([name, f"{bias:+z.4f} ± {error:.4f}", f"{true_loss(trained(way, shown), test):.4f}"])
    at_once, late = shown.at_once.double().mean(), shown.late.double().mean()
    print(f"{len(shown.f)} items: {at_once:.1%} liked immediately, {late:.1%} liked late")
    print(
        format_table(["stream", "loss of a given model − with final labels", "final loss after training on it"], rows)
    )
    print(f"\nnegatives' mass of rows of {NEGATIVES} shown items, relative to that of items never liked:")
    for name, value in masses(shown, torch.tanh(given) / 2).items():
        print(f"  {name}: {value:+z.1%}")


if __name__ == "__main__":
    sys.exit(main())
