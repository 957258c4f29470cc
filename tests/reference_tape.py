"""The forms of `exact-3` a second time (reference_forms.py): what is computed, the way back, and sums.

NumPy alone, written from docs/exact-numerics.md, sharing no line with pipeline/exact. A `Value` is made of images or of weights alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.reference import grid

F32, F64 = np.float32, np.float64
Array = np.ndarray
Given = Any
"""A Value, an array (a constant) or a number."""


class Tape:
    """What was computed, in order: with images, and of weights alone."""

    def __init__(self, images: int = 1, seed: int = 0, step: int = 0) -> None:
        self.images, self.seed, self.step, self.calls = images, seed, step, 0
        self.steps: dict[bool, list[tuple[Value, list[Value], Callable[[Array], Sequence[Array | None]]]]] = {True: [], False: []}

    def record(self, y: Array, inputs: Sequence[Value], back: Callable[[Array], Sequence[Array | None]]) -> Value:
        out = Value(self, y, any(v.images for v in inputs))
        self.steps[out.images].append((out, list(inputs), back))
        return out

    def back(self, *ends: tuple[Value, Array]) -> None:
        """Leave gradients in the values: those of uses with images, the last first, then those of what is of weights alone."""
        for y, g in ends:
            y.newest().gradient = g
        for of in (True, False):
            for out, inputs, back in reversed(self.steps[of]):
                if out.gradient is not None:
                    for v, d in zip(inputs, back(out.gradient), strict=True):
                        if d is not None:
                            v.gradient = d if v.gradient is None else v.gradient + d


class Value:
    """An array, and what it was made of."""

    def __init__(self, tape: Tape, array: Array, images: bool = False) -> None:
        self.tape, self.array, self.images = tape, array, images
        self.gradient: Array | None = None
        self.now: Value | None = None
        self.part: tuple[Value, Any] | None = None
        self.before_relu: Value | None = None
        self.read, self.passed = False, None

    def newest(self) -> Value:
        """What operations in place have made of it."""
        v = self
        while v.now is not None:
            v = v.now
        return v

    shape = property(lambda self: self.array.shape)

    def replace(self, new: Value) -> None:
        """Put what an operation in place has made into its place."""
        self.newest().now = new
        if self.part is not None:
            self.part[0][self.part[1]] = new


def of(*given: Given) -> list[Value]:
    """Values, as they are now; numbers and constants as float32, bytes of images as byte / 255."""
    tape = next(v.tape for v in given if isinstance(v, Value))
    values = [v.newest() if isinstance(v, Value) else Value(tape, np.asarray(v).astype(F32)) for v in given]
    for i, v in enumerate(values):
        v.read = True
        if v.array.dtype == np.uint8:
            values[i] = Value(tape, v.array.astype(F32) / F32(255), v.images)
    return values


# --- sums -------------------------------------------------------------------------------------------------------------


def tree(x: Array, *axes: int) -> Array:
    """Float64, without the axes."""
    x = np.array(x, F64)
    axes = tuple(sorted(axis % x.ndim for axis in axes))
    for axis in axes:
        rows = list(np.moveaxis(x, axis, 0))
        while len(rows) > 1:
            m = (len(rows) + 1) // 2
            rows = [rows[i] + rows[i + m] if i + m < len(rows) else rows[i] for i in range(m)]
        x = np.expand_dims(rows[0] if rows else np.zeros(x.shape[:axis] + x.shape[axis + 1 :]), axis)
    return x.squeeze(axes) if axes else x


def tree_over_batch(x: Array) -> Array:
    """Of axis 0, in pairs of neighbours."""
    rows = list(x)
    while len(rows) > 1:
        rows = [rows[i] + rows[i + 1] if i + 1 < len(rows) else rows[i] for i in range(0, len(rows), 2)]
    return np.asarray(rows[0])


def magnitude(x: Array, *axes: int) -> Array:
    """The largest over axes that stay, of size 1; at least 2^-40."""
    return np.asarray(np.maximum(F32(2.0**-40), np.abs(x).max(axes, keepdims=True, initial=0)))


def integers(x: Array, unit: Array) -> Array:
    """On a grid, float64."""
    return np.rint(x.astype(F64) / unit)


def times(sums: Array, unit: Array) -> Array:
    """Sums rounded to float32, times a unit."""
    return np.asarray(sums.astype(F32) * unit.astype(F32))


def spread(p: Array, v: Value, beside_images: bool) -> Array:
    """The gradient of an operand from its product with the gradient of the result."""
    shape = (1,) * (p.ndim - v.array.ndim) + v.shape
    axes = tuple(i for i in range(p.ndim) if shape[i] == 1 and (i < p.ndim - v.array.ndim or p.shape[i] != 1 or beside_images))
    if beside_images and not v.images:
        unit = grid(magnitude(p, *axes))
        return times(integers(p, unit).sum(axes, keepdims=True), unit).reshape(v.shape)
    return tree(p, *axes).astype(F32).reshape(v.shape) if axes else p


def moved(x: Given, move: Callable[[Array], Array]) -> Value:
    """By `move`, a function of NumPy's that moves numbers; other places get 0."""
    x = x.newest()
    x.read = True
    numbers = np.arange(x.array.size).reshape(x.shape)

    def back(g: Array) -> list[Array]:
        d = np.zeros(x.array.size, F32)
        d[move(numbers).reshape(-1)] = g.reshape(-1)
        return [d.reshape(x.shape)]

    return x.tape.record(move(x.array), (x,), back)


# --- sums of products -------------------------------------------------------------------------------------------------


