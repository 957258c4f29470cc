"""The values of initial weights by rule: a filling, and what was done after; integers of SHAKE-256, and IEEE operations alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pipeline.exact import transcendental
from pipeline.exact.draws import random_integers

Step = tuple[str, tuple[float, ...]]
"""A filling or what was done after, by name, with numbers."""


def drawn(steps: Iterable[Step], seed: int | None, name: str, count: int) -> Tensor:
    """The values, float32 [count], that fillings and what was done to them after give for a parameter's name; without a seed those that
    would be drawn are 0.
    """
    values = torch.zeros(count, dtype=torch.float64)
    for rule, numbers in steps:
        if seed is not None or rule not in DRAWN:
            values = RULES[rule](values, f"weights/{seed}/{name}", *numbers)
    return values.float()


def _uniform(x: Tensor, label: str, low: float, high: float) -> Tensor:
    whole = torch.from_numpy(random_integers(label, 2**24, x.numel()) - 2**23).double()
    return whole * ((high - low) / 2**24) + (low + high) / 2


def _open_unit(label: str, count: int) -> Tensor:
    """Numbers within (0, 1), in the middles of 2^32 steps."""
    return (torch.from_numpy(random_integers(label, 2**32, count)).double() + 0.5) * 2.0**-32


def _normal(x: Tensor, label: str, mean: float, std: float) -> Tensor:
    return normal_quantile(_open_unit(label, x.numel())) * std + mean


def _trunc_normal(x: Tensor, label: str, mean: float, std: float, low: float, high: float) -> Tensor:
    ends = transcendental.normal_probability(torch.tensor([(low - mean) / std, (high - mean) / std], dtype=torch.float64))
    p = _open_unit(label, x.numel()) * (ends[1] - ends[0]) + ends[0]
    return (normal_quantile(p) * std + mean).clamp(low, high)


def _given(x: Tensor, label: str, *values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


RULES: dict[str, Callable[..., Tensor]] = {
    "uniform": _uniform,
    "normal": _normal,
    "trunc_normal": _trunc_normal,
    "times": lambda x, label, factor: x * factor,
    "over": lambda x, label, divisor: x / torch.full((), divisor, dtype=torch.float64),
    "plus": lambda x, label, other: x + other,
    "less": lambda x, label, other: x - other,
    "clamp": lambda x, label, low, high: x.clamp(low, high),
    "values": _given,
}
DRAWN = {"uniform", "normal", "trunc_normal"}
"""Rules that draw."""

_CENTRE = (
    (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4, 1.3731693765509461125e4,
     1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080),
    (5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4, 5.3941960214247511077e3,
     6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
)  # fmt: skip
_SHOULDER = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258, 3.64784832476320460504,
     5.76949722146069140550, 4.63033784615654529590, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1, 6.89767334985100004550e-1,
     1.67638483018380384940, 2.05319162663775882187, 1.0),
)  # fmt: skip
_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2, 2.96560571828504891230e-1,
     1.78482653991729133580, 5.46378491116411436990, 6.65790464350110377720),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4, 1.48753612908506148525e-2,
     1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
)  # fmt: skip


def normal_quantile(p: Tensor) -> Tensor:
    """The number below which a normal variable is with probability p within (0, 1), float64: Wichura's algorithm AS 241, PPND16."""

    def quotient(r: Tensor, of: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
        above, below = (torch.zeros_like(r), torch.zeros_like(r))
        for a, b in zip(*of, strict=True):
            above, below = above * r + a, below * r + b
        return above / below

    q = p - 0.5
    centre = q * quotient(0.180625 - q * q, _CENTRE)
    r = transcendental.square_root(transcendental.log(1 / torch.minimum(p, 1 - p)))
    side = torch.where(r <= 5, quotient(r - 1.6, _SHOULDER), quotient(r - 5.0, _TAIL))
    return torch.where(q.abs() <= 0.425, centre, torch.where(q < 0, -side, side))
