"""The speed of the statistics of scores: ``python -m waterproof.bench.speed_roc``. Prints a table; asserts nothing.

The same scores go through scikit-learn and through this package, each call in a process of its own. Seconds are the
best of some repeats; the memory is what the first call needed at its peak beyond the scores themselves (and, for
scikit-learn, beyond the labels), its result included.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.seeds import Seed
from .statistics.roc import auc, roc, tpr_at_fpr
from .statistics.streams import ScoreCounts, TprAtFpr

if TYPE_CHECKING:
    from collections.abc import Callable

    from .statistics.domain import FloatArray
    from .statistics.tally import Scores

_BITS = 48
_ALPHA = 1e-3
_CHUNK = 1_000_000
_RESOLUTION = 1e-3


@dataclass(frozen=True, slots=True)
class Cost:
    """What a call took.

    Attributes:
        seconds: the best of the repeats.
        peak: bytes needed at the peak of the first call; NaN where the system does not tell (other than Linux).
        points: points of the curve that it returned; 0 if it returned no curve.
    """

    seconds: float
    peak: float
    points: int


def drawn(kind: str, count: int) -> tuple[Scores, Scores]:
    """``count // 2`` positives and as many negatives: ``"real"``, or ``"bits"`` (matching bits of 48, int64)."""
    draws = Seed.root(0).child("speed of roc", kind).numpy()
    half = count // 2
    if kind == "bits":
        return draws.binomial(_BITS, 0.7, half), draws.binomial(_BITS, 0.5, half)
    positives, negatives = draws.standard_normal(half), draws.standard_normal(half)
    positives += 1
    return positives, negatives


def _ours(task: str, positives: Scores, negatives: Scores) -> Callable[[], int]:
    def counted() -> int:
        counts = ScoreCounts(_BITS)
        for start in range(0, positives.size, _CHUNK):
            counts.add(positives[start : start + _CHUNK], negatives[start : start + _CHUNK])
        counts.auc()
        counts.tpr_at_fpr(_ALPHA)
        return counts.roc().thresholds.size

    def streamed() -> int:
        stream = TprAtFpr(_ALPHA, negatives.size)
        for add, scores in ((stream.add_negatives, negatives), (stream.add_positives, positives)):
            for start in range(0, scores.size, _CHUNK):
                add(scores[start : start + _CHUNK])
        stream.point()
        return 0

    calls: dict[str, Callable[[], int]] = {
        "roc": lambda: roc(positives, negatives).thresholds.size,
        "corners": lambda: roc(positives, negatives).thinned().thresholds.size,
        "plot": lambda: roc(positives, negatives).thinned(_RESOLUTION).thresholds.size,
        "auc": lambda: 0 * auc(positives, negatives).n,
        "tpr": lambda: 0 * bool(tpr_at_fpr(positives, negatives, _ALPHA)),
        "chunks": counted if positives.dtype.kind == "i" else streamed,
    }
    return calls[task]


def _theirs(task: str, positives: Scores, negatives: Scores) -> Callable[[], int]:
    from sklearn.metrics import roc_auc_score, roc_curve

    scores = np.concatenate([positives, negatives])
    labels = np.repeat(np.array([1, 0]), [positives.size, negatives.size])

    def curve(dropped: bool) -> tuple[FloatArray, FloatArray, FloatArray]:
        found: tuple[FloatArray, FloatArray, FloatArray] = roc_curve(labels, scores, drop_intermediate=dropped)
        return found

    def looked_up() -> int:
        fpr, tpr, _ = curve(False)
        return 0 * int(tpr[np.searchsorted(fpr, _ALPHA, side="right") - 1])

    def both() -> int:
        roc_auc_score(labels, scores)
        fpr, tpr, _ = curve(False)
        return int(fpr.size + 0 * tpr[np.searchsorted(fpr, _ALPHA, side="right") - 1])

    calls: dict[str, Callable[[], int]] = {
        "roc": lambda: curve(False)[0].size,
        "corners": lambda: curve(True)[0].size,
        "plot": lambda: curve(True)[0].size,
        "auc": lambda: 0 * int(roc_auc_score(labels, scores)),
        "tpr": looked_up,
        "chunks": both if positives.dtype.kind == "i" else looked_up,
    }
    return calls[task]


def cost(ours: bool, task: str, kind: str, count: int, repeats: int) -> Cost:
    """Takes one call's time and memory in this process, which should have done nothing else before."""
    maker = _ours if ours else _theirs
    # Imports and lazily made tables are no part of the call.
    maker(task, *drawn(kind, 20_000))()
    call = maker(task, *drawn(kind, count))
    before = _reset_peak()
    started = time.perf_counter()
    points = call()
    seconds = [time.perf_counter() - started]
    peak = _status("VmHWM") - before
    for _ in range(repeats - 1):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return Cost(min(seconds), peak, points)


def _reset_peak() -> float:
    """Sets the peak of this process's resident memory back to what it holds now, in bytes."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")
    return _status("VmRSS")


def _status(field: str) -> float:
    path = Path("/proc/self/status")
    if not path.exists():
        return math.nan
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return float(lines[field].split()[0]) * 1024


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--scores", type=float, default=1e7, help="scores of both classes together")
    parser.add_argument("--repeats", type=int, default=3, help="calls of which the fastest counts")
    given = parser.parse_args()
    count = int(given.scores)
    rows = (
        ("roc", "every threshold", "roc_curve, all"),
        ("corners", "thinned: corners", "roc_curve, drop_intermediate"),
        ("plot", f"thinned({_RESOLUTION:g})", "roc_curve, drop_intermediate"),
        ("auc", "auc and its interval", "roc_auc_score, no interval"),
        ("tpr", f"tpr_at_fpr({_ALPHA:g})", "roc_curve, all, and a look-up"),
    )
    streams = {
        "real": ("chunks", "TprAtFpr, chunks", "roc_curve, all, and a look-up"),
        "bits": ("chunks", "ScoreCounts: all three", "both of the above"),
    }
    for kind, words in (("real", "real-valued scores, float64"), ("bits", f"integers 0..{_BITS}, int64")):
        say(f"{count:.0e} {words}, half of them positives")
        say(f"  {'here':<24}{'scikit-learn':<32}{'seconds':^18}{'ratio':>7}{'MiB':^16}{'points':^20}")
        for task, here, there in (*rows, streams[kind]):
            mine, other = (_alone(ours, task, kind, count, given.repeats) for ours in (True, False))
            say(
                f"  {here:<24}{there:<32}{mine.seconds:8.3f} {other.seconds:8.3f} {other.seconds / mine.seconds:7.0f}"
                f"{mine.peak / 2**20:8.0f} {other.peak / 2**20:7.0f} {mine.points or '':>9} {other.points or '':>9}"
            )
        say("")


def _alone(ours: bool, task: str, kind: str, count: int, repeats: int) -> Cost:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(cost, ours, task, kind, count, repeats).result()


def say(text: str) -> None:
    """Prints a line at once."""
    import sys

    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
