"""The null as pictures: bits, their correlation, matching bits, keys, and what attacks do to all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from .figures import shortened
from .style import PALETTE, house_style, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from ..bench.null_study import NullCell, NullStudy

_BLUE, _ORANGE, _GREEN = PALETTE[0], PALETTE[1], PALETTE[2]


def null_panels(study: NullStudy) -> Figure:
    """Four views of the unattacked, unmarked images of one method."""
    with house_style():
        figure = Figure(figsize=(10.2, 5.6), layout="constrained")
        (bits, correlation), (matches, keys) = figure.subplots(2, 2)
        cell = study.clean
        _bits(bits, cell)
        _correlation(figure, correlation, cell)
        _matches(matches, cell)
        _keys(keys, cell)
        figure.suptitle(plain(f"{study.method}: {cell.report.n} unattacked, unmarked images"), fontsize=10)
    return figure


def _bits(axes: Axes, cell: NullCell) -> None:
    r = cell.report
    x = np.arange(r.k)
    axes.axhline(0.5, color="#444444", linewidth=0.9, linestyle="--")
    axes.vlines(x, r.ones_low, r.ones_high, color=_BLUE, alpha=0.5, linewidth=2)
    axes.plot(x, r.ones, "o", color=_BLUE, markersize=3)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("payload bit")
    axes.set_ylabel("share of ones")
    axes.set_title("Is every bit fair? (dashed: it would be)")


def _correlation(figure: Figure, axes: Axes, cell: NullCell) -> None:
    r = cell.correlation
    drawn = axes.imshow(r, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.grid(visible=False)
    axes.set_xlabel("payload bit")
    axes.set_ylabel("payload bit")
    axes.set_title(f"Are bits independent? ({cell.report.k} are worth {cell.report.effective_bits:.1f})")
    figure.colorbar(drawn, ax=axes, shrink=0.9, label="correlation")


def _matches(axes: Axes, cell: NullCell) -> None:
    from scipy.stats import binom

    k = cell.report.k
    x = np.arange(k + 1)
    axes.bar(x, cell.histogram / cell.histogram.sum(), width=0.9, color=_BLUE, alpha=0.5, label="key in use")
    axes.step(x, cell.pairs.histogram / max(1, cell.pairs.pairs), where="mid", color=_GREEN, label="pairs of images")
    axes.plot(x, binom.pmf(x, k, 0.5), color="black", linewidth=1.2, label="fair, independent bits")
    axes.axvline(cell.report.threshold - 0.5, color=_ORANGE, linewidth=1, linestyle="--", label="threshold by theory")
    axes.set_xlabel("matching bits")
    axes.set_ylabel("share")
    axes.set_title("Do matches follow the binomial law?")
    axes.legend(fontsize=7)


def _keys(axes: Axes, cell: NullCell) -> None:
    rates, r = np.sort(cell.key_rates), cell.report
    floor = 0.3 / r.n
    share = np.arange(1, len(rates) + 1) / len(rates)
    axes.step(np.maximum(rates, floor), share, where="post", color=_BLUE, label=f"{len(rates):,} random keys")
    axes.axvline(max(r.nominal_fpr, floor), color="black", linewidth=1, linestyle="--", label="theory")
    axes.axvline(max(r.observed_fpr.value, floor), color=_ORANGE, linewidth=1.2, label="key in use")
    # Where no key flags anything, everything lies on the left edge and no scale would fit itself to it.
    axes.set_xlim(floor * 0.8, 1.1)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(f"FPR of a key (left edge: none of {r.n} images)")
    axes.set_ylabel("share of keys at or below")
    axes.set_title("How much does the FPR depend on the key?")
    axes.legend(fontsize=7, loc="lower right")


def attacked_nulls(studies: Sequence[NullStudy]) -> Figure | None:
    """FPR of the key in use, and the spread over keys, after each attack; None if there is only one."""
    # An attack on a model leaves methods without one out.
    labels = list(dict.fromkeys(cell.attack for study in studies for cell in study.cells))
    if len(labels) < 2:
        return None
    with house_style():
        figure = Figure(figsize=(3.4 * len(studies) + 2.2, 0.2 * len(labels) + 1.4), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(studies), sharey=True))
        y = dict(zip(labels, range(len(labels) - 1, -1, -1), strict=True))
        for axes, study in zip(panels, studies, strict=True):
            _attacked(axes, study, y)
        panels[0].set_yticks(list(y.values()), [plain(shortened(label)) for label in labels])
        panels[0].set_ylim(-0.7, len(labels) - 0.3)
        figure.supxlabel("false-positive rate at the threshold by theory", fontsize=9)
        handles = [
            mpl.lines.Line2D([], [], color=_ORANGE, marker="o", markersize=4, label="key in use, with interval"),
            mpl.lines.Line2D([], [], color=_BLUE, linewidth=3, alpha=0.35, label="random keys: median to worst"),
            mpl.lines.Line2D([], [], color="black", linestyle="--", linewidth=1, label="theory"),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def _attacked(axes: Axes, study: NullStudy, heights: Mapping[str, int]) -> None:
    floor = 0.3 / study.clean.report.n
    for cell in study.cells:
        height, r = heights[cell.attack], cell.report
        ends = np.maximum([np.median(cell.key_rates), cell.key_rates.max()], floor)
        axes.hlines(height, *ends, color=_BLUE, alpha=0.3, linewidth=4)
        axes.hlines(height, max(r.observed_fpr.low, floor), max(r.observed_fpr.high, floor), color=_ORANGE, alpha=0.7)
        axes.plot(max(r.observed_fpr.value, floor), height, "o", color=_ORANGE, markersize=3.5)
    axes.axvline(max(study.clean.report.nominal_fpr, floor), color="black", linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(floor * 0.8, 1.1)
    axes.set_title(plain(study.method))
