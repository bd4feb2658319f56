"""A run on disk: a folder that is complete at every moment, however the run was stopped.

While a run works, finished cells go to a journal: small Parquet files under ``parts/``, written whole and renamed into
place. When a run ends, the journal is folded into ``scores.parquet``, ``quality.parquet`` and ``failures.parquet``,
sorted by cell and image, so that equal results are equal bytes. Costs, times and tracebacks live in files of their own.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
import uuid
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..core.errors import DiskFullError, StoreError
from ..core.images import Record
from ..datasets.base import Index, Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from .plan import Cell, Plan
    from .shard import Cost, Finished

_ROW = pa.schema(
    [
        ("cell", pa.string()),
        ("image", pa.string()),
        ("status", pa.string()),
        ("logits", pa.list_(pa.float32())),
        ("value", pa.float64()),
        ("error", pa.string()),
    ]
)
TABLES = {
    "scores": pa.schema([_ROW.field(name) for name in ("cell", "image", "logits", "value")]),
    "quality": pa.schema([_ROW.field(name) for name in ("cell", "image", "value")]),
    "failures": pa.schema([_ROW.field(name) for name in ("cell", "image", "status", "error")]),
}
_CHUNK_ROWS = 200_000
"""Rows that are held in memory while the journal is folded."""

_log = logging.getLogger("waterproof")

Done = dict[str, set[str]]
"""Images that are finished, by cell."""


class Store:
    """Reads and writes one run folder.

    Args:
        folder: the run folder; created by :meth:`begin`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.parts = self.folder / "parts"

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.folder / "run.json").is_file()

    def begin(self, config: Mapping[str, Any], index: Index) -> None:
        """Writes the frozen configuration and the image list of a new run.

        Raises:
            StoreError: the folder cannot be written, or holds something that is no run.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"{self.folder} is a file; a run needs a folder")
        if self.folder.is_dir() and any(self.folder.iterdir()) and not self._only_ours():
            raise StoreError(f"{self.folder} is not empty and holds no run: choose a new folder")
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_table(self.folder / "images.parquet", _index_table(index.records))
            rejected = pd.DataFrame([asdict(r) for r in index.rejected], columns=["id", "reason"])
            write_text(self.folder / "unreadable.csv", rejected.to_csv(index=False))
            # Last: a folder without run.json holds no run, so a kill before this line leaves nothing half-made.
            write_text(self.folder / "run.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")

    def _only_ours(self) -> bool:
        """Whether there is nothing but what a run that was killed at its very beginning leaves."""
        names = {p.name for p in self.folder.iterdir() if not p.name.startswith(".new-")}
        return names <= {"images.parquet", "unreadable.csv"}

    def config(self) -> dict[str, Any]:
        """The frozen configuration.

        Raises:
            StoreError: this is no run folder, or the file is damaged.
        """
        if not self.exists:
            raise StoreError(f"{self.folder} is no run folder (there is no run.json in it)")
        try:
            config: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise StoreError(f"{self.folder / 'run.json'} is damaged: {error}") from None
        return config

    def index(self) -> Index:
        """The image list."""
        table = self.read("images")
        records = [Record(**{**row, "size": _size(row["size"]), "notes": tuple(row["notes"])}) for row in table]
        rejected = pd.read_csv(self.folder / "unreadable.csv", dtype=str, keep_default_na=False)
        return Index(tuple(records), tuple(Rejected(i, r) for i, r in rejected.itertuples(index=False)))

    def read(self, name: str) -> list[dict[str, Any]]:
        """All rows of a small table."""
        rows: list[dict[str, Any]] = pq.read_table(self.folder / f"{name}.parquet").to_pylist()
        return rows

    def add(self, shard: int, finished: Sequence[Finished], costs: Sequence[Cost] = ()) -> None:
        """Appends finished cells of a shard to the journal; all of them or, after any interruption, none."""
        # Names sort by age, so that the later of two failures is known.
        token = f"{time.time_ns():016x}-{uuid.uuid4().hex[:8]}"
        with writing(self.folder):
            self.parts.mkdir(parents=True, exist_ok=True)
            for done in finished:
                if done.traceback:
                    (self.folder / "tracebacks").mkdir(exist_ok=True)
                    write_text(self.folder / "tracebacks" / f"{done.cell.id}-{shard:05d}.txt", done.traceback)
            if finished:
                write_table(self.parts / f"{shard:05d}-{token}.parquet", _part_table(finished))
            if costs:
                (self.folder / "costs").mkdir(exist_ok=True)
                # What a component does not count is left out.
                counted = [{name: value for name, value in asdict(cost).items() if value} for cost in costs]
                text = json.dumps([{"shard": shard, "seconds": 0.0, "images": 0, **cost} for cost in counted])
                write_text(self.folder / "costs" / f"{shard:05d}-{token}.json", text)

    def costs(self) -> list[dict[str, Any]]:
        """What the stages of the work took: fields of :class:`Cost`, with the shard."""
        paths = sorted((self.folder / "costs").glob("*.json"))
        return [cost for path in paths for cost in json.loads(path.read_text(encoding="utf-8"))]

    def done(self) -> Done:
        """What is finished: rows that are ok, and images that cannot be read (another try reads the same bytes)."""
        done: Done = {}
        for table in self._tables(["cell", "image", "status"]):
            final = table.filter(pa.compute.not_equal(table["status"], "failed"))
            frame = final.select(["cell", "image"]).to_pandas()
            for cell, images in frame.groupby("cell")["image"]:
                done.setdefault(str(cell), set()).update(images)
        return done

    def _tables(self, columns: list[str]) -> Iterator[pa.Table]:
        """Every stored table, folded ones first; ``status`` is added where a folded table implies it."""
        for name in TABLES:
            path = self.folder / f"{name}.parquet"
            if path.is_file():
                table = pq.read_table(path, columns=[c for c in columns if c in TABLES[name].names])
                if "status" in columns and "status" not in table.column_names:
                    table = table.append_column("status", pa.array(["ok"] * len(table), pa.string()))
                yield table
        for path in self._journal():
            yield pq.read_table(path, columns=columns)

    def _journal(self) -> list[Path]:
        # Hidden files are half-written ones, and a glob finds them too.
        return sorted(p for p in self.parts.glob("*.parquet") if not p.name.startswith("."))

    def sweep(self) -> None:
        """Removes what a killed writer left half-written; nothing reads such files."""
        with writing(self.folder):
            for path in self.folder.rglob(".new-*"):
                path.unlink(missing_ok=True)

    def repair(self) -> None:
        """Sweeps, and drops damaged result files (a failing disk, a partial copy): what they held is computed again."""
        self.sweep()
        for path in [*self._journal(), *(self.folder / f"{name}.parquet" for name in TABLES)]:
            if not path.is_file():
                continue
            try:
                pq.read_table(path)
            except (pa.ArrowException, OSError, ValueError) as error:
                _log.warning("%s is damaged and will be computed again: %s", path, " ".join(str(error).split())[:200])
                with writing(self.folder):
                    path.unlink()

    def fold(self, plan: Plan) -> None:
        """Folds the journal into the final tables: plan order, then image order; the same bytes for the same results.

        A row of the journal replaces a failed row, never an ok one. Interrupted anywhere, it can be done again.
        """
        journal = self._journal()
        if not journal and all((self.folder / f"{name}.parquet").is_file() for name in TABLES):
            return
        order = {record.id: i for i, record in enumerate(plan.records)}
        with writing(self.folder):
            temporary = {name: _temporary(self.folder / f"{name}.parquet") for name in TABLES}
            writers = {
                name: pq.ParquetWriter(path, TABLES[name], compression="zstd") for name, path in temporary.items()
            }
            for cells in _chunks(plan.cells, max(1, _CHUNK_ROWS // max(1, len(order)))):
                rows = self._gather({cell.id for cell in cells})
                for name, part in _split(rows, cells, order).items():
                    writers[name].write_table(part)
            for name, writer in writers.items():
                writer.close()
                _sync(temporary[name])
            for name, path in temporary.items():
                path.replace(self.folder / f"{name}.parquet")
            for path in journal:
                path.unlink()

    def _gather(self, cells: set[str]) -> pd.DataFrame:
        wanted = pa.array(sorted(cells), pa.string())
        tables = []
        sources = [(self.folder / f"{n}.parquet", n) for n in TABLES] + [(p, None) for p in self._journal()]
        for path, name in sources:
            if not path.is_file():
                continue
            table = pq.read_table(path, filters=pa.compute.is_in(pa.compute.field("cell"), wanted))
            for field in _ROW:
                if field.name not in table.column_names:
                    default = "ok" if field.name == "status" and name != "failures" else None
                    table = table.append_column(field, pa.array([default] * len(table), field.type))
            tables.append(table.select(_ROW.names).cast(_ROW))
        frame: pd.DataFrame = pa.concat_tables(tables).to_pandas() if tables else _ROW.empty_table().to_pandas()
        rank = frame["status"].map({"ok": 0, "unreadable": 1, "failed": 2})
        # A later failure replaces an earlier one: its message is what a person needs.
        frame = frame.assign(_rank=rank, _age=-np.arange(len(frame)))
        return frame.sort_values(["_rank", "_age"], kind="stable").drop_duplicates(["cell", "image"])


def _split(rows: pd.DataFrame, cells: Sequence[Cell], order: Mapping[str, int]) -> dict[str, pa.Table]:
    place = {cell.id: i for i, cell in enumerate(cells)}
    metric = {cell.id for cell in cells if cell.observer == "metric"}
    rows = rows.assign(_cell=rows["cell"].map(place), _image=rows["image"].map(order))
    rows = rows.dropna(subset=["_image"]).sort_values(["_cell", "_image"], kind="stable")
    ok, quality = rows["status"] == "ok", rows["cell"].isin(metric)
    parts = {"scores": rows[ok & ~quality], "quality": rows[ok & quality], "failures": rows[~ok]}
    return {
        name: pa.Table.from_pandas(part[TABLES[name].names], schema=TABLES[name], preserve_index=False)
        for name, part in parts.items()
    }


def _chunks(cells: Sequence[Cell], size: int) -> Iterator[Sequence[Cell]]:
    for start in range(0, len(cells), size):
        yield cells[start : start + size]


def _part_table(finished: Iterable[Finished]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in _ROW.names}
    for done in finished:
        for row in done.rows:
            columns["cell"].append(done.cell.id)
            columns["image"].append(row.image)
            columns["status"].append(row.status)
            columns["logits"].append(row.logits)
            columns["value"].append(row.value)
            columns["error"].append(row.error)
    return pa.table(columns, schema=_ROW)


def _index_table(records: Sequence[Record]) -> pa.Table:
    schema = pa.schema(
        [
            *[(name, pa.string()) for name in ("id", "source", "label", "split", "caption", "pair", "container")],
            ("size", pa.list_(pa.int64())),
            ("digest", pa.string()),
            ("notes", pa.list_(pa.string())),
            ("seed", pa.int64()),
        ]
    )
    return pa.Table.from_pylist([asdict(record) for record in records], schema=schema)


def _size(value: Sequence[int] | None) -> tuple[int, int] | None:
    return None if value is None else (int(value[0]), int(value[1]))


def _temporary(path: Path) -> Path:
    return path.with_name(f".new-{uuid.uuid4().hex[:12]}-{path.name}")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a Parquet file whole, then renames it into place."""
    temporary = _temporary(path)
    try:
        pq.write_table(table, temporary, compression="zstd")
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole, then renames it into place."""
    temporary = _temporary(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second process out of a folder; the lock dies with its owner.

    Raises:
        StoreError: another process works there.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError:
        file.close()
        raise StoreError(f"another process is running in {folder}") from None
    try:
        yield
    finally:
        file.close()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a failed write into one clear line that says what to do.

    Raises:
        DiskFullError: the disk is full.
        StoreError: the folder is read-only, or another write error.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "the disk is full: free some space and run the same command again; what is stored is kept"
            raise DiskFullError(f"cannot write to {folder}: {hint}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "no permission to write there: choose another folder with --out"
        else:
            hint = str(error)
        raise StoreError(f"cannot write to {folder}: {hint}") from error
