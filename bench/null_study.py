"""The null of one method, unattacked and after each attack: what its theoretical threshold is worth on these images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..core.errors import StatisticsError
from ..core.progress import progress_bar
from .statistics.null import key_fprs, match_histogram, null_report
from .statistics.pairs import pair_matches
from .statistics.whitening import null_before_after

if TYPE_CHECKING:
    from ..core.progress import Tick
    from .results import Run
    from .statistics.null import NullReport
    from .statistics.pairs import PairReport


@dataclass(frozen=True)
class NullCell:
    """The null under one attack.

    Attributes:
        attack: label of the attack.
        report: bits, correlation, matches with the key in use, spread over keys, verdict.
        pairs: matches between pairs of images, which need no key.
        key_rates: FPR of each random key ``[keys]``.
        histogram: images by matching bits with the key in use ``[k + 1]``.
        correlation: of the bits ``[k, k]``; 0 where a bit never changes.
    """

    attack: str
    report: NullReport
    pairs: PairReport
    key_rates: np.ndarray
    histogram: np.ndarray
    correlation: np.ndarray


@dataclass(frozen=True)
class Whitened:
    """The null before and after whitening, on images that did not fit it.

    Attributes:
        before: the test images' null as decoded.
        after: the same images, whitened.
        tpr_before: share of marked test images at the threshold by theory; NaN where none were marked.
        tpr_after: the same, whitened.
        fitted: calibration images that fitted the whitening.
        digest: of the whitening.
    """

    before: NullReport
    after: NullReport
    tpr_before: float
    tpr_after: float
    fitted: int
    digest: str


@dataclass(frozen=True)
class NullStudy:
    """The null of one method.

    Attributes:
        method: label of the method.
        cells: one for each attack; the first is unattacked.
        whitened: before and after whitening, if it was asked for.
        refused: why there is no whitening, in words.
        missing: attacks without a row, and why.
    """

    method: str
    cells: tuple[NullCell, ...]
    whitened: Whitened | None = None
    refused: str = ""
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def clean(self) -> NullCell:
        """The unattacked cell."""
        return self.cells[0]

    @property
    def holds(self) -> bool:
        """Whether neither test rejects on unattacked images; with few sources this says "not refuted", no more."""
        return self.clean.report.holds and self.clean.pairs.holds

    @property
    def verdict(self) -> str:
        """What it means for a threshold by theory, in one or two sentences."""
        r = self.clean.report
        if self.holds:
            moved = [cell.attack for cell in self.cells[1:] if not (cell.report.holds and cell.pairs.holds)]
            tail = f" After {len(moved)} of {len(self.cells) - 1} attacks it does not." if moved else ""
            return f"The null is not refuted on {r.sources} sources, so a threshold by theory may stand.{tail}"
        reasons = " ".join(text for text in (r.warning, self.clean.pairs.warning) if text)
        return (
            f"Theory withdrawn: false-positive rates from the binomial law are no promise for {self.method}. {reasons}"
        )

    def frame(self) -> pd.DataFrame:
        """One row for each attack."""
        return pd.DataFrame([_row(self.method, cell) for cell in self.cells])


def _row(method: str, cell: NullCell) -> dict[str, Any]:
    r, p = cell.report, cell.pairs
    row: dict[str, Any] = {"method": method, "attack": cell.attack, "n": r.n, "sources": r.sources, "bits": r.k}
    row |= {"alpha": r.alpha, "sided": r.sided, "threshold": r.threshold, "fpr_nominal": r.nominal_fpr}
    rates = {
        "fpr": r.observed_fpr,
        "pairs_share": p.share,
        "pairs_overdispersion": p.overdispersion,
        "pairs_tail": p.tail,
    }
    for name, rate in rates.items():
        row |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
    row |= {f"false_alarms_per_billion{end}": 1e9 * row[f"fpr{end}"] for end in ("", "_low", "_high")}
    row |= {
        "keys": r.keys,
        "fpr_keys_mean": r.key_fpr_mean,
        "fpr_keys_sd": r.key_fpr_sd,
        "fpr_keys_worst": r.key_fpr_worst,
    }
    row |= dict(zip(("fpr_keys_50", "fpr_keys_90", "fpr_keys_99"), r.key_fpr_quantiles, strict=True))
    row |= {"keys_above": r.keys_above, "worst_bias": r.worst_bias, "overdispersion": r.overdispersion}
    row |= {
        "effective_bits": r.effective_bits,
        "effective_low": r.effective_bits_low,
        "effective_high": r.effective_bits_high,
    }
    row |= {
        name: getattr(r, name) for name in ("p_exceeds", "p_shift", "p_dispersion", "p_bias", "p_correlation", "p_fit")
    }
    row |= {"p_pairs_share": p.p_share, "p_pairs_dispersion": p.p_dispersion, "p_pairs_tail": p.p_tail}
    return {**row, "holds": r.holds and p.holds, "warning": " ".join(w for w in (r.warning, p.warning) if w)}


def study_null(
    run: Run, method: str, keys: int = 1000, whiten: bool = False, tick: Tick | None = None, **decision: Any
) -> NullStudy:
    """Tests the null of one method of a run on its unmarked images, under every attack.

    Args:
        run: the run.
        method: label of a method with a payload.
        keys: random keys to try.
        whiten: fit a whitening on the calibration images and show the null of the test images before and after.
        tick: progress, one unit for each attack.
        **decision: changes of the run's decision rule; ``fpr`` and ``sided`` count here.

    Raises:
        StatisticsError: the method has no payload, nothing unattacked was scored, or k bits cannot express the FPR.

    Example:
        >>> study_null(load_run("runs/quick"), "dwt-dct").verdict  # doctest: +SKIP
    """
    run = run.deciding(**decision)
    labels = [a["label"] for a in run.config["attacks"] if a["family"] != "forgery"]
    clean = next((a["label"] for a in run.config["attacks"] if a["name"] == "identity"), None)
    if clean is None:
        raise StatisticsError("the null starts from unattacked images: add 'identity' to the attacks")
    cells, missing = [], {}
    for label in [clean, *(label for label in labels if label != clean)]:
        try:
            cells.append(_cell(run, method, label, keys))
        except StatisticsError as error:
            # Without the unattacked images there is nothing at all.
            if label == clean:
                raise
            missing[label] = str(error)
        if tick is not None:
            tick(1, f"{method} {label}")
    found, refused = None, ""
    if whiten:
        try:
            found = _whitened(run, method, clean, keys)
        except StatisticsError as error:
            refused = str(error)
    return NullStudy(method, tuple(cells), found, refused, missing)


def study_every(run: Run, keys: int = 1000, whiten: bool = False) -> tuple[list[NullStudy], dict[str, str]]:
    """Studies every method of a run, with progress; returns the studies, and why the others have none.

    Raises:
        StatisticsError: no method can be studied.
    """
    studies, refused = [], {}
    with progress_bar("testing the null", len(run.methods) * len(run.attacks), "cells") as tick:
        for method in run.methods:
            try:
                studies.append(study_null(run, method, keys, whiten, tick))
            except StatisticsError as error:
                refused[method] = str(error)
    if not studies:
        raise StatisticsError("; ".join(refused.values()))
    return studies, refused


def _cell(run: Run, method: str, attack: str, keys: int) -> NullCell:
    sample, logits = run.unmarked(method, attack)
    decided, key = run.decision(), run.owner_key(method)
    report = null_report(logits, key, sample.sources, decided.fpr, keys, sided=decided.sided)
    bits = logits > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.nan_to_num(np.corrcoef(bits, rowvar=False)).reshape(sample.bits, sample.bits)
    return NullCell(
        attack,
        report,
        pair_matches(bits, sample.sources, decided.fpr, decided.sided),
        key_fprs(logits, report.threshold, keys, sided=decided.sided),
        match_histogram(logits, key),
        correlation,
    )


def _whitened(run: Run, method: str, attack: str, keys: int) -> Whitened:
    sample, logits = run.unmarked(method, attack)
    fit, test = ~sample.test, sample.test
    if not fit.any():
        raise StatisticsError("whitening is fitted on calibration images, and this run has none: use --calibration")
    decided, key, sources = run.decision(), run.owner_key(method), sample.sources
    before, after, whitening = null_before_after(
        logits[fit], sources[fit], logits[test], sources[test], key, decided.fpr, keys, sided=decided.sided
    )
    marked = run.sample(method, attack, "marked")
    rates = float("nan"), float("nan")
    if marked.logits is not None and marked.test.any():
        own = run.keys(method, list(marked.images))[marked.test]
        read = marked.logits[marked.test]
        rates = _tpr(read, own, before), _tpr(whitening.apply(read), own, after)
    return Whitened(before, after, rates[0], rates[1], int(fit.sum()), whitening.digest)


def _tpr(logits: np.ndarray, keys: np.ndarray, report: NullReport) -> float:
    matches = ((logits > 0) == keys).sum(axis=1)
    if report.sided == "two":
        matches = np.maximum(matches, report.k - matches)
    return float((matches >= report.threshold).mean())
