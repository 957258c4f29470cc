"""The sums of exact numerics are exact, however they are computed and however long they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.exact import digits, hardware, layout, reductions, rows
from pipeline.exact.convolutions import convolution
from pipeline.exact.draws import random_integers
from pipeline.exact.reductions import (
    BYTE_TERMS,
    TERMS,
    Convolution,
    ConvolutionOfChannels,
    Matmul,
)
from pipeline.exact.rows import ConvolutionByRows, ConvolutionByTurnedRows, ConvolutionOfBytes, ConvolutionOfGroupsByRows, in_lines
from tests.chaos import Chaos
from tests.steps import ints


def test_a_matrix_product_of_operands_at_the_bound_equals_the_sum_in_python_integers():
    a = torch.tensor([[2.0**24] * 31 + [2.0**24 - 1] * 33], dtype=torch.float64)
    b = torch.tensor([[2.0**23 - 1] * 32 + [2.0**23] * 32], dtype=torch.float64)  # 24 + 23 + 6 = 53
    wanted = sum(int(x) * int(y) for x, y in zip(a[0], b[0], strict=True))
    assert wanted < 2**53
    assert int(Matmul().forward(a, b)[0, 0]) == wanted


def test_one_bit_beyond_the_bound_the_product_is_no_longer_the_sum_in_python_integers():
    a = torch.tensor([[2.0**25 - 1] * 64], dtype=torch.float64)  # 25 + 23 + 6 = 54
    b = torch.tensor([[2.0**23 - 1] * 63 + [2.0**23 - 2]], dtype=torch.float64)
    wanted = sum(int(x) * int(y) for x, y in zip(a[0], b[0], strict=True))
    assert wanted % 2 == 1
    assert wanted > 2**53
    assert int(Matmul().forward(a, b)[0, 0]) != wanted


def test_float64_holds_the_sum_of_2_to_the_15_products_of_operands_and_of_2_to_the_26_with_bytes():
    assert (TERMS, BYTE_TERMS) == (2**15, 2**26)
    assert TERMS * 2**19 * 2**19 == BYTE_TERMS * 2**19 * 2**8 == 2**53


PLAIN, FAST, TURNED, OF_BYTES = Convolution(), ConvolutionByRows(), ConvolutionByTurnedRows(), ConvolutionOfBytes()


SHAPES = [
    ((4, 3, 32, 32), (6, 3, 5, 5)),
    ((4, 6, 14, 14), (16, 6, 5, 5)),
    ((3, 2, 9, 8), (5, 2, 2, 3)),
    ((2, 1, 5, 5), (1, 1, 5, 5)),
    ((2, 4, 40, 40), (70, 4, 3, 3)),
    ((0, 6, 14, 14), (16, 6, 5, 5)),
    ((1, 3, 32, 32), (6, 3, 32, 32)),
    ((2, 1, 3, 3), (1, 1, 3, 3)),
    ((1, 1, 1, 1), (1, 1, 1, 1)),
]
"""Of inputs and weights."""


@pytest.mark.parametrize(("x_shape", "w_shape"), SHAPES)
def test_the_fast_convolution_gives_the_sums_of_the_plain_one(x_shape, w_shape):
    x, w = ints("x", 19, *x_shape), ints("w", 19, *w_shape)
    y = PLAIN.forward(PLAIN.operand(x, w.shape), w)
    assert torch.equal(FAST.forward(FAST.operand(x, w.shape), w), y)
    g = ints("g", 16, *y.shape)
    assert torch.equal(FAST.input_gradient(g, w, x.shape), PLAIN.input_gradient(g, w, x.shape))
    d_w = PLAIN.weight_gradient(g, PLAIN.operand(x, w.shape), w.shape)
    for fast_form in (FAST, TURNED):
        assert torch.equal(fast_form.weight_gradient(g, fast_form.operand(x, w.shape), w.shape), d_w)
    assert torch.equal(FAST.bias_gradient(g), PLAIN.bias_gradient(g))
    pixels = torch.from_numpy(random_integers("bytes", 256, x.numel()).astype(np.uint8)).view(x.shape)
    plain, fast = PLAIN.operand(pixels, w.shape), FAST.operand(pixels, w.shape)
    assert torch.equal(FAST.forward_bytes(fast, w).float(), PLAIN.forward_bytes(plain, w).float())
    for fast_form in (FAST, TURNED, OF_BYTES):
        for computed, wanted in zip(fast_form.gradients(g, fast, w.shape), PLAIN.gradients(g, plain, w.shape), strict=True):
            assert torch.equal(computed, wanted)


@pytest.mark.parametrize(("x_shape", "w_shape"), SHAPES)
def test_the_fast_convolution_gives_the_same_sums_in_float32_where_that_holds_them(x_shape, w_shape):
    """As native numerics use it."""
    x, w = ints("x", 4, *x_shape), ints("w", 4, *w_shape)
    plain, rows = PLAIN.operand(x, w.shape), in_lines(x.permute(2, 1, 3, 0), torch.float32)
    y = PLAIN.forward(plain, w)
    g = ints("g", 4, *y.shape)
    assert torch.equal(FAST.forward(rows, w.float()).double(), y)
    assert torch.equal(FAST.input_gradient(g.float(), w.float(), x.shape).double(), PLAIN.input_gradient(g, w, x.shape))
    assert torch.equal(FAST.weight_gradient(g.float(), rows, w.shape).double(), PLAIN.weight_gradient(g, plain, w.shape))


def assert_same_sums(plain: Convolution, fast: Convolution, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Outputs and both gradients of a fast form are the plain one's; the gradient that they were asked for."""
    of_plain, of_fast = plain.operand(x, w.shape), fast.operand(x, w.shape)
    y = plain.forward(of_plain, w)
    assert torch.equal(fast.forward(of_fast, w), y)
    g = ints("g", 16, *y.shape)
    assert torch.equal(fast.input_gradient(g, w, x.shape), plain.input_gradient(g, w, x.shape))
    assert torch.equal(fast.weight_gradient(g, of_fast, w.shape), plain.weight_gradient(g, of_plain, w.shape))
    return g


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("channels", [2, 17])  # of a group: few, and not
@pytest.mark.parametrize(("stride", "padding", "kernel", "size"), [
    ((1, 1), (1, 1), (3, 3), (5, 4)), ((1, 1), (2, 0), (5, 3), (3, 6)), ((2, 2), (1, 1), (3, 3), (8, 8)), ((2, 2), (1, 1), (3, 3), (7, 9)),
    ((2, 2), (0, 0), (1, 1), (7, 8)), ((3, 3), (0, 0), (1, 1), (2, 2)), ((2, 1), (0, 1), (1, 3), (5, 5)), ((1, 3), (1, 2), (2, 4), (6, 10)),
    ((4, 4), (2, 2), (3, 3), (11, 12)), ((4, 2), (0, 0), (4, 2), (4, 3)), ((3, 2), (1, 1), (2, 2), (1, 1)),
    ((2, 2), (3, 3), (7, 7), (9, 14)),
])  # fmt: skip
def test_convolution_by_rows_gives_the_sums_of_the_plain_one_for_any_stride_and_padding(
    stride, padding, kernel, size, channels, groups
):  # fmt: skip
    plain = Convolution(stride, padding, groups=groups)
    rows = ConvolutionByRows(stride, padding) if groups == 1 else ConvolutionOfGroupsByRows(stride, padding, groups=groups)
    x, w = ints("x", 19, 3, groups * channels, *size), ints("w", 19, 5 * groups, channels, *kernel)
    g = assert_same_sums(plain, rows, x, w)
    pixels = torch.from_numpy(random_integers("bytes", 256, x.numel()).astype(np.uint8)).view(x.shape)
    of_plain, of_rows = plain.operand(pixels, w.shape), rows.operand(pixels, w.shape)
    assert torch.equal(rows.forward_bytes(of_rows, w).float(), plain.forward_bytes(of_plain, w).float())
    assert torch.equal(rows.weight_gradient(g, of_rows, w.shape), plain.weight_gradient(g, of_plain, w.shape))


