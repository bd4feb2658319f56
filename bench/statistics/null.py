"""Is the null true? Bits of unmarked images are tested for being fair and independent, not assumed to be.

Averaged over uniform random keys the FPR is exactly binomial whatever the decoder does, so that average only checks the
code. The risk lies in the key in use and in the tail over keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...core.errors import StatisticsError
from ...core.seeds import Seed
from . import binomial
from .domain import BoolArray, FloatArray, IntArray, boolean
from .intervals import Rate, proportion
from .splits import Sources, one_per_source

_FAMILY_ERROR = 0.01
_BLOCK = 1 << 22
_LEAST_EXPECTED = 5.0


@dataclass(frozen=True, slots=True)
class NullReport:
    """What unmarked images say about the null of fair, independent bits.

    "One image per source" is what tests and diagnostics use; rates use every image.

    Attributes:
        n: unmarked images.
        sources: sources among them.
        k: payload bits.
        alpha: the FPR that was asked for.
        threshold: matching bits from which theory flags an image.
        nominal_fpr: FPR of that threshold if the null holds.
        observed_fpr: FPR of the key in use.
        p_exceeds: exact one-sided binomial test, one image per source, that the observed FPR exceeds the nominal one.
        keys: random keys that were tried.
        key_fpr_mean: mean FPR over them; near ``nominal_fpr`` whatever the decoder does (checks the code only).
        key_fpr_sd: standard deviation over them.
        key_fpr_worst: the worst of them.
        matches_mean: mean number of bits that match the key in use; k/2 under the null.
        matches_sd: its standard deviation between sources.
        overdispersion: ``matches_sd`` over that of fair coins, ``sqrt(k) / 2``.
        ones: share of ones of each bit.
        worst_bias: largest distance of these from 1/2.
        effective_bits: k^2 / sum of squared eigenvalues of the bits' correlation matrix, each squared correlation
            corrected for chance; bits that never change count as none; NaN with two sources.
        p_shift: one-sided exact test that more bits match the key than half.
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
    threshold: int
    nominal_fpr: float
    observed_fpr: Rate
    p_exceeds: float
    keys: int
    key_fpr_mean: float
    key_fpr_sd: float
    key_fpr_worst: float
    matches_mean: float
    matches_sd: float
    overdispersion: float
    ones: tuple[float, ...]
    worst_bias: float
    effective_bits: float
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
) -> NullReport:
    """Tests the null of fair, independent bits on unmarked images.

    Args:
        logits: ``[n, k]``; a bit is 1 where its logit is above 0.
        key: bool ``[k]``, the key in use.
        sources: one for each image, or None where each is its own.
        alpha: the FPR whose threshold is examined.
        keys: random keys to try, at least 2.
        seed: of the random keys and of the pick of one image per source.

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
    tau = binomial.threshold(k, alpha)
    nominal = binomial.fpr(k, tau)
    matches: IntArray = np.count_nonzero(bits == secret, axis=1)
    own, sample = matches[kept], bits[kept]
    rates = _rates(bits, _random_keys(keys, k, seed), tau)
    ones, spread = sample.mean(axis=0), float(own.std(ddof=1))
    effective, p_correlation = _correlation(sample)
    return _judged(
        NullReport(
            n=n,
            sources=kept.size,
            k=k,
            alpha=float(alpha),
            threshold=tau,
            nominal_fpr=nominal,
            observed_fpr=proportion(matches >= tau, sources),
            p_exceeds=_binomial_upper(int(np.count_nonzero(own >= tau)), kept.size, nominal),
            keys=keys,
            key_fpr_mean=float(rates.mean()),
            key_fpr_sd=float(rates.std(ddof=1)),
            key_fpr_worst=float(rates.max()),
            matches_mean=float(own.mean()),
            matches_sd=spread,
            overdispersion=spread / (math.sqrt(k) / 2),
            ones=tuple(ones.tolist()),
            worst_bias=float(np.abs(ones - 0.5).max()),
            effective_bits=effective,
            p_shift=_binomial_upper(int(own.sum()), kept.size * k, 0.5),
            p_dispersion=_chi_square(4 / k * (kept.size - 1) * spread**2, kept.size - 1),
            p_bias=_bias(sample),
            p_correlation=p_correlation,
            p_fit=_fit(own, k),
            holds=True,
            warning="",
        )
    )


def key_spread(logits: npt.ArrayLike, tau: float, keys: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Mean and worst FPR over random keys at the threshold ``tau``.

    Evidence is stored, so unmarked images can be read against as many keys as one likes at no cost.

    Args:
        logits: ``[n, k]`` of unmarked images; a bit is 1 where its logit is above 0.
        tau: matching bits from which an image is flagged.
        keys: how many random keys.
        seed: seed of the keys; the same ones for every call.

    Raises:
        StatisticsError: no image.

    Example:
        >>> mean, worst = key_spread(np.random.default_rng(0).normal(size=(200, 32)), 24)
        >>> mean < 0.01 and worst < 0.1
        True
    """
    bits = _bits(logits)
    rates = _rates(bits, _random_keys(keys, bits.shape[1], seed), math.ceil(tau))
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


