"""`numerics: exact`: the same bits on every device, from PyTorch's stock kernels.

A mode around the model puts exact forms in the place of its operations (registry.py); the model's file knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.exact import loss
from pipeline.exact.errors import Unsupported
from pipeline.exact.group import Group
from pipeline.exact.masks import Draws
from pipeline.exact.registry import Forms
from pipeline.exact.tape import Tape
from pipeline.exact.update import SGD

VERSION = "exact-2"
"""Changes whenever the bits change; docs/exact-numerics.md defines it."""


class Exact:
    """Exact numerics, as `numerics.select` returns them."""

    version = VERSION
    tape: Callable[..., Tape] = Tape
    """What records a training step; another may note what passes (trace.py)."""

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """What the model says of uint8 images [N, 3, 32, 32], which stand for byte / 255: float32 [N, C].

        An image's row is the same in any batch.
        """
        tape = Tape(images)
        with torch.inference_mode():
            with Forms(tape):
                logits = model(images)
            return tape.input(logits, "the logits")

    def loss_and_gradients(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        group: Group,
        batch_images: int,
        draws: Draws | None = None,
        auxiliary: float = 0.3,
    ) -> tuple[Tensor, list[Tensor]]:
        """The mean cross-entropy of a batch, float32 0-dim, and the gradients of model.parameters(), in their order.

        Of the batch's `batch_images` images this worker of the group has uint8 or float32 images [N, C, H, W] and labels int64 [N]; N may
        be 0. What is returned is the whole batch's, the same for every worker. Looks at no value, so that a CUDA graph can hold it.
        Of heads beside the main one (GoogLeNet's, Inception's) the loss counts `auxiliary` times.

        Raises:
            Unsupported: the model does what has no exact form, or the batch is too large for exact sums; says what.
        """
        weights = dict(model.named_parameters())
        with torch.inference_mode():
            tape = self.tape(images, weights, batch_images, group, draws)
            with Forms(tape):
                given = model(images)
            main, *others = [tape.input(logits, "the loss") for logits in heads(given)]
            mean, gradient = loss.cross_entropy(tape, main, labels)
            beside = [(logits, *loss.cross_entropy(tape, logits, labels, auxiliary)) for logits in others]
            tape.walk_back([(main, gradient), *((logits, gradient) for logits, _, gradient in beside)])
            gradients = tape.add_up(group)
            value = mean.value
            for _, other, _ in beside:
                value = value + other.value * auxiliary
            return value.float(), [torch.zeros_like(w) if (g := gradients[name]) is None else g for name, w in weights.items()]

    def optimizer(self, weights: Tensor, lr: float, momentum: float) -> SGD:
        """What updates float32 `weights` [P], in place."""
        return SGD(weights, lr, momentum)

    def scores(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For float32 logits [N, C] and int64 labels [N]: losses float64 [N], predicted classes int64 [N], confidences float32 [N].

        Of equal logits the first is predicted.
        """
        softmax = loss.Softmax(logits)
        return softmax.losses(labels), loss.first_maximum(logits), softmax.probabilities.amax(1).float()

    def probabilities(self, logits: Tensor) -> Tensor:
        """The softmax of float32 logits [N, C], float32 [N, C]; a row's largest is its confidence in `scores`."""
        return loss.Softmax(logits).probabilities.float()

    def mean(self, losses: Tensor) -> float:
        """The mean of float64 losses [N]."""
        return float(loss.mean(losses))


def heads(given: object) -> list[Tensor]:
    """The logits that a network gives, float32 [N, C], the main ones first: a tensor, or a tuple of them and None."""
    found = [given] if isinstance(given, Tensor) else [each for each in given if each is not None] if isinstance(given, tuple) else []
    if not found or not all(isinstance(each, Tensor) and each.dim() == 2 for each in found):
        raise Unsupported(f"takes logits [N, C] from a network, and this one gives {type(given).__name__}")
    return found
