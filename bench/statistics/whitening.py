"""Whitening: what a decoder's logits need so that bits of unmarked images become fair and independent, or nearly so.

Stable Signature (Fernandez et al. 2023, section 4) whitens its decoder on unmarked images by PCA before the generator
learns to embed, so that the key lives in the whitened bits. Here marks are embedded already, in the decoder's own bits:
after ``rotation="pca"`` bit j is another bit and no stored key matches any more. ``rotation="zca"`` turns the whitened
axes back, which is the whitening that stays closest to the original logits (Kessy, Lewin and Strimmer 2018), and keeps
what bit j means; only that suits marks that exist. Take PCA where an encoder is trained after the whitening.

Measured on 450 calibration and 162 test photographs, 32 bits, TPR at the theoretical threshold for 1e-6:

===========  ==============  ================  ============  ===========
decoder      effective bits  largest bit bias  TPR, clean    TPR, JPEG 50
===========  ==============  ================  ============  ===========
dwt-dct      4.5 to 27.2     .24 to .10        .45 to .86    .00 to .00
dwt-dct-svd  16.6 to 30.5    .08 to .10        .975 to .981  .17 to .25
===========  ==============  ================  ============  ===========

It was fitted to unattacked images; after an attack it can cost marks (dwt-dct-svd cropped to 90 % of its area, at
1e-3: .31 to .22). Whitening removes linear dependence of the logits, not dependence of the bits: the null
improves, it need not hold. And the centres are estimates: with as many calibration as test images the test of fair bits
finds their error. It fades where ten times as many sources calibrate as there are bits.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from ...core.errors import StatisticsError
from .null import NullReport, null_report
from .splits import Source, Sources, one_per_source

if TYPE_CHECKING:
    from .domain import FloatArray, Sided

Rotation = Literal["zca", "pca"]
"""``zca`` keeps the meaning of each bit; ``pca`` gives new bits, for an encoder that is trained afterwards."""

Centre = Literal["median", "mean"]
"""What becomes 0. Only the median makes a skewed bit fair: it halved what the mean left of the bias of dwt-dct."""

_DOMAIN = b"waterproof-whitening-1:"
_SOURCES_PER_BIT = 2
_RANK = 1e-10


@dataclass(frozen=True, slots=True, eq=False)
class Whitening:
    """A whitening of decoder logits: ``logits @ matrix.T - offset``.

    Attributes:
        matrix: float64 ``[k, k]``.
        offset: float64 ``[k]``.
        rotation: ``zca`` or ``pca``.
        centre: what is 0 on the calibration images, ``median`` or ``mean``.
        scale: about the standard deviation of each whitened logit on the calibration images.
        shrinkage: weight, in 0..1, of the mean variance in the covariance, against estimation noise.
        floor: smallest eigenvalue allowed, as a share of the mean one.
        floored: how many eigenvalues were raised to it.
        stuck: bits whose logits did not change at all; they pass as they are.
        n: calibration images that were given.
        sources: sources among them, one image each, that were used.

    Example:
        >>> draws = np.random.default_rng(0)
        >>> logits = draws.normal(size=(500, 8)) + draws.normal(size=(500, 1)) + 0.3
        >>> found = Whitening.fit(logits, None)
        >>> bool(np.abs(np.corrcoef(found.apply(logits).T) - np.eye(8)).max() < 0.05)
        True
    """

    matrix: FloatArray
    offset: FloatArray
    rotation: Rotation
    centre: Centre
    scale: float
    shrinkage: float
    floor: float
    floored: int
    stuck: tuple[int, ...]
    n: int
    sources: int

    @classmethod
    def fit(
        cls,
        logits: npt.ArrayLike,
        sources: Sources,
        rotation: Rotation = "zca",
        centre: Centre = "median",
        scale: float = 1.0,
        shrinkage: float | None = None,
        floor: float = 1e-3,
        seed: int = 0,
    ) -> Whitening:
        """Fits the whitening to unmarked images, which must not be those that it is tested on.

        Args:
            logits: ``[n, k]`` of unmarked calibration images.
            sources: one for each image, or None where each is its own; one image of each source counts.
            rotation: ``zca`` or ``pca``, see the top of this module.
            centre: ``median`` or ``mean``.
            scale: standard deviation to give to the whitened logits, above 0; bits do not depend on it.
            shrinkage: in 0..1, or None for that of Ledoit and Wolf (2004).
            floor: smallest eigenvalue allowed, as a share of the mean one, in 0..1: directions in which logits hardly
                vary are not blown up further.
            seed: of the pick of one image per source.

        Raises:
            StatisticsError: there are fewer sources than twice the bits, a logit is NaN or infinite, or with ``pca``
                some logits follow from the others.
        """
        _option(rotation, Rotation, "rotation")
        _option(centre, Centre, "centre")
        if not (math.isfinite(scale) and scale > 0):
            raise StatisticsError(f"scale is {scale:g}; it must be above 0")
        for name, value in (("shrinkage", shrinkage), ("floor", floor)):
            if value is not None and not 0 <= value <= 1:
                raise StatisticsError(f"{name} is {value:g}; it must lie in 0..1")
        array = _logits(logits)
        n, k = array.shape
        kept = array[one_per_source(sources, seed, n)]
        if len(kept) < _SOURCES_PER_BIT * k:
            raise StatisticsError(
                f"whitening {k} bits needs unmarked calibration images of at least {_SOURCES_PER_BIT * k} sources, "
                f"there are {len(kept)}; {10 * k} make it good"
            )
        changing = np.ptp(kept, axis=0) > 0
        matrix, used, floored = np.eye(k), 0.0, 0
        if changing.any():
            part, used, floored = _root(kept[:, changing], rotation, shrinkage, floor)
            matrix[np.ix_(changing, changing)] = scale * part
        turned = kept @ matrix.T
        offset = np.where(changing, np.median(turned, axis=0) if centre == "median" else turned.mean(axis=0), 0.0)
        for fixed in (matrix, offset):
            fixed.flags.writeable = False
        stuck = tuple(np.flatnonzero(~changing).tolist())
        return cls(matrix, offset, rotation, centre, float(scale), used, float(floor), floored, stuck, n, len(kept))

    def apply(self, logits: npt.ArrayLike) -> FloatArray:
        """The whitened logits, ``[n, k]``; a bit is 1 where its logit is above 0.

        Raises:
            StatisticsError: there are other than k logits, or one is NaN or infinite.
        """
        array = _logits(logits)
        if array.shape[1] != self.offset.size:
            raise StatisticsError(
                f"there are {array.shape[1]} logits for each image; the whitening was fitted to {self.offset.size}"
            )
        return np.asarray(array @ self.matrix.T - self.offset)

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of all that :meth:`apply` depends on."""
        sha = hashlib.sha256(_DOMAIN + str(self.offset.size).encode() + b":")
        for array in (self.matrix, self.offset):
            sha.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        return sha.hexdigest()


