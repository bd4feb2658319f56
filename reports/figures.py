"""The figures of a report. Each function takes a run and returns a matplotlib figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..core.errors import StatisticsError
from ..core.identity import content_digest
from . import words
from .style import PALETTE, colour_of, grid, house_style, marker_of, plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from ..bench.results import Run


def survival(run: Run, summary: pd.DataFrame) -> Figure:
    """TPR at the deployed threshold for every attack, with intervals: the whole run on one page."""
    attacks = list(dict.fromkeys(summary["attack"]))
    with house_style():
        figure = Figure(figsize=(9.4, 0.24 * len(attacks) + 1.3), layout="constrained")
        axes = figure.subplots()
        offsets = np.linspace(0.24, -0.24, len(run.methods)) if len(run.methods) > 1 else [0.0]
        for offset, method in zip(offsets, run.methods, strict=True):
            rows = summary[summary["method"] == method].set_index("attack").reindex(attacks)
            y = np.arange(len(attacks))[::-1] + offset
            _whiskers(axes, rows, y, run, method)
        families = summary.drop_duplicates("attack")["family"].tolist()
        for i in range(1, len(attacks)):
            if families[i] != families[i - 1]:
                axes.axhline(len(attacks) - i - 0.5, color="#bbbbbb", linewidth=0.8)
        axes.set_yticks(np.arange(len(attacks))[::-1], [plain(shortened(a)) for a in attacks])
        axes.set_ylim(-0.7, len(attacks) - 0.3)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel(_tpr_label(run))
        longest = max(len(method) for method in run.methods)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=max(1, min(4, 96 // (longest + 6))))
    return figure


def _tpr_label(run: Run) -> str:
    return f"TPR at {words.rule(run)} (bars: {run.decision().level:.0%} intervals)"


def _whiskers(axes: Axes, rows: pd.DataFrame, y: np.ndarray, run: Run, method: str) -> None:
    colour = colour_of(run.methods, method)
    if "tpr" not in rows or rows["tpr"].isna().all():
        axes.plot([], [], marker_of(run.methods, method), color=colour, label=f"{plain(method)} (refused)")
        return
    axes.hlines(y, rows["tpr_low"], rows["tpr_high"], color=colour, alpha=0.45, linewidth=2)
    axes.plot(
        rows["tpr"], y, marker_of(run.methods, method), color=colour, markersize=4.2, label=plain(method), clip_on=False
    )


KNOWING = ("model", "collusion", "forgery")
"""Families of attacks that know a model, other users, or marked images."""


def swept(run: Run) -> list[list[dict[str, Any]]]:
    """Attacks that were run at two strengths or more and differ in nothing else."""
    sweeps: dict[str, list[dict[str, Any]]] = {}
    for attack in run.config["attacks"]:
        # Attacks that know something have a part of the report of their own.
        if attack["value"] is not None and attack["family"] not in KNOWING:
            others = {key: value for key, value in attack["params"].items() if key != attack["strength"]}
            sweeps.setdefault(content_digest([attack["name"], others, attack.get("digests")]), []).append(attack)
    return [sweep for sweep in sweeps.values() if len(sweep) > 1]


def strength_curves(run: Run, summary: pd.DataFrame, column: str = "bit_accuracy") -> Figure | None:
    """Bit accuracy (or another column) against strength, one panel for each attack.

    Harder is to the right; where both directions do harm (brightness below and above 1), values simply grow.
    """
    sweeps = swept(run)
    if not sweeps or column not in summary:
        return None
    names = [sweep[0]["name"] for sweep in sweeps]
    with house_style():
        figure, panels = grid(len(sweeps), 4, 2.35, 1.9)
        for axes, sweep in zip(panels, sweeps, strict=True):
            rows = summary[summary["attack"].isin([attack["label"] for attack in sweep])]
            order = _ordered(rows.drop_duplicates("attack"))
            ticks = [f"{value:g}" for value in order["strength"]]
            for method in run.methods:
                mine = rows[rows["method"] == method].set_index("attack").reindex(order["attack"])
                _band(axes, mine, column, run, method)
            axes.set_xticks(range(len(ticks)), ticks)
            name = sweep[0]["name"]
            title = f"{name}: {sweep[0]['strength']}"
            axes.set_title(plain(title if names.count(name) == 1 else shortened(f"{sweep[0]['label']} and on")))
            axes.set_ylim(*((0.35, 1.02) if column == "bit_accuracy" else (-0.03, 1.03)))
            if column == "bit_accuracy":
                axes.axhline(0.5, color="#888888", linewidth=0.8, linestyle=":")
        label = {"bit_accuracy": "bit accuracy", "tpr": "TPR at the deployed threshold"}.get(column, column)
        figure.supylabel(plain(label), fontsize=9)
        _legend(figure, run)
    return figure


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """By damage where that is the order of the values or its reverse, else by value."""
    by_damage = rows.sort_values(["damage", "strength"])
    steps = np.diff(by_damage["strength"])
    return by_damage if (steps > 0).all() or (steps < 0).all() else rows.sort_values("strength")


def shortened(text: str, most: int = 40) -> str:
    """A label that fits beside a figure."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _band(axes: Axes, rows: pd.DataFrame, column: str, run: Run, method: str) -> None:
    if rows[column].isna().all():
        return
    colour, x = colour_of(run.methods, method), np.arange(len(rows))
    axes.fill_between(x, rows[f"{column}_low"], rows[f"{column}_high"], color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, rows[column], marker=marker_of(run.methods, method), markersize=3.6, color=colour)


