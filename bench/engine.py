"""Engines run the same shard function: ``inline`` here, ``processes`` with one worker per core.

Nothing above this module knows which one runs. Every worker rebuilds its components from the run folder, so nothing
but shard numbers and cell names travels.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..core.effort import telling
from ..core.errors import StoreError
from .adversary import Adversary
from .benchmark import validate
from .plan import Cell, Plan, make_plan
from .shard import Finished, Row, run_shard
from .store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ..core.images import Record
    from ..core.progress import Tick

_FLUSH_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Task:
    """One shard and the cells that it still lacks.

    Attributes:
        shard: number of the shard.
        cells: identities of the cells to compute.
    """

    shard: int
    cells: tuple[str, ...]


class Worker:
    """What one process holds: the plan, the store, and the shards.

    Args:
        store: the run folder.
        plan: the plan; None rebuilds it from the folder.
    """

    def __init__(self, store: Store, plan: Plan | None = None) -> None:
        self.store = store
        config = store.config()
        self.plan = plan or make_plan(validate(config["benchmark"]), store.index())
        self.adversary = Adversary(self.plan, store.folder / "learnt")
        self.shards: list[tuple[Record, ...]] = self.plan.shards(config["shard"])

    def run(self, task: Task, tick: Callable[[int, str], None]) -> None:
        """Computes a task and stores cells as they finish, at most a few seconds after each."""
        records = self.shards[task.shard]
        pending: list[Finished] = []
        flushed = time.monotonic()

        def emit(done: Finished) -> None:
            nonlocal flushed
            pending.append(done)
            if time.monotonic() - flushed > _FLUSH_SECONDS:
                self.store.add(task.shard, pending)
                pending.clear()
                flushed = time.monotonic()
            names = self.plan.names(done.cell)
            tick(len(records), f"{names['maker'] or names['observer']} · {names['attack']}")

        with telling(lambda text: tick(0, text)):
            costs = run_shard(self.plan, records, [self.plan.by_id[c] for c in task.cells], emit, self.adversary)
        self.store.add(task.shard, pending, costs)

    def fail(self, task: Task, reason: str) -> None:
        """Stores a failed row for every image of a task that killed its worker."""
        records = self.shards[task.shard]
        cells = [self.plan.by_id[c] for c in task.cells]
        self.store.add(task.shard, [_lost(cell, records, reason) for cell in cells])


def _lost(cell: Cell, records: Sequence[Record], reason: str) -> Finished:
    return Finished(cell, [Row(record.id, "failed", error=reason) for record in records], reason + "\n")


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs the block with torch and OpenCV at one thread: the number of threads changes the last bits of a sum."""
    import cv2
    import torch

    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def run_inline(store: Store, plan: Plan, tasks: Sequence[Task], tick: Tick) -> None:
    """Runs tasks one after another in this process."""
    worker = Worker(store, plan)
    with one_thread():
        for task in tasks:
            worker.run(task, tick)


def run_processes(store: Store, plan: Plan, tasks: Sequence[Task], tick: Tick, workers: int) -> None:
    """Runs tasks in ``workers`` processes.

    If a worker dies (memory, a crash in compiled code), the shards in flight are tried again one at a time; the one
    that kills its worker again is recorded as failed, and the others go on.
    """
    suspects = _run_pool(store, tasks, tick, workers)
    if suspects:
        done = store.done()
        planner = Worker(store, plan)
        for task in suspects:
            task = _remaining(task, planner, done)
            if task.cells and _run_pool(store, [task], tick, 1):
                planner.fail(task, "the worker process died (out of memory, or a crash in compiled code)")


def _remaining(task: Task, worker: Worker, done: dict[str, set[str]]) -> Task:
    images = {record.id for record in worker.shards[task.shard]}
    return Task(task.shard, tuple(c for c in task.cells if not images <= done.get(c, set())))


def _run_pool(store: Store, tasks: Sequence[Task], tick: Tick, workers: int) -> list[Task]:
    """Runs tasks in a pool, and in new ones after a worker died; returns the tasks that were then in flight."""
    context = get_context("spawn")
    ticks: Any = context.SimpleQueue()
    listener = threading.Thread(target=_listen, args=(ticks, tick), daemon=True)
    listener.start()
    waiting = list(reversed(tasks))
    with _single_threaded_children():
        begin = (store.folder, ticks, os.getpid())
        pool = ProcessPoolExecutor(min(workers, len(tasks)), context, initializer=_begin, initargs=begin)
        # Few tasks are in flight, so that a dying worker leaves few suspects.
        running: dict[Future[None], Task] = {}
        suspects: list[Task] = []
        try:
            while waiting or running:
                while waiting and len(running) < workers + 1:
                    # A broken pool refuses the task, which must then still be among those that wait.
                    with _no_main_module():
                        future = pool.submit(_work, waiting[-1])
                    running[future] = waiting.pop()
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    del running[future]
        except BrokenProcessPool:
            # The tasks that were not in flight are innocent: they go on in a new pool.
            suspects = list(running.values())
        except BaseException:
            _stop(pool)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            ticks.put(None)
            listener.join(timeout=5)
    if waiting:
        # Only a broken pool leaves tasks waiting. One that took none would break again for ever.
        rest = waiting[::-1]
        suspects += _run_pool(store, rest, tick, workers) if len(rest) < len(tasks) else rest
    return suspects


def _stop(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Keeps a spawned worker from running the caller's script again: workers need nothing from it.

    Without this, a script that calls ``waterproof.evaluate`` outside an ``if __name__ == "__main__"`` would start
    itself over in every worker.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _listen(ticks: Any, tick: Tick) -> None:
    while (item := ticks.get()) is not None:
        tick(*item)


_worker: Worker | None = None
_ticks: Any = None


def _begin(folder: Path, ticks: Any, parent: int) -> None:
    """Initialises a worker process."""
    global _worker, _ticks
    import cv2
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _worker, _ticks = Worker(Store(folder)), ticks


def _die_with_parent(parent: int) -> None:
    """A killed parent cannot stop its workers; they look for themselves."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(task: Task) -> None:
    if _worker is None:
        raise StoreError("the worker was not initialised")
    waiting: list[tuple[int, str]] = []
    sent = time.monotonic()

    def tick(units: int, doing: str) -> None:
        nonlocal sent
        waiting.append((units, doing))
        if time.monotonic() - sent > 0.2:
            _ticks.put((sum(u for u, _ in waiting), doing))
            waiting.clear()
            sent = time.monotonic()

    _worker.run(task, tick)
    if waiting:
        _ticks.put((sum(u for u, _ in waiting), waiting[-1][1]))
