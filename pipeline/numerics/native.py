"""`numerics: native`: PyTorch's own kernels; equal runs on one machine, close ones elsewhere."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.numerics.exact import max_pool2d
from pipeline.workers import Group


class SGD:
    """SGD with momentum as torch.optim.SGD defines it."""

    def __init__(self, weights: Tensor, lr: float, momentum: float) -> None:
        self.weights = weights  # float32 [P]
        self.state = {"velocity": torch.zeros_like(weights)}
        self.lr, self.momentum = (torch.tensor(value, dtype=torch.float32, device=weights.device) for value in (lr, momentum))

    def step(self, gradient: Tensor) -> None:
        """Update the weights and the velocity with a float32 gradient [P]."""
        velocity = self.state["velocity"].mul_(self.momentum).add_(gradient)
        self.weights.sub_(velocity * self.lr)


class Native:
    """Native numerics, as `numerics.select` returns them."""

    version = "native"

    def model_input(self, batch: Tensor) -> Tensor:
        """What the model is given for uint8 images [N, 3, 32, 32]: float32 in [0, 1], as torchvision's ToTensor makes."""
        return batch.float().div_(255)

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """The mode in which a model computes: PyTorch's kernels, but for max-pooling."""
        return _FastPooling()

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
        """For float32 logits [N, C] and int64 labels [N]: losses float64 [N], predicted classes int64 [N], confidences float32 [N]."""
        confidences, predicted = torch.softmax(logits, 1).max(1)
        return F.cross_entropy(logits, labels, reduction="none").double(), predicted, confidences

    def probabilities(self, logits: Tensor) -> Tensor:
        """The softmax of float32 logits [N, C], float32 [N, C]; a row's largest is its confidence in `scores`."""
        return torch.softmax(logits, 1)

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
