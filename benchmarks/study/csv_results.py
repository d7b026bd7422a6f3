"""The study's results as files to be shared: one CSV file per data set, and one JSON file for the machines.

A row is a run, and its nested results are columns such as ``test.ndcg``. Cells are JSON, so that numbers are read back
exactly. Strings are bare unless they are JSON themselves. A cell is empty if the run lacks the value or has None there.
``environment`` is the index of the run's machine in the list in ``environments.json``.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import reporting

ENVIRONMENTS_FILE = "environments.json"
# What differs from run to run on one machine is in the run's row: (name in the environment, column).
_OF_THE_RUN = (("git_commit", "commit"), ("time", "time"))


def path_of(directory: Path, dataset: str) -> Path:
    """The file of a data set's results."""
    return directory / f"runs-{dataset}.csv"


def not_results(path: Path) -> ValueError:
    """What to raise where a file does not contain results."""
    return ValueError(
        f"{path}: expected results of the study, got something else; remove the file to run the study again"
    )


def write(directory: Path, results: Iterable[dict[str, Any]]) -> list[Path]:
    """Write results, each file whole or not at all; return the files.

    A machine keeps its number, and the machines are written first: an interruption leaves files that fit together.

    Args:
        directory: an existing, writable directory. The files of other data sets stay.
        results: each with "key", "dataset" and "environment".

    Raises:
        ValueError: the environments there are none; the message contains the file.
        OSError: a file cannot be written; the message contains it.
    """
    environments = _read_environments(directory)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in sorted(results, key=lambda result: result["key"]):
        row = dict(result)
        environment = dict(row.pop("environment"))
        row |= {column: environment.pop(name, None) for name, column in _OF_THE_RUN}
        if environment not in environments:
            environments.append(environment)
        rows[row.pop("dataset")].append(_flat(row) | {"environment": environments.index(environment)})
    reporting.write_json(directory / ENVIRONMENTS_FILE, {"environments": environments})
    for dataset, of_dataset in rows.items():
        columns = ["key", *sorted({name for row in of_dataset for name in row} - {"key"})]
        with (
            reporting.written_whole(path_of(directory, dataset)) as unfinished,
            open(unfinished, "w", encoding="utf-8", newline="") as file,
        ):
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(columns)
            lines.writerows([_cell(row.get(name)) for name in columns] for row in of_dataset)
    return [directory / ENVIRONMENTS_FILE, *(path_of(directory, dataset) for dataset in rows)]


def read(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the results of all data sets there, without what is None.

    Raises:
        ValueError: a file that does not contain results; the message contains it.
    """
    paths = sorted(directory.glob("runs-*.csv"))
    environments = _read_environments(directory) if paths else []
    for path in paths:
        dataset = path.stem.removeprefix("runs-")
        try:
            with open(path, encoding="utf-8", newline="") as file:
                columns, *rows = csv.reader(file, strict=True)
            if columns[:1] != ["key"]:
                raise ValueError(columns)
            for row in rows:
                cells = zip(columns, row, strict=True)
                result = _nested({name: _value(cell) for name, cell in cells if cell})
                of_run = {name: result.pop(column) for name, column in _OF_THE_RUN if column in result}
                number = result.pop("environment")
                if number not in range(len(environments)):
                    raise IndexError(number)
                yield {
                    "key": result.pop("key"),
                    "dataset": dataset,
                    **result,
                    "environment": environments[number] | of_run,
                }
        except (ValueError, KeyError, IndexError, TypeError, csv.Error):
            raise not_results(path) from None


def _read_environments(directory: Path) -> list[dict[str, Any]]:
    path = directory / ENVIRONMENTS_FILE
    if not path.exists():
        return []
    try:
        environments = json.loads(path.read_text(encoding="utf-8"))["environments"]
        if isinstance(environments, list) and all(isinstance(environment, dict) for environment in environments):
            return environments
    except (ValueError, KeyError, TypeError):
        pass
    raise not_results(path)


def _flat(nested: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": of_inner for inner, of_inner in _flat(value).items()}
        elif value is not None:
            flat[name] = value
    return flat


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *outer, last = name.split(".")
        inside = nested
        for part in outer:
            inside = inside.setdefault(part, {})
        inside[last] = value
    return nested


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str) and value and _value(value) == value:
        return value
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _value(cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        return cell
