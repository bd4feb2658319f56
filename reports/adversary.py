"""The part of a report about adversaries who know something: models, many marked images, other users."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..bench.collusion_study import accusation_table
from ..core.components import labelled
from .figures import KNOWING
from .page import Picture, records, save_figure
from .style import PALETTE, colour_of, house_style, marker_of, plain

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from ..bench.results import Run

_DASHES = ("-", "--", ":", "-.")


@dataclass
class AdversaryExhibit:
    """What the page shows.

    Attributes:
        pictures: the figures by name.
        models: one row for each method and attack on the model.
        forgeries: one row for each method and kind of forgery.
        accusations: one row for each method, attack and number of users.
    """

    pictures: dict[str, Picture] = field(default_factory=dict)
    models: list[dict[str, Any]] = field(default_factory=list)
    forgeries: list[dict[str, Any]] = field(default_factory=list)
    accusations: list[dict[str, Any]] = field(default_factory=list)


def knowing(attack: dict[str, Any]) -> bool:
    """Whether an attack of a run's configuration belongs here."""
    return attack["family"] in KNOWING or attack["name"] == "averaging"


def draw_adversary(run: Run, summary: pd.DataFrame, folder: Path) -> AdversaryExhibit | None:
    """Draws the figures and writes the tables ``model-attacks.csv``, ``forgery.csv`` and ``accusations.csv``.

    Args:
        run: the run.
        summary: its summary.
        folder: of the report.

    Returns:
        None where the run has no such attack.
    """
    attacks = [a for a in run.config["attacks"] if knowing(a)]
    if not attacks:
        return None
    found = AdversaryExhibit()
    models = _model_table(run, summary, attacks)
    forged = _forgery_table(run, summary, attacks)
    accused = accusation_table(run)
    for name, table, rows in (
        ("model-attacks", models, found.models),
        ("forgery", forged, found.forgeries),
        ("accusations", accused, found.accusations),
    ):
        if len(table):
            table.to_csv(folder / f"{name}.csv", index=False)
            rows += records(table)
    for name, figure in (("adversary", _curves(run, summary, attacks)), ("accusations", _accused(run, accused))):
        if figure is not None:
            found.pictures[name] = save_figure(figure, folder / "figures" / name)
    return found


def series(attack: dict[str, Any]) -> str:
    """An attack without its strength: the curve that it is a point of."""
    rest = attack["label"].removeprefix(attack["name"]).strip("()")
    kept = [part for part in rest.split(", ") if part and not part.startswith(f"{attack['strength']}=")]
    return labelled(attack["name"], dict(part.split("=", 1) for part in kept))


def seconds_learning(run: Run) -> dict[str, tuple[int, float]]:
    """How often each attack learnt something in this run, and the mean seconds."""
    learning = [cost for cost in run.store.costs() if cost["stage"] == "learn"]
    frame = pd.DataFrame(learning, columns=["name", "seconds"])
    return {str(name): (len(part), float(part["seconds"].mean())) for name, part in frame.groupby("name")}


def _model_table(run: Run, summary: pd.DataFrame, attacks: list[dict[str, Any]]) -> pd.DataFrame:
    learnt = seconds_learning(run)
    names = [a["label"] for a in attacks if a["family"] == "model"]
    rows = summary[summary["attack"].isin(names) & (summary["status"] != "skipped")]
    keep = ["method", "attack", *(f"{rate}{end}" for rate in ("tpr", "bit_accuracy") for end in ("", "_low", "_high"))]
    keep += [m["label"] for m in run.config["metrics"]]
    table = rows.reindex(columns=keep).copy()
    table["learnt"] = [learnt.get(name, (0, 0.0))[0] for name in table["attack"]]
    table["seconds"] = [learnt.get(name, (0, float("nan")))[1] for name in table["attack"]]
    return table


