"""Results without images: baseline files whose matching bits a test dictates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from waterproof.bench.baseline import _KEY, _SCHEMA, FORMAT, Baseline, _digest
from waterproof.bench.plan import SCHEMA
from waterproof.bench.store import write_table
from waterproof.core.identity import canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Cells = dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]
"""(method, attack) -> matching bits of marked and of unmarked images."""


def baseline_of(
    path: Path,
    cells: Cells,
    bits: int = 32,
    versions: Mapping[str, str] | None = None,
    decision: Mapping[str, Any] | None = None,
    split: str | list[str] = "test",
    lost: Mapping[tuple[str, str, str], int] | None = None,
    **benchmark: Any,
) -> Baseline:
    """Writes and opens a baseline; the attack ``identity`` is of the family ``none``.

    ``lost`` names an image that failed, by method, attack and arm.
    """
    methods = list(dict.fromkeys(m for m, _ in cells))
    attacks = list(dict.fromkeys(a for _, a in cells))
    n = max(len(values) for arms in cells.values() for values in arms)
    splits = [split] * n if isinstance(split, str) else split
    specs = (
        {"dataset synthetic": "d1"} | {f"attack {a}": f"a-{a}" for a in attacks} | {f"method {m}": m for m in methods}
    )
    config = {
        "schema": SCHEMA,
        "images": f"{n} images",
        "specs": specs | dict(versions or {}),
        "methods": [
            {"label": m, "name": m.split("(")[0], "version": 1, "bits": bits, "references": [], "family": "post-hoc"}
            for m in methods
        ],
        "attacks": [
            {"label": a, "name": a, "family": "none" if a == "identity" else "noise", "value": None, "damage": 0.0}
            | {"strength": None, "references": []}
            for a in attacks
        ],
        "metrics": [],
        "provenance": {"packages": {"numpy": "2"}},
        "started": "2026-01-01",
        "benchmark": {
            "name": "synthetic",
            "seed": 0,
            "key": "per-image",
            "decision": {"fpr": 0.01, "rule": "theory", "sided": "one", "calibration": 0.0, "level": 0.95}
            | {"threshold": None}
            | dict(decision or {}),
        }
        | benchmark,
    }
    names = [f"image-{i:05d}" for i in range(n)]
    listed, tables = [], []
    for (method, attack), arms in cells.items():
        for arm, values in zip(("marked", "unmarked"), arms, strict=True):
            cell = f"{method}/{attack}/{arm}"
            listed.append(
                {"cell": cell, "arm": arm, "maker": method if arm == "marked" else None, "attack": attack}
                | {"observer_kind": "scorer", "observer": method, "status": "ok" if len(values) == n else "partial"}
                | {"n_planned": n, "n_ok": len(values), "n_failed": n - len(values), "n_unreadable": 0}
                | {"reason": None if len(values) == n else "it broke"}
            )
            scored = names[: len(values)]
            if lost and (method, attack, arm) in lost:
                # One image failed, wherever it stands.
                gone = lost[method, attack, arm]
                scored, values = scored[:gone] + scored[gone + 1 :], np.delete(values, gone)
                listed[-1] |= {"status": "partial", "n_ok": n - 1, "n_failed": 1, "reason": "it [broke]"}
            columns = [[cell] * len(values), scored, np.asarray(values, dtype=np.float64)]
            tables.append(pa.table(columns, schema=_SCHEMA))
    images = [[name, name, "real", s] for name, s in zip(names, splits, strict=True)]
    about = {"format": FORMAT, "config": config, "cells": listed, "images": images}
    table = pa.concat_tables(tables)
    meta = {_KEY: canonical_json({**about, "digest": _digest(about, table)}).encode()}
    write_table(path, table.replace_schema_metadata(meta))
    return Baseline(path)
