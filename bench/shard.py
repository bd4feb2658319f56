"""The work on one shard of images: load once, attack once, let every observer look. The same under every engine."""

from __future__ import annotations

import signal
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..core import effort
from ..core.errors import ContractError, UserError
from ..core.identity import canonical_json
from ..core.images import Images, Record
from ..core.seeds import Seed
from ..datasets.base import Rejected
from .adversary import Adversary
from .keys import key_bits
from .methods.base import Detector, Evidence, Method, Pair, Protection, Watermark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .metrics import Metric
    from .plan import Cell, Plan


@dataclass(slots=True)
class Row:
    """What one observer saw in one image, or why it saw nothing.

    Attributes:
        image: the image's id.
        status: ``ok``, ``failed`` or ``unreadable``.
        logits: bit logits, for scorers with a payload.
        value: a detector's score, or a metric's value.
        error: one line, for rows that are not ok.
    """

    image: str
    status: str = "ok"
    logits: np.ndarray | None = None
    value: float | None = None
    error: str | None = None


@dataclass(slots=True)
class Finished:
    """One cell of one shard, complete.

    Attributes:
        cell: the cell.
        rows: one for each image of the shard.
        traceback: of the first failure.
    """

    cell: Cell
    rows: list[Row]
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """Time that one stage took on one shard; kept apart from results, because it is never the same twice.

    Attributes:
        stage: ``load``, ``mark``, ``attack``, ``score`` or ``measure``.
        name: label of the component.
        images: number of images.
        seconds: wall-clock seconds in this process.
        evaluations: of a network on one image; what is remembered is not evaluated again.
        backwards: backward passes through a network for one image, likewise.
        peak_mb: the most memory that the process has held until then, MB.
        objectives: by image, the objective of its optimisation: (step, value) pairs.
    """

    stage: str
    name: str
    images: int
    seconds: float
    evaluations: int = 0
    backwards: int = 0
    peak_mb: float | None = None
    objectives: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


class CellTimeoutError(UserError):
    """A cell took longer than its limit on one shard."""


def run_shard(
    plan: Plan,
    records: tuple[Record, ...],
    todo: Iterable[Cell],
    emit: Callable[[Finished], None],
    adversary: Adversary | None = None,
) -> list[Cost]:
    """Computes the cells in ``todo`` for the images ``records`` and hands over each as soon as it is complete.

    An exception in a component fails the cells that depend on it and nothing else.

    Args:
        plan: the plan.
        records: the shard's images.
        todo: cells.
        emit: takes each finished cell.
        adversary: what attacks with knowledge have learnt so far; kept by a worker from shard to shard.

    Returns:
        what each stage cost.
    """
    wanted: dict[tuple[int, str], dict[tuple[int, int | None], list[Cell]]] = {}
    for cell in todo:
        maker = -1 if cell.maker is None else cell.maker
        wanted.setdefault((maker, cell.arm), {}).setdefault((cell.attack, cell.target), []).append(cell)
    if not wanted:
        return []
    shard = _Shard(plan, records, adversary or Adversary(plan, None))
    groups = shard.load()
    made: dict[int, list[_Item]] = {}
    for (maker, arm), attacks in sorted(wanted.items()):
        if maker not in made:
            # Only one maker's images are kept: memory is bounded by the shard, not by the number of methods.
            made = {maker: [item for group in groups for item in shard.make(maker, group)]}
        states: _States = {}
        for cells in attacks.values():
            for done in shard.attack_and_observe(made[maker], arm, cells, states):
                emit(done)
    shard.adversary.forget_images()
    return shard.costs


_States = dict[tuple[int, int, bool], object]
"""What metrics prepared for a reference: by item, metric, and whether the reference is the unmarked image."""


