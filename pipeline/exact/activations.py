"""Exact forms of activations, in those of arithmetic and the functions of `transcendental`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.exact import blocks, transcendental
from pipeline.exact.arithmetic import add, chosen, divide, floats, in_double, multiply, number, unary, where
from pipeline.exact.errors import refusal
from pipeline.exact.later import Later
from pipeline.exact.tape import Tape


def _sigmoid(x: Tensor) -> Tensor:
    e = transcendental.exp(x.abs().neg_())
    return torch.maximum(transcendental.at_least_zero(x), e).div_(e + 1.0)  # 1 / (1 + e), or e / (1 + e)


def _tanh(x: Tensor) -> Tensor:
    e = transcendental.exp(x.abs().mul_(-2.0))
    return (1 - e).div_(e + 1.0).mul_(x.sign()).add_(0.0)  # 0 of negatives, too, has no sign


def _softplus(x: Tensor) -> Tensor:
    return x.clamp_min(0) + transcendental.log(transcendental.exp(x.abs().neg_()).add_(1.0))


sigmoid = unary("sigmoid", in_double(_sigmoid), lambda g, x, y: g * (y * (1 - y)), "rounded")
tanh = unary("tanh", in_double(_tanh), lambda g, x, y: g * (1 - y * y), "rounded")
_bounded = unary("hardtanh", lambda x, low, high: x.clamp(low, high), lambda g, x, y, low, high: chosen((x > low).logical_and(x < high), g))
_leaky = unary(
    "leaky_relu",
    lambda x, slope: torch.where(x > 0, x, x * number(x, slope)),
    lambda g, x, y, slope: torch.where(x > 0, g, g * number(g, slope)),
)
_elu = unary(
    "elu",
    lambda x, alpha, scale, rate: torch.where(
        x > 0, x * number(x, scale), _expm1(x.clamp_max(0) * number(x, rate)) * number(x, alpha * scale)
    ),
    lambda g, x, y, alpha, scale, rate: torch.where(x > 0, g * number(g, scale), g * number(g, rate) * (y + number(y, alpha * scale))),
)
_softplused = unary("softplus", in_double(_softplus), lambda g, x, y: g * in_double(_sigmoid)(x))


def _expm1(x: Tensor) -> Tensor:
    return (transcendental.exp(x.double()) - 1).float()


def _probability_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    probability = transcendental.normal_probability(x)
    return probability, probability + x * transcendental.normal_density(x)


def _sigmoid_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    s = in_double(_sigmoid)(x)
    return s, s * (1 + x * (1 - s))


def _weighed(name: str, weigh: Callable[[Tensor], Tensor], weigh_and_slope: Callable[[Tensor], Sequence[Tensor]]) -> Any:
    """A form of x times a weight of it. Where somebody learns from x, the slope is computed beside the weight, and kept in place of x."""

    def form(tape: Tape, x: Tensor) -> Tensor:
        x = floats(tape, x, name)
        weight, slope = weigh_and_slope(x) if tape.learns_from(x) else (weigh(x), None)
        return tape.record(x * weight, (x,), lambda g: (None if slope is None else g * slope,))

    form.__doc__ = f"The exact form of {name}."
    return form


_of_gelu = _weighed(
    "gelu",
    in_double(transcendental.normal_probability),
    lambda x: blocks.several(lambda part: _probability_and_slope(part.double()), x),
)
silu = _weighed("silu", in_double(_sigmoid), _sigmoid_and_slope)


def hardtanh(tape: Tape, x: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """The exact form of hardtanh."""
    if min_val > max_val:
        raise ValueError("min_val cannot be greater than max_val")
    return _bounded(tape, x, min_val, max_val)  # type: ignore[no-any-return]


def relu6(tape: Tape, x: Tensor) -> Tensor:
    """The exact form of relu6."""
    return hardtanh(tape, x, 0.0, 6.0)


def hardsigmoid(tape: Tape, x: Tensor) -> Tensor:
    """The exact form of hardsigmoid: relu6(x + 3) / 6."""
    return divide(tape, relu6(tape, add(tape, x, 3.0)), 6.0)  # type: ignore[no-any-return]


def hardswish(tape: Tape, x: Tensor) -> Tensor:
    """The exact form of hardswish: x relu6(x + 3) / 6."""
    return divide(tape, multiply(tape, x, relu6(tape, add(tape, x, 3.0))), 6.0)  # type: ignore[no-any-return]


def leaky_relu(tape: Tape, x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """The exact form of leaky_relu."""
    return _leaky(tape, x, negative_slope)  # type: ignore[no-any-return]


def prelu(tape: Tape, x: Tensor, weight: Tensor) -> Tensor:
    """The exact form of prelu: x where x > 0, else weight x; one weight, or one a channel."""
    x = floats(tape, x, "prelu")
    weight = tape.input(weight, "prelu")
    if weight.numel() > 1:
        shape = [1, -1, *[1] * (x.dim() - 2)]
        weight = tape.record(weight.view(shape), (weight,), lambda g: (g.flatten(),), shares=weight)
    positive = tape.record(x > 0, (x,), lambda g: (None,))
    return where(tape, positive, x, multiply(tape, x, weight))


def elu(tape: Tape, x: Tensor, alpha: float = 1.0) -> Tensor:
    """The exact form of elu."""
    return _elu(tape, x, alpha, 1.0, 1.0)  # type: ignore[no-any-return]


def celu(tape: Tape, x: Tensor, alpha: float = 1.0) -> Tensor:
    """The exact form of celu."""
    return _elu(tape, x, alpha, 1.0, 1 / alpha)  # type: ignore[no-any-return]


def selu(tape: Tape, x: Tensor) -> Tensor:
    """The exact form of selu, with the constants of torch.nn.SELU."""
    return _elu(tape, x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1.0)  # type: ignore[no-any-return]


def softplus(tape: Tape, x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """The exact form of softplus with the usual beta; beyond its usual threshold softplus is x, as float32s."""
    if beta != 1 or threshold != 20:
        raise refusal(f"softplus with beta={beta}, threshold={threshold}", "beta=1, threshold=20")
    return _softplused(tape, x)  # type: ignore[no-any-return]


def gelu(tape: Tape, x: Tensor, approximate: str = "none") -> Tensor:
    """The exact form of gelu. Raises Unsupported for its approximation by tanh."""
    if approximate != "none":
        raise refusal(f"gelu with approximate={approximate!r}", "approximate='none'")
    return _of_gelu(tape, x)  # type: ignore[no-any-return]


def mish(tape: Tape, x: Tensor) -> Tensor:
    """The exact form of mish: x tanh(softplus(x))."""
    return multiply(tape, x, tanh(tape, softplus(tape, x)))  # type: ignore[no-any-return]


def relu(tape: Tape, x: Tensor) -> Tensor:
    """The exact form of torch.relu."""
    x = floats(tape, x, "relu", whole=True)
    if tape.value(x) is None:
        return torch.relu(x)
    later = Rectified(x)
    return tape.record(later.placeholder(), (x,), later.backward)


class Rectified(Later):
    """The output of a ReLU, computed when it is first used. Max-pooling takes its input: maxima and ReLU may change places."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.rectified_gradient: Tensor | None = None
        """That which max-pooling gives, 0 already where the output is."""

    def compute(self) -> Tensor:
        """The output."""
        return torch.relu(self.source)

    def backward(self, g: Tensor) -> tuple[Tensor]:
        """The gradient where the output is positive, else 0."""
        return (g if g is self.rectified_gradient else rectified(g, self.source),)


def rectified(g: Tensor, x: Tensor) -> Tensor:
    """The gradient `g` where ReLU's input or output `x` is positive, else 0."""
    result: Tensor = torch.ops.aten.threshold_backward.default(g, x, 0)
    return result
