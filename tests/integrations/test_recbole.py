"""The RecBole adapter: on ratings with a threshold, against counts made apart; and in training, by RecBole's means."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("recbole.trainer", reason="recbole cannot be imported here (.ci/integrations makes where it can)")

from cases import assert_near  # noqa: E402
from page import configuration, run_block_of  # noqa: E402
from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.model.general_recommender import BPR, LightGCN  # noqa: E402
from recbole.trainer import Trainer  # noqa: E402
from recbole.utils import InputType, init_seed  # noqa: E402

from benchmarks.common.data import movielens_100k_file  # noqa: E402
from cw_ext import draw_negatives, presets  # noqa: E402
from cw_ext.integrations.recbole import CWSampled  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of pandas and torch about RecBole
USERS, ITEMS, RATINGS, LIKED = 60, 40, 1200, 4
N = 64
THRESHOLD = "threshold: {rating: 4}"
INTERVAL = 'val_interval: {rating: "[4,inf)"}'


class CWMF(BPR):
    """As docs/guides/other-libraries.md shows it."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.cw = CWSampled(dataset, N, **presets.infonce(1.0))

    def calculate_loss(self, interaction: Any) -> Tensor:
        return self.cw(self.user_embedding(interaction[self.USER_ID]), self.item_embedding, interaction)


class CWLightGCN(LightGCN):
    """One whose tables are computed."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.cw = CWSampled(dataset, N, **presets.infonce(1.0))

    def calculate_loss(self, interaction: Any) -> Tensor:
        users, items = self.forward()
        return self.cw(users[interaction[self.USER_ID]], items, interaction)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """RecBole writes logs and checkpoints to where it runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ratings(folder: Path) -> dict[tuple[str, str], int]:
    rng = random.Random(0)
    pairs = rng.sample([(f"u{u}", f"i{i}") for u in range(USERS) for i in range(ITEMS)], RATINGS)
    found = {pair: rng.randint(1, 5) for pair in pairs}
    (folder / "toy").mkdir()
    rows = [f"{user}\t{item}\t{rating}" for (user, item), rating in found.items()]
    text = "\n".join(["user_id:token\titem_id:token\trating:float", *rows])
    (folder / "toy" / "toy.inter").write_text(text, encoding="utf-8")
    return found


def prepared(model: type[BPR], name: str, data_path: Path, *lines: str, epochs: int = 1) -> tuple[Any, ...]:
    """(configuration, training, validation and test loader), configured in YAML as a user does it."""
    text = f"""
data_path: {data_path}
load_col: {{inter: [user_id, item_id, rating]}}
train_neg_sample_args: ~
embedding_size: 32
n_layers: 2
reg_weight: 0.0
learning_rate: 0.01
epochs: {epochs}
topk: [20]
metrics: [Recall]
valid_metric: Recall@20
show_progress: False
"""
    Path("config.yaml").write_text("\n".join([text, *lines]), encoding="utf-8")
    config = Config(model=model, dataset=name, config_file_list=["config.yaml"])
    init_seed(config["seed"], reproducibility=True)
    return config, *data_preparation(config, create_dataset(config))


def of_training(dataset: Any, ratings: dict[tuple[str, str], int], keep: Callable[[int], bool]) -> set[tuple[int, int]]:
    """The training split's pairs whose rating in the file is to be kept; in RecBole's ids."""
    pairs = zip(dataset.inter_feat["user_id"].tolist(), dataset.inter_feat["item_id"].tolist(), strict=True)
    users, items = dataset.field2id_token["user_id"], dataset.field2id_token["item_id"]
    return {(user, item) for user, item in pairs if keep(ratings[users[user], items[item]])}


def pairs_of(model: CWMF) -> set[tuple[int, int]]:
    known = model.cw.criterion.interactions
    bounds, items = known.starts.tolist(), known.items.tolist()
    return {(user, item) for user, (a, b) in enumerate(zip(bounds, bounds[1:])) for item in items[a:b]}


@pytest.mark.parametrize("line", [THRESHOLD, INTERVAL])
def test_known_are_what_is_liked(ratings: dict[tuple[str, str], int], folder: Path, line: str) -> None:
    config, train, _, _ = prepared(CWMF, "toy", folder, line)
    dataset = train.dataset
    liked = of_training(dataset, ratings, lambda rating: rating >= LIKED)
    others = of_training(dataset, ratings, lambda rating: rating < LIKED)
    assert liked and (others or line == INTERVAL)
    model = CWMF(config, dataset)
    assert pairs_of(model) == liked | {(user, 0) for user in range(dataset.user_num)}

    users = torch.arange(1, dataset.user_num)
    drawn = draw_negatives(users, model.cw.criterion.interactions, 4000, seed=1)
    found = {(user, item) for user, row in zip(users.tolist(), drawn, strict=True) for item in row.unique().tolist()}
    possible = {(user, item) for user in users.tolist() for item in range(1, dataset.item_num)}
    assert found == possible - liked, "all that is not known, with what was disliked and without the padding"


