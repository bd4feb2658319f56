"""Results depend on their coordinates only: not on shards, order, engine or workers. A dead worker costs its shard."""

from __future__ import annotations

import json
import os
import signal
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from waterproof.bench import engine
from waterproof.bench.engine import Task, one_thread
from waterproof.bench.results import load_run
from waterproof.bench.run import run_benchmark
from waterproof.bench.store import Store
from waterproof.core.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from waterproof.bench.benchmark import Benchmark

ATTACKS = ["identity", {"jpeg": {"quality": [80, 40]}}, {"gaussian-noise": {"sd": 0.05}}, {"crop": {"area": 0.5}}]
METHODS = ["dwt-dct", {"dwt-dct-svd": {"payload": 48}}]


@pytest.fixture(scope="module")
def seven(tiny: Callable[..., Benchmark]) -> Callable[..., Benchmark]:
    """Seven images, two marks, five attacks (one draws random numbers), two metrics."""

    def build(**fields: Any) -> Benchmark:
        defaults = {"dataset": {"deadleaves": {"count": 7}}, "methods": METHODS, "attacks": ATTACKS}
        return tiny(**{**defaults, "metrics": ["psnr", "ssim"], **fields})

    return build


@pytest.fixture(scope="module")
def reference(seven: Callable, result_values: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict:
    run = run_benchmark(seven(runtime={"shard": 3}), tmp_path_factory.mktemp("reference") / "run")
    assert run.ok
    values = result_values(run)
    # Two arms and two metrics for each method and attack; the crop is not comparable pixel by pixel.
    assert len(values) == 7 * 2 * (5 * 2 + 4 * 2)
    return values


@pytest.mark.parametrize("shard", [1, 2, 7])
def test_values_do_not_depend_on_the_shard_size(
    shard: int, seven: Callable, reference: dict, result_values: Callable, tmp_path: Path
) -> None:
    run = run_benchmark(seven(runtime={"shard": shard}), tmp_path / "run")
    assert result_values(run) == reference


def test_values_do_not_depend_on_the_order_of_the_images(
    seven: Callable, awkward: Callable, reference: dict, result_values: Callable, tmp_path: Path
) -> None:
    backwards = seven(dataset=awkward("Backwards", count=7), runtime={"shard": 4})
    run = run_benchmark(backwards, tmp_path / "run")
    assert [r.id for r in run.records()] == [f"deadleaves-{i:06d}" for i in reversed(range(7))]
    assert result_values(run) == reference


def test_values_do_not_depend_on_the_order_of_methods_attacks_and_metrics(
    seven: Callable, reference: dict, result_values: Callable, tmp_path: Path
) -> None:
    turned = seven(methods=METHODS[::-1], attacks=ATTACKS[::-1], metrics=["ssim", "psnr"], runtime={"shard": 3})
    assert result_values(run_benchmark(turned, tmp_path / "run")) == reference


def test_values_do_not_depend_on_what_else_is_measured(
    seven: Callable, reference: dict, result_values: Callable, tmp_path: Path
) -> None:
    alone = seven(methods=METHODS[1:], attacks=[ATTACKS[2]], metrics=["ssim"])
    values = result_values(run_benchmark(alone, tmp_path / "run"))
    assert len(values) == 7 * 3
    assert values.items() <= reference.items()


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_worker_processes_store_the_same_bytes_as_one_process(
    workers: int, seven: Callable, command_line: Any, yaml_file: Callable, result_bytes: Callable, tmp_path: Path
) -> None:
    inline = run_benchmark(seven(runtime={"shard": 2}), tmp_path / "inline")
    fields = seven(runtime={"shard": 2, "engine": "processes", "workers": workers}).model_dump(mode="json")
    out = tmp_path / "workers"
    assert command_line.run("run", yaml_file(fields), "--out", out, "--no-report", fork=True) == 0, command_line.output
    assert result_bytes(out) == result_bytes(inline.folder)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_that_start_afresh_store_the_same_bytes_networks_included(
    workers: int, seven: Callable, result_bytes: Callable, tmp_path: Path
) -> None:
    pytest.importorskip("imwatermark")
    pytest.importorskip("onnxruntime")
    methods = [*METHODS, "rivagan"]
    inline = run_benchmark(seven(methods=methods, runtime={"shard": 2}), tmp_path / "inline")
    runtime = {"shard": 2, "engine": "processes", "workers": workers}
    run = run_benchmark(seven(methods=methods, runtime=runtime), tmp_path / "workers")
    assert result_bytes(run.folder) == result_bytes(inline.folder)


def test_another_seed_gives_other_keys_and_noise_and_a_key_per_image_differs_between_images(
    seven: Callable, reference: dict, result_values: Callable, tmp_path: Path
) -> None:
    other = result_values(run_benchmark(seven(seed=1), tmp_path / "seed"))
    same = {name for name in reference if reference[name] == other[name]}
    # What draws nothing and holds no key is the same: unmarked images under deterministic attacks.
    assert {name[0] for name in same} == {"unmarked"}
    assert {name[2] for name in reference.keys() - same if name[0] == "unmarked"} == {"gaussian-noise(sd=0.05)"}
    run = run_benchmark(seven(key="per-image", attacks=["identity"], metrics=[]), tmp_path / "keys")
    svd = "dwt-dct-svd(payload=48)"
    assert len({key.tobytes() for key in run.keys(svd, [r.id for r in run.records()])}) == 7
    assert run.sample(svd, "identity", "marked").values.min() >= 46


def test_a_worker_that_dies_costs_its_shard_and_nothing_else(
    awkward: Callable, tiny: Callable, command_line: Any, yaml_file: Callable, tmp_path: Path
) -> None:
    fields = tiny(
        dataset={"deadleaves": {"count": 2}},
        methods=[awkward("Troubled", trouble="killed", image="deadleaves-000000")],
        attacks=["identity"],
        metrics=[],
        runtime={"engine": "processes", "workers": 1, "shard": 1},
    ).model_dump(mode="json")
    out = tmp_path / "run"
    assert command_line.run("run", yaml_file(fields), "--out", out, "--no-report", fork=True) == 3, command_line.output
    reason = "the worker process died (out of memory, or a crash in compiled code)"
    assert reason in command_line.output
    run = load_run(out)
    assert {(row["image"], row["status"], row["error"]) for row in run.store.read("failures")} == {
        ("deadleaves-000000", "failed", reason)
    }
    assert run.cells["status"].tolist() == ["partial", "partial"]
    assert {row["image"] for row in run.store.read("scores")} == {"deadleaves-000001"}


@pytest.mark.slow
def test_many_workers_that_die_in_several_shards_cost_those_shards_only(
    awkward: Callable, tiny: Callable, tmp_path: Path
) -> None:
    troubled = [awkward("Troubled", trouble=t, image=f"deadleaves-{i:06d}") for t, i in (("exits", 1), ("killed", 5))]
    run = run_benchmark(
        tiny(
            dataset={"deadleaves": {"count": 8}},
            methods=[*troubled, "dwt-dct"],
            runtime={"engine": "processes", "workers": 2, "shard": 2},
        ),
        tmp_path / "run",
    )
    lost = {row["image"] for row in run.store.read("failures")}
    assert lost <= {f"deadleaves-{i:06d}" for i in (0, 1, 4, 5)}
    assert {"deadleaves-000001", "deadleaves-000005"} <= lost
    assert set(run.cells["status"]) <= {"ok", "partial"}


@pytest.mark.parametrize("how", ["inline", pytest.param("processes", marks=pytest.mark.slow)])
def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(
    how: str, awkward: Callable, tiny: Callable, command_line: Any, yaml_file: Callable, tmp_path: Path,
    wait_until: Callable, result_bytes: Callable,
) -> None:  # fmt: skip
    import psutil

    log, out = tmp_path / "log.txt", tmp_path / "run"

    def fields(pause: float, engine: str) -> dict[str, Any]:
        methods = [awkward("Counted", log=str(log), pause=pause)]
        runtime = {"engine": engine, "workers": 2, "shard": 1}
        return tiny(dataset={"deadleaves": {"count": 8}}, methods=methods, runtime=runtime).model_dump(mode="json")

    process = command_line.start("run", yaml_file(fields(0.1, how)), "--out", out, "--no-report")
    wait_until(lambda: log.exists() and log.read_text().count("\n") > 6)
    family = psutil.Process(process).children(recursive=True)
    os.killpg(process, signal.SIGINT)
    assert command_line.wait() == 130
    assert "interrupted; what is finished is stored, the same command goes on from there" in command_line.output
    assert "Traceback" not in command_line.output
    assert psutil.wait_procs(family, timeout=3)[1] == []
    stored = sum(len(images) for images in Store(out).done().values())
    assert 0 < stored < 6 * 8
    assert command_line.run("run", yaml_file(fields(0, "inline")), "--out", out, "--no-report") == 0
    whole = run_benchmark(tiny(**{**fields(0, "inline"), "runtime": {"shard": 1}}), tmp_path / "whole")
    assert result_bytes(out) == result_bytes(whole.folder)


def test_a_second_run_in_the_same_folder_is_refused_and_touches_nothing(tiny: Callable, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "run"
    run_benchmark(tiny(), out)
    half = out / ".new-0123-of-the-first-process"
    half.write_text("")

    def files() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != ".lock"}

    before = files()
    with (out / ".lock").open("r") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=f"another process is running in {out}"):
            run_benchmark(tiny(decision={"fpr": 0.1}), out)
    assert files() == before
    run_benchmark(tiny(), out)


def test_one_thread_gives_back_what_it_found() -> None:
    import cv2
    import torch

    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        torch.set_num_threads(3)
        cv2.setNumThreads(2)
        with suppress(ZeroDivisionError), one_thread():
            assert (torch.get_num_threads(), cv2.getNumThreads()) == (1, 1)
            raise ZeroDivisionError
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (3, 2)
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def test_the_environment_of_workers_is_set_for_them_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with engine._single_threaded_children():
        assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("1", "1")
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "MKL_NUM_THREADS" not in os.environ


def test_a_pool_that_breaks_while_tasks_are_handed_over_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Task] = []

    class Pool:
        """Works at once; the third task finds a pool whose worker has just died."""

        given = 0
        _processes = None

        def __init__(self, *args: object, **kwargs: object) -> None:
            pass

        def submit(self, _: object, task: Task) -> Future[None]:
            Pool.given += 1
            if Pool.given == 3:
                raise BrokenProcessPool
            done.append(task)
            future: Future[None] = Future()
            future.set_result(None)
            return future

        def shutdown(self, **kwargs: object) -> None:
            pass

    monkeypatch.setattr(engine, "ProcessPoolExecutor", Pool)
    tasks = [Task(i, ("cell",)) for i in range(6)]
    suspects = engine._run_pool(Store(Path("nowhere")), tasks, lambda *_: None, 1)
    assert {*done, *suspects} == set(tasks)


