"""The searches of ``--auto`` for several losses: kept in files, so that they are not done twice, and as a table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import data, reporting
from benchmarks.training.auto import Choice, choose
from benchmarks.training.candidates import text
from benchmarks.training.losses import LOSSES, build_loss
from benchmarks.training.search_spaces import Setting, search_space
from benchmarks.training.trainer import identity


def choose_all(
    dataset: data.InteractionData, names: Sequence[str], given: Setting, directory: Path, resume: bool
) -> dict[str, Choice]:
    """Choose for each loss, print what and why, and keep it in the directory's folder ``auto``.

    Args:
        dataset, given: as for :func:`benchmarks.training.auto.choose`.
        names: of the losses.
        directory: an existing, writable directory.
        resume: whether to take what is kept there and to go on with what was interrupted.

    Raises:
        ValueError: what is kept there is of another search.
        TrainingError, KeyboardInterrupt: as of the search.
    """
    folder = directory / "auto"
    if not resume:
        for name in LOSSES:
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / f"{name}.json").unlink(missing_ok=True)
    folder.mkdir(exist_ok=True)
    choices = {}
    for name in names:
        choices[name] = _chosen_before(dataset, name, given, folder) or _choose(dataset, name, given, folder)
        print(f"auto: {name}: {choices[name].reason}", flush=True)
    return choices


def describe_choices(choices: Mapping[str, Choice]) -> str:
    """Return the table of what was tried: one line per setting, the chosen ones marked."""
    rows = []
    for name, choice in choices.items():
        for tried in choice.tries:
            rungs = ", ".join(f"{ndcg:.4f}" for _, ndcg in tried["rungs"]) or tried.get("diverged", "-")
            settings = " ".join(f"{field}={text(value)}" for field, value in tried["settings"].items())
            rows.append(
                [name, settings, str(tried["epochs"]), rungs, "*" if tried["settings"] == choice.chosen else ""]
            )
    header = ["loss", "tried by --auto", "epochs", "best validation NDCG after each rung", "chosen"]
    return reporting.format_table(header, rows)


def _question(dataset: data.InteractionData, name: str, given: Setting) -> dict[str, Any]:
    """What tells a search from others."""
    start = given.changed(search_space(name).fixed)
    return identity(dataset, build_loss(name, start.options), start.config)


def _choose(dataset: data.InteractionData, name: str, given: Setting, folder: Path) -> Choice:
    choice = choose(dataset, name, given.options, given.config, checkpoint=folder / name, show_progress=True)
    kept = choice.checkpoint.name if choice.checkpoint else None
    content = {"search": _question(dataset, name, given), "checkpoint": kept, **choice.report()}
    reporting.write_json(folder / f"{name}.json", content)
    for path in (folder / name).glob("*.pt"):
        if path != choice.checkpoint:
            path.unlink()
    return choice


def _chosen_before(dataset: data.InteractionData, name: str, given: Setting, folder: Path) -> Choice | None:
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        search, checkpoint = content.pop("search"), folder / name / content.pop("checkpoint")
        setting = given.changed(search_space(name).fixed).changed(content["chosen"])
        choice = Choice(*setting, **content, checkpoint=checkpoint if checkpoint.exists() else None)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: expected what --auto chose earlier, got something else") from None
    question = json.loads(json.dumps(_question(dataset, name, given)))
    if search != question:
        raise ValueError(
            f"{path}: expected the search of {question} to go on from, got {search}; resume with the same arguments, "
            "or give another --out"
        )
    return choice
