"""What work costs besides time: evaluations of networks, backward passes, memory, and the objective step by step.

Whoever does the work counts; whoever asked for it opens :func:`measured`. Nothing that is counted reaches a result.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST_POINTS = 200
"""Points of an objective's curve that are kept: its first, its last and others evenly between."""


@dataclass
class Effort:
    """What was spent.

    Attributes:
        evaluations: of a network on one image.
        backwards: backward passes through a network for one image.
        objectives: by image, (step, value) pairs.
    """

    evaluations: int = 0
    backwards: int = 0
    objectives: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


_current: ContextVar[Effort | None] = ContextVar("effort", default=None)
_tell: ContextVar[Callable[[str], None] | None] = ContextVar("tell", default=None)


@contextmanager
def measured() -> Iterator[Effort]:
    """Counts what is done in the block; an outer block then counts it as well.

    Example:
        >>> with measured() as effort:
        ...     count(evaluations=3)
        >>> effort.evaluations
        3
    """
    outer, inner = _current.get(), Effort()
    token = _current.set(inner)
    try:
        yield inner
    finally:
        _current.reset(token)
        if outer is not None:
            outer.evaluations += inner.evaluations
            outer.backwards += inner.backwards
            outer.objectives |= inner.objectives


def count(evaluations: int = 0, backwards: int = 0) -> None:
    """Adds to what is being measured, where something is."""
    current = _current.get()
    if current is not None:
        current.evaluations += evaluations
        current.backwards += backwards


def objective(image: str, step: int, steps: int, value: float) -> None:
    """Records the objective of an image's optimisation at a step from 0; at most :data:`MOST_POINTS` are kept.

    Args:
        image: the image's id.
        step: from 0.
        steps: how many there will be.
        value: of the objective.
    """
    current = _current.get()
    stride = -(-steps // MOST_POINTS)
    if current is not None and (step % stride == 0 or step == steps - 1):
        current.objectives.setdefault(image, []).append((step, value))


@contextmanager
def telling(tell: Callable[[str], None], every: float = 1.0) -> Iterator[None]:
    """Passes what :func:`note` says in the block on to ``tell``, at most once in ``every`` seconds."""
    last = -every

    def sometimes(text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every:
            last = now
            tell(text)

    token = _tell.set(sometimes)
    try:
        yield
    finally:
        _tell.reset(token)


def note(text: str) -> None:
    """Says what is at work, for a progress bar; cheap where nobody listens."""
    tell = _tell.get()
    if tell is not None:
        tell(text)


def peak_memory() -> float | None:
    """The most memory that this process has held so far, in MB; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (2**20 if sys.platform == "darwin" else 2**10)
