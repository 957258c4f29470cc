"""Both implementations give the goldens, and each rule of the definition, replaced by its nearest neighbour, does not."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline import device as devices
from pipeline.exact import grid, loss, optimizers, products, registry, self_test, tiles, transcendental
from pipeline.exact.draws import permutation, random_integers
from pipeline.exact.initialisation import initialise
from pipeline.models.simple_cnn import SimpleCNN
from pipeline.system.tensors import fingerprint
from tests import reference
from tests.conftest import ROOT
from tests.dispatched import Dispatched
from tests.goldens import CASES, Pipeline, Reference, first_difference, golden


@pytest.mark.parametrize("case", CASES)
def test_the_pipeline_gives_the_golden(case):
    assert first_difference(CASES[case](Pipeline()), golden(case)) is None


@pytest.mark.parametrize("case", CASES)
def test_the_reference_gives_the_golden(case):
    assert first_difference(CASES[case](Reference()), golden(case)) is None


@pytest.mark.cuda
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tf32", [False, True])
def test_cuda_gives_the_golden_whether_tf32_is_on_or_off(cuda, case, tf32, monkeypatch):
    of, prepare = Pipeline(cuda), devices.prepare

    def prepared(device):
        prepare(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32

    monkeypatch.setattr(devices, "prepare", prepared)
    assert first_difference(CASES[case](of), golden(case)) is None


def test_a_difference_from_the_golden_names_the_first_step_and_tensor_in_hex():
    wanted = ["step,loss,w", "1,0x1p+1,aa", "2,0x1p+0,bb"]
    assert first_difference(["step,loss,w", "1,0x1p+1,aa", "2,0x1p+0,cc"], wanted) == "step 2, w: cc, but the golden has bb"


@pytest.mark.parametrize(("below", "count"), [(1, 3), (256, 1000), (2**24, 1000), (2**63, 1000)])
def test_the_references_draws_are_the_pipelines(below, count):
    assert np.array_equal(reference.draws("tests", below, count), random_integers("tests", below, count))
    assert np.array_equal(reference.order(3, 2, count), permutation("order/3/2", count))


def test_the_references_initial_weights_and_fingerprint_are_the_pipelines():
    model = SimpleCNN()
    initialise(model, 5)
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    assert reference.fingerprint(reference.initial_weights(5)) == fingerprint(weights) == reference.fingerprint(weights)


# --- each rule and its nearest neighbour -----------------------------------------------------------------------------


class Replaced(Dispatched):
    """Computes an operation of PyTorch otherwise where `otherwise` gives a result."""

    def __init__(self, name: str, otherwise: Callable[..., Any]) -> None:
        super().__init__()
        self.name, self.otherwise = f"aten::{name}", otherwise

    def call(self, func, args, kwargs):
        if func._schema.name == self.name and (other := self.otherwise(*args)) is not None:
            return args[0].copy_(other) if self.name.endswith("_") else kwargs["out"].copy_(other) if "out" in kwargs else other
        return func(*args, **kwargs)


def constant(module: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(module, name, value)


def wrapped(module: Any, name: str, change: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """`change` gets the original function, then its arguments."""
    original = getattr(module, name)
    return lambda patch: patch.setattr(module, name, lambda *args, **named: change(original, *args, **named))


def operation(name: str, otherwise: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], Replaced]:
    return lambda _: Replaced(name, otherwise)


def reciprocal(x: Any, y: Any) -> Any:
    return x * (1 / y)


def half_away_from_zero(original: Any, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Half away from zero instead of half to even."""
    y = x * scale
    return torch.where((y - y.trunc()).abs() == 0.5, y.trunc() + y.sign(), y.round())


