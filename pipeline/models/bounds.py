"""What a received network may take: one that was recorded is computed once on tensors without memory, and what that would have taken is
counted; one that its source makes is made of no more weights than came with it. And none may change what it holds while it answers.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode, resolve_name

from pipeline import device as devices
from pipeline.exact import registry
from pipeline.exact.arguments import tensors
from pipeline.exact.errors import Unsupported
from pipeline.models import within
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
MOST_OF_TRAINING = 2**32
"""Numbers of all the values of two images together: the way back of a training may need each."""
LEAST = 2**8
"""Numbers that a tensor counts for: one without any takes memory too."""
OF_COMPILER: dict[str, dict[str, Any]] = {
    "sympy": {"Basic": type("Basic", (), {})},
    "torch.fx.experimental.symbolic_shapes": {
        **dict.fromkeys((
            "expect_true", "guard_or_false", "guard_or_true", "guard_size_oblivious", "guarding_hint_or_throw", "statically_known_true",
        ), lambda known: known),
        "sym_and": lambda *known: all(known),
        "sym_or": lambda *known: any(known),
        "sym_eq": lambda a, b: a == b if isinstance(a, int) else list(a) == list(b),
        "has_guarding_hint": lambda size: True,
        "is_nested_int": lambda size: False,
    },
    "torch._dynamo": {"disable": lambda function, *_, **__: function},
}  # fmt: skip
"""Modules that PyTorch's compiler is made of, each after those that it imports, and what they say where all sizes are numbers."""


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
    stand_ins = {name: types.ModuleType(name) for name in OF_COMPILER if name not in sys.modules}

    def give_way(last: str) -> None:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]
            if name == last:
                return

    def own(name: str, wanted: str) -> Any:
        if wanted.startswith("__"):  # what `from ... import` looks for first
            raise AttributeError(wanted)
        give_way(name)
        return getattr(importlib.import_module(name), wanted)

    for name, stand_in in stand_ins.items():
        stand_in.__dict__.update(OF_COMPILER[name], __getattr__=functools.partial(own, name))
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        give_way("")


def counting(images: Tensor, calls: list[tuple[str, list[int]]], training: bool = False) -> Callable[[int, Any, list[int]], None]:
    """What `run` tells of its calls: raises ValueError where the values hold too much at a time, and in training all together.

    A value holds the memory that it is a part of. Of each of the `calls` there is its operation's name, and the values that it takes. What
    the way back of a training needs is not known, so there no value ends, and each operation may keep a copy of what it takes. What is
    expanded is held to the end, so that nobody changes it.
    """
    of_value = {0: _memory(0, images)}
    most, held = MOST_OF_TRAINING if training else MOST_NUMBERS, Counter(of_value[0].keys())
    total = sum(numbers for numbers, _ in of_value[0].values())
    kept: list[dict[Any, tuple[int, Any]]] = []

    def seen(place: int, given: Any, ended: list[int]) -> None:
        nonlocal total
        of_value[place] = _memory(place, given)
        total += sum(numbers for memory, (numbers, _) in of_value[place].items() if not held[memory])
        held.update(of_value[place].keys())
        name, takes = calls[place - 1]
        if training:
            total += sum(numbers for value in takes for numbers, _ in of_value[value].values())
        elif ".expand" in name:
            for value in takes:
                held.update(of_value[value].keys())
                kept.append(of_value[value])
        if total > most:
            raise ValueError(f"after call {place} it holds {total} numbers for two images, and {most} are the most")
        for value in () if training else ended:
            memories = of_value.pop(value)
            held.subtract(memories.keys())
            total -= sum(numbers for memory, (numbers, _) in memories.items() if not held[memory])

    return seen


def _memory(place: int, given: Any) -> dict[Any, tuple[int, Any]]:
    """The numbers of each memory that the value of a call shows, and the memory, so that its name is no other's.

    Of what is larger than its memory, as when expanded, its own numbers.
    """
    held = {}
    for number, tensor in enumerate(tensors(given)):
        memory = tensor.untyped_storage()
        numbers = memory.nbytes() // tensor.element_size()
        own = (place, number) if tensor.numel() > numbers else memory._cdata
        held[own] = (max(LEAST, within.places(tensor), numbers, memory.nbytes() // 4), memory)
    return held


def _numbers(given: Any) -> int:
    return sum(max(LEAST, within.places(each)) for each in tensors(given))


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
        if func in within.MARGINS and (numbers := within.MARGINS[func](*args, **kwargs)) > MOST_NUMBERS:
            raise ValueError(f"{resolve_name(func)} takes {numbers} numbers with their margins, and {MOST_NUMBERS} are the most")
        if (parts := within.PARTS[func](*args, **kwargs) if func in within.PARTS else within.joined((args, kwargs))) > MOST_CALLS:
            raise ValueError(f"{resolve_name(func)} has {parts} parts, and {MOST_CALLS} are the most")
        self._parts += parts
        if self._parts > MOST_ALL_PARTS:
            raise ValueError(f"its operations have {self._parts} parts, and {MOST_ALL_PARTS} are the most")
        if func in within.COMPOSED and (numbers := within.COMPOSED[func](*args, **kwargs)) > MOST_NUMBERS:
            raise ValueError(f"{resolve_name(func)} takes {numbers} numbers within, and {MOST_NUMBERS} are the most")
        if func in registry.COMPOSED:
            with contextlib.suppress(Unsupported), self:  # native numerics may have it
                return registry.COMPOSED[func](*args, **kwargs)
        given = func(*args, **kwargs)
        if (numbers := _numbers(given)) > MOST_NUMBERS:
            raise ValueError(f"{resolve_name(func)} gives {numbers} numbers for two images, and {MOST_NUMBERS} are the most")
        if (axes := max((each.dim() for each in tensors(given)), default=0)) > MOST_AXES:
            raise ValueError(f"{resolve_name(func)} gives {axes} axes, and {MOST_AXES} are the most")
        if func in within.COPIES and (numbers := within.COPIES[func](given, *args, **kwargs)) > MOST_NUMBERS:
            raise ValueError(f"{resolve_name(func)} takes {numbers} numbers with what it copies, and {MOST_NUMBERS} are the most")
        return given


def _changes_statistics(name: str, default: bool, args: Any, kwargs: Any) -> bool:
    given = kwargs.get("running_mean", args[1] if len(args) > 1 else None)
    return given is not None and kwargs.get(name, args[5] if len(args) > 5 else default)


_STATISTICS = {F.batch_norm: ("training", False), F.instance_norm: ("use_input_stats", True)}
"""Norms, and the argument, the sixth, that has them change the running statistics that they are given, with its default."""
