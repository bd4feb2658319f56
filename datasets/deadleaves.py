"""Procedural images with the statistics of natural ones: dead leaves."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, ClassVar

import cv2
import numpy as np
from PIL import Image

from ..core.components import param
from ..core.identity import canonical_json
from ..core.images import Images, Record, group_by_size
from ..core.seeds import Seed
from .base import Dataset, Index, Rejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..core.progress import Tick

_SMALLEST = 1.5
"""Smallest radius of a leaf, pixels."""

_LAYERS = 3.0
"""How often the leaves would cover the image; what stays bare (e^-3) shows the ground, a leaf as large as the image."""

_CORNERS = 24
_BITS = 4
"""OpenCV draws at a sixteenth of a pixel."""

# Luminance, yellow against blue, red against green: nearly uncorrelated in photographs, with falling spread.
_AXES = np.array([[1, 1, 1], [0.41, 0.41, -0.82], [0.71, -0.71, 0]], np.float32)


class DeadLeaves(Dataset):
    """Leaves of power-law size that hide one another, textured, lit and seen through a lens: unlimited images.

    The dead-leaves model (random shapes that occlude, the number of radius ``r`` falling as ``r^-3``) has the scale
    invariance, the edges and the 1/f^2 power spectrum of photographs. Shapes are ellipses and rounded rectangles.
    Each leaf gets a colour from its image's palette, a 1/f texture and a gradient; the picture is blurred (0.4 to 0.8
    pixels) and gets noise (0.7 to 2 grey levels), so no region is exactly flat.

    Such images test code and the tails of null distributions. They never certify a false-positive rate on photographs.
    Their label is ``real``: they carry no mark and no trained generator made them.
    The textures of all images of one ``seed`` are cut from one field of 2048 x 2048 values.

    Image ``i`` depends on ``seed``, ``size`` and ``jpeg`` only, whatever ``first`` and ``count`` are.

    Example:
        >>> images, _ = (d := DeadLeaves(count=2, first=5)).load(d.index().records)
        >>> images[0].ids, images[0].size
        (('deadleaves-000005', 'deadleaves-000006'), (256, 256))
    """

    name: ClassVar[str] = "deadleaves"
    summary: ClassVar[str] = "natural-statistics images, unlimited"
    references: ClassVar[tuple[str, ...]] = (
        "Lee, Mumford, Huang: Occlusion models for natural images, IJCV 41, 2001",
        "Baradad, Wulff, Wang, Isola, Torralba: Learning to see by looking at noise, NeurIPS 2021",
    )

    count: int = param(64, doc="Number of images.", ge=1, le=10_000_000)
    size: int = param(256, doc="Side of the square images, pixels, 32 to 1024.", ge=32, le=1024)
    first: int = param(0, doc="Number of the first image; disjoint ranges give independent images.", ge=0)
    seed: int = param(0, doc="Any integer; another one gives another series.")
    jpeg: int | None = param(
        None, doc="JPEG quality (1 to 100, 4:2:0) that the images have gone through; None for none.", ge=1, le=100
    )

    def index(self, tick: Tick | None = None) -> Index:
        """Lists the images; none is drawn."""
        records = []
        for number in range(self.first, self.first + self.count):
            records.append(self._record(number))
            if tick is not None:
                tick(1, records[-1].id)
        return Index(tuple(records))

    def load(self, records: Sequence[Record]) -> tuple[list[Images], list[Rejected]]:
        """Draws the images; a record that is not one of this series is rejected."""
        drawn: list[tuple[Record, np.ndarray]] = []
        rejected: list[Rejected] = []
        for record in records:
            number = record.id.removeprefix("deadleaves-")
            known = number.isdecimal() and self._record(int(number)).id == record.id
            if known and record.digest in (None, self._record(int(number)).digest):
                drawn.append((record, self._draw(int(number))))
            else:
                rejected.append(Rejected(record.id, "not an image of this procedural series"))
        return group_by_size(drawn), rejected

    def _record(self, number: int) -> Record:
        what = {"version": self.version, "seed": self.seed, "size": self.size, "jpeg": self.jpeg, "number": number}
        return Record(
            id=f"deadleaves-{number:06d}",
            container=None if self.jpeg is None else "JPEG",
            size=(self.size, self.size),
            digest=hashlib.sha256(canonical_json(what).encode()).hexdigest(),
        )

    def _draw(self, number: int) -> np.ndarray:
        root = Seed.root(self.seed).child("deadleaves")
        rng = root.child("image", number).numpy()
        picture = _expose(_paint(_labels(self.size, rng), _texture(root), rng), rng)
        if self.jpeg is None:
            return picture
        file = BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=self.jpeg, subsampling="4:2:0")
        with Image.open(file) as decoded:
            return np.asarray(decoded)


@lru_cache(maxsize=8)
def _radii(size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The distribution of the radii of leaves that touch the image, and the number of leaves to draw.

    A leaf of radius ``r`` touches the image if its centre lies in a square of side ``size + 2 r``.
    """
    radii = np.geomspace(_SMALLEST, size / 2, 512)
    weights = radii**-3 * (size + 2 * radii) ** 2 * np.gradient(radii)
    below = np.cumsum(weights)
    inside = np.pi * radii**2 * (size / (size + 2 * radii)) ** 2
    mean_area = float((inside * weights).sum() / below[-1])
    return radii, below / below[-1], round(_LAYERS * size * size / mean_area)


