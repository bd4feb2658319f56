"""PhotoGuard's encoder attack and Mist's textural one: signed gradient steps that mislead an encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch

from ....core.components import param
from ....core.descent import in_batches, signed_descent
from .base import EncoderProtection, latents, towards

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ....core.images import Images, Record
    from ....core.seeds import Seed


class _SignedProtection(EncoderProtection):
    """PGD in the maximum norm towards a latent.

    Budget and step are in grey levels / 127.5, the published scale of -1 to 1.
    """

    budget: float
    step: float
    steps: int

    @property
    def largest_change(self) -> float | None:
        """The budget in grey levels."""
        return 127.5 * self.budget

    def protect(self, images: Images, seed: Seed) -> Images:
        """The protected images.

        Raises:
            UserError: the objective is not finite.
        """
        network = self.network

        def change(given: torch.Tensor, records: Sequence[Record]) -> torch.Tensor:
            # The published random start, uniform inside the budget.
            drawn = [torch.rand(given.shape[1:], generator=seed.child(r.id).torch()) for r in records]
            start = given + self.budget / 2 * (2 * torch.stack(drawn) - 1)
            return signed_descent(
                start, given, towards(network, self._wanted(given), self.adaptive), records, budget=self.budget / 2,
                step=self.step / 2, steps=self.steps, last_step=self._last_step, what=self.label,
            )  # fmt: skip

        return in_batches(images, self.batch, change)

    @property
    def _last_step(self) -> float:
        return 1.0

    def _wanted(self, given: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class PhotoGuard(_SignedProtection):
    """PhotoGuard's encoder attack (Salman et al., ICML 2023): the latent is pulled towards that of nothing.

    The published parameters for image-to-image editing; the step falls linearly to 1 %.

    Example:
        >>> PhotoGuard(steps=40).label
        'photoguard(steps=40)'
    """

    name: ClassVar[str] = "photoguard"
    references: ClassVar[tuple[str, ...]] = (
        "H. Salman, A. Khaddaj, G. Leclerc, A. Ilyas, A. Madry: Raising the Cost of Malicious AI-Powered Image "
        "Editing. ICML 2023, arXiv:2302.06588.",
    )

    target: Literal["zero", "grey"] = param("zero", doc="latent to pull towards: zero, or that of a grey image")
    budget: float = param(0.06, doc="largest change of a value, for values in -1 to 1", gt=0, le=2)
    step: float = param(0.02, doc="first step, for values in -1 to 1", gt=0, le=2)
    steps: int = param(1000, doc="gradient steps", ge=1, le=100_000)

    @property
    def _last_step(self) -> float:
        return 0.01

    @torch.no_grad()
    def _wanted(self, given: torch.Tensor) -> torch.Tensor:
        if self.target == "zero":
            return torch.zeros(())
        return latents(self.network, torch.full_like(given, 0.5))


class Mist(_SignedProtection):
    """Mist's textural attack (Liang and Wu, 2023): the latent is pulled towards that of a strong texture.

    The semantic attack of the same work, through the loss of a diffusion model, is not here. The texture is ours,
    crossed gratings in three colours: the published picture is a file of its authors.

    Example:
        >>> Mist(steps=40).label
        'mist(steps=40)'
    """

    name: ClassVar[str] = "mist"
    references: ClassVar[tuple[str, ...]] = (
        "C. Liang, X. Wu: Mist: Towards Improved Adversarial Examples for Diffusion Models. arXiv:2305.12683, 2023.",
    )

    budget: float = param(
        32 / 255, doc="largest change of a value, for values in -1 to 1 (16 of 255 levels)", gt=0, le=2
    )
    step: float = param(2 / 255, doc="step, for values in -1 to 1 (one level)", gt=0, le=2)
    steps: int = param(100, doc="gradient steps", ge=1, le=100_000)

    @torch.no_grad()
    def _wanted(self, given: torch.Tensor) -> torch.Tensor:
        picture = torch.from_numpy(texture(*given.shape[2:])).permute(2, 0, 1)[None]
        return latents(self.network, picture)


def texture(height: int, width: int) -> np.ndarray:
    """Crossed gratings, another direction and wavelength for each colour: float32 ``[H, W, 3]`` in 0 to 1."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = []
    for angle, length in ((0.4, 13.0), (1.4, 17.0), (2.5, 11.0)):
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        waves.append(_square(along / length) * _square(across / length))
    return ((np.stack(waves, axis=-1) + 1) / 2).astype(np.float32)


def _square(turns: np.ndarray) -> np.ndarray:
    """1 in the first half of each turn, -1 in the second."""
    return np.where(turns % 1 < 0.5, 1.0, -1.0)