@pytest.mark.parametrize("lies", [(0, 1, 2, 3), (2, 1, 3, 0)])  # the axes in memory
@pytest.mark.parametrize(("stride", "padding"), [((1, 1), (1, 1)), ((2, 1), (0, 2)), ((1, 2), (0, 0))])
def test_windows_a_channel_give_the_sums_of_the_plain_one_some_channels_at_a_time(lies, stride, padding, monkeypatch):
    monkeypatch.setattr(hardware, "CACHED", 100)  # a channel or two of three images
    x = layout.empty((3, 4, 5, 6), lies, torch.empty(0, dtype=torch.float64)).copy_(ints("x", 19, 3, 4, 5, 6))
    assert_same_sums(Convolution(stride, padding, groups=4), ConvolutionOfChannels(stride, padding, groups=4), x, ints("w", 19, 4, 1, 3, 2))


@pytest.mark.parametrize("operation", [PLAIN, Convolution((2, 1), (1, 2), (1, 2)), Convolution((3, 3))])
def test_the_plain_convolution_gives_the_sums_and_gradients_of_pytorchs_in_float64(operation):
    x, w = ints("x", 15, 3, 5, 19, 21).requires_grad_(), ints("w", 15, 7, 5, 3, 4).requires_grad_()
    wanted = F.conv2d(x, w, None, operation.stride, operation.padding, operation.dilation)
    g = ints("g", 10, *wanted.shape)
    d_x, d_w = torch.autograd.grad(wanted, (x, w), g)
    with torch.no_grad():
        windows = operation.operand(x, w.shape)
        assert torch.equal(operation.forward(windows, w), wanted)
        assert torch.equal(operation.input_gradient(g, w, x.shape), d_x)
        assert torch.equal(operation.weight_gradient(g, windows, w.shape), d_w)
    assert operation.output_terms(w.shape) == 60
    assert operation.image_terms(x.shape, w.shape) == wanted.shape[2] * wanted.shape[3]


