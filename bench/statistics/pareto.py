"""The generalised Pareto law: maximum likelihood, the region of laws that the data allow, and a test of fit.

Excesses Y over a start follow ``P(Y > y) = (1 + shape * y / scale) ** (-1 / shape)``. For each ``shape / scale``
the best shape is explicit (Grimshaw 1993), so that the likelihood is searched in one dimension, on grids that close in.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...core.seeds import Seed

if TYPE_CHECKING:
    from .domain import FloatArray

_DRAWS = 999
_LARGEST_DRAW = 200
_COARSE = np.concatenate([np.linspace(-14, -4, 12)[:-1], np.linspace(-4, 8, 49), np.linspace(8, 40, 25)[1:]])


def quantile(p: float, shape: float, scale: float) -> float:
    """The excess that is exceeded with probability ``p``."""
    log_p = math.log(p)
    return -scale * log_p if abs(shape * log_p) < 1e-9 else scale * math.expm1(-shape * log_p) / shape


def survival(excess: npt.NDArray[np.float64], theta: npt.ArrayLike, shape: npt.ArrayLike) -> FloatArray:
    """``P(Y > excess)`` for ``theta = shape / scale``; 0 beyond an end point. Neither is 0 exactly."""
    with np.errstate(divide="ignore"):
        growth = np.log1p(np.maximum(np.asarray(theta) * excess, -1.0))
    return np.asarray(np.exp(-growth / np.asarray(shape)))


def _profile(excesses: FloatArray, points: FloatArray) -> tuple[FloatArray, ...]:
    """The likelihood along ``theta = shape / scale`` (Grimshaw 1993): for each theta the best shape is explicit.

    Args:
        excesses: ``[r, k]``.
        points: ``[r, g]``, ``log(1 + theta * largest)``: below 0 the law has an end point.

    Returns:
        ``theta, best, cap, height, free``, ``[r, g]`` each: the best shape without regard to ``shape >= -1``; the
        factor on it at which the shape is -1 (infinite for positive theta); the log-likelihood per excess of the best
        shape that is allowed; and that of the best shape without regard to it.
    """
    largest = excesses.max(1, keepdims=True)
    product = np.expm1(points)
    # At theta = 0 everything is 0/0; this close to it the law is exponential to six digits.
    product = np.where(np.abs(product) < 1e-6, np.where(product < 0, -1e-6, 1e-6), product)
    theta = product / largest
    if len(excesses) < points.shape[1]:
        best = np.stack([np.log1p(np.outer(row, own)).mean(1) for row, own in zip(theta, excesses, strict=True)])
    else:
        best = np.stack([np.log1p(column[:, None] * excesses).mean(1) for column in theta.T], axis=1)
    cap = np.where(theta < 0, -1 / np.where(theta < 0, best, -1.0), np.inf)
    free = -(np.log(best / theta) + best + 1)
    factor = np.minimum(cap, 1.0)
    return theta, best, cap, free - (np.log(factor) + 1 / factor - 1), free


def fit(excesses: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Maximum-likelihood ``shape, scale``, ``[r]`` each, of each row of ``excesses`` ``[r, k]``."""
    rows = np.arange(len(excesses))
    points = np.tile(_COARSE, (len(excesses), 1))
    for _ in range(8):
        height = _profile(excesses, points)[3]
        peak = np.clip(height.argmax(1), 1, points.shape[1] - 2)
        low, high = points[rows, peak - 1], points[rows, peak + 1]
        points = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 9)
    theta, best, cap, height, _ = _profile(excesses, points)
    peak = height.argmax(1)
    shape = (best * np.minimum(cap, 1.0))[rows, peak]
    return shape, shape / theta[rows, peak]


def region(excesses: FloatArray, n: int, cut: float, floor: float) -> list[tuple[float, FloatArray, FloatArray]]:
    """The edge of the likelihood region.

    Args:
        excesses: ``[k]``.
        n: scores, of which k exceed the start.
        cut: log-likelihood that a law of the region may fall short of the best.
        floor: -1 or 0, the smallest shape.

    Returns:
        For each share of exceedances on a grid: that share, ``theta`` ``[g]`` and shapes ``[2, g]`` between which the
        laws of that theta lie within the region.
    """
    k = excesses.size
    points = _COARSE[None] if floor else np.append(1e-9, _COARSE[_COARSE > 0])[None]
    for size in (60, 120, 0):
        theta, best, cap, height, free = (item[0] for item in _profile(excesses[None], points))
        if size:
            inside = np.flatnonzero(k * (height - height.max()) >= -cut - 1)
            first, last = max(inside[0] - 1, 0), min(inside[-1] + 1, height.size - 1)
            points = np.linspace(points[0, first], points[0, last], size)[None]
    observed, edge = k / n, math.sqrt(2 * max(cut, 1e-12) / k)
    found = []
    for share in np.minimum(observed * np.exp(np.linspace(-1.3, 1.3, 13) * edge), (1 + observed) / 2):
        lost = -k * math.log(share / observed) - (n - k) * math.log((1 - share) / (1 - observed))
        # A grid does not hold the maximum itself: rounding must not empty the region.
        inside = k * (height - height.max()) >= lost - cut - 1e-9
        if inside.any():
            room = np.maximum(free[inside] - height.max() + (cut - lost) / k, 0.0)
            factors = np.minimum(_factors(room), cap[inside])
            found.append((float(share), theta[inside], best[inside] * factors))
    return found


def _factors(room: FloatArray) -> FloatArray:
    """The two solutions r of ``log(r) + 1 / r - 1 = room`` for each ``room >= 0``: ``[2, g]``."""
    from scipy.special import lambertw

    # At room 0 both are 1, and rounding would pass the branch point of the function.
    argument = -np.exp(-1 - np.maximum(room, 1e-14))
    ends = np.stack([-1 / lambertw(argument, branch).real for branch in (-1, 0)])
    return np.where(room < 1e-13, 1.0, ends)


def goodness(excesses: FloatArray, shape: float, scale: float) -> float:
    """p-value of the Anderson-Darling statistic; its null depends on the shape, hardly on the number of excesses."""
    observed = float(_anderson_darling(excesses[None], np.array([shape]), np.array([scale]))[0])
    null = _null(min(excesses.size, _LARGEST_DRAW), round(shape, 1) + 0.0)
    return float(1 + np.count_nonzero(null >= observed)) / (1 + null.size)


@lru_cache(maxsize=128)
def _null(k: int, shape: float) -> FloatArray:
    uniforms = Seed.root(0).child("tail-fit", k, str(shape)).numpy().random((_DRAWS, k))
    exponential = -np.log1p(-uniforms)
    drawn = exponential if shape == 0 else np.expm1(shape * exponential) / shape
    return _anderson_darling(drawn, *fit(drawn))


def _anderson_darling(excesses: FloatArray, shape: FloatArray, scale: FloatArray) -> FloatArray:
    """The statistic of each row of ``excesses`` ``[r, k]``."""
    ordered = np.sort(excesses, axis=1)
    above = survival(ordered, (shape / scale)[:, None], shape[:, None])
    above = np.clip(above, 1e-12, 1 - 1e-12)
    k = ordered.shape[1]
    weights = (2 * np.arange(1, k + 1) - 1) / k
    return np.asarray(-k - (np.log1p(-above) + np.log(above[:, ::-1])) @ weights)
