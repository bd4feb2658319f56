"""ROC curves as step functions over thresholds that some image attains, and rates at a fixed FPR.

An image is flagged if ``score >= tau``; images with the same score are decided together; nothing is interpolated to a
point that no threshold attains.

Each class is sorted once and both are merged; integers in a narrow range (matching bits) are only counted; a TPR at a
fixed FPR needs no curve. What that takes in memory, and the way to 1e8 scores, stands in
:mod:`~waterproof.bench.statistics.streams`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...core.errors import StatisticsError
from .domain import FloatArray, open_unit
from .intervals import Rate
from .tally import Tally, both, tally

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, eq=False)
class Roc:
    """The operating points of all thresholds, from the strictest to the most lenient.

    Attributes:
        thresholds: float64 ``[t]``, descending; the first is +inf (nothing is flagged), the others are attained scores.
        fpr: float64 ``[t]``, share of negatives with ``score >= threshold``, ascending from 0 to 1.
        tpr: float64 ``[t]``, the same for positives.
        n_positive: number of positives.
        n_negative: number of negatives.
    """

    thresholds: FloatArray
    fpr: FloatArray
    tpr: FloatArray
    n_positive: int
    n_negative: int

    def steps(self, start: float | None = None) -> tuple[FloatArray, FloatArray]:
        """The corners of the staircase, ready for ``plot(fpr, tpr)``.

        Args:
            start: FPR at which the plot begins, for points below it; None: ``1 / n_negative``, the smallest FPR that
                these negatives express (a logarithmic axis has no 0). Use 0 on a linear axis.

        Returns:
            ``fpr, tpr``, float64 ``[c]`` each: ascending, horizontal and vertical pieces only.

        Example:
            >>> x, y = roc([3.0, 1.0], [2.0, 0.0]).steps()
            >>> x.tolist(), y.tolist()
            ([0.5, 0.5, 1.0], [0.5, 1.0, 1.0])
        """
        left = 1 / self.n_negative if start is None else float(start)
        if not 0 <= left <= 1:
            raise StatisticsError(f"a ROC cannot start at an FPR of {left:g}; it must lie in 0..1")
        x, y = _best(self.fpr, self.tpr)
        # The last point below the start says what the curve is worth at the start.
        first = max(int(np.searchsorted(x, left, side="left")) - 1, 0)
        x, y = np.maximum(x[first:], left), y[first:]
        moved = np.ones(2 * x.size - 1, dtype=np.bool_)
        moved[1::2], moved[2::2] = x[1:] != x[:-1], y[1:] != y[:-1]
        return np.repeat(x, 2)[1:][moved], np.repeat(y, 2)[:-1][moved]

    def thinned(self, resolution: float = 0.0) -> Roc:
        """The same staircase from fewer of its points; nothing is interpolated, every point left is attained.

        Args:
            resolution: 0: only points between the ends of a level or upright piece go, so :meth:`steps` draws the very
                same staircase. Above 0, for plots: of points that share a cell of this height in TPR and this many
                decades of FPR only the first and the last stay, at most a few for each cell that the curve crosses.
                The staircase drawn from them nowhere lies above the true one, and below it by less than ``resolution``.

        Raises:
            StatisticsError: ``resolution`` is negative, or 1 or more.

        Example:
            >>> curve = roc([6.0, 5.0, 4.0], [3.0, 2.0, 1.0])
            >>> curve.thresholds.size, curve.thinned().thresholds.tolist()
            (7, [inf, 4.0, 1.0])
        """
        if not 0 <= resolution < 1:
            raise StatisticsError(
                f"a resolution of {resolution:g} hides nothing or all; it must lie in 0..1, without 1"
            )
        across, up = self.fpr[1:] != self.fpr[:-1], self.tpr[1:] != self.tpr[:-1]
        corner = np.ones(self.fpr.size, dtype=np.bool_)
        corner[1:-1] = (across[:-1] | across[1:]) & (up[:-1] | up[1:])
        kept = np.flatnonzero(corner)
        if resolution:
            fpr = self.fpr[kept]
            # An FPR of 0 has a cell of its own, a decade below the smallest that these negatives express.
            decades = np.log10(np.maximum(fpr, 0.1 / self.n_negative, out=fpr), out=fpr) / resolution
            new = np.diff(np.floor(decades)) != 0
            new |= np.diff(np.floor(self.tpr[kept] / resolution)) != 0
            kept = kept[np.append(True, new) | np.append(new, True)]
        return Roc(self.thresholds[kept], self.fpr[kept], self.tpr[kept], self.n_positive, self.n_negative)


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold and what it does.

    Attributes:
        threshold: flag if ``score >= threshold``; +inf if no attained threshold is strict enough.
        tpr: share of positives that it flags.
        fpr_attained: share of negatives that it flags, at most the FPR that was asked for.
    """

    threshold: float
    tpr: float
    fpr_attained: float


