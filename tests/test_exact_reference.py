"""Every form, forward and backward: the pipeline and tests/reference_{tape,forms,layers}.py give the same bits, and the goldens.

`python -m tests.test_exact_reference` writes the goldens from the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.exact import blocks
from pipeline.exact.draws import random_integers
from pipeline.exact.engine import Exact
from pipeline.exact.group import ALONE
from pipeline.exact.initialisation import initial_values
from pipeline.exact.masks import Draws
from pipeline.exact.pixels import seen
from pipeline.exact.registry import Forms
from pipeline.exact.tape import Memory, Tape, Value
from tests import reference, reference_forms, reference_layers, reference_tape
from tests.goldens import FOLDER, first_difference

Array = np.ndarray
Results = dict[str, Array]
SEED, STEP = 2**32 + 5, 7
GOLDEN = FOLDER / "exact-3-forms.csv"


class Stock:
    """Torch's functions, by name."""

    statistics: Sequence[torch.Tensor] = ()
    constant = staticmethod(lambda array: torch.from_numpy(array))

    def __getattr__(self, name: str) -> Any:
        return getattr(F, name, None) or getattr(torch, name)

    def stochastic_depth(self, x: torch.Tensor, p: float, mode: str) -> torch.Tensor:
        """As torchvision has it."""
        size = [x.shape[0] if mode == "row" else 1] + [1] * (x.ndim - 1)
        return x * torch.empty(size, dtype=x.dtype, device=x.device).bernoulli_(1.0 - p).div_(1.0 - p)

    def multi_head_attention(self, x: torch.Tensor, heads: int, w: Any, b: Any, out_w: Any, out_b: Any, p: float = 0.0) -> Any:
        """As torch.nn.MultiheadAttention calls it."""
        return F.multi_head_attention_forward(
            x, x, x, x.shape[2], heads, w, b, None, None, False, p, out_w, out_b, need_weights=False
        )[0]  # fmt: skip


class Second:
    """The reference's, by the same names."""

    statistics: Sequence[Array] = ()
    constant = staticmethod(lambda array: array)

    def __getattr__(self, name: str) -> Any:
        name = f"{name}_" if name in ("exp", "log", "abs", "sum") else name
        return next(vars(of)[name] for of in (reference_forms, reference_layers, reference_tape) if name in vars(of))


def values(label: str, shape: tuple[int, ...]) -> Array:
    """Float32 from -4 to below 4, three in eight of them smaller, by up to 2^-47, so that float64 sums round."""
    drawn = random_integers(label, 2**27, math.prod(shape))
    smaller = np.where(drawn >> 20 < 48, drawn >> 20, 0)
    return ((drawn % 2**20 - 2**19) * 2.0 ** (-17 - smaller)).astype(np.float32).reshape(shape)


def cancelling(a: Array) -> Array:
    """With a third row that is less the first one and small ones beside, first and last axis: what a sum's order rounds is its result."""
    for rows in (np.moveaxis(a, axis, 0) for axis in {0, a.ndim - 1} if a.shape[axis] > 2):
        rows[1] *= 2.0**-36
        rows[3:] *= 2.0**-36
        rows[2] = -rows[0]
    return a


def assign(x: Any, index: Any, value: Any) -> Any:
    """X with a part assigned to."""
    x = x * 2
    x[index] = value
    return x


def add_to_part(x: Any, y: Any) -> Any:
    """X with an addition in place to a part of it, then to itself."""
    x = x * 1
    part = x[:, 1:]
    part += y
    x += 0.5
    return x * x


def statistics(f: Any, channels: int) -> list[Any]:
    """Running mean and variance."""
    f.statistics = [f.constant(values("forms/mean", (channels,))), f.constant(np.abs(values("forms/var", (channels,))))]
    return f.statistics


