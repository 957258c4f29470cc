"""What a network makes of numbers alone: PyTorch's own tensors, of which the tape knows those that are the same for every image."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pipeline.exact.arguments import tensors
from pipeline.exact.copies import check_fits
from pipeline.exact.errors import refusal
from pipeline.exact.parts import check_once
from pipeline.exact.tape import Tape
from pipeline.exact.values import Images

MAKING = {
    torch.zeros, torch.ones, torch.full, torch.arange, torch.tensor, torch.eye, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full,
    Tensor.new_tensor, torch.zeros_like, torch.ones_like, torch.full_like,
}  # fmt: skip
"""Operations that make constants."""
_LIKE = {torch.zeros_like, torch.ones_like, torch.full_like}
_OF_A_TENSOR = {Tensor.new_zeros, Tensor.new_ones, Tensor.new_full}
EVEN = {torch.zeros, torch.ones, torch.full, *_OF_A_TENSOR}
"""Operations that make a tensor of given sizes with the same number everywhere."""
HALVES = (torch.float16, torch.bfloat16)
LARGEST_WHOLE = 2**24
"""Whole numbers up to this are float32s."""
FULL = {torch.full, Tensor.new_full}
"""Those of them whose last argument is the number."""
OF_CONSTANTS = {
    torch.logical_and, torch.logical_or, torch.logical_not, torch.meshgrid, torch.functional.meshgrid, torch.triu, torch.tril,
    *(getattr(Tensor, name) for name in (
        "__setitem__", "add_", "__iadd__", "copy_", "fill_", "zero_", "mul_", "__imul__", "long", "int", "bool", "__and__", "__or__",
        "__invert__", "logical_not", "triu", "tril", "item", "__bool__", "__int__", "__index__", "__float__", "tolist", "type_as",
        "__floordiv__", "__mod__",
    )),
}  # fmt: skip
"""Operations that are PyTorch's own on constants."""
CHANGING = {getattr(Tensor, name) for name in ("__setitem__", "add_", "__iadd__", "copy_", "fill_", "zero_", "mul_", "__imul__")}
"""Those of them that change their first tensor."""
_SUMS, _QUOTIENTS = {Tensor.add_, Tensor.__iadd__}, {Tensor.__floordiv__, Tensor.__mod__}
_CONVERSIONS = {Tensor.long, Tensor.int, Tensor.type_as}


