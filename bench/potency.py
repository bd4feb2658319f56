"""Which attack is the most potent against a method: WAVES' ranking on the run's own evidence, with rank intervals.

An attack's curve over its strengths has the TPR at the deployed threshold and the quality that the attack cost. The
score of quality is Q only if all its eight metrics were measured; else it is called partial, with what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..core.errors import StatisticsError
from ..core.seeds import Seed
from .statistics.degradation import METRICS, Curve, degradation
from .statistics.ranking import rank_attacks
from .summary import Decided, deployed_threshold, flagged

if TYPE_CHECKING:
    from .results import Run
    from .statistics.ranking import RankedAttack

_RESAMPLES = 500


@dataclass(frozen=True, slots=True)
class Potency:
    """Attacks against one method, the most potent first.

    Attributes:
        method: label of the method.
        ranked: WAVES' columns and ranks.
        low: lowest rank of each in the bootstrap over sources.
        high: highest rank.
        curves: the curve of each attack.
        unranked: attacks without a curve, and why.
        sources: sources that were resampled.
        level: of the interval.
    """

    method: str
    ranked: tuple[RankedAttack, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    curves: dict[str, Curve]
    unranked: dict[str, str]
    sources: int
    level: float

    def frame(self) -> pd.DataFrame:
        """One row for each ranked attack."""
        rows = [
            {
                "method": self.method,
                "rank": r.rank,
                "rank_low": low,
                "rank_high": high,
                "attack": r.attack,
                "strengths": len(self.curves[r.attack].performance),
                "q_at_95": r.at_high,
                "q_at_70": r.at_low,
                "avg_p": r.mean_performance,
                "avg_q": r.mean_degradation,
                "task": r.task,
                "score": r.score,
                "sources": self.sources,
            }
            for r, low, high in zip(self.ranked, self.low, self.high, strict=True)
        ]
        return pd.DataFrame(rows)


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Sums over the images of each source, for every strength of an attack.

    Attributes:
        hits: flagged images ``[sources, strengths]``.
        images: images ``[sources, strengths]``.
        lost: sums of each metric, by its label.
        measured: images that the metric was measured on.
    """

    hits: np.ndarray
    images: np.ndarray
    lost: dict[str, np.ndarray]
    measured: dict[str, np.ndarray]

    def curve(self, weights: np.ndarray, task: str) -> Curve:
        """The curve if every source counts as often as ``weights [sources]`` says."""
        left = (weights @ self.hits) / (weights @ self.images)
        means = {m: (weights @ total) / (weights @ self.measured[m]) for m, total in self.lost.items()}
        scores = [degradation({m: float(v[i]) for m, v in means.items()}) for i in range(len(left))]
        return Curve(tuple(s.value for s in scores), tuple(np.clip(left, 0, 1)), task, scores[0].name)


def potency(run: Run, method: str, decided: Decided, level: float = 0.95, seed: int = 0) -> Potency:
    """Ranks a run's attacks against one method.

    Targets are WAVES' for detection: quality lost where the TPR falls to .95 and to .7. Ranks are resampled over
    sources (percentiles of 500 resamples): where attacks are near ties such an interval is too narrow, so read it as a
    warning, not as a proof.

    Raises:
        StatisticsError: there is no threshold, or no attack has a curve.
    """
    decided = decided.of(int(run.about("method", method)["bits"]))
    limit = deployed_threshold(run, method, decided)
    task = f"detection (TPR at FPR {decided.fpr:g})" if decided.rule != "fixed" else "detection (TPR, fixed threshold)"
    metrics = [m["label"] for m in run.config["metrics"] if m["label"] in METRICS]
    sources = sorted(set(run.images.loc[run.images["split"] == "test", "source"]))
    evidence: dict[str, _Evidence] = {}
    unranked: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for attack in run.config["attacks"]:
        if attack["name"] != "identity":
            groups.setdefault(attack["name"], []).append(attack["label"])
    for name, labels in groups.items():
        try:
            evidence[name] = _evidence(run, method, labels, metrics, sources, limit)
        except StatisticsError as error:
            unranked[name] = str(error)
    evidence, lacking = _alike(evidence)
    unranked |= lacking
    if not evidence:
        raise StatisticsError(f"{method}: no attack has both a TPR and a quality, so none can be ranked")
    plain = np.ones(len(sources))
    curves = {name: part.curve(plain, task) for name, part in evidence.items()}
    ranked = rank_attacks(curves)
    draws = Seed.root(seed).child("potency", len(sources)).numpy()
    weights = draws.multinomial(len(sources), np.full(len(sources), 1 / len(sources)), size=_RESAMPLES)
    found: dict[str, list[int]] = {name: [] for name in evidence}
    for row in weights.astype(np.float64):
        for again in rank_attacks({name: part.curve(row, task) for name, part in evidence.items()}):
            found[again.attack].append(again.rank)
    ends = [(1 - level) / 2, (1 + level) / 2]
    spans = [np.quantile(found[r.attack], ends, method="nearest").astype(int) for r in ranked]
    return Potency(
        method,
        tuple(ranked),
        tuple(min(int(span[0]), r.rank) for span, r in zip(spans, ranked, strict=True)),
        tuple(max(int(span[1]), r.rank) for span, r in zip(spans, ranked, strict=True)),
        curves,
        unranked,
        len(sources),
        level,
    )


def _alike(evidence: dict[str, _Evidence]) -> tuple[dict[str, _Evidence], dict[str, str]]:
    """The attacks that share the largest usual set of metrics; scores over other sets do not compare."""
    sets = [tuple(part.lost) for part in evidence.values()]
    if not sets:
        return {}, {}
    usual = max(dict.fromkeys(sets), key=lambda held: (sets.count(held), len(held)))
    kept = {name: part for name, part in evidence.items() if tuple(part.lost) == usual}
    reason = f"no score over {', '.join(usual)}, which the others have (an untouched image has an infinite PSNR)"
    return kept, {name: reason for name in evidence if name not in kept}


def _evidence(
    run: Run, method: str, labels: list[str], metrics: list[str], sources: list[str], limit: Any
) -> _Evidence:
    hits, images = [], []
    lost: dict[str, list[np.ndarray]] = {m: [] for m in metrics}
    measured: dict[str, list[np.ndarray]] = {m: [] for m in metrics}
    for label in labels:
        sample = run.sample(method, label, "marked")
        if sample.status != "ok":
            raise StatisticsError(f"{label} is {sample.status}: an incomplete curve has no rank")
        values, origin = sample.tested()
        place = np.searchsorted(sources, origin.astype(str))
        hits.append(_summed(place, flagged(values, sample.bits, limit), len(sources)))
        images.append(_summed(place, np.ones(len(values)), len(sources)))
        for metric in metrics:
            frame = run.image_quality(method, label, metric)
            frame = frame[np.isfinite(frame["value"])]
            at = np.searchsorted(sources, frame["source"].to_numpy().astype(str))
            lost[metric].append(_summed(at, frame["value"].to_numpy(), len(sources)))
            measured[metric].append(_summed(at, np.ones(len(frame)), len(sources)))
    # A metric counts only if every strength and, so that no resample is empty, every source has it.
    whole = [m for m in metrics if all((count > 0).all() for count in measured[m])]
    if not whole:
        raise StatisticsError("no quality metric compares its pixels with the marked image's, so it has no curve")
    return _Evidence(
        np.stack(hits, axis=1),
        np.stack(images, axis=1),
        {m: np.stack(lost[m], axis=1) for m in whole},
        {m: np.stack(measured[m], axis=1) for m in whole},
    )


def _summed(place: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(place, weights=values.astype(np.float64), minlength=count)
