"""Does a protection still work after purification? Recovery beside fidelity, where there was something to undo.

Editing a clean image twice with other draws gives two images that differ: that is the floor. A protection is engaged
where its edits are less like those of the clean image than that. Recovery is reported of engaged protections alone, as
a share of the way from the protected image to the floor; an editor's own randomness is then no achievement of anybody.
Where noise of the same largest change (within a grey level) was run as well, a protection has to do more than it: an
editor without draws has a floor of 1, which anything falls below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from ..core.components import labelled
from ..core.errors import StatisticsError, UserError
from ..core.registry import create
from ..core.seeds import Seed
from .statistics import intervals

if TYPE_CHECKING:
    from .editing import Editor
    from .results import Run

RESAMPLES = 4000
SLACK = 0.5
"""Grey levels by which a budget may be exceeded: an image is stored in whole ones."""


@dataclass(frozen=True)
class ProtectionStudy:
    """Tables of a run of protections; every mean has ``_low`` and ``_high``, every row its number of images ``n``.

    Attributes:
        engagement: a row for each editor, measure and protection: ``protected``, ``floor``, their difference ``gap``,
            ``beyond``, how much less alike the edits are than those under noise of the same largest change, where the
            run has it, and ``engaged``: whether the intervals of both lie above 0.
        recovery: a row for each editor, measure, protection and purifier: the similarity of edits, ``recovery`` where
            the protection was engaged, else why there is none; fidelity to the clean image.
        clean: a row for each editor, measure and purifier: what it does to the edits of clean images, and to these.
        worst: a row for each editor, measure and protection: the recovery by the best purifier of each image.
        budgets: a row for each protection: the promised largest change, what was found, how many images exceed it.
        level: of the intervals.
    """

    engagement: pd.DataFrame
    recovery: pd.DataFrame
    clean: pd.DataFrame
    worst: pd.DataFrame
    budgets: pd.DataFrame
    level: float


def study_protection(run: Run) -> ProtectionStudy:
    """Judges the protections of a run.

    Raises:
        StatisticsError: it judges none.
    """
    if not run.protections:
        raise StatisticsError("this run judges no protection")
    level = float(run.config["benchmark"]["decision"]["level"])
    clean_attack = next((a["label"] for a in run.config["attacks"] if a["name"] == "identity"), None)
    if clean_attack is None:
        raise StatisticsError("what a purifier gives back is measured from 'identity': add it to the attacks")
    tables: dict[str, list[dict[str, Any]]] = {"engagement": [], "recovery": [], "clean": [], "worst": []}
    for about, metrics in _families(run).items():
        head = dict(zip(("editor", "measure"), about, strict=True))
        floor = _floor(run, metrics, clean_attack, head["measure"])
        for attack in run.attacks:
            values = _similarity(run, None, attack, metrics)
            tables["clean"].append(
                {**head, "attack": attack, **_mean("similarity", values, level), **_fidelity(run, None, attack, level)}
            )
        for method in run.protections:
            protected = _similarity(run, method, clean_attack, metrics)
            noises = [_similarity(run, noise, clean_attack, metrics) for noise in _noises(run, method)]
            engaged = _engaged(protected, floor, level)
            engaged = _beyond_noise(engaged, protected, noises, _is_noise(run, method), level)
            tables["engagement"].append({**head, "method": method, **engaged})
            purified = {a: _similarity(run, method, a, metrics) for a in run.attacks if a != clean_attack}
            for attack, values in purified.items():
                row = {**head, "method": method, "attack": attack, **_mean("similarity", values, level)}
                row |= _recovery(values, protected, floor, engaged, level)
                tables["recovery"].append({**row, **_fidelity(run, method, attack, level)})
            best = _best(purified)
            tables["worst"].append({**head, "method": method, **_recovery(best, protected, floor, engaged, level)})
    # A run without an editor, or without a purifier, has no rows, but a reader still asks for the columns.
    heads = {"editor", "measure", "method", "attack", "recovery"}
    frames = {n: pd.DataFrame(rows, columns=None if rows else sorted(heads)) for n, rows in tables.items()}
    return ProtectionStudy(**frames, budgets=_budgets(run, clean_attack), level=level)


def _families(run: Run) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The comparisons of edits by editor and measure."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for metric in run.config["metrics"]:
        if metric["name"] == "edit":
            editor, params = metric["params"]["editor"], metric["params"]
            found.setdefault((labelled(editor["name"], editor["params"]), params["measure"]), []).append(metric)
    return found


def _similarity(run: Run, method: str | None, attack: str, metrics: list[dict[str, Any]], floor: bool = False) -> Any:
    """The mean over prompts and seeds for each image, with its source; images that lack one of them are left out."""
    chosen = [m["label"] for m in metrics if (m["params"]["other_seed"] is not None) == floor]
    frames = [run.image_quality(method, attack, label) for label in chosen]
    if not frames:
        return pd.DataFrame({"value": [], "source": []})
    joined = pd.concat([f["value"] for f in frames], axis=1, join="inner")
    # An image whose edit did not change at all has an infinite PSNR: 100 dB is more than 8 bits can show.
    values = joined.clip(upper=100.0).mean(axis=1)
    return pd.DataFrame({"value": values, "source": frames[0]["source"].reindex(values.index)})


def _floor(run: Run, metrics: list[dict[str, Any]], attack: str, measure: str) -> pd.DataFrame:
    """Similarity of two edits of each clean image with other draws; 1 where the editor draws nothing."""
    found: pd.DataFrame = _similarity(run, None, attack, metrics, floor=True)
    if len(found) or measure != "ssim" or any(_draws(m["params"]["editor"]) for m in metrics):
        return found
    same: pd.DataFrame = _similarity(run, None, attack, metrics)
    return same.assign(value=1.0)


def _draws(editor: dict[str, Any]) -> bool:
    """Whether an editor draws; of one that is not here any more nothing is known, and it then has no floor."""
    try:
        return bool(cast("Editor", create("editor", editor["name"], editor["params"])).seeded)
    except UserError:
        return True


def _mean(name: str, frame: pd.DataFrame, level: float) -> dict[str, Any]:
    row: dict[str, Any] = {"n": len(frame)}
    if not len(frame):
        return row
    values = frame["value"].to_numpy(float)
    found = intervals.mean(values, frame["source"].to_numpy(object), level=level)
    return {**row, name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _engaged(protected: pd.DataFrame, floor: pd.DataFrame, level: float) -> dict[str, Any]:
    row = {**_mean("protected", protected, level), **_mean("floor", floor, level)}
    both = protected.index.intersection(floor.index)
    gap = floor.loc[both].assign(value=floor["value"].loc[both] - protected["value"].loc[both])
    row |= _mean("gap", gap, level)
    if not len(floor):
        return {**row, "engaged": None, "reason": "no floor: two seeds or more are needed, of an editor that draws"}
    if len(both) < 2:
        return {**row, "engaged": None, "reason": f"{len(both)} images: an interval needs two"}
    engaged = bool(row["gap_low"] > 0)
    return {**row, "engaged": engaged, "reason": "" if engaged else "edits differ no more than those of two draws"}


def _is_noise(run: Run, method: str) -> bool:
    return run.about("method", method).get("name") == "null-protection"


def _noises(run: Run, method: str) -> list[str]:
    """The noises that a protection is compared with: their largest change is within a grey level of its own."""
    wanted = run.about("method", method).get("largest_change")
    if wanted is None or _is_noise(run, method):
        return []
    # What promises 0 is no noise.
    changes = {n: run.about("method", n).get("largest_change") for n in run.protections if _is_noise(run, n)}
    return [n for n, change in changes.items() if change and abs(change - wanted) <= 1]


def _beyond_noise(
    engaged: dict[str, Any], protected: pd.DataFrame, noises: list[pd.DataFrame], is_noise: bool, level: float
) -> dict[str, Any]:
    """The second half of the gate. Where the floor is that nothing differs, there is no engagement without it."""
    anything_would_do = bool(engaged["engaged"]) and engaged["floor_low"] == 1
    if is_noise and anything_would_do:
        return {
            **engaged,
            "engaged": False,
            "reason": "it is noise, and any change moves an editor without draws",
        }
    if not noises and anything_would_do:
        reason = "the editor draws nothing, and the run has no noise of the same largest change"
        return {**engaged, "engaged": None, "reason": reason}
    if not noises:
        return engaged
    # The noise that spoils most is the one to beat.
    noise = min(noises, key=lambda frame: float(frame["value"].mean()) if len(frame) else np.inf)
    both = protected.index.intersection(noise.index)
    beyond = protected.loc[both].assign(value=noise["value"].loc[both] - protected["value"].loc[both])
    row = {**engaged, **_mean("beyond", beyond, level), "n": engaged["n"]}
    low = float(row.get("beyond_low", np.nan))
    if engaged["engaged"] and not np.isfinite(low):
        return {**row, "engaged": None, "reason": "too few of its images were edited under noise of that size as well"}
    if engaged["engaged"] and low <= 0:
        return {**row, "engaged": False, "reason": "edits differ no more than under noise of the same largest change"}
    return row


def _recovery(
    purified: pd.DataFrame, protected: pd.DataFrame, floor: pd.DataFrame, engaged: dict[str, Any], level: float
) -> dict[str, Any]:
    """(purified - protected) / (floor - protected), a ratio of means over the same images, bootstrapped by source."""
    if not engaged["engaged"]:
        return {"recovery": None, "reason": engaged["reason"]}
    both = purified.index.intersection(protected.index).intersection(floor.index)
    parts = pd.DataFrame({name: frame["value"].loc[both] for name, frame in
                          (("purified", purified), ("protected", protected), ("floor", floor))})  # fmt: skip
    parts = parts.groupby(floor["source"].loc[both].to_numpy()).mean()
    if len(parts) < 2:
        return {"recovery": None, "reason": f"{len(parts)} sources: an interval needs two"}
    values = parts.to_numpy(float)
    draw = Seed.root(0).child("recovery", len(values)).numpy()
    picked = values[draw.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (picked[:, 0] - picked[:, 1]) / (picked[:, 2] - picked[:, 1])
    mean = values.mean(axis=0)
    low, high = np.nanquantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    point = (mean[0] - mean[1]) / (mean[2] - mean[1])
    return {"recovery": point, "recovery_low": low, "recovery_high": high, "sources": len(values), "reason": ""}


def _best(purified: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """For each image the highest similarity that any purifier reached."""
    frames = [frame for frame in purified.values() if len(frame)]
    if not frames:
        return pd.DataFrame({"value": [], "source": []})
    best = pd.concat([frame["value"] for frame in frames], axis=1, join="inner").max(axis=1)
    return pd.DataFrame({"value": best, "source": frames[0]["source"].reindex(best.index)})


def _fidelity(run: Run, method: str | None, attack: str, level: float) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for metric in run.config["metrics"]:
        if metric["name"] == "edit":
            continue
        frame = run.image_quality(method, attack, metric["label"])
        finite = frame[np.isfinite(frame["value"].to_numpy(float))]
        found = _mean(metric["label"], finite, level)
        found.pop("n")
        row |= found
    return row


def _budgets(run: Run, clean_attack: str) -> pd.DataFrame:
    label = next((m["label"] for m in run.config["metrics"] if m["name"] == "largest-change"), None)
    rows = []
    for method in run.protections:
        promised = run.about("method", method).get("largest_change")
        row: dict[str, Any] = {"method": method, "promised": promised}
        if label is not None:
            found = run.image_quality(method, clean_attack, label)["value"].to_numpy(float)
            row |= {"n": len(found), "found": float(found.max()) if len(found) else None}
            if promised is not None:
                row["exceeded"] = int((found > promised + SLACK).sum())
        rows.append(row)
    return pd.DataFrame(rows)


def mismatch(run: Run, metric: str) -> pd.DataFrame:
    """The matrix of a metric over protections and purifiers: one row for each pair, with interval.

    Args:
        run: the run.
        metric: label of the metric.
    """
    level = float(run.config["benchmark"]["decision"]["level"])
    rows = [
        {"method": method, "attack": attack, **_mean(metric, run.image_quality(method, attack, metric), level)}
        for method in run.protections
        for attack in run.attacks
    ]
    return pd.DataFrame(rows)
