"""Is a run worse than the one before? Two runs on the same images, image by image; the statistics of the verdict.

Every change is ``after - before`` with larger meaning better: for a false-positive rate, or a loss, the caller turns
the sign. Which interval of a paired difference of rates is taken was decided by simulation: 20,000 tables each of 50 to
5,000 pairs, discordance 0 to 14 %, TPR .5, .9 and .99, nominal 95 %. Tango's score interval covers 93.1 to 100 %
whatever the TPR; Newcombe's method 10 falls to 90.8 % at a TPR of .5, where its width without a discordant pair is half
of what exactness asks.

A mean of differences is the studentised bootstrap's. It fails where few sources carry all the change: with 2 of 200
images expected to differ by the same amount it covers 86 %, and if one in ten of those that differ drops far, 28 %. So
below 40 such sources the interval reckons with images like none that was seen (:func:`mean_change`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...core.errors import StatisticsError
from .domain import BoolArray, FloatArray, boolean, finite, open_unit
from .paired_auc import area, auc_change
from .paired_calibrated import PairedThresholds, calibrated_rate_change, paired_thresholds, swapped_rate_change
from .paired_intervals import (
    Change,
    bounded_mean,
    by_source,
    carriers,
    rate_ends,
    sign_flips,
    sign_test,
    student,
    studentised,
)
from .splits import Sources, one_per_source, source_codes

Verdict = Literal["identical", "regression", "improvement", "equivalent", "small change", "undecided"]

__all__ = [
    "Change",
    "McNemar",
    "PairedThresholds",
    "Verdict",
    "area",
    "auc_change",
    "calibrated_rate_change",
    "holm",
    "mcnemar",
    "mean_change",
    "paired_thresholds",
    "rate_change",
    "swapped_rate_change",
    "verdict",
]

_FEW_CARRIERS = 20
_FEW_BOUNDED = 40


@dataclass(frozen=True, slots=True)
class McNemar:
    """The exact McNemar test.

    Attributes:
        n: images that were given.
        sources: images that were tested, one of each source.
        only_before: of these, True before and False after.
        only_after: False before and True after.
        p: two-sided, twice the smaller of the others and at most 1.
        p_worse: one-sided: fewer are True after.
        p_better: one-sided: more are True after.
    """

    n: int
    sources: int
    only_before: int
    only_after: int
    p: float
    p_worse: float
    p_better: float


def holm(p_values: npt.ArrayLike) -> FloatArray:
    """Holm's (1979) adjusted p-values: rejecting those at most alpha errs anywhere with probability at most alpha.

    Args:
        p_values: ``[k]``, each in 0..1, however they depend on each other.

    Returns:
        float64 ``[k]``, in the given order.

    Raises:
        StatisticsError: there is none, or one is no probability.

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    array = finite(p_values, "p-values")
    if array.min() < 0 or array.max() > 1:
        raise StatisticsError(f"p-values lie in 0..1; there are {array.min():g}..{array.max():g}")
    order = np.argsort(array, kind="stable")
    steps = np.maximum.accumulate(array[order] * np.arange(array.size, 0, -1))
    adjusted = np.empty_like(array)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def mcnemar(before: npt.ArrayLike, after: npt.ArrayLike, sources: Sources = None, seed: int = 0) -> McNemar:
    """The exact McNemar test on one image of each source, the same images in both runs.

    Args:
        before: bool ``[n]``.
        after: bool ``[n]``, the same images in the same order.
        sources: one for each image, or None where each is its own.
        seed: of the pick within a source.

    Raises:
        StatisticsError: there is no image, or the lengths differ.

    Example:
        >>> mcnemar(np.arange(20) < 18, np.arange(20) < 12).p_worse
        0.015625
    """
    first, second = _flags(before, after)
    kept = one_per_source(sources, seed, first.size)
    only_before = int(np.count_nonzero(first[kept] & ~second[kept]))
    only_after = int(np.count_nonzero(second[kept] & ~first[kept]))
    worse, better = sign_test(only_before, only_after)
    both = min(1.0, 2 * min(worse, better))
    return McNemar(first.size, kept.size, only_before, only_after, both, worse, better)


