"""Simulations of the paired changes that a regression verdict rests on; see :mod:`.coverage`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from .coverage import Case
from .statistics import paired

LEVEL = 0.95


def _inside(change: paired.Change, truth: float) -> bool | None:
    if np.isnan([change.low, change.high]).any():
        return None
    return bool(change.low - 1e-12 <= truth <= change.high + 1e-12)


def _pairs(rng: Any, sources: int, images: int, lost: float, won: float, icc: float) -> tuple[Any, Any, Any]:
    """Paired flags; the kind of pair (lost, won, twice True, twice False) is Dirichlet-multinomial within a source."""
    shares = np.array([lost, won, 0.9 - lost, 0.1 - won])
    if icc:
        weights = rng.standard_gamma(np.maximum(shares * (1 - icc) / icc, 1e-12), size=(sources, 4))
        weights = np.where(shares > 0, weights, 0)
        shares = weights / weights.sum(axis=1, keepdims=True)
    edges = np.cumsum(np.broadcast_to(shares, (sources, 4)), axis=1)[:, None, :]
    kind = (rng.random((sources, images, 1)) >= edges[..., :3]).sum(axis=2).ravel()
    return (kind == 0) | (kind == 2), (kind == 1) | (kind == 2), np.repeat(np.arange(sources), images)


DISCORDANCE = ((0.0, 0.0), (0.002, 0.002), (0.02, 0.0), (0.02, 0.02), (0.03, 0.01), (0.05, 0.05), (0.12, 0.02))


def rate_intervals() -> list[Case]:
    """Tango's interval, also where sources repeat."""

    def case(sources: int, images: int, lost: float, won: float, icc: float) -> Case:
        def hit(rng: Any) -> bool | None:
            before, after, origin = _pairs(rng, sources, images, lost, won, icc)
            return _inside(paired.rate_change(before, after, None if images == 1 else origin), won - lost)

        many = f"{sources} sources of {images} images, correlation {icc:g}" if images > 1 else f"n = {sources}"
        return Case(f"{many}, lost {lost:.1%}, won {won:.1%}", LEVEL, hit)

    single = [case(n, 1, *pair, 0) for n in (50, 200, 1000, 5000) for pair in DISCORDANCE]
    clustered = [case(m, 4, *pair, icc) for m in (15, 150) for pair in DISCORDANCE[2:] for icc in (0.0, 0.7)]
    return single + clustered


def rate_tests() -> list[Case]:
    """The exact test where as many images are lost as won."""

    def case(sources: int, images: int, share: float, icc: float) -> Case:
        def hit(rng: Any) -> bool:
            before, after, origin = _pairs(rng, sources, images, share, share, icc)
            return paired.rate_change(before, after, origin).p_worse > 0.05

        return Case(f"{sources} sources of {images}, correlation {icc:g}, lost = won = {share:.1%}", LEVEL, hit)

    return [case(m, k, p, icc) for m, k, icc in ((200, 1, 0), (2000, 1, 0), (150, 4, 0.7)) for p in (0.01, 0.05)]


def _noise(kind: str, rng: Any, sources: int) -> Any:
    """Differences around 0, 4 images a source: ``[sources, 4]``."""
    if kind == "normal":
        return 0.02 * (rng.standard_normal((sources, 1)) + rng.standard_normal((sources, 4)))
    # Skewed: most lose a little, some gain much more; in 1/48 steps as bit accuracies are.
    strength = rng.exponential(1.0, (sources, 1)) * (0.5 + rng.random((sources, 4)))
    return np.round(48 * 0.05 * (strength - 1.0)) / 48


@lru_cache
def _centre(kind: str) -> float:
    return float(_noise(kind, np.random.default_rng(0), 2_000_000).mean())


