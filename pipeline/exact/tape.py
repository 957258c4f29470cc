"""A record of one pass through a model: what was computed, in order, so that gradients can be walked back.

Sums over the batch (weight and bias gradients, the mean loss) wait until the walk is through. Then a step needs two exchanges
between workers and no more: the largest magnitudes of all sums, and the integer sums themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from pipeline.exact import grid
from pipeline.exact.errors import refusal
from pipeline.exact.group import Group
from pipeline.exact.later import Later

Backward = Callable[[Tensor], tuple[Tensor | None, ...]]


class BatchSums(Protocol):
    """Sums over the batch that wait, each on a grid of its own."""

    magnitudes: list[Tensor]
    """The largest magnitude on each grid among this worker's images, float32, 0-dim."""
    fit_float64: bool
    """Whether float64 holds the sums over the whole batch; else they are int64."""

    def integers(self, scales: list[Tensor]) -> list[Tensor]:
        """Compute this worker's sums, one a grid, of any shape."""

    def round(self, sums: list[Tensor], units: list[Tensor]) -> None:
        """Take all workers' sums, flat, and note what is made of them."""


class Memory:
    """What a tensor and its views share in PyTorch. Here nothing is overwritten: a change in place makes a new value, and a new version."""

    version = 0


class Tape:
    """What a pass records. Without weights it is one for inference, which records nothing."""

    def __init__(self, images: Tensor, weights: Mapping[str, Tensor] | None = None, batch_images: int = 0) -> None:
        self.learns, self.batch_images, self._images = weights is not None, batch_images, images
        self.gradients: dict[str, Tensor] = {}
        """Of the weights, by name, as `add_up` gives them."""
        self._names = {id(weight): name for name, weight in (weights or {}).items()}
        self._used: set[str] = set()
        self._steps: list[tuple[Tensor, tuple[Tensor, ...], Backward]] = []
        self._values = {id(images): images}  # and all that was made of them; held, so that no id is given twice
        self._newer: dict[int, tuple[Tensor, Tensor]] = {}  # what was changed in place, and its new value
        self._waiting: list[BatchSums] = []

    def input(self, x: Tensor, what: str) -> Tensor:
        """What to compute with, and to record, for `x`, which must have been made from the images: so its gradient has a way back.

        Raises:
            Unsupported: it was not; names the operation `what`.
        """
        x = self.current(x, what)
        if self.learns and id(x) not in self._values:
            name = self._names.get(id(x))
            raise refusal(f"{what} of " + (f"the weight '{name}'" if name else "a tensor that was not made from the images"))
        if (later := Later.of(x)) is None:
            return x
        if later.value is None:
            later.value = self.view(later.compute(), x, self.rows(x), lambda g: (g,))
        return later.value

    def current(self, x: Tensor, what: str) -> Tensor:
        """The newest value of `x`, which may have been changed in place.

        Raises:
            Unsupported: what was changed in place is a view of it, or that of which it is one; names the operation `what`.
        """
        while id(x) in self._newer:
            _, x = self._newer[id(x)]
        memory = getattr(x, "memory", None)
        if memory is not None and x.version != memory.version:  # type: ignore[attr-defined]
            raise refusal(f"{what} of a tensor whose memory was changed in place by way of another", "changes of the tensor that is read")
        return x

    def change(self, x: Tensor, y: Tensor) -> Tensor:
        """Note that an operation in place gave `x` the value `y`, which was recorded. Gives x, whose readers get y from now on."""
        old = self.current(x, "a change in place")
        if old is self._images:
            raise refusal("a change of the images in place")
        _share(old, y)
        y.version = y.memory.version = y.memory.version + 1  # type: ignore[attr-defined]
        self._newer[id(old)] = old, y
        return x

    @staticmethod
    def rows(x: Tensor) -> int:
        """How many rows, places along the first axis, `x` has of each image: also where a worker's share is empty."""
        return getattr(x, "rows", 1)

    def weight(self, weight: Tensor, what: str) -> str:
        """The name of a weight that the operation `what` uses, which it may be once.

        Raises:
            Unsupported: it is not a parameter of the model, or was used before.
        """
        if not self.learns:
            return ""
        name = self._names.get(id(weight))
        if name is None:
            raise refusal(f"{what} with a weight that is not a parameter of the model")
        if name in self._used:
            raise refusal(f"a weight that is used twice, as '{name}' is")
        self._used.add(name)
        return name

    def leads_to_weights(self, x: Tensor) -> bool:
        """Whether anybody wants the gradient of `x`: it is not the images."""
        return x is not self._images

    def view(self, y: Tensor, x: Tensor, rows: int, backward: Backward) -> Tensor:
        """The same for a `y` that shares its memory with `x` in PyTorch and has so many rows of each image."""
        self.record(y, (x,), backward)
        y.rows = rows  # type: ignore[attr-defined]
        _share(x, y)
        return y

    def record(self, y: Tensor, inputs: tuple[Tensor, ...], backward: Backward) -> Tensor:
        """Note that `y` was made from `inputs`, and how its gradient gives theirs (None for bytes). Gives y."""
        if inputs and (rows := self.rows(inputs[0])) != 1:
            y.rows = rows  # type: ignore[attr-defined]
        if self.learns:
            self._steps.append((y, inputs, backward))
            self._values[id(y)] = y
        return y

    def wait(self, sums: BatchSums) -> None:
        """Leave sums over the batch for `add_up`."""
        self._waiting.append(sums)

    def walk_back(self, y: Tensor, gradient: Tensor) -> None:
        """From y's gradient to those before it, in the reverse of the order recorded; the gradients of one tensor are added."""
        gradients = {id(y): gradient}
        while self._steps:
            output, inputs, backward = self._steps.pop()
            if (g := gradients.pop(id(output), None)) is None:
                continue  # it took no part in y
            for x, d_x in zip(inputs, backward(g), strict=True):
                if d_x is not None:
                    gradients[id(x)] = gradients[id(x)] + d_x if id(x) in gradients else d_x

    def add_up(self, group: Group) -> None:
        """Compute the sums that wait, over all workers of the group: one maximum, one sum.

        Raises:
            Unsupported: a weight takes no part in the loss, so it has no gradient.
        """
        waiting, self._waiting = self._waiting, []  # they hold this tape, which would live on until Python's collector comes
        magnitudes = group.maximum(torch.stack([m for sums in waiting for m in sums.magnitudes]))
        chosen = grid.choose(magnitudes)
        scales, units = list(chosen.scale.unbind()), list(chosen.unit.unbind())
        dtype = torch.float64 if all(sums.fit_float64 for sums in waiting) else torch.int64
        mine = [part for sums in waiting for part in sums.integers(_take(scales, len(sums.magnitudes)))]
        total = group.total(torch.cat([part.flatten().to(dtype) for part in mine]))
        totals = list(torch.split(total, [part.numel() for part in mine]))
        for sums in waiting:
            sums.round(_take(totals, len(sums.magnitudes)), _take(units, len(sums.magnitudes)))
        if missing := [name for name in self._names.values() if name not in self.gradients]:
            raise refusal(f"a weight that takes no part in the loss, as '{missing[0]}' does not")


def _share(x: Tensor, y: Tensor) -> None:
    if getattr(x, "memory", None) is None:
        x.memory, x.version = Memory(), 0  # type: ignore[attr-defined]
    y.memory, y.version = x.memory, x.version  # type: ignore[attr-defined]


def _take(items: list[Tensor], count: int) -> list[Tensor]:
    taken, items[:count] = items[:count], []
    return taken
