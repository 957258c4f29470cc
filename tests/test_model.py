"""Initial weights: drawn by the type of the layer; what no law covers is refused by name."""

import pytest
import torch
from torch import nn

from pipeline.exact.errors import Unsupported
from pipeline.exact.initialisation import initialise
from pipeline.models.simple_cnn import SimpleCNN

pytestmark = pytest.mark.fault(42)


class Scaled(nn.Module):
    """A model with a parameter of its own, which no layer fills."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(1))


class Orthogonal(nn.Linear):
    """A layer whose filling has no rule."""

    def reset_parameters(self):
        nn.init.orthogonal_(self.weight)
        nn.init.zeros_(self.bias)


class Exponential(nn.Linear):
    """A layer whose distribution has no rule."""

    def reset_parameters(self):
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.weight.exponential_()


class InPart(nn.Linear):
    """A layer that draws a part of its weight by itself."""

    def reset_parameters(self):
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        nn.init.uniform_(self.weight[0])


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


UNKNOWN = "does not know how parameter '{}' is filled; build the model inside exact.initial_values(seed)"
NO_RULE = (
    "has no rule for the initial value of parameter '0.weight', which is filled at random {}; "
    "use uniform_, normal_ or trunc_normal_, or start from weights of your own"
)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Scaled(), UNKNOWN.format("scale")),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), UNKNOWN.format("parametrizations.weight.original0")),
        (nn.Sequential(Orthogonal(2, 2)), NO_RULE.format("by torch.linalg.qr")),
        (nn.Sequential(Exponential(2, 2)), NO_RULE.format("by torch.Tensor.exponential_")),
        (nn.Sequential(InPart(2, 2)), NO_RULE.format("in part")),
    ],
)
def test_a_parameter_that_no_rule_covers_is_refused_by_name_and_nothing_is_set(model, reason):
    before = weights(model)
    with pytest.raises(Unsupported) as error:
        initialise(model, 0)
    assert str(error.value) == f"numerics 'exact' {reason}"
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_parameter_that_is_added_to_a_known_layer_is_drawn_by_name_only_if_the_layer_fills_it():
    layer = nn.Linear(2, 2)
    layer.gain = nn.Parameter(torch.full((1,), 5.0))
    initialise(nn.Sequential(layer), 0)
    assert layer.gain.item() == 5.0


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