MASK = random_integers("forms/mask", 2, 25).astype(bool).reshape(5, 5) | np.eye(5, dtype=bool)
INDEX = random_integers("forms/index", 4, 6).reshape(2, 3)
IMAGE, ROWS = (3, 4, 6, 5), (3, 5, 8)
Case = tuple[Callable[..., Any], list[tuple[int, ...]], list[tuple[int, ...]]]
CASES: dict[str, Case] = {
    "linear": (lambda f, x, w, b: f.linear(x, w, b), [(5, 7)], [(4, 7), (4,)]),
    "linear on rows": (lambda f, x, w: f.linear(x, w), [(2, 3, 4, 7)], [(5, 7)]),
    "linear of one": (lambda f, x, w, b: f.linear(x, w, b), [(1, 1)], [(1, 1), (1,)]),
    "linear, images second": (lambda f, x, w, b: f.linear(x.transpose(0, 1), w, b), [ROWS], [(4, 8), (4,)]),
    "conv2d": (lambda f, x, w, b: f.conv2d(x, w, b), [IMAGE], [(6, 4, 3, 2), (6,)]),
    "conv2d padded": (lambda f, x, w: f.conv2d(x, w, None, 1, (2, 1)), [IMAGE], [(6, 4, 3, 3)]),
    "conv2d same": (lambda f, x, w: f.conv2d(x, w, None, 1, "same", (2, 1)), [IMAGE], [(2, 4, 3, 3)]),
    "conv2d strided, dilated": (lambda f, x, w, b: f.conv2d(x, w, b, (2, 1), (1, 2), (2, 3)), [(2, 4, 9, 8)], [(3, 4, 3, 2), (3,)]),
    "conv2d in groups": (lambda f, x, w, b: f.conv2d(x, w, b, (2, 2), (1, 1), (1, 1), 2), [IMAGE], [(6, 2, 3, 3), (6,)]),
    "conv2d depthwise": (lambda f, x, w, b: f.conv2d(x, w, b, (2, 1), (1, 2), (1, 2), 4), [IMAGE], [(4, 1, 3, 3), (4,)]),
    "conv2d of one place": (lambda f, x, w, b: f.conv2d(x, w, b), [(1, 3, 6, 5)], [(2, 3, 6, 5), (2,)]),
    "conv2d of 1 x 1": (lambda f, x, w: f.conv2d(x, w, None, (2, 2)), [IMAGE], [(5, 4, 1, 1)]),
    "conv2d of bytes": (lambda f, x, w, b: f.conv2d(x, w, b, (1, 1), (1, 1)), [IMAGE], [(6, 4, 3, 3), (6,)]),
    "linear of bytes": (lambda f, x, w, b: f.linear(x.flatten(1), w, b), [IMAGE], [(4, 120), (4,)]),
    "subtraction of bytes": (lambda f, x, w: (x - w) / 0.3, [IMAGE], [(4, 1, 1)]),
    "matmul": (lambda f, a, b: f.matmul(a, b), [(2, 3, 4, 5), (2, 3, 5, 6)], []),
    "matmul spread": (lambda f, a, b: a @ b, [(2, 3, 4, 5), (2, 1, 5, 6)], []),
    "matmul with a weight": (lambda f, a, w: f.matmul(a, w), [(2, 3, 4)], [(4, 5)]),
    "arithmetic": (lambda f, x, y: (x + y) * (x - y) / (3 - y) + 2 / x - x * 0.1, [ROWS, ROWS], []),
    "spread activation": (lambda f, x, y: x * y + y, [(3, 4, 6, 5), (3, 4, 1, 1)], []),
    "spread weights": (lambda f, x, a, b, c: (x * a + b) / c, [IMAGE], [(4, 1, 1), (1, 6, 5), (1,)]),
    "maximum, minimum": (lambda f, x, y, w: f.maximum(x, y) * f.minimum(x, w), [ROWS, ROWS], [(8,)]),
    "negation, abs, square": (lambda f, x: f.abs(x) - f.square(-x), [ROWS], []),
    "sqrt": (lambda f, x: f.sqrt(x), [ROWS], []),
    "power": (lambda f, x: x**5, [ROWS], []),
    "exp": (lambda f, x: f.exp(x * 30), [ROWS], []),
    "log": (lambda f, x: f.log(x), [ROWS], []),
    "clamp": (lambda f, x: f.clamp(x, -0.7, 1.3), [ROWS], []),
    "hardtanh": (lambda f, x: f.hardtanh(x, -0.7, 1.3), [ROWS], []),
    "where": (lambda f, x, w: f.where(f.constant(MASK), x, w), [(3, 5, 5)], [(5,)]),
    "leaky_relu": (lambda f, x: f.leaky_relu(x, 0.01), [ROWS], []),
    "prelu": (lambda f, x, w: f.prelu(x, w), [IMAGE], [(4,)]),
    "prelu with one weight": (lambda f, x, w: f.prelu(x, w), [IMAGE], [(1,)]),
    "elu": (lambda f, x: f.elu(x, 1.3), [ROWS], []),
    "celu": (lambda f, x: f.celu(x, 1.3), [ROWS], []),
    **{name: (lambda f, x, name=name: getattr(f, name)(x), [ROWS], [])
       for name in ("relu", "relu6", "hardsigmoid", "hardswish", "selu", "softplus", "sigmoid", "tanh", "gelu", "silu", "mish")},
    "batch_norm": (lambda f, x, w, b: f.batch_norm(x, *statistics(f, 4), w, b, True, 0.1, 1e-5), [(5, 4, 3, 7)], [(4,), (4,)]),
    "batch_norm of rows, plain": (lambda f, x: f.batch_norm(x, None, None, None, None, True, 0.1, 1e-3), [(7, 3)], []),
    "batch_norm of viewed rows": (
        lambda f, x, w, b: f.batch_norm(x.reshape(-1, 4, 5), *statistics(f, 4), w, b, True, 0.3, 1e-5), [(3, 3, 4, 5)], [(4,), (4,)]),
    "batch_norm in evaluation": (lambda f, x, w, b: f.batch_norm(x, *statistics(f, 4), w, b, False), [IMAGE], [(4,), (4,)]),
    "layer_norm": (lambda f, x, w, b: f.layer_norm(x, (8,), w, b, 1e-6), [ROWS], [(8,), (8,)]),
    "layer_norm over two axes": (lambda f, x, w: f.layer_norm(x, (5, 8), w), [ROWS], [(5, 8)]),
    "group_norm": (lambda f, x, w, b: f.group_norm(x, 2, w, b), [IMAGE], [(4,), (4,)]),
    "instance_norm": (lambda f, x: f.instance_norm(x), [IMAGE], []),
    "softmax": (lambda f, x: f.softmax(x * 9, 1), [ROWS], []),
    "log_softmax": (lambda f, x: f.log_softmax(x * 9, -1), [ROWS], []),
    "mean, sum": (lambda f, x: f.mean(x, (1, -1), True) * f.sum(x, 2, True), [(3, 5, 1)], []),
    "mean": (lambda f, x: f.mean(x, (2, 3)), [IMAGE], []),
    "amax": (lambda f, x: f.amax(f.relu(x), (1, -1), True) * f.amax(x, 2, True), [(3, 5, 4)], []),
    "amin": (lambda f, x: f.amin(f.relu(x), 1), [IMAGE], []),
    "normalize": (lambda f, x: f.normalize(x, 2.0, 1, 1e-12), [ROWS], []),
    "max_pool2d of tiles": (lambda f, x: f.max_pool2d(x, 2), [IMAGE], []),
    "max_pool2d of relu": (lambda f, x: f.max_pool2d(f.relu(x), 2), [IMAGE], []),
    "max_pool2d of relu, and relu": (lambda f, x: (lambda y: f.max_pool2d(y, (6, 5)) * y)(f.relu(x)), [(3, 4, 6, 5)], []),
    "max_pool2d": (lambda f, x: f.max_pool2d(x, 3, 2, 1), [IMAGE], []),
    "max_pool2d with ceil_mode": (lambda f, x: f.max_pool2d(x, (2, 3), (2, 2), (1, 1), (2, 1), True), [(2, 3, 8, 6)], []),
    "avg_pool2d": (lambda f, x: f.avg_pool2d(x, (3, 2), (2, 1), (1, 1)), [IMAGE], []),
    "avg_pool2d with ceil_mode": (lambda f, x: f.avg_pool2d(x, 3, 2, 1, True, False), [IMAGE], []),
    "avg_pool2d with ceil_mode and padding": (lambda f, x: f.avg_pool2d(x, 3, 2, 1, True), [IMAGE], []),
    "avg_pool2d by 7": (lambda f, x: f.avg_pool2d(x, 2, 1, 0, False, True, 7), [IMAGE], []),
    "adaptive_avg_pool2d": (lambda f, x: f.adaptive_avg_pool2d(x, (4, 3)), [IMAGE], []),
    "adaptive_avg_pool2d to one": (lambda f, x: f.adaptive_avg_pool2d(x, (1, 1)), [IMAGE], []),
    "adaptive_avg_pool2d of tiles": (lambda f, x: f.adaptive_avg_pool2d(x, (2, 5)), [IMAGE], []),
    "adaptive_max_pool2d": (lambda f, x: f.adaptive_max_pool2d(x, (3, 1)), [IMAGE], []),
    "interpolate": (lambda f, x: f.interpolate(x, (12, 15)), [IMAGE], []),
    "moves": (lambda f, x: f.roll(f.flip(x.permute(0, 2, 3, 1), [1]), (2, -1), (1, 2)).reshape(3, 5, -1), [IMAGE], []),
    "pad, stack, cat": (lambda f, x, y: f.cat([f.pad(x, (1, 2, 0, 1), "constant", 0.5), f.pad(y, (3, 0, 1, 0))], 1) * f.stack(
        [x, y], 1).flatten(1)[:, :11].reshape(-1, 1, 11), [ROWS, ROWS], []),
    "chunk": (lambda f, x: (lambda a, b, c: a * b[:, :, :2] + c)(*f.chunk(x, 3, 2)), [(3, 5, 6)], []),
    "shuffles": (lambda f, x: f.channel_shuffle(f.pixel_shuffle(x, 2), 3), [(2, 12, 2, 3)], []),
    "weight spread over the images": (lambda f, x, w: f.cat([w.expand(x.shape[0], -1, -1), x], 1), [ROWS], [(1, 1, 8)]),
    "weight read by integers": (lambda f, x, w: x + w[f.constant(INDEX)], [(3, 2, 3, 2)], [(4, 2)]),
    "assignment": (lambda f, x, y, w: assign(assign(x, (slice(None), 1), y), (slice(None), slice(2, 4)), w), [ROWS, (3, 8)], [(8,)]),
    "addition in place to a part": (lambda f, x, y: add_to_part(x, y), [ROWS, (3, 4, 8)], []),
    "weight used twice": (lambda f, x, w: f.linear(f.linear(x, w), w * 0.3) + f.linear(x, f.tanh(w)), [(4, 6)], [(6, 6)]),
    "weights alone": (lambda f, x, w, v: x * f.softmax(f.linear(w, v), 1), [(4, 5, 7)], [(5, 6), (7, 6)]),
    "normalized weights": (lambda f, x, w: f.linear(x, f.normalize(w)) * f.mean(w, 1), [(4, 6)], [(5, 6)]),
    "dropout": (lambda f, x: f.dropout(f.dropout(x, 0.3), 0.5), [ROWS], []),
    "dropout2d": (lambda f, x: f.dropout2d(x, 0.25), [IMAGE], []),
    "stochastic depth": (lambda f, x: f.stochastic_depth(x, 0.4, "row") + f.stochastic_depth(x, 0.4, "batch"), [IMAGE], []),
    "attention": (lambda f, q, k, v: f.scaled_dot_product_attention(q, k, v, f.constant(MASK), 0.2), [(2, 3, 5, 4)] * 3, []),
    "attention with an added mask": (
        lambda f, q, k, v: f.scaled_dot_product_attention(q, k, v, f.constant(values("forms/mask", (5, 5)))), [(2, 3, 5, 4)] * 3, []),
    "multi_head_attention": (
        lambda f, x, *w: f.multi_head_attention(x.transpose(0, 1), 2, *w, 0.1), [ROWS], [(24, 8), (24,), (8, 8), (8,)]),
}  # fmt: skip
"""Name -> the function, and the shapes of inputs that are made of images, and of weights."""


