"""Images of bytes as a network sees them: float32, as PyTorch gives them to it. The forms take the bytes, whose sums some know exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.exact.later import Later
from pipeline.exact.tape import Tape

BYTE_MAXIMUM = 255.0
"""A byte of an image stands for byte / 255, as torchvision's ToTensor has it."""


class Pixels(Later):
    """Bytes of images, before a form has asked for the floats that they stand for."""

    def compute(self) -> Tensor:
        """The bytes / 255, one float32 division each."""
        return as_floats(self.source)


def as_floats(pixels: Tensor) -> Tensor:
    """Bytes / 255, float32."""
    return pixels.float().div_(pixels.new_full((), BYTE_MAXIMUM, dtype=torch.float32))


def seen(tape: Tape, given: Any) -> Any:
    """What a network sees of what a form gave: float32 in the place of bytes of images."""
    if isinstance(given, tuple | list):
        return type(given)(seen(tape, each) for each in given)
    if not isinstance(given, Tensor) or not tape.is_bytes(given):
        return given
    shown = Pixels(given).placeholder()
    shown.exact = given.exact  # type: ignore[attr-defined]
    return shown


def is_seen(x: Tensor) -> bool:
    """Whether `x` is what a network sees of bytes."""
    return isinstance(Later.of(x), Pixels)


def behind(given: Any) -> Any:
    """What a form takes for what a network sees: the bytes. Looks into lists, tuples, dictionaries and slices."""
    if isinstance(given, Tensor):
        return later.source if isinstance(later := Later.of(given), Pixels) else given
    if isinstance(given, dict):
        return {name: behind(each) for name, each in given.items()}
    return type(given)(map(behind, given)) if type(given) in (tuple, list) else given
