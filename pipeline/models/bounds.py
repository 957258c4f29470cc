"""What a received network may take: one that was recorded is computed once on tensors without memory, and what that would have taken is
counted; one that its source makes is made of no more weights than came with it. And none may change what it holds while it answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import math
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode, resolve_name

from pipeline import device as devices
from pipeline.exact import registry
from pipeline.exact.arguments import pair, tensors
from pipeline.exact.convolutions import convolution
from pipeline.exact.errors import Unsupported
from pipeline.exact.reductions import TERMS, Convolution
from pipeline.exact.rows import GAP
from pipeline.system.errors import UserError

MOST_MORE_TENSORS = 1000
"""Weights by which a network's making may pass by twice those that it then has: some are made only to be replaced."""
LARGEST = 2**26
"""Numbers of a tensor that the making of a network may take, or four times those of all its weights."""
MOST_PARTS, LONGEST_NAME = 64, 1000
"""Of the name of a weight or buffer: modules in modules, and characters."""
MOST_CALLS = 5000
MOST_AXES = 16
"""Of a value: PyTorch's sums take time with the square of the axes."""
MOST_ALL_PARTS = 4 * MOST_CALLS
"""Of all operations that give or go through several, of two images and of three."""
MOST_NUMBERS = 2**28
"""Numbers that the values of two images may hold at a time: 1 GiB of float32."""
LEAST = 2**8
"""Numbers that a tensor counts for: one without any takes memory too."""
COMPILER = "torch._dynamo"
"""The module that is PyTorch's compiler."""


class Larger(UserError):
    """A network is larger than the weights that are said to be its own."""


@contextlib.contextmanager
def made_of_at_most(numbers: float, weights: dict[str, Any], name: str) -> Iterator[None]:
    """Around the making of a network: raises Larger as soon as its weights are more numbers, far more tensors or far larger ones."""
    left = [numbers, 2 * len(weights) + MOST_MORE_TENSORS]
    largest = max(LARGEST, 4 * sum(array.size for array in weights.values()))

    def count(module: nn.Module, of: str, weight: nn.Parameter) -> None:
        left[0] -= 0 if weight is None else weight.numel()
        left[1] -= 1
        if min(left) < 0:
            raise Larger(f"the weights are not {name}'s: they are {len(weights)} tensors, and the run's network has more or larger ones")

    with register_module_parameter_registration_hook(count), _Bounded(name, largest):
        yield


class _Bounded(TorchFunctionMode):
    """Raises Larger once a tensor has more numbers: not all that a network's making takes is a weight."""

    def __init__(self, name: str, most: int) -> None:
        super().__init__()
        self._name, self._most = name, most

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if (numbers := max((each.numel() for each in tensors(given)), default=0)) > self._most:
            raise Larger(f"the weights are not {self._name}'s: making the network that the run says takes a tensor of {numbers} numbers")
        return given


