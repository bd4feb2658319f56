"""Training images: a folder of photographs in memory, and random crops of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps

from ...core.errors import DatasetError
from ...core.identity import file_digest
from ...datasets.decoding import EXTENSIONS

if TYPE_CHECKING:
    from pathlib import Path

    from ...core.progress import Tick


@dataclass(frozen=True)
class Photographs:
    """Photographs as uint8 tensors ``[3, H, W]``, the short side at most ``short`` pixels.

    Attributes:
        train: those that are trained on.
        validation: those that are kept out, to measure with.
        digest: of the files' bytes and of what was done to them.
        names: paths below the folder, those of ``train`` first.
        rejected: files that were left out, with the reason.
    """

    train: tuple[torch.Tensor, ...]
    validation: tuple[torch.Tensor, ...]
    digest: str
    names: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...]

    @classmethod
    def load(cls, folder: Path, short: int, validation: int, tick: Tick | None = None) -> Photographs:
        """Reads every image below ``folder``.

        Args:
            folder: any tree of images.
            short: the short side is brought down to this many pixels; smaller images are left out.
            validation: how many are kept out, chosen by a hash of their bytes.
            tick: progress, one unit for each file.

        Raises:
            DatasetError: no such folder, or too few images in it.
        """
        if not folder.is_dir():
            raise DatasetError(f"no such folder of photographs: {folder}")
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        kept: dict[str, tuple[str, torch.Tensor]] = {}
        rejected = []
        for path in paths:
            name = path.relative_to(folder).as_posix()
            try:
                kept[file_digest(path)] = (name, _read(path, short))
            except (OSError, ValueError, SyntaxError) as error:
                rejected.append((name, str(error)))
            if tick is not None:
                tick(1, name)
        if len(kept) < validation + 1:
            raise DatasetError(
                f"{folder} holds {len(kept)} photographs of at least {short} pixels a side; "
                f"at least {validation + 1} are needed ({validation} of them to measure with)"
            )
        # The order depends on bytes alone: a folder may be moved and its files renamed.
        order = sorted(kept)
        out, rest = order[:validation], order[validation:]
        digest = hashlib.sha256(f"photographs-1 {short} {validation} {' '.join(order)}".encode()).hexdigest()
        return cls(
            tuple(kept[d][1] for d in rest),
            tuple(kept[d][1] for d in out),
            digest,
            tuple(kept[d][0] for d in (*rest, *out)),
            tuple(rejected),
        )

    def batch(self, count: int, size: int, generator: torch.Generator) -> torch.Tensor:
        """Random square crops, half of them mirrored: float32 ``[count, 3, size, size]`` in 0 to 1."""
        chosen = torch.randint(len(self.train), (count,), generator=generator).tolist()
        crops = [_crop(self.train[i], size, generator) for i in chosen]
        return torch.stack(crops).float().div_(255).contiguous(memory_format=torch.channels_last)

    def held_out(self, size: int) -> torch.Tensor:
        """The central square of each photograph that is kept out: float32 ``[n, 3, size, size]`` in 0 to 1."""
        return torch.stack([centre(image, size) for image in self.validation]).float().div_(255)


def centre(image: torch.Tensor, size: int) -> torch.Tensor:
    """The central square of an image ``[3, H, W]``."""
    top, left = (image.shape[1] - size) // 2, (image.shape[2] - size) // 2
    return image[:, top : top + size, left : left + size]


def _crop(image: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    top = int(torch.randint(image.shape[1] - size + 1, (), generator=generator))
    left = int(torch.randint(image.shape[2] - size + 1, (), generator=generator))
    crop = image[:, top : top + size, left : left + size]
    return crop.flip(-1) if bool(torch.rand((), generator=generator) < 0.5) else crop


def _read(path: Path, short: int) -> torch.Tensor:
    with Image.open(path) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    scale = short / min(upright.size)
    if scale > 1:
        raise ValueError(f"{upright.width}x{upright.height} pixels; the short side must have at least {short}")
    size = tuple(max(short, round(side * scale)) for side in upright.size)
    small = upright.resize(size, Image.Resampling.LANCZOS)  # type: ignore[arg-type]
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).contiguous()
