"""A leaderboard as people read it: HTML, CSV, LaTeX, a figure, a terminal table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from ..bench.store import write_text, writing
from .page import render, save_figure
from .style import PALETTE, house_style, plain
from .words import number

if TYPE_CHECKING:
    from pathlib import Path

    from ..bench.leaderboard import Board, Entry
    from ..bench.statistics.intervals import Rate


def write_board(board: Board, folder: Path) -> Path:
    """Writes ``index.html``, ``leaderboard.csv``, ``leaderboard.tex`` and the figure; returns the page's path.

    Raises:
        StoreError: the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        board.frame().to_csv(folder / "leaderboard.csv", index=False)
        write_text(folder / "leaderboard.tex", latex(board))
        picture = save_figure(rank_figure(board), folder / "ranks") if board.ranked else None
        runs = list(dict.fromkeys(entry.run for entry in board.entries))
        page = render("leaderboard.html", board=board, decided=board.decided, picture=picture, runs=runs)
        write_text(folder / "index.html", page)
    return folder / "index.html"


def rank_figure(board: Board) -> Figure:
    """Mean TPR with intervals, best at the top; methods of one group stand on one shade."""
    entries = board.ranked
    with house_style():
        figure = Figure(figsize=(7.2, 0.42 * len(entries) + 1.0), layout="constrained")
        axes = figure.subplots()
        for i, entry in enumerate(entries):
            place, y = entry.place, len(entries) - 1 - i
            if place is None:
                continue
            if (place.group or 0) % 2:
                axes.axhspan(y - 0.5, y + 0.5, color="#eef3f6", zorder=0)
            axes.hlines(y, place.low, place.high, color=PALETTE[0], alpha=0.45, linewidth=3)
            axes.plot(place.value, y, "o", color=PALETTE[0], markersize=5)
        names = [f"{_ranks(entry)}  {plain(entry.method)}" for entry in entries]
        axes.set_yticks(np.arange(len(entries))[::-1], names)
        axes.set_ylim(-0.6, len(entries) - 0.4)
        axes.set_xlim(-0.02, 1.02)
        rule = f"FPR {board.decided.fpr:g}" if board.decided.rule != "fixed" else "a fixed threshold"
        axes.set_xlabel(f"mean TPR at {rule} over {board.attacked} attacks (threshold: {board.decided.rule})")
    return figure


def _ranks(entry: Entry) -> str:
    place = entry.place
    if place is None:
        return "–"
    return (
        f"{place.rank}" if place.rank_low == place.rank_high else f"{place.rank} [{place.rank_low}–{place.rank_high}]"
    )


def latex(board: Board) -> str:
    """A booktabs table: rank with interval, method, mean TPR, families, FPR, quality; refused rows are left out."""
    families = [name for name in board.families if name != "none"]
    head = ["Rank", "Method", "Bits", "Mean TPR", "No attack", *(name.capitalize() for name in families), "FPR"]
    head += [name.upper() for name, _ in board.metrics]
    lines = [
        "% needs \\usepackage{booktabs}; made by waterproof",
        *(f"% cite: {reference}" for reference in board.references),
        f"\\begin{{tabular}}{{rl{'r' * (len(head) - 2)}}}",
        "\\toprule",
        " & ".join(_tex(text) for text in head) + " \\\\",
        "\\midrule",
    ]
    group = None
    for entry in board.ranked:
        place = entry.place
        if place is None:
            continue
        if group is not None and place.group != group:
            lines.append("\\addlinespace")
        group = place.group
        cells = [_tex(_ranks(entry).replace("–", "--")), _tex(entry.method), str(entry.bits or "--")]
        cells.append(_interval(place.value, place.low, place.high))
        cells += [_tex_rate(entry.tpr.get(name)) for name in ("none", *families)]
        cells += [_tex_rate(entry.fpr, 3)]
        cells += [_tex_rate(entry.quality.get(name), 1 if unit else 3) for name, unit in board.metrics]
        lines.append(" & ".join(cells) + " \\\\")
    decided = board.decided
    where = f"FPR {decided.fpr:g}" if decided.rule != "fixed" else f"threshold {decided.threshold:g}"
    note = (
        f"{board.attacked} attacks, {board.sources} independent test sources; TPR at {where}, threshold by "
        f"{decided.rule}; {decided.level:.0%} intervals; ranks with their interval; space separates groups."
    )
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", f"% {note}"]) + "\n"


def _tex_rate(rate: Rate | None, digits: int = 2) -> str:
    return "--" if rate is None else _interval(rate.value, rate.low, rate.high, digits)


def _interval(value: float, low: float, high: float, digits: int = 2) -> str:
    ends = ", ".join(number(end, digits).replace("–", "--") for end in (low, high))
    return f"{number(value, digits)} {{\\scriptsize [{ends}]}}"


_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "\\": "\\textbackslash{}",
    "·": "$\\cdot$",
}


def _tex(text: str) -> str:
    return "".join(_SPECIAL.get(c, c) for c in text)


def print_board(board: Board) -> None:
    """Prints the ranked methods, the rest with their reasons, and the notes."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    decided = board.decided
    where = f"FPR {decided.fpr:g}" if decided.rule != "fixed" else f"threshold {decided.threshold:g}"
    table = Table(title=f"mean TPR at {where} over {board.attacked} attacks, threshold by {decided.rule}")
    for heading in ("rank", "group", "method", "mean TPR", "FPR, no attack", "null", "run"):
        table.add_column(heading)
    for entry in board.ranked:
        place, fpr = entry.place, entry.fpr
        if place is None:
            continue
        rate = f"{place.value:.3f} [{number(place.low)}, {number(place.high)}]"
        alarm = f"{fpr.value:.3f} [{number(fpr.low)}, {number(fpr.high)}]" if fpr else "–"
        cells = (_ranks(entry), str(place.group), entry.method, rate, alarm, entry.null or "–", entry.run)
        table.add_row(*map(escape, cells))
    console.print(table)
    for entry in board.entries:
        if entry.place is None:
            console.print(f"not ranked: {entry.method} ({entry.run}): {entry.reason}", markup=False)
    for note in board.notes:
        console.print(f"note: {note}", markup=False)
    if board.references:
        console.print("cite, beside waterproof:")
    for text in board.references:
        console.print(f"  {text}", markup=False)
