"""What an attack costs in image quality, and what it leaves of the mark for that: WAVES' score Q and its curves.

An et al., "WAVES: Benchmarking the Robustness of Image Watermarks", ICML 2024. A cell is an attack at one strength on
one dataset, against one method. FID and CLIP-FID are properties of a cell, so there is no Q of one image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import StatisticsError, nearest
from .domain import finite, open_unit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Scale:
    """How the mean of one metric over a cell enters Q: ``weight * (0.8 * (x - a) / (b - a) + 0.1)``.

    Attributes:
        metric: its label.
        a: the mean that counts 0.1 (little lost); the 10 % point over all removal cells of WAVES.
        b: the mean that counts 0.9 (much lost); the 90 % point. Below ``a`` where higher means are better.
        weight: its share of Q.
    """

    metric: str
    a: float
    b: float
    weight: float


SCALES: tuple[Scale, ...] = (
    Scale("fid", 1.20183, 53.40250, 1 / 8),
    Scale("clip-fid", 0.28221, 19.01775, 1 / 8),
    Scale("psnr", 41.97327, 12.14651, 1 / 12),
    Scale("ssim", 0.97944, 0.32231, 1 / 12),
    Scale("nmi", 1.70687, 1.06458, 1 / 12),
    Scale("lpips", 0.01796, 0.62057, 1 / 4),
    Scale("aesthetics", 0.02420, 1.82333, 1 / 8),
    Scale("artifacts", 0.00190, -0.58100, 1 / 8),
)
"""The frozen constants. FID is the legacy variant, LPIPS that of AlexNet, NMI the normalised mutual information;
``aesthetics`` and ``artifacts`` are the score of the clean image minus that of the attacked one."""

METRICS: tuple[str, ...] = tuple(scale.metric for scale in SCALES)
"""The eight metrics that make up Q."""


@dataclass(frozen=True, slots=True)
class Degradation:
    """The normalised quality degradation of a cell.

    Attributes:
        value: about 0.1 where little and 0.9 where much is lost; not clipped, values up to 1.44 occur in WAVES. NaN
            where ``note`` says why there is none.
        name: ``Q`` if all eight metrics are there, else ``partial Q over ... (weights re-normalised)``; scores of
            different names do not compare.
        missing: the metrics that are not there.
        note: what else a reader must know; empty if nothing.
    """

    value: float
    name: str
    missing: tuple[str, ...]
    note: str = ""


def degradation(means: Mapping[str, float]) -> Degradation:
    """Q of a cell from the means of its metrics, or a partial score over those that are there.

    Args:
        means: mean of each metric over the cell's images, by the names in :data:`METRICS`. Leave out what was not
            measured. The mean PSNR may be infinite (an image is untouched): then there is no score, ``note`` says so.

    Raises:
        StatisticsError: there is no metric, an unknown one, or a mean is NaN or infinite.

    Example:
        >>> score = degradation({"psnr": 12.14651, "ssim": 0.32231, "lpips": 0.62057})
        >>> round(score.value, 12), score.name
        (0.9, 'partial Q over psnr, ssim, lpips (weights re-normalised)')
    """
    unknown = [metric for metric in means if metric not in METRICS]
    if unknown:
        raise StatisticsError(f"{unknown[0]!r} is not a metric of Q.{nearest(unknown[0], METRICS)}")
    used = [scale for scale in SCALES if scale.metric in means]
    if not used:
        raise StatisticsError(f"no metric is given; a degradation needs at least one of {', '.join(METRICS)}")
    untouched = means.get("psnr") == math.inf
    for metric, mean in means.items():
        if not math.isfinite(mean) and not (metric == "psnr" and untouched):
            raise StatisticsError(
                f"the mean {metric} of the cell is {mean}; leave out the images or the metric that failed"
            )
    missing = tuple(metric for metric in METRICS if metric not in means)
    names = ", ".join(scale.metric for scale in used)
    name = f"partial Q over {names} (weights re-normalised)" if missing else "Q"
    if untouched:
        note = "the mean PSNR is infinite: at least one image is untouched, and a score linear in PSNR has no value"
        return Degradation(math.nan, name, missing, note)
    total = sum(scale.weight * _normalised(scale, float(means[scale.metric])) for scale in used)
    return Degradation(total / sum(scale.weight for scale in used), name, missing)


@dataclass(frozen=True, slots=True)
class Curve:
    """An attack against a method over the attack's strengths; the order of the strengths does not matter.

    Attributes:
        degradation: quality lost at each strength, finite, lower is better.
        performance: what is left of the mark at each strength, 0..1.
        task: what the performance measures, such as ``detection``; only equal tasks compare.
        score: the name of the degradation, see :class:`Degradation`; only equal names compare.

    Raises:
        StatisticsError: there is no strength, lengths differ, or a number is out of range.
    """

    degradation: tuple[float, ...]
    performance: tuple[float, ...]
    task: str
    score: str = "Q"

    def __post_init__(self) -> None:
        lost = finite(self.degradation, "degradations of the curve")
        left = finite(self.performance, "performances of the curve")
        if lost.size != left.size:
            raise StatisticsError(f"the curve has {lost.size} degradations for {left.size} performances; give pairs")
        if left.min() < 0 or left.max() > 1:
            raise StatisticsError(f"performances lie in 0..1; the curve's are {left.min():g} to {left.max():g}")
        if not self.task:
            raise StatisticsError("the curve does not say what its performance measures; name the task")
        object.__setattr__(self, "degradation", tuple(lost.tolist()))
        object.__setattr__(self, "performance", tuple(left.tolist()))

    @property
    def mean_degradation(self) -> float:
        """Avg Q: the plain mean over strengths."""
        return math.fsum(self.degradation) / len(self.degradation)

    @property
    def mean_performance(self) -> float:
        """Avg P: the plain mean over strengths."""
        return math.fsum(self.performance) / len(self.performance)


def over_datasets(curves: Sequence[Curve]) -> Curve:
    """The mean curve of one attack over datasets, strength by strength.

    Args:
        curves: one for each dataset, with the same strengths in the same order.

    Raises:
        StatisticsError: there is none, or they differ in strengths, task or score.

    Example:
        >>> over_datasets([Curve((0.1, 0.3), (1.0, 0.6), "detection"), Curve((0.3, 0.5), (0.8, 0.2), "detection")])
        Curve(degradation=(0.2, 0.4), performance=(0.9, 0.4), task='detection', score='Q')
    """
    task, score = agreed(curves)
    counts = sorted({len(curve.degradation) for curve in curves})
    if len(counts) > 1:
        raise StatisticsError(f"the datasets have {counts[0]} and {counts[-1]} strengths; average equal strengths only")
    lost = np.mean([curve.degradation for curve in curves], axis=0)
    left = np.mean([curve.performance for curve in curves], axis=0)
    return Curve(tuple(lost), tuple(left), task, score)


def at_performance(curve: Curve, target: float) -> float:
    """Quality lost where performance falls to ``target``, linear between the strengths next to it in performance.

    The points are sorted by performance first: strength numbers may run downwards (JPEG quality), and performance need
    not be monotone in them. The weakest strength is the one that leaves the most performance. Of strengths that leave
    the same performance only the one with the lowest degradation counts, as in WAVES' reference values. That favours
    the attack where several strengths leave everything: the line then starts at the weakest of them.

    Args:
        curve: of an attack against a method.
        target: strictly between 0 and 1.

    Returns:
        The degradation; +inf if performance never falls that low, -inf if even the weakest strength is below.

    Raises:
        StatisticsError: ``target`` is out of range.

    Example:
        >>> falling = Curve((0.5, 0.1, 0.3), (0.2, 1.0, 0.8), "detection")
        >>> round(at_performance(falling, 0.9), 6), at_performance(falling, 0.1)
        (0.2, inf)
    """
    open_unit(target, "target")
    lost, left = np.array(curve.degradation), np.array(curve.performance)
    if left.max() < target:
        return -math.inf
    if left.min() > target:
        return math.inf
    order = np.lexsort((lost, left))
    levels, first = np.unique(left[order], return_index=True)
    return float(np.interp(target, levels, lost[order][first]))


def agreed(curves: Sequence[Curve]) -> tuple[str, str]:
    """The task and the name of the score, if all curves have the same.

    Raises:
        StatisticsError: there is no curve, or they differ.
    """
    if not curves:
        raise StatisticsError("there is no curve; at least one is needed")
    for what in ("task", "score"):
        found = sorted({str(getattr(curve, what)) for curve in curves})
        if len(found) > 1:
            raise StatisticsError(f"the curves differ in {what}: {' and '.join(found)}; compare equal ones only")
    return curves[0].task, curves[0].score


def _normalised(scale: Scale, mean: float) -> float:
    return 0.8 * (mean - scale.a) / (scale.b - scale.a) + 0.1
