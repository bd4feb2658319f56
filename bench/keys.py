"""Which payload an image carries: a pure function of the key policy, the run seed, the length and the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import ContractError
from ..core.seeds import Seed

if TYPE_CHECKING:
    from collections.abc import Sequence


def key_bits(policy: str, seed: int, bits: int, image: str, users: Sequence[str] | None = None) -> np.ndarray:
    """The payload of one image: bool ``[k]``. The draw leaves the method out: equal payloads meet equal keys.

    Where a method can write the keys of its users only, the draw is one of them: ``fixed`` takes one user for all
    images, ``per-image`` one for each.

    Args:
        policy: ``fixed``, ``per-image`` or a string of 0 and 1.
        seed: the run seed.
        bits: payload length k.
        image: the image's id.
        users: the keys that can be written, 0 and 1; None where any key can.

    Raises:
        ContractError: the given key has another length, other characters, or is no user's.
    """
    if policy not in ("fixed", "per-image"):
        if set(policy) - set("01"):
            raise ContractError(f"a key is 'fixed', 'per-image' or a string of 0 and 1, not '{policy[:80]}'")
        if len(policy) != bits:
            raise ContractError(f"the key has {len(policy)} bits, the method needs {bits}")
        if users is not None and policy not in users:
            raise ContractError(f"no user of this method has the key {policy}; one of its {len(users)} is {users[0]}")
        return np.array([bit == "1" for bit in policy])
    if users is not None:
        drawn = Seed.root(seed).child("user", len(users))
        drawn = drawn.child(image) if policy == "per-image" else drawn
        return np.array([bit == "1" for bit in users[int(drawn.numpy().integers(len(users)))]])
    point = Seed.root(seed).child("key", bits)
    point = point.child(image) if policy == "per-image" else point
    return point.numpy().integers(0, 2, bits).astype(bool)


def key_word(key: Sequence[bool] | np.ndarray) -> str:
    """A payload as a word of 0 and 1; empty for a mark without one.

    Example:
        >>> key_word([True, False])
        '10'
    """
    return "".join("01"[int(bit)] for bit in key)


def colluders(seed: int, key: str, count: int, users: Sequence[str] | None = None) -> list[str]:
    """The keys of ``count`` other users who work together with the user of ``key``; more of them begin with the same.

    Args:
        seed: the run seed.
        key: a word of 0 and 1.
        count: how many others.
        users: the keys that can be written; None where any key can, and the others' are drawn.

    Raises:
        ContractError: there are fewer other users.
    """
    point = Seed.root(seed).child("colluders", key)
    available = 2 ** len(key) - 1 if users is None else len(set(users) - {key})
    if count > available:
        raise ContractError(f"{count} other users are wanted, there are {available}")
    if users is None:
        drawn: dict[str, None] = {}
        number = 0
        while len(drawn) < count:
            word = key_word(point.child(number).numpy().integers(0, 2, len(key)).astype(bool))
            drawn |= {} if word == key else {word: None}
            number += 1
        return list(drawn)
    others = [user for user in users if user != key]
    return [others[i] for i in point.numpy().permutation(len(others))[:count]]
