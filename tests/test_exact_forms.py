"""Every exact form against PyTorch's own operation and autograd in float64: values, and gradients of activations and weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.exact import registry
from pipeline.exact.group import ALONE, Group
from pipeline.exact.masks import Draws
from pipeline.exact.tape import Tape


class Asked(NamedTuple):
    """A function, and the shapes of the activations, then of the weights, that it takes."""

    function: Callable[..., Tensor]
    activations: list[tuple[int, ...]]
    weights: list[tuple[int, ...]] = []  # noqa: RUF012 - never changed
    positive: bool = False
    masked: bool = False
    """Random: what it makes of ones is what it multiplies by."""


class Drawn:
    """What hypothesis draws for a case: few images, small sizes."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.images = self.one_of(0, 1, 2, 3)

    def one_of(self, *values: Any) -> Any:
        return self.data.draw(st.sampled_from(values))

    def sizes(self, count: int, least: int = 1) -> tuple[int, ...]:
        return tuple(self.data.draw(st.lists(st.sampled_from([n for n in (1, 2, 3, 5) if n >= least]), min_size=count, max_size=count)))

    def shape(self, *ranks: int, least: int = 1) -> tuple[int, ...]:
        """Of a tensor with images first, of one of these ranks."""
        return (self.images, *self.sizes(self.one_of(*(ranks or (2, 3, 4))) - 1, least))


class Others(Group):
    """Beside a worker without images there is one with some, of which a magnitude is known; its sums are left out."""

    count = 2

    def maximum(self, magnitudes: Tensor) -> Tensor:
        return magnitudes.clamp_min(1.0)


Case = Callable[[Drawn], Asked]
ELEMENTWISE, WEIGHTS, PRODUCTS, CHAINS = 1e-6, 1e-5, 1e-5, 1e-4
"""Bounds of the error, as parts of the largest magnitude, or of 1: some float32 roundings; operands of 19 bits, once and in turn."""


def unary(function: Callable[[Tensor], Tensor], positive: bool = False) -> Case:
    return lambda d: Asked(function, [d.shape()], positive=positive)


def binary(function: Callable[[Any, Any], Tensor], positive: bool = False) -> Case:
    """Of two activations, of one that is spread, of a number on either side, and of a weight."""

    def case(d: Drawn) -> Asked:
        shape = d.shape(3)
        return d.one_of(
            Asked(function, [shape, shape], positive=positive),
            Asked(function, [shape, (shape[0], 1, shape[2])], positive=positive),
            Asked(lambda a: function(a, 1.7), [shape], positive=positive),
            Asked(function, [shape], [shape[2:]], positive=positive),
            Asked(lambda x, w: function(w, x), [shape], [(shape[1], 1)], positive=positive),
        )

    return case


def chosen(operation: str) -> Case:
    compare = getattr(torch, operation)
    return lambda d: d.one_of(
        Asked(lambda a, b: torch.where(compare(a, b), a * 2, b * 3), [(d.images, 3, 2)] * 2),
        Asked(lambda x: torch.where(compare(x, 0.2), x * 2, 0.5), [d.shape()]),
    )


def conv2d(d: Drawn) -> Asked:
    groups, of_group, out = d.one_of(1, 1, 2, 3), *d.sizes(2)
    kernel, stride, padding, dilation = (d.one_of(1, 2, 3), d.one_of(1, 2)), d.one_of(1, 2), d.one_of(0, 1), d.one_of(1, 2)
    size = [dilation * (k - 1) + 1 + d.one_of(0, 1, 4) for k in kernel]
    bias = d.one_of(True, False)
    weights = [(groups * out, of_group, *kernel), *([(groups * out,)] if bias else [])]
    return Asked(lambda x, w, b=None: F.conv2d(x, w, b, stride, padding, dilation, groups), [(d.images, groups * of_group, *size)], weights)


