"""Geometric attacks: the pixels move.

Sizes shrink by area averaging (OpenCV's ``INTER_AREA``, which is antialiased) and grow by bilinear interpolation in
its bit-exact form (``INTER_LINEAR_EXACT``); rotations interpolate bilinearly. Angles are counter-clockwise.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import cv2
import numpy as np
from pydantic import model_validator

from ..core.components import param
from .imagewise import ImagewiseAttack

if TYPE_CHECKING:
    from ..core.images import Images
    from ..core.seeds import Seed

_QUARTER_TURNS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}


class Crop(ImagewiseAttack):
    """Keeps a rectangle of the image's own aspect ratio and drops the rest.

    Both sides shrink by the square root of ``area``, rounded to whole pixels.

    Example:
        >>> Crop(area=0.7, resize_back=False).label
        'crop(area=0.7, resize_back=False)'
    """

    name: ClassVar[str] = "crop"
    family: ClassVar[str] = "geometric"
    summary: ClassVar[str] = "crop, resized back or not"
    strength: ClassVar[str | None] = "area"
    strengths: ClassVar[tuple[Any, ...]] = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.2, 0.1, 0.05)
    harder: ClassVar[int] = -1
    neutral: ClassVar[float | None] = 1.0

    area: float = param(0.5, doc="Share of the area that is kept, above 0 to 1.", gt=0, le=1, allow_inf_nan=False)
    position: Literal["centre", "random"] = param("centre", doc="Where the kept rectangle lies.")
    resize_back: bool = param(True, doc="Whether the rectangle is enlarged to the original size.")

    @property
    def seeded(self) -> bool:  # type: ignore[override]
        """Whether the place is drawn at random."""
        return self.position == "random"

    @property
    def aligned(self) -> bool:
        """Only a crop that keeps everything can be compared pixel by pixel."""
        return self.area == self.neutral

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The kept rectangle."""
        height, width = picture.shape[:2]
        h, w = _scaled(height, width, math.sqrt(self.area))
        top, left = (height - h) // 2, (width - w) // 2
        if self.position == "random":
            top, left = seed.numpy().integers(0, (height - h + 1, width - w + 1))
        kept = picture[top : top + h, left : left + w]
        return _resized(kept, height, width) if self.resize_back else kept


