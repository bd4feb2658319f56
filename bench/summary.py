"""One row for each method and attack: every rate with n, interval and rule; what the data cannot say stays empty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..core.errors import StatisticsError
from .statistics import binomial, intervals, thresholds
from .statistics.null import key_spread
from .statistics.pairs import pair_matches
from .statistics.roc import auc, tpr_at_fpr
from .statistics.splits import one_per_source

if TYPE_CHECKING:
    from collections.abc import Collection

    from .results import Run
    from .statistics.domain import Sided
    from .statistics.thresholds import Rule, Threshold

ENDS = ("", "_low", "_high")
"""What is added to a rate's name for its interval's ends."""

NULL_LEVEL = 0.01
"""A false-positive rate is called above its nominal value when an exact binomial test says so at this level."""


@dataclass(frozen=True)
class Sample:
    """Scores of one method on one arm under one attack.

    Attributes:
        images: ids ``[n]``.
        sources: source of each image ``[n]``.
        test: True where the image belongs to the test split ``[n]``.
        values: decision scores ``[n]``, matching bits for a payload; larger means more likely marked.
        logits: bit logits ``[n, k]``, None without a payload.
        bits: payload length k, 0 without.
        planned: images that were planned.
        failed: images that failed or could not be read.
        status: the cell's status.
        reason: why it is not ok.
    """

    images: np.ndarray
    sources: np.ndarray
    test: np.ndarray
    values: np.ndarray
    logits: np.ndarray | None
    bits: int
    planned: int
    failed: int
    status: str
    reason: str | None

    def tested(self) -> tuple[np.ndarray, np.ndarray]:
        """Values and sources of the test split."""
        return self.values[self.test], self.sources[self.test]

    def calibration(self) -> tuple[np.ndarray, np.ndarray]:
        """Values and sources of the calibration split."""
        return self.values[~self.test], self.sources[~self.test]


@dataclass(frozen=True)
class Decided:
    """A decision rule in force.

    Attributes:
        fpr: the false-positive rate to hold.
        rule: ``theory``, ``certified``, ``extrapolated`` or ``fixed``.
        sided: ``one`` or ``two``.
        level: confidence level of intervals.
        threshold: the threshold of the rule ``fixed``.
        scores: the rule for methods without a payload, where it is another.
    """

    fpr: float
    rule: Rule
    sided: Sided
    level: float
    threshold: float | None = None
    scores: Decided | None = None

    def of(self, bits: int) -> Decided:
        """The rule for a method with a payload of ``bits``, or with none."""
        return self if bits or self.scores is None else self.scores


def deployed_threshold(run: Run, method: str, decided: Decided) -> Threshold:
    """The threshold that is fixed before any attack.

    Raises:
        StatisticsError: k bits, or the calibration images at hand, cannot express this false-positive rate.
    """
    bits = int(run.about("method", method)["bits"])
    decided = decided.of(bits)
    if decided.rule == "fixed" and decided.threshold is not None:
        return thresholds.fixed(decided.threshold, decided.sided)
    if decided.rule == "theory":
        if not bits:
            raise StatisticsError(
                f"{method} has no payload, so no theory gives its threshold: use the rule 'certified'"
            )
        return thresholds.theory(bits, decided.fpr, decided.sided)
    clean = next((a["label"] for a in run.config["attacks"] if a["name"] == "identity"), None)
    if clean is None:
        raise StatisticsError(
            f"the rule '{decided.rule}' calibrates on unattacked images: add 'identity' to the attacks"
        )
    values, sources = run.sample(method, clean, "unmarked").calibration()
    # As integers, matching bits get a threshold that is a whole number of them.
    values = values.astype(np.int64) if bits else values
    if decided.rule == "extrapolated":
        if bits:
            raise StatisticsError(
                f"{method} counts matching bits: the rule 'extrapolated' is for real-valued scores, use 'theory'"
            )
        return thresholds.extrapolated(values, sources, decided.fpr, level=decided.level)
    return thresholds.certified(values, sources, decided.fpr, decided.level, sided=decided.sided, bits=bits)


def folded(values: np.ndarray, bits: int, sided: Sided) -> np.ndarray:
    """Scores as the decision reads them: two-sided, as many wrong bits are as much evidence as right ones."""
    if sided == "two" and bits:
        both: np.ndarray = np.maximum(values, bits - values)
        return both
    return values


def flagged(values: np.ndarray, bits: int, threshold: Threshold) -> np.ndarray:
    """Which images the threshold flags: score >= tau; two-sided, also those with as many wrong bits."""
    above: np.ndarray = values >= threshold.value
    if threshold.sided == "two" and bits:
        above = above | (bits - values >= threshold.value)
    return above


def summarise(run: Run, decided: Decided) -> pd.DataFrame:
    """See :meth:`Run.summary`."""
    rows = []
    for method in run.methods:
        threshold: Threshold | None = None
        refusal = ""
        try:
            threshold = deployed_threshold(run, method, decided)
        except StatisticsError as error:
            refusal = str(error)
        holds = null_holds(run, method)
        for attack in run.config["attacks"]:
            row = {"method": method, "attack": attack["label"], "attack_name": attack["name"]}
            row |= {"family": attack["family"], "strength": attack["value"], "damage": attack["damage"]}
            mine = decided.of(int(run.about("method", method)["bits"]))
            row |= _rates(run, method, attack["label"], mine, threshold, refusal)
            if attack["family"] == "forgery":
                # Forged images are no sample of the null: that they are flagged is the attack's success.
                row.pop("null_moved", None)
            row["null_holds"] = holds
            row["theory_withdrawn"] = mine.rule == "theory" and holds is False
            row |= _qualities(run, method, attack["label"], decided)
            rows.append(row)
    return pd.DataFrame(rows)


def null_holds(run: Run, method: str) -> bool | None:
    """Whether unattacked, unmarked images give fair, independent bits; None where that cannot be tested.

    The null report's verdict and that of pairs of images, as :class:`.null_study.NullStudy` has it.
    """
    clean = next((a["label"] for a in run.config["attacks"] if a["name"] == "identity"), None)
    try:
        if clean is None or not run.null(method, clean).holds:
            return None if clean is None else False
        sample, logits = run.unmarked(method, clean)
        decided = run.decision()
        return pair_matches(logits > 0, sample.sources, decided.fpr, decided.sided).holds
    except StatisticsError:
        return None


def _rates(
    run: Run, method: str, attack: str, decided: Decided, threshold: Threshold | None, refusal: str
) -> dict[str, Any]:
    marked, unmarked = (run.sample(method, attack, arm) for arm in ("marked", "unmarked"))
    (positives, p_sources), (negatives, n_sources) = marked.tested(), unmarked.tested()
    notes = [refusal] if refusal else []
    row: dict[str, Any] = {
        "rule": decided.rule,
        "rule_version": thresholds.VERSION,
        "sided": decided.sided,
        "alpha": decided.fpr,
        "threshold": threshold.value if threshold else None,
        "status": _worse(marked.status, unmarked.status),
        "n_planned": marked.planned,
        "n_scored": len(marked.values),
        "n_failed": marked.failed,
        "n_scored_unmarked": len(unmarked.values),
        "n_failed_unmarked": unmarked.failed,
        "n_positives": len(positives),
        "n_negatives": len(negatives),
        "n_sources": len(set(p_sources)),
    }
    notes += [f"{s.status}: {s.reason}" for s in (marked, unmarked) if s.status not in ("ok", "unplanned")]
    if threshold is not None:
        alarms = flagged(negatives, marked.bits, threshold)
        row |= _rate("tpr", flagged(positives, marked.bits, threshold), p_sources, decided.level)
        row |= _rate("fpr", alarms, n_sources, decided.level)
        row |= {f"false_alarms_per_billion{end}": row[f"fpr{end}"] * 1e9 for end in ENDS if f"fpr{end}" in row}
        nominal = nominal_fpr(threshold, marked.bits)
        if nominal is not None:
            row["fpr_nominal"] = nominal
            row["null_p"] = exceeds(alarms, n_sources, nominal)
            row["null_moved"] = bool(row["null_p"] < NULL_LEVEL)
        if unmarked.logits is not None and len(negatives):
            mean, worst = key_spread(unmarked.logits[unmarked.test], threshold.value, sided=threshold.sided)
            row |= {"fpr_keys_mean": mean, "fpr_keys_worst": worst}
    scores = [folded(values, marked.bits, decided.sided) for values in (positives, negatives)]
    if marked.status != "unplanned":
        row |= _matched((scores[0], p_sources), (scores[1], n_sources), decided, notes)
    if marked.bits and len(positives):
        accuracy = _mean("bit_accuracy", positives / marked.bits, p_sources, decided.level)
        # An interval of a mean knows no bounds; a share does.
        row |= {key: min(1.0, max(0.0, value)) for key, value in accuracy.items()}
    row["note"] = "; ".join(dict.fromkeys(notes))
    return row


def nominal_fpr(threshold: Threshold, bits: int) -> float | None:
    """The FPR that a threshold promises: what the rule states, or theory's for a payload; None if nothing does."""
    if threshold.rule in ("certified", "extrapolated") or not bits:
        return threshold.alpha
    return binomial.fpr(bits, math.ceil(threshold.value), threshold.sided)


