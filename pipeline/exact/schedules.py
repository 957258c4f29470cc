"""Learning rates, step by step, as torch.optim.lr_scheduler gives them, from IEEE operations alone.

A library's cosine differs between systems, so here it is a polynomial; all else is a product, a sum or a quotient of float64s. The table
is made once, on the host, and rounded to float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DIVISOR, FINAL_DIVISOR = 25.0, 1e4
"""Of one_cycle, as torch.optim.lr_scheduler.OneCycleLR has them: from lr / 25 to lr, then to lr / 25 / 10^4."""
RISE = 0.3
"""The part of one_cycle in which the rate rises, where no warm-up is given."""
_COSINE = tuple((-1) ** k / math.factorial(2 * k) for k in range(11, -1, -1))


def cosine_of_half_turns(x: np.ndarray) -> np.ndarray:
    """cos(pi x) for float64 x from 0 to 1: Taylor's polynomial of degree 22 on the nearer side of 1/2. Good to 1e-15."""
    y = np.minimum(x, 1 - x) * math.pi
    square = y * y
    result = np.full_like(y, _COSINE[0])
    for term in _COSINE[1:]:
        result = result * square + term
    return np.asarray(np.where(x > 0.5, -result, result))


def constant(lr: float, t: np.ndarray, warmup: int = 0) -> np.ndarray:
    """The rate `lr` at the steps `t` (from 0), float32 [len(t)]; during `warmup` steps (t + 1) / warmup of it."""
    return _warmed(np.full(len(t), lr), lr, t, warmup)


def steps(lr: float, t: np.ndarray, milestones: Sequence[int], factor: float, warmup: int = 0) -> np.ndarray:
    """From each milestone (a step, from 0) on `factor` times the rate before; the rest as in `constant`. As MultiStepLR."""
    rates = [lr]
    for _ in milestones:
        rates.append(rates[-1] * factor)
    return _warmed(np.array(rates)[np.searchsorted(np.sort(milestones), t, side="right")], lr, t, warmup)


def cosine(lr: float, t: np.ndarray, steps: int, warmup: int = 0) -> np.ndarray:
    """From `lr` down to 0 along half a cosine, after a warm-up; as in `constant`. As CosineAnnealingLR over the steps that are left."""
    return _warmed(_between(lr, 0.0, np.maximum(t - warmup, 0) / max(steps - warmup, 1)), lr, t, warmup)


def one_cycle(lr: float, t: np.ndarray, steps: int, warmup: int = 0) -> np.ndarray:
    """From lr / 25 up to `lr`, which step warmup - 1 has, and down to lr / 250,000, each along half a cosine. As OneCycleLR.

    Without a warm-up three tenths of the steps rise. `t` as in `constant`.
    """
    peak = min((warmup or round(RISE * steps)) - 1, steps - 2)
    if peak < 1:
        raise ValueError("one_cycle needs a rise of at least 2 steps, and one step more")
    low = lr / DIVISOR
    up = _between(low, lr, np.minimum(t / peak, 1.0))
    down = _between(lr, low / FINAL_DIVISOR, np.maximum(t - peak, 0.0) / (steps - 1 - peak))
    return np.where(t <= peak, up, down).astype(np.float32)


def _between(start: float, end: float, x: np.ndarray) -> np.ndarray:
    """From `start` at x = 0 to `end` at 1 along half a cosine."""
    return end + (start - end) / 2 * (cosine_of_half_turns(x) + 1)


def _warmed(rates: np.ndarray, lr: float, t: np.ndarray, warmup: int) -> np.ndarray:
    return np.where(t < warmup, lr * ((t + 1) / max(warmup, 1)), rates).astype(np.float32)
