"""What the tests of attacks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from skimage import data

from waterproof.core import registry
from waterproof.core.images import Images, Record
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    from waterproof.attacks.base import Attack

Attacked = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def oblong() -> Images:
    """One photograph, 120 high and 200 wide."""
    return Images.from_numpy(data.coffee()[None, 100:220, 150:350], [Record("oblong")])


@pytest.fixture(scope="session")
def attacked() -> Attacked:
    """Applies the attack ``name`` and returns the pixels, uint8 ``[B, H, W, 3]``."""

    def apply(name: str, images: Images, seed: int = 0, **params: object) -> np.ndarray:
        attack = cast("Attack", registry.create("attack", name, params))
        return attack.apply(images, Seed.root(seed)).numpy()

    return apply
