"""Regeneration: a generative model writes the image anew and keeps what it shows, not how it was marked."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from ..core.components import param
from ..core.holding import HoldsAutoencoder, HoldsDiffusion, one_by_one, through_latent
from .base import Attack

if TYPE_CHECKING:
    from ..core.images import Images, Record
    from ..core.latent_diffusion import LatentDiffusion
    from ..core.seeds import Seed

_ZHAO = (
    "X. Zhao, K. Zhang, Z. Su, S. Vasan, I. Grishchenko, C. Kruegel, G. Vigna, Y.-X. Wang, L. Li: Invisible Image "
    "Watermarks Are Provably Removable Using Generative AI. NeurIPS 2024, arXiv:2306.01953."
)


class AutoencoderRoundTrip(HoldsAutoencoder, Attack):
    """Encodes and decodes the image, one or more times; pixels are clipped between passes and rounded at the end.

    Example:
        >>> AutoencoderRoundTrip(passes=2).label
        'autoencoder(passes=2)'
    """

    name: ClassVar[str] = "autoencoder"
    family: ClassVar[str] = "regeneration"
    summary: ClassVar[str] = "round trip through an autoencoder"
    strength: ClassVar[str | None] = "passes"
    strengths: ClassVar[tuple[Any, ...]] = (1, 2, 3, 4)
    references: ClassVar[tuple[str, ...]] = (_ZHAO,)

    passes: int = param(1, doc="round trips", ge=1, le=100)

    def apply(self, images: Images, seed: Seed) -> Images:
        """The reconstructions."""
        network = self.network

        def change(image: torch.Tensor, _record: Record) -> torch.Tensor:
            for _ in range(self.passes):
                image = through_latent(network, image, network.factor, lambda latent: latent)
            return image

        return one_by_one(images, change)


class DiffusionRegeneration(HoldsDiffusion, Attack):
    """Adds noise to the latent up to a time step and lets the model take it away again (Zhao et al.); no prompt.

    The latent gets the noise of step ``time`` and is denoised by DDIM (eta 0) at the steps ``time``, ``time - stride``,
    ... down to the data. The released code adds the noise of step ``time`` and then begins at a lower step of the
    scheduler's grid (60 and 41), so that a part of the noise is taken for image; with ``published: true`` it is done
    so here: the last ``max(1, time / stride)`` of the steps 1, 1 + stride, ... Its solver was PNDM at the same steps;
    here it is DDIM.

    Example:
        >>> DiffusionRegeneration(time=60).label
        'diffusion-regeneration(time=60)'
        >>> DiffusionRegeneration(time=60).times, DiffusionRegeneration(time=60, published=True).times
        ([60, 40, 20], [41, 21, 1])
    """

    name: ClassVar[str] = "diffusion-regeneration"
    family: ClassVar[str] = "regeneration"
    summary: ClassVar[str] = "noise on the latent, taken away by a diffusion model"
    strength: ClassVar[str | None] = "time"
    strengths: ClassVar[tuple[Any, ...]] = (30, 60, 100, 150, 200)
    seeded: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = (_ZHAO,)

    time: int = param(60, doc="time step whose noise is added, 1 to 999 of 1000", ge=1, le=999)
    stride: int = param(20, doc="time steps between evaluations of the network", ge=1, le=500)
    passes: int = param(1, doc="how many times in a row, each with a noise of its own", ge=1, le=100)
    published: bool = param(False, doc="begin to denoise below the noise, as the released code does")

    @property
    def times(self) -> list[int]:
        """The time steps at which the network is evaluated."""
        if self.published:
            return [1 + self.stride * k for k in reversed(range(max(1, self.time // self.stride)))]
        return list(range(self.time, 0, -self.stride))

    def apply(self, images: Images, seed: Seed) -> Images:
        """The regenerated images."""
        model = self.diffusion

        def passed(image: torch.Tensor, record: Record) -> torch.Tensor:
            for number in range(self.passes):
                change = partial(self._regenerate, model, seed.child(record.id, number).torch())
                image = through_latent(model.autoencoder, image, model.multiple, change)
            return image

        return one_by_one(images, passed)

    def _regenerate(self, model: LatentDiffusion, draw: torch.Generator, latent: torch.Tensor) -> torch.Tensor:
        noisy = model.noised(latent, self.time, torch.randn(latent.shape, generator=draw))
        return model.denoise(noisy, self.times)


class Rinse(DiffusionRegeneration):
    """Diffusion regeneration several times over: the rinsing of WAVES (An et al., ICML 2024), twice or four times.

    Example:
        >>> Rinse(passes=4).label
        'rinse(time=60, passes=4)'
    """

    name: ClassVar[str] = "rinse"
    summary: ClassVar[str] = "diffusion regeneration twice or more"
    strengths: ClassVar[tuple[Any, ...]] = (10, 30, 60, 100)
    references: ClassVar[tuple[str, ...]] = (
        "B. An et al.: WAVES: Benchmarking the Robustness of Image Watermarks. ICML 2024, arXiv:2401.08573.",
        _ZHAO,
    )

    passes: int = param(2, doc="how many times in a row, each with a noise of its own", ge=1, le=100)


class InversionRegeneration(HoldsDiffusion, Attack):
    """Runs the latent back to its noise and forward again, both without a prompt; nothing is drawn at random.

    What changes is the error of both ways, which fewer steps make larger.

    Example:
        >>> InversionRegeneration(steps=25).label
        'inversion-regeneration(steps=25)'
    """

    name: ClassVar[str] = "inversion-regeneration"
    family: ClassVar[str] = "regeneration"
    summary: ClassVar[str] = "back to the noise and forward again"
    strength: ClassVar[str | None] = "steps"
    strengths: ClassVar[tuple[Any, ...]] = (45, 35, 25, 15)
    harder: ClassVar[int] = -1

    steps: int = param(25, doc="evaluations of the network each way", ge=1, le=999)
    solver: Literal["ddim", "dpm-solver"] = param("ddim", doc="ddim or dpm-solver (DPM-Solver++ of second order)")

    def apply(self, images: Images, seed: Seed) -> Images:
        """The images sampled from their own noises."""
        from ..core.latent_diffusion import Sampling

        model = self.diffusion
        sampling = Sampling(self.steps, 1.0, self.solver)

        def again(latent: torch.Tensor) -> torch.Tensor:
            noise = model.invert(latent, self.steps, solver=self.solver, remember=False)
            return model.sample(noise, "", sampling, remember=False)

        return one_by_one(images, lambda image, _: through_latent(model.autoencoder, image, model.multiple, again))
