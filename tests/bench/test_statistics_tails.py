"""The tail law against SciPy and closed forms; its intervals, bounds and fit test by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from waterproof.bench.statistics import pareto, thresholds
from waterproof.bench.statistics.intervals import clopper_pearson
from waterproof.bench.statistics.tails import fewest_negatives, fit_tail
from waterproof.core.errors import StatisticsError


def sample(n: int = 2000, seed: int = 0, law=stats.expon) -> np.ndarray:
    return law.isf(1 - np.random.default_rng(seed).random(n))


@pytest.mark.parametrize("law", [stats.norm, stats.expon, stats.t(4), stats.lognorm(1), stats.beta(4, 8)])
def test_the_fit_is_the_maximum_likelihood_fit_of_scipy(law) -> None:
    scores = sample(3000, 1, law)
    tail = fit_tail(scores)
    excesses = np.sort(scores)[-tail.exceedances :] - tail.start
    shape, _, scale = stats.genpareto.fit(excesses, floc=0)
    assert tail.start == np.sort(scores)[-tail.exceedances - 1]
    assert (tail.shape, tail.scale) == (pytest.approx(shape, abs=2e-3), pytest.approx(scale, rel=2e-3))
    ours = stats.genpareto.logpdf(excesses, tail.shape, scale=tail.scale).sum()
    assert ours >= stats.genpareto.logpdf(excesses, shape, scale=scale).sum() - 1e-6


def test_the_start_is_a_stated_number_of_exceedances() -> None:
    assert [fit_tail(sample(n)).exceedances for n in (300, 500, 1000, 2000, 10_000)] == [50, 50, 50, 79, 232]
    assert fit_tail(sample(1000), exceedances=100).exceedances == 100
    for count in (49, 167):
        with pytest.raises(StatisticsError, match=r"it must lie in 50\.\.166 for 1000 negatives"):
            fit_tail(sample(1000), exceedances=count)


def test_the_point_estimates_are_the_fitted_law_and_its_inverse() -> None:
    for law in (stats.norm, stats.t(3)):
        tail = fit_tail(sample(2000, 2, law))
        fitted = stats.genpareto(tail.shape, loc=tail.start, scale=tail.scale)
        for alpha in (1e-2, 1e-3, 1e-5):
            value = tail.threshold(alpha).value
            assert value == pytest.approx(fitted.isf(alpha / tail.share), rel=1e-9)
            assert tail.fpr(value).value == pytest.approx(alpha, rel=1e-9)


@pytest.mark.parametrize(("law", "alpha"), [(stats.norm, 1e-3), (stats.expon, 1e-4), (stats.t(4), 1e-5)])
def test_the_interval_is_the_edge_of_the_likelihood_region(law, alpha: float) -> None:
    scores = sample(2000, 3, law)
    tail = fit_tail(scores)
    count = tail.exceedances
    excesses = np.sort(scores)[-count:] - tail.start
    shapes, scales = np.linspace(-0.8, 1.2, 101)[:, None], np.geomspace(0.3, 4, 301) * excesses.mean()
    shares = tail.share * np.linspace(0.6, 1.6, 21)
    law_part = sum(stats.genpareto.logpdf(y, shapes, scale=scales) for y in excesses)
    share_part = stats.binom.logpmf(count, 2000, shares)

    def ends(floor: float) -> tuple[float, float]:
        allowed = np.where(shapes >= floor - 1e-9, law_part, -np.inf)
        within = allowed + share_part[:, None, None] >= allowed.max() + share_part.max() - math.log(20)
        quantiles = stats.genpareto.isf(alpha / shares[:, None, None], shapes, scale=scales)
        return tail.start + quantiles[within].min(), tail.start + quantiles[within].max()

    rate = tail.threshold(alpha)
    assert rate.low == pytest.approx(ends(-0.8)[0], rel=0.01)
    assert rate.high == pytest.approx(max(ends(-0.8)[1], ends(0.0)[1]), rel=0.02)


def test_thresholds_and_rates_mirror_each_other() -> None:
    tail = fit_tail(sample(2000, 4, stats.norm))
    for alpha in (1e-3, 1e-4, 2e-5):
        rate = tail.threshold(alpha)
        assert tail.fpr(rate.high).high == pytest.approx(alpha, rel=1e-3)
        assert tail.fpr(rate.low).low == pytest.approx(alpha, rel=1e-3)
        assert tail.upper(alpha, 0.95) == pytest.approx(tail.threshold(alpha, 0.9).high, rel=1e-12)


def test_a_stricter_promise_needs_a_higher_threshold() -> None:
    for law in (stats.norm, stats.expon, stats.t(4), stats.uniform):
        tail = fit_tail(sample(2000, 5, law))
        by_alpha = [tail.upper(alpha) for alpha in (2e-2, 1e-3, 1e-4, 5e-6)]
        by_level = [tail.upper(1e-4, level) for level in (0.5, 0.8, 0.95, 0.999)]
        assert by_alpha == sorted(by_alpha)
        assert by_level == sorted(by_level)
        # A grid holds the best law to six digits.
        assert tail.threshold(1e-4).low <= tail.threshold(1e-4).value <= by_level[0] * (1 + 1e-6)


def test_below_the_start_the_rate_is_counted() -> None:
    scores = sample(1000, 6)
    tail = fit_tail(scores)
    value = float(np.median(scores))
    rate = tail.fpr(value)
    hits = int(np.count_nonzero(scores >= value))
    assert (rate.value, rate.low, rate.high) == (hits / 1000, *clopper_pearson(hits, 1000))
    assert rate.method == "Clopper-Pearson"
    assert "extrapolated" in tail.fpr(tail.start + 1).method


def test_beyond_its_reach_nothing_but_a_bound_is_said() -> None:
    tail = fit_tail(sample(1000, 7))
    assert tail.smallest_fpr == 1e-5
    rate = tail.fpr(1e4)
    assert (rate.value, rate.low, rate.high) == (1e-5, 0.0, 1e-5)
    assert "at most" in rate.method
    assert tail.upper(1e-5) > 0
    with pytest.raises(StatisticsError, match=r"1000 negatives .* carry the tail to 1e-05; 9e-06 needs at least 1112"):
        tail.upper(9e-6)
    with pytest.raises(StatisticsError, match="use the rule 'certified'"):
        tail.threshold(0.06)


def test_the_number_of_negatives_that_is_named_is_the_smallest_that_does() -> None:
    for alpha in (1e-3, 2e-5, 1e-5, 3e-6, 1e-6):
        n = fewest_negatives(alpha)
        fit_tail(sample(n)).upper(alpha)
        with pytest.raises(StatisticsError):
            fit_tail(sample(n - 1)).upper(alpha)


def test_too_few_negatives_are_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(StatisticsError, match="300 negatives of different sources, there are 299"):
        fit_tail(sample(299))
    with pytest.raises(StatisticsError, match="there are 250"):
        fit_tail(sample(1000), np.arange(1000) // 4)


@pytest.mark.parametrize("digits", [0, 1])
def test_discrete_scores_are_refused(digits: int) -> None:
    with pytest.raises(StatisticsError, match=r"different values.*'theory' for matching bits"):
        fit_tail(np.round(sample(2000), digits))
    with pytest.raises(StatisticsError, match="'theory' for matching bits"):
        fit_tail(np.random.default_rng(0).binomial(48, 0.5, 2000))
    with pytest.raises(StatisticsError, match="only 1 different"):
        fit_tail(np.zeros(2000))
    assert fit_tail(np.round(sample(2000), 6)).exceedances == 79


def test_bad_scores_levels_and_thresholds_are_refused() -> None:
    with pytest.raises(StatisticsError, match="NaN"):
        fit_tail([*sample(400), math.nan])
    with pytest.raises(StatisticsError, match="level"):
        fit_tail(sample(400), level=1.0)
    tail = fit_tail(sample(400))
    with pytest.raises(StatisticsError, match="alpha"):
        tail.threshold(0.0)
    with pytest.raises(StatisticsError, match=r"at least 0\.5"):
        tail.upper(1e-3, 0.3)
    with pytest.raises(StatisticsError, match="finite"):
        tail.fpr(math.inf)


def test_one_image_of_each_source_is_fitted() -> None:
    scores = sample(600, 8)
    copies, sources = np.repeat(scores, 5), np.repeat(np.arange(600), 5)
    tail, alone = fit_tail(copies, sources), fit_tail(scores)
    assert (tail.n, tail.sources) == (3000, 600)
    assert tail.upper(1e-4) == alone.upper(1e-4)
    spread = copies + np.random.default_rng(0).normal(size=3000)
    assert fit_tail(spread, sources, seed=1).start != fit_tail(spread, sources, seed=2).start


def test_units_of_the_score_do_not_matter() -> None:
    scores = sample(1500, 9, stats.norm)
    tail = fit_tail(scores)
    for factor, shift in ((1e-9, 0.0), (1e9, 1e9), (0.01, -5.0)):
        moved = fit_tail(factor * scores + shift)
        assert moved.shape == pytest.approx(tail.shape, abs=1e-5)
        assert moved.upper(1e-4) - shift == pytest.approx(factor * tail.upper(1e-4), rel=1e-5)
        assert moved.fit_p == tail.fit_p


def test_a_poor_fit_is_said() -> None:
    scores = sample(2000, 10)
    assert fit_tail(scores).note == ""
    clumped = np.where(scores > 4, 9 + 1e-3 * scores, scores)
    assert "fits poorly" in fit_tail(clumped).note
    assert "fits poorly" in thresholds.extrapolated(clumped, None, 1e-4).note


@pytest.mark.parametrize("shape", [-0.45, 0.04, 0.35])
def test_the_fit_test_holds_its_level(shape: float) -> None:
    draws = np.random.default_rng(11)
    poor = 0
    for _ in range(400):
        excesses = stats.genpareto.isf(draws.random(60), shape)
        fitted = [float(item[0]) for item in pareto.fit(excesses[None])]
        poor += pareto.goodness(excesses, *fitted) < 0.05
    # More or fewer happens once in ten thousand runs.
    assert stats.binom.ppf(1e-4, 400, 0.05) <= poor <= stats.binom.isf(1e-4, 400, 0.05)


@pytest.mark.parametrize("law", [stats.norm, stats.expon, stats.t(4), stats.uniform])
@pytest.mark.parametrize(("n", "alpha"), [(500, 1e-4), (2000, 1e-5)])
def test_intervals_and_bounds_cover_as_advertised(law, n: int, alpha: float) -> None:
    true, missed, over = law.isf(alpha), 0, 0
    for seed in range(80):
        tail = fit_tail(sample(n, seed, law))
        rate = tail.threshold(alpha)
        missed += not rate.low <= true <= rate.high
        over += tail.upper(alpha) < true
    assert max(missed, over) <= stats.binom.isf(1e-4, 80, 0.05)


def test_the_threshold_rule_deploys_the_upper_bound() -> None:
    scores = sample(1000, 12, stats.norm)
    rule = thresholds.extrapolated(scores, None, 1e-4, level=0.9)
    assert rule.value == fit_tail(scores).upper(1e-4, 0.9)
    assert (rule.rule, rule.alpha, rule.sources) == ("extrapolated", 1e-4, 1000)
