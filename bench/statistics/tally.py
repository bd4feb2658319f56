"""How many images of each class score at least each threshold: all that a ROC and its area need."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .domain import FloatArray, IntArray, finite

if TYPE_CHECKING:
    from collections.abc import Iterator

Scores = npt.NDArray[Any]
"""A vector ``[n]`` of finite float32, float64 or integer numbers, none of which float64 rounds."""

Placements = tuple[tuple[IntArray, IntArray], tuple[IntArray, IntArray]]

_BLOCK = 1 << 18
_MOST_COUNTERS = 1 << 16
_EXACT = 2**53


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Both classes, counted from the strictest threshold to the most lenient.

    Attributes:
        thresholds: float64 ``[t]``, descending; the first is +inf, the others are the attained scores.
        positives: integers ``[t]``, positives with ``score >= threshold``, from 0 to their number.
        negatives: integers ``[t]``, the same for negatives.
    """

    thresholds: FloatArray
    positives: npt.NDArray[np.integer[Any]]
    negatives: npt.NDArray[np.integer[Any]]

    def sizes(self) -> tuple[int, int]:
        """The number of positives and of negatives."""
        return int(self.positives[-1]), int(self.negatives[-1])

    def placements(self) -> Iterator[Placements]:
        """By blocks of thresholds, for positives and for negatives: ``(images with this score, twice their wins)``.

        A win is an image of the other class on the right side; a tie is half a win.
        """
        twice = 2 * self.sizes()[1]
        for start in range(0, self.thresholds.size - 1, _BLOCK):
            high = self.positives[start : start + _BLOCK + 1].astype(np.int64)
            low = self.negatives[start : start + _BLOCK + 1].astype(np.int64)
            yield (np.diff(high), twice - low[1:] - low[:-1]), (np.diff(low), high[1:] + high[:-1])


def numbers(values: npt.ArrayLike, name: str) -> Scores:
    """As :func:`~.domain.finite`, but what float64 holds exactly stays in its own, often smaller type."""
    array = np.asarray(values)
    if array.ndim == 1 and array.size:
        if array.dtype in (np.float32, np.float64):
            exact = bool(np.isfinite(array).all())
        else:
            exact = array.dtype.kind in "iu" and -_EXACT <= array.min() <= array.max() <= _EXACT
        if exact:
            return array
    return finite(array, name)


def both(positives: npt.ArrayLike, negatives: npt.ArrayLike) -> tuple[Scores, Scores]:
    """Checked positives and negatives.

    Raises:
        StatisticsError: a class is empty, or a score is NaN or infinite.
    """
    return numbers(positives, "scores of positives"), numbers(negatives, "scores of negatives")


def tally(positives: Scores, negatives: Scores) -> Tally:
    """Tallies scores by counting where they are integers in a narrow range, else by sorting.

    Example:
        >>> found = tally(np.array([3.0, 2.0]), np.array([2.0, 1.0]))
        >>> found.thresholds.tolist(), found.positives.tolist(), found.negatives.tolist()
        ([inf, 3.0, 2.0, 1.0], [0, 1, 2, 2], [0, 0, 1, 2])
    """
    least = float(min(positives.min(), negatives.min()))
    most = float(max(positives.max(), negatives.max()))
    if most - least < min(positives.size + negatives.size, _MOST_COUNTERS) and max(-least, most) <= _EXACT:
        low, high = math.floor(least), math.floor(most)
        first = occurrences(positives, low, high)
        second = None if first is None else occurrences(negatives, low, high)
        if first is not None and second is not None:
            return counted(first, second, low)
    return _sorted(positives, negatives)


def occurrences(scores: Scores, least: int, most: int) -> IntArray | None:
    """How many scores, all within ``least..most``, are each of these integers; None if one is no integer."""
    counts = np.zeros(most - least + 1, dtype=np.int64)
    for start in range(0, scores.size, _BLOCK):
        block = scores[start : start + _BLOCK]
        whole = block.astype(np.int64)
        if (whole != block).any():
            return None
        counts += np.bincount(whole - least, minlength=counts.size)
    return counts


def counted(positives: IntArray, negatives: IntArray, least: int) -> Tally:
    """The tally of integer scores, from how many of each class are ``least``, ``least + 1`` and so on."""
    attained = np.flatnonzero(positives + negatives)[::-1]
    thresholds = np.append(np.inf, attained + float(least))
    return Tally(thresholds, np.append(0, np.cumsum(positives[attained])), np.append(0, np.cumsum(negatives[attained])))


def _sorted(positives: Scores, negatives: Scores) -> Tally:
    scores = np.empty(positives.size + negatives.size, dtype=np.result_type(positives, negatives))
    for part, given in ((scores[: negatives.size], negatives), (scores[negatives.size :], positives)):
        part[:] = given
        part.sort()
    # Two ascending runs: the stable sort merges them in linear time.
    order = np.argsort(scores, kind="stable")[::-1]
    scores, positive = scores[order], order >= negatives.size
    # Large and not needed any more; so below.
    del order
    last = np.append(scores[1:] != scores[:-1], True)
    thresholds = np.empty(np.count_nonzero(last) + 1)
    thresholds[0], thresholds[1:] = np.inf, scores[last]
    del scores
    counter = np.int32 if positive.size < 2**31 else np.int64
    at_least: list[npt.NDArray[np.integer[Any]]] = []
    for mine in (positive, ~positive):
        at_least.append(np.zeros(thresholds.size, dtype=counter))
        at_least[-1][1:] = np.cumsum(mine, dtype=counter)[last]
    return Tally(thresholds, *at_least)
