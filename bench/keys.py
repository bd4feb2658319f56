"""Which payload an image carries: a pure function of the key policy, the run seed, the length and the image."""

from __future__ import annotations

import numpy as np

from ..core.errors import ContractError
from ..core.seeds import Seed


def key_bits(policy: str, seed: int, bits: int, image: str) -> np.ndarray:
    """The payload of one image: bool ``[k]``. The draw leaves the method out: equal payloads meet equal keys.

    Args:
        policy: ``fixed``, ``per-image`` or a string of 0 and 1.
        seed: the run seed.
        bits: payload length k.
        image: the image's id.

    Raises:
        ContractError: the given key has another length, or other characters.
    """
    if policy not in ("fixed", "per-image"):
        if set(policy) - set("01"):
            raise ContractError(f"a key is 'fixed', 'per-image' or a string of 0 and 1, not '{policy[:80]}'")
        if len(policy) != bits:
            raise ContractError(f"the key has {len(policy)} bits, the method needs {bits}")
        return np.array([bit == "1" for bit in policy])
    point = Seed.root(seed).child("key", bits)
    point = point.child(image) if policy == "per-image" else point
    return point.numpy().integers(0, 2, bits).astype(bool)
