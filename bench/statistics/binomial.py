"""Matching bits under the null: M ~ Binomial(k, 1/2), from exact integers.

The false-positive rate (FPR) of "M >= tau" is ``P(M >= tau) = sum(C(k, i), i >= tau) / 2**k``. Sums and comparisons are
made in Python integers, so nothing underflows and a threshold is never off by one through rounding.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...core.errors import StatisticsError
from .domain import BoolArray, FloatArray, IntArray, Sided, open_unit, sidedness

if TYPE_CHECKING:
    from collections.abc import Iterator


def log10_p(matches: npt.ArrayLike, k: int, sided: Sided = "one") -> FloatArray:
    """Decimal logarithm of the p-value of each number of matching bits, exact far below 1e-300.

    Args:
        matches: integers in 0..k, any shape.
        k: payload bits.
        sided: ``"one"``: ``P(M >= m)``; ``"two"``: ``min(1, 2 min(P(M <= m), P(M >= m)))``.

    Returns:
        float64 of the shape of ``matches``, at most 0.

    Raises:
        StatisticsError: ``k`` is below 1, or ``matches`` are not integers in 0..k.

    Example:
        >>> float(log10_p(48, 48)) == -48 * math.log10(2)
        True
        >>> [round(float(v), 1) for v in log10_p([0, 3000, 4096], 4096)]
        [0.0, -201.4, -1233.0]
    """
    counts = _counts(matches, k)
    table = _table(k)
    if sidedness(sided) == "one":
        return table[counts]
    return np.minimum(table[np.maximum(counts, k - counts)] + math.log10(2), 0.0)


def fpr(k: int, tau: int, sided: Sided = "one") -> float:
    """FPR of the threshold ``tau``: the correctly rounded exact value (0 only below 5e-324).

    Args:
        k: payload bits.
        tau: an image is flagged if ``M >= tau``; two-sided also if ``M <= k - tau``.
        sided: ``"one"`` or ``"two"``.

    Raises:
        StatisticsError: ``k`` is below 1 or ``tau`` is not an integer.

    Example:
        >>> fpr(48, 48) == 2.0**-48
        True
    """
    _bits(k)
    if tau != int(tau):
        raise StatisticsError(f"the threshold on matching bits is {tau}; it must be an integer")
    tail = _tail(k, int(tau)) * (2 if sidedness(sided) == "two" else 1)
    return min(1.0, tail / (1 << k))


def threshold(k: int, alpha: float, sided: Sided = "one") -> int:
    """The smallest ``tau`` whose FPR is at most ``alpha``; two-sided, the upper of the two thresholds.

    Raises:
        StatisticsError: ``k`` bits cannot express an FPR as small as ``alpha``.

    Example:
        >>> threshold(48, 1e-6), threshold(48, 1e-6, "two")
        (41, 41)
    """
    _bits(k)
    return _threshold(k, open_unit(alpha, "alpha"), sidedness(sided))


def smallest_fpr(k: int, sided: Sided = "one") -> float:
    """The smallest FPR that ``k`` bits can express: ``2**-k``, or ``2**(1-k)`` two-sided.

    Example:
        >>> smallest_fpr(8)
        0.00390625
    """
    _bits(k)
    return math.ldexp(1.0, (1 if sidedness(sided) == "two" else 0) - k)


def detected(matches: npt.ArrayLike, k: int, alpha: float, sided: Sided = "one") -> BoolArray:
    """Whether the p-value of each number of matching bits is at most ``alpha``.

    Args:
        matches: integers in 0..k, any shape.
        k: payload bits.
        alpha: the FPR that is allowed.
        sided: ``"one"`` or ``"two"``.

    Returns:
        bool of the shape of ``matches``.

    Raises:
        StatisticsError: as :func:`threshold` and :func:`log10_p`.

    Example:
        >>> detected([5, 24, 43], 48, 1e-6, "two").tolist()
        [True, False, True]
    """
    counts = _counts(matches, k)
    tau = threshold(k, alpha, sided)
    if sided == "one":
        return np.asarray(counts >= tau)
    return np.asarray((counts >= tau) | (counts <= k - tau))


def _bits(k: int) -> None:
    if isinstance(k, bool) or k != int(k) or k < 1:
        raise StatisticsError(f"the payload has {k} bits; matching bits need at least 1")


def _counts(matches: npt.ArrayLike, k: int) -> IntArray:
    _bits(k)
    array = np.asarray(matches)
    counts = array.astype(np.int64) if array.dtype.kind in "iu" or (array.dtype.kind == "f" and _whole(array)) else None
    if counts is None:
        raise StatisticsError(f"numbers of matching bits must be integers, not {array.dtype}")
    if counts.size and (counts.min() < 0 or counts.max() > k):
        raise StatisticsError(f"numbers of matching bits must lie in 0..{k}; there are {counts.min()}..{counts.max()}")
    return counts


def _whole(array: npt.NDArray[np.floating]) -> bool:
    return bool(np.all(np.isfinite(array)) and np.all(array == np.floor(array)))


def _tails(k: int) -> Iterator[tuple[int, int]]:
    """Yields ``(tau, sum of C(k, i) for i >= tau)`` for tau = k, k - 1, ..., 0."""
    term = tail = 1
    yield k, tail
    for step in range(k):
        term = term * (k - step) // (step + 1)
        tail += term
        yield k - step - 1, tail


@lru_cache(maxsize=256)
def _tail(k: int, tau: int) -> int:
    if tau <= 0:
        return 1 << k
    return sum(math.comb(k, i) for i in range(tau, k + 1))


@lru_cache(maxsize=256)
def _threshold(k: int, alpha: float, sided: Sided) -> int:
    # A float is an exact ratio of integers, so "FPR <= alpha" is decided without rounding.
    over, under = alpha.as_integer_ratio()
    limit = over << k
    weight = under * (2 if sided == "two" else 1)
    best = None
    for tau, tail in _tails(k):
        if tail * weight > limit:
            break
        best = tau
    if best is None:
        power = k - (1 if sided == "two" else 0)
        needed = math.ceil(-math.log2(alpha)) + k - power
        raise StatisticsError(
            f"{k} bits cannot reach an FPR of {alpha:g}: the smallest that they express is 2^-{power} = "
            f"{smallest_fpr(k, sided):.2g}; ask for at least that, or use {needed} bits or more"
        )
    return best


@lru_cache(maxsize=32)
def _table(k: int) -> FloatArray:
    table = np.empty(k + 1)
    whole = 1 << k
    for tau, tail in _tails(k):
        if 2 * tail > whole:
            # Near 1 the logarithm is taken of the exact complement, else its digits are lost.
            table[tau] = math.log1p(-((whole - tail) / whole)) / math.log(10) + 0.0
        else:
            power = tail.bit_length() - 1
            table[tau] = math.log10(tail / (1 << power)) + (power - k) * math.log10(2)
    table.flags.writeable = False
    return table
