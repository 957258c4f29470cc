"""Rules of the definition that the goldens' values do not reach: floors, ties, the longest sums, and what is not a number."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from pipeline.exact import activations, arithmetic, grid, loss, masks, normalisation, parts, pooling, products
from pipeline.exact.draws import random_integers
from pipeline.exact.errors import Unsupported
from pipeline.exact.optimizers import SGD, Adam, AdamW
from pipeline.exact.reductions import BYTE_TERMS, TERMS, Convolution, Matmul
from pipeline.exact.registry import Forms
from pipeline.exact.rows import ConvolutionByRows
from pipeline.exact.tape import Tape
from tests import reference, reference_tape
from tests.steps import ints
from tests.test_exact_reference import values

TINY = 2.0**-60
"""On the grid of the least magnitude, 2^-40, whose unit is 2^-58, this is 0."""


def test_each_kind_of_group_counts_a_magnitude_below_2_to_the_minus_40_as_that():
    assert grid.image_magnitudes(torch.full((2, 3), 2.0**-41)).tolist() == [2.0**-40] * 2
    assert grid.channel_magnitudes(torch.full((2, 3, 4), 2.0**-41)).tolist() == [[2.0**-40] * 3] * 2
    assert grid.of_tensor(torch.full((2,), 2.0**-41)).unit == 2.0**-58
    for losses in (2.0**-50, 2.0**-41):
        assert loss.MeanLoss(torch.full((3,), losses, dtype=torch.float64), 3).magnitudes.tolist() == [2.0**-40]


@pytest.mark.parametrize("form", ["a weight in an elementwise operation", "a weight read by index", "a product of activations"])
def test_what_is_0_on_the_least_grid_is_0_in_every_form(form):
    with torch.inference_mode():
        weight = torch.ones(3, 1).requires_grad_()
        tape = Tape(x := torch.ones(1, 3, 1), {"w": weight}, 1)
        tape.value(x).learns = True
        if form == "a product of activations":
            assert products.matmul(tape, arithmetic.multiply(tape, x, TINY), torch.ones(1, 1)).tolist() == [[[0.0]] * 3]
            return
        if form == "a weight read by index":
            weight = parts.get(tape, weight, torch.tensor([0, 1, 1]))
        y = arithmetic.multiply(tape, x, weight)
        tape.walk_back([(y, torch.full_like(y, TINY))])
        assert tape.add_up()["w"].flatten().tolist() == [0.0] * 3


@pytest.mark.parametrize(("halves", "units"), [(1, 0), (3, 2), (5, 2), (7, 4)])
def test_a_loss_between_two_multiples_of_the_unit_goes_to_the_even_one(halves, units):
    losses = torch.tensor([1.0, halves * 2.0**-36], dtype=torch.float64)  # the unit is 2^-35
    assert float(loss.mean(losses)) == (1 + units * 2.0**-35) / 2


def test_weights_are_updated_with_the_velocity_that_was_snapped_to_0():
    weights, velocity = torch.tensor([2.0**-63]), torch.tensor([2.0**-64])
    sgd = SGD([weights], 1.0, 1.0)
    sgd.state[weights]["momentum_buffer"] = velocity
    weights.grad = torch.zeros(1)
    sgd.step()
    assert velocity.tolist() == [0.0]
    assert weights.tolist() == [2.0**-63]


ABOVE_A_TIE = 2**54 + 2**30 + 1
"""Between two float32s it lies just above the middle; float64 has the middle, from which the even float32 is the other."""


def test_a_sum_beyond_2_to_the_53_is_rounded_once_not_by_way_of_float64():
    nearest, other = 2.0**54 + 2**31, 2.0**54
    assert torch.tensor(ABOVE_A_TIE).double().float().item() == other
    row = torch.tensor([2.0**18] * 2**18 + [2.0**15, 1.0])  # the sum of its squares
    x, weight = row.view(1, -1), row.view(1, -1).clone()
    with torch.inference_mode():
        assert products.linear(Tape(x), x, weight).item() == nearest
        tape = Tape(x := torch.ones(1, 1), {"w": torch.ones(1, 1)}, 1)
        layer = products.WeightedSum(tape, Matmul(), x, torch.ones(1, 1), torch.ones(1))
        layer.backward(torch.ones(1, 1))
        assert [g.item() for g in layer.round(torch.tensor([ABOVE_A_TIE] * 2), torch.ones(2))] == [nearest] * 2
        spread = arithmetic.SpreadWeight(tape, torch.ones(1, 1), x, torch.ones(1, 1))
        assert spread.round(torch.tensor([ABOVE_A_TIE]), torch.ones(1))[0].item() == nearest


@pytest.mark.parametrize("terms", [128, 129, 180, 256])
def test_bytes_with_large_weights_are_exact_on_both_sides_of_the_bound_of_float32_slices(terms):
    plain, fast, shape = Convolution(terms=BYTE_TERMS), ConvolutionByRows(terms=BYTE_TERMS), (64, 1, 1, terms)
    drawn = torch.from_numpy(random_integers("weights", 2**16, 64 * terms)).double()
    weights = (2.0**19 - 1 - drawn).view(shape)
    x = (255 - torch.from_numpy(random_integers("bytes", 4, 4 * terms)).to(torch.uint8)).view(4, 1, 1, terms)
    wanted = plain.forward_bytes(plain.operand(x, weights.shape), weights).float()
    assert torch.equal(fast.forward_bytes(fast.operand(x, weights.shape), weights).float(), wanted)


def test_relus_gradient_passes_where_its_input_is_not_a_number_also_through_max_pooling():
    x, g = torch.tensor([torch.nan, -1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0])
    assert activations.rectified(g, x).tolist() == [3.0, 0.0, 5.0]
    tile = torch.tensor([torch.nan, -1.0, 2.0, 0.0]).view(1, 1, 2, 2)
    with torch.inference_mode():
        tape, found = Tape(images := torch.zeros(1, 1), {}, 1), []
        tape.value(images).learns = True
        tape.record(tile, (images,), lambda g: (found.append(g), (None,))[1])
        y = pooling.max_pool2d(tape, activations.relu(tape, tile), 2)
        tape.walk_back([(y, torch.ones_like(y))])
    assert y.isnan().all()


def test_a_sum_of_2_to_the_25_products_of_operands_is_refused_and_one_less_is_not(monkeypatch):
    class Reached(Exception):
        """The sum is computed."""

    def reached(*_):
        raise Reached

    monkeypatch.setattr(products, "WeightedSum", reached)
    for terms, error in ((2**25, Unsupported), (2**25 - 1, Reached)):
        x, weight = torch.zeros(1, 1).expand(1, terms), torch.zeros(1, 1).expand(1, terms)
        with pytest.raises(error):
            products.linear(Tape(x), x, weight)
        turned, wide = torch.zeros(1, 1), torch.zeros(1, 1).expand(terms, 1)  # the sum of its input's gradient
        with pytest.raises(error):
            products.linear(Tape(turned), turned, wide)
    assert TERMS * products.INT64_FACTOR == 2**25


def test_a_batch_of_2_to_the_25_products_is_refused_and_one_less_is_not():
    products._check_batch(Matmul(), 1, 2**25 - 1)
    with pytest.raises(Unsupported, match="33554431 are the most"):
        products._check_batch(Matmul(), 1, 2**25)


@pytest.mark.parametrize(("left", "right"), [((1, 2**15 + 1), (2**15 + 1, 1)), ((2**15 + 1, 1), (1, 1)), ((1, 1), (1, 2**15 + 1))])
def test_matrices_of_activations_longer_than_2_to_the_15_on_any_side_are_refused(left, right):
    tape = Tape(x := torch.zeros(1, 1))
    a, b = (tape.record(torch.zeros(1, 1, 1).expand(1, *sizes), (x,), lambda g: (None,)) for sizes in (left, right))
    with pytest.raises(Unsupported, match="sizes of at most 32768"):
        products.matmul(tape, a, b)


def test_no_part_of_a_batch_adds_more_products_than_float64_holds_and_the_parts_are_added_in_int64_where_all_are_more():
    x, weight = torch.ones(9, 1, 7, 7), torch.ones(1, 1, 1, 1)
    for terms, images in ((100, 2), (49, 1), (48, 1), (2**15, 9)):
        layer = products.WeightedSum(Tape(x, {"w": weight}, 9), Convolution(terms=terms), x, weight, None)
        assert max(9 if part is None else part.stop - part.start for part in layer.parts) == images
        assert layer.fit_float64 == (terms == 2**15)
    layer.fit_float64 = False
    assert layer._total([torch.tensor(2.0**53, dtype=torch.float64), torch.ones((), dtype=torch.float64)]).item() == 2**53 + 1


@pytest.mark.parametrize(("rows", "fit"), [(2**34, True), (2**34 + 1, False), (2**44, False), (2**44 + 1, None)])
def test_sums_for_a_weight_beside_activations_are_float64_up_to_2_to_the_34_terms_and_int64_up_to_2_to_the_44(rows, fit):
    tape = Tape(x := torch.ones(1, 1), {"w": torch.ones(1)}, rows)
    if fit is None:
        with pytest.raises(Unsupported, match=f"a sum of {rows} products"):
            arithmetic.SpreadWeight(tape, torch.ones(1), x, x)
    else:
        assert arithmetic.SpreadWeight(tape, torch.ones(1), x, x).fit_float64 == fit


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_adam_rounds_each_operation_by_itself_and_snaps_both_moments(kind):
    rate, beta1, beta2, eps, decay = (np.float32(x) for x in (0.01, 0.9, 0.999, 1e-8, 0.1))
    w, g, m, q = (ints(name, 19, 4096).numpy().astype(np.float32) * np.float32(2.0**-20) for name in "wgmq")
    q, g[:4], m[:2], q[2:4] = q * q, 0, (2.0**-64, 2.0**-63), (2.0**-100, 2.0**-99)
    weights = torch.from_numpy(w.copy())
    optimizer = kind([weights], 0.01, (0.9, 0.999), 1e-8, 0.1)
    state = optimizer.state[weights]
    for name, moment in (("exp_avg", m), ("exp_avg_sq", q)):
        state[name].copy_(torch.from_numpy(moment))
    weights.grad = torch.from_numpy(g)
    optimizer.step()
    if kind is Adam:
        g = g + w * decay
    else:
        w = w * np.float32(1 - np.float64(rate) * np.float64(decay))
    m = m * beta1 + g * np.float32(1 - 0.9)
    m = np.where(np.abs(m) <= 2.0**-64, np.float32(0), m)
    q = q * beta2 + (g * g) * np.float32(1 - 0.999)
    q = np.where(q <= 2.0**-100, np.float32(0), q)
    step = np.float32(np.float64(rate) / (1 - 0.9))
    w = w - (m / (np.sqrt(q) / np.sqrt(np.float32(1 - 0.999)) + eps)) * step
    for found, wanted in ((state["exp_avg"], m), (state["exp_avg_sq"], q), (weights, w)):
        assert np.array_equal(found.numpy(), wanted)
    assert kind is Adam or (state["exp_avg"][:2] == 0).tolist() == [True, False]
    assert kind is Adam or (state["exp_avg_sq"][2:4] == 0).tolist() == [True, False]


def test_an_element_whose_draw_is_the_threshold_is_dropped(monkeypatch):
    monkeypatch.setattr(masks, "drawn", lambda *_: torch.tensor([[2**31 - 1, 2**31, 2**31 + 1]]))
    assert masks.kept(Tape(torch.zeros(1, 3)), [1, 3], 0.5, True, torch.device("cpu")).tolist() == [[True, False, False]]


def test_the_smoothed_losses_are_added_over_the_classes_as_a_tree():
    logits = torch.from_numpy(values("logits", (512, 37)))
    labels = torch.arange(512) % 37
    z, total, _ = reference.softmax(logits.numpy())
    wanted = z[np.arange(512), labels.numpy()] * (1 - 0.1) + reference_tape.tree(z, 1) * (0.1 / 37)
    assert np.array_equal(loss.Softmax(logits).losses(labels, 0.1).numpy(), reference.log(total * 2.0**-40) - wanted)


def test_batch_norm_of_one_value_a_channel_is_refused_as_pytorch_has_it_but_not_of_one_in_each_of_two_shares():
    for images in (1, 2):
        tape = Tape(x := torch.ones(1, 3, 1, 1), {}, images)
        with pytest.raises(ValueError, match="Expected more than 1 value per channel") if images == 1 else contextlib.nullcontext():
            normalisation.batch_norm(tape, x, None, None, training=True)


def test_the_units_of_a_sum_are_one_factor_so_that_no_product_on_the_way_overflows():
    with torch.inference_mode():
        pixel, weight = torch.full((1, 1), 255, dtype=torch.uint8), torch.full((1, 1), 1.5 * 2.0**127)
        assert products.linear(Tape(pixel), pixel, weight).item() == 1.5 * 2.0**127
        tape, found = Tape(images := torch.zeros(1, 1), {}, 1), {}
        tape.value(images).learns = True
        for name, value in (("a", 2.0**120), ("b", 1.0)):
            x = torch.full((1, 1, 1), value)
            tape.record(x, (images,), lambda g, name=name: (found.setdefault(name, g), (None,))[1])
            found[f"x {name}"] = x
        y = products.matmul(tape, found["x a"], found["x b"])
        tape.walk_back([(y, torch.full_like(y, 2.0**-30))])
    assert (found["a"].item(), found["b"].item()) == (2.0**-30, 2.0**90)


@pytest.mark.parametrize(("first", "last", "step"), [(0.1, 777.3, 0.0137), (-3, 3, 0.001), (-1, 1, 2 / 224), (5, -5.5, -0.3)])
def test_arange_of_numbers_that_are_not_whole_rounds_each_product_and_each_sum_in_float64(first, last, step):
    with Forms(Tape(torch.zeros(2, 1))):
        found = torch.arange(first, last, step)
    count = np.arange(len(torch.arange(first, last, step)), dtype=np.float64)
    assert np.array_equal(found.numpy(), (count * step + first).astype(np.float32))


def test_arange_of_a_half_rounds_whole_numbers_once():
    with Forms(Tape(torch.zeros(2, 1))):
        found = torch.arange(-(2**24), 2**24, 1001, dtype=torch.bfloat16)
    assert torch.equal(found, torch.from_numpy(np.arange(-(2**24), 2**24, 1001)).to(torch.bfloat16))
