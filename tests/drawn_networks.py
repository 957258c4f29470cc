"""Networks that hypothesis draws from the forms: shapes (degenerate ones too), values, and what reads what; and what they compute.

A `Network` is data, whose text can stand in a test as it is printed. It is computed with torch's functions or the reference's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from tests.drawn_forms import FORMS, IN_PLACE, OF_NOTHING, OFTEN, ROWS, SHARING, Shape
from tests.test_exact_reference import Second, Stock, values


@dataclass(frozen=True)
class Step:
    """A form, the numbers of the tensors that it reads (0 is the images) and of its weights, and its other arguments."""

    form: str
    reads: Shape
    weights: Shape = ()
    given: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Network:
    """The shape of an image, and the kind of the values; each weight's shape and kind; the steps, whose last gives the logits."""

    images: int
    shape: Shape
    pixels: str
    weights: tuple[tuple[Shape, str], ...]
    steps: tuple[Step, ...]
    statistics: tuple[int, ...] = ()
    """Channels of each batch norm."""
    seed: int = 0

    def has(self, *forms: str) -> bool:
        """Whether one of its steps is one of these."""
        return any(step.form in forms for step in self.steps)


class Torchs(Stock):
    """Torch's functions, with a network's statistics, in training or evaluation."""

    def __init__(self, statistics: Sequence[Any], training: bool) -> None:
        self.statistics, self.training = statistics, training

    def constant(self, array: np.ndarray) -> torch.Tensor:
        return constant(tuple(array.tolist()))

    def relu_in_place(self, x: Any) -> Any:
        return F.relu(x, inplace=True)


@cache
def constant(numbers: tuple[int, ...]) -> torch.Tensor:
    """Made once, outside of what a test puts in the place of PyTorch's operations."""
    return torch.tensor(numbers)


class References(Second):
    """The reference's, likewise."""

    def __init__(self, statistics: Sequence[Any], training: bool) -> None:
        self.statistics, self.training = statistics, training

    def relu_in_place(self, x: Any) -> Any:
        x.replace(self.relu(x))
        return x


def compute(network: Network, f: Any, images: Any, weights: Sequence[Any]) -> Any:
    """The logits."""
    found = [images]
    for step in network.steps:
        found.append(FORMS[step.form][1](f, *(found[i] for i in step.reads), *(weights[i] for i in step.weights), *step.given))
    return found[-1]


