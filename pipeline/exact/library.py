"""Exact numerics as a PyTorch user expects them: a loss to call backward on, alone or with the workers of torch.distributed."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from pipeline.exact import hardware, precision, self_test
from pipeline.exact.engine import Exact
from pipeline.exact.errors import Unsupported
from pipeline.exact.group import ALONE, Group
from pipeline.exact.masks import Draws

_proved: set[torch.device] = set()


class World(Group):
    """All workers of torch.distributed's default group."""

    def __init__(self) -> None:
        self.rank, self.count = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def maximum(self, magnitudes: Tensor) -> Tensor:
        """As the base's. Magnitudes are not negative, so their bits have the same order, and NaN is the largest."""
        bits = magnitudes.clone().view(torch.int32)
        torch.distributed.all_reduce(bits, torch.distributed.ReduceOp.MAX)
        return bits.view(torch.float32)

    def total(self, sums: Tensor) -> Tensor:
        """As the base's."""
        torch.distributed.all_reduce(sums)
        return sums


def _group() -> Group:
    together = torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    return World() if together else ALONE


def _ready(model: nn.Module) -> torch.device:
    """The model's device, once it computes in the precision of its types and its kernels are proved."""
    device = next(model.parameters()).device
    if device not in _proved:
        if not hardware.has_float64(device):
            raise Unsupported(f"needs float64, which device '{device}' has not", "use another device")
        precision.restore(device)
        self_test.check(device)
        _proved.add(device)
    return device


class _Loss(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(context: Any, loss: Tensor, gradients: list[Tensor | None], *weights: Tensor) -> Tensor:
        """The loss."""
        context.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(context: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, which are times 1 unless the loss was changed."""
        return (None, None, *(None if g is None else g * gradient[0] for g in context.gradients))


def share(images: int) -> slice:
    """Which rows of a batch of so many images are this worker's: all of them where torch.distributed is not initialised."""
    return _group().share(images)


def cross_entropy(
    model: nn.Module, images: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, auxiliary: float = 0.3, seed: int = 0,
    step: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean cross-entropy of a batch, float32, 0-dim; its `backward` gives the parameters their gradients.

    Args:
        model: on the device of the images.
        images: uint8 [N, C, H, W], which stand for byte / 255, or float32 of any shape [N, ...]. Where torch.distributed is initialised,
            this worker's share of the batch (`share`).
        labels: int64 [N].
        label_smoothing: as torch.nn.CrossEntropyLoss has it.
        auxiliary: how much the heads beside the main one count.
        seed: of the masks of dropout and stochastic depth.
        step: the number of the step, for the same; needed by networks that have them.

    Raises:
        Unsupported: the network does what has no exact form; names the operation and its line.
        Imprecise: the device does not compute exactly.
        ValueError: the images are not this worker's share.
    """
    device, group, of_batch = _ready(model), _group(), torch.tensor([float(len(images))], dtype=torch.float64, device=images.device)
    batch_images = int(group.total(of_batch))
    wanted = group.share(batch_images)
    if wanted.stop - wanted.start != len(images):
        raise ValueError(f"worker {group.rank} of {group.count} has {len(images)} images; of {batch_images} its share is exact.share(...)")
    draws = None if step is None else Draws(seed, torch.full((1,), step, dtype=torch.int64, device=device), wanted.start)
    loss, gradients = Exact().loss_and_gradients(
        model, images, labels, group, batch_images, draws=draws, label_smoothing=label_smoothing, auxiliary=auxiliary
    )
    # tensors that were made in inference mode cannot be kept for backward
    copies = [None if g is None else g.clone() for g in gradients]
    result: Tensor = _Loss.apply(loss.clone(), copies, *model.parameters())
    return result


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """What the model, in evaluation mode, says of images as `cross_entropy` takes them: float32 [N, classes].

    An image's row is the same in any batch. Raises as `cross_entropy`.
    """
    _ready(model)
    return Exact().logits(model, images).clone()


def supported(model: nn.Module, images: Tensor) -> str:
    """Why the model cannot be trained exactly on such images, float32 or uint8 [N, ...]: empty where it can."""
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        Exact().heads(model, images)
    except Unsupported as reason:
        return str(reason)
    finally:
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
    return ""


def fingerprint(model: nn.Module) -> str:
    """SHA-256, in hex, over the weights and buffers of a model: docs/exact-numerics.md defines it."""
    return of_arrays({name: t.detach().cpu().numpy() for name, t in model.state_dict().items()})


def of_arrays(arrays: dict[str, np.ndarray]) -> str:
    """The same over named arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        if not name.isprintable() or " " in name:
            raise ValueError(f"a tensor is called {name!r}; a fingerprint is of names that can be shown and hold no space")
        array = np.asarray(arrays[name])
        if array.dtype.kind == "f":
            array = array + array.dtype.type(0)
        digest.update(f"{name} {array.dtype.name} {'x'.join(map(str, array.shape))}\n".encode())
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return digest.hexdigest()
