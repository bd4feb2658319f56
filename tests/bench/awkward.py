"""Components outside the package that misbehave on demand; tests name them as ``awkward.py:Class``."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path  # noqa: TC003  pydantic needs it
from typing import ClassVar, Literal

import numpy as np
import torch

from waterproof.attacks.base import Attack
from waterproof.bench.methods.base import Evidence, Watermark
from waterproof.bench.methods.dwt import DwtDct, DwtDctSvd
from waterproof.bench.metrics import Metric
from waterproof.core.components import knob, param
from waterproof.core.images import Images
from waterproof.datasets.base import Index
from waterproof.datasets.deadleaves import DeadLeaves


def fingerprints(images: Images) -> list[tuple[str, str]]:
    """Id and pixel digest of each image."""
    return [(record.id, hashlib.sha256(array.tobytes()).hexdigest()) for record, array in images]


class Counted(DwtDct):
    """The DWT mark, which notes every image that it decodes."""

    name: ClassVar[str] = "counted"

    log: Path | None = knob(None, doc="File to append to, one line of JSON for each call.")
    pause: float = knob(0.0, doc="Seconds that a call takes longer.", ge=0)

    def decode(self, images: Images) -> Evidence:
        time.sleep(self.pause)
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(fingerprints(images)) + "\n")
        return super().decode(images)


class Troubled(DwtDct):
    """The DWT mark, with trouble wherever one image is in the batch."""

    name: ClassVar[str] = "troubled"

    trouble: str = param("none", doc="What goes wrong.")
    image: str = param("", doc="Where it goes wrong.")
    mended: Path | None = knob(None, doc="Nothing goes wrong once this file exists.")

    def _in(self, images: Images) -> bool:
        return self.image in images.ids and not (self.mended is not None and self.mended.exists())

    def embed(self, images: Images, keys: torch.Tensor, seed: object) -> Images:
        marked = super().embed(images, keys, seed)
        if not self._in(images):
            return marked
        if self.trouble == "embed raises":
            raise RuntimeError("no room for the mark")
        if self.trouble == "float tensor":
            return marked.float()
        if self.trouble == "float images":
            return Images(marked.float(), marked.records)
        if self.trouble == "other order":
            return marked.take(range(len(marked) - 1, -1, -1))
        if self.trouble == "fewer":
            return marked.take(range(len(marked) - 1))
        if self.trouble == "other size":
            return Images(marked.pixels[:, :, ::2], marked.records)
        return marked

    def decode(self, images: Images) -> Evidence:
        evidence = super().decode(images)
        if not self._in(images):
            return evidence
        if self.trouble == "decode raises":
            raise RuntimeError("lost the mark")
        if self.trouble == "shape":
            return Evidence(logits=evidence.logits[:, :-1])
        if self.trouble == "nan":
            return Evidence(logits=evidence.logits * torch.nan)
        if self.trouble == "array":
            return evidence.logits
        if self.trouble == "both":
            return Evidence(logits=evidence.logits, score=evidence.logits.sum(1))
        if self.trouble == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "exits":
            os._exit(7)
        return evidence


class Inverted(DwtDctSvd):
    """A decoder that reads every bit wrong: as much evidence as one that reads every bit right."""

    name: ClassVar[str] = "inverted"

    def decode(self, images: Images) -> Evidence:
        return Evidence(logits=-super().decode(images).logits)


class Presence(Watermark):
    """A mark without a payload: it makes images brighter and finds bright images."""

    name: ClassVar[str] = "presence"
    family: ClassVar[str] = "post-hoc"
    broken: bool = param(False, doc="Scores are infinite.")

    @property
    def bits(self) -> int:
        return 0

    def embed(self, images: Images, keys: torch.Tensor, seed: object) -> Images:
        return images.with_pixels(np.minimum(images.numpy().astype(int) + 40, 255).astype(np.uint8))

    def decode(self, images: Images) -> Evidence:
        score = images.float().double().mean(dim=(1, 2, 3))
        return Evidence(score=score / 0 if self.broken else score)


class TroubledAttack(Attack):
    """No attack, with trouble wherever one image is in the batch."""

    name: ClassVar[str] = "troubled-attack"
    family: ClassVar[str] = "degradation"

    trouble: Literal["none", "raises", "type", "order", "sleeps"] = param("none", doc="What goes wrong.")
    image: str = param("", doc="Where it goes wrong.")

    def apply(self, images: Images, seed: object) -> Images:
        if self.image in images.ids:
            if self.trouble == "raises":
                raise ValueError("cannot attack")
            if self.trouble == "type":
                return images.float()
            if self.trouble == "order":
                return images.take(range(len(images) - 1, -1, -1))
            if self.trouble == "sleeps":
                time.sleep(20)
        return images


class TroubledMetric(Metric):
    """A metric that is NaN, raises, or has another length for one image's batch."""

    name: ClassVar[str] = "troubled-metric"

    trouble: Literal["nan", "raises", "length"] = param("nan", doc="What goes wrong.")
    image: str = param("", doc="Where it goes wrong.")

    def compare(self, images: Images, prepared: object) -> np.ndarray:
        values = np.ones(len(images))
        if self.image not in images.ids:
            return values
        if self.trouble == "raises":
            raise ValueError("cannot compare")
        return values[1:] if self.trouble == "length" else np.where(np.array(images.ids) == self.image, np.nan, values)


class Backwards(DeadLeaves):
    """The same images in the opposite order, under the same name, by which seeds know the dataset."""

    name: ClassVar[str] = "deadleaves"

    def index(self, tick: object = None) -> Index:
        return Index(tuple(reversed(super().index(tick).records)))
