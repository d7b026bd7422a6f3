"""The RePlay adapter against the package's own losses, and in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import generator
from memory import peak_of
from torch import Tensor, nn

pytest.importorskip("replay.nn.loss", reason="replay-rec[torch] is not installed (.ci/integrations does it)")

import lightning  # noqa: E402
import pandas as pd  # noqa: E402
from movielens import assert_same_loss, sequences  # noqa: E402
from page import run_block_of  # noqa: E402
from replay.data import FeatureHint, FeatureSource, FeatureType  # noqa: E402
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema  # noqa: E402
from replay.data.nn.parquet.parquet_module import ParquetModule  # noqa: E402
from replay.nn.lightning import LightningModule  # noqa: E402
from replay.nn.lightning.callback import ComputeMetricsCallback  # noqa: E402
from replay.nn.lightning.optimizer import OptimizerFactory  # noqa: E402
from replay.nn.lightning.postprocessor import SeenItemsFilter  # noqa: E402
from replay.nn.loss import CESampled, CESampledWeighted, GroupedCESampled  # noqa: E402
from replay.nn.sequential import SasRec, TwoTower  # noqa: E402
from replay.nn.transform import (  # noqa: E402
    GroupedUniformNegativeSamplingTransform,
    UniformNegativeSamplingTransform,
)
from replay.nn.transform.template import make_default_sasrec_transforms  # noqa: E402

from cw_ext import presets  # noqa: E402
from cw_ext.integrations.replay import CWSampled, GroupedCWSampled  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the package's and Lightning's, of what a run of a second leaves out

ITEMS = 50
DIM = 16
BATCH, LENGTH = 6, 9
IGNORED = -100


def schema_of(num_items: int, dim: int) -> TensorSchema:
    return TensorSchema(
        TensorFeatureInfo(
            "item_id",
            is_seq=True,
            feature_type=FeatureType.CATEGORICAL,
            embedding_dim=dim,
            padding_value=num_items,
            cardinality=num_items,
            feature_hint=FeatureHint.ITEM_ID,
            feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
        )
    )


class Items(dict[str, Tensor]):
    """What TwoTower reads of the items: their ids alone."""

    feature_names = ("item_id",)


def model_of(
    kind: str, num_items: int = ITEMS, dim: int = DIM, length: int = LENGTH, dropout: float = 0.0
) -> nn.Module:
    shape = {"embedding_dim": dim, "num_heads": 1, "num_blocks": 1, "max_sequence_length": length, "dropout": dropout}
    schema = schema_of(num_items, dim)
    if kind == "SasRec":
        return SasRec.from_params(schema, **shape)
    return TwoTower.from_params(schema, Items(item_id=torch.arange(num_items)), **shape)


def item_weights_of(model: nn.Module) -> Any:
    return model.body.embedder.get_item_weights if isinstance(model, SasRec) else model.body.item_tower


def with_loss(model: nn.Module, loss: nn.Module) -> nn.Module:
    """The model with another loss, put in as its constructor does it."""
    model.loss = loss
    loss.logits_callback = model.get_logits
    return model


def batch_of(negatives: tuple[int, ...], positives: int = 1, seed: int = 0) -> dict[str, Any]:
    """Sessions padded on the left; among the negatives padding, and positives of their own position."""
    g = generator(seed)
    items = torch.randint(ITEMS, (BATCH, LENGTH), generator=g)
    padding_mask = torch.arange(LENGTH) >= torch.tensor([0, 3, 8, 1, 0, 5]).unsqueeze(1)
    items[~padding_mask] = ITEMS
    labels = torch.randint(ITEMS, (BATCH, LENGTH, positives), generator=g)
    target_padding_mask = padding_mask.unsqueeze(-1) & (torch.rand(labels.shape, generator=g) < 0.8)
    labels[~target_padding_mask] = ITEMS
    negative_labels = torch.randint(ITEMS, negatives, generator=g)
    negative_labels[..., 3] = IGNORED
    if len(negatives) == 3:
        negative_labels[:, :, 5] = labels[:, :, -1] % ITEMS
    return {
        "feature_tensors": {"item_id": items, "weight": torch.rand(labels.shape, generator=g)},
        "padding_mask": padding_mask,
        "positive_labels": labels,
        "negative_labels": negative_labels,
        "target_padding_mask": target_padding_mask,
    }


@pytest.mark.parametrize("table", [True, False], ids=["table", "logits"])
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
@pytest.mark.parametrize("positives", [1, 3])
@pytest.mark.parametrize("negatives", [(20,), (BATCH, 20), (BATCH, LENGTH, 20)], ids=["shared", "session", "position"])
@pytest.mark.parametrize("kind", ["SasRec", "TwoTower"])
def test_infonce_is_the_sampled_cross_entropy(
    kind: str, negatives: tuple[int, ...], positives: int, weighted: bool, table: bool
) -> None:
    torch.manual_seed(0)
    own, adapted = model_of(kind), model_of(kind)
    adapted.load_state_dict(own.state_dict())
    name = {"feature_name": "weight"} if weighted else {}
    with_loss(own, (CESampledWeighted if weighted else CESampled)(**name))
    with_loss(
        adapted, CWSampled(item_weights_of(adapted) if table else None, **name, **presets.infonce(temperature=1.0))
    )
    batch = batch_of(negatives, positives)
    own_negatives = batch["negative_labels"].view(*negatives[:-1], *(1,) * (4 - len(negatives)), negatives[-1])
    assert (batch["positive_labels"].unsqueeze(-1) == own_negatives).any(), "no negative is a positive of its position"
    losses = [model.train()(**batch)["loss"] for model in (adapted, own)]
    assert_same_loss((losses[0], adapted), (losses[1], own))


def pools_of(groups: int) -> Tensor:
    """A pool of distinct items for each group, as the package asks."""
    return torch.stack([torch.randperm(ITEMS, generator=generator(g))[:20] for g in range(groups)])


@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("table", [True, False], ids=["table", "logits"])
@pytest.mark.parametrize("group", [1, 2, 4, BATCH, BATCH + 1])
@pytest.mark.parametrize("kind", ["SasRec", "TwoTower"])
def test_infonce_is_the_grouped_cross_entropy(kind: str, group: int, table: bool, lookup: bool) -> None:
    """Groups of different numbers of targets, and a last one of fewer sessions; by both ways to mask collisions."""
    torch.manual_seed(0)
    own, adapted = model_of(kind), model_of(kind)
    adapted.load_state_dict(own.state_dict())
    with_loss(own, GroupedCESampled(group, cardinality=ITEMS if lookup else None))
    weights = item_weights_of(adapted) if table else None
    with_loss(adapted, GroupedCWSampled(group, weights, **presets.infonce(temperature=1.0)))
    batch = batch_of((20,)) | {"negative_labels": pools_of(-(-BATCH // group))}
    batch["target_padding_mask"][:, -1] = True  # the package wants a target in every group
    batch["positive_labels"][:, -1] %= ITEMS
    losses = [model.train()(**batch)["loss"] for model in (adapted, own)]
    assert_same_loss((losses[0], adapted), (losses[1], own))


def test_grouped_pools_with_weights_and_several_positives() -> None:
    """The mean of what CWSampled makes of each group; one without targets is left out."""
    torch.manual_seed(0)
    grouped, single = model_of("SasRec").train(), model_of("SasRec").train()
    single.load_state_dict(grouped.state_dict())
    arguments = {"feature_name": "weight", **presets.cw(temperature=0.5, prior=0.1)}
    with_loss(grouped, GroupedCWSampled(2, item_weights_of(grouped), **arguments))
    with_loss(single, CWSampled(item_weights_of(single), **arguments))
    batch = batch_of((20,), positives=3) | {"negative_labels": pools_of(3)}
    batch["target_padding_mask"][2:4] = False
    expected = []
    for group in (0, 2):
        rows = slice(2 * group, 2 * group + 2)
        part: dict[str, Any] = {name: batch[name][rows] for name in batch if name != "feature_tensors"}
        part["feature_tensors"] = {name: tensor[rows] for name, tensor in batch["feature_tensors"].items()}
        expected.append(single(**part | {"negative_labels": batch["negative_labels"][group]})["loss"])
    assert_same_loss((grouped(**batch)["loss"], grouped), (torch.stack(expected).mean(), single))


def test_table_and_logits_agree() -> None:
    """With everything that reaches the loss: weights, correction, several positives, a negative's own row weight."""
    torch.manual_seed(0)
    by_table, by_logits = model_of("SasRec"), model_of("SasRec")
    by_logits.load_state_dict(by_table.state_dict())
    arguments = {"feature_name": "weight", **presets.cw(temperature=0.5, prior=0.1, confidence_temperature=2.0)}
    with_loss(by_table, CWSampled(item_weights_of(by_table), **arguments))
    with_loss(by_logits, CWSampled(**arguments))
    batch = batch_of((BATCH, LENGTH, 20), positives=3)
    losses = [model.train()(**batch)["loss"] for model in (by_table, by_logits)]
    assert_same_loss((losses[0], by_table), (losses[1], by_logits))


