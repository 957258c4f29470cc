"""Statistics of two models on the same test images, from the images that only one of them gets right."""

from __future__ import annotations

import math
from statistics import NormalDist


def interval(only_second: float, only_first: float, images: float, confidence: float) -> tuple[float, float]:
    """Confidence interval of the second model's accuracy minus the first's, as fractions.

    Tango's score interval: T. Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17 (1998), 891-908. It holds every difference that the score test does
    not reject. Unlike Wald's interval it keeps a width where no image tells the models apart: z^2 / (z^2 + images).

    Args:
        only_second: images that only the second model gets right.
        only_first: images that only the first model gets right.
        images: all test images, at least 1.
        confidence: above 0 and below 1.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return _lower(only_second, only_first, images, z), -_lower(only_first, only_second, images, z)


def deciding_images(only_second: int, only_first: int, images: int, confidence: float, margin: float) -> int | None:
    """How many images more would decide whether the difference in accuracy is within the margin or beyond it.

    Were each model alone right for the same share of them as of these, the interval would lie wholly within the margin, or wholly
    beyond it. None where a thousand times the images would not: the difference is about the margin.

    Args:
        only_second: as in `interval`, as all that follow.
        only_first: see there.
        images: see there.
        confidence: see there.
        margin: above 0, a fraction.
    """

    def decided(total: int) -> bool:
        low, high = interval(only_second * total / images, only_first * total / images, total, confidence)
        return (-margin <= low and high <= margin) or low > margin or high < -margin

    many = next((images << power for power in range(11) if decided(images << power)), None)
    if many is None:
        return None
    few = many // 2
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if decided(middle) else (middle, many)
    return max(0, many - images)


def _lower(b: float, c: float, n: float, z: float) -> float:
    """The difference below (b - c) / n at which the score test's statistic is z, by bisection."""
    low, high = -1.0, (b - c) / n
    while low < (middle := (low + high) / 2) < high:
        # The likeliest share of images that only the first model gets right, given the difference (Tango's q21).
        linear = (2 * n - b + c) * middle - b - c
        root = math.sqrt(max(linear * linear + 8 * n * c * middle * (1 - middle), 0.0))
        share = (root - linear) / (4 * n)
        variance = n * (2 * share + middle * (1 - middle))
        if b - c - n * middle > z * math.sqrt(max(variance, 0.0)):
            low = middle
        else:
            high = middle
    return low if b - c > -n else -1.0


def mcnemar(only_first: int, only_second: int) -> float:
    """The p-value of McNemar's exact test, two-sided, that the models are equally accurate: a binomial sum in whole numbers."""
    n, fewer = only_first + only_second, min(only_first, only_second)
    term = total = 1  # of the binomial distribution's lower tail, times 2^n
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        total += term
    return min(1.0, float(2 * total / 2**n))
