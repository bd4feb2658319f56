"""One failure costs what depends on it and nothing else; what a person can get wrong ends in one clear line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from waterproof.bench import store as store_module
from waterproof.bench.run import run_benchmark
from waterproof.bench.store import Store
from waterproof.core.errors import DatasetError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from waterproof.bench.benchmark import Benchmark
    from waterproof.bench.results import Run

THIRD = "deadleaves-000002"
"""Of four images in shards of two it stands in the second shard."""

Failures = set[tuple[str, str, str]]


def _failures(run: Run) -> Failures:
    return {(row["image"], row["status"], row["error"]) for row in run.store.read("failures")}


def _statuses(run: Run) -> dict[tuple[str, str, str], str]:
    """Status by arm, attack and kind of observer."""
    rows = run.cells[["arm", "attack", "observer_kind", "status"]].itertuples(index=False, name=None)
    return {(arm, attack.split("(")[0], kind): status for arm, attack, kind, status in rows}


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("embed raises", "RuntimeError: no room for the mark"),
        ("float tensor", "troubled(trouble=float tensor, image=deadleaves-000002): marking must return Images"),
        ("float images", "pixels must be uint8 (0 to 255), not torch.float32: convert with Images.from_float"),
        ("fewer", "returned 0 images for 1, or changed their order"),
        ("other size", "marked (128, 256) and unmarked (256, 256) differ in size"),
    ],
)
def test_a_mark_that_fails_on_one_image_costs_the_marked_cells_of_that_image(
    trouble: str, message: str, awkward: Callable, tiny: Callable, tmp_path: Path
) -> None:
    run = run_benchmark(tiny(methods=[awkward("Troubled", trouble=trouble, image=THIRD), "dwt-dct"]), tmp_path / "run")
    failures = _failures(run)
    assert {(image, status) for image, status, _ in failures} == {(THIRD, "failed")}
    assert all(message in error for _, _, error in failures), failures
    bad = run.cells[run.cells["status"] != "ok"]
    assert set(bad["arm"]) == {"marked"}
    assert set(bad["status"]) == {"partial"}
    assert bad["maker"].str.startswith("troubled").all()
    assert (len(bad), run.ok, run.measured) == (4, False, True)
    assert all(message in reason for reason in bad["reason"])


def test_a_batch_in_the_wrong_order_is_done_again_image_by_image(
    awkward: Callable, tiny: Callable, tmp_path: Path
) -> None:
    run = run_benchmark(tiny(methods=[awkward("Troubled", trouble="other order", image=THIRD)]), tmp_path / "run")
    right = run_benchmark(tiny(methods=[awkward("Troubled", trouble="none", image=THIRD)]), tmp_path / "right")
    assert run.ok
    assert [row["logits"] for row in run.store.read("scores")] == [row["logits"] for row in right.store.read("scores")]


def test_which_images_fail_does_not_depend_on_the_shard_size(awkward: Callable, tiny: Callable, tmp_path: Path) -> None:
    failed = []
    for shard in (1, 2, 4):
        benchmark = tiny(methods=[awkward("Troubled", trouble="embed raises", image=THIRD)], runtime={"shard": shard})
        failed.append(_failures(run_benchmark(benchmark, tmp_path / str(shard))))
    assert failed[0] == failed[1] == failed[2] != set()


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("decode raises", "RuntimeError: lost the mark"),
        ("shape", "logits [1, 31], expected [1, 32]"),
        ("nan", "NaN or infinite logits"),
        ("array", "a detector must return Evidence with logits or with a score"),
        ("both", "a detector must return Evidence with logits or with a score"),
    ],
)
def test_a_decoder_that_fails_on_one_image_costs_the_scores_of_that_image(
    trouble: str, message: str, awkward: Callable, tiny: Callable, tmp_path: Path
) -> None:
    run = run_benchmark(tiny(methods=[awkward("Troubled", trouble=trouble, image=THIRD)]), tmp_path / "run")
    assert {(image, status) for image, status, _ in _failures(run)} == {(THIRD, "failed")}
    assert all(message in error for _, _, error in _failures(run))
    assert {kind: status for (_, _, kind), status in _statuses(run).items()} == {"scorer": "partial", "metric": "ok"}
    assert len(run.store.read("scores")) == 4 * 3


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("raises", "ValueError: cannot attack"),
        ("type", "an attack must return Images, not Tensor"),
    ],
)
def test_an_attack_that_fails_costs_its_own_cells(
    trouble: str, message: str, awkward: Callable, tiny: Callable, tmp_path: Path
) -> None:
    attacks = [awkward("TroubledAttack", trouble=trouble, image=THIRD), {"jpeg": {"quality": 60}}]
    run = run_benchmark(tiny(attacks=attacks), tmp_path / "run")
    assert all(message in error for _, _, error in _failures(run))
    by_attack = {attack: status for (_, attack, _), status in _statuses(run).items()}
    assert by_attack == {"troubled-attack": "partial", "jpeg": "ok"}


@pytest.mark.parametrize(
    ("trouble", "message"),
    [("nan", "NaN"), ("raises", "ValueError: cannot compare"), ("length", "values [0], expected [1]")],
)
def test_a_metric_that_fails_costs_its_own_cells(
    trouble: str, message: str, awkward: Callable, tiny: Callable, tmp_path: Path
) -> None:
    metrics = [awkward("TroubledMetric", trouble=trouble, image=THIRD), "psnr"]
    run = run_benchmark(tiny(metrics=metrics), tmp_path / "run")
    assert all(message in error for _, _, error in _failures(run))
    by_observer = dict(zip(run.cells["observer"], run.cells["status"], strict=True))
    label = next(name for name in by_observer if name.startswith("troubled-metric"))
    assert by_observer == {label: "partial", "psnr": "ok", "dwt-dct": "ok"}


def test_infinite_scores_of_a_detector_are_a_failure(awkward: Callable, tiny: Callable, tmp_path: Path) -> None:
    run = run_benchmark(tiny(methods=[awkward("Presence", broken=True)], metrics=[]), tmp_path / "run")
    assert {error for _, _, error in _failures(run)} == {"presence(broken=True): NaN or infinite scores"}
    assert (set(run.cells["status"]), run.measured) == ({"failed"}, False)
    assert run.summary()["status"].tolist() == ["failed", "failed"]


def test_an_attack_that_takes_too_long_is_stopped_and_the_rest_goes_on(
    awkward: Callable, tiny: Callable, tmp_path: Path
) -> None:
    attacks = [awkward("TroubledAttack", trouble="sleeps", image=THIRD), "identity"]
    started = time.monotonic()
    run = run_benchmark(tiny(attacks=attacks, runtime={"cell_seconds": 0.5}), tmp_path / "run")
    assert time.monotonic() - started < 10
    label = "troubled-attack(trouble=sleeps, image=deadleaves-000002)"
    message = f"time limit: attack {label} took more than 0.5 s on one shard"
    assert {error for _, _, error in _failures(run)} == {message}
    assert set(run.cells.query("attack == 'identity'")["status"]) == {"ok"}
    assert set(run.cells.query("attack != 'identity'")["status"]) == {"partial"}


def test_without_a_limit_nothing_is_stopped(awkward: Callable, tiny: Callable, tmp_path: Path) -> None:
    methods = [awkward("Counted", pause=0.05)]
    run = run_benchmark(tiny(methods=methods, metrics=[], runtime={"cell_seconds": 0}), tmp_path / "run")
    assert run.ok


def test_only_what_failed_is_computed_again_once_it_is_mended(
    awkward: Callable, tiny: Callable, tmp_path: Path, result_bytes: Callable
) -> None:
    mended, out = tmp_path / "mended", tmp_path / "run"
    troubled = tiny(methods=[awkward("Troubled", trouble="decode raises", image=THIRD, mended=str(mended))])
    first = run_benchmark(troubled, out)
    before = {(row["cell"], row["image"]) for row in first.store.read("scores")}
    assert len(first.store.read("failures")) == 4
    costs = set((out / "costs").iterdir())
    mended.write_text("")
    again = run_benchmark(troubled, out)
    assert again.ok
    assert _failures(again) == set()
    assert before < {(row["cell"], row["image"]) for row in again.store.read("scores")}
    (new,) = set((out / "costs").iterdir()) - costs
    assert {(item["shard"], item["images"]) for item in json.loads(new.read_text())} == {(1, 2)}
    whole = run_benchmark(troubled, tmp_path / "whole")
    assert result_bytes(out) == result_bytes(whole.folder)


def test_every_failure_has_its_traceback_in_a_file(awkward: Callable, tiny: Callable, tmp_path: Path) -> None:
    run = run_benchmark(tiny(methods=[awkward("Troubled", trouble="embed raises", image=THIRD)]), tmp_path / "run")
    failed = set(run.cells.query("status == 'partial'")["cell"])
    files = sorted((run.folder / "tracebacks").iterdir())
    assert {file.name for file in files} == {f"{cell}-00001.txt" for cell in failed}
    assert all("in embed\n    raise RuntimeError" in file.read_text() for file in files)


def test_failures_end_with_exit_code_3_and_nothing_measured_with_4(
    awkward: Callable, tiny: Callable, command_line: Any, yaml_file: Callable, tmp_path: Path
) -> None:
    for image, code in ((THIRD, 3), ("", 4)):
        methods = [
            awkward(
                "Troubled" if image else "Presence",
                **({"trouble": "nan", "image": image} if image else {"broken": True}),
            )
        ]
        file = yaml_file(tiny(methods=methods, metrics=[]).model_dump(mode="json"))
        assert command_line.run("run", file, "--out", tmp_path / f"run-{code}", "--no-report") == code
        assert "NaN or infinite" in command_line.output or code == 4
        assert "Traceback" not in command_line.output


@pytest.fixture
def photographs_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("astronaut", "chelsea", "coffee"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.jpg", quality=95)
    return folder


def test_an_unreadable_image_is_counted_and_the_others_are_fine(
    tiny: Callable, photographs_folder: Path, tmp_path: Path
) -> None:
    broken = photographs_folder / "chelsea.jpg"
    broken.write_bytes(broken.read_bytes()[:20_000])
    (photographs_folder / "notes.jpg").write_text("not an image")
    benchmark = tiny(dataset={"folder": {"root": str(photographs_folder)}}, runtime={"shard": 3})
    run = run_benchmark(benchmark, tmp_path / "run")
    assert {row["image"] for row in run.store.read("scores")} == {"astronaut.jpg", "coffee.jpg"}
    ((image, status, reason),) = _failures(run)
    assert (image, status) == ("chelsea.jpg", "unreadable")
    assert "truncated" in reason or "cut" in reason or "damaged" in reason
    counts = run.cells[["n_planned", "n_ok", "n_failed", "n_unreadable", "status"]].drop_duplicates()
    assert counts.values.tolist() == [[3, 2, 0, 1, "ok"]]
    assert [rejected.id for rejected in run.store.index().rejected] == ["notes.jpg"]
    # What cannot be read is not tried again, because the same bytes will be read.
    costs = len(list((run.folder / "costs").iterdir()))
    run_benchmark(benchmark, tmp_path / "run")
    assert len(list((run.folder / "costs").iterdir())) == costs


def test_an_image_that_changes_while_the_run_goes_on_is_not_measured(
    tiny: Callable, photographs_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from waterproof.bench.run import make_listed_plan

    benchmark = tiny(dataset={"folder": {"root": str(photographs_folder)}})
    plan = make_listed_plan(benchmark)
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(photographs_folder / "coffee.jpg")
    run = run_benchmark(benchmark, tmp_path / "run", plan)
    ((image, status, reason),) = _failures(run)
    assert (image, status) == ("coffee.jpg", "unreadable")
    assert "changed" in reason


def test_a_missing_or_empty_folder_of_images_is_one_line(
    tiny: Callable, command_line: Any, yaml_file: Callable, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        benchmark = tiny(dataset={"folder": {"root": str(tmp_path / name)}})
        with pytest.raises(DatasetError, match=name):
            run_benchmark(benchmark, tmp_path / "run")
        file = yaml_file(benchmark.model_dump(mode="json"))
        assert command_line.run("run", file, "--out", tmp_path / "run") == 2
        assert command_line.output.startswith("waterproof: ")
        assert command_line.output.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_images_that_vanish_during_a_run_are_unreadable_rows_not_a_crash(
    tiny: Callable, photographs_folder: Path, tmp_path: Path
) -> None:
    from waterproof.bench.run import make_listed_plan

    benchmark = tiny(dataset={"folder": {"root": str(photographs_folder)}})
    plan = make_listed_plan(benchmark)
    shutil.rmtree(photographs_folder)
    run = run_benchmark(benchmark, tmp_path / "run", plan)
    assert {(image, status) for image, status, _ in _failures(run)} == {
        (name, "unreadable") for name in ("astronaut.jpg", "chelsea.jpg", "coffee.jpg")
    }
    assert (run.ok, run.measured) == (False, False)


def _disk_full_at(monkeypatch: pytest.MonkeyPatch, call: int) -> list[int]:
    """Lets the n-th file find a full disk; returns the counter."""
    real, count = store_module._sync, [0]

    def sync(path: Path) -> None:
        count[0] += 1
        if count[0] >= call:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path)

    monkeypatch.setattr(store_module, "_sync", sync)
    return count


def test_a_disk_that_fills_up_at_any_write_keeps_what_is_stored_and_resumes(
    tiny: Callable, tmp_path: Path, result_bytes: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = tiny(metrics=[], runtime={"shard": 2})
    with monkeypatch.context() as patch:
        writes = _disk_full_at(patch, 10**9)
        whole = result_bytes(run_benchmark(benchmark, tmp_path / "whole").folder)
    assert writes[0] >= 12
    for call in range(1, writes[0] + 1):
        out = tmp_path / f"run-{call}"
        with monkeypatch.context() as patch:
            _disk_full_at(patch, call)
            with pytest.raises(StoreError, match=f"cannot write to {out}: the disk is full: free some space and run"):
                run_benchmark(benchmark, out)
        stored = Store(out).done() if (out / "run.json").exists() else {}
        # Each of the two shards has four cells; a shard's cells are stored together before its costs are.
        assert sum(map(len, stored.values())) == (0 if call <= 5 else 8 if call <= 7 else 16)
        run_benchmark(benchmark, out)
        assert result_bytes(out) == whole
        assert list(out.rglob(".new-*")) == []


def test_a_full_disk_under_arrow_is_told_as_such_too(
    tiny: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    benchmark = tiny(metrics=[])
    for name in ("ParquetWriter", "write_table"):
        with monkeypatch.context() as patch:
            patch.setattr(store_module.pq, name, full)
            with pytest.raises(StoreError, match="the disk is full"):
                run_benchmark(benchmark, tmp_path / name)
        assert run_benchmark(benchmark, tmp_path / name).ok


def test_a_folder_that_cannot_be_made_is_one_line(
    tiny: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write to .*file.run: .*Not a directory"):
        run_benchmark(tiny(), tmp_path / "file" / "run")
    with pytest.raises(StoreError, match="is a file; a run needs a folder"):
        run_benchmark(tiny(), tmp_path / "file")
    for number in (errno.EACCES, errno.EROFS, errno.EPERM):

        def refuse(*_: Any, number: int = number, **__: Any) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "mkdir", refuse)
            with pytest.raises(StoreError, match="no permission to write there: choose another folder with --out"):
                run_benchmark(tiny(), tmp_path / "run")


def _edited(out: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((out / "run.json").read_text())
    edit(config)
    (out / "run.json").write_text(json.dumps(config))


def test_a_folder_of_another_run_is_refused_with_what_differs(tiny: Callable, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_benchmark(tiny(), out)
    before = {p: p.read_bytes() for p in out.rglob("*.parquet")}
    other = "choose another folder with --out, or remove this one"
    for changed in (
        tiny(name="mine", attacks=["identity"]),
        tiny(seed=1),
        tiny(key="per-image"),
        tiny(limit=3),
        tiny(methods=[{"dwt-dct": {"payload": 48}}]),
        tiny(metrics=["ssim"]),
        tiny(dataset={"deadleaves": {"count": 5}}),
    ):
        with pytest.raises(StoreError, match=rf"{out} holds another benchmark \('tiny'\): {other}"):
            run_benchmark(changed, out)
    assert {p: p.read_bytes() for p in out.rglob("*.parquet")} == before
    # How it runs and how it is judged is not what it is.
    again = tiny(name="mine", decision={"fpr": 0.1}, runtime={"shard": 1, "cell_seconds": 9})
    assert run_benchmark(again, out).decision().fpr == 0.1


def test_a_folder_with_results_of_other_images_or_another_version_is_refused(
    tiny: Callable, photographs_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    benchmark = tiny(dataset={"folder": {"root": str(photographs_folder)}})
    run_benchmark(benchmark, out)
    original = (out / "run.json").read_text()
    for edit, message in (
        (lambda c: c.update(schema=0), "a run of schema 0, this version writes"),
        (lambda c: c["specs"].update({"method dwt-dct": "0" * 24}), "results of another version of method dwt-dct"),
        (lambda c: c["provenance"]["packages"].update(numpy="1.0"), r"results made with numpy 1.0 \(now "),
    ):
        _edited(out, edit)
        with pytest.raises(StoreError, match=f"{out} holds {message}.*: choose another folder with --out"):
            run_benchmark(benchmark, out)
        (out / "run.json").write_text(original)
    shutil.copy(photographs_folder / "coffee.jpg", photographs_folder / "astronaut.jpg")
    with pytest.raises(StoreError, match=r"holds a run on other images \(the image list has changed\)"):
        run_benchmark(benchmark, out)


def test_images_may_move_to_another_place(tiny: Callable, photographs_folder: Path, tmp_path: Path) -> None:
    out, moved = tmp_path / "run", tmp_path / "moved"
    run_benchmark(tiny(dataset={"folder": {"root": str(photographs_folder)}}), out)
    photographs_folder.rename(moved)
    log = len(list((out / "costs").iterdir()))
    assert run_benchmark(tiny(dataset={"folder": {"root": str(moved)}}), out).ok
    assert len(list((out / "costs").iterdir())) == log


def test_a_changed_source_file_of_ones_own_method_never_meets_an_old_number(
    awkward: Callable, tiny: Callable, command_line: Any, yaml_file: Callable, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    (target,) = awkward("Counted")
    mine.write_text(Path(target.rpartition(":")[0]).read_text())
    fields: Benchmark = tiny(methods=[{f"{mine}:Counted": {}}], metrics=[])
    file, out = yaml_file(fields.model_dump(mode="json")), tmp_path / "run"
    assert command_line.run("run", file, "--out", out, "--no-report") == 0
    mine.write_text(mine.read_text() + "# one more line\n")
    assert command_line.run("run", file, "--out", out, "--no-report") == 2
    assert "holds results of another version of method counted: choose another folder" in command_line.output