class Resize(ImagewiseAttack):
    """Resizes the image, by default down and back up, which costs its fine detail.

    The intermediate size is given either as ``scale`` or, for the low-resolution attacks (112 and 64 pixels in the
    literature), as ``side``. Given neither, ``scale`` is 0.5. Where ``side`` is given it is the strength, too.

    Example:
        >>> Resize(side=64).label
        'resize(side=64)'
    """

    name: ClassVar[str] = "resize"
    family: ClassVar[str] = "geometric"
    summary: ClassVar[str] = "resize and back"
    strength: ClassVar[str | None] = "scale"
    strengths: ClassVar[tuple[Any, ...]] = (1.0, 0.9, 0.7, 0.5, 0.32, 0.25, 0.1)
    harder: ClassVar[int] = -1
    neutral: ClassVar[float | None] = 1.0

    scale: float | None = param(
        None, doc="Factor for both sides, above 0 to 4; not together with side.", gt=0, le=4, allow_inf_nan=False
    )
    side: int | None = param(None, doc="Shorter side in pixels, 2 to 8192; the aspect ratio is kept.", ge=2, le=8192)
    back: bool = param(True, doc="Whether the image is brought back to its original size.")

    @model_validator(mode="before")
    @classmethod
    def _default_scale(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("scale") is None and values.get("side") is None:
            return {**values, "scale": 0.5}
        return values

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.scale is not None and self.side is not None:
            raise ValueError("give either scale or side, both are set")
        return self

    @property
    def strength_value(self) -> float | None:
        """The scale, or the side in pixels where that is what was given."""
        return float(self.side) if self.side is not None else self.scale

    @property
    def aligned(self) -> bool:
        """Whether the original size comes back."""
        return self.back or self.scale == self.neutral

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The picture at the other size, or back at its own."""
        height, width = picture.shape[:2]
        factor = self.scale if self.scale is not None else (self.side or 0) / min(height, width)
        resized = _resized(picture, *_scaled(height, width, factor))
        return _resized(resized, height, width) if self.back else resized


class Rotation(ImagewiseAttack):
    """Turns the image counter-clockwise about its centre.

    Quarter turns move whole pixels, so nothing is lost: they swap the sides of an oblong image, ignore ``fit``, and
    are undone exactly. Every other angle keeps the size and interpolates once. With ``fit="crop"`` the largest
    rectangle of the image's aspect ratio that lies inside the turned image is enlarged to the full size; its linear
    scale is ``min(W / (W c + H s), H / (W s + H c))`` with c = abs(cos), s = abs(sin) of the angle.

    Example:
        >>> Rotation(degrees=90).aligned, Rotation(degrees=9).aligned
        (True, False)
    """

    name: ClassVar[str] = "rotation"
    family: ClassVar[str] = "geometric"
    summary: ClassVar[str] = "rotation"
    strength: ClassVar[str | None] = "degrees"
    strengths: ClassVar[tuple[Any, ...]] = (1, 3, 5, 9, 10, 18, 25, 27, 30, 36, 45, 90, 180, 270)
    harder: ClassVar[int] = 0
    neutral: ClassVar[float | None] = 0.0

    degrees: float = param(
        9.0, doc="Angle in degrees, counter-clockwise, -360 to 360.", ge=-360, le=360, allow_inf_nan=False
    )
    fit: Literal["fill", "crop"] = param("fill", doc="Black corners, or cropped to content and enlarged.")

    @property
    def aligned(self) -> bool:
        """Only quarter turns can be compared pixel by pixel, once undone."""
        return self.degrees % 90 == 0

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The turned picture."""
        if self.aligned:
            return _turned(picture, self._quarters)
        height, width = picture.shape[:2]
        centre = ((width - 1) / 2, (height - 1) / 2)
        cropped = self.fit == "crop"
        zoom = 1 / _inscribed(height, width, self.degrees) if cropped else 1.0
        # The border is replicated under a crop, so that rounding at its corners lets no black in.
        border = cv2.BORDER_REPLICATE if cropped else cv2.BORDER_CONSTANT
        matrix = cv2.getRotationMatrix2D(centre, self.degrees, zoom)
        return cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=border)

    def undo(self, images: Images) -> Images:
        """Turns quarter turns back; other angles stay as they are."""
        if len(images) == 0 or not self.aligned:
            return images
        return images.with_pixels(np.stack([_turned(picture, -self._quarters) for picture in images.numpy()]))

    @property
    def _quarters(self) -> int:
        return int(self.degrees // 90) % 4


class Flip(ImagewiseAttack):
    """Mirrors the image; undone exactly.

    Example:
        >>> Flip().label, Flip(axis="vertical").label
        ('flip', 'flip(axis=vertical)')
    """

    name: ClassVar[str] = "flip"
    family: ClassVar[str] = "geometric"
    summary: ClassVar[str] = "mirror"

    axis: Literal["horizontal", "vertical"] = param(
        "horizontal", doc="Left and right change places (horizontal), or top and bottom (vertical)."
    )

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The mirrored picture."""
        return self._mirrored(picture)

    def undo(self, images: Images) -> Images:
        """Mirrors again."""
        if len(images) == 0:
            return images
        return images.with_pixels(np.stack([self._mirrored(picture) for picture in images.numpy()]))

    def _mirrored(self, picture: np.ndarray) -> np.ndarray:
        return cv2.flip(picture, 1 if self.axis == "horizontal" else 0)


def _turned(picture: np.ndarray, quarters: int) -> np.ndarray:
    how = _QUARTER_TURNS.get(quarters % 4)
    return picture if how is None else cv2.rotate(picture, how)


def _scaled(height: int, width: int, factor: float) -> tuple[int, int]:
    return max(1, round(height * factor)), max(1, round(width * factor))


def _resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    h, w = picture.shape[:2]
    if (h, w) == (height, width):
        return picture
    shrinks = height <= h and width <= w
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR_EXACT)


def _inscribed(height: int, width: int, degrees: float) -> float:
    c, s = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    return min(width / (width * c + height * s), height / (width * s + height * c))
