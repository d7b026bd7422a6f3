"""Train two encoders for pairs of images by CW in both directions, with a learned temperature.

    python -m examples.two_towers
    torchrun --nproc-per-node 2 -m examples.two_towers

A pair is two views of a handwritten digit from scikit-learn, one for each encoder. Its negatives are the other pairs of
the batch, including those on other processes. Several pairs can show the same image; `item_ids` marks them, so that
they are not each other's negatives. The encoders take a batch in parts, so that memory holds the activations of one
part only.

Don't leave a temperature unbounded. The encoders see the pairs many times and memorize them. From then on a lower
temperature always lowers the loss, while new images are found less often. The temperature here therefore has a lower
bound, as in CLIP, and ends there. Choose the bound as you would choose a fixed temperature. --lowest-temperature 0
shows what happens without one.

The program prints how often a new image's second view is among the ten nearest to its first view. It needs
scikit-learn.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common import command
from benchmarks.common.arguments import non_negative_float, non_negative_int, positive_int
from benchmarks.image_pairs.pairs import Split, augment, load_split, make_encoder
from cw_ext import cw_loss_in_batch, encode_in_micro_batches, presets

PAIRS_PER_IMAGE = 2
BATCH = 110
MICRO_BATCH = 32
NEAREST = 10


class Pairs(NamedTuple):
    """Two views of some images."""

    images: Tensor  # [n], ids
    first: Tensor  # [n, 8, 8]
    second: Tensor  # [n, 8, 8]

    @classmethod
    def of(cls, split: Split, images: Tensor, generator: torch.Generator) -> Pairs:
        """Return views of the images with these ids."""
        return cls(images, *(augment(split.images[images], generator) for _ in range(2)))


class TwoTowers(nn.Module):
    """An encoder for each side of a pair, and the temperature of their scores."""

    def __init__(self, seed: int, temperature: float = 0.1, lowest: float = 0.1) -> None:
        super().__init__()
        self.first, self.second = make_encoder(2 * seed), make_encoder(2 * seed + 1)
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())
        self.lowest = lowest

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return embeddings [B, D] of both sides' images [B, 8, 8], and τ."""
        queries = encode_in_micro_batches(self.first, first, MICRO_BATCH)
        items = encode_in_micro_batches(self.second, second, MICRO_BATCH)
        return queries, items, self.log_temperature.exp()

    @torch.no_grad()
    def keep_bound(self) -> None:
        """Apply the bound, after a step of the optimizer: τ can rise again, unlike one that is clamped in forward."""
        self.log_temperature.clamp_(min=math.log(self.lowest) if self.lowest > 0 else -math.inf)


def train(pairs: Pairs, model: TwoTowers, epochs: int, seed: int) -> list[float]:
    """Train on the pairs; each process takes its share of every batch.

    Returns:
        The loss of each step, for the whole batch.
    """
    group = dist.group.WORLD if dist.is_initialized() else None
    rank, processes = (dist.get_rank(), dist.get_world_size()) if group else (0, 1)
    wrapped = DistributedDataParallel(model) if group else model
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(seed)  # the same in all processes
    losses = []
    for _ in range(epochs):
        for batch in torch.randperm(len(pairs.images), generator=order).split(BATCH):
            images, first, second = (part[batch[rank::processes]] for part in pairs)
            queries, items, temperature = wrapped(first, second)
            loss = cw_loss_in_batch(
                queries,
                items,
                torch.arange(len(images)),
                item_ids=images,
                symmetric=True,
                process_group=group,
                log_q_correction=False,  # all images are in equally many pairs
                **presets.cw(temperature),
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.keep_bound()
            value = loss.detach()
            if group:
                dist.all_reduce(value)
            losses.append(value.item() / processes)
    return losses


@torch.no_grad()
def recall(pairs: Pairs, model: TwoTowers) -> float:
    """Return the share of pairs whose second view is among the NEAREST to the first view."""
    queries, items = F.normalize(model.first(pairs.first), dim=1), F.normalize(model.second(pairs.second), dim=1)
    found = (queries @ items.T).topk(NEAREST).indices == torch.arange(len(queries)).unsqueeze(1)
    return found.any(1).float().mean().item()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = command.make_parser("python -m examples.two_towers", __doc__, "bad arguments or no scikit-learn")
    parser.add_argument("--epochs", type=positive_int, default=30, help="epochs to train")
    parser.add_argument(
        "--seed",
        type=non_negative_int,
        default=0,
        help="seed of the split, the views, the initial weights and the order",
    )
    bound = "lower bound of τ, on the half cosine; 0: no bound"
    parser.add_argument("--lowest-temperature", type=non_negative_float, default=0.1, help=bound)
    arguments = parser.parse_args(argv)
    return command.run(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    split = load_split(arguments.seed)
    if dist.is_available() and dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    generator = torch.Generator().manual_seed(arguments.seed)
    seen = Pairs.of(split, split.train.repeat(PAIRS_PER_IMAGE), generator)
    new = Pairs.of(split, split.test, generator)
    model = TwoTowers(arguments.seed, lowest=arguments.lowest_temperature)
    before = recall(new, model)
    losses = train(seen, model, arguments.epochs, arguments.seed)
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(f"loss: {losses[0]:.3f} at the first step, {losses[-1]:.3f} after {len(losses)} steps")
        print(f"temperature: {model.log_temperature.exp().item():.3f}")
        print(f"recall@{NEAREST} of {len(new.images)} new images: {before:.3f} before, {recall(new, model):.3f} after")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
