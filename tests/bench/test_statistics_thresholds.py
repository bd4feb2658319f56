"""Threshold rules and the split that keeps calibration away from the test."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from waterproof.bench.statistics import thresholds
from waterproof.bench.statistics.roc import needed_negatives
from waterproof.bench.statistics.splits import one_per_source, source_codes, split
from waterproof.core.errors import StatisticsError


def upper_bound(flagged: int, n: int, level: float) -> float:
    return proportion_confint(flagged, n, alpha=2 * (1 - level), method="beta")[1]


def test_a_theoretical_threshold_carries_its_rule_and_its_attained_rate() -> None:
    rule = thresholds.theory(48, 1e-6)
    assert (rule.rule, rule.version, rule.alpha, rule.value, rule.sided) == ("theory", 1, 1e-6, 41.0, "one")
    assert (rule.n_calibration, rule.sources) == (0, 0)
    assert "3.12e-07" in rule.note
    assert thresholds.theory(48, 1e-6, "two").sided == "two"
    with pytest.raises(StatisticsError, match=r"2\^-16"):
        thresholds.theory(16, 1e-6)


@given(st.integers(60, 400), st.floats(0.06, 0.4), st.integers(1, 50), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_a_certified_threshold_is_the_smallest_whose_bound_keeps_alpha(
    n: int, alpha: float, levels: int, seed: int
) -> None:
    scores = np.random.default_rng(seed).integers(0, levels, n)
    rule = thresholds.certified(scores, None, alpha)
    assert upper_bound(np.count_nonzero(scores >= rule.value), n, 0.95) <= alpha
    assert upper_bound(np.count_nonzero(scores >= rule.value - 1), n, 0.95) > alpha
    assert rule.value == int(rule.value)
    real = thresholds.certified(scores.astype(float), None, alpha)
    assert real.value == np.nextafter(rule.value - 1, np.inf)


def test_certifying_needs_enough_sources_and_says_how_many() -> None:
    scores = np.arange(6000.0)
    with pytest.raises(StatisticsError, match=r"needs at least 2995 calibration negatives of different sources.* 2994"):
        thresholds.certified(scores[:2994], None, 1e-3)
    with pytest.raises(StatisticsError, match="there are 1500"):
        thresholds.certified(scores, np.arange(6000) // 4, 1e-3)
    rule = thresholds.certified(scores[:2995], None, 1e-3)
    assert rule.value > 2994
    assert (rule.n_calibration, rule.sources) == (2995, 2995)


def test_the_smallest_calibration_set_is_the_one_that_zero_false_positives_need() -> None:
    for alpha in (0.5, 0.1, 0.03, 0.01):
        for level in (0.9, 0.95, 0.99):
            n = needed_negatives(alpha, level)
            assert thresholds.certified(np.arange(float(n)), None, alpha, level).value > n - 1
            with pytest.raises(StatisticsError, match=f"at least {n} "):
                thresholds.certified(np.arange(n - 1.0), None, alpha, level)


def test_the_promise_is_kept_where_crops_share_a_source() -> None:
    draws = np.random.default_rng(0)
    sources = np.repeat(np.arange(400), 8)
    broken = 0
    for _ in range(300):
        scores = math.sqrt(0.8) * draws.standard_normal(400)[sources] + math.sqrt(0.2) * draws.standard_normal(3200)
        broken += stats.norm.sf(thresholds.certified(scores, sources, 0.02).value) > 0.02
    # At most 5 % may break; more than this happens once in ten thousand runs.
    assert broken <= stats.binom.isf(1e-4, 300, 0.05)


def test_a_fixed_threshold_promises_nothing() -> None:
    rule = thresholds.fixed(0.5)
    assert (rule.rule, rule.value, rule.alpha) == ("fixed", 0.5, None)
    with pytest.raises(StatisticsError, match="finite"):
        thresholds.fixed(math.nan)


def test_false_alarms_are_counted_per_billion() -> None:
    assert thresholds.false_alarms_per_billion(0.01) == 1e7
    assert thresholds.false_alarms_per_billion(0) == 0
    with pytest.raises(StatisticsError, match=r"0\.\.1"):
        thresholds.false_alarms_per_billion(1.5)


def test_the_split_is_frozen() -> None:
    names = [f"photo-{i}" for i in range(12)]
    assert "".join(split(name)[0] for name in names) == "tccccccccttc"


def test_the_split_is_a_tagged_hash_of_the_source_alone() -> None:
    for name in ("astronaut", "a prompt, with ünïcode", "17"):
        digest = hashlib.sha256(b"waterproof-split-1:" + name.encode()).hexdigest()
        assert (split(name, 0.3) == "calibration") == (int(digest[:16], 16) / 2**64 < 0.3)
    assert split(17) == split("17")


def test_the_split_has_its_share_and_grows_with_it() -> None:
    names = [f"image {i}" for i in range(4000)]
    few = {name for name in names if split(name, 0.2) == "calibration"}
    many = {name for name in names if split(name, 0.7) == "calibration"}
    assert few < many
    assert abs(len(few) - 800) < 4 * math.sqrt(4000 * 0.16)
    assert abs(len(many) - 2800) < 4 * math.sqrt(4000 * 0.21)


@pytest.mark.parametrize("share", [0, 1, 1.5, math.nan])
def test_a_share_that_leaves_one_side_empty_is_refused(share: float) -> None:
    with pytest.raises(StatisticsError, match="calibration_share"):
        split("a", share)


def test_an_image_without_source_cannot_be_split() -> None:
    with pytest.raises(StatisticsError, match="its own id"):
        split(None)


@given(st.lists(st.one_of(st.none(), st.sampled_from("abcd"), st.integers(0, 3)), max_size=40), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_one_image_of_each_source_is_picked(sources: list[str | int | None], seed: int) -> None:
    picks = one_per_source(sources, seed)
    assert picks.tolist() == sorted(set(picks.tolist()))
    named = [sources[pick] for pick in picks if sources[pick] is not None]
    assert len(named) == len(set(named))
    assert set(named) == {item for item in sources if item is not None}
    assert sum(sources[pick] is None for pick in picks) == sources.count(None)
    assert one_per_source(sources, seed).tolist() == picks.tolist()


def test_the_pick_within_a_source_does_not_depend_on_the_others_and_is_even() -> None:
    crops = ["x"] * 4
    alone = [int(one_per_source(crops, seed)[0]) for seed in range(400)]
    beside = [int(one_per_source(["y", "y", *crops, "z"], seed)[1]) - 2 for seed in range(400)]
    assert alone == beside
    assert stats.chisquare(np.bincount(alone, minlength=4)).pvalue > 1e-4


def test_sources_are_numbered_by_appearance_and_unknown_ones_stand_alone() -> None:
    assert source_codes(["b", None, "a", "b", math.nan, None], 6).tolist() == [0, 1, 2, 0, 3, 4]
    assert source_codes(np.array([5, 5, 2]), 3).tolist() == [0, 0, 1]
    assert source_codes(None, 3).tolist() == [0, 1, 2]
    with pytest.raises(StatisticsError, match="2 sources for 3 images"):
        source_codes(["a", "b"], 3)
    with pytest.raises(StatisticsError, match="number of images must be given"):
        one_per_source(None, 0)
