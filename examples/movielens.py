# %% [markdown]
# # Tutorial: from ratings to recommendations
#
# You train a recommender on 55,000 film ratings, see what the CW loss does differently from a plain softmax loss, and
# get recommendations by title. It takes about a minute on a laptop, without a GPU.
#
# This page is both a notebook and a program. In a clone of the repository, after `make build`:
#
# ```text
# .venv/bin/python -m examples.movielens
# .venv/bin/python -m examples.movielens my_purchases.csv
# ```
#
# The first command prints the numbers below and writes the plots to `runs/movielens/`. The second one does the same
# with a file of your own that lists users and items. To work through the page in Jupyter, run `jupytext --to notebook
# examples/movielens.py`. The program needs torch, matplotlib and polars, which `make build` installs.

# %%
import csv
import math
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cw_ext import Interactions, LikelyPositives, cw_loss, presets, sampled_cw_loss

torch.set_num_threads(1)  # steps here are so small that a second thread does not help
in_notebook = "ipykernel" in sys.modules

# %% [markdown]
# ## Load the data
#
# MovieLens-100K comes inside the recbole package: `pip install --no-deps recbole==1.2.1` is enough, and `make build`
# has done that. Only its data file is used.
#
# CW learns from *positives*: pairs of a user and an item that the user chose. Here a rating of 4 or 5 is a positive,
# and lower ratings are left out. `Interactions` reads most files of this kind directly, and numbers users and items
# from 0.


# %%
def movielens_folder() -> Path:
    spec = find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("error: no data: pip install --no-deps recbole==1.2.1")
    return Path(spec.submodule_search_locations[0]) / "dataset_example" / "ml-100k"


own_file = None if in_notebook or len(sys.argv) < 2 else Path(sys.argv[1])
if own_file:
    try:
        data = Interactions.from_file(own_file, renumber=True)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
else:
    ratings = movielens_folder() / "ml-100k.inter"
    data = Interactions.from_file(ratings, min_rating=4, renumber=True)

num_users, num_items = data.num_queries, data.num_items
print(data.source.replace(": ", "\n").replace("; ", "\n"))

# %% [markdown]
# `data` stores the pairs sorted by user: the items of user `u` are `data.items[data.starts[u] : data.starts[u + 1]]`.
# Two plain tensors of all pairs are easier to work with.

# %%
positives_of_user = data.starts.diff()  # how many each user has
pair_users = torch.arange(num_users).repeat_interleave(positives_of_user)
pair_items = data.items.long()
print(f"{num_users} users, {num_items} items, {len(data)} positives")

# %% [markdown]
# The titles are in a second file. A file of your own shows its item ids instead.

# %% tags=["hide-input"]


def article_first(title: str) -> str:
    """Turn "Godfather, The" into "The Godfather"."""
    name, _, article = title.rpartition(", ")
    return f"{article} {name}" if article in ("The", "A", "An", "Il", "La", "Le", "Les", "Das", "Die") else title


titles = {}
if not own_file:
    with open(movielens_folder() / "ml-100k.item", encoding="utf-8") as file:
        for film, title, year, *_ in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            titles[film] = f"{article_first(title)} ({year})"
names = [titles.get(str(label), str(label)) for label in data.item_labels]
print("most popular: " + "\n              ".join(names[item] for item in data.item_counts.topk(5).indices))

# %% [markdown]
# ## Look at it
#
# A few items are chosen by hundreds of users, and most by a handful. Some users choose hundreds of items, and most a
# few dozen. That is typical. It is also typical that nearly all of the table of users and items is empty. An empty cell
# doesn't mean that the user dislikes the item. It means that we don't know. This is the problem that CW addresses.


# %% tags=["hide-input"]
plt.rcParams["font.size"] = 12


