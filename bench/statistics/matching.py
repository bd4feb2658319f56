"""Which key of a bank matches an image best.

The search visits every pair of image and key, a tile at a time: the XOR of a few images with some thousand keys, its
population count, and the smallest count of each image stay in the second-level cache. Only these smallest counts are
kept; a second pass visits again the tiles that hold the best, to count ties and find the first. So memory is one number
for every image and tile, never images x keys.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...core.errors import StatisticsError
from .keybank import BLOCK, KeyBank, OwnKeys, Words, pack, packed, spans, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ...core.progress import Tick
    from .domain import BoolArray, IntArray

__all__ = ["Best", "KeyBank", "Words", "available_cores", "best", "pack", "unpack"]

_TILE = 1 << 13
_PAIRS = 1 << 16
_CHUNK = 2048

Counts = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True)
class Best:
    """The best match of every image among the first N keys, for each N of ``checkpoints``.

    Attributes:
        checkpoints: the numbers of keys N, ascending.
        matches: int64 ``[n, C]``, the largest number of matching bits; -1 for N = 0.
        ties: int64 ``[n, C]``, how many keys attain it.
        first: int64 ``[n, C]``, the index in the bank of the first of them; -1 for N = 0.
    """

    checkpoints: tuple[int, ...]
    matches: IntArray
    ties: IntArray
    first: IntArray


def best(
    decoded: Words,
    bank: KeyBank,
    checkpoints: Sequence[int],
    exclude: Words | None = None,
    threads: int | None = None,
    tick: Tick | None = None,
) -> Best:
    """Finds for every image the key that matches most bits, among the first N keys of the bank.

    Args:
        decoded: packed payloads ``[n, ceil(k / 64)]`` that were read from the images.
        bank: the keys.
        checkpoints: numbers of keys N, at least 0; all are answered in one pass.
        exclude: packed ``[n, ceil(k / 64)]``, the image's own key. Where the bank holds it, it is passed over: the
            first N keys are the first N *others*, so that many more keys of the bank may be read.
        threads: how many threads work; None for as many as there are cores. The result does not depend on it.
        tick: told the number of pairs of image and key that were compared, from the threads, one at a time.

    Raises:
        StatisticsError: the shapes do not fit, or the bank holds fewer than N (other) keys.

    Example:
        >>> found = best(pack(np.array([[True, True, False]])), KeyBank.of(np.eye(3, dtype=bool)), [1, 3])
        >>> found.matches.tolist(), found.ties.tolist(), found.first.tolist()
        ([[2, 2]], [[1, 2]], [[0, 0]])
    """
    images = packed(decoded, bank.bits, "decoded")
    own = None if exclude is None else packed(exclude, bank.bits, "exclude")
    if own is not None and len(own) != len(images):
        raise StatisticsError(f"there are {len(own)} keys to exclude for {len(images)} images; give one for each")
    if threads is not None and threads < 1:
        raise StatisticsError(f"{threads} threads; at least one is needed, or None for as many as there are cores")
    ends = sorted({int(end) for end in checkpoints})
    if not ends or ends[0] < 0 or ends[-1] > bank.users:
        raise StatisticsError(f"the numbers of keys must lie in 0..{bank.users} (the bank's), not {list(checkpoints)}")
    n, workers = len(images), threads or available_cores()
    result = _nothing(n, ends)
    said = _serialised(tick)
    rounds = max(1, -(-n // (_CHUNK * workers)))
    chunks = list(spans(0, n, max(1, -(-n // (rounds * workers)))))

    def work(chunk: tuple[int, int]) -> None:
        part = slice(*chunk)
        search = _Search(images[part], bank, ends, None if own is None else own[part], said)
        found = search.run()
        result.matches[part], result.ties[part], result.first[part] = found.matches, found.ties, found.first

    if workers == 1 or len(chunks) < 2:
        for chunk in chunks:
            work(chunk)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, chunks))
    return result


def _nothing(n: int, ends: Sequence[int]) -> Best:
    return Best(tuple(ends), *(np.full((n, len(ends)), fill, dtype=np.int64) for fill in (-1, 0, -1)))


@dataclass(frozen=True, slots=True)
class _Piece:
    """Keys that are fetched together, and the tiles that they are cut into."""

    start: int
    stop: int
    tiles: tuple[tuple[int, int], ...]


def _pieces(ends: Sequence[int]) -> list[_Piece]:
    edges = sorted({0, *ends})
    return [
        _Piece(start, stop, tuple(spans(start, stop, _TILE)))
        for low, high in pairwise(edges)
        for start, stop in spans(low, high, BLOCK)
    ]


@dataclass(frozen=True, slots=True)
class _Hits:
    """Where an image meets its own key: image and position, one entry for each meeting."""

    images: IntArray
    positions: IntArray

    def within(self, part: slice) -> _Hits:
        """Those in a part of the keys, positions counted from its start."""
        if not self.images.size:
            return self
        inside = (self.positions >= part.start) & (self.positions < part.stop)
        return _Hits(self.images[inside], self.positions[inside] - part.start)

    def among(self, who: IntArray) -> _Hits:
        """Those of some images, which are numbered anew in the order of ``who`` (ascending)."""
        if not self.images.size:
            return self
        place = np.minimum(np.searchsorted(who, self.images), who.size - 1)
        inside = who[place] == self.images
        return _Hits(place[inside], self.positions[inside])


class _Distances:
    """Numbers of wrong bits between a few images and the keys of a tile, in buffers that stay in the cache.

    Args:
        k: bits of a key.
    """

    def __init__(self, k: int) -> None:
        # One more than k must fit: it marks a key that does not count.
        self.kind = np.dtype(np.uint8 if k < np.iinfo(np.uint8).max else np.uint16)
        self.none = k + 1
        self._words: Words = np.empty(_PAIRS, dtype=np.uint64)
        self._bytes = np.empty(_PAIRS, dtype=np.uint8)
        self._sums: Counts = np.empty(_PAIRS, dtype=self.kind)
        self._shaped: dict[tuple[int, int], tuple[Words, Counts, Counts]] = {}

    def __call__(self, images: Words, keys: Words) -> Counts:
        """Counts ``[g, S]`` for images ``[g, W]`` and keys ``[W, S]``, valid until the next call; g * S <= _PAIRS."""
        words, counts, sums = self._buffers(len(images), keys.shape[1])
        np.bitwise_xor(images[:, :1], keys[0], out=words)
        np.bitwise_count(words, out=counts)
        if len(keys) == 1:
            return counts
        np.copyto(sums, counts)
        for w in range(1, len(keys)):
            np.bitwise_xor(images[:, w : w + 1], keys[w], out=words)
            np.bitwise_count(words, out=counts)
            np.add(sums, counts, out=sums)
        return sums

    def _buffers(self, g: int, s: int) -> tuple[Words, Counts, Counts]:
        shaped = self._shaped.get((g, s))
        if shaped is None:
            shaped = (
                self._words[: g * s].reshape(g, s),
                self._bytes[: g * s].reshape(g, s),
                self._sums[: g * s].reshape(g, s),
            )
            self._shaped[g, s] = shaped
        return shaped


class _Search:
    """The search for some of the images, in one thread.

    Args:
        images: packed ``[m, W]``.
        bank: the keys.
        ends: checkpoints, ascending.
        own: packed own keys ``[m, W]`` to pass over, or None.
        tick: told the pairs done.
    """

    def __init__(self, images: Words, bank: KeyBank, ends: Sequence[int], own: Words | None, tick: Tick) -> None:
        self.images, self.bank, self.ends, self.own, self.tick = images, bank, ends, own, tick
        self.finder = None if own is None else OwnKeys(own)
        self.distances = _Distances(bank.bits)
        self.pieces = _pieces(ends)
        self.tiles = np.array([tile for piece in self.pieces for tile in piece.tiles], dtype=np.int64).reshape(-1, 2)
        self.lowest = np.empty((len(self.tiles), len(images)), dtype=self.distances.kind)
        self.ties = np.zeros(self.lowest.shape, dtype=np.int32)
        self.first = np.zeros(self.lowest.shape, dtype=np.int32)
        self.passed = np.zeros((len(images), len(ends)), dtype=np.int64)

    def run(self) -> Best:
        """The best matches of these images."""
        m, none = len(self.images), self.distances.none
        self._find_lowest()
        counts = [int(np.count_nonzero(self.tiles[:, 1] <= end)) for end in self.ends]
        closest = np.stack([self.lowest[:count].min(axis=0, initial=none) for count in counts])
        wanted = np.zeros(self.lowest.shape, dtype=np.bool_)
        for count, low in zip(counts, closest, strict=True):
            wanted[:count] |= (self.lowest[:count] == low) & (low < none)
        self._count_ties(wanted)
        found = _nothing(m, self.ends)
        for c, (count, low) in enumerate(zip(counts, closest, strict=True)):
            held = wanted[:count] & (self.lowest[:count] == low)
            found.matches[:, c] = np.where(low < none, self.bank.bits - low.astype(np.int64), -1)
            found.ties[:, c] = (held * self.ties[:count]).sum(axis=0)
            if count:
                some, tile = held.any(axis=0), held.argmax(axis=0)
                found.first[some, c] = (self.tiles[tile, 0] + self.first[tile, np.arange(m)])[some]
        self._extend(found)
        return found

    def _find_lowest(self) -> None:
        row, passed = 0, np.zeros(len(self.images), dtype=np.int64)
        for piece in self.pieces:
            keys, own = self._fetch(piece)
            passed += np.bincount(own.images, minlength=passed.size)
            for start, stop in piece.tiles:
                part = slice(start - piece.start, stop - piece.start)
                out = self.lowest[row]
                for group, counts in self._groups(self.images, keys[:, part], own.within(part)):
                    np.minimum.reduce(counts, axis=1, out=out[group])
                row += 1
            if piece.stop in self.ends:
                self.passed[:, self.ends.index(piece.stop)] = passed
            self.tick(len(self.images) * (piece.stop - piece.start), "")

    def _count_ties(self, wanted: BoolArray) -> None:
        row = 0
        for piece in self.pieces:
            rows = range(row, row + len(piece.tiles))
            row = rows.stop
            if not wanted[rows.start : rows.stop].any():
                continue
            keys, own = self._fetch(piece)
            for index, (start, stop) in zip(rows, piece.tiles, strict=True):
                part = slice(start - piece.start, stop - piece.start)
                who = np.flatnonzero(wanted[index])
                if not who.size:
                    continue
                low = self.lowest[index, who, None]
                for group, counts in self._groups(self.images[who], keys[:, part], own.within(part).among(who)):
                    same = counts == low[group]
                    self.ties[index, who[group]] = np.count_nonzero(same, axis=1)
                    self.first[index, who[group]] = same.argmax(axis=1)

    def _fetch(self, piece: _Piece) -> tuple[Words, _Hits]:
        words = self.bank.keys(piece.start, piece.stop)
        empty = np.empty(0, dtype=np.int64)
        hits = _Hits(empty, empty) if self.finder is None else _Hits(*self.finder.find(words))
        return np.ascontiguousarray(words.T), hits

    def _groups(self, images: Words, keys: Words, own: _Hits) -> Iterator[tuple[slice, Counts]]:
        step = _PAIRS // keys.shape[1]
        for start in range(0, len(images), step):
            group = slice(start, min(start + step, len(images)))
            counts = self.distances(images[group], keys)
            if own.images.size:
                here = (own.images >= group.start) & (own.images < group.stop)
                counts[own.images[here] - start, own.positions[here]] = self.distances.none
            yield group, counts

    def _extend(self, found: Best) -> None:
        """Gives each image as many keys from beyond a checkpoint as own keys were passed over before it."""
        for c, end in enumerate(self.ends):
            who = np.flatnonzero(self.passed[:, c])
            left, start = self.passed[who, c], end
            while who.size:
                stop = min(start + int(left.max()), start + _TILE, self.bank.users)
                if start == stop:
                    raise StatisticsError(
                        f"{end} keys besides an image's own were asked for, the bank of {self.bank.users} lacks "
                        f"{int(left.max())} of them for some image; ask for fewer"
                    )
                left = left - self._add(found, c, who, left, _Piece(start, stop, ()))
                who, left, start = who[left > 0], left[left > 0], stop

    def _add(self, found: Best, c: int, who: IntArray, left: IntArray, piece: _Piece) -> IntArray:
        """Adds the first ``left`` others of the piece to checkpoint ``c``; returns how many there were of these."""
        none = self.distances.none
        keys, own = self._fetch(piece)
        taken = np.zeros_like(left)
        for group, counts in self._groups(self.images[who], keys, own.among(who)):
            others = counts != none
            others &= np.cumsum(others, axis=1) <= left[group, None]
            counts[~others] = none
            taken[group] = np.count_nonzero(others, axis=1)
            low = counts.min(axis=1)
            same = (counts == low[:, None]) & others
            at = who[group], c
            matches = np.where(low < none, self.bank.bits - low.astype(np.int64), -1)
            better = matches > found.matches[at]
            ties = np.count_nonzero(same, axis=1)
            found.ties[at] = np.where(better, ties, found.ties[at] + ties * (matches == found.matches[at]))
            found.first[at] = np.where(better, piece.start + same.argmax(axis=1), found.first[at])
            found.matches[at] = np.maximum(matches, found.matches[at])
        return taken


def _serialised(tick: Tick | None) -> Tick:
    lock = threading.Lock()

    def say(units: int, doing: str) -> None:
        if tick is not None:
            with lock:
                tick(units, doing)

    return say


def available_cores() -> int:
    """How many cores this process may use."""
    # A container or a scheduler may have given the process fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
