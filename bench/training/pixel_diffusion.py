"""Training of a small unconditional diffusion model of pixels on photographs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from ...core.errors import SpecError
from ...core.seeds import Seed
from . import diffusion
from .autoencoder import norms_in_float32
from .trainer import Task

if TYPE_CHECKING:
    from .photographs import Photographs
    from .recipes import PixelDiffusionRecipe


class PixelDiffusionTask(Task):
    """Mean squared error of the predicted velocity (or noise), pixels in -1 to 1, blocks of ``patch`` as channels.

    Time steps are uniform, but for the share ``early`` of them, which lies in the first ``early_steps``: purifiers use
    these alone. What is saved is the running mean of the weights.

    Args:
        recipe: the recipe.
        photographs: training images.

    Raises:
        SpecError: ``model`` or ``schedule`` is not what diffusers takes, or the crops do not divide.
    """

    def __init__(self, recipe: PixelDiffusionRecipe, photographs: Photographs) -> None:
        self.recipe: PixelDiffusionRecipe = recipe
        self.photographs = photographs
        self.data = photographs.digest

        def make() -> Any:
            from diffusers import UNet2DModel

            channels = 3 * recipe.patch**2
            return UNet2DModel(
                **recipe.model, sample_size=recipe.size // recipe.patch, in_channels=channels, out_channels=channels
            )

        self.unet: Any
        self.unet, self.scheduler = diffusion.build(recipe, recipe.schedule, make)
        multiple = recipe.patch * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if recipe.size % multiple:
            raise SpecError(
                f"{recipe.name}: size {recipe.size} must be a multiple of {multiple}, which the model halves"
            )
        if recipe.early_steps > self.scheduler.config.num_train_timesteps:
            raise SpecError(
                f"{recipe.name}: early_steps {recipe.early_steps} are more than the schedule's "
                f"{self.scheduler.config.num_train_timesteps}"
            )
        self.mean_unet: Any = copy.deepcopy(self.unet).requires_grad_(False).eval()
        norms_in_float32(self.unet)
        self.unet.to(memory_format=torch.channels_last)
        self.modules = {"unet": self.unet, "mean unet": self.mean_unet}

    def loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Noises a batch and predicts."""
        recipe = self.recipe
        if step:
            self.follow(step)
        device = next(self.unet.parameters()).device
        crops = self._blocks(self.photographs.batch(recipe.batch, recipe.size, generator))
        early = torch.rand(recipe.batch, generator=generator) < recipe.early
        uniform = torch.rand(recipe.batch, generator=generator)
        last = torch.where(early, recipe.early_steps, self.scheduler.config.num_train_timesteps)
        times = (uniform * last).long()
        noise = torch.randn(crops.shape, generator=generator)
        crops, noise, times = crops.to(device), noise.to(device), times.to(device)
        noisy = self.scheduler.add_noise(crops, noise, times).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            predicted = self.unet(noisy, times).sample
        loss = functional.mse_loss(predicted.float(), diffusion.target(self.scheduler, crops, noise, times))
        return loss, {"loss": loss.item()}

    def follow(self, step: int) -> None:
        """Moves the running mean towards the weights."""
        diffusion.follow([(self.mean_unet, self.unet)], self.recipe.average, step)

    def _blocks(self, images: torch.Tensor) -> torch.Tensor:
        return functional.pixel_unshuffle(2 * images - 1, self.recipe.patch)

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """PSNR of one denoising step on photographs kept out, beside that of the noisy image, at four levels."""
        generator = Seed.root(self.recipe.seed).child("judge").torch()
        clean = self._blocks(self.photographs.held_out(self.recipe.size))
        found = {}
        for share in (0.03, 0.1, 0.2, 0.3):
            time = round(share * self.scheduler.config.num_train_timesteps)
            alpha = self.scheduler.alphas_cumprod[time]
            noise = torch.randn(clean.shape, generator=generator)
            times = torch.full((len(clean),), time)
            noisy = self.scheduler.add_noise(clean, noise, times)
            predicted = self.mean_unet(noisy, times).sample
            if self.scheduler.config.prediction_type == "epsilon":
                denoised = (noisy - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
            else:
                denoised = alpha.sqrt() * noisy - (1 - alpha).sqrt() * predicted
            for name, values in (("noisy", noisy / alpha.sqrt()), ("denoised", denoised)):
                errors = ((values - clean) / 2).square().flatten(1).mean(dim=1)
                found[f"psnr, {name}, step {time}"] = float((-10 * errors.log10()).mean())
        return found
