"""A run frozen as the reference of a regression check: one file, small enough to commit, that vouches for itself.

It keeps what a paired comparison reads: the decision score of each image in each cell (matching bits, not logits), the
quality of the unattacked marked images, the image list without pictures, and the versions of everything that took part.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..core.errors import StoreError
from ..core.identity import canonical_json
from .results import Run, load_run, same_schema
from .store import write_table, writing

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1
"""Raised when the file's layout changes."""

_KEY = b"waterproof-baseline"
_KEPT = ("schema", "images", "specs", "dataset", "methods", "attacks", "metrics", "provenance", "started")
_IMAGE = ["id", "source", "label", "split"]
_SCHEMA = pa.schema([("cell", pa.string()), ("image", pa.string()), ("value", pa.float64())])


def freeze(run: Run, path: Path) -> str:
    """Writes the baseline file of a run.

    Args:
        run: the run; incomplete cells are frozen as they are.
        path: the file; ``.parquet`` is usual.

    Returns:
        its digest, which is also written into the file.

    Raises:
        StoreError: nothing was measured, or the file cannot be written.
    """
    if not run.measured:
        raise StoreError(f"{run.folder}: nothing was measured, so there is nothing to freeze")
    table = pa.concat_tables([_scores(run), _quality(run)])
    about = _about(run)
    digest = _digest(about, table)
    meta = {_KEY: canonical_json({**about, "digest": digest}).encode()}
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, table.replace_schema_metadata(meta))
    return digest


def load_results(path: str | Path) -> Run:
    """Opens a run folder or a baseline file.

    Raises:
        StoreError: it is neither, or damaged.
    """
    path = Path(path)
    if path.is_file():
        return Baseline(path)
    if not path.exists():
        raise StoreError(f"no such run folder or baseline file: {path}")
    return load_run(path)


class Baseline(Run):
    """A frozen run, read back; it answers everything that needs no logits.

    Attributes:
        digest: of its content, checked when it is opened.

    Raises:
        StoreError: the file is no baseline, was made by another format or does not match its digest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            table = pq.read_table(self.folder)
            about = json.loads((table.schema.metadata or {})[_KEY])
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            reason = f": {' '.join(str(error).split())[:120]}" if not isinstance(error, KeyError) else ""
            raise StoreError(f"{folder} is no baseline file (`waterproof baseline RUN` makes one){reason}") from None
        if about.get("format") != FORMAT:
            raise StoreError(f"{folder} is a baseline of format {about.get('format')}, this version reads {FORMAT}")
        self.digest = str(about.pop("digest"))
        self._table = table.replace_schema_metadata(None)
        if _digest(about, self._table) != self.digest:
            raise StoreError(f"{folder} does not match its digest: it is damaged or was edited; freeze the run again")
        self._about: dict[str, Any] = about
        self.config = about["config"]
        same_schema(self.config, self.folder)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A row for every planned cell."""
        return pd.DataFrame(self._about["cells"])

    def _listed(self) -> pd.DataFrame:
        return pd.DataFrame(self._about["images"], columns=_IMAGE)

    @cached_property
    def _tables(self) -> dict[str, pa.Table]:
        return {"scores": self._table, "quality": self._table}

    def _evidence(self, part: pa.Table, method: str, images: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
        return np.asarray(part["value"], dtype=np.float64), None


def _scores(run: Run) -> pa.Table:
    """Decision scores of every scored cell, in the order of the run's own table."""
    cells = run.cells[run.cells["observer_kind"] == "scorer"]
    samples = [(row["cell"], run.sample(row["observer"], row["attack"], row["arm"])) for _, row in cells.iterrows()]
    names = np.concatenate([np.repeat(np.array([cell], object), len(s.images)) for cell, s in samples])
    values = np.concatenate([s.values for _, s in samples])
    return pa.table([names, np.concatenate([s.images for _, s in samples]), values], schema=_SCHEMA)


def _quality(run: Run) -> pa.Table:
    """What the marks cost; what attacks cost is no property of the method under test."""
    clean = {a["label"] for a in run.config["attacks"] if a["name"] == "identity"}
    cells = run.cells[(run.cells["observer_kind"] == "metric") & run.cells["attack"].isin(clean)]["cell"]
    table = run._tables["quality"].select(_SCHEMA.names).cast(_SCHEMA)
    return table.filter(pc.is_in(table["cell"], pa.array(cells, pa.string())))


def _about(run: Run) -> dict[str, Any]:
    benchmark = run.config["benchmark"]
    config = {key: run.config[key] for key in _KEPT if key in run.config}
    # The dataset's parameters stay out: its spec says what they decide, and a folder's path is nobody's business.
    config["benchmark"] = {key: benchmark[key] for key in ("name", "version", "seed", "key", "limit", "decision")}
    cells = run.cells.astype(object).where(run.cells.notna(), None).to_dict("records")
    images = run._listed()[_IMAGE]
    listed = images.astype(object).where(images.notna(), None).to_numpy().tolist()
    about = {"format": FORMAT, "config": config, "cells": cells, "images": listed}
    # What JSON makes of it is what will be read back.
    plain: dict[str, Any] = json.loads(canonical_json(about))
    return plain


def _digest(about: Mapping[str, Any], table: pa.Table) -> str:
    digest = hashlib.sha256(b"waterproof-baseline-1\n")
    digest.update(canonical_json(dict(about)).encode())
    for name in ("cell", "image"):
        digest.update("\n".join(table[name].to_pylist()).encode())
    digest.update(np.asarray(table["value"], dtype="<f8").tobytes())
    return "sha256:" + digest.hexdigest()
