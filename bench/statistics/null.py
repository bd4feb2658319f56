"""Is the null true? Bits of unmarked images are tested for being fair and independent, not assumed to be.

Averaged over uniform random keys the FPR is exactly binomial whatever the decoder does, so that average only checks the
code. The risk lies in the key in use and in the tail over keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import StatisticsError
from ...core.seeds import Seed
from . import binomial, null_tests
from .correlation import correlation
from .domain import BoolArray, FloatArray, IntArray, Sided, boolean, sidedness
from .intervals import Rate, clopper_pearson, proportion
from .null_tests import binomial_tail, chi_square_tail
from .splits import Sources, one_per_source

_FAMILY_ERROR = 0.01
_KEY_ERROR = 0.01
_LEVEL = 0.95
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class NullReport:
    """What unmarked images say about the null of fair, independent bits.

    "One image per source" is what tests and diagnostics use; rates use every image.

    Attributes:
        n: unmarked images.
        sources: sources among them.
        k: payload bits.
        alpha: the FPR that was asked for.
        sided: whether many matching bits flag an image, or few as well.
        threshold: matching bits from which theory flags an image; two-sided, the upper of the two thresholds.
        nominal_fpr: FPR of that threshold if the null holds.
        observed_fpr: FPR of the key in use.
        p_exceeds: exact one-sided binomial test, one image per source, that the observed FPR exceeds the nominal one.
        keys: random keys that were tried.
        key_fpr_mean: mean FPR over them; near ``nominal_fpr`` whatever the decoder does (checks the code only).
        key_fpr_sd: standard deviation over them.
        key_fpr_worst: the worst of them.
        key_fpr_quantiles: their 50, 90 and 99 % quantiles, each attained by a key.
        keys_above: share of keys whose FPR is significantly above ``nominal_fpr``, each by itself: exact binomial test
            at 1 %, one image per source.
        keys_above_chance: the share of keys that this test picks if the null holds; at most 1 %, less where few images
            make it coarse.
        matches_mean: mean number of bits that match the key in use; k/2 under the null.
        matches_sd: its standard deviation between sources.
        overdispersion: ``matches_sd`` over that of fair coins, ``sqrt(k) / 2``.
        ones: share of ones of each bit.
        ones_low: lower end of the 95 % Clopper-Pearson interval of each, for one bit looked at by itself.
        ones_high: upper end.
        ones_low_all: the same where all k intervals hold together at 95 % (Bonferroni).
        ones_high_all: upper end.
        worst_bias: largest distance of these shares from 1/2.
        effective_bits: k^2 / sum of squared eigenvalues of the bits' correlation matrix, each squared correlation
            corrected for chance; bits that never change count as none; NaN with two sources.
        effective_bits_low: lower end of its 95 % interval; NaN with fewer than 30 sources.
        effective_bits_high: upper end.
        correlation_mean: mean absolute correlation of two bits; NaN with fewer than two bits that change.
        correlation_chance: what unrelated bits would show among as many sources.
        correlation_strongest: the two bits that are most correlated, counted from 0, and their correlation.
        p_shift: exact test that more bits match the key than half, or two-sided, that half is wrong.
        p_dispersion: chi-square test that matches scatter more than fair coins.
        p_bias: test of all bits for fairness (chi-square and the worst bit's exact test, corrected for taking two).
        p_correlation: chi-square test of all pairwise correlations.
        p_fit: chi-square test of the matches against Binomial(k, 1/2), tails pooled; 1 where too few sources for it.
        holds: no test rejects, at 1 % for all six together. With few sources it says "not refuted", no more.
        warning: one sentence, empty if it holds.
    """

    n: int
    sources: int
    k: int
    alpha: float
    sided: Sided
    threshold: int
    nominal_fpr: float
    observed_fpr: Rate
    p_exceeds: float
    keys: int
    key_fpr_mean: float
    key_fpr_sd: float
    key_fpr_worst: float
    key_fpr_quantiles: tuple[float, float, float]
    keys_above: float
    keys_above_chance: float
    matches_mean: float
    matches_sd: float
    overdispersion: float
    ones: tuple[float, ...]
    ones_low: tuple[float, ...]
    ones_high: tuple[float, ...]
    ones_low_all: tuple[float, ...]
    ones_high_all: tuple[float, ...]
    worst_bias: float
    effective_bits: float
    effective_bits_low: float
    effective_bits_high: float
    correlation_mean: float
    correlation_chance: float
    correlation_strongest: tuple[int, int, float] | None
    p_shift: float
    p_dispersion: float
    p_bias: float
    p_correlation: float
    p_fit: float
    holds: bool
    warning: str


def null_report(
    logits: npt.ArrayLike,
    key: npt.ArrayLike,
    sources: Sources,
    alpha: float,
    keys: int = 1000,
    seed: int = 0,
    sided: Sided = "one",
) -> NullReport:
    """Tests the null of fair, independent bits on unmarked images.

    Under fair coins ``holds`` is False in .6 to 1.2 % of 6,000 runs with 30, 120 and 600 images of 32 and 48 bits.

    Args:
        logits: ``[n, k]``; a bit is 1 where its logit is above 0.
        key: bool ``[k]``, the key in use.
        sources: one for each image, or None where each is its own.
        alpha: the FPR whose threshold is examined.
        keys: random keys to try, at least 2.
        seed: of the random keys and of the pick of one image per source.
        sided: ``"two"`` also flags images with as many wrong bits.

    Raises:
        StatisticsError: shapes do not fit, a logit is NaN, there are fewer than two sources, or k bits cannot express
            ``alpha``.

    Example:
        >>> coins = np.random.default_rng(0).standard_normal((500, 48))
        >>> null_report(coins, np.arange(48) % 2 == 0, None, 1e-3).holds
        True
    """
    bits, secret = _bits(logits), boolean(key, "key")
    n, k = bits.shape
    if secret.size != k:
        raise StatisticsError(f"the key has {secret.size} bits and the logits {k}; they must be as many")
    if keys < 2:
        raise StatisticsError(f"the spread over keys needs at least 2 random keys, not {keys}")
    kept = one_per_source(sources, seed, n)
    if kept.size < 2:
        raise StatisticsError("the null needs unmarked images of at least 2 sources, there is 1")
    tau = binomial.threshold(k, alpha, sidedness(sided))
    nominal = binomial.fpr(k, tau, sided)
    matches: IntArray = np.count_nonzero(bits == secret, axis=1)
    flags = (matches >= tau) | ((matches <= k - tau) if sided == "two" else False)
    own, sample = matches[kept], bits[kept]
    secrets = _random_keys(keys, k, seed)
    rates, spread = _rates(bits, secrets, tau, sided), float(own.std(ddof=1))
    related = correlation(sample, _LEVEL)
    return _judged(
        NullReport(
            n=n,
            sources=kept.size,
            k=k,
            alpha=float(alpha),
            sided=sided,
            threshold=tau,
            nominal_fpr=nominal,
            observed_fpr=proportion(flags, sources),
            p_exceeds=binomial_tail(int(np.count_nonzero(flags[kept])), kept.size, nominal),
            keys=keys,
            key_fpr_mean=float(rates.mean()),
            key_fpr_sd=float(rates.std(ddof=1)),
            key_fpr_worst=float(rates.max()),
            **_key_tail(rates, rates if kept.size == n else _rates(sample, secrets, tau, sided), kept.size, nominal),
            matches_mean=float(own.mean()),
            matches_sd=spread,
            overdispersion=spread / (math.sqrt(k) / 2),
            **_ones(sample),
            effective_bits=related.effective,
            effective_bits_low=related.low,
            effective_bits_high=related.high,
            correlation_mean=related.mean,
            correlation_chance=related.chance,
            correlation_strongest=related.strongest,
            p_shift=_shift(int(own.sum()), kept.size * k, sided),
            p_dispersion=chi_square_tail(4 / k * (kept.size - 1) * spread**2, kept.size - 1),
            p_bias=null_tests.bias(sample),
            p_correlation=related.p,
            p_fit=null_tests.fit(own, k),
            holds=True,
            warning="",
        )
    )


def match_histogram(logits: npt.ArrayLike, key: npt.ArrayLike) -> IntArray:
    """How many images match the key in 0, 1, ..., k bits.

    Args:
        logits: ``[n, k]``; a bit is 1 where its logit is above 0.
        key: bool ``[k]``, or ``[n, k]`` where each image has a key of its own.

    Returns:
        int64 ``[k + 1]``.

    Raises:
        StatisticsError: shapes do not fit, or a logit is NaN.

    Example:
        >>> match_histogram([[1.0, -1.0], [1.0, 1.0]], np.array([True, True])).tolist()
        [0, 1, 1]
    """
    bits, secret = _bits(logits), np.asarray(key)
    if secret.dtype != np.bool_ or secret.shape not in (bits.shape, bits.shape[1:]):
        raise StatisticsError(
            f"the key must be bool [{bits.shape[1]}] or {list(bits.shape)} like the logits, "
            f"not {secret.dtype} {list(secret.shape)}"
        )
    return np.bincount(np.count_nonzero(bits == secret, axis=1), minlength=bits.shape[1] + 1).astype(np.int64)


def key_fprs(logits: npt.ArrayLike, tau: float, keys: int = 1000, seed: int = 0, sided: Sided = "one") -> FloatArray:
    """The FPR of each of many random keys at the threshold ``tau``, over all images.

    Evidence is stored, so unmarked images can be read against as many keys as one likes at no cost.

    Args:
        logits: ``[n, k]`` of unmarked images; a bit is 1 where its logit is above 0.
        tau: matching bits from which an image is flagged.
        keys: how many random keys, at least 1.
        seed: seed of the keys; the same ones for every call.
        sided: ``"two"`` also flags images with as many wrong bits.

    Returns:
        float64 ``[keys]``; the keys are those of :func:`null_report`, in the same order.

    Raises:
        StatisticsError: no image, or no key.

    Example:
        >>> rates = key_fprs(np.random.default_rng(0).normal(size=(200, 32)), 24, keys=50)
        >>> rates.shape, bool(rates.mean() < 0.01)
        ((50,), True)
    """
    bits = _bits(logits)
    if keys < 1:
        raise StatisticsError(f"the spread over keys needs at least 1 random key, not {keys}")
    return _rates(bits, _random_keys(keys, bits.shape[1], seed), math.ceil(tau), sidedness(sided))


def key_spread(
    logits: npt.ArrayLike, tau: float, keys: int = 1000, seed: int = 0, sided: Sided = "one"
) -> tuple[float, float]:
    """Mean and worst of :func:`key_fprs`.

    Example:
        >>> mean, worst = key_spread(np.random.default_rng(0).normal(size=(200, 32)), 24)
        >>> mean < 0.01 and worst < 0.1
        True
    """
    rates = key_fprs(logits, tau, keys, seed, sided)
    return float(rates.mean()), float(rates.max())


def _random_keys(keys: int, k: int, seed: int) -> BoolArray:
    return np.asarray(Seed.root(seed).child("null keys").numpy().integers(0, 2, (keys, k)) == 1)


def _judged(report: NullReport) -> NullReport:
    """The same report with its verdict."""
    r = report
    findings = (
        (
            r.p_exceeds,
            f"the FPR of the key in use is {r.observed_fpr.value:.2g} where theory says {r.nominal_fpr:.2g}",
        ),
        (r.p_shift, f"{r.matches_mean / r.k:.1%} of the bits match the key in use instead of half"),
        (r.p_dispersion, f"the number of matching bits scatters {r.overdispersion:.2f} times as much as fair coins"),
        (r.p_bias, f"the share of ones of a bit is up to {r.worst_bias:.2f} away from one half"),
        (r.p_correlation, f"bits are correlated ({r.k} are worth {r.effective_bits:.1f})"),
        (r.p_fit, f"the number of matching bits does not follow Binomial({r.k}, 1/2)"),
    )
    failed = [text for p, text in findings if p * len(findings) < _FAMILY_ERROR]
    if not failed:
        return report
    warning = f"Theoretical rates do not hold on these {r.sources} sources: {'; '.join(failed)}."
    return replace(report, holds=False, warning=warning)


def _bits(logits: npt.ArrayLike) -> BoolArray:
    array = np.asarray(logits)
    if array.ndim != 2 or not array.size:
        raise StatisticsError(f"logits must be [n, k] with at least one image and one bit, not {list(array.shape)}")
    if array.dtype.kind != "f":
        raise StatisticsError(f"logits must be floating point, not {array.dtype}")
    if np.isnan(array).any():
        raise StatisticsError("logits hold NaN; leave out the images that failed")
    return np.asarray(array > 0)


def _rates(bits: BoolArray, keys: BoolArray, tau: int, sided: Sided) -> FloatArray:
    """The FPR of each key over all images, ``[keys]``."""
    n, k = bits.shape
    # On -1/+1 the product is matches minus mismatches; float32 holds these integers exactly.
    signs = (2 * keys.T.astype(np.float32)) - 1
    flagged = np.zeros(keys.shape[0], dtype=np.int64)
    rows = max(1, _BLOCK // keys.shape[0])
    for start in range(0, n, rows):
        block = (2 * bits[start : start + rows].astype(np.float32)) - 1
        product = block @ signs
        flagged += np.count_nonzero((np.abs(product) if sided == "two" else product) >= 2 * tau - k, axis=0)
    return np.asarray(flagged / n, dtype=np.float64)


def _key_tail(rates: FloatArray, independent: FloatArray, sources: int, nominal: float) -> dict[str, Any]:
    """The upper part of the distribution over keys.

    Args:
        rates: ``[keys]``, over all images.
        independent: ``[keys]``, over one image per source.
        sources: how many these are.
        nominal: FPR if the null holds.
    """
    from scipy.special import betainc

    flagged = np.arange(1, sources + 1)
    tails = np.concatenate([[1.0], betainc(flagged, sources - flagged + 1, nominal), [0.0]])
    critical = int(np.argmax(tails <= _KEY_ERROR))
    return {
        "key_fpr_quantiles": tuple(np.quantile(rates, (0.5, 0.9, 0.99), method="inverted_cdf").tolist()),
        "keys_above": float(np.mean(np.rint(independent * sources) >= critical)),
        "keys_above_chance": float(tails[critical]),
    }


def _ones(sample: BoolArray) -> dict[str, Any]:
    """Shares of ones with their intervals."""
    n, k = sample.shape
    counts = np.count_nonzero(sample, axis=0).tolist()
    pointwise = {count: clopper_pearson(count, n, _LEVEL) for count in set(counts)}
    together = {count: clopper_pearson(count, n, 1 - (1 - _LEVEL) / k) for count in set(counts)}
    return {
        "ones": tuple(count / n for count in counts),
        "ones_low": tuple(pointwise[count][0] for count in counts),
        "ones_high": tuple(pointwise[count][1] for count in counts),
        "ones_low_all": tuple(together[count][0] for count in counts),
        "ones_high_all": tuple(together[count][1] for count in counts),
        "worst_bias": max(abs(count / n - 0.5) for count in counts),
    }


def _shift(matching: int, bits: int, sided: Sided) -> float:
    if sided == "one":
        return binomial_tail(matching, bits, 0.5)
    return min(1.0, 2 * binomial_tail(max(matching, bits - matching), bits, 0.5))
