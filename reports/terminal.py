"""The summary on a terminal: the same numbers as in the report, families instead of single attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import words

if TYPE_CHECKING:
    from ..bench.results import Run


def print_citations(run: Run) -> None:
    """Prints what to cite, on stderr."""
    import typer

    found = run.references()
    if found:
        typer.echo("cite, beside waterproof:", err=True)
    for text in found:
        typer.echo(f"  {text}", err=True)


def print_summary(run: Run) -> None:
    """Prints one row for each attack: TPR with interval for each method, and the warnings that belong to it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if run.protections:
        from .protection import print_protection

        print_protection(run)
        return
    summary = run.summary()
    decided = run.decision()
    # Where nothing is marked, what is flagged is all there is to say.
    rate = "tpr" if "marked" in run.config["benchmark"]["arms"] else "fpr"
    table = Table(
        title=f"{escape(run.name)}: {rate.upper()} at {words.rule(run)}, {decided.level:.0%} intervals",
        caption="! the false-positive rate on attacked unmarked images is above nominal: read the null report",
    )
    table.add_column("attack", no_wrap=True)
    for method in run.methods:
        table.add_column(escape(method), justify="right", no_wrap=True)
    for attack, rows in summary.groupby("attack", sort=False):
        cells = [escape(str(attack))]
        for method in run.methods:
            row = rows[rows["method"] == method].iloc[0]
            value = row.get(rate, np.nan)
            if value is None or np.isnan(value):
                cells.append(str(row["status"]) if row["status"] != "ok" else "refused")
                continue
            mark = " !" if row.get("null_moved") is True else "  "
            cells.append(f"{value:.2f} [{row[f'{rate}_low']:.2f}, {row[f'{rate}_high']:.2f}]{mark}")
        table.add_row(*cells)
    console = Console()
    if not console.is_terminal:
        # A file or a pipe has no width to fit into: nothing is cut off.
        columns = sum(max(26, len(method) + 3) for method in run.methods)
        console = Console(width=max(len(a) for a in run.attacks) + 4 + columns)
    console.print(table)
    withdrawn = list(dict.fromkeys(summary.loc[summary["theory_withdrawn"], "method"]))
    if withdrawn:
        Console().print(
            f"theory withdrawn for {', '.join(withdrawn)}: unmarked images do not give fair, independent bits, so the "
            f"FPR of {decided.fpr:g} is no promise there; measure it (--rule certified) and read the null report",
            style="bold",
            markup=False,
        )
    for note in [n for n in summary["note"].unique() if n][:4]:
        Console().print(f"note: {note}", style="dim", markup=False)
