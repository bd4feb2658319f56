"""The changes between two runs as a picture: every interval beside its margin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np

from ..bench.store import writing
from .figures import shortened
from .style import grid, house_style, plain

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..bench.compare import Comparison, Judged

COLOURS = {
    "regression": "#D55E00",
    "undecided": "#999999",
    "small change": "#E69F00",
    "improvement": "#009E73",
    "equivalent": "#0072B2",
    "identical": "#56B4E9",
}


def changes(comparison: Comparison) -> Figure | None:
    """One panel for each quantity: new minus base with its interval, one line for each method and attack.

    The band is the margin; the colour is the verdict. None where nothing was compared.
    """
    tested = [row for row in comparison.rows if row.change is not None]
    quantities = list(dict.fromkeys(row.quantity for row in tested))
    if not quantities:
        return None
    groups = {q: [row for row in tested if row.quantity == q] for q in quantities}
    longest = max(len(rows) for rows in groups.values())
    with house_style():
        figure, panels = grid(len(quantities), 3, 4.4, 0.17 * longest + 1.1)
        for axes, (quantity, rows) in zip(panels, groups.items(), strict=True):
            _panel(axes, quantity, rows)
        handles = [
            mpl.lines.Line2D([], [], color=colour, marker="o", markersize=4, label=f"{name} ({count})")
            for name, colour in COLOURS.items()
            if (count := sum(row.outcome == name for row in tested))
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)))
    return figure


def _panel(axes: Axes, quantity: str, rows: list[Judged]) -> None:
    margin = rows[0].margin
    axes.axvspan(-margin, margin, color="#eef3f6", zorder=0)
    axes.axvline(0, color="#888888", linewidth=0.8)
    y = np.arange(len(rows))[::-1]
    for height, row in zip(y, rows, strict=True):
        colour = COLOURS.get(row.outcome, "#000000")
        change = row.change
        if change is None:
            continue
        if np.isfinite([change.low, change.high]).all():
            axes.hlines(height, change.low, change.high, color=colour, alpha=0.55, linewidth=2)
        axes.plot(change.value, height, "o", color=colour, markersize=3)
    several = len({row.method for row in rows}) > 1
    names = [f"{row.method}: {row.attack}" if several else row.attack for row in rows]
    axes.set_yticks(y, [plain(shortened(name, 38)) for name in names], fontsize=6)
    axes.set_ylim(-0.8, len(rows) - 0.2)
    worse = "left" if rows[0].better == "higher" else "right"
    axes.set_title(f"{plain(quantity.replace('_', ' '))}: new minus base (worse to the {worse})")


def save_changes(comparison: Comparison, path: Path) -> None:
    """Draws :func:`changes` into a file; its ending decides the format.

    Raises:
        StoreError: the file cannot be written.
        StatisticsError: the ending is no picture format, or nothing was compared.
    """
    from ..core.errors import StatisticsError

    figure = changes(comparison)
    if figure is None:
        raise StatisticsError("nothing was compared, so there is no picture of changes to draw")
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise StatisticsError(f"a picture is a .png, .pdf or .svg file, not '{path.name}'")
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=170)