def test_other_positives_are_extra_positives() -> None:
    """The correction of a target takes the other positives of its position, and no padding."""
    torch.manual_seed(0)
    model = model_of("SasRec").train()
    with_loss(model, CWSampled(temperature=0.5, prior=0.2, reduction="none"))
    batch = batch_of((20,), positives=3)
    with torch.no_grad():
        states = model.body(batch["feature_tensors"], batch["padding_mask"])
        found = model(**batch)["loss"]
        logits = model.get_logits(states)  # [B, L, I]
        at = batch["target_padding_mask"].nonzero().tolist()
        for value, (session, position, place) in zip(found.tolist(), at, strict=True):
            labels = batch["positive_labels"][session, position]
            kept = batch["target_padding_mask"][session, position]
            scores = logits[session, position]
            others = [label for i, label in enumerate(labels.tolist()) if kept[i] and i != place]
            negatives = [j for j in batch["negative_labels"].tolist() if j != IGNORED and j not in labels.tolist()]
            positive = scores[labels[place]]

            def terms(ids: list[int], positive: Tensor = positive, scores: Tensor = scores) -> Tensor:
                margins = scores[ids] - positive
                return torch.sigmoid(-margins / 0.5) * torch.exp(margins / 0.5)

            a = terms(negatives).mean()
            c = terms(others).mean() if others else torch.tensor(0.5)
            g = torch.maximum(a - 0.2 * c, 0.3 * a) / 0.8
            assert value == pytest.approx(torch.log(len(negatives) * g).item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("table", [True, False], ids=["table", "logits"])
def test_autocast(table: bool) -> None:
    """States that autocast made bf16 meet the fp32 table; the loss is that of fp32 up to their rounding."""
    torch.manual_seed(0)
    model = model_of("SasRec").train()
    with_loss(model, CWSampled(item_weights_of(model) if table else None, temperature=1.0))
    batch = batch_of((BATCH, LENGTH, 20))
    full = model(**batch)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(**batch)["loss"]
    half.backward()
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.05, atol=0)


