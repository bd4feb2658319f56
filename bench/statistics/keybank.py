"""Payloads packed into words, and banks of keys: one key for each user."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...core.errors import StatisticsError
from ...core.seeds import Seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .domain import BoolArray, IntArray

Words = npt.NDArray[np.uint64]
"""Packed payloads ``[n, ceil(k / 64)]``; bit j of a payload is bit j % 64 of word j // 64, unused high bits are 0."""

BLOCK = 1 << 16
"""Keys that are drawn together; part of what a random bank holds, never to be changed."""


def pack(bits: npt.ArrayLike) -> Words:
    """Packs payloads into 64-bit words.

    Args:
        bits: bool ``[n, k]`` with ``k >= 1``.

    Returns:
        uint64 ``[n, ceil(k / 64)]``; bit j of a payload is bit ``j % 64`` of word ``j // 64``, unused high bits are 0.

    Raises:
        StatisticsError: ``bits`` has another shape or is not boolean.

    Example:
        >>> pack(np.array([[True, False, True]])).tolist()
        [[5]]
    """
    array = _payloads(bits, "bits")
    n, k = array.shape
    padded = np.zeros((n, 8 * words_of(k)), dtype=np.uint8)
    packed = np.packbits(array, axis=1, bitorder="little")
    padded[:, : packed.shape[1]] = packed
    # Little-endian bytes make the same words on every machine.
    return padded.view("<u8").astype(np.uint64, copy=False)


def unpack(words: Words, k: int) -> BoolArray:
    """The payloads that :func:`pack` packed: bool ``[n, k]``.

    Args:
        words: uint64 ``[n, ceil(k / 64)]``.
        k: bits of a payload.

    Raises:
        StatisticsError: ``words`` has another shape or type.

    Example:
        >>> unpack(np.array([[5]], dtype=np.uint64), 3).tolist()
        [[True, False, True]]
    """
    raw = np.ascontiguousarray(packed(words, k, "words")).astype("<u8", copy=False).view(np.uint8)
    return np.unpackbits(raw, axis=1, count=k, bitorder="little").astype(np.bool_)