def test_numpy_gives_the_same_sums_as_pytorch():
    x, w = ints("x", 19, 8, 6, 14, 14), ints("w", 19, 16, 6, 5, 5)
    windows = np.lib.stride_tricks.sliding_window_view(x.numpy(), (5, 5), (2, 3))  # [N, I, H', W', h, w]
    y = np.tensordot(windows, w.numpy(), ([1, 4, 5], [1, 2, 3])).transpose(0, 3, 1, 2)
    assert np.array_equal(FAST.forward(FAST.operand(x, w.shape), w).numpy(), y)


def test_bytes_at_their_maximum_against_weights_at_theirs_stay_exact_in_float32_slices():
    x = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    for value in (2.0**19 - 1, 2.0**19, -(2.0**19 - 1), 511 * 2.0**10 + 511):
        w = torch.full((6, 3, 5, 5), value, dtype=torch.float64)
        plain = PLAIN.forward(PLAIN.operand(x, w.shape), w)
        assert torch.equal(FAST.forward_bytes(FAST.operand(x, w.shape), w).float(), plain.float())


@pytest.mark.parametrize("byte", [0, 255])
@pytest.mark.parametrize("value", [2.0**19, -(2.0**19), 2.0**19 - 1, 64 * (1 + 2**7) + 31 * 2.0**14, -64.0])
def test_gradients_by_digits_are_exact_with_bytes_and_operands_at_their_bounds(byte, value):
    x, g, w = torch.full((64, 3, 32, 32), byte, dtype=torch.uint8), torch.full((64, 6, 28, 28), value), torch.Size((6, 3, 5, 5))
    x[0, 0, 0, 0] ^= 1  # so that one sum is odd
    d_w, d_bias = OF_BYTES.gradients(g, OF_BYTES.operand(x, w), w)
    assert set(d_w[:, 0, 0, 0].tolist()) == {64 * 784 * byte * value + (1 - 2 * (byte & 1)) * value}
    assert set(d_w.flatten(1)[:, 1:].flatten().tolist()) == {64 * 784 * byte * value}
    assert set(d_bias.tolist()) == {64 * 784 * value}


def test_gradients_by_digits_of_one_place_are_taken_otherwise(monkeypatch):
    monkeypatch.setattr(digits, "split", None)
    x, g = torch.full((1, 1, 3, 3), 255, dtype=torch.uint8), torch.full((1, 1, 1, 1), 2.0**19)
    d_w, d_bias = OF_BYTES.gradients(g, OF_BYTES.operand(x, torch.Size((1, 1, 3, 3))), torch.Size((1, 1, 3, 3)))
    assert (set(d_w.flatten().tolist()), d_bias.tolist()) == ({255 * 2.0**19}, [2.0**19])


def test_gradients_by_digits_of_more_places_than_int32_holds_are_taken_otherwise(monkeypatch):
    x, g, w = torch.full((2, 1, 9, 9), 255, dtype=torch.uint8), torch.full((2, 1, 7, 7), 2.0**19), torch.Size((1, 1, 3, 3))
    assert rows.BYTES * 2**7 * 2**6 < 2**31 <= (rows.BYTES + 1) * 2**7 * 2**6
    monkeypatch.setattr(rows, "BYTES", 97)  # there are 98
    monkeypatch.setattr(digits, "split", None)
    d_w, d_bias = OF_BYTES.gradients(g, OF_BYTES.operand(x, w), w)
    assert set(d_w.flatten().tolist()) == {98 * 255 * 2.0**19}
    assert d_bias.tolist() == [98 * 2.0**19]


# --- longer sums -----------------------------------------------------------------------------------------------------


def python_sums(a: torch.Tensor, b: torch.Tensor) -> list[list[int]]:
    """A [M, K] times b [P, K], in NumPy's int64, which holds them."""
    return (a.numpy().astype(np.int64) @ b.numpy().astype(np.int64).T).tolist()


