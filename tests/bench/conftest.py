"""What the tests of runs share: small benchmarks, misbehaving components, and a quick command line."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from waterproof.bench.benchmark import Benchmark, validate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from waterproof.bench.baseline import Baseline
    from waterproof.bench.results import Run

RESULTS = ("scores", "quality", "failures", "cells", "images")
_TINY: dict[str, Any] = {
    "name": "tiny",
    "dataset": {"deadleaves": {"count": 4}},
    "methods": ["dwt-dct"],
    "attacks": ["identity", {"jpeg": {"quality": 60}}],
    "metrics": ["psnr"],
    "runtime": {"engine": "inline", "shard": 2},
}


def awkward_component(name: str, **params: Any) -> dict[str, Any]:
    return {f"{Path(__file__).with_name('awkward.py')}:{name}": params}


@pytest.fixture(scope="session")
def awkward() -> Callable[..., dict[str, Any]]:
    """A component of ``awkward.py`` with parameters, as a benchmark file names it."""
    return awkward_component


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Benchmark]:
    """A benchmark of four procedural images, one mark and two attacks, inline; fields replace the defaults."""

    def build(**fields: Any) -> Benchmark:
        runtime = {**_TINY["runtime"], **fields.pop("runtime", {})}
        return validate({**_TINY, **fields, "runtime": runtime})

    return build


@pytest.fixture(scope="session")
def result_bytes() -> Callable[[Path], dict[str, bytes]]:
    """The bytes of every result file of a run folder."""

    def read(folder: Path) -> dict[str, bytes]:
        return {name: (folder / f"{name}.parquet").read_bytes() for name in RESULTS}

    return read


@pytest.fixture(scope="session")
def result_values() -> Callable[[Run], dict[tuple[Any, ...], Any]]:
    """Every stored value by what a person calls it, whatever the order and the identity of cells."""

    def read(run: Run) -> dict[tuple[Any, ...], Any]:
        coordinates = ["arm", "maker", "attack", "observer_kind", "observer"]
        cells = {row["cell"]: tuple(str(row[c]) for c in coordinates) for row in run.cells.to_dict("records")}
        values = {}
        for table in ("scores", "quality", "failures"):
            for row in run.store.read(table):
                rest = tuple(str(row.get(c)) for c in ("logits", "value", "status", "error"))
                values[(*cells[row["cell"]], row["image"])] = rest
        return values

    return read


@pytest.fixture(scope="session")
def baseline_of() -> Callable[..., Baseline]:
    """Results without images, see ``synthetic.py``."""
    build: Callable[..., Baseline] = runpy.run_path(str(Path(__file__).with_name("synthetic.py")))["baseline_of"]
    return build


class CommandLine:
    """Starts `waterproof` commands as processes of their own, at the price of a fork."""

    def __init__(self, folder: Path) -> None:
        self._output = folder / "output.txt"
        warm = Path(__file__).with_name("warm.py")
        self._server = subprocess.Popen(
            [sys.executable, str(warm)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        )

    def start(self, *arguments: object, fork: bool = False) -> int:
        """Starts a command; returns its process id, which is that of its process group too.

        With ``fork`` its workers start at once, as forks.
        """
        self._output.unlink(missing_ok=True)
        self._say(json.dumps([[str(a) for a in arguments], str(self._output), fork]))
        return int(self._hear())

    def wait(self) -> int:
        """The exit status of the command; negative for a signal."""
        return int(self._hear())

    def run(self, *arguments: object, fork: bool = False) -> int:
        self.start(*arguments, fork=fork)
        return self.wait()

    @property
    def output(self) -> str:
        """What the last command has printed so far."""
        return self._output.read_text(encoding="utf-8") if self._output.exists() else ""

    def close(self) -> None:
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(timeout=30)

    def _say(self, line: str) -> None:
        self._server.stdin.write(line + "\n")
        self._server.stdin.flush()

    def _hear(self) -> str:
        line = self._server.stdout.readline()
        if not line:
            pytest.fail("the warm process has died")
        return line


@pytest.fixture(scope="session")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    if not hasattr(os, "fork"):
        pytest.skip("needs a system that forks")
    started = CommandLine(tmp_path_factory.mktemp("command-line"))
    yield started
    started.close()


@pytest.fixture
def yaml_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a benchmark file; JSON is YAML."""

    def write(fields: Mapping[str, Any], name: str = "benchmark.yaml") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(fields, default=str), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Waits for a condition, and fails the test if it does not come true in time."""

    def wait(condition: Callable[[], object], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                pytest.fail(f"nothing happened in {seconds:g} s")
            time.sleep(0.02)

    return wait
