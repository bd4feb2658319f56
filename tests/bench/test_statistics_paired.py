"""Changes between two runs against SciPy, statsmodels and loops; their coverage and level by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from waterproof.bench.statistics import paired, paired_intervals
from waterproof.bench.statistics.intervals import clopper_pearson, mean
from waterproof.bench.statistics.paired import Change
from waterproof.bench.statistics.splits import one_per_source
from waterproof.bench.statistics.thresholds import certified
from waterproof.core.errors import StatisticsError


def fewest(promise: float, repetitions: int) -> int:
    """Fewer hits than this happen once in ten thousand simulations if the promise is kept."""
    return int(stats.binom.ppf(1e-4, repetitions, promise))


def table(lost: int, won: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    kinds = np.repeat([0, 1, 2, 3], [lost, won, both, neither])
    return (kinds == 0) | (kinds == 2), (kinds == 1) | (kinds == 2)


def change(value: float, low: float, high: float, identical: bool = False) -> Change:
    return Change(value, low, high, 100, 100, 0.5, 0.5, "made up", 0.95, identical)


# Holm and McNemar


@pytest.mark.parametrize("size", [1, 2, 58])
def test_holm_agrees_with_statsmodels(size: int) -> None:
    p_values = np.random.default_rng(size).beta(0.3, 3, size).round(2)
    np.testing.assert_allclose(paired.holm(p_values), multipletests(p_values, method="holm")[1], rtol=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_holm_is_the_closed_test_of_all_intersections(p_values: list[float]) -> None:
    # Bonferroni on every set of hypotheses that holds the one in question.
    k = len(p_values)
    expected = np.zeros(k)
    for mask in range(1, 1 << min(k, 8)):
        members = [i for i in range(min(k, 8)) if mask >> i & 1]
        joint = min(1.0, len(members) * min(p_values[i] for i in members))
        expected[members] = np.maximum(expected[members], joint)
    np.testing.assert_allclose(paired.holm(p_values[:8]), expected[:8], rtol=1e-12)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 30), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_mcnemar_agrees_with_statsmodels_and_scipy(lost: int, won: int, both: int, neither: int) -> None:
    test = paired.mcnemar(*table(lost, won, both, neither))
    expected = reference_mcnemar([[both, lost], [won, neither]], exact=True)
    assert (test.only_before, test.only_after) == (lost, won)
    assert test.p == pytest.approx(min(1.0, expected.pvalue), rel=1e-9)
    if lost + won:
        assert test.p_worse == pytest.approx(stats.binomtest(lost, lost + won, alternative="greater").pvalue, rel=1e-9)
        assert test.p_better == pytest.approx(stats.binomtest(won, lost + won, alternative="greater").pvalue, rel=1e-9)
    else:
        assert (test.p, test.p_worse, test.p_better) == (1.0, 1.0, 1.0)


def test_mcnemar_takes_the_same_image_of_each_source_in_both_runs() -> None:
    draws = np.random.default_rng(0)
    before, after = draws.random(200) < 0.8, draws.random(200) < 0.6
    sources = [f"photo {i // 4}" for i in range(200)]
    kept = one_per_source(sources, 5)
    test, alone = paired.mcnemar(before, after, sources, 5), paired.mcnemar(before[kept], after[kept])
    assert (test.n, test.sources) == (200, 50)
    assert (test.only_before, test.only_after, test.p) == (alone.only_before, alone.only_after, alone.p)


# rates


def tango_by_likelihood(lost: int, won: int, n: int, z: float) -> list[float]:
    """The ends at which the score test is just significant, its nuisance share found by a numerical search."""

    def score(change: float) -> float:
        def loss(share: float) -> float:
            rest = 1 - 2 * share - change
            return -(lost * math.log(share) + won * math.log(share + change) + (n - lost - won) * math.log(rest))

        span = max(0.0, -change) + 1e-13, (1 - change) / 2 - 1e-13
        share = optimize.minimize_scalar(loss, bounds=span, method="bounded", options={"xatol": 1e-13}).x
        return (won - lost - n * change) / math.sqrt(n * (2 * share + change - change**2))

    value = (won - lost) / n
    return [
        optimize.brentq(lambda x: score(x) - z, -0.999, value),
        optimize.brentq(lambda x: score(x) + z, value, 0.999),
    ]


@pytest.mark.parametrize(("lost", "won", "n"), [(5, 2, 30), (1, 9, 60), (40, 30, 200), (3, 3, 40)])
def test_the_interval_of_a_rate_inverts_the_score_test(lost: int, won: int, n: int) -> None:
    found = paired.rate_change(*table(lost, won, n - lost - won, 0))
    assert found.value == pytest.approx((won - lost) / n)
    assert [found.low, found.high] == pytest.approx(tango_by_likelihood(lost, won, n, stats.norm.ppf(0.975)), abs=1e-5)
    mirrored = paired.rate_change(*table(won, lost, n - lost - won, 0))
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=1e-12)


def test_without_a_discordant_pair_the_interval_keeps_a_width() -> None:
    z = stats.norm.ppf(0.975) ** 2
    for n in (1, 15, 200, 5000):
        found = paired.rate_change(np.ones(n, dtype=bool), np.ones(n, dtype=bool))
        assert (found.low, found.high) == pytest.approx((-z / (n + z), z / (n + z)))
        assert found.identical
        assert (found.p_worse, found.p_better) == (1.0, 1.0)
    grouped = paired.rate_change(np.ones(60, dtype=bool), np.ones(60, dtype=bool), np.repeat(np.arange(15), 4))
    assert (grouped.n, grouped.sources) == (60, 15)
    assert grouped.high == pytest.approx(z / (15 + z))


def test_all_lost_is_a_change_of_minus_one() -> None:
    found = paired.rate_change(np.ones(50, dtype=bool), np.zeros(50, dtype=bool))
    assert (found.value, found.low) == (-1.0, -1.0)
    assert -1 < found.high < -0.8
    assert found.p_worse == 2.0**-50


def test_images_of_one_source_do_not_narrow_a_change() -> None:
    before, after = table(8, 2, 25, 5)
    copies = paired.rate_change(*(np.repeat(x, 6) for x in (before, after)), np.repeat(np.arange(40), 6))
    alone = paired.rate_change(before, after)
    assert copies.p_worse == alone.p_worse
    assert 1 <= (copies.high - copies.low) / (alone.high - alone.low) < 1.2


def test_the_effective_number_of_pairs_agrees_with_a_loop_over_sources() -> None:
    draws = np.random.default_rng(4)
    sources = draws.integers(0, 60, 400)
    worse = draws.beta(0.3, 1, 60)[sources]
    before = draws.random(400) < 0.9
    after = before & (draws.random(400) > worse)
    difference = after.astype(float) - before
    value, names = difference.mean(), np.unique(sources)
    squares = sizes = informative = 0.0
    for name in names:
        own = difference[sources == name]
        squares += (own - value).sum() ** 2
        sizes += own.size**2
        informative += own.any()
    deff = names.size / (names.size - 1) * squares / 400 / ((difference**2).mean() - value**2)
    assert deff > 1
    effect = (informative * deff + max(deff, sizes / 400)) / (informative + 1)
    size = 400 / effect * (stats.t.ppf(0.975, 399) / stats.t.ppf(0.975, names.size - 1)) ** 2
    found = paired.rate_change(before, after, sources)
    lost = -difference.sum() * size / 400
    low, high = paired_intervals.tango(lost, 0, size, 0.95)
    # All pairs that differ went one way, so Clopper-Pearson's interval of their share is taken in.
    least, most = (stats.beta.ppf(0.025, lost, size - lost + 1), stats.beta.ppf(0.975, lost + 1, size - lost))
    assert [found.low, found.high] == pytest.approx([min(low, -most), max(high, -least)], abs=1e-9)


@pytest.mark.parametrize(
    ("n", "lost", "won"), [(50, 0.02, 0.02), (200, 0.002, 0.002), (200, 0.06, 0.01), (1000, 0.02, 0.02)]
)
def test_a_change_of_a_rate_covers_as_advertised(n: int, lost: float, won: float) -> None:
    draws = np.random.default_rng(n)
    counts = draws.multinomial(n, [lost, won, 0.9, 0.1 - lost - won], size=4000)
    kinds, times = np.unique(counts[:, :2], axis=0, return_counts=True)
    hits = 0
    for (b, c), many in zip(kinds.tolist(), times.tolist(), strict=True):
        low, high = paired_intervals.tango(b, c, n, 0.95)
        hits += many * (low <= won - lost <= high)
    # A score interval covers its level on average over rates; 94 % is the promise that is tested.
    assert hits >= fewest(0.94, 4000)


@pytest.mark.parametrize(("count", "icc"), [(15, 0.7), (40, 0.3), (40, 0.7)])
def test_a_clustered_change_of_a_rate_covers_as_advertised(count: int, icc: float) -> None:
    draws = np.random.default_rng(count)
    shares, hits = np.array([0.08, 0.02, 0.8, 0.1]), 0
    for _ in range(500):
        own = draws.dirichlet(shares * (1 - icc) / icc, count)
        kind = (draws.random((count, 4, 1)) > own.cumsum(axis=1)[:, None, :3]).sum(axis=2).ravel()
        flags = (kind == 0) | (kind == 2), (kind == 1) | (kind == 2)
        found = paired.rate_change(*flags, np.repeat(np.arange(count), 4))
        hits += found.low <= -0.06 <= found.high
    assert hits >= fewest(0.95, 500)


# means


def test_a_change_of_a_mean_is_the_mean_of_the_differences() -> None:
    draws = np.random.default_rng(0)
    before = draws.normal(40, 5, 300)
    after = before + draws.normal(-0.3, 1, 300)
    sources = np.repeat(np.arange(75), 4)
    found, alone = paired.mean_change(before, after, sources), mean(after - before, sources)
    assert found.value == pytest.approx(alone.value)
    # The same procedure with other resamples.
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=0.02)
    assert (found.n, found.sources, found.identical) == (300, 75, False)


@pytest.mark.parametrize("count", [8, 60, 1500])
def test_the_p_value_of_a_mean_is_where_the_interval_ends(count: int) -> None:
    differences = np.random.default_rng(count).normal(0.4 / math.sqrt(count), 0.3, count)
    for shift in (0.0, -0.8 / math.sqrt(count)):
        found = paired.mean_change(np.zeros(count), differences + shift)
        p = min(found.p_worse, found.p_better)
        low, high = ((f := paired.mean_change(np.zeros(count), differences + shift, level=1 - 2 * p)).low, f.high)
        assert min(abs(low), abs(high)) < 0.02 * (high - low)


def test_small_p_values_are_not_cut_off_by_the_number_of_resamples() -> None:
    draws = np.random.default_rng(3)
    differences = draws.normal(-0.5, 1, 200)
    found = paired.mean_change(np.zeros(200), differences)
    expected = stats.ttest_1samp(differences, 0, alternative="less").pvalue
    assert found.p_worse < 1e-6
    assert math.log10(found.p_worse) == pytest.approx(math.log10(expected), rel=0.3)
    assert found.p_better == pytest.approx(1.0)


def test_equal_runs_are_identical_and_the_unseen_is_bounded() -> None:
    values = np.linspace(0.5, 1, 200)
    found = paired.mean_change(values, values, bounds=(0.0, 1.0))
    assert found.identical
    assert (found.value, found.p_worse, found.p_better) == (0.0, 1.0, 1.0)
    bound = clopper_pearson(0, 200)[1]
    assert (found.low, found.high) == pytest.approx((-bound, bound))
    blind = paired.mean_change(values, values)
    assert blind.identical
    assert math.isnan(blind.low)
    assert "no spread was seen" in blind.method


def test_the_same_change_everywhere_is_significant_without_an_interval() -> None:
    found = paired.mean_change(np.full(30, 40.0), np.full(30, 39.5))
    assert (found.value, found.identical) == (-0.5, False)
    assert math.isnan(found.low)
    assert found.p_worse == pytest.approx(2.0**-30)
    known = paired.mean_change(np.full(30, 0.9), np.full(30, 0.8), bounds=(0.0, 1.0))
    assert known.low < -0.1 < known.high
    assert known.high - known.low > 0.1


def test_two_images_of_two_hundred_do_not_make_a_narrow_interval() -> None:
    before = np.full(200, 0.98)
    after = before.copy()
    after[:2] = 0.5
    known, blind = paired.mean_change(before, after, bounds=(0.0, 1.0)), paired.mean_change(before, after)
    for found in (known, blind):
        assert found.value == pytest.approx(-0.0048)
        assert found.p_worse == 0.25
        assert found.low < -0.012
        assert found.high > 0
    assert known.high - known.low > 0.036
    # On differences of 0 or -1 the interval is Clopper-Pearson's on the lower side.
    after[:2] = before[:2] - 1
    low = paired_intervals.bounded_mean(after - before, -1.0, 1.0, 0.95, 0)[0]
    assert low == pytest.approx(-clopper_pearson(2, 200)[1], rel=0.05)


def test_a_few_flips_are_tested_by_enumeration() -> None:
    draws = np.random.default_rng(1)
    for size in (1, 4, 9):
        sums = np.concatenate([draws.normal(-0.4, 1, size), np.zeros(30)])
        seen = sums.sum()
        totals = np.array([np.dot(signs, np.abs(sums[:size])) for signs in itertools.product((-1, 1), repeat=size)])
        expected = np.mean(totals <= seen + 1e-12), np.mean(totals >= seen - 1e-12)
        assert paired_intervals.sign_flips(sums) == pytest.approx(expected)


def test_many_flips_agree_with_random_ones() -> None:
    draws = np.random.default_rng(2)
    sums = draws.standard_cauchy(60) - 0.3
    random = (draws.integers(0, 2, (200_000, 60)) * 2 - 1) @ np.abs(sums)
    worse, better = paired_intervals.sign_flips(sums)
    assert worse == pytest.approx(np.mean(random <= sums.sum()), abs=0.01)
    assert worse + better == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("count", "skewed"), [(15, False), (40, True), (150, True)])
def test_a_change_of_a_mean_covers_and_holds_its_level(count: int, skewed: bool) -> None:
    draws = np.random.default_rng(count)
    hits = false = 0
    for _ in range(200):
        source = draws.exponential(1, (count, 1)) - 1 if skewed else draws.standard_normal((count, 1))
        differences = (source + 0.5 * draws.standard_normal((count, 4))).ravel()
        found = paired.mean_change(np.zeros(4 * count), differences, np.repeat(np.arange(count), 4))
        hits += found.low <= 0 <= found.high
        false += min(found.p_worse, found.p_better) <= 0.025
    # These are approximate: 93 % is the promise that is tested.
    assert hits >= fewest(0.93, 200)
    assert 200 - false >= fewest(0.93, 200)


@pytest.mark.parametrize("expected", [1, 4, 16])
def test_a_few_great_drops_are_covered_where_the_bounds_are_known(expected: int) -> None:
    draws = np.random.default_rng(expected)
    hits = 0
    for _ in range(300):
        after = np.full(200, 0.9)
        after[: draws.poisson(expected)] = 0.3
        found = paired.mean_change(np.full(200, 0.9), after, bounds=(0.0, 1.0))
        hits += found.low <= -0.6 * expected / 200 <= found.high
    assert hits >= fewest(0.95, 300)


# areas


def delong_by_loops(runs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Areas and DeLong's covariance from the whole kernel, image by image."""
    kernels = [np.array([[(p > q) + 0.5 * (p == q) for q in low] for p in high]) for high, low in runs]
    areas = np.array([kernel.mean() for kernel in kernels])
    above, below = ([kernel.mean(axis=axis) for kernel in kernels] for axis in (1, 0))
    return areas, np.cov(above) / len(runs[0][0]) + np.cov(below) / len(runs[0][1])