def inputs(case: str, kind: str = "drawn") -> tuple[list[Array], list[Array]]:
    """What a case is given: as drawn, or with many ties and zeros, or with what is not finite in one image."""
    _, xs, ws = CASES[case]
    found = [[values(f"forms/{case}/{letter}{i}", shape) for i, shape in enumerate(shapes)] for letter, shapes in (("x", xs), ("w", ws))]
    if "of bytes" in case:
        found[0][0] = (found[0][0] * 32 + 128).astype(np.uint8)
    elif kind in ("nan", "infinite"):
        for x in found[0]:
            x[0].flat[1 % x[0].size] = np.nan if kind == "nan" else np.inf
    if kind in ("ties", "zeros"):
        found = [[(np.rint(a) if kind == "ties" else a * 0).astype(a.dtype) for a in group] for group in found]
    if kind == "cancelling":
        found = [[cancelling(a) if a.dtype == np.float32 else a for a in group] for group in found]
    return found[0], found[1]


def gradient(case: str, kind: str, shape: tuple[int, ...]) -> Array:
    """That of the result."""
    g = values(f"forms/{case}/g", shape)
    return cancelling(g) if kind == "cancelling" and g.ndim else g


def of_pipeline(case: str, kind: str = "drawn", device: str = "cpu") -> Results:
    """What a form and its gradients are."""
    xs, ws = ([torch.from_numpy(a).to(device) for a in group] for group in inputs(case, kind))
    images, weights = len(xs[0]), {f"w{i}": w.requires_grad_() for i, w in enumerate(ws)}
    with torch.inference_mode():
        xs = [x.view_as(x) for x in xs]
        tape = Tape(xs[0], weights, images, draws=Draws(SEED, torch.full((1,), STEP, device=device)))
        for x in xs:
            x.exact = Value(tape._token, True, x.dtype != torch.uint8, Memory())
            x.exact.elements, x.exact.bytes = x.numel() // images, x.dtype == torch.uint8
        with Forms(tape):
            y = CASES[case][0](f := Stock(), *seen(tape, xs), *ws)
        y = tape.input(y, "a test")
        tape.walk_back([(y, torch.from_numpy(gradient(case, kind, tuple(y.shape))).to(device))])
        gradients: dict[str, Any] = tape.add_up()
        gradients |= {f"x{i}": x.exact.gradient for i, x in enumerate(xs)} | dict(zip(("mean", "var"), f.statistics, strict=False))
    return {name: a.cpu().numpy() for name, a in sorted({"y": y, **gradients}.items()) if a is not None}


