"""The experiment on the estimated negative mass: its truth, what cw_loss makes of it, and what is written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from benchmarks.negative_mass import __main__ as negative_mass
from benchmarks.negative_mass import estimated
from benchmarks.negative_mass.__main__ import ESTIMATORS, SWEEPS, Setting

ROWS = 4000
# Where no estimate of any row is at its floor, so that (A − πC)/(1 − π) is what all of them are.
FREE = [
    ("sigmoid", Setting(0.1, 100, 10)),
    ("sigmoid", Setting(0.05, 20, 50)),
    ("sigmoid", Setting(0.05, 200, 1)),
    ("none", Setting(0.03, 500, 50)),
]
WITHOUT_FLOOR = ("uncorrected", "corrected", "half", "double")


def measure(setting: Setting, weighting: str, rows: int = ROWS) -> dict[str, dict[str, float]]:
    return negative_mass.measure(setting, (weighting,), rows, torch.Generator().manual_seed(5))[weighting]


def moments(weighting: str, mean: float) -> tuple[float, float]:
    """Mean and variance of ω(d)·exp(d/τ), integrated numerically."""

    def value(d):
        return math.exp(d / 0.1) / (1 + math.exp(d / 0.1) if weighting == "sigmoid" else 1)

    def integral(power):
        bounds = {"a": mean - 1.5, "b": mean + 1.5, "points": [mean, mean + 0.1, mean + 0.2], "limit": 500}
        return quad(lambda d: value(d) ** power * norm.pdf(d, mean, 0.1), **bounds, epsabs=0, epsrel=1e-12)[0]

    return integral(1), integral(2) - integral(1) ** 2


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("mean", [negative_mass.POSITIVE_MEAN, negative_mass.NEGATIVE_MEAN])
@pytest.mark.parametrize("weighting", negative_mass.WEIGHTINGS)
def test_the_truth_is_that_of_the_margins(weighting, mean):
    assert (negative_mass.TEMPERATURE, negative_mass.SPREAD) == (0.1, 0.1)
    assert negative_mass.truth(weighting, mean) == pytest.approx(moments(weighting, mean), rel=1e-9)


def test_an_unknown_weighting_has_no_truth():
    with pytest.raises(ValueError, match="weighting must be one of sigmoid, none, got linear"):
        negative_mass.truth("linear", 0.0)


def test_margins_are_drawn_from_the_mixture():
    setting = Setting(0.3, 400, 40)
    negatives, positives = negative_mass.draw(setting, 500, torch.Generator().manual_seed(0))
    assert (negatives.shape, positives.shape) == ((500, 400), (500, 40))
    assert negatives.dtype == positives.dtype == torch.float64

    def cdf(x):
        return 0.3 * norm.cdf(x, 0, 0.1) + 0.7 * norm.cdf(x, -0.2, 0.1)

    for drawn, distribution in ((negatives, cdf), (positives, lambda x: norm.cdf(x, 0, 0.1))):
        x = np.sort(drawn.numpy(), axis=None)
        distance = np.abs(np.arange(1, len(x) + 1) / len(x) - distribution(x)).max()
        assert distance < 2 / math.sqrt(len(x))  # Kolmogorov and Smirnov's; further away once in 1500 draws


# --- what is estimated ---


@pytest.mark.parametrize(("weighting", "setting"), FREE)
def test_the_corrected_mass_is_unbiased_and_the_uncorrected_off_by_its_positives(weighting, setting):
    found = measure(setting, weighting)
    assert found["corrected"]["at_floor"] == 0
    assert abs(found["corrected"]["bias"]) < 4 * found["corrected"]["bias_se"]
    negative, positive = moments(weighting, -0.2)[0], moments(weighting, 0)[0]
    bias = setting.prior * (positive - negative) / negative
    assert abs(found["uncorrected"]["bias"] - bias) < 4 * found["uncorrected"]["bias_se"]
    # So that an estimate of the one kind cannot pass for the other.
    assert bias > 10 * found["corrected"]["bias_se"]


@pytest.mark.parametrize(("weighting", "setting"), FREE)
def test_a_wrong_prior_is_off_by_what_it_misses(weighting, setting):
    found = measure(setting, weighting)
    negative, positive = moments(weighting, -0.2)[0], moments(weighting, 0)[0]
    for name, prior in (("half", setting.prior / 2), ("double", 2 * setting.prior)):
        bias = (setting.prior - prior) * (positive - negative) / ((1 - prior) * negative)
        assert found[name]["expected_bias"] == pytest.approx(bias, rel=1e-9)
        assert found[name]["at_floor"] == 0
        assert abs(found[name]["bias"] - bias) < 4 * found[name]["bias_se"]
        assert abs(bias) > 10 * found[name]["bias_se"]


@pytest.mark.parametrize(("weighting", "setting"), FREE)
def test_the_spread_is_that_of_both_means(weighting, setting):
    found = measure(setting, weighting)
    (negative, negative_variance), (positive, positive_variance) = moments(weighting, -0.2), moments(weighting, 0)
    share = setting.prior
    of_mixture = share * positive_variance + (1 - share) * negative_variance
    of_mixture += share * (1 - share) * (positive - negative) ** 2
    for name in WITHOUT_FLOOR:
        prior = ESTIMATORS[name].prior_factor * share
        variance = of_mixture / setting.negatives + prior**2 * positive_variance / setting.positives
        std = math.sqrt(variance) / (1 - prior) / negative
        assert found[name]["expected_std"] == pytest.approx(std, rel=1e-9)
        assert abs(found[name]["std"] - std) < 4 * found[name]["std_se"]
        assert found[name]["std_se"] < 0.1 * std


@pytest.mark.parametrize(("weighting", "at_zero"), [("sigmoid", 0.5), ("none", 1.0)])
def test_without_extra_positives_one_at_the_positive_is_taken_out(weighting, at_zero):
    found = measure(Setting(0.05, 500, 0), weighting)["corrected"]
    negative, positive = moments(weighting, -0.2)[0], moments(weighting, 0)[0]
    bias = 0.05 * (positive - at_zero) / (0.95 * negative)
    assert found["expected_bias"] == pytest.approx(bias, abs=1e-9)
    assert abs(found["bias"] - bias) < 4 * found["bias_se"] < 0.02


def test_the_floor_trades_bias_for_spread():
    found = measure(Setting(0.5, 100, 5), "sigmoid")
    corrected, floored, uncorrected = (found[name] for name in ("corrected", "floored", "uncorrected"))
    # Only where A < πC, where the logarithm does not exist, does the estimate without a floor depart from the truth.
    assert 0 < corrected["at_floor"] < 0.2 < floored["at_floor"] < 1
    assert 0 < corrected["bias"] + 4 * corrected["bias_se"] < floored["bias"] < uncorrected["bias"]
    assert uncorrected["std"] < floored["std"] < corrected["std"] < corrected["expected_std"]
    assert floored["loss_std"] < 0.2 * corrected["loss_std"]


def test_dcls_floor_is_absolute():
    found = measure(Setting(0.5, 100, 5), "sigmoid")
    dcl, corrected = found["dcl"], found["corrected"]
    # It is far below the mass, but above a millionth of A.
    assert 0 < corrected["at_floor"] <= dcl["at_floor"] < corrected["at_floor"] + 0.01
    assert corrected["bias"] < dcl["bias"] < corrected["bias"] + math.exp(-10) / 0.5 / 0.1
    assert corrected["loss_bias"] < dcl["loss_bias"]
    assert dcl["loss_std"] < corrected["loss_std"]


def test_the_loss_is_below_the_log_of_the_mass_by_half_the_variance():
    found = measure(Setting(0.0, 10, 10), "sigmoid")["uncorrected"]
    half = found["std"] ** 2 / 2
    # The next terms of the logarithm's series come to a tenth of that.
    assert abs(found["loss_bias"] + half) < 4 * found["loss_bias_se"] + 0.1 * half < 0.75 * half
    assert found["loss_bias_se"] == pytest.approx(found["loss_std"] / math.sqrt(ROWS))


def test_without_positives_nothing_is_taken_out():
    found = measure(Setting(0.0, 50, 3), "none", rows=200)
    for name in ESTIMATORS:
        assert {key: found[name][key] for key in ("bias", "std", "loss_bias")} == pytest.approx(
            {key: found["uncorrected"][key] for key in ("bias", "std", "loss_bias")}, rel=1e-9
        )


def test_a_prior_of_1_is_left_out():
    assert list(measure(Setting(0.5, 5, 2), "none", rows=4)) == [name for name in ESTIMATORS if name != "double"]


def test_rows_of_all_blocks_count(monkeypatch):
    drawn = []
    draw = negative_mass.draw

    def counted(setting, rows, generator):
        drawn.append(rows)
        return draw(setting, rows, generator)

    monkeypatch.setattr(negative_mass, "draw", counted)
    monkeypatch.setattr(negative_mass, "BLOCK", 39)
    found = measure(Setting(0.1, 8, 2), "sigmoid", rows=11)["corrected"]
    assert drawn == [3, 3, 3, 2]
    assert found["std"] / found["bias_se"] == pytest.approx(math.sqrt(11))


# --- estimated weights beside the correction ---

# Bias and deviation in percent at π = .1 and .5, without a shift and with one of half a deviation: by quadrature for no
# weights, CVIR, and min(1, π f⁺/f_u) with the f⁺ of the known positives, which is isotonic's limit.
LIMITS = {
    (0.1, 0.0): {"none": (22.2, 3.5), "cvir": (-6.8, 2.9), "isotonic": (0.0, 2.2)},
    (0.5, 0.0): {"none": (110.8, 4.9), "cvir": (-20.3, 3.6), "isotonic": (0.0, 2.4)},
    (0.1, 0.5): {"none": (22.2, 3.5), "cvir": (-6.8, 2.9), "isotonic": (-0.1, 2.3)},
    (0.5, 0.5): {"none": (110.8, 4.9), "cvir": (-20.3, 3.6), "isotonic": (11.0, 2.6)},
}


@pytest.mark.parametrize(("prior", "shift"), LIMITS)
def test_estimated_weights_are_as_far_off_as_they_should_be(prior, shift):
    generator = torch.Generator().manual_seed(3)
    found = estimated.measure(Setting(prior, shift=shift), ("sigmoid",), 800, generator)["sigmoid"]
    for name, (bias, std) in LIMITS[prior, shift].items():
        # What a fit to 10,000 positives adds of its own is about 1 at π = .5.
        slack = 1.5 if name == "isotonic" else 0.1
        assert abs(100 * found[name]["bias"] - bias) < slack + 400 * found[name]["bias_se"], name
        assert 100 * found[name]["std"] == pytest.approx(std, rel=0.25 if name == "isotonic" else 0.12), name
    normal = found["normal"]
    assert abs(normal["bias"]) < {(0.1, 0.0): 0.005, (0.5, 0.0): 0.015, (0.1, 0.5): 0.02, (0.5, 0.5): 0.1}[prior, shift]
    assert 0.02 < normal["std"] < 0.03
    # The correction is as good without a shift and without its floor, but for the spread; a shift is its end.
    corrected = found["corrected"]
    assert corrected["std"] > 2 * normal["std"]
    if shift:
        assert corrected["bias"] < -0.05
    else:
        assert abs(corrected["bias"]) < 4 * corrected["bias_se"]


def test_without_positives_there_are_no_weights():
    found = estimated.measure(Setting(0.0), ("none",), 40, torch.Generator().manual_seed(0))["none"]
    assert found == dict.fromkeys(estimated.LABELS, found["none"])


def test_known_positives_score_higher_by_the_shift():
    setting = Setting(0.3, 400, 2000, shift=0.5)
    negatives, known = negative_mass.draw(setting, 50, torch.Generator().manual_seed(0))
    assert known.mean() == pytest.approx(0.05, abs=0.002) and negatives.mean() == pytest.approx(-0.14, abs=0.005)


# --- the command line ---


@pytest.fixture
def small_fits(monkeypatch):
    monkeypatch.setattr(estimated, "FITS", 2)
    monkeypatch.setattr(estimated, "KNOWN", 50)
    monkeypatch.setattr(estimated, "UNLABELED", 500)


def results_of(directory: Path) -> dict:
    for name in ("sigmoid.png", "none.png", "sigmoid-estimated.png", "none-estimated.png"):
        assert (directory / name).read_bytes().startswith(b"\x89PNG")
    return json.loads((directory / "results.json").read_text(encoding="utf-8"))


def test_all_sweeps_are_written_and_printed(tmp_path, capsys, small_fits):
    out = tmp_path / "new" / "out"
    assert negative_mass.main(["--rows", "3", "--seed", "7", "--out", str(out)]) == 0
    report = results_of(out)
    assert report["settings"] == {"rows": 3, "estimated_rows": 2 * estimated.FITS, "seed": 7}
    assert report["environment"]["torch"] == torch.__version__
    pictures = [f"{weighting}{kind}.png" for weighting in ("none", "sigmoid") for kind in ("", "-estimated")]
    assert sorted(path.name for path in out.iterdir()) == sorted([*pictures, "results.json"])
    printed = capsys.readouterr().out
    base = []
    for name, sweep in SWEEPS.items():
        assert [Setting(*(point[key] for key in Setting._fields)) for point in report["sweeps"][name]] == list(sweep)
        for setting, point in zip(sweep, report["sweeps"][name], strict=True):
            if setting == Setting():
                base.append(point)
            assert f"{setting.prior:g}, {setting.negatives}, {setting.positives} " in printed
            for weighting in ("sigmoid", "none"):
                assert point["estimates"][weighting].keys() == negative_mass.estimators_of(setting).keys()
                for estimate in point["estimates"][weighting].values():
                    bias, error, std = (100 * estimate[key] for key in ("bias", "bias_se", "std"))
                    assert f"{bias:+z.2f} ± {error:.2f} ({std:.1f})" in printed
                    assert f"{estimate['loss_bias']:+z.4f} ± {estimate['loss_bias_se']:.4f}" in printed
    assert base == [base[0]] * 3  # measured once
    assert [(point["shift"], point["prior"]) for point in report["estimated"]] == [
        (shift, prior) for shift in (0.0, 0.5) for prior in (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
    ]
    for point in report["estimated"]:
        for weighting in ("sigmoid", "none"):
            assert point["estimates"][weighting].keys() == report["estimated_labels"].keys()
            for estimate in point["estimates"][weighting].values():
                bias, error, std = (100 * estimate[key] for key in ("bias", "bias_se", "std"))
                assert f"{bias:+z.2f} ± {error:.2f} ({std:.1f})" in printed


@pytest.mark.parametrize(("rows", "measured"), [(2, 40), (30, 40), (51, 60), (20_000, 20_000)])
def test_the_rows_of_the_third_table_are_those_that_it_has(monkeypatch, rows, measured):
    seen = []
    monkeypatch.setattr(estimated, "measure", lambda setting, weightings, rows, generator: seen.append(rows) or {})
    monkeypatch.setattr(negative_mass, "SWEEPS", {})
    assert estimated.FITS == 20
    settings = negative_mass.run(rows, 0)["settings"]
    assert settings["estimated_rows"] == measured and set(seen) == {measured}


def test_the_seed_decides_the_draws(monkeypatch, small_fits):
    monkeypatch.setattr(negative_mass, "SWEEPS", {"negatives": (Setting(0.1, 6, 2), Setting(0.1, 7, 2))})
    reports = [negative_mass.run(4, seed) for seed in (0, 0, 1)]
    for part in ("sweeps", "estimated"):
        found = [report[part] for report in reports]
        assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--rows", "0"], "--rows: expected a whole number of at least 1, got '0'"),
        (["--rows", "1"], "--rows: expected at least 2, for a standard deviation, got '1'"),
        (["--rows", "many"], "--rows: expected a whole number of at least 1, got 'many'"),
        (["--seed", "-1"], "--seed: expected a whole number of at least 0, got '-1'"),
    ],
)
def test_bad_arguments_are_named(tmp_path, capsys, flags, complaint):
    with pytest.raises(SystemExit) as caught:
        negative_mass.main([*flags, "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: argument {complaint}")
    assert not (tmp_path / "out").exists()


def test_a_directory_that_cannot_be_written_is_named_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(negative_mass, "run", interrupt)
    (tmp_path / "file").write_text("")
    assert negative_mass.main(["--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'file'}: expected a writable output directory")


def test_an_interrupt_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(negative_mass, "measure", interrupt)
    assert negative_mass.main(["--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith("interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []
