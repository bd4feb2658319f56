"""What :mod:`.coverage` simulates: for every interval and test, data whose truth is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import coverage_diagnostics, coverage_paired
from .coverage import Case
from .statistics import binomial, intervals, roc, thresholds
from .statistics.null import null_report
from .summary import exceeds

if TYPE_CHECKING:
    from collections.abc import Callable

    from .statistics.intervals import Rate


LEVEL = 0.95


def _holds(rate: Rate, truth: float) -> bool | None:
    if np.isnan([rate.low, rate.high]).any():
        return None
    return bool(rate.low <= truth <= rate.high)


def _flags(rng: np.random.Generator, sources: int, images: int, share: float, icc: float) -> Any:
    """Beta-binomial flags: bool ``[sources * images]`` with a given correlation within a source, and the sources."""
    if icc == 0:
        chance = np.full(sources, share)
    else:
        scale = (1 - icc) / icc
        chance = rng.beta(share * scale, (1 - share) * scale, sources)
    return (rng.random((sources, images)) < chance[:, None]).ravel(), np.repeat(np.arange(sources), images)


def _exact_proportions() -> list[Case]:
    def case(n: int, share: float) -> Case:
        def hit(rng: np.random.Generator) -> bool:
            low, high = intervals.clopper_pearson(int(rng.binomial(n, share)), n, LEVEL)
            return bool(low <= share <= high)

        return Case(f"n = {n}, rate {share:g}", LEVEL, hit)

    return [case(n, share) for n in (20, 100, 1000) for share in (0.5, 0.9, 0.99, 0.999)]


def _score_proportions() -> list[Case]:
    def case(n: int) -> Case:
        def hit(rng: np.random.Generator) -> bool:
            share = float(rng.random())
            low, high = intervals.wilson(int(rng.binomial(n, share)), n, LEVEL)
            return bool(low <= share <= high)

        return Case(f"n = {n}, rates drawn evenly from 0 to 1", LEVEL, hit)

    return [case(n) for n in (20, 100, 1000)]


def _clustered_proportions() -> list[Case]:
    def case(sources: int, share: float, icc: float) -> Case:
        def hit(rng: np.random.Generator) -> bool | None:
            flags, origin = _flags(rng, sources, 4, share, icc)
            return _holds(intervals.proportion(flags, origin, level=LEVEL), share)

        return Case(f"{sources} sources of 4 images, rate {share:g}, correlation {icc:g}", LEVEL, hit)

    return [case(m, p, icc) for m in (15, 40, 150) for p in (0.5, 0.9, 0.98) for icc in (0.0, 0.3, 0.7)]


def _means() -> list[Case]:
    def skewed(rng: np.random.Generator, sources: int) -> np.ndarray:
        centre = rng.beta(9, 1, sources)
        return np.clip(rng.normal(centre[:, None], 0.02, (sources, 4)), 0, 1)

    def decibels(rng: np.random.Generator, sources: int) -> np.ndarray:
        return rng.normal(rng.normal(37, 2, sources)[:, None], 1, (sources, 4))

    def case(what: str, draw: Callable[[np.random.Generator, int], np.ndarray], sources: int, truth: float) -> Case:
        origin = np.repeat(np.arange(sources), 4)

        def hit(rng: np.random.Generator) -> bool | None:
            return _holds(intervals.mean(draw(rng, sources).ravel(), origin, level=LEVEL), truth)

        return Case(f"{what}, {sources} sources of 4 images", LEVEL, hit)

    # The truth of the skewed one is found by drawing: clipping moves it from .9.
    truth = float(skewed(np.random.Generator(np.random.PCG64(1)), 2_000_000).mean())
    cases = [case("bit accuracy skewed towards 1", skewed, m, truth) for m in (15, 60, 200)]
    return cases + [case("PSNR", decibels, m, 37.0) for m in (15, 60, 200)]


def _areas() -> list[Case]:
    from scipy.special import ndtri

    def case(n: int, area: float) -> Case:
        shift = float(ndtri(area)) * np.sqrt(2)

        def hit(rng: np.random.Generator) -> bool | None:
            return _holds(roc.auc(rng.normal(shift, 1, n), rng.normal(size=n), LEVEL), area)

        return Case(f"{n} + {n} images, area {area:g}", LEVEL, hit)

    return [case(n, area) for n in (30, 100, 500) for area in (0.6, 0.9, 0.99, 0.999)]


def _certified() -> list[Case]:
    from scipy.special import ndtr

    def real(n: int, alpha: float) -> Case:
        def hit(rng: np.random.Generator) -> bool:
            limit = thresholds.certified(rng.normal(size=n), None, alpha, LEVEL).value
            return bool(ndtr(-limit) <= alpha)

        return Case(f"real-valued, {n} negatives, FPR {alpha:g}", LEVEL, hit)

    def counted(n: int, alpha: float) -> Case:
        def hit(rng: np.random.Generator) -> bool:
            limit = thresholds.certified(rng.binomial(48, 0.5, n), None, alpha, LEVEL).value
            return binomial.fpr(48, int(limit)) <= alpha

        return Case(f"48 matching bits, {n} negatives, FPR {alpha:g}", LEVEL, hit)

    def clustered(sources: int, alpha: float) -> Case:
        origin = np.repeat(np.arange(sources), 8)

        def hit(rng: np.random.Generator) -> bool:
            scores = np.sqrt(0.8) * rng.normal(size=(sources, 1)) + np.sqrt(0.2) * rng.normal(size=(sources, 8))
            limit = thresholds.certified(scores.ravel(), origin, alpha, LEVEL).value
            return bool(ndtr(-limit) <= alpha)

        return Case(f"{sources} sources of 8 images, correlation .8, FPR {alpha:g}", LEVEL, hit)

    sizes = ((300, 0.01), (450, 0.01), (3000, 0.01), (3000, 0.001))
    return [real(*s) for s in sizes] + [counted(*s) for s in sizes] + [clustered(400, 0.01), clustered(3000, 0.01)]


def _null() -> list[Case]:
    def case(n: int, k: int) -> Case:
        def hit(rng: np.random.Generator) -> bool:
            return null_report(rng.normal(size=(n, k)), rng.random(k) < 0.5, None, 0.01, keys=2).holds

        return Case(f"{n} images, {k} fair bits", 0.99, hit)

    return [case(n, k) for n in (30, 120, 600) for k in (32, 48)]


def _moved() -> list[Case]:
    def case(n: int, tau: int) -> Case:
        nominal = binomial.fpr(48, tau)

        def hit(rng: np.random.Generator) -> bool:
            alarms = rng.binomial(48, 0.5, n) >= tau
            return exceeds(alarms, np.arange(n), nominal) >= 0.01

        return Case(f"{n} images, 48 bits, threshold {tau} (FPR {nominal:.2g})", 0.99, hit)

    return [case(n, tau) for n in (100, 1000, 10_000) for tau in (30, 33)]


_RATES: dict[str, tuple[str, list[Case]]] = {
    "clopper-pearson": ("Exact interval of a rate, one image per source.", _exact_proportions()),
    "wilson": (
        "Score interval of a rate: promised on average over rates only (91.5 % at a rate of .999 among 1,000).",
        _score_proportions(),
    ),
    "proportion": ("Rates whose images share sources.", _clustered_proportions()),
    "mean": ("Means (bit accuracy, quality) whose images share sources.", _means()),
    "auc": ("Area under the ROC, one image per source, normal scores.", _areas()),
    "certified": ("The certified threshold: its true FPR is at most what it promises.", _certified()),
    "null": ("The null report's verdict `holds` on fair, independent bits.", _null()),
    "null-moved": ("The flag `moved` stays down where the FPR is nominal.", _moved()),
}

PROCEDURES = {**_RATES, **coverage_diagnostics.PROCEDURES, **coverage_paired.PROCEDURES}
"""By name: what is promised, and the settings."""