class Model(nn.Module):
    """A network for the pipeline."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.weights = nn.ParameterList(torch.from_numpy(a) for a in weights(network))
        for i, a in enumerate(statistics(network)):
            self.register_buffer(f"statistic{i}", torch.from_numpy(a))

    def forward(self, x: torch.Tensor) -> Any:
        buffers = list(self.buffers())
        return compute(self.network, Torchs(list(zip(buffers[::2], buffers[1::2], strict=True)), self.training), x, list(self.weights))


# --- values -----------------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "usual": lambda a: a,
    "ties": np.rint,
    "zeros": lambda a: a * 0,
    "least": lambda a: a * 2.0**-41,
    "tiny": lambda a: a * 2.0**-90,
    "large": lambda a: a * 2.0**12,
    "huge": lambda a: a * 2.0**50,
    "one large": lambda a: a * np.where(np.arange(a.size).reshape(a.shape) == a.size // 2, 2.0**20, 1.0),
    "wide": lambda a: a * 2.0 ** (np.arange(a.size).reshape(a.shape) * 7 % 60 - 45),
}
"""Of float32 numbers from -4 to 4 (`values`)."""


def numbers(label: str, shape: Shape, kind: str) -> np.ndarray:
    return KINDS[kind](values(label, shape)).astype(np.float32)


def weights(network: Network) -> list[np.ndarray]:
    return [numbers(f"networks/{network.seed}/w{i}", *weight) for i, weight in enumerate(network.weights)]


def statistics(network: Network) -> list[np.ndarray]:
    """Means and variances in turn."""
    found = []
    for i, channels in enumerate(network.statistics):
        found += [values(f"networks/{network.seed}/mean{i}", (channels,)), np.abs(values(f"networks/{network.seed}/var{i}", (channels,)))]
    return found


def images(network: Network) -> np.ndarray:
    label, shape = f"networks/{network.seed}/images", (network.images, *network.shape)
    if network.pixels not in ("bytes", "black", "white"):
        return numbers(label, shape, network.pixels)
    a = (values(label, shape) * 32 + 128).astype(np.uint8)
    return a if network.pixels == "bytes" else np.full_like(a, 0 if network.pixels == "black" else 255)


def labels(network: Network, classes: int) -> np.ndarray:
    return (np.arange(network.images) * 7 + network.seed) % classes


# --- drawing ----------------------------------------------------------------------------------------------------------


@dataclass
class Drawn:
    """A tensor of the network: its rows an image, the shape of a row; which memory it shows, and what it is a part of."""

    rows: int
    shape: Shape
    memory: int
    part_of: int | None = None
    alive: bool = True


class Drawing:
    """A network that is being drawn."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.weights: list[tuple[Shape, str]] = []
        self.statistics: list[int] = []
        self.steps: list[Step] = []
        self.images, self.kinds = self.one_of(3, 1, 2, 4, 5, 7), self.one_of(["usual"], ["ties"], [*KINDS])
        self.found = [Drawn(1, (self.one_of(3, 1, 2, 4), self.int(1, 7), self.int(1, 7)), 0)]

    def int(self, least: int, most: int) -> int:
        return self.draw(st.integers(least, most))

    def one_of(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def weight(self, *shape: int) -> int:
        """A new one, or one that is there already."""
        same = [i for i, (of, _) in enumerate(self.weights) if of == shape]
        if same and self.one_of(False, False, True):
            return self.one_of(*same)
        self.weights.append((shape, self.one_of(*self.kinds)))
        return len(self.weights) - 1

    def maybe(self, *weights: Shape) -> tuple[int, ...]:
        """Weights, or none."""
        return tuple(self.weight(*shape) for shape in weights) if self.one_of(True, False) else ()

    def step(self, number: int) -> None:
        """One more form of tensor `number`."""
        x = self.found[number]
        fit = [name for name, (dims, *_) in FORMS.items() if (len(x.shape) if x.rows == 1 else ROWS) in dims]
        fit = fit if math.prod(x.shape) else [name for name in fit if name in OF_NOTHING]
        often = [name for name in OFTEN if name in fit]
        name = self.one_of(*(often if often and self.one_of(True, False) else fit))
        arguments = FORMS[name][2](self, x.shape, number)
        if arguments is not None:
            self.add(name, *arguments)

    def add(self, name: str, reads: Shape, weights: Shape = (), given: tuple[Any, ...] = ()) -> None:
        """With its shape as torch has it of two images."""
        f = Torchs([(torch.zeros(c), torch.ones(c)) for c in self.statistics], True)
        of = [torch.zeros(2 * self.found[i].rows, *self.found[i].shape) for i in reads]
        y = FORMS[name][1](f, *of, *(torch.zeros(self.weights[i][0]) for i in weights), *given)
        if y.numel() > 1200:
            return
        first = self.found[reads[0]]
        shares = name in SHARING
        rows = 1 if name == "images" else len(y) // 2
        self.steps.append(Step(name, reads, weights, given))
        self.found.append(Drawn(rows, tuple(y.shape[1:]), first.memory if shares else len(self.found)))
        if name == "slice":
            self.found[-1].part_of = reads[0]
        if name in IN_PLACE:
            self.change(reads[0])

    def change(self, number: int) -> None:
        """Nobody reads that memory by way of another tensor, but what the changed one is a part of."""
        kept, at = {number, len(self.found) - 1}, self.found[number].part_of
        while at is not None:
            kept.add(at)
            at = self.found[at].part_of
        for i, x in enumerate(self.found):
            if x.memory == self.found[number].memory and i not in kept:
                x.alive = False
        self.found[-1].part_of = self.found[number].part_of

    def alike(self, number: int, fits: Callable[[Shape], bool]) -> int:
        """Another tensor that fits beside this one, or itself."""
        return self.one_of(number, *(i for i, x in enumerate(self.found) if x.alive and x.rows == 1 and fits(x.shape)))


@st.composite
def networks(draw: Any) -> Network:
    """Of one to eight forms, and what makes logits of the last."""
    d = Drawing(draw)
    pixels, classes = d.one_of("bytes", "bytes", "bytes", "bytes", "black", "white", "usual", *KINDS), d.one_of(3, 2, 5, 10, 3, 2, 5, 10, 1)
    for _ in range(d.int(1, 8)):
        alive = [i for i, x in enumerate(d.found) if x.alive]
        d.step(d.one_of(alive[-1], alive[-1], *alive))
    last = max(i for i, x in enumerate(d.found) if x.alive)
    if d.found[last].rows > 1:
        d.add("images", (last,), (), (d.found[last].rows * math.prod(d.found[last].shape),))
    elif len(d.found[last].shape) > 1:
        d.add("flatten", (last,))
    last = last if d.found[last].rows == 1 == len(d.found[last].shape) else len(d.found) - 1
    d.add("linear", (last,), (d.weight(classes, *d.found[last].shape), *d.maybe((classes,))))
    if d.one_of(False, False, True):
        d.weights.append(((2, 3), "usual"))  # that nobody reads
    weights, statistics = tuple(d.weights), tuple(d.statistics)
    return Network(d.images, d.found[0].shape, pixels, weights, tuple(d.steps), statistics, d.int(0, 2**20))
