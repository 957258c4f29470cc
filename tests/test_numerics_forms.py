"""Each exact form: exp and log, the loss, max-pooling, ReLU, additions, changes of shape, the update."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.exact import activations, arithmetic, loss, pooling, products, shapes, tiles, transcendental
from pipeline.exact.draws import random_integers
from pipeline.exact.engine import Exact
from pipeline.exact.errors import Unsupported
from pipeline.exact.optimizers import SGD
from pipeline.exact.tape import Tape
from tests.steps import ints


def test_exp_and_log_are_within_1e_11_of_the_true_values():
    x = -torch.from_numpy(random_integers("exp", 2**40, 20000).astype(np.float64)) / 2**40 * 45
    assert ((transcendental.exp(x) - torch.from_numpy(np.exp(x.numpy()))).abs() / torch.exp(x)).max() < 1e-11
    assert transcendental.exp(torch.zeros(1, dtype=torch.float64)).item() == 1
    y = 1 + torch.from_numpy(random_integers("log", 2**40, 20000).astype(np.float64)) / 2**40 * 1000
    assert (transcendental.log(y) - torch.from_numpy(np.log(y.numpy()))).abs().max() < 1e-11
    assert transcendental.log(torch.ones(1, dtype=torch.float64)).item() == 0


def test_the_loss_and_its_gradient_are_pytorchs_to_float32_rounding():
    logits = (ints("logits", 19, 64, 10) / 2**15).float().requires_grad_()
    labels = torch.from_numpy(random_integers("labels", 2**30, 64) % 10)
    wanted = F.cross_entropy(logits.double(), labels)
    (d_wanted,) = torch.autograd.grad(wanted, logits)
    with torch.no_grad():
        _, gradient = loss.cross_entropy(Tape(logits, {}, 64), logits, labels)
        computed = loss.mean(loss.Softmax(logits).losses(labels))
    assert computed.item() == pytest.approx(wanted.item(), rel=1e-9)
    assert (gradient - d_wanted).abs().max() < 1e-9


def test_a_mean_of_more_losses_than_float64_adds_exactly_is_the_quotient_of_python_integers():
    losses = torch.full((2**17 + 3,), 2 - 2.0**-20, dtype=torch.float64)
    losses[0] = 1.0
    waiting = loss.MeanLoss(losses, len(losses))
    assert not waiting.fit_float64
    assert loss.MeanLoss(losses[: 2**17], 2**17).fit_float64
    total = (2**36 - 2**15) * (len(losses) - 1) + 2**35  # above 2^53, but a multiple of 2^15
    wanted = total / 2**35 / len(losses)
    assert float(loss.mean(losses)) == wanted


def test_more_classes_than_can_be_added_exactly_are_refused_by_name():
    assert loss.MOST_CLASSES == 8192
    loss.Softmax(torch.zeros(1, 8192))
    with pytest.raises(Unsupported, match="adds the probabilities of at most 8192 classes, and the model has 8193; change the model"):
        Exact().scores(torch.zeros(1, 8193), torch.zeros(1, dtype=torch.int64))


def test_the_probabilities_of_8192_classes_add_to_one_total_in_every_order():
    logits = -torch.from_numpy(random_integers("classes", 2**20, 8192).astype(np.float32)).view(1, -1) * 2.0**-18
    total = loss.Softmax(logits).total
    orders = [torch.from_numpy(np.argsort(random_integers(f"order {i}", 2**63, 8192))) for i in range(8)]
    assert {loss.Softmax(logits[:, order]).total.item() for order in orders} == {total.item()}


def test_of_equal_logits_the_first_class_is_predicted():
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    _, predicted, confidence = Exact().scores(logits, torch.tensor([0, 0]))
    assert predicted.tolist() == [1, 0]
    assert confidence[1].item() == np.float32(1 / 3)


@pytest.mark.parametrize("batch_innermost", [True, False])
def test_max_pool_gives_pytorchs_values_and_sends_the_gradient_to_the_first_of_equal_maxima(batch_innermost):
    for k, height, width in ((2, 28, 28), (2, 7, 9), (3, 10, 11)):
        x = (random_integers("pool", 4, 4 * 5 * height * width) - 2).astype(np.float32)
        x = torch.from_numpy(x).view(4, 5, height, width).requires_grad_()
        g = ints("pool g", 10, 4, 5, height // k, width // k).float()
        stock = F.max_pool2d(x, k)
        (d_stock,) = torch.autograd.grad(stock, x, g)
        given = x.detach().movedim(0, -1).contiguous().movedim(-1, 0) if batch_innermost else x.detach()
        ours, places = tiles.maxima(given, k)
        assert torch.equal(stock, ours)
        assert torch.equal(d_stock, tiles.spread(g, given, places, ours))


def walked_back(form, *inputs: torch.Tensor, **arguments) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What a form gives for inputs that all were made from the images, and their gradients for one of ones."""
    with torch.no_grad():
        tape = Tape(images := torch.zeros(len(inputs[0])), {}, len(inputs[0]))
        for x in inputs:
            tape.value(images).learns = True
            tape.record(x, (images,), lambda g: (None,))
        y = form(tape, *inputs, **arguments)
        _, made_from, backward = tape._over_images[-1]
        assert made_from == [tape.value(x) for x in inputs]
        return tape.input(y, "a test"), list(backward(torch.ones_like(y)))


def test_relu_passes_the_gradient_where_its_output_is_positive():
    y, (d_x,) = walked_back(activations.relu, torch.tensor([-1.0, -0.0, 0.0, 1e-45, 2.0]))
    assert y.tolist() == [0, 0, 0, float(np.float32(1e-45)), 2]
    assert d_x.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("batch_innermost", [True, False])
def test_max_pool_after_relu_has_the_bits_of_pytorchs_whether_it_takes_relus_input_or_its_output(used_before, batch_innermost):
    x = torch.from_numpy((random_integers("pool", 4, 4 * 5 * 8 * 6) - 2).astype(np.float32)).view(4, 5, 8, 6).requires_grad_()  # many ties
    g = ints("pool g", 10, 4, 5, 4, 3).float()
    wanted = F.max_pool2d(torch.relu(x), 2)
    (d_wanted,) = torch.autograd.grad(wanted, x, g)
    given = x.detach().movedim(0, -1).contiguous().movedim(-1, 0) if batch_innermost else x.detach()
    gradients = []
    with torch.no_grad():
        tape = Tape(images := torch.zeros(4), {}, 4)
        tape.value(images).learns = True
        tape.record(given, (images,), lambda d_x: (gradients.append(d_x), (None,))[1])
        y = activations.relu(tape, given)
        if used_before:
            tape.input(y, "a test")
        pooled = pooling.max_pool2d(tape, y, 2)
        tape.walk_back([(pooled, g)])
    assert torch.equal(pooled, wanted)
    assert torch.equal(gradients[0], d_wanted)


def test_a_relu_that_is_not_computed_yet_is_nan_so_that_none_is_used_by_mistake():
    x = torch.ones(2, 3)
    y = activations.relu(Tape(x), x)
    assert y.shape == x.shape
    assert y.isnan().all()


def test_an_addition_passes_the_gradient_to_both():
    y, gradients = walked_back(arithmetic.add, torch.tensor([1.0, 2.0]), torch.tensor([2.0**-24, 3.0]))
    assert y.tolist() == [1, 5]
    assert [g.tolist() for g in gradients] == [[1, 1], [1, 1]]


@pytest.mark.parametrize("batch_innermost", [True, False])
@pytest.mark.parametrize("shape", [(3, -1), (-1, 20), (3, 4, 5, 1), (-1, 4), (-1,)])
def test_a_change_of_shape_moves_values_in_row_major_order_and_back(shape, batch_innermost):
    plain = torch.arange(60.0).view(3, 5, 2, 2)
    x = plain.movedim(0, -1).contiguous().movedim(-1, 0) if batch_innermost else plain
    y, (d_x,) = walked_back(lambda tape, x: shapes.reshape(tape, x, *shape), x)
    assert torch.equal(y, plain.reshape(shape))
    assert d_x.shape == x.shape
    tape = Tape(x, {}, 1)
    assert torch.equal(shapes.reshape(tape, shapes.reshape(tape, x, shape), 3, 5, 2, 2), plain)
    assert torch.equal(shapes.flatten(tape, x, 1, -2), plain.flatten(1, -2))


@pytest.mark.parametrize("form", [activations.relu, lambda tape, x: pooling.max_pool2d(tape, x, 2), activations.silu])
def test_bytes_of_images_are_a_255th_each_to_a_form_of_floats_and_bytes_of_others_are_refused(form):
    x = torch.from_numpy(random_integers("bytes", 256, 96).astype(np.uint8)).view(2, 3, 4, 4)
    of_bytes, of_floats = Tape(x), Tape(floats := x / 255)
    assert torch.equal(of_bytes.input(form(of_bytes, x), "a test"), of_floats.input(form(of_floats, floats), "a test"))
    with pytest.raises(Unsupported, match=r"numerics 'exact' has no form of .* of torch\.float64"):
        form(Tape(double := x.double()), double)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_a_weighted_sum_of_another_type_than_bytes_and_float32_is_refused(dtype):
    x = torch.zeros(2, 3, dtype=dtype)
    with pytest.raises(Unsupported, match=f"no form of linear of {dtype}"):
        products.linear(Tape(x), x, torch.zeros(4, 3))


# --- the update ------------------------------------------------------------------------------------------------------


def test_the_update_is_sgd_with_momentum_each_step_rounded_by_itself():
    weights, velocity, gradient = (ints(name, 19, 1000).float() / 2**20 for name in ("w", "v", "g"))
    lr, momentum = np.float32(0.01), np.float32(0.9)
    v = velocity.numpy() * momentum + gradient.numpy()
    w = weights.numpy() - v * lr
    sgd = SGD([weights], 0.01, 0.9)
    sgd.state[weights]["momentum_buffer"].copy_(velocity)
    weights.grad = gradient
    sgd.step()
    assert np.array_equal(sgd.state[weights]["momentum_buffer"].numpy(), v)
    assert np.array_equal(weights.numpy(), w)


def test_the_state_holds_no_subnormal_and_no_negative_zero():
    tiny = torch.tensor([1e-44, -1e-44, -0.0, 2.0**-65, -(2.0**-64), 2.0**-63])
    weights, velocity = tiny.clone(), tiny.clone()
    sgd = SGD([weights], 0.5, 1.0)
    sgd.state[weights]["momentum_buffer"] = velocity
    weights.grad = torch.zeros(6)
    sgd.step()
    for state in (weights, velocity):
        assert state[:5].tolist() == [0] * 5
        assert not torch.signbit(state[:5]).any()
    assert velocity[5].item() == 2.0**-63


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("of", ["x", "weight"])
def test_what_is_made_of_a_value_that_is_not_finite_is_nan_and_an_image_keeps_it_to_itself(value, of):
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    (x if of == "x" else weight)[1, 1] = value
    y = products.linear(Tape(x), x, weight)
    assert y.isnan().all(1).tolist() == [of == "weight", True]
