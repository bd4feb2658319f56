"""Training of a small KL autoencoder on photographs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from ...core.errors import SpecError
from ...core.seeds import Seed
from .trainer import Task

if TYPE_CHECKING:
    from .photographs import Photographs
    from .recipes import AutoencoderRecipe


class AutoencoderTask(Task):
    """Mean absolute error of values and of their differences, and a small KL term; no discriminator.

    Args:
        recipe: the recipe.
        photographs: training images.

    Raises:
        SpecError: ``model`` is not what AutoencoderKL takes, or the crops do not divide by its factor.
    """

    def __init__(self, recipe: AutoencoderRecipe, photographs: Photographs) -> None:
        from diffusers import AutoencoderKL

        self.recipe: AutoencoderRecipe = recipe
        self.photographs = photographs
        self.data = photographs.digest
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(Seed.root(recipe.seed).child("weights", recipe.kind).integer)
            try:
                self.model: Any = AutoencoderKL(**recipe.model)
            except (TypeError, ValueError) as error:
                raise SpecError(f"{recipe.name}: model: {error}") from None
        self.factor = 2 ** (len(self.model.config.block_out_channels) - 1)
        if recipe.size % self.factor:
            raise SpecError(f"{recipe.name}: size {recipe.size} does not divide by the model's factor {self.factor}")
        norms_in_float32(self.model)
        self.model.to(memory_format=torch.channels_last)
        self.modules = {"model": self.model}

    def loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Encodes a batch, draws from the posterior, decodes."""
        recipe = self.recipe
        device = next(self.model.parameters()).device
        images = self.photographs.batch(recipe.batch, recipe.size, generator).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            posterior = self.model.encode(2 * images - 1).latent_dist
            mean, log_variance = posterior.mean.float(), posterior.logvar.float()
            noise = torch.randn(mean.shape, generator=generator).to(device)
            decoded = self.model.decode(mean + noise * torch.exp(log_variance / 2)).sample
        images_again = (decoded.float() + 1) / 2
        error = images_again - images
        absolute = error.abs().mean()
        gradient = (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = recipe.absolute * absolute + recipe.gradient * gradient + recipe.kl * kl
        psnr = -10 * torch.log10(error.detach().square().mean(dim=(1, 2, 3))).mean()
        return loss, {"loss": loss.item(), "absolute": absolute.item(), "kl": kl.item(), "psnr": psnr.item()}

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """PSNR of the kept-out photographs after encoding and decoding, 8-bit, and the spread of the latents."""
        self.model.eval()
        size = self.recipe.short // self.factor * self.factor
        images = self.photographs.held_out(size).to(next(self.model.parameters()).device)
        errors, spread = [], []
        for image in images[:, None]:
            latent = self.model.encode(2 * image - 1).latent_dist.mode()
            again = ((self.model.decode(latent).sample + 1) / 2).clamp(0, 1).mul(255).round().div(255)
            errors.append(functional.mse_loss(again, image))
            spread.append(latent.std())
        psnr = -10 * torch.log10(torch.stack(errors))
        return {
            "psnr": float(psnr.mean()),
            "lowest psnr": float(psnr.min()),
            "latent sd": float(torch.stack(spread).mean()),
        }


class _Float32Norm(nn.GroupNorm):
    """Group norm in float32, whatever autocast says: its bfloat16 gradient on a CPU is several times slower."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.float())


def norms_in_float32(model: nn.Module) -> None:
    """Makes every group norm of ``model`` compute in float32 under autocast; weights and results stay the same."""
    for module in model.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = _Float32Norm
