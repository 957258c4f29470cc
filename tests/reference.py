"""`exact-3` a second time: NumPy alone, written from docs/exact-numerics.md, sharing no line with pipeline/exact.

Plain loops over layers. Where this and the pipeline disagree, the text is fixed first.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

F32 = np.float32
CONV, RELU, POOL, FLATTEN, LINEAR = "conv2d", "relu", "max_pool2d", "flatten", "linear"
Layer = tuple[str, str]
SIMPLE_CNN: list[Layer] = [
    (CONV, "conv1"), (RELU, ""), (POOL, ""), (CONV, "conv2"), (RELU, ""), (POOL, ""), (FLATTEN, ""),
    (LINEAR, "fc1"), (RELU, ""), (LINEAR, "fc2"), (RELU, ""), (LINEAR, "fc3"),
]  # fmt: skip
SHAPES = {"conv1": (6, 3, 5, 5), "conv2": (16, 6, 5, 5), "fc1": (120, 400), "fc2": (84, 120), "fc3": (10, 84)}
Weights = dict[str, np.ndarray]


# --- grids -----------------------------------------------------------------------------------------------------------


def grid(m: np.ndarray | np.floating[Any], bits: int = 19) -> np.ndarray:
    """The unit, in float64, for float32 magnitudes `m`; NaN for Inf and NaN."""
    m = np.asarray(m, np.float64)
    _, exponent = np.frexp(m)  # m = fraction * 2^exponent, fraction in [1/2, 1)
    return np.where(np.isfinite(m), np.ldexp(1.0, exponent - bits), np.nan)


def magnitude(x: np.ndarray) -> np.ndarray:
    """Of a whole tensor."""
    return np.maximum(F32(2.0**-40), np.abs(x).max())


def magnitude_of_images(x: np.ndarray) -> np.ndarray:
    """Of each image [N]."""
    return np.maximum(F32(2.0**-40), np.abs(x.reshape(len(x), -1)).max(1))


def an_image(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """One value an image, in the shape of x."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def a_channel(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """One value an output channel, in the shape of x."""
    return values.reshape(1, -1, *[1] * (x.ndim - 2))


def place(x: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Integers in float64."""
    return np.rint(x.astype(np.float64) / unit)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A [M, K] @ b [K, P], exact: parts of 2^15 products in float64, added in int64."""
    parts = [a[:, i : i + 2**15] @ b[i : i + 2**15] for i in range(0, a.shape[1], 2**15)]
    return np.sum([part.astype(np.int64) for part in parts], 0)


def rounded(sums: np.ndarray, unit: np.ndarray, bytes_: bool = False) -> np.ndarray:
    """Exact sums to float32, times a unit."""
    y = sums.astype(F32)
    if bytes_:
        y = y / F32(255)
    return y * unit.astype(F32)


# --- weighted sums ---------------------------------------------------------------------------------------------------


def windows(x: np.ndarray, h: int, w: int) -> np.ndarray:
    """X [N, I, H, W] -> [N H' W', I h w]."""
    views = np.lib.stride_tricks.sliding_window_view(x, (h, w), (2, 3))  # [N, I, H', W', h, w]
    return views.transpose(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * h * w)


@dataclass
class Kept:
    """What a layer's forward direction leaves for its backward one."""

    x: np.ndarray
    y: np.ndarray
    integers: dict[str, np.ndarray] = field(default_factory=dict)
    units: dict[str, np.ndarray] = field(default_factory=dict)


def forward(weights: Weights, images: np.ndarray) -> tuple[np.ndarray, list[Kept]]:
    """The logits of uint8 images, and what each layer keeps."""
    x, kept = images, []
    for kind, name in SIMPLE_CNN:
        now = Kept(x, x)
        if kind in (CONV, LINEAR):
            w, b = weights[f"{name}.weight"], weights[f"{name}.bias"]
            unit_w = grid(magnitude(w))
            unit_x = np.ones(len(x)) if x.dtype == np.uint8 else grid(magnitude_of_images(x))
            now.integers = {"x": place(x, an_image(unit_x, x)), "w": place(w, unit_w)}
            now.units = {"x": unit_x, "w": unit_w}
            if kind == CONV:
                height, width = x.shape[2] - w.shape[2] + 1, x.shape[3] - w.shape[3] + 1
                sums = dot(windows(now.integers["x"], *w.shape[2:]), now.integers["w"].reshape(len(w), -1).T)
                sums = sums.reshape(len(x), height, width, len(w)).transpose(0, 3, 1, 2)
                bias = b.reshape(1, -1, 1, 1)
            else:
                sums, bias = dot(now.integers["x"], now.integers["w"].T), b.reshape(1, -1)
            y = rounded(sums, an_image(unit_x * unit_w, sums), x.dtype == np.uint8) + bias
        elif kind == RELU:
            y = np.where(x <= 0, F32(0), x)
        elif kind == POOL:
            y = tiles(x).max(-1)
        else:
            y = x.reshape(len(x), -1)
        now.y = y
        kept.append(now)
        x = y
    return x, kept


