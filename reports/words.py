"""Numbers as people read them, and what a run says in sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from ..bench.results import Run
    from ..bench.summary import Decided


def number(value: Any, digits: int = 3) -> str:
    """A number with ``digits`` decimals; a dash for nothing, an infinity sign for infinity.

    Example:
        >>> number(0.12345), number(None), number(float("inf"))
        ('0.123', '–', '∞')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}f}"


def rule(run: Run) -> str:
    """The rule of a run's thresholds: "FPR 0.001, threshold by theory (tree-ring: FPR 0.1, certified)"."""
    decided = run.decision()

    def where(one: Decided) -> str:
        return f"threshold {one.threshold:g}" if one.threshold is not None else f"FPR {one.fpr:g}"

    text = f"{where(decided)}, threshold by {decided.rule}"
    others = [method for method in run.methods if decided.of(int(run.about("method", method)["bits"])) is not decided]
    if others and decided.scores is not None:
        text += f" ({', '.join(others)}: {where(decided.scores)}, {decided.scores.rule})"
    return text


def small(value: Any) -> str:
    """A probability that may be tiny: ``0.0011``, ``2.3e-10``."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.3g}"


def count(value: Any) -> str:
    """A large number with three digits: ``4.4e+07`` as ``44 million``, ``1.2e9`` as ``1.2 billion``.

    Example:
        >>> count(4.4e7), count(950.0), count(0.0), count(None)
        ('44 million', '950', '0', '–')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    for size, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {name}"
    return f"{value:.3g}"


def sortable(value: Any) -> str:
    """What a table's sorting reads: a number as Python writes it, nothing for nothing."""
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def rate(row: dict[str, Any] | None, name: str, digits: int = 2) -> str:
    """A rate with its interval: ``0.95 [0.90, 0.98]``."""
    if row is None or row.get(name) is None:
        return "–"
    value = row[name]
    if isinstance(value, float) and not math.isfinite(value):
        return number(value)
    # A single source has a value and no interval.
    low, high = (number(row.get(f"{name}_{end}"), digits) for end in ("low", "high"))
    return f"{value:.{digits}f} [{low}, {high}]"


def findings(run: Run, summary: pd.DataFrame) -> list[str]:
    """What the run found, one sentence for each method."""
    sentences = []
    for method in run.methods:
        rows = summary[(summary["method"] == method) & (summary["attack_name"] != "identity")]
        if "tpr" not in rows or rows["tpr"].isna().all():
            continue
        rows = rows.dropna(subset=["tpr"])
        strong, lost = (rows["tpr_low"] >= 0.9).sum(), (rows["tpr_high"] <= 0.5).sum()
        sentences.append(
            f"{method}: of {len(rows)} attacks, {strong} leave the TPR at .9 or more (lower end of the interval) and "
            f"{lost} push it to .5 or less (upper end)."
        )
    return sentences


def warnings(run: Run, summary: pd.DataFrame) -> list[str]:
    """What a reader must know before believing a number."""
    decided, found = run.decision(), []
    sources = run.images.loc[run.images["split"] == "test", "source"].nunique()
    images = int((run.images["split"] == "test").sum())
    if sources < 100:
        found.append(
            f"{images} test images from {sources} photographs: this run illustrates, it does not certify. An empirical "
            f"statement at FPR {decided.fpr:g} needs at least {math.ceil(1 / decided.fpr):,} negatives from as many "
            f"photographs, and {_needed(decided.fpr):,} without a false alarm to bound the FPR below {decided.fpr:g}."
        )
    for method in run.methods:
        rows = summary[(summary["method"] == method) & (summary.get("null_moved", False) == True)]  # noqa: E712
        if len(rows):
            worst = rows.sort_values("fpr").iloc[-1]
            found.append(
                f"{method}: unmarked images are flagged more often than the threshold promises in {len(rows)} of "
                f"{(summary['method'] == method).sum()} attacks (worst: {worst['fpr']:.3f} instead of "
                f"{worst['fpr_nominal']:.2g} under {worst['attack']}). Its TPR there is not a TPR at "
                f"FPR {worst['alpha']:g}."
            )
    withdrawn = list(dict.fromkeys(summary.loc[summary["theory_withdrawn"], "method"]))
    if withdrawn:
        found.append(
            f"Theory withdrawn for {', '.join(withdrawn)}: the null of fair, independent bits fails its test on these "
            f"images, so an FPR of {decided.fpr:g} from the binomial law is no promise. What was measured is in the "
            "column FPR; the rule 'certified' calibrates a threshold instead."
        )
    refused = summary.loc[summary["threshold"].isna(), ["method", "note"]].drop_duplicates("method")
    found += [f"{row.method}: {row.note}" for row in refused.itertuples()]
    return found


def _needed(fpr: float) -> int:
    return math.ceil(math.log(0.05) / math.log1p(-fpr))