def _worse(*statuses: str) -> str:
    order = ("unplanned", "ok", "partial", "failed", "missing", "skipped")
    return max(statuses, key=order.index)


def _rate(name: str, flags: np.ndarray, sources: np.ndarray, level: float) -> dict[str, Any]:
    if not len(flags):
        return {}
    rate = intervals.proportion(flags, sources, level=level)
    return {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high, f"{name}_interval": rate.method}


def _mean(name: str, values: np.ndarray, sources: np.ndarray, level: float) -> dict[str, Any]:
    rate = intervals.mean(values, sources, level=level)
    return {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}


def exceeds(flags: np.ndarray, sources: np.ndarray, nominal: float) -> float:
    """P-value of an exact one-sided binomial test, one image per source, that the FPR is above nominal."""
    from scipy.stats import binom

    if not len(flags):
        return 1.0
    one = flags[one_per_source(sources, 0)]
    return float(binom.sf(int(one.sum()) - 1, len(one), nominal))


def _matched(
    marked: tuple[np.ndarray, np.ndarray],
    unmarked: tuple[np.ndarray, np.ndarray],
    decided: Decided,
    notes: list[str],
) -> dict[str, Any]:
    """The attack-matched ROC: TPR at the smallest attained threshold, AUC."""
    (positives, p_sources), (negatives, n_sources) = marked, unmarked
    row: dict[str, Any] = {}
    try:
        point = tpr_at_fpr(positives, negatives, decided.fpr)
        row |= {"tpr_matched": point.tpr, "threshold_matched": point.threshold, "fpr_matched": point.fpr_attained}
    except StatisticsError as error:
        notes.append(f"attack-matched ROC: {error}")
    try:
        # DeLong's interval is for independent images: one of each source.
        area = auc(positives[one_per_source(p_sources, 0)], negatives[one_per_source(n_sources, 0)], decided.level)
        row |= {"auc": area.value, "auc_low": area.low, "auc_high": area.high}
    except StatisticsError:
        pass
    return row


