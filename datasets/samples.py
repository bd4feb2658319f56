"""The embedded default: photographs that scikit-image's and scikit-learn's wheels carry."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL import Image

from ..core.components import param
from ..core.errors import DatasetError
from ..core.identity import file_digest
from ..core.images import Images, Record, group_by_size
from .base import Dataset, Index, Rejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..core.progress import Tick

_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}

# Photographs only: no logo, drawing, phantom, page of text, chessboard, colour wheel or computed phase image, and
# nothing of less than 256 pixels. The two views of one motorcycle are one scene.
_PHOTOGRAPHS = (
    ("skimage", "astronaut.png", "astronaut"),
    ("skimage", "chelsea.png", "chelsea"),
    ("skimage", "coffee.png", "coffee"),
    ("sklearn", "china.jpg", "china"),
    ("sklearn", "flower.jpg", "flower"),
    ("skimage", "rocket.jpg", "rocket"),
    ("skimage", "motorcycle_left.png", "motorcycle"),
    ("skimage", "hubble_deep_field.jpg", "hubble_deep_field"),
    ("skimage", "ihc.png", "ihc"),
    ("skimage", "retina.jpg", "retina"),
    ("skimage", "camera.png", "camera"),
    ("skimage", "coins.png", "coins"),
    ("skimage", "brick.png", "brick"),
    ("skimage", "grass.png", "grass"),
    ("skimage", "gravel.png", "gravel"),
    ("skimage", "moon.png", "moon"),
    ("skimage", "clock_motion.png", "clock_motion"),
    ("skimage", "motorcycle_right.png", "motorcycle"),
)

_SMALL_SIDE = 256
"""Side in pixels of the crops that are upscaled where a photograph holds too few of the wanted size."""

_ENOUGH = 4
"""With so many crops of the wanted size a photograph needs neither overlapping nor upscaled ones."""


@dataclass(frozen=True, slots=True)
class _Crop:
    left: int
    top: int
    side: int


class Samples(Dataset):
    """Crops of the 18 photographs (17 scenes) inside scikit-image and scikit-learn; nothing is downloaded.

    They illustrate, they do not certify: crops of one photograph share its source, so there are 17 independent
    observations whatever the number of crops. The first crops of all photographs come first, then the second ones.

    A photograph gives its most central crops of ``size`` pixels. Where fewer than four fit side by side they overlap
    by up to a quarter of their side. Where that still gives fewer than four and ``size`` is above 256, crops of 256
    pixels follow, upscaled by Lanczos and noted as ``upscaled``: 67 images at 256 pixels, none of them upscaled; 72
    at 512, 59 of them upscaled. Greyscale photographs are replicated to RGB.

    Example:
        >>> [record.id for record in Samples().index().records[:3]]
        ['astronaut-0', 'chelsea-0', 'coffee-0']
    """

    name: ClassVar[str] = "samples"
    summary: ClassVar[str] = "photographs from scikit-image and scikit-learn"
    references: ClassVar[tuple[str, ...]] = (
        "S. van der Walt et al.: scikit-image: image processing in Python. PeerJ 2:e453, 2014.",
        "F. Pedregosa et al.: Scikit-learn: Machine Learning in Python. JMLR 12, 2011.",
    )

    size: int = param(256, doc="Side of the square images, pixels, 64 to 512.", ge=64, le=512)
    crops: int = param(6, doc="At most so many crops of each photograph, 1 to 16.", ge=1, le=16)

    def index(self, tick: Tick | None = None) -> Index:
        """Lists the crops of the photographs that are there; an absent or broken file is listed as rejected.

        Raises:
            DatasetError: none of the photographs is there.
        """
        listed: list[list[Record]] = []
        rejected: list[Rejected] = []
        for package, file, source in _PHOTOGRAPHS:
            try:
                listed.append(self._records(_locate(package, file), source))
            except OSError:
                rejected.append(Rejected(Path(file).stem, f"{package} carries no readable {file} in this version"))
            if tick is not None:
                tick(1, file)
        records = tuple(r for row in zip_longest(*listed) for r in row if r is not None)
        if not records:
            raise DatasetError(
                "none of the sample photographs is there: reinstall scikit-image and scikit-learn from PyPI"
            )
        return Index(records, tuple(rejected))

    def load(self, records: Sequence[Record]) -> tuple[list[Images], list[Rejected]]:
        """Cuts the crops; a crop that this version of the packages does not give is rejected."""
        loaded: list[tuple[Record, np.ndarray]] = []
        rejected: list[Rejected] = []
        for record in records:
            pixels = self._cut(record)
            if isinstance(pixels, Rejected):
                rejected.append(pixels)
            else:
                loaded.append((record, pixels))
        return group_by_size(loaded), rejected

    def _records(self, path: Path, source: str) -> list[Record]:
        content = file_digest(path)
        with Image.open(path) as picture:
            container, mode, shape = picture.format, picture.mode, picture.size
        grey = () if mode == "RGB" else ("greyscale to RGB",)
        return [
            Record(
                id=f"{path.stem}-{number}",
                source=source,
                container=container,
                size=shape,
                digest=_digest(content, crop),
                notes=grey if crop.side == self.size else (*grey, "upscaled"),
            )
            for number, crop in enumerate(_plan(shape, self.size, self.crops))
        ]

    def _cut(self, record: Record) -> np.ndarray | Rejected:
        stem, _, number = record.id.rpartition("-")
        place = next(((p, f) for p, f, _ in _PHOTOGRAPHS if Path(f).stem == stem), None)
        if place is None or not number.isdecimal():
            return Rejected(record.id, "no sample photograph has this name")
        try:
            path = _locate(*place)
            content = file_digest(path)
            photograph = _photograph(path, content)
        except OSError:
            return Rejected(record.id, f"{place[0]} carries no readable {place[1]} in this version")
        plan = _plan(photograph.size, self.size, self.crops)
        if int(number) >= len(plan):
            return Rejected(record.id, f"this photograph gives {len(plan)} crops of {self.size} pixels")
        crop = plan[int(number)]
        if record.digest is not None and record.digest != _digest(content, crop):
            return Rejected(record.id, "changed since the run began")
        piece = photograph.crop((crop.left, crop.top, crop.left + crop.side, crop.top + crop.side))
        if crop.side != self.size:
            piece = piece.resize((self.size, self.size), Image.Resampling.LANCZOS)
        return np.asarray(piece)


def _locate(package: str, file: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(package)
    return Path(spec.origin).parent / _FOLDERS[package] / file


@lru_cache(maxsize=len(_PHOTOGRAPHS))
def _photograph(path: Path, content: str) -> Image.Image:
    """Decoded once (about 20 MB for all); the digest is part of the key, so a changed file is read again."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _digest(content: str, crop: _Crop) -> str:
    return hashlib.sha256(f"{content} {crop.left} {crop.top} {crop.side}".encode()).hexdigest()