def null_before_after(
    logits_cal: npt.ArrayLike,
    sources_cal: Sources,
    logits_test: npt.ArrayLike,
    sources_test: Sources,
    key: npt.ArrayLike,
    alpha: float,
    keys: int = 1000,
    seed: int = 0,
    sided: Sided = "one",
    rotation: Rotation = "zca",
    centre: Centre = "median",
) -> tuple[NullReport, NullReport, Whitening]:
    """The null of unmarked test images before and after a whitening that was fitted to other images, and it.

    Args:
        logits_cal: ``[n, k]`` of unmarked calibration images.
        sources_cal: their sources, or None where each is its own.
        logits_test: ``[n, k]`` of unmarked test images.
        sources_test: their sources.
        key: bool ``[k]``, the key in use.
        alpha: the FPR whose threshold is examined.
        keys: random keys to try; the same ones before and after.
        seed: as in :func:`.null.null_report`.
        sided: as there.
        rotation: as in :meth:`Whitening.fit`.
        centre: as there.

    Raises:
        StatisticsError: calibration and test images share a source, or as :meth:`Whitening.fit` and
            :func:`.null.null_report`.

    Example:
        >>> draws = np.random.default_rng(0)
        >>> logits = draws.normal(size=(4000, 16)) + draws.normal(size=(4000, 1))
        >>> key = np.arange(16) % 3 == 0
        >>> before, after, whitening = null_before_after(logits[:3600], None, logits[3600:], None, key, 1e-2)
        >>> before.holds, after.holds, whitening.n
        (False, True, 3600)
    """
    shared = sorted(_names(sources_cal) & _names(sources_test))
    if shared:
        raise StatisticsError(
            f"{len(shared)} sources are among the calibration and the test images (the first is {shared[0]!r}); "
            "a whitening is tested on sources that it was not fitted to"
        )
    whitening = Whitening.fit(logits_cal, sources_cal, rotation, centre, seed=seed)
    before, after = (
        null_report(logits, key, sources_test, alpha, keys, seed, sided)
        for logits in (logits_test, whitening.apply(logits_test))
    )
    return before, after, whitening


def _root(
    logits: FloatArray, rotation: Rotation, shrinkage: float | None, floor: float
) -> tuple[FloatArray, float, int]:
    """The whitening matrix, the shrinkage that was used, and how many eigenvalues were raised."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    centred = logits - logits.mean(axis=0)
    n, k = logits.shape
    weight = float(ledoit_wolf_shrinkage(centred, assume_centered=True)) if shrinkage is None else float(shrinkage)
    covariance = centred.T @ centred / n
    average = float(np.trace(covariance)) / k
    values, axes = np.linalg.eigh(covariance)
    rank = int(np.count_nonzero(values > _RANK * average))
    if rotation == "pca" and rank < k:
        raise StatisticsError(
            f"the {k} logits that change follow from {rank} of them, and PCA would make bits of rounding noise; "
            "use rotation 'zca', or a decoder whose bits differ"
        )
    values = (1 - weight) * values + weight * average
    low = values < floor * average
    values = np.where(low, floor * average, values)
    if values.min() <= _RANK * average:
        raise StatisticsError(
            f"the covariance of the {k} logits has rank {rank} and cannot be inverted; "
            "set a floor or a shrinkage above 0"
        )
    # The sign of an axis is arbitrary; with a rule PCA gives the same bits under every linear algebra library.
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(k)] < 0, -1.0, 1.0)
    whitened = (axes / np.sqrt(values)).T
    return np.asarray(axes @ whitened if rotation == "zca" else whitened[::-1]), weight, int(np.count_nonzero(low))


def _logits(logits: npt.ArrayLike) -> FloatArray:
    array = np.asarray(logits)
    if array.ndim != 2 or not array.size:
        raise StatisticsError(f"logits must be [n, k] with at least one image and one bit, not {list(array.shape)}")
    if array.dtype.kind != "f":
        raise StatisticsError(f"logits must be floating point, not {array.dtype}")
    if not np.isfinite(array).all():
        raise StatisticsError("logits hold NaN or infinity; leave out the images that failed")
    return array.astype(np.float64)


def _names(sources: Sources) -> set[str]:
    """Sources that have a name; None, and NaN as a table's stand-in for None, have none."""
    items: list[Source] = [] if sources is None else list(sources)
    return {str(item) for item in items if item is not None and item == item}


def _option(value: str, options: object, name: str) -> None:
    valid = get_args(options)
    if value not in valid:
        raise StatisticsError(f"{name} is {value!r}; it must be {' or '.join(repr(v) for v in valid)}")