def two_runs(draws: np.random.Generator, n: int, agreement: float) -> np.ndarray:
    return math.sqrt(agreement) * draws.standard_normal((n, 1)) + math.sqrt(1 - agreement) * draws.standard_normal(
        (n, 2)
    )


@pytest.mark.parametrize("digits", [0, 1, 8])
def test_delong_agrees_with_the_whole_kernel(digits: int) -> None:
    draws = np.random.default_rng(digits)
    high, low = (two_runs(draws, n, 0.7) + shift for n, shift in ((60, (1.0, 0.7)), (45, (0.0, 0.0))))
    high, low = high.round(digits), low.round(digits)
    areas, covariance = delong_by_loops([(high[:, i], low[:, i]) for i in (0, 1)])
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    found = paired.auc_change(high[:, 0], low[:, 0], high[:, 1], low[:, 1])
    assert found.method == "DeLong"
    assert found.value == pytest.approx(areas[1] - areas[0])
    assert (found.low, found.high) == pytest.approx(stats.norm.interval(0.95, areas[1] - areas[0], error))
    assert found.p_worse == pytest.approx(stats.norm.cdf((areas[1] - areas[0]) / error))
    for i in (0, 1):
        labels = np.repeat([1, 0], [60, 45])
        expected = roc_auc_score(labels, np.concatenate([high[:, i], low[:, i]]))
        assert paired.area(high[:, i], low[:, i]) == pytest.approx(expected)