def of_reference(case: str, kind: str = "drawn") -> Results:
    """The same, a second time."""
    xs, ws = inputs(case, kind)
    tape = reference_tape.Tape(len(xs[0]), SEED, STEP)
    given = {f"x{i}": reference_tape.Value(tape, x, True) for i, x in enumerate(xs)} | {
        f"w{i}": reference_tape.Value(tape, w) for i, w in enumerate(ws)
    }
    with np.errstate(all="ignore"):
        y = CASES[case][0](f := Second(), *given.values())
        tape.back((y, gradient(case, kind, y.newest().shape)))
    found = {
        "y": y.newest().array,
        **{name: v.gradient for name, v in given.items()},
        **dict(zip(("mean", "var"), f.statistics, strict=False)),
    }
    return {name: a for name, a in sorted(found.items()) if a is not None}


def bits(a: Array) -> Array:
    """Where zeros count as +0, and NaNs as one."""
    return np.where(np.isnan(a), np.float32(np.nan), a + np.float32(0)).astype(np.float32).view(np.uint32)


@pytest.mark.parametrize("kind", ["drawn", "ties", "cancelling", "zeros", "nan", "infinite"])
@pytest.mark.parametrize("case", CASES)
def test_the_reference_and_the_pipeline_give_the_same_bits(case, kind):
    one, other = of_pipeline(case, kind), of_reference(case, kind)
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype == np.float32
        assert np.array_equal(bits(one[name]), bits(other[name])), (name, one[name], other[name])