class KeyBank:
    """N keys of k bits, one for each user; made by :meth:`random`, :meth:`of` or :meth:`read`.

    Equal keys count as different users, who can never be told apart: see :attr:`duplicates` and :meth:`distinct`.

    Attributes:
        users: number of keys N.
        bits: bits of a key k.
        names: a name for each user, empty where the users have none.
        is_random: the keys are random numbers, as the theory of attribution takes them to be.
    """

    __slots__ = ("_keys", "_seed", "bits", "is_random", "names", "users")

    def __init__(self, users: int, bits: int, keys: Words | None, seed: Seed | None, names: tuple[str, ...]) -> None:
        if users < 1 or bits < 1:
            raise StatisticsError(f"a bank of {users} keys of {bits} bits; at least one key of one bit is needed")
        self.users, self.bits, self.names = users, bits, names
        self.is_random = keys is None
        self._keys, self._seed = keys, seed

    @classmethod
    def random(cls, users: int, bits: int, seed: int) -> KeyBank:
        """A bank of uniform random keys that are drawn when they are needed and never kept.

        Key i depends on the seed, the bits and i alone: the first 10 keys of ten million are those of a bank of 10.

        Args:
            users: number of keys.
            bits: bits of a key.
            seed: any integer.

        Example:
            >>> small, large = KeyBank.random(10, 48, 0), KeyBank.random(10**7, 48, 0)
            >>> bool((small.keys(0, 10) == large.keys(0, 10)).all())
            True
        """
        return cls(int(users), int(bits), None, Seed.root(seed).child("key bank", int(bits)), ())

    @classmethod
    def of(cls, keys: npt.ArrayLike, names: Sequence[str] = ()) -> KeyBank:
        """A bank of the given keys.

        Args:
            keys: bool ``[N, k]``.
            names: one for each key, all different, or none.

        Raises:
            StatisticsError: there is no key, or the names do not fit.

        Example:
            >>> KeyBank.of(np.eye(4, dtype=bool)).users
            4
        """
        array = _payloads(keys, "keys")
        if len(names) not in (0, len(array)):
            raise StatisticsError(f"there are {len(names)} names for {len(array)} keys; give one for each, or none")
        if len(set(names)) < len(names):
            raise StatisticsError("two keys have the same user name; give each key a name of its own")
        return cls(len(array), array.shape[1], pack(array), None, tuple(names))

    @classmethod
    def read(cls, path: str | Path, bits: int) -> KeyBank:
        """A bank from a file.

        A text file holds a key on each line, as ``bits`` characters 0 and 1, or as ``0x`` and the hexadecimal number
        whose binary digits, the most significant first, are the key. A user name may stand before it, separated by
        blanks or a comma. Empty lines and what follows a ``#`` are skipped. A ``.npy`` file holds bool or uint8
        ``[N, bits]``.

        Raises:
            StatisticsError: the file cannot be read; a line is no key of ``bits`` bits (the message names the line).
        """
        file = Path(path)
        try:
            if file.suffix == ".npy":
                return cls.of(_array_keys(file, bits))
            return cls.of(*_text_keys(file, bits))
        except OSError as error:
            raise StatisticsError(f"key bank {file}: {error.strerror or error}; give a text or .npy file") from None

    def keys(self, start: int, stop: int) -> Words:
        """Keys ``start`` to ``stop - 1``: uint64 ``[stop - start, ceil(k / 64)]``.

        Raises:
            StatisticsError: the bank does not hold them.
        """
        if not 0 <= start <= stop <= self.users:
            raise StatisticsError(f"keys {start}..{stop} of a bank of {self.users}")
        given = 0 if self._keys is None else len(self._keys)
        if self._keys is not None and (stop <= given or self._seed is None):
            return self._keys[start:stop]
        if self._keys is not None:
            return np.concatenate([self._keys[start:], self._random(max(start - given, 0), stop - given)])
        return self._random(start, stop)

    def _random(self, start: int, stop: int) -> Words:
        first = start // BLOCK
        blocks = [self._draw(block) for block in range(first, max(first + 1, -(-stop // BLOCK)))]
        words = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return words[start - first * BLOCK : stop - first * BLOCK]

    def extended(self, users: int, seed: int) -> KeyBank:
        """The same keys, and after them the random ones of :meth:`random` until there are ``users``.

        For owners who have few real keys and ask what a million users would mean.

        Raises:
            StatisticsError: the bank holds more than ``users`` keys, or is random itself.

        Example:
            >>> bank = KeyBank.of(np.eye(32, dtype=bool)).extended(10**6, seed=0)
            >>> bank.users, bool((bank.keys(32, 42) == KeyBank.random(10, 32, 0).keys(0, 10)).all())
            (1000000, True)
        """
        if self._seed is not None or self.users > users:
            raise StatisticsError(f"a bank of {self.users} keys cannot be extended to {users} users")
        more = Seed.root(seed).child("key bank", self.bits)
        return KeyBank(int(users), self.bits, self._keys, more, ())

    @property
    def duplicates(self) -> int:
        """How many keys repeat an earlier one; these users can never be told apart. Sorts the whole bank."""
        return self.repeats(self.users)

    def repeats(self, users: int) -> int:
        """How many of the first ``users`` keys repeat an earlier one."""
        return users - _firsts(self.keys(0, users)).size

    def distinct(self) -> KeyBank:
        """The bank without the keys that repeat an earlier one, for keys of images of which several have one user."""
        words = self.keys(0, self.users)
        kept = np.sort(_firsts(words))
        names = tuple(self.names[i] for i in kept) if self.names else ()
        bank = KeyBank(kept.size, self.bits, words[kept], None, names)
        bank.is_random = self.is_random
        return bank

    def count(self, words: Words) -> IntArray:
        """How often each of the packed keys ``[n, ceil(k / 64)]`` stands in the bank: int64 ``[n]``."""
        own = OwnKeys(packed(words, self.bits, "words"))
        counts = np.zeros(len(words), dtype=np.int64)
        for start, stop in spans(0, self.users, BLOCK):
            counts += np.bincount(own.find(self.keys(start, stop))[0], minlength=counts.size)
        return counts

    def _draw(self, block: int) -> Words:
        if self._seed is None:
            raise TypeError
        count = words_of(self.bits)
        # The raw words of the generator are the same in every version of NumPy, those of `integers` need not be.
        source = self._seed.child(block).numpy().bit_generator
        words: Words = np.asarray(source.random_raw(BLOCK * count), dtype=np.uint64).reshape(BLOCK, count)
        words[:, -1] >>= np.uint64(64 * count - self.bits)
        return words


class OwnKeys:
    """Finds the keys of a bank that are an image's own."""

    def __init__(self, own: Words) -> None:
        self.own = own
        self.order = np.argsort(own[:, 0], kind="stable")
        self.sorted = own[self.order, 0]
        self.known = np.zeros(1 << 16, dtype=np.bool_)
        self.known[own[:, 0].astype(np.uint16)] = True

    def find(self, keys: Words) -> tuple[IntArray, IntArray]:
        """Pairs (image, position in ``keys``) of equal keys, ordered by position."""
        maybe = np.flatnonzero(self.known[keys[:, 0].astype(np.uint16)])
        left = np.searchsorted(self.sorted, keys[maybe, 0], "left")
        many = np.searchsorted(self.sorted, keys[maybe, 0], "right") - left
        positions = np.repeat(maybe, many)
        within = np.arange(positions.size) - np.repeat(np.cumsum(many) - many, many)
        images = self.order[np.repeat(left, many) + within]
        same = (self.own[images] == keys[positions]).all(axis=1)
        return images[same], positions[same]


def words_of(k: int) -> int:
    """How many 64-bit words hold ``k`` bits."""
    return -(-k // 64)


def _payloads(bits: npt.ArrayLike, name: str) -> BoolArray:
    array = np.asarray(bits)
    if array.ndim != 2 or not array.shape[1]:
        raise StatisticsError(f"{name} must be [n, k] with k >= 1 bits, not an array of shape {list(array.shape)}")
    if array.dtype != np.bool_:
        raise StatisticsError(f"{name} must be booleans, not {array.dtype}")
    return array


def packed(words: Words, k: int, name: str) -> Words:
    """Returns ``words`` if it is uint64 ``[n, ceil(k / 64)]``.

    Raises:
        StatisticsError: it is not.
    """
    array = np.asarray(words)
    if k < 1:
        raise StatisticsError(f"a payload has {k} bits; at least one is needed")
    if array.ndim != 2 or array.shape[1] != words_of(k) or array.dtype != np.uint64:
        raise StatisticsError(
            f"{name} must be uint64 [n, {words_of(k)}] for {k} bits, not {array.dtype} {list(array.shape)}; use pack()"
        )
    return array


def spans(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Cuts ``start..stop`` at the multiples of ``step``: yields ``(start, stop)`` of each piece."""
    while start < stop:
        end = min(stop, (start // step + 1) * step)
        yield start, end
        start = end


def _firsts(words: Words) -> IntArray:
    """Where each distinct key stands first, in no order that matters."""
    rows = words[:, 0] if words.shape[1] == 1 else np.ascontiguousarray(words).view([("", np.uint64)] * words.shape[1])
    return np.asarray(np.unique(rows.ravel(), return_index=True)[1], dtype=np.int64)


def _array_keys(file: Path, bits: int) -> BoolArray:
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise StatisticsError(f"key bank {file}: no NumPy array ({error}); save bool or uint8 [N, {bits}]") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.shape[1] != bits or not len(array):
        raise StatisticsError(f"key bank {file}: shape {list(np.shape(array))}; it must be [N, {bits}] with N >= 1")
    if array.dtype not in (np.bool_, np.uint8):
        raise StatisticsError(f"key bank {file}: {array.dtype}; it must be bool, or uint8 of 0 and 1")
    wrong = np.flatnonzero((array > 1).any(axis=1)) if array.dtype == np.uint8 else np.empty(0)
    if wrong.size:
        raise StatisticsError(f"key bank {file}, row {wrong[0]}: a value above 1; bits are 0 and 1")
    return array.astype(np.bool_)


def _text_keys(file: Path, bits: int) -> tuple[BoolArray, tuple[str, ...]]:
    rows: list[str] = []
    lines: dict[str, int] = {}
    named = 0
    try:
        with file.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, 1):
                fields = [part for part in re.split(r"[\s,]+", line.partition("#")[0]) if part]
                if not fields:
                    continue
                where = f"key bank {file}, line {number}"
                if len(fields) > 2:
                    raise StatisticsError(f"{where}: {len(fields)} words; a line is a key, or a user name and a key")
                rows.append(_digits(fields[-1], bits, where))
                named += len(fields) - 1
                name = fields[0] if len(fields) == 2 else f"line {number}"
                if name in lines:
                    raise StatisticsError(f"{where}: user {name} already stands in line {lines[name]}; name each once")
                lines[name] = number
    except UnicodeDecodeError:
        raise StatisticsError(
            f"key bank {file}: no text in UTF-8; arrays are read from files that end in .npy"
        ) from None
    if not rows:
        raise StatisticsError(f"key bank {file}: there is no key in it; put one of {bits} bits on each line")
    digits = np.frombuffer("".join(rows).encode(), dtype=np.uint8).reshape(len(rows), bits)
    return digits == ord("1"), tuple(lines) if named else ()


def _digits(text: str, bits: int, where: str) -> str:
    """The key as ``bits`` characters 0 and 1."""
    if text[:2] in ("0x", "0X"):
        if not re.fullmatch(r"[0-9A-Fa-f]+", text[2:]):
            raise StatisticsError(f"{where}: '{text[:80]}' is no hexadecimal number; after 0x come 0-9 and a-f")
        number = int(text, 16)
        if number >> bits:
            raise StatisticsError(f"{where}: {text[:80]} has {number.bit_length()} bits; keys have {bits}")
        return f"{number:0{bits}b}"
    if set(text) - set("01"):
        raise StatisticsError(
            f"{where}: '{text[:80]}' is no key; write {bits} characters 0 and 1, or 0x and hexadecimal"
        )
    if len(text) != bits:
        raise StatisticsError(f"{where}: the key has {len(text)} bits; keys have {bits}")
    return text
