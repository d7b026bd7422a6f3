"""The RecTools adapter against the package's own loss, and in training."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

pytest.importorskip(
    "rectools.models.nn.transformers.lightning", reason="rectools[torch] is not installed (.ci/integrations does it)"
)

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from memory import peak_of  # noqa: E402
from movielens import assert_same_loss, sequences  # noqa: E402
from page import run_block_of  # noqa: E402
from rectools import Columns  # noqa: E402
from rectools.dataset import Dataset  # noqa: E402
from rectools.metrics import Recall, calc_metrics  # noqa: E402
from rectools.models import BERT4RecModel, HSTUModel, SASRecModel  # noqa: E402
from rectools.models.nn.transformers.base import TransformerModelBase  # noqa: E402
from rectools.models.nn.transformers.similarity import SimilarityModuleBase  # noqa: E402

from cw_ext import presets  # noqa: E402
from cw_ext.integrations.rectools import CWLightningModule  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, of what a run of a second leaves out
every_kind = pytest.mark.parametrize("kind", [SASRecModel, BERT4RecModel, HSTUModel])
# HSTU recommends from times of its own, and is no different in training.
recommending_kinds = pytest.mark.parametrize("kind", [SASRecModel, BERT4RecModel])
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def last_of_each(interactions: pd.DataFrame, **_: Any) -> np.ndarray:
    """The validation mask: each user's last interaction."""
    return ~interactions.duplicated(Columns.User, keep="last").to_numpy()


def interactions_of(num_users: int) -> pd.DataFrame:
    found, _ = sequences(num_users)
    rows = [(user, item, 1.0, time) for user, items in enumerate(found) for time, item in enumerate(items)]
    frame = pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Weight, Columns.Datetime])
    frame[Columns.Datetime] = pd.to_datetime(frame[Columns.Datetime], unit="s")
    return frame


def model_of(kind: type[TransformerModelBase], loss: str, **arguments: Any) -> TransformerModelBase:
    small: dict[str, Any] = {
        "n_negatives": 64,
        "n_blocks": 1,
        "n_heads": 1,
        "n_factors": 32,
        "session_max_len": 40,
        "batch_size": 32,
        "lr": 0.005,
    }
    if loss == "CW":
        small["lightning_module_type"] = CWLightningModule
    if kind is BERT4RecModel:
        small["mask_prob"] = 0.3
    return kind(loss=loss, **(small | arguments))


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return interactions_of(300)


@every_kind
@pytest.mark.parametrize("distance", ["dot", "cosine"])
@pytest.mark.parametrize("step", ["training_step", "validation_step"])
def test_infonce_is_the_sampled_softmax(
    kind: type[TransformerModelBase], distance: str, step: str, frame: pd.DataFrame
) -> None:
    """On the package's batches, which are padded, with weights of which some are 0."""
    few = frame[frame[Columns.User] < 40].copy()
    few[Columns.Weight] = np.random.default_rng(0).choice([0.0, 0.5, 1.0, 2.0], len(few))
    few.loc[last_of_each(few), Columns.Weight] = 2.0  # the package finds a validation target by its weight
    dataset = Dataset.construct(few)
    arguments: dict[str, Any] = {
        "epochs": 0,
        "dropout_rate": 0.0,
        "get_val_mask_func": last_of_each,
        "similarity_module_kwargs": {"distance": distance},
    }
    torch.manual_seed(0)
    np.random.seed(0)
    own = model_of(kind, "sampled_softmax", **arguments).fit(dataset)
    adapted = model_of(kind, "CW", lightning_module_kwargs=presets.infonce(1.0), **arguments).fit(dataset)
    modules = (adapted.lightning_model, own.lightning_model)
    for module in modules:
        module.train()
        module.log = lambda *args, **kwargs: None  # there is no trainer
    own.lightning_model.on_train_start()  # its initialisation, with which no row's loss rounds to 0
    adapted.torch_model.load_state_dict(own.torch_model.state_dict())

    loader = own.data_preparator.get_dataloader_train()
    if step == "validation_step":
        loader = own.data_preparator.get_dataloader_val()
    batch = next(iter(loader))
    if step == "training_step":
        padded = batch["y"] == 0
        assert padded.any() and not padded.all() and (batch["yw"][~padded] == 0).any()
    results = [getattr(module, step)(batch, 0) for module in modules]
    if step == "validation_step":
        outputs = results[0]
        assert outputs["pos_neg_logits"].shape == (len(batch["y"]), 1 + 64)
        results = [result["loss"] for result in results]
    assert_same_loss((results[0], adapted.torch_model), (results[1], own.torch_model))


@every_kind
@pytest.mark.usefixtures("kernels")
def test_negatives_are_not_gathered(kind: type[TransformerModelBase], frame: pd.DataFrame) -> None:
    """A step allocates nothing of the size of the embeddings of its negatives."""
    model = model_of(kind, "CW", epochs=0, n_negatives=512).fit(Dataset.construct(frame))
    batch = next(iter(model.data_preparator.get_dataloader_train()))
    targets = torch.count_nonzero(batch["y"]).item()
    _, largest = peak_of(torch.device("cpu"))(lambda: model.lightning_model._calc_custom_loss(batch, 0).backward())
    assert largest < targets * 512 * model.n_factors * 4 / 3


