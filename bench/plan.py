"""From a benchmark to the list of cells, and from a cell to its identity."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, cast

from ..attacks.base import HANDLES, ModelAttack
from ..core.errors import DatasetError
from ..core.identity import identity
from ..datasets.base import Dataset, Index
from .methods.base import Method, Protection, Watermark
from .metrics import Metric

if TYPE_CHECKING:
    from collections.abc import Callable

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
        target: index of the method whose mark, keys or model the attack knows; None where it knows nothing.
    """

    id: str
    arm: Literal["marked", "unmarked"]
    maker: int | None
    attack: int
    observer: Literal["scorer", "metric"]
    index: int
    skipped: str | None = None
    target: int | None = None

    @property
    def work(self) -> tuple[int | None, str, int, int | None]:
        """Cells with equal ``work`` look at the same attacked images."""
        return (self.maker, self.arm, self.attack, self.target)


@dataclass(frozen=True)
class Plan:
    """Everything a run will do, decided before it begins.

    Attributes:
        benchmark: the validated benchmark.
        dataset: the dataset.
        index: the images in use and the rejected ones.
        methods: what is judged.
        attacks: attacks at one strength each.
        metrics: image quality; for protections also how alike edits are.
        cells: one for each (arm, maker, attack, observer).
        adversary: the dataset of the images that adversaries hold, and its images.
    """

    benchmark: Benchmark
    dataset: Dataset
    index: Index
    methods: tuple[Method, ...]
    attacks: tuple[Attack, ...]
    metrics: tuple[Metric, ...]
    cells: tuple[Cell, ...]
    adversary: tuple[Dataset, Index] | None = None

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
        """What a person reads: labels of maker (or whom the attack is after), attack and observer."""
        observers: tuple[Component, ...] = self.methods if cell.observer == "scorer" else self.metrics
        attack = self.attacks[cell.attack]
        # Images that nobody made but an adversary changed after a method's marks go by that method's name.
        who = cell.target if cell.maker is None else cell.maker
        return {
            "arm": cell.arm,
            "maker": None if who is None else self.methods[who].label,
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
    metrics = (*(cast("Metric", ref.create("metric")) for ref in benchmark.metrics), *_comparisons(benchmark))
    attacks = tuple(benchmark.expanded_attacks())
    adversary = _adversary(benchmark, index, tick)
    cells = _cells(benchmark, dataset, index, methods, attacks, metrics, adversary)
    return Plan(benchmark, dataset, index, methods, attacks, metrics, tuple(cells), adversary)


def _comparisons(benchmark: Benchmark) -> tuple[Metric, ...]:
    """The comparisons of edits that protections are judged by."""
    from .editing import similarities

    if benchmark.editing is None:
        return ()
    asked = benchmark.editing
    found: list[Metric] = []
    for ref in asked.editors:
        found += similarities(ref.model_dump(), list(asked.prompts), asked.seeds, list(asked.measures))
    return tuple(found)


def _adversary(benchmark: Benchmark, index: Index, tick: Tick | None) -> tuple[Dataset, Index] | None:
    """The adversaries' dataset, which must not share a source with the images that are judged."""
    if benchmark.adversary is None:
        return None
    dataset = cast("Dataset", benchmark.adversary.create("dataset"))
    found = dataset.index(tick)
    shared = sorted({record.source for record in found.records} & {record.source for record in index.records})
    if shared:
        raise DatasetError(
            f"adversary: {len(shared)} of its sources are also in the dataset, such as '{shared[0]}': adversaries hold "
            "other images than those that are judged"
        )
    return dataset, found


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
    adversary: tuple[Dataset, Index] | None,
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
    held = None if adversary is None else [adversary[0].spec().id, adversary[1].digest]
    cells = []

    def add(
        arm: Literal["marked", "unmarked"], maker: int | None, attack: int, observer: Component, i: int, m: int
    ) -> None:
        by = None if maker is None else methods[maker]
        target = m if attacks[attack].knowledge else None
        involved = [c for c in (by, attacks[attack], observer) if c is not None]
        reason = next((f"{c.label}: {missing[id(c)]}" for c in involved if missing[id(c)]), None)
        role: Literal["scorer", "metric"] = "scorer" if isinstance(observer, Method) else "metric"
        reason = reason or _pointless(attacks[attack], observer, by)
        reason = reason or _out_of_reach(benchmark, attacks[attack], methods[m], adversary)
        coordinates = {
            **common,
            "arm": arm,
            "maker": None if by is None else specs[id(by)],
            "key": benchmark.key if maker is not None else None,
            "attack": specs[id(attacks[attack])],
            "observer": specs[id(observer)],
        }
        if target is not None:
            coordinates |= {"target": specs[id(methods[m])], "adversary": held, "key": benchmark.key}
        cells.append(Cell(identity("cell", coordinates), arm, maker, attack, role, i, reason, target))

    for a in range(len(attacks)):
        if any(isinstance(method, Protection) for method in methods):
            _protected(attacks[a], methods, metrics, partial(add, attack=a))
            continue
        for m, method in enumerate(methods):
            own = isinstance(method, Watermark) and method.counterparts == "own"
            # Where nothing is marked, a method that takes no images reads those of the dataset.
            own = own and ("marked" in benchmark.arms or not getattr(method, "invents", False))
            # Forgers mark images that the method never touched; an attacked model makes its own unmarked ones.
            own = (own and attacks[a].family != "forgery") or isinstance(attacks[a], ModelAttack)
            add("unmarked", m if own else None, a, method, m, m)
            if attacks[a].family == "forgery":
                for q, metric in enumerate(metrics):
                    add("unmarked", None, a, metric, q, m)
                continue
            if "marked" not in benchmark.arms:
                continue
            add("marked", m, a, method, m, m)
            for q, metric in enumerate(metrics):
                add("marked", m, a, metric, q, m)
    return cells


def _protected(
    attack: Attack, methods: tuple[Method, ...], metrics: tuple[Metric, ...], add: Callable[..., None]
) -> None:
    """The cells of protections under a purifier: clean images and protected ones, both against the clean ones."""
    for q, metric in enumerate(metrics):
        # How far two draws differ is asked of clean images alone.
        if not metric.floor or attack.name == "identity":
            add("unmarked", None, observer=metric, i=q, m=0)
        if not metric.floor:
            for m in range(len(methods)):
                add("marked", m, observer=metric, i=q, m=m)


_OFFERED = frozenset(HANDLES) - {"queries", "detector", "keys"}
"""What this protocol gives to adversaries."""


def _out_of_reach(
    benchmark: Benchmark, attack: Attack, method: Method, adversary: tuple[Dataset, Index] | None
) -> str | None:
    """Why an attack cannot be given what it must know of a method."""
    if not attack.knowledge:
        return None
    refused = attack.knowledge - _OFFERED
    if refused:
        return f"{attack.label} needs access to {', '.join(sorted(refused))}, which this protocol does not give"
    if not isinstance(method, Watermark):
        return f"{attack.label} attacks a watermark; {method.label} is a {method.role}"
    if isinstance(attack, ModelAttack) and attack.part not in method.parts:
        return f"{method.label} has no {attack.part} that makes the images, so {attack.label} has nothing to attack"
    if attack.knowledge & {"copies", "other-models"}:
        count = len(method.users) if method.users is not None else 2**method.bits
        if attack.colluders > count or not method.bits:
            return f"{attack.label}: {method.label} knows {count if method.bits else 1} different users"
    if "marked-samples" in attack.knowledge and benchmark.key == "per-image" and method.bits:
        return f"{attack.label} needs many images with one key: set key to fixed, or give it"
    wanted = attack.holdings
    if wanted and adversary is None:
        return f"{attack.label} needs {wanted} images that the adversary holds: name a dataset as 'adversary'"
    if adversary is not None and wanted > len(adversary[1].records):
        return f"{attack.label} needs {wanted} images, the adversary's dataset holds {len(adversary[1].records)}"
    return None


def _pointless(attack: Attack, observer: Component, maker: Method | None) -> str | None:
    """Why a cell cannot say anything, whatever the images."""
    if maker is not None and not isinstance(maker, Watermark | Protection):
        return f"{maker.label} marks nothing: a {maker.role} has no marked images"
    if isinstance(observer, Metric) and not attack.aligned:
        return f"not comparable pixel by pixel after {attack.label}"
    if isinstance(observer, Method):
        return observer.refuses(attack.name)
    return None
