"""The tutorial's SimpleCNN, and its initial weights from integers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.draws import random_integers
from pipeline.errors import UserError


class SimpleCNN(nn.Module):
    """The tutorial's network: images [N, 3, 32, 32] -> logits float32 [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """As in the tutorial, line by line."""
        x = self.pool(F.relu(self.conv1(x)))  # [N, 6, 14, 14]
        x = self.pool(F.relu(self.conv2(x)))  # [N, 16, 5, 5]
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = self.fc3(x)
        return x


Law = Callable[[nn.Module], tuple[int, float]]
"""How a layer's weight and bias are drawn: integers from -bound to bound - 1, `bound` a power of two, each times the float64 `step`."""


def uniform_by_fan_in(layer: nn.Module) -> tuple[int, float]:
    """PyTorch's default for Conv2d and Linear: uniform on +-1/sqrt(fan_in), here on 2^24 equally spaced points.

    PyTorch's source: `torch.nn.init.kaiming_uniform_` with a=sqrt(5) for the weight; the bias has the weight's fan_in.
    """
    weight = layer.get_parameter("weight")
    return 2**23, 1 / math.sqrt(weight[0].numel()) / 2**23  # math.sqrt and / are correctly rounded (IEEE 754)


LAWS: dict[type[nn.Module], Law] = {nn.Conv2d: uniform_by_fan_in, nn.Linear: uniform_by_fan_in}
"""Type of layer -> the law of its parameters; a type that is not here has none, its subclasses included."""
DRAWN = ("weight", "bias")


def initialise(model: nn.Module, seed: int) -> None:
    """Set every parameter of `model`, on the CPU, from integers drawn for its name and `seed`; buffers stay as they are.

    PyTorch's own draws give other bits with other instruction sets; here each weight is an integer times one float64, rounded
    once to float32.

    Raises:
        UserError: a parameter is of a layer without a law, or none that its law covers; nothing is set then.
    """
    layers = [(name, layer, dict(layer.named_parameters(recurse=False))) for name, layer in model.named_modules()]
    for name, layer, own in layers:
        for part in own:
            if type(layer) not in LAWS or part not in DRAWN:
                raise UserError(
                    f"parameter '{f'{name}.{part}'.lstrip('.')}' of a {type(layer).__name__}: no law says how to draw its initial value; "
                    f"there are laws for {' and '.join(DRAWN)} of {', '.join(kind.__name__ for kind in LAWS)} (pipeline/model.py)"
                )
    for name, layer, own in layers:
        for part, parameter in own.items():
            bound, step = LAWS[type(layer)](layer)
            drawn = random_integers(f"weights/{seed}/{name}.{part}", 2 * bound, parameter.numel()) - bound  # int64 [numel]
            with torch.no_grad():
                parameter.copy_(torch.from_numpy((drawn * step).astype("float32")).view(parameter.shape))
