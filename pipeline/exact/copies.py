"""Exact forms of what may be a copy: of a tensor as it is, as another type, or laid out otherwise. Nothing rounds but bytes / 255."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pipeline.exact import arithmetic, hardware, pixels
from pipeline.exact.errors import refusal
from pipeline.exact.tape import Tape


def contiguous(tape: Tape, x: Tensor, memory_format: Any = None) -> Tensor:
    """The exact form of Tensor.contiguous: nothing moves, since exact forms lay tensors out in memory as they like.

    PyTorch gives the tensor itself or a copy, by a layout that is not known here: so one of the two that is changed in place is refused.
    """
    x = tape.input(x, "contiguous")
    if tape.value(x) is None:
        return x.contiguous() if memory_format is None else x.contiguous(memory_format=memory_format)
    return tape.second_name(x)


def to(tape: Tape, x: Tensor, *arguments: Any, copy: bool = False, memory_format: Any = None, **named: Any) -> Tensor:
    """The exact form of Tensor.to for what becomes float32 where it is: a copy if asked for, else the tensor itself.

    Raises Unsupported for another type or device. Truths made from the images become 0 and 1.
    """
    x = tape.input(x, "to")
    if arguments and isinstance(arguments[0], bool | int | float):
        raise refusal("a conversion to the type of a number", "a torch.dtype")
    # a network that asks for the type of its images sees float32
    arguments = tuple(torch.float32 if isinstance(each, Tensor) and tape.is_bytes(each) else each for each in arguments)
    for name in [name for name, each in named.items() if isinstance(each, Tensor) and tape.is_bytes(each)]:
        del named[name]
        named["dtype"] = torch.float32
    if tape.value(x) is None:
        constant: Tensor = x.to(*arguments, copy=copy, memory_format=memory_format or torch.preserve_format, **named)  # type: ignore[call-overload]
        check_fits([x], constant.dtype)
        return constant
    asked = [given if isinstance(given, torch.dtype) else given.dtype for given in (*arguments, *named.values())
             if isinstance(given, torch.dtype | Tensor)]  # fmt: skip
    if wrong := [dtype for dtype in asked if dtype != torch.float32]:
        raise refusal(f"a conversion to {wrong[0]}", "float32")
    copy = copy or [given for given in arguments if isinstance(given, bool)][1:] == [True]  # after non_blocking
    if tape.is_bytes(x):
        return tape.record(pixels.as_floats(x), (x,), lambda g: (None,), shares=None if copy else x)
    if x.dtype == torch.bool:
        return tape.record(x.float(), (x,), lambda g: (None,)) if asked else x
    x = arithmetic.floats(tape, x, "a conversion")
    if copy:
        return clone(tape, x)
    return x if memory_format is None else tape.second_name(x)


def check_fits(given: Iterable[Tensor], dtype: torch.dtype) -> None:
    """Raise Unsupported where floats that become whole numbers of `dtype` are not among them: each device makes other numbers of those."""
    if dtype.is_floating_point or dtype == torch.bool:
        return
    least, most = float(torch.iinfo(dtype).min), float(torch.iinfo(dtype).max)
    for x in given:
        if not (x.is_floating_point() and hardware.can_look_at(x)):
            continue
        values = x.double()
        if not bool(((values > least - 1) & (values < most + 1)).all()):
            raise refusal(f"a conversion to {dtype} of numbers that are none", "numbers of that type")


def as_type(tape: Tape, x: Tensor, dtype: Any = None) -> Tensor:
    """The exact form of Tensor.type with a torch.dtype."""
    if not isinstance(dtype, torch.dtype):
        raise refusal(f"type with {dtype}", "a torch.dtype")
    return to(tape, x, dtype)


def float32(tape: Tape, x: Tensor, memory_format: Any = None) -> Tensor:
    """The exact form of Tensor.float."""
    return to(tape, x, torch.float32, memory_format=memory_format)


def clone(tape: Tape, x: Tensor, memory_format: Any = None) -> Tensor:
    """The exact form of Tensor.clone."""
    x = tape.input(x, "clone")
    return tape.record(x.clone(), (x,), lambda g: (g,))


def detach(tape: Tape, x: Tensor) -> Tensor:
    """The exact form of Tensor.detach: no gradient goes back."""
    x = tape.input(x, "detach")
    return tape.record(x.detach(), (x,), lambda g: (None,), shares=x)