def twice_in_large_batches(original: Any, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    placed = original(x, scale)
    return (placed / 2).round() * 2 if len(x) > 327 else placed


def relu_with_gradient_at_zero(tape: Any, x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return tape.record(torch.relu(x), (x,), lambda g: (torch.where(x >= 0, g, 0),))


def to_the_last_maximum(original: Any, g: torch.Tensor, x: torch.Tensor, places: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    turned, around = x.flip(2, 3).contiguous(), y.flip(2, 3).contiguous()
    return original(g.flip(2, 3).contiguous(), turned, tiles.places(turned, len(places)).contiguous(), around).flip(2, 3)


def with_grids(
    change: Callable[[Any, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
) -> Callable[[pytest.MonkeyPatch], None]:
    """The grids of the gradients of a weight and its bias from other magnitudes, a number an output channel each."""

    def backward(original: Any, layer: Any, g: torch.Tensor) -> Any:
        result = original(layer, g)
        channels = len(layer.w)
        if len(layer.magnitudes) > channels:
            of_weight, of_bias = change(layer, layer.magnitudes[:channels], layer.magnitudes[channels:])
            layer.magnitudes = torch.cat((of_weight, of_bias))
        return result

    return wrapped(products.WeightedSum, "backward", backward)


def mean_from_a_float64_maximum(original: Any, self: Any, losses: torch.Tensor, batch_images: int) -> None:
    original(self, losses, batch_images)
    rounded_up = self.magnitudes[0].double() > losses.amax()
    if rounded_up:
        self.magnitudes[0] = torch.nextafter(self.magnitudes[0], torch.zeros(()))


def last_maximum(logits: torch.Tensor) -> torch.Tensor:
    return logits.shape[1] - 1 - loss_first_maximum(logits.flip(1))


loss_first_maximum = loss.first_maximum


def momentum_and_gradient_in_one(self: Any, weights: Any, gradient: Any, state: Any, group: Any) -> None:
    velocity = state["momentum_buffer"]
    momentum = torch.tensor(group["momentum"]).double()
    velocity.copy_(F.hardshrink((velocity.double() * momentum + gradient.double()).float(), optimizers.SNAP))
    weights.copy_(F.hardshrink(weights - velocity * group["lr"], optimizers.SNAP))


def weight_and_velocity_in_one(self: Any, weights: Any, gradient: Any, state: Any, group: Any) -> None:
    velocity = state["momentum_buffer"]
    velocity.copy_(F.hardshrink(velocity * torch.tensor(group["momentum"]) + gradient, optimizers.SNAP))
    weights.copy_(F.hardshrink((weights.double() - velocity.double() * group["lr"].double()).float(), optimizers.SNAP))


SMALL, ODD, LARGE = "exact-3-batch-64", "exact-3-batch-100", "exact-3-batch-512"
FUNCTIONS, EVALUATION, EDGES = "exact-3-functions", "exact-3-evaluation", "exact-3-edges"
RULES: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], Any]]] = {
    "operands have 19 bits, not 18": (SMALL, wrapped(grid, "choose", lambda original, m, bits=18: original(m, bits))),
    "operands have 19 bits in a large batch too": (LARGE, wrapped(grid, "place", twice_in_large_batches)),
    "placing rounds half to even, not away from zero": (EDGES, wrapped(grid, "place", half_away_from_zero)),
    "a magnitude is at least 2^-40, not 2^-39": (EDGES, constant(grid, "FLOOR", 2.0**-39)),
    "a grid an image, not a batch": (
        SMALL, wrapped(grid, "image_magnitudes", lambda original, x: original(x).amax().expand(len(x))),
    ),
    "the logits of an image alone are those in its batch": (
        EVALUATION, wrapped(grid, "image_magnitudes", lambda original, x: original(x).amax().expand(len(x))),
    ),
    "the weight's gradient on the largest product of gradient and unit": (
        SMALL, with_grids(lambda layer, weight, bias: (bias * layer.x_grid.unit.amax(), bias)),
    ),
    "the weight's gradient has a grid an output channel, not one for all": (
        SMALL, with_grids(lambda layer, weight, bias: (weight.amax().expand(len(weight)), bias)),
    ),
    "the bias's gradient on a grid of its own, not twice as coarse": (SMALL, with_grids(lambda layer, weight, bias: (weight, bias * 2))),
    "the bias's gradient has a grid an output channel, not one for all": (
        SMALL, with_grids(lambda layer, weight, bias: (weight, bias.amax().expand(len(bias)))),
    ),
    "bytes are divided by 255, not multiplied by 1 / 255": (
        SMALL, operation("div", lambda x, y: reciprocal(x, y) if x.dtype == torch.float32 and x.dim() == 4 else None),
    ),
    "ReLU's gradient at 0 is 0": (
        EDGES, lambda patch: patch.setitem(registry.FORM_OF, F.relu, relu_with_gradient_at_zero),
    ),
    "max-pool sends the gradient to the first maximum, not the last": (EDGES, wrapped(tiles, "spread", to_the_last_maximum)),
    "exp is the polynomial, not the library's": (FUNCTIONS, constant(transcendental, "exp", torch.exp)),
    "log is the series, not the library's": (FUNCTIONS, constant(transcendental, "log", torch.log)),
    "exp's polynomial has degree 10, not 9": (FUNCTIONS, constant(transcendental, "_EXP_TERMS", transcendental._EXP_TERMS[1:])),
    "exp starts at -60, not -50": (FUNCTIONS, wrapped(transcendental, "exp", lambda original, x, least=-50.0: original(x, least))),
    "log's series ends with the 17th power, not the 15th": (
        FUNCTIONS, constant(transcendental, "_LOG_TERMS", transcendental._LOG_TERMS[1:]),
    ),
    "log's interval ends at sqrt(2), not 2": (FUNCTIONS, constant(transcendental, "_SQRT2", 2.0)),
    "log's interval has sqrt(2) in it": (FUNCTIONS, constant(transcendental, "_SQRT2", math.nextafter(math.sqrt(2), 0))),
    "ln 2 is two constants, not one": (
        FUNCTIONS,
        lambda patch: (patch.setattr(transcendental, "_LN2_HIGH", math.log(2)), patch.setattr(transcendental, "_LN2_LOW", 0.0))[2:],
    ),
    "exponentials are multiples of 2^-40, not 2^-36": (FUNCTIONS, constant(loss, "PROBABILITY_BITS", 36)),
    "a probability is a quotient, not a product with 1 / T": (
        FUNCTIONS, operation("div", lambda x, y: reciprocal(x, y) if y.dim() == 2 else None),
    ),
    "the mean's losses have 36 bits, not 35": (FUNCTIONS, constant(loss, "_FINER", loss._FINER / 2)),
    "the mean's grid comes from a float32 maximum": (FUNCTIONS, wrapped(loss.MeanLoss, "__init__", mean_from_a_float64_maximum)),
    "the mean is a quotient, not a product with 1 / N": (
        FUNCTIONS, operation("div", lambda x, y: reciprocal(x, y) if y.dim() == 0 and x.dim() == 0 else None),
    ),
    "the logits' gradient is divided by N in float64, not in float32": (
        ODD, operation("div", lambda x, y: (x.float() / y.float()).double() if x.dim() == 2 and y.dim() == 0 else None),
    ),
    "of equal logits the first is predicted, not the last": (EVALUATION, constant(loss, "first_maximum", last_maximum)),
    "weights and velocities up to 2^-64 become 0, not only up to 2^-65": (FUNCTIONS, constant(optimizers, "SNAP", 2.0**-65)),
    "2^-64 itself becomes 0": (FUNCTIONS, constant(optimizers, "SNAP", 2.0**-64 * (1 - 2.0**-24))),
    "velocity times momentum is rounded before the gradient is added": (
        SMALL, constant(optimizers.SGD, "_update", momentum_and_gradient_in_one),
    ),
    "velocity times lr is rounded before it is subtracted": (SMALL, constant(optimizers.SGD, "_update", weight_and_velocity_in_one)),
}  # fmt: skip
"""A rule of the definition -> the golden that holds it, and how to break it."""


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_replaced_by_its_nearest_neighbour_changes_its_golden(rule, monkeypatch):
    case, replace = RULES[rule]
    of = Pipeline()
    monkeypatch.setattr(self_test, "check", lambda on: None)  # it would find some of them
    with replace(monkeypatch) or contextlib.nullcontext():
        assert first_difference(CASES[case](of), golden(case)) is not None


def test_the_table_in_the_docs_names_each_rule_and_its_golden():
    text = (ROOT / "docs" / "exact-numerics.md").read_text()
    assert [rule for rule, (case, _) in RULES.items() if f"| {rule} | `{case}` |" not in text] == []
