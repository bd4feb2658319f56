"""The report of a run of protections: engagement, recovery beside fidelity, budgets, cost, images to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..bench.benchmark import validate
from ..bench.plan import make_plan
from ..bench.protection_study import mismatch, study_protection
from ..bench.shard import apply_attack, describe_error, make_pair
from ..bench.store import write_text
from ..core.errors import UserError
from ..core.registry import create
from ..core.seeds import Seed
from . import words
from .gallery import picture_uri
from .page import Picture, records, render, save_figure
from .style import PALETTE, colour_of, house_style, marker_of, plain

if TYPE_CHECKING:
    from pathlib import Path

    from ..bench.editing import Editor
    from ..bench.methods.base import Method
    from ..bench.plan import Plan
    from ..bench.protection_study import ProtectionStudy
    from ..bench.results import Run
    from ..core.images import Images

_FIDELITY = ("psnr", "ssim")
_PICTURES = 8
_PATIENCE = 60.0
"""Seconds that the gallery's protections may take for an image, each, and its purifiers all together."""


def write_protection(run: Run, folder: Path, **shared: Any) -> Path:
    """Writes the page, its figures, and the study's tables as CSV.

    Args:
        run: the run.
        folder: of the report.
        **shared: what every page about a run ends with.
    """
    study = study_protection(run)
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for name in ("engagement", "recovery", "clean", "worst", "budgets"):
        getattr(study, name).to_csv(folder / f"protection-{name}.csv", index=False)
    costs = cost_table(run)
    costs.to_csv(folder / "costs.csv", index=False)
    pictures: dict[str, Picture] = {}
    drawn = {"recovery": _axes(run, study), "latent": _latents(run), "objective": _objectives(run)}
    for name, figure in drawn.items():
        if figure is not None:
            pictures[name] = save_figure(figure, figures / name)
    engaged = {str(row["method"]) for row in records(study.engagement) if row["engaged"]}
    exhibits, missing = _exhibits(run, costs, engaged)
    page = render(
        "protection.html", run=run, level=study.level, findings=findings(study), engagement=records(study.engagement),
        recovery=_by_cell(study.recovery), clean=_by_cell(study.clean), worst=_by_cell(study.worst),
        judged=_judged(study), budgets=records(study.budgets), costs=records(costs), pictures=pictures,
        metrics=[m for m in run.config["metrics"] if m["name"] != "edit"], fidelity=_fidelity_rows(run, study),
        exhibits=exhibits, missing=missing, **shared,
    )  # fmt: skip
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _judged(study: ProtectionStudy) -> list[tuple[str, str]]:
    """Editor and measure of each part."""
    if study.engagement.empty:
        return []
    pairs = zip(study.engagement["editor"], study.engagement["measure"], strict=True)
    return list(dict.fromkeys((str(editor), str(measure)) for editor, measure in pairs))


def _by_cell(table: pd.DataFrame) -> dict[tuple[str, ...], dict[str, Any]]:
    keys = [name for name in ("editor", "measure", "method", "attack") if name in table]
    return {tuple(str(row[key]) for key in keys): row for row in records(table)}


def _fidelity_rows(run: Run, study: ProtectionStudy) -> list[dict[str, Any]]:
    """Every protection and purifier with its fidelity to the clean image, whatever the editor."""
    labels = [m["label"] for m in run.config["metrics"] if m["name"] != "edit"]
    joined: pd.DataFrame | None = None
    for label in labels:
        table = mismatch(run, label).drop(columns="n")
        joined = table if joined is None else joined.merge(table, on=["method", "attack"])
    return [] if joined is None else records(joined)


def findings(study: ProtectionStudy) -> list[str]:
    """What the tables say, in sentences; protections that were not engaged first, those of one reason together."""
    found = []
    refused: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in records(study.engagement):
        if not row["engaged"]:
            refused.setdefault((row["editor"], row["measure"], row["reason"]), []).append(row)
    for (editor, measure, reason), rows in refused.items():
        known = [row for row in rows if row["engaged"] is not None]
        names = ", ".join(f"{row['method']} ({row['protected']:.3f})" for row in known)
        if known:
            found.append(
                f"Not engaged ({editor}, {measure}): {names}. In brackets, how alike edits are to those of the clean "
                f"image; the floor is {known[0]['floor']:.3f}: {reason}. There is nothing to recover."
            )
        unknown = [row["method"] for row in rows if row["engaged"] is None]
        if unknown:
            found.append(f"Nothing is said ({editor}, {measure}) of {', '.join(unknown)}: {reason}.")
    for row in records(study.budgets):
        if row.get("exceeded"):
            budget = f"its budget of {row['promised']:g} grey levels"
            found.append(f"{row['method']} exceeds {budget} on {row['exceeded']:g} images.")
    engaged = study.recovery[study.recovery["recovery"].notna()] if "recovery" in study.recovery else study.recovery[:0]
    for (on, by, method), part in engaged.groupby(["editor", "measure", "method"], sort=False):
        best = max(records(part), key=lambda row: float(row["recovery"]))
        most = "nothing gives anything back; best is" if best["recovery_high"] <= 0 else "most is given back by"
        found.append(
            f"{method} ({on}, {by}): {most} {best['attack']}, {best['recovery']:.2f} "
            f"[{best['recovery_low']:.2f}, {best['recovery_high']:.2f}] of the way to the floor."
        )
    return found


