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
