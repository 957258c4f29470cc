"""A record of one pass through a network: what was computed, in order, so that gradients can be walked back.

Three kinds of tensors pass: what is made of the images, what is made of weights alone, and constants. A tensor carries what the tape
knows of it (`Value`). Of several workers, sums over the batch (gradients of weights, the mean loss) wait until the walk is through: then
one maximum and one sum over the workers serve them all. At last what was computed of weights alone is walked back, by every worker alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.exact.errors import refusal
from pipeline.exact.group import ALONE, Group
from pipeline.exact.later import Later
from pipeline.exact.sums import Sums, added_up
from pipeline.exact.values import Memory, Value, row

Gradient = Tensor | Sums | None
Backward = Callable[[Tensor], Sequence[Gradient]]
"""From the gradient of what a form gave, that of each of its inputs. That of a weight in a pass over images is a Sums, or is a tensor where
it is of the whole batch already."""


class Tape:
    """What a pass records. Without weights it is one for inference, which keeps nothing for a way back.

    Args:
        images: uint8 or float32 [N, ...], this worker's share of a batch.
        weights: float32, by name.
        batch_images: images of the whole batch.
        group: the workers that hold the batch together.
        draws: what masks are drawn from (masks.py); None where nothing may be drawn.
    """

    def __init__(
        self, images: Tensor, weights: Mapping[str, Tensor] | None = None, batch_images: int = 0, group: Group = ALONE, draws: Any = None
    ) -> None:
        self.learns, self.batch_images, self.images, self.group, self.draws = weights is not None, batch_images, len(images), group, draws
        self._token = object()
        self._weights = {id(weight): Value(self._token, False, weight.requires_grad, Memory(of_weight=True), name)
                         for name, weight in (weights or {}).items()}  # fmt: skip
        self._over_images: list[tuple[Value, list[Value | None], Backward]] = []
        self._over_weights: list[tuple[Value, list[Value | None], Backward]] = []
        self._waiting: list[tuple[Sums | Tensor, list[Value | None]]] = []
        self.called = 0
        """How often a mask was drawn in this pass."""
        value = images.exact = Value(self._token, True, False, Memory())  # type: ignore[attr-defined]
        value.elements, value.bytes = math.prod(images.shape[1:]), images.dtype == torch.uint8

    def value(self, x: Tensor) -> Value | None:
        """What the tape knows of `x`; None of a constant."""
        value: Value | None = getattr(x, "exact", None)
        if value is None or value.token is not self._token:
            return self._weights.get(id(x))
        return value

    def is_of_another_pass(self, x: Tensor) -> bool:
        """Whether `x` was computed before this pass: what it then was made of is not known any more."""
        return (value := getattr(x, "exact", None)) is not None and value.token is not self._token

    def input(self, x: Tensor, what: str) -> Tensor:
        """The tensor to compute with for `x`: what operations in place have made of it, computed if it was not yet.

        Raises Unsupported, which names the operation `what`, if it shows memory that was changed in place through another tensor.
        """
        value: Value | None = getattr(x, "exact", None)
        if value is None or value.token is not self._token:
            return x
        while value.replaced is not None:
            x = value.replaced
            value = x.exact  # type: ignore[attr-defined,union-attr]
        if value.version != value.memory.version:
            raise refusal(f"{what} of a tensor whose memory another operation has changed in place", "the new tensor")
        if (later := Later.of(x)) is None:
            return x
        if later.value is None:
            later.value = self.record(later.compute(), (x,), lambda g: (g,), shares=x)
        return later.value

    def learns_from(self, x: Tensor) -> bool:
        """Whether anybody wants the gradient of `x`."""
        return self.learns and (value := self.value(x)) is not None and value.learns

    def is_bytes(self, x: Tensor) -> bool:
        """Whether `x` is pixels, which stand for byte / 255, and not uint8 of other numbers."""
        return (value := self.value(x)) is not None and value.bytes

    def of_images(self, *tensors: Tensor) -> bool:
        """Whether one of the tensors was made from the images."""
        return any((value := self.value(x)) is not None and value.of_images for x in tensors)

    def record(
        self, y: Tensor, inputs: Sequence[Tensor], backward: Backward, shares: Tensor | None = None, axis: int | None = -1
    ) -> Tensor:
        """Note that `y` was made from `inputs`, and how its gradient gives theirs. Gives y.

        `shares` is the input whose memory y may show; `axis` is y's axis of the images where values only moved, else the inputs' own.
        """
        values = [self.value(x) for x in inputs]
        known = [value for value in values if value is not None]
        if not known:
            return y
        of_images, learns = any(value.of_images for value in known), self.learns and any(value.learns for value in known)
        shared = None if shares is None else self.value(shares)
        value = Value(self._token, of_images, learns, Memory() if shared is None else shared.memory)
        y.exact = value  # type: ignore[attr-defined]
        value.spread = shared is not None and shared.spread
        value.bytes = y.dtype == torch.uint8 and any(each.bytes for each in known)
        if of_images:
            first = next(each for each in known if each.of_images)
            value.axis = first.axis if axis == -1 else axis
            if self.images:
                value.elements = y.numel() // self.images
            elif axis != -1 or y.shape == next(x for x, each in zip(inputs, values, strict=True) if each is first).shape:
                value.elements, numbers = first.elements, row(y, value.axis)
                value.rows = first.elements // numbers if numbers else 1
            else:  # as many rows of each image as the inputs have: what is without numbers does not tell
                told = [each.rows for x, each in zip(inputs, values, strict=True) if each and each.of_images and row(x, each.axis)]
                value.rows = (told or [1])[0]
                value.elements = value.rows * row(y, value.axis)
        if learns:
            given = [each and (each.of or each) for each in values]
            (self._over_images if of_images else self._over_weights).append((value, given, backward))
        return y

    def second_name(self, x: Tensor) -> Tensor:
        """A tensor that is `x`, but where one of the two is changed in place: then the other is not read any more."""
        value, y = self.value(x), x.view_as(x)
        if value is None or not value.of_images:
            return x  # no weight may be changed in place
        second = y.exact = Value(self._token, True, value.learns, value.memory)  # type: ignore[attr-defined]
        second.axis, second.elements, second.rows, second.bytes = value.axis, value.elements, value.rows, value.bytes
        second.spread, second.of, second.version = value.spread, value.of or value, value.version
        return y

    def replace(self, x: Tensor, y: Tensor) -> Tensor:
        """Note that an operation in place has made `y` of `x`: who reads x reads y, and no other view of that memory is read. Gives y.

        Raises Unsupported if x is a weight, or not of this pass.
        """
        value = getattr(x, "exact", None)
        if value is None or value.token is not self._token or value.memory.of_weight:
            raise refusal("an operation in place on a weight or a constant", "its plain form")
        before = [value]
        while value.replaced is not None:
            x = value.replaced
            before.append(value := x.exact)  # type: ignore[attr-defined]
        if value.spread:  # PyTorch may change all that are one in memory
            raise refusal("an operation in place on what was expanded", "clone() first")
        if y.shape != x.shape:
            raise RuntimeError(f"an operation in place gives {list(y.shape)} for what is {list(x.shape)}")
        if y is x:
            return y
        value.memory.version += 1
        new: Value = y.exact  # type: ignore[attr-defined]
        new.memory, new.version = value.memory, value.memory.version
        for each in before:  # so that nothing holds what was between them
            each.replaced = y
        return y

    def newest(self, x: Tensor) -> Tensor:
        """What operations in place have made of `x`, whoever has changed its memory since."""
        while (value := getattr(x, "exact", None)) is not None and value.replaced is not None:
            x = value.replaced
        self.renew(x)
        return x

    def renew(self, x: Tensor) -> None:
        """Note that `x` shows its memory as it is now."""
        if (value := self.value(x)) is not None:
            value.version = value.memory.version

    def show(self, y: Tensor, x: Tensor, index: Any) -> None:
        """Note that `y` is x[index]."""
        y.exact.part_of = (x, index)  # type: ignore[attr-defined]

    def part_of(self, x: Tensor) -> tuple[Tensor, Any] | None:
        """The tensor that `x` is a part of, and its index there, if it is one."""
        return None if (value := self.value(x)) is None else value.part_of

    def spread(self, y: Tensor, axis: int) -> None:
        """Note that `y`, the last that was recorded and made of weights alone, has the same for each image, along `axis`."""
        value: Value = y.exact  # type: ignore[attr-defined]
        value.of_images, value.axis, value.elements = True, axis, row(y, axis)
        if value.learns:
            self._over_images.append(self._over_weights.pop())

    def alike(self, y: Tensor, axis: int | None, like: Tensor | None = None) -> Tensor:
        """Note that `y`, made of constants, has the same numbers for each image, along `axis`, as many as `like`. Gives y."""
        value = y.exact = Value(self._token, True, False, Memory())  # type: ignore[attr-defined]
        value.axis, value.elements = axis, row(y, axis) if like is None else self.elements(like)
        return y

    def rows(self, x: Tensor) -> int:
        """How many rows `x` [rows, ...] has for the whole batch, over all workers."""
        value = self.value(x)
        return len(x) if value is None or not value.of_images else self.batch_images * value.elements // max(1, math.prod(x.shape[1:]))

    def elements(self, x: Tensor) -> int:
        """Numbers of one image in `x`, also where this worker has no images."""
        return x.numel() if (value := self.value(x)) is None or not value.of_images else value.elements

    def axis(self, x: Tensor) -> int | None:
        """The images' axis of what was made from them. Raises Unsupported where that cannot be, as a form was wrong about it."""
        value = self.value(x)
        axis = None if value is None or not value.of_images else value.axis
        if axis is not None and self.images and (axis >= x.dim() or x.shape[axis] % self.images):
            raise refusal(f"what has its images along axis {axis} of {list(x.shape)}, which is not one of {self.images} images")
        return axis

    def lay(self, y: Tensor, axis: int | None) -> Tensor:
        """Note which axis of `y`, just recorded, is that of the images. Gives y."""
        if (value := self.value(y)) is not None and value.of_images:
            if axis != value.axis and not self.images:
                value.elements = value.rows * row(y, axis)
            value.axis = axis
        return y

    def check_within_images(self, x: Tensor, dims: Iterable[int], what: str) -> None:
        """Raise Unsupported if one of the axes of `x` that `what` works along is that of the images, or could be, where they are spread."""
        if self.of_images(x) and (axis := self.axis(x)) in (None, *(dim % max(1, x.dim()) for dim in dims)):
            raise refusal(f"{what} {'where the images are spread' if axis is None else 'over the images'}", "the axes of an image")

    def check_images_first(self, x: Tensor, what: str) -> None:
        """Raise Unsupported if `x` was made from the images and its first axis is not theirs."""
        if self.of_images(x) and self.axis(x) != 0:
            raise refusal(f"{what} where the images are not the first axis, and so over the images", "the images first")

    def check_alike(self, what: str, *operands: Any) -> None:
        """Raise Unsupported if an image's part of what `what` makes would depend on its place in the batch, or on other images.

        Operands are aligned at their last axes. What is made from the images has one axis of theirs; others have one value along it.
        """
        made = [x for x in operands if isinstance(x, Tensor) and self.of_images(x)]
        axes = {None if (axis := self.axis(x)) is None else axis - x.dim() for x in made}
        if len(axes) > 1:
            raise refusal(f"{what} where the images are along another axis of each operand", "one axis for all")
        for x in operands if made else ():
            if isinstance(x, Tensor) and x.numel() > 1 and not self.of_images(x):
                (axis,) = axes
                if axis is None or (axis >= -x.dim() and x.shape[axis] != 1):
                    raise refusal(
                        f"{what} with {list(x.shape)} numbers of which each place in the batch has its own",
                        "numbers for all images alike, or made from them",
                    )

    def wait(self, sums: Sums) -> None:
        """Leave sums over the batch for `add_up`."""
        self._waiting.append((sums, []))

    def walk_back(self, gradients: Sequence[tuple[Tensor, Tensor]]) -> None:
        """From tensors and their gradients to those before them, in the reverse of the order recorded; those of one tensor are added."""
        for y, gradient in gradients:
            if (value := self.value(y)) is not None:
                (value.of or value).add(gradient)
        self._walk(self._over_images)

    def _walk(self, steps: list[tuple[Value, list[Value | None], Backward]]) -> None:
        while steps:
            output, inputs, backward = steps.pop()
            g, output.gradient = output.gradient, None
            if g is None:
                continue  # it took no part
            found: dict[int, tuple[Sums | Tensor, list[Value | None]]] = {}
            for value, given in zip(inputs, backward(g), strict=True):
                if given is None:
                    continue
                if not isinstance(given, Tensor) or (output.of_images and value is not None and value.learns and not value.of_images):
                    found.setdefault(id(given), (given, []))[1].append(value)
                elif value is not None and value.learns:
                    value.add(given)
            if output.of_images and self.group.count > 1:
                self._waiting += found.values()
            else:
                _resolve(list(found.values()), ALONE)

    def add_up(self) -> dict[str, Tensor | None]:
        """Compute the sums that wait, over all workers of the group: one maximum, one sum. Then walk back what is of weights alone.

        Gives the gradients of the weights, by name; None for one that takes no part in the loss.
        """
        waiting, self._waiting = self._waiting, []
        _resolve(waiting, self.group)
        self._walk(self._over_weights)
        return {value.name: value.gradient for value in self._weights.values()}


def _resolve(waiting: list[tuple[Sums | Tensor, list[Value | None]]], group: Group) -> None:
    """Exchange the sums that wait and give their values the gradients, in their order."""
    rounded = iter(added_up([each for each, _ in waiting if not isinstance(each, Tensor)], group))
    for each, values in waiting:
        gradients = [each] * len(values) if isinstance(each, Tensor) else next(rounded)
        for value, gradient in zip(values, gradients, strict=False):
            if value is not None and value.learns:
                value.add(gradient)