def cost_table(run: Run) -> pd.DataFrame:
    """What protections and purifiers took for each image: seconds, evaluations, backward passes, peak memory."""
    names = {"mark": run.protections or run.methods, "attack": run.attacks}
    rows = []
    for stage, labels in names.items():
        for label in labels:
            mine = [c for c in run.store.costs() if c["stage"] == stage and c["name"] == label]
            images = sum(c["images"] for c in mine)
            if not images:
                continue
            each = {key: sum(c.get(key, 0) for c in mine) / images for key in ("seconds", "evaluations", "backwards")}
            peak = max((c.get("peak_mb") or 0.0) for c in mine)
            what = "protection" if stage == "mark" else "purifier"
            rows.append({"stage": what, "name": label, **each, "peak_mb": peak})
    return pd.DataFrame(rows, columns=["stage", "name", "seconds", "evaluations", "backwards", "peak_mb"])


def _axes(run: Run, study: ProtectionStudy) -> Figure | None:
    """Two axes: what was recovered against how faithful the purified image is; a panel for each engaged protection."""
    table = study.recovery
    metric = next((m for m in _FIDELITY if m in table), None)
    if metric is None or "recovery_low" not in table:
        return None
    table = table[table["recovery"].notna()]
    # One measure is enough for a picture; the table has them all.
    table = table[table["measure"] == table["measure"].iloc[0]] if len(table) else table
    groups = list(table.groupby(["editor", "measure", "method"], sort=False))
    if not groups:
        return None
    purifiers = list(dict.fromkeys(table["attack"]))
    with house_style():
        columns = min(3, len(groups))
        rows = -(-len(groups) // columns)
        figure = Figure(figsize=(3.1 * columns + 0.6, 2.7 * rows + 1.1), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, (key, part) in zip(panels, groups, strict=False):
            axes.axhline(0, color="0.6", linewidth=0.8)
            axes.axhline(1, color="0.6", linewidth=0.8, linestyle=":")
            for row in records(part):
                style = {"color": colour_of(purifiers, row["attack"]), "marker": marker_of(purifiers, row["attack"])}
                x, y = row[metric], row["recovery"]
                across = [[x - row[f"{metric}_low"]], [row[f"{metric}_high"] - x]]
                up = [[y - row["recovery_low"]], [row["recovery_high"] - y]]
                axes.errorbar(x, y, xerr=across, yerr=up, linewidth=0.7, markersize=5, **style)
            axes.set_title(plain(f"{key[2]}\n{key[0]}, {key[1]}"))
        for axes in panels[len(groups) :]:
            axes.set_visible(False)
        for axes in panels[::columns]:
            axes.set_ylabel("recovery")
        for axes in panels[-columns:]:
            axes.set_xlabel(f"{metric.upper()} of the purified image")
        handles = [
            Line2D([], [], color=colour_of(purifiers, a), marker=marker_of(purifiers, a), linestyle="", label=plain(a))
            for a in purifiers
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)), fontsize=7)
    return figure


def _latents(run: Run) -> Figure | None:
    """How far each latent is from the clean one, protected and purified: a matrix with numbers."""
    labels = [m["label"] for m in run.config["metrics"] if m["name"] == "latent-distance"]
    if not labels:
        return None
    with house_style():
        height = (0.5 * len(run.protections) + 1.9) * len(labels)
        figure = Figure(figsize=(1.6 + 0.95 * len(run.attacks), height), layout="constrained")
        panels = figure.subplots(len(labels), 1, squeeze=False)[:, 0]
        for axes, label in zip(panels, labels, strict=True):
            table = mismatch(run, label)
            if label not in table:
                continue
            frame = table.pivot(index="method", columns="attack", values=label).loc[run.protections, run.attacks]
            values = frame.to_numpy(float)
            axes.imshow(values, cmap="Blues", vmin=0, aspect="auto")
            for (i, j), value in np.ndenumerate(values):
                shade = "white" if value > 0.6 * np.nanmax(values) else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=shade)
            names = [plain(a) for a in run.attacks]
            axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=7)
            axes.set_yticks(range(len(run.protections)), [plain(m) for m in run.protections], fontsize=7)
            axes.grid(visible=False)
            axes.set_title(plain(label))
    return figure


