"""The key-free diagnostic: how many bits do unmarked images share with each other?

Under the null the matching bits of two images follow Binomial(k, 1/2), and no key is involved. A million pairs of 1,500
images are still 1,500 images, so every interval comes from leaving out one source at a time.

What simulation decided: 15, 50 and 150 sources, 32 and 48 bits, nine laws of the bits (fair, equally correlated,
identical, biased, with a common share of ones, clusters of alike images), nominal 95 %, lowest coverage of all:

=====================================================================  ==========  ===============  ==========
interval                                                               mean share  over-dispersion  tail share
=====================================================================  ==========  ===============  ==========
Student's t, jackknife, at least the variance of uncorrelated pairs    84 %        75 %             1 %
the same, upper end as :func:`.correlation.ends`                       97 %        95 %             .
Clopper-Pearson on the effective number of pairs, see :func:`_tail`    .           .                96 %
=====================================================================  ==========  ===============  ==========

With fair bits the statistics are degenerate: the part that the jackknife measures vanishes, and it takes in twice the
part that is left, so intervals are too wide there (99 %). Where bits are fair but far from independent it can measure
almost nothing by chance (80 % coverage); the variance of uncorrelated pairs bounds it from below. And it is smallest
just when the statistic came out too small; the upper end pays for that. With fewer than 15 sources nothing covered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...core.errors import StatisticsError
from . import binomial
from .correlation import ends, top_of_products
from .domain import BoolArray, FloatArray, IntArray, Sided, open_unit, sidedness
from .intervals import Rate, clopper_pearson
from .matching import Words, pack
from .null_tests import chi_square_tail
from .splits import Sources, source_codes

if TYPE_CHECKING:
    from collections.abc import Callable

_FAMILY_ERROR = 0.01
_FEWEST_SOURCES = 15
_CELLS = 1 << 19


@dataclass(frozen=True, slots=True)
class PairReport:
    """What pairs of unmarked images of different sources say about the null of fair, independent bits.

    Attributes:
        n: unmarked images.
        sources: sources among them.
        k: payload bits.
        alpha: the FPR that was asked for.
        sided: whether many matching bits count, or few as well.
        threshold: matching bits from which theory flags an image.
        nominal_fpr: FPR of that threshold if the null holds.
        pairs: pairs of images of different sources.
        histogram: int64 ``[k + 1]``, how many of them share 0, 1, ..., k bits.
        share: mean share of matching bits; 1/2 under the null, never less for any law of the bits.
        overdispersion: root mean square distance of the matching bits from k/2, over that of fair coins,
            ``sqrt(k) / 2``; 1 under the null, never less. ``k / overdispersion ** 2`` bits would scatter as much.
        tail: share of pairs at the threshold; ``nominal_fpr`` under the null. It is the FPR of an owner who takes
            another image's bits for a key.
        p_share: one-sided test that pairs share more than half of the bits, for as many independent bits as the
            over-dispersion leaves, so that fair but correlated bits pass (all but 1 %).
        p_dispersion: one-sided test of the over-dispersion.
        p_tail: one-sided test that more pairs reach the threshold than ``nominal_fpr``.
        holds: no test rejects, at 1 % for the three together. With few sources it says "not refuted", no more.
        warning: one sentence, empty if it holds.
    """

    n: int
    sources: int
    k: int
    alpha: float
    sided: Sided
    threshold: int
    nominal_fpr: float
    pairs: int
    histogram: IntArray = field(compare=False, repr=False)
    share: Rate
    overdispersion: Rate
    tail: Rate
    p_share: float
    p_dispersion: float
    p_tail: float
    holds: bool
    warning: str


@dataclass(frozen=True, slots=True)
class _Estimate:
    """A mean over pairs.

    ``variance`` is the jackknife's, or that of uncorrelated pairs where it is larger.
    """

    value: float
    variance: float


def pair_matches(
    bits: npt.ArrayLike, sources: Sources, alpha: float, sided: Sided = "one", level: float = 0.95
) -> PairReport:
    """Compares the decoded bits of all pairs of unmarked images of different sources.

    Args:
        bits: bool ``[n, k]``, decoded from unmarked images.
        sources: one for each image, or None where each is its own.
        alpha: the FPR whose threshold is examined.
        sided: ``"two"`` counts pairs with as few matching bits as well.
        level: nominal coverage of the intervals; with fewer than 15 sources they are empty (NaN ends).

    Raises:
        StatisticsError: ``bits`` is no boolean ``[n, k]``, there are fewer than two sources, or k bits cannot express
            ``alpha``.

    Example:
        >>> coins = np.random.default_rng(0).random((400, 48)) < 0.5
        >>> report = pair_matches(coins, None, 1e-2)
        >>> report.pairs, report.holds
        (79800, True)
    """
    words, array = pack(bits), np.asarray(bits)
    n, k = array.shape
    open_unit(level, "level")
    tau = binomial.threshold(k, alpha, sidedness(sided))
    codes = source_codes(sources, n)
    order = np.argsort(codes, kind="stable")
    codes, words, signs = codes[order], words[order], 2.0 * array[order] - 1.0
    sizes = np.bincount(codes).astype(np.float64)
    if sizes.size < 2:
        raise StatisticsError(f"pairs of images need at least 2 sources, there is {sizes.size}")
    counts = np.arange(k + 1)
    flags = (counts >= tau) | ((counts <= k - tau) if sided == "two" else False)
    histogram, hits = _matches(words, sizes.astype(np.int64), flags)
    law = histogram / histogram.sum()
    # In units in which both estimate the squared length of a mean vector, of the signs and of their products.
    excess = (2 * counts - k, (2 * counts - k) ** 2 - k)
    linear = _jackknifed(_row_sums(signs, codes, 1), sizes, excess[0], law)
    square = _jackknifed(_row_sums(signs, codes, 2), sizes, excess[1], law)
    reached = _jackknifed(hits, sizes, flags.astype(np.float64), law)
    lengths = ((linear, k), (square, k * (k - 1)))
    mean, scatter = (
        _interval(estimate, signs, codes, power, limit, level) for power, (estimate, limit) in enumerate(lengths, 1)
    )
    nominal, loss = binomial.fpr(k, tau, sided), max(1.0, 1 + square.value / k)
    return _judged(
        PairReport(
            n=n,
            sources=sizes.size,
            k=k,
            alpha=float(alpha),
            sided=sided,
            threshold=tau,
            nominal_fpr=nominal,
            pairs=int(histogram.sum()),
            histogram=histogram,
            share=_mapped(mean, lambda x: 0.5 + x / (2 * k)),
            overdispersion=_mapped(scatter, lambda x: math.sqrt(1 + x / k)),
            tail=_tail(reached, hits, sizes, n, level),
            p_share=_degenerate(linear.value / math.sqrt(k * loss), k / loss, sizes),
            p_dispersion=_scatter_test(square.value, k, sizes),
            p_tail=_tail_test(reached.value, nominal, k, sizes),
            holds=True,
            warning="",
        )
    )


def _matches(words: Words, sizes: IntArray, flags: BoolArray) -> tuple[IntArray, FloatArray]:
    """Histogram of the matches of all pairs of different sources, and how many flagged ones each source is in.

    Args:
        words: ``[n, words]``, sorted by source.
        sizes: ``[m]``, images of each source.
        flags: ``[k + 1]``, which numbers of matches are flagged.
    """
    histogram, hits = _all_pairs(words, flags)
    starts = np.cumsum(sizes) - sizes
    by_source = np.add.reduceat(hits, starts)
    for source in np.flatnonzero(sizes > 1):
        start = starts[source]
        inner, own = _all_pairs(words[start : start + sizes[source]], flags)
        histogram -= inner
        by_source[source] -= own.sum()
    return histogram, by_source.astype(np.float64)


def _all_pairs(words: Words, flags: BoolArray) -> tuple[IntArray, IntArray]:
    """Histogram of the matches of all pairs, and the number of flagged pairs that each image is in: ``[n]``."""
    n, bits = words.shape[0], flags.size
    by_distance = flags[::-1]
    histogram, hits = np.zeros(bits, dtype=np.int64), np.zeros(n, dtype=np.int64)
    rows = max(1, _CELLS // n)
    for start in range(0, n, rows):
        end = min(n, start + rows)
        distance = np.zeros((end - start, n - start), dtype=np.uint8 if bits <= 256 else np.uint32)
        for column in words.T:
            distance += np.bitwise_count(column[start:end, None] ^ column[None, start:])
        reached = by_distance[distance]
        hits[start:end] += np.count_nonzero(reached, axis=1) - int(by_distance[0])
        hits[end:] += np.count_nonzero(reached[:, end - start :], axis=0)
        histogram += np.bincount(distance.ravel(), minlength=bits)
        # The block's own square holds each of its pairs twice, and each image with itself.
        square = np.bincount(distance[:, : end - start].ravel(), minlength=bits)
        square[0] += end - start
        histogram -= square // 2
    return histogram[::-1].copy(), hits


def _row_sums(signs: FloatArray, codes: IntArray, power: int) -> FloatArray:
    """Sum over the pairs that each source is in of ``2 M - k``, or of ``(2 M - k) ** 2 - k``; whole numbers, exact."""
    n, k = signs.shape
    sizes = np.bincount(codes)
    starts = np.cumsum(sizes) - sizes
    own = np.add.reduceat(signs, starts, axis=0)
    if power == 1:
        return np.asarray((own * (own.sum(axis=0) - own)).sum(axis=1))
    with_all = np.add.reduceat(((signs @ (signs.T @ signs)) * signs).sum(axis=1), starts)
    within = np.full(sizes.size, float(k * k))
    for source in np.flatnonzero(sizes > 1):
        part = signs[starts[source] : starts[source] + sizes[source]]
        within[source] = ((part.T @ part) ** 2).sum()
    return np.asarray(with_all - within - float(k) * sizes * (n - sizes))


def _jackknifed(rows: FloatArray, sizes: FloatArray, kernel: npt.NDArray[np.generic], law: FloatArray) -> _Estimate:
    """The mean of a kernel over the pairs.

    Args:
        rows: ``[m]``, its sum over the pairs that each source is in.
        sizes: ``[m]``, images of each source.
        kernel: ``[k + 1]``, its value at each number of matches.
        law: ``[k + 1]``, share of pairs with that number.
    """
    m, n = sizes.size, sizes.sum()
    each = sizes * (n - sizes)
    pairs, total = each.sum() / 2, rows.sum() / 2
    value = float(total / pairs)
    if m < 3:
        return _Estimate(value, math.nan)
    left_out = (total - rows) / (pairs - each)
    centred = left_out - left_out.mean()
    scatter = max(0.0, float(law @ (kernel.astype(np.float64) - value) ** 2))
    return _Estimate(value, max((m - 1) / m * float(centred @ centred), scatter / _worth(sizes)))


def _worth(sizes: FloatArray) -> float:
    """How many uncorrelated pairs the pairs are worth, were the images of each source copies of one."""
    n = sizes.sum()
    pairs = (n**2 - (sizes**2).sum()) / 2
    return float(2 * pairs**2 / ((sizes**2).sum() ** 2 - (sizes**4).sum()))


def _slope(signs: FloatArray, codes: IntArray, power: int) -> float:
    """How fast the variance of an estimate can grow with the squared length that it estimates."""
    sizes = np.bincount(codes)
    n = float(codes.size)
    pairs = (n**2 - float((sizes.astype(np.float64) ** 2).sum())) / 2
    if power == 2:
        return top_of_products(signs, codes) * n**2 / pairs**2
    own = np.add.reduceat(signs, np.cumsum(sizes) - sizes, axis=0) - sizes[:, None] * signs.mean(axis=0)
    return float(np.linalg.eigvalsh(own.T @ own)[-1]) * n**2 / pairs**2


def _interval(estimate: _Estimate, signs: FloatArray, codes: IntArray, power: int, limit: float, level: float) -> Rate:
    """The squared length with its interval."""
    n, m = codes.size, int(codes[-1]) + 1
    if m < _FEWEST_SOURCES:
        return Rate(estimate.value, math.nan, math.nan, n, m, f"none: fewer than {_FEWEST_SOURCES} sources", level)
    both = ends(estimate.value, estimate.variance, _slope(signs, codes, power), m, limit, level)
    return Rate(estimate.value, *both, n, m, "Student's t, jackknife over sources, upper end widened", level)


def _mapped(rate: Rate, to: Callable[[float], float]) -> Rate:
    return Rate(to(rate.value), to(rate.low), to(rate.high), rate.n, rate.sources, rate.method, rate.level)


def _student(df: float, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - (1 - level) / 2))


def _tail(estimate: _Estimate, hits: FloatArray, sizes: FloatArray, n: int, level: float) -> Rate:
    """Clopper-Pearson on the effective number of pairs.

    A mean over all pairs scatters no more than one over ``m / 2`` pairs without a common source (Hoeffding 1963), and
    that is all that is known where no pair, or every pair, reaches the threshold. Where few sources do, the design
    effect of the jackknife comes out too small by chance; it is averaged with that worst case, which counts as one
    source.
    """
    m, x = sizes.size, estimate.value
    if m < 3:
        return Rate(x, math.nan, math.nan, n, m, "none: fewer than 3 sources", level)
    pairs, fewest = _worth(sizes), n**2 / float((sizes**2).sum()) / 2
    size = fewest
    if 0 < x < 1:
        effect = max(1.0, estimate.variance * pairs / (x * (1 - x)))
        informative = min(np.count_nonzero(hits > 0), np.count_nonzero(hits < sizes * (n - sizes)))
        effect = (informative * effect + max(effect, pairs / fewest)) / (informative + 1)
        size = min(pairs, pairs / effect * (_student(max(pairs - 1, 1), level) / _student(m - 1, level)) ** 2)
    name = "Clopper-Pearson on the effective number of pairs"
    return Rate(x, *clopper_pearson(x * size, size, level), n, m, name, level)


def _degenerate(excess: float, df: float, sizes: FloatArray, skewness: float = 0.0) -> float:
    """P-value under fair coins of a mean over pairs: there it is a weighted sum of squares of sums over the images.

    Args:
        excess: over its mean, in standard deviations of a single pair.
        df: how many such sums there are.
        sizes: images of each source, taken for copies of one.
        skewness: of a single pair.
    """
    pairs = _worth(sizes)
    freedom = 8 / (math.sqrt(8 / df) + skewness / math.sqrt(pairs)) ** 2
    return chi_square_tail(max(0.0, freedom + math.sqrt(2 * freedom * pairs) * excess), freedom)


def _scatter_test(excess: float, k: int, sizes: FloatArray) -> float:
    """P-value of the mean of ``(2 M - k) ** 2 - k``, from its moments under fair coins."""
    if k < 2:
        return 1.0
    deviation = math.sqrt(2 * k * (k - 1))
    return _degenerate(excess / deviation, k * (k - 1) // 2, sizes, 4 * (k - 2) / deviation)


def _tail_test(share: float, nominal: float, k: int, sizes: FloatArray) -> float:
    """P-value of the share of pairs at the threshold: rare pairs come as Poisson's, frequent ones as in the mean."""
    from scipy.special import gammainc

    if share <= 0:
        return 1.0
    pairs, deviation = _worth(sizes), math.sqrt(nominal * (1 - nominal))
    frequent = _degenerate((share - nominal) / deviation, k, sizes, (1 - 2 * nominal) / deviation)
    return max(frequent, float(gammainc(share * pairs, nominal * pairs)))


def _judged(report: PairReport) -> PairReport:
    """The same report with its verdict."""
    r = report
    findings = (
        (r.p_share, f"two of them share {r.share.value:.1%} of their bits on average instead of half"),
        (r.p_dispersion, f"the matching bits scatter {r.overdispersion.value:.2f} times as much as fair coins"),
        (r.p_tail, f"{r.tail.value:.2g} of the pairs reach the threshold where theory says {r.nominal_fpr:.2g}"),
    )
    failed = [text for p, text in findings if p * len(findings) < _FAMILY_ERROR]
    if not failed:
        return report
    warning = f"Unmarked images of different sources ({r.sources}) resemble each other: {'; '.join(failed)}."
    return replace(report, holds=False, warning=warning)
