"""Scores in chunks against all scores at once, and against scikit-learn."""

from __future__ import annotations

import math
import tracemalloc
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from waterproof.bench.statistics.roc import auc, roc, tpr_at_fpr
from waterproof.bench.statistics.streams import ScoreCounts, TprAtFpr
from waterproof.core.errors import StatisticsError

if TYPE_CHECKING:
    from collections.abc import Callable


def peak(call: Callable[[], object]) -> int:
    tracemalloc.start()
    call()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


chunked = st.lists(st.lists(st.integers(0, 6), max_size=12), min_size=1, max_size=6)


@given(chunked, chunked, st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_counts_of_chunks_say_what_all_scores_at_once_say(
    positives: list[list[int]], negatives: list[list[int]], allowed: int
) -> None:
    counts = ScoreCounts(6)
    for chunk in positives:
        counts.add(positives=chunk)
    for chunk in negatives:
        counts.add(negatives=np.array(chunk, dtype=np.float32))
    high, low = list(chain(*positives)), list(chain(*negatives))
    if not high or not low:
        for call in (counts.roc, counts.auc, lambda: counts.tpr_at_fpr(0.5)):
            with pytest.raises(StatisticsError, match=f"{'negatives' if high else 'positives'}: there are none"):
                call()
        return
    curve, whole = counts.roc(), roc(high, low)
    for name in ("thresholds", "fpr", "tpr"):
        np.testing.assert_array_equal(getattr(curve, name), getattr(whole, name))
    assert counts.auc(0.9) == auc(high, low, 0.9)
    alpha = allowed / len(low)
    if alpha < 1:
        assert counts.tpr_at_fpr(alpha) == tpr_at_fpr(high, low, alpha)
    if len(low) > 1:
        with pytest.raises(StatisticsError, match=f"needs at least {len(low) + 1} negatives"):
            counts.tpr_at_fpr(1 / (len(low) + 1))


def test_counts_of_a_million_scores_are_those_of_the_curve_and_take_no_memory() -> None:
    draws = np.random.default_rng(9)
    high, low = draws.binomial(48, 0.7, 700_000), draws.binomial(48, 0.5, 300_000)
    labels, scores = np.repeat([1, 0], [700_000, 300_000]), np.r_[high, low]
    counts = ScoreCounts(48)

    def count() -> None:
        for start in range(0, 700_000, 10_000):
            counts.add(high[start : start + 10_000], low[start : start + 10_000])

    assert peak(count) < 500_000
    curve = counts.roc()
    fpr, tpr, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    np.testing.assert_allclose((curve.fpr, curve.tpr), (fpr, tpr), rtol=0, atol=1e-15)
    assert counts.auc() == auc(high.astype(np.float32), low.astype(np.uint8))
    assert counts.auc().value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert counts.tpr_at_fpr(1e-3) == tpr_at_fpr(high, low, 1e-3)


@pytest.mark.parametrize("wrong", [[49], [-1], [3.5], [1e300], [math.nan], [math.inf], [[1]]])
def test_scores_that_cannot_be_counted_are_refused_and_leave_the_counts_alone(wrong: list[float]) -> None:
    counts = ScoreCounts(48)
    counts.add([48], [0])
    with pytest.raises(StatisticsError, match="scores of negatives"):
        counts.add([1, 2], wrong)
    assert (counts.roc().n_positive, counts.roc().n_negative) == (1, 1)


@pytest.mark.parametrize("k", [0, -3, 2.5, math.nan, math.inf])
def test_counts_need_a_largest_score(k: float) -> None:
    with pytest.raises(StatisticsError, match="an integer of at least 1"):
        ScoreCounts(k)


@given(chunked, chunked, st.integers(1, 80))
@settings(max_examples=300, deadline=None)
def test_a_stream_of_chunks_has_the_operating_point_of_all_scores_at_once(
    positives: list[list[int]], negatives: list[list[int]], allowed: int
) -> None:
    high, low = list(chain(*positives)), list(chain(*negatives))
    if not high or allowed >= len(low):
        return
    stream = TprAtFpr(allowed / len(low), len(low))
    for chunk in negatives:
        stream.add_negatives(chunk)
    for chunk in positives:
        stream.add_positives(np.array(chunk, dtype=np.float32))
    assert stream.point() == tpr_at_fpr(high, low, allowed / len(low))


@pytest.mark.parametrize("order", ["shuffled", "ascending", "descending"])
@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 0.7])
def test_a_million_streamed_scores_need_memory_for_the_largest_negatives_only(order: str, alpha: float) -> None:
    draws = np.random.default_rng(10)
    high, low = draws.normal(2, 1, 200_000), draws.normal(0, 1, 1_000_000)
    expected = tpr_at_fpr(high, low, alpha)
    if order != "shuffled":
        low = np.sort(low)[:: 1 if order == "ascending" else -1]
    stream = TprAtFpr(alpha, low.size)

    def feed() -> None:
        for start in range(0, low.size, 10_000):
            stream.add_negatives(low[start : start + 10_000])
        for start in range(0, high.size, 10_000):
            stream.add_positives(high[start : start + 10_000])

    assert peak(feed) < 500_000 + 8 * 4 * alpha * low.size
    assert stream.point() == expected


def test_a_stream_wants_all_negatives_first_and_no_more() -> None:
    stream = TprAtFpr(0.5, 4)
    stream.add_negatives([1.0, 2.0, 3.0])
    for call in (stream.point, lambda: stream.add_positives([1.0])):
        with pytest.raises(StatisticsError, match="1 of 4 are still missing"):
            call()
    with pytest.raises(StatisticsError, match="4 negatives were announced, 1 more came"):
        stream.add_negatives([1.0, 2.0])
    with pytest.raises(StatisticsError, match="negatives: 1 of 1 are NaN"):
        stream.add_negatives([math.nan])
    stream.add_negatives([0.0])
    with pytest.raises(StatisticsError, match="positives: there are none"):
        stream.point()
    for n in (0, 1, 999):
        with pytest.raises(StatisticsError, match=f"needs at least 1000 negatives, there are {n}"):
            TprAtFpr(1e-3, n)
