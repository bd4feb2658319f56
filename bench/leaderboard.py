"""Several runs on one board: their methods ranked with intervals, if data, attacks and metrics agree in version.

The first run is the reference. What does not agree with it keeps its row, without a rank, with the reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..core.errors import StatisticsError
from .compare import incomparable
from .statistics import intervals
from .statistics.ranking import rank_methods
from .summary import Decided, deployed_threshold, families, flagged, null_holds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .results import Run
    from .statistics.intervals import Rate
    from .statistics.ranking import Ranked


@dataclass(frozen=True, slots=True)
class Entry:
    """A method on the board.

    Attributes:
        method: its label; the run's name is added where two runs hold other versions of the same label.
        run: the run folder or baseline file.
        version: of the component.
        bits: payload length, 0 without.
        reason: why it is not ranked; empty if it is.
        place: its rank with intervals, None if it is not ranked. The value is the mean TPR over all attacked cells.
        tpr: TPR by attack family.
        fpr: FPR on unattacked, unmarked images.
        quality: what the mark costs, by metric.
        null: ``holds``, ``fails``, or empty where it cannot be tested.
        n: test images.
        threshold: the threshold in force.
    """

    method: str
    run: str
    version: int
    bits: int
    reason: str = ""
    place: Ranked | None = None
    tpr: dict[str, Rate] = field(default_factory=dict)
    fpr: Rate | None = None
    quality: dict[str, Rate] = field(default_factory=dict)
    null: str = ""
    n: int = 0
    threshold: float = math.nan


@dataclass(frozen=True, slots=True)
class Board:
    """A leaderboard.

    Attributes:
        decided: the decision rule, the same for all.
        entries: ranked ones first, best first.
        families: attack families in order, ``none`` for no attack.
        attacks: labels of the attacks that a row needs.
        attacked: how many of them enter the mean TPR: all but the unattacked images.
        metrics: labels and units of the quality metrics.
        sources: independent sources behind the ranks.
        dataset: label and image list of the data.
        notes: what a reader must know first.
        references: what to cite.
    """

    decided: Decided
    entries: tuple[Entry, ...]
    families: tuple[str, ...]
    attacks: tuple[str, ...]
    attacked: int
    metrics: tuple[tuple[str, str], ...]
    sources: int
    dataset: str
    notes: tuple[str, ...]
    references: tuple[str, ...]

    @property
    def ranked(self) -> list[Entry]:
        """The entries that have a rank, best first; equal values by name."""
        return [entry for entry in self.entries if entry.place is not None]

    def frame(self) -> pd.DataFrame:
        """The board as a table, unrounded."""
        return pd.DataFrame([self._flat(entry) for entry in self.entries])

    def _flat(self, entry: Entry) -> dict[str, Any]:
        place = entry.place
        row: dict[str, Any] = {
            "rank": place.rank if place else None,
            "rank_low": place.rank_low if place else None,
            "rank_high": place.rank_high if place else None,
            "group": place.group if place else None,
            "method": entry.method,
            "version": entry.version,
            "bits": entry.bits,
            "n": entry.n,
            "sources": self.sources if place else None,
            "rule": self.decided.rule,
            "alpha": self.decided.fpr,
            "threshold": entry.threshold,
            "tpr": place.value if place else None,
            "tpr_low": place.low if place else None,
            "tpr_high": place.high if place else None,
        }
        rates = {f"tpr_{name}": rate for name, rate in entry.tpr.items()} | dict(entry.quality)
        for name, rate in {**rates, **({"fpr_no_attack": entry.fpr} if entry.fpr else {})}.items():
            row |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
        return {**row, "null": entry.null, "run": entry.run, "reason": entry.reason}


def merge(runs: Sequence[Run], **decision: Any) -> Board:
    """Puts the methods of several runs on one board.

    Args:
        runs: runs or baselines; the first is the reference for data, attacks, metrics and the decision rule.
        **decision: changes of the reference's decision rule.

    Raises:
        StatisticsError: there is no run, or a decision is out of range.

    Example:
        >>> merge([load_run("runs/mine"), load_run("runs/theirs")]).frame()  # doctest: +SKIP
    """
    if not runs:
        raise StatisticsError("a leaderboard needs at least one run")
    reference = runs[0].deciding(**decision)
    decided = reference.decision()
    attacks = [a["label"] for a in reference.config["attacks"]]
    counted = _counted(reference)
    entries: list[Entry] = []
    values: dict[str, np.ndarray] = {}
    specs: dict[str, list[tuple[str, str]]] = {}
    for run in [reference, *(r.deciding(**reference.config["benchmark"]["decision"]) for r in runs[1:])]:
        reason = incomparable(reference, run) or _other_parts(reference, run)
        tables = None if reason else families(run, decided, attacks)
        for about in run.config["methods"]:
            label = about["label"]
            entry = Entry(label, str(run.folder), int(about["version"]), int(about["bits"]), reason)
            spec = str(run.config["specs"].get(f"method {label}"))
            twin = next((other for other, known in specs.get(label, []) if known == spec), None)
            if twin is not None and not reason:
                entry = replace(entry, reason=f"the same method, in the same version, is in {twin}")
            entry = replace(entry, method=_free_name(label, run, {e.method for e in entries}))
            if not entry.reason and tables is not None:
                entry, matrix = _measured(entry, run, label, decided, reference, counted, tables)
                if matrix is not None:
                    values[entry.method] = matrix
                    specs.setdefault(label, []).append((str(run.folder), spec))
            entries.append(entry)
    places = {place.name: place for place in rank_methods(values, level=decided.level)} if values else {}
    entries = [replace(e, place=places.get(e.method)) for e in entries]
    entries.sort(key=lambda e: (e.place is None, (e.place.rank or 0, e.method) if e.place else (0, "")))
    return Board(
        decided,
        tuple(entries),
        tuple(dict.fromkeys(a["family"] for a in reference.config["attacks"])),
        tuple(attacks),
        len(_counted(reference)),
        tuple((m["label"], m["unit"]) for m in reference.config["metrics"]),
        int(reference.images.loc[reference.images["split"] == "test", "source"].nunique()),
        f"{_data(reference)}, {len(reference.images)} images",
        tuple(_notes(entries, runs)),
        tuple(_references(runs)),
    )


def _data(run: Run) -> str:
    return next((name.removeprefix("dataset ") for name in run.config["specs"] if name.startswith("dataset ")), "data")


def _other_parts(reference: Run, run: Run) -> str:
    """Why attacks or metrics of another run do not count here."""
    mine, other = reference.config["specs"], run.config["specs"]
    moved = [n for n, spec in mine.items() if n.split()[0] in ("attack", "metric") and other.get(n, spec) != spec]
    return f"another version of {', '.join(moved)}" if moved else ""


def _free_name(label: str, run: Run, taken: set[str]) -> str:
    """The label; where another row has it, with the run's name, its path, or a number."""
    names = [label, f"{label} · {run.folder.name}", f"{label} · {run.folder}"]
    names += [f"{names[-1]} ({i})" for i in range(2, len(taken) + 3)]
    return next(name for name in names if name not in taken)