def _objectives(run: Run) -> Figure | None:
    """The objective of every optimisation, step by step: a thin line for each image."""
    curves: dict[str, list[list[tuple[int, float]]]] = {}
    for cost in run.store.costs():
        for curve in cost.get("objectives", {}).values():
            if len(curve) > 1:
                curves.setdefault(cost["name"], []).append(curve)
    if not curves:
        return None
    with house_style():
        columns = min(3, len(curves))
        rows = -(-len(curves) // columns)
        figure = Figure(figsize=(3.1 * columns, 2.2 * rows + 0.3), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (name, found) in zip(panels, curves.items(), strict=False):
            for curve in found[:60]:
                steps, values = zip(*curve, strict=True)
                axes.plot(steps, values, color=PALETTE[0], alpha=0.4, linewidth=0.8)
            axes.set_title(plain(name), fontsize=7.5)
            axes.set_xlabel("step")
        for axes in panels[len(curves) :]:
            axes.set_visible(False)
        panels[0].set_ylabel("objective")
    return figure


def _affordable(plan: Plan, seconds: dict[str, float], engaged: set[str]) -> tuple[dict[str, list[int]], list[str]]:
    """The purifiers to show of each protection within the time for all, engaged ones first; and what is left out."""
    left, left_out = _PATIENCE, []
    chosen: dict[str, list[int]] = {}
    for method in sorted(plan.methods, key=lambda m: m.label not in engaged):
        chosen[method.label] = []
        for i, attack in enumerate(plan.attacks):
            cost = seconds.get(attack.label, 0.0)
            if cost > 1 and cost > left:
                left_out.append(f"{attack.label} of {method.label}")
                continue
            left -= cost
            chosen[method.label].append(i)
    return chosen, left_out


def _exhibits(run: Run, costs: pd.DataFrame, engaged: set[str]) -> tuple[list[dict[str, Any]], str]:
    """An image clean, protected and purified, with an edit of each, made anew from the run's own recipe."""
    try:
        plan = make_plan(validate(run.config["benchmark"]), run.store.index())
        (group,) = plan.dataset.load([next(r for r in plan.records if r.id == _typical(run))])[0]
        editing = plan.benchmark.editing
        chosen: tuple[Editor, str] | None = None
        if editing is not None:
            ref = editing.editors[0]
            chosen = (cast("Editor", create("editor", ref.name, ref.params)), editing.prompts[0])
    except Exception as error:
        return [], f"The images are not at hand: {describe_error(error)}"
    shown: list[dict[str, Any]] = []
    problems: list[str] = []
    seconds = {str(row["name"]): float(row["seconds"]) for row in records(costs)}
    affordable, left_out = _affordable(plan, seconds, engaged)
    if left_out:
        problems.append(f"Not made again, so that this takes about {_PATIENCE:g} s: {', '.join(left_out)}")
    for method in plan.methods:
        try:
            if seconds.get(method.label, 0.0) > _PATIENCE:
                raise UserError(f"one image takes {seconds[method.label]:.0f} s")
            rows = _row(plan, method, group, chosen, affordable[method.label])
        except Exception as error:
            problems.append(f"{method.label}: {describe_error(error)}")
            continue
        shown.append({"method": method.label, "pictures": rows, "prompt": None if chosen is None else chosen[1]})
    return shown, "; ".join(problems)


def _typical(run: Run) -> str:
    """The image whose edits the last protection moved by the median amount; without an editor, the first image."""
    first = next((m["label"] for m in run.config["metrics"] if m["name"] == "edit"), None)
    clean = next((a["label"] for a in run.config["attacks"] if a["name"] == "identity"), "")
    if first is not None:
        frame = run.image_quality(run.protections[-1], clean, first)
        if len(frame):
            return str(frame.sort_values("value", kind="stable").index[len(frame) // 2])
    return str(run.images.index[0])


def _row(
    plan: Plan, method: Method, group: Images, chosen: tuple[Editor, str] | None, attacks: list[int]
) -> list[tuple[str, str, str | None]]:
    """(title, picture, its edit) of the clean, the protected and some purified images."""
    pair, root = make_pair(plan, method, group), Seed.root(plan.benchmark.seed)
    pictures = [("clean", group), ("protected", pair.marked)]
    for number in attacks:
        attack = plan.attacks[number]
        if attack.family in ("compression", "regeneration", "purification") and len(pictures) < _PICTURES:
            pictures.append((attack.label, apply_attack(plan, number, pair.marked, root)))
    rows = []
    for title, images in pictures:
        edited = None if chosen is None else chosen[0].edit(images, chosen[1], Seed.root(0).child("edit"))
        rows.append((title, _uri(images), None if edited is None else _uri(edited)))
    return rows


def _uri(images: Images) -> str:
    return picture_uri(images.numpy()[0])


def print_protection(run: Run) -> None:
    """Prints engagement and recovery on the terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    study = study_protection(run)
    console = Console()
    for editor, measure in _judged(study):
        table = Table(title=escape(f"{run.name}: recovery, {editor}, {measure}, {study.level:.0%} intervals"))
        table.add_column("purifier", no_wrap=True)
        for method in run.protections:
            table.add_column(escape(method), justify="right", no_wrap=True)
        cells = _by_cell(study.recovery)
        for attack in dict.fromkeys(study.recovery["attack"]):
            line = [escape(str(attack))]
            for method in run.protections:
                row = cells[(editor, measure, method, str(attack))]
                line.append("refused" if row.get("recovery") is None else words.rate(row, "recovery"))
            table.add_row(*line)
        if not console.is_terminal:
            console = Console(width=40 + sum(max(24, len(method) + 3) for method in run.protections))
        console.print(table)
    for text in findings(study):
        Console().print(f"- {text}", markup=False)