def test_a_linear_layers_sums_longer_than_float64_holds_are_added_in_int64():
    x, w = ints("x", 19, 2, TERMS + 1000), ints("w", 19, 3, TERMS + 1000)
    x[0], w[0] = 2.0**19 - 1, 2.0**19 - 1
    y = Matmul().forward(x, w)
    assert y.dtype == torch.int64
    assert y.tolist() == python_sums(x, w)
    assert max(map(max, y.tolist())) > 2**53
    g = ints("g", 19, 2, TERMS + 1000)
    assert Matmul().input_gradient(g, w.t(), x[:, :3].shape).tolist() == python_sums(g, w)
    assert Matmul().weight_gradient(g.t(), x.t(), torch.Size((2, 2))).tolist() == python_sums(g, x)


def test_a_convolutions_sums_longer_than_float64_holds_are_added_in_int64(monkeypatch):
    x, w = ints("x", 19, 2, 5, 9, 9), ints("w", 19, 7, 5, 3, 3)
    short = Convolution()
    y = short.forward(short.operand(x, w.shape), w)
    g = ints("g", 19, *y.shape)
    d_x, d_w = short.input_gradient(g, w, x.shape), short.weight_gradient(g, short.operand(x, w.shape), w.shape)
    monkeypatch.setattr(reductions, "TERMS", 20)  # as if float64 held no longer sums
    long = Convolution(terms=20)
    sums = (
        long.forward(long.operand(x, w.shape), w), long.input_gradient(g, w, x.shape),
        long.weight_gradient(g, long.operand(x, w.shape), w.shape),
    )  # fmt: skip
    for computed, wanted in zip(sums, (y, d_x, d_w), strict=True):
        assert computed.dtype == torch.int64
        assert torch.equal(computed, wanted.long())


def test_the_fast_convolution_is_chosen_where_it_applies_and_float64_holds_its_sums():
    x, w = torch.zeros(1, 3, 32, 32), torch.Size((6, 3, 5, 5))
    once = (1, 1), (0, 0), (1, 1)
    for strided in (once, ((2, 3), (4, 1), (1, 1))):
        assert isinstance(convolution(*strided, 1, x, w, TERMS), ConvolutionByRows)
    for stride, padding, dilation in (((1, 1), (0, 0), (2, 1)), ((1, 1), (0, 5), (1, 1))):
        assert type(convolution(stride, padding, dilation, 1, x, w, TERMS)) is Convolution
    assert type(convolution(*once, 3, x, torch.Size((3, 1, 5, 5)), TERMS)) is ConvolutionOfChannels
    assert type(convolution(*once, 3, x, torch.Size((6, 1, 5, 5)), TERMS)) is Convolution  # of one image
    assert type(convolution(*once, 3, x.expand(16, -1, -1, -1), torch.Size((6, 1, 5, 5)), TERMS)) is ConvolutionOfGroupsByRows
    assert type(convolution(*once, 1, x, w, 783)) is Convolution  # 784 places
    assert type(convolution(*once, 1, x, torch.Size((6, 1311, 5, 5)), TERMS)) is Convolution
    assert type(convolution(*once, 1, x, torch.Size((1311, 3, 5, 5)), TERMS)) is Convolution


@pytest.mark.parametrize(("intel", "multiplies_bytes"), [(False, False), (True, False), (False, True)])
def test_weight_gradients_are_computed_as_the_processor_is_fastest_at_it_and_on_other_devices_by_rows(monkeypatch, intel, multiplies_bytes):
    monkeypatch.setattr(hardware, "is_from_intel", lambda: intel)
    monkeypatch.setattr(hardware, "multiplies_bytes", lambda: multiplies_bytes)
    x, w = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.Size((6, 3, 5, 5))
    once = (1, 1), (0, 0), (1, 1)
    of_floats = ConvolutionByTurnedRows if intel else ConvolutionByRows
    assert type(convolution(*once, 1, x, w, BYTE_TERMS)) is (ConvolutionOfBytes if multiplies_bytes else of_floats)
    assert type(convolution(*once, 1, x.float(), w, TERMS)) is of_floats
    assert type(convolution(*once, 1, x.to("meta"), w, BYTE_TERMS)) is ConvolutionByRows


def test_chaos_changes_float64_sums_that_are_not_on_a_grid():
    x, w = ints("x", 19, 8, 400) / 3, ints("w", 19, 120, 400) / 7
    with Chaos(0):
        other = Matmul().forward(x, w)
    assert not torch.equal(other, Matmul().forward(x, w))