def _measured(
    entry: Entry,
    run: Run,
    label: str,
    decided: Decided,
    reference: Run,
    counted: list[str],
    tables: pd.DataFrame,
) -> tuple[Entry, np.ndarray | None]:
    """The row's numbers, and flags by source and cell for its rank."""
    try:
        limit = deployed_threshold(run, label, decided)
    except StatisticsError as error:
        return replace(entry, reason=str(error)), None
    rows = tables[tables["method"] == label].set_index("family")
    rates = {str(name): _rate(row, "tpr", decided.level) for name, row in rows.iterrows() if "tpr" in row}
    clean = next((row for name, row in rows.iterrows() if name == "none"), None)
    entry = replace(
        entry,
        tpr={name: rate for name, rate in rates.items() if rate is not None},
        fpr=None if clean is None else _rate(clean, "fpr", decided.level),
        quality=_quality(run, label, decided),
        null={True: "holds", False: "fails", None: ""}[null_holds(run, label)],
        n=int((run.images["split"] == "test").sum()),
        threshold=limit.value,
    )
    lacking = [attack for attack in reference.attacks if not _whole(run, label, attack)]
    if lacking:
        some = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
        total = len(reference.attacks)
        return replace(entry, reason=f"incomplete: {len(lacking)} of {total} attacks are not whole ({some})"), None
    return entry, np.stack([_by_source(run, label, attack, limit) for attack in counted], axis=1)


def _whole(run: Run, label: str, attack: str) -> bool:
    """Whether every test image was scored, marked and unmarked: ranks compare the same images only."""
    if attack not in run.attacks:
        return False
    test = int((run.images["split"] == "test").sum())
    samples = [run.sample(label, attack, arm) for arm in ("marked", "unmarked")]
    return all(sample.status == "ok" and int(sample.test.sum()) == test for sample in samples)


def _counted(run: Run) -> list[str]:
    """The attacks that enter the mean: unattacked images only where there is nothing else."""
    labels = [a["label"] for a in run.config["attacks"] if a["name"] != "identity"]
    return labels or [a["label"] for a in run.config["attacks"]]


def _by_source(run: Run, label: str, attack: str, limit: Any) -> np.ndarray:
    """Share of each source's test images that are flagged, sources in a fixed order."""
    sample = run.sample(label, attack, "marked")
    values, sources = sample.tested()
    hits = pd.Series(flagged(values, sample.bits, limit).astype(np.float64))
    means: np.ndarray = hits.groupby(sources).mean().sort_index().to_numpy()
    return means


def _rate(row: pd.Series, name: str, level: float) -> Rate | None:
    if pd.isna(row.get(name)):
        return None
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    images, sources, how = int(row["n_marked"]), int(row["n_sources"]), str(row[f"{name}_interval"])
    return intervals.Rate(value, low, high, images, sources, how, level)


def _quality(run: Run, label: str, decided: Decided) -> dict[str, Rate]:
    clean = next((a["label"] for a in run.config["attacks"] if a["name"] == "identity"), None)
    found = {}
    for metric in run.config["metrics"]:
        values, sources, _ = run.quality(label, clean, metric["label"]) if clean else (np.array([]), np.array([]), "")
        finite = np.isfinite(values)
        if finite.any():
            found[metric["label"]] = intervals.mean(values[finite], sources[finite], level=decided.level)
    return found


def _notes(entries: list[Entry], runs: Sequence[Run]) -> list[str]:
    ranked = [entry for entry in entries if not entry.reason]
    notes = []
    payloads = sorted({entry.bits for entry in ranked})
    if len(payloads) > 1:
        listed = ", ".join(str(bits) for bits in payloads)
        notes.append(f"Not at equal payload: {listed} bits. A longer payload is harder to keep whole.")
    seeds = {run.config["benchmark"]["seed"] for run in runs}
    if len(seeds) > 1:
        notes.append("The runs have other seeds: their images are the same, the attacks' noise and the keys are not.")
    failing = [entry.method for entry in ranked if entry.null == "fails"]
    if failing:
        notes.append(f"The null of {', '.join(failing)} fails its test: a threshold by theory does not hold its FPR.")
    return notes


def _references(runs: Sequence[Run]) -> list[str]:
    found: dict[str, None] = {}
    for run in runs:
        found |= dict.fromkeys(run.references())
    return list(found)