def test_tasks_hold_only_what_is_missing(tiny: Callable, tmp_path: Path) -> None:
    from waterproof.bench.plan import make_plan
    from waterproof.bench.run import open_tasks

    plan = make_plan(tiny(dataset={"deadleaves": {"count": 5}}, runtime={"shard": 2}))
    tasks, units = open_tasks(plan, 2, {})
    assert [task.shard for task in tasks] == [0, 1, 2]
    assert units == 5 * len(plan.cells)
    first, *others = plan.cells
    done = {cell.id: {r.id for r in plan.records} for cell in others} | {first.id: {r.id for r in plan.records[:3]}}
    tasks, units = open_tasks(plan, 2, done)
    assert tasks == [Task(1, (first.id,)), Task(2, (first.id,))]
    assert units == 3


def test_workers_are_started_afresh_not_forked(tiny: Callable, tmp_path: Path) -> None:
    """A fork would inherit threads and random state; the run folder is all that a worker needs."""
    out = tmp_path / "run"
    run_benchmark(tiny(), out)
    worker = engine.Worker(Store(out))
    assert worker.plan.by_id.keys() == {row["cell"] for row in load_run(out).cells.to_dict("records")}
    assert json.loads((out / "run.json").read_text())["shard"] == len(worker.shards[0])
    assert "fork" not in Path(sys.modules[engine.__name__].__file__ or "").read_text().split("get_context(")[1][:8]