def test_counterparts_of_one_source_are_summed_over_the_source() -> None:
    draws = np.random.default_rng(5)
    high, low = two_runs(draws, 80, 0.5) + np.array([1.0, 0.8]), two_runs(draws, 80, 0.5)
    low += 2 * high[:, :1] * 0.3
    sources = np.repeat(np.arange(40), 2)
    kernels = [(high[:, None, i] > low[None, :, i]).astype(float) for i in (0, 1)]
    moved = kernels[1] - kernels[0]
    value = moved.mean()
    total = 0.0
    for name in range(40):
        own = sources == name
        total += ((moved.mean(axis=1)[own] - value).sum() / 80 + (moved.mean(axis=0)[own] - value).sum() / 80) ** 2
    error = math.sqrt(total * 40 / 39)
    found = paired.auc_change(high[:, 0], low[:, 0], high[:, 1], low[:, 1], sources, sources)
    assert found.method == "Obuchowski over sources"
    assert (found.n, found.sources) == (160, 40)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 39, value, error))


def test_perfect_areas_do_not_claim_a_width_of_zero() -> None:
    high, low = np.arange(200.0) + 1000, np.arange(200.0)
    ids = [f"photo {i}" for i in range(200)]
    same = paired.auc_change(high, low, high, low, ids, ids)
    assert (same.value, same.identical, same.p_worse) == (0.0, True, 1.0)
    other = paired.auc_change(high, low, high + 1, low, ids, ids)
    assert not other.identical
    assert -0.02 < other.low < -0.005
    assert 0.005 < other.high < 0.02
    # Nothing moved where areas are in the middle: what was not seen still has a width.
    mixed = np.arange(400.0) % 7
    still = paired.auc_change(mixed[:200], mixed[200:], np.exp(mixed[:200]), np.exp(mixed[200:]))
    assert still.value == 0
    assert still.high - still.low > 0.1
    reversed_run = paired.auc_change(high, low, low, high, ids, ids)
    assert reversed_run.value == -1
    assert reversed_run.p_worse < 1e-9
    assert reversed_run.high > -1


