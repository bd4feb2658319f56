"""How many pairs of images show that a new version lost detections: the power of the exact McNemar test.

Two runs on the same images: an image is lost (found before, not after), gained, or the same. Only images that differ
count, and under "nothing changed" each is as likely to be lost as gained.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import StatisticsError
from .domain import FloatArray, IntArray, Sided, open_unit, sidedness

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_PAIRS = 10**6
"""A plan that needs more pairs is refused: nobody has them."""

_BLOCK = 512


def change_power(
    n: int,
    tpr: float,
    change: float,
    discordance: float | None = None,
    alpha: float = 0.05,
    cells: int = 1,
    sided: Sided = "one",
) -> float:
    """The chance that the exact McNemar test on ``n`` pairs sees a loss of TPR.

    Each cell is tested at ``alpha / cells``: Bonferroni, and the first step of Holm's correction. Summed over how many
    pairs differ.

    Args:
        n: pairs: the same image before and after.
        tpr: the TPR before.
        change: the loss, e.g. .05 for 5 points.
        discordance: the share of pairs that differ, at least ``change``; ``discordance = change`` if no image is
            gained. None: as if images were found independently before and after, the most that is plausible.
        alpha: level of the whole comparison.
        cells: tests that share it.
        sided: ``"one"`` tests for a loss, as the regression check does; ``"two"`` for any change.

    Raises:
        StatisticsError: the change or the discordance is impossible.

    Example:
        >>> round(change_power(300, 0.9, 0.05), 3), round(change_power(300, 0.9, 0.05, 0.06), 3)
        (0.535, 0.983)
    """
    share, odds = _discordant(tpr, change, discordance)
    table = _Rejections(odds, _per_cell(alpha, cells, sided))
    return table.power(int(_count(n, "n")), share)


def images_for_change(
    tpr: float,
    change: float,
    discordance: float | None = None,
    alpha: float = 0.05,
    power: float = 0.8,
    cells: int = 1,
    sided: Sided = "one",
) -> int:
    """The smallest number of pairs from which on a loss of TPR is seen with probability ``power``.

    Arguments as :func:`change_power`.

    Raises:
        StatisticsError: the change or the discordance is impossible, or it takes more than :data:`MOST_PAIRS`.

    Example:
        >>> images_for_change(0.9, 0.05), images_for_change(0.9, 0.05, 0.05)
        (577, 134)
    """
    open_unit(power, "power")
    share, odds = _discordant(tpr, change, discordance)
    table = _Rejections(odds, _per_cell(alpha, cells, sided))

    def enough(n: int) -> bool:
        return table.power(n, share) >= power

    rough = 16
    while not enough(rough):
        rough *= 2
        if rough > MOST_PAIRS:
            raise StatisticsError(
                f"a loss of {change:g} takes more than {MOST_PAIRS} pairs; ask for a larger loss or fewer cells"
            )
    rough = _bisected(enough, 0, rough)
    # The power has a sawtooth where nearly all pairs differ; it is past when it holds this far on. Within a step, less
    # than a tenth of a differing pair, it only rises.
    reach, step = math.ceil((40 + 3 * math.sqrt(rough * share)) / share), max(1, math.floor(0.1 / share))
    short = [n for n in range(max(1, rough - reach), rough + reach, step) if not enough(n)]
    return _bisected(enough, short[-1], short[-1] + step) if short else 1


def smallest_change(
    n: int,
    tpr: float,
    power: float = 0.8,
    alpha: float = 0.05,
    cells: int = 1,
    gains: bool = True,
    sided: Sided = "one",
) -> float:
    """The smallest loss of TPR that ``n`` pairs see with probability ``power``, to a hundredth of a point.

    Args:
        n: pairs.
        tpr: the TPR before.
        power: the chance that the loss is seen.
        alpha: level of the whole comparison.
        cells: tests that share it.
        gains: True: images are found independently before and after; False: no image is gained, the best case.
        sided: as :func:`change_power`.

    Returns:
        the loss; NaN if not even the loss of every image would be seen.

    Example:
        >>> smallest_change(500, 0.9), smallest_change(500, 0.9, gains=False)
        (0.0542, 0.0135)
    """
    open_unit(power, "power")

    def seen(step: int) -> bool:
        loss = step / 10_000
        return change_power(n, tpr, loss, None if gains else loss, alpha, cells, sided) >= power

    most = math.floor(round(tpr * 10_000, 6))
    if most < 1 or not seen(most):
        return math.nan
    return _bisected(seen, 0, most) / 10_000


class _Rejections:
    """The chance that the exact McNemar test rejects, for each number of pairs that differ; computed where needed."""

    def __init__(self, odds: float, alpha: float) -> None:
        self._odds, self._alpha = odds, alpha
        self._blocks: dict[int, FloatArray] = {}

    def power(self, n: int, share: float) -> float:
        """The chance of rejection among ``n`` pairs of which each differs with probability ``share``."""
        from scipy.special import gammaln, xlog1py, xlogy

        # Eight standard deviations, and twenty for the skew of rare differences.
        spread = 8 * math.sqrt(n * share * (1 - share)) + 20
        low, high = max(0, math.floor(n * share - spread)), min(n, math.ceil(n * share + spread))
        differ = np.arange(low, high + 1)
        log = gammaln(n + 1) - gammaln(differ + 1) - gammaln(n - differ + 1)
        weights = np.exp(log + xlogy(differ, share) + xlog1py(n - differ, -share))
        return min(1.0, float(weights @ self._chances(low, high)))

    def _chances(self, low: int, high: int) -> FloatArray:
        first, last = low // _BLOCK, high // _BLOCK
        for block in range(first, last + 1):
            if block not in self._blocks:
                differ = np.arange(block * _BLOCK, (block + 1) * _BLOCK)
                self._blocks[block] = _rejection(differ, self._odds, self._alpha)
        joined = np.concatenate([self._blocks[block] for block in range(first, last + 1)])
        return joined[low - first * _BLOCK : high + 1 - first * _BLOCK]


def _rejection(differ: IntArray, odds: float, alpha: float) -> FloatArray:
    from scipy.special import bdtr, bdtrc

    # The smallest number of losses whose p-value P(X >= losses | 1/2) is at most alpha, bisected for all at once.
    low, high = np.zeros(differ.size), differ + 1.0
    while np.any(high - low > 1):
        middle = np.floor((low + high) / 2)
        small = bdtr(differ - middle, differ, 0.5) <= alpha
        low, high = np.where(small, low, middle), np.where(small, middle, high)
    possible = high <= differ
    # bdtrc(x - 1) is P(X >= x).
    return np.where(possible, bdtrc(np.where(possible, high - 1, 0), np.maximum(differ, 1), odds), 0.0)


def _discordant(tpr: float, change: float, discordance: float | None) -> tuple[float, float]:
    """The share of pairs that differ, and the share of losses among them."""
    if not 0 < change <= tpr <= 1:
        raise StatisticsError(f"a TPR of {tpr:g} cannot lose {change:g}; the change must lie between 0 and the TPR")
    after = tpr - change
    share = tpr * (1 - after) + (1 - tpr) * after if discordance is None else float(discordance)
    most = min(2 * tpr - change, 2 * (1 - tpr) + change, 1.0)
    if not change - 1e-12 <= share <= most + 1e-12:
        raise StatisticsError(
            f"discordance is {share:g}; at a TPR of {tpr:g} that loses {change:g} it lies in {change:g}..{most:g}"
        )
    share = min(max(share, change), 1.0)
    return share, min((share + change) / (2 * share), 1.0)


def _per_cell(alpha: float, cells: int, sided: Sided) -> float:
    return open_unit(alpha, "alpha") / _count(cells, "cells") / (2 if sidedness(sided) == "two" else 1)


def _count(value: int, name: str) -> int:
    if isinstance(value, bool) or value != int(value) or value < 1:
        raise StatisticsError(f"{name} is {value}; it must be a whole number of at least 1")
    return int(value)


def _bisected(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest integer that holds, above ``low`` which does not and up to ``high`` which does."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