@contextlib.contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Around what a network answers: raises UserError where it has changed what it holds, for an answer could depend on those before it.

    Or where it has drawn: what is drawn may be known in one process, and another number in the next.
    """
    held = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    before = {name: _content(tensor) for name, tensor in held.items()}
    state = devices.generator_states()
    yield
    if any(not torch.equal(a, b) for a, b in zip(state, devices.generator_states(), strict=True)):
        raise UserError("the network draws random numbers while it is evaluated, so its answers are no evidence; draw where self.training "
                        "is true")  # fmt: skip
    if changed := [name for name, tensor in held.items() if _content(tensor) != before[name]]:
        raise UserError(f"the network changes its '{changed[0]}' while it is evaluated, and an image's answer could depend on those before "
                        "it; change it where self.training is true")  # fmt: skip


def _content(tensor: Tensor) -> tuple[int, bytes]:
    """What tells whether a tensor was changed: its version, and a digest, for norms change statistics without a new version."""
    return tensor._version, hashlib.blake2b(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data).digest()


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """PyTorch's rules for tensors without memory load its compiler, which takes seconds, only to have it leave them alone.

    Here what they ask it for is done without it; whatever else is asked for is the compiler's own.
    """
    if COMPILER in sys.modules:
        yield
        return
    stand_in = types.ModuleType(COMPILER)

    def own(name: str) -> Any:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)

    stand_in.__dict__.update(disable=lambda function, *_, **__: function, __getattr__=own)
    sys.modules[COMPILER] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]


def counting(images: Tensor) -> Callable[[int, Any, list[int]], None]:
    """What `run` tells of its calls: raises ValueError where the values hold too much at a time."""
    of_value, total = {0: images.numel()}, images.numel()

    def seen(place: int, given: Any, ended: list[int]) -> None:
        nonlocal total
        of_value[place] = _numbers(given)
        total += of_value[place]
        if total > MOST_NUMBERS:
            raise ValueError(f"after call {place} it holds {total} numbers for two images, and {MOST_NUMBERS} are the most")
        total -= sum(of_value.pop(value) for value in ended)

    return seen


def _numbers(given: Any) -> int:
    return sum(max(LEAST, each.numel()) for each in tensors(given))


class Bounded(TorchFunctionMode):
    """Raises ValueError before operations give too many parts, one or all, and after one within another that gives too many numbers.

    And where one changes statistics that it is given while the network evaluates, of which no version tells.
    """

    def __init__(self, training: bool) -> None:
        super().__init__()
        self._training, self._parts = training, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._training and func in _STATISTICS and _changes_statistics(*_STATISTICS[func], args, kwargs):
            raise ValueError(f"{resolve_name(func)} keeps what it has seen while it evaluates")
        if func in _MARGINS and (numbers := _MARGINS[func](*args, **kwargs)) > MOST_NUMBERS:
            raise ValueError(f"{resolve_name(func)} takes {numbers} numbers with their margins, and {MOST_NUMBERS} are the most")
        if (parts := _PARTS[func](*args, **kwargs) if func in _PARTS else _joined((args, kwargs))) > MOST_CALLS:
            raise ValueError(f"{resolve_name(func)} has {parts} parts, and {MOST_CALLS} are the most")
        self._parts += parts
        if self._parts > MOST_ALL_PARTS:
            raise ValueError(f"its operations have {self._parts} parts, and {MOST_ALL_PARTS} are the most")
        if func in registry.COMPOSED:
            with contextlib.suppress(Unsupported), self:  # native numerics may have it
                return registry.COMPOSED[func](*args, **kwargs)
        given = func(*args, **kwargs)
        if (numbers := _numbers(given)) > MOST_NUMBERS:
            raise ValueError(f"{resolve_name(func)} gives {numbers} numbers for two images, and {MOST_NUMBERS} are the most")
        if (axes := max((each.dim() for each in tensors(given)), default=0)) > MOST_AXES:
            raise ValueError(f"{resolve_name(func)} gives {axes} axes, and {MOST_AXES} are the most")
        if func in _WINDOWS and (numbers := _WINDOWS[func](given, *args, **kwargs)) > MOST_NUMBERS:
            raise ValueError(f"{resolve_name(func)} takes {numbers} numbers with what it copies, and {MOST_NUMBERS} are the most")
        return given


def _changes_statistics(name: str, default: bool, args: Any, kwargs: Any) -> bool:
    given = kwargs.get("running_mean", args[1] if len(args) > 1 else None)
    return given is not None and kwargs.get(name, args[5] if len(args) > 5 else default)


def _of_split(x: Tensor, split_size_or_sections: Any, dim: int = 0, **other: Any) -> int:
    size = split_size_or_sections
    return -(-x.shape[dim] // max(1, size)) if isinstance(size, int) else len(size)


def _with_margins(
    x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> int:
    """Numbers that a convolution's input has with the margins that its padding adds."""
    if isinstance(padding, str):
        margins = [(size - 1) * each * (padding == "same") for size, each in zip(weight.shape[2:], pair(dilation), strict=True)]
    else:
        margins = [2 * each for each in pair(padding)]
    return x.shape[:2].numel() * math.prod(size + each for size, each in zip(x.shape[2:], margins, strict=True))