def _rates(bits: BoolArray, keys: BoolArray, tau: int) -> FloatArray:
    """The FPR of each key over all images, ``[keys]``."""
    n, k = bits.shape
    # On -1/+1 the product is matches minus mismatches; float32 holds these integers exactly.
    signs = (2 * keys.T.astype(np.float32)) - 1
    flagged = np.zeros(keys.shape[0], dtype=np.int64)
    rows = max(1, _BLOCK // keys.shape[0])
    for start in range(0, n, rows):
        block = (2 * bits[start : start + rows].astype(np.float32)) - 1
        flagged += np.count_nonzero(block @ signs >= 2 * tau - k, axis=0)
    return np.asarray(flagged / n, dtype=np.float64)


def _binomial_upper(successes: int, n: int, share: float) -> float:
    """``P(X >= successes)`` for ``X ~ Binomial(n, share)``."""
    from scipy.special import betainc

    return 1.0 if successes == 0 else float(betainc(successes, n - successes + 1, share))


def _chi_square(statistic: float, df: float) -> float:
    from scipy.special import gammaincc

    return float(gammaincc(df / 2, statistic / 2))


def _bias(sample: BoolArray) -> float:
    n, k = sample.shape
    counts = np.count_nonzero(sample, axis=0)
    together = _chi_square(float((((2 * counts - n) ** 2) / n).sum()), k)
    farthest = int(np.maximum(counts, n - counts).max())
    alone = 2 * k * _binomial_upper(farthest, n, 0.5)
    return float(min(1.0, 2 * min(together, alone)))


def _correlation(sample: BoolArray) -> tuple[float, float]:
    """Effective number of bits, and the p-value of all pairwise correlations together.

    Unrelated bits have ``E[r**2] = 1 / (n - 1)`` in a sample of n, whatever their bias: 120 images would make 48 fair
    bits look like 34. So r**2 is taken as ``((n - 1) r**2 - 1) / (n - 2)``, which keeps 1 and brings chance to 0.
    """
    n = sample.shape[0]
    centred = sample - sample.mean(axis=0)
    scale = np.sqrt((centred**2).sum(axis=0))
    varying = scale > 0
    k = int(np.count_nonzero(varying))
    if k < 2:
        return float(k), 1.0
    if n < 3:
        return math.nan, 1.0
    unit = centred[:, varying] / scale[varying]
    # The sum of squared eigenvalues is the squared Frobenius norm, and the smaller Gram matrix has the same one.
    gram = unit.T @ unit if k <= n else unit @ unit.T
    pairs = max(float((gram**2).sum()) - k, 0.0)
    corrected = ((n - 1) * pairs - k * (k - 1)) / (n - 2)
    effective = k**2 / (k + max(corrected, 0.0))
    return effective, _chi_square((n - 1) * pairs / 2, k * (k - 1) / 2)


def _fit(matches: IntArray, k: int) -> float:
    """Chi-square test against Binomial(k, 1/2); neighbouring cells are pooled until each expects 5."""
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
    return _chi_square(float(((seen - pooled) ** 2 / pooled).sum()), len(starts) - 1)
