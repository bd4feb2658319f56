"""What a run would take, from a short trial of its own components."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from ..core.seeds import Seed
from .engine import one_thread
from .shard import apply_attack, make_pair, score

if TYPE_CHECKING:
    from ..core.images import Images
    from .plan import Plan

_BYTES_PER_ROW = 40
_SLOW_ATTACK = 0.5
"""Seconds an image from which an attack is timed after one method only."""
_SLOW_IMAGE = 10.0
"""Seconds an image from which the first round, with loading, says enough."""


def estimate(plan: Plan, images: int = 2) -> str:
    """Times every component on a few images and says how many cells, images, minutes and megabytes a run takes.

    Args:
        plan: the plan.
        images: how many images to try.
    """
    seconds, problems = _per_image(plan, images)
    count = len(plan.records)
    runtime = plan.benchmark.runtime
    workers = 1 if runtime.engine == "inline" else runtime.workers or os.cpu_count() or 1
    active = [cell for cell in plan.cells if cell.skipped is None]
    bits = {i: getattr(m, "bits", 0) for i, m in enumerate(plan.methods)}
    size = sum(_BYTES_PER_ROW + 4 * (bits[c.index] if c.observer == "scorer" else 0) for c in active) * count
    minutes = seconds * count / workers / 60
    lines = [
        f"{plan.benchmark.name}: {count} images, {len(plan.methods)} methods, {len(plan.attacks)} attacks",
        f"cells: {len(plan.cells)} planned, {len(plan.cells) - len(active)} skipped with a reason",
        f"time: about {minutes:.1f} minutes with {workers} workers ({seconds:.3f} core-seconds an image)",
        f"disk: about {size / 1e6:.0f} MB",
    ]
    knowing = sum(cell.target is not None for cell in active)
    if knowing:
        lines.append(f"not in this time: {knowing} cells of attacks that learn from samples, copies or the model first")
    return "\n".join(lines + [f"trial: {problem}" for problem in problems])


def _per_image(plan: Plan, images: int) -> tuple[float, list[str]]:
    """Core-seconds an image, and what went wrong.

    A first round on one image loads networks and libraries; where that is quick, a second one on ``images`` counts.
    """
    problems: list[str] = []
    root = Seed.root(plan.benchmark.seed)
    each = 0.0
    with one_thread():
        # Other images in the second round: latents and edits of the first one are remembered.
        for records in (plan.records[:1], plan.records[1 : 1 + images] or plan.records[:1]):
            started = time.perf_counter()
            groups, rejected = plan.dataset.load(records)
            loading = time.perf_counter() - started
            problems += [f"{r.id}: {r.reason}" for r in rejected]
            trials = [_trial(plan, group, root) for group in groups]
            problems += [problem for trial in trials for problem in trial[1]]
            each = (loading + sum(trial[0] for trial in trials)) / max(1, sum(len(group) for group in groups))
            if each > _SLOW_IMAGE:
                break
    return each, sorted(set(problems))


def _trial(plan: Plan, group: Images, root: Seed) -> tuple[float, list[str]]:
    """Seconds of all work on a group, and problems. A slow attack is timed once and counted for every method."""
    problems: list[str] = []
    slow: dict[int, float] = {}
    started, not_done = time.perf_counter(), 0.0
    wanted = {c.work for c in plan.cells if c.skipped is None}
    makers = sorted({work[0] for work in wanted}, key=lambda m: -1 if m is None else m)
    for maker in makers:
        try:
            source = group if maker is None else make_pair(plan, plan.methods[maker], group).marked
        except Exception as error:
            problems.append(f"{plan.methods[maker or 0].label}: {error}")
            continue
        prepared = {i: metric.prepare(source) for i, metric in enumerate(plan.metrics) if not metric.unavailable()}
        for attack in sorted({w[2] for w in wanted if w[0] == maker and w[3] is None}):
            if attack in slow:
                not_done += slow[attack]
                continue
            before = time.perf_counter()
            try:
                _cells(plan, attack, apply_attack(plan, attack, source, root), maker, prepared)
            except Exception as error:
                problems.append(f"{plan.attacks[attack].label}: {error}")
            took = time.perf_counter() - before
            # Of unmarked images every method reads: that says nothing of one method's.
            if maker is not None and took > _SLOW_ATTACK * len(group):
                slow[attack] = took
    return time.perf_counter() - started + not_done, problems


def _cells(plan: Plan, attack: int, attacked: Images, maker: int | None, prepared: dict[int, Any]) -> None:
    """Everything that looks at one attack's images."""
    for cell in plan.cells:
        if cell.skipped is not None or cell.work[0] != maker or cell.attack != attack:
            continue
        if cell.observer == "scorer":
            score(plan.methods[cell.index], attacked)
        else:
            state = prepared[cell.index]
            plan.metrics[cell.index].compare(plan.attacks[attack].undo(attacked), state)
