"""Overlays: something is put over the image."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features
from pydantic import AfterValidator

from ..core.components import param
from ..core.errors import ImageError
from .imagewise import ImagewiseAttack

if TYPE_CHECKING:
    from ..core.seeds import Seed


class Erase(ImagewiseAttack):
    """Blacks out one rectangle of the image's aspect ratio, at a random place inside the image.

    Both sides are the image's times the square root of ``area``, rounded to whole pixels.

    Example:
        >>> Erase(area=0.25).label
        'erase(area=0.25)'
    """

    name: ClassVar[str] = "erase"
    family: ClassVar[str] = "overlay"
    summary: ClassVar[str] = "one black rectangle"
    strength: ClassVar[str | None] = "area"
    strengths: ClassVar[tuple[Any, ...]] = (0.05, 0.1, 0.15, 0.2, 0.25)
    harder: ClassVar[int] = 1
    neutral: ClassVar[float | None] = 0.0
    seeded: ClassVar[bool] = True

    area: float = param(0.1, doc="Share of the area that turns black, 0 to 1.", ge=0, le=1, allow_inf_nan=False)

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The picture with a black rectangle."""
        height, width = picture.shape[:2]
        h, w = round(height * math.sqrt(self.area)), round(width * math.sqrt(self.area))
        top, left = seed.numpy().integers(0, (height - h + 1, width - w + 1))
        result = picture.copy()
        result[top : top + h, left : left + w] = 0
        return result


def _visible(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError("the text must be one line of visible characters")
    return value


class Text(ImagewiseAttack):
    """Draws text over the image, in Pillow's built-in font (Aileron; Latin letters).

    The text is repeated on as many lines as a block of share ``area`` needs to fit into the image, and scaled until the
    block's bounding box has that share, as nearly as whole pixels allow.

    Example:
        >>> Text(text="sample", area=0.1).label
        'text(text=sample, area=0.1)'
    """

    name: ClassVar[str] = "text"
    family: ClassVar[str] = "overlay"
    summary: ClassVar[str] = "text drawn over the image"
    strength: ClassVar[str | None] = "area"
    strengths: ClassVar[tuple[Any, ...]] = (0.01, 0.05, 0.1, 0.2, 0.4)
    harder: ClassVar[int] = 1

    text: Annotated[str, AfterValidator(_visible)] = param(
        "waterproof", doc="What is written, one line of 1 to 100 characters.", min_length=1, max_length=100
    )
    area: float = param(
        0.05,
        doc="Share of the area under the block of text, 0.001 to 0.5.",
        ge=0.001,
        le=0.8,
        allow_inf_nan=False,
    )
    position: Literal["centre", "random"] = param("random", doc="Where the text stands.")
    colour: Literal["white", "black"] = param("white", doc="Colour of the letters.")

    @property
    def seeded(self) -> bool:  # type: ignore[override]
        """Whether the place is drawn at random."""
        return self.position == "random"

    def unavailable(self) -> str | None:
        """Says so where Pillow was built without FreeType."""
        if features.check("freetype2"):
            return None
        return "this Pillow was built without FreeType: install a Pillow wheel from PyPI, or build it with FreeType"

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The picture with text over it."""
        height, width = picture.shape[:2]
        letters = _letters(self.text, self.area, height, width)
        h, w = letters.shape[:2]
        top, left = (height - h) // 2, (width - w) // 2
        if self.position == "random":
            top, left = seed.numpy().integers(0, (height - h + 1, width - w + 1))
        result = picture.copy()
        under = result[top : top + h, left : left + w]
        level = 255 if self.colour == "white" else 0
        # Rounded division by 255; 16 bits hold 255 * 255 + 127.
        under[:] = (under * (255 - letters) + level * letters + 127) // 255
        return result


@lru_cache(maxsize=32)
def _letters(text: str, area: float, height: int, width: int) -> np.ndarray:
    """How much of each pixel the text covers, uint16 ``[h, w, 1]``, 0 to 255, cut to the block's bounding box."""
    for lines in range(1, height + 1):
        block = "\n".join([text] * lines)
        size = _font_size(block, area * height * width)
        if size is None:
            break
        left, top, right, bottom = _box(block, size)
        if right - left <= width and bottom - top <= height:
            canvas = Image.new("L", (right - left, bottom - top))
            font = ImageFont.load_default(size)
            ImageDraw.Draw(canvas).multiline_text((-left, -top), block, fill=255, font=font)
            letters = np.asarray(canvas, dtype=np.uint16)[..., None]
            letters.flags.writeable = False
            return letters
    raise ImageError(
        f"text: '{text}' on {area:g} of the area does not fit into {width} x {height} pixels: choose another of the two"
    )


def _font_size(block: str, pixels: float) -> float | None:
    """The font size at which the block's bounding box has about ``pixels`` pixels; None below one pixel."""
    size = 100.0
    # Hinting and line spacing are rounded to whole pixels, so one rescaling is not enough.
    for _ in range(3):
        left, top, right, bottom = _box(block, size)
        size *= math.sqrt(pixels / ((right - left) * (bottom - top)))
        if size < 1:
            return None
    return size


def _box(block: str, size: float) -> tuple[int, int, int, int]:
    canvas = ImageDraw.Draw(Image.new("L", (1, 1)))
    left, top, right, bottom = canvas.multiline_textbbox((0, 0), block, font=ImageFont.load_default(size))
    return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
