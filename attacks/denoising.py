"""Cleaning by classical filters: a small change of the pixels, a mark or a protection, is taken for noise."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import cv2
import numpy as np
from pydantic import AfterValidator

from ..core.components import param
from .imagewise import ImagewiseAttack

if TYPE_CHECKING:
    from ..core.seeds import Seed


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"a neighbourhood has an odd number of pixels, e.g. {value + 1}")
    return value


class _Denoiser(ImagewiseAttack):
    family: ClassVar[str] = "purification"
    harder: ClassVar[int] = 1


class AdverseCleaner(_Denoiser):
    """AdverseCleaner: bilateral filter, again and again, then a guided filter that brings the strong edges back.

    The defaults, the order and the guide are those of the released script (lllyasviel/AdverseCleaner, clean.py): 64
    passes of OpenCV's bilateral filter, then 4 of the guided filter, each guided by the attacked image itself and not
    by the smoothed one, all in floating point on the scale 0 to 255. Two things are ours: the result is rounded where
    the script truncates it, which darkens by half a grey level; and the guided filter, which the script takes from
    opencv-contrib, is computed here in double precision. Borders are opencv's: the bilateral filter mirrors without
    repeating the edge pixel, the guided filter repeats it.

    Example:
        >>> AdverseCleaner(bilateral=16).label
        'adverse-cleaner(bilateral=16)'
    """

    name: ClassVar[str] = "adverse-cleaner"
    summary: ClassVar[str] = "64 bilateral, then 4 guided filters"
    strength: ClassVar[str | None] = "bilateral"
    strengths: ClassVar[tuple[Any, ...]] = (1, 4, 16, 64, 128)
    references: ClassVar[tuple[str, ...]] = (
        "L. Zhang: AdverseCleaner. github.com/lllyasviel/AdverseCleaner, 2023.",
        "C. Tomasi, R. Manduchi: Bilateral Filtering for Gray and Color Images. ICCV 1998.",
        "K. He, J. Sun, X. Tang: Guided Image Filtering. ECCV 2010.",
    )

    bilateral: int = param(64, doc="Passes of the bilateral filter, 0 to 1000.", ge=0, le=1000)
    diameter: Annotated[int, AfterValidator(_odd)] = param(
        5, doc="The bilateral filter's neighbourhood: a disc of so many pixels across, odd, 3 to 31.", ge=3, le=31
    )
    sigma_colour: float = param(
        8.0,
        doc="Standard deviation over colours: absolute differences of R, G and B, added; grey levels.",
        gt=0,
        le=1000,
        allow_inf_nan=False,
    )
    sigma_space: float = param(8.0, doc="Standard deviation over distance, pixels.", gt=0, le=1000, allow_inf_nan=False)
    guided: int = param(4, doc="Passes of the guided filter, 0 to 1000.", ge=0, le=1000)
    radius: int = param(4, doc="The guided filter's window: 2 radius + 1 pixels a side; 1 to 100.", ge=1, le=100)
    eps: float = param(
        16.0,
        doc="Edges whose variance is well above this come back, those below stay smooth; squared grey levels.",
        gt=0,
        le=65025,
        allow_inf_nan=False,
    )

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The cleaned picture."""
        cleaned: np.ndarray = picture.astype(np.float32)
        for _ in range(self.bilateral):
            cleaned = cv2.bilateralFilter(cleaned, self.diameter, self.sigma_colour, self.sigma_space)
        if self.guided:
            guided_filter = _GuidedFilter(picture.astype(np.float64), self.radius, self.eps)
            values = cleaned.astype(np.float64)
            for _ in range(self.guided):
                values = guided_filter(values)
            return _bytes(values)
        return _bytes(cleaned)


