"""A change between two runs, and how far it may be off: the procedures behind :mod:`.paired`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...core.errors import StatisticsError
from ...core.seeds import Seed
from .domain import finite
from .intervals import clopper_pearson
from .splits import source_codes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .domain import BoolArray, FloatArray, IntArray
    from .splits import Sources

_RESAMPLES = 2000
_ROWS = 250
_FEWEST_TO_RESAMPLE = 6
_MOST_TO_RESAMPLE = 10_000
_WILDEST_T = 50.0
_TAIL = 0.01
_FLIPPED_EXACTLY = 14


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a number between two runs on the same images; larger is better.

    Attributes:
        value: after - before.
        low: lower end of its interval; NaN where nothing can be said.
        high: upper end.
        n: images (pairs) behind it.
        sources: independent sources behind it.
        p_worse: one-sided p-value against "not worse"; small if ``value`` is well below 0.
        p_better: one-sided p-value against "not better".
        method: how interval and p-values were made.
        level: nominal coverage of the interval.
        identical: every image has the same value in both runs.
    """

    value: float
    low: float
    high: float
    n: int
    sources: int
    p_worse: float
    p_better: float
    method: str
    level: float
    identical: bool


def pair(scores: Sequence[npt.ArrayLike], name: str) -> tuple[FloatArray, FloatArray]:
    """Two finite vectors ``[n]``, before and after, of the same images.

    Raises:
        StatisticsError: there are not two, they differ in length, or one is empty or not finite.
    """
    if len(scores) != 2:
        raise StatisticsError(f"{name} must be two vectors, before and after; there are {len(scores)}")
    first, second = finite(scores[0], f"{name} before"), finite(scores[1], f"{name} after")
    if first.size != second.size:
        raise StatisticsError(
            f"there are {first.size} {name} before and {second.size} after; "
            "a paired comparison needs the same images in both"
        )
    return first, second


def rank_among(scores: FloatArray, scale: FloatArray) -> FloatArray:
    """Twice the rank of each score among the ascending ``scale``: how many are below, and how many not above."""
    below, upto = np.searchsorted(scale, scores, side="left"), np.searchsorted(scale, scores, side="right")
    return np.asarray(below + upto, dtype=np.float64)


def by_source(codes: IntArray, values: npt.ArrayLike) -> FloatArray:
    """The sum of ``values`` ``[n]`` over the images of each source, float64 ``[m]``."""
    return np.asarray(np.bincount(codes, weights=np.asarray(values, dtype=np.float64)), dtype=np.float64)


def tango(only_before: float, only_after: float, n: float, level: float) -> tuple[float, float]:
    """Tango's (1998) score interval of a paired difference of proportions, ``(only_after - only_before) / n``.

    It depends on the discordant pairs only, and without any it is ``z**2 / (n + z**2)`` on both sides, never 0.

    Args:
        only_before: pairs that are True before and False after; need not be an integer (an effective sample).
        only_after: pairs that are False before and True after.
        n: pairs.
        level: nominal coverage.

    Example:
        >>> [round(end, 4) for end in tango(0, 0, 200, 0.95)]
        [-0.0188, 0.0188]
    """
    from scipy.special import ndtri

    z = float(ndtri((1 + level) / 2))

    def score(change: float) -> float:
        # The share of only_before pairs that is likeliest under this change solves a quadratic equation.
        linear = (2 * n - only_after + only_before) * change - only_before - only_after
        root = math.sqrt(max(linear**2 + 8 * n * only_before * change * (1 - change), 0.0))
        # Both are the same root; each keeps its digits where the other cancels.
        positive = 2 * only_before * change * (1 - change)
        share = positive / (linear + root) if linear > 0 else (root - linear) / (4 * n)
        variance = n * (2 * share + change * (1 - change))
        distance = only_after - only_before - n * change
        return abs(distance) / math.sqrt(variance) if variance > 0 else math.inf

    value = (only_after - only_before) / n
    return _border(score, z, -1.0, float(value)), _border(score, z, 1.0, float(value))


def _border(score: Callable[[float], float], z: float, outside: float, inside: float) -> float:
    if abs(inside) >= 1 and inside == outside:
        return outside
    for _ in range(60):
        middle = (outside + inside) / 2
        if score(middle) > z:
            outside = middle
        else:
            inside = middle
    return outside


def effective_pairs(losses: FloatArray, gains: FloatArray, sizes: FloatArray, level: float) -> float:
    """How many independent pairs the clustered ones are worth, for the difference of proportions.

    After Korn and Graubard (1998), as :func:`.intervals.proportion` does it: the design effect is averaged with that of
    fully dependent images, which counts as one source that shows a discordant pair. Without a discordant pair nothing
    is known of the dependence, and only the number of sources counts.

    Args:
        losses: ``[m]``, pairs of each source that are True before only.
        gains: ``[m]``, pairs that are True after only.
        sizes: ``[m]``, pairs of each source.
        level: of the interval to be made.
    """
    from scipy.special import stdtrit

    n, count = float(sizes.sum()), sizes.size
    discordant = float((losses + gains).sum())
    if count == 1 or not discordant:
        return float(count)
    change = float((gains - losses).sum()) / n
    single = (discordant / n - change**2) / n
    if not single > 0:
        return float(count)
    residuals = gains - losses - change * sizes
    estimated = max(1.0, count / (count - 1) * float(residuals @ residuals) / n**2 / single)
    dependent = max(float(sizes @ sizes) / n, estimated)
    informative = np.count_nonzero(losses + gains)
    effect = float(informative * estimated + dependent) / (informative + 1)
    tail = (1 + level) / 2
    return min(n, n / effect * float(stdtrit(n - 1, tail) / stdtrit(count - 1, tail)) ** 2)