def test_the_unit_of_scores_does_not_matter_to_areas() -> None:
    draws = np.random.default_rng(8)
    high, low = two_runs(draws, 70, 0.5) + 1, two_runs(draws, 70, 0.5)
    plain = paired.auc_change(high[:, 0], low[:, 0], high[:, 1], low[:, 1])
    assert paired.auc_change(high[:, 0], low[:, 0], np.exp(high[:, 1]), np.exp(low[:, 1])) == plain


@pytest.mark.parametrize("shared", [0.0, 0.8])
@pytest.mark.parametrize(("before", "after"), [(0.8, 0.8), (0.96, 0.94), (0.998, 0.985)])
def test_a_change_of_an_area_covers_whether_or_not_counterparts_are_alike(
    shared: float, before: float, after: float
) -> None:
    draws = np.random.default_rng(int(1000 * before))
    shift = np.sqrt(2) * stats.norm.ppf([before, after])
    ids = np.arange(60) if shared else None
    hits = 0
    for _ in range(150):
        source = math.sqrt(shared) * two_runs(draws, 60, 0.8)
        high, low = (source + math.sqrt(1 - shared) * two_runs(draws, 60, 0.8) for _ in range(2))
        high = high + shift
        found = paired.auc_change(high[:, 0], low[:, 0], high[:, 1], low[:, 1], ids, ids)
        hits += found.low <= after - before <= found.high
    assert hits >= fewest(0.94, 150)


