"""Intervals against statsmodels, and their coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from waterproof.bench.statistics.intervals import Rate, clopper_pearson, mean, proportion, wilson
from waterproof.core.errors import StatisticsError


@pytest.mark.parametrize(("function", "name"), [(clopper_pearson, "beta"), (wilson, "wilson")])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_intervals_of_a_proportion_agree_with_statsmodels(function, name: str, level: float) -> None:
    for n in (1, 2, 15, 120, 5000):
        for successes in sorted({0, 1, n // 3, n - 1, n}):
            expected = proportion_confint(successes, n, alpha=1 - level, method=name)
            np.testing.assert_allclose(function(successes, n, level), expected, rtol=1e-9, atol=1e-12)


def test_one_sided_bounds_put_the_whole_miss_on_one_side() -> None:
    for function in (clopper_pearson, wilson):
        assert function(3, 40, 0.95, "upper") == pytest.approx((0.0, function(3, 40, 0.9)[1]))
        assert function(3, 40, 0.95, "lower") == pytest.approx((function(3, 40, 0.9)[0], 1.0))
    assert clopper_pearson(0, 100, 0.95, "upper")[1] == pytest.approx(1 - 0.05 ** (1 / 100))


def test_clopper_pearson_covers_for_every_rate() -> None:
    n = 25
    ends = np.array([clopper_pearson(x, n) for x in range(n + 1)])
    for p in np.linspace(0.001, 0.999, 333):
        inside = (ends[:, 0] <= p) & (p <= ends[:, 1])
        assert stats.binom.pmf(np.arange(n + 1), n, p)[inside].sum() >= 0.95


@given(st.integers(1, 400), st.data())
@settings(max_examples=100, deadline=None)
def test_an_interval_holds_its_estimate_and_mirrors(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    for function in (clopper_pearson, wilson):
        low, high = function(successes, n)
        assert 0 <= low <= successes / n <= high <= 1
        assert function(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_a_proportion_of_separate_images_is_clopper_pearson() -> None:
    flags = np.arange(40) < 31
    rate = proportion(flags, [f"photo {i}" for i in range(40)])
    assert rate == Rate(0.775, *clopper_pearson(31, 40), 40, 40, "Clopper-Pearson", 0.95)
    assert proportion(flags, None) == rate == proportion(flags, [None] * 40)


def test_images_of_one_source_do_not_narrow_the_interval() -> None:
    single = np.arange(30) % 3 > 0
    copies = proportion(np.repeat(single, 8), np.repeat(np.arange(30), 8))
    alone = proportion(single, None)
    assert (copies.n, copies.sources) == (240, 30)
    # A little wider, because the scatter between sources had to be estimated.
    assert 1 <= (copies.high - copies.low) / (alone.high - alone.low) <= 1.1


def test_without_a_failure_only_the_number_of_sources_counts() -> None:
    rate = proportion(np.ones(60, dtype=bool), np.repeat(np.arange(15), 4))
    assert (rate.low, rate.high) == clopper_pearson(15, 15)
    nobody = proportion(np.zeros(60, dtype=bool), np.repeat(np.arange(15), 4))
    assert (nobody.low, nobody.high) == clopper_pearson(0, 15)


def test_the_effective_sample_is_never_larger_than_the_sample() -> None:
    # One success and one failure in each source: less than binomial scatter.
    rate = proportion(np.tile([True, False], 50), np.repeat(np.arange(50), 2))
    low, high = clopper_pearson(50, 100)
    assert rate.low <= low
    assert rate.high >= high


def test_the_effective_sample_size_agrees_with_a_loop_over_sources() -> None:
    draws = np.random.default_rng(4)
    sources = draws.integers(0, 60, 400)
    flags = draws.random(400) < draws.beta(2, 1, 60)[sources]
    names = np.unique(sources)
    p, n, m = flags.mean(), 400, names.size
    squares = hit = miss = sizes = 0.0
    for name in names:
        own = flags[sources == name]
        squares += (own.sum() - p * own.size) ** 2
        sizes += own.size**2
        hit += own.any()
        miss += not own.all()
    deff = m / (m - 1) * squares / n / (p * (1 - p))
    fewest = min(hit, miss)
    guarded = (fewest * deff + max(deff, sizes / n)) / (fewest + 1)
    size = n / guarded * (stats.t.ppf(0.975, n - 1) / stats.t.ppf(0.975, m - 1)) ** 2
    assert deff > 1
    rate = proportion(flags, sources)
    np.testing.assert_allclose((rate.low, rate.high), proportion_confint(p * size, size, method="beta"), rtol=1e-9)


def clustered(draws: np.random.Generator, count: int, icc: float, p: float) -> tuple[np.ndarray, np.ndarray]:
    sources = np.repeat(np.arange(count), draws.integers(4, 6, count))
    scale = (1 - icc) / icc
    return draws.random(sources.size) < draws.beta(p * scale, (1 - p) * scale, count)[sources], sources


@pytest.mark.parametrize(("count", "icc", "p"), [(15, 0.3, 0.5), (15, 0.7, 0.9), (40, 0.7, 0.98), (150, 0.7, 0.02)])
def test_a_clustered_proportion_covers_as_advertised(count: int, icc: float, p: float) -> None:
    draws = np.random.default_rng(count)
    rates = [proportion(*clustered(draws, count, icc, p)) for _ in range(800)]
    covered = sum(rate.low <= p <= rate.high for rate in rates)
    # Fewer than this happens once in ten thousand runs if the coverage is 95 %.
    assert covered >= stats.binom.ppf(1e-4, 800, 0.95)


def test_the_percentile_bootstrap_is_offered_and_covers_too_little_near_one() -> None:
    draws = np.random.default_rng(1)
    rates = [proportion(*clustered(draws, 15, 0.7, 0.98), method="bootstrap") for _ in range(300)]
    assert sum(rate.low <= 0.98 <= rate.high for rate in rates) < 0.7 * 300


def test_the_bootstrap_depends_on_its_seed_only() -> None:
    flags, sources = clustered(np.random.default_rng(2), 40, 0.3, 0.7)
    first = proportion(flags, sources, 1, method="bootstrap")
    assert proportion(flags, sources, 1, method="bootstrap") == first
    assert proportion(flags, sources, 2, method="bootstrap") != first
    many = np.repeat(np.arange(1500), 2)
    wide = proportion(np.random.default_rng(0).random(3000) < 0.5, many, method="bootstrap")
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 3000), rel=0.1)


@pytest.mark.parametrize(("count", "kind"), [(8, "normal"), (15, "normal"), (15, "accuracy"), (60, "accuracy")])
def test_a_clustered_mean_covers_as_advertised(count: int, kind: str) -> None:
    draws = np.random.default_rng(count)
    truth = 40.0 if kind == "normal" else 8 / 8.4
    covered = 0
    for _ in range(800):
        sources = np.repeat(np.arange(count), draws.integers(4, 6, count))
        if kind == "normal":
            values = truth + draws.standard_normal(count)[sources] + draws.standard_normal(sources.size)
        else:
            values = draws.binomial(48, draws.beta(8, 0.4, count)[sources]) / 48
        rate = mean(values, sources)
        covered += rate.low <= truth <= rate.high
    # These are approximate intervals: 93 % is the promise that is tested.
    assert covered >= stats.binom.ppf(1e-4, 800, 0.93)


def test_few_or_very_many_separate_values_get_students_t() -> None:
    for size in (2, 5, 1001):
        values = np.random.default_rng(size).normal(30, 2, size)
        rate = mean(values)
        expected = stats.t.interval(0.95, size - 1, values.mean(), stats.sem(values))
        np.testing.assert_allclose((rate.low, rate.high), expected, rtol=1e-9)
        assert "Student" in rate.method


def test_the_studentised_bootstrap_is_near_students_t_for_normal_values() -> None:
    values = np.random.default_rng(0).normal(30, 2, 400)
    rate = mean(values, [str(i) for i in range(400)], seed=3)
    low, high = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert (rate.low, rate.high) == pytest.approx((low, high), abs=0.04)
    assert "studentised" in rate.method
    assert mean(values, [str(i) for i in range(400)], seed=3) == rate


def test_a_mean_keeps_its_digits_far_from_zero() -> None:
    values = np.random.default_rng(0).normal(0, 1e-3, 50)
    near, far = mean(values), mean(values + 1e6)
    assert far.high - far.low == pytest.approx(near.high - near.low, rel=1e-5)


def test_a_single_deviating_source_still_gives_a_finite_interval() -> None:
    rate = mean(np.r_[np.ones(14), 0.6])
    assert math.isfinite(rate.low)
    assert rate.low < rate.value < rate.high


def test_what_the_sources_cannot_say_is_named() -> None:
    alone = mean([0.9, 0.8], ["a", "a"])
    assert alone.value == pytest.approx(0.85)
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)
    agreeing = mean([0.1] * 30)
    assert (agreeing.low, agreeing.high, agreeing.method) == (agreeing.value, agreeing.value, "none: all sources agree")
    one = proportion(np.array([True, False]), ["a", "a"])
    assert one.low < 0.05
    assert one.high > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: proportion(np.array([], dtype=bool)), "at least one"),
        (lambda: proportion(np.array([1, 0])), "must be booleans"),
        (lambda: proportion(np.array([True]), ["a", "b"]), "2 sources for 1 images"),
        (lambda: proportion(np.array([True]), None, 0, 95), "level is 95"),
        (lambda: proportion(np.array([True]), method="magic"), "'exact' or 'bootstrap'"),
        (lambda: mean([1.0, math.nan]), "1 of 2 are NaN"),
        (lambda: mean([]), "at least one"),
        (lambda: clopper_pearson(3, 2), "impossible"),
        (lambda: wilson(0, 0), "impossible"),
        (lambda: wilson(0, 1, side="left"), "'upper' or 'lower'"),
    ],
)
def test_bad_input_is_refused_with_a_clear_line(call, message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        call()
