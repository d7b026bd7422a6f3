"""The losses that are compared, each as a step on made-up states; a code base is imported by what needs it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cw_ext import presets
from cw_ext.integrations import generative_recommenders, recsys_examples

TEMPERATURE = 0.05
# Targets, negatives, dimension, items. Of MovieLens a part of a batch's targets, which are up to 128 · 200.
SHAPES = {
    "meta": {"ml-1m": (6400, 128, 50, 3706), "ml-20m": (6400, 128, 256, 26744), "amzn-books": (1400, 512, 64, 695762)},
    "nvidia": {"ml-20m": (6400, 128, 256, 26744)},
}
TINY = (8, 4, 8, 20)
LOSSES = {
    "meta": ("softmax", "softmax, checkpointed", "infonce", "cw"),
    "nvidia": ("softmax", "infonce", "cw"),
}


def loss_of_meta(loss: str, table: nn.Embedding, negatives: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean loss of states [T, D] and the ids of their targets [T]."""
    from generative_recommenders.research.modeling.sequential.autoregressive_losses import LocalNegativesSampler
    from generative_recommenders.research.modeling.sequential.losses.sampled_softmax import SampledSoftmaxLoss
    from generative_recommenders.research.modeling.similarity_module import SequentialEncoderWithLearnedSimilarityModule
    from generative_recommenders.research.rails.similarities.dot_product_similarity_fn import DotProductSimilarity
    from torch.utils.checkpoint import checkpoint

    items = table.num_embeddings - 1
    sampler = LocalNegativesSampler(items, table, list(range(1, items + 1)), l2_norm=True, l2_norm_eps=1e-6)
    model = SequentialEncoderWithLearnedSimilarityModule(DotProductSimilarity())
    if loss.startswith("softmax"):
        criterion = SampledSoftmaxLoss(negatives, TEMPERATURE, model)
    else:
        arguments = presets.cw(TEMPERATURE) if loss == "cw" else presets.infonce(TEMPERATURE)
        criterion = generative_recommenders.CWSampledLoss(negatives, model, **arguments)

    def run(states: Tensor, ids: Tensor) -> Tensor:
        arguments = (states, ids, table(ids), torch.ones(len(ids)), sampler)
        if loss == "softmax, checkpointed":  # as its activation_checkpoint does
            return checkpoint(criterion.jagged_forward, *arguments, use_reentrant=False)[0]
        return criterion.jagged_forward(*arguments)[0]

    return run


def loss_of_nvidia(loss: str, table: nn.Embedding, negatives: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The same, as RetrievalGR makes it."""
    from modules.negatives_sampler import InBatchNegativesSampler
    from modules.output_postprocessors import L2NormEmbeddingPostprocessor
    from modules.sampled_softmax_loss import SampledSoftmaxLoss
    from modules.similarity.dot_product import DotProductSimilarity

    sampler = InBatchNegativesSampler(L2NormEmbeddingPostprocessor(table.embedding_dim), dedup_embeddings=True)
    if loss == "softmax":
        criterion = SampledSoftmaxLoss(negatives, TEMPERATURE, sampler, DotProductSimilarity(torch.bfloat16))
    else:
        arguments = presets.cw(TEMPERATURE) if loss == "cw" else presets.infonce(TEMPERATURE)
        criterion = recsys_examples.CWSampledLoss(negatives, sampler, **arguments)

    def run(states: Tensor, ids: Tensor) -> Tensor:
        return criterion(states, ids, table(ids)).mean()

    return run


def step_of(code_base: str, loss: str, shape: tuple[int, int, int, int]) -> Callable[[], object]:
    """A step, which computes the loss of a batch and the gradients of its states and of the table."""
    targets, negatives, dim, items = shape
    generator = torch.Generator().manual_seed(0)
    table = nn.Embedding(items + 1, dim, padding_idx=0)
    states = nn.functional.normalize(torch.randn(targets, dim, generator=generator), dim=1).requires_grad_()
    ids = torch.randint(1, items + 1, (targets,), generator=generator)
    run = {"meta": loss_of_meta, "nvidia": loss_of_nvidia}[code_base](loss, table, negatives)

    def step() -> None:
        states.grad = table.weight.grad = None
        run(states, ids).backward()

    return step
