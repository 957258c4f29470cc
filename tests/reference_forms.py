"""The forms of `exact-3` a second time: NumPy alone, written from docs/exact-numerics.md, sharing no line with pipeline/exact.

Functions have torch's names and arguments. A `Value` is made of images or of weights alone; a `Tape` walks back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.reference import SQRT2, draws, exp, grid, log

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
        """What was made of inputs."""
        out = Value(self, y, any(v.images for v in inputs))
        self.steps[out.images].append((out, list(inputs), back))
        return out

    def back(self, y: Value, g: Array) -> None:
        """Leave gradients in the values: those of uses with images, the last first, then those of what is of weights alone."""
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
    __add__ = lambda self, o: add(self, o)  # noqa: E731
    __radd__ = lambda self, o: add(o, self)  # noqa: E731
    __sub__ = lambda self, o: sub(self, o)  # noqa: E731
    __rsub__ = lambda self, o: sub(o, self)  # noqa: E731
    __mul__ = __rmul__ = lambda self, o: mul(self, o)
    __truediv__ = lambda self, o: div(self, o)  # noqa: E731
    __rtruediv__ = lambda self, o: div(o, self)  # noqa: E731
    __matmul__ = lambda self, o: matmul(self, o)  # noqa: E731
    __pow__ = lambda self, k: power(self, k)  # noqa: E731
    __neg__ = lambda self: mul(self, -1.0)  # noqa: E731
    reshape = view = lambda self, *shape: moved(self, lambda a: a.reshape(shape))
    permute = lambda self, *order: moved(self, lambda a: a.transpose(order))  # noqa: E731
    transpose = lambda self, i, j: moved(self, lambda a: a.swapaxes(i, j))  # noqa: E731
    flatten = lambda self, first: moved(self, lambda a: a.reshape(*a.shape[:first], -1))  # noqa: E731
    chunk = lambda self, n, axis=0: chunk(self, n, axis)  # noqa: E731

    def __iadd__(self, other: Given) -> Value:
        self._replace(add(self, other))
        return self

    def __getitem__(self, index: Any) -> Value:
        y = gathered(self, index) if isinstance(index, Array) else moved(self, lambda a: a[index])
        y.part = (self, index)
        return y

    def __setitem__(self, index: Any, value: Given) -> None:
        whole, v = of(self, value)
        y = whole.array.copy()
        y[index] = v.array

        def back(g: Array) -> list[Array]:
            rest = g.copy()
            rest[index] = 0
            return [rest, spread(g[index], v, whole.images)]

        self._replace(whole.tape.record(y, (whole, v), back))

    def _replace(self, new: Value) -> None:
        self.newest().now = new
        if self.part is not None:
            self.part[0][self.part[1]] = new

    def expand(self, *shape: Any) -> Value:
        """Sizes; -1 for one's own. Over the images where the first is theirs."""
        (x,) = of(self)
        own = (1,) * (len(shape) - x.array.ndim) + x.shape
        y = np.broadcast_to(x.array, [own[i] if s == -1 else s for i, s in enumerate(shape)])
        over = not x.images and shape[0] not in (-1, own[0])
        out = Value(x.tape, y, over or x.images)
        x.tape.steps[out.images].append((out, [x], lambda g: [spread(g, x, out.images)]))
        return out


def of(*given: Given) -> list[Value]:
    """Values, as they are now; numbers and constants as float32, bytes of images as byte / 255."""
    tape = next(v.tape for v in given if isinstance(v, Value))
    values = [v.newest() if isinstance(v, Value) else Value(tape, np.asarray(v).astype(F32)) for v in given]
    for i, v in enumerate(values):
        v.read = True
        if v.array.dtype == np.uint8:
            values[i] = Value(tape, v.array.astype(F32) / F32(255), v.images)
    return values


# --- sums ------------------------------------------------------------------------------------------------------------


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


# --- sums of products ------------------------------------------------------------------------------------------------


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
        ug = grid(a.max(1, keepdims=True))
        uh, ub = grid((a * u.astype(F32)).max(0, keepdims=True)), grid(a.max(0, keepdims=True))
        of_w = d_w(integers(g, uh / u), xs).astype(F32)
        per_channel = uh.astype(F32).reshape(-1, *[1] * (w.array.ndim - 1))
        of_b = times(integers(g, ub).sum((0, *range(2, g.ndim))), ub.reshape(-1))
        return [None if bytes_ else times(d_x(integers(g, ug), ws), ug * uw), (of_w / F32(255) if bytes_ else of_w) * per_channel,
                *([of_b] if b else [])]  # fmt: skip

    return x.tape.record(y, (x, w, *b), back)


