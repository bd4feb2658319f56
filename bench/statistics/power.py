"""How many images a claim needs before anything is run, and what the images of a run in hand can support.

Plans for people, from the exact counts of :mod:`.sizes` and :mod:`.mcnemar`: each number with the statement that it
carries, ready to print.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...core.errors import StatisticsError
from . import binomial, tails
from .domain import open_unit
from .mcnemar import images_for_change, smallest_change
from .roc import needed_negatives
from .sizes import (
    design_effect,
    interval_width,
    negatives_for_certified,
    negatives_for_empirical,
    positives_for_width,
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One number of a plan.

    Attributes:
        key: a name that does not change.
        what: what is counted or measured, for a person.
        number: a count as int, a rate or width as float; NaN where there is none, and ``why`` says why.
        why: the statement that the number carries, one sentence.
    """

    key: str
    what: str
    number: float
    why: str

    @property
    def sentence(self) -> str:
        """The fact, ready to print.

        Example:
            >>> Fact("sources", "sources", 2995, "one image each").sentence
            'sources: 2,995 (one image each)'
        """
        if math.isnan(self.number):
            text = "none"
        else:
            text = f"{self.number:,}" if isinstance(self.number, int) else f"{self.number:.3g}"
        return f"{self.what}: {text} ({self.why})"


@dataclass(frozen=True, slots=True)
class Plan:
    """Facts about a claim or a run, in the order in which they are read.

    Attributes:
        facts: the rows.
    """

    facts: tuple[Fact, ...]

    def __getitem__(self, key: str) -> Fact:
        """The fact of that key; KeyError if the plan does not hold it."""
        return {fact.key: fact for fact in self.facts}[key]

    @property
    def sentences(self) -> list[str]:
        """All facts, ready to print."""
        return [fact.sentence for fact in self.facts]


def plan_claim(
    fpr: float,
    tpr: float,
    width: float,
    level: float = 0.95,
    power: float = 0.9,
    bits: int | None = None,
    images_per_source: float = 1,
    icc: float = 0.0,
    change: float = 0.05,
    cells: int = 1,
) -> Plan:
    """What it takes to claim "TPR ``tpr`` at FPR ``fpr``", and to notice that it is lost.

    Args:
        fpr: the FPR that is claimed.
        tpr: the TPR that is expected.
        width: full width of the interval of the TPR.
        level: of all intervals; a regression check tests at ``1 - level``.
        power: the chance that a true claim succeeds, and that the loss is noticed.
        bits: payload length, None for a score without one.
        images_per_source: images of each photograph or prompt.
        icc: correlation within a source.
        change: the loss of TPR that a regression check must see.
        cells: tests that share the level of that check.

    Returns:
        facts with the keys ``positives``, ``certify``, ``certify_power``, ``express``, ``measure``, ``extrapolate``
        (without bits), ``bits_fpr`` and ``bits_threshold`` (with bits), ``pairs``, ``pairs_best``, and where sources
        repeat ``design_effect``, ``positives_clustered``, ``pairs_clustered``.

    Raises:
        StatisticsError: a number is impossible, or would take more images than anybody has.

    Example:
        >>> plan = plan_claim(1e-3, 0.9, 0.05)
        >>> [plan[key].number for key in ("positives", "certify", "express")]
        [596, 2995, 1000]
    """
    effect = design_effect(images_per_source, icc)
    facts = [
        Fact(
            "positives",
            "marked test images of different sources",
            positives_for_width(tpr, width, level),
            f"the {level:.0%} interval of a TPR of {tpr:g} is then at most {width:g} wide, end to end",
        ),
        *_negative_facts(fpr, level, power),
        *(_score_facts(fpr) if bits is None else _bit_facts(bits, fpr)),
        *_pair_facts(tpr, change, 1 - level, power, cells),
    ]
    if effect > 1:
        plan = Plan(tuple(facts))
        facts.append(
            Fact(
                "design_effect",
                "images that are worth one independent image",
                effect,
                f"{images_per_source:g} of each source that correlate by {icc:g}; thresholds are calibrated on one "
                "image of each source whatever their number",
            )
        )
        for key, what in (("positives", "marked test images"), ("pairs", "pairs of images")):
            sources = math.ceil(plan[key].number * effect / images_per_source)
            images = math.ceil(sources * images_per_source)
            why = f"{sources:,} sources; worth {plan[key].number:,} independent images"
            facts.append(Fact(f"{key}_clustered", f"{what} in all, sources repeating", images, why))
    return Plan(tuple(facts))