@dataclass(frozen=True, slots=True)
class _Item:
    """Images that go through the stages together: a group of one size, or one image of a group in which one failed.

    Attributes:
        given: the dataset's images.
        pair: marked and unmarked images, or what went wrong when they were made.
        attacked: the images under an attack, or what went wrong.
    """

    given: Images
    pair: Pair | Exception
    attacked: Images | Exception | None = None

    @property
    def records(self) -> tuple[Record, ...]:
        """The records of the images."""
        return self.given.records

    def singles(self) -> list[_Item]:
        """The images one by one."""
        pair, attacked = self.pair, self.attacked
        return [
            _Item(
                self.given.take([i]),
                pair if isinstance(pair, Exception) else Pair(pair.marked.take([i]), pair.unmarked.take([i])),
                attacked.take([i]) if isinstance(attacked, Images) else attacked,
            )
            for i in range(len(self.records))
        ]


def _isolates(error: Exception, images: int) -> bool:
    """Whether to try a failed group again image by image, so that a bad image fails alone, in shards of any size."""
    return images > 1 and not isinstance(error, CellTimeoutError)


class _Shard:
    def __init__(self, plan: Plan, records: tuple[Record, ...], adversary: Adversary) -> None:
        self.plan = plan
        self.records = records
        self.adversary = adversary
        self.unreadable: dict[str, str] = {}
        self.root = Seed.root(plan.benchmark.seed)
        self.limit = plan.benchmark.runtime.cell_seconds
        self.costs: list[Cost] = []

    @contextmanager
    def timed(self, stage: str, name: str, images: int) -> Iterator[None]:
        started = time.perf_counter()
        with effort.measured() as spent:
            try:
                yield
            finally:
                taken = (spent.evaluations, spent.backwards, effort.peak_memory(), spent.objectives)
                self.costs.append(Cost(stage, name, images, time.perf_counter() - started, *taken))

    def load(self) -> list[Images]:
        """The shard's images in groups of one size; what cannot be loaded is remembered with its reason."""
        with self.timed("load", self.plan.dataset.name, len(self.records)):
            try:
                groups, rejected = self.plan.dataset.load(self.records)
            except Exception as error:
                groups, rejected = [], [Rejected(r.id, describe_error(error)) for r in self.records]
        self.unreadable = {item.id: item.reason for item in rejected}
        return groups

    def make(self, maker: int, images: Images) -> list[_Item]:
        """Marked and unmarked images of one group; image by image where the group fails."""
        if maker < 0:
            return [_Item(images, Pair(images, images))]
        method = self.plan.methods[maker]
        try:
            with self.timed("mark", method.label, len(images)), time_limit(self.limit, f"marking with {method.label}"):
                return [_Item(images, make_pair(self.plan, method, images))]
        except Exception as error:
            if _isolates(error, len(images)):
                return [item for i in range(len(images)) for item in self.make(maker, images.take([i]))]
            return [_Item(images, error)]

    def attack_and_observe(self, made: list[_Item], arm: str, cells: list[Cell], states: _States) -> Iterator[Finished]:
        """Attacks every item once, then lets each cell's observer look at the result; cells share attack and target."""
        attack, target = cells[0].attack, cells[0].target
        attacked = [item for one in made for item in self._attack(one, arm, attack, target)]
        for cell in cells:
            done = Finished(cell, [])
            for number, item in enumerate(attacked):
                # States belong to the groups as they were made; where one was taken apart, they are not kept.
                self._look(cell, item, states if len(attacked) == len(made) else {}, number, done)
            self._complete(done)
            yield done

    def _attack(self, item: _Item, arm: str, index: int, target: int | None) -> list[_Item]:
        if isinstance(item.pair, Exception):
            return [item]
        source = item.pair.marked if arm == "marked" else item.pair.unmarked
        attack = self.plan.attacks[index]
        try:
            if target is not None:
                return [replace(item, attacked=self._knowing(item, arm, index, target))]
            with self.timed("attack", attack.label, len(source)), time_limit(self.limit, f"attack {attack.label}"):
                return [replace(item, attacked=apply_attack(self.plan, index, source, self.root))]
        except Exception as error:
            if _isolates(error, len(source)):
                return [done for single in item.singles() for done in self._attack(single, arm, index, target)]
            return [replace(item, attacked=error)]

    def _knowing(self, item: _Item, arm: str, index: int, target: int) -> Images:
        """The images after an attack that knows something of ``target``; what it learns takes the time it takes."""
        if isinstance(item.pair, Exception):
            raise item.pair
        seed = attack_seed(self.plan, index, self.root)
        with self.timed("attack", self.plan.attacks[index].label, len(item.records)):
            attacked = self.adversary.attack(index, target, item.given, item.pair, arm, seed, self.timed)
        _check_ids(self.plan.attacks[index].label, attacked, item.given)
        return attacked

    def _look(self, cell: Cell, item: _Item, states: _States, number: int, done: Finished) -> None:
        """Adds an observer's rows for one item to ``done``; image by image where the item fails."""
        try:
            if isinstance(item.pair, Exception):
                raise item.pair
            if not isinstance(item.attacked, Images):
                raise item.attacked or ContractError("the images were not attacked")
            done.rows += self._observe(cell, item.pair, item.attacked, states, number)
        except Exception as error:
            if _isolates(error, len(item.records)):
                for single in item.singles():
                    self._look(cell, single, {}, 0, done)
                return
            done.rows += _failed_rows(item.records, error)
            done.traceback = done.traceback or "".join(traceback.format_exception(error))

    def _observe(self, cell: Cell, pair: Pair, images: Images, states: _States, number: int) -> list[Row]:
        if cell.observer == "scorer":
            method = self.plan.methods[cell.index]
            with self.timed("score", method.label, len(images)), time_limit(self.limit, f"reading {method.label}"):
                return score(method, images)
        attack, metric = self.plan.attacks[cell.attack], self.plan.metrics[cell.index]
        # What is left of a protection is measured against the clean image.
        protected = cell.maker is not None and isinstance(self.plan.methods[cell.maker], Protection)
        against_input = attack.name == "identity" or protected
        key = (number, cell.index, against_input)
        with self.timed("measure", metric.label, len(images)), time_limit(self.limit, f"metric {metric.label}"):
            if key not in states:
                states[key] = metric.prepare(pair.unmarked if against_input else pair.marked)
            return _measure(metric, attack.undo(images), states[key])

    def _complete(self, done: Finished) -> None:
        """Puts the rows into the shard's order and adds a row for every image that could not be loaded."""
        rows = {row.image: row for row in done.rows}
        for record in self.records:
            if record.id not in rows:
                reason = self.unreadable.get(record.id, "the dataset did not return it")
                rows[record.id] = Row(record.id, "unreadable", error=reason)
        done.rows = [rows[record.id] for record in self.records]


