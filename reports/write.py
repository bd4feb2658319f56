"""Writes a report: one self-contained HTML page, every figure as PNG and PDF, every table as CSV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..bench.null_study import NullStudy, study_every
from ..bench.potency import Potency, potency
from ..bench.reported import SOURCES
from ..bench.store import write_text, writing
from ..bench.strictness import every_strictness
from ..bench.summary import families
from ..core.errors import StatisticsError
from . import figures, words
from .adversary import AdversaryExhibit, draw_adversary
from .figures_strictness import strictness_curves
from .gallery import gallery
from .null import NullExhibit, draw_null
from .page import Picture, file_name, records, render, save_figure
from .protection import write_protection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

    from ..bench.results import Run


def write_report(run: Run, out: Path | None = None, **decision: Any) -> Path:
    """Writes the report of a run.

    Args:
        run: the run.
        out: the folder to write into; None takes ``report`` in the run folder.
        **decision: changes of the benchmark's decision rule: ``fpr``, ``rule``, ``sided``, ``calibration``, ``level``.

    Returns:
        the path of the page.

    Raises:
        StoreError: the folder cannot be written.
    """
    folder = Path(out) if out is not None else run.folder / "report"
    run = run.deciding(**decision)
    if run.protections:
        with writing(folder):
            return write_protection(run, folder, **shared_parts(run))
    summary, table = run.summary(), families(run, run.decision())
    with writing(folder):
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        pictures = {name: save_figure(figure, folder / "figures" / name) for name, figure in _figures(run, summary)}
        summary.to_csv(folder / "summary.csv", index=False)
        table.to_csv(folder / "families.csv", index=False)
        write_text(folder / "families.md", markdown(run, summary, table))
        run.scores().to_csv(folder / "scores.csv.gz", index=False)
        potencies = _potencies(run)
        if potencies:
            pd.concat([p.frame() for p in potencies]).to_csv(folder / "potency.csv", index=False)
        nulls = draw_null(*_studies(run), folder / "figures", folder)
        strict = _strictness(run, folder, pictures)
        adversary = draw_adversary(run, summary, folder)
        page = _render(run, summary, table, pictures, potencies, nulls, strict, adversary)
        write_text(folder / "index.html", page)
    return folder / "index.html"


def _figures(run: Run, summary: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Names and figures; those that the run cannot fill are left out."""
    yield "survival", figures.survival(run, summary)
    for column in ("bit_accuracy", "tpr"):
        figure = figures.strength_curves(run, summary, column)
        if figure is not None:
            yield f"strength-{column.replace('_', '-')}", figure
    for metric in run.config["metrics"]:
        figure = figures.quality_against_tpr(run, summary, metric["label"])
        if figure is not None:
            yield f"quality-{file_name(metric['label'])}", figure
    if "marked" not in run.config["benchmark"].get("arms", ("marked",)):
        return
    for name in dict.fromkeys(a["name"] for a in run.config["attacks"] if a["family"] != "forgery"):
        yield f"roc-{file_name(name)}", figures.roc_curves(run, name)


def _render(
    run: Run,
    summary: pd.DataFrame,
    table: pd.DataFrame,
    pictures: dict[str, Picture],
    potencies: list[Potency],
    nulls: NullExhibit,
    strict: list[dict[str, Any]],
    adversary: AdversaryExhibit | None,
) -> str:
    exhibits, missing = gallery(run, summary)
    return render(
        "report.html",
        run=run,
        decided=run.decision(),
        rule=words.rule(run),
        findings=words.findings(run, summary),
        warnings=words.warnings(run, summary),
        families=_family_rows(run, table),
        family_names=list(dict.fromkeys(table["family"])),
        quality=_mark_quality(run, summary),
        rows=records(summary),
        metrics=run.config["metrics"],
        pictures={n: picture for n, picture in pictures.items() if not n.startswith(("roc-", "strictness"))},
        strict_picture=pictures.get("strictness"),
        rocs={name.removeprefix("roc-"): picture for name, picture in pictures.items() if name.startswith("roc-")},
        exhibits=exhibits,
        missing=missing,
        potencies=potencies,
        nulls=nulls,
        strict=strict,
        adversary=adversary,
        fprs=run.config["benchmark"].get("fprs", ()),
        published=_reported(run),
        captions={name: _caption(name) for name in pictures},
        **shared_parts(run),
    )


def shared_parts(run: Run) -> dict[str, Any]:
    """What every page about a run ends with: what failed, what was left out, how it was made."""
    import yaml

    return {
        "failures": _failures(run),
        "skipped": _skipped(run),
        "rejected": run.store.index().rejected,
        "references": run.references(),
        "provenance": run.config["provenance"],
        "benchmark_yaml": yaml.safe_dump(run.config["benchmark"], sort_keys=False, allow_unicode=True),
    }


