"""A comparison as people and machines read it: terminal table, Markdown, JUnit XML, JSON."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ..bench.compare import OUTCOMES, Comparison, Judged, Outcome
from .words import number, small

if TYPE_CHECKING:
    from collections.abc import Iterable

_LOUD: tuple[Outcome, ...] = ("regression", "improvement", "small change")
_QUIET: tuple[Outcome, ...] = ("newly failing", "vanished", "not comparable", "added")
_MOST_UNDECIDED = 100
"""A comment on a pull request has room for about 400 rows."""

_MEANING: dict[Outcome, str] = {
    "regression": "worse, significantly and by more than the margin",
    "newly failing": "images fail that did not fail before: counts as a regression",
    "vanished": "the base run has it, the new run has not",
    "not comparable": "other data, attack or metric version",
    "undecided": "too few images to tell",
    "small change": "significant, but not shown to be larger or smaller than the margin",
    "improvement": "better, significantly and by more than the margin",
    "equivalent": "shown to stay within the margin",
    "identical": "the same value for every image",
    "added": "only the new run has it",
}


def print_verdict(comparison: Comparison, most: int = 40) -> None:
    """Prints counts, the rows that matter (at most ``most``), and the verdict last."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    for note in comparison.notes:
        console.print(note, markup=False)
    counts = Table(title=escape(f"{comparison.base} -> {comparison.new}"), title_justify="left")
    for heading in ("outcome", "rows", "meaning"):
        counts.add_column(heading, justify="right" if heading == "rows" else "left")
    for outcome in OUTCOMES:
        if comparison.count(outcome):
            counts.add_row(outcome, str(comparison.count(outcome)), _MEANING[outcome])
    console.print(counts)
    loud = [row for row in comparison.rows if row.outcome in _LOUD]
    if loud:
        table = Table(title=_rule(comparison), title_justify="left")
        for heading in _HEAD:
            table.add_column(heading, no_wrap=heading != "note")
        for row in _sorted(loud)[:most]:
            table.add_row(*map(escape, _line(row)))
        console.print(table)
        if len(loud) > most:
            console.print(f"and {len(loud) - most} more: --markdown or --json holds all")
    for line in _grouped(comparison.rows):
        console.print(line, markup=False)
    console.print(comparison.sentence, markup=False, style="bold red" if comparison.regressed else "bold")


_HEAD = ("outcome", "method", "attack", "quantity", "base", "new", "change", "margin", "p (Holm)", "n")


def _line(row: Judged) -> list[str]:
    change = row.change
    if change is None:
        return [row.outcome, row.method, row.attack, row.quantity, *["–"] * 3, "", "", row.note]
    digits = 2 if row.quantity == "psnr" else 3
    return [
        row.outcome,
        row.method,
        row.attack,
        row.quantity.replace("_", " "),
        number(row.base, digits),
        number(row.new, digits),
        f"{change.value:+.{digits}f} [{_signed(change.low, digits)}, {_signed(change.high, digits)}]",
        number(row.margin, digits),
        small(min(row.p_worse, row.p_better)),
        f"{change.n}" if change.n == change.sources else f"{change.n} ({change.sources} sources)",
    ]


def _signed(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:+.{digits}f}"


def _sorted(rows: Iterable[Judged]) -> list[Judged]:
    def size(row: Judged) -> float:
        return -abs(row.change.value) / max(row.margin, 1e-12) if row.change else -math.inf

    return sorted(rows, key=lambda row: (OUTCOMES.index(row.outcome), size(row)))


def _rule(comparison: Comparison) -> str:
    d = comparison.decided
    where = f"at {d.threshold:g}" if d.rule == "fixed" and d.threshold is not None else f"at FPR {d.fpr:g}"
    return (
        f"threshold by {d.rule} {where}, {d.sided}-sided; level {comparison.alpha:g} for all {comparison.tests} tests "
        "together (Holm)"
    )


def _grouped(rows: Iterable[Judged]) -> list[str]:
    """What was not compared, one line for each reason."""
    groups: dict[tuple[str, str, str], list[Judged]] = {}
    for row in rows:
        if row.outcome in _QUIET:
            groups.setdefault((row.outcome, row.method, row.note), []).append(row)
    lines = []
    for (outcome, method, note), members in groups.items():
        attacks = list(dict.fromkeys(row.attack for row in members if row.attack))
        where = ", ".join(attacks[:3]) + (f" and {len(attacks) - 3} more" if len(attacks) > 3 else "")
        lines.append(f"{outcome}: {', '.join(part for part in (method, where) if part)}: {note}")
    return lines


