"""The example of positives that come late: the stream's mean loss, what is learned from it, and what is printed."""

from __future__ import annotations

import pytest
import torch

from examples import delayed_positives
from examples.delayed_positives import WAYS, show


def test_what_is_drawn_is_as_likely_as_it_says():
    shown = show(200_000, torch.Generator().manual_seed(1))
    assert not (shown.at_once & shown.late).any()
    for drawn, probability in ((shown.at_once, shown.f_ip), (shown.late, shown.f_dp)):
        for part in (probability > 0.3, probability < 0.1):
            assert drawn[part].double().mean().item() == pytest.approx(
                probability[part].double().mean().item(), abs=0.005
            )
    waiting = ~shown.at_once
    assert shown.late[waiting].double().mean().item() == pytest.approx(shown.z[waiting].mean().item(), abs=0.003)


def test_only_divided_weights_have_the_final_loss_as_their_mean():
    shown = show(100_000, torch.Generator().manual_seed(2))
    given = shown.features.sum(1) / 2
    found = {name: delayed_positives.off(way, shown, given) for name, way in WAYS.items()}
    assert found["final labels"] == (0, 0)
    bias, error = found["divided by 1 + f_dp"]
    assert abs(bias) < 4 * error < 0.01
    for name in ("labels as first observed", "first observed, then returned", "DEFUSE's weights"):
        assert abs(found[name][0]) > 6 * found[name][1], name


def test_what_is_learned_from_a_stream(monkeypatch):
    monkeypatch.setattr(delayed_positives, "STEPS", 150)
    shown, test = (show(20_000, torch.Generator().manual_seed(seed)) for seed in (3, 4))
    found = {
        name: delayed_positives.true_loss(delayed_positives.trained(way, shown), test) for name, way in WAYS.items()
    }
    assert found["divided by 1 + f_dp"] == pytest.approx(found["final labels"], abs=0.002)
    assert found["labels as first observed"] > found["first observed, then returned"] > found["final labels"] + 0.02


def test_weighted_negatives_have_the_mass_of_those_never_liked():
    shown = show(400_000, torch.Generator().manual_seed(5))
    found = delayed_positives.masses(shown, torch.tanh(shown.features.sum(1) / 2) / 2)
    assert found["without weights"] > 0.15 and abs(found["log(1 − z)"]) < 0.01


def test_command_line(monkeypatch, capsys):
    monkeypatch.setattr(delayed_positives, "STEPS", 2)
    assert delayed_positives.main(["--shown", "2500", "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert "2500 items: " in printed and all(name in printed for name in (*WAYS, "log(1 − z): "))
    for flag, value in (("--shown", "999"), ("--seed", "-1")):
        with pytest.raises(SystemExit):
            delayed_positives.main([flag, value])
        assert f"argument {flag}: expected" in capsys.readouterr().err