def linear(x: Given, weight: Given, bias: Given = None) -> Value:
    """On rows."""
    if len(x.shape) == 2:
        return weighted(x, weight, bias, lambda x, w: x @ w.T, lambda g, w: g @ w, lambda h, x: h.T @ x)
    shape = x.shape[:-1]
    rows = moved(x, lambda a: a.reshape(-1, a.shape[-1]))
    return moved(linear(rows, weight, bias), lambda a: a.reshape(*shape, -1))


def conv2d(x: Given, weight: Given, bias: Given = None, stride: Any = (1, 1), padding: Any = (0, 0), dilation: Any = (1, 1),
           groups: int = 1) -> Value:  # fmt: skip
    """A product for each place of the kernel."""
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
    """Of activations; with a weight [I, O], linear."""
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


# --- elementwise -----------------------------------------------------------------------------------------------------


def elementwise(inputs: Sequence[Value], y: Array, products: Callable[[Array], Sequence[Array]]) -> Value:
    """Of products with the gradient, of y's shape."""
    images = any(v.images for v in inputs)
    return inputs[0].tape.record(
        np.asarray(y), inputs, lambda g: [spread(np.asarray(p), v, images) for p, v in zip(products(g), inputs, strict=True)]
    )


def binary(compute: Callable[..., Array], products: Callable[..., Sequence[Array]]) -> Any:
    """A form of two operands."""

    def form(a: Given, b: Given) -> Value:
        a, b = of(a, b)
        y = compute(a.array, b.array)
        return elementwise((a, b), y, lambda g: products(g, a.array, b.array, y))

    return form


def unary(compute: Callable[..., Array], product: Callable[..., Array]) -> Any:
    """A form of one operand, and numbers rounded to float32."""

    def form(x: Given, *numbers: float) -> Value:
        (x,) = of(x)
        n = [F32(v) for v in numbers]
        y = np.asarray(compute(x.array, *n))
        return x.tape.record(y, (x,), lambda g: [np.asarray(product(g, x.array, y, *n))])

    return form


