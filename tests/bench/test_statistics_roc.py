"""ROC curves against scikit-learn and direct counting."""

from __future__ import annotations

import math
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn.metrics import roc_auc_score, roc_curve

from waterproof.bench.statistics.roc import OperatingPoint, Roc, auc, needed_negatives, partial_auc, roc, tpr_at_fpr
from waterproof.core.errors import StatisticsError

if TYPE_CHECKING:
    from collections.abc import Callable

scores = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=30)


def labelled(positives: list[float], negatives: list[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.r_[np.ones(len(positives)), np.zeros(len(negatives))], np.r_[positives, negatives]


@given(scores, scores)
@settings(max_examples=200, deadline=None)
def test_the_curve_is_scikit_learns_on_attained_points(positives: list[float], negatives: list[float]) -> None:
    fpr, tpr, thresholds = roc_curve(*labelled(positives, negatives), drop_intermediate=False)
    curve = roc(positives, negatives)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    np.testing.assert_allclose(curve.fpr, fpr, rtol=0, atol=1e-15)
    np.testing.assert_allclose(curve.tpr, tpr, rtol=0, atol=1e-15)


@given(scores, scores, st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_the_operating_point_is_the_most_lenient_attained_one(
    positives: list[float], negatives: list[float], allowed: int
) -> None:
    alpha = min(allowed / len(negatives), 0.999)
    best = OperatingPoint(math.inf, 0.0, 0.0)
    for tau in sorted({*positives, *negatives}, reverse=True):
        flagged = sum(score >= tau for score in negatives) / len(negatives)
        if flagged <= alpha:
            best = OperatingPoint(tau, sum(score >= tau for score in positives) / len(positives), flagged)
    if alpha < 1 / len(negatives):
        return
    assert tpr_at_fpr(positives, negatives, alpha) == best


def test_nothing_is_interpolated_between_attained_points() -> None:
    # At FPR .25 every image is still tied with a negative; a straight line would credit a TPR of .5.
    point = tpr_at_fpr([1.0] * 4, [1.0, 1.0, 0.0, 0.0], 0.25)
    assert point == OperatingPoint(math.inf, 0.0, 0.0)


def test_ties_are_decided_whole() -> None:
    point = tpr_at_fpr([3, 2, 2, 2], [2, 2, 1, 0], 0.5)
    assert point == OperatingPoint(2.0, 1.0, 0.5)
    assert tpr_at_fpr([3, 2, 2, 2], [2, 2, 1, 0], 0.4) == OperatingPoint(3.0, 0.25, 0.0)


def test_an_fpr_that_the_negatives_cannot_show_is_refused() -> None:
    positives, negatives = np.arange(10.0), np.arange(999.0)
    with pytest.raises(StatisticsError, match="needs at least 1000 negatives, there are 999"):
        tpr_at_fpr(positives, negatives, 1e-3)
    with pytest.raises(StatisticsError, match="needs at least 1000 negatives, there are 999"):
        partial_auc(roc(positives, negatives), 1e-3)
    assert tpr_at_fpr(positives, np.arange(1000.0), 1e-3).fpr_attained == 1e-3


@pytest.mark.parametrize("n", range(1, 400))
def test_a_share_of_the_negatives_is_compared_without_rounding(n: int) -> None:
    assert needed_negatives(1 / (n + 1), None) == n + 1
    negatives = np.arange(n, dtype=float)
    for flagged in {1, n // 2, n - 1} - {0, n}:
        assert tpr_at_fpr([0.0], negatives, flagged / n).fpr_attained == flagged / n


def test_the_needed_negatives_are_the_specified_ones() -> None:
    assert needed_negatives(1e-3) == 2995
    assert [needed_negatives(10.0**-power, None) for power in range(1, 10)] == [10**power for power in range(1, 10)]
    for alpha in (0.3, 0.01, 1e-4):
        n = needed_negatives(alpha)
        assert (1 - alpha) ** n <= 0.05 < (1 - alpha) ** (n - 1)


@given(scores, scores)
@settings(max_examples=100, deadline=None)
def test_the_staircase_has_level_and_upright_pieces_only(positives: list[float], negatives: list[float]) -> None:
    curve = roc(positives, negatives)
    for start, left in ((None, 1 / len(negatives)), (0.0, 0.0)):
        x, y = curve.steps(start)
        assert x[0] == left
        assert x[-1] == y[-1] == 1
        moved_x, moved_y = np.diff(x) > 0, np.diff(y) > 0
        assert (moved_x ^ moved_y).all()
        assert (np.diff(x) >= 0).all()
        assert (np.diff(y) >= 0).all()
        assert y[0] == curve.tpr[curve.fpr == 0].max()


@given(scores, scores, st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_the_partial_area_is_the_sum_over_whole_negatives(
    positives: list[float], negatives: list[float], allowed: int
) -> None:
    n = len(negatives)
    area = 0.0
    for step in range(min(allowed, n)):
        rates = [
            np.mean(np.array(positives) >= tau)
            for tau in {*positives, *negatives}
            if sum(score >= tau for score in negatives) <= step
        ]
        area += max(rates, default=0.0) / n
    assert partial_auc(roc(positives, negatives), min(allowed, n) / n) == pytest.approx(area, abs=1e-12)


def test_the_partial_area_up_to_one_is_the_area_without_ties() -> None:
    draws = np.random.default_rng(0)
    positives, negatives = draws.normal(1, 1, 200), draws.normal(0, 1, 300)
    curve = roc(positives, negatives)
    assert partial_auc(curve, 1) == pytest.approx(auc(positives, negatives).value, abs=1e-12)
    half = partial_auc(curve, 0.0155)
    assert partial_auc(curve, 0.015) < half < partial_auc(curve, 0.016)


@given(scores, scores)
@settings(max_examples=200, deadline=None)
def test_the_area_is_scikit_learns_and_lies_in_its_interval(positives: list[float], negatives: list[float]) -> None:
    rate = auc(positives, negatives)
    assert rate.value == pytest.approx(roc_auc_score(*labelled(positives, negatives)), abs=1e-12)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1
    assert rate.low < rate.high
    mirrored = auc(negatives, positives)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - rate.high, 1 - rate.low), abs=1e-9)


def placements(positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float]:
    """DeLong's area and variance, straight from the definition."""
    wins = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    by_positive, by_negative = wins.mean(axis=1), wins.mean(axis=0)
    return wins.mean(), by_positive.var(ddof=1) / positives.size + by_negative.var(ddof=1) / negatives.size


@pytest.mark.parametrize("decimals", [8, 0])
def test_the_delong_interval_agrees_with_placement_values(decimals: int) -> None:
    draws = np.random.default_rng(3)
    positives, negatives = draws.normal(1, 2, 170).round(decimals), draws.normal(0, 1, 430).round(decimals)
    area, variance = placements(positives, negatives)
    half = 1.959963984540054 * math.sqrt(variance) / (area * (1 - area))
    expected = [1 / (1 + math.exp(-(math.log(area / (1 - area)) + sign * half))) for sign in (-1, 1)]
    rate = auc(positives, negatives)
    assert rate.method == "DeLong"
    assert (rate.value, rate.low, rate.high) == pytest.approx((area, *expected), abs=1e-12)


def newcombe(area: float, m: int, n: int, level: float) -> tuple[float, float]:
    """Newcombe (2006), method 5, with SciPy's root finder."""
    z, extra = stats.norm.ppf((1 + level) / 2), (m + n) / 2 - 1

    def gap(t: float) -> float:
        return (area - t) ** 2 - z**2 * t * (1 - t) * (1 + extra * (1 - t) / (2 - t) + extra * t / (1 + t)) / (m * n)

    low = 0.0 if area == 0 else optimize.brentq(gap, 1e-12, area - 1e-12, xtol=1e-15)
    high = 1.0 if area == 1 else optimize.brentq(gap, area + 1e-12, 1 - 1e-12, xtol=1e-15)
    return low, high


@pytest.mark.parametrize(("m", "n"), [(15, 15), (40, 7), (1, 100), (300, 300)])
def test_perfect_separation_gets_newcombes_interval(m: int, n: int) -> None:
    rate = auc(np.arange(m) + 1000.0, np.arange(n), level=0.9)
    assert rate.method == "Newcombe"
    assert (rate.low, rate.high) == pytest.approx(newcombe(1.0, m, n, 0.9), abs=1e-9)
    inverted = auc(np.arange(m) - 1000.0, np.arange(n), level=0.9)
    assert (inverted.value, inverted.low) == (0.0, 0.0)


def test_a_constant_detector_is_not_sold_as_exactly_useless() -> None:
    rate = auc(np.zeros(20), np.zeros(20))
    assert rate.value == 0.5
    assert (rate.low, rate.high) == pytest.approx(newcombe(0.5, 20, 20, 0.95), abs=1e-9)


@pytest.mark.parametrize(("count", "area"), [(40, 0.9), (40, 0.97), (150, 0.999)])
def test_the_interval_of_the_area_covers_as_advertised(count: int, area: float) -> None:
    draws = np.random.default_rng(count)
    shift = stats.norm.ppf(area) * math.sqrt(2)
    covered = 0
    for _ in range(500):
        rate = auc(draws.normal(shift, 1, count), draws.normal(0, 1, count))
        covered += rate.low <= area <= rate.high
    assert covered >= stats.binom.ppf(1e-4, 500, 0.95)


def test_a_hundred_thousand_scores_take_no_square_of_memory() -> None:
    draws = np.random.default_rng(0)
    rate = auc(draws.normal(1, 1, 100_000), draws.normal(0, 1, 100_000))
    assert rate.low < stats.norm.cdf(1 / math.sqrt(2)) < rate.high


@pytest.mark.parametrize("function", [roc, auc, lambda p, n: tpr_at_fpr(p, n, 0.5)])
@pytest.mark.parametrize(
    ("positives", "negatives", "message"),
    [
        ([], [1.0], "positives: there are none"),
        ([1.0], [], "negatives: there are none"),
        ([math.nan], [1.0], "positives: 1 of 1 are NaN"),
        ([1.0], [math.inf, 0.0], "negatives: 1 of 2 are NaN or infinite"),
        ([[1.0]], [1.0], "must be a vector"),
    ],
)
def test_scores_that_say_nothing_are_refused(function, positives, negatives, message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        function(positives, negatives)


def test_a_staircase_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(StatisticsError, match=r"must lie in 0\.\.1"):
        roc([1.0], [0.0]).steps(2.0)


TYPES = ["uint8", "int8", "int16", "int64", "uint64", ">i4", "bool", "float16", "float32", "float64", ">f8"]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("other", ["float32", "int64"])
@pytest.mark.parametrize("spread", [40, 1e-3])
def test_scores_of_every_type_are_compared_as_the_numbers_they_are(dtype: str, other: str, spread: float) -> None:
    draws = np.random.default_rng(0)
    positives = (60 + spread * draws.normal(0.5, 1, 300)).clip(0, 127).astype(dtype)
    negatives = (60 + spread * draws.normal(0, 1, 400)).clip(0, 127).astype(other)
    fpr, tpr, thresholds = roc_curve(*labelled(positives.tolist(), negatives.tolist()), drop_intermediate=False)
    curve = roc(positives, negatives)
    assert {array.dtype for array in (curve.thresholds, curve.fpr, curve.tpr)} == {np.dtype("float64")}
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    np.testing.assert_allclose(curve.fpr, fpr, rtol=0, atol=1e-15)
    np.testing.assert_allclose(curve.tpr, tpr, rtol=0, atol=1e-15)
    found = tpr_at_fpr(positives, negatives, 0.1)
    at = np.searchsorted(fpr, 0.1, side="right") - 1
    assert found == OperatingPoint(thresholds[at], pytest.approx(tpr[at]), pytest.approx(fpr[at]))


def test_neighbouring_float32_scores_are_no_tie() -> None:
    one = np.float32(0.1)
    above = np.nextafter(one, np.float32(1))
    curve = roc(np.array([above]), np.array([one]))
    assert curve.thresholds.tolist() == [math.inf, float(above), float(one)]
    between = (float(one) + float(above)) / 2
    positives, negatives = np.array([one, above]), np.array([between, -1.0, -1.0])
    assert roc(positives, negatives).thresholds.tolist() == [math.inf, float(above), between, float(one), -1.0]
    assert tpr_at_fpr(positives, negatives, 0.4) == OperatingPoint(float(one), 1.0, 1 / 3)
    assert tpr_at_fpr(positives, [between, between, -1.0], 0.4) == OperatingPoint(float(above), 0.5, 0.0)


def test_integers_that_float64_rounds_are_rounded() -> None:
    assert roc([2**53 + 1] * 9, [2**53] * 9).thresholds.tolist() == [math.inf, 2.0**53]
    assert roc([2**53 - 1] * 9, [2**53] * 9).thresholds.tolist() == [math.inf, 2.0**53, 2.0**53 - 1]


@pytest.mark.parametrize("step", [1, 0.5, 1e4])
def test_counting_and_sorting_find_the_same_curve_as_a_loop(step: float) -> None:
    draws = np.random.default_rng(1)
    positives, negatives = step * draws.binomial(20, 0.7, 500) - 3, step * draws.binomial(20, 0.5, 700) - 3
    curve = roc(positives, negatives)
    for i, tau in enumerate([math.inf, *sorted({*positives, *negatives}, reverse=True)]):
        assert curve.thresholds[i] == tau
        assert curve.fpr[i] == np.mean(negatives >= tau)
        assert curve.tpr[i] == np.mean(positives >= tau)
    assert curve.thresholds.size == i + 1


@pytest.mark.parametrize("decimals", [12, 1, 0])
def test_areas_of_a_million_scores_are_scikit_learns_and_delongs_by_midranks(decimals: int) -> None:
    draws = np.random.default_rng(4)
    positives, negatives = draws.normal(1, 1, 400_000).round(decimals), draws.normal(0, 1, 600_000).round(decimals)
    joint = stats.rankdata(np.r_[positives, negatives])
    above = (joint[:400_000] - stats.rankdata(positives)) / 600_000
    below = (joint[400_000:] - stats.rankdata(negatives)) / 400_000
    area = roc_auc_score(*labelled(positives, negatives))
    half = math.sqrt(above.var(ddof=1) / 400_000 + below.var(ddof=1) / 600_000) / (area * (1 - area))
    ends = [float(1 / (1 + np.exp(-(np.log(area / (1 - area)) + sign * half)))) for sign in (-1, 1)]
    rate = auc(positives, negatives, level=math.erf(math.sqrt(0.5)))
    assert (rate.value, rate.low, rate.high) == pytest.approx((area, *ends), abs=1e-12)


def corners(curve: Roc) -> list[tuple[float, float, float]]:
    points = list(zip(curve.thresholds.tolist(), curve.fpr.tolist(), curve.tpr.tolist(), strict=True))
    inner = []
    for before, point, after in zip(points, points[1:], points[2:], strict=False):
        level = before[2] == point[2] == after[2]
        upright = before[1] == point[1] == after[1]
        if not level and not upright:
            inner.append(point)
    return [points[0], *inner, points[-1]]


def heights(curve: Roc, at: np.ndarray) -> np.ndarray:
    """What the staircase is worth at each FPR: the best TPR of all points up to there."""
    return np.array([curve.tpr[curve.fpr <= x].max() for x in at])


@given(scores, scores)
@settings(max_examples=200, deadline=None)
def test_a_thinned_curve_is_its_corners_and_draws_the_same_staircase(
    positives: list[float], negatives: list[float]
) -> None:
    curve = roc(positives, negatives)
    thin = curve.thinned()
    found = zip(thin.thresholds.tolist(), thin.fpr.tolist(), thin.tpr.tolist(), strict=True)
    assert list(found) == corners(curve)
    assert (thin.n_positive, thin.n_negative) == (curve.n_positive, curve.n_negative)
    np.testing.assert_array_equal(heights(thin, curve.fpr), heights(curve, curve.fpr))
    assert partial_auc(thin, 1) == pytest.approx(partial_auc(curve, 1), abs=1e-12)
    assert {*zip(*thin.steps(), strict=True)} <= {*zip(*curve.steps(), strict=True)}


def test_without_ties_thinning_drops_what_scikit_learn_drops() -> None:
    draws = np.random.default_rng(5)
    positives, negatives = draws.normal(1, 1, 3000), draws.normal(0, 1, 2000)
    fpr, tpr, thresholds = roc_curve(*labelled(positives, negatives), drop_intermediate=True)
    thin = roc(positives, negatives).thinned()
    # scikit-learn keeps the first attained threshold wherever it lies.
    first = 2 if thin.thresholds[1] != thresholds[1] else 1
    np.testing.assert_array_equal(thin.thresholds[1:], thresholds[first:])
    np.testing.assert_allclose(thin.fpr[1:], fpr[first:], rtol=0, atol=1e-15)
    np.testing.assert_allclose(thin.tpr[1:], tpr[first:], rtol=0, atol=1e-15)


@pytest.mark.parametrize("resolution", [0.5, 0.01, 1e-3])
def test_a_curve_thinned_for_a_plot_stays_within_its_resolution_below(resolution: float) -> None:
    draws = np.random.default_rng(6)
    curve = roc(draws.normal(1, 1, 20_000), draws.normal(0, 1, 20_000))
    thin = curve.thinned(resolution)
    at = np.unique(np.r_[0, np.geomspace(1 / 20_000, 1, 500), curve.fpr[::97]])
    gap = heights(curve, at) - heights(thin, at)
    assert gap.min() >= 0
    assert gap.max() < resolution
    assert {*zip(thin.fpr, thin.tpr, strict=True)} <= {*zip(curve.fpr, curve.tpr, strict=True)}
    assert thin.thresholds.size <= min(curve.thinned().thresholds.size, 2 * (1 / resolution + 6 / resolution) + 4)
    assert (thin.fpr[0], thin.tpr[0], thin.fpr[-1], thin.tpr[-1]) == (0, 0, 1, 1)


@pytest.mark.parametrize("resolution", [-0.1, 1.0, math.nan])
def test_a_resolution_outside_the_unit_interval_is_refused(resolution: float) -> None:
    with pytest.raises(StatisticsError, match=r"it must lie in 0\.\.1"):
        roc([1.0], [0.0]).thinned(resolution)


def test_perfect_separation_has_three_corners_however_many_scores() -> None:
    scores = np.random.default_rng(7).random(1_000_000)
    thin = roc(scores[:500_000] + 2, scores[500_000:]).thinned()
    assert (thin.fpr.tolist(), thin.tpr.tolist()) == ([0.0, 0.0, 1.0], [0.0, 1.0, 1.0])


def peak(call: Callable[[], object]) -> int:
    tracemalloc.start()
    call()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_memory_stays_within_a_few_numbers_for_each_score() -> None:
    draws = np.random.default_rng(8)
    positives, negatives = draws.normal(1, 1, 500_000), draws.normal(0, 1, 500_000)
    bits = draws.binomial(48, 0.7, 500_000), draws.binomial(48, 0.5, 500_000)
    # Warm: lazily imported modules are no memory of the call.
    auc([1.0], [0.0])
    assert peak(lambda: roc(positives, negatives)) < 40 * 1_000_000
    assert peak(lambda: auc(positives, negatives)) < 48 * 1_000_000
    assert peak(lambda: tpr_at_fpr(positives, negatives, 1e-3)) < 6 * 1_000_000
    for function in (roc, auc):
        assert peak(lambda function=function: function(*bits)) < 8 * 1_000_000
