"""Matching bits under the null, against exact integers, fractions and mpmath."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp

from waterproof.bench.statistics import binomial
from waterproof.core.errors import StatisticsError

PUBLISHED = [
    (48, "1e-2", 33),
    (48, "1e-3", 36),
    (48, "1e-4", 38),
    (48, "1e-6", 41),
    (48, "1e-9", 44),
    (48, "1e-10", 45),
    (48, "1e-12", 47),
    (32, "1e-6", 30),
    (96, "1e-6", 72),
    (100, "1e-6", 74),
    (256, "1e-6", 167),
]


def exact_fpr(k: int, tau: int) -> Fraction:
    return Fraction(sum(math.comb(k, i) for i in range(max(tau, 0), k + 1)), 2**k)


def exact_two_sided(k: int, m: int) -> Fraction:
    low = Fraction(sum(math.comb(k, i) for i in range(m + 1)), 2**k)
    return min(Fraction(1), 2 * min(low, exact_fpr(k, m)))


@pytest.mark.parametrize(("k", "alpha", "tau"), PUBLISHED)
def test_the_published_thresholds_are_the_smallest_that_keep_alpha(k: int, alpha: str, tau: int) -> None:
    assert exact_fpr(k, tau) <= Fraction(alpha) < exact_fpr(k, tau - 1)
    assert binomial.threshold(k, float(alpha)) == tau


@pytest.mark.parametrize(("tau", "attained"), [(41, 3.12e-7), (44, 7.57e-10), (45, 6.56e-11)])
def test_the_attained_rates_are_the_published_ones(tau: int, attained: float) -> None:
    assert binomial.fpr(48, tau) == pytest.approx(attained, rel=2e-3)


def test_an_fpr_is_the_exact_fraction_correctly_rounded() -> None:
    for k in (1, 2, 7, 32, 48, 257):
        for tau in range(k + 1):
            assert binomial.fpr(k, tau) == float(exact_fpr(k, tau))
    assert binomial.fpr(48, -3) == 1
    assert binomial.fpr(48, 49) == 0


@pytest.mark.parametrize("k", [1, 8, 19])
def test_too_few_bits_for_one_in_a_million_are_refused_with_what_they_can_do(k: int) -> None:
    with pytest.raises(StatisticsError, match=rf"{k} bits cannot reach an FPR of 1e-06.*2\^-{k} .*use 20 bits or more"):
        binomial.threshold(k, 1e-6)


def test_twenty_bits_reach_one_in_a_million_one_sided_and_need_one_more_two_sided() -> None:
    assert binomial.threshold(20, 1e-6) == 20
    with pytest.raises(StatisticsError, match=r"2\^-19 .*use 21 bits"):
        binomial.threshold(20, 1e-6, "two")
    assert binomial.threshold(21, 1e-6, "two") == 21


def test_the_smallest_fpr_itself_is_reached() -> None:
    for k in (1, 8, 48):
        assert binomial.smallest_fpr(k) == 2.0**-k
    assert binomial.threshold(8, 2.0**-8) == 8
    assert binomial.threshold(8, binomial.smallest_fpr(8, "two"), "two") == 8


def test_half_of_the_odd_payload_is_decided_without_rounding() -> None:
    assert binomial.threshold(49, 0.5) == 25
    assert binomial.threshold(49, float(np.nextafter(0.5, 0))) == 26


def test_logarithms_for_4096_bits_agree_with_a_hundred_digits() -> None:
    k = 4096
    mp.dps = 100
    tails, tail = {}, 0
    for tau in range(k, -1, -1):
        tail += math.comb(k, tau)
        tails[tau] = tail
    for tau in (0, 1, 100, 1900, 2047, 2048, 2049, 2100, 2500, 3500, 4095, 4096):
        expected = float(mp.log10(mp.mpf(tails[tau])) - k * mp.log10(2))
        assert float(binomial.log10_p(tau, k)) == pytest.approx(expected, rel=1e-13, abs=1e-320)
    assert float(binomial.log10_p(k, k)) < -1233


def test_two_sided_p_values_are_twice_the_smaller_tail() -> None:
    for k in (1, 2, 31, 48):
        got = binomial.log10_p(np.arange(k + 1), k, "two")
        expected = [math.log10(exact_two_sided(k, m)) for m in range(k + 1)]
        np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-15)
        np.testing.assert_array_equal(got, got[::-1])


@given(st.integers(1, 80), st.floats(1e-12, 0.999), st.sampled_from(["one", "two"]))
@settings(max_examples=150, deadline=None)
def test_detection_is_p_at_most_alpha(k: int, alpha: float, sided: str) -> None:
    p = [exact_fpr(k, m) if sided == "one" else exact_two_sided(k, m) for m in range(k + 1)]
    expected = [value <= Fraction(alpha) for value in p]
    if not any(expected):
        with pytest.raises(StatisticsError, match="cannot reach"):
            binomial.detected(np.arange(k + 1), k, alpha, sided)
        return
    assert binomial.detected(np.arange(k + 1), k, alpha, sided).tolist() == expected
    tau = binomial.threshold(k, alpha, sided)
    flagged = sum(math.comb(k, m) for m in range(k + 1) if expected[m])
    assert binomial.fpr(k, tau, sided) == float(Fraction(flagged, 2**k))
    assert 2 * tau > k or sided == "one"


def test_arrays_keep_their_shape_and_the_cached_table_cannot_be_spoilt() -> None:
    first = binomial.log10_p(np.array([[1, 2], [3, 4]]), 8)
    assert first.shape == (2, 2)
    assert first.dtype == np.float64
    first[:] = 7
    assert float(binomial.log10_p(8, 8)) == -8 * math.log10(2)
    np.testing.assert_array_equal(binomial.log10_p([3.0, 8.0], 8), binomial.log10_p([3, 8], 8))


@pytest.mark.parametrize(
    ("matches", "k", "message"),
    [
        ([49], 48, r"must lie in 0\.\.48"),
        ([-1], 48, r"must lie in 0\.\.48"),
        ([1.5], 48, "must be integers"),
        ([math.nan], 48, "must be integers"),
        ([0], 0, "payload has 0 bits"),
    ],
)
def test_impossible_matches_are_refused(matches: list[float], k: int, message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        binomial.log10_p(matches, k)


@pytest.mark.parametrize("alpha", [0, 1, -1e-3, math.nan])
def test_an_alpha_outside_the_open_unit_interval_is_refused(alpha: float) -> None:
    with pytest.raises(StatisticsError, match="alpha"):
        binomial.threshold(48, alpha)


def test_an_unknown_side_is_refused() -> None:
    with pytest.raises(StatisticsError, match="'one' or 'two'"):
        binomial.fpr(48, 40, "both")
