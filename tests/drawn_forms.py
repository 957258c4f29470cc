"""The forms of drawn networks (drawn_networks.py): what each takes and computes, by torch's names, and how its arguments are drawn.

A drawer is given the drawing, the shape of an image of the tensor that the form is to read, and its number; it gives the numbers of the
tensors that the form reads, of its weights, and its other arguments; or None where it cannot stand there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tests.drawn_networks import Drawing

Shape = tuple[int, ...]


KERNEL = 24
"""Places of the largest kernel."""


def conv2d(d: Drawing, shape: Shape, number: int) -> Any:
    kind = d.one_of("plain", "plain", "dilated", "any", "channels", "whole", "same")
    channels, sizes = shape[0], shape[1:]
    groups = {"any": d.one_of(*(g for g in range(1, channels + 1) if channels % g == 0)), "channels": channels}.get(kind, 1)
    stride, dilation, padding = (1, 1), (1, 1), (0, 0)
    if kind in ("any", "channels"):
        stride, dilation, padding = ((d.int(1, 3), d.int(1, 3)), (d.int(1, 2), d.int(1, 2)), (d.int(0, 2), d.int(0, 2)))
    elif kind in ("plain", "dilated"):
        dilation, padding = (1, 1) if kind == "plain" else (d.int(1, 2), d.int(1, 2)), (d.int(0, 1), d.int(0, 1))
    kernel = tuple(d.int(1, min(4, (size + 2 * p - 1) // by + 1)) for size, p, by in zip(sizes, padding, dilation, strict=True))
    if kind == "same":
        kernel, padding = tuple(d.one_of(1, 3) for _ in sizes), "same"
    kernel = sizes if kind == "whole" and math.prod(sizes) <= KERNEL else kernel
    out = channels if kind == "channels" else groups * d.int(1, 3)
    weights = (d.weight(out, channels // groups, *kernel), *d.maybe((out,)))
    return (number,), weights, (None,) * (len(weights) < 2) + (stride, padding, dilation, groups)


def window(d: Drawing, sizes: Shape, dilated: bool = False) -> tuple[Any, ...]:
    """Kernel, stride, padding and, if asked, dilation."""
    if d.one_of(True, False):
        k = d.int(1, min(3, *sizes))
        return (k, k, 0, 1) if dilated else (k, k, 0)
    dilation = tuple(d.one_of(1, 1, 2) if dilated and size > 2 else 1 for size in sizes)
    kernel = tuple(d.int(1, min(3, (size - 1) // by + 1)) for size, by in zip(sizes, dilation, strict=True))
    rest = kernel, (d.int(1, 3), d.int(1, 3)), tuple(d.int(0, k // 2) for k in kernel)
    return (*rest, dilation) if dilated else rest


def batch_norm(d: Drawing, shape: Shape, number: int) -> Any:
    x = d.found[number]
    if d.images * x.rows * math.prod(shape[1:]) == 1:
        return None  # refused
    d.statistics.append(shape[0])
    weights = d.maybe(shape[:1], shape[:1])
    return (number,), weights, (*(None,) * (2 - len(weights)), len(d.statistics) - 1, d.one_of(0.1, 0.3), d.one_of(1e-5, 1e-3))


def normalised(*given: Callable[[Drawing, Shape], Any]) -> Any:
    def drawn(d: Drawing, shape: Shape, number: int) -> Any:
        given_now = tuple(each(d, shape) for each in given)
        affine = given_now[0] if isinstance(given_now[0], tuple) else shape[:1]
        weights = d.maybe(affine, affine)
        return (number,), weights, (*(None,) * (2 - len(weights)), *given_now)

    return drawn


def only(*given: Callable[[Drawing, Shape], Any]) -> Any:
    return lambda d, shape, number: ((number,), (), tuple(each(d, shape) for each in given))


def two(fits: Callable[[Shape, Shape], bool]) -> Any:
    return lambda d, shape, number: (d.one_of((number, other := d.alike(number, lambda s: fits(s, shape))), (other, number)),)


def beside_weight(d: Drawing, shape: Shape, number: int) -> Any:
    """A weight that is spread over some axes."""
    sizes = tuple(d.one_of(1, size) for size in shape)
    return (number,), (d.weight(*sizes[d.int(0, len(sizes) - 1) :]),)


def in_place(arguments: Callable[..., Any]) -> Any:
    """Not of the images' own memory."""
    return lambda d, shape, number: None if d.found[number].memory == 0 else arguments(d, shape, number)


def linear(d: Drawing, shape: Shape, number: int) -> Any:
    out = d.one_of(1, 2, 3, 4, shape[-1], 1, 2, 3, 4, 0 if len(shape) == d.found[number].rows == 1 else 5)
    return (number,), (d.weight(out, shape[-1]), *d.maybe((out,)))


def iadd(x: Any, y: Any) -> Any:
    x += y
    return x


