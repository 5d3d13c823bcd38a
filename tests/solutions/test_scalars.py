"""The two scalar arguments: what is no number is refused by name, by every solution."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from every_solution import every_solution, run_of

from solutions.common.arguments import checked_scalars

OFFSETS = [32.7, 32.0, "32", True, None, Fraction(32), torch.tensor(32), np.array([32]), [32]]
FACTORS = ["2.5", True, None, 2.5 + 0j, torch.tensor(2.5), np.array([2.5]), [2.5]]
NOT_FINITE = [float("nan"), float("inf"), -float("inf"), 1e39, 10**400]


@every_solution
@pytest.mark.parametrize("offset", OFFSETS, ids=repr)
def test_offset_is_refused_by_name(name, offset):
    with pytest.raises(TypeError, match="local_expert_offset: expected an int, got "):
        run_of(name)(*[None] * 8, offset, 2.5, None)


@every_solution
@pytest.mark.parametrize("factor", FACTORS, ids=repr)
def test_factor_is_refused_by_name(name, factor):
    with pytest.raises(TypeError, match="routed_scaling_factor: expected a float, got "):
        run_of(name)(*[None] * 8, 32, factor, None)


@every_solution
@pytest.mark.parametrize("factor", NOT_FINITE, ids=["nan", "inf", "-inf", "1e39", "10**400"])
def test_factor_that_is_not_finite_is_refused_by_name(name, factor):
    with pytest.raises(ValueError, match="routed_scaling_factor: expected a finite fp32 value"):
        run_of(name)(*[None] * 8, 32, factor, None)


@pytest.mark.parametrize("offset", [32, np.int32(32), np.int64(32)], ids=repr)
@pytest.mark.parametrize(
    "factor", [2.5, np.float32(2.5), np.float64(2.5), Fraction(5, 2)], ids=repr
)
def test_numbers_are_taken(offset, factor):
    taken = checked_scalars(offset, factor)
    assert taken == (32, 2.5) and [type(value) for value in taken] == [int, float]


def test_an_integer_is_a_factor():
    assert checked_scalars(0, 2) == (0, 2.0)