def new_figure(columns: int = 1, height: float = 3.2):
    figure, axes = plt.subplots(1, columns, figsize=(6.4, height), layout="constrained", facecolor="white", dpi=110)
    for axis in axes if columns > 1 else [axes]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def show(figure, name: str) -> None:
    """Show the figure in a notebook; write it to a file otherwise."""
    if in_notebook:
        plt.show()
    else:
        folder = Path("runs/movielens")
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png")
        print(f"plot: {folder / name}.png")


BLUE, ORANGE, GREEN, GREY = "#2368a8", "#d1600a", "#2a7f4f", "#888888"

figure, (left, right) = new_figure(2, height=2.9)
left.plot(data.item_counts.sort(descending=True).values, color=BLUE, linewidth=2)
left.set(xlabel="items by popularity", ylabel="users who chose it", yscale="log")
right.hist(positives_of_user, bins=40, color=BLUE)
right.set(xlabel="positives of a user", ylabel="users", yscale="log")
show(figure, "data")
print(f"{1 - len(data) / (num_users * num_items):.0%} of the table is empty")

# %% [markdown]
# ## Split
#
# To measure recommendations, hide a random fifth of each user's positives. The model trains on the rest, and a good
# model ranks the hidden items high. `known` has the training pairs. The loss never draws them as negatives. The two
# dense tables of users and items below are only for the metric and the plots; with millions of items you would not
# build them.

# %%
torch.manual_seed(0)
random_order = torch.rand(len(data), dtype=torch.float64)
shuffled = (pair_users + random_order).argsort()  # by user, in random order
place = torch.arange(len(data)) - data.starts[pair_users[shuffled]]
is_hidden = torch.zeros(len(data), dtype=torch.bool)
is_hidden[shuffled] = place < positives_of_user[pair_users[shuffled]] // 5

train_users, train_items = pair_users[~is_hidden], pair_items[~is_hidden]
known = Interactions(train_users, train_items, num_queries=num_users, num_items=num_items)

in_training = torch.zeros(num_users, num_items, dtype=torch.bool)
in_training[train_users, train_items] = True
hidden = torch.zeros(num_users, num_items, dtype=torch.bool)
hidden[pair_users[is_hidden], pair_items[is_hidden]] = True
print(f"{len(known)} training pairs, {int(hidden.sum())} hidden ones")

# %% [markdown]
# ## Model and metric
#
# The model is matrix factorization: a vector for each user and each item. The score of a pair is half the cosine of
# its two vectors, which is what the loss uses by default.
#
# NDCG@20 looks at the first 20 recommendations of a user. It is 1 if they start with all hidden items and 0 if they
# have none, and a hit counts more the higher it is ranked.


# %%
class Factorization(nn.Module):
    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(num_users, dim), nn.Embedding(num_items, dim)

    @torch.no_grad()
    def scores(self) -> Tensor:
        """Half the cosine of every user with every item."""
        return F.normalize(self.users.weight) @ F.normalize(self.items.weight).T / 2


def ndcg(model: Factorization, k: int = 20) -> float:
    top = model.scores().masked_fill(in_training, -math.inf).topk(k).indices
    discounts = 1 / torch.arange(2, k + 2).log2()
    gain = hidden.gather(1, top).float() @ discounts
    number = hidden.sum(1)
    ideal = discounts.cumsum(0)[number.clamp(1, k) - 1]
    return (gain / ideal)[number > 0].mean().item()


# %% [markdown]
# ## Train with a plain softmax loss
#
# First the baseline, SL: the sampled softmax. Each positive is compared with 100 random items that the user didn't
# choose, its *negative samples*. `sampled_cw_loss` draws them inside and leaves out the user's training items.
#
# The loop is ordinary PyTorch. `after_epoch` is used further below, to look into the training.

# %%
NEGATIVES, BATCH, EPOCHS, TEMPERATURE = 100, 1024, 12, 0.1