@pytest.mark.parametrize("kind", [CWMF, CWLightGCN])
def test_the_loss_by_hand(ratings: dict[tuple[str, str], int], folder: Path, kind: type[BPR]) -> None:
    """In fp64, over the rows of what is liked alone; and the model's gradients."""
    config, train, _, _ = prepared(kind, "toy", folder, THRESHOLD)
    dataset = train.dataset
    model = kind(config, dataset)
    batch = next(iter(train))
    torch.manual_seed(3)
    loss = model.calculate_loss(batch)
    loss.backward()

    liked = of_training(dataset, ratings, lambda rating: rating >= LIKED)
    rows = zip(batch["user_id"].tolist(), batch["item_id"].tolist(), strict=True)
    is_liked = torch.tensor([pair in liked for pair in rows])
    assert 0 < is_liked.sum() < len(is_liked)
    torch.manual_seed(3)
    negatives = draw_negatives(batch["user_id"], model.cw.criterion.interactions, N)
    users, items = model.forward() if kind is CWLightGCN else (model.user_embedding.weight, model.item_embedding.weight)
    users, items = users.double(), items.double()
    candidates = torch.cat([batch["item_id"].unsqueeze(1), negatives], 1)[is_liked]
    scores = (users[batch["user_id"][is_liked]].unsqueeze(1) * items[candidates]).sum(-1)
    expected = (scores.logsumexp(1) - scores[:, 0]).mean()
    assert_near(loss, expected, torch.float32)
    tables = (model.user_embedding.weight, model.item_embedding.weight)
    for table, gradient in zip(tables, torch.autograd.grad(expected, tables), strict=True):
        assert_near(table.grad, gradient, torch.float32)
    assert not model.item_embedding.weight.grad[0].any(), "nobody draws the padding"


def test_trains_on_movielens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recall@20 by RecBole's own trainer and evaluation, of the films that were rated 4 or 5."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # its checkpoints are pickles, made here
    file = movielens_100k_file()
    config, train, valid, test = prepared(CWMF, file.stem, file.parent.parent, INTERVAL, epochs=5)
    model = CWMF(config, train.dataset)
    trainer = Trainer(config, model)
    before = trainer.evaluate(test, load_best_model=False)["recall@20"]
    trainer.fit(train, valid, show_progress=False)
    after = trainer.evaluate(test, load_best_model=True)["recall@20"]
    assert after > 3 * max(before, 20 / train.dataset.item_num)


def test_none_in_yaml_is_a_string(ratings: dict[tuple[str, str], int], folder: Path) -> None:
    """Why the documentation says `~`."""
    with pytest.raises(ValueError, match=r"train_neg_sample_args:\[None\] should be a dict"):
        prepared(CWMF, "toy", folder, "train_neg_sample_args: None")


class Pointwise(CWMF):
    input_type = InputType.POINTWISE


def test_labels_that_recbole_overwrites(ratings: dict[tuple[str, str], int], folder: Path) -> None:
    """Its own negatives for a pointwise model, which make a 1 of every label, are refused."""
    config, train, _, _ = prepared(Pointwise, "toy", folder, THRESHOLD, "train_neg_sample_args: {sample_num: 1}")
    rows = len(train.dataset.inter_feat)
    assert (next(iter(train))["label"][:rows] == 1).all() and not (train.dataset.inter_feat["label"] == 1).all()
    with pytest.raises(ValueError, match=r"train_neg_sample_args must be None \(in YAML ~\).*got .*uniform"):
        Pointwise(config, train.dataset)
    config, train, _, _ = prepared(Pointwise, "toy", folder, THRESHOLD)
    assert Pointwise(config, train.dataset).calculate_loss(next(iter(train))).isfinite()


@pytest.mark.parametrize(
    ("arguments", "error"), [({"tau": 1.0}, TypeError), ({"temperature": 0.0}, ValueError), ({"prior": 1}, ValueError)]
)
def test_bad_arguments(
    ratings: dict[tuple[str, str], int], folder: Path, arguments: dict[str, Any], error: type[Exception]
) -> None:
    _, train, _, _ = prepared(CWMF, "toy", folder)
    with pytest.raises(error, match=next(iter(arguments))):
        CWSampled(train.dataset, N, **arguments)


def test_the_block_of_the_page(ratings: dict[tuple[str, str], int], folder: Path) -> None:
    """The model and the configuration of docs/guides/other-libraries.md make a loss."""
    model = run_block_of(__file__)["CWMF"]
    text = f"data_path: {folder}\nload_col: {{inter: [user_id, item_id, rating]}}\n" + configuration()
    Path("config.yaml").write_text(text, encoding="utf-8")
    config = Config(model=model, dataset="toy", config_file_list=["config.yaml"])
    train, *_ = data_preparation(config, create_dataset(config))
    loss = model(config, train.dataset).calculate_loss(next(iter(train)))
    loss.backward()
    assert loss.isfinite()


def test_recboles_own_negatives(ratings: dict[tuple[str, str], int], folder: Path) -> None:
    """A batch of N negatives has its pairs N times: docs/guides/other-libraries.md undoes that."""
    number = 3
    config, train, _, _ = prepared(
        BPR, "toy", folder, f"train_neg_sample_args: {{distribution: uniform, sample_num: {number}}}"
    )
    batch = next(iter(train))
    users, items = (batch[field].view(number, -1) for field in (train.dataset.uid_field, train.dataset.iid_field))
    assert (users == users[0]).all() and (items == items[0]).all()
    negatives = batch["neg_item_id"].view(number, -1).T
    known = of_training(train.dataset, ratings, lambda rating: True)
    pairs = {(user, item) for user, row in zip(users[0].tolist(), negatives.tolist(), strict=True) for item in row}
    assert not pairs & known
