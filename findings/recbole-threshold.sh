#!/usr/bin/env bash
# RecBole 1.2.1: `threshold: {rating: 4}` changes nothing about what BPR learns or how its rankings are measured.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
# TORCH names another build of torch, such as one without CUDA. RecBole 1.2.1 is from before numpy 2 and pandas 3.
env/bin/python -m pip install --quiet "${TORCH:-torch==2.13.0}" numpy==1.26.4 pandas==2.3.3 scipy==1.12.0 \
    scikit-learn==1.5.2 colorlog==4.7.2 colorama==0.4.4 pyyaml==6.0.2 tqdm==4.67.1 texttable==1.7.0 tensorboard==2.19.0
env/bin/python -m pip install --quiet --no-deps recbole==1.2.1
cat >check.py <<'PY'
import os
import random
import sys
import warnings
from importlib.metadata import version

warnings.simplefilter("ignore")
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.general_recommender import BPR
from recbole.trainer import Trainer
from recbole.utils import init_seed

rng = random.Random(0)
pairs = rng.sample([(u, i) for u in range(60) for i in range(40)], 1200)
os.mkdir("toy")
with open("toy/toy.inter", "w") as file:
    file.write("user_id:token\titem_id:token\trating:float\n")
    file.writelines(f"u{u}\ti{i}\t{rng.randint(1, 5)}\n" for u, i in pairs)


class Dislikes(BPR):
    """Ranks the items that the user rated below 4 first."""

    def full_sort_predict(self, interaction):
        scores = self.disliked[interaction["user_id"]]
        return scores.view(-1)


def run(model_class, epochs, **settings):
    common = {
        "data_path": ".",
        "load_col": {"inter": ["user_id", "item_id", "rating"]},
        "embedding_size": 16,
        "learning_rate": 0.01,
        "epochs": epochs,
        "metrics": ["Recall", "NDCG"],
        "topk": [5],
        "valid_metric": "Recall@5",
        "show_progress": False,
    }
    config = Config(model=model_class, dataset="toy", config_dict={**common, **settings})
    init_seed(config["seed"], True)
    train, valid, test = data_preparation(config, create_dataset(config))
    model = model_class(config, train.dataset)
    if model_class is Dislikes:
        rows = test.dataset.inter_feat
        model.disliked = model.item_embedding.weight.new_zeros(model.n_users, model.n_items)
        model.disliked[rows["user_id"], rows["item_id"]] = (rows["label"] == 0).float()
    trainer = Trainer(config, model)
    if epochs:
        trainer.fit(train, valid, saved=False, show_progress=False)
    return dict(trainer.evaluate(test, load_best_model=False, show_progress=False))


print("recbole", version("recbole"))
print("BPR on ratings of 1 to 5, ten epochs, RecBole's own trainer and full ranking:")
found = {}
for name, settings in {
    "no threshold": {},
    "threshold: {rating: 4}": {"threshold": {"rating": 4}},
    "threshold: {rating: 5}": {"threshold": {"rating": 5}},
    'val_interval: {rating: "[4,inf)"}': {"val_interval": {"rating": "[4,inf)"}},
}.items():
    found[name] = run(BPR, 10, **settings)
    print(f"  {name}: {found[name]}")
disliked = run(Dislikes, 0, threshold={"rating": 4})
print("  with threshold 4, a ranking with each user's disliked test items before all else:", disliked)
none, four, five, interval = found.values()
holds = none == four == five != interval and disliked["recall@5"] > 0.5
print(
    "The threshold changes no number: rows with label 0 are trained on as positives, and count as hits. "
    "val_interval leaves them out."
    if holds
    else "This is no longer so."
)
sys.exit(not holds)
PY
env/bin/python check.py