def train(loss_arguments, seed: int = 0, after_epoch=None):
    """Train a model; return it, and its NDCG@20 after each epoch."""
    torch.manual_seed(seed)
    model = Factorization()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    curve = []
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(train_users)).split(BATCH):
            u, i = train_users[batch], train_items[batch]
            q = model.users(u)
            loss = sampled_cw_loss(q, model.items, u, i, known, NEGATIVES, **loss_arguments(u))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        curve.append(ndcg(model))
        if after_epoch:
            after_epoch(model)
    return model, curve


def sl(u: Tensor):
    return presets.sl(TEMPERATURE)


start = time.perf_counter()
sl_model, sl_curve = train(sl)
print(f"SL: NDCG@20 {sl_curve[-1]:.3f}, {time.perf_counter() - start:.0f} s")

# %% [markdown]
# ## Train with CW
#
# Some of the negatives are wrong: the user would like them. CW *corrects* for that. You give it a few items that the
# user probably likes, and π (`prior`), the share of the negatives that are wrong. It then subtracts π times what such
# items contribute from what the negatives contribute.
#
# `LikelyPositives` finds such items. It needs no model, only the training pairs: it predicts each user's items from
# the other items of that user, by ridge regression. It takes a second. In the list below, ✓ marks the hidden items.

# %%
likely = LikelyPositives.by_regression(known)

if own_file:
    shown_user = int((known.starts.diff() - 40).abs().argmin())  # one with about 40 items
else:
    shown_user = int(data.query_rows([676])[0])  # the row of the user with this id
chosen = train_items[train_users == shown_user]
print(f"user {data.query_labels[shown_user]} chose, among {len(chosen)} items:")
for item in chosen[known.item_counts[chosen].argsort(descending=True)[:8]].tolist():
    print("   ", names[item])
print("and probably likes:")
for item in likely.ids[shown_user, :8].tolist():
    print("   ", names[item], "✓" if hidden[shown_user, item] else "")

# %% [markdown]
# How good are these guesses? The hidden items tell, which `LikelyPositives` has not seen.

# %%
guessed = torch.zeros_like(hidden)
guessed.scatter_(1, likely.ids.clamp(min=0).long(), likely.ids >= 0)
share_of_guesses = (hidden & guessed).sum() / guessed.sum()
share_of_unknown = hidden.sum() / (~in_training).sum()
print(f"hidden items among the likely positives: {share_of_guesses:.1%}")
print(f"hidden items among all unknown items: {share_of_unknown:.1%}")

# %% [markdown]
# Training with CW takes one change: the arguments of the loss. `weighting="none"` leaves out CW's other half, the
# weights; together with likely positives they gained nothing in our measurements.


# %%
def cw(u: Tensor):
    return {
        "temperature": TEMPERATURE,
        "weighting": "none",
        "prior": 0.1,
        "extra_pos_ids": likely.draw(u, 20),
    }


start = time.perf_counter()
cw_model, cw_curve = train(cw)
print(f"CW: NDCG@20 {cw_curve[-1]:.3f}, {time.perf_counter() - start:.0f} s")

# %% [markdown]
# ## Compare
#
# One run of each says little, since the result depends on the seed. So train each loss twice more, with other seeds.

# %%
runs = {
    "SL": [sl_curve, train(sl, seed=1)[1], train(sl, seed=2)[1]],
    "CW": [cw_curve, train(cw, seed=1)[1], train(cw, seed=2)[1]],
}

# %% tags=["hide-input"]
figure, axis = new_figure()
for (name, its_runs), color in zip(runs.items(), (BLUE, ORANGE), strict=True):
    for number, curve in enumerate(its_runs):
        axis.plot(range(1, EPOCHS + 1), curve, color=color, linewidth=2, label=None if number else name)
axis.set(xlabel="epoch", ylabel="NDCG@20", ylim=(0, None))
axis.legend(frameon=False)
show(figure, "training")
for name, its_runs in runs.items():
    early, last = (torch.tensor([curve[epoch] for curve in its_runs]) for epoch in (0, -1))
    print(f"{name}: NDCG@20 {early.mean():.3f} after one epoch, {last.mean():.4f} ± {last.std():.4f} at the end")

