"""A network.json that was received: whether it is a network at all, of a run's weights, and takes no more than a network does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.exact import constants, fillings, registry
from pipeline.exact.arguments import tensors
from pipeline.models import bounds
from pipeline.models.recorded import KINDS, NAMES, OPERATIONS, Held, Recorded, Recording, Unrecorded, parts
from pipeline.system import schema
from pipeline.system.errors import UserError, shown

MOST_UNSAVED = 2**26
"""Numbers that the making of all buffers takes that no file of weights holds: the length of such a file bounds the others."""
MOST_HEADS = 100
"""Heads, each of which gives logits for all classes: each takes a loss and a way back."""
MOST_DRAWN, DRAWN_TAKES = 2, 32
"""How often the initial values of one may be drawn, and how many tensors of its size that takes."""
_NOT_FINITE = ("inf", "-inf", "nan")
_SIZED = {NAMES[each] for each in registry.SIZED & NAMES.keys()}
_FULL = {NAMES[each] for each in constants.FULL}
_CONVERSIONS = {NAMES[each] for each in (Tensor.to, Tensor.type) if each in NAMES}


def is_refusal(content: bytes) -> bool:
    """Whether the bytes of `network.json` say why the network is not recorded."""
    return content.startswith(b'{"format":1,"refused":')


def read(content: bytes, weights: Mapping[str, np.ndarray], classes: int, shape: tuple[int, int, int], where: str) -> Recording | None:
    """The recording in the bytes of a file called `where`, for a run's weights, its images and classes; None if it was refused.

    Raises:
        UserError: it is damaged, does not fit the weights, or is such as no network is.
    """
    if is_refusal(content):
        schema.decode(Unrecorded, content, where)
        return None
    recording = schema.decode(Recording, content, where)
    saved = {name: held for name, held in recording.held.items() if held.kind != "unsaved"}
    for name in [*saved, *weights]:
        if name not in saved or name not in weights or (saved[name].shape, saved[name].dtype) != (
            list(weights[name].shape), weights[name].dtype.name
        ):  # fmt: skip
            raise UserError(f"{where}: does not fit the weights beside it: {shown(name)} is another, or there in one of them alone")
    try:
        check(recording, shape, classes)
    except ValueError as error:
        raise UserError(f"{where}: not a network that can be computed: {error}; changed, or damaged") from None
    return recording


def check(recording: Recording, shape: tuple[int, int, int], classes: int | None = None) -> None:
    """Raise ValueError, in one line, where it is no network for such images and so many classes, if given, or takes more than one does.

    It is tried on tensors without memory, of two images and of three, and what evaluates of one.
    """
    try:
        _check(recording)
        module = Recorded(recording).to("meta")
        for training in (False, True):
            held = [*module.named_parameters(), *module.named_buffers()]
            versions = [tensor._version for _, tensor in held]
            with torch.no_grad(), torch.device("meta"), bounds.Bounded(training), bounds.without_compiler():
                counts = (2, 3) if training else (2, 3, 1)  # a norm learns nothing of one
                tried = {count: _tried(module.train(training), count, shape) for count in counts}
            given, of_two = tried[2]
            for count in counts[1:]:
                _check_alike(of_two, tried[count][1], count)
            for (name, tensor), version in zip(held, versions, strict=True):
                if not training and tensor._version != version:  # an image's answer would depend on those before it
                    raise ValueError(f"it changes {shown(name)} while it evaluates")
            for logits in given if isinstance(given, list | tuple) else [given]:
                if logits is not None and (list(logits.shape) != [2, classes or logits.shape[-1]] or not logits.is_floating_point()):
                    numbers = "" if logits.is_floating_point() else f"{logits.dtype} "
                    raise ValueError(f"gives {numbers}{list(logits.shape)} for 2 images and {classes} classes")
    except Exception as error:  # whatever PyTorch says of what is no network
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from None


def _tried(module: Recorded, images: int, shape: tuple[int, int, int]) -> tuple[Any, list[list[list[int]]]]:
    """What it gives for so many images without memory, and of each call the shapes of the tensors that it gives."""
    shapes: list[list[list[int]]] = []
    counted = bounds.counting(taken := torch.empty(images, *shape, device="meta"), module.taking(), module.training)

    def seen(place: int, given: Any, ended: list[int]) -> None:
        if given is NotImplemented:  # what an operator says of arguments that it does not take, where others raise an error
            raise ValueError(f"call {place} is of an operator that does not take these arguments")
        counted(place, given, ended)
        shapes.append([list(tensor.shape) for tensor in tensors(given)])

    return module.run(taken, seen), shapes


def _check_alike(of_two: list[list[list[int]]], of_others: list[list[list[int]]], count: int) -> None:
    """Raise ValueError where what a call gives is not the same of each image: several sizes say how many images there are, or another."""
    for place, (two, others) in enumerate(zip(of_two, of_others, strict=True), 1):
        for a, b in zip(two, others, strict=True):
            other = [(x, y) for x, y in itertools.zip_longest(a, b, fillvalue=0) if x != y]
            if len(other) > 1 or any(x * count != y * 2 for x, y in other):
                raise ValueError(f"call {place} gives {a} of 2 images and {b} of {count}")


def _check(recording: Recording) -> None:
    """Raise ValueError where something is named that is not there, or there is too much of it."""
    unsaved = sum(math.prod(held.shape) * max(1, _steps(held)) for held in recording.held.values() if held.kind == "unsaved")
    if unsaved > MOST_UNSAVED:
        raise ValueError(f"making what no file of weights holds takes {unsaved} numbers, and {MOST_UNSAVED} are the most")
    empty = sum(math.prod(max(1, size) for size in held.shape) for held in recording.held.values() if 0 in held.shape)
    if empty > MOST_UNSAVED:
        raise ValueError(f"it holds {empty} rows without numbers, and {MOST_UNSAVED} are the most")
    before: set[str] = set()
    for name, held in recording.held.items():
        if held.same is not None and held.same not in before:
            raise ValueError(f"{shown(name)} is the same as {shown(held.same)}, which does not come before it")
        if name.count(".") >= bounds.MOST_PARTS or len(name) > bounds.LONGEST_NAME:
            raise ValueError(f"a weight or buffer is called {shown(name[:40])}..., in {name.count('.') + 1} parts")
        if (drawn := sum(rule in fillings.DRAWN for rule, _ in held.initial)) > MOST_DRAWN:
            raise ValueError(f"{shown(name)} is drawn {drawn} times, and {MOST_DRAWN} are the most")
        if drawn and held.dtype != "float32":  # PyTorch draws none of other types, so no recording has one
            raise ValueError(f"{shown(name)} is drawn, and is {held.dtype}")
        before.add(name)
        fillings.drawn([(rule, tuple(numbers)) for rule, numbers in held.initial if rule != "values"], 0, name, 1)
    for graph in (recording.training, recording.evaluation):
        if len(graph.calls) > bounds.MOST_CALLS:
            raise ValueError(f"it has {len(graph.calls)} calls, and {bounds.MOST_CALLS} are the most")
        for place, (name, args, kwargs) in enumerate(graph.calls, 1):
            if name not in OPERATIONS:
                raise ValueError(f"call {place} is of {shown(name)}, which has no exact form")
            if kwargs.get("device") not in (None, {"device": True}):
                raise ValueError(f"call {place} is on {shown(kwargs['device'])}, not where the images are")
            if name in _CONVERSIONS and any(isinstance(each, str) for each in [*args, *kwargs.values()]):
                raise ValueError(f"call {place} names a type or a device, which may not be where the images are")
            _check_encoded([args, list(kwargs.values())], place, before)
            counts = _counts([args, *kwargs.values()])
            if counts and (counts > 1 or name not in _SIZED or (name in _FULL and _counts([args[-1:], kwargs.get("fill_value")]))):
                raise ValueError(f"call {place} takes the number of images otherwise than once, as a size")
        _check_encoded(graph.gives, len(graph.calls) + 1, before)
        if (heads := sum(kind in ("value", "held") for kind, _ in parts(graph.gives))) > MOST_HEADS:
            raise ValueError(f"it gives {heads} heads of logits, and {MOST_HEADS} are the most")


def _steps(held: Held) -> int:
    """Tensors of its size that the making of its initial values takes."""
    return sum(DRAWN_TAKES if rule in fillings.DRAWN else 1 for rule, _ in held.initial)


def _check_encoded(given: Any, place: int, held: set[str]) -> None:
    if isinstance(given, list):
        for each in given:
            _check_encoded(each, place, held)
    elif isinstance(given, dict):
        ((kind, what),) = given.items()
        if kind in ("tuple", "slice"):
            _check_encoded(what, place, held)
        elif kind == "value":
            first, *rest = what if isinstance(what, list) else [what]
            if not (type(first) is int and 0 <= first < place and all(type(i) is int for i in rest)):
                raise ValueError(f"call {place} takes value {what!s:.40}, which does not come before it")
        elif kind == "held":
            if what not in held:
                raise ValueError(f"call {place} takes {shown(str(what))}, which is no weight or buffer")
        elif kind not in KINDS or (kind == "images" and type(what) is not int) or (kind == "number" and what not in _NOT_FINITE):
            raise ValueError(f"call {place} has an argument that is {shown(str(kind))}")


def _counts(given: Any) -> int:
    """How often encoded arguments name the number of images."""
    return sum(kind == "images" for kind, _ in parts(given))
