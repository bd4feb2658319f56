"""One pure, versioned function from what defines a thing to the name under which its results are stored."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

IDENTITY_VERSION = 1
"""Raised when the canonical form changes; every stored identity carries it."""


def canonical_json(value: object) -> str:
    """Canonical JSON: sorted keys, no spaces, shortest exact floats, no NaN.

    Raises:
        ValueError: a float is not finite.
        TypeError: a value is not JSON.

    Example:
        >>> canonical_json({"b": 1, "a": [0.1, None]})
        '{"a":[0.1,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def identity(kind: str, value: Mapping[str, object]) -> str:
    """The identity of ``value`` among things of ``kind``: 24 hexadecimal digits.

    Args:
        kind: what is named ("cell", "spec", "images"); different kinds never collide.
        value: the defining fields, JSON types only.

    Example:
        >>> identity("spec", {"name": "jpeg", "params": {"quality": 50}})
        'a2ef1cd2bcc2d4f0f2a10bba'
    """
    text = canonical_json({"identity": IDENTITY_VERSION, "kind": kind, "value": value})
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def content_digest(value: object) -> str:
    """SHA-256 of the canonical JSON of ``value``.

    Example:
        >>> content_digest({"b": 1, "a": 2}) == content_digest({"a": 2, "b": 1})
        True
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, read in blocks.

    Args:
        path: the file.
        progress: called with the number of bytes of each block.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if progress is not None:
                progress(len(block))
    return digest.hexdigest()
