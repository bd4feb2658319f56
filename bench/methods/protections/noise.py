"""Null protectors: nothing, or noise within the same budget. What they achieve is what a protection must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from ....core.components import param
from ..base import Protection

if TYPE_CHECKING:
    from ....core.images import Images
    from ....core.seeds import Seed


class NullProtection(Protection):
    """Noise that knows nothing of any model: uniform, Gaussian, or of random sign (the norm of a signed attack).

    ``noise: none`` leaves the images as they are.

    Example:
        >>> NullProtection(noise="sign").label
        'null-protection(noise=sign)'
    """

    name: ClassVar[str] = "null-protection"
    family: ClassVar[str] = "null"

    noise: Literal["none", "uniform", "gaussian", "sign"] = param(
        "none", doc="none, uniform in the budget, gaussian of that standard deviation, or plus or minus the budget"
    )
    budget: float = param(0.06, doc="for values in -1 to 1", gt=0, le=2)

    @property
    def largest_change(self) -> float | None:
        """The budget in grey levels; none for Gaussian noise."""
        return {"none": 0.0, "gaussian": None}.get(self.noise, 127.5 * self.budget)

    def protect(self, images: Images, seed: Seed) -> Images:
        """The noisy images."""
        if self.noise == "none" or not len(images):
            return images
        noisy = []
        for record, picture in images:
            draw = seed.child(record.id).numpy()
            if self.noise == "gaussian":
                drawn: np.ndarray = draw.standard_normal(picture.shape)
            elif self.noise == "uniform":
                drawn = draw.uniform(-1, 1, picture.shape)
            else:
                drawn = 2.0 * draw.integers(0, 2, picture.shape) - 1
            noisy.append(np.clip(np.rint(picture + 127.5 * self.budget * drawn), 0, 255).astype(np.uint8))
        return images.with_pixels(np.stack(noisy))