_CAPTIONS = {
    "survival": "Every attack at the deployed threshold; bars are intervals clustered by source.",
    "strength-bit-accuracy": "Bit accuracy against strength, harder to the right; dotted: chance.",
    "strength-tpr": "TPR at the deployed threshold against strength, harder to the right.",
}


def _caption(name: str) -> str:
    if name.startswith("quality-"):
        return "What the attack cost the image against what is left of detection; one dot for each attack and strength."
    return _CAPTIONS.get(name, "")


def _family_rows(run: Run, table: pd.DataFrame) -> dict[str, dict[str, dict[str, Any]]]:
    rows = records(table)
    return {m: {r["family"]: r for r in rows if r["method"] == m} for m in run.methods}


def markdown(run: Run, summary: pd.DataFrame, table: pd.DataFrame) -> str:
    """The summary by attack family as a Markdown table, for a README or a pull request."""
    names = list(dict.fromkeys(table["family"]))
    quality, rows = _mark_quality(run, summary), _family_rows(run, table)
    metrics = run.config["metrics"]
    head = [
        "method",
        *(m["label"] for m in metrics),
        *("no attack" if n == "none" else n for n in names),
        "FPR, no attack",
    ]
    lines = [head, ["---"] * len(head)]
    for method in run.methods:
        marks = [words.number(quality.get(method, {}).get(m["label"]), 1 if m["unit"] else 3) for m in metrics]
        rates = [words.rate(rows[method][name], "tpr") for name in names]
        lines.append([method, *marks, *rates, words.rate(rows[method].get("none"), "fpr", 3)])
    decided = run.decision()
    note = (
        f"TPR at {words.rule(run)}, with {decided.level:.0%} intervals, on "
        f"{int((run.images['split'] == 'test').sum())} test images."
    )
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines) + f"\n\n{note}\n"


def _mark_quality(run: Run, summary: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """What the mark itself costs: the quality metrics of unattacked marked images."""
    rows = records(summary[summary["attack_name"] == "identity"])
    return {row["method"]: row for row in rows}


def _studies(run: Run) -> tuple[list[NullStudy], dict[str, str]]:
    try:
        return study_every(run, whiten=bool((run.images["split"] == "calibration").any()))
    except StatisticsError as error:
        return [], {"every method": str(error)}


def _potencies(run: Run) -> list[Potency]:
    """Attacks ranked against each method, where two or more have a curve."""
    found = []
    for method in run.methods:
        try:
            ranked = potency(run, method, run.decision())
        except StatisticsError:
            continue
        if len(ranked.ranked) > 1:
            found.append(ranked)
    return found


def _strictness(run: Run, folder: Path, pictures: dict[str, Picture]) -> list[dict[str, Any]]:
    """TPR at the benchmark's further false-positive rates, a row for each method and attack; adds the figure."""
    fprs = list(run.config["benchmark"].get("fprs") or ())
    studies = every_strictness(run) if fprs else []
    if not studies:
        return []
    families = {attack["label"]: attack["family"] for attack in run.config["attacks"]}
    pictures["strictness"] = save_figure(strictness_curves(studies, families), folder / "figures" / "strictness")
    table = pd.concat([study.at(fprs) for study in studies])
    table.to_csv(folder / "strictness.csv", index=False)
    rows = []
    for (method, attack), part in table.groupby(["method", "attack"], sort=False):
        holds = next(study.theory_holds for study in studies if study.method == method)
        rows.append({"method": method, "attack": attack, "holds": holds, "cells": records(part)})
    return rows


def _reported(run: Run) -> list[str]:
    """Where the published numbers come from that stand beside those of the run's methods."""
    return list(dict.fromkeys(SOURCES[m["name"]] for m in run.config["methods"] if m["name"] in SOURCES))


def _failures(run: Run) -> list[dict[str, Any]]:
    bad = run.cells[~run.cells["status"].isin(["ok", "skipped"])]
    return records(bad)


def _skipped(run: Run) -> list[dict[str, Any]]:
    """Skipped cells by reason; a reason that differs only in the attack is said once."""
    skipped = run.cells[run.cells["status"] == "skipped"]
    reasons = [
        reason.removesuffix(f" after {attack}")
        for reason, attack in zip(skipped["reason"], skipped["attack"], strict=True)
    ]
    found = []
    for reason, rows in skipped.groupby(reasons, sort=False):
        attacks = list(dict.fromkeys(rows["attack"]))
        found.append(
            {"reason": reason, "cells": len(rows), "attacks": attacks if len(attacks) < len(run.attacks) else []}
        )
    return found
