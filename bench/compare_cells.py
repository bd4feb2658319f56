"""One cell before and after: which of its images both runs have, and the paired test of each quantity."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..core.errors import StatisticsError
from .statistics import paired, thresholds
from .summary import Decided, Sample, deployed_threshold, flagged, folded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .results import Run
    from .statistics.paired import Change
    from .statistics.thresholds import Threshold

Outcome = Literal[
    "regression",
    "newly failing",
    "vanished",
    "not comparable",
    "undecided",
    "small change",
    "improvement",
    "equivalent",
    "identical",
    "added",
]
"""What is said of a cell, the worst first."""

OUTCOMES: tuple[Outcome, ...] = Outcome.__args__  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Judged:
    """One quantity of one method under one attack, before and after.

    Attributes:
        method: label in the base run, or in the new one if it was added.
        attack: label of the attack.
        family: its family.
        quantity: ``tpr``, ``fpr``, ``auc``, ``bit_accuracy``, a metric's label, or ``cell`` for the cell as a whole.
        outcome: the verdict.
        base: value in the base run.
        new: value in the new run.
        change: new minus base, with interval and one-sided p-values; None where nothing was tested.
        margin: what counts as large.
        p_worse: Holm-adjusted p-value that the new run is worse.
        p_better: the same that it is better.
        better: whether ``higher`` or ``lower`` is better.
        note: what else a reader must know.
    """

    method: str
    attack: str
    family: str
    quantity: str
    outcome: Outcome
    base: float | None = None
    new: float | None = None
    change: Change | None = None
    margin: float = math.nan
    p_worse: float = math.nan
    p_better: float = math.nan
    better: str = "higher"
    note: str = ""


Thresholds = dict[tuple[str, str], paired.PairedThresholds]
"""The thresholds of two runs, made once for a pair of methods."""


@dataclass(frozen=True, slots=True)
class _Side:
    """One run's half of a cell."""

    run: Run
    method: str
    marked: Sample
    unmarked: Sample


def compared_cell(
    base: Run, new: Run, old: str, other: str, blank: Judged, wanted: list[str], known: Thresholds
) -> Iterator[Judged]:
    """What becomes of one cell: rows for what fails, is gone or was compared.

    Args:
        base: the base run.
        new: the new run.
        old: the method's label in the base.
        other: its label in the new run.
        blank: a row with the cell's names, to be filled.
        wanted: the quantities to judge.
        known: calibrated thresholds of earlier cells; filled here.
    """
    before, after = (
        _Side(run, name, *(run.sample(name, blank.attack, arm) for arm in ("marked", "unmarked")))
        for run, name in ((base, old), (new, other))
    )
    if not (len(before.marked.values) or len(before.unmarked.values)):
        yield replace(blank, note=f"the base run has nothing here: {before.marked.reason}")
        return
    for arm in ("marked", "unmarked"):
        a, b = getattr(before, arm), getattr(after, arm)
        lost = len(set(a.images) - set(b.images))
        if lost and b.status in ("skipped", "missing", "unplanned"):
            yield replace(blank, outcome="vanished", note=f"{arm} images: {b.reason}")
        elif lost:
            note = f"{lost} of {b.planned} {arm} images fail that did not before: {b.reason}"
            yield replace(blank, outcome="newly failing", note=note)
    yield from _compared(before, after, blank, wanted, known)


def _compared(before: _Side, after: _Side, blank: Judged, wanted: list[str], known: Thresholds) -> Iterator[Judged]:
    """The quantities that both runs measured."""
    level = before.run.decision().level
    for arm, name, better in (("marked", "tpr", "higher"), ("unmarked", "fpr", "lower")):
        if name in wanted:
            yield from _rate(before, after, arm, replace(blank, quantity=name, better=better), known)
    a, b = _common(before.marked, after.marked)
    if "auc" in wanted:
        c, d = _common(before.unmarked, after.unmarked)
        if min(len(a.values), len(c.values)) > 1:
            yield _area((a, c), (b, d), replace(blank, quantity="auc"), before.run.decision())
    if "bit_accuracy" in wanted and a.bits and b.bits and len(a.values):
        pair = a.values / a.bits, b.values / b.bits
        note = f"payload {a.bits} -> {b.bits} bits" if a.bits != b.bits else ""
        yield _mean(level, replace(blank, quantity="bit_accuracy", note=note), *pair, a.sources, (0.0, 1.0))
    if blank.family == "none":
        yield from _qualities(before, after, blank, wanted)


def _area(old: tuple[Sample, Sample], new: tuple[Sample, Sample], blank: Judged, decided: Decided) -> Judged:
    """The area under the attack-matched ROC; scores as the decision reads them."""
    scores = [[folded(s.values, s.bits, decided.sided) for s in side] for side in (old, new)]
    sources = [s.sources for s in old]
    try:
        (a, c), (b, d) = scores
        change = paired.auc_change(a, c, b, d, sources[0], sources[1], decided.level)
    except StatisticsError as error:
        return replace(blank, note=str(error))
    return replace(blank, change=change, base=paired.area(a, c), new=paired.area(b, d))


def _common(a: Sample, b: Sample) -> tuple[Sample, Sample]:
    """The test images that both have, in the same order."""
    return _images_of(a, b, a.test), _images_of(b, a, b.test)


def _images_of(mine: Sample, other: Sample, which: np.ndarray) -> Sample:
    keep = which & np.isin(mine.images.astype(str), other.images.astype(str))
    # Both are in the order of the image list, which is the same.
    return replace(
        mine,
        images=mine.images[keep],
        sources=mine.sources[keep],
        test=mine.test[keep],
        values=mine.values[keep],
        logits=None,
    )