def _legend(figure: Figure, run: Run) -> None:
    handles = [
        mpl.lines.Line2D([], [], color=colour_of(run.methods, m), marker=marker_of(run.methods, m), label=plain(m))
        for m in run.methods
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)))


def roc_curves(run: Run, name: str) -> Figure:
    """Attack-matched ROC staircases with log FPR: a panel for each method, a line for each strength."""
    attacks = [a for a in run.config["attacks"] if a["name"] == name]
    attacks.sort(key=lambda a: (a["damage"], str(a["label"])))
    decided = run.decision()
    with house_style():
        figure, panels = grid(len(run.methods), 3, 3.1, 2.7)
        colours = mpl.colormaps["viridis_r"](np.linspace(0.12, 0.95, len(attacks)))
        for axes, method in zip(panels, run.methods, strict=True):
            floor = _roc_panel(axes, run, method, attacks, colours)
            axes.axvline(decided.fpr, color="#D55E00", linewidth=0.9, linestyle="--")
            low = min(floor, decided.fpr) / 2
            if floor > low:
                axes.axvspan(low, floor, color="#f0f0f0", zorder=0)
                axes.text(
                    np.sqrt(low * floor),
                    0.5,
                    "too few negatives",
                    fontsize=6.5,
                    color="#777777",
                    ha="center",
                    rotation=90,
                )
            axes.set_xscale("log")
            axes.set_xlim(low, 1)
            axes.set_ylim(-0.02, 1.02)
            axes.set_title(plain(method))
        figure.supxlabel("false-positive rate, attacked unmarked images", fontsize=9)
        panels[0].set_ylabel("true-positive rate")
        handles, labels = panels[-1].get_legend_handles_labels()
        columns = 2 if max(map(len, labels)) > 24 else 5
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, fontsize=7)
    return figure


def _roc_panel(axes: Axes, run: Run, method: str, attacks: list[dict[str, Any]], colours: np.ndarray) -> float:
    floor = 1.0
    values = [attack["value"] for attack in attacks]
    for attack, colour in zip(attacks, colours, strict=True):
        alone = attack["value"] is not None and values.count(attack["value"]) == 1
        label = plain(f"{attack['strength']} {attack['value']:g}" if alone else attack["label"])
        try:
            curve = run.roc(method, attack["label"])
        except StatisticsError:
            axes.plot([], [], color=colour, label=f"{label} (no data)")
            continue
        fpr, tpr = curve.steps()
        axes.plot(fpr, tpr, color=colour, label=label, drawstyle="steps-post")
        floor = min(floor, 1 / curve.n_negative)
    return floor


def quality_against_tpr(run: Run, summary: pd.DataFrame, metric: str = "ssim") -> Figure | None:
    """What the attack cost the image against what is left of detection; up and right is good for the mark's owner."""
    if metric not in summary or "tpr" not in summary:
        return None
    rows = summary[np.isfinite(summary[metric].astype(float)) & (summary["attack_name"] != "identity")]
    rows = rows.dropna(subset=["tpr"])
    if rows.empty:
        return None
    families = list(dict.fromkeys(rows["family"]))
    with house_style():
        figure, panels = grid(len(run.methods), 3, 3.1, 2.8)
        for axes, method in zip(panels, run.methods, strict=True):
            for i, family in enumerate(families):
                mine = rows[(rows["method"] == method) & (rows["family"] == family)]
                axes.vlines(mine[metric], mine["tpr_low"], mine["tpr_high"], color=_family(i), alpha=0.3, linewidth=1.5)
                axes.plot(mine[metric], mine["tpr"], "o", color=_family(i), markersize=4, label=family)
            axes.set_title(plain(method))
            axes.set_ylim(-0.03, 1.03)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.set_xlabel(f"{metric.upper()}, attacked against marked image")
        panels[0].set_ylabel("TPR at the deployed threshold")
        panels[-1].legend(loc="best", fontsize=7)
    return figure


def _family(i: int) -> str:
    return PALETTE[i % len(PALETTE)]
