"""A network as data: the operations that images go through, by name, with their arguments and the names of weights and buffers.

`network.json` of a run holds it, so that who receives the run needs no source of its author's, and executes nothing of it: each operation
is one of PyTorch's that have an exact form, and what an argument may be is listed in `_decoded`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.overrides import resolve_name

from pipeline.exact import constants, copies, fillings, initialisation, registry
from pipeline.system import schema

_OF_VALUES = {Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__index__, Tensor.__float__, Tensor.tolist}
_ALL = {*registry.FORM_OF, *registry.COMPOSED, *registry.IN_PLACE, *constants.MAKING, *constants.OF_CONSTANTS, Tensor.__setitem__}
NAMES: dict[Any, str] = {each: resolve_name(each) or "torch.nn.functional.pad" for each in _ALL - _OF_VALUES}
"""Of each operation that may be recorded PyTorch's own name."""
OPERATIONS = {name: each for each, name in NAMES.items()}
_EMPTY = NAMES[torch.empty]
_OF_LISTS = {NAMES[each] for each in (torch.tensor, Tensor.new_tensor)}
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")}
LAYOUTS = {name: getattr(torch, name) for name in ("contiguous_format", "channels_last", "preserve_format")}

Size = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class Held(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A weight or a buffer."""

    shape: Annotated[list[Size], msgspec.Meta(max_length=8)]
    dtype: Literal["float32", "int64", "int32", "uint8", "bool"] = "float32"
    kind: Literal["weight", "frozen", "buffer", "unsaved"] = "weight"
    """A weight, one that does not learn, a buffer, or a buffer that a file of weights does not hold."""
    same: str | None = None
    """Another name of the same tensor, that comes before this one."""
    initial: Annotated[list[tuple[str, list[float]]], msgspec.Meta(max_length=20)] = []
    """How its initial values are made (exact/fillings.py has the rules); none for 0."""


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What images go through."""

    calls: list[tuple[str, list[Any], dict[str, Any]]]
    """An operation's name and its arguments, encoded. Value 0 are the images, value i is what the i-th call gives."""
    gives: Any
    """The logits, encoded: a value, or several and nulls."""


class Recording(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`network.json`."""

    format: Literal[1]
    held: dict[str, Held]
    """By name, in the order of the network's own."""
    training: Graph
    evaluation: Graph

    def given(self) -> int:
        """How many numbers it has that no rule draws: of what it holds at the beginning, and of the constants that it makes."""
        held = sum(len(numbers) for held in self.held.values() for rule, numbers in held.initial if rule == "values")
        return held + max(
            sum(len([*parts([args, *kwargs.values()])]) for name, args, kwargs in graph.calls if name in _OF_LISTS)
            for graph in (self.training, self.evaluation)
        )


class Unrecorded(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`network.json` of a network that cannot be recorded."""

    format: Literal[1]
    refused: schema.Phrase
    """Why."""


class Recorded(nn.Module):
    """The network of a recording, an ordinary module for any numerics: images [N, C, H, W] -> what the network's own module gives."""

    def __init__(self, recording: Recording, seed: int | None = None) -> None:
        """With the initial weights of `seed`; without one those that are drawn are 0."""
        super().__init__()
        self._graphs = {True: recording.training, False: recording.evaluation}
        self._unused = {training: _unused(graph) for training, graph in self._graphs.items()}
        initialisation.note(self, {name: [(rule, tuple(numbers)) for rule, numbers in held.initial]
                                   for name, held in recording.held.items() if held.kind in ("weight", "frozen")})  # fmt: skip
        made: dict[str, Tensor] = {}
        for name, held in recording.held.items():
            *path, own = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]  # type: ignore[assignment]
            made[name] = tensor = made[held.same] if held.same is not None else _initial(name, held, seed)
            if isinstance(tensor, nn.Parameter):
                module.register_parameter(own, tensor)
            else:
                module.register_buffer(own, tensor, persistent=held.kind != "unsaved")

    def forward(self, images: Tensor) -> Any:
        """As the network that was recorded."""
        return self.run(images, lambda place, given, ended: None)

    def taking(self) -> list[tuple[str, list[int]]]:
        """Of each call its operation's name, and the values that it takes."""
        return [(name, [what[0] if isinstance(what, list) else what for kind, what in parts([args, *kwargs.values()]) if kind == "value"])
                for name, args, kwargs in self._graphs[self.training].calls]  # fmt: skip

    def run(self, images: Tensor, seen: Callable[[int, Any, list[int]], None]) -> Any:
        """`forward`, which tells `seen` after each call its number, what it gives, and the values that nothing takes after it."""
        held = dict([*self.named_parameters(remove_duplicate=False), *self.named_buffers(remove_duplicate=False)])
        graph, unused = self._graphs[self.training], self._unused[self.training]
        values: list[Any] = [images]
        where = _Where(held, images.shape[0], images.device)  # the number of images, which exact numerics know again where it comes back
        for place, (name, args, kwargs) in enumerate(graph.calls, 1):
            values.append(OPERATIONS[name](
                *(_decoded(each, values, where) for each in args),
                **{key: _decoded(each, values, where) for key, each in kwargs.items()},
            ))  # fmt: skip
            if name == _EMPTY:  # to native numerics it would be what somebody left in memory
                with torch._C.DisableTorchFunction():
                    values[place].zero_()
            seen(place, values[place], unused[place])
            for other in unused[place]:
                values[other] = None
        return _decoded(graph.gives, values, where)


def compressed(content: bytes) -> int:
    """Into how many bytes a description goes: whatever its names, shapes, order and numbers know by heart is in these."""
    return len(zlib.compress(content, 9))


def parts(given: Any) -> Iterator[tuple[str, Any]]:
    """What stands in encoded arguments, however deep: its kind and what that names, or a plain value, whose kind is ""."""
    if isinstance(given, list):
        for each in given:
            yield from parts(each)
    elif isinstance(given, dict):
        ((kind, what),) = given.items()
        yield kind, what
        if kind in ("tuple", "slice"):
            yield from parts(what)
    else:
        yield "", given


def _initial(name: str, held: Held, seed: int | None) -> Tensor:
    values = fillings.drawn([(rule, tuple(numbers)) for rule, numbers in held.initial], seed, name, math.prod(held.shape))
    copies.check_fits([values], DTYPES[held.dtype])
    tensor = values.view(held.shape).to(DTYPES[held.dtype])
    return nn.Parameter(tensor, held.kind == "weight") if held.kind in ("weight", "frozen") else tensor


def _unused(graph: Graph) -> list[list[int]]:
    """After each call (from 1), the values that no later one takes."""
    last: dict[int, int] = {}
    for place, call in enumerate([*([args, list(kwargs.values())] for _, args, kwargs in graph.calls), graph.gives], 1):
        for kind, value in parts(call):
            if kind == "value":
                last[value[0] if isinstance(value, list) else value] = place
    after: list[list[int]] = [[] for _ in range(len(graph.calls) + 2)]
    for value, place in last.items():
        after[place].append(value)
    for place in range(1, len(graph.calls) + 1):
        if place not in last:
            after[place].append(place)
    return after


def _item(what: Any, values: list[Any]) -> Any:
    first, *rest = what if isinstance(what, list) else [what]
    given = values[first]
    for place in rest:
        given = given[place]
    return given


class _Where(NamedTuple):
    """What arguments name besides values: weights and buffers, the number of images, and their device."""

    held: Mapping[str, Tensor]
    images: int
    device: torch.device


KINDS: dict[str, Callable[[Any], Any]] = {
    "number": float,  # what JSON has no word for: inf, -inf, nan
    "dtype": DTYPES.__getitem__,
    "memory_format": LAYOUTS.__getitem__,
    "ellipsis": lambda what: Ellipsis,
    "strided": lambda what: torch.strided,
    "images": lambda what: None,
    "device": lambda what: None,
}
"""What else an argument may be, and how it is made."""


def _decoded(given: Any, values: list[Any], where: _Where) -> Any:
    """An argument as an operation takes it: `recording.encoded` has the other way."""
    if isinstance(given, list):
        return [_decoded(each, values, where) for each in given]
    if not isinstance(given, dict):
        return given
    ((kind, what),) = given.items()
    if kind == "value":
        return _item(what, values)
    if kind == "held":
        return where.held[what]
    if kind == "tuple":
        return tuple(_decoded(each, values, where) for each in what)
    if kind == "slice":
        return slice(*(_decoded(each, values, where) for each in what))
    if kind == "images":
        return where.images if what == 1 else where.images * what
    return where.device if kind == "device" else KINDS[kind](what)
