"""Tests of the null of fair, independent bits; each takes one image per source and returns a p-value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import binomial

if TYPE_CHECKING:
    from .domain import BoolArray, IntArray

_LEAST_EXPECTED = 5.0


def binomial_tail(successes: int, n: int, share: float) -> float:
    """``P(X >= successes)`` for ``X ~ Binomial(n, share)``, exact.

    Example:
        >>> binomial_tail(1, 2, 0.5)
        0.75
    """
    from scipy.special import betainc

    return 1.0 if successes <= 0 else float(betainc(successes, n - successes + 1, share))


def chi_square_tail(statistic: float, df: float) -> float:
    """``P(X >= statistic)`` for a chi-square variable with ``df`` degrees of freedom.

    Example:
        >>> round(chi_square_tail(3.841, 1), 3)
        0.05
    """
    from scipy.special import gammaincc

    return float(gammaincc(df / 2, statistic / 2))


def bias(sample: BoolArray) -> float:
    """Tests all bits for fairness: chi-square, and the worst bit's exact test, corrected for taking two.

    Args:
        sample: ``[n, k]``.

    Example:
        >>> bias(np.ones((20, 4), dtype=bool)) < 1e-4
        True
    """
    n, k = sample.shape
    counts = np.count_nonzero(sample, axis=0)
    together = chi_square_tail(float((((2 * counts - n) ** 2) / n).sum()), k)
    farthest = int(np.maximum(counts, n - counts).max())
    alone = 2 * k * binomial_tail(farthest, n, 0.5)
    return float(min(1.0, 2 * min(together, alone)))


def fit(matches: IntArray, k: int) -> float:
    """Chi-square test of matches against Binomial(k, 1/2); neighbouring cells are pooled until each expects 5.

    Args:
        matches: ``[n]``, integers in 0..k.
        k: payload bits.

    Returns:
        the p-value; 1 where n is too small for two cells.

    Example:
        >>> fit(np.full(100, 16), 32) < 1e-6
        True
    """
    tail = 10.0 ** np.append(binomial.log10_p(np.arange(k + 1), k), -np.inf)
    expected = -matches.size * np.diff(tail)
    starts, held = [0], 0.0
    for cell, weight in enumerate(expected.tolist()):
        held += weight
        if held >= _LEAST_EXPECTED:
            starts.append(cell + 1)
            held = 0.0
    # What is left above the last full cell joins it.
    starts.pop()
    if len(starts) < 2:
        return 1.0
    observed = np.bincount(matches, minlength=k + 1).astype(np.float64)
    pooled, seen = np.add.reduceat(expected, starts), np.add.reduceat(observed, starts)
    return chi_square_tail(float(((seen - pooled) ** 2 / pooled).sum()), len(starts) - 1)
