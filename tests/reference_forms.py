"""The forms of `exact-3` a second time: NumPy alone, written from docs/exact-numerics.md, sharing no line with pipeline/exact.

Functions have torch's names and arguments. This file has what is elementwise and what moves values; reference_layers.py the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.reference import SQRT2, exp, grid, log
from tests.reference_tape import F32, F64, Array, Given, Value, integers, magnitude, matmul, moved, of, spread, times

# --- elementwise ------------------------------------------------------------------------------------------------------


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
    return lambda x: function(x.astype(F64)).astype(F32)


def S(x: Array) -> Array:
    e = exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1 + e)


def T(x: Array) -> Array:
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
    a = np.abs(x) * (SQRT2 / 2)
    t = 1 / (a * 0.5 + 1)
    tail = (exp(-(a * a)) * t) * horner((t + t) - 1, Q)
    return np.where(x < 0, tail, 1 - tail)


def log_of(x: Array) -> Array:
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
    return unary(lambda x: x * in_f64(S)(x), lambda g, x, y: g * (in_f64(S)(x) * (1 + x * (1 - in_f64(S)(x)))))(x)


def elu(x: Given, alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0) -> Value:
    return unary(
        lambda x, b, scale, rate: np.where(x > 0, x * scale, in_f64(lambda x: exp(x) - 1)(np.minimum(x, F32(0)) * rate) * b),
        lambda g, x, y, b, scale, rate: np.where(x > 0, g * scale, (g * rate) * (y + b)),
    )(x, alpha * scale, scale, rate)


def celu(x: Given, alpha: float = 1.0) -> Value:
    return elu(x, alpha, 1.0, 1 / alpha)


def selu(x: Given) -> Value:
    return elu(x, float.fromhex("0x1.ac5afad782cf1p+0"), float.fromhex("0x1.0cfabd6a91132p+0"))


def relu(x: Given) -> Value:
    (x,) = of(x)
    y = x.tape.record(np.where(x.array <= 0, F32(0), x.array), (x,), lambda g: [g if g is y.passed else np.where(x.array <= 0, F32(0), g)])
    y.before_relu = x
    return y


def relu6(x: Given) -> Value:
    return hardtanh(x, 0, 6)


def hardsigmoid(x: Given) -> Value:
    return relu6(x + 3) / 6


def hardswish(x: Given) -> Value:
    return (x * relu6(x + 3)) / 6


def mish(x: Given) -> Value:
    return x * tanh(softplus(x))


def prelu(x: Given, weight: Given) -> Value:
    w = weight if weight.shape == (1,) else moved(weight, lambda a: a.reshape(-1, *[1] * (len(x.shape) - 2)))
    return where(of(x)[0].array > 0, x, x * w)


def power(x: Given, k: int) -> Value:
    y = x
    for _ in range(k - 1):
        y = y * x
    return y


def where(c: Array, a: Given, b: Given) -> Value:
    a, b = of(a, b)
    return elementwise((a, b), np.where(c, a.array, b.array), lambda g: (np.where(c, g, F32(0)), np.where(c, F32(0), g)))


def masked_fill(x: Given, c: Array, value: float) -> Value:
    return where(c, F32(value), x)


# --- what only moves values -------------------------------------------------------------------------------------------


def cat(values: Sequence[Given], axis: int) -> Value:
    values = of(*values)
    ends = np.cumsum([v.shape[axis] for v in values])[:-1]
    return values[0].tape.record(np.concatenate([v.array for v in values], axis), values, lambda g: np.split(g, ends, axis))


def stack(values: Sequence[Given], axis: int) -> Value:
    return cat([moved(v, lambda a: np.expand_dims(a, axis)) for v in values], axis)


def chunk(x: Given, chunks: int, axis: int = 0) -> list[Value]:
    size, before = -(-x.shape[axis] // chunks), (slice(None),) * (axis % len(x.shape))
    return [x[(*before, slice(i, i + size))] for i in range(0, x.shape[axis], size)]


def roll(x: Given, shifts: Any, axes: Any) -> Value:
    return moved(x, lambda a: np.roll(a, shifts, axes))


def flip(x: Given, axes: Any) -> Value:
    return moved(x, lambda a: np.flip(a, axes))


def pad(x: Given, widths: Sequence[int], mode: str = "constant", value: float = 0.0) -> Value:
    (x,) = of(x)
    pairs = [(0, 0)] * (x.array.ndim - len(widths) // 2) + [(widths[i], widths[i + 1]) for i in range(len(widths) - 2, -1, -2)]
    inside = tuple(slice(a, a + n) for (a, _), n in zip(pairs, x.shape, strict=True))
    return x.tape.record(np.pad(x.array, pairs, constant_values=value), (x,), lambda g: [g[inside]])


def pixel_shuffle(x: Given, k: int) -> Value:
    n, c, h, w = x.shape
    return moved(x, lambda a: a.reshape(n, c // k**2, k, k, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, c // k**2, h * k, w * k))


def channel_shuffle(x: Given, groups: int) -> Value:
    n, c, *places = x.shape
    return moved(x, lambda a: a.reshape(n, groups, c // groups, *places).swapaxes(1, 2).reshape(a.shape))


def gathered(w: Value, index: Array) -> Value:
    (w,) = of(w)

    def back(g: Array) -> list[Array]:
        unit = grid(magnitude(g, *range(g.ndim))).reshape([1] * w.array.ndim)
        sums = np.zeros(w.shape)
        for entry, row in zip(index.reshape(-1), integers(g.reshape(-1, *w.shape[1:]), unit), strict=True):
            sums[entry] += row
        return [times(sums, unit)]

    return w.tape.record(w.array[index], (w,), back)


def put(x: Value, index: Any, value: Given) -> None:
    whole, v = of(x, value)
    y = whole.array.copy()
    y[index] = v.array

    def back(g: Array) -> list[Array]:
        rest = g.copy()
        rest[index] = 0
        return [rest, spread(g[index], v, whole.images)]

    x.replace(whole.tape.record(y, (whole, v), back))


def add_in_place(x: Value, other: Given) -> Value:
    x.replace(add(x, other))
    return x


def get(x: Value, index: Any) -> Value:
    y = gathered(x, index) if isinstance(index, Array) else moved(x, lambda a: a[index])
    y.part = (x, index)
    return y


def expand(x: Value, *shape: Any) -> Value:
    """Sizes; -1 for one's own. Over the images where the first is theirs."""
    (x,) = of(x)
    own = (1,) * (len(shape) - x.array.ndim) + x.shape
    y = np.broadcast_to(x.array, [own[i] if s == -1 else s for i, s in enumerate(shape)])
    out = Value(x.tape, y, x.images or shape[0] not in (-1, own[0]))
    x.tape.steps[out.images].append((out, [x], lambda g: [spread(g, x, out.images)]))
    return out


METHODS: dict[str, Callable[..., Any]] = {
    "__add__": add, "__radd__": lambda x, o: add(o, x), "__sub__": sub, "__rsub__": lambda x, o: sub(o, x), "__mul__": mul, "__rmul__": mul,
    "__truediv__": div, "__rtruediv__": lambda x, o: div(o, x), "__matmul__": matmul, "__pow__": power, "__neg__": neg,
    "__iadd__": add_in_place, "__getitem__": get, "__setitem__": put, "expand": expand,
    "reshape": lambda x, *shape: moved(x, lambda a: a.reshape(shape)), "permute": lambda x, *order: moved(x, lambda a: a.transpose(order)),
    "transpose": lambda x, i, j: moved(x, lambda a: a.swapaxes(i, j)),
    "flatten": lambda x, first: moved(x, lambda a: a.reshape(*a.shape[:first], -1)),
}  # fmt: skip
"""What a Value can, as a tensor."""
for name, method in METHODS.items():
    setattr(Value, name, method)