# %% [markdown]
# After one epoch CW is far ahead: the likely positives tell it where to start. At the end the two are level: the
# difference between them is no larger than that between seeds. [Does CW rank better?](../measured/ranking.md) has
# the results on larger data sets.
#
# ## Look at the gradients
#
# Why does CW start so much better? The gradient of the loss with respect to the score of a negative shows how hard a
# step pushes that item down. Take 2,000 training pairs, with *all* other items as negatives. `cw_loss` works on plain
# scores, so it can show this for any of the losses, with the scores of any model.


# %%
def push(scores: Tensor, u: Tensor, i: Tensor, loss_arguments) -> Tensor:
    """How hard the loss of each pair pushes down each item: [pairs, num_items]."""
    item_scores = scores[u].requires_grad_()
    positive_scores = scores[u, i]
    loss = dict(loss_arguments(u))
    extra = loss.pop("extra_pos_ids", None)
    if extra is not None:
        likely_scores = item_scores.gather(1, extra.clamp(min=0))
        # −1 stands for "the user has no more"
        loss["extra_pos_scores"] = likely_scores.masked_fill(extra < 0, -math.inf)
    # items that the user has chosen are no negatives
    log_weights = torch.zeros_like(item_scores).masked_fill(in_training[u], -math.inf)
    loss |= {"neg_log_weights": log_weights, "reduction": "sum"}
    cw_loss(positive_scores, item_scores, **loss).backward()
    return item_scores.grad


def weighted(u: Tensor):
    return {"temperature": TEMPERATURE, "weighting": "sigmoid"}


LOSSES = {
    "SL": sl,
    "CW's weights only": weighted,
    "CW with likely positives": cw,
}

# %% [markdown]
# Train SL once more, and ask after each epoch: of everything that a step pushes down, what share falls on hidden
# items? Those are items that the user chose, so each push on them is a mistake.

# %%
some = torch.randperm(len(train_users))[:2000]
u, i = train_users[some], train_items[some]
shares = {name: [] for name in LOSSES}
same_as_sl, snapshots = [], []


def look(model: Factorization) -> None:
    scores = model.scores()
    snapshots.append(scores)
    pushed = {name: push(scores, u, i, loss) for name, loss in LOSSES.items()}
    for name, value in pushed.items():
        shares[name].append((value[hidden[u]].sum() / value.sum()).item())
    difference = (pushed["CW with likely positives"] - pushed["SL"]).abs().amax(1)
    same_as_sl.append((difference < 1e-4).float().mean().item())


looked_at, _ = train(sl, after_epoch=look)

# %% tags=["hide-input"]
figure, axis = new_figure()
for (name, values), color in zip(shares.items(), (BLUE, GREEN, ORANGE), strict=True):
    axis.plot(range(1, EPOCHS + 1), [100 * value for value in values], color=color, linewidth=2, label=name)
negatives_hidden = (hidden[u].sum() / (~in_training[u]).sum()).item()
axis.axhline(100 * negatives_hidden, color=GREY, linestyle=":", label="their share of the negatives")
axis.set(xlabel="epoch", ylabel="% of the push\non hidden items", ylim=(0, None))
axis.legend(frameon=False, fontsize=10, loc="lower right", bbox_to_anchor=(1, 0.12))
show(figure, "push")
print(f"hidden items are {negatives_hidden:.1%} of the negatives")
print(f"their share of the push after epochs 1, 2 and {EPOCHS}:")
for name, values in shares.items():
    print(f"  {name}: " + ", ".join(f"{values[epoch]:.1%}" for epoch in (0, 1, -1)))
same = ", ".join(f"{same_as_sl[epoch]:.0%}" for epoch in (0, 1, -1))
print(f"pairs with the same gradient for SL and CW: {same}")