class NonLocalMeans(_Denoiser):
    """Non-local means: each pixel becomes the mean of those whose surroundings look like its own.

    OpenCV's implementation on the three channels together: weights are ``exp(-d / h^2)``, d the mean squared
    difference of two patches over their pixels and channels; no noise variance is taken off, and weights under a
    thousandth count as none. It computes in whole numbers, so that no result hangs on the order of a sum, and takes
    half the time of scikit-image's. Its variant for colour photographs is not used: the way to 8-bit Lab and back
    alone changes four of ten values. Borders are mirrored without repeating the edge pixel.

    Example:
        >>> NonLocalMeans(h=5).label
        'non-local-means(h=5)'
    """

    name: ClassVar[str] = "non-local-means"
    summary: ClassVar[str] = "mean over similar patches"
    strength: ClassVar[str | None] = "h"
    strengths: ClassVar[tuple[Any, ...]] = (2.0, 3.0, 5.0, 8.0, 10.0, 15.0, 20.0, 30.0)
    neutral: ClassVar[float | None] = 0.0
    references: ClassVar[tuple[str, ...]] = (
        "A. Buades, B. Coll, J.-M. Morel: A Non-Local Algorithm for Image Denoising. CVPR 2005.",
    )

    h: float = param(10.0, doc="How different patches may be, grey levels, 0 to 100; about the noise's.", ge=0, le=100)
    patch: Annotated[int, AfterValidator(_odd)] = param(
        7, doc="Side of the patches that are compared, pixels, odd, 1 to 31.", ge=1, le=31
    )
    search: Annotated[int, AfterValidator(_odd)] = param(
        21, doc="Side of the window that is searched, pixels, odd, 1 to 101.", ge=1, le=101
    )

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The cleaned picture."""
        return cv2.fastNlMeansDenoising(picture, None, self.h, self.patch, self.search)


class TotalVariation(_Denoiser):
    """Total-variation denoising: the picture u that minimises ``|u - f|^2 / 2 + weight TV(u)``, channel by channel.

    scikit-image's implementation of Chambolle's algorithm on values in 0 to 1, isotropic. With its own settings, the
    defaults, it stops early: at weights of 0.1 and 0.3 the objective is then some 10 % above its minimum. A smaller
    ``tolerance`` with more ``iterations`` goes further and takes many times as long.

    Example:
        >>> TotalVariation(weight=0.05).label
        'total-variation(weight=0.05)'
    """

    name: ClassVar[str] = "total-variation"
    summary: ClassVar[str] = "total-variation denoising"
    strength: ClassVar[str | None] = "weight"
    strengths: ClassVar[tuple[Any, ...]] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
    neutral: ClassVar[float | None] = 0.0
    references: ClassVar[tuple[str, ...]] = (
        "L. I. Rudin, S. Osher, E. Fatemi: Nonlinear Total Variation Based Noise Removal Algorithms. Physica D, 1992.",
        "A. Chambolle: An Algorithm for Total Variation Minimization and Applications. JMIV, 2004.",
    )

    weight: float = param(0.1, doc="Weight of the total variation, 0 to 10.", ge=0, le=10, allow_inf_nan=False)
    tolerance: float = param(
        2e-4, doc="Stops when the objective changes by less than this share of its first value.", ge=0, lt=1
    )
    iterations: int = param(200, doc="Iterations at most, 1 to 100000.", ge=1, le=100_000)

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The cleaned picture."""
        from skimage.restoration import denoise_tv_chambolle

        cleaned = denoise_tv_chambolle(
            picture / 255, self.weight, eps=self.tolerance, max_num_iter=self.iterations, channel_axis=-1
        )
        return _bytes(cleaned * 255)


