"""Degradations: blur and noise."""

from __future__ import annotations

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
        raise ValueError(f"a kernel has an odd number of pixels, e.g. {value + 1}")
    return value


class _Degradation(ImagewiseAttack):
    family: ClassVar[str] = "degradation"
    harder: ClassVar[int] = 1
    neutral: ClassVar[float | None] = 0.0


class GaussianBlur(_Degradation):
    """Convolves with a Gaussian, mirrored at the border (the edge pixel is not repeated).

    Without ``kernel`` the Gaussian is cut at 4 sigma, as SciPy does. Papers that name only a kernel of k pixels mean
    ``sigma = 0.3 ((k - 1) / 2 - 1) + 0.8``, OpenCV's and torchvision's rule; those that name a radius (WAVES, after
    Pillow) mean sigma.

    Example:
        >>> GaussianBlur(sigma=2, kernel=9).label
        'gaussian-blur(sigma=2, kernel=9)'
    """

    name: ClassVar[str] = "gaussian-blur"
    summary: ClassVar[str] = "Gaussian blur"
    strength: ClassVar[str | None] = "sigma"
    strengths: ClassVar[tuple[Any, ...]] = (0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 8.0, 12.0, 16.0, 20.0)

    sigma: float = param(1.0, doc="Standard deviation in pixels, 0 to 50.", ge=0, le=50, allow_inf_nan=False)
    kernel: Annotated[int, AfterValidator(_odd)] | None = param(
        None, doc="Side of the kernel in pixels, odd, 1 to 401; left out, 4 sigma each way.", ge=1, le=401
    )

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The blurred picture."""
        side = self.kernel if self.kernel is not None else 2 * int(4 * self.sigma + 0.5) + 1
        return cv2.GaussianBlur(picture, (side, side), self.sigma, borderType=cv2.BORDER_REFLECT_101)


class MedianBlur(_Degradation):
    """Replaces each value by the median of its neighbourhood, channel by channel; the edge pixel is repeated.

    Example:
        >>> MedianBlur(kernel=5).label
        'median-blur(kernel=5)'
    """

    name: ClassVar[str] = "median-blur"
    summary: ClassVar[str] = "median filter"
    strength: ClassVar[str | None] = "kernel"
    strengths: ClassVar[tuple[Any, ...]] = (3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23)
    neutral: ClassVar[float | None] = 1.0

    kernel: Annotated[int, AfterValidator(_odd)] = param(
        3, doc="Side of the neighbourhood in pixels, odd, 1 to 101.", ge=1, le=101
    )

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The smoothed picture."""
        return cv2.medianBlur(picture, self.kernel)


class GaussianNoise(_Degradation):
    """Adds independent normal noise to every value.

    ``sd`` is relative to the range 0 to 1, so that, before clipping, the PSNR is ``-20 log10(sd)``: 20 dB at 0.1.

    Example:
        >>> GaussianNoise(sd=0.1).label
        'gaussian-noise(sd=0.1)'
    """

    name: ClassVar[str] = "gaussian-noise"
    summary: ClassVar[str] = "additive Gaussian noise"
    strength: ClassVar[str | None] = "sd"
    strengths: ClassVar[tuple[Any, ...]] = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2)
    seeded: ClassVar[bool] = True

    sd: float = param(
        0.05, doc="Standard deviation, 0 to 1, where 1 is the whole range of values.", ge=0, le=1, allow_inf_nan=False
    )

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The noisy picture."""
        noise = seed.numpy().standard_normal(picture.shape, dtype=np.float32)
        noise *= 255 * self.sd
        return cv2.add(picture, noise, dtype=cv2.CV_8U)


class SaltAndPepper(_Degradation):
    """Turns pixels black or white, each pixel with probability ``amount``, both colours alike.

    Example:
        >>> SaltAndPepper(amount=0.1).label
        'salt-and-pepper(amount=0.1)'
    """

    name: ClassVar[str] = "salt-and-pepper"
    summary: ClassVar[str] = "black and white pixels"
    strength: ClassVar[str | None] = "amount"
    strengths: ClassVar[tuple[Any, ...]] = (0.01, 0.02, 0.05, 0.1, 0.2)
    seeded: ClassVar[bool] = True

    amount: float = param(0.05, doc="Share of pixels, 0 to 1.", ge=0, le=1, allow_inf_nan=False)

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The picture with black and white pixels."""
        draw = seed.numpy().random(picture.shape[:2])
        result = picture.copy()
        result[draw < self.amount] = 255
        result[draw < self.amount / 2] = 0
        return result