def weighted(x: Given, weight: Given, bias: Given, forward: Any, d_x: Any, d_w: Any) -> Value:
    """Linear and conv2d, from their integer sums; x [N, ...], channels on axis 1 of the result."""
    x = x.newest()
    if not (bytes_ := x.array.dtype == np.uint8):
        (x,) = of(x)
    w, *b = of(weight, *([] if bias is None else [bias]))
    uw = grid(magnitude(w.array, *range(w.array.ndim)))
    u = np.ones((len(x.array), *[1] * (x.array.ndim - 1))) if bytes_ else grid(magnitude(x.array, *range(1, x.array.ndim)))
    xs, ws = integers(x.array, u), integers(w.array, uw)
    s = forward(xs, ws)
    a_channel = (1, -1, *[1] * (s.ndim - 2))
    y = s.astype(F32) / F32(255) * uw.reshape(-1)[0].astype(F32) if bytes_ else times(s, u * uw)
    if b:
        y = y + b[0].array.reshape(a_channel)

    def back(g: Array) -> list[Array | None]:
        a = magnitude(g, *range(2, g.ndim))
        ug = grid(a.max(1, keepdims=True, initial=2.0**-40))
        uh, ub = (grid(m.max(0, keepdims=True, initial=2.0**-98)) for m in (a * u.astype(F32), a))
        of_w = d_w(integers(g, uh / u), xs).astype(F32)
        per_channel = uh.astype(F32).reshape(-1, *[1] * (w.array.ndim - 1))
        of_b = times(integers(g, ub).sum((0, *range(2, g.ndim))), ub.reshape(-1))
        return [None if bytes_ else times(d_x(integers(g, ug), ws), ug * uw), (of_w / F32(255) if bytes_ else of_w) * per_channel,
                *([of_b] if b else [])]  # fmt: skip

    return x.tape.record(y, (x, w, *b), back)


def linear(x: Given, weight: Given, bias: Given = None) -> Value:
    if len(x.shape) == 2:
        return weighted(x, weight, bias, lambda x, w: x @ w.T, lambda g, w: g @ w, lambda h, x: h.T @ x)
    shape = x.shape[:-1]
    rows = moved(x, lambda a: a.reshape(math.prod(shape), a.shape[-1]))
    return moved(linear(rows, weight, bias), lambda a: a.reshape(*shape, a.shape[-1]))


def conv2d(x: Given, weight: Given, bias: Given = None, stride: Any = (1, 1), padding: Any = (0, 0), dilation: Any = (1, 1),
           groups: int = 1) -> Value:  # fmt: skip
    (o, i, h, w), (n, _, height, width) = weight.shape, x.shape
    stride, dilation = (v if isinstance(v, tuple) else (v, v) for v in (stride, dilation))
    reach = (dilation[0] * (h - 1), dilation[1] * (w - 1))
    padding = {"same": (reach[0] // 2, reach[1] // 2), "valid": (0, 0)}[padding] if isinstance(padding, str) else padding
    p = padding if isinstance(padding, tuple) else (padding, padding)
    rows, columns = (height + 2 * p[0] - reach[0] - 1) // stride[0] + 1, (width + 2 * p[1] - reach[1] - 1) // stride[1] + 1

    def places(padded: Array) -> list[tuple[int, int, Array]]:
        """What each place of the kernel meets: [N, G, I, rows, columns] views."""
        grouped = padded.reshape(n, groups, i, *padded.shape[2:])
        return [
            (a, b, grouped[..., a * dilation[0] :: stride[0], b * dilation[1] :: stride[1]][..., :rows, :columns])
            for a in range(h) for b in range(w)
        ]  # fmt: skip

    def around(x: Array) -> Array:
        return np.pad(x, ((0, 0), (0, 0), (p[0], p[0]), (p[1], p[1])))

    def forward(x: Array, ws: Array) -> Array:
        ws = ws.reshape(groups, -1, i, h, w)
        return sum(np.einsum("ngirc,goi->ngorc", v, ws[..., a, b]) for a, b, v in places(around(x))).reshape(n, o, rows, columns)

    def d_x(g: Array, ws: Array) -> Array:
        g, ws, d = g.reshape(n, groups, -1, rows, columns), ws.reshape(groups, -1, i, h, w), around(np.zeros(x.shape))
        for a, b, v in places(d):
            v += np.einsum("ngorc,goi->ngirc", g, ws[..., a, b])
        return d[:, :, p[0] : p[0] + height, p[1] : p[1] + width]

    def d_w(g: Array, xs: Array) -> Array:
        g = g.reshape(n, groups, -1, rows, columns)
        of_places = [np.einsum("ngorc,ngirc->goi", g, v) for _, _, v in places(around(xs))]
        return np.stack(of_places, -1).reshape(weight.shape)

    return weighted(x, weight, bias, forward, d_x, d_w)


def matmul(a: Given, b: Given) -> Value:
    if len(b.shape) == 2 and a.images and not b.images:
        return linear(a, b.transpose(0, 1))
    a, b = of(a, b)
    ua, ub = grid(magnitude(a.array, -1, -2)), grid(magnitude(b.array, -1, -2))
    ia, ib = integers(a.array, ua), integers(b.array, ub)

    def back(g: Array) -> list[Array]:
        ug = grid(magnitude(g, -1, -2))
        ig = integers(g, ug)
        both = times(ig @ ib.swapaxes(-1, -2), ug * ub), times(ia.swapaxes(-1, -2) @ ig, ua * ug)
        return [spread(d, v, False) for d, v in zip(both, (a, b), strict=True)]

    return a.tape.record(times(ia @ ib, ua * ub), (a, b), back)