class Bm3d(_Denoiser):
    """BM3D: similar blocks are stacked and thresholded together in a transform domain.

    Through the package bm3d of its authors, which is free for non-commercial use only: it is never installed by
    waterproof. What is computed is its ``bm3d_rgb``, on one thread, because with more the result varies from call to
    call. Three things are mended: a grey picture, whose colour channels are constant, becomes no NaN; a picture of one
    brightness is left as it is; one of less than 16 pixels a side is mirrored up to that, because the package refuses
    some of these and crashes on others.

    Example:
        >>> Bm3d(sigma=0.05).label
        'bm3d(sigma=0.05)'
    """

    name: ClassVar[str] = "bm3d"
    summary: ClassVar[str] = "block matching and 3D filtering, where its package is installed"
    strength: ClassVar[str | None] = "sigma"
    strengths: ClassVar[tuple[Any, ...]] = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
    neutral: ClassVar[float | None] = 0.0
    references: ClassVar[tuple[str, ...]] = (
        "K. Dabov, A. Foi, V. Katkovnik, K. Egiazarian: Image Denoising by Sparse 3-D Transform-Domain Collaborative "
        "Filtering. IEEE TIP, 2007.",
        "Y. Makinen, L. Azzari, A. Foi: Collaborative Filtering of Correlated Noise: Exact Transform-Domain Variance "
        "for Improved Shrinkage and Patch Matching. IEEE TIP, 2020.",
    )

    sigma: float = param(
        0.1,
        doc="Standard deviation of the noise that is assumed, 0 to 1, where 1 is the whole range of values.",
        ge=0,
        le=1,
        allow_inf_nan=False,
    )

    def unavailable(self) -> str | None:
        """Needs the package bm3d."""
        if importlib.util.find_spec("bm3d") is not None:
            return None
        return "needs the package bm3d, which is free for non-commercial use only: pip install bm3d"

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The cleaned picture."""
        height, width = picture.shape[:2]
        below, right = (max(_BM3D_SIDE - side, 0) for side in (height, width))
        padded = np.pad(picture / 255, ((0, below), (0, right), (0, 0)), mode="symmetric")
        return _bytes(_colour_bm3d(padded, self.sigma)[:height, :width] * 255)


_BM3D_SIDE = 16
_OPPONENT = np.array([[1 / 3, 1 / 3, 1 / 3], [1 / 2, 0, -1 / 2], [1 / 4, -1 / 2, 1 / 4]])
"""RGB to luminance, in which blocks are matched, and two colour channels."""


def _colour_bm3d(values: np.ndarray, sigma: float) -> np.ndarray:
    """BM3D on opponent channels, each stretched to 0 to 1 as the package does.

    Args:
        values: ``[H, W, 3]`` in 0 to 1.
        sigma: standard deviation of the noise in ``values``.
    """
    bm3d: Any = importlib.import_module("bm3d")
    channels = values @ _OPPONENT.T
    low = channels.min(axis=(0, 1))
    span = channels.max(axis=(0, 1)) - low
    if span[0] == 0:
        # No block can be told from another, which the package reports as an error of its own.
        return values
    # The package divides by zero here.
    span[span == 0] = 1
    noise = sigma * np.sqrt((_OPPONENT**2).sum(axis=1)) / span
    profile = bm3d.BM3DProfile()
    profile.num_threads = 1
    cleaned = bm3d.bm3d((channels - low) / span, noise[None, None], profile)
    rgb: np.ndarray = (cleaned * span + low) @ np.linalg.inv(_OPPONENT).T
    return rgb


class _GuidedFilter:
    """The guided filter with a colour guide I (He, Sun and Tang, ECCV 2010): in each window, p is taken for a I + b.

    ``a = (Cov(I) + eps 1)^-1 Cov(I, p)`` and ``b = mean(p) - a mean(I)``; a and b are then averaged over all windows
    that a pixel lies in. Means are over square windows; beyond the border the image is mirrored, edge pixel repeated.

    Args:
        guide: float64 ``[H, W, 3]``.
        radius: windows have ``2 radius + 1`` pixels a side.
        eps: in squared units of the guide.
    """

    def __init__(self, guide: np.ndarray, radius: int, eps: float) -> None:
        self._side = 2 * radius + 1
        self._guide = guide
        self._mean = self._average(guide)
        self._inverse = np.linalg.inv(self._covariance(guide, self._mean) + eps * np.eye(3))

    def __call__(self, source: np.ndarray) -> np.ndarray:
        """Filters float64 ``[H, W, 3]``."""
        mean = self._average(source)
        slopes = self._covariance(source, mean) @ self._inverse
        offsets = mean - _applied(slopes, self._mean)
        filtered: np.ndarray = _applied(self._average(slopes), self._guide) + self._average(offsets)
        return filtered

    def _covariance(self, source: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """``[H, W, 3, 3]``: channel of ``source`` with channel of the guide."""
        products = source[..., :, None] * self._guide[..., None, :]
        covariance: np.ndarray = self._average(products) - mean[..., :, None] * self._mean[..., None, :]
        return covariance

    def _average(self, values: np.ndarray) -> np.ndarray:
        # In double precision, so that the running sums cannot show in 8 bits, however many threads share them.
        flat = np.ascontiguousarray(values).reshape(*values.shape[:2], -1)
        averages = cv2.boxFilter(flat, -1, (self._side, self._side), borderType=cv2.BORDER_REFLECT)
        return averages.reshape(values.shape)


def _applied(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Matrix times vector in every pixel."""
    products: np.ndarray = (matrices @ vectors[..., None])[..., 0]
    return products


def _bytes(values: np.ndarray) -> np.ndarray:
    """Rounded to the nearest grey level, 0 to 255."""
    rounded: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded
