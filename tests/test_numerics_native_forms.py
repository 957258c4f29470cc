"""Native forms: PyTorch's own results for any network, with forms or without, and its own NaN."""

from __future__ import annotations

import gc
import math
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline import numerics
from pipeline.exact import tape
from pipeline.workers import ALONE
from tests.networks import batch, own_network
from tests.steps import CPU, trainer


class Layers(nn.Module):
    """A network of one convolution, and then what the test says."""

    def __init__(self, then, **convolution) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, **convolution)
        self.then = then

    def forward(self, x):
        return self.then(self.conv(x), self.conv).flatten(1)[:, :10]


def twice(y, _):
    rectified = F.relu(y)
    return F.max_pool2d(rectified, 2) + F.max_pool2d(y, 2) - F.max_pool2d(F.max_pool2d(rectified, 2), 2).mean()


def in_place(y, _):
    before = y.shape[-1]
    y.add_(1)  # y itself is another from here on
    y[:, 0] = 3.0
    return F.relu_(F.max_pool2d(y, 2)) * before


def in_place_relu(y, _):
    torch.relu_(y)
    return F.max_pool2d(y, 2) - F.relu(y).mean()


class OfForms(nn.Module):
    """A network of what has native forms, but for the convolution's settings; counts its calls."""

    def __init__(self, **convolution) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.calls = nn.Conv2d(3, 6, 3, **convolution), 0
        places = self.conv(torch.zeros(1, 3, 32, 32)).shape[2:]
        self.linear = nn.Linear(6 * (places[0] // 2) * (places[1] // 2), 10)

    def forward(self, x):
        self.calls += 1
        y = F.max_pool2d(F.relu(self.conv(x)), 2)
        return F.relu(self.linear(torch.flatten(y + y, 1)))


NETWORKS = {
    "ReLU, then pooling": lambda y, _: F.max_pool2d(F.relu(y), 2),
    "pooling, then ReLU": lambda y, _: torch.relu(torch.max_pool2d(y, 2)),
    "ReLU in place": lambda y, _: F.max_pool2d(F.relu(y, inplace=True), 3),
    "ReLU in place, and the convolution's output again": lambda y, _: F.max_pool2d(F.relu(y, inplace=True), 3) + y.mean(),
    "a method": lambda y, _: F.max_pool2d(y.relu(), 2),
    "one tensor in several layers": twice,
    "changes in place": in_place,
    "other ways to change in place": in_place_relu,
    "tensors in a list": lambda y, _: torch.cat([y, F.relu(y)], 1),
    "pooling that overlaps": lambda y, _: F.max_pool2d(F.relu(y), 3, stride=2, padding=1),
    "pooling that gives indices": lambda y, _: F.max_pool2d(F.relu(y), 2, return_indices=True)[0],
    "sizes asked for": lambda y, _: F.relu(y).view(y.size(0), -1, y.shape[-1]) * y.dim(),
    "arguments by name": lambda y, _: F.max_pool2d(torch.relu(input=y), (2,)).reshape(shape=(y.shape[0], -1)),
    "other ways to say a shape": lambda y, _: F.relu(y).view(-1, np.prod(y.shape[1:])),
    "a layout asked for": lambda y, _: F.relu(y.contiguous(memory_format=torch.channels_last)),
    "a convolution of a convolution": lambda y, conv: torch.conv2d(F.relu(y), conv.weight.transpose(0, 1), padding=2),
}


@pytest.mark.parametrize("then", NETWORKS.values(), ids=NETWORKS)
def test_a_network_gives_pytorchs_values_and_gradients(then):
    model, (images, labels) = Layers(then), batch(20)
    logits, gradients = results(model, images, labels)
    wanted, wanted_gradients = plain(model, images, labels)
    assert logits.layout == torch.strided
    torch.testing.assert_close([logits, *gradients], [wanted, *wanted_gradients], rtol=1e-5, atol=1e-6)
    assert not torch.equal(wanted, torch.zeros_like(wanted))


@pytest.mark.parametrize(
    "settings",
    [{"stride": 2}, {"padding": 1}, {"padding": (2, 0)}, {"padding": "same"}, {"dilation": 2}, {"groups": 3}, {"bias": False}],
    ids=str,
)
def test_a_convolution_of_any_settings_gives_pytorchs_values_and_gradients(settings):
    model, (images, labels) = OfForms(**settings), batch(20)
    (logits, gradients), (wanted, wanted_gradients) = results(model, images, labels), plain(model, images, labels)
    torch.testing.assert_close([logits, *gradients], [wanted, *wanted_gradients], rtol=1e-5, atol=1e-6)


class Standardized(Layers):
    """What uses its images before the first convolution, in place."""

    def forward(self, x):
        x.mul_(2)
        return super().forward(x - x.mean())


def test_images_that_are_changed_before_the_first_convolution_give_pytorchs_values():
    model, (images, labels) = Standardized(NETWORKS["ReLU, then pooling"]), batch(20)
    (logits, gradients), (wanted, wanted_gradients) = results(model, images, labels), plain(model, images, labels)
    torch.testing.assert_close([logits, *gradients], [wanted, *wanted_gradients], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("images", [1, 0, 300])
def test_any_number_of_images_gives_pytorchs_values(images):
    model, (given, _) = own_network(), batch(300)
    with torch.no_grad():
        wanted = model(given[:images].float() / 255)
    torch.testing.assert_close(numerics.select("native", CPU).logits(model, given[:images]), wanted)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("name", ["conv1.weight", "conv1.bias", "conv2.weight"])
def test_what_is_not_finite_or_overflows_reaches_the_logits_as_in_pytorch(name, value):
    given, (images, _) = trainer("native"), batch(4)
    given.parameters[name].data.flatten()[:2] = torch.tensor([value, -value])
    with torch.no_grad():
        wanted = given.model(images.float() / 255)
    ours = numerics.select("native", CPU).logits(given.model, images)
    assert torch.equal(ours.isnan(), wanted.isnan())
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.fixture
def no_autograd(monkeypatch):
    """Autograd may compute nothing."""
    monkeypatch.setattr(torch.autograd, "grad", None)


def test_simplecnn_trains_by_forms_alone(no_autograd):
    given = trainer("native")
    given._step(given.offsets)
    assert not given.numerics._trained_by_pytorch


@pytest.mark.parametrize("settings", [{}, {"padding": 1}, {"padding": (2, 0)}, {"bias": False}], ids=str)
def test_a_convolution_without_strides_and_groups_has_a_form_with_any_padding(no_autograd, settings):
    results(OfForms(**settings), *batch(20))


@pytest.mark.parametrize("settings", [{"stride": 2}, {"padding": "same"}, {"dilation": 2}, {"groups": 3}], ids=str)
def test_a_model_without_a_form_is_tried_once_and_then_left_to_pytorch(settings):
    model, native = OfForms(**settings), numerics.select("native", CPU)
    images, labels = batch(20)
    for _ in range(3):
        native.loss_and_gradients(model, images, labels, ALONE, 20)
    assert model.calls == 4
    for _ in range(3):
        native.logits(model, images)
    assert model.calls == 8


def test_a_bias_that_is_one_number_for_all_has_a_gradient_of_its_own_shape():
    model, (images, labels) = OfForms(), batch(20)
    model.linear.bias = nn.Parameter(torch.ones(1))
    torch.testing.assert_close(results(model, images, labels), plain(model, images, labels))


def test_a_hook_of_a_weight_is_called():
    model, (images, labels) = OfForms(), batch(20)
    model.linear.weight.register_hook(lambda gradient: gradient * 3)
    torch.testing.assert_close(results(model, images, labels), plain(model, images, labels))


def test_a_frozen_weight_is_pytorchs_to_refuse():
    model = OfForms()
    model.conv.weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match="does not require grad"):
        results(model, *batch(4))


def test_autocast_inside_a_model_gives_pytorchs_values():
    class Autocast(OfForms):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x).float()

    model, (images, labels) = Autocast(), batch(20)
    torch.testing.assert_close(results(model, images, labels), plain(model, images, labels))


def test_flatten_from_a_dimension_that_is_not_there_is_pytorchs_to_refuse():
    with pytest.raises(IndexError):
        results(Layers(lambda y, _: torch.flatten(y, 5)), *batch(4))


def test_a_weight_that_takes_no_part_in_the_loss_is_pytorchs_to_refuse():
    model = OfForms()
    model.register_parameter("unused", nn.Parameter(torch.zeros(3)))
    with pytest.raises(RuntimeError, match="to not have been used"):
        results(model, *batch(4))


def test_what_a_step_kept_is_free_when_it_ends(monkeypatch):
    """No tensor waits for Python's collector of cycles."""
    kept, original = [], tape.Tape.record

    def noted(self, y, *arguments):
        kept.append(weakref.ref(y))
        return original(self, y, *arguments)

    monkeypatch.setattr(tape.Tape, "record", noted)
    gc.disable()
    try:
        results(OfForms(), *batch(4))
        assert len(kept) > 5
        assert [reference() for reference in kept] == [None] * len(kept)
    finally:
        gc.enable()


def results(model, images, labels):
    """The logits and the gradients by native numerics."""
    native = numerics.select("native", CPU)
    return native.logits(model, images), native.loss_and_gradients(model, images, labels, ALONE, len(images))[1]


def plain(model, images, labels):
    """The same by PyTorch alone."""
    logits = model(images.float() / 255)
    return logits.detach(), list(torch.autograd.grad(F.cross_entropy(logits, labels), list(model.parameters())))
