"""Positives that come late: DEFUSE's weights (arXiv 2202.06472) on a made-up stream whose final labels are known.

Items are shown, and some are liked: at once, or only after the time that one waits for it. Those liked late are
first observed as negatives (fake ones), and come back as positives. Three things are printed:

- how far the loss of a given model on such a stream is from its loss on the labels as they are in the end;
- how good the models are that are trained on it;
- the negative mass, the mean of exp(margin/τ), of a ranking loss whose negatives are shown items that are not liked
  yet, without weights and with log(1 − z).

The probabilities are known here. In practice f_dp and f are models of their own, trained on older data.
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
    """Items that were shown, a row each, all [n] but the features."""

    features: Tensor  # [n, FEATURES]
    f_ip: Tensor  # the probability of being liked at once,
    f_dp: Tensor  # and late
    at_once: Tensor  # whether it was
    late: Tensor

    @property
    def f(self) -> Tensor:
        """The probability of being liked in the end."""
        return self.f_ip + self.f_dp

    @property
    def z(self) -> Tensor:
        """The probability that what is not liked at once will be."""
        return self.f_dp / (self.f_dp + 1 - self.f)


def show(number: int, generator: torch.Generator) -> Shown:
    """Show items whose features decide how likely they are liked, and how likely late."""
    features = torch.randn(number, FEATURES, generator=generator)
    slopes = torch.linspace(1.0, -0.5, FEATURES)
    # A product of features, so that a linear model is wrong: which one is best then depends on how much items count.
    f = torch.sigmoid(features @ slopes + features[:, 0] * features[:, 1] - 1)
    is_late = torch.sigmoid(1.5 * features[:, 0] - 0.5 * features[:, 2])
    f_ip, f_dp = f * (1 - is_late), f * is_late
    drawn = torch.rand(number, generator=generator)
    return Shown(features, f_ip, f_dp, drawn < f_ip, (drawn >= f_ip) & (drawn < f))


# What a stream makes of each item's loss as a positive and as a negative, all [n].
Way = Callable[[Shown, Tensor, Tensor], Tensor]


def in_the_end(shown: Shown, pos: Tensor, neg: Tensor) -> Tensor:
    """The final labels, for which one would have to wait."""
    return torch.where(shown.at_once | shown.late, pos, neg)


def first_seen(shown: Shown, pos: Tensor, neg: Tensor) -> Tensor:
    """The labels as first observed."""
    return torch.where(shown.at_once, pos, neg)


def come_back(shown: Shown, pos: Tensor, neg: Tensor) -> Tensor:
    """As first observed, and once more as a positive when it comes back."""
    return first_seen(shown, pos, neg) + torch.where(shown.late, pos, 0.0)


def divided(shown: Shown, pos: Tensor, neg: Tensor) -> Tensor:
    """DEFUSE's weights divided by 1 + f_dp: IP + (1 − z) RN + z FN + DP."""
    ip, rn, fn, dp = (
        delayed_weights(torch.full_like(shown.late, k, dtype=torch.long), shown.f_dp) for k in DelayedKind
    )
    waiting = (1 - shown.z) * rn * neg + shown.z * fn * pos
    return torch.where(shown.at_once, ip * pos, waiting) + torch.where(shown.late, dp * pos, 0.0)


def published(shown: Shown, pos: Tensor, neg: Tensor) -> Tensor:
    """DEFUSE's weights as they are, over their mean."""
    return (1 + shown.f_dp) * divided(shown, pos, neg) / (1 + shown.f_dp).mean()


WAYS: dict[str, Way] = {
    "labels in the end": in_the_end,
    "labels as first seen": first_seen,
    "and come-backs": come_back,
    "DEFUSE's weights": published,
    "divided by 1 + f_dp": divided,
}


def losses(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The logistic loss as a positive and as a negative."""
    return F.softplus(-logits), F.softplus(logits)


def off(way: Way, shown: Shown, logits: Tensor) -> tuple[float, float]:
    """By how much a way's mean loss is above that of the final labels, and the standard error, of the same draws."""
    pos, neg = losses(logits)
    difference = (way(shown, pos, neg) - in_the_end(shown, pos, neg)).double()
    return difference.mean().item(), (difference.std() / len(difference) ** 0.5).item()


def trained(way: Way, shown: Shown) -> nn.Linear:
    """A linear model of the features, trained on the whole stream."""
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
    """The expected loss of the final labels, with nothing drawn."""
    pos, neg = losses(model(shown.features).squeeze(1))
    return (shown.f * pos + (1 - shown.f) * neg).mean().item()


def masses(shown: Shown, scores: Tensor) -> dict[str, float]:
    """How far the mass of items not liked yet is from that of the ones never liked, relatively, over all rows.

    Args:
        shown: at least as many items as a row has; those that do not fill a row are left out.
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
        # The loss is log(N·G), N the negatives that are not masked out.
        return (loss.exp() / (log_weights > -torch.inf).sum(1)).mean()

    not_yet = torch.where(at_once, -torch.inf, 0.0)
    never = mass(torch.where(at_once | late, -torch.inf, 0.0))
    weights = {"without weights": not_yet, "log(1 − z)": not_yet + torch.log1p(-z)}
    return {name: (mass(log_weights) / never).item() - 1 for name, log_weights in weights.items()}


def _number_shown(text: str) -> int:
    if (number := positive_int(text)) < NEGATIVES:
        raise argparse.ArgumentTypeError(f"expected at least {NEGATIVES}, a row of the ranking loss, got {text!r}")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.delayed_positives",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shown", type=_number_shown, default=SHOWN, help=f"how many items; default: {SHOWN}")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of all that is drawn; default: 0")
    arguments = parser.parse_args(argv)
    generator = torch.Generator().manual_seed(arguments.seed)
    shown, test = (show(arguments.shown, generator) for _ in range(2))
    given = shown.features.sum(1) / 2  # not a good model
    rows = []
    for name, way in WAYS.items():
        bias, error = off(way, shown, given)
        rows.append([name, f"{bias:+z.4f} ± {error:.4f}", f"{true_loss(trained(way, shown), test):.4f}"])
    at_once, late = shown.at_once.double().mean(), shown.late.double().mean()
    print(f"{len(shown.f)} items, {at_once:.1%} liked at once, {late:.1%} late")
    print(
        format_table(["the stream", "loss of a given model, − in the end", "loss in the end when trained on it"], rows)
    )
    print(f"\nnegative mass of rows of {NEGATIVES} shown items, against that of those never liked:")
    for name, value in masses(shown, torch.tanh(given) / 2).items():
        print(f"  {name}: {value:+z.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
