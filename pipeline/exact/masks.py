"""Random masks by rule: dropout and stochastic depth, the same for every device and share of a batch.

An element's draw is a hash of the seed, the step, which call of the pass it is, the image's place in the batch and the element's place in
the image: 32-bit integers in int64 tensors, with products below 2^63.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.exact import arithmetic, constants
from pipeline.exact.augmentation import mixed
from pipeline.exact.errors import refusal
from pipeline.exact.tape import Tape

_WORD = 2**32 - 1


class Draws(NamedTuple):
    """What a step draws its masks from."""

    seed: int
    step: Tensor
    """The number of the step, int64 [1] on the device: no number of Python's, which a CUDA graph would keep."""
    first: int = 0
    """The place in the batch of this worker's first image."""


def drawn(tape: Tape, images: int, elements: int, device: torch.device) -> Tensor:
    """32-bit draws for the elements of each of so many images, int64 [images, elements]; of no images, for the batch [1, elements]."""
    draws: Draws | None = tape.draws
    if draws is None:
        raise refusal("a random mask where no seed is given", "draws")
    key = torch.full((1,), draws.seed & _WORD, dtype=torch.int64, device=device)
    key = mixed(key.bitwise_xor(mixed(torch.full((1,), (draws.seed >> 32) & _WORD, dtype=torch.int64, device=device))))
    for word in (draws.step.to(device), torch.full((1,), tape.called, dtype=torch.int64, device=device)):
        key = mixed((key + word).bitwise_and_(_WORD))
    places = torch.arange(draws.first, draws.first + images, dtype=torch.int64, device=device) if images else key.new_zeros(1)
    of_images = mixed((mixed((places + 1).bitwise_and_(_WORD)) + key).bitwise_and_(_WORD)).unsqueeze(1)
    of_elements = mixed(torch.arange(elements, dtype=torch.int64, device=device)).unsqueeze(0)
    return mixed((of_images + of_elements).bitwise_and_(_WORD))


def kept(tape: Tape, shape: list[int], probability: float, of_images: bool, device: torch.device) -> Tensor:
    """Which elements of a tensor of that shape are kept, each with `probability`: bool."""
    tape.called += 1
    if not math.prod(shape):
        return torch.ones(shape, dtype=torch.bool, device=device)
    images = tape.images if of_images else 0
    threshold = round(probability * 2**32)
    return (drawn(tape, images, math.prod(shape) // max(images, 1), device) < threshold).view(shape)


def dropout(tape: Tape, x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """The exact form of dropout: what is kept times f32(1 / (1 - p)), else 0."""
    return _masked(tape, x, p, training, lambda x: list(x.shape))


def feature_dropout(axes: int) -> Any:
    """The form of dropout1d, 2d and 3d: whole channels of images that have so many axes besides them."""

    def form(tape: Tape, x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
        if x.dim() != axes + 2:  # of fewer PyTorch takes the images for channels
            raise refusal(f"dropout{axes}d of {x.dim()} dimensions", f"{axes + 2}, the images first")
        return _masked(tape, x, p, training, lambda x: [*x.shape[:2], *[1] * axes])

    form.__doc__ = f"The exact form of dropout{axes}d."
    return form


def _masked(tape: Tape, x: Tensor, p: float, training: bool, shape: Any) -> Tensor:
    x, given = arithmetic.floats(tape, x, "dropout"), tape.input(x, "dropout")
    if not training or p == 0:
        return given  # itself, of which an operation in place may follow
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not tape.of_images(x):
        raise refusal("dropout of a weight", "dropout of activations")
    scale = arithmetic.number(x, 0.0 if p == 1 else 1 / (1 - p))
    if (axis := tape.axis(x)) is None:
        raise refusal("dropout where the images' axis is spread", "one axis of the images")
    moved = x.movedim(axis, 0)
    mask = (kept(tape, shape(moved), 1 - p, True, x.device).float() * scale).movedim(0, axis)
    return tape.record(x * mask, (x,), lambda g: (g * mask,))


def empty(tape: Tape, *size: Any, **named: Any) -> Tensor:
    """The exact form of torch.empty: zeros, for what was in memory before is nobody's number."""
    x = constants.made(tape, torch.zeros, size, named)
    x.is_empty = True  # type: ignore[attr-defined]
    return x


def bernoulli_(tape: Tape, x: Tensor, p: float = 0.5, generator: Any = None) -> Tensor:
    """The exact form of Tensor.bernoulli_ on a new tensor, as stochastic depth has it: 1 with probability p, by rule."""
    x = tape.input(x, "bernoulli_")
    is_empty, axis = tape.value(x) is None or getattr(x, "is_empty", False), tape.axis(x)
    if isinstance(p, Tensor) or generator is not None or not is_empty or axis:
        raise refusal("bernoulli_ with a tensor or a generator, or of an activation", "a number, on a new tensor, the images first")
    x.is_empty = False  # type: ignore[attr-defined]
    return x.copy_(kept(tape, list(x.shape), p, axis == 0, x.device))