def tiles(x: np.ndarray) -> np.ndarray:
    """X [N, C, H, W] -> [N, C, H / 2, W / 2, 4]: each 2 x 2 tile in row-major order."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, c, h // 2, w // 2, 4)


def backward(weights: Weights, kept: list[Kept], g: np.ndarray) -> Weights:
    """The gradients of the weights, from that of the logits."""
    gradients = {}
    for (kind, name), now in reversed(list(zip(SIMPLE_CNN, kept, strict=True))):
        if kind in (CONV, LINEAR):
            gradients[f"{name}.weight"], gradients[f"{name}.bias"] = weight_gradients(kind, weights[f"{name}.weight"], now, g)
            if now.x.dtype != np.uint8:
                g = input_gradient(kind, weights[f"{name}.weight"], now, g)
        elif kind == RELU:
            g = np.where(now.y <= 0, F32(0), g)
        elif kind == POOL:
            first = np.eye(4, dtype=F32)[tiles(now.x).argmax(-1)]  # NumPy's argmax is the first
            n, c, h, w = now.x.shape
            spread = (first * g[..., None]).reshape(n, c, h // 2, w // 2, 2, 2)
            g = spread.transpose(0, 1, 2, 4, 3, 5).reshape(now.x.shape)
        else:
            g = g.reshape(now.x.shape)
    return gradients


def input_gradient(kind: str, w: np.ndarray, now: Kept, g: np.ndarray) -> np.ndarray:
    """One grid an image."""
    unit = grid(magnitude_of_images(g))
    integers = place(g, an_image(unit, g))
    if kind == LINEAR:
        sums = dot(integers, now.integers["w"])
    else:
        edge_h, edge_w = w.shape[2] - 1, w.shape[3] - 1
        around = np.pad(integers, ((0, 0), (0, 0), (edge_h, edge_h), (edge_w, edge_w)))
        turned = now.integers["w"][:, :, ::-1, ::-1].transpose(1, 0, 2, 3).reshape(w.shape[1], -1)  # [I, O h w]
        n, _, height, width = now.x.shape
        sums = dot(windows(around, *w.shape[2:]), turned.T).reshape(n, height, width, -1).transpose(0, 3, 1, 2)
    return rounded(sums, an_image(unit * now.units["w"], sums))


def weight_gradients(kind: str, w: np.ndarray, now: Kept, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """On grids of the batch, one an output channel."""
    bytes_ = now.x.dtype == np.uint8
    of_channels = np.maximum(F32(2.0**-40), np.abs(g.reshape(len(g), g.shape[1], -1)).max(2))  # [N, O]
    unit_h = grid((of_channels * now.units["x"].astype(F32)[:, None]).max(0))
    unit_b = grid(of_channels.max(0))
    h = place(g, a_channel(unit_h, g) / an_image(now.units["x"], g))
    b = place(g, a_channel(unit_b, g))
    if kind == LINEAR:
        sums, bias = dot(h.T, now.integers["x"]), b
    else:
        rows = h.transpose(1, 0, 2, 3).reshape(g.shape[1], -1)
        sums = dot(rows, windows(now.integers["x"], *w.shape[2:])).reshape(w.shape)
        bias = b.transpose(0, 2, 3, 1).reshape(-1, g.shape[1])
    return rounded(sums, an_image(unit_h, sums), bytes_), rounded(bias.astype(np.int64).sum(0), unit_b)


# --- softmax, loss, prediction ---------------------------------------------------------------------------------------

LOG2E, LN2_HIGH, LN2_LOW, SQRT2 = (
    float.fromhex(text) for text in ("0x1.71547652b82fep+0", "0x1.62e4p-1", "0x1.7f7d1cf79abcap-20", "0x1.6a09e667f3bcdp+0")
)


def exp(z: np.ndarray, least: float = -60.0) -> np.ndarray:
    """Float64, of what is not below `least`."""
    x = np.maximum(z, least)
    k = np.rint(x * LOG2E)
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    y = np.full_like(r, 1 / math.factorial(10))
    for j in range(9, -1, -1):
        y = y * r
        y = y + 1 / math.factorial(j)
    return np.ldexp(y, k.astype(np.int64))


def log(v: np.ndarray) -> np.ndarray:
    """Float64, v >= 1."""
    fraction, exponent = np.frexp(v)
    m, k = fraction * 2, (exponent - 1).astype(np.float64)
    m, k = np.where(m > SQRT2, m / 2, m), np.where(m > SQRT2, k + 1, k)
    f = (m - 1) / (m + 1)
    q = f * f
    y = np.full_like(f, 1 / 17)
    for j in range(7, -1, -1):
        y = y * q
        y = y + 1 / (2 * j + 1)
    return (k * LN2_HIGH + k * LN2_LOW) + (y * f) * 2


def softmax(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shifted logits, totals [N] and probabilities, float64."""
    z = logits.astype(np.float64)
    z = z - z.max(1, keepdims=True)
    e = np.rint(exp(z) * 2.0**40)
    total = e.sum(1, keepdims=True)
    return z, total[:, 0], e / total


def losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Float64 [N]."""
    z, total, _ = softmax(logits)
    return log(total * 2.0**-40) - z[np.arange(len(z)), labels]


def mean(of: np.ndarray) -> np.float64:
    """Of float64 losses."""
    unit = grid(np.maximum(F32(2.0**-40), of.astype(F32).max()), 36)
    total = np.rint(of / unit).astype(np.int64).sum()
    return np.float64(total) * unit / np.float64(len(of))


def predict(weights: Weights, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes and float32 confidences."""
    logits, _ = forward(weights, images)
    return logits.argmax(1), softmax(logits)[2].max(1).astype(F32)


# --- training --------------------------------------------------------------------------------------------------------


def draws(label: str, below: int, count: int) -> np.ndarray:
    """Int64 [count]."""
    octets = np.frombuffer(hashlib.shake_256(label.encode("utf-8")).digest(8 * count), np.uint8).reshape(count, 8).astype(np.uint64)
    words = sum(octets[:, i] << np.uint64(8 * i) for i in range(8))
    return (words % np.uint64(below)).astype(np.int64)


def initial_weights(seed: int) -> Weights:
    """SimpleCNN's."""
    weights = {}
    for name, shape in SHAPES.items():
        step = 1 / math.sqrt(math.prod(shape[1:])) / 2**23
        for part, sizes in (("weight", shape), ("bias", shape[:1])):
            drawn = draws(f"weights/{seed}/{name}.{part}", 2**24, math.prod(sizes)) - 2**23
            weights[f"{name}.{part}"] = (drawn * step).astype(F32).reshape(sizes)
    return weights


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The images of an epoch."""
    return np.argsort(draws(f"order/{seed}/{epoch}", 2**63, count), kind="stable")


def loss_and_gradients(weights: Weights, images: np.ndarray, labels: np.ndarray) -> tuple[np.float32, Weights]:
    """Of a whole batch."""
    logits, kept = forward(weights, images)
    hot = np.eye(logits.shape[1])[labels]
    g = ((softmax(logits)[2] - hot) / np.float64(len(images))).astype(F32)
    return F32(mean(losses(logits, labels))), backward(weights, kept, g)


def update(weight: np.ndarray, velocity: np.ndarray, gradient: np.ndarray, lr: float, momentum: float) -> tuple[np.ndarray, np.ndarray]:
    """The new weight and velocity."""
    velocity = velocity * F32(momentum)
    velocity = snapped(velocity + gradient)
    return snapped(weight - velocity * F32(lr)), velocity


def snapped(x: np.ndarray) -> np.ndarray:
    """0 up to 2^-64."""
    return np.where(np.abs(x) <= F32(2.0**-64), F32(0), x)


class Training:
    """A training of SimpleCNN, a step at a time."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, seed: int, batch_size: int, lr: float, momentum: float) -> None:
        self.images, self.labels, self.seed = images, labels.astype(np.int64), seed
        self.batch_size, self.lr, self.momentum = batch_size, lr, momentum
        self.weights = initial_weights(seed)
        self.velocity = {name: np.zeros_like(w) for name, w in self.weights.items()}
        self.epoch = self.first = 0

    def step(self) -> np.float32:
        """One step; its loss."""
        rows = order(self.seed, self.epoch, len(self.images))[self.first : self.first + self.batch_size]
        loss, gradients = loss_and_gradients(self.weights, self.images[rows], self.labels[rows])
        for name, gradient in gradients.items():
            self.weights[name], self.velocity[name] = update(self.weights[name], self.velocity[name], gradient, self.lr, self.momentum)
        self.first += self.batch_size
        if self.first >= len(self.images):
            self.epoch, self.first = self.epoch + 1, 0
        return loss


def fingerprint(tensors: Weights) -> str:
    """SHA-256, in hex."""
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype.name} {'x'.join(str(size) for size in array.shape)}\n".encode())
        digest.update((array + array.dtype.type(0)).astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
