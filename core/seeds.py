"""Random draws that depend on what they are for, and on nothing else.

Every draw comes from a generator that is seeded by a hash of its coordinates (run seed, purpose, image, attack, ...).
The same coordinates give the same numbers in any order, batch, worker or engine; there is no global random state.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

_DOMAIN = b"waterproof-seed-1"


@dataclass(frozen=True, slots=True)
class Seed:
    """A point in the tree of seeds.

    Attributes:
        digest: 32 bytes that name this point.

    Example:
        >>> root = Seed.root(0)
        >>> a = root.child("attack", "noise", "image-7").numpy()
        >>> b = Seed.root(0).child("attack", "noise", "image-7").numpy()
        >>> bool(a.random() == b.random())
        True
    """

    digest: bytes

    @classmethod
    def root(cls, seed: int) -> Seed:
        """The root of the tree for the run seed ``seed`` (any integer)."""
        return cls(hashlib.sha256(_DOMAIN + str(int(seed)).encode()).digest())

    def child(self, *coordinates: str | int) -> Seed:
        """The point reached by ``coordinates``; each is hashed with its length and type, so none runs into the next."""
        digest = self.digest
        for item in coordinates:
            if isinstance(item, bool) or not isinstance(item, str | int):
                raise TypeError(f"a seed coordinate is a str or an int, not {type(item).__name__}")
            text = ("s" if isinstance(item, str) else "i") + str(item)
            data = text.encode()
            digest = hashlib.sha256(digest + len(data).to_bytes(8, "little") + data).digest()
        return Seed(digest)

    @property
    def integer(self) -> int:
        """A 63-bit integer, for libraries that take a plain seed."""
        return int.from_bytes(self.digest[:8], "little") >> 1

    def numpy(self) -> np.random.Generator:
        """A fresh NumPy generator (PCG64) at this point."""
        import numpy as np

        return np.random.Generator(np.random.PCG64(int.from_bytes(self.digest, "little")))

    def torch(self, device: str = "cpu") -> torch.Generator:
        """A fresh torch generator at this point."""
        import torch

        return torch.Generator(device=device).manual_seed(self.integer)
