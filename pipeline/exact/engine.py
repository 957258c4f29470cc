"""`numerics: exact`: the same bits on every device, from PyTorch's stock kernels.

A mode around the model puts exact forms in the place of its operations (registry.py); the model's file knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pipeline.exact import loss
from pipeline.exact.errors import refusal
from pipeline.exact.group import Group
from pipeline.exact.registry import Forms
from pipeline.exact.tape import Tape
from pipeline.exact.update import SGD

VERSION = "exact-2"
"""Changes whenever the bits change; docs/exact-numerics.md defines it."""


class Exact:
    """Exact numerics, as `numerics.select` returns them."""

    version = VERSION
    tape: Callable[[Tensor, Mapping[str, Tensor], int], Tape] = Tape
    """What records a training step; another may note what passes (trace.py)."""

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """What the model says of uint8 images [N, 3, 32, 32], which stand for byte / 255: float32 [N, C].

        An image's row is the same in any batch.
        """
        tape = Tape(images)
        with torch.inference_mode():
            with Forms(tape):
                logits = model(images)
            return _of_images(tape.input(logits, "the logits"), images)

    def loss_and_gradients(
        self, model: nn.Module, images: Tensor, labels: Tensor, group: Group, batch_images: int
    ) -> tuple[Tensor, list[Tensor]]:
        """The mean cross-entropy of a batch, float32 0-dim, and the gradients of model.parameters(), in their order.

        Of the batch's `batch_images` images this worker of the group has uint8 images [N, 3, 32, 32] and labels int64 [N]; N may be 0.
        What is returned is the whole batch's, the same for every worker, after two exchanges: one maximum, one sum. Looks
        at no value, so that a CUDA graph can hold it.

        Raises:
            Unsupported: the model does what has no exact form, or the batch is too large for exact sums; says what.
        """
        weights = dict(model.named_parameters())
        with torch.inference_mode():
            tape = self.tape(images, weights, batch_images)
            with Forms(tape):
                logits = model(images)
            logits = _of_images(tape.input(logits, "the loss"), images)
            mean, gradient = loss.cross_entropy(tape, logits, labels)
            tape.walk_back(logits, gradient)
            tape.add_up(group)
            return mean.value.float(), [tape.gradients[name] for name in weights]

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


def _of_images(logits: Tensor, images: Tensor) -> Tensor:
    if logits.dim() != 2 or len(logits) != len(images) or not logits.shape[1] or Tape.rows(logits) != 1:
        raise refusal(f"a model that gives {list(logits.shape)} for {len(images)} images", "a row of logits an image")
    return logits