def lines(of: Callable[[str], Results]) -> list[str]:
    """Of each case and tensor its first two values in hex, and the first 16 digits of its fingerprint under the name ""."""
    found = ["form,tensor,first,second,fingerprint"]
    for case in CASES:
        for name, a in of(case).items():
            a = bits(a).view(np.float32)
            first = [float(v).hex() for v in [*a.flatten()[:2], 0.0][:2]]
            found.append(",".join((case.replace(",", " and"), name, *first, reference.fingerprint({"": a})[:16])))
    return found


@pytest.mark.parametrize("of", [of_pipeline, of_reference])
def test_both_give_the_goldens_of_the_forms(of):
    assert first_difference(lines(of), GOLDEN.read_text().splitlines()) is None


def test_forms_that_are_computed_in_small_parts_give_the_goldens(monkeypatch):
    monkeypatch.setattr(blocks, "size", lambda: 2)
    assert first_difference(lines(of_pipeline), GOLDEN.read_text().splitlines()) is None


@pytest.mark.cuda
def test_cuda_gives_the_goldens_of_the_forms(cuda):
    assert first_difference(lines(lambda case: of_pipeline(case, device=str(cuda))), GOLDEN.read_text().splitlines()) is None


def network(f: Any, x: Any, *weights: Any) -> tuple[Any, ...]:
    """Logits, none, and logits of a head beside the main one."""
    conv, gamma, beta, depthwise, main, bias, beside = weights
    y = f.relu(f.batch_norm(f.conv2d(x, conv, None, 2, 1), None, None, gamma, beta, True, 0.1, 1e-5))
    y = y + f.silu(f.conv2d(y, depthwise, None, 1, 1, 1, 4))
    z = f.mean(y, (2, 3))
    return f.linear(z, main, bias), None, f.linear(z, beside)