def _qualities(run: Run, method: str, attack: str, decided: Decided) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for metric in run.config["metrics"]:
        values, sources, reason = run.quality(method, attack, metric["label"])
        name = metric["label"]
        if not len(values):
            row[f"{name}_note"] = reason
            continue
        if np.isinf(values).all():
            row |= {name: np.inf, f"{name}_low": np.inf, f"{name}_high": np.inf}
            continue
        finite = np.isfinite(values)
        # An untouched image has an infinite PSNR; it is left out of the mean and counted.
        row |= _mean(name, values[finite], sources[finite], decided.level)
        row[f"{name}_infinite"] = int((~finite).sum())
    return row


def families(run: Run, decided: Decided, attacks: Collection[str] | None = None) -> pd.DataFrame:
    """One row for each method and attack family: TPR over all its attacks, clustered by source.

    Every attack of a family weighs the same. The unattacked images stand in a family of their own, ``none``. With
    ``attacks`` only those labels count.
    """
    rows = []
    kept = [a for a in run.config["attacks"] if attacks is None or a["label"] in attacks]
    names = list(dict.fromkeys(a["family"] for a in kept))
    for method in run.methods:
        try:
            threshold = deployed_threshold(run, method, decided)
        except StatisticsError as error:
            counts = {name: sum(a["family"] == name for a in kept) for name in names}
            nothing = {"complete": 0, "n_marked": 0, "n_unmarked": 0, "n_sources": 0, "note": str(error)}
            rows += [{"method": method, "family": name, "attacks": counts[name], **nothing} for name in names]
            continue
        for name in names:
            labels = [a["label"] for a in kept if a["family"] == name]
            rows.append({"method": method, "family": name, **_family(run, method, labels, threshold, decided)})
    return pd.DataFrame(rows)


def _family(run: Run, method: str, attacks: list[str], threshold: Threshold, decided: Decided) -> dict[str, Any]:
    hits: dict[str, list[np.ndarray]] = {"marked": [], "unmarked": []}
    sources: dict[str, list[np.ndarray]] = {"marked": [], "unmarked": []}
    complete = 0
    for attack in attacks:
        samples = {arm: run.sample(method, attack, arm) for arm in hits}
        complete += all(sample.status == "ok" for sample in samples.values())
        for arm, sample in samples.items():
            values, origin = sample.tested()
            hits[arm].append(flagged(values, sample.bits, threshold))
            sources[arm].append(origin)
    row: dict[str, Any] = {"attacks": len(attacks), "complete": complete, "threshold": threshold.value, "note": ""}
    for arm, name in (("marked", "tpr"), ("unmarked", "fpr")):
        flags, origin = np.concatenate(hits[arm]), np.concatenate(sources[arm])
        row[f"n_{arm}"] = len(flags)
        row["n_sources"] = len(set(origin))
        row |= _rate(name, flags, origin, decided.level)
    if complete < len(attacks):
        row["note"] = f"{len(attacks) - complete} of {len(attacks)} attacks incomplete: no rank"
    return row