@lru_cache(maxsize=256)
def _plan(shape: tuple[int, int], size: int, most: int) -> tuple[_Crop, ...]:
    crops = _grid(shape, size, most)
    if len(crops) < _ENOUGH and size > _SMALL_SIDE:
        crops += _grid(shape, _SMALL_SIDE, most - len(crops))
    return tuple(crops)


def _grid(shape: tuple[int, int], side: int, most: int) -> list[_Crop]:
    """Up to ``most`` squares on an even grid, the most central ones first."""
    width, height = shape
    if min(shape) < side or most < 1:
        return []
    columns, rows = width // side, height // side
    if columns * rows < min(most, _ENOUGH):
        step = side - side // 4
        columns, rows = 1 + (width - side) // step, 1 + (height - side) // step
    crops = [_Crop(x, y, side) for y in _starts(height, side, rows) for x in _starts(width, side, columns)]

    def off_centre(crop: _Crop) -> tuple[int, int, int]:
        across, down = 2 * crop.left + side - width, 2 * crop.top + side - height
        return across * across + down * down, crop.top, crop.left

    return sorted(crops, key=off_centre)[:most]


def _starts(length: int, side: int, count: int) -> list[int]:
    """Side by side around the middle where there is room, else spread over the whole length."""
    step = min(side, (length - side) // max(count - 1, 1))
    first = (length - side - step * (count - 1)) // 2
    return [first + step * i for i in range(count)]
