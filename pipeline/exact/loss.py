"""Softmax, cross-entropy and the mean loss: float64, with exact sums over the classes and over the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.exact import grid, transcendental
from pipeline.exact.errors import Unsupported
from pipeline.exact.tape import Tape
from pipeline.exact.trees import tree

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
            wanted = wanted * own + tree(self.shifted, 1).unsqueeze(1) * shared
        return (log_total - wanted).squeeze(1)


def _targets(label_smoothing: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """What of a target is its label's own, and what each of its classes shares: float64, 0-dim."""
    own, shared = 1.0 - label_smoothing, label_smoothing / like.shape[1]
    return torch.full((), own, dtype=like.dtype, device=like.device), torch.full((), shared, dtype=like.dtype, device=like.device)


class MeanLoss:
    """The mean of a batch's losses, a sum over the batch that waits (a sums.Sums)."""

    def __init__(self, losses: Tensor, batch_images: int) -> None:
        """Losses float64 [N], of this worker's share of `batch_images`."""
        self.losses, self.batch_images = losses, batch_images
        self.magnitudes = grid.largest(losses.float().clamp_min_(grid.FLOOR)).view(1)
        self.fit_float64 = batch_images << LOSS_BITS <= 1 << grid.FLOAT64_BITS

    def integers(self, scales: Tensor) -> Tensor:
        """The sum of the losses on their grid."""
        integers = (self.losses * (scales[0] * _FINER)).round_()
        return integers.sum() if self.fit_float64 else integers.long().sum()

    def round(self, sums: Tensor, units: Tensor) -> list[Tensor]:
        """Set `value`, the mean in float64, 0-dim: divided once."""
        total = sums.double() * (units[0] * (1 / _FINER))
        self.value = total / torch.full_like(total, self.batch_images)
        return []


def cross_entropy(tape: Tape, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, factor: float = 1.0) -> tuple[MeanLoss, Tensor]:
    """The batch's mean cross-entropy, which waits, and the gradient of the logits, times `factor`.

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
    gradient = difference / torch.full((), tape.batch_images, dtype=torch.float64, device=labels.device)
    return mean, (gradient if factor == 1 else gradient * factor).float()


def mean(losses: Tensor) -> Tensor:
    """The mean of float64 losses [N], float64 0-dim."""
    waiting = MeanLoss(losses, len(losses))
    on = grid.choose(waiting.magnitudes)
    waiting.round(waiting.integers(on.scale), on.unit)
    return waiting.value


def first_maximum(logits: Tensor) -> Tensor:
    """Argmax over dim 1 with a stated rule for ties, which torch.argmax has not: the lowest index."""
    classes = torch.arange(logits.shape[1], device=logits.device)
    is_maximum = logits == logits.amax(1, keepdim=True)
    return torch.where(is_maximum, classes, logits.shape[1]).amin(1)
