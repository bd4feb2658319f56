"""From the bytes of an image file to 8-bit RGB: one documented rule for every kind of pixel, and a note of what it did.

Colour profiles are ignored (values are taken as sRGB), because that is what most programs that strip metadata do.
Pillow's global settings are neither read for policy nor changed: limits are checked here, on the header.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXTENSIONS = frozenset(
    (
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    )
)
"""File name endings, lower case, that are taken for images."""

Policy = Literal["resize-crop", "crop", "resize", "native"]
"""How an image gets its size: see :func:`fit`."""

# Named, so that no file ever reaches a decoder that starts another program (EPS) or reads other files.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnusableImageError(Exception):
    """A file holds no image that can be used; the message is one phrase that says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of an image file tell.

    Attributes:
        size: (width, height) in pixels, before the EXIF orientation is applied.
        container: the format that the content has, whatever the file is called.
        notes: what :func:`decode` will do to it, as far as the header tells.
    """

    size: tuple[int, int]
    container: str
    notes: tuple[str, ...]


def read_header(path: Path, max_pixels: int) -> Header:
    """Reads a file's header; no pixel is decoded.

    Args:
        path: the file.
        max_pixels: larger images are refused.

    Raises:
        UnusableImageError: no image, a broken header, or too many pixels.
    """
    with _opened(path, max_pixels) as (picture, warned):
        notes = _describe(picture)
        container = "JPEG" if picture.format == "MPO" else str(picture.format)
        return Header(picture.size, container, (*notes, *_warnings(warned)))


def decode(data: bytes, max_pixels: int) -> tuple[Image.Image, tuple[str, ...]]:
    """Decodes the bytes of an image file to RGB and turns it as its EXIF orientation says.

    - Greyscale and bilevel images are replicated to three channels, palettes are looked up.
    - Transparency (alpha, or a transparent colour) is composited over white.
    - CMYK is converted by Pillow's formula, without a profile; inverted (Adobe) files are read as they are meant.
    - 16-bit greyscale is divided by 257 and rounded; of 16-bit colour Pillow keeps the high byte.
    - 32-bit integers count as 16-bit if they lie in 0 to 65535, floats if they lie in 0 to 1; others are refused,
      because nothing says which value is white.
    - Of several frames the first is taken.

    Args:
        data: the whole file.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        The picture, mode RGB, and notes on what was done.

    Raises:
        UnusableImageError: no image, too many pixels, truncated, or pixels without a defined range.
    """
    with _opened(BytesIO(data), max_pixels) as (picture, warned):
        notes = _describe(picture)
        picture.load()
        # A PNG may carry its EXIF block behind the pixels; a TIFF has been turned by now and says so.
        turn = _orientation(picture)
        upright = picture.transpose(_TURNS[turn]) if turn in _TURNS else picture
        notes += tuple(note for note in _turn_note(turn) if note not in notes)
        return _to_rgb(upright), (*notes, *_warnings(warned))


def fit(picture: Image.Image, size: int | None, policy: Policy) -> Image.Image:
    """Gives a picture its size.

    - ``resize-crop``: the largest centred square, resized to ``size`` (the short side becomes ``size``).
    - ``crop``: the central ``size`` x ``size`` pixels, untouched.
    - ``resize``: the whole picture to ``size`` x ``size``; the aspect ratio changes.
    - ``native``: as it is.

    Resizing is Pillow's Lanczos filter (three lobes, widened when shrinking, so nothing aliases) on 8-bit sRGB values.

    Args:
        picture: mode RGB.
        size: pixels; None only with ``native``.
        policy: see above.

    Raises:
        UnusableImageError: smaller than the crop.
    """
    if policy == "native" or size is None:
        return picture
    width, height = picture.size
    if policy == "resize":
        return picture.resize((size, size), Image.Resampling.LANCZOS)
    if policy == "crop":
        check_crop(picture.size, size)
        left, top = (width - size) // 2, (height - size) // 2
        return picture.crop((left, top, left + size, top + size))
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def check_crop(shape: tuple[int, int], size: int) -> None:
    """Refuses an image that does not hold a crop of ``size`` x ``size``.

    Raises:
        UnusableImageError: a side is shorter than ``size``.
    """
    if min(shape) < size:
        raise UnusableImageError(f"{shape[0]} x {shape[1]} pixels, smaller than the crop of {size} x {size}")


@contextmanager
def _opened(source: Path | BytesIO, max_pixels: int) -> Iterator[tuple[Image.Image, list[warnings.WarningMessage]]]:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            with Image.open(source, formats=_FORMATS) as picture:
                _check_size(picture.size, max_pixels)
                yield picture, warned
        except (UnusableImageError, MemoryError):
            raise
        except UnidentifiedImageError:
            raise UnusableImageError("; ".join(("no image that Pillow can read", *_warnings(warned)))) from None
        except Image.DecompressionBombError:
            raise UnusableImageError("more pixels than Pillow's own limit: perhaps a decompression bomb") from None
        # Pillow's decoders raise whatever a broken file leads them to (struct.error, IndexError, SyntaxError, ...).
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnusableImageError(f"cannot be decoded: {reason}") from None


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise UnusableImageError(f"{width} x {height} pixels: empty")
    if width * height > max_pixels:
        raise UnusableImageError(f"{width} x {height} pixels, more than max_pixels = {max_pixels}")


def _warnings(warned: list[warnings.WarningMessage]) -> tuple[str, ...]:
    # Whether a size is a bomb is decided by max_pixels here.
    kept = (w for w in warned if not issubclass(w.category, Image.DecompressionBombWarning))
    return tuple(dict.fromkeys("Pillow: " + " ".join(str(w.message).split()) for w in kept))


def _describe(picture: Image.Image) -> tuple[str, ...]:
    mode = picture.mode
    notes = []
    if mode == "F" or mode.startswith("I"):
        notes += ["floats scaled to 8 bits" if mode == "F" else "16 bits scaled to 8", "greyscale to RGB"]
    else:
        if _is_deep(picture):
            notes.append("16 bits to the high 8")
        if mode not in ("RGB", "RGBA", "RGBa", "RGBX"):
            names = {
                "1": "bilevel",
                "L": "greyscale",
                "LA": "greyscale",
                "La": "greyscale",
                "P": "palette",
                "PA": "palette",
            }
            notes.append(f"{names.get(mode, mode)} to RGB")
        if picture.has_transparency_data:
            notes.append("alpha over white")
    if getattr(picture, "is_animated", False):
        notes.append("first of several frames")
    # Asking a PNG for an EXIF block that has not come yet would decode it.
    if picture.format != "PNG" or "exif" in picture.info:
        notes += _turn_note(_orientation(picture))
    if profile := picture.info.get("icc_profile"):
        notes += _profile_note(profile)
    return tuple(notes)


def _is_deep(picture: Image.Image) -> bool:
    arguments = [tile[3] for tile in getattr(picture, "tile", ())]
    raw = [item[0] if isinstance(item, tuple) and item else item for item in arguments]
    return any(isinstance(item, str) and ";16" in item for item in raw)


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    # A broken EXIF block hides no pixel: the image counts as upright.
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _turn_note(orientation: int) -> tuple[str, ...]:
    return (f"EXIF orientation {orientation} applied",) if orientation in _TURNS else ()


def _profile_note(profile: bytes) -> tuple[str, ...]:
    try:
        from PIL import ImageCms

        name = ImageCms.getProfileDescription(ImageCms.getOpenProfile(BytesIO(profile))).strip()
    # Pillow may be built without colour management, and a profile may be broken; the pixels do not depend on it.
    except Exception:
        name = "unreadable"
    return () if "srgb" in name.lower() else (f"ICC profile ignored: {name}",)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(picture))).convert("RGB")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise UnusableImageError("floats outside 0 to 1: nothing says which value is white")
        return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    if values.min() < 0 or values.max() > 65535:
        raise UnusableImageError("integers outside 0 to 65535: nothing says which value is white")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
