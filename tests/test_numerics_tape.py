"""How gradients find their way back: added where a tensor is used several times, refused where they would be wrong."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.exact.engine import Exact
from pipeline.exact.tape import Tape
from tests.networks import batch, step
from tests.steps import drawn_set, run_steps, trainer


class Residual(nn.Module):
    """A tensor that is used three times, and one operation that takes a tensor twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two, self.last = nn.Linear(3072, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x):
        x = F.relu(self.first(x.flatten(1)))
        y = self.one(x) + x
        y = torch.add(y, self.two(x))
        return self.last(y + y)


def test_gradients_of_a_tensor_that_is_used_several_times_are_added():
    torch.manual_seed(0)
    model, given = Residual(), batch(16)
    computed, wanted = step(model, *given), step(model, *given, "native")
    for a, b in zip(computed, wanted, strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


def test_the_gradients_of_a_tensor_are_added_in_the_reverse_of_the_order_of_its_uses():
    x, gradients = torch.zeros(1), [1.0, 2.0**-24, 2.0**-24]  # 1 absorbs each of the small ones, but not their sum
    tape, sums = Tape(images := torch.zeros(1), {}, 1), []
    tape.value(images).learns = True
    tape.record(x, (images,), lambda g: (sums.append(g.item()), (None,))[1])
    ends = [tape.record(torch.zeros(1), (x,), lambda _, g=g: (torch.tensor([g]),)) for g in gradients]
    tape.record(y := torch.zeros(1), tuple(ends), lambda g: (g, g, g))
    tape.walk_back([(y, torch.ones(1))])
    assert sums == [1 + 2.0**-23]  # the last use's first: (2^-24 + 2^-24) + 1


class RectifiedTwice(nn.Module):
    """A ReLU whose output is pooled, added and pooled again, and one whose output is the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 5), nn.Linear(4 * 14 * 14, 10)

    def forward(self, x):
        y = F.relu(self.conv(x))
        pooled = F.max_pool2d(y, 2) + F.max_pool2d(y + y, 2)
        return F.relu(self.last((pooled + F.max_pool2d(y, 2)).flatten(1)))


def test_gradients_of_a_relu_that_is_pooled_and_used_otherwise_are_native_ones_to_rounding():
    torch.manual_seed(0)
    model, given = RectifiedTwice(), batch(16)
    for a, b in zip(step(model, *given), step(model, *given, "native"), strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()
    assert torch.equal(Exact().logits(model, given[0])[3:4], Exact().logits(model, given[0][3:4]))
    assert Exact().logits(model, given[0]).isfinite().all()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(10, 10)
        self.first = nn.Linear(3072, 10)

    def forward(self, x):
        return self.only(self.only(self.first(x.flatten(1))))


class Unused(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3072, 10))
        self.beside = nn.Parameter(torch.zeros(3))


class Aside(Unused):
    """A layer whose output is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Linear(3072, 10)

    def forward(self, x):
        self.side(x.flatten(1))
        return self[1](x.flatten(1))


class Added(Tied):
    """A weight that is viewed, added, and one that is used in a layer of its own as well."""

    def forward(self, x):
        return self.first(x.flatten(1)) * self.only.weight[0] + self.only.bias.view(1, 10)


class Constant(Tied):
    """What is neither made of images nor of weights takes part like any number."""

    def forward(self, x):
        return F.linear(x.flatten(1), self.weight) + self.first(x.flatten(1)) + self.constant

    weight, constant = torch.arange(30720.0).view(10, 3072) / 2**20, torch.arange(10.0)


class Scaled(Tied):
    """A weight made of weights, used twice: as the parametrizations of PyTorch make them."""

    def forward(self, x):
        weight = F.normalize(self.first.weight, dim=1) * 4
        return F.linear(x.flatten(1), weight) + F.linear(x.flatten(1) * 2, weight) + torch.sigmoid(self.only.bias)


@pytest.mark.parametrize("model", [Tied, Unused, Aside, Added, Constant, Scaled])
def test_gradients_of_weights_used_twice_beside_not_at_all_or_to_make_others_are_native_ones_to_rounding(model):
    torch.manual_seed(0)
    model, given = model(), batch(8)
    computed, wanted = step(model, *given), step(model, *given, "native")
    assert [g is None for g in computed] == [g is None for g in wanted]
    for a, b in zip(computed, wanted, strict=True):
        assert b is None or (a - b).abs().max() <= 2e-5 * b.abs().max()


def test_what_a_step_recorded_is_gone_when_it_ends_without_pythons_collector(monkeypatch):
    tapes = []
    start = Tape.__init__

    def noted(self, *arguments):
        start(self, *arguments)
        tapes.append(weakref.ref(self))

    monkeypatch.setattr(Tape, "__init__", noted)
    gc.disable()
    try:
        run_steps(trainer(data=drawn_set(128)), 3)
        assert [each() for each in tapes] == [None] * 3
    finally:
        gc.enable()
