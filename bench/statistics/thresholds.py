"""The rule that sets a threshold, and the threshold that it set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...core.errors import StatisticsError
from . import binomial
from .domain import Sided, finite, open_unit, sidedness
from .intervals import clopper_pearson
from .roc import needed_negatives
from .splits import Sources, one_per_source

VERSION = 1
"""Raised when a rule changes; a threshold of another version is not comparable."""


Rule = Literal["theory", "certified", "fixed", "extrapolated"]


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold with its rule; compare scores with it in float64: flag if ``score >= value``.

    Attributes:
        rule: ``theory`` (from the null distribution), ``certified`` (from calibration negatives), ``extrapolated``
            (from a tail law fitted to them) or ``fixed`` (stated by somebody).
        version: of the rule.
        alpha: the FPR that it promises; None if it promises none.
        value: the threshold; for a payload a number of matching bits.
        sided: two-sided also flags ``score <= k - value``.
        n_calibration: calibration negatives that were given.
        sources: sources among them, one image each, that set the threshold.
        note: what else a reader must know, one sentence.
    """

    rule: Rule
    version: int
    alpha: float | None
    value: float
    sided: Sided = "one"
    n_calibration: int = 0
    sources: int = 0
    note: str = ""


def theory(k: int, alpha: float, sided: Sided = "one") -> Threshold:
    """The smallest number of matching bits whose FPR under fair, independent bits is at most ``alpha``.

    Raises:
        StatisticsError: ``k`` bits cannot express ``alpha``.

    Example:
        >>> theory(48, 1e-6).value
        41.0
    """
    tau = binomial.threshold(k, alpha, sided)
    note = (
        f"{k} bits; attained FPR {binomial.fpr(k, tau, sided):.3g} if bits of unmarked images are fair and independent"
    )
    return Threshold("theory", VERSION, float(alpha), float(tau), sided, note=note)


def certified(
    negatives: npt.ArrayLike,
    sources: Sources,
    alpha: float,
    level: float = 0.95,
    seed: int = 0,
    sided: Sided = "one",
    bits: int = 0,
) -> Threshold:
    """The smallest threshold whose FPR is at most ``alpha`` with confidence ``level``, from calibration negatives.

    With x of n negatives at or above it, the one-sided Clopper-Pearson upper bound of its FPR is at most ``alpha``. One
    image per source counts, picked by a hash; images of one source repeat each other and would break the promise.

    Args:
        negatives: finite scores ``[n]`` of the calibration split.
        sources: one for each image, or None where each is its own.
        alpha: the FPR to promise.
        level: the confidence.
        seed: of the pick.
        sided: ``"two"`` also flags images with as many wrong bits; then ``bits`` is needed.
        bits: payload length k where the scores are numbers of matching bits.

    Raises:
        StatisticsError: a real-valued score has no second side, or there are too few sources to promise ``alpha`` even
            without a false positive.

    Example:
        >>> rule = certified(np.arange(3000), None, 1e-3)
        >>> rule.value, rule.sources
        (3000.0, 3000)
    """
    open_unit(alpha, "alpha")
    open_unit(level, "level")
    if not np.size(negatives):
        raise StatisticsError(
            f"certifying an FPR of {alpha:g} needs at least {needed_negatives(alpha, level)} calibration negatives, "
            "there are none: set some apart with 'calibration', a share of the sources"
        )
    scores = finite(negatives, "scores of negatives")
    if sidedness(sided) == "two":
        if bits < 1:
            raise StatisticsError("a two-sided decision counts wrong bits; a score without a payload has one side")
        scores = np.maximum(scores, bits - scores)
    kept = np.sort(scores[one_per_source(sources, seed, scores.size)])[::-1]
    needed = needed_negatives(alpha, level)
    if kept.size < needed:
        raise StatisticsError(
            f"certifying an FPR of {alpha:g} at {level:.0%} confidence needs at least {needed} calibration negatives "
            f"of different sources, there are {kept.size}"
        )
    allowed = _most_false_positives(kept.size, alpha, level)
    # The threshold lies just above the first score that must not be flagged; for integer scores at the next integer.
    whole = np.asarray(negatives).dtype.kind in "iu"
    excluded = float(kept[allowed])
    value = excluded + 1 if whole else float(np.nextafter(excluded, np.inf))
    flagged = int(np.count_nonzero(kept >= value))
    note = f"{flagged} of {kept.size} calibration negatives are flagged; confidence {level:.0%}"
    return Threshold("certified", VERSION, float(alpha), value, sided, scores.size, kept.size, note)


def extrapolated(
    negatives: npt.ArrayLike, sources: Sources, alpha: float, level: float = 0.95, seed: int = 0
) -> Threshold:
    """A threshold beyond the calibration negatives, by a tail law fitted to the largest of them.

    The upper end of a one-sided interval of the ``1 - alpha`` quantile, see :mod:`.tails`: the FPR is at most ``alpha``
    with confidence ``level`` if the tail law holds, which nobody can check out there. Never to be confused with
    :func:`certified`.

    Arguments as :func:`certified`; scores are real-valued.

    Raises:
        StatisticsError: the scores are matching bits (use ``theory``), or too few to carry the tail that far.

    Example:
        >>> rule = extrapolated(np.random.default_rng(0).normal(size=4000), None, 1e-4)
        >>> 3.5 < rule.value < 6
        True
    """
    from .tails import fit_tail

    open_unit(alpha, "alpha")
    scores = finite(negatives, "scores of negatives")
    tail = fit_tail(scores, sources, level=level, seed=seed)
    value = tail.upper(alpha, level)
    note = f"extrapolated from {tail.sources} calibration negatives; confidence {level:.0%} if the tail law holds"
    note += f"; {tail.note}" if tail.note else ""
    return Threshold("extrapolated", VERSION, float(alpha), value, "one", scores.size, tail.sources, note)


def fixed(value: float, sided: Sided = "one") -> Threshold:
    """A threshold that somebody states, without a promise.

    Example:
        >>> fixed(0.5).value
        0.5
    """
    if not np.isfinite(value):
        raise StatisticsError(f"a fixed threshold is a finite number, not {value}")
    return Threshold("fixed", VERSION, None, float(value), sidedness(sided), note="stated, not calibrated")


def false_alarms_per_billion(fpr: float) -> float:
    """Real images flagged among a billion, about what a large platform takes in each day.

    Example:
        >>> false_alarms_per_billion(1e-6)
        1000.0
    """
    if not 0 <= fpr <= 1:
        raise StatisticsError(f"an FPR lies in 0..1, not {fpr}")
    return fpr * 1e9


def _most_false_positives(n: int, alpha: float, level: float) -> int:
    """The largest x whose upper bound among n is at most ``alpha``; 0 is known to do."""
    good, bad = 0, n
    while bad - good > 1:
        middle = (good + bad) // 2
        if clopper_pearson(middle, n, level, "upper")[1] <= alpha:
            good = middle
        else:
            bad = middle
    return good