def rate_change(
    before: npt.ArrayLike, after: npt.ArrayLike, sources: Sources = None, level: float = 0.95, seed: int = 0
) -> Change:
    """The change of a share of True, at thresholds that are not calibrated (``theory``, ``fixed``).

    The p-values are the exact McNemar test's on one image per source, the interval is Tango's on all images; where
    sources repeat, on the effective number of pairs (lowest coverage of 45 simulated cells with 15, 40 and 150 sources
    of 4 images: 95.0 %). The two may disagree at the edge of significance.

    Args:
        before: bool ``[n]``.
        after: bool ``[n]``, the same images in the same order.
        sources: one for each image, or None where each is its own.
        level: nominal coverage.
        seed: of the pick within a source.

    Raises:
        StatisticsError: there is no image, or the lengths differ.

    Example:
        >>> change = rate_change(np.arange(20) < 18, np.arange(20) < 12)
        >>> round(change.value, 2), round(change.low, 2), round(change.high, 2)
        (-0.3, -0.52, -0.09)
    """
    open_unit(level, "level")
    first, second = _flags(before, after)
    test = mcnemar(first, second, sources, seed)
    low, high, method = rate_ends(first, second, sources, level)
    value = (np.count_nonzero(second) - np.count_nonzero(first)) / first.size
    return Change(
        value=float(value),
        low=low,
        high=high,
        n=first.size,
        sources=test.sources,
        p_worse=test.p_worse,
        p_better=test.p_better,
        method=f"exact McNemar; {method}",
        level=level,
        identical=bool(np.array_equal(first, second)),
    )