def supports(
    n_positives: int,
    n_negatives: int,
    n_calibration: int,
    bits: int | None = None,
    level: float = 0.95,
    power: float = 0.8,
    tpr: float = 0.9,
    cells: int = 58,
) -> Plan:
    """What a run in hand can support.

    Args:
        n_positives: marked test images of different sources.
        n_negatives: unmarked test images of different sources.
        n_calibration: unmarked calibration images of different sources.
        bits: payload length, None for a score without one.
        level: of all intervals; a regression check tests at ``1 - level``.
        power: the chance that a loss is noticed.
        tpr: the TPR from which a loss is counted.
        cells: tests that share the level of a regression check, beside a single one.

    Returns:
        facts with the keys ``certified_fpr``, ``extrapolated_fpr`` (without bits), ``bits_fpr`` (with bits),
        ``empirical_fpr``, ``unseen_fpr``, ``width_50``, ``width_90``, ``width_99``, ``loss``, ``loss_best``,
        ``loss_cells`` and ``loss_cells_best``. A number is NaN where there are no images for it.

    Example:
        >>> plan = supports(162, 162, 450)
        >>> round(plan["certified_fpr"].number, 5), round(plan["width_90"].number, 3)
        (0.00664, 0.1)
    """
    for name, n in (("n_positives", n_positives), ("n_negatives", n_negatives), ("n_calibration", n_calibration)):
        if isinstance(n, bool) or n != int(n) or n < 0:
            raise StatisticsError(f"{name} is {n}; it must be a whole number of at least 0")
    facts = [
        Fact(
            "certified_fpr",
            "smallest FPR that a threshold can be certified for",
            _unseen(n_calibration, level),
            f"{n_calibration:,} calibration negatives, none of them flagged, {level:.0%} confidence",
        ),
        _extrapolated_fact(n_calibration) if bits is None else _bits_fact(bits),
        Fact(
            "empirical_fpr",
            "smallest FPR that can be counted",
            1 / n_negatives if n_negatives else math.nan,
            f"one of {n_negatives:,} test negatives",
        ),
        Fact(
            "unseen_fpr",
            "bound of the FPR where no test negative is flagged",
            _unseen(n_negatives, level),
            f"none of {n_negatives:,}, one-sided, {level:.0%} confidence",
        ),
    ]
    for rate in (0.5, 0.9, 0.99):
        size = interval_width(rate, n_positives, level) if n_positives else math.nan
        why = f"full width of the {level:.0%} interval, {n_positives:,} marked test images"
        facts.append(Fact(f"width_{rate * 100:.0f}", f"interval of a TPR of {rate:g}", size, why))
    for key, count, gains in (
        ("loss", 1, True),
        ("loss_best", 1, False),
        ("loss_cells", cells, True),
        ("loss_cells_best", cells, False),
    ):
        loss = smallest_change(n_positives, tpr, power, 1 - level, count, gains) if n_positives else math.nan
        where = "one cell" if count == 1 else f"any of {count} cells"
        how = "images lost and gained as if by chance" if gains else "images only lost, none gained"
        why = f"of a TPR of {tpr:g}, noticed with probability {power:g} by a paired test, {how}"
        facts.append(Fact(key, f"smallest loss of TPR seen in {where}", loss, why))
    return Plan(tuple(facts))


