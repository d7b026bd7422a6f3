"""CW for RecBole's general recommenders (BPR, LightGCN). For recbole 1.2, whose interfaces it follows."""

from __future__ import annotations

from typing import Any, Protocol, Unpack

import torch
from torch import Tensor, nn

from cw_ext.embedding_batch import Similarity
from cw_ext.interactions import Interactions
from cw_ext.modules import CWSampledLoss
from cw_ext.parameters import LossArguments, documents_loss_arguments

PADDING = 0  # RecBole's id of no user and no item


class Batch(Protocol):
    """RecBole's Interaction: columns by name."""

    @property
    def columns(self) -> Any: ...

    def __getitem__(self, column: str) -> Tensor: ...


class Dataset(Protocol):
    """The part of RecBole's Dataset that is used. A model gets the training split."""

    config: Any
    inter_feat: Batch
    uid_field: str
    iid_field: str
    label_field: str
    user_num: int
    item_num: int


class CWSampled(nn.Module):
    """The CW loss on a RecBole batch. It draws its own negatives, so RecBole draws none.

    >>> from cw_ext import presets
    >>> from cw_ext.integrations.recbole import CWSampled
    >>> from recbole.model.general_recommender import BPR
    >>> class CWMF(BPR):
    ...     def __init__(self, config, dataset):
    ...         super().__init__(config, dataset)
    ...         self.cw = CWSampled(dataset, 256, **presets.cw(temperature=1.0))
    ...
    ...     def calculate_loss(self, interaction):
    ...         return self.cw(self.user_embedding(interaction[self.USER_ID]), self.item_embedding, interaction)

    Switch off RecBole's negatives with `train_neg_sample_args: ~` in YAML, or None in a dict. (In YAML, `None` is a
    string, which RecBole refuses.) RecBole looks up a model's settings by the name of its class, so set them for your
    class: `embedding_size`, and `n_layers` for LightGCN.

    A row with a label of 0 or below is not a positive. It is not trained on, and its item may be drawn as a negative.
    `threshold: {rating: 4}` gives low ratings such labels. RecBole's own losses and full ranking metrics do not read
    the label. To leave such rows out everywhere, also in RecBole's metrics, use `val_interval: {rating: "[4,inf)"}`.

    Item 0, which is RecBole's padding, is never drawn.
    """

    @documents_loss_arguments
    def __init__(
        self, dataset: Dataset, num_negatives: int, *, similarity: Similarity = "dot", **loss: Unpack[LossArguments]
    ) -> None:
        """Set the training split, the number of negatives per row, the score and the loss arguments.

        Args:
            dataset: the dataset that RecBole passes to a model's constructor.
            num_negatives: N, uniform draws per row from the items that are not known positives of its user.
            similarity: "dot", which is RecBole's score, or as for :func:`cw_ext.sampled_cw_loss`. A model that trains
                with another score must also rank by it (`predict`, `full_sort_predict`).
            **loss: see below.

        Raises:
            TypeError, ValueError: an argument is invalid, or a pointwise model has RecBole's negatives, which give
                every row of the data the label 1. The message names the argument, what was expected, and what it got.
        """
        super().__init__()
        negatives = dataset.config["train_neg_sample_args"]
        if dataset.config["MODEL_INPUT_TYPE"].name == "POINTWISE" and negatives["distribution"] != "none":
            raise ValueError(
                "train_neg_sample_args must be None (in YAML ~) for a pointwise model, as RecBole's own negatives set "
                f"every label to 1, got {negatives}"
            )
        self.fields = (dataset.uid_field, dataset.iid_field, dataset.label_field)
        self.criterion = CWSampledLoss(known_positives(dataset), num_negatives, similarity=similarity, **loss)

    def forward(self, queries: Tensor, items: Tensor | nn.Embedding, interaction: Batch) -> Tensor:
        """The loss of a batch.

        Args:
            queries: [B, D], the embedding of each row's user.
            items: [I, D], the table of all items, or its nn.Embedding.
            interaction: the batch of B rows that `calculate_loss` gets.
        """
        user, item, label = self.fields
        pos_ids = interaction[item]
        if label in interaction.columns:
            pos_ids = pos_ids.masked_fill(interaction[label] <= 0, -1)
        loss: Tensor = self.criterion(queries, items, interaction[user], pos_ids)
        return loss


def known_positives(dataset: Dataset) -> Interactions:
    """The positives of the training split. The padding is a known positive of every user, so it is never drawn."""
    rows = dataset.inter_feat
    users, items = rows[dataset.uid_field], rows[dataset.iid_field]
    if dataset.label_field in rows.columns:
        positive = rows[dataset.label_field] > 0
        users, items = users[positive], items[positive]
    everybody = torch.arange(dataset.user_num)
    return Interactions(
        torch.cat([users, everybody]),
        torch.cat([items, torch.full_like(everybody, PADDING)]),
        num_queries=dataset.user_num,
        num_items=dataset.item_num,
    )
