"""Simulations of the null's diagnostics, the tail law, ranks and attribution; see :mod:`.coverage`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import ndtr

from .coverage import Case
from .statistics import binomial
from .statistics.attribution import attribute, family_threshold
from .statistics.correlation import correlation
from .statistics.pairs import pair_matches
from .statistics.ranking import rank_methods
from .statistics.tails import fit_tail

LEVEL = 0.95
_K = 32
_TAU = binomial.threshold(_K, 0.01)

Law = Callable[[np.random.Generator, int], Any]


def _fair(rng: np.random.Generator, n: int) -> Any:
    return rng.random((n, _K)) < 0.5


def _correlated(rng: np.random.Generator, n: int) -> Any:
    return np.sqrt(0.5) * rng.standard_normal((n, 1)) + np.sqrt(0.5) * rng.standard_normal((n, _K)) > 0


def _biased(rng: np.random.Generator, n: int) -> Any:
    return rng.random((n, _K)) < np.linspace(0.3, 0.8, _K)


def _cluster(rng: np.random.Generator, n: int) -> Any:
    bits, inside = _fair(rng, n), rng.random(n) < 0.2
    bits[inside] = (np.arange(_K) % 2 == 0) ^ (rng.random((np.count_nonzero(inside), _K)) < 0.1)
    return bits


LAWS: dict[str, Law] = {
    "fair bits": _fair,
    "bits correlated by a common cause": _correlated,
    "biased bits": _biased,
    "a fifth of the images alike": _cluster,
}


@lru_cache
def _truth(name: str) -> dict[str, float]:
    """Of pairs of images, from 800,000 independent pairs."""
    if name == "fair bits":
        return {"overdispersion": 1.0, "tail": binomial.fpr(_K, _TAU)}
    rng, law = np.random.Generator(np.random.PCG64(99)), LAWS[name]
    matches = np.concatenate([(law(rng, 100_000) == law(rng, 100_000)).sum(axis=1) for _ in range(8)])
    return {
        "overdispersion": float(np.sqrt((4 / _K) * ((matches - _K / 2) ** 2).mean())),
        "tail": float((matches >= _TAU).mean()),
    }


def pairs() -> list[Case]:
    """Intervals of the pair diagnostic, and its verdict on fair bits."""

    def case(name: str, sources: int, what: str) -> Case:
        def hit(rng: np.random.Generator) -> bool | None:
            rate = getattr(pair_matches(LAWS[name](rng, sources), None, 0.01), what)
            if np.isnan(rate.low):
                return None
            return bool(
                rate.low - 1e-9 <= max(_truth(name)[what], 1.0 if what == "overdispersion" else 0.0) <= rate.high + 1e-9
            )

        return Case(f"{what}: {name}, {sources} images", LEVEL, hit)

    def verdict(sources: int) -> Case:
        def hit(rng: np.random.Generator) -> bool:
            return pair_matches(_fair(rng, sources), None, 0.01).holds

        return Case(f"`holds` on fair bits, {sources} images", 0.99, hit)

    cases = [case(name, m, what) for what in ("overdispersion", "tail") for name in LAWS for m in (15, 50, 150)]
    return cases + [verdict(m) for m in (15, 50, 150)]


def effective() -> list[Case]:
    """The interval of the effective number of bits."""

    @lru_cache
    def truth(name: str) -> float:
        if name in ("fair bits", "biased bits"):
            return float(_K)
        bits = LAWS[name](np.random.Generator(np.random.PCG64(9)), 400_000).astype(np.float32)
        return float(_K**2 / (np.corrcoef(bits.T) ** 2).sum())

    def case(name: str, n: int) -> Case:
        def hit(rng: np.random.Generator) -> bool:
            found = correlation(LAWS[name](rng, n))
            return bool(found.low - 1e-9 <= truth(name) <= found.high + 1e-9)

        return Case(f"{name}, {n} images", LEVEL, hit)

    return [case(name, n) for name in LAWS for n in (30, 120, 600)]


def tails() -> list[Case]:
    """The extrapolated quantile: two-sided, and the one-sided end that a threshold is set at."""
    from scipy import stats

    laws = {"normal": stats.norm, "exponential": stats.expon, "Student t(4)": stats.t(4), "uniform": stats.uniform}

    def case(name: str, n: int, alpha: float, sided: str) -> Case:
        law, true = laws[name], float(laws[name].isf(alpha))

        def hit(rng: np.random.Generator) -> bool:
            tail = fit_tail(law.isf(1 - rng.random(n)))
            if sided == "upper":
                return bool(true <= tail.upper(alpha))
            found = tail.threshold(alpha)
            return bool(found.low <= true <= found.high)

        return Case(f"{sided}: {name}, {n} negatives, FPR {alpha:g}", LEVEL, hit)

    chosen = ((500, 1e-3), (2000, 1e-3), (2000, 1e-4))
    return [case(name, *at, sided) for sided in ("two-sided", "upper") for name in laws for at in chosen]


def ranks() -> list[Case]:
    """All rank intervals together, equal methods included; and the interval of a method's own value."""
    ramp = np.linspace(0.1, 0.99, 12)

    def flags(rng: np.random.Generator, rates: Any, n: int) -> Any:
        shared = np.sqrt(0.4) * rng.standard_normal((1, n, 1)) + np.sqrt(0.13) * rng.standard_normal((len(rates), n, 1))
        noise = np.sqrt(0.47) * rng.standard_normal((*rates.shape[:1], n, rates.shape[1]))
        return ndtr(shared + noise) < rates[:, None, :]

    designs = {
        "1 cell, 5 methods of .98": np.full((5, 1), 0.98),
        "12 cells, 6 equal methods": np.tile(ramp, (6, 1)),
        "12 cells, 2 and 2 methods": np.stack([ramp, ramp, ramp - 0.05, ramp - 0.05]),
    }

    def case(name: str, n: int, what: str) -> Case:
        rates = designs[name]
        truth = rates.mean(axis=1)
        best = 1 + (truth > truth[:, None] + 1e-12).sum(axis=1)
        worst = truth.size - (truth < truth[:, None] - 1e-12).sum(axis=1)

        def hit(rng: np.random.Generator) -> bool:
            found = {row.name: row for row in rank_methods({str(j): t for j, t in enumerate(flags(rng, rates, n))})}
            own = [found[str(j)] for j in range(truth.size)]
            if what == "value":
                return bool(own[0].low <= truth[0] <= own[0].high)
            spans = [(row.rank_low or 0, row.rank_high or 0) for row in own]
            return all(low <= b and w <= high for (low, high), b, w in zip(spans, best, worst, strict=True))

        return Case(f"{what}: {name}, {n} sources", LEVEL, hit)

    return [case(name, n, what) for what in ("ranks", "value") for name in designs for n in (50, 200)]


