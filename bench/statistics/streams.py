"""The way to 1e8 scores and beyond: chunks go in, results are exactly those of all scores at once.

Memory at the peak beyond the scores themselves, results included, measured with half of n scores in each class:

=================================  ===============  ============  ============
call                               bytes a score    MiB for 1e7   MiB for 1e8
=================================  ===============  ============  ============
``roc``, ``auc`` of float64        34               329           3242
``roc``, ``auc`` of integers       none             4             4
``tpr_at_fpr`` of float64          4                43            381
:class:`ScoreCounts`               none             4             4
:class:`TprAtFpr` at an FPR of     none             16            16
1e-3, chunks of a million
=================================  ===============  ============  ============

So matching bits go through :class:`ScoreCounts`, and a TPR at a fixed FPR of real-valued scores through
:class:`TprAtFpr`, without ever being held together. The whole curve and the area of real-valued scores have no exact
stream, since each score may be a corner of its own: they take 34 bytes a score (of float32 scores 30 for the curve and
26 for the area), and the curve itself is 24 of them until it is :meth:`~.roc.Roc.thinned`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...core.errors import StatisticsError
from .roc import OperatingPoint, Roc, area, curve, false_positives
from .tally import Scores, Tally, counted, numbers, occurrences

if TYPE_CHECKING:
    from .intervals import Rate


class ScoreCounts:
    """Counts of integer scores from 0 to k, such as matching bits, added in chunks: O(k) memory for any number.

    Its ROC, AUC and TPR are exactly those of all scores at once. (A real-valued score that is made coarse first is
    another, slightly blunter detector; the results are then exactly that detector's.)

    Args:
        k: the largest score, at least 1.

    Raises:
        StatisticsError: ``k`` is not a positive integer.

    Example:
        >>> counts = ScoreCounts(8)
        >>> counts.add(positives=[8, 7], negatives=[4, 4, 3])
        >>> counts.add(negatives=[7])
        >>> counts.tpr_at_fpr(0.25)
        OperatingPoint(threshold=7.0, tpr=1.0, fpr_attained=0.25)
    """

    def __init__(self, k: int) -> None:
        if not 1 <= k < math.inf or k != int(k):
            raise StatisticsError(
                f"scores are counted from 0 to k, and k is {k:g}; it must be an integer of at least 1"
            )
        self._positives = np.zeros(int(k) + 1, dtype=np.int64)
        self._negatives = np.zeros(int(k) + 1, dtype=np.int64)

    def add(self, positives: npt.ArrayLike = (), negatives: npt.ArrayLike = ()) -> None:
        """Counts a chunk of scores ``[n]`` of each class, either may be empty.

        Raises:
            StatisticsError: a score is not an integer from 0 to k (or integral, for floats); nothing is counted then.
        """
        k = self._positives.size - 1
        found = []
        for values, name in ((positives, "scores of positives"), (negatives, "scores of negatives")):
            scores = _chunk(values, name)
            inside = not scores.size or (scores.min() >= 0 and scores.max() <= k)
            counts = occurrences(scores, 0, k) if inside else None
            if counts is None:
                raise StatisticsError(f"{name}: some are not integers from 0 to {k}")
            found.append(counts)
        self._positives += found[0]
        self._negatives += found[1]

    def roc(self) -> Roc:
        """As :func:`roc`.

        Raises:
            StatisticsError: a class is empty so far.
        """
        return curve(self._tally())

    def auc(self, level: float = 0.95) -> Rate:
        """As :func:`auc`.

        Raises:
            StatisticsError: a class is empty so far.
        """
        return area(self._tally(), level)

    def tpr_at_fpr(self, alpha: float) -> OperatingPoint:
        """As :func:`tpr_at_fpr`.

        Raises:
            StatisticsError: a class is empty so far, or ``alpha`` is below ``1 / n_negatives``.
        """
        points = self.roc()
        false_positives(alpha, points.n_negative)
        last = int(np.searchsorted(points.fpr, alpha, side="right")) - 1
        return OperatingPoint(float(points.thresholds[last]), float(points.tpr[last]), float(points.fpr[last]))

    def _tally(self) -> Tally:
        for counts, name in ((self._positives, "positives"), (self._negatives, "negatives")):
            if not counts.any():
                raise StatisticsError(f"scores of {name}: there are none; at least one is needed")
        return counted(self._positives, self._negatives, 0)


class TprAtFpr:
    """:func:`tpr_at_fpr` of scores that arrive in chunks: all negatives first, then the positives.

    Only the ``alpha * n_negative + 1`` largest negatives can matter, and twice as many are held; of the positives
    nothing is held. The number of negatives must be known: a score that is dropped early could matter among more.

    Args:
        alpha: the FPR.
        n_negative: how many negatives will come.

    Raises:
        StatisticsError: ``alpha`` is below ``1 / n_negative``.

    Example:
        >>> stream = TprAtFpr(0.25, n_negative=4)
        >>> stream.add_negatives([3.0, 2.0])
        >>> stream.add_negatives([1.0, 0.0])
        >>> stream.add_positives([5.0, 4.0, 1.0])
        >>> stream.point()
        OperatingPoint(threshold=3.0, tpr=0.6666666666666666, fpr_attained=0.25)
    """

    def __init__(self, alpha: float, n_negative: int) -> None:
        self._needed = false_positives(alpha, n_negative) + 1
        self._missing = self._n_negative = n_negative
        self._largest: list[Scores] = []
        self._cut: Any = -math.inf
        self._threshold, self._n_positive, self._flagged = math.inf, 0, 0

    def add_negatives(self, scores: npt.ArrayLike) -> None:
        """Takes a chunk of negatives ``[n]``, which may be empty.

        Raises:
            StatisticsError: there are more than were announced, or a score is NaN or infinite.
        """
        chunk = _chunk(scores, "scores of negatives")
        if chunk.size > self._missing:
            raise StatisticsError(
                f"{self._n_negative} negatives were announced, {chunk.size - self._missing} more came"
            )
        self._missing -= chunk.size
        self._largest.append(chunk[chunk > self._cut])
        if sum(part.size for part in self._largest) > 2 * self._needed or not self._missing:
            largest = np.concatenate(self._largest)
            first = largest.size - self._needed
            largest.partition(first)
            # A copy, or the view would hold on to everything that was just dropped.
            self._largest, self._cut = [largest[first:].copy()], largest[first]

    def add_positives(self, scores: npt.ArrayLike) -> None:
        """Takes a chunk of positives ``[n]``, which may be empty.

        Raises:
            StatisticsError: negatives are still missing, or a score is NaN or infinite.
        """
        self._complete()
        chunk = _chunk(scores, "scores of positives")
        flagged = chunk[chunk > self._cut]
        self._n_positive += chunk.size
        self._flagged += flagged.size
        if flagged.size:
            self._threshold = min(self._threshold, float(flagged.min()))

    def point(self) -> OperatingPoint:
        """The operating point of all scores that came.

        Raises:
            StatisticsError: negatives are still missing, or no positive came.
        """
        self._complete()
        if not self._n_positive:
            raise StatisticsError("scores of positives: there are none; at least one is needed")
        largest = self._largest[0]
        flagged = largest[largest > self._cut]
        return OperatingPoint(
            min(self._threshold, float(flagged.min()) if flagged.size else math.inf),
            self._flagged / self._n_positive,
            flagged.size / self._n_negative,
        )

    def _complete(self) -> None:
        if self._missing:
            raise StatisticsError(f"all negatives come first; {self._missing} of {self._n_negative} are still missing")


def _chunk(values: npt.ArrayLike, name: str) -> Scores:
    """As ``numbers``, but there may be none."""
    return numbers(values, name) if np.size(values) else np.zeros(0, dtype=np.int8)
