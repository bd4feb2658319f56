"""``Images``: what travels between maker, attacker and detector. Always 8-bit, because that is what a file holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from .errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one image besides its pixels.

    Attributes:
        id: unique within its dataset and stable: seeds and stored rows use it.
        source: crops of one photograph, or images of one prompt, share it; intervals cluster by it.
        label: ``"real"``, or the name of the generator that made the image.
        split: ``"calibration"`` or ``"test"`` where the dataset fixes it; None lets a hash of the source decide.
        caption: text that belongs to the image.
        pair: id of the image that this one is paired with.
        container: file format, e.g. ``"JPEG"``.
        size: (width, height) in pixels as stored in the file.
        digest: SHA-256 of the file, or of what defines the image.
        notes: what a loader did to it ("upscaled", "alpha dropped").
        seed: of the noise that a generated image begins as.
    """

    id: str
    source: str = ""
    label: str = "real"
    split: str | None = None
    caption: str | None = None
    pair: str | None = None
    container: str | None = None
    size: tuple[int, int] | None = None
    digest: str | None = None
    notes: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.source:
            object.__setattr__(self, "source", self.id)


@dataclass(frozen=True, slots=True)
class Images:
    """A batch of images of one size.

    Attributes:
        pixels: uint8 tensor ``[B, 3, H, W]``, sRGB, 0 to 255, in channels-last memory order, so that
            :meth:`numpy` is a view.
        records: one :class:`Record` for each image.

    Raises:
        ImageError: wrong type, shape, or a number of records that does not match.

    Example:
        >>> images = Images.from_numpy(np.zeros((2, 64, 48, 3), np.uint8), [Record("a"), Record("b")])
        >>> images.size, len(images)
        ((64, 48), 2)
    """

    pixels: torch.Tensor
    records: tuple[Record, ...] = field(default=())

    def __post_init__(self) -> None:
        pixels = self.pixels
        if not isinstance(pixels, torch.Tensor):
            raise ImageError(f"pixels must be a torch tensor, not {type(pixels).__name__}")
        if pixels.dtype != torch.uint8:
            raise ImageError(f"pixels must be uint8 (0 to 255), not {pixels.dtype}: convert with Images.from_float")
        if pixels.ndim != 4 or pixels.shape[1] != 3 or 0 in pixels.shape[2:]:
            raise ImageError(f"pixels must have shape [B, 3, H, W], not {list(pixels.shape)}")
        if len(self.records) != pixels.shape[0]:
            raise ImageError(f"{pixels.shape[0]} images but {len(self.records)} records")
        if not pixels.is_contiguous(memory_format=torch.channels_last):
            object.__setattr__(self, "pixels", pixels.contiguous(memory_format=torch.channels_last))
        object.__setattr__(self, "records", tuple(self.records))

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def __iter__(self) -> Iterator[tuple[Record, np.ndarray]]:
        return iter(zip(self.records, self.numpy(), strict=True))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self.pixels.shape[2]), int(self.pixels.shape[3])

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the records."""
        return tuple(record.id for record in self.records)

    @classmethod
    def from_numpy(cls, array: np.ndarray, records: Sequence[Record]) -> Images:
        """From uint8 ``[B, H, W, 3]``; no copy where the array is contiguous and writable."""
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
            raise ImageError(f"expected uint8 [B, H, W, 3], got {array.dtype} {list(array.shape)}")
        # torch knows no read-only tensors and would let somebody write into the owner's array.
        own = np.ascontiguousarray(array) if array.flags.writeable else array.copy()
        return cls(torch.from_numpy(own).permute(0, 3, 1, 2), tuple(records))

    @classmethod
    def from_float(cls, values: torch.Tensor, records: Sequence[Record]) -> Images:
        """From floats ``[B, 3, H, W]`` in 0 to 1: clipped, then rounded to the nearest grey level.

        Raises:
            ImageError: a value is NaN or infinite, or the tensor is not floating point.
        """
        if not values.is_floating_point():
            raise ImageError(f"expected floats in 0 to 1, got {values.dtype}")
        if not bool(torch.isfinite(values).all()):
            raise ImageError("NaN or infinite pixels")
        return cls(values.clamp(0, 1).mul(255).round().to(torch.uint8), tuple(records))

    @classmethod
    def from_pil(cls, pictures: Sequence[Image.Image], records: Sequence[Record]) -> Images:
        """From PIL images of one size and mode RGB."""
        modes = {picture.mode for picture in pictures} - {"RGB"}
        sizes = {picture.size for picture in pictures}
        if modes or len(sizes) > 1:
            raise ImageError(f"expected RGB pictures of one size, got modes {sorted(modes)}, sizes {sorted(sizes)}")
        return cls.from_numpy(np.stack([np.asarray(picture) for picture in pictures]), records)

    def numpy(self) -> np.ndarray:
        """A read-only uint8 view ``[B, H, W, 3]`` (contiguous, no copy)."""
        array: np.ndarray = self.pixels.permute(0, 2, 3, 1).numpy()
        array.flags.writeable = False
        return array

    def float(self) -> torch.Tensor:
        """Float32 ``[B, 3, H, W]`` in 0 to 1."""
        return self.pixels.float().div_(255)

    def pil(self) -> list[Image.Image]:
        """The images as PIL pictures, mode RGB."""
        return [Image.fromarray(array) for array in self.numpy()]

    def take(self, indices: Sequence[int]) -> Images:
        """The images at ``indices``, in that order."""
        return Images(self.pixels[list(indices)], tuple(self.records[i] for i in indices))

    def with_pixels(self, array: np.ndarray) -> Images:
        """The same records with other pixels, uint8 ``[B, H, W, 3]``."""
        return Images.from_numpy(array, self.records)

    def with_notes(self, *notes: str) -> Images:
        """The same images with ``notes`` added to every record."""
        return replace(self, records=tuple(replace(r, notes=(*r.notes, *notes)) for r in self.records))


def group_by_size(items: Sequence[tuple[Record, np.ndarray]]) -> list[Images]:
    """Groups single images ``[H, W, 3]`` into batches of one size; order within a size is kept."""
    groups: dict[tuple[int, ...], list[tuple[Record, np.ndarray]]] = {}
    for record, array in items:
        groups.setdefault(array.shape, []).append((record, array))
    return [Images.from_numpy(np.stack([a for _, a in group]), [r for r, _ in group]) for group in groups.values()]