def mean_intervals() -> list[Case]:
    """Means of differences, symmetric and skewed, and the test against the true one."""

    def case(kind: str, sources: int, p: str = "") -> Case:
        origin = np.repeat(np.arange(sources), 4)

        def hit(rng: Any) -> bool | None:
            differences = _noise(kind, rng, sources).ravel()
            if not p:
                return _inside(paired.mean_change(np.zeros(differences.size), differences, origin), _centre(kind))
            return bool(
                getattr(paired.mean_change(np.full(differences.size, _centre(kind)), differences, origin), p) > 0.05
            )

        return Case(f"{kind} differences, {sources} sources of 4 images{', ' + p if p else ''}", LEVEL, hit)

    return [case(kind, m, p) for p in ("", "p_worse") for kind in ("normal", "skewed") for m in (15, 40, 150)]


def _drops(kind: str, rng: Any, count: int) -> Any:
    if kind == "equal":
        return np.full(count, -0.1)
    if kind == "either way":
        return rng.choice([-0.1, 0.1], count)
    if kind == "exponential":
        return -rng.exponential(0.05, count).clip(0, 1)
    return -np.where(rng.random(count) < 0.1, 0.5, 0.02)


DROPS = {"equal": -0.1, "either way": 0.0, "exponential": -0.05, "one in ten large": -0.068}


def few_differences() -> list[Case]:
    """Means of differences of which all but a few are 0."""

    def case(n: int, expected: float, kind: str, bounds: tuple[float, float] | None) -> Case:
        def hit(rng: Any) -> bool | None:
            before = np.full(n, 0.95)
            after = before.copy()
            count = int(rng.binomial(n, expected / n))
            after[:count] += _drops(kind, rng, count)
            change = paired.mean_change(before, after, bounds=bounds)
            return _inside(change, expected / n * DROPS[kind])

        known = "bounds known" if bounds else "no bounds"
        return Case(f"n = {n}, {expected:g} expected to differ, {kind}, {known}", LEVEL, hit)

    cases = [case(200, expected, kind, (0.0, 1.1)) for kind in DROPS for expected in (0.5, 2, 8, 24, 60)]
    return cases + [case(200, expected, kind, None) for kind in DROPS for expected in (8, 24, 60)]


def _two_runs(rng: Any, shape: tuple[int, ...], agreement: float) -> Any:
    common = rng.standard_normal((*shape, 1))
    return np.sqrt(agreement) * common + np.sqrt(1 - agreement) * rng.standard_normal((*shape, 2))


def areas() -> list[Case]:
    """The change of an area, with marked and unmarked images of the same sources or not."""

    def case(
        sources: int, images: int, before: float, after: float, shared: float, agreement: float, p: str = ""
    ) -> Case:
        def hit(rng: Any) -> bool | None:
            source = np.sqrt(shared) * _two_runs(rng, (sources, 1), agreement)
            classes = [source + np.sqrt(1 - shared) * _two_runs(rng, (sources, images), agreement) for _ in range(2)]
            positives, negatives = (scores.reshape(-1, 2) for scores in classes)
            positives = positives + np.sqrt(2) * ndtri([before, after])
            origin = np.repeat(np.arange(sources), images) if shared or images > 1 else None
            change = paired.auc_change(
                positives[:, 0], negatives[:, 0], positives[:, 1], negatives[:, 1], origin, origin
            )
            return _inside(change, _truth(sources, shared, before, after)) if not p else change.p_worse > 0.05

        what = (
            f"{sources} sources of {images}, marked and unmarked correlated {shared:g}" if shared else f"n = {sources}"
        )
        return Case(
            f"{what}, area {before:g} -> {after:g}, runs agree {agreement:g}{', ' + p if p else ''}", LEVEL, hit
        )

    pairs = ((0.8, 0.8), (0.96, 0.94), (0.99, 0.99), (0.998, 0.985), (0.9999, 0.9999))
    cases = [
        case(n, 1, *pair, shared, agreement)
        for n in (40, 200)
        for pair in pairs
        for shared in (0.0, 0.8)
        for agreement in (0.9,)
    ]
    cases += [case(50, 4, *pair, 0.6, 0.9) for pair in pairs]
    return cases + [
        case(200, 1, a, a, shared, agreement, "p_worse")
        for a in (0.8, 0.99)
        for shared in (0, 0.8)
        for agreement in (0, 0.9)
    ]