def _rate(before: _Side, after: _Side, arm: str, blank: Judged, known: Thresholds) -> Iterator[Judged]:
    a, b = _common(getattr(before, arm), getattr(after, arm))
    if not len(a.values):
        return
    decided = before.run.decision().of(a.bits)
    try:
        limits = [deployed_threshold(side.run, side.method, decided) for side in (before, after)]
    except StatisticsError as error:
        yield replace(blank, note=str(error))
        return
    flags = [flagged(s.values, s.bits, t) for s, t in zip((a, b), limits, strict=True)]
    blank = replace(blank, base=float(flags[0].mean()), new=float(flags[1].mean()))
    if decided.rule in ("theory", "fixed"):
        yield replace(blank, change=paired.rate_change(flags[0], flags[1], a.sources, decided.level))
        return
    try:
        change = _calibrated(before, after, (a, b), decided, known)
        seen = float(flags[1].mean() - flags[0].mean())
        if not math.isclose(change.value, seen, abs_tol=1e-12):
            # Calibration images that only one run has set another threshold: what was tested are the shared ones.
            blank = replace(blank, base=None, new=None, note="thresholds set on the calibration images of both runs")
        yield replace(blank, change=change)
    except StatisticsError as error:
        yield replace(blank, note=str(error))


def _calibrated(
    before: _Side, after: _Side, tested: tuple[Sample, Sample], decided: Decided, known: Thresholds
) -> Change:
    """Each run has a threshold of its own, which swapping the runs sets again."""
    tests = [folded(sample.values, sample.bits, decided.sided) for sample in tested]
    # Matching bits of equal payloads have one unit, and so has an unchanged method; other scores compare by rank.
    specs = [side.run.config["specs"].get(f"method {side.method}") for side in (before, after)]
    same_unit = (tested[0].bits == tested[1].bits > 0) or specs[0] == specs[1]
    key = (before.method, after.method)
    if same_unit and key in known:
        return paired.swapped_rate_change(known[key], tests, tested[0].sources, decided.level)
    if decided.rule == "extrapolated" and not same_unit:
        raise StatisticsError("extrapolated thresholds of scores in other units cannot be compared: use 'certified'")
    clean = [_clean(side) for side in (before, after)]
    shared = [_images_of(x, y, ~x.test) for x, y in (clean, clean[::-1])]

    def rule(bits: int) -> Callable[[np.ndarray, Any], float]:
        return lambda scores, sources: _threshold(scores, sources, decided, bits).value

    limits = paired.paired_thresholds(
        [folded(sample.values, sample.bits, decided.sided) for sample in shared],
        shared[0].sources,
        [rule(sample.bits if same_unit else 0) for sample in shared],
        anchors=None if same_unit else tests,
    )
    if same_unit:
        known[key] = limits
    return paired.swapped_rate_change(limits, tests, tested[0].sources, decided.level)


def _threshold(scores: np.ndarray, sources: np.ndarray, decided: Decided, bits: int) -> Threshold:
    if decided.rule == "extrapolated":
        return thresholds.extrapolated(scores, sources, decided.fpr, decided.level)
    return thresholds.certified(scores.astype(np.int64) if bits else scores, sources, decided.fpr, decided.level)


def _clean(side: _Side) -> Sample:
    clean = next(a["label"] for a in side.run.config["attacks"] if a["name"] == "identity")
    return side.run.sample(side.method, clean, "unmarked")


def _mean(
    level: float,
    blank: Judged,
    before: np.ndarray,
    after: np.ndarray,
    sources: np.ndarray,
    bounds: tuple[float, float] | None,
) -> Judged:
    change = paired.mean_change(before, after, sources, level, bounds=bounds)
    return replace(blank, change=change, base=float(before.mean()), new=float(after.mean()))


def _qualities(before: _Side, after: _Side, blank: Judged, wanted: list[str]) -> Iterator[Judged]:
    """What the mark itself costs the image."""
    known = {m["label"]: m for m in before.run.config["metrics"]}
    for label in [name for name in wanted if name in known]:
        row = replace(blank, quantity=label, better=known[label]["better"])
        specs = [side.run.config["specs"].get(f"metric {label}") for side in (before, after)]
        if specs[0] != specs[1]:
            yield replace(row, note="another version of the metric" if specs[1] else "the new run lacks this metric")
            continue
        pair = [side.run.image_quality(side.method, blank.attack, label) for side in (before, after)]
        lost = len(set(pair[0].index) - set(pair[1].index))
        if lost:
            reason = after.run.quality_status(after.method, blank.attack, label)
            outcome: Outcome = "vanished" if reason.startswith(("skipped", "missing", "unplanned")) else "newly failing"
            yield replace(row, outcome=outcome, note=f"{lost} images have no {label} any more: {reason}")
        joined = pair[0].merge(pair[1], left_index=True, right_index=True, suffixes=("", "_new"))
        finite = joined[np.isfinite(joined["value"]) & np.isfinite(joined["value_new"])]
        if finite.empty:
            if not joined.empty:
                yield replace(row, note="no image has a finite value in both runs")
            continue
        bounds = (-1.0, 1.0) if label == "ssim" else None
        level = before.run.decision().level
        old, new = finite["value"].to_numpy(), finite["value_new"].to_numpy()
        yield _mean(level, row, old, new, finite["source"].to_numpy(), bounds)
