"""A run that is stopped in any way and started again ends with the same bytes and computes nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from waterproof.bench import store as store_module
from waterproof.bench.benchmark import Benchmark, validate
from waterproof.bench.plan import make_plan
from waterproof.bench.run import run_benchmark
from waterproof.bench.shard import apply_attack, make_pair
from waterproof.bench.store import Store
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGES, SHARD = 24, 3


@pytest.fixture(scope="module")
def fields(awkward: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The benchmark of this module: 24 photographs, two marks, three attacks."""

    def build(log: Path | None = None, pause: float = 0.0, **runtime: Any) -> dict[str, Any]:
        return {
            "name": "resumed",
            "dataset": {"samples": {"size": 256}},
            "limit": IMAGES,
            "methods": [awkward("Counted", log=log, pause=pause), "dwt-dct-svd"],
            "attacks": ["identity", {"brightness": {"factor": 0.9}}, {"gaussian-noise": {"sd": 0.05}}],
            "metrics": ["psnr"],
            "runtime": {"engine": "inline", "shard": SHARD, **runtime},
        }

    return build


@pytest.fixture(scope="module")
def undisturbed(
    fields: Callable[..., dict[str, Any]],
    result_bytes: Callable[[Path], dict[str, bytes]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    """The results of a run that nobody stopped."""
    run = run_benchmark(validate(fields()), tmp_path_factory.mktemp("undisturbed") / "run")
    assert run.ok
    return result_bytes(run.folder)


@pytest.fixture(scope="module")
def cell_of(fields: Callable[..., dict[str, Any]]) -> dict[tuple[str, str], str]:
    """Which cell of the first method an image belongs to, by its id and its pixels' digest."""
    import hashlib

    plan = make_plan(validate(fields()))
    cells = {(c.arm, c.attack): c.id for c in plan.cells if c.observer == "scorer" and c.index == 0}
    found = {}
    for group in plan.dataset.load(plan.records)[0]:
        pair = make_pair(plan, plan.methods[0], group)
        for (arm, attack), cell in cells.items():
            images = pair.marked if arm == "marked" else pair.unmarked
            for record, array in apply_attack(plan, attack, images, Seed.root(0)):
                found[record.id, hashlib.sha256(array.tobytes()).hexdigest()] = cell
    assert len(found) == len(cells) * IMAGES, "the attacks must tell the cells apart"
    return found


class Sessions:
    """The sessions of one run: what was stored before each, what each decoded, and the comparison at the end."""

    def __init__(self, folder: Path, fields: Callable[..., dict[str, Any]], cells: dict[tuple[str, str], str]) -> None:
        self.out = folder / "run"
        self._folder, self._fields, self._cells = folder, fields, cells
        self.stored: list[set[tuple[str, str]]] = []
        self.logs: list[Path] = []

    def next(self, **options: Any) -> list[object]:
        """Notes what is stored, and gives the arguments of a session with a log of its own."""
        done = Store(self.out).done() if (self.out / "run.json").exists() else {}
        self.stored.append({(cell, image) for cell, images in done.items() for image in images})
        self.logs.append(self._folder / f"log-{len(self.logs)}.txt")
        path = self._folder / "benchmark.yaml"
        path.write_text(json.dumps(self._fields(log=self.logs[-1], **options), default=str), encoding="utf-8")
        return ["run", path, "--out", self.out, "--no-report"]

    @property
    def calls(self) -> int:
        """Calls of the decoder in this session so far."""
        log = self.logs[-1]
        return log.read_text(encoding="utf-8").count("\n") if log.exists() else 0

    def check_nothing_twice(self) -> None:
        """No session decoded a cell of an image that was stored before it began."""
        for stored, log in zip(self.stored, self.logs, strict=True):
            lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
            # The last line of a killed process may be cut off.
            decoded = [tuple(pair) for line in lines if line.endswith("]]") for pair in json.loads(line)]
            again = {(self._cells[pair], pair[0]) for pair in decoded} & stored
            assert not again, f"{len(again)} finished cells of images were decoded again"
            assert len(decoded) == len(set(decoded)), "a session decoded an image twice"

    def litter(self) -> list[str]:
        return [str(p) for p in self.out.rglob(".new-*")]


@pytest.fixture
def sessions(tmp_path: Path, fields: Callable[..., dict[str, Any]], cell_of: dict[tuple[str, str], str]) -> Sessions:
    return Sessions(tmp_path, fields, cell_of)


def test_an_inline_run_killed_three_times_ends_with_the_same_bytes(
    sessions: Sessions, command_line: Any, undisturbed: dict, result_bytes: Callable, wait_until: Callable
) -> None:
    rng = np.random.default_rng(20240607)
    for _ in range(3):
        process = command_line.start(*sessions.next(pause=0.04))
        # A shard takes six calls, so that some kills come after something was stored; 48 would be all.
        calls = rng.integers(2, 16)
        wait_until(lambda calls=calls: sessions.calls >= calls)
        time.sleep(rng.uniform(0.0, 0.04))
        os.kill(process, signal.SIGKILL)
        assert command_line.wait() == -signal.SIGKILL
    assert command_line.run(*sessions.next()) == 0, command_line.output
    assert result_bytes(sessions.out) == undisturbed
    assert any(len(stored) > 0 for stored in sessions.stored), "no kill came after something was stored"
    sessions.check_nothing_twice()
    assert sessions.litter() == []


def test_killing_the_parent_of_two_workers_leaves_no_orphan_and_loses_nothing(
    sessions: Sessions, command_line: Any, undisturbed: dict, result_bytes: Callable, wait_until: Callable
) -> None:
    process = command_line.start(*sessions.next(pause=0.04, engine="processes", workers=2))
    # Several shards of six cells: some are stored, others are in flight in both workers.
    wait_until(lambda: sessions.calls > 20)
    family = psutil.Process(process).children(recursive=True)
    os.kill(process, signal.SIGKILL)
    command_line.wait()
    _, alive = psutil.wait_procs(family, timeout=3)
    assert len(family) >= 2
    assert alive == []
    assert command_line.run(*sessions.next()) == 0, command_line.output
    assert 0 < len(sessions.stored[-1]) < 18 * IMAGES
    assert result_bytes(sessions.out) == undisturbed
    sessions.check_nothing_twice()
    assert sessions.litter() == []


@pytest.mark.slow
def test_workers_that_are_still_starting_when_their_parent_is_killed_do_not_stay(
    sessions: Sessions, command_line: Any, wait_until: Callable
) -> None:
    process = command_line.start(*sessions.next(engine="processes", workers=1))
    spawned: list[psutil.Process] = []

    def has_spawned() -> bool:
        spawned[:] = [p for p in psutil.Process(process).children() if "spawn_main" in " ".join(p.cmdline())]
        return bool(spawned)

    wait_until(has_spawned)
    # By now the worker has been told what to do and is busy importing; it has not begun.
    wait_until(lambda: sum(spawned[0].cpu_times()[:2]) > 0.5)
    os.kill(process, signal.SIGKILL)
    command_line.wait()
    assert not sessions.calls
    _, alive = psutil.wait_procs(spawned, timeout=30)
    assert alive == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["processes", "inline"])
def test_a_real_command_killed_ten_times_at_any_moment_ends_with_the_same_bytes(
    engine: str, sessions: Sessions, undisturbed: dict, result_bytes: Callable
) -> None:
    rng = np.random.default_rng(11)
    command = [sys.executable, "-m", "waterproof"]
    options = {"engine": engine, "workers": 2, "pause": 0.05}
    started = time.monotonic()
    for kill in range(10):
        with subprocess.Popen([*command, *map(str, sessions.next(**options))], stdout=-3, stderr=-3) as process:
            if kill == 0:
                # The time to the first result; later kills come before, at and after it.
                while not sessions.calls:
                    time.sleep(0.05)
                begins = time.monotonic() - started
            else:
                time.sleep(begins * rng.choice([rng.uniform(0.1, 1.0), rng.uniform(1.0, 1.4)], p=[0.3, 0.7]))
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.kill()
        assert psutil.wait_procs(family, timeout=15)[1] == []
    finish = subprocess.run([*command, *map(str, sessions.next(engine=engine, workers=2))], capture_output=True)
    assert finish.returncode == 0, finish.stderr
    assert result_bytes(sessions.out) == undisturbed
    sessions.check_nothing_twice()
    assert sessions.litter() == []


def test_a_finished_run_started_again_computes_nothing(
    fields: Callable, tmp_path: Path, undisturbed: dict, result_bytes: Callable
) -> None:
    log = tmp_path / "log.txt"
    run_benchmark(validate(fields()), tmp_path / "run")
    run_benchmark(validate(fields(log=log)), tmp_path / "run")
    assert not log.exists()
    assert result_bytes(tmp_path / "run") == undisturbed


def _stopped_after(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> Callable[[], None]:
    """Lets the n-th call of a function of the store end as by Ctrl-C; returns the cure."""
    real, count = getattr(store_module, name), [0]

    def stop(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == call:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(store_module, name, stop)
    return lambda: monkeypatch.setattr(store_module, name, real)


def test_a_truncated_part_is_computed_again_with_a_notice(
    tiny: Callable[..., Benchmark],
    tmp_path: Path,
    result_bytes: Callable,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    benchmark = tiny(runtime={"shard": 1})
    whole = result_bytes(run_benchmark(benchmark, tmp_path / "whole").folder)
    out = tmp_path / "run"
    cure = _stopped_after(monkeypatch, "_part_table", 4)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(benchmark, out)
    cure()
    first, second, third = sorted((out / "parts").glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:-20])
    second.write_bytes(b"")
    middle = bytearray(third.read_bytes())
    middle[20:60] = bytes(40)
    third.write_bytes(bytes(middle))
    run_benchmark(benchmark, out)
    assert result_bytes(out) == whole
    assert [record.message.split(" is damaged")[0] for record in caplog.records] == [
        str(first),
        str(second),
        str(third),
    ]


@pytest.mark.parametrize("table", ["scores", "quality", "failures"])
def test_a_damaged_table_of_a_finished_run_is_computed_again(
    table: str, tiny: Callable[..., Benchmark], tmp_path: Path, result_bytes: Callable
) -> None:
    benchmark, out = tiny(), tmp_path / "run"
    run_benchmark(benchmark, out)
    whole = result_bytes(out)
    path = out / f"{table}.parquet"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    run_benchmark(benchmark, out)
    assert result_bytes(out) == whole


def test_half_written_files_of_a_killed_writer_are_neither_read_nor_kept(
    tiny: Callable[..., Benchmark], tmp_path: Path, result_bytes: Callable
) -> None:
    benchmark, out = tiny(), tmp_path / "run"
    run_benchmark(benchmark, out)
    whole = result_bytes(out)
    (out / "parts").mkdir(exist_ok=True)
    for path in (out / ".new-1-run.json", out / "parts" / ".new-2-00000-a.parquet", out / "costs" / ".new-3-0.json"):
        path.write_bytes(b"PAR1half")
    run_benchmark(benchmark, out)
    assert result_bytes(out) == whole
    assert list(out.rglob(".new-*")) == []


@pytest.mark.parametrize("call", range(1, 12))
def test_a_run_stopped_at_any_rename_ends_with_the_same_bytes(
    call: int, tiny: Callable[..., Benchmark], tmp_path: Path, result_bytes: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes happen in the order: images, rejected, run.json twice, parts and costs, the three tables, the cells."""
    benchmark, out = tiny(metrics=[], runtime={"shard": 4}), tmp_path / "run"
    whole = result_bytes(run_benchmark(benchmark, tmp_path / "whole").folder)
    real, count = Path.replace, [0]

    def stop(self: Path, target: Path) -> Path:
        count[0] += 1
        if count[0] == call:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        try:
            run_benchmark(benchmark, out)
        except KeyboardInterrupt:
            pass
        else:
            assert call == 11, "there are ten renames"
    run_benchmark(benchmark, out)
    assert result_bytes(out) == whole
    assert list(out.rglob(".new-*")) == []
    assert not any((out / "parts").iterdir())


def test_the_shard_size_of_the_first_session_holds_for_all(tiny: Callable[..., Benchmark], tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_benchmark(tiny(runtime={"shard": 3}), out)
    run_benchmark(tiny(runtime={"shard": 1, "workers": 7}), out)
    config = json.loads((out / "run.json").read_text())
    assert (config["shard"], config["benchmark"]["runtime"]["workers"]) == (3, 7)


def test_costs_of_every_session_are_kept(tiny: Callable[..., Benchmark], tmp_path: Path) -> None:
    run_benchmark(tiny(runtime={"shard": 2}), tmp_path / "run")
    costs = [item for path in (tmp_path / "run" / "costs").iterdir() for item in json.loads(path.read_text())]
    stages = {"load", "mark", "attack", "score", "measure"}
    assert {item["stage"] for item in costs} == stages
    assert all(item["seconds"] >= 0 for item in costs)
    assert sum(item["images"] for item in costs if item["stage"] == "load") == 4
    assert pq.read_table(tmp_path / "run" / "scores.parquet").column_names == ["cell", "image", "logits", "value"]