def linear(d: Drawn) -> Asked:
    shape, out = d.shape(2, 3, 4), d.one_of(1, 2, 5)
    weights = [(out, shape[-1]), *([(out,)] if d.one_of(True, False) else [])]
    return Asked(lambda x, w, b=None: F.linear(x, w, b), [shape], weights)


def matmul(d: Drawn) -> Asked:
    i, j, k, heads = d.sizes(4)
    return d.one_of(
        Asked(torch.matmul, [(d.images, heads, i, j), (d.images, heads, j, k)]),
        Asked(torch.matmul, [(d.images, heads, i, j), (d.images, 1, j, k)]),
        Asked(torch.matmul, [(d.images, i, j)], [(j, k)]),
    )


def batch_norm(d: Drawn) -> Asked:
    shape = (d.one_of(2, 3, 5), *d.sizes(d.one_of(1, 3)))
    affine = [(shape[1],)] * d.one_of(0, 2)
    if d.one_of(True, False):
        return Asked(lambda x, *w: F.batch_norm(x, None, None, *w, training=True), [shape], affine)

    def running(x: Tensor, *w: Tensor) -> Tensor:
        mean, var = torch.full((shape[1],), 0.25, dtype=x.dtype), torch.full((shape[1],), 1.5, dtype=x.dtype)
        return F.batch_norm(x, mean, var, *w)

    return Asked(running, [shape], affine)


def layer_norm(d: Drawn) -> Asked:
    shape = d.shape(2, 3, 4, least=2)
    of = shape[-1:] if len(shape) < 3 else d.one_of(shape[-1:], shape[-2:])
    return Asked(lambda x, *w: F.layer_norm(x, of, *w), [shape], [of] * d.one_of(0, 2))


def group_norm(d: Drawn) -> Asked:
    groups, each, *places = d.sizes(4)
    channels = groups * each
    return Asked(lambda x, *w: F.group_norm(x, groups, *w), [(d.one_of(1, 2, 3), channels, *places, 2)], [(channels,)] * d.one_of(0, 2))


def instance_norm(d: Drawn) -> Asked:
    shape = (d.one_of(1, 2, 3), *d.sizes(2), 2)
    return Asked(lambda x, w, b: F.instance_norm(x, weight=w, bias=b), [shape], [shape[1:2]] * 2)


def along(function: Callable[..., Tensor]) -> Case:
    """Of an axis of an image."""

    def case(d: Drawn) -> Asked:
        shape = d.shape(2, 3, 4)
        dim = d.one_of(*range(1, len(shape)), -1)
        return Asked(lambda x: function(x, dim), [shape])

    return case


def reduced(name: str) -> Case:
    def case(d: Drawn) -> Asked:
        shape, keep = d.shape(3, 4), d.one_of(True, False)
        dims = d.one_of(1, -1, (1, 2), (-2, -1), [1])
        return Asked(lambda x: getattr(torch, name)(x, dims, keepdim=keep), [shape])

    return case


