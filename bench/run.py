"""Runs a benchmark: plan, engine, store. ``waterproof.evaluate`` and ``waterproof run`` are thin layers over it."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import StoreError, UnavailableError
from ..core.identity import identity
from ..core.progress import Tick, progress_bar
from .benchmark import Benchmark, validate
from .engine import Task, run_inline, run_processes
from .methods.base import Method, Protection, Watermark
from .plan import SCHEMA, Plan, make_plan
from .provenance import NUMERIC, provenance, versions
from .results import Run, cell_table, load_run
from .store import Done, Store, locked, write_table, write_text, writing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..core.components import Component

_BOTH = ("marked", "unmarked")


def evaluate(
    methods: Sequence[str | Mapping[str, Any]],
    dataset: str | Mapping[str, Any] = "samples",
    attacks: Sequence[str | Mapping[str, Any]] = ("identity",),
    out: str | Path = "runs/evaluate",
    **options: Any,
) -> Run:
    """Runs methods on a dataset under attacks and returns the run; an interrupted run in ``out`` is resumed.

    Args:
        methods: names, or ``{name: {parameter: value}}``; ``file.py:Class`` for a method of your own.
        dataset: likewise.
        attacks: likewise; a list as strength sweeps over it.
        out: the run folder.
        **options: further fields of the benchmark file: ``metrics``, ``limit``, ``seed``, ``key``, ``decision``,
            ``runtime``.

    Returns:
        the finished run.

    Raises:
        UserError: wrong input; the message says what would be right.

    Example:
        >>> run = evaluate(["dwt-dct-svd"], {"samples": {"size": 256}}, ["identity", {"jpeg": {"quality": [80, 50]}}],
        ...                out="runs/example", limit=8)  # doctest: +SKIP
        >>> run.summary()[["method", "attack", "tpr", "tpr_low", "tpr_high"]]  # doctest: +SKIP
    """
    value = {"name": Path(out).name, "dataset": dataset, "methods": list(methods), "attacks": list(attacks), **options}
    return run_benchmark(validate(value), out)


def run_benchmark(benchmark: Benchmark, out: str | Path, plan: Plan | None = None, extend: bool = False) -> Run:
    """Runs a validated benchmark into ``out``, or finishes what is missing there.

    Args:
        benchmark: what to run.
        out: the run folder.
        plan: the plan, if it was made before.
        extend: let ``out`` hold a smaller benchmark, which this one adds methods, attacks or metrics to; what is
            stored is kept.

    Raises:
        StoreError: the folder is in use, belongs to another benchmark or cannot be written.
    """
    plan = plan or make_listed_plan(benchmark)
    store, config = Store(Path(out)), _config(plan)
    if not store.exists:
        store.begin(config, plan.index)
    with locked(store.folder):
        _resume(store, config, plan, extend)
        store.repair()
        _compute(store, plan)
        store.fold(plan)
        with writing(store.folder):
            write_table(store.folder / "cells.parquet", cell_table(plan, store))
        store.sweep()
    return load_run(store.folder)


def make_listed_plan(benchmark: Benchmark) -> Plan:
    """The plan of a benchmark, with progress while the dataset is listed."""
    with progress_bar("listing images", None, "images") as tick:
        return make_plan(benchmark, tick=tick)


def _compute(store: Store, plan: Plan) -> None:
    runtime = plan.benchmark.runtime
    tasks, units = open_tasks(plan, store.config()["shard"], store.done())
    if not tasks:
        return
    workers = min(runtime.workers or os.cpu_count() or 1, len(tasks))
    with progress_bar(f"running {plan.benchmark.name}", units, "cell-images") as tick:
        _engine(store, plan, tasks, tick, workers)


def _engine(store: Store, plan: Plan, tasks: list[Task], tick: Tick, workers: int) -> None:
    if plan.benchmark.runtime.engine == "inline":
        run_inline(store, plan, tasks, tick)
    else:
        run_processes(store, plan, tasks, tick, workers)


def open_tasks(plan: Plan, shard: int, done: Done) -> tuple[list[Task], int]:
    """What is still to do, and how many images times cells that is."""
    tasks, units = [], 0
    for number, records in enumerate(plan.shards(shard)):
        images = {record.id for record in records}
        cells = tuple(c.id for c in plan.cells if c.skipped is None and not images <= done.get(c.id, set()))
        if cells:
            tasks.append(Task(number, cells))
            units += len(cells) * len(records)
    return tasks, units


def _specs(plan: Plan) -> dict[str, str]:
    """Identities of the components that are available, by label."""
    parts = (plan.dataset, *plan.methods, *plan.attacks, *plan.metrics)
    return {f"{c.kind} {c.label}": c.spec().id for c in parts if not c.unavailable()}


def _asked(plan: Plan) -> str:
    """What was asked for, runtime knobs and file locations left out."""

    def names(parts: Sequence[Component]) -> list[object]:
        return [[part.name, part.identity_params()] for part in parts]

    wanted = {
        "dataset": names([plan.dataset]),
        "methods": names(plan.methods),
        "attacks": names(plan.attacks),
        "metrics": names(plan.metrics),
        "limit": plan.benchmark.limit,
        "seed": plan.benchmark.seed,
        "key": plan.benchmark.key,
    }
    if plan.adversary is not None:
        wanted["adversary"] = names([plan.adversary[0]])
    if plan.benchmark.arms != _BOTH:
        wanted["arms"] = list(plan.benchmark.arms)
    return identity("benchmark", wanted)


def _payload(method: Method) -> dict[str, Any]:
    """Payload length, and the keys of its users where a method can write no others."""
    if isinstance(method, Protection):
        return {"bits": 0, "largest_change": method.largest_change}
    if not isinstance(method, Watermark):
        return {"bits": getattr(method, "bits", 0)}
    try:
        bits, users = method.bits, method.users
    except UnavailableError:
        # Its cells are skipped with the reason; what it would have written is not known here.
        return {"bits": 0}
    return {"bits": bits} if users is None else {"bits": bits, "users": list(users)}


def _config(plan: Plan) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "asked": _asked(plan),
        "images": plan.index.digest,
        "shard": plan.benchmark.runtime.shard,
        "specs": _specs(plan),
        "benchmark": plan.benchmark.model_dump(mode="json"),
        "dataset": _describe(plan.dataset),
        "methods": [_describe(m, role=m.role, family=m.family, **_payload(m)) for m in plan.methods],
        "attacks": [
            _describe(a, family=a.family, strength=a.strength, value=a.strength_value, damage=a.damage)
            for a in plan.attacks
        ],
        "metrics": [_describe(m, unit=m.unit, better=m.better) for m in plan.metrics],
        "provenance": provenance(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _describe(part: Component, **more: object) -> dict[str, object]:
    about = {"label": part.label, "name": part.name, "version": part.version, "params": part.identity_params()}
    return {**about, "digests": part.digests(), "references": list(part.references), **more}


def _resume(store: Store, new: dict[str, Any], plan: Plan, extend: bool) -> None:
    """Checks that the run in the folder is this one, and lets the runtime knobs of this call take its place."""
    old = store.config()
    where = f"{store.folder} holds"
    other = "choose another folder with --out, or remove this one"
    if old.get("schema") != SCHEMA:
        raise StoreError(f"{where} a run of schema {old.get('schema')}, this version writes {SCHEMA}: {other}")
    if old["asked"] != new["asked"] and not extend:
        raise StoreError(
            f"{where} another benchmark ('{old['benchmark']['name']}'): {other}, or add to it with --extend"
        )
    if old["images"] != new["images"]:
        raise StoreError(f"{where} a run on other images (the image list has changed): {other}")
    if old["asked"] != new["asked"]:
        before = make_plan(validate(old["benchmark"]), store.index())
        lost = sum(cell.skipped is None and cell.id not in plan.by_id for cell in before.cells)
        if lost:
            raise StoreError(f"{where} {lost} cells that this benchmark lacks: --extend only adds; {other}")
    changed = [name for name, spec in old["specs"].items() if new["specs"].get(name, spec) != spec]
    if changed:
        raise StoreError(f"{where} results of another version of {', '.join(changed)}: {other}")
    _same_packages(old, where, other)
    config = {**new, "shard": old["shard"], "provenance": old["provenance"], "started": old["started"]}
    with writing(store.folder):
        write_text(store.folder / "run.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def _same_packages(old: Mapping[str, Any], where: str, other: str) -> None:
    before, now = old["provenance"]["packages"], versions()
    moved = [f"{n} {before[n]} (now {now[n]})" for n in NUMERIC if n in before and n in now and before[n] != now[n]]
    if moved:
        raise StoreError(f"{where} results made with {', '.join(moved)}: {other}")
