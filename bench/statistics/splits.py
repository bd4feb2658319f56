"""Which images calibrate a threshold and which test it, decided by a hash of the image's source.

Crops of one photograph and images of one prompt share a source and never straddle the split; the split is the same for
every method and does not depend on which other images there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...core.errors import StatisticsError
from ...core.seeds import Seed
from .domain import IntArray, open_unit

Source = str | int | None
"""What an image was made from; None where it is unknown, which counts as a source of its own."""

Sources = Sequence[Source] | npt.NDArray[np.generic] | None
"""A source for each image, or None where every image is its own source."""

_DOMAIN = b"waterproof-split-1:"


def split(source: str | int, calibration_share: float = 0.5) -> Literal["calibration", "test"]:
    """The side on which all images of ``source`` stand.

    Args:
        source: what the images were made from; 7 and ``"7"`` are the same source.
        calibration_share: the expected share of sources that calibrate, strictly between 0 and 1. A source that
            calibrates at one share also calibrates at every larger one.

    Example:
        >>> split("astronaut"), split("coffee")
        ('test', 'calibration')
    """
    share = open_unit(calibration_share, "calibration_share")
    if source is None or isinstance(source, bool):
        raise StatisticsError(f"a source is a str or an int, not {source!r}; give an image without one its own id")
    digest = hashlib.sha256(_DOMAIN + str(source).encode()).digest()
    return "calibration" if int.from_bytes(digest[:8], "big") < share * 2.0**64 else "test"


def source_codes(sources: Sources, n: int) -> IntArray:
    """Numbers the sources 0, 1, ... in order of first appearance.

    Args:
        sources: one for each image; None, and NaN as a table's stand-in for None, count as a source of their own.
        n: the number of images.

    Returns:
        int64 ``[n]``.

    Raises:
        StatisticsError: there are not ``n`` sources.

    Example:
        >>> source_codes(["a", None, "a", None], 4).tolist()
        [0, 1, 0, 2]
    """
    if sources is None:
        return np.arange(n, dtype=np.int64)
    items = sources.tolist() if isinstance(sources, np.ndarray) else list(sources)
    if len(items) != n:
        raise StatisticsError(f"there are {len(items)} sources for {n} images; give one for each image")
    known: dict[object, int] = {}
    codes = np.empty(n, dtype=np.int64)
    for index, item in enumerate(items):
        # NaN differs from itself.
        name = ("unknown", index) if item is None or item != item else item
        codes[index] = known.setdefault(name, len(known))
    return codes


def one_per_source(sources: Sources, seed: int = 0, n: int | None = None) -> IntArray:
    """Picks one image of each source; the pick within a source depends on the seed and on that source only.

    Args:
        sources: one for each image.
        seed: any integer.
        n: the number of images; needed only where ``sources`` is None.

    Returns:
        int64 indices, ascending, as many as there are sources.

    Raises:
        StatisticsError: ``sources`` is None and ``n`` is not given.

    Example:
        >>> one_per_source(["a", "b", "a", None], 0).tolist()
        [0, 1, 3]
    """
    if sources is None:
        if n is None:
            raise StatisticsError("without sources the number of images must be given")
        return np.arange(n, dtype=np.int64)
    codes = source_codes(sources, len(sources) if n is None else n)
    counts = np.bincount(codes)
    if counts.size == codes.size:
        return np.arange(codes.size, dtype=np.int64)
    # A stable sort lists each source's images together, in their own order.
    order = np.argsort(codes, kind="stable")
    starts = np.cumsum(counts) - counts
    tree = Seed.root(seed).child("one-per-source")
    picks = [
        order[start] if count == 1 else order[start + tree.child(str(sources[order[start]])).integer % int(count)]
        for start, count in zip(starts, counts, strict=True)
    ]
    return np.sort(np.asarray(picks, dtype=np.int64))
