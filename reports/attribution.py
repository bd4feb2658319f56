"""Attribution as people read it: HTML, CSV, figures, a terminal table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd

from ..bench.store import write_text, writing
from .page import render, save_figure
from .style import PALETTE, grid, house_style, plain
from .words import number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..bench.attribution_study import AttributionStudy
    from ..bench.results import Run
    from ..bench.statistics.attribution import Attribution
    from ..bench.statistics.intervals import Rate


def write_attribution(run: Run, studies: Sequence[AttributionStudy], folder: Path) -> Path:
    """Writes ``index.html``, ``attribution.csv`` and figures; returns the page's path.

    Raises:
        StoreError: the folder cannot be written.
    """
    families = {a["label"]: a["family"] for a in run.config["attacks"]}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        pd.concat([study.frame() for study in studies]).to_csv(folder / "attribution.csv", index=False)
        pictures = {
            "named": save_figure(named(studies, families), folder / "named"),
            "accused": save_figure(accused(studies, families), folder / "accused"),
        }
        page = render("attribution.html", run=run, studies=studies, pictures=pictures, families=families)
        write_text(folder / "index.html", page)
    return folder / "index.html"


def named(studies: Sequence[AttributionStudy], families: dict[str, str]) -> Figure:
    """Share of images whose true user is named, against the number of users: one line for each attack family."""
    names = list(dict.fromkeys(families[attack] for study in studies for attack in study.rows))
    with house_style():
        figure, panels = grid(len(studies), 3, 3.4, 2.8)
        for axes, study in zip(panels, studies, strict=True):
            for i, family in enumerate(names):
                table = [rows for attack, rows in study.rows.items() if families[attack] == family]
                _line(axes, table, i, theory=family == "none")
            axes.set_title(plain(f"{study.method}, {study.bits} bits"))
            _users_axis(axes)
            axes.set_ylim(-0.03, 1.03)
        panels[0].set_ylabel("share of marked images")
        handles = [
            mpl.lines.Line2D([], [], color=PALETTE[i % len(PALETTE)], marker="o", markersize=3.5, label=plain(family))
            for i, family in enumerate("no attack" if name == "none" else name for name in names)
        ]
        if "none" in names:
            handles.append(mpl.lines.Line2D([], [], color="#555555", linestyle=":", label="by theory, no attack"))
        figure.legend(handles=handles, loc="outside upper center", ncols=min(5, len(handles)))
    return figure


def _line(axes: Axes, table: list[tuple[Attribution, ...]], i: int, theory: bool) -> None:
    """The mean over a family's attacks; the unattacked line carries its interval and the theory."""
    if not table:
        return
    shown = [row for row in table[0] if row.correct is not None]
    users = [row.users for row in shown]
    means = [
        np.mean([row.correct.value for rows in table for row in rows if row.users == n and row.correct is not None])
        for n in users
    ]
    colour = PALETTE[i % len(PALETTE)]
    axes.plot(users, means, "o-", color=colour, markersize=3.5)
    if len(table) == 1:
        rates = [row.correct for row in shown if row.correct is not None]
        low, high = [rate.low for rate in rates], [rate.high for rate in rates]
        axes.fill_between(users, low, high, color=colour, alpha=0.15, linewidth=0)
    if theory:
        axes.plot(users, [row.theory_correct for row in shown], ":", color="#555555")


def _users_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("users")


def accused(studies: Sequence[AttributionStudy], families: dict[str, str]) -> Figure:
    """Share of unmarked images that are attributed to somebody: the first attack with its interval, and the worst."""
    with house_style():
        figure, panels = grid(len(studies), 3, 3.4, 2.8)
        for axes, study in zip(panels, studies, strict=True):
            first, clean = next(iter(study.rows.items()))
            shown = [row for row in clean if row.false is not None]
            users = [row.users for row in shown]
            rates = [row.false for row in shown if row.false is not None]
            axes.fill_between(
                users, [r.low for r in rates], [r.high for r in rates], color=PALETTE[0], alpha=0.2, linewidth=0
            )
            axes.plot(
                users,
                [r.value for r in rates],
                "o-",
                color=PALETTE[0],
                markersize=3.5,
                label="no attack" if families[first] == "none" else plain(first),
            )
            axes.plot(users, _worst(study, users), "s-", color=PALETTE[1], markersize=3.5, label="worst attack")
            axes.plot(users, [row.attained for row in shown], ":", color="#555555", label="by theory")
            axes.set_title(plain(f"{study.method}, {study.bits} bits"))
            axes.set_yscale("symlog", linthresh=1e-3)
            axes.set_ylim(-1e-4, 1.2)
            _users_axis(axes)
        panels[0].set_ylabel("unmarked images attributed to somebody")
        panels[-1].legend(fontsize=7)
    return figure


def _worst(study: AttributionStudy, users: list[int]) -> list[float]:
    return [
        max((r.false.value for rows in study.rows.values() for r in rows if r.users == n and r.false), default=np.nan)
        for n in users
    ]


def print_attribution(studies: Sequence[AttributionStudy]) -> None:
    """Prints the unattacked rows of each method, what was refused, and where the whole is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=170)
    for study in studies:
        attack, rows = next(iter(study.rows.items()))
        title = f"{study.method}, {study.bits} bits, {attack}; {study.bank}; family-wise FPR {study.fpr:g}"
        table = Table(title=escape(title), title_justify="left")
        for heading in ("users", "threshold", "correct", "wrong", "missed", "closed set", "unmarked accused", "theory"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            if row.refused:
                continue
            table.add_row(
                f"{row.users:,}",
                str(row.threshold),
                *(_rate(rate) for rate in (row.correct, row.wrong, row.missed, row.closed, row.false)),
                f"{row.theory_correct:.3f}",
            )
        console.print(table)
        for row in rows:
            if row.refused:
                console.print(f"{row.users:,} users: {row.refused}", markup=False)
        for note in dict.fromkeys(row.note for row in rows if row.note):
            console.print(f"note: {note}", markup=False)
        if study.theory_holds is False:
            console.print(
                f"note: the null of {study.method} fails its test, so the family-wise FPR is no promise", markup=False
            )


def _rate(rate: Rate | None) -> str:
    return "–" if rate is None else f"{rate.value:.3f} [{number(rate.low)}, {number(rate.high)}]"