# calibrated thresholds


def strictest(scores: np.ndarray, _: object) -> float:
    return float(np.nextafter(scores.max(), np.inf))


def test_swaps_agree_with_all_of_them_on_a_tiny_example() -> None:
    draws = np.random.default_rng(0)
    clean, marked = draws.normal(0, 1, (4, 2)), draws.normal(1.5, 1, (5, 2))

    def rates(swap: tuple[bool, ...]) -> float:
        both = np.array([row[::-1] if turned else row for row, turned in zip([*clean, *marked], swap, strict=True)])
        limits = both[:4].max(axis=0)
        return float(np.mean(both[4:, 1] > limits[1]) - np.mean(both[4:, 0] > limits[0]))

    every = np.array([rates(swap) for swap in itertools.product((False, True), repeat=9)])
    seen = rates((False,) * 9)
    found = paired.calibrated_rate_change(clean.T, marked.T, None, None, strictest, swaps=20_000)
    assert found.value == pytest.approx(seen)
    assert found.p_worse == pytest.approx(np.mean(every <= seen + 1e-9), abs=0.015)
    assert found.p_better == pytest.approx(np.mean(every >= seen - 1e-9), abs=0.015)


def test_images_of_one_source_are_swapped_together() -> None:
    draws = np.random.default_rng(1)
    clean, marked = draws.normal(0, 1, (2, 120)), draws.normal(2.5, 1, (2, 50))
    alone = paired.calibrated_rate_change(clean, marked, None, None, strictest)
    names = [f"clean {i}" for i in range(120)], [f"marked {i}" for i in range(50)]
    copies = paired.calibrated_rate_change(
        clean.repeat(3, axis=1), marked.repeat(3, axis=1), *(np.repeat(n, 3) for n in names), strictest
    )
    assert (copies.n, copies.sources) == (150, 50)
    assert copies.p_worse == pytest.approx(alone.p_worse, abs=0.05)
    assert copies.high - copies.low >= 0.95 * (alone.high - alone.low)


