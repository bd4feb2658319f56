"""How figures look: one palette, one size of type, no global state."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart by readers of every colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,
    "text.usetex": False,
    "svg.hashsalt": "waterproof",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Applies the style inside the block only."""
    with mpl.rc_context(_RC):
        yield


def plain(text: object) -> str:
    """Text as it stands: a dollar sign in a file name starts no formula."""
    return str(text).replace("$", r"\$")


def grid(panels: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of ``panels`` axes in rows of ``columns``, each about ``width`` x ``height`` inches."""
    columns = max(1, min(columns, panels))
    rows = -(-panels // columns)
    # A lone panel still has to leave room for the legend above it.
    figure = Figure(figsize=(max(width * columns, 5.0), height * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[panels:]:
        spare.set_axis_off()
    return figure, axes[:panels]


def colour_of(labels: Sequence[str], label: str) -> str:
    """The colour of a method: its place in the run decides, so every figure agrees."""
    return PALETTE[labels.index(label) % len(PALETTE)]


def marker_of(labels: Sequence[str], label: str) -> str:
    """The marker of a method; no two share marker and colour before there are 64."""
    place = labels.index(label)
    return MARKERS[(place + place // len(PALETTE)) % len(MARKERS)]
