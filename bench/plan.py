"""From a benchmark to the list of cells, and from a cell to its identity."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

from ..core.errors import DatasetError
from ..core.identity import identity
from ..datasets.base import Dataset, Index
from .methods.base import Method, Watermark
from .metrics import Metric

if TYPE_CHECKING:
    from ..attacks.base import Attack
    from ..core.components import Component
    from ..core.images import Record
    from ..core.progress import Tick
    from .benchmark import Benchmark

SCHEMA = 1
"""Raised when stored rows or the meaning of a cell change; part of every cell's identity."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry of the plan: images of one arm, attacked in one way, seen by one observer.

    Attributes:
        id: the identity; results are stored under it.
        arm: ``marked`` or ``unmarked``.
        maker: index of the method that made the images, None for the dataset's own.
        attack: index of the attack.
        observer: ``scorer`` or ``metric``.
        index: index of the observer among methods or metrics.
        skipped: why it will not run, None if it will.
    """

    id: str
    arm: Literal["marked", "unmarked"]
    maker: int | None
    attack: int
    observer: Literal["scorer", "metric"]
    index: int
    skipped: str | None = None

    @property
    def work(self) -> tuple[int | None, str, int]:
        """Cells with equal ``work`` look at the same attacked images."""
        return (self.maker, self.arm, self.attack)


@dataclass(frozen=True)
class Plan:
    """Everything a run will do, decided before it begins.

    Attributes:
        benchmark: the validated benchmark.
        dataset: the dataset.
        index: the images in use and the rejected ones.
        methods: what is judged.
        attacks: attacks at one strength each.
        metrics: image quality.
        cells: one for each (arm, maker, attack, observer).
    """

    benchmark: Benchmark
    dataset: Dataset
    index: Index
    methods: tuple[Method, ...]
    attacks: tuple[Attack, ...]
    metrics: tuple[Metric, ...]
    cells: tuple[Cell, ...]

    @property
    def records(self) -> tuple[Record, ...]:
        """The images in use."""
        return self.index.records

    @cached_property
    def by_id(self) -> dict[str, Cell]:
        """Cells by identity."""
        return {cell.id: cell for cell in self.cells}

    def shards(self, size: int) -> list[tuple[Record, ...]]:
        """The images cut into shards of ``size``."""
        records = self.records
        return [records[i : i + size] for i in range(0, len(records), size)]

    def names(self, cell: Cell) -> dict[str, Any]:
        """What a person reads: labels of maker, attack and observer."""
        observers: tuple[Component, ...] = self.methods if cell.observer == "scorer" else self.metrics
        attack = self.attacks[cell.attack]
        return {
            "arm": cell.arm,
            "maker": None if cell.maker is None else self.methods[cell.maker].label,
            "attack": attack.label,
            "observer": observers[cell.index].label,
        }


def make_plan(benchmark: Benchmark, index: Index | None = None, tick: Tick | None = None) -> Plan:
    """Lists the cells of a benchmark.

    Args:
        benchmark: the validated benchmark.
        index: an index made before (a resumed run, a worker); None lists the dataset.
        tick: progress of listing the dataset.

    Raises:
        DatasetError: the dataset is missing or empty.
    """
    dataset = cast("Dataset", benchmark.dataset.create("dataset"))
    if index is None:
        index = _limited(dataset.index(tick), benchmark.limit)
    methods = tuple(cast("Method", ref.create("method")) for ref in benchmark.methods)
    metrics = tuple(cast("Metric", ref.create("metric")) for ref in benchmark.metrics)
    attacks = tuple(benchmark.expanded_attacks())
    cells = _cells(benchmark, dataset, index, methods, attacks, metrics)
    return Plan(benchmark, dataset, index, methods, attacks, metrics, tuple(cells))


def _limited(index: Index, limit: int | None) -> Index:
    if not index.records:
        reasons = "; ".join(sorted({r.reason for r in index.rejected})[:3])
        raise DatasetError(f"the dataset holds no usable image{': ' + reasons if reasons else ''}")
    if limit is None or limit >= len(index.records):
        return index
    order = sorted(range(len(index.records)), key=lambda i: _rank(index.records[i], i))
    keep = sorted(order[:limit])
    return Index(tuple(index.records[i] for i in keep), index.rejected)


def _rank(record: Record, position: int) -> tuple[str, int]:
    return hashlib.sha256(f"waterproof-limit-1/{record.id}".encode()).hexdigest(), position


def _cells(
    benchmark: Benchmark,
    dataset: Dataset,
    index: Index,
    methods: tuple[Method, ...],
    attacks: tuple[Attack, ...],
    metrics: tuple[Metric, ...],
) -> list[Cell]:
    missing = {id(c): c.unavailable() for c in (*methods, *attacks, *metrics)}
    specs: dict[int, str] = {
        id(c): "unavailable:" + c.label if missing[id(c)] else c.spec().id for c in (*methods, *attacks, *metrics)
    }
    common = {
        "schema": SCHEMA,
        "seed": benchmark.seed,
        "dataset": dataset.spec().id,
        "images": index.digest,
    }
    cells = []

    def add(arm: Literal["marked", "unmarked"], maker: int | None, attack: int, observer: Component, i: int) -> None:
        by = None if maker is None else methods[maker]
        involved = [c for c in (by, attacks[attack], observer) if c is not None]
        reason = next((f"{c.label}: {missing[id(c)]}" for c in involved if missing[id(c)]), None)
        role: Literal["scorer", "metric"] = "scorer" if isinstance(observer, Method) else "metric"
        reason = reason or _pointless(attacks[attack], observer, by)
        coordinates = {
            **common,
            "arm": arm,
            "maker": None if by is None else specs[id(by)],
            "key": benchmark.key if maker is not None else None,
            "attack": specs[id(attacks[attack])],
            "observer": specs[id(observer)],
        }
        cells.append(Cell(identity("cell", coordinates), arm, maker, attack, role, i, reason))

    for a in range(len(attacks)):
        for m, method in enumerate(methods):
            own = isinstance(method, Watermark) and method.counterparts == "own"
            add("unmarked", m if own else None, a, method, m)
            if "marked" not in benchmark.arms:
                continue
            add("marked", m, a, method, m)
            for q, metric in enumerate(metrics):
                add("marked", m, a, metric, q)
    return cells


def _pointless(attack: Attack, observer: Component, maker: Method | None) -> str | None:
    """Why a cell cannot say anything, whatever the images."""
    if maker is not None and not isinstance(maker, Watermark):
        return f"{maker.label} marks nothing: a {maker.role} has no marked images"
    if attack.knowledge:
        return (
            f"{attack.label} needs access to {', '.join(sorted(attack.knowledge))}, which this protocol does not give"
        )
    if isinstance(observer, Metric) and not attack.aligned:
        return f"not comparable pixel by pixel after {attack.label}"
    if isinstance(observer, Method):
        return observer.refuses(attack.name)
    return None