def _labels(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws the leaves, each over the earlier ones; returns the leaf that is seen at each pixel, 0 for the ground."""
    radii, below, count = _radii(size)
    radius = np.interp(rng.random(count), below, radii)
    centre = rng.random((count, 2)) * (size + 2 * radius[:, None]) - radius[:, None]
    # A superellipse: exponent 1 is an ellipse, near 0 a rectangle; half of the leaves are ellipses.
    exponent = np.where(rng.random(count) < 0.5, 1.0, rng.uniform(0.03, 0.8, count))[:, None]
    stretch = np.sqrt(rng.uniform(0.4, 1.0, count))[:, None]
    turn = rng.uniform(0, np.pi, count)[:, None]
    angle = 2 * np.pi * np.arange(_CORNERS) / _CORNERS
    along = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** exponent * radius[:, None] / stretch
    across = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** exponent * radius[:, None] * stretch
    corners = np.stack(
        [
            along * np.cos(turn) - across * np.sin(turn) + centre[:, :1],
            along * np.sin(turn) + across * np.cos(turn) + centre[:, 1:],
        ],
        axis=-1,
    )
    fixed = np.rint(corners * (1 << _BITS)).astype(np.int32)
    labels = np.zeros((size, size), np.int32)
    for leaf, outline in enumerate(fixed, start=1):
        cv2.fillConvexPoly(labels, outline, leaf, cv2.LINE_8, _BITS)
    return labels


def _paint(labels: np.ndarray, texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colour, texture and gradient of each leaf; float32 ``[H, W, 3]`` in log-odds of the grey value."""
    size, count = labels.shape[0], int(labels.max()) + 1
    spread = np.array([rng.uniform(0.7, 1.3), rng.uniform(0.15, 0.5), rng.uniform(0.08, 0.3)])
    mean = rng.normal(size=3) * (0.45, 0.2, 0.1) + (-0.25, 0.12, 0.03)
    colours = ((mean + rng.laplace(size=(count, 3)) / np.sqrt(2) * spread) @ _AXES).astype(np.float32)

    strength = (rng.uniform(0.1, 0.3) * rng.lognormal(0, 0.6, count)).astype(np.float32)
    slope = (rng.normal(0, 0.5 / size, (count, 2))).astype(np.float32)
    room = texture.shape[1] - size + 1
    offset = rng.integers(room, size=count) * texture.shape[1] + rng.integers(room, size=count)

    grid = np.arange(size)
    places = grid[:, None] * texture.shape[1] + grid + np.take(offset, labels)
    light = np.take(strength, labels) * np.take(texture.ravel(), places)
    centred = (grid - size / 2).astype(np.float32)
    light += np.take(slope[:, 0], labels) * centred + np.take(slope[:, 1], labels) * centred[:, None]
    painted: np.ndarray = np.take(colours, labels, axis=0) + light[..., None]
    return painted


def _expose(painted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The camera: a response that never saturates, the lens's blur, noise, 8 bits."""
    grey = np.float32(255) / (1 + np.exp(-painted))
    blurred = cv2.GaussianBlur(grey, (5, 5), rng.uniform(0.4, 0.8), borderType=cv2.BORDER_REFLECT_101)
    noise = rng.standard_normal(blurred.shape, dtype=np.float32) * np.float32(rng.uniform(0.7, 2.0))
    exposed: np.ndarray = np.clip(np.rint(blurred + noise), 0, 255).astype(np.uint8)
    return exposed


@lru_cache(maxsize=2)
def _texture(root: Seed) -> np.ndarray:
    """A field of 2048 x 2048 values with power 1/f^2, mean 0 and variance 1; random phases, so it is periodic."""
    side = 2048
    white = root.child("texture").numpy().standard_normal((side, side))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    # Below eight periods a field the waves would be wider than any leaf and only shift its colour.
    spectrum = np.fft.rfft2(white) / np.maximum(frequency, 8 / side)
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (side, side))
    return np.ascontiguousarray(field / field.std(), np.float32)
