"""Marks, attacks and reads single files, by the same components that a run uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ..attacks.base import Attack
from ..core.errors import DatasetError, SpecError, UnavailableError
from ..core.images import Images, Record
from ..core.registry import create
from ..core.seeds import Seed
from .keys import key_bits
from .methods.base import Method, Watermark
from .shard import score
from .statistics import binomial

if TYPE_CHECKING:
    from pathlib import Path

    from ..core.components import Component


def embed_file(method: str, image: Path, out: Path, key: str | None, seed: int, params: dict[str, Any]) -> str:
    """Marks one file; returns a line for people with the payload."""
    mark = _ready(create("method", method, params))
    if not isinstance(mark, Watermark):
        raise SpecError(f"{method} is no watermark: it cannot mark an image")
    images = _read(image)
    bits = key_bits(key or "fixed", seed, mark.bits, "", mark.users)
    marked = mark.embed(images, torch.from_numpy(bits[None]), Seed.root(seed).child("embed", "file", mark.name))
    _write(marked, out)
    return f"{out}: {mark.label}, payload {''.join('01'[int(b)] for b in bits)}"


def detect_file(method: str, image: Path, key: str | None, seed: int, fpr: float, params: dict[str, Any]) -> str:
    """Reads one file; returns matching bits, p-value and decision.

    Raises:
        StatisticsError: the payload is too short for this false-positive rate.
    """
    reader = _ready(create("method", method, params))
    if not isinstance(reader, Method):
        raise SpecError(f"{method} is no method")
    (row,) = score(reader, _read(image))
    if row.logits is None or not isinstance(reader, Watermark):
        return f"{image}: {reader.label} score {row.value:.6g}"
    bits = key_bits(key or "fixed", seed, reader.bits, "", reader.users)
    read = row.logits > 0
    matches = int((read == bits).sum())
    needed = binomial.threshold(reader.bits, fpr)
    p = float(binomial.log10_p(np.array([matches]), reader.bits)[0])
    verdict = "marked" if matches >= needed else "not shown to be marked"
    return (
        f"{image}: {verdict} at FPR {fpr:g} ({matches} of {reader.bits} bits match, {needed} needed; "
        f"log10 p = {p:.2f} if the bits of unmarked images are fair: test that with a run)\n"
        f"read {''.join('01'[int(b)] for b in read)}"
    )


def attack_file(name: str, image: Path, out: Path, seed: int, params: dict[str, Any]) -> str:
    """Attacks one file; returns a line for people."""
    attack = _ready(create("attack", name, params))
    if not isinstance(attack, Attack):
        raise SpecError(f"{name} is no attack")
    attacked = attack.apply(_read(image), Seed.root(seed).child("attack", "file", attack.name))
    _write(attacked, out)
    return f"{out}: {attack.label}"


def _ready(part: Component) -> Component:
    reason = part.unavailable()
    if reason:
        raise UnavailableError(f"{part.label}: {reason}")
    return part


def _read(path: Path) -> Images:
    if not path.is_file():
        raise DatasetError(f"no such image: {path}")
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as an image: {error}") from None
    return Images.from_pil([upright], [Record(path.name)])


def _write(images: Images, path: Path) -> None:
    try:
        images.pil()[0].save(path, quality=95)
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot write {path}: {error}") from None
