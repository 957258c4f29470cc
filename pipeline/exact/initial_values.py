"""Initial weights from integers: the same on every device, library and release."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from pipeline.exact.draws import random_integers
from pipeline.exact.errors import Unsupported

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
        Unsupported: a parameter is of a layer without a law, or none that its law covers; nothing is set then.
    """
    layers = [(name, layer, dict(layer.named_parameters(recurse=False))) for name, layer in model.named_modules()]
    for name, layer, own in layers:
        for part in own:
            if type(layer) not in LAWS or part not in DRAWN:
                raise Unsupported(
                    f"has no law for the initial value of parameter '{f'{name}.{part}'.lstrip('.')}' of a {type(layer).__name__} "
                    f"(it has laws for {' and '.join(DRAWN)} of {', '.join(kind.__name__ for kind in LAWS)})"
                )
    for name, layer, own in layers:
        for part, parameter in own.items():
            bound, step = LAWS[type(layer)](layer)
            drawn = random_integers(f"weights/{seed}/{name}.{part}", 2 * bound, parameter.numel()) - bound  # int64 [numel]
            with torch.no_grad():
                parameter.copy_(torch.from_numpy((drawn * step).astype("float32")).view(parameter.shape))
