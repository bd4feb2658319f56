"""Compression by real codecs: the bytes are written and read back, as a web site does."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from PIL import Image, features

from ..core.components import param
from ..core.errors import ImageError
from .imagewise import ImagewiseAttack

if TYPE_CHECKING:
    from ..core.seeds import Seed


class Jpeg(ImagewiseAttack):
    """JPEG (ITU-T T.81) by libjpeg, through Pillow: encoded in memory, then decoded.

    Example:
        >>> Jpeg(quality=80).label
        'jpeg(quality=80)'
    """

    name: ClassVar[str] = "jpeg"
    family: ClassVar[str] = "compression"
    summary: ClassVar[str] = "JPEG, real codec"
    strength: ClassVar[str | None] = "quality"
    strengths: ClassVar[tuple[Any, ...]] = (99, 95, 90, 80, 75, 70, 65, 60, 50, 40, 30, 20, 10)
    harder: ClassVar[int] = -1

    quality: int = param(50, doc="libjpeg's quality, 1 (coarse) to 100 (fine).", ge=1, le=100)
    subsampling: Literal["4:2:0", "4:2:2", "4:4:4"] = param(
        "4:2:0", doc="Chroma resolution: halved in both directions, halved in width, or full."
    )
    repeats: int = param(1, doc="How many times in a row the image is compressed, 1 to 10.", ge=1, le=10)

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The picture after ``repeats`` times of encoding and decoding."""
        for _ in range(self.repeats):
            picture = _round_trip(picture, "JPEG", 65500, quality=self.quality, subsampling=self.subsampling)
        return picture


class WebP(ImagewiseAttack):
    """Lossy WebP (VP8 intra frames) by libwebp, through Pillow: encoded in memory, then decoded.

    Example:
        >>> WebP(quality=30).label
        'webp(quality=30)'
    """

    name: ClassVar[str] = "webp"
    family: ClassVar[str] = "compression"
    summary: ClassVar[str] = "WebP, real codec"
    strength: ClassVar[str | None] = "quality"
    strengths: ClassVar[tuple[Any, ...]] = (90, 80, 70, 60, 50, 40, 30, 20, 10)
    harder: ClassVar[int] = -1

    quality: int = param(50, doc="libwebp's quality, 0 (coarse) to 100 (fine).", ge=0, le=100)
    method: int = param(4, doc="The encoder's effort, 0 (fast) to 6 (small file).", ge=0, le=6)

    def unavailable(self) -> str | None:
        """Says so where Pillow was built without libwebp."""
        if features.check("webp"):
            return None
        return "this Pillow was built without WebP: install a Pillow wheel from PyPI, or build it with libwebp"

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The picture after encoding and decoding."""
        return _round_trip(picture, "WEBP", 16383, quality=self.quality, method=self.method)


def _round_trip(picture: np.ndarray, container: str, largest_side: int, **options: Any) -> np.ndarray:
    if max(picture.shape) > largest_side:
        raise ImageError(f"{container} holds at most {largest_side} pixels a side, this image has {picture.shape[:2]}")
    file = BytesIO()
    Image.fromarray(picture).save(file, container, **options)
    with Image.open(file, formats=(container,)) as decoded:
        return np.asarray(decoded.convert("RGB"))
