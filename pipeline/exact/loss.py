"""Softmax, cross-entropy and the mean loss: float64, with exact sums over the classes and over the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.exact import grid, transcendental
from pipeline.exact.errors import Unsupported
from pipeline.exact.tape import Tape

PROBABILITY_BITS = 40
"""Exponentials are integers of this many bits in the sum over classes."""
MOST_CLASSES = 2 ** (grid.FLOAT64_BITS - PROBABILITY_BITS)
"""So many of them float64 adds exactly."""
LOSS_BITS = 36
"""Bits of a loss in the sum over the batch."""
_FINER = 2.0 ** (LOSS_BITS - grid.OPERAND_BITS)


class Softmax:
    """Softmax and its logarithm: the loss and predictions share it."""

    def __init__(self, logits: Tensor) -> None:
        """Logits float32 [N, C]. Raises Unsupported for more classes than MOST_CLASSES."""
        if logits.shape[1] > MOST_CLASSES:
            raise Unsupported(f"adds the probabilities of at most {MOST_CLASSES} classes, and the model has {logits.shape[1]}")
        z = logits.double()
        self.shifted = z - z.amax(1, keepdim=True)  # [N, C], largest 0
        e = (transcendental.exp(self.shifted) * 2.0**PROBABILITY_BITS).round_()
        self.total = e.sum(1, keepdim=True)  # exact
        self.probabilities = e / self.total  # [N, C]

    def losses(self, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of each row, float64 [N], for labels int64 [N], of which all classes share the part `label_smoothing`."""
        log_total = transcendental.log(self.total * 2.0**-PROBABILITY_BITS)
        wanted = self.shifted.gather(1, labels.unsqueeze(1))  # [N, 1]
        if label_smoothing:
            own, shared = _targets(label_smoothing, self.shifted)
            wanted = wanted * own + _tree(self.shifted) * shared
        return (log_total - wanted).squeeze(1)


def _targets(label_smoothing: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """What of a target is its label's own, and what each of its classes shares: float64, 0-dim."""
    own, shared = 1.0 - label_smoothing, label_smoothing / like.shape[1]
    return torch.full((), own, dtype=like.dtype, device=like.device), torch.full((), shared, dtype=like.dtype, device=like.device)


def _tree(x: Tensor) -> Tensor:
    """The sum of each row of float64 x [N, C], float64 [N, 1]: a tree of additions whose shape is fixed by index."""
    while (count := x.shape[1]) > 1:
        half = (count + 1) // 2
        x = torch.cat((x[:, : count - half] + x[:, half:], x[:, count - half : half]), 1)
    return x


class MeanLoss:
    """The mean of a batch's losses, a sum over the batch that waits (a BatchSums)."""

    def __init__(self, losses: Tensor, batch_images: int) -> None:
        """Losses float64 [N], of this worker's share of `batch_images`."""
        self.losses, self.batch_images = losses, batch_images
        self.magnitudes = [grid.largest(losses.float().clamp_min_(grid.FLOOR))]
        self.fit_float64 = batch_images << LOSS_BITS <= 1 << grid.FLOAT64_BITS

    def integers(self, scales: list[Tensor]) -> list[Tensor]:
        """The sum of the losses on their grid."""
        integers = (self.losses * (scales[0] * _FINER)).round_()
        return [integers.sum() if self.fit_float64 else integers.long().sum()]

    def round(self, sums: list[Tensor], units: list[Tensor]) -> None:
        """Set `value`, the mean in float64, 0-dim: divided once."""
        total = sums[0].double().squeeze() * (units[0] * (1 / _FINER))
        self.value = total / torch.full_like(total, self.batch_images)


def cross_entropy(tape: Tape, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> tuple[MeanLoss, Tensor]:
    """The batch's mean cross-entropy, which waits, and the gradient of the logits.

    Logits float32 [N, C], labels int64 [N], `label_smoothing` from 0 to below 1; the gradient is float32 [N, C].
    """
    softmax = Softmax(logits)
    hot = labels.unsqueeze(1) == torch.arange(logits.shape[1], device=labels.device)
    target = hot.double()
    if label_smoothing:
        own, shared = _targets(label_smoothing, softmax.shifted)
        target = target * own + shared
    difference = softmax.probabilities - target
    mean = MeanLoss(softmax.losses(labels, label_smoothing), tape.batch_images)
    tape.wait(mean)
    return mean, (difference / torch.full((), tape.batch_images, dtype=torch.float64, device=labels.device)).float()


def mean(losses: Tensor) -> Tensor:
    """The mean of float64 losses [N], float64 0-dim."""
    waiting = MeanLoss(losses, len(losses))
    on = grid.choose(waiting.magnitudes[0])
    waiting.round(waiting.integers([on.scale]), [on.unit])
    return waiting.value


def first_maximum(logits: Tensor) -> Tensor:
    """Argmax over dim 1 with a stated rule for ties, which torch.argmax has not: the lowest index."""
    classes = torch.arange(logits.shape[1], device=logits.device)
    is_maximum = logits == logits.amax(1, keepdim=True)
    return torch.where(is_maximum, classes, logits.shape[1]).amin(1)
