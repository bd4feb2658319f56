"""Training of a small latent diffusion model on photographs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from ...core.errors import SpecError
from ...core.seeds import Seed
from ...core.words import WordEncoder, describe
from . import diffusion
from .autoencoder import norms_in_float32
from .photographs import centre
from .trainer import Task

if TYPE_CHECKING:
    from ...core.autoencoders import Autoencoder
    from ...core.progress import Tick
    from .photographs import Photographs
    from .recipes import LatentDiffusionRecipe


class LatentDiffusionTask(Task):
    """Mean squared error of the predicted velocity (or noise) at uniform time steps.

    Photographs are encoded once, each as it is and mirrored; a training image is a square crop of such a latent, its
    caption is measured on the pixels under it. What is saved is the running mean of the weights.

    Args:
        recipe: the recipe.
        photographs: training images.
        autoencoder: makes the latents.
        tick: progress of encoding, one unit for each photograph.

    Raises:
        SpecError: ``model`` or ``schedule`` is not what diffusers takes, or the crops do not divide by the factor.
    """

    def __init__(
        self,
        recipe: LatentDiffusionRecipe,
        photographs: Photographs,
        autoencoder: Autoencoder,
        tick: Tick | None = None,
    ) -> None:
        self.recipe: LatentDiffusionRecipe = recipe
        self.photographs = photographs
        self.data = f"{photographs.digest} {autoencoder.digest}"
        self.autoencoder = autoencoder
        self.cells = recipe.size // autoencoder.factor
        sides = {"in_channels": autoencoder.channels, "out_channels": autoencoder.channels, "sample_size": self.cells}

        def make() -> tuple[Any, WordEncoder]:
            from diffusers import UNet2DConditionModel

            unet = UNet2DConditionModel(**recipe.model, **sides, cross_attention_dim=recipe.width)
            return unet, WordEncoder(width=recipe.width)

        (self.unet, self.words), self.scheduler = diffusion.build(recipe, recipe.schedule, make)
        multiple = autoencoder.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if recipe.size % multiple:
            raise SpecError(
                f"{recipe.name}: size {recipe.size} must be a multiple of {multiple}, which the model halves"
            )
        self.mean_unet: Any = copy.deepcopy(self.unet).requires_grad_(False).eval()
        self.mean_words = copy.deepcopy(self.words).requires_grad_(False).eval()
        norms_in_float32(self.unet)
        self.unet.to(memory_format=torch.channels_last)
        self.modules = {
            "unet": self.unet,
            "words": self.words,
            "mean unet": self.mean_unet,
            "mean words": self.mean_words,
        }
        self.latents = [[self._encode(image), self._encode(image.flip(-1))] for image in _told(photographs.train, tick)]

    @torch.no_grad()
    def _encode(self, image: torch.Tensor) -> torch.Tensor:
        factor = self.autoencoder.factor
        height, width = (side // factor * factor for side in image.shape[1:])
        return self.autoencoder.encode(image[None, :, :height, :width].float() / 255)[0]

    def loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Noises a batch and predicts."""
        recipe = self.recipe
        if step:
            self.follow(step)
        device = next(self.unet.parameters()).device
        crops, tokens = zip(*(self._crop(generator) for _ in range(recipe.batch)), strict=True)
        times = torch.randint(self.scheduler.config.num_train_timesteps, (recipe.batch,), generator=generator)
        noise = torch.randn((recipe.batch, *crops[0].shape), generator=generator)
        latents, noise, times = torch.stack(crops).to(device), noise.to(device), times.to(device)
        target = diffusion.target(self.scheduler, latents, noise, times)
        noisy = self.scheduler.add_noise(latents, noise, times).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            embedded = self.words(torch.stack(tokens).to(device))
            predicted = self.unet(noisy, times, embedded).sample
        loss = functional.mse_loss(predicted.float(), target)
        return loss, {"loss": loss.item()}

    def follow(self, step: int) -> None:
        """Moves the running means towards the weights."""
        diffusion.follow([(self.mean_unet, self.unet), (self.mean_words, self.words)], self.recipe.average, step)

    def _crop(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """A square crop of a latent, and the tokens of what is seen there."""

        def draw(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        number, mirrored = draw(len(self.latents)), draw(2)
        latent, cells, factor = self.latents[number][mirrored], self.cells, self.autoencoder.factor
        top, left = draw(latent.shape[1] - cells + 1), draw(latent.shape[2] - cells + 1)
        image = self.photographs.train[number]
        width = latent.shape[2] * factor
        # The mirrored latent is of the whole mirrored image, whose spare columns are then on the left.
        seen = (image.flip(-1) if mirrored else image)[:, :, :width]
        window = seen[:, top * factor : (top + cells) * factor, left * factor : (left + cells) * factor]
        words = describe(window.permute(1, 2, 0).contiguous().numpy())
        whole = bool(torch.rand((), generator=generator) >= self.recipe.drop)
        kept = torch.rand(len(words), generator=generator) >= self.recipe.drop_word
        prompt = " ".join(word for word, keep in zip(words, kept.tolist(), strict=True) if keep) if whole else ""
        return latent[:, top : top + cells, left : left + cells], self.words.tokens([prompt])[0]

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """Error of the prediction on photographs kept out and on as many of the training, and how far captions help."""
        images = self.photographs.validation
        factor = self.autoencoder.factor
        found = {}
        for name, chosen in (("kept out", images), ("of the training", self.photographs.train[: len(images)])):
            squares = [centre(image, self.cells * factor) for image in chosen]
            prompts = [" ".join(describe(image.permute(1, 2, 0).contiguous().numpy())) for image in squares]
            for caption, texts in (("", prompts), (" without caption", [""] * len(prompts))):
                found[f"loss, {name}{caption}"] = self._error(squares, texts)
        return found

    def _error(self, squares: list[torch.Tensor], prompts: list[str]) -> float:
        generator = Seed.root(self.recipe.seed).child("judge").torch()
        errors = []
        steps = self.scheduler.config.num_train_timesteps
        for square, prompt in zip(squares, prompts, strict=True):
            latent = self._encode(square)[None]
            embedded = self.mean_words(self.mean_words.tokens([prompt]))
            for share in (0.1, 0.3, 0.5, 0.7, 0.9):
                noise = torch.randn(latent.shape, generator=generator)
                times = torch.tensor([round(share * steps)])
                noisy = self.scheduler.add_noise(latent, noise, times)
                predicted = self.mean_unet(noisy, times, embedded).sample
                errors.append(functional.mse_loss(predicted, diffusion.target(self.scheduler, latent, noise, times)))
        return float(torch.stack(errors).mean())


def _told(images: tuple[torch.Tensor, ...], tick: Tick | None) -> Any:
    for image in images:
        yield image
        if tick is not None:
            tick(1, "")