def _truth(sources: int, shared: float, before: float, after: float) -> float:
    # A positive and a negative of different sources differ by N(., 2) whatever they share within a source. The
    # estimate also pairs each positive with the negative of its own source, one pair in ``sources``.
    def area(target: float) -> float:
        shift = np.sqrt(2) * ndtri(target)
        own = ndtr(shift / np.sqrt(2 * (1 - shared)))
        return target + (own - target) / sources if shared else target

    return float(area(after) - area(before))


def strictest(scores: Any, _: Any) -> float:
    """What ``certified`` does at an FPR of .01 with 299 to 472 negatives: no false positive is allowed."""
    return float(np.nextafter(scores.max(), np.inf))


def calibrated() -> list[Case]:
    """Thresholds that are the maximum of a few hundred calibration negatives."""

    def case(
        n: int, agreement: float, mean: float, shift: float, what: str, level: float = LEVEL, unit: float = 1.0
    ) -> Case:
        def hit(rng: Any) -> bool | None:
            clean = _two_runs(rng, (n,), agreement) * np.array([1.0, unit])
            marked = (_two_runs(rng, (500,), agreement) + np.array([mean, mean + shift])) * np.array([1.0, unit])
            change = paired.calibrated_rate_change(
                clean.T, marked.T, None, None, strictest, unit == 1.0, seed=int(rng.integers(1 << 31)), swaps=199
            )
            if what != "interval":
                return bool(getattr(change, what) > 1 - level)
            middle = clean.max(axis=0).mean()
            return _inside(change, float(ndtr(mean + shift - middle) - ndtr(mean - middle)))

        setting = f"{n} calibration negatives, runs agree {agreement:g}, positives at {mean:g}, moved by {shift:g}"
        return Case(f"{setting}, unit x {unit:g}, {what}", level, hit)

    cells = [(n, a, m) for n in (300, 450) for a in (0.0, 0.9) for m in (3.0,)]
    cases = [case(*cell, 0.0, "p_worse") for cell in cells]
    cases.append(case(300, 0.9, 3.0, 0.0, "p_worse", LEVEL, 1.3))
    return cases + [case(*cell, shift, "interval") for cell in cells for shift in (-0.5, 0.0)]


def _verdicts(cells: list[paired.Change], margin: float) -> list[str]:
    worse, better = paired.holm([c.p_worse for c in cells]), paired.holm([c.p_better for c in cells])
    return [paired.verdict(c, margin, w, b) for c, w, b in zip(cells, worse, better, strict=True)]


def families() -> list[Case]:
    """58 cells in which nothing changed: in how many comparisons is no cell called a regression?"""

    def case(n: int, kind: str, margin: float) -> Case:
        def hit(rng: Any) -> bool:
            if kind == "rates":
                shares = rng.uniform(0.01, 0.05, 58)
                cells = [paired.rate_change(*_pairs(rng, n, 1, s, s, 0)[:2]) for s in shares]
            else:
                cells = [paired.mean_change(np.zeros(n), _noise(kind, rng, n)[:, 0] - _centre(kind)) for _ in range(58)]
            return "regression" not in _verdicts(cells, margin)

        return Case(f"58 cells of {kind}, n = {n}, margin {margin:g}", LEVEL, hit)

    return [case(n, "rates", margin) for n in (200, 1000) for margin in (0.0,)]


PROCEDURES: dict[str, tuple[str, list[Case]]] = {
    "rate-change": ("Tango's interval of a paired change of rates", rate_intervals()),
    "rate-change-test": ("Exact McNemar, one image per source", rate_tests()),
    "mean-change": ("Studentised bootstrap over sources of a mean of differences", mean_intervals()),
    "few-differences": ("A mean of differences of which few are not zero", few_differences()),
    "auc-change": ("Change of an area: DeLong, Obuchowski, widened near 1", areas()),
    "calibrated-change": ("Swaps of the runs with calibrated thresholds", calibrated()),
    "families": ("No false regression among 58 cells under Holm", families()),
}
