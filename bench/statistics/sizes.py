"""How many images a rate needs: for an interval of a given width, to certify an FPR, to measure one.

All counts are of independent images, one per source; :func:`design_effect` says what images that share a source are
worth. Every count is exact (binomial sums, no normal approximation) and safe from the sawtooth of integer counts: a
larger sample never does worse than what is promised. Pairs for a regression check are counted in :mod:`.mcnemar`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import StatisticsError
from .domain import open_unit
from .intervals import clopper_pearson
from .roc import needed_negatives

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_IMAGES = 10**8
"""A plan that needs more images is refused: nobody has them."""


@dataclass(frozen=True, slots=True)
class Certification:
    """Negatives that certify an FPR: the Clopper-Pearson upper bound of a threshold's FPR is at most ``fpr``.

    Attributes:
        fpr: the FPR to certify.
        true_fpr: the FPR that the threshold really has.
        least: negatives that do if none of them is flagged; with fewer nothing is certified.
        planned: negatives of which certification succeeds with the planned power; so does every larger number.
        allowed: of ``planned`` negatives so many may be flagged.
        power: the chance that ``planned`` negatives succeed.
    """

    fpr: float
    true_fpr: float
    least: int
    planned: int
    allowed: int
    power: float


def interval_width(rate: float, n: int, level: float = 0.95) -> float:
    """Full width of the Clopper-Pearson interval that ``n`` images will give at the expected ``rate``.

    The expected count ``rate * n`` is seldom a whole number: the wider interval of its two neighbours. The half-width
    is about half of it; the ends are not symmetric about the rate.

    Args:
        rate: 0..1, taken as the decimal number that is written.
        n: images.
        level: of the interval.

    Example:
        >>> round(interval_width(0.9, 138), 4), round(interval_width(0.9, 1000), 4)
        (0.1078, 0.0382)
    """
    return float(_width(int(_count(n, "n")), _upper_count(_folded(rate), n), open_unit(level, "level")))


def positives_for_width(tpr: float, width: float, level: float = 0.95) -> int:
    """The smallest number of positives from which on the interval of the TPR is at most ``width`` wide.

    Args:
        tpr: the TPR that is expected, 0..1.
        width: full width of the Clopper-Pearson interval, for plus or minus 2 points about .04.
        level: of the interval.

    Returns:
        the smallest n such that n, n + 1, ... images all give :func:`interval_width` at most ``width``.

    Raises:
        StatisticsError: the width is not in 0..1, or would take more than :data:`MOST_IMAGES`.

    Example:
        >>> positives_for_width(0.9, 0.05), positives_for_width(1.0, 0.05)
        (596, 72)
    """
    share, width, level = _folded(tpr), open_unit(width, "width"), open_unit(level, "level")
    _possible(float(share), width, level)
    if not share:
        return _first(lambda n: _width(n, 0, level) <= width)
    # Where the upper count is x, n runs from floor((x - 1) / share) + 1: the widest interval is the first.
    centre = float(share) * _first(lambda n: _width(n, float(share) * n, level) <= width)
    reach = 500 if centre > 2000 else 3 * centre + 50
    counts = np.arange(
        max(1, math.floor(min(centre - reach, centre / 4 if centre <= 2000 else centre))), centre + reach
    )
    starts = [math.floor((Fraction(int(x)) - 1) / share) + 1 for x in counts]
    wide = np.array([_width(n, int(x), level) > width for n, x in zip(starts, counts, strict=True)])
    last = int(np.flatnonzero(wide)[-1]) if wide.any() else 0
    start = starts[last]
    return (
        start - 1 + _first(lambda step: _width(start - 1 + step, _upper_count(share, start - 1 + step), level) <= width)
    )


def negatives_for_empirical(fpr: float, relative_width: float | None = None, level: float = 0.95) -> int:
    """Negatives that an empirical statement at ``fpr`` needs.

    Args:
        fpr: the FPR.
        relative_width: full width of the interval of the FPR as a multiple of ``fpr``; None: just enough to express
            the FPR, one negative being ``fpr`` of them.
        level: of the interval.

    Example:
        >>> negatives_for_empirical(1e-3), negatives_for_empirical(1e-3, 0.5)
        (1000, 66293)
    """
    open_unit(fpr, "fpr")
    if relative_width is None:
        return needed_negatives(fpr, None)
    if not relative_width > 0:
        raise StatisticsError(f"relative_width is {relative_width:g}; it must be above 0")
    return positives_for_width(fpr, fpr * relative_width, level)


def certification_power(n: int, fpr: float, true_fpr: float, level: float = 0.95) -> float:
    """The chance that ``n`` negatives certify ``fpr`` for a threshold whose FPR is ``true_fpr``.

    Example:
        >>> round(certification_power(2995, 1e-3, 5e-4), 3)
        0.224
    """
    from scipy.special import bdtr

    _below(true_fpr, open_unit(fpr, "fpr"))
    allowed = _allowed(_count(n, "n"), fpr, open_unit(level, "level"))
    return float(bdtr(allowed, n, true_fpr)) if allowed >= 0 else 0.0


def negatives_for_certified(
    fpr: float, level: float = 0.95, power: float = 0.9, true_fpr: float | None = None
) -> Certification:
    """Negatives to certify that the FPR of a threshold is at most ``fpr``.

    The statement is that of the rule ``certified``: the one-sided Clopper-Pearson bound is at most ``fpr``.

    Args:
        fpr: the FPR to certify.
        level: confidence of the statement.
        power: the chance of success that is wanted.
        true_fpr: the FPR that the threshold really has, below ``fpr``; None: half of it.

    Raises:
        StatisticsError: ``true_fpr`` is not below ``fpr``, or it takes more than :data:`MOST_IMAGES` negatives.

    Example:
        >>> plan = negatives_for_certified(1e-3)
        >>> plan.least, plan.planned, plan.allowed
        (2995, 29058, 20)
    """
    level, power = open_unit(level, "level"), open_unit(power, "power")
    real = open_unit(fpr, "fpr") / 2 if true_fpr is None else float(true_fpr)
    _below(real, fpr)
    least = needed_negatives(fpr, level)

    def start(allowed: int) -> int:
        return least if not allowed else _first(lambda n: _certifies(allowed, n, fpr, level), allowed + 1)

    def holds(allowed: int) -> bool:
        # While so many are allowed, the chance is least just before one more is.
        return certification_power(start(allowed + 1) - 1, fpr, real, level) >= power

    allowed = _first(holds, 0)
    # The chance rises with each further negative allowed, but for ripples.
    for behind in range(1, 11):
        if not holds(allowed + behind):
            allowed += behind + 1
    planned = start(allowed)
    return Certification(fpr, real, least, planned, allowed, certification_power(planned, fpr, real, level))


def design_effect(images_per_source: float, icc: float) -> float:
    """How many images that share sources are worth one that does not: ``1 + (m - 1) icc`` (Kish 1965).

    Args:
        images_per_source: m, at least 1.
        icc: correlation of two images of one source, 0..1.

    Example:
        >>> round(design_effect(8, 0.8), 6)
        6.6
    """
    if not images_per_source >= 1 or not math.isfinite(images_per_source):
        raise StatisticsError(f"images_per_source is {images_per_source:g}; it must be at least 1")
    if not 0 <= icc <= 1:
        raise StatisticsError(f"icc is {icc:g}; a correlation within sources lies in 0..1")
    return 1 + (images_per_source - 1) * icc


def effective_images(n: float, images_per_source: float, icc: float) -> float:
    """How many independent images ``n`` images are worth: ``n / design_effect``.

    Example:
        >>> round(effective_images(800, 8, 0.8), 1)
        121.2
    """
    return n / design_effect(images_per_source, icc)


def _count(value: int, name: str) -> int:
    if isinstance(value, bool) or value != int(value) or value < 1:
        raise StatisticsError(f"{name} is {value}; it must be a whole number of at least 1")
    return int(value)


def _below(true_fpr: float, fpr: float) -> None:
    if not 0 <= true_fpr < fpr:
        raise StatisticsError(
            f"true_fpr is {true_fpr:g}; only an FPR below {fpr:g} can be certified to be at most that"
        )


def _certifies(flagged: int, n: int, fpr: float, level: float) -> bool:
    return clopper_pearson(flagged, n, level, "upper")[1] <= fpr


def _allowed(n: int, fpr: float, level: float) -> int:
    """How many of n negatives may be flagged; -1: not even none."""
    if n < needed_negatives(fpr, level):
        return -1
    return _first(lambda flagged: flagged == n or not _certifies(flagged, n, fpr, level), 1) - 1


def _folded(rate: float) -> Fraction:
    """The rate as the decimal number that is written, or its mirror below 1/2, which has the same width."""
    if not 0 <= rate <= 1:
        raise StatisticsError(f"a rate lies in 0..1, not {rate}")
    exact = Fraction(repr(float(rate)))
    return min(exact, 1 - exact)


def _upper_count(share: Fraction, n: int) -> int:
    """The whole number next above the expected count: up to 1/2 the interval is widest at the upper neighbour."""
    return math.ceil(share * n)


def _width(n: int, successes: float, level: float) -> float:
    low, high = clopper_pearson(successes, n, level)
    return high - low


def _possible(share: float, width: float, level: float) -> None:
    if _width(MOST_IMAGES, share * MOST_IMAGES, level) > width:
        raise StatisticsError(f"an interval of width {width:g} takes more than {MOST_IMAGES:g} images")


def _first(holds: Callable[[int], bool], start: int = 1) -> int:
    """The smallest integer from ``start`` that holds, where everything above one that holds does."""
    if holds(start):
        return start
    low, step = start, 1
    while not holds(low + step):
        low += step
        step *= 2
        if low > MOST_IMAGES:
            raise StatisticsError(f"this takes more than {MOST_IMAGES:g} images; ask for less")
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
