"""TPR against theory's false-positive rate: what a stricter threshold costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .figures import shortened
from .style import MARKERS, PALETTE, grid, house_style, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..bench.strictness import Strictness

_MOST = 8
"""Curves that a reader still tells apart in one panel."""


def strictness_curves(studies: Sequence[Strictness], families: dict[str, str]) -> Figure:
    """TPR at each threshold against its FPR by theory; a panel for each method and group of attacks.

    Only attained thresholds are drawn, as dots joined by steps; bands are intervals. A panel whose null fails its test
    says so: there the axis is theory's claim and no false-positive rate of these images. Hollow marks are what the
    method's authors report for the same attack.
    """
    panels = [(study, names) for study in studies for names in _groups(study, families)]
    with house_style():
        figure, axes_of = grid(len(panels), 2, 4.6, 3.1)
        for axes, (study, names) in zip(axes_of, panels, strict=True):
            for number, name in enumerate(names):
                _curve(axes, study, name, number)
            axes.set_xscale("log")
            axes.set_xlim(2.0 ** -(study.bits + 1), 1)
            axes.set_ylim(-0.03, 1.03)
            axes.set_xlabel("FPR by theory" + (" (the null fails its test)" if study.theory_holds is False else ""))
            axes.set_ylabel("TPR")
            axes.set_title(plain(f"{study.method}, {study.bits} bits: {families[names[-1]]}"))
            axes.legend(loc="lower right", fontsize=7)
    return figure


def _groups(study: Strictness, families: dict[str, str]) -> list[list[str]]:
    """Attacks by family, unattacked images in each panel, no more than a reader tells apart."""
    clean = [name for name in study.curves if families[name] == "none"]
    rest = [name for name in study.curves if name not in clean]
    found: list[list[str]] = []
    for family in dict.fromkeys(families[name] for name in rest):
        mine = [name for name in rest if families[name] == family]
        found += [[*clean, *mine[i : i + _MOST - 1]] for i in range(0, len(mine), _MOST - 1)]
    return found or [clean]


def _curve(axes: Axes, study: Strictness, name: str, number: int) -> None:
    curve = study.curves[name].sort_values("fpr")
    x = np.asarray(curve["fpr"], dtype=float)
    colour = PALETTE[number % len(PALETTE)]
    axes.fill_between(x, curve["low"], curve["high"], step="post", color=colour, alpha=0.12, linewidth=0)
    marker = MARKERS[number % len(MARKERS)]
    reported = study.published[study.published["attack"] == name]
    if len(reported):
        x_reported, y_reported = (np.asarray(reported[name], dtype=float) for name in ("fpr", "tpr"))
        axes.scatter(x_reported, y_reported, s=34, marker="D", facecolors="none", edgecolors=colour, zorder=3)
    axes.step(
        x, curve["tpr"], where="post", color=colour, marker=marker, markersize=2.6, label=plain(shortened(name, 30))
    )