@every_kind
def test_autocast(kind: type[TransformerModelBase], frame: pd.DataFrame) -> None:
    """Sessions that autocast made bf16 meet the fp32 table; the loss is that of fp32 up to their rounding."""
    torch.manual_seed(0)
    np.random.seed(0)
    model = model_of(kind, "CW", epochs=0, dropout_rate=0.0).fit(Dataset.construct(frame))
    model.lightning_model.on_train_start()
    batch = next(iter(model.data_preparator.get_dataloader_train()))
    full = model.lightning_model._calc_custom_loss(batch, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.lightning_model._calc_custom_loss(batch, 0)
    half.backward()
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.05, atol=0)


@every_kind
def test_no_targets(kind: type[TransformerModelBase], frame: pd.DataFrame) -> None:
    """A batch in which nothing is to be predicted (BERT4Rec may mask no item) has loss 0, not NaN."""
    model = model_of(kind, "CW", epochs=0).fit(Dataset.construct(frame[frame[Columns.User] < 40]))
    batch = next(iter(model.data_preparator.get_dataloader_train()))
    model.lightning_model.on_train_start()
    batch["y"] = torch.zeros_like(batch["y"])
    loss = model.lightning_model._calc_custom_loss(batch, 0)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in model.torch_model.parameters())


@recommending_kinds
def test_trains_on_movielens(kind: type[TransformerModelBase], frame: pd.DataFrame) -> None:
    """Recall@20 of each user's last item, by the package's own recommendations and metric."""
    held_out = frame[last_of_each(frame)]
    train = frame[~last_of_each(frame)]
    dataset = Dataset.construct(train)

    def recall(epochs: int) -> float:
        torch.manual_seed(0)
        np.random.seed(0)
        model = model_of(
            kind,
            "CW",
            epochs=epochs,
            similarity_module_kwargs={"distance": "cosine"},
            lightning_module_kwargs=presets.cw(temperature=0.2, prior=0.02),
        ).fit(dataset)
        users = held_out[Columns.User].to_numpy()
        found = model.recommend(users=users, dataset=dataset, k=20, filter_viewed=True)
        return calc_metrics({"recall": Recall(20)}, found, held_out[[Columns.User, Columns.Item]])["recall"]

    chance = 20 / train[Columns.Item].nunique()
    assert recall(epochs=3) > 3 * max(chance, recall(epochs=0))


@every_kind
def test_config_round_trip(kind: type[TransformerModelBase], frame: pd.DataFrame) -> None:
    """A model made anew from its configuration, as text, has the adapter and its arguments."""
    arguments = presets.cw(temperature=0.3, prior=0.05)
    model = model_of(kind, "CW", epochs=0, lightning_module_kwargs=arguments)
    again = kind.from_config(model.get_config(simple_types=True)).fit(Dataset.construct(frame))
    assert isinstance(again.lightning_model, CWLightningModule)
    assert again.lightning_model.criterion.loss == arguments | {"reduction": "sum"}


@recommending_kinds
def test_save_and_load(kind: type[TransformerModelBase], frame: pd.DataFrame) -> None:
    """A fitted model survives the package's own serialisation."""
    dataset = Dataset.construct(frame[frame[Columns.User] < 40])
    model = model_of(kind, "CW", epochs=1, lightning_module_kwargs=presets.cw(0.3)).fit(dataset)
    again = kind.loads(model.dumps())
    users = np.arange(10)
    expected, found = (m.recommend(users=users, dataset=dataset, k=5, filter_viewed=True) for m in (model, again))
    pd.testing.assert_frame_equal(found, expected)
    assert again.lightning_model.criterion.loss == model.lightning_model.criterion.loss


class OwnSimilarity(SimilarityModuleBase):
    """A score that the adapter does not know."""


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"loss": "BCE"}, ValueError, "loss must be 'CW' with CWLightningModule, got 'BCE'"),
        ({"lightning_module_kwargs": {"logits_t": 0.5}}, ValueError, "logits_t must be 1"),
        ({"lightning_module_kwargs": {"tau": 0.5}}, TypeError, "unknown loss argument 'tau'"),
        ({"lightning_module_kwargs": {"prior": 1.0}}, ValueError, "prior must be in"),
        ({"lightning_module_kwargs": {"reduction": "mean"}}, TypeError, "reduction"),
        ({"similarity_module_type": OwnSimilarity}, TypeError, "must be DistanceSimilarityModule, got OwnSimilarity"),
    ],
)
def test_bad_input(frame: pd.DataFrame, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"epochs": 0, "lightning_module_type": CWLightningModule, "loss": "CW"} | changes
    model = model_of(SASRecModel, **arguments)
    with pytest.raises(error, match=message):
        model.fit(Dataset.construct(frame))


def test_the_block_of_the_page(frame: pd.DataFrame) -> None:
    """That of docs/guides/other-libraries.md trains."""
    names = run_block_of(__file__, dataset=Dataset.construct(frame[frame[Columns.User] < 10]))
    assert isinstance(names["model"].lightning_model, CWLightningModule)
