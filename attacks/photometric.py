"""Photometric attacks: values change, pixels stay where they are.

Factors blend as Pillow's ``ImageEnhance`` and torchvision do: ``out = factor * image + (1 - factor) * other``, clipped
to 0 to 255 and rounded once; 0 gives the other image, 1 the image itself, above 1 exaggerates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np

from ..core.components import param
from .imagewise import ImagewiseAttack

if TYPE_CHECKING:
    from ..core.seeds import Seed

# ITU-R BT.601, as in Pillow's mode L, OpenCV's and torchvision's grey.
_LUMA = (0.299, 0.587, 0.114)
# Pillow's ImageFilter.SMOOTH.
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
_FACTORS = (1.0, 0.75, 1.25, 0.5, 1.5, 0.25, 1.75, 0.1, 2.0)
_GREY_LEVELS = np.arange(256, dtype=np.float64)


class _Photometric(ImagewiseAttack):
    family: ClassVar[str] = "photometric"
    harder: ClassVar[int] = 0
    neutral: ClassVar[float | None] = 1.0


class _Blend(_Photometric):
    strength: ClassVar[str | None] = "factor"
    strengths: ClassVar[tuple[Any, ...]] = _FACTORS

    factor: float = param(
        1.5, doc="Blending factor, 0 to 10; 1 leaves the image as it is.", ge=0, le=10, allow_inf_nan=False
    )


class Brightness(_Blend):
    """Multiplies all values by ``factor``: a blend with black.

    Example:
        >>> Brightness(factor=0.5).label
        'brightness(factor=0.5)'
    """

    name: ClassVar[str] = "brightness"
    summary: ClassVar[str] = "multiply all values"

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The brighter or darker picture."""
        return _mapped(picture, self.factor * _GREY_LEVELS)


class Contrast(_Blend):
    """Blends with the image's mean grey (luma of ITU-R BT.601, not rounded).

    Example:
        >>> Contrast(factor=2).label
        'contrast(factor=2)'
    """

    name: ClassVar[str] = "contrast"
    summary: ClassVar[str] = "blend with the mean grey"

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The picture with more or less contrast."""
        mean = sum(weight * value for weight, value in zip(_LUMA, cv2.mean(picture)[:3], strict=True))
        return _mapped(picture, self.factor * _GREY_LEVELS + (1 - self.factor) * mean)


class Saturation(_Blend):
    """Blends with the grey version of the image (luma of ITU-R BT.601); 0 gives the grey image.

    Example:
        >>> Saturation(factor=0).label
        'saturation(factor=0)'
    """

    name: ClassVar[str] = "saturation"
    summary: ClassVar[str] = "blend with grey"

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The picture with more or less colour."""
        grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        return _blended(picture, grey, self.factor)


class Sharpness(_Blend):
    """Blends with a smoothed image: 3 x 3 kernel of ones with 5 in the middle; the outermost pixels stay.

    Example:
        >>> Sharpness(factor=2).label
        'sharpness(factor=2)'
    """

    name: ClassVar[str] = "sharpness"
    summary: ClassVar[str] = "blend with a smoothed image"

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The sharper or softer picture."""
        smooth = picture.copy()
        smooth[1:-1, 1:-1] = cv2.filter2D(picture, -1, _SMOOTH)[1:-1, 1:-1]
        return _blended(picture, smooth, self.factor)


class Hue(_Photometric):
    """Turns the colour circle (the H of HSV); saturation and value stay.

    Example:
        >>> Hue(shift=-0.25).label
        'hue(shift=-0.25)'
    """

    name: ClassVar[str] = "hue"
    summary: ClassVar[str] = "turn the colour circle"
    strength: ClassVar[str | None] = "shift"
    strengths: ClassVar[tuple[Any, ...]] = (0.0, -0.1, 0.1, -0.2, 0.2, -0.3, 0.3, -0.4, 0.4, -0.5, 0.5)
    neutral: ClassVar[float | None] = 0.0

    shift: float = param(
        0.1, doc="Share of the circle, -0.5 to 0.5; both ends are the complement.", ge=-0.5, le=0.5, allow_inf_nan=False
    )

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The picture in other colours."""
        # In floats: an 8-bit HSV has fewer hues than RGB has, which alone would cost several grey levels.
        hsv: np.ndarray = cv2.cvtColor(picture.astype(np.float32), cv2.COLOR_RGB2HSV)
        hue = hsv[..., 0]
        hue += (self.shift % 1) * 360
        np.subtract(hue, 360, out=hue, where=hue >= 360)
        return _rounded(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


class Gamma(_Photometric):
    """A power law: ``out = 255 (v / 255) ** gamma``; below 1 brightens, above 1 darkens.

    Example:
        >>> Gamma(gamma=2).label
        'gamma(gamma=2)'
    """

    name: ClassVar[str] = "gamma"
    summary: ClassVar[str] = "power law"
    strength: ClassVar[str | None] = "gamma"
    strengths: ClassVar[tuple[Any, ...]] = (1.0, 0.75, 1.25, 0.5, 1.5, 2.0)

    gamma: float = param(
        1.5, doc="Exponent, above 0 to 10; 1 leaves the image as it is.", gt=0, le=10, allow_inf_nan=False
    )

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The picture with other mid-tones."""
        return _mapped(picture, 255 * (_GREY_LEVELS / 255) ** self.gamma)


def _rounded(values: np.ndarray) -> np.ndarray:
    clipped: np.ndarray = np.rint(values.clip(0, 255)).astype(np.uint8)
    return clipped


def _mapped(picture: np.ndarray, curve: np.ndarray) -> np.ndarray:
    return cv2.LUT(picture, _rounded(curve))


def _blended(picture: np.ndarray, other: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(picture, factor, other, 1 - factor, 0)
