"""Programs of operations with arguments drawn at random: what is accepted depends on no other image, no place and no number of images."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.exact.errors import Unsupported
from pipeline.exact.registry import Forms
from pipeline.exact.tape import Tape
from pipeline.models.recorded import OPERATIONS

PROGRAMS = 1500
IMAGES = torch.rand(5, 4, 6, 6, generator=torch.Generator().manual_seed(0)) - 0.4
DRAWS = torch.Generator().manual_seed(1)
CONSTANTS = [torch.rand(shape, generator=DRAWS) - 0.5 for shape in ((6, 6), (4,), (1,), (4, 4, 3, 3), (6,))]
NAMES = [name for name in sorted(OPERATIONS) if not any(word in name for word in ("bernoulli", "dropout", "empty"))]
LIKELY = [name for name in NAMES if name.rpartition(".")[2] in (
    "__setitem__", "__getitem__", "reshape", "view", "expand", "sum", "mean", "add", "mul", "where", "permute", "softmax", "zeros", "cat",
)]  # fmt: skip
SIZES = (0, 1, 2, 3, 4, 6, -1, -2, -3, 8, 12, 24, 36)
COUNT = "the number of images"
WAYS = {"in another order": [2, 0, 3, 1], "beside another image": [0, 1, 2, 4], "fewer at once": [0, 1, 2], "alone": [0]}
"""Which of the images another pass takes."""


class Program:
    """Calls of drawn operations with drawn arguments, of values that are images, parts of them and what is made of them."""

    def __init__(self, seed: int) -> None:
        self.draw, self.values = random.Random(seed), 6
        self.calls = [
            (self.draw.choice(NAMES if self.draw.random() < 0.5 else LIKELY), self._arguments()) for _ in range(self.draw.randint(1, 3))
        ]

    def _arguments(self) -> list[Any]:
        first = [("value", self.draw.randrange(self.values))] * (self.draw.random() < 0.85)
        given = first + [self._argument() for _ in range(self.draw.randrange(4))]
        self.values += 1
        return given

    def _argument(self) -> Any:
        kind = self.draw.random()
        if kind < 0.4:
            return ("value", self.draw.randrange(self.values))
        if kind < 0.5:
            return self.draw.choice(CONSTANTS)
        if kind < 0.75:
            return self.draw.choice((*SIZES, COUNT, True, False, None, 0.5, -1.0))
        if kind < 0.87:
            return tuple(self.draw.choice((*SIZES, COUNT, COUNT)) for _ in range(self.draw.randint(1, 4)))
        if kind < 0.95:
            parts = (slice(None), slice(None), slice(0, 2), (COUNT,), 0, 1, None, ..., True, False)
            return tuple(self.draw.choice(parts) for _ in range(self.draw.randint(1, 3)))
        return [("value", self.draw.randrange(self.values)) for _ in range(self.draw.randint(1, 2))]

    def run(self, images: Tensor) -> list[tuple[Tensor, int | None]]:
        """What it makes of images, and where theirs are in it. Raises whatever an operation does."""
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tape = Tape(x := images.clone())
            with Forms(tape):
                n = x.shape[0]
                rows = x.mean((2, 3))
                values: list[Any] = [x, x.flatten(1), rows, rows.t(), torch.gt(rows, 0.0), x.permute(1, 0, 2, 3)]
                for name, args in self.calls:
                    values.append(OPERATIONS[name](*(_given(each, values, n) for each in args)))
            return [(tape.input(y, "what it gives"), tape.axis(y)) for y in _tensors(values) if tape.of_images(y)]


def _given(drawn: Any, values: list[Any], n: int) -> Any:
    match drawn:
        case ("value", int(place)):
            return values[place]
        case (str(),):
            return slice(None, n)
        case str():
            return n
        case tuple():
            return tuple(_given(each, values, n) for each in drawn)
        case list():
            return [_given(each, values, n) for each in drawn]
    return drawn


def _tensors(values: list[Any]) -> Iterator[Tensor]:
    for value in values:
        yield from (each for each in (value if isinstance(value, tuple | list) else [value]) if isinstance(each, Tensor))


def of_an_image(y: Tensor, axis: int, image: int, images: int) -> Tensor:
    rows, rest = divmod(y.shape[axis], images)
    assert not rest, f"{list(y.shape)} for {images} images along axis {axis}"
    return y.narrow(axis, image * rows, rows)


@pytest.mark.parametrize("part", range(4))
def test_what_is_accepted_of_drawn_programs_is_each_images_own(part):
    accepted = 0
    for seed in range(part * PROGRAMS, (part + 1) * PROGRAMS):
        program = Program(seed)
        try:
            whole = program.run(IMAGES[:4])
        except Exception:  # refused, or what PyTorch refuses as well
            continue
        accepted += 1
        for way, taken in WAYS.items():
            try:
                found = program.run(IMAGES[taken])
            except (Unsupported, RuntimeError):  # a size of its own that fits four images alone
                continue
            for (y, axis), (z, other) in zip(whole, found, strict=True):
                if axis is None:
                    continue
                assert axis == other
                for place, image in enumerate(taken):
                    if image < 4:
                        ours, theirs = of_an_image(z, axis, place, len(taken)), of_an_image(y, axis, image, 4)
                        assert torch.equal(ours.flatten().nan_to_num(), theirs.flatten().nan_to_num()), (way, seed, program.calls)
    assert accepted > PROGRAMS // 100
