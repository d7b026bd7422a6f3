"""The study with settings that ``--auto`` chose: its runs, tables and plots, from results that are made up."""

from __future__ import annotations

from dataclasses import asdict
from statistics import mean

import pytest

from benchmarks.study import searched, searched_report
from benchmarks.study.kept import kept
from benchmarks.study.parts import PARTS
from benchmarks.study.published import HEALTH
from benchmarks.study.runs import Store
from benchmarks.study.searched import CONTESTS
from benchmarks.training.search_spaces import search_space

# Unlike what the search starts from.
CHOSEN = {"sl": {"temperature": 0.07}, "slk": {"temperature": 0.2, "confidence_temperature": 3.0},
          "cw": {"temperature": 0.14, "prior": 0.03, "likely_positives": "auto", "extra_positives": 20}}  # fmt: skip
NDCG = {"sl": 0.12, "slk": 0.15, "cw": 0.16}
NOISE, PLAIN = searched.CONTESTS[4], searched.CONTESTS[0]


def _lists(ndcg: float) -> dict[str, float]:
    return {"recall": 2 * ndcg, "ndcg": ndcg, "balanced_ndcg": ndcg / 2, "mean_popularity": 40.0, "coverage": 0.5,
            "gini": 0.7}  # fmt: skip


def _with_result(store: Store, run, **result) -> None:
    common = {"loss": run.loss, "loss_settings": run.ranking_loss.settings, "config": asdict(run.config)}
    store.add(run, common | result | {"environment": {"time": "now", "git_commit": "abc"}})


@pytest.fixture
def store(tmp_path) -> Store:
    """Searches and runs of SL, SL@20 and CW, where CW's advantage over SL@20 is .01 and less in later seeds."""
    store = Store(tmp_path)
    for contest in CONTESTS:
        for loss in searched.DECISIVE:
            if searched.search(contest, loss) not in store:
                auto = {"chosen": CHOSEN[loss], "reason": "it is best", "epochs": 60, "seconds": 1.0, "tries": [1, 2]}
                _with_result(store, searched.search(contest, loss), auto=auto)
    runs = [run for name in ("searched", "dial", "candidates") for run in PARTS[name](store)]
    for run in dict.fromkeys(runs):
        if run not in store and not run.auto:
            ndcg = NDCG[run.loss] - (0.004 * run.config.seed if run.loss == "cw" else 0)
            _with_result(store, run, test=_lists(ndcg), epochs=50, seconds={"per_epoch": 1.0})
    return store


def test_runs_have_what_the_search_chose_and_what_it_starts_from(store):
    for contest in CONTESTS:
        for loss in searched.DECISIVE:
            runs = searched.contest_runs(store, contest, loss)
            assert [run.config.seed for run in runs] == list(range(contest.seeds))
            for run in runs:
                expected = dict(search_space(loss).fixed) | CHOSEN[loss]
                assert {name: getattr(run.options, name) for name in expected} == expected
                assert not run.auto
                assert run.config.false_negatives == contest.false_negatives


def test_nothing_is_trained_before_its_search(tmp_path):
    runs = [run for name in ("searched", "dial", "candidates") for run in PARTS[name](Store(tmp_path))]
    assert runs and all(run.auto for run in runs)


def test_false_negatives_take_the_settings_of_the_data_as_they_are(store):
    assert NOISE.false_negatives is not None
    assert searched.search(NOISE, "cw") == searched.search(PLAIN, "cw")
    run = searched.contest_runs(store, NOISE, "cw")[0]
    assert run.options.negatives.kind == "uniform"  # false ones are put among those of each row


def test_a_search_and_a_training_from_the_same_settings_have_different_keys():
    run = searched.search(PLAIN, "sl")
    assert run.key.removesuffix("-auto") != run.key


def test_the_overview_says_how_far_cw_is_ahead(store):
    text = searched_report.overview(store)
    row = next(line for line in text.splitlines() if line.startswith("| Health, mf |"))
    # By seed .16, .156, .152, .148, .144 against .15.
    assert "| 3 of 5 |" in row
    gain = 100 * (mean((0.16, 0.156, 0.152, 0.148, 0.144)) / 0.15 - 1)
    assert f"{gain:+.1f} %" in row
    gains = [100 * (mean(0.16 - 0.004 * seed for seed in range(seeds)) / 0.15 - 1) for seeds in (5, 3, 3)]
    assert f"CW is {mean(gains):+.1f} % against SL@20 on average" in text


def test_tables_have_the_lists_numbers_and_the_settings(store):
    text = searched_report.contests(store)
    assert "balanced NDCG@20" in text and "τ=0.14 π=0.03" in text and "60 + 50" in text
    assert searched_report.dial(store).count("pull × 0.8") == 4  # of two losses on two data sets
    for name in searched.CANDIDATES:
        assert f"| {name} |" in searched_report.candidates(store)


def test_the_front_is_drawn(store, tmp_path):
    files = searched_report.draw_fronts(store, tmp_path)
    assert [file.name for file in files] == ["front-health.png", "front-electronic.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    labels = [point.setting or point.loss for point in searched_report.front_points(store, HEALTH)]
    assert labels.count("SL@20") == 1 and labels.count("CW × 0.8") == 1


def test_searches_are_kept_without_their_tries(store):
    found = [result["auto"] for result in kept(store, PARTS) if "auto" in result]
    assert found and all(result["epochs"] == 60 and "tries" not in result for result in found)
