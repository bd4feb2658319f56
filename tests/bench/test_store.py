"""The run folder is complete at every moment: files appear whole, and the journal folds alike in any order."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from waterproof.bench import store as store_module
from waterproof.bench.plan import Plan, make_plan
from waterproof.bench.shard import Finished, Row
from waterproof.bench.store import Store, write_table, write_text, writing
from waterproof.core.errors import StoreError
from waterproof.core.images import Record
from waterproof.datasets.base import Index, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from waterproof.bench.benchmark import Benchmark


@pytest.fixture(scope="module")
def plan(tiny: Callable[..., Benchmark]) -> Plan:
    return make_plan(tiny(dataset={"deadleaves": {"count": 6}}))


@pytest.fixture
def store(plan: Plan, tmp_path: Path) -> Store:
    made = Store(tmp_path / "run")
    made.begin({"schema": 1}, plan.index)
    return made


def _rows(plan: Plan, cell: int, images: Sequence[int], status: str = "ok", error: str | None = None) -> Finished:
    """Rows that a cell could have; every value names its cell and image."""
    what = plan.cells[cell]
    rows = []
    for i in images:
        row = Row(plan.records[i].id, status, error=error)
        if status == "ok" and what.observer == "scorer":
            row.logits = np.full(32, cell + i / 8, np.float32)
        elif status == "ok":
            row.value = cell + i / 8
        rows.append(row)
    return Finished(what, rows)


def _bytes(store: Store) -> dict[str, bytes]:
    return {name: (store.folder / f"{name}.parquet").read_bytes() for name in store_module.TABLES}


def test_the_journal_folds_to_the_same_bytes_in_any_order_and_any_pieces(plan: Plan, tmp_path: Path) -> None:
    found = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        store = Store(tmp_path / str(seed))
        store.begin({}, plan.index)
        pieces = [
            _rows(plan, c, part) for c in range(len(plan.cells)) for part in np.array_split(np.arange(6), seed + 1)
        ]
        for i in rng.permutation(len(pieces)):
            store.add(int(rng.integers(9)), [pieces[i]])
            if rng.random() < 0.2:
                store.fold(plan)
        store.fold(plan)
        found.append(_bytes(store))
    assert all(other == found[0] for other in found)


def test_tables_are_in_the_order_of_the_plan_and_of_the_images(plan: Plan, store: Store) -> None:
    for c in reversed(range(len(plan.cells))):
        store.add(0, [_rows(plan, c, [5, 3, 4, 0, 2, 1])])
    store.fold(plan)
    for name, kind in (("scores", "scorer"), ("quality", "metric")):
        wanted = [(c.id, r.id) for c in plan.cells if c.observer == kind for r in plan.records]
        assert [(row["cell"], row["image"]) for row in store.read(name)] == wanted


def test_folding_keeps_every_value(plan: Plan, store: Store) -> None:
    store.add(0, [_rows(plan, c, range(6)) for c in range(len(plan.cells))])
    store.fold(plan)
    place = {cell.id: c for c, cell in enumerate(plan.cells)}
    number = {record.id: i for i, record in enumerate(plan.records)}
    for row in store.read("scores"):
        assert row["logits"] == [place[row["cell"]] + number[row["image"]] / 8] * 32
    for row in store.read("quality"):
        assert row["value"] == place[row["cell"]] + number[row["image"]] / 8


def test_folding_in_small_chunks_stores_the_same_rows(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(0, [_rows(plan, c, range(6)) for c in range(len(plan.cells))])
    store.fold(plan)
    whole = {name: store.read(name) for name in store_module.TABLES}
    for path in store.folder.glob("*.parquet"):
        if path.stem in store_module.TABLES:
            path.unlink()
    monkeypatch.setattr(store_module, "_CHUNK_ROWS", 7)
    store.add(0, [_rows(plan, c, range(6)) for c in range(len(plan.cells))])
    store.fold(plan)
    assert {name: store.read(name) for name in store_module.TABLES} == whole


def test_folding_empties_the_journal_and_a_second_fold_touches_nothing(plan: Plan, store: Store) -> None:
    store.add(0, [_rows(plan, 0, range(6))])
    store.fold(plan)
    before = {name: (store.folder / f"{name}.parquet").stat().st_mtime_ns for name in store_module.TABLES}
    assert list(store.parts.iterdir()) == []
    store.fold(plan)
    assert {n: (store.folder / f"{n}.parquet").stat().st_mtime_ns for n in store_module.TABLES} == before


def test_failed_images_are_to_be_done_again_and_unreadable_ones_are_not(plan: Plan, store: Store) -> None:
    cell = plan.cells[0].id
    ok, failed, unreadable = (_rows(plan, 0, [i], s, None) for i, s in enumerate(("ok", "failed", "unreadable")))
    for folded in (False, True):
        store.add(0, [ok, failed, unreadable])
        if folded:
            store.fold(plan)
        assert store.done() == {cell: {plan.records[0].id, plan.records[2].id}}


def test_a_later_success_replaces_a_failure_and_a_later_failure_never_a_success(plan: Plan, store: Store) -> None:
    store.add(0, [_rows(plan, 0, [0], "failed", "first"), _rows(plan, 0, [1])])
    store.fold(plan)
    store.add(0, [_rows(plan, 0, [0]), _rows(plan, 0, [1], "failed", "second")])
    store.fold(plan)
    assert [row["image"] for row in store.read("scores")] == [plan.records[0].id, plan.records[1].id]
    assert store.read("failures") == []


@pytest.mark.parametrize("fold_between", [True, False])
def test_of_two_failures_the_later_message_stays(fold_between: bool, plan: Plan, store: Store) -> None:
    for message in ("first", "second", "third", "last"):
        store.add(0, [_rows(plan, 0, [0], "failed", message)])
        if fold_between:
            store.fold(plan)
    store.fold(plan)
    assert [row["error"] for row in store.read("failures")] == ["last"]


def test_half_written_files_are_not_read(plan: Plan, store: Store) -> None:
    store.parts.mkdir()
    (store.parts / ".new-0123-00000-abc.parquet").write_bytes(b"PAR1 and no more")
    assert store.done() == {}
    store.add(0, [_rows(plan, 0, [0])])
    store.fold(plan)
    assert len(store.read("scores")) == 1


def test_rows_of_cells_and_images_outside_the_plan_are_left_out(plan: Plan, store: Store) -> None:
    stranger = Finished(plan.cells[0], [Row("another image", logits=np.zeros(32, np.float32))])
    store.add(0, [stranger, _rows(plan, 0, [0])])
    store.fold(plan)
    assert [row["image"] for row in store.read("scores")] == [plan.records[0].id]


def test_images_come_back_as_they_were(tmp_path: Path) -> None:
    records = (
        Record("plain"),
        Record(
            "a/ü,\"$<b>'\n.jpg", "ü", "flux", "test", "a caption", "plain", "JPEG", (640, 480), "ab" * 32, ("x", "y")
        ),
    )
    rejected = (Rejected("NA", 'says "no", twice\nor more'), Rejected("nan", ""))
    store = Store(tmp_path / "run")
    store.begin({}, Index(records, rejected))
    assert store.index() == Index(records, rejected)


def test_a_folder_with_other_things_in_it_is_refused(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(StoreError, match="not empty and holds no run: choose a new folder"):
        Store(tmp_path).begin({}, plan.index)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_file_in_the_place_of_the_folder_is_refused(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("")
    with pytest.raises(StoreError, match="is a file; a run needs a folder"):
        Store(path).begin({}, plan.index)


def test_what_is_left_of_a_run_that_was_killed_at_its_beginning_is_taken_over(plan: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("images.parquet", "unreadable.csv", ".new-12-run.json"):
        (tmp_path / name).write_bytes(b"half")
    assert not store.exists
    store.begin({"a": 1}, plan.index)
    assert store.config() == {"a": 1}
    assert store.index() == plan.index


def test_a_folder_without_a_run_and_a_damaged_configuration_are_named(plan: Plan, store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is no run folder \(there is no run.json in it\)"):
        Store(tmp_path / "nothing").config()
    (store.folder / "run.json").write_text("{")
    with pytest.raises(StoreError, match=r"run\.json is damaged"):
        store.config()


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    path, table = tmp_path / "file", pa.table({"a": [1]})

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for write, value in ((write_text, "new"), (write_table, table)):
        path.write_text("old")
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "_sync", full)
            with pytest.raises(OSError, match="No space left"):
                write(path, value)
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "the disk is full: free some space and run the same command again; what is stored is kept"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "no permission to write there: choose another folder with --out"),
        (errno.EROFS, "no permission to write there"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_every_write_error_becomes_one_line_that_says_what_to_do(number: int, hint: str, tmp_path: Path) -> None:
    import os

    with pytest.raises(StoreError, match=f"cannot write to .*{hint}"), writing(tmp_path):
        raise OSError(number, os.strerror(number))


def test_tracebacks_and_costs_lie_beside_the_results(plan: Plan, store: Store) -> None:
    failed = _rows(plan, 0, [0], "failed", "RuntimeError: no")
    failed.traceback = "Traceback: ü"
    store.add(3, [failed])
    (path,) = (store.folder / "tracebacks").iterdir()
    assert path.name == f"{plan.cells[0].id}-00003.txt"
    assert path.read_text(encoding="utf-8") == "Traceback: ü"


def test_the_configuration_is_text_that_people_can_read(plan: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    config: dict[str, Any] = {"name": "Größe", "list": [1, 2.5]}
    store.begin(config, plan.index)
    text = (store.folder / "run.json").read_text(encoding="utf-8")
    assert "Größe" in text
    assert json.loads(text) == config