def pooled(function: Callable[..., Tensor], of_maxima: bool) -> Case:
    def case(d: Drawn) -> Asked:
        kernel, stride, ceil = (d.one_of(1, 2, 3), d.one_of(1, 2, 3)), d.one_of(None, 1, 2, 3), d.one_of(True, False)
        padding = tuple(d.one_of(*range(k // 2 + 1)) for k in kernel)
        others = {"dilation": d.one_of(1, 2)} if of_maxima else {"count_include_pad": d.one_of(True, False)}
        size = [others.get("dilation", 1) * (k - 1) + 1 + d.one_of(0, 1, 2, 5) for k in kernel]
        return Asked(lambda x: function(x, kernel, stride, padding, ceil_mode=ceil, **others), [(d.images, *d.sizes(1), *size)])

    return case


def adaptive(function: Callable[..., Tensor], divides: bool) -> Case:
    def case(d: Drawn) -> Asked:
        out = (d.one_of(1, 2, 3), d.one_of(1, 2, 3))
        size = [o * d.one_of(1, 2, 3) for o in out] if divides else [d.one_of(1, 2, 5, 7) for _ in out]
        return Asked(lambda x: function(x, out), [(d.images, *d.sizes(1), *size)])

    return case


def stochastic_depth(x: Tensor) -> Tensor:
    return x * torch.empty([x.shape[0], *[1] * (x.dim() - 1)], dtype=x.dtype).bernoulli_(0.6)


def masked(function: Callable[[Tensor], Tensor], *ranks: int) -> Case:
    return lambda d: Asked(function, [d.shape(*ranks)], masked=True)


def moved(function: Callable[..., Tensor], *ranks: int) -> Case:
    """Of a square of it, so that gradients differ from place to place."""
    return lambda d: Asked(lambda x: function(x) * function(x), [d.shape(*ranks)])


def expand(d: Drawn) -> Asked:
    return d.one_of(
        Asked(lambda x, w: w.expand(x.shape[0], -1, -1) * x, [(d.images, 3, 2)], [(1, 3, 2)]),
        Asked(lambda x: x.expand(-1, 3, -1).square(), [(d.images, 1, 2)]),
    )


def indexing(d: Drawn) -> Asked:
    table = torch.tensor([[0, 2, 2], [1, 0, 2]])
    return d.one_of(
        Asked(lambda x: x[:, 1:] * x[:, :-1], [(d.images, 3, 2)]),
        Asked(lambda x: x[..., ::2, :] * x[:, 1, None, None, :, :][:, 0, :, 1:], [(d.images, 2, 3, 4)]),
        Asked(lambda x, w: x + w[table.flatten()].view(2, 3, 4), [(d.images, 2, 3, 4)], [(3, 4)]),
    )


def power(d: Drawn) -> Asked:
    exponent = d.one_of(0.5, 1, 2, 3, 8)
    return Asked(lambda x: x**exponent, [d.shape()], positive=True)


def interpolate(d: Drawn) -> Asked:
    factor = d.one_of(1, 2, 3)
    return Asked(lambda x: F.interpolate(x, scale_factor=factor), [d.shape(4)])


def stack(d: Drawn) -> Asked:
    dim = d.one_of(0, 1, 2)
    return Asked(lambda a, b: torch.stack((a, b), dim).square(), [(d.images, 3)] * 2)


def assigned(x: Tensor) -> Tensor:
    y = x * 2
    y[:, :1] = 3.0
    return y


TABLE: dict[str, tuple[Case, float]] = {
    "conv2d": (conv2d, PRODUCTS),
    "linear": (linear, PRODUCTS),
    "matmul": (matmul, PRODUCTS),
    "addition": (binary(lambda a, b: a + b), WEIGHTS),
    "subtraction": (binary(lambda a, b: torch.sub(a, b) if isinstance(a, Tensor) else a - b), WEIGHTS),
    "reversed subtraction": (unary(lambda x: 1.5 - x), ELEMENTWISE),
    "multiplication": (binary(lambda a, b: a * b), WEIGHTS),
    "division": (binary(lambda a, b: a / b, positive=True), WEIGHTS),
    "reversed division": (unary(lambda x: 1.5 / x, positive=True), ELEMENTWISE),
    "maximum": (lambda d: Asked(torch.maximum, [(d.images, 3, 2)] * 2), ELEMENTWISE),
    "minimum": (lambda d: Asked(torch.minimum, [(d.images, 3, 2)] * 2), ELEMENTWISE),
    "negation": (unary(lambda x: -x), ELEMENTWISE),
    "power": (power, ELEMENTWISE),
    "square": (unary(torch.square), ELEMENTWISE),
    "sqrt": (unary(torch.sqrt, positive=True), ELEMENTWISE),
    "abs": (unary(torch.abs), ELEMENTWISE),
    "exp": (unary(torch.exp), ELEMENTWISE),
    "log": (unary(torch.log, positive=True), ELEMENTWISE),
    "clamp": (unary(lambda x: torch.clamp(x, -0.5, 1.0) + x.clamp(max=0.2)), ELEMENTWISE),
    "clamp_min": (unary(lambda x: x.clamp_min(0.1)), ELEMENTWISE),
    "where of": (lambda d: Asked(lambda a, b: a.where(a > b, b * 2), [(d.images, 3, 2)] * 2), ELEMENTWISE),
    "where": (lambda d: Asked(lambda a, b: torch.where(a > b, a, b * 2), [(d.images, 3, 2)] * 2), ELEMENTWISE),
    "masked_fill": (unary(lambda x: x.masked_fill(x > 0.5, -1.0)), ELEMENTWISE),
    "relu": (unary(F.relu), ELEMENTWISE),
    "relu6": (unary(lambda x: F.relu6(x * 5)), ELEMENTWISE),
    "hardtanh": (unary(lambda x: F.hardtanh(x, -0.5, 0.7)), ELEMENTWISE),
    "hardsigmoid": (unary(lambda x: F.hardsigmoid(x * 3)), ELEMENTWISE),
    "hardswish": (unary(lambda x: F.hardswish(x * 3)), ELEMENTWISE),
    "leaky_relu": (unary(lambda x: F.leaky_relu(x, 0.2)), ELEMENTWISE),
    "prelu": (lambda d: Asked(F.prelu, [(d.images, 3, 2)], [d.one_of((1,), (3,))]), WEIGHTS),
    "elu": (unary(lambda x: F.elu(x, 1.3)), ELEMENTWISE),
    "celu": (unary(lambda x: F.celu(x, 1.3)), ELEMENTWISE),
    "selu": (unary(F.selu), ELEMENTWISE),
    "softplus": (unary(F.softplus), ELEMENTWISE),
    "sigmoid": (unary(torch.sigmoid), ELEMENTWISE),
    "tanh": (unary(torch.tanh), ELEMENTWISE),
    "gelu": (unary(F.gelu), ELEMENTWISE),
    "silu": (unary(F.silu), ELEMENTWISE),
    "mish": (unary(F.mish), ELEMENTWISE),
    "batch_norm": (batch_norm, ELEMENTWISE),
    "layer_norm": (layer_norm, WEIGHTS),
    "group_norm": (group_norm, WEIGHTS),
    "instance_norm": (instance_norm, WEIGHTS),
    "softmax": (along(torch.softmax), ELEMENTWISE),
    "log_softmax": (along(torch.log_softmax), ELEMENTWISE),
    "mean": (reduced("mean"), ELEMENTWISE),
    "sum": (reduced("sum"), ELEMENTWISE),
    "amax": (reduced("amax"), ELEMENTWISE),
    "amin": (reduced("amin"), ELEMENTWISE),
    "normalize": (along(lambda x, dim: F.normalize(x, dim=dim)), ELEMENTWISE),
    "max_pool2d": (pooled(F.max_pool2d, True), ELEMENTWISE),
    "avg_pool2d": (pooled(F.avg_pool2d, False), ELEMENTWISE),
    "adaptive_avg_pool2d": (adaptive(F.adaptive_avg_pool2d, False), ELEMENTWISE),
    "adaptive_max_pool2d": (adaptive(F.adaptive_max_pool2d, True), ELEMENTWISE),
    "interpolate": (interpolate, ELEMENTWISE),
    "dropout": (masked(lambda x: F.dropout(x, 0.3)), ELEMENTWISE),
    "dropout1d": (masked(lambda x: F.dropout1d(x, 0.3), 3), ELEMENTWISE),
    "dropout2d": (masked(lambda x: F.dropout2d(x, 0.3), 4), ELEMENTWISE),
    "dropout3d": (masked(lambda x: F.dropout3d(x, 0.3), 5), ELEMENTWISE),
    "bernoulli_": (masked(stochastic_depth), ELEMENTWISE),
    "empty": (masked(stochastic_depth), ELEMENTWISE),
    "reshape": (lambda d: Asked(lambda x: x.reshape(x.shape[0], 3, 4).square(), [(d.images, 6, 2)]), ELEMENTWISE),
    "flatten": (moved(lambda x: x.flatten(1)), ELEMENTWISE),
    "unflatten": (lambda d: Asked(lambda x: x.unflatten(1, (2, 3)).square(), [(d.images, 6, 2)]), ELEMENTWISE),
    "contiguous": (moved(lambda x: x.contiguous()), ELEMENTWISE),
    "conversion": (moved(lambda x: x.to(x.dtype)), ELEMENTWISE),
    "type": (moved(lambda x: x.type(x.dtype)), ELEMENTWISE),
    "float": (moved(lambda x: x.float()), ELEMENTWISE),
    "clone": (moved(lambda x: x.clone()), ELEMENTWISE),
    "detach": (unary(lambda x: x.detach() * x), ELEMENTWISE),
    "permute": (moved(lambda x: x.permute(2, 0, 1), 3), ELEMENTWISE),
    "transpose": (moved(lambda x: x.transpose(1, -1)), ELEMENTWISE),
    "t": (moved(lambda x: torch.t(x.flatten(1)).t()), ELEMENTWISE),
    "T": (moved(lambda x: x.T.T), ELEMENTWISE),
    "mT": (moved(lambda x: x.mT), ELEMENTWISE),
    "movedim": (moved(lambda x: x.movedim(1, -1)), ELEMENTWISE),
    "unsqueeze": (moved(lambda x: x.unsqueeze(1)), ELEMENTWISE),
    "squeeze": (lambda d: Asked(lambda x: x.squeeze(2).square(), [(d.images, 3, 1, 2)]), ELEMENTWISE),
    "flip": (moved(lambda x: x.flip(1)), ELEMENTWISE),
    "roll": (moved(lambda x: torch.roll(x, (1, -1), (1, 2)), 3, 4), ELEMENTWISE),
    "pad": (moved(lambda x: F.pad(x, (1, 2, 0, 1), value=0.5), 3, 4), ELEMENTWISE),
    "expand": (expand, WEIGHTS),
    "expand_as": (lambda d: Asked(lambda x, w: w.expand_as(x) * x, [(d.images, 3, 2)], [(1, 3, 2)]), WEIGHTS),
    "repeat": (lambda d: Asked(lambda x, w: w.repeat(x.shape[0], 1, 1) * x, [(d.images, 3, 2)], [(1, 3, 2)]), WEIGHTS),
    "cat": (lambda d: Asked(lambda a, b: torch.cat((a, b, a), 1).square(), [(d.images, 3, 2), (d.images, 1, 2)]), ELEMENTWISE),
    "stack": (stack, ELEMENTWISE),
    "chunk": (lambda d: Asked(lambda x: torch.mul(*x.chunk(2, 1)), [(d.images, 4, 2)]), ELEMENTWISE),
    "split": (lambda d: Asked(lambda x: x.split([1, 3], 1)[1] * x.split(2, 1)[0][:, :1], [(d.images, 4, 2)]), ELEMENTWISE),
    "unbind": (lambda d: Asked(lambda x: torch.mul(*x.unbind(1)), [(d.images, 2, 3)]), ELEMENTWISE),
    "select": (moved(lambda x: x.select(1, 0)), ELEMENTWISE),
    "narrow": (moved(lambda x: x.narrow(1, 0, 1)), ELEMENTWISE),
    "indexing": (indexing, WEIGHTS),
    "pixel_shuffle": (lambda d: Asked(lambda x: F.pixel_shuffle(x, 2).square(), [(d.one_of(1, 2), 8, 2, 3)]), ELEMENTWISE),
    "channel_shuffle": (lambda d: Asked(lambda x: F.channel_shuffle(x, 2).square(), [(d.images, 6, 2, 3)]), ELEMENTWISE),
    **{f"comparison {name}": (chosen(name), WEIGHTS) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "assignment to a part": (unary(assigned), ELEMENTWISE),
    "scaled_dot_product_attention": (
        lambda d: Asked(F.scaled_dot_product_attention, [(d.images, 2, 3, 4), (d.images, 2, 5, 4), (d.images, 2, 5, 2)]), PRODUCTS,
    ),
    "multi_head_attention_forward": (
        lambda d: Asked(
            lambda x, w, b, o, c: F.multi_head_attention_forward(
                x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1), 4, 2, w, b, None, None, False, 0.0, o, c, need_weights=False
            )[0].transpose(0, 1),
            [(d.images, 3, 4)], [(12, 4), (12,), (4, 4), (4,)],
        ), CHAINS,
    ),
    "einsum": (lambda d: Asked(lambda a, b: torch.einsum("nij,nkj->nik", a, b), [(d.images, 3, 2), (d.images, 4, 2)]), PRODUCTS),
}  # fmt: skip
"""Name of a form -> what is computed with it, and the bound of its error."""


def exactly(asked: Asked, activations: list[Tensor], weights: list[Tensor], g: Tensor | None) -> list[Tensor]:
    """The value, and the gradients of all inputs for the value's gradient `g`, or one of ones."""
    found: dict[int, Tensor] = {}
    with torch.inference_mode():
        images = torch.zeros(len(activations[0]), 1)
        named = {str(i): w.detach().clone().requires_grad_() for i, w in enumerate(weights)}
        tape = Tape(images, named, len(images), ALONE if len(images) else Others(), Draws(1, torch.ones(1, dtype=torch.int64)))
        tape.value(images).learns = True
        given = [x.clone() for x in activations]
        for i, x in enumerate(given):
            tape.record(x, (images,), lambda g, i=i: (found.__setitem__(i, g), (None,))[1])
            tape.value(x).elements = math.prod(x.shape[1:])
        with registry.Forms(tape):
            y = asked.function(*given, *named.values())
        y = tape.input(y, "a test")
        tape.walk_back([(y, torch.ones_like(y) if g is None else g)])
        of_weights = tape.add_up()
    of_inputs = [found.get(i, torch.zeros_like(x)) for i, x in enumerate(activations)]
    return [y, *of_inputs, *(torch.zeros_like(w) if of_weights[name] is None else of_weights[name] for name, w in named.items())]


def in_float64(function: Callable[..., Tensor], inputs: list[Tensor], g: Tensor) -> list[Tensor]:
    given = [x.double().requires_grad_() for x in inputs]
    y = function(*given)
    gradients = torch.autograd.grad(y, given, g.to(y.dtype), allow_unused=True)
    return [y, *(torch.zeros_like(x) if d is None else d for x, d in zip(given, gradients, strict=True))]


@pytest.mark.parametrize("name", TABLE)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data())
def test_a_form_has_the_values_and_gradients_of_pytorchs_in_float64_to_its_bound(name, data):
    case, bound = TABLE[name]
    asked = case(Drawn(data))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    activations, weights = ([torch.randn(shape, generator=draw) for shape in shapes] for shapes in (asked.activations, asked.weights))
    if asked.positive:
        activations, weights = ([x.abs() + 0.25 for x in given] for given in (activations, weights))
    function = asked.function
    if asked.masked:
        mask, *_ = exactly(asked, [torch.ones_like(x) for x in activations], [], None)
        function = lambda x: x * mask.double()  # noqa: E731
    shape = function(*(x.double() for x in (*activations, *weights))).shape
    g = torch.randn(shape, generator=draw)
    wanted, computed = in_float64(function, [*activations, *weights], g), exactly(asked, activations, weights, g)
    for a, b in zip(computed, wanted, strict=True):
        assert a.dtype == torch.float32
        assert a.shape == b.shape
        assert not b.numel() or (a - b).abs().max() <= bound * max(1.0, float(b.abs().max()))


def test_every_form_is_in_the_table():
    composed = {form.__name__ for form in registry.COMPOSED.values()}
    assert set(registry.FORMS) | composed <= set(TABLE)
