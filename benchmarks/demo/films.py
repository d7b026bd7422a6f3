"""Show what a model saved on MovieLens-100K recommends, by the films' titles."""

from __future__ import annotations

import textwrap

import polars as pl
import torch

from benchmarks.common.data import movielens_100k_file
from benchmarks.recommend.top_k import top_k
from benchmarks.training.saved import SavedModel
from cw_ext import Interactions

USERS, KNOWN, RECOMMENDED = 5, 3, 5
_WIDTH = 100
_NBSP = "\N{NO-BREAK SPACE}"
_ARTICLES = ("The", "A", "An", "Il", "La", "Le", "Les", "Das", "Die")


def titles() -> dict[str, str]:
    """The title and year of each film by its id, from ml-100k.item beside the interactions.

    Raises:
        DataError: ``recbole`` is not installed. OSError: it has no such file.
    """
    table = pl.read_csv(
        movielens_100k_file().with_suffix(".item"), separator="\t", quote_char=None, infer_schema=False
    ).rename(lambda column: column.partition(":")[0])
    rows = table.select("item_id", "movie_title", "release_year").iter_rows()
    return {item.strip(): _natural(title) + (f" ({year})" if year else "") for item, title, year in rows}


def _natural(title: str) -> str:
    """Put the article first: "Godfather, The" becomes "The Godfather"."""
    name, _, article = title.rpartition(", ")
    return f"{article} {name}" if article in _ARTICLES else title


def describe(model: SavedModel, title_of: dict[str, str]) -> str:
    """Return, for the first users, some films that they know and the first ones that the model recommends.

    Args:
        model: of MovieLens-100K. Of a user's films in training and validation those with the highest scores are shown,
            and none of them is recommended. Test films can be recommended, and are marked.
        title_of: see :func:`titles`; a film without a title is shown by its id.
    """
    names = [title_of.get(str(item), f"film {item}") for item in model.item_ids.to_list()]
    users = torch.arange(min(USERS, len(model.users)))
    [(_, ranked, scores)] = top_k(model.users, model.items, RECOMMENDED, model.known, users)
    lines = []
    for user in users.tolist():
        known = _items_of(user, model.known)
        best = known[(model.items[known] @ model.users[user]).argsort(descending=True, stable=True)].tolist()
        more = [f"{len(best) - KNOWN} more"] if len(best) > KNOWN else []
        held_out = set(_items_of(user, model.known_with_test).tolist()) - set(best)
        found = ranked[user][scores[user] > -torch.inf].tolist()
        lines.append(f"user {model.user_ids[user]}")
        lines.append(_wrapped("  knows    ", [names[item] for item in best[:KNOWN]] + more))
        lines.append(_wrapped("  gets     ", [names[item] + " ✓" * (item in held_out) for item in found]))
    return "\n".join(lines)


def _items_of(user: int, pairs: Interactions) -> torch.Tensor:
    return pairs.items[pairs.starts[user] : pairs.starts[user + 1]].long()


def _wrapped(label: str, films: list[str]) -> str:
    """Wrap lines between films, not within a title."""
    text = f"{_NBSP}· ".join(film.replace(" ", _NBSP) for film in films or ["nothing"])
    indents = {"initial_indent": label, "subsequent_indent": " " * len(label)}
    return "\n".join(textwrap.wrap(text, _WIDTH, **indents, break_on_hyphens=False)).replace(_NBSP, " ")
