"""The forms of `exact-3` a second time: norms, softmax, means, pools, masks, attention; and initial values.

NumPy alone, written from docs/exact-numerics.md, sharing no line with pipeline/exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.reference import draws, exp, log
from tests.reference_forms import P, chunk, clamp, horner, masked_fill
from tests.reference_tape import F32, F64, Array, Given, Tape, Value, linear, matmul, moved, of, tree, tree_over_batch

# --- norms, softmax, means --------------------------------------------------------------------------------------------


def batch_norm(x: Given, running_mean: Array | None, running_var: Array | None, weight: Given = None, bias: Given = None,
               training: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> Value:  # fmt: skip
    """Running statistics change in place."""
    x, *affine = of(x, *(v for v in (weight, bias) if v is not None))
    channels = (1, -1, *[1] * (x.array.ndim - 2))
    n = F64(x.array.size // max(1, x.shape[1]))

    def per_channel(values: Array) -> Array:
        s = tree(values, *range(2, values.ndim))
        return tree_over_batch(tree(s.reshape(x.tape.images, len(s) // x.tape.images, s.shape[1]), 1))

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
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def layer_norm(x: Given, shape: Sequence[int], weight: Given = None, bias: Given = None, eps: float = 1e-5) -> Value:
    return affine(normalised(of(x)[0], len(shape))(eps), weight, bias)


def group_norm(x: Given, groups: int, weight: Given = None, bias: Given = None, eps: float = 1e-5) -> Value:
    (x,) = of(x)
    parted = moved(x, lambda a: a.reshape(a.shape[0], groups, a.shape[1] // groups, *a.shape[2:]))
    y = moved(normalised(parted, parted.array.ndim - 2)(eps), lambda a: a.reshape(x.shape))
    first = [None if v is None else moved(v, lambda a: a.reshape(-1, *[1] * (x.array.ndim - 2))) for v in (weight, bias)]
    return affine(y, *first)


def instance_norm(x: Given, mean: None = None, var: None = None, weight: Given = None, bias: Given = None, eps: float = 1e-5) -> Value:
    return group_norm(x, x.shape[1], weight, bias, eps)


def softmax(x: Given, axis: int) -> Value:
    (x,) = of(x)
    z = x.array.astype(F64)
    e = exp(z - z.max(axis, keepdims=True))
    y = (e / np.expand_dims(tree(e, axis), axis)).astype(F32)

    def back(g: Array) -> list[Array]:
        g, p = g.astype(F64), y.astype(F64)
        return [((g - np.expand_dims(tree(g * p, axis), axis)) * p).astype(F32)]

    return x.tape.record(y, (x,), back)


def log_softmax(x: Given, axis: int) -> Value:
    (x,) = of(x)
    z = x.array.astype(F64)
    z = z - z.max(axis, keepdims=True)
    e = exp(z)
    t = np.expand_dims(tree(e, axis), axis)
    return x.tape.record((z - log(t)).astype(F32), (x,), lambda g: [
        (g.astype(F64) - (e / t) * np.expand_dims(tree(g, axis), axis)).astype(F32)])  # fmt: skip


def reduced(x: Given, axes: Any, keepdim: bool, mean: bool) -> Value:
    (x,) = of(x)
    axes = tuple(axis % x.array.ndim for axis in (axes if isinstance(axes, tuple) else (axes,)))
    n = math.prod(x.shape[i] for i in axes) if mean else 1
    y = (tree(x.array, *axes) / F64(n)).astype(F32)
    kept = [1 if i in axes else size for i, size in enumerate(x.shape)]
    return x.tape.record(y.reshape(kept) if keepdim else y, (x,), lambda g: [np.broadcast_to((g / F32(n)).reshape(kept), x.shape)])


def mean(x: Given, axes: Any, keepdim: bool = False) -> Value:
    return reduced(x, axes, keepdim, True)


def sum_(x: Given, axes: Any, keepdim: bool = False) -> Value:
    return reduced(x, axes, keepdim, False)


def extreme(x: Given, axes: Any, keepdim: bool, find: Any) -> Value:
    (x,) = of(x)
    axes = tuple(axis % x.array.ndim for axis in (axes if isinstance(axes, tuple) else (axes,)))
    y = find(x.array, axis=axes, keepdims=True)
    among = x.array == y
    count = among.sum(axes, keepdims=True).astype(F32)
    return x.tape.record(y if keepdim else y.squeeze(axes), (x,), lambda g: [np.where(among, g.reshape(y.shape) / count, F32(0))])


def amax(x: Given, axes: Any, keepdim: bool = False) -> Value:
    return extreme(x, axes, keepdim, np.max)


def amin(x: Given, axes: Any, keepdim: bool = False) -> Value:
    return extreme(x, axes, keepdim, np.min)


def normalize(x: Given, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Value:
    (x,) = of(x)
    length = np.expand_dims(np.sqrt(tree(x.array.astype(F64) * x.array.astype(F64), dim).astype(F32)), dim)
    of_x = x.tape.record(length, (x,), lambda d: [x.array * np.where(length == 0, F32(0), d / length)])
    return x / clamp(of_x, eps, np.inf)


# --- pooling ----------------------------------------------------------------------------------------------------------


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
        more = [self.k[i] * self.d[i] + self.s[i] + self.p[i] for i in (0, 1)]
        return np.pad(x, ((0, 0), (0, 0), (self.p[0], more[0]), (self.p[1], more[1])), constant_values=value)

    def cut(self, x: Array) -> Array:
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
    return max_pool2d(x, (x.shape[2] // size[0], x.shape[3] // size[1]))


def interpolate(x: Given, size: tuple[int, int]) -> Value:
    (x,) = of(x)
    n, c, height, width = x.shape
    a, b = size[0] // height, size[1] // width
    return x.tape.record(x.array.repeat(a, 2).repeat(b, 3), (x,), lambda g: [
        tree(g.reshape(n, c, height, a, width, b), 3, 5).astype(F32)])  # fmt: skip


# --- masks, attention -------------------------------------------------------------------------------------------------


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
    (x,) = of(x)
    if not training or p == 0:
        return x
    n = x.tape.images
    shape = (*x.shape[:2], *[1] * (x.array.ndim - 2)) if channels else x.shape
    m = kept(x.tape, n, math.prod(shape) // n, 1 - p).reshape(shape).astype(F32) * F32(0 if p == 1 else 1 / (1 - p))
    return x.tape.record(x.array * m, (x,), lambda g: [g * m])


def dropout2d(x: Given, p: float, training: bool = True) -> Value:
    return dropout(x, p, training, True)


def stochastic_depth(x: Given, p: float, mode: str) -> Value:
    """As torchvision calls it."""
    shape = (x.shape[0] if mode == "row" else 1, *[1] * (len(x.shape) - 1))
    mask = kept(x.tape, shape[0], 1, 1 - p).reshape(shape).astype(F32)
    return x * (mask / F32(1 - p))


def scaled_dot_product_attention(q: Given, k: Given, v: Given, mask: Array | None = None, p: float = 0.0) -> Value:
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
