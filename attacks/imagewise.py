"""Attacks that treat each image by itself: one picture in, one picture out, whatever stands beside it in the batch."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from .base import Attack

if TYPE_CHECKING:
    from ..core.images import Images
    from ..core.seeds import Seed


class ImagewiseAttack(Attack):
    """Base of attacks that are defined on one picture.

    A subclass writes :meth:`alter`; batches, records and seeds are taken care of here. At its neutral strength an
    attack returns the images as they are, without a round trip through its arithmetic.

    Example:
        >>> class Negative(ImagewiseAttack):
        ...     def alter(self, picture, seed):
        ...         return 255 - picture
    """

    @abstractmethod
    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """Attacks one picture.

        Args:
            picture: uint8 ``[H, W, 3]``, RGB, read-only.
            seed: the seed of this picture under this attack; unseeded attacks leave it alone.

        Returns:
            uint8 ``[H', W', 3]``; the size depends on the input's size only.
        """

    def apply(self, images: Images, seed: Seed) -> Images:
        """Attacks each image with its own seed, ``seed.child(record.id)``."""
        if len(images) == 0 or (self.neutral is not None and self.strength_value == self.neutral):
            return images
        return images.with_pixels(np.stack([self.alter(picture, seed.child(r.id)) for r, picture in images]))
