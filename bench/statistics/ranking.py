"""Ranks: of attacks against one method (WAVES), and of methods, with intervals that cover.

Attacks are ranked by their curves of quality lost against performance left, after An et al. (ICML 2024).

Methods are ranked by their mean detection rate over cells. A rank's interval is ``[1 + methods that are significantly
better, m - methods that are significantly worse]`` (Al Mohamad et al. 2022, Mogstad et al. 2024), from comparisons in
pairs on the same sources with the error of all pairs held together, see :func:`rank_methods`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...core.errors import StatisticsError
from ...core.seeds import Seed
from .degradation import agreed, at_performance
from .domain import BoolArray, FloatArray, IntArray, open_unit
from .intervals import clopper_pearson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .degradation import Curve

_FLIPS = 4999
_BLOCK = 1 << 22
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class RankedAttack:
    """An attack's place among the attacks against one method; rank 1 is the most potent.

    Attributes:
        attack: its name.
        at_high: quality lost where performance falls to the higher target; +inf: it never does; -inf: already below.
        at_low: the same for the lower target.
        mean_performance: mean over strengths.
        mean_degradation: mean over strengths.
        ranks: of these four, ascending; equals and near-equals share a rank.
        rank: by ``ranks``, the first that differs decides.
        task: what the performance measures.
        score: the name of the degradation.
    """

    attack: str
    at_high: float
    at_low: float
    mean_performance: float
    mean_degradation: float
    ranks: tuple[int, int, int, int]
    rank: int
    task: str
    score: str


@dataclass(frozen=True, slots=True)
class Ranked:
    """A method's place among methods; rank 1 is the best.

    Attributes:
        name: of the method.
        value: mean over cells and sources, every cell weighing the same; NaN without a rank.
        low: lower end of its interval, for this method alone; NaN without a rank.
        high: upper end.
        rank: 1 + the number of methods with a larger value; None if the row is incomplete.
        rank_low: the best rank that the comparisons leave open.
        rank_high: the worst. All methods' intervals hold together at the level.
        group: 1, 2, ...; methods whose rank intervals overlap share a group, also through others.
        note: why there is no rank, or what else a reader must know; empty if nothing.
        sources: sources behind it.
        cells: cells behind it.
        level: nominal coverage.
    """

    name: str
    value: float
    low: float
    high: float
    rank: int | None
    rank_low: int | None
    rank_high: int | None
    group: int | None
    note: str
    sources: int
    cells: int
    level: float


def rank_attacks(
    curves: Mapping[str, Curve], targets: tuple[float, float] = (0.95, 0.7), tie: float = 0.01
) -> list[RankedAttack]:
    """Ranks attacks against one method as WAVES does: lexicographic on the ranks of four columns, all ascending.

    The columns: degradation at the higher target, at the lower target, mean performance, mean degradation. Values
    within ``tie`` of their predecessor in sorted order share its rank, so a chain of near-equals is one rank; equal
    infinities tie. The next rank counts all that went before.

    Args:
        curves: by attack.
        targets: the higher and the lower performance; (0.95, 0.7) for detection, (0.7, 0.4) for identification among a
            million users.
        tie: at least 0.

    Returns:
        Best rank first; attacks of equal rank in the order of ``curves``.

    Raises:
        StatisticsError: there is no curve, curves differ in task or score, or an argument is out of range.

    Example:
        >>> from waterproof.bench.statistics.degradation import Curve
        >>> weak, strong = Curve((0.2, 0.4), (1.0, 0.9), "detection"), Curve((0.2, 0.4), (0.9, 0.3), "detection")
        >>> [(row.attack, row.rank, round(row.at_low, 3)) for row in rank_attacks({"blur": weak, "crop": strong})]
        [('crop', 1, 0.267), ('blur', 2, inf)]
    """
    task, score = agreed(list(curves.values()))
    if not targets[0] > targets[1]:
        raise StatisticsError(f"the targets are {targets[0]:g} and {targets[1]:g}; give the higher one first")
    if not tie >= 0:
        raise StatisticsError(f"tie is {tie:g}; it must be at least 0")
    table = [_columns(curve, targets) for curve in curves.values()]
    ranks = [_tied_ranks([row[column] for row in table], tie) for column in range(4)]
    owns = [(ranks[0][j], ranks[1][j], ranks[2][j], ranks[3][j]) for j in range(len(table))]
    rows = [
        RankedAttack(attack, *row, own, 1 + sum(other < own for other in owns), task, score)
        for attack, row, own in zip(curves, table, owns, strict=True)
    ]
    return sorted(rows, key=lambda row: row.rank)


def rank_methods(values: Mapping[str, npt.ArrayLike], level: float = 0.95, seed: int = 0) -> list[Ranked]:
    """Ranks methods by their mean over cells, with intervals of the ranks that hold together at ``level``.

    All pairs of methods are compared by their differences on the same sources: the self-normalised sum against joint
    random sign flips of whole sources (a wild bootstrap), step-down over pairs (Romano and Wolf 2005). Sign flips are
    exact where equal methods are exchangeable. Where one method fails altogether on a few sources and an equal one
    fails a little on all, a sample can miss those few and no resample can show them; therefore each difference must
    also survive one more source, unseen, that speaks against it as strongly as a source can.

    Coverage of all true ranks together in 2,000 simulations, ties included, nominal 95 %: the lowest of 12 designs with
    3 to 6 methods (1 cell at rates .3 to .995; 12 cells; such rare failures on 2 to 10 % of the sources):

    ==================================  ==========  ==========  ===========  ===========
    intervals                           20 sources  50 sources  200 sources  600 sources
    ==================================  ==========  ==========  ===========  ===========
    percentile bootstrap of the ranks   0.0 %       0.2 %       1.8 %        1.6 %
    pairs: bootstrap max-t              66.8 %      83.8 %      95.2 %       94.2 %
    pairs: paired t, Holm               16.7 %      42.0 %      85.2 %       92.5 %
    pairs: sign flips                   15.8 %      41.1 %      82.0 %       90.9 %
    the same, one unseen source (here)  99.7 %      98.0 %      95.8 %       96.3 %
    ==================================  ==========  ==========  ===========  ===========

    The bootstrap of ranks fails because equal methods have no single rank for it to find. The unseen source costs power
    with few sources and next to nothing with many.

    Args:
        values: by method, float or bool ``[sources, cells]`` in 0..1, the same sources and cells for all, higher is
            better: whether a source's image is flagged in a cell, or the share of its images. NaN where missing; such a
            method is listed without a rank and takes no part.
        level: nominal coverage of the rank intervals together, and of each value's own interval.
        seed: of the sign flips.

    Returns:
        Best first, equal values by name; then the methods without a rank. Whether payload and resolution are equal is
        for the caller to say.

    Raises:
        StatisticsError: there is no method, source or cell, shapes differ, or a value lies outside 0..1.

    Example:
        >>> good, bad = np.ones((40, 3)), np.zeros((40, 3))
        >>> [(row.name, row.rank, row.group) for row in rank_methods({"bad": bad, "good": good})]
        [('good', 1, 1), ('bad', 2, 2)]
    """
    open_unit(level, "level")
    tables = _tables(values)
    sources, cells = next(iter(tables.values())).shape
    whole = sorted(name for name, table in tables.items() if not np.isnan(table).any())
    means = np.array([tables[name].mean(axis=1) for name in whole]).reshape(len(whole), sources)
    total = means.mean(axis=1)
    better = _better(means, 1 - level, seed)
    best, worst = 1 + better.sum(axis=0), len(whole) - better.sum(axis=1)
    places = [1 + int(np.count_nonzero(total > own + _ROUNDING)) for own in total]
    order = sorted(range(len(whole)), key=lambda j: places[j])
    groups = _groups(best[order], worst[order])
    note = ""
    if len(whole) > 1 and 2.0 ** (1 - sources) > 1 - level:
        note = f"{sources} source{'s are' if sources > 1 else ' is'} too few to tell any two methods apart"
    ranked = [
        Ranked(
            whole[j],
            float(total[j]),
            *_interval(means[j], level),
            places[j],
            int(best[j]),
            int(worst[j]),
            group,
            note,
            sources,
            cells,
            level,
        )
        for j, group in zip(order, groups, strict=True)
    ]
    return ranked + [_unranked(name, table, level) for name, table in sorted(tables.items()) if name not in whole]


def _columns(curve: Curve, targets: tuple[float, float]) -> tuple[float, float, float, float]:
    high, low = (at_performance(curve, target) for target in targets)
    return high, low, curve.mean_performance, curve.mean_degradation


def _tied_ranks(column: Sequence[float], tie: float) -> list[int]:
    ranks = [0] * len(column)
    before = -1
    for position, index in enumerate(sorted(range(len(column)), key=lambda i: column[i])):
        # Equal infinities have no difference; and 0.31 is within 0.01 of 0.3, whatever the last bit says.
        near = before >= 0 and (column[index] == column[before] or column[index] - column[before] <= tie + _ROUNDING)
        ranks[index] = ranks[before] if near else position + 1
        before = index
    return ranks


def _tables(values: Mapping[str, npt.ArrayLike]) -> dict[str, FloatArray]:
    if not values:
        raise StatisticsError("there is no method to rank; at least one is needed")
    tables: dict[str, FloatArray] = {}
    for name, array in values.items():
        table = np.asarray(array, dtype=np.float64)
        if table.ndim != 2 or not table.size:
            raise StatisticsError(f"{name}: values must be an array [sources, cells], not {list(table.shape)}")
        first = next(iter(tables), name)
        if tables and table.shape != tables[first].shape:
            raise StatisticsError(
                f"{name} has {table.shape[0]} sources and {table.shape[1]} cells, {first} has "
                f"{tables[first].shape[0]} and {tables[first].shape[1]}; rank methods on the same ones only"
            )
        if np.any((table < 0) | (table > 1)):
            raise StatisticsError(f"{name}: values lie in 0..1; there are {np.nanmin(table):g} to {np.nanmax(table):g}")
        tables[name] = table
    return tables


def _unranked(name: str, table: FloatArray, level: float) -> Ranked:
    lacking = int(np.count_nonzero(np.isnan(table)))
    note = f"incomplete: {lacking} of {table.size} values are missing"
    sources, cells = table.shape
    return Ranked(name, math.nan, math.nan, math.nan, None, None, None, None, note, sources, cells, level)


def _interval(means: FloatArray, level: float) -> tuple[float, float]:
    """Clopper-Pearson on the effective sample size, as :func:`.intervals.proportion` has it for flags.

    The effect of averaging over cells is estimated from the scatter of the sources' means, and averaged with none at
    all, which counts as one source that shows both outcomes. With one cell of flags it is plain Clopper-Pearson. It
    covers 94 to 100 % in simulations with 20 to 600 sources and 1 to 20 cells, also with rates near 1 and with failures
    of whole sources, where the studentised bootstrap covers as little as 10 to 60 % with 20 sources.
    """
    share = float(means.mean())
    size = float(means.size)
    if means.size > 1 and 0 < share < 1:
        informative = min(np.count_nonzero(means > 0), np.count_nonzero(means < 1))
        effect = float(means.var(ddof=1)) / (share * (1 - share))
        size /= min(1.0, (informative * effect + 1) / (informative + 1))
    return clopper_pearson(share * size, size, level)


def _better(means: FloatArray, alpha: float, seed: int) -> BoolArray:
    """Which method is significantly better than which: bool ``[m, m]``, row better than column.

    Args:
        means: ``[m, sources]``.
        alpha: the chance of any wrong entry.
        seed: of the sign flips.
    """
    count = means.shape[0]
    better = np.zeros((count, count), dtype=np.bool_)
    first, second = np.triu_indices(count, 1)
    if not first.size:
        return better
    gaps = means[first] - means[second]
    gaps[np.abs(gaps) < _ROUNDING] = 0
    sums, squares = gaps.sum(axis=1), (gaps**2).sum(axis=1)
    # The unseen source: it lies at the end of the range, on the other side.
    strength = np.maximum(np.abs(sums) - 1, 0) / np.sqrt(squares + 1)
    order = np.argsort(-strength, kind="stable")
    units = gaps[order] / np.sqrt(np.maximum(squares[order], _ROUNDING))[:, None]
    significant = _adjusted(units, strength[order], seed) <= alpha
    for pair in order[significant]:
        winner, loser = (first, second) if sums[pair] > 0 else (second, first)
        better[winner[pair], loser[pair]] = True
    return better


def _adjusted(units: FloatArray, strength: FloatArray, seed: int) -> FloatArray:
    """Step-down p-values of pairs, strongest first.

    Args:
        units: ``[pairs, sources]``, differences of norm 1.
        strength: ``[pairs]``, descending.
        seed: of the sign flips.
    """
    sources = units.shape[1]
    draws = Seed.root(seed).child("ranks", sources).numpy()
    exceeded = np.zeros(strength.size, dtype=np.int64)
    rows = max(1, _BLOCK // max(sources, strength.size))
    for start in range(0, _FLIPS, rows):
        signs = 2.0 * draws.integers(0, 2, size=(min(rows, _FLIPS - start), sources), dtype=np.int8) - 1
        # A pair is judged against the largest of itself and all weaker ones: the stronger are settled before it.
        largest = np.maximum.accumulate(np.abs(signs @ units.T)[:, ::-1], axis=1)[:, ::-1]
        exceeded += np.count_nonzero(largest >= strength - 1e-9, axis=0)
    return np.maximum.accumulate((1 + exceeded) / (1 + _FLIPS))


def _groups(best: IntArray, worst: IntArray) -> list[int]:
    """Numbers the runs of overlapping intervals; methods come best first, and such runs follow that order.

    They must: were a method of a later run not below one of an earlier run, some third method would be significantly
    below the one and above the other.
    """
    groups: list[int] = []
    for index in range(best.size):
        apart = index > 0 and best[index:].min() > worst[:index].max()
        groups.append(1 if not groups else groups[-1] + int(apart))
    return groups
