"""The study: what it runs, what it keeps, how it chooses and what its tables show."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.common import reporting
from benchmarks.study import __main__ as study
from benchmarks.study import csv_results, grids, parts, published, report, step_times, workers
from benchmarks.study.kept import kept
from benchmarks.study.published import ELECTRONIC, GOWALLA, HEALTH
from benchmarks.study.runs import Run, Store, key_of
from benchmarks.study.summary import difference, summarise
from benchmarks.training.losses import LossOptions
from benchmarks.training.negatives import Negatives
from benchmarks.training.trainer import Trainer, TrainingConfig


def result_of(run: Run, validation: float = 0.1, test: float = 0.2) -> dict:
    """What training would have returned, with these values of NDCG."""
    settings = run.ranking_loss.settings
    estimate = {"final_false_negative_prior": 0.125} if "false_negative_prior" in settings else {}
    reranked = {"test_reranked": {"recall": 0.4, "ndcg": test + 0.4}} if settings.get("adapter_candidates") else {}
    return {
        **estimate,
        **reranked,
        "loss": run.loss,
        "loss_settings": settings,
        "config": {"seed": run.config.seed, "lr": run.config.lr, "weight_decay": run.config.weight_decay},
        "ended_by": "patience",
        "best_validation": {"recall": 0.5, "ndcg": validation},
        "test": {"recall": test + 0.1, "ndcg": test},
        "test_validation_masked": {"recall": test + 0.2, "ndcg": test + 0.3},
        "seconds": {"per_epoch": 2.0},
        "steps_per_epoch": 4,
        "environment": {"machine": "m", "time": run.config.seed},
        "shares_below": [0.5, 0.9, 0.99],
        "validation": [{"epoch": 5, "ndcg": validation}],
    }


def fill(store: Store, runs) -> dict[str, float]:
    """Give every run a test NDCG of its own; return it by key."""
    found = {}
    for index, run in enumerate(runs):
        found[run.key] = 0.1 + 0.001 * index
        store.add(run, result_of(run, test=found[run.key]))
    return found


# --- runs and what is kept of them ---


def test_a_run_is_told_by_what_its_loss_uses():
    run = Run(HEALTH, "sl")
    assert run.key == replace(run, options=LossOptions(floor=0.7, prior=0.2, top_positives=0.1)).key
    others = [
        replace(run, options=LossOptions(temperature=0.2)),
        replace(run, options=LossOptions(negatives=Negatives("full", None))),
        replace(run, config=TrainingConfig(lr=0.5)),
        replace(run, config=TrainingConfig(patience=3)),
        replace(run, dataset="gowalla"),
        replace(run, loss="cw"),
        run.with_seed(1),
    ]
    assert len({run.key, *(other.key for other in others)}) == 1 + len(others)
    assert run.with_seed(1).with_seed(0) == run


@pytest.mark.parametrize("more", [{"new": None}, {"new": False}, {"positive_temperature": None}])
def test_what_is_not_in_use_leaves_a_key_as_it_was(more):
    run = Run(HEALTH, "cw")
    assert key_of(HEALTH, "cw", run.ranking_loss.settings | more, asdict(run.config)) == run.key


def test_what_is_in_use_is_part_of_a_key():
    run = Run(HEALTH, "cw")
    settings, fields = run.ranking_loss.settings, asdict(run.config)
    others = [
        key_of(HEALTH, "cw", settings | more, fields)
        for more in ({"new": 0.0}, {"new": 0}, {"new": 1.0}, {"new": True}, {"other": True}, {"new": "a"})
    ]
    assert len({run.key, *others, key_of(HEALTH, "cw", settings, fields | {"new": 3})}) == 7 + 1


def test_a_field_that_came_later_is_part_of_a_key_where_it_is_not_at_its_default(monkeypatch):
    @dataclass(frozen=True)
    class LaterConfig(TrainingConfig):
        later: str = "adam"

    run = Run(HEALTH, "sl")
    monkeypatch.setattr("benchmarks.study.runs.TrainingConfig", LaterConfig)
    assert replace(run, config=LaterConfig()).key == run.key
    assert replace(run, config=LaterConfig(later="sgd")).key != run.key


def test_sl_with_a_temperature_of_the_positive_has_the_key_of_what_was_a_loss_of_its_own():
    settings, config = {**Run(HEALTH, "sl").ranking_loss.settings, "positive_temperature": 0.125}, TrainingConfig()
    digest = hashlib.sha256(json.dumps({"loss": settings, "config": asdict(config)}, sort_keys=True).encode())
    expected = f"{HEALTH}-mf-two-tau-seed0-{digest.hexdigest()[:12]}"
    assert key_of(HEALTH, "sl", settings, asdict(config)) == expected


def test_the_kept_results_are_found_by_what_the_parts_ask_for(checkout):
    store = Store(checkout / "benchmarks" / "results" / "study")
    keys = {result["key"] for result in store}
    assert keys and keys <= {run.key for part in parts.PARTS.values() for run in part(store)}


def test_the_store_keeps_results_and_hands_them_on(tmp_path):
    (tmp_path / "handed-on").mkdir()
    store, runs = Store(tmp_path), [Run(HEALTH, "sl").with_seed(seed) for seed in range(3)]
    found = fill(store, runs[:2])
    csv_results.write(tmp_path / "handed-on", store)
    for directory in (tmp_path, tmp_path / "handed-on"):
        again = Store(directory)
        assert [run in again for run in runs] == [True, True, False]
        assert [again[run]["test"]["ndcg"] for run in runs[:2]] == list(found.values())
        assert {result["dataset"] for result in again} == {HEALTH}
        assert [again[run]["environment"] for run in runs[:2]] == [{"machine": "m", "time": seed} for seed in (0, 1)]
    environments = json.loads((tmp_path / "handed-on" / "environments.json").read_text(encoding="utf-8"))
    assert environments == {"environments": [{"machine": "m"}]}


def test_values_come_back_from_a_file_as_they_were(tmp_path):
    numbers = {"a": 0.1 + 0.2, "b": 1e-300, "c": 5e-324, "d": -0.0, "e": 1.0, "f": 1, "g": 2**70, "h": 1 / 3}
    texts = {"a": "plain", "b": "0.1", "c": "true", "d": "", "e": 'a "b", c\nd', "f": "null", "g": " 1", "h": "NaN"}
    results = [
        {
            "key": f"k{number}",
            "dataset": dataset,
            "numbers": numbers,
            "texts": texts,
            "others": {"yes": True, "no": False, "list": [0.1, None, "a"], "deep": {"er": {"x": 1}}},
            "environment": {"machine": machine, "git_commit": commit, "time": str(number)},
            **more,
        }
        for number, dataset, machine, commit, more in (
            (0, "a", "x", "1234567e8", {}),
            (1, "b", "y", "c", {"only": 3}),
            (2, "b", "x", "c", {"π": "τ"}),
        )
    ]
    csv_results.write(tmp_path, reversed(results))
    read = {result["key"]: result for result in csv_results.read(tmp_path)}
    assert {path.name for path in tmp_path.iterdir()} == {"environments.json", "runs-a.csv", "runs-b.csv"}
    # Texts of the values, since 1 == 1.0 == True and 0.0 == -0.0.
    assert [json.dumps(read[result["key"]], sort_keys=True) for result in results] == [
        json.dumps(result, sort_keys=True) for result in results
    ]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    csv_results.write(tmp_path, read.values())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_none_is_left_out_and_a_machine_keeps_its_number(tmp_path):
    def result(key, machine):
        return {"key": key, "dataset": "a", "x": {"y": None, "z": 1}, "environment": {"machine": machine, "time": 0}}

    csv_results.write(tmp_path, [result("b", "first")])
    csv_results.write(tmp_path, [result("a", "second"), result("b", "first")])
    assert (tmp_path / "runs-a.csv").read_text(encoding="utf-8").splitlines() == [
        "key,environment,time,x.z", "a,1,0,1", "b,0,0,1"
    ]  # fmt: skip
    assert [read["x"] for read in csv_results.read(tmp_path)] == [{"z": 1}, {"z": 1}]


def test_a_failed_write_leaves_the_results_that_were_there(tmp_path, monkeypatch):
    result = {"key": "k", "dataset": "a", "environment": {"machine": "m", "time": 0}}
    csv_results.write(tmp_path, [result])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="JSON compliant"):
        csv_results.write(tmp_path, [result, result | {"key": "l", "value": float("nan")}])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_no_table_uses_is_not_handed_on(tmp_path):
    store, other = Store(tmp_path), Run(HEALTH, "sl", LossOptions(temperature=0.77))
    tried = [*grids.search_runs(HEALTH, "sl"), other]
    fill(store, tried)
    # What the searches will choose is not known yet.
    assert {result["key"] for result in kept(store, parts.PARTS)} == {run.key for run in tried}
    while runs := [run for part in parts.PARTS.values() for run in part(store) if run not in store]:
        fill(store, dict.fromkeys(runs))
    handed_on = {result["key"]: result for result in kept(store, parts.PARTS)}
    assert {result["key"] for result in store} - handed_on.keys() == {other.key}
    with_shares = {key for key, result in handed_on.items() if "shares_below" in result}
    taken = [run for dataset in parts.NUMBER_DATASETS for run in parts.compared_runs(store, dataset, "mf", "sl")]
    assert with_shares == {run.key for run in taken}
    assert not any("validation" in result for result in handed_on.values())


def test_the_report_is_the_same_from_what_is_handed_on(tmp_path):
    store = Store(tmp_path)
    while runs := [run for part in parts.PARTS.values() for run in part(store) if run not in store]:
        fill(store, dict.fromkeys(runs))
    (tmp_path / "handed-on").mkdir()
    csv_results.write(tmp_path / "handed-on", kept(store, parts.PARTS))
    for directory in (tmp_path, tmp_path / "handed-on"):
        report.write_report(Store(directory), directory)
    for name in ("tables.md", "numbers.png"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "handed-on" / name).read_bytes()


def test_a_result_drops_its_checkpoint_only_once_it_is_written(tmp_path, monkeypatch):
    store, run = Store(tmp_path), Run(HEALTH, "sl")
    (tmp_path / "runs").mkdir()
    store.checkpoint(run).write_bytes(b"state")

    def fail(*arguments):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.common.reporting.write_json", fail)
        with pytest.raises(OSError, match="disk full"):
            store.add(run, result_of(run))
    assert store.checkpoint(run).exists()
    store.add(run, result_of(run))
    assert not store.checkpoint(run).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"loss": "sl"}'])
def test_what_is_no_result_is_refused(tmp_path, content, capsys):
    (tmp_path / "runs").mkdir()
    path = tmp_path / "runs" / "broken.json"
    path.write_text(content, encoding="utf-8")
    assert study.main(["--report", "--out", str(tmp_path)]) == 2
    assert f"error: {path}: expected results of the study" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == content


@pytest.mark.parametrize(
    "content",
    [
        "", "\n", "a,b\n1,2\n", "key\na\n", "environment\n0\n", "key,environment\na,1\n", "key,environment\na,-1\n",
        "key,environment\na\n", "key,environment\na,0,1\n", 'key,environment\n"a,0\n', "key,environment\n,0\n",
        "key,environment,x,x.y\na,0,1,2\n",
    ],
)  # fmt: skip
def test_what_is_no_table_of_runs_is_refused(tmp_path, content, capsys):
    path = tmp_path / "runs-a.csv"
    (tmp_path / "environments.json").write_text('{"environments": [{}]}', encoding="utf-8")
    path.write_text(content, encoding="utf-8")
    assert study.main(["--report", "--out", str(tmp_path)]) == 2
    assert f"error: {path}: expected results of the study" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == content


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"environments": {}}', '{"environments": [1]}'])
def test_what_is_no_list_of_machines_is_refused(tmp_path, content, capsys):
    (tmp_path / "runs-a.csv").write_text("key,environment\na,0\n", encoding="utf-8")
    (tmp_path / "environments.json").write_text(content, encoding="utf-8")
    assert study.main(["--report", "--out", str(tmp_path)]) == 2
    assert f"error: {tmp_path / 'environments.json'}: expected results of the study" in capsys.readouterr().err


# --- what is asked for ---


def test_all_losses_are_searched_alike():
    assert {len(grid) for grid in grids.GRIDS.values()} == {8}
    assert set(grids.GRIDS) == set(grids.LOSSES)
    for loss in grids.LOSSES:
        assert len({run.key for run in grids.search_runs(HEALTH, loss)}) == 8


def test_the_best_validation_is_chosen_when_all_is_known(tmp_path):
    store, runs = Store(tmp_path), grids.search_runs(HEALTH, "infonce")
    for index, run in enumerate(runs):
        assert grids.chosen(store, HEALTH, "infonce") is None
        store.add(run, result_of(run, validation=0.3 if index == 2 else 0.1))
    chosen = grids.chosen(store, HEALTH, "infonce")
    assert chosen == grids.with_negatives(runs[2], Negatives("uniform", 1000))
    assert grids.chosen(store, HEALTH, "infonce", "lightgcn").config == replace(chosen.config, model="lightgcn")
    store.add(runs[2], {"loss": "infonce", "loss_settings": {}, "diverged": "NaN"})
    assert grids.chosen(store, HEALTH, "infonce").options.temperature != chosen.options.temperature


def test_a_loss_searched_on_each_model_does_not_take_what_is_best_on_mf(tmp_path):
    store = Store(tmp_path)
    for model, best in (("mf", 2), ("lightgcn", 5)):
        assert grids.chosen(store, HEALTH, "sl", model) is None
        for index, run in enumerate(grids.search_runs(HEALTH, "sl", model)):
            store.add(run, result_of(run, validation=0.3 if index == best else 0.1))
        expected = grids.with_negatives(grids.search_runs(HEALTH, "sl", model)[best], Negatives("uniform", 1000))
        assert grids.chosen(store, HEALTH, "sl", model) == expected
        assert expected.config.model == model


def test_one_setting_needs_no_search_and_several_do(tmp_path):
    store, tries = Store(tmp_path), grids.search_runs(GOWALLA, "cw")
    (given,) = grids.search_runs(GOWALLA, "sl")
    assert grids.chosen(store, GOWALLA, "sl") == given
    assert len(tries) > 1 and grids.chosen(store, GOWALLA, "cw") is None
    searched = {run.key for run in parts.searches(store)}
    assert {run.key for run in tries} <= searched and given.key not in searched
    for run in tries:
        assert grids.chosen(store, GOWALLA, "cw") is None
        store.add(run, result_of(run, validation=0.3 if run == tries[1] else 0.1))
    assert grids.chosen(store, GOWALLA, "cw") == tries[1]


@pytest.mark.parametrize(("dataset", "model"), list(parts.MODEL_TRIES))
def test_a_models_own_settings_are_what_is_best_for_sl(tmp_path, dataset, model):
    store, tries = Store(tmp_path), parts.MODEL_TRIES[dataset, model]
    for loss in ("sl", "cw"):
        for run in grids.search_runs(dataset, loss, model):
            store.add(run, result_of(run))
    runs = parts.model_tries(store, dataset, model)
    assert len(runs) == len(tries) > 1
    for run, changes in zip(runs, tries, strict=True):
        assert run.config == replace(run.config, model=model, **changes)
        assert parts.compared_runs(store, dataset, model, "cw") == []
        store.add(run, result_of(run, validation=0.2 if changes == tries[-1] else 0.1))
    for loss in ("sl", "cw"):
        found = parts.compared_runs(store, dataset, model, loss)
        assert [run.config.seed for run in found] == list(range(parts.COMPARED[dataset, model][1]))
        assert all(run.config == replace(run.config, model=model, **tries[-1]) for run in found)


def test_every_part_lists_runs_that_can_be(tmp_path):
    store = Store(tmp_path)
    while runs := [run for part in parts.PARTS.values() for run in part(store) if run not in store]:
        fill(store, dict.fromkeys(runs))  # with these, the runs that depend on them become known
    assert len(list(store)) > 300
    assert {result["loss"] for result in store} == {*grids.LOSSES, "talos"}
    for share in parts.SHARES:
        known, unknown = parts.noise_runs(store, "cw-known-prior", share), parts.noise_runs(store, "cw", share)
        assert {run.options.prior for run in known} == {share}
        assert {run.config.false_negatives for run in [*known, *unknown]} == {share}


def test_combinations_differ_from_sl_at_20_in_what_they_say(tmp_path):
    store = Store(tmp_path)
    fill(store, parts.searches(store))
    for dataset in parts.COMBINED_DATASETS:
        (base, *_) = parts.compared_runs(store, dataset, "mf", "slk")
        for name, changes in parts.COMBINATIONS.items():
            (run,) = parts.combination_runs(store, dataset, name)
            settings, without = run.ranking_loss.settings, base.ranking_loss.settings
            assert run.config == base.config
            told = {key for key in without if settings[key] != without[key]}
            assert told == changes.keys() & without.keys() and settings["confidence_top_k"] == 20
            assert {key: settings[key] for key in changes} == changes


def test_contestants_take_the_settings_that_validate_best_without_added_noise(tmp_path):
    store, name = Store(tmp_path), "SL, 1 − p_FN"
    assert parts.contestant_tries(store, name) == parts.contestant_runs(store, name, 0.3) == []
    for index, run in enumerate(grids.search_runs(HEALTH, "sl")):
        store.add(run, result_of(run, validation=0.3 if index == 2 else 0.1))
    tries, base = parts.contestant_tries(store, name), grids.chosen(store, HEALTH, "sl")
    assert len(tries) == len({run.key for run in tries}) == len(parts.CONTESTANTS[name].tries)
    assert {run.key for run in tries} <= {run.key for run in parts.contestant_searches(store)}
    for run in tries:
        assert parts.contestant_runs(store, name, 0.3) == []
        assert (run.config, run.options.temperature) == (base.config, base.options.temperature)
        store.add(run, result_of(run, validation=0.3 if run == tries[1] else 0.1))
    for share in parts.ESTIMATED_SHARES:
        runs = parts.contestant_runs(store, name, share)
        assert [run.config for run in runs] == [
            replace(base.config, false_negatives=share, seed=seed) for seed in (0, 1, 2)
        ]
        assert {run.options for run in runs} == {replace(tries[1].options, negatives=grids.NEGATIVES)}


def test_a_contestant_that_estimates_its_prior_needs_no_search(tmp_path):
    store, name = Store(tmp_path), "SL, 1 − p_FN, π estimated"
    fill(store, grids.search_runs(HEALTH, "sl"))
    runs = parts.contestant_runs(store, name, 0.5)
    assert {run.ranking_loss.settings["false_negative_prior"] for run in runs} == {"auto"}
    assert not {run.key for run in parts.contestant_tries(store, name)} & {
        run.key for run in parts.contestant_searches(store)
    }


# --- tables ---


def test_tables_say_what_was_found(tmp_path):
    store = Store(tmp_path)
    for run in grids.search_runs(HEALTH, "sl") + grids.search_runs(HEALTH, "cw"):
        store.add(run, result_of(run))
    runs = {loss: parts.compared_runs(store, HEALTH, "mf", loss) for loss in ("sl", "cw")}
    assert [len(of_loss) for of_loss in runs.values()] == [5, 5]
    found = fill(store, runs["sl"] + runs["cw"][:3])
    means = {}
    for loss, number in (("sl", 5), ("cw", 3)):
        values = [found[run.key] for run in runs[loss][:number]]
        summary = summarise(store, runs[loss])
        assert summary.mean("ndcg") == pytest.approx(statistics.mean(values))
        assert summary.deviation("ndcg") == pytest.approx(statistics.stdev(values))
        means[loss] = statistics.mean(values)
    written = report.write_report(store, tmp_path)
    assert {"tables.md", "comparison.png"} <= {path.name for path in written}
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| cw | 3 |"))
    assert f"{means['cw']:.4f} ± " in line
    assert f"{100 * (means['cw'] / means['sl'] - 1):+.1f} %" in line
    line = next(line for line in text.splitlines() if line.startswith("| sl | 5 |"))
    assert ".1719 / 0.1261" in line and difference(means["sl"], 0.1261) in line


def test_the_table_of_contestants_has_what_was_found_at_each_share(tmp_path):
    store = Store(tmp_path)
    fill(store, parts.searches(store))
    fill(store, parts.contestant_searches(store))
    runs = {share: parts.contestant_runs(store, "SL, adapter", share) for share in (0.0, 0.3)}
    found = fill(store, [run for of_share in runs.values() for run in of_share])
    fill(store, parts.contestant_runs(store, "SL, 1 − p_FN, π estimated", 0.1)[:2])
    text = report._estimated(store)
    means = {share: statistics.mean(found[run.key] for run in of_share) for share, of_share in runs.items()}
    cells = [f"{means[0.0] + more:.4f} ± 0.0010 |  | {means[0.3] + more:.4f} ± 0.0010 |  |" for more in (0, 0.4)]
    assert f"| SL, adapter | {cells[0]}" in text
    assert f"| SL, adapter, reranked | {cells[1]}" in text
    assert "| SL, 1 − p_FN, π estimated: π |  | 0.125, 0.125 |  |  |" in text
    assert "SL@20 |" not in text and "CW" not in text  # nothing is known of them


def test_a_search_in_which_all_diverged_says_so(tmp_path):
    store = Store(tmp_path)
    for run in grids.search_runs(HEALTH, "sl"):
        store.add(run, result_of(run) | {"diverged": "NaN"})
    with pytest.raises(RuntimeError, match=f"sl on {HEALTH}: expected a run that converges"):
        grids.chosen(store, HEALTH, "sl")


def test_negatives_by_score_are_tried_with_the_losss_own_settings(tmp_path):
    store = Store(tmp_path)
    assert parts.sampled(store) == []
    fill(store, parts.searches(store))
    keys = [run.key for run in parts.sampled(store)]
    assert len(keys) == len(set(keys)) == 3 * len(parts.SAMPLED)
    plain = {run.key for number in (10, 100) for run in parts.number_runs(store, HEALTH, "sl", number)}
    assert plain <= set(keys), "what is done already is not done again"
    for name, (loss, negatives, _) in parts.SAMPLED.items():
        for seed, run in enumerate(parts.sampled_runs(store, name)):
            base = grids.with_negatives(grids.chosen(store, HEALTH, loss), Negatives.parse(negatives)).with_seed(seed)
            assert run.config == base.config and run.loss == loss
            settings = run.ranking_loss.settings
            assert settings.get("scored_corrected", False) == name.endswith("corrected")
            if "mild" in name:
                assert settings.get("sampler_temperature", settings.get("chain_temperature")) == 0.375
            elif not name.endswith("corrected"):
                assert run.key == base.key


def test_one_seed_has_no_deviation_and_a_diverged_run_no_mean(tmp_path):
    store, run = Store(tmp_path), Run(HEALTH, "sl")
    assert summarise(store, [run]) is None
    store.add(run, result_of(run, test=0.25))
    assert summarise(store, [run]).text("ndcg") == "0.2500"
    store.add(run, {"loss": "sl", "loss_settings": {}, "diverged": "NaN"})
    assert summarise(store, [run]) is None


def test_all_plots_and_tables_of_a_whole_study(tmp_path):
    store = Store(tmp_path)
    while runs := [run for part in parts.PARTS.values() for run in part(store) if run not in store]:
        fill(store, dict.fromkeys(runs))
    written = {path.name for path in report.write_report(store, tmp_path)}
    assert written == {"tables.md", "comparison.png", "stages.png", "noise.png", "estimated.png", "numbers.png"}
    assert {path.name for path in tmp_path.iterdir()} == {*written, "runs"}
    sections = [line for line in (tmp_path / "tables.md").read_text(encoding="utf-8").splitlines() if line[:2] == "##"]
    assert len(sections) == len(parts.COMPARED) + 12


def test_published_numbers_are_found_by_data_model_and_loss():
    assert published.published("gowalla", "lightgcn", "slk") == (0.2128, 0.1729)
    assert published.published("gowalla", "mf", "cw") is None
    assert published.published("gowalla", "mf", "psl-tanh") == (0.2088, 0.1646)
    assert published.published("amazon2014-health", "mf", "psl-tanh") is None
    assert published.published("other", "mf", "sl") is None


# --- times of steps ---


def test_steps_are_timed_by_loss_and_number_and_shown(small, tmp_path, monkeypatch):
    out = tmp_path / "out"
    store = Store(out)
    monkeypatch.setattr(parts, "NUMBERS", (2, 8))
    monkeypatch.setattr(parts, "NUMBER_DATASETS", (HEALTH,))
    fill(store, parts.searches(store))
    fill(
        store,
        [run for loss in parts.NUMBER_LOSSES for n in (2, 8) for run in parts.number_runs(store, HEALTH, loss, n)],
    )
    steps = []
    train_step = Trainer.train_step

    def counted(trainer, batch):
        steps.append((trainer.loss.name, trainer.loss.negatives.number, torch.get_num_threads()))
        return train_step(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", counted)
    threads = torch.get_num_threads()
    arguments = [*small[:4], "--rounds", "3"]
    assert step_times.main(arguments) == 0
    expected = {(loss, number) for loss in parts.NUMBER_LOSSES for number in (2, 8)}
    assert Counter(steps) == {(*pair, 1): 2 * 3 for pair in expected}  # one before each that is timed
    assert torch.get_num_threads() == threads
    times = step_times.read(out)
    assert {(loss, int(number)) for loss, of_loss in times[HEALTH].items() for number in of_loss} == expected
    for seconds in (seconds for of_loss in times[HEALTH].values() for seconds in of_loss.values()):
        assert 0 < seconds["q20"] <= seconds["median"] <= seconds["q80"]
    times[HEALTH]["cw"]["8"] = {"q20": 0.0011, "median": 0.0022, "q80": 0.0033}
    reporting.write_json(out / step_times.TIMES_FILE, {"datasets": times})
    report.write_report(store, out)
    assert "| 2.2 (1.1 to 3.3) |" in (out / "tables.md").read_text(encoding="utf-8")


def test_times_need_hyper_parameters_and_data(small, tmp_path, capsys):
    out = tmp_path / "out"
    assert step_times.main(small[:4]) == 2
    assert f"search of sl's hyper-parameters on {HEALTH}" in capsys.readouterr().err
    fill(Store(out), parts.searches(Store(out)))
    assert step_times.main(small[:4]) == 2
    assert str(tmp_path / "data" / ELECTRONIC) in capsys.readouterr().err
    assert not (out / step_times.TIMES_FILE).exists()


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_what_is_no_times_is_refused(tmp_path, content):
    (tmp_path / step_times.TIMES_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=step_times.TIMES_FILE):
        step_times.read(tmp_path)


# --- training ---


@pytest.fixture
def small(tmp_path: Path, monkeypatch) -> list[str]:
    """Arguments of a study of two losses, with two seeds each, on a small data set."""
    rng = np.random.default_rng(0)
    directory = tmp_path / "data" / HEALTH
    directory.mkdir(parents=True)
    items = np.array([rng.permutation(24)[:10] for _ in range(30)])
    items[0, 0] = 23  # so that the ids of the training items reach to the end
    for name, columns in (("train", items[:, :8]), ("test", items[:, 8:])):
        lines = [f"{user}\t{item}\n" for user, row in enumerate(columns) for item in row]
        (directory / f"{name}.tsv").write_text("user_procid\titem_procid\n" + "".join(lines), encoding="utf-8")
    options = LossOptions(negatives=Negatives("uniform", 8))
    config = TrainingConfig(dim=4, epochs=2, eval_every=1)
    runs = [Run(HEALTH, loss, options, config).with_seed(seed) for loss in ("sl", "bpr") for seed in (0, 1)]
    monkeypatch.setattr(study, "PARTS", {"comparison": lambda store: runs})
    where = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    return [*where, "--datasets", HEALTH, "--parts", "comparison"]


def test_the_study_trains_what_is_missing_only(small, tmp_path, capsys):
    assert study.main([*small, "--list", "--seeds", "1"]) == 0
    assert len(capsys.readouterr().out.split()) == 2
    assert study.main([*small, "--workers", "1", "--seeds", "1"]) == 0
    assert study.main([*small, "--list"]) == 0
    assert len(capsys.readouterr().out.split()[-2:]) == 2
    first = {path.name: path.read_bytes() for path in (tmp_path / "out" / "runs").glob("*.json")}
    assert len(first) == 2
    assert study.main([*small, "--workers", "2"]) == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "out" / "runs").glob("*.json")}
    assert len(files) == 4 and first.items() <= files.items()
    handed_on = list(csv_results.read(tmp_path / "out"))
    assert {run["key"] for run in handed_on} == {name.removesuffix(".json") for name in files}
    for run in handed_on:
        assert run["epochs"] == 2 and 0 <= run["test"]["ndcg"] <= 1


class Here:
    """A pool of one that works in this process."""

    def __init__(self, *arguments, **named):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *arguments):
        future = workers.Future()
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # as a pool hands it on
            future.set_exception(error)
        return future


def test_an_interrupted_run_goes_on_next_time(small, tmp_path, monkeypatch):
    store = Store(tmp_path / "out")
    runs = list(study.PARTS["comparison"](store))[:1]

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Here)
    train_epoch, calls = Trainer._train_epoch, []

    def interrupt(trainer):
        calls.append(trainer.epoch)
        if calls == [0, 1]:
            raise KeyboardInterrupt
        return train_epoch(trainer)

    monkeypatch.setattr(Trainer, "_train_epoch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        workers.run_all(lambda: runs, store, tmp_path / "data", 1)
    assert runs[0] not in store and store.checkpoint(runs[0]).exists()
    assert workers.run_all(lambda: runs, store, tmp_path / "data", 1) == 1
    assert calls == [0, 1, 1]  # the first epoch is not done again
    assert runs[0] in store and not store.checkpoint(runs[0]).exists()


def test_a_search_whose_result_was_not_written_is_not_done_again(small, tmp_path, monkeypatch):
    store = Store(tmp_path / "out")
    run = replace(next(iter(study.PARTS["comparison"](store))), auto=True)
    monkeypatch.setattr(workers, "ProcessPoolExecutor", Here)
    train_epoch, calls = Trainer._train_epoch, []

    def count(trainer):
        calls.append(trainer.epoch)
        return train_epoch(trainer)

    monkeypatch.setattr(Trainer, "_train_epoch", count)
    with monkeypatch.context() as full_disk:
        full_disk.setattr(Store, "add", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            workers.run_all(lambda: [run], store, tmp_path / "data", 1)
    trained = len(calls)
    assert workers.run_all(lambda: [run], store, tmp_path / "data", 1) == 1
    assert 0 < trained == len(calls)
    assert store[run]["auto"]["epochs"] == trained
    assert [path.name for path in (tmp_path / "out" / "runs").iterdir() if path.is_dir()] == []


def test_two_studies_do_not_share_a_folder(tmp_path):
    store = Store(tmp_path)

    def again():
        with pytest.raises(RuntimeError, match="expected no other study running there"):
            workers.run_all(list, store, tmp_path, 1)
        return []

    assert workers.run_all(again, store, tmp_path, 1) == 0


def test_missing_data_is_said_before_training(small, tmp_path, capsys):
    arguments = ["--data", str(tmp_path / "none"), *small[2:]]
    assert study.main(arguments) == 2
    assert f"{tmp_path / 'none' / HEALTH}: expected a folder with train.tsv and test.tsv" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("runs/*"))
