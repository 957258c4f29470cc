"""Native numerics: a step that the tape walks back has autograd's loss and gradients, and what has no form is left to autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.model import SimpleCNN, initialise
from pipeline.numerics.native import Native
from pipeline.workers import ALONE
from tests.steps import drawn_set


class Varied(nn.Module):
    """Convolutions of several kinds, a ReLU that is pooled and used otherwise, and layers without a bias."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.second = nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), groups=2)
        self.third = nn.Conv2d(6, 6, 3, dilation=2)
        self.fc = nn.Linear(6 * 4 * 12, 10, bias=False)

    def forward(self, x):
        x = F.relu(self.first(x))
        x = F.max_pool2d(x, 2) + F.max_pool2d(x + x, 2)  # [N, 4, 16, 16]
        return self.fc(torch.flatten(self.third(self.second(x)), 1))


class Otherwise(SimpleCNN):
    """The network with an operation that has no form, or with one weight used twice."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        return super().forward(torch.tanh(x)) if self.how == "another operation" else super().forward(x) + super().forward(x)


def by(recorded: bool, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[bool, list[torch.Tensor]]:
    """Whether the tape walked a step back, and its loss and gradients."""
    native = Native()
    native.recorded = recorded
    loss, gradients = native.loss_and_gradients(model, images, labels, ALONE, 64)
    return native.recorded, [loss, *gradients]


def given(model: nn.Module, flat: bool = False, count: int = 64) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """The model, and images; flat ones are of one color each, so that all places of a max-pool's tile are equal."""
    initialise(model, 0)
    data = drawn_set(64)
    images = torch.from_numpy(data.train_images)[:count]
    images = images[:, :, :1, :1].expand(-1, -1, 32, 32).contiguous() if flat else images
    return model, images, torch.from_numpy(data.train_labels).long()[:count]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kind", [SimpleCNN, Varied])
def test_the_tape_gives_autograds_loss_and_gradients_to_rounding(kind, flat):
    of_model = given(kind(), flat)
    (by_tape, found), (by_autograd, wanted) = by(True, *of_model), by(False, *of_model)
    assert (by_tape, by_autograd) == (True, False)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_a_worker_without_images_has_a_loss_and_gradients_of_0():
    walked, found = by(True, *given(SimpleCNN(), count=0))
    assert walked
    assert [part.shape for part in found] == [torch.Size(()), *(p.shape for p in SimpleCNN().parameters())]
    assert all(part.eq(0).all() for part in found)


@pytest.mark.parametrize("how", ["another operation", "a weight twice"])
def test_what_has_no_form_is_left_to_autograd_from_then_on(how):
    of_model = given(Otherwise(how))
    (walked, found), (_, wanted) = by(True, *of_model), by(False, *of_model)
    assert not walked
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_weight_that_takes_no_part_in_the_loss_is_refused_as_autograd_refuses_it():
    model, images, labels = given(nn.Sequential(SimpleCNN()))
    model.register_module("unused", nn.Linear(2, 2))
    model.forward = lambda x: model[0](x)
    with pytest.raises(RuntimeError, match="appears to not have been used in the graph"):
        by(True, model, images, labels)