def rate_ends(first: BoolArray, second: BoolArray, sources: Sources, level: float) -> tuple[float, float, str]:
    """Tango's interval of the change of a rate over bool ``[n]`` each, and its name; sources may repeat.

    Where all pairs that differ went one way, Clopper-Pearson's interval of their share is taken in: with 200 pairs of
    which 2 % are lost and none is won, Tango's alone covers 92 % instead of 95.
    """
    codes = source_codes(sources, first.size)
    sizes = by_source(codes, np.ones(first.size))
    losses, gains = by_source(codes, first & ~second), by_source(codes, second & ~first)
    n, name, size = first.size, "Tango", float(first.size)
    if sizes.size < n:
        name, size = "Tango on the effective number of pairs over sources", effective_pairs(losses, gains, sizes, level)
    lost, won = float(losses.sum()) * size / n, float(gains.sum()) * size / n
    low, high = tango(lost, won, size, level)
    if bool(lost) != bool(won):
        least, most = clopper_pearson(lost + won, size, level)
        ends = (-most, -least) if lost else (least, most)
        low, high = min(low, ends[0]), max(high, ends[1])
    return low, high, name


def carriers(residuals: FloatArray) -> float:
    """How many sources carry the spread: ``(sum r**2)**2 / sum r**4``.

    k equal residuals among zeros give k, normal ones a third of their number, no spread 0.
    """
    largest = float(np.abs(residuals).max())
    if not largest > 0:
        return 0.0
    squares = (residuals / largest) ** 2
    return float(squares.sum() ** 2 / (squares @ squares))


def sign_flips(sums: FloatArray) -> tuple[float, float]:
    """Randomisation test that each source is as likely to be better as worse: ``p_worse, p_better``, one-sided.

    Exact up to 14 sources that differ; of more, the signs of the 14 largest are enumerated and the others' sum is taken
    as normal.

    Args:
        sums: ``[m]``, the change summed over the images of each source.
    """
    from scipy.special import ndtr

    sizes = np.sort(np.abs(sums[sums != 0]))[::-1]
    if not sizes.size:
        return 1.0, 1.0
    if sizes[0] == sizes[-1]:
        return sign_test(int(np.count_nonzero(sums < 0)), int(np.count_nonzero(sums > 0)))
    totals = np.zeros(1)
    for size in sizes[:_FLIPPED_EXACTLY]:
        totals = np.concatenate([totals - size, totals + size])
    slack = 1e-9 * float(sizes.sum())
    seen, rest = float(sums.sum()), float(np.linalg.norm(sizes[_FLIPPED_EXACTLY:]))
    if rest > 0:
        return float(ndtr((seen - totals) / rest).mean()), float(ndtr((totals - seen) / rest).mean())
    return float(np.mean(totals <= seen + slack)), float(np.mean(totals >= seen - slack))


def sign_test(losses: int, gains: int) -> tuple[float, float]:
    """Exact one-sided p-values of ``losses`` against ``gains`` under even odds: ``p_worse, p_better``."""
    from scipy.special import bdtr

    total = losses + gains
    if not total:
        return 1.0, 1.0
    # P(X >= losses) = P(X <= gains), for even odds mirror.
    return float(bdtr(gains, total, 0.5)), float(bdtr(losses, total, 0.5))


def bounded_mean(values: FloatArray, lowest: float, highest: float, level: float, seed: int) -> tuple[float, float]:
    """An interval of a mean whose values are known to lie in ``lowest..highest``, for samples that show little spread.

    Learned-Miller and Thomas (2019): the mean under Dirichlet weights, with one more observation at the bound. For
    values that are all at 0 or 1 it is Clopper-Pearson; where nothing differs from 0 the upper end is Clopper-Pearson's
    bound on the share that does, times ``highest``.

    Args:
        values: ``[m]``, one for each source.
        lowest: no value can be smaller.
        highest: no value can be larger.
        level: nominal coverage.
        seed: of the weights.
    """
    levels, counts = np.unique(values, return_counts=True)
    miss = (1 - level) / 2
    if levels.size == 1:
        unseen = -math.expm1(math.log(miss) / values.size)
        value = float(levels[0])
        return value - unseen * (value - lowest), value + unseen * (highest - value)
    draws = Seed.root(seed).child("bounded mean", values.size).numpy()
    shapes = np.append(counts, 1.0)
    means, extra = [], []
    for _ in range(0, _RESAMPLES, _ROWS):
        weights = draws.standard_gamma(shapes, size=(_ROWS, shapes.size))
        total = weights.sum(axis=1)
        means.append(weights[:, :-1] @ levels / total)
        extra.append(weights[:, -1] / total)
    seen, unseen_weight = np.concatenate(means), np.concatenate(extra)
    low, high = np.quantile(seen + unseen_weight * lowest, miss), np.quantile(seen + unseen_weight * highest, 1 - miss)
    return float(low), float(high)