def _failed_rows(records: tuple[Record, ...], error: Exception) -> list[Row]:
    text = describe_error(error)
    return [Row(record.id, "failed", error=text) for record in records]


def describe_error(error: BaseException) -> str:
    """One line for an exception: its message if it is a UserError, else type and message."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:500]


def keys_for(plan: Plan, method: Watermark, images: Images) -> torch.Tensor:
    """The payload of each image under the benchmark's key policy: bool ``[B, k]``."""
    policy, seed = plan.benchmark.key, plan.benchmark.seed
    users = method.users
    return torch.from_numpy(np.stack([key_bits(policy, seed, method.bits, r.id, users) for r in images.records]))


def make_pair(plan: Plan, method: Method, images: Images) -> Pair:
    """Marks or protects one group and checks what comes back."""
    if isinstance(method, Protection):
        drawn = Seed.root(plan.benchmark.seed).child("protect", plan.dataset.name, method.name)
        return _checked(method, Pair(method.protect(images, drawn), images), images)
    if not isinstance(method, Watermark):
        raise ContractError(f"{method.label} is no watermark: it cannot mark images")
    seed = Seed.root(plan.benchmark.seed).child("embed", plan.dataset.name, method.name)
    return _checked(method, method.mark(images, keys_for(plan, method, images), seed), images)


