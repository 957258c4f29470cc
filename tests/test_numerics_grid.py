"""Grids: which power of two is chosen, without a look at a value, and what becomes of zeros, subnormals, Inf and NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.exact import grid
from pipeline.exact.draws import random_integers

EDGES = [
    0.0, 1e-45, 2.0**-126, 2.0**-41, 2.0**-40, math.nextafter(2.0**-40, 1), 1e-3, 0.5, math.nextafter(1.0, 0), 1.0, 1.5,
    math.nextafter(2.0, 0), 2.0, math.pi, 2.0**127, 3e38, float(np.finfo(np.float32).max),
]  # fmt: skip


def magnitude(x: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of the whole of `x`, as that of an image."""
    return grid.image_magnitudes(x.unsqueeze(0))[0]


def chosen(largest: float, bits: int = 19) -> tuple[float, float]:
    """Scale and unit for one magnitude."""
    on = grid.choose(magnitude(torch.tensor([largest, 0.0])), bits)
    return on.scale.item(), on.unit.item()


def by_python(largest: float, bits: int) -> tuple[float, float]:
    """The same by frexp."""
    exponent = math.frexp(max(np.float32(largest), np.float32(2.0**-40)))[1] - 1
    return math.ldexp(1.0, bits - 1 - exponent), math.ldexp(1.0, exponent + 1 - bits)


@pytest.mark.parametrize("largest", EDGES)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_grid_is_the_one_that_python_chooses(largest, sign):
    assert chosen(sign * largest) == by_python(largest, 19)


@pytest.mark.parametrize("largest", [*EDGES, math.inf, -math.inf, math.nan])
def test_the_grid_of_a_whole_tensor_is_the_same_by_a_look_at_its_value_on_a_cpu_and_without_one(largest):
    x = torch.tensor([0.25 * largest, largest, 0.0])
    seen, unseen = grid.of_tensor(x), grid.choose(magnitude(x))
    for value, tensor in ((seen.scale, unseen.scale), (seen.unit, unseen.unit)):
        assert isinstance(value, float)
        assert torch.equal(torch.tensor(value).nan_to_num(-1.0), tensor.nan_to_num(-1.0))


def test_the_grids_of_many_images_are_those_of_each():
    drawn = torch.from_numpy(random_integers("magnitudes", 2**31, 4096).astype(np.int32)).view(torch.float32)
    magnitudes = torch.cat((torch.tensor(EDGES), drawn[drawn.isfinite()]))
    on = grid.choose(grid.image_magnitudes(magnitudes.unsqueeze(1)))
    assert list(zip(on.scale.tolist(), on.unit.tolist(), strict=True)) == [by_python(m, 19) for m in magnitudes.tolist()]


@pytest.mark.parametrize("largest", [1.0, 1.5, math.nextafter(2.0, 0), 2.0, 3e38, 1e-3, 2.0**-40])
def test_the_grid_is_the_finest_on_which_the_largest_magnitude_takes_19_bits(largest):
    x = torch.tensor([largest, -largest / 3], dtype=torch.float32)
    on = grid.choose(magnitude(x))
    placed = grid.place(x, on.scale)
    assert 2**18 <= placed.abs().max().item() <= 2**19
    assert on.scale * on.unit == 1
    assert abs(placed[1].item() * on.unit.item() + np.float32(largest / 3)) <= on.unit.item() / 2


def test_a_group_of_zeros_or_of_next_to_nothing_has_a_grid_of_unit_2_to_the_minus_58():
    for value in (0.0, 1e-45, 2.0**-126, 2.0**-41):
        assert chosen(value)[1] == 2.0**-58


def test_the_units_of_two_operands_never_multiply_to_a_subnormal():
    unit = chosen(0.0)[1]
    assert unit * unit == 2.0**-116 > np.finfo(np.float32).tiny


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_value_that_is_not_finite_makes_its_group_and_no_other_nan(value):
    x = torch.tensor([[1.0, value], [1.0, 2.0]])
    on = grid.choose(grid.image_magnitudes(x))
    assert on.scale.isnan().tolist() == on.unit.isnan().tolist() == [True, False]
    assert grid.place(x, on.scale.view(2, 1)).isnan().tolist() == [[True, True], [False, False]]
    assert all(math.isnan(part) for part in chosen(value))


@pytest.mark.parametrize("shape", [(5, 3, 4, 2), (5, 7), (1, 3, 2, 2), (5, 1)])
@pytest.mark.parametrize("batch_innermost", [True, False])
def test_an_images_magnitude_is_its_largest_however_it_lies_in_memory(shape, batch_innermost):
    x = torch.from_numpy(random_integers("images", 2**20, math.prod(shape)).astype(np.float32) - 2**19).view(shape)
    wanted = x.abs().flatten(1).amax(1)
    if batch_innermost:
        x = x.movedim(0, -1).contiguous().movedim(-1, 0)
    assert torch.equal(grid.image_magnitudes(x), wanted)


def test_no_images_have_no_magnitudes_and_the_largest_of_them_is_the_least_that_any_may_be():
    none = grid.image_magnitudes(torch.zeros(0, 3, 4, 4))
    assert none.shape == (0,)
    assert grid.largest(none) == 2.0**-98
    least = grid.choose(torch.tensor(2.0**-40))
    assert least.unit * 2.0**-40 == 2.0**-98


def test_a_tensor_without_numbers_has_the_grid_of_the_least_magnitude():
    for unit in (grid.of_tensor(torch.empty(0, 3)).unit, grid.choose(grid.magnitude(torch.empty(0, 3))).unit):
        assert unit == 2.0**-58


def test_placing_rounds_half_to_even():
    x = torch.tensor([2.0**18, 0.5, 1.5, 2.5, -0.5, -1.5])
    assert grid.place(x, grid.choose(magnitude(x)).scale).tolist() == [2.0**18, 0, 2, 2, 0, -2]