def studentised(
    value: float, sums: FloatArray, sizes: FloatArray, seed: int, level: float
) -> tuple[float, float, float, float] | None:
    """The studentised bootstrap over sources: ``low, high, p_worse, p_better``, p consistent with the interval.

    As :func:`.intervals.mean`, with up to 10,000 sources; p-values by :func:`tail_probability`.

    Args:
        value: the mean.
        sums: ``[m]``, centred sums of each source.
        sizes: ``[m]``, images of each source.
        seed: of the resamples.
        level: nominal coverage.

    Returns:
        None where the resamples do not show the spread: too few sources or too many, or all but one agree.
    """
    count, n = sizes.size, float(sizes.sum())
    if not _FEWEST_TO_RESAMPLE <= count <= _MOST_TO_RESAMPLE:
        return None
    scale = count / (count - 1)
    error = math.sqrt(scale * float(sums @ sums)) / n
    unit, even = float(np.abs(sums).max()), n / count
    if not error > 0:
        return None
    # In units of the largest, single precision is plenty and half as slow.
    x, w = sums / unit, sizes / even
    columns = [x, x**2] if np.ptp(sizes) == 0 else [x, x**2, w, x * w, w**2]
    total, square, *rest = _resampled(np.stack(columns, axis=1), count, seed)
    images, cross, weight = rest if rest else (np.full(_RESAMPLES, count), total, np.full(_RESAMPLES, count))
    shift = total / images
    spread = np.sqrt(np.maximum(scale * (square - 2 * shift * cross + shift**2 * weight), 0)) / images
    shift, spread = shift * unit / even, spread * unit / even
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(spread > 1e-6 * error, shift / spread, np.copysign(np.inf, shift))
    ratios = np.sort(ratios)
    tail = round(_RESAMPLES * (1 - level) / 2)
    lowest, highest = float(ratios[tail]), float(ratios[_RESAMPLES - 1 - tail])
    if max(-lowest, highest) > _WILDEST_T:
        return None
    seen = value / error
    p_worse = tail_probability(ratios, seen, count - 1)
    p_better = tail_probability(-ratios[::-1], -seen, count - 1)
    return value - highest * error, value - lowest * error, p_worse, p_better


def student(value: float, sums: FloatArray, sizes: FloatArray, level: float) -> tuple[float, float, float, float]:
    """Student's t over sources: ``low, high, p_worse, p_better``; arguments as :func:`studentised`."""
    from scipy.special import stdtr, stdtrit

    count, n = sizes.size, float(sizes.sum())
    left_out = -sums / (n - sizes)
    centred = left_out - left_out.mean()
    error = math.sqrt((count - 1) / count * float(centred @ centred))
    half = float(stdtrit(count - 1, (1 + level) / 2)) * error
    ratio = value / error
    return value - half, value + half, float(stdtr(count - 1, ratio)), float(stdtr(count - 1, -ratio))


def tail_probability(ratios: FloatArray, seen: float, df: float) -> float:
    """The probability of a ratio at or below ``seen`` where resampling showed ``ratios``, which ascend.

    k resamples end at p = 1 / (k + 1), which Holm's correction for many cells could never call significant. So below
    1 % the tail is Student's with ``df``, stretched to meet that of the resamples at 1 % (never shrunk).
    """
    from scipy.special import stdtr, stdtrit

    counted = (1 + int(np.searchsorted(ratios, seen, side="right"))) / (ratios.size + 1)
    if counted > _TAIL:
        return counted
    stretch = max(1.0, float(ratios[round(ratios.size * _TAIL)] / stdtrit(df, _TAIL)))
    return min(_TAIL, float(stdtr(df, seen / stretch)))


def _resampled(columns: FloatArray, count: int, seed: int) -> FloatArray:
    """Sums of each column over the sources drawn, ``[columns, resamples]``."""
    drawn, single = _drawn(count, seed), columns.astype(np.float32)
    sums = [drawn[row : row + _ROWS].astype(np.float32) @ single for row in range(0, _RESAMPLES, _ROWS)]
    return np.concatenate(sums).T.astype(np.float64)


@lru_cache(maxsize=4)
def _drawn(count: int, seed: int) -> npt.NDArray[np.uint8]:
    """How often each source is drawn, ``[resamples, count]``; the same for every cell of a comparison."""
    draws = Seed.root(seed).child("paired bootstrap", count).numpy()
    rows = [np.bincount(draws.integers(count, size=count), minlength=count) for _ in range(_RESAMPLES)]
    return np.stack(rows).astype(np.uint8)