@pytest.mark.parametrize("grouped", [False, True])
def test_no_targets(grouped: bool) -> None:
    """A batch in which nothing counts has loss 0 and no gradient, not NaN."""
    model = model_of("SasRec").train()
    weights = item_weights_of(model)
    with_loss(model, GroupedCWSampled(2, weights) if grouped else CWSampled(weights))
    batch = batch_of((20,))
    if grouped:
        batch["negative_labels"] = pools_of(BATCH // 2)
    batch["target_padding_mask"] = torch.zeros_like(batch["target_padding_mask"])
    loss = model(**batch)["loss"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())


@pytest.mark.usefixtures("kernels")
def test_negatives_are_not_gathered() -> None:
    """With the table, nothing of the size of the embeddings of the negatives is allocated."""
    dim, number = 64, 200
    model = model_of("SasRec", dim=dim).train()
    with_loss(model, CWSampled(item_weights_of(model)))
    batch = batch_of((BATCH, LENGTH, number))
    targets = batch["target_padding_mask"].sum().item()
    _, largest = peak_of(torch.device("cpu"))(lambda: model(**batch)["loss"].backward())
    assert largest < targets * number * dim * 4 / 3


@pytest.mark.parametrize("kind", ["table", "logits", "grouped"])
def test_trains_on_movielens(kind: str, tmp_path: Path) -> None:
    """Recall@20 of each user's last item, by the package's own data module, transforms, trainer module and metrics."""
    found, num_items = sequences(300)
    history = pd.DataFrame({"item_id": [items[:-1] for items in found]})
    history.to_parquet(tmp_path / "train.parquet")
    held_out = {"ground_truth": [items[-1:] for items in found], "seen_ids": history["item_id"]}
    history.assign(**held_out).to_parquet(tmp_path / "validate.parquet")
    length = 40
    transforms = make_default_sasrec_transforms(schema_of(num_items, 32))
    sampling = UniformNegativeSamplingTransform(num_items, 64)
    if kind == "grouped":
        sampling = GroupedUniformNegativeSamplingTransform(num_items, 64, group_size=10)
    transforms["train"].append(sampling)
    longest = max(map(len, found))
    data = ParquetModule(
        batch_size=32,
        metadata={
            "train": {"item_id": {"shape": length + 1, "padding": num_items}},
            "validate": {
                "item_id": {"shape": length, "padding": num_items},
                "ground_truth": {"shape": 1, "padding": -1},
                "seen_ids": {"shape": longest, "padding": -1},
            },
        },
        transforms=transforms,
        train_path=str(tmp_path / "train.parquet"),
        validate_path=str(tmp_path / "validate.parquet"),
    )
    torch.manual_seed(0)
    body = model_of("SasRec", num_items, 32, length, dropout=0.1).body
    arguments = presets.cw(temperature=1.0, prior=0.02)
    weights = None if kind == "logits" else body.embedder.get_item_weights
    loss = GroupedCWSampled(10, weights, **arguments) if kind == "grouped" else CWSampled(weights, **arguments)
    model = SasRec(body, loss)
    metrics = ComputeMetricsCallback(
        metrics=["recall"], ks=[20], postprocessors=[SeenItemsFilter(num_items)], verbose=False
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=5,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[metrics],
    )
    module = LightningModule(model, OptimizerFactory(learning_rate=0.005))
    untrained = trainer.validate(module, data, verbose=False)[0]["recall@20"]
    trainer.fit(module, data)
    trained = trainer.callback_metrics["recall@20"].item()
    assert trained > 3 * max(untrained, 20 / num_items)


@pytest.mark.parametrize("shape", [(BATCH + 1, 20), (BATCH, LENGTH + 1, 20), (BATCH, LENGTH, 1, 20)])
def test_bad_shape_of_negatives(shape: tuple[int, ...]) -> None:
    model = with_loss(model_of("SasRec"), CWSampled()).train()
    batch = batch_of((20,)) | {"negative_labels": torch.zeros(shape, dtype=torch.int64)}
    with pytest.raises(ValueError, match=r"negative_labels must have shape \[N\], \[B, N\] or \[B, L, N\]"):
        model(**batch)


@pytest.mark.parametrize("shape", [(20,), (2, 20), (BATCH, 20), (BATCH // 2, 1, 20)])
def test_bad_shape_of_pools(shape: tuple[int, ...]) -> None:
    model = with_loss(model_of("SasRec"), GroupedCWSampled(2)).train()
    batch = batch_of((20,)) | {"negative_labels": torch.zeros(shape, dtype=torch.int64)}
    with pytest.raises(ValueError, match=r"negative_labels must have shape \[3, N\]"):
        model(**batch)


@pytest.mark.parametrize(
    "arguments", [{"logical_batch_size": 0}, {"reduction": "sum"}, {"reduction": "none"}, {"prior": 1}]
)
def test_bad_arguments_of_groups(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        GroupedCWSampled(**{"logical_batch_size": 2} | arguments)


@pytest.mark.parametrize(
    ("arguments", "error"), [({"tau": 1.0}, TypeError), ({"temperature": 0.0}, ValueError), ({"prior": 1}, ValueError)]
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        CWSampled(**arguments)


def test_the_block_of_the_page() -> None:
    """The model of docs/guides/other-libraries.md learns from a batch."""
    names = run_block_of(__file__, body=model_of("SasRec").body)
    loss = names["model"].train()(**batch_of((BATCH, LENGTH, 20)))["loss"]
    loss.backward()
    assert loss.isfinite() and isinstance(names["model"].loss, CWSampled)
