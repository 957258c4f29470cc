"""Products by digits, for GPUs without fast float64: the same integers, whatever the sizes, and so the same goldens; forced on the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.exact import digits, hardware, self_test
from pipeline.exact.convolutions import convolution
from pipeline.exact.errors import Imprecise
from pipeline.exact.reductions import BYTE_TERMS, TERMS, Convolution, ConvolutionOfChannels, Matmul
from pipeline.exact.rows import ConvolutionByRows, ConvolutionOfGroupsByRows
from pipeline.machine import check
from tests.goldens import CASES, Pipeline, first_difference, golden
from tests.steps import ints
from tools import networks

LARGEST = 63 * (1 + 2**7) + 31 * 2.0**14
"""An operand with digits as large as they may be and not a power of two."""


@pytest.fixture
def by_digits(monkeypatch) -> list[tuple[torch.Size, torch.Size]]:
    """Products are taken by digits; the sizes of both operands of each."""
    taken, product = [], digits.product

    def noted(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        taken.append((a.shape, b.shape))
        return product(a, b)

    monkeypatch.setattr(hardware, "multiplies_by_digits", lambda tensor: True)
    monkeypatch.setattr(digits, "product", noted)
    return taken


@pytest.mark.parametrize("value", [2.0**19, -(2.0**19), 64.0, -64.0, LARGEST, 65 * (1.0 + 2**7)])
def test_digits_are_at_most_64_so_that_16_bits_hold_two_products_and_add_up_to_the_number(value):
    found = digits.split(torch.full((2,), value)).double()
    assert found.abs().max() <= 2**6
    assert sum(digit * 2 ** (7 * i) for i, digit in enumerate(found)).tolist() == [value] * 2


@pytest.mark.parametrize(("rows", "terms", "columns"), [
    (1, 1, 1), (1, 2, 1), (2, 1, 3), (3, 84, 7), (64, 400, 120), (17, 9, 33), (0, 3, 2), (3, 0, 2), (3, 2, 0), (16, 16, 16),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_by_digits_is_the_sum_in_integers_for_any_sizes(rows, terms, columns, dtype):
    a, b = ints("a", 19, rows, terms).to(dtype), ints("b", 19, terms, columns).to(dtype)
    computed = digits.product(a, b)
    assert computed.dtype == torch.int64
    assert np.array_equal(computed.numpy(), a.numpy().astype(np.int64) @ b.numpy().astype(np.int64))


@pytest.mark.parametrize(("a", "b"), [(2.0**19, -(2.0**19)), (LARGEST, LARGEST), (-LARGEST, LARGEST), (2.0**19 - 1, 2.0**19 - 1)])
@pytest.mark.parametrize("terms", [digits.TERMS, digits.TERMS + 1, 2 * digits.TERMS + 3])
def test_sums_at_the_bound_are_exact_and_longer_ones_are_taken_in_parts(a, b, terms):
    computed = digits.product(torch.full((1, terms), a), torch.full((terms, 2), b))
    assert computed.tolist() == [[int(a) * int(b) * terms] * 2]
    assert 3 * 2**12 * digits.TERMS < 2**31


def test_one_part_of_all_terms_would_not_be_exact(monkeypatch):
    terms = 2**19
    monkeypatch.setattr(digits, "TERMS", terms)
    value = 64 * (1.0 + 2**7)
    computed = digits.product(torch.full((1, terms), value), torch.full((terms, 1), value))
    assert int(computed) != int(value) ** 2 * terms


def test_what_cuda_multiplies_has_sizes_that_it_takes(monkeypatch):
    """As at::_int_mm_out_cuda asks: more than 16 rows, terms and columns by eights; and columns of the second one after the other."""
    given = []

    def int_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        given.append((a, b))
        return (a.long() @ b.long()).int()

    monkeypatch.setattr(torch, "_int_mm", int_mm)
    for rows, terms, columns in ((1, 1, 1), (3, 84, 7), (17, 9, 33)):
        digits.product(ints("a", 19, rows, terms), ints("b", 19, terms, columns))
    for a, b in given:
        assert a.is_contiguous()
        assert b.t().is_contiguous()
        assert a.shape[0] > 16
        assert [size % 8 for size in (a.shape[1], b.shape[1])] == [0, 0]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("stride", "padding", "dilation", "size"), [
    ((1, 1), (0, 0), (1, 1), (7, 9)), ((1, 1), (1, 1), (1, 1), (5, 4)), ((2, 2), (1, 1), (1, 1), (8, 7)), ((2, 1), (2, 3), (2, 1), (9, 6)),
])  # fmt: skip
def test_a_convolution_by_digits_has_the_sums_of_one_in_float64(stride, padding, dilation, size, groups, by_digits, monkeypatch):
    x, w = ints("x", 19, 3, 4 * groups, *size), ints("w", 19, 6 * groups, 4, 3, 2)
    pixels = ints("p", 7, *x.shape).abs().byte()
    plain = Convolution(stride, padding, dilation, groups=groups)

    def sums() -> list[torch.Tensor]:
        y = plain.forward(operand := plain.operand(x, w.shape), w)
        g = ints("g", 16, *y.shape)
        of_bytes = plain.operand(pixels, w.shape)
        return [
            y, plain.input_gradient(g, w, x.shape), plain.weight_gradient(g, operand, w.shape),
            plain.forward_bytes(of_bytes, w), *plain.gradients(g, of_bytes, w.shape),
        ]  # fmt: skip

    found = sums()
    assert len(by_digits) == (5 if groups == 1 else 0), "a product a group would be as many calls"
    monkeypatch.setattr(hardware, "multiplies_by_digits", lambda tensor: False)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, sums(), strict=True))


def test_sums_longer_than_float64_holds_are_int64s(by_digits):
    x, w = ints("x", 19, 2, TERMS + 1000), ints("w", 19, 3, TERMS + 1000)
    x[0], w[0] = 2.0**19 - 1, 2.0**19 - 1
    y = Matmul().forward(x, w)
    assert (y.dtype, len(by_digits)) == (torch.int64, 1)
    assert y.tolist() == (x.numpy().astype(np.int64) @ w.numpy().astype(np.int64).T).tolist()


def test_two_large_matrices_are_what_digits_are_good_for(by_digits):
    x, w, once = torch.zeros(32, 4, 9, 9), torch.Size((4, 4, 3, 3)), ((1, 1), (1, 1), (1, 1))
    assert type(convolution(*once, 1, x, w, TERMS)) is Convolution
    assert type(convolution(*once, 1, x.byte(), w, BYTE_TERMS)) is Convolution
    assert type(convolution(*once, 2, x, torch.Size((4, 2, 3, 3)), TERMS)) is ConvolutionOfGroupsByRows
    assert type(convolution(*once, 4, x, torch.Size((4, 1, 3, 3)), TERMS)) is ConvolutionOfChannels


@pytest.mark.parametrize("case", CASES)
def test_the_goldens_are_met_by_digits(case, by_digits):
    assert first_difference(CASES[case](Pipeline()), golden(case)) is None


@pytest.mark.parametrize("name", ["ResNet", "GoogLeNet", "EfficientNet"])
def test_a_networks_steps_have_the_same_bits_by_digits(name, by_digits, monkeypatch):
    found, _ = check.trained(*networks.built(name))
    assert len(by_digits) > 50
    monkeypatch.setattr(hardware, "multiplies_by_digits", lambda tensor: False)
    assert check.trained(*networks.built(name))[0] == found


@pytest.mark.parametrize("lost", [2**8, 2**24])  # some of the lowest bits, or what a saturating sum loses
def test_a_device_that_adds_bytes_otherwise_fails_the_self_test(lost, by_digits, monkeypatch):
    self_test.check(torch.device("cpu"))
    assert len(by_digits) > 60
    int_mm = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: int_mm(a, b) // lost * lost if lost == 2**8 else int_mm(a, b).clamp(max=lost))
    with pytest.raises(Imprecise, match="gives other results than exact arithmetic does"):
        self_test.check(torch.device("cpu"))


@pytest.mark.parametrize(("capability", "slow"), [
    ((7, 0), False), ((7, 5), True), ((8, 0), False), ((8, 6), True), ((8, 9), True), ((9, 0), False), ((10, 0), False), ((10, 3), True),
    ((12, 0), True), ((6, 1), False),
])  # fmt: skip
def test_gpus_without_fast_float64_multiply_by_digits(capability, slow, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert hardware.multiplies_by_digits(SimpleNamespace(is_cuda=True, device="cuda:0")) is slow
    assert hardware.multiplies_by_digits(torch.zeros(1)) is False
    monkeypatch.setattr(hardware, "is_from_intel", lambda: False)
    assert type(convolution((1, 1), (1, 1), (1, 1), 1, torch.zeros(1, 3, 8, 8), torch.Size((4, 3, 3, 3)), TERMS)) is ConvolutionByRows
