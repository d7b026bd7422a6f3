"""CW as a loss for sentence-transformers 6, as a replacement for its MultipleNegativesRankingLoss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Unpack

import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import CachedLossMixin, has_static_embedding_input
from sentence_transformers.base.losses.merged_forward import embed_columns
from torch import Tensor, nn

from cw_ext import checks, reference
from cw_ext.autocast import floating_input, without_autocast
from cw_ext.collectives import gather_rows
from cw_ext.embedding_batch import Similarity, check_similarity, embedding_batch, loss_of_ids
from cw_ext.functional import cw_loss
from cw_ext.parameters import LossArguments, documents_loss_arguments, resolve

Direction = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
_DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


class _Columns(NamedTuple):
    """The embeddings of all processes."""

    queries: Tensor  # [n, D]
    documents: Tensor  # [n, D], the positives
    candidates: Tensor  # [k·n, D]: the positives, then each column of hard negatives
    own: Tensor  # [b], the rows of this process
    share: float  # factor of a row, so that the mean over the processes of their sums is the mean over all rows

    def part(self, begin: int, end: int) -> _Columns:
        """The same with only some rows of this process."""
        return self._replace(own=self.own[begin:end])


class CWMultipleNegativesRankingLoss(nn.Module):
    """The CW loss as a replacement for MultipleNegativesRankingLoss: in-batch negatives, and hard ones in columns.

    >>> from cw_ext import presets
    >>> from cw_ext.integrations.sentence_transformers import CWMultipleNegativesRankingLoss
    >>> from sentence_transformers import SentenceTransformerTrainer
    >>> loss = CWMultipleNegativesRankingLoss(model, **presets.cw(temperature=0.05))  # model: a SentenceTransformer
    >>> trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=pairs, loss=loss)
    >>> trainer.train()

    With presets.infonce(temperature=1 / scale) it has the same values and gradients as MultipleNegativesRankingLoss. It
    has no `hardness_mode`; use the loss's own weights instead (for example presets.hcl).

    A row is a query with its document. With n queries and k columns of documents (positives, then hard negatives), its
    negatives are, by direction:

    - "query_to_doc": the k·n documents except its own positive, for the query;
    - "query_to_query": the other n − 1 queries, for the query;
    - "doc_to_query": the other n − 1 queries, for the positive document;
    - "doc_to_doc": the k·(n − 1) documents of the other queries, for the positive document.
    """

    @documents_loss_arguments
    def __init__(
        self,
        model: SentenceTransformer,
        *,
        similarity: Similarity = "cosine",
        gather_across_devices: bool = False,
        directions: Sequence[Direction] = ("query_to_doc",),
        partition_mode: Literal["joint", "per_direction"] = "joint",
        **loss: Unpack[LossArguments],
    ) -> None:
        """Set the model, the arguments of MultipleNegativesRankingLoss, and the loss arguments.

        Args:
            model: computes the embeddings.
            similarity: "cosine", as in the library, "half_cosine" (½·cos), or "dot".
            gather_across_devices: use the queries and documents of all processes as candidates, if torch.distributed is
                initialised. Gradients flow back to them. Batches may differ in length: the mean over the processes is
                the mean over all rows.
            directions: see above; must include "query_to_doc".
            partition_mode: "joint" gives each row the negatives of all directions (GTE, arXiv 2308.03281). As in the
                library, with include_positive=True and "doc_to_query" the row's own pair is then included twice.
                "per_direction" is the mean of one loss per direction, without "query_to_query" and "doc_to_doc".
            **loss: see below; only reduction="mean" and return_above=False.

        Raises:
            TypeError, ValueError: the message names the argument, what was expected, and what it got.
        """
        super().__init__()
        options = resolve(loss)
        if options.reduction != "mean" or options.row.return_above:
            raise ValueError(
                "reduction must be 'mean', and return_above False, as the trainer takes one number, "
                f"got reduction={options.reduction!r}, return_above={options.row.return_above}"
            )
        check_similarity(similarity)
        checks.flags(gather_across_devices=gather_across_devices)
        _check_directions(directions, partition_mode)
        self.model = model
        self.similarity = similarity
        self.gather_across_devices = gather_across_devices
        self.directions = tuple(directions)
        self.partition_mode = partition_mode
        self.include_positive = options.row.include_positive
        self.arguments: LossArguments = loss

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            sentence_features: the queries, their documents, and any number of columns of hard negatives. Each column
                has one text per query.
            labels: not used.

        Raises:
            ValueError: fewer than two columns, or columns of different lengths.
        """
        return self.compute_loss_from_embeddings(embed_columns(self.model, sentence_features), labels)

    def compute_loss_from_embeddings(self, embeddings: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """The loss from the embeddings [B, D] of each column."""
        with without_autocast(embeddings[0].device.type if embeddings else "cpu"):
            columns = self._columns(embeddings)
            return self._rows(columns).sum() * columns.share

    def get_config_dict(self) -> dict[str, Any]:
        """The settings that the model card shows."""
        names = ("similarity", "gather_across_devices", "directions", "partition_mode")
        return {name: getattr(self, name) for name in names} | dict(self.arguments)

    def _columns(self, embeddings: Sequence[Tensor]) -> _Columns:
        """The embeddings of all processes, normalised as the similarity requires."""
        if len(embeddings) < 2:
            raise ValueError(
                f"sentence_features must hold at least two columns, queries and documents, got {len(embeddings)}"
            )
        for n, column in enumerate(embeddings):
            checks.has_shape(f"embeddings[{n}]", column, tuple(embeddings[0].shape), "that of the queries' embeddings")
        rows = torch.cat([floating_input("embeddings", column) for column in embeddings], 1)
        number, first, processes = len(rows), 0, 1
        several = self.gather_across_devices and dist.is_available() and dist.is_initialized()
        if several and (world := dist.group.WORLD) is not None:
            rows, first = gather_rows(rows, world)
            processes = dist.get_world_size()
        dtype = reference.compute_dtype(rows.dtype)
        units = [reference.unit_rows(column, self.similarity) for column in rows.to(dtype).chunk(len(embeddings), 1)]
        own = torch.arange(first, first + number, device=rows.device)
        return _Columns(units[0], units[1], torch.cat(units[1:]), own, processes / max(len(rows), 1))

    def _rows(self, columns: _Columns) -> Tensor:
        """The losses [b] of this process's rows."""
        arguments: LossArguments = {**self.arguments, "reduction": "none"}
        queries, documents = columns.queries[columns.own], columns.documents[columns.own]
        scale = reference.SCORE_SCALE[self.similarity]
        pairs = []  # by direction, the rows' vectors and what they are compared with
        for direction in self.directions:
            rows = queries if direction.startswith("query") else documents
            pairs.append((scale * rows, columns.candidates if direction.endswith("doc") else columns.queries))
        if self.partition_mode == "per_direction" or len(pairs) == 1:
            return torch.stack([_rows_against(rows, pool, columns.own, arguments) for rows, pool in pairs]).mean(0)
        return cw_loss(
            scale * (queries * documents).sum(1),
            torch.cat([rows @ pool.T for rows, pool in pairs], 1),
            neg_log_weights=torch.cat([self._left_out(direction, columns) for direction in self.directions], 1),
            **arguments,
        )

    def _left_out(self, direction: Direction, columns: _Columns) -> Tensor:
        """Log weights of a direction's pool: −inf if an entry is not a negative of the row."""
        rows, number = torch.arange(len(columns.own), device=columns.own.device), len(columns.queries)
        pool = columns.candidates if direction.endswith("doc") else columns.queries
        weights = columns.queries.new_zeros(len(rows), len(pool))
        if direction == "doc_to_query" and self.include_positive:
            return weights
        for first in range(0, len(pool) if direction == "doc_to_doc" else number, max(number, 1)):
            weights[rows, first + columns.own] = -math.inf
        return weights


class CWCachedMultipleNegativesRankingLoss(CachedLossMixin, CWMultipleNegativesRankingLoss):
    """The same loss for batches whose activations do not fit, in place of CachedMultipleNegativesRankingLoss.

    It uses the library's gradient cache (arXiv 2101.06983), which encodes the texts in parts, and again in backward.
    """

    @documents_loss_arguments
    def __init__(
        self,
        model: SentenceTransformer,
        *,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        show_progress_bar: bool = False,
        similarity: Similarity = "cosine",
        gather_across_devices: bool = False,
        directions: Sequence[Direction] = ("query_to_doc",),
        partition_mode: Literal["joint", "per_direction"] = "joint",
        **loss: Unpack[LossArguments],
    ) -> None:
        """Set the arguments of CachedMultipleNegativesRankingLoss, and the loss arguments.

        Args:
            model: see :class:`CWMultipleNegativesRankingLoss`. Not a StaticEmbedding model, which has no activations.
            mini_batch_size: the number of texts encoded at a time, and of rows whose scores exist at a time.
            mini_batch_num_tokens: instead encode texts with at most this many tokens at a time.
            show_progress_bar: show the progress over the parts.
            similarity, gather_across_devices, directions, partition_mode: see :class:`CWMultipleNegativesRankingLoss`.
            **loss: see below.

        Raises:
            TypeError, ValueError: the message names the argument, what was expected, and what it got.
        """
        super().__init__(
            model,
            similarity=similarity,
            gather_across_devices=gather_across_devices,
            directions=directions,
            partition_mode=partition_mode,
            **loss,
        )
        checks.whole_number("mini_batch_size", mini_batch_size, 1)
        if mini_batch_num_tokens is not None:
            checks.whole_number("mini_batch_num_tokens", mini_batch_num_tokens, 1)
        if has_static_embedding_input(model):
            raise ValueError(
                "model must not use StaticEmbedding, whose inputs cannot be split, got one that does: use "
                "CWMultipleNegativesRankingLoss"
            )
        self.mini_batch_size = mini_batch_size
        self.mini_batch_num_tokens = mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """See :meth:`CWMultipleNegativesRankingLoss.forward`."""
        found: Tensor = CachedLossMixin.forward_cached(self, sentence_features, labels)
        return found

    def calculate_loss(
        self, reps: Sequence[Sequence[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss from the embeddings of each column, in parts. The library's gradient cache calls this."""
        embeddings = [torch.cat([*parts]) for parts in reps]
        with without_autocast(embeddings[0].device.type):
            columns = self._columns(embeddings)
            leaves = columns
            if with_backward:
                queries, documents, candidates = (column.detach().requires_grad_() for column in columns[:3])
                leaves = columns._replace(queries=queries, documents=documents, candidates=candidates)
            total = columns.queries.new_zeros(())
            for begin in range(0, len(columns.own), self.mini_batch_size):
                part = self._rows(leaves.part(begin, begin + self.mini_batch_size)).sum() * columns.share
                if with_backward:
                    part.backward()
                    part = part.detach()
                total = total + part
            if with_backward:
                torch.autograd.backward(columns[:3], [_gradient(leaf) for leaf in leaves[:3]])
            return total

    def get_config_dict(self) -> dict[str, Any]:
        """The settings that the model card shows."""
        names = ("mini_batch_size", "mini_batch_num_tokens")
        return {name: getattr(self, name) for name in names} | super().get_config_dict()


def _rows_against(rows: Tensor, pool: Tensor, own: Tensor, arguments: LossArguments) -> Tensor:
    """The losses [b] of rows whose positives are the entries `own` of the pool, and whose negatives are all others.

    The scores of all rows and the whole pool do not have to exist at once.
    """
    batch = embedding_batch(rows, pool, own, None, None, "dot", arguments)
    return loss_of_ids(batch, torch.arange(len(pool), device=pool.device), None, sparse_grad=False, exclude=True)


def _gradient(leaf: Tensor) -> Tensor:
    """The leaf's gradient, or zeros if no row used it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _check_directions(directions: Sequence[str], partition_mode: str) -> None:
    for direction in (directions,) if isinstance(directions, str) else directions:
        checks.choice("directions", direction, _DIRECTIONS)
    if isinstance(directions, str) or "query_to_doc" not in directions or len(set(directions)) < len(directions):
        raise ValueError(f"directions must hold 'query_to_doc', and each direction once, got {directions!r}")
    checks.choice("partition_mode", partition_mode, ("joint", "per_direction"))
    if partition_mode == "per_direction" and {"query_to_query", "doc_to_doc"} & {*directions}:
        raise ValueError(
            "partition_mode must be 'joint' where directions hold 'query_to_query' or 'doc_to_doc', which do not "
            "contain the pair, got 'per_direction'"
        )