def named() -> list[Case]:
    """Attribution: the rates' intervals, and that unmarked images are named no more often than promised."""

    def case(bits: int, users: int, what: str) -> Case:
        tau = family_threshold(bits, users, 0.05)

        def hit(rng: np.random.Generator) -> bool:
            own, clean = rng.random((120, bits)) < 0.5, rng.random((120, bits)) < 0.5
            read = own ^ (rng.random((120, bits)) < 0.2)
            (row,) = attribute(read, own, clean, [users], 0.05, seed=int(rng.integers(2**62)), threads=1)
            rate = row.correct if what == "correct" else row.false
            truth = _named_truly(bits, users, tau) if what == "correct" else row.theory_false
            return rate is not None and rate.low <= truth <= rate.high

        return Case(f"{what}: {bits} bits, {users} users, one bit in five flipped", LEVEL, hit)

    return [case(*at, what) for at in ((32, 100), (48, 1000)) for what in ("correct", "unmarked")]


@lru_cache
def _named_truly(bits: int, users: int, tau: int) -> float:
    from scipy.stats import binom

    d = np.arange(bits + 1)
    others = (2.0**bits * binom.cdf(d - 1, bits, 0.5) / (2.0**bits - 1)) ** (users - 1)
    return float((binom.pmf(d, bits, 0.8) * np.minimum(others, 1))[tau:].sum())


PROCEDURES: dict[str, tuple[str, list[Case]]] = {
    "pairs": ("Pairs of unmarked images: jackknife over sources.", pairs()),
    "effective-bits": ("The effective number of bits.", effective()),
    "extrapolated": ("Peaks over threshold: the quantile beyond the data.", tails()),
    "ranks": ("Ranks of methods, all together; and the mean TPR of one.", ranks()),
    "attribution": ("Rates of attribution, one image per source.", named()),
}
"""By name: what is promised, and the settings."""
