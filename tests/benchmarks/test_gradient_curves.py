"""The example that draws gradients: its curves against finite differences, and the plot that it writes."""

from __future__ import annotations

import oracle
import pytest
import torch
from cases import assert_near, exact

from benchmarks.gradients import __main__ as gradients
from benchmarks.gradients.__main__ import EXTRAS, MARGINS, OTHERS, PANELS, POSITIVE, TEMPERATURE
from cw_ext import reference
from cw_ext.parameters import resolve
from cw_ext.row_values import CurveInputs, RowValues

CURVES = {name: curve for curves in PANELS.values() for name, curve in curves.items()}
# Those whose weights are not constants in the gradient, or do not exist.
WITHOUT_CONSTANTS = ("BPR: this negative alone", "SL: no weights", "sigmoid, gradient through ω")


def oracles(curve: gradients.Curve, margin: float) -> tuple[float, float]:
    """Finite differences of the formula in the negative that moves and in the positive, with 60 digits."""
    arguments = {name: value for name, value in curve.arguments.items() if name != "prior"}
    moving = (POSITIVE + exact(margin)).item()
    inputs = oracle.Inputs(
        pos=POSITIVE,
        negatives=[moving, *(OTHERS.tolist() if curve.others else [])],
        extras=EXTRAS.tolist() if curve.extras else [],
        prior=curve.arguments.get("prior", 0.0),
    )
    frozen = inputs if arguments.get("detach_weights", True) else None

    def at(**changes):
        return oracle.row(inputs._replace(**changes), weights_at=frozen, **arguments).loss

    return (
        oracle.derivative(lambda step: at(negatives=[oracle.Decimal(moving) + step, *inputs.negatives[1:]])),
        oracle.derivative(lambda step: at(pos=oracle.Decimal(POSITIVE) + step)),
    )


@pytest.mark.parametrize("name", CURVES)
def test_curves_are_the_formulas_derivatives(name):
    margins = exact([-1.0, -0.33, -0.1, 0.05, 0.28, 0.7, 1.0])
    found = gradients.gradients(CURVES[name], margins)
    truth = exact([oracles(CURVES[name], margin) for margin in margins.tolist()]).T
    for which, gradient, expected in zip(("the negative", "the positive"), found, truth, strict=True):
        assert_near(gradient, expected, torch.float64, f"gradient of {which}")


@pytest.mark.parametrize("name", WITHOUT_CONSTANTS)
def test_curves_are_finite_differences_of_the_reference(name):
    curve, step = CURVES[name], 1e-5
    options = resolve(dict(curve.arguments))

    def losses(of_negative: float, of_positive: float) -> torch.Tensor:
        moving = (POSITIVE + MARGINS + of_negative).unsqueeze(1)
        others = [OTHERS.expand(len(MARGINS), -1)] if curve.others else []
        negatives = torch.cat([moving, *others], 1)
        positive = torch.full_like(MARGINS, POSITIVE + of_positive)
        values = RowValues(prior=options.prior, temperature=options.temperature)
        return reference.rows(positive, negatives, None, None, values, CurveInputs(), options.row).loss

    differences = (
        (losses(step, 0) - losses(-step, 0)) / (2 * step),
        (losses(0, step) - losses(0, -step)) / (2 * step),
    )
    # A third derivative is of the size of 1/τ³.
    for gradient, difference in zip(gradients.gradients(curve, MARGINS), differences, strict=True):
        torch.testing.assert_close(gradient, difference, rtol=0, atol=step**2 / TEMPERATURE**3)


def test_the_positive_is_pulled_by_1_over_tau_where_only_margins_count():
    for name, curve in CURVES.items():
        pull = -gradients.gradients(curve, MARGINS)[1] * TEMPERATURE
        exceptions = ("BPR: this negative alone", "sigmoid, gradient through ω", "confidence, τ_c = 1.25")
        assert torch.allclose(pull, torch.ones_like(pull)) == (name not in exceptions)


def test_the_floor_binds_at_first_and_then_does_not():
    plain, floored = (
        gradients.gradients(CURVES[name], MARGINS)[0] for name in ("CW: sigmoid, ρ = τ", "π = 0.22, floor 0.3")
    )
    ratio = floored / plain
    binds = torch.isclose(ratio, torch.ones_like(ratio))
    assert binds[0] and not binds[-1]
    assert (binds.int().diff() <= 0).all()
    assert 2 < ratio[~binds].min() <= ratio[~binds].max() <= 1 / 0.3


def test_the_plot_is_written(tmp_path, capsys):
    out = tmp_path / "new"
    assert gradients.main(["--out", str(out)]) == 0
    assert (out / "gradients.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"results: {out / 'gradients.png'}\n"


def test_a_directory_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert gradients.main(["--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'file'}: expected a writable output directory")