def mean_change(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    sources: Sources = None,
    level: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Change:
    """The change of a mean over images: bit accuracy, PSNR, a score.

    Interval and p-values are the studentised bootstrap's over sources (Student's t where it cannot resample). Where
    fewer than 40 sources carry the spread (20 without ``bounds``, see :func:`.paired_intervals.carriers`), or none:

    - the p-values are a randomisation test's, that each source is as likely to be better as worse (for differences of
      one size the exact McNemar test), or the bootstrap's where that has an answer and it is larger;
    - with ``bounds`` the interval allows for images that differ as far as the bounds let them and were not met:
      Clopper-Pearson's bound on their share, times that distance (:func:`.paired_intervals.bounded_mean`);
    - without ``bounds`` the largest change seen stands in for them. That covers 87 % and more if the changes are of one
      kind, and 56 % if one in ten is 25 times as large as the rest: no interval knows of what was not seen;
    - without ``bounds`` and without any spread the ends are NaN.

    Args:
        before: finite numbers ``[n]``.
        after: finite numbers ``[n]`` of the same images in the same order.
        sources: one for each image, or None where each is its own.
        level: nominal coverage.
        seed: of the resamples.
        bounds: the smallest and the largest value that an image can have, such as ``(0.0, 1.0)``; None if unknown.

    Raises:
        StatisticsError: a value is not finite or out of bounds, there is none, or the lengths differ.

    Example:
        >>> accuracy = np.linspace(0.8, 1.0, 100)
        >>> same = mean_change(accuracy, accuracy, bounds=(0.0, 1.0))
        >>> same.value, round(same.high, 3), same.identical
        (0.0, 0.036, True)
    """
    open_unit(level, "level")
    first, second = finite(before, "values before"), finite(after, "values after")
    _same_length(first.size, second.size)
    width = _width(first, second, bounds)
    differences = second - first
    codes = source_codes(sources, first.size)
    sizes = by_source(codes, np.ones(first.size))
    n, count, value = first.size, sizes.size, float(differences.mean())
    centred = by_source(codes, differences - value)
    if np.abs(centred).max() <= 1e-12 * sizes.max() * max(np.abs(first).max(), np.abs(second).max()):
        centred = np.zeros(count)
    spread_over = carriers(centred)
    limit = _FEW_CARRIERS if bounds is None else _FEW_BOUNDED
    few = spread_over < limit and (4 * spread_over < count or count == 1)
    result, method = studentised(value, centred, sizes, seed, level), "studentised bootstrap over sources"
    if few:
        sums = by_source(codes, differences)
        low, high, name = _guarded(sums * count / n, sizes.max() * count / n, width, spread_over > 0, level, seed)
        worse, better = sign_flips(sums)
        if result is not None:
            worse, better = max(worse, result[2]), max(better, result[3])
        method = f"sign flips over sources; {name}"
    elif result is not None:
        low, high, worse, better = result
    else:
        low, high, worse, better = student(value, centred, sizes, level)
        method = "Student's t, jackknife over sources"
    return Change(value, low, high, n, count, worse, better, method, level, not differences.any())


def verdict(
    change: Change, margin: float, p_adjusted_worse: float, p_adjusted_better: float, alpha: float = 0.05
) -> Verdict:
    """What a change amounts to; the first of these that holds.

    - ``identical``: every image has the same value in both runs.
    - ``regression``: significantly worse (adjusted p at most ``alpha``, and the interval does not hold 0) and by more
      than the margin. Where few images differ, test and interval can disagree: a claim must survive both.
    - ``improvement``: the same for the better.
    - ``equivalent``: the whole interval lies strictly inside the margin. At a level of 95 % that is two one-sided tests
      at 2.5 % each, stricter than the customary 5 %.
    - ``small change``: significant, but no more than the margin, and the interval reaches beyond it.
    - ``undecided``: anything may be; more images would tell.

    Args:
        change: the change.
        margin: how much matters, in the unit of the change, at least 0.
        p_adjusted_worse: ``change.p_worse`` after :func:`holm` over all cells.
        p_adjusted_better: ``change.p_better`` after :func:`holm` over all cells.
        alpha: probability that some cell is called a regression although none is worse; as much for improvements.

    Raises:
        StatisticsError: the margin is negative, or a number is no probability.

    Example:
        >>> change = rate_change(np.arange(20) < 18, np.arange(20) < 12)
        >>> verdict(change, 0.01, change.p_worse, change.p_better)
        'regression'
    """
    open_unit(alpha, "alpha")
    if not (math.isfinite(margin) and margin >= 0):
        raise StatisticsError(f"margin is {margin}; it must be a number of at least 0")
    for p in (p_adjusted_worse, p_adjusted_better):
        if not 0 <= p <= 1:
            raise StatisticsError(f"an adjusted p-value is {p}; it must lie in 0..1")
    # An interval without ends (scores that compare by rank only) excludes nothing.
    worse = p_adjusted_worse <= alpha and change.value < 0 and not change.high >= 0
    better = p_adjusted_better <= alpha and change.value > 0 and not change.low <= 0
    if change.identical:
        return "identical"
    if worse and -change.value > margin:
        return "regression"
    if better and change.value > margin:
        return "improvement"
    if -margin < change.low and change.high < margin:
        return "equivalent"
    return "small change" if worse or better else "undecided"


def _flags(before: npt.ArrayLike, after: npt.ArrayLike) -> tuple[BoolArray, BoolArray]:
    first, second = boolean(before, "flags before"), boolean(after, "flags after")
    _same_length(first.size, second.size)
    return first, second


def _same_length(before: int, after: int) -> None:
    if before != after:
        raise StatisticsError(
            f"there are {before} images before and {after} after; a paired comparison needs the same images in both"
        )


def _width(first: FloatArray, second: FloatArray, bounds: tuple[float, float] | None) -> float | None:
    if bounds is None:
        return None
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise StatisticsError(f"bounds are {bounds}; they must be two finite numbers, the smaller one first")
    smallest, largest = min(first.min(), second.min()), max(first.max(), second.max())
    if smallest < low or largest > high:
        raise StatisticsError(f"values lie in {smallest:g}..{largest:g}, outside the bounds {low:g}..{high:g}")
    return high - low


def _guarded(
    values: FloatArray, heaviest: float, width: float | None, spread: bool, level: float, seed: int
) -> tuple[float, float, str]:
    """The interval where few sources carry the spread.

    Args:
        values: ``[m]``, the change of each source, weighted so that their mean is the change over images.
        heaviest: the largest weight.
        width: how far one image can change, or None.
        spread: the images do not all change by the same.
        level: nominal coverage.
        seed: of the weights.
    """
    if width is not None:
        low, high = bounded_mean(values, -width * heaviest, width * heaviest, level, seed)
        return (
            float(max(low, -width)),
            float(min(high, width)),
            "mean of a bounded variable (Learned-Miller and Thomas)",
        )
    if values.size == 1:
        return math.nan, math.nan, "no interval: a single source"
    if not spread:
        return math.nan, math.nan, "no interval: no spread was seen, and no bounds are known"
    largest = float(np.abs(values).max())
    low, high = bounded_mean(values, -largest, largest, level, seed)
    return low, high, "mean of a bounded variable, as if nothing changed more than what was seen"
