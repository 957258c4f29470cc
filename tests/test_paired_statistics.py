"""The statistics of two models on the same images are SciPy's and the published ones."""

from __future__ import annotations

import math

import pytest

from pipeline.comparison import paired_statistics


def test_mcnemars_exact_test_is_scipys_binomial_test() -> None:
    from scipy.stats import binomtest

    for b, c in [(6, 16), (0, 1), (1, 1), (3, 0), (40, 20), (512, 431), (4900, 5100), (10_000, 9_000)]:
        assert paired_statistics.mcnemar(b, c) == pytest.approx(binomtest(b, b + c).pvalue, rel=1e-9)
    assert paired_statistics.mcnemar(0, 0) == 1


def test_the_statistics_are_those_published_for_cavo_2012_and_bentur_2009() -> None:
    """The two examples of Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter 8."""
    assert [round(limit, 4) for limit in paired_statistics.interval(6, 16, 161, 0.95)] == [-0.1240, -0.0054]
    assert round(paired_statistics.mcnemar(6, 16), 6) == 0.052479
    assert [round(limit, 3) for limit in paired_statistics.interval(1, 7, 21, 0.95)] == [-0.517, -0.026]


@pytest.mark.parametrize(("b", "c", "n"), [(6, 16, 161), (40, 20, 160), (3, 0, 1000), (0, 0, 500), (812, 843, 10_000), (30, 31, 61)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_at_the_intervals_limits_the_score_test_just_rejects(b: int, c: int, n: int, confidence: float) -> None:
    from scipy import optimize, special, stats

    z = stats.norm.ppf((1 + confidence) / 2)
    for limit, sign in zip(paired_statistics.interval(b, c, n, confidence), (1, -1), strict=True):

        def minus_likelihood(share: float, limit: float = limit) -> float:
            return -(special.xlogy(b, share + limit) + special.xlogy(c, share) + special.xlogy(n - b - c, max(1 - limit - 2 * share, 0.0)))

        bounds = (max(0.0, -limit), (1 - limit) / 2)
        share = optimize.minimize_scalar(minus_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        score = ((b - c) / n - limit) / math.sqrt((2 * share + limit - limit**2) / n)
        assert score == pytest.approx(sign * z, rel=2e-3)


def test_the_interval_keeps_a_width_where_no_image_tells_two_models_apart() -> None:
    low, high = paired_statistics.interval(0, 0, 10_000, 0.95)
    assert high == -low == pytest.approx(1.959964**2 / (1.959964**2 + 10_000), rel=1e-6)


def test_the_largest_confidence_that_params_allow_has_an_interval() -> None:
    low, high = paired_statistics.interval(0, 0, 10_000, 0.999999)
    assert high == -low == pytest.approx(4.891638**2 / (4.891638**2 + 10_000), rel=1e-6)


def test_the_interval_reaches_the_end_where_all_images_tell_the_models_apart() -> None:
    assert paired_statistics.interval(0, 5, 5, 0.95)[0] == -1
    assert paired_statistics.interval(5, 0, 5, 0.95)[1] == 1


@pytest.mark.parametrize(
    ("b", "c", "n", "margin"), [(20, 12, 1000, 0.01), (0, 8, 1000, 0.01), (512, 431, 10_000, 0.005), (12, 16, 1000, 0.01)]
)
def test_the_images_that_would_decide_are_the_fewest_that_do(b, c, n, margin):
    def decided(more: int) -> bool:
        low, high = paired_statistics.interval(b * (n + more) / n, c * (n + more) / n, n + more, 0.95)
        return max(-low, high) <= margin or low > margin or high < -margin

    more = paired_statistics.deciding_images(b, c, n, 0.95, margin)
    assert (decided(0), decided(more - 1), decided(more)) == (False, False, True)


def test_no_number_of_images_decides_about_a_difference_that_is_the_margin():
    assert paired_statistics.deciding_images(20, 10, 1000, 0.95, 0.01) is None