def test_equal_runs_with_calibrated_thresholds_are_identical() -> None:
    draws = np.random.default_rng(2)
    clean, marked = draws.normal(size=400), draws.normal(4, 1, 300)

    def rule(scores: np.ndarray, sources: object) -> float:
        return certified(scores, sources, 0.01).value

    found = paired.calibrated_rate_change([clean, clean], [marked, marked], None, None, [rule, rule], swaps=99)
    assert (found.value, found.identical, found.p_worse, found.p_better) == (0.0, True, 1.0, 1.0)
    assert found.low < 0 < found.high


def test_one_calibration_serves_many_attacks() -> None:
    draws = np.random.default_rng(3)
    clean, marked = draws.normal(size=(2, 300)), draws.normal(4, 1, (2, 200))
    limits = paired.paired_thresholds(clean, None, strictest)
    assert (limits.before, limits.after) == (strictest(clean[0], None), strictest(clean[1], None))
    once = paired.swapped_rate_change(limits, marked)
    assert once == paired.calibrated_rate_change(clean, marked, None, None, strictest)


def test_runs_in_different_units_are_compared_by_rank() -> None:
    draws = np.random.default_rng(4)
    clean, marked = draws.normal(size=(2, 300)), draws.normal(3, 1, (2, 400))
    scaled = [np.exp(x) for x in (clean[1], marked[1])]
    plain = paired.calibrated_rate_change(clean, marked, None, None, strictest, same_unit=False)
    other = paired.calibrated_rate_change(
        (clean[0], scaled[0]), (marked[0], scaled[1]), None, None, strictest, same_unit=False
    )
    assert (plain.value, plain.p_worse, plain.p_better) == (other.value, other.p_worse, other.p_better)
    assert math.isnan(other.low)
    assert "by rank" in other.method


@pytest.mark.parametrize("agreement", [0.0, 0.9])
def test_calibrated_thresholds_hold_the_level_and_cover(agreement: float) -> None:
    draws = np.random.default_rng(int(10 * agreement))
    false = hits = 0
    for seed in range(200):
        clean, marked = two_runs(draws, 300, agreement), two_runs(draws, 300, agreement) + 3
        found = paired.calibrated_rate_change(clean.T, marked.T, None, None, strictest, seed=seed, swaps=99)
        false += found.p_worse <= 0.05
        hits += found.low <= 0 <= found.high
    assert 200 - false >= fewest(0.95, 200)
    assert hits >= fewest(0.95, 200)


