"""`numerics: exact`: the same bits on every device, from PyTorch's stock kernels.

A mode around the model replaces each operation it knows by its exact form (layers.py) and refuses any other by name; the
model's file knows nothing of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from pipeline.errors import UserError
from pipeline.numerics import layers
from pipeline.numerics.reductions import Matmul, convolution
from pipeline.workers import Group

VERSION = "exact-1"
"""Changes whenever the bits change; docs/exact-numerics.md defines it."""
SNAP = 2.0**-64
"""Weights and velocities up to this are zero, so the state holds no subnormal and no negative zero."""


class SGD:
    """SGD with momentum as torch.optim.SGD defines it: each product and sum a kernel of its own, so rounded by itself."""

    def __init__(self, weights: Tensor, lr: float, momentum: float) -> None:
        self.weights = weights  # float32 [P]
        self.state = {"velocity": torch.zeros_like(weights)}
        self.lr, self.momentum = (torch.tensor(value, dtype=torch.float32, device=weights.device) for value in (lr, momentum))

    def step(self, gradient: Tensor) -> None:
        """Update the weights and the velocity with a float32 gradient [P]."""
        velocity = self.state["velocity"]
        torch.add(velocity * self.momentum, gradient, out=velocity)
        velocity.copy_(F.hardshrink(velocity, SNAP))
        self.weights.copy_(F.hardshrink(self.weights - velocity * self.lr, SNAP))


class Exact:
    """Exact numerics, as `numerics.select` returns them."""

    version = VERSION

    def model_input(self, batch: Tensor) -> Tensor:
        """What the model is given for uint8 images [N, 3, 32, 32]: the bytes themselves, standing for byte / 255."""
        return batch

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """The mode in which a model and its loss compute exactly."""
        return _Exactly()

    def logits(self, model: torch.nn.Module, images: Tensor) -> Tensor:
        """The model's float32 logits [N, C] for uint8 images."""
        with self.computing():
            logits: Tensor = model(self.model_input(images))
        return logits

    def loss_and_gradients(
        self, model: torch.nn.Module, images: Tensor, labels: Tensor, group: Group, batch_images: int
    ) -> tuple[Tensor, list[Tensor]]:
        """The batch's mean loss, float32 0-dim, and its gradient for each of the model's parameters."""
        with self.computing():
            loss = F.cross_entropy(model(self.model_input(images)), labels)
        return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))

    def optimizer(self, weights: Tensor, lr: float, momentum: float) -> SGD:
        """The update of float32 `weights` [P], in place."""
        return SGD(weights, lr, momentum)

    def scores(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For float32 logits [N, C] and int64 labels [N]: losses float64 [N], predicted classes int64 [N], confidences float32 [N].

        Of equal logits the first is predicted.
        """
        softmax = layers.Softmax(logits)
        return softmax.losses(labels), _first_maximum(logits), softmax.probabilities.amax(1).float()

    def probabilities(self, logits: Tensor) -> Tensor:
        """The softmax of float32 logits [N, C], float32 [N, C]; a row's largest is its confidence in `scores`."""
        return layers.Softmax(logits).probabilities.float()

    def mean(self, losses: Tensor) -> float:
        """The mean of float64 losses [N]."""
        return float(layers.mean(losses))


def _first_maximum(logits: Tensor) -> Tensor:
    """Argmax over dim 1 with a stated rule for ties, which torch.argmax has not: the lowest index."""
    classes = torch.arange(logits.shape[1], device=logits.device)
    is_maximum = logits == logits.amax(1, keepdim=True)
    return torch.where(is_maximum, classes, logits.shape[1]).amin(1)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
            groups: int = 1) -> Tensor:  # fmt: skip
    if groups != 1 or isinstance(padding, str):
        raise _refusal(f"conv2d with groups={groups}, padding={padding!r}", "groups=1 and a padding in pixels")
    return _apply(layers.Weighted, convolution(_pair(stride), _pair(padding), _pair(dilation)), x, weight, bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.dim() != 2:
        raise _refusal(f"linear on {x.dim()} dimensions", "2")
    return _apply(layers.Weighted, Matmul(), x, weight, bias)


def max_pool2d(x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
               return_indices: bool = False) -> Tensor:  # fmt: skip
    """torch.nn.functional.max_pool2d for square tiles that do not overlap. Raises UserError for others."""
    kernel = _pair(kernel_size)
    plain = kernel[0] == kernel[1] and stride in (None, kernel_size, kernel) and _pair(padding) == (0, 0) and _pair(dilation) == (1, 1)
    if not plain or ceil_mode or return_indices:
        raise _refusal("max_pool2d with overlapping, padded or oblong windows, ceil_mode or indices", "square windows with stride = size")
    return _apply(layers.MaxPool, x, kernel[0])


def _cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None, size_average: None = None, ignore_index: int = -100,
                   reduce: None = None, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:  # fmt: skip
    if weight is not None or size_average is not None or reduce is not None or reduction != "mean" or label_smoothing or labels.dim() != 1:
        raise _refusal("cross_entropy with weights, smoothing, soft labels or another reduction", "class labels and the mean")
    return _apply(layers.CrossEntropy, logits, labels)


def _relu(x: Tensor, inplace: bool = False) -> Tensor:
    return torch.relu(x)  # comparisons only, forward and backward; never in place: the gradient of MaxPool needs its input


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, tuple | list) else (value, value)
    return int(first), int(second)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result


def _refusal(what: str, instead: str) -> UserError:
    return UserError(f"numerics 'exact' has no form of {what} (it has: {instead}); change the model or set numerics: native")


EXACT: dict[Any, Callable[..., Tensor]] = {
    torch.conv2d: _conv2d,
    F.linear: _linear,
    F.max_pool2d: max_pool2d,
    F.cross_entropy: _cross_entropy,
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    Tensor.view: Tensor.reshape,  # exact convolutions lay their results out in memory as they like
}
"""Operations and their exact forms."""
HARMLESS = {torch.flatten, Tensor.flatten, Tensor.reshape, Tensor.size, Tensor.dim, Tensor.shape.__get__, Tensor.contiguous}  # type: ignore[attr-defined]
"""Operations that compute nothing."""


class _Exactly(TorchFunctionMode):
    """Replaces the operations in EXACT, lets those in HARMLESS pass, refuses all others.

    So a compiled model is refused too, with the first thing its compiler asks for: a compiler may contract what must be
    rounded step by step.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_compiling():
            raise _refusal("a compiled model", "the model as it is")
        exact = EXACT.get(func)
        if exact is not None:
            return exact(*args, **(kwargs or {}))
        if func in HARMLESS:
            return func(*args, **(kwargs or {}))
        raise _refusal(
            f"'{resolve_name(func) or func}'",
            "conv2d, linear, relu, max_pool2d, cross_entropy, changes of shape; never under torch.compile",
        )
