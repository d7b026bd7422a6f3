"""The loss's arguments: that each entry, the two tuples made of them, and what a cache keeps fit together."""

from __future__ import annotations

import gc
import weakref
from typing import get_type_hints

import pytest
import torch
from cases import assert_near, make_scores

from cw_ext import cw_loss
from cw_ext.parameters import ARGUMENTS, DEFAULTS, LossArguments, LossOptions, RowParameters, resolve


def test_every_argument_is_a_field_of_one_of_the_tuples() -> None:
    options = [name for name in LossOptions._fields if name != "row"]
    assert sorted([*RowParameters._fields, *options]) == sorted(ARGUMENTS)
    assert LossArguments.__annotations__.keys() == ARGUMENTS.keys() == DEFAULTS.keys()


def test_only_fields_that_change_from_batch_to_batch_may_be_tensors() -> None:
    types = get_type_hints(LossArguments)
    takes_tensors = {name for name, kind in types.items() if torch.Tensor in getattr(kind, "__args__", ())}
    assert takes_tensors and takes_tensors <= set(LossOptions._fields)
    value = torch.tensor(0.5)
    for name in ARGUMENTS:
        if name in takes_tensors:
            assert getattr(resolve({name: value}), name) is value  # type: ignore[misc]
        else:
            with pytest.raises((TypeError, ValueError), match=rf"^{name} must be"):
                resolve({name: value})  # type: ignore[misc]


def test_every_default_passes_its_own_check() -> None:
    assert resolve({}) == resolve(DEFAULTS)


@pytest.mark.parametrize(("weighting", "rho"), [("sigmoid", 0.3), ("linear", 1.0), ("exponential", 1.0)])
def test_the_weight_temperature_follows_the_temperature_of_sigmoid(backend: str, weighting: str, rho: float) -> None:
    case = make_scores((5,), 9, seed=1)
    arguments = {"temperature": 0.3, "weighting": weighting, "reduction": "none", "backend": backend}
    assert_near(case.loss(**arguments), case.loss(weight_temperature=rho, **arguments), torch.float64)


def test_numbers_beside_a_tensor_are_checked_and_no_tensor_is_kept() -> None:
    prior = torch.tensor(0.5)
    options = resolve({"prior": prior, "temperature": 0.25})
    assert options.prior is prior and options == resolve({"temperature": 0.25})._replace(prior=prior)
    with pytest.raises(ValueError, match="^temperature must be > 0, got 0"):
        resolve({"prior": prior, "temperature": 0})
    with pytest.raises(TypeError, match="^unknown loss argument 'tau'"):
        resolve({"prior": prior, "tau": prior})  # type: ignore[typeddict-unknown-key]
    alive = weakref.ref(prior)
    del options, prior
    gc.collect()
    assert alive() is None


def test_the_documentation_has_one_entry_per_argument() -> None:
    entries = [line for line in cw_loss.__doc__.split("Loss arguments (keywords):")[1].splitlines() if line]
    assert [line.split(":")[0].strip() for line in entries if line[4] != " "] == list(ARGUMENTS)
    assert max(map(len, entries)) <= 112