# verdicts


@pytest.mark.parametrize(
    ("found", "worse", "better", "word"),
    [
        (change(0.0, -0.02, 0.02, identical=True), 1.0, 1.0, "identical"),
        (change(-0.05, -0.07, -0.03), 0.001, 1.0, "regression"),
        (change(0.05, 0.03, 0.07), 1.0, 0.001, "improvement"),
        (change(-0.004, -0.006, -0.002), 0.001, 1.0, "equivalent"),
        (change(-0.008, -0.012, -0.004), 0.001, 1.0, "small change"),
        (change(0.008, 0.004, 0.012), 1.0, 0.001, "small change"),
        (change(-0.05, -0.11, 0.01), 0.06, 1.0, "undecided"),
        (change(-0.01, -0.02, -0.001), 0.001, 1.0, "small change"),
        (change(-0.02, -0.04, 0.01), 0.001, 1.0, "undecided"),
        (change(-0.02, math.nan, math.nan), 0.001, 1.0, "regression"),
        (change(0.0, math.nan, math.nan), 1.0, 1.0, "undecided"),
        (change(0.0, -0.01, 0.01), 1.0, 1.0, "undecided"),
    ],
)
def test_every_word_of_the_verdict(found: Change, worse: float, better: float, word: str) -> None:
    assert paired.verdict(found, 0.01, worse, better, 0.05) == word


def test_with_a_margin_of_zero_every_significant_change_counts() -> None:
    assert paired.verdict(change(-1e-6, -2e-6, -1e-7), 0.0, 0.01, 1.0) == "regression"


def test_fifty_eight_unchanged_cells_are_no_regression() -> None:
    draws = np.random.default_rng(0)
    false = 0
    for _ in range(200):
        counts = draws.multinomial(300, [0.03, 0.03, 0.87, 0.07], size=58)
        cells = [paired_intervals.sign_test(int(lost), int(won))[0] for lost, won in counts[:, :2]]
        false += bool((paired.holm(cells) <= 0.05).any())
    assert 200 - false >= fewest(0.95, 200)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired.holm([]), "at least one"),
        (lambda: paired.holm([0.5, 1.5]), "0..1"),
        (lambda: paired.holm([0.5, math.nan]), "NaN"),
        (lambda: paired.mcnemar([True], [True, False]), "1 images before and 2 after"),
        (lambda: paired.rate_change([1, 0], [1, 0]), "must be booleans"),
        (lambda: paired.rate_change(np.array([], dtype=bool), np.array([], dtype=bool)), "at least one"),
        (lambda: paired.rate_change([True], [True], None, 95), "level is 95"),
        (lambda: paired.mean_change([1.0], [1.0, 2.0]), "1 images before and 2 after"),
        (lambda: paired.mean_change([1.0], [math.inf]), "infinite"),
        (lambda: paired.mean_change([0.5], [1.5], bounds=(0.0, 1.0)), "outside the bounds 0..1"),
        (lambda: paired.mean_change([0.5], [0.5], bounds=(1.0, 0.0)), "smaller one first"),
        (lambda: paired.auc_change([1.0], [0.0], [1.0], [0.0]), "needs at least 2|2 of each"),
        (lambda: paired.auc_change([1.0, 2.0], [0.0, 1.0], [1.0], [0.0, 1.0]), "2 scores of positives before and 1"),
        (lambda: paired.auc_change([1.0, 2.0], [0.0, 1.0], [1.0, 2.0], [0.0, 1.0], ["a"] * 2, ["a"] * 2), "one source"),
        (lambda: paired.paired_thresholds(([1.0],), None, strictest), "two vectors"),
        (lambda: paired.paired_thresholds(([1.0], [1.0]), None, strictest, swaps=9), "at least 99"),
        (
            lambda: paired.calibrated_rate_change(([1.0], [1.0]), ([1.0], [1.0]), ["a"], ["a"], strictest),
            "1 sources calibrate and are tested, such as 'a'",
        ),
        (lambda: paired.verdict(change(0, 0, 0), -1.0, 1.0, 1.0), "at least 0"),
        (lambda: paired.verdict(change(0, 0, 0), 0.0, 1.5, 1.0), "0..1"),
    ],
)
def test_bad_input_is_refused_with_a_clear_line(call, message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        call()
