"""Is the new run worse than the base? Paired tests on the same images, seeds and attacks, and a verdict for each cell.

Only what has the same images, attacks, metrics and schema is compared; the method under test is what may differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..core.errors import StatisticsError, nearest
from .compare_cells import OUTCOMES, Judged, Outcome, Thresholds, compared_cell
from .statistics import paired

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .results import Run
    from .statistics.paired import Change
    from .summary import Decided

__all__ = ["MARGINS", "OUTCOMES", "Comparison", "Judged", "Outcome", "compare", "incomparable"]

MARGINS: dict[str, float] = {
    "tpr": 0.02,
    "fpr": 0.01,
    "auc": 0.01,
    "bit_accuracy": 0.01,
    "psnr": 0.5,
    "ssim": 0.005,
    "lpips": 0.01,
}
"""How much worse a quantity may become before it counts, in its own unit."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of two runs.

    Attributes:
        base: name of the base run.
        new: name of the new run.
        rows: every cell and quantity, in the order of the base run.
        decided: the decision rule that both were judged by.
        alpha: the level of the whole comparison: the chance of any false regression, whatever the number of tests.
        tests: how many tests share that level.
        matched: which method of the base stands against which of the new run.
        notes: what a reader must know first.
    """

    base: str
    new: str
    rows: tuple[Judged, ...]
    decided: Decided
    alpha: float
    tests: int
    matched: Mapping[str, str]
    notes: tuple[str, ...]

    def count(self, outcome: Outcome) -> int:
        """How many rows have this outcome."""
        return sum(row.outcome == outcome for row in self.rows)

    @property
    def comparable(self) -> bool:
        """Whether anything was compared, or newly fails."""
        return self.tests > 0 or self.count("newly failing") > 0

    @property
    def regressed(self) -> bool:
        """Whether anything got worse by more than its margin, or newly fails."""
        return self.count("regression") + self.count("newly failing") > 0

    @property
    def exit_code(self) -> int:
        """0 no regression was found, 1 a regression, 4 nothing was comparable."""
        return 4 if not self.comparable else int(self.regressed)

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        if not self.comparable:
            return "Nothing was comparable."
        if self.regressed:
            worse, failing = self.count("regression"), self.count("newly failing")
            parts = [f"{worse} significant and large"] * bool(worse) + [f"{failing} newly failing"] * bool(failing)
            return f"Regression: {', '.join(parts)}."
        open_, small = self.count("undecided"), self.count("small change")
        shown = self.count("equivalent") + self.count("identical")
        aside = self.count("vanished") + self.count("not comparable")
        tail = f" Not compared: {aside} rows that vanished or are not comparable." * bool(aside)
        if not open_ and not small:
            return f"No regression: all {self.tests} stay within their margins or improve.{tail}"
        parts = [f"{open_} undecided, because the images are too few to tell"] * bool(open_)
        parts += [f"{small} changed significantly and are not shown to be within the margin"] * bool(small)
        return (
            f"No regression found, which is not the same as none: of {self.tests} tests {', '.join(parts)}; {shown} "
            f"are shown to stay within their margins.{tail}"
        )

    def frame(self) -> pd.DataFrame:
        """The rows as a table."""
        return pd.DataFrame([_flat(row) for row in self.rows])


def _flat(row: Judged) -> dict[str, Any]:
    change = row.change
    return {
        "method": row.method,
        "attack": row.attack,
        "family": row.family,
        "quantity": row.quantity,
        "outcome": row.outcome,
        "base": row.base,
        "new": row.new,
        "change": change.value if change else None,
        "change_low": change.low if change else None,
        "change_high": change.high if change else None,
        "margin": None if math.isnan(row.margin) else row.margin,
        "better": row.better,
        "p_worse_holm": None if math.isnan(row.p_worse) else row.p_worse,
        "p_better_holm": None if math.isnan(row.p_better) else row.p_better,
        "n": change.n if change else None,
        "sources": change.sources if change else None,
        "test": change.method if change else None,
        "note": row.note,
    }


def compare(
    base: Run,
    new: Run,
    margins: Mapping[str, float] | None = None,
    on: Sequence[str] | None = None,
    match: Mapping[str, str] | None = None,
    alpha: float = 0.05,
    **decision: Any,
) -> Comparison:
    """Compares two runs cell by cell.

    Args:
        base: the reference, a run or a baseline.
        new: the run under test.
        margins: changes of :data:`MARGINS`.
        on: the quantities to judge; None takes all. Fewer quantities share the level between fewer tests.
        match: method label of the base to that of the new run, where labels differ; methods of the same name are
            matched by themselves.
        alpha: the chance of any false regression in the whole comparison (Holm).
        **decision: changes of the base's decision rule; both runs are judged by it.

    Returns:
        the comparison; :attr:`Comparison.exit_code` is what ``waterproof compare`` exits with.

    Raises:
        StatisticsError: an unknown quantity, margin or method.

    Example:
        >>> compare(load_run("runs/old"), load_run("runs/new")).sentence  # doctest: +SKIP
        'No regression: all 84 stay within their margins or improve.'
    """
    base = base.deciding(**decision)
    new = new.deciding(**{"threshold": None, **base.config["benchmark"]["decision"]})
    metrics = {m["label"]: m for m in base.config["metrics"]}
    wanted = _quantities(on, metrics)
    limits = _margins(margins, metrics)
    pairs = _matched(base, new, match or {})
    reason = incomparable(base, new)
    rows = list(_rows(base, new, pairs, wanted, reason))
    rows = [replace(row, margin=limits[row.quantity]) if row.quantity in limits else row for row in rows]
    judged, tests = _judge(rows, alpha)
    return Comparison(
        str(base.folder),
        str(new.folder),
        tuple(judged),
        base.decision(),
        alpha,
        tests,
        pairs,
        tuple(_notes(base, new, reason)),
    )


def _quantities(on: Sequence[str] | None, metrics: Mapping[str, Any]) -> list[str]:
    valid = ["tpr", "fpr", "auc", "bit_accuracy", *metrics]
    if on is not None and not on:
        raise StatisticsError(f"no quantity is given to compare; valid: {', '.join(valid)}")
    for name in on or ():
        if name not in valid:
            raise StatisticsError(f"there is no quantity '{name}' to compare.{nearest(name, valid)}")
    return [name for name in valid if on is None or name in on]


def _margins(given: Mapping[str, float] | None, metrics: Mapping[str, Any]) -> dict[str, float]:
    limits = {**MARGINS, **(given or {})}
    for name, value in limits.items():
        if name not in {*MARGINS, *metrics}:
            raise StatisticsError(f"there is no quantity '{name}' for a margin.{nearest(name, {*MARGINS, *metrics})}")
        if not (math.isfinite(value) and value >= 0):
            raise StatisticsError(f"the margin of {name} is {value}; it must be a number of at least 0")
    # A metric that nobody gave a margin for: any significant loss counts.
    return {name: limits.get(name, 0.0) for name in {*limits, *metrics}}


def _matched(base: Run, new: Run, match: Mapping[str, str]) -> dict[str, str]:
    """Methods by label; what is left over, by component name where that is unambiguous."""
    for old, other in match.items():
        base.known("method", old)
        new.known("method", other)
    pairs = dict(match)
    for label in base.methods:
        if label not in pairs and label in new.methods:
            pairs[label] = label
    left = [m for m in base.config["methods"] if m["label"] not in pairs]
    free = [m for m in new.config["methods"] if m["label"] not in pairs.values()]
    for method in left:
        same = [m["label"] for m in free if m["name"] == method["name"]]
        if len(same) == 1 and sum(m["name"] == method["name"] for m in left) == 1:
            pairs[method["label"]] = same[0]
    return pairs


def incomparable(base: Run, new: Run) -> str:
    """Why nothing of two runs can be compared (data, images, keys); empty if they can."""
    data = [next((i for n, i in run.config["specs"].items() if n.startswith("dataset ")), "") for run in (base, new)]
    if data[0] != data[1]:
        return "another dataset, or another version or other parameters of it"
    if base.config["images"] != new.config["images"]:
        return f"other images: {_difference(base, new)}"
    keys = [(run.config["benchmark"]["key"], run.config["benchmark"]["seed"]) for run in (base, new)]
    if keys[0][0] != keys[1][0]:
        return f"another key policy ('{keys[0][0]}' and '{keys[1][0]}')"
    if keys[0][0] == "fixed" and keys[0] != keys[1]:
        return (
            "another key: with 'key: fixed' another seed draws another key, and rates of one key belong to that key; "
            "use the same seed, or 'key: per-image'"
        )
    return ""


def _difference(base: Run, new: Run) -> str:
    lost, extra = (len(set(a.images.index) - set(b.images.index)) for a, b in ((base, new), (new, base)))
    if not lost and not extra:
        return "the same names, but other content, sources or splits"
    return f"{lost} of the base's {len(base.images)} are missing, {extra} are new"


def _notes(base: Run, new: Run, reason: str) -> Iterator[str]:
    if reason:
        yield f"Not comparable: {reason}."
        return
    seeds = [run.config["benchmark"]["seed"] for run in (base, new)]
    if seeds[0] != seeds[1]:
        yield f"The seeds differ ({seeds[0]} and {seeds[1]}): images are paired, the attacks' noise and keys are not."
    packages = [run.config["provenance"].get("packages", {}) for run in (base, new)]
    moved = [f"{n} {v} -> {packages[1][n]}" for n, v in packages[0].items() if n in packages[1] and packages[1][n] != v]
    if moved:
        yield f"Packages differ, which may be the cause of a change: {', '.join(moved)}."


def _rows(base: Run, new: Run, pairs: Mapping[str, str], wanted: list[str], reason: str) -> Iterator[Judged]:
    families = {a["label"]: a["family"] for run in (new, base) for a in run.config["attacks"]}
    known: Thresholds = {}
    for old in base.methods:
        other = pairs.get(old)
        for attack in base.attacks:
            blank = Judged(old, attack, families[attack], "cell", "not comparable")
            if reason:
                yield replace(blank, note=reason)
            elif other is None:
                yield replace(blank, outcome="vanished", note="the new run has no such method (see --match)")
            elif attack not in new.attacks:
                yield replace(blank, outcome="vanished", note="the new run has no such attack")
            elif base.config["specs"].get(f"attack {attack}") != new.config["specs"].get(f"attack {attack}"):
                yield replace(blank, note="another version of the attack")
            else:
                yield from compared_cell(base, new, old, other, blank, wanted, known)
    for label in new.methods:
        if not reason and label not in pairs.values():
            yield Judged(label, "", "", "cell", "added", note="only the new run has this method")
    for label in new.attacks:
        if not reason and label not in base.attacks:
            yield Judged("", label, families[label], "cell", "added", note="only the new run has this attack")


def _judge(rows: list[Judged], alpha: float) -> tuple[list[Judged], int]:
    """Holm over every test of the comparison, then a word for each."""
    tested = [i for i, row in enumerate(rows) if row.change is not None]
    oriented = {i: _oriented(rows[i]) for i in tested}
    worse = dict(zip(tested, paired.holm([oriented[i].p_worse for i in tested]), strict=True)) if tested else {}
    better = dict(zip(tested, paired.holm([oriented[i].p_better for i in tested]), strict=True)) if tested else {}
    judged = list(rows)
    for i in tested:
        outcome: Any = paired.verdict(oriented[i], rows[i].margin, worse[i], better[i], alpha)
        judged[i] = replace(rows[i], outcome=outcome, p_worse=float(worse[i]), p_better=float(better[i]))
    return judged, len(tested)


def _oriented(row: Judged) -> Change:
    """The change with its sign such that negative is worse."""
    change = row.change
    if change is None or row.better == "higher":
        return change  # type: ignore[return-value]
    return replace(
        change,
        value=-change.value,
        low=-change.high,
        high=-change.low,
        p_worse=change.p_better,
        p_better=change.p_worse,
    )