def in_f64(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Rounded once."""
    return lambda x: function(x.astype(F64)).astype(F32)


def S(x: Array) -> Array:
    """Sigmoid."""
    e = exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1 + e)


def T(x: Array) -> Array:
    """Tanh."""
    e = exp(-2 * np.abs(x))
    return np.where(x < 0, e - 1, 1 - e) / (1 + e)


QS = """
    -0x1.069173d27ac75p-24 0x1.f87531d0cf2b2p-24 0x1.4bb1238182ad4p-22 -0x1.0d77edb3d1e43p-20 -0x1.14e9c93055d42p-24
    0x1.10dc98a86cb11p-18 -0x1.7589e8849856bp-18 -0x1.1e7ef043bb828p-17 0x1.2f72130a82cf9p-15 -0x1.207c2c059d64dp-17
    -0x1.5bab208ead748p-13 0x1.b6fcf061dc68bp-13 0x1.9517f299820dcp-11 -0x1.a89eb4c7edc43p-10 -0x1.606e41b952dbcp-8
    0x1.2a88e61a3bd76p-7 0x1.1e2deea6cbc8ep-4 0x1.5fd386754c4a5p-3 0x1.058671b52c776p-2
"""
Q = [float.fromhex(q) for q in QS.split()]


def horner(x: Array, coefficients: Sequence[float]) -> Array:
    """From the highest power."""
    y = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        y = y * x
        y = y + c
    return y


def P(x: Array) -> Array:
    """The normal distribution."""
    a = np.abs(x) * (SQRT2 / 2)
    t = 1 / (a * 0.5 + 1)
    tail = (exp(-(a * a)) * t) * horner((t + t) - 1, Q)
    return np.where(x < 0, tail, 1 - tail)


def log_of(x: Array) -> Array:
    """The form's."""
    usual = (x > 0) & (x < np.inf)
    return np.where(usual, log(np.where(usual, x, 1)), np.where(x == 0, -np.inf, np.where(x == np.inf, np.inf, np.nan)))


add = binary(lambda a, b: a + b, lambda g, a, b, y: (g, g))
sub = binary(lambda a, b: a - b, lambda g, a, b, y: (g, -g))
mul = binary(lambda a, b: a * b, lambda g, a, b, y: (g * b, g * a))
div = binary(lambda a, b: a / (b + F32(0)), lambda g, a, b, y: (g / (b + F32(0)), -((g * y) / (b + F32(0)))))
maximum = binary(np.maximum, lambda g, a, b, y: (g * (a >= b), g * (b > a)))
minimum = binary(np.minimum, lambda g, a, b, y: (g * (a <= b), g * (b < a)))
neg = unary(lambda x: -x, lambda g, x, y: -g)
square = unary(lambda x: x * x, lambda g, x, y: g * (x + x))
sqrt = unary(np.sqrt, lambda g, x, y: g / ((y + y) + F32(0)))
abs_ = unary(np.abs, lambda g, x, y: g * np.sign(x))
exp_ = unary(in_f64(lambda x: exp(np.clip(x, -110, 100), -110.0)), lambda g, x, y: g * y)
log_ = unary(in_f64(log_of), lambda g, x, y: g / (x + F32(0)))
clamp = unary(lambda x, low, high: np.minimum(np.maximum(x, low), high),
              lambda g, x, y, low, high: np.where((low <= x) & (x <= high), g, F32(0)))  # fmt: skip
hardtanh = unary(lambda x, low, high: np.minimum(np.maximum(x, low), high),
                 lambda g, x, y, low, high: np.where((low < x) & (x < high), g, F32(0)))  # fmt: skip
leaky_relu = unary(lambda x, s: np.where(x > 0, x, x * s), lambda g, x, y, s: np.where(x > 0, g, g * s))
sigmoid = unary(in_f64(S), lambda g, x, y: g * (y * (1 - y)))
tanh = unary(in_f64(T), lambda g, x, y: g * (1 - y * y))
softplus = unary(in_f64(lambda x: np.maximum(x, 0) + log(1 + exp(-np.abs(x)))), lambda g, x, y: g * in_f64(S)(x))
gelu = unary(lambda x: x * in_f64(P)(x),
             lambda g, x, y: g * in_f64(lambda x: P(x) + x * (exp((x * x) * -0.5) * float.fromhex("0x1.9884533d43651p-2")))(x))  # fmt: skip


def silu(x: Given) -> Value:
    """X times sigmoid."""
    return unary(lambda x: x * in_f64(S)(x), lambda g, x, y: g * (in_f64(S)(x) * (1 + x * (1 - in_f64(S)(x)))))(x)


def elu(x: Given, alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0) -> Value:
    """And its kin."""
    return unary(
        lambda x, b, scale, rate: np.where(x > 0, x * scale, in_f64(lambda x: exp(x) - 1)(np.minimum(x, F32(0)) * rate) * b),
        lambda g, x, y, b, scale, rate: np.where(x > 0, g * scale, (g * rate) * (y + b)),
    )(x, alpha * scale, scale, rate)


def celu(x: Given, alpha: float = 1.0) -> Value:
    """Elu whose slope is 1 at 0."""
    return elu(x, alpha, 1.0, 1 / alpha)


def selu(x: Given) -> Value:
    """Elu with two constants."""
    return elu(x, float.fromhex("0x1.ac5afad782cf1p+0"), float.fromhex("0x1.0cfabd6a91132p+0"))


def relu(x: Given) -> Value:
    """0 or x."""
    (x,) = of(x)
    y = x.tape.record(np.where(x.array <= 0, F32(0), x.array), (x,), lambda g: [g if g is y.passed else np.where(x.array <= 0, F32(0), g)])
    y.before_relu = x
    return y


def relu6(x: Given) -> Value:
    """From 0 to 6."""
    return hardtanh(x, 0, 6)


def hardsigmoid(x: Given) -> Value:
    """Three calls."""
    return relu6(x + 3) / 6


def hardswish(x: Given) -> Value:
    """Four calls."""
    return (x * relu6(x + 3)) / 6


def mish(x: Given) -> Value:
    """Three calls."""
    return x * tanh(softplus(x))


def prelu(x: Given, weight: Given) -> Value:
    """X, or its product with the weight."""
    w = weight if weight.shape == (1,) else moved(weight, lambda a: a.reshape(-1, *[1] * (len(x.shape) - 2)))
    return where(of(x)[0].array > 0, x, x * w)


def power(x: Given, k: int) -> Value:
    """By multiplications."""
    y = x
    for _ in range(k - 1):
        y = y * x
    return y


def where(c: Array, a: Given, b: Given) -> Value:
    """Nothing rounds."""
    a, b = of(a, b)
    return elementwise((a, b), np.where(c, a.array, b.array), lambda g: (np.where(c, g, F32(0)), np.where(c, F32(0), g)))


def masked_fill(x: Given, c: Array, value: float) -> Value:
    """A number in places."""
    return where(c, F32(value), x)


# --- norms, softmax, means -------------------------------------------------------------------------------------------


def batch_norm(x: Given, running_mean: Array | None, running_var: Array | None, weight: Given = None, bias: Given = None,
               training: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> Value:  # fmt: skip
    """Running statistics change in place."""
    x, *affine = of(x, *(v for v in (weight, bias) if v is not None))
    channels = (1, -1, *[1] * (x.array.ndim - 2))
    n = F64(x.array.size // x.shape[1])

    def per_channel(values: Array) -> Array:
        s = tree(values, *range(2, values.ndim))
        return tree_over_batch(tree(s.reshape(x.tape.images, -1, s.shape[1]), 1))

    def spread_out(values: Array) -> Array:
        return values.astype(F32).reshape(channels)

    x64 = x.array.astype(F64)
    if training:
        mean = per_channel(x64) / n
        var = np.maximum(per_channel(x64 * x64) / n - mean * mean, 0)
        if running_mean is not None and running_var is not None:
            old, new = F32(1 - momentum), F32(momentum)
            running_mean[:] = running_mean * old + mean.astype(F32) * new
            running_var[:] = running_var * old + (var * (n / (n - 1))).astype(F32) * new
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, var = running_mean.astype(F64), running_var.astype(F64)
    inv = 1 / np.sqrt(var + eps)
    a = inv if weight is None else affine[0].array.astype(F64) * inv
    b = -(mean * a) if bias is None else affine[-1].array.astype(F64) - mean * a

    def back(g: Array) -> list[Array]:
        s0, s1 = per_channel(g.astype(F64)), per_channel(g.astype(F64) * x64)
        sh = (s1 - mean * s0) * inv
        q = (a * inv) * (sh / n)
        d_x = g * spread_out(a)
        if training:
            d_x = (x.array * spread_out(-q) + spread_out(q * mean - a * (s0 / n))) + d_x
        return [d_x, *([] if weight is None else [sh.astype(F32)]), *([] if bias is None else [s0.astype(F32)])]

    return x.tape.record(x.array * spread_out(a) + spread_out(b), (x, *affine), back)


def normalised(x: Value, axes: int) -> Callable[[float], Value]:
    """Over the last axes."""

    def with_eps(eps: float) -> Value:
        last = tuple(range(x.array.ndim - axes, x.array.ndim))
        n = F64(math.prod(x.shape[i] for i in last))

        def mean(values: Array) -> Array:
            return np.expand_dims(tree(values, *last) / n, last)

        d = x.array.astype(F64) - mean(x.array)
        inv = 1 / np.sqrt(mean(d * d) + eps)
        y = (d * inv).astype(F32)

        def back(g: Array) -> list[Array]:
            g, of_y = g.astype(F64), y.astype(F64)
            return [(((g - mean(g)) - of_y * mean(g * of_y)) * inv).astype(F32)]

        return x.tape.record(y, (x,), back)

    return with_eps


def affine(y: Value, weight: Given, bias: Given) -> Value:
    """The elementwise forms."""
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def layer_norm(x: Given, shape: Sequence[int], weight: Given = None, bias: Given = None, eps: float = 1e-5) -> Value:
    """Over the last axes."""
    return affine(normalised(of(x)[0], len(shape))(eps), weight, bias)


def group_norm(x: Given, groups: int, weight: Given = None, bias: Given = None, eps: float = 1e-5) -> Value:
    """Over groups of channels."""
    (x,) = of(x)
    parted = moved(x, lambda a: a.reshape(a.shape[0], groups, a.shape[1] // groups, *a.shape[2:]))
    y = moved(normalised(parted, parted.array.ndim - 2)(eps), lambda a: a.reshape(x.shape))
    first = [None if v is None else moved(v, lambda a: a.reshape(-1, *[1] * (x.array.ndim - 2))) for v in (weight, bias)]
    return affine(y, *first)


def instance_norm(x: Given, mean: None = None, var: None = None, weight: Given = None, bias: Given = None, eps: float = 1e-5) -> Value:
    """A group a channel."""
    return group_norm(x, x.shape[1], weight, bias, eps)


def softmax(x: Given, axis: int) -> Value:
    """Along one axis."""
    (x,) = of(x)
    z = x.array.astype(F64)
    e = exp(z - z.max(axis, keepdims=True))
    y = (e / np.expand_dims(tree(e, axis), axis)).astype(F32)

    def back(g: Array) -> list[Array]:
        g, p = g.astype(F64), y.astype(F64)
        return [((g - np.expand_dims(tree(g * p, axis), axis)) * p).astype(F32)]

    return x.tape.record(y, (x,), back)


def log_softmax(x: Given, axis: int) -> Value:
    """Along one axis."""
    (x,) = of(x)
    z = x.array.astype(F64)
    z = z - z.max(axis, keepdims=True)
    e = exp(z)
    t = np.expand_dims(tree(e, axis), axis)
    return x.tape.record((z - log(t)).astype(F32), (x,), lambda g: [
        (g.astype(F64) - (e / t) * np.expand_dims(tree(g, axis), axis)).astype(F32)])  # fmt: skip


def reduced(x: Given, axes: Any, keepdim: bool, mean: bool) -> Value:
    """Sum and mean."""
    (x,) = of(x)
    axes = tuple(axis % x.array.ndim for axis in (axes if isinstance(axes, tuple) else (axes,)))
    n = math.prod(x.shape[i] for i in axes) if mean else 1
    y = (tree(x.array, *axes) / F64(n)).astype(F32)
    kept = [1 if i in axes else size for i, size in enumerate(x.shape)]
    return x.tape.record(y.reshape(kept) if keepdim else y, (x,), lambda g: [np.broadcast_to((g / F32(n)).reshape(kept), x.shape)])


def mean(x: Given, axes: Any, keepdim: bool = False) -> Value:
    """Over axes."""
    return reduced(x, axes, keepdim, True)


def sum_(x: Given, axes: Any, keepdim: bool = False) -> Value:
    """Over axes."""
    return reduced(x, axes, keepdim, False)


def normalize(x: Given, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Value:
    """To length 1."""
    (x,) = of(x)
    length = np.expand_dims(np.sqrt(tree(x.array.astype(F64) * x.array.astype(F64), dim).astype(F32)), dim)
    of_x = x.tape.record(length, (x,), lambda d: [x.array * np.where(length == 0, F32(0), d / length)])
    return x / clamp(of_x, eps, np.inf)


# --- pooling ---------------------------------------------------------------------------------------------------------


class Windows:
    """Where a pooling's windows stand."""

    def __init__(self, size: Sequence[int], kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> None:
        self.size, (self.k, self.s, self.p, self.d) = size, (
            v if isinstance(v, tuple) else (v, v) for v in (kernel, kernel if stride is None else stride, padding, dilation)
        )  # fmt: skip
        self.count = [self._along(i, ceil) for i in (0, 1)]

    def _along(self, i: int, ceil: bool) -> int:
        left = self.size[i] + 2 * self.p[i] - self.d[i] * (self.k[i] - 1) - 1
        if not ceil:
            return left // self.s[i] + 1
        count = -(-left // self.s[i]) + 1
        return count - 1 if (count - 1) * self.s[i] >= self.size[i] + self.p[i] else count

    def padded(self, x: Array, value: float) -> Array:
        """With enough beyond the edges."""
        more = [self.k[i] * self.d[i] + self.s[i] + self.p[i] for i in (0, 1)]
        return np.pad(x, ((0, 0), (0, 0), (self.p[0], more[0]), (self.p[1], more[1])), constant_values=value)

    def cut(self, x: Array) -> Array:
        """Within the image."""
        return x[:, :, self.p[0] : self.p[0] + self.size[0], self.p[1] : self.p[1] + self.size[1]]

    def places(self, x: Array) -> list[list[Array]]:
        """By row and column of the window: views of padded x."""
        (r, c), s, d = self.count, self.s, self.d
        return [[x[:, :, i * d[0] :: s[0], j * d[1] :: s[1]][:, :, :r, :c] for j in range(self.k[1])] for i in range(self.k[0])]


def max_pool2d(x: Given, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil: bool = False) -> Value:
    """With relu in its place."""
    at = Windows(x.shape[2:], kernel, stride, padding, dilation, ceil)
    tiles = at.k == at.s and at.k[0] == at.k[1] and at.p == (0, 0) and at.d == (1, 1) and not ceil and min(x.shape[2:]) >= at.k[0]
    rectified = x if x.before_relu is not None and tiles and not x.read else None
    source = x.before_relu.array if rectified else of(x)[0].array
    padded = at.padded(source, -np.inf)
    y = np.stack([v for row in at.places(padded) for v in row]).max(0)

    def back(g: Array) -> list[Array]:
        rest, d = np.where(y <= 0, F32(0), g) if rectified else g, np.zeros_like(padded)
        both = [(v, w) for vs, ws in zip(at.places(padded), at.places(d), strict=True) for v, w in zip(vs, ws, strict=True)]
        for number, (v, w) in enumerate(both, 1):
            taken = rest if number == len(both) else (v == y) * rest
            w += taken
            rest = rest - taken
        d = at.cut(d)
        if rectified:
            rectified.passed = d
        return [d]

    return x.tape.record(np.where(y <= 0, F32(0), y) if rectified else y, (rectified or of(x)[0],), back)


def avg_pool2d(x: Given, kernel: Any, stride: Any = None, padding: Any = 0, ceil: bool = False, count_include_pad: bool = True,
               divisor_override: int | None = None) -> Value:  # fmt: skip
    """Rows, then columns."""
    (x,) = of(x)
    at = Windows(x.shape[2:], kernel, stride, padding, 1, ceil)
    t = tree(np.stack([np.stack(row) for row in at.places(at.padded(x.array, 0))]), 0, 1)
    m = np.empty(at.count)
    for r in range(at.count[0]):
        for c in range(at.count[1]):
            sides = []
            for i, place in ((0, r), (1, c)):
                edge = at.p[i] if count_include_pad else 0
                inside = range(max(place * at.s[i] - at.p[i], -edge), min(place * at.s[i] - at.p[i] + at.k[i], at.size[i] + edge))
                sides.append(len(inside))
            m[r, c] = divisor_override or sides[0] * sides[1]

    def back(g: Array) -> list[Array]:
        d = at.padded(np.zeros_like(x.array), 0)
        for row in at.places(d):
            for v in row:
                v += g / m.astype(F32)
        return [at.cut(d)]

    return x.tape.record((t / m).astype(F32), (x,), back)


def adaptive_avg_pool2d(x: Given, size: tuple[int, int]) -> Value:
    """Output by output."""
    (x,) = of(x)
    (height, width), (h, w) = x.shape[2:], size
    if height % h == 0 and width % w == 0:
        return avg_pool2d(x, (height // h, width // w))
    at = [[slice(r * n // k, -(-(r + 1) * n // k)) for r in range(k)] for n, k in ((height, h), (width, w))]
    parts = [[x.array[:, :, r, c] for c in at[1]] for r in at[0]]
    m = np.array([[v.shape[2] * v.shape[3] for v in row] for row in parts], F64)
    y = np.stack([np.stack([tree(v, 2, 3) for v in row], -1) for row in parts], -2) / m

    def back(g: Array) -> list[Array]:
        d = np.zeros_like(x.array)
        for i, r in enumerate(at[0]):
            for j, c in enumerate(at[1]):
                d[:, :, r, c] += (g / m.astype(F32))[:, :, i : i + 1, j : j + 1]
        return [d]

    return x.tape.record(y.astype(F32), (x,), back)


def adaptive_max_pool2d(x: Given, size: tuple[int, int]) -> Value:
    """Sizes that divide the image's."""
    return max_pool2d(x, (x.shape[2] // size[0], x.shape[3] // size[1]))


def interpolate(x: Given, size: tuple[int, int]) -> Value:
    """Nearest, whole multiples."""
    (x,) = of(x)
    n, c, height, width = x.shape
    a, b = size[0] // height, size[1] // width
    return x.tape.record(x.array.repeat(a, 2).repeat(b, 3), (x,), lambda g: [
        tree(g.reshape(n, c, height, a, width, b), 3, 5).astype(F32)])  # fmt: skip


# --- what only moves values ------------------------------------------------------------------------------------------


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


def cat(values: Sequence[Given], axis: int) -> Value:
    """Joined along an axis."""
    values = of(*values)
    ends = np.cumsum([v.shape[axis] for v in values])[:-1]
    return values[0].tape.record(np.concatenate([v.array for v in values], axis), values, lambda g: np.split(g, ends, axis))


def stack(values: Sequence[Given], axis: int) -> Value:
    """Along a new axis."""
    return cat([moved(v, lambda a: np.expand_dims(a, axis)) for v in values], axis)


def chunk(x: Given, chunks: int, axis: int = 0) -> list[Value]:
    """Parts of one size, the last one perhaps smaller."""
    size, before = -(-x.shape[axis] // chunks), (slice(None),) * (axis % len(x.shape))
    return [x[(*before, slice(i, i + size))] for i in range(0, x.shape[axis], size)]


def roll(x: Given, shifts: Any, axes: Any) -> Value:
    """Around."""
    return moved(x, lambda a: np.roll(a, shifts, axes))


def flip(x: Given, axes: Any) -> Value:
    """Reversed."""
    return moved(x, lambda a: np.flip(a, axes))


def pad(x: Given, widths: Sequence[int], mode: str = "constant", value: float = 0.0) -> Value:
    """From the last axis."""
    (x,) = of(x)
    pairs = [(0, 0)] * (x.array.ndim - len(widths) // 2) + [(widths[i], widths[i + 1]) for i in range(len(widths) - 2, -1, -2)]
    inside = tuple(slice(a, a + n) for (a, _), n in zip(pairs, x.shape, strict=True))
    return x.tape.record(np.pad(x.array, pairs, constant_values=value), (x,), lambda g: [g[inside]])


def pixel_shuffle(x: Given, k: int) -> Value:
    """Channels become places."""
    n, c, h, w = x.shape
    return moved(x, lambda a: a.reshape(n, c // k**2, k, k, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, c // k**2, h * k, w * k))


def channel_shuffle(x: Given, groups: int) -> Value:
    """Groups and channels change places."""
    n, c, *places = x.shape
    return moved(x, lambda a: a.reshape(n, groups, c // groups, *places).swapaxes(1, 2).reshape(a.shape))


def gathered(w: Value, index: Array) -> Value:
    """A weight, read by integers."""
    (w,) = of(w)

    def back(g: Array) -> list[Array]:
        unit = grid(magnitude(g, *range(g.ndim))).reshape([1] * w.array.ndim)
        sums = np.zeros(w.shape)
        for entry, row in zip(index.reshape(-1), integers(g.reshape(-1, *w.shape[1:]), unit), strict=True):
            sums[entry] += row
        return [times(sums, unit)]

    return w.tape.record(w.array[index], (w,), back)


# --- masks, attention ------------------------------------------------------------------------------------------------


def hashed(x: Array | int) -> Array:
    """32 bits, of 32 bits; what is beyond them is cut off."""
    x = np.asarray(x, np.uint64) & np.uint64(0xFFFFFFFF)
    for _ in range(2):
        x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x45D9F3B)) & np.uint64(0xFFFFFFFF)
    return np.asarray(x ^ (x >> np.uint64(16)))


def kept(tape: Tape, images: int, elements: int, probability: float) -> Array:
    """Bool [images, elements]."""
    tape.calls += 1
    key = hashed(np.uint64(tape.seed & 0xFFFFFFFF) ^ hashed(tape.seed >> 32))
    key = hashed(hashed(key + np.uint64(tape.step)) + np.uint64(tape.calls))
    own = hashed(hashed(np.arange(1, images + 1)) + key)[:, None]
    return np.asarray(hashed(own + hashed(np.arange(elements))[None]) < np.uint64(round(probability * 2**32)))


def dropout(x: Given, p: float, training: bool = True, channels: bool = False) -> Value:
    """Images first."""
    (x,) = of(x)
    if not training or p == 0:
        return x
    n = x.tape.images
    shape = (*x.shape[:2], *[1] * (x.array.ndim - 2)) if channels else x.shape
    m = kept(x.tape, n, math.prod(shape) // n, 1 - p).reshape(shape).astype(F32) * F32(0 if p == 1 else 1 / (1 - p))
    return x.tape.record(x.array * m, (x,), lambda g: [g * m])


def dropout2d(x: Given, p: float, training: bool = True) -> Value:
    """Whole channels."""
    return dropout(x, p, training, True)


def stochastic_depth(x: Given, p: float, mode: str) -> Value:
    """As torchvision calls it."""
    shape = (x.shape[0] if mode == "row" else 1, *[1] * (len(x.shape) - 1))
    mask = kept(x.tape, shape[0], 1, 1 - p).reshape(shape).astype(F32)
    return x * (mask / F32(1 - p))


def scaled_dot_product_attention(q: Given, k: Given, v: Given, mask: Array | None = None, p: float = 0.0) -> Value:
    """Forms in order."""
    weights = matmul(q, k.transpose(-1, -2)) * (1 / math.sqrt(q.shape[-1]))
    if mask is not None:
        weights = masked_fill(weights, ~mask, -math.inf) if mask.dtype == bool else weights + mask
    weights = softmax(weights, -1)
    return matmul(dropout(weights, p) if p else weights, v)


def multi_head_attention(x: Given, heads: int, w: Given, b: Given, out_w: Given, out_b: Given, p: float = 0.0) -> Value:
    """Of x [L, N, E] with itself."""
    length, n, e = x.shape
    thirds = list(zip(chunk(w, 3), chunk(b, 3), strict=True))
    q, k, v = (linear(x, *third).reshape(length, n * heads, e // heads).transpose(0, 1) for third in thirds)
    y = scaled_dot_product_attention(q, k, v, None, p).transpose(0, 1).reshape(length, n, e)
    return linear(y, out_w, out_b)


# --- initial values --------------------------------------------------------------------------------------------------

R = [[[float(c) for c in half.split()] for half in of_r] for of_r in (
    ("2509.0809287301226727 33430.575583588128105 67265.770927008700853 45921.953931549871457 13731.693765509461125 1971.5909503065514427 "
     "133.14166789178437745 3.3871328727963666080",
     "5226.4952788528545610 28729.085735721942674 39307.895800092710610 21213.794301586595867 5394.1960214247511077 687.18700749205790830 "
     "42.313330701600911252 1"),
    ("7.74545014278341407640e-4 2.27238449892691845833e-2 2.41780725177450611770e-1 1.27045825245236838258 3.64784832476320460504 "
     "5.76949722146069140550 4.63033784615654529590 1.42343711074968357734",
     "1.05075007164441684324e-9 5.47593808499534494600e-4 1.51986665636164571966e-2 1.48103976427480074590e-1 6.89767334985100004550e-1 "
     "1.67638483018380384940 2.05319162663775882187 1"),
    ("2.01033439929228813265e-7 2.71155556874348757815e-5 1.24266094738807843860e-3 2.65321895265761230930e-2 2.96560571828504891230e-1 "
     "1.78482653991729133580 5.46378491116411436990 6.65790464350110377720",
     "2.04426310338993978564e-15 1.42151175831644588870e-7 1.84631831751005468180e-5 7.86869131145613259100e-4 1.48753612908506148525e-2 "
     "1.36929880922735805310e-1 5.99832206555887937690e-1 1"),
)]  # fmt: skip


def Z(p: Array) -> Array:
    """The inverse normal distribution."""
    q, r = p - 0.5, np.sqrt(log(1 / np.minimum(p, 1 - p)))
    parts = [horner(v, above) / horner(v, below) for v, (above, below) in zip((0.180625 - q * q, r - 1.6, r - 5.0), R, strict=True)]
    side = np.where(r <= 5, parts[1], parts[2])
    return np.where(np.abs(q) <= 0.425, q * parts[0], np.where(q < 0, -side, side))


def initial(name: str, seed: int, size: int, filling: str, *numbers: float) -> Array:
    """A parameter's values before what is done after, float64."""
    label = f"weights/{seed}/{name}"
    if filling == "uniform":
        a, b = numbers
        return np.asarray((draws(label, 2**24, size) - 2**23) * ((b - a) / 2**24) + (a + b) / 2)
    p = (draws(label, 2**32, size) + 0.5) * 2.0**-32
    if filling == "normal":
        return Z(p) * numbers[1] + numbers[0]
    mean, std, a, b = numbers
    low, high = P(np.array([(a - mean) / std, (b - mean) / std]))
    return np.clip(Z(p * (high - low) + low) * std + mean, a, b)
