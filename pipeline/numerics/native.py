"""`numerics: native`: PyTorch's own kernels; equal runs on one machine, close ones elsewhere."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.numerics.exact import max_pool2d


class Native:
    """Native numerics, as `numerics.select` returns them."""

    version = "native"

    def images(self, batch: Tensor) -> Tensor:
        """What the model is given for uint8 images [N, 3, 32, 32]: float32 in [0, 1], as torchvision's ToTensor makes."""
        return batch.float().div_(255)

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """The mode in which a model computes: PyTorch's kernels, but for max-pooling."""
        return _FastPooling()

    def update(self, weights: Tensor, velocity: Tensor, gradient: Tensor, lr: Tensor, momentum: Tensor) -> None:
        """SGD with momentum as torch.optim.SGD defines it, in place. All float32: [P], [P], [P], 0-dim, 0-dim."""
        velocity.mul_(momentum).add_(gradient)
        weights.sub_(velocity * lr)

    def scores(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For float32 logits [N, C] and int64 labels [N]: losses float64 [N], predicted classes int64 [N], confidences float32 [N]."""
        confidences, predicted = torch.softmax(logits, 1).max(1)
        return F.cross_entropy(logits, labels, reduction="none").double(), predicted, confidences

    def mean(self, losses: Tensor) -> float:
        """The mean of float64 losses [N]."""
        return float(losses.mean())


class _FastPooling(TorchFunctionMode):
    """PyTorch's max-pool by slices where it can be: the same values and gradients, several times faster on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.max_pool2d and not args[2:] and _tiles_only(*args, **(kwargs or {})):
            return max_pool2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _tiles_only(x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, **others: Any) -> bool:
    return isinstance(kernel_size, int) and stride in (None, kernel_size) and padding == 0 and dilation == 1 and not any(others.values())
