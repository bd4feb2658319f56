"""A finished (or unfinished) run, read back: scores, summaries, ROC curves, null reports. Computes, stores nothing."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from ..core.components import describe
from ..core.errors import StatisticsError, StoreError, nearest
from .benchmark import Decision
from .keys import key_bits
from .plan import SCHEMA
from .statistics import binomial
from .statistics.null import NullReport, null_report
from .statistics.roc import Roc, roc
from .statistics.splits import split
from .store import Store
from .summary import Decided, Sample, folded, summarise

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..core.images import Record
    from .plan import Plan

_CELLS = pa.schema(
    [
        *[(name, pa.string()) for name in ("cell", "arm", "maker", "attack", "observer_kind", "observer", "status")],
        *[(name, pa.int64()) for name in ("n_planned", "n_ok", "n_failed", "n_unreadable")],
        ("reason", pa.string()),
    ]
)


def cell_table(plan: Plan, store: Store) -> pa.Table:
    """A row for every planned cell: ok, partial, failed, missing or skipped, with counts and the first reason."""
    counts = _counts(store)
    errors = _first_errors(store)
    rows = []
    for cell in plan.cells:
        names = plan.names(cell)
        n_ok, n_failed, n_unreadable = (counts.get((cell.id, s), 0) for s in ("ok", "failed", "unreadable"))
        planned = len(plan.records)
        status: str
        reason: str | None
        if cell.skipped is not None:
            status, reason = "skipped", cell.skipped
        elif n_ok + n_failed + n_unreadable < planned:
            status, reason = "missing", "the run was stopped before this cell: run it again"
        elif n_ok + n_unreadable == planned and n_ok:
            status, reason = "ok", errors.get(cell.id)
        else:
            status, reason = ("partial" if n_ok else "failed"), errors.get(cell.id)
        rows.append(
            {
                "cell": cell.id,
                **{k: names[k] for k in ("arm", "maker", "attack", "observer")},
                "observer_kind": cell.observer,
                "status": status,
                "n_planned": planned,
                "n_ok": n_ok,
                "n_failed": n_failed,
                "n_unreadable": n_unreadable,
                "reason": reason,
            }
        )
    return pa.Table.from_pylist(rows, schema=_CELLS)


def _counts(store: Store) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for name in ("scores", "quality", "failures"):
        columns = ["cell", "status"] if name == "failures" else ["cell"]
        table = pq.read_table(store.folder / f"{name}.parquet", columns=columns)
        for row in table.group_by(columns).aggregate([([], "count_all")]).to_pylist():
            key = (row["cell"], row.get("status", "ok"))
            counts[key] = counts.get(key, 0) + row["count_all"]
    return counts


def _first_errors(store: Store) -> dict[str, str]:
    frame = pq.read_table(store.folder / "failures.parquet", columns=["cell", "status", "error"]).to_pandas()
    # "failed" comes before "unreadable": what went wrong matters more than which file is broken.
    first = frame.sort_values("status", kind="stable").drop_duplicates("cell")
    return dict(zip(first["cell"], first["error"], strict=True))


def same_schema(config: Mapping[str, Any], where: Path) -> None:
    """Refuses what another version of the stored format wrote.

    Raises:
        StoreError: the schema is another one.
    """
    if config.get("schema") != SCHEMA:
        raise StoreError(
            f"{where} holds results of schema {config.get('schema')}, this version of waterproof reads {SCHEMA}: "
            "run the benchmark again, or read them with the version that wrote them"
        )


def load_run(folder: str | Path) -> Run:
    """Opens a run folder.

    Raises:
        StoreError: there is no run, or it was stopped before its first results were folded.
    """
    return Run(Path(folder))


class Run:
    """A run, read back.

    Args:
        folder: the run folder.

    Attributes:
        config: the frozen configuration, as in ``run.json``.

    Example:
        >>> run = load_run("runs/quick")  # doctest: +SKIP
        >>> run.summary().query("family == 'compression'")  # doctest: +SKIP
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.store = Store(self.folder)
        self.config = self.store.config()
        same_schema(self.config, self.folder)
        if not (self.folder / "cells.parquet").is_file():
            raise StoreError(f"{folder} was stopped before its first results were gathered: run the same command again")

    def __repr__(self) -> str:
        return f"Run('{self.folder}', {len(self.methods)} methods x {len(self.attacks)} attacks)"

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return str(self.config["benchmark"]["name"])

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A row for every planned cell."""
        frame: pd.DataFrame = pq.read_table(self.folder / "cells.parquet").to_pandas()
        return frame

    @cached_property
    def images(self) -> pd.DataFrame:
        """A row for every image, with the split in force."""
        frame = self._listed()
        # Protections have no threshold, so that nothing is calibrated.
        share = 0 if self.protections else self.config["benchmark"]["decision"]["calibration"]
        frame["split"] = [
            given if isinstance(given, str) else split(source, share) if share else "test"
            for given, source in zip(frame["split"], frame["source"], strict=True)
        ]
        return frame.set_index("id")

    def _listed(self) -> pd.DataFrame:
        return pd.DataFrame(self.store.read("images"))

    @property
    def methods(self) -> list[str]:
        """Labels of the methods."""
        return [m["label"] for m in self.config["methods"]]

    @property
    def protections(self) -> list[str]:
        """Labels of the methods that are protections: all of them or none."""
        return [m["label"] for m in self.config["methods"] if m.get("role") == "protection"]

    @property
    def attacks(self) -> list[str]:
        """Labels of the attacks, in the benchmark's order."""
        return [a["label"] for a in self.config["attacks"]]

    @property
    def ok(self) -> bool:
        """Whether every cell that was not skipped is complete."""
        return bool(self.cells["status"].isin(["ok", "skipped"]).all())

    @property
    def measured(self) -> bool:
        """Whether anything at all was measured."""
        return bool((self.cells["n_ok"] > 0).any())

    def about(self, kind: str, label: str) -> dict[str, Any]:
        """What the configuration says of a method, attack or metric."""
        found: Mapping[str, Any] = next(item for item in self.config[f"{kind}s"] if item["label"] == label)
        return dict(found)

    def known(self, kind: str, given: str) -> str:
        """Returns the label if the run has a method, attack or metric of this name.

        Raises:
            StatisticsError: it has not.
        """
        valid: list[str] = getattr(self, f"{kind}s")
        if given in valid:
            return given
        raise StatisticsError(f"this run has no {kind} '{given}'.{nearest(given, valid)}")

    @cached_property
    def _tables(self) -> dict[str, pa.Table]:
        return {name: pq.read_table(self.folder / f"{name}.parquet") for name in ("scores", "quality")}

    @cached_property
    def _ranges(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Where each cell's rows stand; a cell may stand in several runs of rows only if it was damaged."""
        ranges: dict[str, dict[str, tuple[int, int]]] = {}
        for name, table in self._tables.items():
            cells = table["cell"].combine_chunks().dictionary_encode()
            codes = np.asarray(cells.indices)
            edges = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1], True]) if len(codes) else np.array([], int)
            starts, ends = edges[:-1], edges[1:]
            labels = cells.dictionary.to_pylist()
            ranges[name] = {labels[codes[a]]: (int(a), int(b)) for a, b in zip(starts, ends, strict=True)}
        return ranges

    def _cell(self, **wanted: str | None) -> pd.Series | None:
        frame = self.cells
        for key, value in wanted.items():
            frame = frame[frame[key].isna()] if value is None else frame[frame[key] == value]
        return None if frame.empty else frame.iloc[0]

    def sample(self, method: str, attack: str, arm: str) -> Sample:
        """Scores of one method on one arm under one attack.

        Args:
            method: label of the method, which is both maker and scorer.
            attack: label of the attack.
            arm: ``marked`` or ``unmarked``.

        Raises:
            StatisticsError: no such method or attack.
        """
        self.known("method", method)
        self.known("attack", attack)
        frame = self.cells
        mine = (frame["observer"] == method) & (frame["attack"] == attack) & (frame["arm"] == arm)
        rows = frame[mine & (frame["observer_kind"] == "scorer")]
        if rows.empty:
            return self._unplanned(method, arm)
        row = rows.iloc[0]
        table, (start, end) = self._tables["scores"], self._ranges["scores"].get(row["cell"], (0, 0))
        part = table.slice(start, end - start)
        images = part["image"].to_pylist()
        about = self.images.loc[images] if images else self.images.iloc[:0]
        bits = int(self.about("method", method)["bits"])
        values, logits = self._evidence(part, method, images)
        return Sample(
            images=np.array(images, dtype=object),
            sources=about["source"].to_numpy(dtype=object),
            test=(about["split"] == "test").to_numpy(),
            values=values,
            logits=logits,
            bits=bits,
            planned=int(row["n_planned"]),
            failed=int(row["n_failed"] + row["n_unreadable"]),
            status=str(row["status"]),
            reason=row["reason"],
        )

    def _evidence(self, part: pa.Table, method: str, images: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
        """Decision scores, and the logits that they come from if there is a payload."""
        bits = int(self.about("method", method)["bits"])
        if not bits:
            return np.asarray(part["value"], dtype=np.float64), None
        logits = np.asarray(part["logits"].combine_chunks().flatten(), dtype=np.float32).reshape(-1, bits)
        keys = self.keys(method, images)
        return ((logits > 0) == keys).sum(axis=1).astype(np.float64), logits

    def _unplanned(self, method: str, arm: str) -> Sample:
        bits = int(self.about("method", method)["bits"])
        nothing = np.array([], dtype=object)
        reason = f"this run plans no {arm} images here"
        logits = np.empty((0, bits), np.float32) if bits else None
        return Sample(
            nothing, nothing, np.array([], bool), np.array([]), logits, bits, 0, 0, status="unplanned", reason=reason
        )

    def keys(self, method: str, images: list[str]) -> np.ndarray:
        """The payload that each image carries (or would carry): bool ``[n, k]``."""
        about, benchmark = self.about("method", method), self.config["benchmark"]
        bits, users = int(about["bits"]), about.get("users")
        if benchmark["key"] == "per-image":
            keys = [key_bits(benchmark["key"], benchmark["seed"], bits, image, users) for image in images]
            return np.array(keys, dtype=bool).reshape(len(images), bits)
        return np.tile(key_bits(benchmark["key"], benchmark["seed"], bits, "", users), (len(images), 1))

    def quality(self, method: str, attack: str, metric: str) -> tuple[np.ndarray, np.ndarray, str | None]:
        """Values and sources of a metric over the test images, and why there are none.

        Under ``identity`` the reference is the unmarked counterpart (what the mark costs); under an attack it is the
        marked image (what the attack costs).
        """
        frame = self.image_quality(method, attack, metric)
        if not frame.empty:
            return frame["value"].to_numpy(dtype=np.float64), frame["source"].to_numpy(dtype=object), None
        row = self._quality_cell(method, attack, metric)
        return np.array([]), np.array([]), "not planned" if row is None else row["reason"]

    def image_quality(self, method: str | None, attack: str, metric: str) -> pd.DataFrame:
        """Columns ``value`` and ``source`` of a metric, one row for each test image; empty where nothing was measured.

        References as in :meth:`quality`; for protections always the clean image. ``method`` None: clean images.
        """
        row = self._quality_cell(method, attack, metric)
        start, end = (0, 0) if row is None else self._ranges["quality"].get(row["cell"], (0, 0))
        part = self._tables["quality"].slice(start, end - start)
        frame = pd.DataFrame({"value": np.asarray(part["value"], np.float64)}, index=part["image"].to_pylist())
        about = self.images.loc[frame.index] if len(frame) else self.images.iloc[:0]
        return frame.assign(source=about["source"].to_numpy(dtype=object))[(about["split"] == "test").to_numpy()]

    def quality_status(self, method: str, attack: str, metric: str) -> str:
        """The status of a quality cell and why it is not ok, in words."""
        row = self._quality_cell(method, attack, metric)
        if row is None:
            return "missing: not planned"
        return f"{row['status']}: {row['reason']}" if row["reason"] else str(row["status"])

    def _quality_cell(self, method: str | None, attack: str, metric: str) -> pd.Series | None:
        return self._cell(observer_kind="metric", observer=metric, maker=method, attack=attack)

    def scores(self) -> pd.DataFrame:
        """One row for each image, method, arm and attack: score, bit accuracy, log10 p-value."""
        frames = []
        for method in self.methods:
            bits = int(self.about("method", method)["bits"])
            for attack in self.attacks:
                for arm in ("marked", "unmarked"):
                    sample = self.sample(method, attack, arm)
                    frame = pd.DataFrame({"image": sample.images, "source": sample.sources})
                    frame["split"] = np.where(sample.test, "test", "calibration")
                    frame["score"] = sample.values
                    if bits:
                        frame["bit_accuracy"] = sample.values / bits
                        frame["log10_p"] = binomial.log10_p(sample.values.astype(int), bits)
                    frames.append(frame.assign(method=method, attack=attack, arm=arm))
        first = ["method", "attack", "arm"]
        joined = pd.concat(frames, ignore_index=True)
        return joined[first + [c for c in joined.columns if c not in first]]

    def deciding(self, **changes: Any) -> Run:
        """The same run under another decision: ``fpr``, ``rule``, ``threshold``, ``sided``, ``calibration``, ``level``.

        A new rule that is not ``fixed`` drops the threshold of the old one, and a threshold implies ``fixed``.

        Raises:
            StatisticsError: a value is out of range.
        """
        given = {key: value for key, value in changes.items() if value is not None}
        if not given:
            return self
        if "rule" in given or "threshold" in given:
            # Who names a rule means it for every method.
            given.setdefault("scores", None)
        if "threshold" in given:
            given.setdefault("rule", "fixed")
        elif given.get("rule", "fixed") != "fixed":
            given["threshold"] = None
        try:
            decision = Decision(**{**self.config["benchmark"]["decision"], **given})
        except ValidationError as error:
            raise StatisticsError(describe(error)) from None
        other = type(self)(self.folder)
        other.config["benchmark"]["decision"] = decision.model_dump()
        return other

    def decision(self, **changes: Any) -> Decided:
        """The run's decision rule, with changes."""
        given = self.deciding(**changes).config["benchmark"]["decision"]
        common = {"sided": given["sided"], "level": given["level"]}
        scores = given.get("scores")
        return Decided(
            fpr=given["fpr"],
            rule=given["rule"],
            threshold=given.get("threshold"),
            scores=None if scores is None else Decided(**scores, **common),
            **common,
        )

    def summary(self, fpr: float | None = None, rule: str | None = None, sided: str | None = None) -> pd.DataFrame:
        """One row for each method and attack: TPR at the deployed threshold, both nulls, AUC, bits, quality.

        Args:
            fpr: the false-positive rate to hold; None takes the benchmark's.
            rule: ``theory`` or ``certified``; None takes the benchmark's.
            sided: ``one`` or ``two``.

        Returns:
            a frame; every rate comes with ``_low`` and ``_high``, the rule, n and the number of sources. What the
            data cannot say is empty and the column ``note`` says why.
        """
        return summarise(self, self.decision(fpr=fpr, rule=rule, sided=sided))

    def roc(self, method: str, attack: str) -> Roc:
        """The attack-matched ROC over the test images: attacked marked against attacked unmarked.

        Raises:
            StatisticsError: a class is empty.
        """
        sides = [self.sample(method, attack, arm) for arm in ("marked", "unmarked")]
        return roc(*(folded(side.values[side.test], side.bits, self.decision().sided) for side in sides))

    def null(self, method: str, attack: str = "identity", fpr: float | None = None) -> NullReport:
        """The null of a method: do unmarked images give fair, independent bits?

        The key in use is :meth:`owner_key`'s.

        Raises:
            StatisticsError: the method has no payload, or there are no unmarked scores.
        """
        sample, logits = self.unmarked(method, attack)
        decided = self.decision(fpr=fpr)
        return null_report(logits, self.owner_key(method), sample.sources, decided.fpr, sided=decided.sided)

    def unmarked(self, method: str, attack: str = "identity") -> tuple[Sample, np.ndarray]:
        """The unmarked images of a method with a payload, and their logits ``[n, k]``.

        Raises:
            StatisticsError: there is no payload, no logit is kept, or nothing was scored.
        """
        sample = self.sample(method, attack, "unmarked")
        if sample.logits is None and sample.bits:
            raise StatisticsError(f"{self.folder} is a baseline, which keeps no logits: test the null on its run")
        if sample.logits is None:
            raise StatisticsError(f"{method} has no payload: its null has no theory to be tested")
        if not len(sample.images):
            raise StatisticsError(f"{method} under {attack}: no unmarked image was scored")
        return sample, sample.logits

    def owner_key(self, method: str) -> np.ndarray:
        """The key in use; where each image has its own, the one that the seed gives an owner who uses one for all."""
        about, benchmark = self.about("method", method), self.config["benchmark"]
        policy = "fixed" if benchmark["key"] == "per-image" else benchmark["key"]
        return key_bits(policy, benchmark["seed"], int(about["bits"]), "", about.get("users"))

    def references(self) -> list[str]:
        """What to cite: the methods, data, attacks and metrics that took part, each once."""
        data = [self.config["dataset"]] if "dataset" in self.config else []
        parts = [*self.config["methods"], *data, *self.config["attacks"], *self.config["metrics"]]
        return list(dict.fromkeys(reference for part in parts for reference in part["references"]))

    def records(self) -> list[Record]:
        """The images' records."""
        return list(self.store.index().records)