def divisor(size: int) -> Callable[[Drawing], int]:
    return lambda d: d.one_of(*(k for k in range(1, size + 1) if size % k == 0))


ROWS, VECTOR, SEQUENCE, IMAGE = range(4)
ANY, IMAGES = (ROWS, VECTOR, SEQUENCE, IMAGE), (VECTOR, SEQUENCE, IMAGE)
UNARY = ("relu", "relu6", "hardsigmoid", "hardswish", "selu", "softplus", "sigmoid", "tanh", "gelu", "silu", "mish", "abs", "square")
"""Those without arguments."""
FORMS: dict[str, tuple[Any, Any, Any]] = {
    "conv2d": ((IMAGE,), lambda f, x, w, b, *given: f.conv2d(x, w, b, *given), conv2d),
    "linear": (ANY, lambda f, x, w, b=None: f.linear(x, w, b), linear),
    "linear again": (ANY, lambda f, x, w, v: f.linear(f.linear(x, w), v), lambda d, s, n: ((n,), (d.weight(3, s[-1]), d.weight(2, 3)))),
    "linear of weights": (ANY, lambda f, x, w: f.linear(x, f.tanh(w) * 0.3), lambda d, s, n: ((n,), (d.weight(3, s[-1]),))),
    "matmul": ((SEQUENCE,), lambda f, x, y: f.matmul(x, y.transpose(1, 2)), two(lambda a, b: len(a) == 2 and a[1] == b[1])),
    "batch_norm": ((ROWS, VECTOR, IMAGE), lambda f, x, w, b, i, momentum, eps:
        f.batch_norm(x, *f.statistics[i], w, b, f.training, momentum, eps), batch_norm),
    "layer_norm": (IMAGES, lambda f, x, w, b, shape: f.layer_norm(x, shape, w, b), normalised(lambda d, s: s[d.int(0, len(s) - 1):])),
    "group_norm": ((IMAGE,), lambda f, x, w, b, groups: f.group_norm(x, groups, w, b), normalised(lambda d, s: divisor(s[0])(d))),
    "softmax": ((VECTOR, SEQUENCE), lambda f, x: f.softmax(x, -1), only()),
    "log_softmax": ((VECTOR, SEQUENCE), lambda f, x: f.log_softmax(x, 1), only()),
    "normalize": (IMAGES, lambda f, x: f.normalize(x, 2.0, 1, 1e-12), only()),
    "mean": (IMAGES, lambda f, x, axis: f.mean(x, axis, True), only(lambda d, s: d.int(1, len(s)))),
    "mean of places": ((IMAGE,), lambda f, x: f.mean(x, (2, 3)), only()),
    "sum": ((SEQUENCE, IMAGE), lambda f, x, axis: f.sum(x, axis), only(lambda d, s: d.int(1, len(s)))),
    "amax": ((SEQUENCE, IMAGE), lambda f, x, axis: f.amax(x, axis), only(lambda d, s: d.int(1, len(s)))),
    "amin": (IMAGES, lambda f, x, axis: f.amin(x, axis, True), only(lambda d, s: d.int(1, len(s)))),
    "max_pool2d": ((IMAGE,), lambda f, x, window, ceil: f.max_pool2d(x, *window, ceil),
        only(lambda d, s: window(d, s[1:], True), lambda d, s: d.one_of(False, True))),
    "avg_pool2d": ((IMAGE,), lambda f, x, window, *given: f.avg_pool2d(x, *window, *given), only(
        lambda d, s: window(d, s[1:]), lambda d, s: d.one_of(False, True), lambda d, s: d.one_of(False, True),
        lambda d, s: d.one_of(None, None, 3))),
    "adaptive_avg_pool2d": ((IMAGE,), lambda f, x, size: f.adaptive_avg_pool2d(x, size),
        only(lambda d, s: (d.int(1, s[1]), d.int(1, s[2])))),
    "adaptive_max_pool2d": ((IMAGE,), lambda f, x, size: f.adaptive_max_pool2d(x, size),
        only(lambda d, s: (divisor(s[1])(d), divisor(s[2])(d)))),
    "interpolate": ((IMAGE,), lambda f, x, size: f.interpolate(x, size), only(lambda d, s: (s[1] * d.int(1, 2), s[2] * d.int(1, 3)))),
    "addition": (IMAGES, lambda f, x, y: x + y, two(lambda a, b: a == b)),
    "subtraction": (IMAGES, lambda f, x, y: x - y, two(lambda a, b: a == b)),
    "multiplication": (IMAGES, lambda f, x, y: x * y, two(lambda a, b: a[:1] == b[:1] and a in (b, (*b[:1], *(1,) * (len(b) - 1))))),
    "division": (IMAGES, lambda f, x, y: x / y, two(lambda a, b: a == b)),
    "maximum": (IMAGES, lambda f, x, y: f.maximum(x, y), two(lambda a, b: a == b)),
    "cat": (IMAGES, lambda f, x, y: f.cat([x, y], 1), two(lambda a, b: len(a) == len(b) and a[1:] == b[1:])),
    "times weight": (IMAGES, lambda f, x, w: x * w, beside_weight),
    "plus weight": (IMAGES, lambda f, x, w: x + w, beside_weight),
    "times numbers": (ANY, lambda f, x: (x - 0.3) * 0.7, only()),
    "prelu": (IMAGES, lambda f, x, w: f.prelu(x, w), lambda d, s, n: ((n,), (d.weight(d.one_of(1, s[0])),))),
    "leaky_relu": (ANY, lambda f, x: f.leaky_relu(x, 0.01), only()),
    "elu": (ANY, lambda f, x: f.elu(x, 1.3), only()),
    "clamp": (ANY, lambda f, x: f.clamp(x, -0.7, 1.3), only()),
    **{name: (ANY, lambda f, x, name=name: getattr(f, name)(x), only()) for name in UNARY},
    "relu in place": (ANY, lambda f, x: f.relu_in_place(x), in_place(only())),
    "addition in place": (IMAGES, lambda f, x, y: iadd(x, y), in_place(
        lambda d, s, n: ((n, d.alike(n, lambda of: of == s)),))),
    "dropout": (ANY, lambda f, x, p: f.dropout(x, p, f.training), only(lambda d, s: d.one_of(0.3, 0.5, 0.3, 0.5, 0.0, 1.0))),
    "dropout2d": ((IMAGE,), lambda f, x: f.dropout2d(x, 0.25, f.training), only()),
    "flatten": ((SEQUENCE, IMAGE), lambda f, x: x.flatten(1), only()),
    "sequence": ((IMAGE,), lambda f, x: x.flatten(2).transpose(1, 2), only()),
    "permute": ((IMAGE,), lambda f, x: x.permute(0, 2, 3, 1), only()),
    "rows": (IMAGES, lambda f, x, size: x.reshape(-1, size), only(lambda d, s: divisor(math.prod(s))(d))),
    "images": ((ROWS,), lambda f, x, size: x.reshape(-1, size), lambda d, s, n: ((n,), (), (d.found[n].rows * math.prod(s),))),
    "slice": (IMAGES, lambda f, x, start: x[:, start:], only(lambda d, s: d.int(0, s[0]))),
    "class token": ((SEQUENCE,), lambda f, x, w: f.cat([w.expand(x.shape[0], -1, -1), x], 1),
        lambda d, s, n: ((n,), (d.weight(1, 1, s[1]),))),
    "positions": ((SEQUENCE,), lambda f, x, w: x + w[f.constant(np.arange(x.shape[1]) % w.shape[0])],
        lambda d, s, n: ((n,), (d.weight(d.int(1, 2), s[1]),))),
    "attention": ((SEQUENCE,), lambda f, x, p: f.scaled_dot_product_attention(x, x, x, None, p if f.training else 0.0),
        only(lambda d, s: d.one_of(0.0, 0.2))),
    "chunk": (IMAGES, lambda f, x: (lambda a, *others: sum(others, a * a))(*f.chunk(x, x.shape[1], 1)), only()),
    "pad": (IMAGES, lambda f, x, widths: f.pad(x, widths, "constant", 0.5), only(lambda d, s: (d.int(0, 2), d.int(0, 2)))),
    "roll": (IMAGES, lambda f, x: f.roll(x, (1,), (1,)), only()),
    "channel_shuffle": ((IMAGE,), lambda f, x, groups: f.channel_shuffle(x, groups), only(lambda d, s: divisor(s[0])(d))),
}  # fmt: skip
"""Name -> the dimensions of an image that it takes (ROWS where each image has several rows), what it computes, and its arguments."""
OFTEN = ("conv2d", "conv2d", "conv2d", "conv2d", "linear", "linear", "batch_norm", "batch_norm", "max_pool2d", "max_pool2d", "relu", "relu",
         "avg_pool2d", "matmul", "softmax", "log_softmax", "plus weight", "addition in place", "rows", "rows", "sequence")  # fmt: skip
"""Those drawn half of the time."""
OF_NOTHING = ("linear", "linear of weights", "relu", "sigmoid", "square", "addition", "cat", "times weight", "plus weight", "sum",
              "flatten", "slice", "dropout", "layer_norm", "matmul", "pad")  # fmt: skip
"""Those drawn of a tensor of no numbers."""
SHARING = {"flatten", "sequence", "permute", "rows", "images", "slice", "dropout", "dropout2d", "relu in place", "addition in place",
           "channel_shuffle", "pad", "interpolate"}  # fmt: skip
"""Those whose result may show the memory of what they read."""
IN_PLACE = {"relu in place", "addition in place"}
