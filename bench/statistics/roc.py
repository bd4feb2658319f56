"""ROC curves as step functions over thresholds that some image attains, and rates at a fixed FPR.

An image is flagged if ``score >= tau``; images with the same score are decided together; nothing is interpolated to a
point that no threshold attains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...core.errors import StatisticsError
from .domain import FloatArray, finite, open_unit
from .intervals import Rate

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
        x, y = _best(self)
        # The last point below the start says what the curve is worth at the start.
        first = max(int(np.searchsorted(x, left, side="left")) - 1, 0)
        corners = np.stack([np.repeat(np.maximum(x[first:], left), 2)[1:], np.repeat(y[first:], 2)[:-1]])
        moved = np.append(True, np.any(np.diff(corners) != 0, axis=0))
        return corners[0, moved], corners[1, moved]


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
    high, low = finite(positives, "scores of positives"), finite(negatives, "scores of negatives")
    attained = np.unique(np.concatenate([high, low]))[::-1]
    return Roc(
        np.concatenate([[np.inf], attained]),
        np.concatenate([[0.0], _share_at_least(low, attained)]),
        np.concatenate([[0.0], _share_at_least(high, attained)]),
        high.size,
        low.size,
    )


def tpr_at_fpr(positives: npt.ArrayLike, negatives: npt.ArrayLike, alpha: float) -> OperatingPoint:
    """The TPR at the smallest attained threshold whose FPR is at most ``alpha``; nothing is interpolated.

    Raises:
        StatisticsError: ``alpha`` is below ``1 / n_negatives``, so these negatives cannot show it; or as :func:`roc`.

    Example:
        >>> tpr_at_fpr([5.0, 4.0, 1.0], [3.0, 2.0, 1.0, 0.0], 0.25)
        OperatingPoint(threshold=3.0, tpr=0.6666666666666666, fpr_attained=0.25)
    """
    curve = roc(positives, negatives)
    _expressible(alpha, curve.n_negative)
    last = int(np.searchsorted(curve.fpr, alpha, side="right")) - 1
    return OperatingPoint(float(curve.thresholds[last]), float(curve.tpr[last]), float(curve.fpr[last]))


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
    from scipy.special import ndtri

    open_unit(level, "level")
    high, low = finite(positives, "scores of positives"), finite(negatives, "scores of negatives")
    area, variance = _delong(high, low)
    z = float(ndtri((1 + level) / 2))
    n = high.size + low.size
    if not variance > 0:
        return Rate(area, *_newcombe(area, high.size, low.size, z), n, n, "Newcombe", level)
    error = math.sqrt(variance)
    centre, half = math.log(area / (1 - area)), z * error / (area * (1 - area))
    ends = _logistic(centre - half), _logistic(centre + half)
    if area - z * error >= 0 and area + z * error <= 1:
        return Rate(area, *ends, n, n, "DeLong", level)
    other = _newcombe(area, high.size, low.size, z)
    return Rate(area, min(ends[0], other[0]), max(ends[1], other[1]), n, n, "DeLong and Newcombe, the wider", level)


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
        _expressible(alpha, curve.n_negative)
    x, y = _best(curve)
    return float(np.diff(np.minimum(x, alpha)) @ y[:-1])


def _expressible(alpha: float, n: int) -> None:
    open_unit(alpha, "alpha")
    if alpha < 1 / n:
        needed = needed_negatives(alpha, None)
        raise StatisticsError(f"an FPR of {alpha:g} needs at least {needed} negatives, there are {n}")


def _share_at_least(scores: FloatArray, thresholds: FloatArray) -> FloatArray:
    below = np.searchsorted(np.sort(scores), thresholds, side="left")
    return np.asarray((scores.size - below) / scores.size, dtype=np.float64)


def _best(curve: Roc) -> tuple[FloatArray, FloatArray]:
    """Each attained FPR once, with the largest TPR there."""
    last = np.append(np.diff(curve.fpr) > 0, True)
    return curve.fpr[last], curve.tpr[last]


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def _midranks(values: FloatArray) -> FloatArray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], dtype=np.float64)


def _delong(positives: FloatArray, negatives: FloatArray) -> tuple[float, float]:
    """Area and DeLong's variance; NaN for the variance where a class has a single image."""
    n1, n0 = positives.size, negatives.size
    ranks = _midranks(np.concatenate([positives, negatives]))
    above = (ranks[:n1] - _midranks(positives)) / n0
    below = 1 - (ranks[n1:] - _midranks(negatives)) / n1
    area = float(above.mean())
    if min(n1, n0) < 2:
        return area, math.nan
    return area, float(above.var(ddof=1) / n1 + below.var(ddof=1) / n0)


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
