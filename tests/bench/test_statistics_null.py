"""The null report on fair coins, on bits that are not, and against slow loops."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats

from waterproof.bench.statistics import binomial
from waterproof.bench.statistics.correlation import correlation
from waterproof.bench.statistics.intervals import proportion
from waterproof.bench.statistics.null import NullReport, key_fprs, key_spread, match_histogram, null_report
from waterproof.core.errors import StatisticsError


def report(bits: np.ndarray, key: np.ndarray | None = None, **kwargs: object) -> NullReport:
    if key is None:
        key = np.arange(bits.shape[1]) % 2 == 0
    arguments = {"sources": None, "alpha": 1e-2, "keys": 200} | kwargs
    return null_report(np.where(bits, 1.0, -1.0), key, **arguments)


@pytest.mark.parametrize(("n", "k"), [(15, 48), (120, 32), (1000, 48), (60, 256)])
def test_fair_coins_hold(n: int, k: int) -> None:
    draws = np.random.default_rng(0)
    rejected = [report(draws.random((n, k)) < 0.5, keys=2) for _ in range(150)]
    # The family error is 1 %: more than 6 of 150 happens less than once in a thousand runs.
    assert sum(not item.holds for item in rejected) <= 6
    assert all(item.warning == "" for item in rejected if item.holds)


def test_the_diagnostics_of_fair_coins_are_those_of_the_binomial() -> None:
    item = report(np.random.default_rng(1).random((4000, 48)) < 0.5)
    assert item.overdispersion == pytest.approx(1, abs=0.05)
    assert item.effective_bits == pytest.approx(48, abs=0.5)
    assert item.matches_mean == pytest.approx(24, abs=0.25)
    assert item.worst_bias < 0.04
    assert item.key_fpr_mean == pytest.approx(item.nominal_fpr, rel=0.1)
    assert item.observed_fpr.low <= item.nominal_fpr <= item.observed_fpr.high


def test_biased_bits_do_not_hold_and_the_sentence_says_what_follows() -> None:
    draws = np.random.default_rng(2)
    bits = draws.random((300, 48)) < 0.65
    item = report(bits, np.ones(48, dtype=bool))
    assert not item.holds
    assert item.p_bias < 1e-6
    assert item.p_exceeds < 1e-6
    assert item.warning.startswith("Theoretical rates do not hold on these 300 sources: the FPR of the key in use is ")
    assert item.warning.endswith(".")
    assert "\n" not in item.warning
    # Averaged over random keys the FPR is binomial whatever the decoder does.
    assert item.key_fpr_mean == pytest.approx(item.nominal_fpr, rel=0.25)
    assert item.key_fpr_worst > 2 * item.nominal_fpr


def test_a_single_stuck_bit_is_found_among_few_images() -> None:
    bits = np.random.default_rng(3).random((30, 48)) < 0.5
    bits[:, 7] = True
    item = report(bits)
    assert not item.holds
    assert item.ones[7] == 1
    assert item.worst_bias == 0.5
    assert item.effective_bits <= 47


def test_correlated_fair_bits_do_not_hold() -> None:
    draws = np.random.default_rng(4)
    shared = draws.standard_normal((200, 1))
    bits = 0.6 * shared + 0.8 * draws.standard_normal((200, 48)) > 0
    item = report(bits, np.ones(48, dtype=bool))
    assert not item.holds
    assert item.p_correlation < 1e-6
    assert item.p_dispersion < 1e-6
    assert item.p_fit < 1e-3
    assert item.overdispersion > 2
    # Correlation of signs, 2/pi arcsin(.36): 48 / (1 + 47 r^2).
    assert item.effective_bits == pytest.approx(48 / (1 + 47 * (2 / np.pi * np.arcsin(0.36)) ** 2), rel=0.25)


def test_copies_of_one_bit_are_worth_one() -> None:
    fair = np.random.default_rng(5).random((500, 1)) < 0.5
    item = report(np.repeat(fair, 32, axis=1))
    assert item.effective_bits == pytest.approx(1, rel=1e-6)
    constant = report(np.ones((50, 32), dtype=bool))
    assert constant.effective_bits == 0
    assert not constant.holds


def test_the_effective_bits_come_from_the_eigenvalues_less_their_chance_part() -> None:
    draws = np.random.default_rng(6)
    for n, k in ((100, 16), (20, 64)):
        bits = draws.standard_normal((n, k)) + 1.5 * draws.standard_normal((n, 1)) > 0
        eigenvalues = np.linalg.eigvalsh(np.corrcoef(bits.T))
        chance = (k**2 - (eigenvalues**2).sum()) / (n - 2)
        expected = k**2 / ((eigenvalues**2).sum() - chance)
        assert report(bits).effective_bits == pytest.approx(expected, rel=1e-9)


def test_the_rates_over_keys_agree_with_a_loop() -> None:
    draws = np.random.default_rng(7)
    bits, key = draws.random((80, 20)) < 0.6, draws.random(20) < 0.5
    item = report(bits, key, keys=50, seed=3)
    matches = np.array([(row == key).sum() for row in bits])
    assert item.observed_fpr == proportion(matches >= item.threshold, None)
    assert item.matches_mean == pytest.approx(matches.mean())
    assert item.matches_sd == pytest.approx(matches.std(ddof=1))
    hits = int((matches >= item.threshold).sum())
    assert item.p_exceeds == pytest.approx(stats.binomtest(hits, 80, item.nominal_fpr, "greater").pvalue)
    assert item.p_shift == pytest.approx(stats.binomtest(int(matches.sum()), 1600, 0.5, "greater").pvalue)
    assert report(bits, key, keys=50, seed=3) == item
    assert report(bits, key, keys=50, seed=4).key_fpr_mean != item.key_fpr_mean


def test_a_constant_decoder_has_the_binomial_spread_over_keys() -> None:
    item = report(np.ones((10, 20), dtype=bool), keys=4000)
    assert item.key_fpr_worst == 1
    sigma = np.sqrt(item.nominal_fpr * (1 - item.nominal_fpr))
    assert item.key_fpr_mean == pytest.approx(item.nominal_fpr, abs=4 * sigma / np.sqrt(4000))
    assert item.key_fpr_sd == pytest.approx(sigma, rel=0.2)


def test_copies_of_an_image_are_not_counted_as_evidence() -> None:
    draws = np.random.default_rng(8)
    rejected = 0
    for _ in range(60):
        bits = np.repeat(draws.random((40, 48)) < 0.5, 10, axis=0)
        item = report(bits, sources=np.repeat(np.arange(40), 10), keys=2)
        assert (item.n, item.sources, item.observed_fpr.sources) == (400, 40, 40)
        rejected += not item.holds
    assert rejected <= 4


def test_a_thousand_keys_on_ten_thousand_images_take_seconds() -> None:
    logits = np.random.default_rng(9).standard_normal((10_000, 48)).astype(np.float32)
    start = time.perf_counter()
    item = null_report(logits, np.arange(48) % 2 == 0, None, 1e-3)
    assert time.perf_counter() - start < 5
    assert item.keys == 1000


def test_a_logit_of_zero_is_a_zero() -> None:
    item = null_report(np.zeros((5, 8)), np.zeros(8, dtype=bool), None, 0.01, keys=2)
    assert item.matches_mean == 8
    assert item.ones == (0.0,) * 8


@pytest.mark.parametrize(
    ("logits", "key", "sources", "alpha", "message"),
    [
        (np.zeros((4, 8)), np.zeros(7, dtype=bool), None, 0.01, "key has 7 bits and the logits 8"),
        (np.zeros((4, 8)), np.zeros(8), None, 0.01, "key must be booleans"),
        (np.full((4, 8), np.nan), np.zeros(8, dtype=bool), None, 0.01, "NaN"),
        (np.zeros((4, 8), dtype=bool), np.zeros(8, dtype=bool), None, 0.01, "floating point"),
        (np.zeros(8), np.zeros(8, dtype=bool), None, 0.01, r"\[n, k\]"),
        (np.zeros((4, 8)), np.zeros(8, dtype=bool), ["a"] * 4, 0.01, "at least 2 sources"),
        (np.zeros((4, 8)), np.zeros(8, dtype=bool), None, 1e-6, r"2\^-8"),
    ],
)
def test_what_cannot_be_tested_is_refused(logits, key, sources, alpha: float, message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        null_report(logits, key, sources, alpha)


def test_two_sources_say_nothing_of_correlation() -> None:
    item = report(np.random.default_rng(0).random((2, 16)) < 0.5)
    assert np.isnan(item.effective_bits)
    assert item.holds


def test_one_random_key_has_no_spread() -> None:
    with pytest.raises(StatisticsError, match="at least 2 random keys"):
        null_report(np.zeros((4, 8)), np.zeros(8, dtype=bool), None, 0.01, keys=1)


def test_each_bit_has_an_interval_of_its_own_and_one_that_holds_for_all() -> None:
    bits = np.random.default_rng(10).random((45, 12)) < np.linspace(0.05, 0.95, 12)
    item = report(bits, alpha=0.05)
    assert item.ones == pytest.approx(bits.mean(axis=0))
    for i, share in enumerate(item.ones):
        for low, high, level in (
            (item.ones_low, item.ones_high, 0.95),
            (item.ones_low_all, item.ones_high_all, 1 - 0.05 / 12),
        ):
            exact = stats.binomtest(round(share * 45), 45).proportion_ci(level, "exact")
            assert (low[i], high[i]) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_the_intervals_of_the_bits_hold_together_as_often_as_they_say() -> None:
    draws = np.random.default_rng(11)
    reports = [report(draws.random((60, 32)) < 0.5, keys=2) for _ in range(200)]
    together = sum(min(r.ones_high_all) >= 0.5 >= max(r.ones_low_all) for r in reports)
    # At 95 %, fewer than 179 of 200 happen less than once in a thousand runs.
    assert together >= 179
    ends = [(low, high) for r in reports for low, high in zip(r.ones_low, r.ones_high, strict=True)]
    assert np.mean([low <= 0.5 <= high for low, high in ends]) >= 0.945


def test_the_most_correlated_bits_are_named() -> None:
    draws = np.random.default_rng(12)
    bits = draws.random((300, 16)) < 0.5
    bits[:, 11] = ~bits[:, 3] ^ (draws.random(300) < 0.1)
    bits[:, 8] = True
    item = report(bits)
    assert item.correlation_strongest is not None
    first, second, r = item.correlation_strongest
    assert (first, second) == (3, 11)
    assert r == pytest.approx(np.corrcoef(bits[:, 3], bits[:, 11])[0, 1])
    off = np.abs(np.corrcoef(np.delete(bits, 8, axis=1).T)[np.triu_indices(15, 1)])
    assert item.correlation_mean == pytest.approx(off.mean())
    assert item.correlation_chance == pytest.approx(np.delete(off, off.argmax()).mean(), rel=0.15)


def test_bits_that_never_change_have_no_correlation() -> None:
    item = report(np.ones((40, 8), dtype=bool), alpha=0.05)
    assert item.correlation_strongest is None
    assert np.isnan([item.correlation_mean, item.effective_bits_low, item.effective_bits_high]).all()


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda draws: draws.random((60, 32)) < 0.5, 32.0),
        (lambda draws: np.repeat(draws.random((60, 16)) < 0.5, 2, axis=1), 16.0),
        # Correlation of signs, 2/pi arcsin(1/3).
        (
            lambda draws: 0.5**0.5 * draws.standard_normal((60, 1)) + draws.standard_normal((60, 32)) > 0,
            32 / (1 + 31 * (2 / np.pi * np.arcsin(1 / 3)) ** 2),
        ),
    ],
)
def test_the_interval_of_the_effective_bits_covers(draw, truth: float) -> None:
    draws = np.random.default_rng(13)
    found = [correlation(draw(draws)) for _ in range(200)]
    assert all(item.low <= item.effective <= item.high for item in found)
    assert sum(item.low - 1e-9 <= truth <= item.high + 1e-9 for item in found) >= 179


def test_few_sources_have_effective_bits_without_an_interval() -> None:
    item = report(np.random.default_rng(14).random((29, 16)) < 0.5)
    assert item.effective_bits > 0
    assert np.isnan([item.effective_bits_low, item.effective_bits_high]).all()


def test_two_sided_decisions_count_flipped_keys_as_well() -> None:
    draws = np.random.default_rng(15)
    key = draws.random(32) < 0.5
    bits = draws.random((200, 32)) < 0.5
    bits[:20] = ~key
    one, two = (report(bits, key, sided=sided) for sided in ("one", "two"))
    assert (one.sided, two.sided) == ("one", "two")
    assert two.threshold == binomial.threshold(32, 1e-2, "two")
    assert two.nominal_fpr == binomial.fpr(32, two.threshold, "two")
    matches = (bits == key).sum(axis=1)
    flagged = (matches >= two.threshold) | (matches <= 32 - two.threshold)
    assert two.observed_fpr == proportion(flagged, None)
    assert two.p_exceeds == pytest.approx(stats.binomtest(int(flagged.sum()), 200, two.nominal_fpr, "greater").pvalue)
    assert two.p_shift == pytest.approx(stats.binomtest(int(matches.sum()), 6400, 0.5).pvalue)
    assert min(one.p_exceeds, one.p_shift) > 0.01
    assert max(two.p_exceeds, two.p_shift) < 1e-9


@pytest.mark.parametrize("sided", ["one", "two"])
def test_the_numbers_on_keys_are_those_of_their_rates(sided: str) -> None:
    bits = np.random.default_rng(16).random((70, 20)) < 0.65
    item = report(bits, keys=300, seed=5, sided=sided, sources=np.repeat(np.arange(35), 2))
    rates = key_fprs(np.where(bits, 1.0, -1.0), item.threshold, 300, 5, sided)
    assert rates.shape == (300,)
    assert item.key_fpr_mean == pytest.approx(rates.mean())
    assert item.key_fpr_sd == pytest.approx(rates.std(ddof=1))
    assert item.key_fpr_worst == rates.max()
    ordered = np.sort(rates)
    assert item.key_fpr_quantiles == (ordered[149], ordered[269], ordered[296])
    assert key_spread(np.where(bits, 1.0, -1.0), item.threshold, 300, 5, sided) == (rates.mean(), rates.max())


def test_the_other_side_adds_the_keys_that_are_flipped() -> None:
    bits = np.random.default_rng(19).random((60, 12)) < 0.6
    upper, both = (key_fprs(np.where(bits, 1.0, -1.0), 10, 400, 1, sided) for sided in ("one", "two"))
    lower = key_fprs(np.where(bits, -1.0, 1.0), 10, 400, 1)
    assert both == pytest.approx(upper + lower)


def test_the_share_of_keys_above_nominal_is_small_for_fair_coins_and_large_for_bits_alike() -> None:
    draws = np.random.default_rng(17)
    fair = report(draws.random((400, 32)) < 0.5, keys=2000)
    assert 0 < fair.keys_above_chance <= 0.01
    assert fair.keys_above <= 0.03
    alike = report(2 * draws.standard_normal((400, 1)) + draws.standard_normal((400, 32)) > 0, keys=2000)
    tails = stats.binom.sf(np.arange(-1, 401), 400, alike.nominal_fpr)
    assert alike.keys_above_chance == pytest.approx(tails[tails <= 0.01][0])
    # Few keys resemble all ones or all zeros, but to these many images belong.
    assert alike.key_fpr_worst > 5 * alike.nominal_fpr
    assert alike.keys_above > 0.02


def test_the_histogram_counts_matches_with_one_key_or_with_each_images_own() -> None:
    draws = np.random.default_rng(18)
    bits, keys = draws.random((50, 9)) < 0.5, draws.random((50, 9)) < 0.5
    for key in (keys[0], keys):
        found = match_histogram(np.where(bits, 0.5, -0.5), key)
        matches = [int((row == k).sum()) for row, k in zip(bits, np.broadcast_to(key, bits.shape), strict=True)]
        assert found.dtype == np.int64
        assert found.tolist() == [matches.count(x) for x in range(10)]


@pytest.mark.parametrize("key", [np.zeros(8, dtype=bool), np.zeros(9), np.zeros((3, 9), dtype=bool)])
def test_a_histogram_with_a_key_that_does_not_fit_is_refused(key: np.ndarray) -> None:
    with pytest.raises(StatisticsError, match=r"the key must be bool \[9\] or \[50, 9\] like the logits"):
        match_histogram(np.zeros((50, 9)), key)


def test_no_key_has_no_rates() -> None:
    with pytest.raises(StatisticsError, match="at least 1 random key, not 0"):
        key_fprs(np.zeros((4, 8)), 7, keys=0)


def test_a_third_side_is_refused() -> None:
    with pytest.raises(StatisticsError, match="sided is 'three'"):
        report(np.ones((4, 8), dtype=bool), alpha=0.05, sided="three")
