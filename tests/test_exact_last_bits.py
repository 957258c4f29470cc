"""The order of float64 operations, whose last bits float32 hides: seen where sums cancel, and where a float32 is tied."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.exact.draws import random_integers
from tests import test_exact_reference as forms

Array = np.ndarray
CHANNELS = 64


def drawn(label: str, *shape: int) -> Array:
    """Odd numbers of 24 bits, from 1 to 2."""
    return ((random_integers(label, 2**22, math.prod(shape)) * 2 + 2**23 + 1) * 2.0**-23).astype(np.float32).reshape(shape)


def normed(f: Any, x: Any, w: Any, b: Any) -> Any:
    return f.batch_norm(x, *forms.statistics(f, CHANNELS), w, b, True, 0.1, 1e-30)


def unlike(f: Any, x: Any) -> Any:
    return f.layer_norm(x, (3,), None, None, 1e-30)


ZERO, ONE = np.zeros((1, CHANNELS), np.float32), np.ones((1, CHANNELS), np.float32)
LARGE = drawn("large", 1, CHANNELS) * np.float32(2**20)
SIGNS = np.where(np.arange(88) % 2, 1, -1).astype(np.float32).reshape(88, 1)
Case = tuple[Callable[..., Any], list[Array], list[Array], Array]
CASES: dict[str, Case] = {
    # of 0, 0 and t, with a gradient of t's alone: the gradient of 0 is what rounding left of 0
    "the gradient of batch norm": (
        normed, [np.concatenate((ZERO, ZERO, drawn("t", 1, CHANNELS)))], [drawn("gamma", CHANNELS), ZERO[0]],
        np.concatenate((ZERO, ZERO, drawn("g", 1, CHANNELS)))),
    # a thousand numbers that are alike but for one have a variance of what rounding left, which may be below 0
    "a variance below 0": (
        normed, [np.concatenate([LARGE] * 999 + [np.nextafter(LARGE, LARGE * 2)])], [ONE[0], ZERO[0]],
        drawn("g", 1000, CHANNELS) * np.float32(2.0**-40)),
    # 12441^2 * (88 / 87) in float64 is beside the middle of two float32s, on another side than 12441^2 * 88 / 87
    "the unbiased variance": (
        lambda f, x, w, b: f.batch_norm(x, *forms.statistics(f, 1), w, b, True, 1.0, 1e-5), [SIGNS * np.float32(12441)],
        [ONE[0, :1], ZERO[0, :1]], SIGNS),
}  # fmt: skip
"""A form, what is made of images, weights, and the gradient of the result."""


def compare(monkeypatch: pytest.MonkeyPatch, case: Case) -> dict[str, Array]:
    """What both implementations give, which are equal."""
    form, xs, ws, g = case
    monkeypatch.setitem(forms.CASES, "one", (form, [], []))
    monkeypatch.setattr(forms, "inputs", lambda *_: ([x.copy() for x in xs], [w.copy() for w in ws]))
    monkeypatch.setattr(forms, "gradient", lambda *_: g.copy())
    found, wanted = forms.of_pipeline("one"), forms.of_reference("one")
    for name, a in wanted.items():
        assert np.array_equal(forms.bits(found[name]), forms.bits(a)), (name, found[name], a)
    return wanted


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_float64_operations_is_the_definitions(name, monkeypatch):
    found = compare(monkeypatch, CASES[name])
    assert all(np.isfinite(a).all() for a in found.values())
    if name == "the gradient of batch norm":
        assert 0 < np.abs(found["x0"][0]).max() < 2.0**-40


def test_the_gradient_of_a_norm_that_cancels_is_the_definitions(monkeypatch):
    x = drawn("x", 4096, 3)
    y = compare(monkeypatch, (unlike, [x], [], x))["y"]
    found = compare(monkeypatch, (unlike, [x], [], y))  # in the direction of y itself nothing is left
    assert 0 < np.abs(found["x0"]).max() < 2.0**-16
