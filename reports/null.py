"""The null report as people read it: HTML, CSV, figures, a terminal table."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING

import pandas as pd

from ..bench.store import write_text, writing
from .figures_null import attacked_nulls, null_panels
from .page import file_name, render, save_figure
from .words import count, number, small

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ..bench.null_study import NullStudy
    from ..bench.results import Run
    from .page import Picture


def write_null(run: Run, studies: Sequence[NullStudy], refused: Mapping[str, str], folder: Path) -> Path:
    """Writes ``index.html``, ``null.csv`` and figures; returns the page's path.

    Args:
        run: the run that was studied.
        studies: one for each method with a payload.
        refused: the other methods, and why there is nothing to test.
        folder: where to write.

    Raises:
        StoreError: the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        exhibit = draw_null(studies, refused, folder, folder)
        page = render(
            "null.html", run=run, decided=run.decision(), **{name: getattr(exhibit, name) for name in exhibit.__slots__}
        )
        write_text(folder / "index.html", page)
    return folder / "index.html"


@dataclass(frozen=True, slots=True)
class NullExhibit:
    """What a page shows of the null.

    Attributes:
        studies: one for each method with a payload.
        refused: the other methods, and why.
        panels: the figure of each method.
        names: file name of each method.
        attacked: the figure over attacks; None if there is only one.
    """

    studies: Sequence[NullStudy]
    refused: Mapping[str, str]
    panels: dict[str, Picture]
    names: dict[str, str]
    attacked: Picture | None


def draw_null(studies: Sequence[NullStudy], refused: Mapping[str, str], figures: Path, tables: Path) -> NullExhibit:
    """Writes ``null.csv`` into ``tables`` and the figures into ``figures``."""
    if studies:
        pd.concat([study.frame() for study in studies]).to_csv(tables / "null.csv", index=False)
    names = {s.method: file_name(s.method) for s in studies}
    panels = {s.method: save_figure(null_panels(s), figures / f"null-{names[s.method]}") for s in studies}
    spread = attacked_nulls(studies) if studies else None
    attacked = save_figure(spread, figures / "null-attacked") if spread is not None else None
    return NullExhibit(studies, refused, panels, names, attacked)


def print_null(studies: Sequence[NullStudy], refused: Mapping[str, str]) -> None:
    """Prints the unattacked row of each method, the worst attack, and the verdicts."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    table = Table(title="unattacked, unmarked images", title_justify="left")
    for heading in (
        "method",
        "n",
        "FPR by theory",
        "key in use",
        "per billion",
        "keys: 50 % / 99 % / worst",
        "bits worth",
    ):
        table.add_column(heading)
    table.add_column("largest bias")
    for study in studies:
        r = study.clean.report
        fpr = r.observed_fpr
        median, _, high = r.key_fpr_quantiles
        table.add_row(
            escape(study.method),
            f"{r.n} ({r.sources} sources)",
            small(r.nominal_fpr),
            f"{fpr.value:.3g} [{small(fpr.low)}, {small(fpr.high)}]",
            f"{count(fpr.value * 1e9)} [≤ {count(fpr.high * 1e9)}]",
            f"{small(median)} / {small(high)} / {small(r.key_fpr_worst)}",
            f"{number(r.effective_bits, 1)} of {r.k}",
            number(r.worst_bias, 2),
        )
    console.print(table)
    for study in studies:
        console.print(f"{study.method}: {study.verdict}", markup=False)
        attacked = max(study.cells[1:], key=lambda cell: cell.report.observed_fpr.value, default=None)
        if attacked is not None:
            rate = attacked.report.observed_fpr
            console.print(
                f"  highest FPR of the key in use after an attack: {rate.value:.3g} [{small(rate.low)}, "
                f"{small(rate.high)}] under {attacked.attack}",
                markup=False,
            )
        if study.whitened is not None:
            w = study.whitened
            console.print(
                f"  whitened (fitted on {w.fitted} other images): {'holds' if w.after.holds else 'fails'}, "
                f"{number(w.before.effective_bits, 1)} -> {number(w.after.effective_bits, 1)} bits worth"
                + ("" if isnan(w.tpr_before) else f", TPR by theory {number(w.tpr_before)} -> {number(w.tpr_after)}"),
                markup=False,
            )
        for attack, reason in study.missing.items():
            console.print(f"  no null under {attack}: {reason}", markup=False)
        if study.refused:
            console.print(f"  not whitened: {study.refused}", markup=False)
    for method, reason in refused.items():
        console.print(f"{method}: {reason}", markup=False)