def markdown(comparison: Comparison) -> str:
    """The verdict for a pull-request comment."""
    sign = "❌" if comparison.regressed else "⚪" if not comparison.comparable else "✅"
    if sign == "✅" and comparison.count("undecided"):
        sign = "⚠️"
    lines = [f"### {sign} waterproof: {comparison.sentence}", ""]
    lines += [f"> {note}" for note in comparison.notes] + [""] * bool(comparison.notes)
    present = [o for o in OUTCOMES if comparison.count(o)]
    lines += ["| outcome | rows | meaning |", "| --- | ---: | --- |"]
    lines += [f"| {o} | {comparison.count(o)} | {_MEANING[o]} |" for o in present]
    loud = [row for row in comparison.rows if row.outcome in _LOUD]
    if loud:
        lines += ["", *_table(_sorted(loud))]
    lines += ["", *(f"- {line}" for line in _grouped(comparison.rows))]
    undecided = [row for row in comparison.rows if row.outcome == "undecided"]
    if undecided:
        title = f"{len(undecided)} undecided"
        shown = _table(_sorted(undecided)[:_MOST_UNDECIDED])
        more = [f"and {len(undecided) - _MOST_UNDECIDED} more"] if len(undecided) > _MOST_UNDECIDED else []
        lines += ["", f"<details><summary>{title}</summary>", "", *shown, "", *more, "</details>"]
    margins = {row.quantity: row.margin for row in comparison.rows if row.change}
    stated = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in margins.items())
    lines += ["", f"<sub>{comparison.base} → {comparison.new}; {_rule(comparison)}. Margins: {stated or 'none'}.</sub>"]
    return "\n".join(lines) + "\n"


def _table(rows: Iterable[Judged]) -> list[str]:
    head = ["| " + " | ".join(_HEAD) + " |", "|" + " --- |" * len(_HEAD)]
    return head + [
        "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in _line(row)) + " |" for row in rows
    ]


def junit(comparison: Comparison) -> str:
    """JUnit XML: a failure for each regression and each newly failing cell, skipped where nothing is known."""
    bad: tuple[Outcome, ...] = ("regression", "newly failing")
    silent: tuple[Outcome, ...] = ("vanished", "not comparable", "undecided")
    rows = comparison.rows
    suite = ElementTree.Element(
        "testsuite",
        name="waterproof compare",
        tests=str(len(rows)),
        failures=str(sum(row.outcome in bad for row in rows)),
        skipped=str(sum(row.outcome in silent for row in rows)),
        errors="0",
    )
    for row in rows:
        name = " · ".join(part for part in (row.attack, row.quantity) if part)
        case = ElementTree.SubElement(suite, "testcase", classname=row.method or "run", name=name)
        text = " ".join(part for part in (row.outcome, _words(row), row.note) if part)
        if row.outcome in bad:
            ElementTree.SubElement(case, "failure", message=text, type=row.outcome).text = _rule(comparison)
        elif row.outcome in silent:
            ElementTree.SubElement(case, "skipped", message=text)
        else:
            ElementTree.SubElement(case, "system-out").text = text
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _words(row: Judged) -> str:
    if row.change is None:
        return ""
    _, _, _, _, base, new, change, margin, p, n = _line(row)
    return f"{base} -> {new}, change {change}, margin {margin}, p {p}, n {n}"


def as_json(comparison: Comparison) -> str:
    """Everything, unrounded, for programs."""
    found: dict[str, Any] = {
        "verdict": comparison.sentence,
        "exit_code": comparison.exit_code,
        "base": comparison.base,
        "new": comparison.new,
        "alpha": comparison.alpha,
        "tests": comparison.tests,
        "rule": comparison.decided.rule,
        "fpr": comparison.decided.fpr,
        "threshold": comparison.decided.threshold,
        "sided": comparison.decided.sided,
        "level": comparison.decided.level,
        "matched": dict(comparison.matched),
        "counts": {outcome: comparison.count(outcome) for outcome in OUTCOMES},
        "notes": list(comparison.notes),
        "rows": [{key: _plain(value) for key, value in row.items()} for row in comparison.frame().to_dict("records")],
    }
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """JSON knows no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