def _forgery_table(run: Run, summary: pd.DataFrame, attacks: list[dict[str, Any]]) -> pd.DataFrame:
    """For each method, the fewest images with which half of the clean ones pass, and with which more than by chance."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for attack in attacks:
        if attack["family"] == "forgery":
            kinds.setdefault(series(attack), []).append(attack)
    clean = next((a["label"] for a in run.config["attacks"] if a["name"] == "identity"), None)
    rows: list[dict[str, Any]] = []
    for method in run.methods:
        mine = summary[summary["method"] == method].set_index("attack")
        for kind, members in kinds.items():
            curve = mine.reindex([a["label"] for a in sorted(members, key=lambda a: a["value"])])
            if "fpr" not in curve or curve["fpr"].isna().all():
                reasons = [str(note) for note in curve["note"].dropna() if note]
                note = reasons[0] if reasons else "refused"
                rows.append(dict[str, Any](method=method, forgery=kind, note=note))
                continue
            row = dict[str, Any](method=method, forgery=kind, images=int(curve["strength"].max()))
            row["half"] = _first(curve, curve["fpr"] >= 0.5)
            row["above_nominal"] = _first(curve, curve["null_p"] < 0.01) if "null_p" in curve else None
            last = curve.iloc[-1]
            row |= {f"accepted{end}": last[f"fpr{end}"] for end in ("", "_low", "_high")}
            row |= {m["label"]: last.get(m["label"]) for m in run.config["metrics"]}
            row["unforged"] = mine["fpr"].get(clean) if clean else None
            rows.append({**row, "n": int(last["n_negatives"]), "threshold": last["threshold"], "note": ""})
    return pd.DataFrame(rows)


def _first(curve: pd.DataFrame, holds: pd.Series) -> float | None:
    chosen = curve.loc[holds.fillna(False), "strength"]
    return float(chosen.iloc[0]) if len(chosen) else None


def _curves(run: Run, summary: pd.DataFrame, attacks: list[dict[str, Any]]) -> Figure | None:
    """Rows: what is decided, bit accuracy, PSNR; a column for each attack that was swept."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for attack in attacks:
        if attack["value"] is not None:
            by_name.setdefault(attack["name"], []).append(attack)
    by_name = {name: found for name, found in by_name.items() if len({a["value"] for a in found}) > 1}
    if not by_name:
        return None
    lines = ["decided", "bit_accuracy", *(["psnr"] if "psnr" in summary else [])]
    lines = [line for line in lines if line == "decided" or (line in summary and summary[line].notna().any())]
    with house_style():
        width = max(6.0, 2.5 * len(by_name) + 0.6)
        figure = Figure(figsize=(width, 1.9 * len(lines) + 0.7), layout="constrained")
        axes = figure.subplots(len(lines), len(by_name), squeeze=False, sharex="col")
        for column, (name, members) in enumerate(by_name.items()):
            for row, line in enumerate(lines):
                _panel(axes[row, column], run, summary, members, line)
            axes[0, column].set_title(plain(f"{name}: {'accepted' if members[0]['family'] == 'forgery' else 'TPR'}"))
            axes[-1, column].set_xlabel(plain(members[0]["strength"]))
            _dash_legend(axes[-1, column], members)
        for row, line in enumerate(lines):
            label = {"decided": "share flagged", "bit_accuracy": "bit accuracy", "psnr": "PSNR, dB"}[line]
            axes[row, 0].set_ylabel(label)
        handles = [
            Line2D([], [], color=colour_of(run.methods, m), marker=marker_of(run.methods, m), label=plain(m))
            for m in run.methods
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=max(1, int(width // 3)))
    return figure


def _dash_legend(axes: Axes, members: list[dict[str, Any]]) -> None:
    """What the dashes of a column mean, where it has several curves of one method."""
    kinds = list(dict.fromkeys(series(a) for a in members))
    if len(kinds) < 2:
        return
    first = members[0]["name"]
    handles = [
        Line2D([], [], color="black", linestyle=_DASHES[i % len(_DASHES)], label=plain(_differing(kind, first)))
        for i, kind in enumerate(kinds)
    ]
    axes.legend(handles=handles, fontsize=6.5, loc="best")


def _differing(kind: str, name: str) -> str:
    return kind.removeprefix(name).strip("()") or "default"


def _panel(
    axes: Axes,
    run: Run,
    summary: pd.DataFrame,
    members: list[dict[str, Any]],
    line: str,
) -> None:
    column = ("fpr" if members[0]["family"] == "forgery" else "tpr") if line == "decided" else line
    kinds = list(dict.fromkeys(series(a) for a in members))
    values = sorted({a["value"] for a in members})
    ticks = {value: place for place, value in enumerate(values if members[0]["damage"] >= 0 else values[::-1])}
    for method in run.methods:
        for kind in kinds:
            labels = [a["label"] for a in members if series(a) == kind]
            rows = summary[(summary["method"] == method) & summary["attack"].isin(labels)]
            if column not in rows or rows[column].isna().all():
                continue
            rows = rows.assign(place=[ticks[value] for value in rows["strength"]]).sort_values("place")
            colour, dash = colour_of(run.methods, method), _DASHES[kinds.index(kind) % len(_DASHES)]
            if f"{column}_low" in rows:
                axes.fill_between(
                    rows["place"],
                    rows[f"{column}_low"].astype(float),
                    rows[f"{column}_high"].astype(float),
                    color=colour,
                    alpha=0.12,
                    linewidth=0,
                )
            finite = rows[np.isfinite(rows[column].astype(float))]
            style: dict[str, Any] = {"color": colour, "marker": marker_of(run.methods, method), "markersize": 3.4}
            axes.plot(finite["place"], finite[column], dash, **style)
    if not axes.lines:
        reason = "other images:\nnot comparable" if line == "psnr" else "not measured"
        axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", fontsize=7, color="#666666")
        axes.set_yticks([])
    axes.set_xticks(list(ticks.values()), [f"{value:g}" for value in ticks])
    if line != "psnr":
        axes.set_ylim(*((0.35, 1.02) if line == "bit_accuracy" else (-0.03, 1.03)))


def _accused(run: Run, table: pd.DataFrame) -> Figure | None:
    """Stacked shares of images: a colluder named, nobody, an innocent; a panel for each method and number of users."""
    if table.empty:
        return None
    groups = list(table.groupby(["method", "users"], sort=False))
    height = 0.3 * max(len(part) for _, part in groups) + 0.9
    with house_style():
        figure = Figure(figsize=(9.0, height * len(groups) + 0.4), layout="constrained")
        panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
        shades = {"colluder": PALETTE[2], "nobody": "#d0d0d0", "innocent": PALETTE[1]}
        for axes, ((method, users), part) in zip(panels, groups, strict=True):
            place, left = np.arange(len(part))[::-1], np.zeros(len(part))
            for outcome, shade in shades.items():
                share = part[outcome].to_numpy(float)
                axes.barh(
                    place, share, left=left, color=shade, label=f"{outcome} named" if outcome != "nobody" else "nobody"
                )
                left += share
            axes.set_yticks(place, [plain(label) for label in part["attack"]])
            axes.set_xlim(0, 1)
            axes.set_title(plain(f"{method}, among {users:,} users: named from {int(part['threshold'].iloc[0])} bits"))
            axes.grid(visible=False)
        panels[-1].set_xlabel("share of marked test images")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
