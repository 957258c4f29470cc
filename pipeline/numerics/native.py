"""`numerics: native`: PyTorch's own kernels, autograd and optimizer; equal runs on one machine, close ones elsewhere.

What is the pipeline's is how bytes reach the model, and that the gradients of several workers are added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.workers import Group


class Native:
    """Native numerics, as `numerics.select` returns them."""

    version = "native"

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """What the model says of uint8 images [N, C, H, W]: float32 [N, classes]."""
        with torch.inference_mode():
            return cast(Tensor, model(pixels(images)))

    def loss_and_gradients(
        self, model: nn.Module, images: Tensor, labels: Tensor, group: Group, batch_images: int, *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, list[Tensor]]:
        """The mean cross-entropy of a batch, float32 0-dim, and the gradients of model.parameters(), in their order.

        Of the batch's `batch_images` images this worker of the group has uint8 images [N, C, H, W] and labels int64 [N]; N may be 0.
        Several workers have the buffers of worker 0, as with DistributedDataParallel; each one's mean is weighted by its share of the
        batch, and they are added in float64, in an order that is the group's. A weight that is frozen or unused has a gradient of 0.
        """
        weights = list(model.parameters())
        trained = [weight for weight in weights if weight.requires_grad]
        if group.count > 1:
            for buffer in model.buffers():
                group.copy_first(buffer)
        if len(labels):
            loss = F.cross_entropy(model(pixels(images)), labels, label_smoothing=label_smoothing)
            gradients = iter(torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True))
            results = [loss.detach(), *(next(gradients) if weight.requires_grad else torch.zeros_like(weight) for weight in weights)]
        else:
            results = [weights[0].new_zeros(()).detach(), *map(torch.zeros_like, weights)]
        if group.count > 1:
            share = len(labels) / batch_images
            total = group.total(torch.cat([each.flatten() for each in results]).double() * share).float()
            parts = torch.split(total, [each.numel() for each in results])
            results = [part.view(each.shape) for part, each in zip(parts, results, strict=True)]
        return results[0], results[1:]

    def optimizer(self, weights: Tensor, lr: float, momentum: float, parameters: Sequence[nn.Parameter]) -> Optimizer:
        """What updates a model's parameters, which are views of float32 `weights` [P], in their order."""
        return Optimizer(torch.optim.SGD([p for p in parameters if p.requires_grad], lr, momentum), weights, parameters)

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


def pixels(images: Tensor) -> Tensor:
    """Uint8 images [N, C, H, W] as torchvision's ToTensor has them: float32 in [0, 1]."""
    return images.float().div_(255)


class Optimizer:
    """One of torch.optim's on a model's own parameters, as the trainer uses it: gradients and state are vectors of all weights."""

    def __init__(self, optimizer: torch.optim.Optimizer, weights: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        self.state = {"momentum_buffer": torch.zeros_like(weights)}
        """What training must keep besides the weights, by torch.optim's names: float32 [P] each."""
        for name, vector in self.state.items():
            for parameter, part in zip(parameters, self._parts(vector), strict=True):
                if parameter.requires_grad:
                    optimizer.state[parameter][name] = part

    def _parts(self, vector: Tensor) -> list[Tensor]:
        """A view of `vector` [P] for each parameter."""
        parts = torch.split(vector, [p.numel() for p in self._parameters])
        return [part.view(p.shape) for part, p in zip(parts, self._parameters, strict=True)]

    def step(self, gradient: Tensor) -> None:
        """One update with the gradient, float32 [P]."""
        for parameter, part in zip(self._parameters, self._parts(gradient), strict=True):
            parameter.grad = part if parameter.requires_grad else None
        self._optimizer.step()