# %% [markdown]
# That explains the curves. A softmax pushes hardest on the items with the highest scores, and those are also the ones
# that the user is most likely to choose: hidden items get several times their share. After one epoch, CW removes
# nearly all of this push.
#
# It also shows a limit. The likely positives rise, and soon the correction would take away more than there is. Then
# the floor applies (`floor=0.3`): the correction takes away 70 % from all negatives alike, and the gradient is
# that of SL again. The other half of CW, the weights, reduces the push on hidden items in every epoch. In our
# measurements that did not improve the ranking by more than seeds differ, and together with likely positives it made
# the ranking worse.
#
# Which films do the two losses push up or down for user 676? The plot shows the mean over this user's training pairs,
# with the model above after one epoch. The axis is logarithmic beyond ±.1.

# %%
same_user = torch.full_like(chosen, shown_user)
by_sl = push(snapshots[0], same_user, chosen, sl).mean(0)
by_cw = push(snapshots[0], same_user, chosen, cw).mean(0)
most, least = by_sl.topk(6).indices, by_cw.topk(6, largest=False).indices
shown = torch.cat([most, least]).unique()
shown = shown[by_sl[shown].argsort()]

# %% tags=["hide-input"]
figure, axis = new_figure(height=4.8)
places = torch.arange(len(shown))
axis.barh(places + 0.2, by_sl[shown], height=0.38, color=BLUE, label="SL")
axis.barh(places - 0.2, by_cw[shown], height=0.38, color=ORANGE, label="CW with likely positives")
axis.axvline(0, color="black", linewidth=0.8)
labels = [names[item].split(" (")[0][:31] for item in shown.tolist()]  # without the year
marks = [" ✓" if hidden[shown_user, item] else "" for item in shown.tolist()]
axis.set_yticks(places, [label + mark for label, mark in zip(labels, marks, strict=True)])
axis.set_xscale("symlog", linthresh=0.1)
axis.set_xticks([-1, -0.1, 0, 0.1], ["−1", "−.1", "0", ".1"])
axis.set(xlabel="lifted  ←   push   →  pushed down")
figure.legend(frameon=False, loc="outside upper right", ncols=2)
show(figure, "titles")

# %% [markdown]
# A ✓ marks a hidden item. SL pushes all films in the plot down. CW pushes up those that are likely positives, and
# pushes the others down harder.
#
# ## Recommend
#
# Take the model that was trained with CW, leave out the user's training items, and rank the rest. Hidden items can be
# recommended; ✓ marks them.


# %%
def recommend(model: Factorization, user: int, k: int = 10) -> list[int]:
    scores = model.scores()[user].masked_fill(in_training[user], -math.inf)
    return scores.topk(k).indices.tolist()


print(f"for user {data.query_labels[shown_user]}:")
for place, item in enumerate(recommend(cw_model, shown_user), start=1):
    print(f"{place:>4}  {names[item]}", "✓" if hidden[shown_user, item] else "")

# %% [markdown]
# The same vectors answer another question: which items are alike?

# %%
vectors = F.normalize(cw_model.items.weight.detach())
for item in known.item_counts.topk(4).indices.tolist():
    alike = (vectors @ vectors[item]).topk(4).indices[1:].tolist()
    print(names[item])
    for other in alike:
        print("   ", names[other])

# %% [markdown]
# ## Where to go from here
#
# - [Start here](start-here.md): what to tune first. This page tuned nothing.
# - [Does CW rank better?](../measured/ranking.md): results on larger data sets, with tuned losses, and where CW is
#   behind.
# - [Your own data](../guides/own-data.md): the command line does all of this, with validation, and saves the model.
# - [Serving](serving.md): fast recommendations from the vectors with faiss or hnswlib.
# - [The formula](../how-it-works/formula.md) and the [playground](../how-it-works/playground.md): what floor, prior
#   and weights do to a single pair.