def test_a_step_of_a_network_with_two_heads_is_the_references():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(torch.from_numpy(w) for w in weights)

        def forward(self, x: torch.Tensor) -> Any:
            return network(Stock(), x, *self.weights)

    shapes = (4, 3, 3, 3), (4,), (4,), (4, 1, 3, 3), (5, 4), (5,), (5, 4)
    weights = [values(f"forms/network/w{i}", shape) for i, shape in enumerate(shapes)]
    images = random_integers("forms/network/images", 256, 7 * 3 * 9 * 8).astype(np.uint8).reshape(7, 3, 9, 8)
    labels = random_integers("forms/network/labels", 4, 7)
    loss, gradients = Exact().loss_and_gradients(Network(), torch.from_numpy(images), torch.from_numpy(labels), ALONE, 7, auxiliary=0.4)
    tape = reference_tape.Tape(7)
    given = [reference_tape.Value(tape, w) for w in weights]
    main, _, beside = network(Second(), reference_tape.Value(tape, images, True), *given)
    of_heads = [(reference.softmax(y.array)[2] - np.eye(5)[labels]) / np.float64(7) for y in (main, beside)]
    tape.back((main, of_heads[0].astype(np.float32)), (beside, (of_heads[1] * 0.4).astype(np.float32)))
    wanted = [reference.mean(reference.losses(y.array, labels)) for y in (main, beside)]
    assert loss.item() == np.float32(wanted[0] + wanted[1] * 0.4)
    for i, (one, other) in enumerate(zip(gradients, given, strict=True)):
        assert np.array_equal(bits(one.numpy()), bits(other.gradient)), i


def test_initial_values_are_the_references():
    class Filled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(7, 300)
            for name in ("uniform", "normal", "cut", "after"):
                self.register_parameter(name, nn.Parameter(torch.empty(20, 50)))
            nn.init.uniform_(self.uniform, -0.3, 0.7)
            nn.init.normal_(self.normal, 0.1, 0.02)
            nn.init.trunc_normal_(self.cut, 0.01, 0.5, -0.4, 0.6)
            nn.init.kaiming_normal_(self.after, nonlinearity="relu")
            with torch.no_grad():
                self.after.mul_(0.3).add_(0.1).clamp_(-0.1, 0.2)

    with initial_values(3):
        model = Filled()
    bound = 1 / math.sqrt(7)
    after = reference_layers.initial("after", 3, 1000, "normal", 0.0, math.sqrt(2.0) / math.sqrt(50)) * 0.3 + 0.1
    wanted = {
        "layer.weight": reference_layers.initial("layer.weight", 3, 2100, "uniform", -bound, bound),
        "layer.bias": reference_layers.initial("layer.bias", 3, 300, "uniform", -bound, bound),
        "uniform": reference_layers.initial("uniform", 3, 1000, "uniform", -0.3, 0.7),
        "normal": reference_layers.initial("normal", 3, 1000, "normal", 0.1, 0.02),
        "cut": reference_layers.initial("cut", 3, 1000, "trunc_normal", 0.01, 0.5, -0.4, 0.6),
        "after": np.clip(after, -0.1, 0.2),
    }
    for name, parameter in model.named_parameters():
        assert np.array_equal(bits(parameter.detach().numpy().flatten()), bits(wanted[name].astype(np.float32))), name


if __name__ == "__main__":
    Path(GOLDEN).write_text("\n".join(lines(of_reference)) + "\n")