def _checked(method: Method, pair: Pair, images: Images) -> Pair:
    if not isinstance(pair, Pair) or not isinstance(pair.marked, Images) or not isinstance(pair.unmarked, Images):
        raise ContractError(f"{method.label}: marking must return Images")
    for side in (pair.marked, pair.unmarked):
        _check_ids(method.label, side, images)
    if pair.marked.size != pair.unmarked.size:
        raise ContractError(
            f"{method.label}: marked {pair.marked.size} and unmarked {pair.unmarked.size} differ in size"
        )
    return pair


def apply_attack(plan: Plan, index: int, images: Images, root: Seed) -> Images:
    """Attacks one group and checks what comes back."""
    attack = plan.attacks[index]
    attacked = attack.apply(images, attack_seed(plan, index, root))
    if not isinstance(attacked, Images):
        raise ContractError(f"{attack.label}: an attack must return Images, not {type(attacked).__name__}")
    _check_ids(attack.label, attacked, images)
    return attacked


def attack_seed(plan: Plan, index: int, root: Seed) -> Seed:
    """The seed of an attack at its setting: the same for every method that meets it."""
    attack = plan.attacks[index]
    return root.child("attack", plan.dataset.name, attack.name, canonical_json(attack.identity_params()))


def _check_ids(label: str, got: Images, given: Images) -> None:
    if got.ids != given.ids:
        raise ContractError(f"{label}: returned {len(got)} images for {len(given)}, or changed their order")


def score(method: Method, images: Images) -> list[Row]:
    """Lets a method read a group and checks the evidence."""
    evidence = method.decode(images) if isinstance(method, Watermark) else _passive(method, images)
    count = len(images)
    if not isinstance(evidence, Evidence) or (evidence.logits is None) == (evidence.score is None):
        raise ContractError(f"{method.label}: a detector must return Evidence with logits or with a score")
    if evidence.logits is not None:
        logits = evidence.logits.detach().to("cpu", torch.float32).numpy()
        bits = method.bits if isinstance(method, Watermark) else logits.shape[-1]
        if logits.shape != (count, bits):
            raise ContractError(f"{method.label}: logits {list(logits.shape)}, expected [{count}, {bits}]")
        if not np.isfinite(logits).all():
            raise ContractError(f"{method.label}: NaN or infinite logits")
        return [Row(name, logits=row) for name, row in zip(images.ids, logits, strict=True)]
    values = np.asarray(evidence.score, dtype=np.float64)
    if values.shape != (count,):
        raise ContractError(f"{method.label}: score {list(values.shape)}, expected [{count}]")
    if not np.isfinite(values).all():
        raise ContractError(f"{method.label}: NaN or infinite scores")
    return [Row(name, value=float(v)) for name, v in zip(images.ids, values, strict=True)]


def _passive(method: Method, images: Images) -> Evidence:
    if not isinstance(method, Detector):
        raise ContractError(f"{method.label} scores nothing")
    return method.score(images)


def _measure(metric: Metric, images: Images, prepared: object) -> list[Row]:
    values = np.asarray(metric.compare(images, prepared), dtype=np.float64)
    if values.shape != (len(images),):
        raise ContractError(f"{metric.label}: values {list(values.shape)}, expected [{len(images)}]")
    if np.isnan(values).any():
        raise ContractError(f"{metric.label}: NaN")
    return [Row(name, value=float(v)) for name, v in zip(images.ids, values, strict=True)]


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raises :class:`CellTimeoutError` in the block after ``seconds``; 0 means no limit.

    Works in the main thread of a process on systems with interval timers (workers run there); elsewhere the block runs
    unlimited. Compiled code is interrupted when it next returns to Python.
    """
    usable = seconds > 0 and hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not usable:
        yield
        return

    def stop(_signal: int, _frame: object) -> None:
        raise CellTimeoutError(f"time limit: {what} took more than {seconds:g} s on one shard")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