class Used:
    """The constants that a pass has computed with, and whose numbers its way back may need."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._memory: dict[int, Any] = {}

    def note(self, operands: Iterable[Tensor], shown: bool = False) -> None:
        """Note the constants among the operands of a form, if somebody learns from another, or if what it gives shows their memory."""
        given = list(operands)
        if shown or any(map(self._tape.learns_from, given)):
            memory = [x.untyped_storage() for x in given if self._tape.value(x) is None]
            self._memory.update({each._cdata: each for each in memory})

    def check(self, x: Tensor) -> None:
        """Raise Unsupported if the way back may need the constant `x`, which is about to be changed."""
        if x.untyped_storage()._cdata in self._memory:
            raise refusal("an operation in place on a constant that was computed with", "its plain form")


def computed(operation: Any, args: Any, kwargs: Any) -> Any:
    """What one of OF_CONSTANTS gives.

    Raises Unsupported where more than one thing rounds, whose bits depend on instructions; where several numbers are written to one place,
    whose last depends on threads; and where a number does not fit a type of whole numbers, which depends on the device.
    """
    if operation in _SUMS and (len(args) > 2 or kwargs.get("alpha", 1) != 1):
        raise refusal(f"{operation.__name__} with alpha", "the product, and then the sum")
    if kwargs.get("out") is not None:
        raise refusal(f"{operation.__name__} with out", "the tensor that it gives")
    if operation in CHANGING:
        x, *others = args
        if any(step == 0 and size > 1 for step, size in zip(x.stride(), x.shape, strict=True)):
            raise refusal(f"{operation.__name__} on what was expanded", "clone() first")
        args, kwargs = (x, *_apart(others, x)), {name: _apart(each, x) for name, each in kwargs.items()}
        if operation is Tensor.__setitem__:
            check_once(*args)
        check_fits(tensors((others, kwargs)), x.dtype)
    given = operation(*args, **kwargs)
    if operation in _QUOTIENTS and given.is_floating_point():
        raise refusal(f"{operation.__name__} of floats", "it of whole numbers")
    if operation in _CONVERSIONS:
        check_fits(args[:1], given.dtype)
    return given


def changed(x: Tensor, y: Tensor) -> Tensor:
    """`x`, which an operation in place has made `y` of. Raises as PyTorch does where that is of another kind, and where x was expanded."""
    if not torch.can_cast(y.dtype, x.dtype):
        raise RuntimeError(f"result type {y.dtype} can't be cast to the desired output type {x.dtype}")
    computed(Tensor.copy_, (x, y), {})
    return x


def _apart(given: Any, x: Tensor) -> Any:
    """Arguments with copies in the place of tensors that show the memory of `x`, which is about to be written."""
    if isinstance(given, tuple | list):
        return type(given)(_apart(each, x) for each in given)
    shown = isinstance(given, Tensor) and given.untyped_storage()._cdata == x.untyped_storage()._cdata
    return given.clone() if shown else given


def as_pytorch(operation: Any, args: Any, kwargs: Any, given: Any) -> Any:
    """What an operation gives of constants whose form gives `given`: of whole numbers and truths, which do not round, PyTorch's own.

    Raises Unsupported where PyTorch gives another type.
    """
    if not isinstance(given, Tensor) or all(x.dtype == torch.float32 for x in (given, *tensors((args, kwargs)))):
        return given
    theirs: Tensor = operation(*args, **kwargs)
    if not theirs.is_floating_point():
        return theirs
    if theirs.dtype != given.dtype:
        raise refusal(f"an operation that gives {theirs.dtype} of constants", "float32")
    return given


def made(tape: Tape, operation: Any, args: Any, kwargs: Any) -> Tensor:
    """What one of MAKING makes: of the images where it has the same number everywhere, and is like them or as long as they are many."""
    if kwargs.get("out") is not None:
        raise refusal(f"{operation.__name__} with out", "the tensor that it gives")
    if operation in FULL and isinstance(kwargs["fill_value"] if "fill_value" in kwargs else args[-1], Images):
        raise refusal("a constant that is the number of images", "numbers that do not depend on the batch")
    own = 1 if operation in _LIKE | _OF_A_TENSOR | {Tensor.new_tensor} else 0  # whose type and shape it takes, and no number
    if any(tape.of_images(each) for each in tensors([args[own:], [each for name, each in kwargs.items() if name != "input"]])):
        raise refusal(f"{operation.__name__} of what is made from the images", "the tensor itself, clone() and to(dtype)")
    y: Tensor = (_arange if operation is torch.arange else operation)(*args, **kwargs)
    check_fits(tensors(args[own:]), y.dtype)
    if operation in _LIKE:
        like = args[0] if args else kwargs["input"]
        return tape.alike(y, tape.axis(like), like) if tape.of_images(like) else y
    sizes = args[operation in _OF_A_TENSOR :] or (kwargs.get("size", ()),)
    axis = images_axis(sizes) if operation in EVEN else None
    return y if axis is None else tape.alike(y, axis)


def _arange(*args: Any, start: Any = None, end: Any = None, step: Any = None, dtype: Any = None, **named: Any) -> Tensor:
    """torch.arange; of numbers that are not whole, start + i step in float64, each operation rounded, and then to `dtype`.

    PyTorch's own bits depend there on threads and instructions.
    """
    given: list[Any] = [start, end, step]
    places = [1] if len(args) == 1 and end is None else [place for place in range(3) if given[place] is None]
    for place, value in zip(places, args, strict=False):
        given[place] = value
    first, last, by = 0 if given[0] is None else given[0], given[1], 1 if given[2] is None else given[2]
    if all(isinstance(value, int) for value in (first, last, by)) and (dtype is None or not dtype.is_floating_point):
        return torch.arange(first, last, by, dtype=dtype, **named)
    whole = all(float(value).is_integer() and abs(value) <= LARGEST_WHOLE for value in (first, last, by))
    if whole and dtype in HALVES:
        return torch.arange(first, last, by, **named).to(dtype)
    if whole or not by or not all(map(math.isfinite, (first, last, by))):
        return torch.arange(first, last, by, dtype=dtype, **named)
    if dtype is not None and not dtype.is_floating_point:
        raise refusal(f"arange of {dtype} by numbers that are not whole", "whole numbers, or floats")
    count = torch.arange(max(0, math.ceil((float(last) - float(first)) / float(by))), dtype=torch.float64, **named)
    return count.mul_(float(by)).add_(float(first)).to(dtype or torch.get_default_dtype())


def images_axis(given: tuple[Any, ...]) -> int | None:
    """Which of the sizes that a tensor is made with is the number of images: of `(sizes, ...)`, or of the sizes one by one.

    Raises:
        Unsupported: there are two, or one is a multiple of it: then it has other numbers than one for each image.
    """
    first = given[0] if given else ()
    found = [(axis, size) for axis, size in enumerate(first if isinstance(first, tuple | list) else given) if isinstance(size, Images)]
    if len(found) > 1 or any(size.times != 1 for _, size in found):
        raise refusal("a tensor of several numbers for each image whose sizes say how many images there are", "the number of images once")
    return found[0][0] if found else None