def _negative_facts(fpr: float, level: float, power: float) -> list[Fact]:
    certified = negatives_for_certified(fpr, level, power)
    return [
        Fact(
            "certify",
            "calibration negatives of different sources, at least",
            certified.least,
            f"fewer cannot certify an FPR of {fpr:g} at {level:.0%} confidence even if none is flagged; the threshold "
            f"is then stricter than need be, its FPR about {1 / (certified.least + 1):.1g}",
        ),
        Fact(
            "certify_power",
            "calibration negatives of different sources, comfortable",
            certified.planned,
            f"a threshold whose FPR is half of {fpr:g} is then certified with probability {power:g} or more",
        ),
        Fact(
            "express",
            "unmarked test images, at least",
            negatives_for_empirical(fpr),
            f"fewer cannot express an FPR of {fpr:g}",
        ),
        Fact(
            "measure",
            "unmarked test images of different sources, to measure the FPR",
            negatives_for_empirical(fpr, 0.5, level),
            f"the {level:.0%} interval of an FPR of {fpr:g} is then at most {0.5 * fpr:.3g} wide, end to end",
        ),
    ]


def _score_facts(fpr: float) -> list[Fact]:
    return [
        Fact(
            "extrapolate",
            "calibration negatives of different sources, to extrapolate",
            tails.fewest_negatives(fpr),
            "real-valued scores only, and only if the tail law holds",
        )
    ]


def _bit_facts(bits: int, fpr: float) -> list[Fact]:
    smallest = binomial.smallest_fpr(bits)
    if fpr < smallest:
        why = f"{bits} bits cannot reach an FPR of {fpr:g}; {math.ceil(-math.log2(fpr))} bits can"
        return [_bits_fact(bits), Fact("bits_threshold", "matching bits that decide", math.nan, why)]
    tau = binomial.threshold(bits, fpr)
    why = f"of {bits}; FPR {binomial.fpr(bits, tau):.3g} without any negatives, if the bits of unmarked images are fair"
    return [_bits_fact(bits), Fact("bits_threshold", "matching bits that decide", tau, why)]


def _bits_fact(bits: int) -> Fact:
    why = f"all {bits} bits match, if the bits of unmarked images are fair"
    return Fact("bits_fpr", "smallest FPR by theory", binomial.smallest_fpr(bits), why)


def _pair_facts(tpr: float, change: float, alpha: float, power: float, cells: int) -> list[Fact]:
    where = "" if cells == 1 else f" in any of {cells} cells"
    seen = f"a TPR of {tpr:g} that loses {change:g}{where} is noticed with probability {power:g}"
    return [
        Fact(
            "pairs",
            "marked test images of different sources, for a regression check",
            images_for_change(tpr, change, None, alpha, power, cells),
            f"{seen}, images lost and gained as if by chance",
        ),
        Fact(
            "pairs_best",
            "the same in the best case",
            images_for_change(tpr, change, change, alpha, power, cells),
            f"{seen}, images only lost, none gained",
        ),
    ]


def _extrapolated_fact(n: int) -> Fact:
    what = "smallest FPR that a threshold can be extrapolated to"
    fewest = tails.fewest_negatives(0.5)
    if n < fewest:
        return Fact(
            "extrapolated_fpr", what, math.nan, f"a tail law needs {fewest} calibration negatives, there are {n}"
        )
    return Fact(
        "extrapolated_fpr", what, 1 / (tails.REACH * n), "real-valued scores only, and only if the tail law holds"
    )


def _unseen(n: int, level: float) -> float:
    """The smallest FPR that n negatives certify if none of them is flagged."""
    if not n:
        return math.nan
    bound = -math.expm1(math.log1p(-open_unit(level, "level")) / n)
    # Rounding must not leave a number that these negatives cannot certify.
    while needed_negatives(bound, level) > n:
        bound = math.nextafter(bound, 1.0)
    return bound