def roc(positives: npt.ArrayLike, negatives: npt.ArrayLike) -> Roc:
    """The ROC of finite scores ``[n]`` each; larger means more likely positive.

    Raises:
        StatisticsError: a class is empty, or a score is NaN or infinite.

    Example:
        >>> curve = roc([3.0, 2.0], [2.0, 1.0])
        >>> curve.thresholds.tolist(), curve.fpr.tolist(), curve.tpr.tolist()
        ([inf, 3.0, 2.0, 1.0], [0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    return curve(tally(*both(positives, negatives)))


def tpr_at_fpr(positives: npt.ArrayLike, negatives: npt.ArrayLike, alpha: float) -> OperatingPoint:
    """The TPR at the smallest attained threshold whose FPR is at most ``alpha``; nothing is interpolated.

    Raises:
        StatisticsError: ``alpha`` is below ``1 / n_negatives``, so these negatives cannot show it; or as :func:`roc`.

    Example:
        >>> tpr_at_fpr([5.0, 4.0, 1.0], [3.0, 2.0, 1.0, 0.0], 0.25)
        OperatingPoint(threshold=3.0, tpr=0.6666666666666666, fpr_attained=0.25)
    """
    high, low = both(positives, negatives)
    # What scores above this negative is flagged: with it, or with the next score below it, one negative too many is.
    first = low.size - 1 - false_positives(alpha, low.size)
    cut = np.partition(low, first)[first]
    flagged = high[high > cut], low[low > cut]
    threshold = min((float(scores.min()) for scores in flagged if scores.size), default=math.inf)
    return OperatingPoint(threshold, flagged[0].size / high.size, flagged[1].size / low.size)


def false_positives(alpha: float, n: int) -> int:
    """The most false positives among ``n`` negatives whose share is at most ``alpha``, at least 1.

    Raises:
        StatisticsError: ``alpha`` is below ``1 / n``, so these negatives cannot show it.

    Example:
        >>> false_positives(0.3, 10), false_positives(1e-3, 1_000_000)
        (3, 1000)
    """
    open_unit(alpha, "alpha")
    if n < 1 or alpha < 1 / n:
        needed = needed_negatives(alpha, None)
        raise StatisticsError(f"an FPR of {alpha:g} needs at least {needed} negatives, there are {n}")
    count = math.floor(alpha * n)
    # The product may have been rounded across an integer; the share decides.
    return count + ((count + 1) / n <= alpha) - (count / n > alpha)


def curve(counts: Tally) -> Roc:
    """The ROC of counted scores."""
    n1, n0 = counts.sizes()
    return Roc(counts.thresholds, counts.negatives / n0, counts.positives / n1, n1, n0)


def needed_negatives(alpha: float, level: float | None = 0.95) -> int:
    """How many negatives a statement about the FPR ``alpha`` needs.

    Args:
        alpha: the FPR.
        level: for "no false positive was seen, so the FPR is below alpha with this confidence": the smallest n with
            ``(1 - alpha)**n <= 1 - level``. None: for an empirical TPR at ``alpha``: the smallest n with
            ``1 / n <= alpha``.

    Example:
        >>> needed_negatives(1e-3), needed_negatives(1e-3, None)
        (2995, 1000)
    """
    open_unit(alpha, "alpha")
    if level is not None:
        return math.ceil(math.log1p(-open_unit(level, "level")) / math.log1p(-alpha))
    count = math.ceil(1 / alpha)
    # 1 / alpha may have been rounded across an integer.
    return count - 1 if count > 1 and 1 / (count - 1) <= alpha else count


def auc(positives: npt.ArrayLike, negatives: npt.ArrayLike, level: float = 0.95) -> Rate:
    """Area under the ROC: the probability that a positive scores above a negative, ties counting half.

    The interval is DeLong's (1988), by the midrank algorithm of Sun and Xu (2014), symmetric in the logit of the area.
    DeLong's variance fades before the area reaches 0 or 1: in simulations the plain interval covers 70 % at an area of
    .999. So where the plain interval would leave 0..1, the interval is widened to hold Newcombe's (2006, method 5)
    too, and where the variance is 0 it is Newcombe's alone. Images are taken as independent: give one per source.

    Args:
        positives: finite scores ``[n1]``.
        negatives: finite scores ``[n0]``.
        level: nominal coverage.

    Returns:
        a rate with ``n = sources = n1 + n0``.

    Raises:
        StatisticsError: as :func:`roc`.

    Example:
        >>> rate = auc([3.0, 4.0, 5.0], [0.0, 1.0, 2.0])
        >>> rate.value, rate.low > 0.4, rate.high, rate.method
        (1.0, True, 1.0, 'Newcombe')
    """
    open_unit(level, "level")
    return area(tally(*both(positives, negatives)), level)


def area(counts: Tally, level: float) -> Rate:
    """:func:`auc` of counted scores."""
    from scipy.special import ndtri

    z = float(ndtri((1 + open_unit(level, "level")) / 2))
    n1, n0 = counts.sizes()
    n = n1 + n0
    value, variance = _delong(counts)
    if not variance > 0:
        return Rate(value, *_newcombe(value, n1, n0, z), n, n, "Newcombe", level)
    error = math.sqrt(variance)
    centre, half = math.log(value / (1 - value)), z * error / (value * (1 - value))
    ends = _logistic(centre - half), _logistic(centre + half)
    if value - z * error >= 0 and value + z * error <= 1:
        return Rate(value, *ends, n, n, "DeLong", level)
    other = _newcombe(value, n1, n0, z)
    return Rate(value, min(ends[0], other[0]), max(ends[1], other[1]), n, n, "DeLong and Newcombe, the wider", level)


def partial_auc(curve: Roc, alpha: float) -> float:
    """The exact area under the step function for FPR from 0 to ``alpha``; at most ``alpha``.

    A tie of a positive and a negative counts 0 here (no threshold parts them), and half in :func:`auc`.

    Raises:
        StatisticsError: ``alpha`` is below ``1 / n_negatives`` or above 1.

    Example:
        >>> partial_auc(roc([3.0, 1.0], [2.0, 0.0]), 0.75)
        0.5
    """
    if alpha != 1:
        false_positives(alpha, curve.n_negative)
    last = int(np.searchsorted(curve.fpr, alpha, side="right")) + 1
    x, y = _best(curve.fpr[:last], curve.tpr[:last])
    return float(np.diff(np.minimum(x, alpha)) @ y[:-1])


def _best(fpr: FloatArray, tpr: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Each attained FPR once, with the largest TPR there."""
    last = np.append(fpr[1:] != fpr[:-1], True)
    return fpr[last], tpr[last]


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def _delong(counts: Tally) -> tuple[float, float]:
    """Area and DeLong's variance; NaN for the variance where a class has a single image.

    An image's placement is the share of the other class that it beats, ties half; twice its numerator is an integer.
    """
    n1, n0 = counts.sizes()
    doubled = sum(int(ties @ wins) for (ties, wins), _ in counts.placements())
    value = doubled / (2 * n1 * n0)
    if min(n1, n0) < 2:
        return value, math.nan
    means, squares = (doubled / n1, doubled / n0), [0.0, 0.0]
    for pair in counts.placements():
        for side, (ties, wins) in enumerate(pair):
            squares[side] += float(ties @ (wins - means[side]) ** 2)
    return value, squares[0] / (n1 - 1) / n1 / (2 * n0) ** 2 + squares[1] / (n0 - 1) / n0 / (2 * n1) ** 2


def _newcombe(area: float, n1: int, n0: int, z: float) -> tuple[float, float]:
    """Ends where ``|area - end| = z * sqrt(V(end))``, V the Hanley-McNeil variance with both sizes at their mean."""
    extra = (n1 + n0) / 2 - 1

    def excess(end: float) -> float:
        variance = end * (1 - end) * (1 + extra * (1 - end) / (2 - end) + extra * end / (1 + end)) / (n1 * n0)
        return abs(area - end) - z * math.sqrt(max(variance, 0.0))

    # The excess falls from the far end to the area; at 0 and 1 the variance is 0, so a root lies between.
    return _bisect(excess, 0.0, area), _bisect(excess, 1.0, area)


def _bisect(excess: Callable[[float], float], outside: float, inside: float) -> float:
    if outside == inside:
        return outside
    for _ in range(60):
        middle = (outside + inside) / 2
        if excess(middle) > 0:
            outside = middle
        else:
            inside = middle
    return outside
