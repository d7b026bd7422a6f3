"""Do training runs in parallel, one thread each, and keep each result as it comes."""

from __future__ import annotations

import fcntl
import functools
import multiprocessing
import multiprocessing.connection
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import command, data, reporting
from benchmarks.study.runs import Run, Store
from benchmarks.training.auto import choose
from benchmarks.training.trainer import TrainingError, train


@functools.lru_cache(maxsize=2)
def _dataset(path: Path) -> data.InteractionData:
    return data.load_split_directory(path)


def _start_worker() -> None:
    torch.set_num_threads(1)
    os.nice(5)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End with the study: a worker that outlived it would go on writing checkpoints that another study may use."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _train(run: Run, path: Path, checkpoint: Path) -> dict[str, Any]:
    if run.auto:
        return _search(run, path, checkpoint)
    try:
        result = train(_dataset(path), run.ranking_loss, run.config, show_progress=False, checkpoint=checkpoint)
    except TrainingError as error:
        result = {
            "loss": run.loss,
            "loss_settings": run.ranking_loss.settings,
            "config": asdict(run.config),
            "diverged": str(error),
        }
    return result | {"environment": reporting.environment(run.config.device)}


def _search(run: Run, path: Path, checkpoint: Path) -> dict[str, Any]:
    """The settings that the search chose, as changes of those that it started from."""
    result: dict[str, Any] = {
        "loss": run.loss,
        "loss_settings": run.ranking_loss.settings,
        "config": asdict(run.config),
    }
    try:
        choice = choose(_dataset(path), run.loss, run.options, run.config, checkpoint=_search_directory(checkpoint))
    except TrainingError as error:
        result["diverged"] = str(error)
    else:
        result["auto"] = choice.report()
    return result | {"environment": reporting.environment(run.config.device)}


def _search_directory(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".search")


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep other processes from doing the same runs at the same time: they would write the same checkpoints."""
    with open(directory / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RuntimeError(
                f"{directory}: expected no other study running there, got one; wait until it ends"
            ) from None
        yield


def run_all(wanted: Callable[[], Iterable[Run]], store: Store, data_directory: Path, num_workers: int) -> int:
    """Do all wanted runs that the store does not have.

    Args:
        wanted: returns the runs, the most urgent first. It is called again after each result, since some runs depend on
            the results of others.
        store: gets the results. A run that is interrupted leaves its checkpoint there and goes on from it next time.
        data_directory: holds the data sets' folders.
        num_workers: how many runs there are at a time, each a process with one thread.

    Returns:
        How many runs were done.

    Raises:
        RuntimeError: another study is running with the same folder.
    """
    (store.directory / "runs").mkdir(parents=True, exist_ok=True)
    under_way: dict[Future[dict[str, Any]], Run] = {}
    done = 0
    context = multiprocessing.get_context("spawn")
    with (
        _alone_in(store.directory / "runs"),
        ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker) as pool,
    ):
        with command.progress(desc="runs", unit="run") as progress:
            try:
                while True:
                    keys = {run.key for run in under_way.values()}
                    pending = {run.key: run for run in wanted() if run not in store and run.key not in keys}
                    progress.total = done + len(under_way) + len(pending)
                    progress.refresh()
                    for run in list(pending.values())[: num_workers - len(under_way)]:
                        future = pool.submit(_train, run, data_directory / run.dataset, store.checkpoint(run))
                        under_way[future] = run
                    if not under_way:
                        return done
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        run = under_way.pop(future)
                        result = future.result()
                        if result.get("ended_by") == "interrupt":
                            raise KeyboardInterrupt
                        store.add(run, result)
                        # Not before: a search whose result was lost goes on from there.
                        shutil.rmtree(_search_directory(store.checkpoint(run)), ignore_errors=True)
                        done += 1
                        progress.set_postfix_str(run.key, refresh=False)
                        progress.update()
            except BaseException:
                for future in under_way:
                    future.cancel()
                raise
