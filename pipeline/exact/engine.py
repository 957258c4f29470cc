"""`numerics: exact`: the same bits on every device, from PyTorch's stock kernels.

A mode around the model puts exact forms in the place of its operations (registry.py); the model's file knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.exact import VERSION, arithmetic, loss, pixels
from pipeline.exact.errors import Unsupported
from pipeline.exact.group import ALONE, Group
from pipeline.exact.masks import Draws
from pipeline.exact.registry import Forms
from pipeline.exact.tape import Tape


class Exact:
    """Exact numerics, as `numerics.select` returns them."""

    version = VERSION
    tape: Callable[..., Tape] = Tape
    """What records a training step; another may note what passes (trace.py)."""

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """What the model says of images [N, C, H, W], float32 or uint8, which stand for byte / 255: float32 [N, classes].

        An image's row is the same in any batch.
        """
        with torch.inference_mode():
            tape = Tape(images := images.view_as(images))
            given = _given(model, tape, images)
            return _heads(tape, given)[0]

    def heads(self, model: nn.Module, images: Tensor) -> list[Tensor]:
        """All that the model says of images, its main logits first, in the mode that it is in."""
        with torch.inference_mode():
            images = images.view_as(images)
            weights = dict(model.named_parameters())
            tape = self.tape(images, weights, len(images), ALONE, Draws(0, torch.zeros(1, dtype=torch.int64, device=images.device)))
            given = _given(model, tape, images)
            return _heads(tape, given)

    def loss_and_gradients(
        self, model: nn.Module, images: Tensor, labels: Tensor, group: Group, batch_images: int, *, draws: Draws | None = None,
        label_smoothing: float = 0.0, auxiliary: float = 0.3,
    ) -> tuple[Tensor, list[Tensor | None]]:  # fmt: skip
        """The mean cross-entropy of a batch, float32 0-dim, and the gradients of model.parameters(), in their order; None of an unused one.

        Of the batch's `batch_images` images this worker of the group has uint8 or float32 images [N, C, H, W] and labels int64 [N]; N may
        be 0. What is returned is the whole batch's, the same for every worker. Looks at no value, so that a CUDA graph can hold it.
        Of heads beside the main one (GoogLeNet's, Inception's) the loss counts `auxiliary` times.

        Raises:
            Unsupported: the model does what has no exact form, or the batch is too large for exact sums; says what.
        """
        weights = dict(model.named_parameters())
        with torch.inference_mode():
            images = images.view_as(images)  # a tensor of our own, to note on it what the tape knows
            tape = self.tape(images, weights, batch_images, group, draws)
            given = _given(model, tape, images)
            found = [
                (logits, *loss.cross_entropy(tape, logits, labels, label_smoothing, auxiliary if number else 1.0))
                for number, logits in enumerate(_heads(tape, given))
            ]
            tape.walk_back([(logits, gradient) for logits, _, gradient in found])
            gradients = tape.add_up()
            (_, mean, _), *beside = found
            value = mean.value
            for _, other, _ in beside:
                value = value + other.value * auxiliary
            return value.float(), [gradients[name] for name in weights]

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


def _given(model: nn.Module, tape: Tape, images: Tensor) -> object:
    """What the model gives for images, by forms."""
    images = pixels.seen(tape, images)
    with Forms(tape):
        return model(images)


def _heads(tape: Tape, given: object) -> list[Tensor]:
    """The logits that a network gives, float32 [N, C], the main ones first: a tensor, or a tuple of them and None."""
    found = [given] if isinstance(given, Tensor) else [each for each in given if each is not None] if isinstance(given, tuple) else []
    if not found or not all(isinstance(each, Tensor) and each.dim() == 2 and len(each) == tape.images and each.shape[1] for each in found):
        gives = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise Unsupported(f"takes a row of logits an image, and the network gives {gives} for {tape.images} images")
    if not all(tape.of_images(each) and tape.axis(each) == 0 for each in found):
        raise Unsupported("takes logits that are made from the images, a row an image, and the network's are not")
    return [arithmetic.floats(tape, pixels.behind(each), "the loss") for each in found]
