"""`numerics: native`: PyTorch's own kernels; equal runs on one machine, close ones elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar, cast
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.exact import hardware
from pipeline.exact.tape import Tape
from pipeline.numerics import native_forms
from pipeline.workers import Group

Result = TypeVar("Result")


class Native:
    """Native numerics, as `numerics.select` returns them."""

    version = "native"

    def __init__(self) -> None:
        # models that do what has no native form, in training and else: PyTorch computes them as they are
        self._trained_by_pytorch, self._inferred_by_pytorch = WeakSet[nn.Module](), WeakSet[nn.Module]()

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """What the model says of uint8 images [N, 3, 32, 32]: float32 [N, C]."""
        # on a CPU as many at a time as stay in its caches
        parts = torch.split(images, native_forms.BY_ROWS.images_at_once) if hardware.is_cpu(images) else (images,)

        def by_forms(part: Tensor) -> Tensor:
            given = native_forms.images(part)
            return native_forms.logits(Tape(given), given, model)

        with torch.inference_mode():
            known = self._inferred_by_pytorch
            return torch.cat([_attempt(partial(by_forms, part), model, known, part, partial(_logits, model, part)) for part in parts])

    def loss_and_gradients(
        self, model: nn.Module, images: Tensor, labels: Tensor, group: Group, batch_images: int, *,
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
        """The mean cross-entropy of a batch, float32 0-dim, and the gradients of model.parameters(), in their order.

        Of the batch's `batch_images` images this worker of the group has uint8 images [N, 3, 32, 32] and labels int64 [N]; N may be 0.
        Several workers' shares are added in float64, in an order that is the group's.
        """

        def by_autograd() -> list[Tensor]:
            loss = F.cross_entropy(_logits(model, images), labels, reduction="sum", label_smoothing=label_smoothing) / batch_images
            return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

        by_forms = partial(native_forms.loss_and_gradients, model, images, labels, batch_images)
        # the forms have no smoothing
        results = by_autograd() if label_smoothing else _attempt(by_forms, model, self._trained_by_pytorch, images, by_autograd)
        if group.count > 1:
            total = group.total(torch.cat([each.flatten() for each in results]).double()).float()
            parts = torch.split(total, [each.numel() for each in results])
            results = [part.view(each.shape) for part, each in zip(parts, results, strict=True)]
        return results[0], results[1:]

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


def _attempt(
    by_forms: Callable[[], Result], model: nn.Module, by_pytorch: WeakSet[nn.Module], images: Tensor, otherwise: Callable[[], Result]
) -> Result:
    """`by_forms()`, on a CPU and where the model does nothing that has no form; else `otherwise()`, and the next time at once.

    Whatever a form cannot take, PyTorch takes, or says in its own words why not.
    """
    if hardware.is_cpu(images) and images.shape[0] and model not in by_pytorch:
        try:
            with torch.inference_mode():
                return by_forms()
        except Exception:
            by_pytorch.add(model)
    return otherwise()


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """What PyTorch makes of uint8 images, which the model is given as torchvision's ToTensor has them: float32 in [0, 1]."""
    return cast(Tensor, model(images.float().div_(255)))
