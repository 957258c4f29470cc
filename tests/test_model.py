"""Initial weights: drawn by the type of the layer; what no law covers is refused by name."""

import pytest
import torch
from torch import nn

from pipeline.exact.errors import Unsupported
from pipeline.exact.initialisation import initialise
from pipeline.models.simple_cnn import SimpleCNN

pytestmark = pytest.mark.fault(42)


class Scaled(nn.Module):
    """A model with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(1))


class Odd(nn.Linear):
    """A layer that might mean something else by its weight."""


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("model", "parameter"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "'1.weight' of a BatchNorm1d"),
        (nn.Sequential(nn.Linear(2, 2), nn.Embedding(2, 2)), "'1.weight' of a Embedding"),
        (Scaled(), "'scale' of a Scaled"),
        (nn.Sequential(Odd(2, 2)), "'0.weight' of a Odd"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "'bias' of a ParametrizedLinear"),
    ],
)
def test_a_parameter_that_no_law_covers_is_refused_by_name_and_nothing_is_set(model, parameter):
    before = weights(model)
    with pytest.raises(Unsupported) as error:
        initialise(model, 0)
    assert str(error.value) == (
        f"numerics 'exact' has no law for the initial value of parameter {parameter} "
        "(it has laws for weight and bias of Conv2d, Linear); change the model"
    )
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_parameter_that_is_added_to_a_known_layer_is_refused_by_name():
    layer = nn.Linear(2, 2)
    layer.gain = nn.Parameter(torch.ones(1))
    with pytest.raises(Unsupported, match=r"no law for the initial value of parameter '0\.gain' of a Linear"):
        initialise(nn.Sequential(layer), 0)


def test_buffers_stay_as_they_are():
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4, affine=False))
    model[1].running_mean.fill_(0.25)
    initialise(model, 0)
    assert model[1].running_mean.tolist() == [0.25] * 4
    assert model[1].running_var.tolist() == [1.0] * 4


def test_weights_and_biases_follow_the_law_of_pytorchs_own():
    """Uniform on +-1/sqrt(fan_in), whatever the groups: the fan-in is what one output sees."""
    model = nn.Sequential(nn.Conv2d(8, 64, 3, groups=2), nn.Linear(400, 300))
    initialise(model, 7)
    for layer, fan_in in ((model[0], 4 * 9), (model[1], 400)):
        for parameter in (layer.weight, layer.bias):
            bound = fan_in**-0.5
            assert -bound <= parameter.min() < -0.9 * bound
            assert 0.9 * bound < parameter.max() < bound


def test_each_name_and_seed_has_weights_of_its_own():
    first, again, other = SimpleCNN(), SimpleCNN(), SimpleCNN()
    initialise(first, 0)
    initialise(again, 0)
    initialise(other, 1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