def _with_margins_of_pool(x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, *args: Any, **kwargs: Any) -> int:
    """Numbers that a pool's input has with its margins, and with what its last windows may take beyond them."""
    sides = zip(x.shape[2:], pair(padding), pair(kernel_size), strict=True)
    return x.shape[:2].numel() * math.prod(size + 2 * margin + kernel for size, margin, kernel in sides)


def _of_product(y: Tensor, a: Tensor, b: Tensor) -> int:
    """Numbers of the matrices that a product multiplies, in float64, each spread over the other's leading axes."""
    return 2 * y.shape[:-2].numel() * (a.shape[-2:].numel() + b.shape[-2:].numel()) if min(a.dim(), b.dim()) > 1 else 0


def _of_convolution(
    y: Tensor, x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> int:
    """Numbers that the exact form copies, in float64: the windows, or each row of the input with what lies between rows."""
    if y.dim() != 4 or isinstance(padding, str):  # which adds no more than the kernel
        return 0
    way = convolution(pair(stride), pair(padding), pair(dilation), groups, x, weight.shape, TERMS)
    if type(way) is Convolution:
        return 2 * len(y) * y.shape[2:].numel() * x.shape[1] * weight.shape[2:].numel()
    height, width = (size + 2 * margin for size, margin in zip(x.shape[2:], pair(padding), strict=True))
    return 2 * x.shape[1] * height * (width * len(y) + GAP)


def _of_mean_windows(y: Tensor, x: Tensor, kernel_size: Any, *args: Any, **kwargs: Any) -> int:
    """Those that the exact form stacks, in float64: a row of the kernel each, over the whole width."""
    return 2 * pair(kernel_size)[0] * y.shape[:3].numel() * x.shape[3]


def _of_pool(x: Tensor, kernel_size: Any, *args: Any, **kwargs: Any) -> int:
    return math.prod(pair(kernel_size))


def _of_adaptive_pool(x: Tensor, output_size: Any, *args: Any, **kwargs: Any) -> int:
    sizes = output_size if isinstance(output_size, tuple | list) else (output_size, output_size)
    wanted = [size or own for size, own in zip(sizes, x.shape[2:], strict=True)]
    return max(
        math.prod(wanted), math.prod(own // max(1, size) for size, own in zip(wanted, x.shape[2:], strict=True)) if wanted != [1, 1] else 0
    )


MOST_OPERANDS = 8
"""Tensors that an operation takes which joins none: a norm has six."""


def _joined(given: Any) -> int:
    """The tensors that an operation joins: those of its arguments, where they are many."""
    return count if (count := sum(1 for _ in tensors(given))) > MOST_OPERANDS else 0


_STATISTICS = {F.batch_norm: ("training", False), F.instance_norm: ("use_input_stats", True)}
"""Norms, and the argument, the sixth, that has them change the running statistics that they are given, with its default."""
_MARGINS: dict[Any, Callable[..., int]] = {
    torch.conv2d: _with_margins, F.max_pool2d: _with_margins_of_pool, F.avg_pool2d: _with_margins_of_pool
}  # fmt: skip
_WINDOWS: dict[Any, Callable[..., int]] = {
    torch.conv2d: _of_convolution, F.avg_pool2d: _of_mean_windows, **dict.fromkeys(registry.FORMS["matmul"][1], _of_product)
}  # fmt: skip
_PARTS: dict[Any, Callable[..., int]] = {
    **dict.fromkeys((torch.unbind, Tensor.unbind), lambda x, dim=0: x.shape[dim]),
    **dict.fromkeys((torch.chunk, Tensor.chunk), lambda x, chunks, dim=0: min(chunks, x.shape[dim])),
    **dict.fromkeys((F.max_pool2d, F.avg_pool2d), _of_pool),
    **dict.fromkeys((F.adaptive_avg_pool2d, F.adaptive_max_pool2d), _of_adaptive_pool),
    **dict.fromkeys((torch.split, Tensor.split, torch.functional.split), _of_split),
}
"""How many parts an operation gives, or goes through one after the other, of its arguments."""
