"""`numerics: native`: PyTorch's own kernels, autograd and optimizer; equal runs on one machine, close ones elsewhere.

What is the pipeline's is how bytes reach the model, and that the gradients of several workers are added up.
"""

from __future__ import annotations

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
            return heads(model(pixels(images)))[0]

    def heads(self, model: nn.Module, images: Tensor) -> list[Tensor]:
        """All that the model says of images in training mode, its main logits first."""
        with torch.no_grad():
            return heads(model(pixels(images)))

    def loss_and_gradients(
        self, model: nn.Module, images: Tensor, labels: Tensor, group: Group, batch_images: int, *, draws: object = None,
        label_smoothing: float = 0.0, auxiliary: float = 0.3,
    ) -> tuple[Tensor, list[Tensor | None]]:  # fmt: skip
        """The mean cross-entropy of a batch, float32 0-dim, and the gradients of model.parameters(), in their order; None of an unused one.

        Of the batch's `batch_images` images this worker of the group has images [N, C, H, W] and labels int64 [N]; N may be 0. Several
        workers have the buffers of worker 0, as with DistributedDataParallel; each one's mean is weighted by its share of the batch, and
        they are added in float64, in an order that is the group's.
        """
        weights = list(model.parameters())
        trained = [weight for weight in weights if weight.requires_grad]
        if group.count > 1:
            for buffer in model.buffers():
                group.copy_first(buffer)
        if len(labels):
            main, *others = heads(model(pixels(images)))
            loss = F.cross_entropy(main, labels, label_smoothing=label_smoothing)
            for logits in others:
                loss = loss + auxiliary * F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
            of_trained = iter(torch.autograd.grad(loss, trained, allow_unused=True))
            gradients = [next(of_trained) if weight.requires_grad else None for weight in weights]
        else:
            loss, gradients = weights[0].new_zeros(()), [None] * len(weights)
        if group.count == 1:
            return loss.detach(), gradients
        used = torch.tensor([float(g is not None) for g in gradients], device=loss.device)  # a worker without images does not know
        given = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)]
        share = len(labels) / batch_images
        flat = torch.cat([each.flatten() for each in (loss.detach(), *given)]).double() * share
        total = group.total(torch.cat((flat, used.double())))
        parts = torch.split(total[: len(flat)].float(), [1, *(w.numel() for w in weights)])
        uses = total[len(flat) :].tolist()
        return parts[0].view(()), [part.view(w.shape) if use else None for part, w, use in zip(parts[1:], weights, uses, strict=True)]

    def scores(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For float32 logits [N, C] and int64 labels [N]: losses float64 [N], predicted classes int64 [N], confidences float32 [N]."""
        confidences = torch.softmax(logits, 1).amax(1)
        predicted = logits.argmax(1)  # of equal confidences the larger logit's, as predict has it
        return F.cross_entropy(logits, labels, reduction="none").double(), predicted, confidences

    def probabilities(self, logits: Tensor) -> Tensor:
        """The softmax of float32 logits [N, C], float32 [N, C]; a row's largest is its confidence in `scores`."""
        return torch.softmax(logits, 1)

    def mean(self, losses: Tensor) -> float:
        """The mean of float64 losses [N]."""
        return float(losses.mean())


def pixels(images: Tensor) -> Tensor:
    """Uint8 images [N, C, H, W] as torchvision's ToTensor has them: float32 in [0, 1]; float32 ones as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def heads(given: object) -> list[Tensor]:
    """The logits that a network gives, the main ones first: a tensor, or a tuple of them and None (GoogLeNet, Inception)."""
    return [given] if isinstance(given, Tensor) else [each for each in cast(tuple[Tensor | None, ...], given) if each is not None]
