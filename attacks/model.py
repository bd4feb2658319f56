"""Attacks on the model that makes marked images: its decoder fine-tuned, swapped, averaged, quantised, pruned."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import field_validator
from torch.nn import functional

from ..core.components import param
from ..core.errors import ContractError
from ..core.latent_diffusion import LatentDiffusion
from .base import Access, ModelAttack

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.autoencoders import Autoencoder
    from ..core.seeds import Seed


class FineTuneDecoder(ModelAttack):
    """Fine-tunes the marked decoder on clean images until the mark is gone ("Stable Signature is Unstable").

    The encoder is public. Without the original decoder the target of a clean image's latent is the image itself, with
    it the original decoder's image. Mean squared error, AdamW at one constant learning rate.

    Example:
        >>> FineTuneDecoder(steps=30, original=True).label
        'fine-tune-decoder(steps=30, original=True)'
    """

    name: ClassVar[str] = "fine-tune-decoder"
    summary: ClassVar[str] = "fine-tune the marked decoder"
    strength: ClassVar[str | None] = "steps"
    strengths: ClassVar[tuple[Any, ...]] = (10, 30, 100, 300, 1000)
    neutral: ClassVar[float | None] = 0
    seeded: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = (
        "Y. Hu, Z. Jiang, M. Guo, N. Z. Gong: Stable Signature is Unstable: Removing Image Watermark from Diffusion "
        "Models. arXiv:2405.07145.",
    )

    steps: int = param(100, doc="optimiser steps", ge=0, le=100_000)
    original: bool = param(
        False, doc="whether the adversary has the original decoder, whose images are then the target"
    )
    images: int = param(64, doc="clean images that the adversary has", ge=1, le=100_000)
    crop: int = param(128, doc="side of the training crops, pixels", ge=16, le=4096)
    batch: int = param(4, doc="crops in a step", ge=1, le=256)
    learning_rate: float = param(5e-4, doc="of AdamW", gt=0, le=1)

    @property
    def knowledge(self) -> frozenset[str]:  # type: ignore[override]
        """The marked decoder and clean images; the original decoder where it is the target."""
        return frozenset({"model", "clean-images", *(["original-model"] if self.original else [])})

    @property
    def holdings(self) -> int:
        """The clean images."""
        return self.images

    def change_decoder(self, access: Access, seed: Seed) -> Autoencoder:
        """The fine-tuned decoder."""
        model, clean = _given(self, access.model), _given(self, access.clean)
        target = _given(self, access.original) if self.original else None
        images = clean(self.images).float()
        attacked: Autoencoder = copy.deepcopy(model)
        trained = [p for part in attacked.decoder_modules().values() for p in part.requires_grad_(True).parameters()]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate)
        with torch.enable_grad():
            for step in range(self.steps):
                batch = _crops(images, self.crop, self.batch, model.factor, seed.child(step).torch())
                with torch.no_grad():
                    latents = model.encode(batch)
                    wanted = batch if target is None else target.decode(latents)
                optimizer.zero_grad(set_to_none=True)
                functional.mse_loss(attacked.decode(latents), wanted).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        attacked.model.requires_grad_(False)
        return attacked


class SwapDecoder(ModelAttack):
    """Puts the original decoder back in the marked one's place: whoever has it needs nothing else.

    Example:
        >>> SwapDecoder().label
        'swap-decoder'
    """

    name: ClassVar[str] = "swap-decoder"
    summary: ClassVar[str] = "the original decoder instead of the marked one"
    knowledge: ClassVar[frozenset[str]] = frozenset({"model", "original-model"})

    def change_decoder(self, access: Access, seed: Seed) -> Autoencoder:
        """The original decoder."""
        original: Autoencoder = _given(self, access.original)
        return original


class AverageDecoders(ModelAttack):
    """Averages the weights of the decoders of several users.

    Example:
        >>> AverageDecoders(users=5).label
        'average-decoders(users=5)'
    """

    name: ClassVar[str] = "average-decoders"
    summary: ClassVar[str] = "mean weights of c users' decoders"
    strength: ClassVar[str | None] = "users"
    strengths: ClassVar[tuple[Any, ...]] = (1, 2, 3, 5, 10)
    neutral: ClassVar[float | None] = 1
    knowledge: ClassVar[frozenset[str]] = frozenset({"model", "other-models"})

    users: int = param(3, doc="users who average their decoders, the owner of the key among them", ge=1, le=1000)

    @property
    def colluders(self) -> int:
        """The users whose decoders are averaged."""
        return self.users

    def change_decoder(self, access: Access, seed: Seed) -> Autoencoder:
        """The decoder with the mean weights."""
        models = [_given(self, access.model), *_given(self, access.others)(self.users - 1)]
        states = [_state(model) for model in models]
        return _with(models[0], lambda name, tensor: torch.stack([state[name] for state in states]).mean(dim=0))


class QuantiseDecoder(ModelAttack):
    """Rounds the decoder's weights: 16 bits are half precision, fewer are whole numbers times a scale.

    With b bits a weight tensor becomes ``round(w / s) * s``, ``s = max |w| / (2^(b-1) - 1)`` for each output channel.
    Weights of one dimension (biases, norms) stay, as in practice.

    Example:
        >>> QuantiseDecoder(bits=4).label
        'quantise-decoder(bits=4)'
    """

    name: ClassVar[str] = "quantise-decoder"
    summary: ClassVar[str] = "half precision, or few bits"
    strength: ClassVar[str | None] = "bits"
    strengths: ClassVar[tuple[Any, ...]] = (16, 8, 6, 5, 4, 3)
    harder: ClassVar[int] = -1
    knowledge: ClassVar[frozenset[str]] = frozenset({"model"})

    bits: int = param(8, doc="bits of a weight: 16, or 2 to 8", ge=2, le=16)

    @field_validator("bits")
    @classmethod
    def _known(cls, bits: int) -> int:
        if 8 < bits < 16:
            raise ValueError("weights have 16 bits, or 2 to 8")
        return bits

    def change_decoder(self, access: Access, seed: Seed) -> Autoencoder:
        """The decoder with rounded weights."""

        def rounded(_name: str, weight: torch.Tensor) -> torch.Tensor:
            if self.bits == 16:
                return weight.half().float()
            if weight.ndim < 2:
                return weight
            largest = weight.flatten(1).abs().amax(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
            scale = (largest / (2 ** (self.bits - 1) - 1)).clamp_min(torch.finfo(weight.dtype).tiny)
            scaled: torch.Tensor = (weight / scale).round() * scale
            return scaled

        return _with(_given(self, access.model), rounded)


class PruneDecoder(ModelAttack):
    """Sets the smallest weights of each weight tensor to zero.

    Example:
        >>> PruneDecoder(share=0.3).label
        'prune-decoder(share=0.3)'
    """

    name: ClassVar[str] = "prune-decoder"
    summary: ClassVar[str] = "set the smallest weights to zero"
    strength: ClassVar[str | None] = "share"
    strengths: ClassVar[tuple[Any, ...]] = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
    neutral: ClassVar[float | None] = 0.0
    knowledge: ClassVar[frozenset[str]] = frozenset({"model"})

    share: float = param(0.3, doc="share of the weights of each tensor, 0 to 1", ge=0, lt=1)

    def change_decoder(self, access: Access, seed: Seed) -> Autoencoder:
        """The decoder without its smallest weights."""

        def pruned(_name: str, weight: torch.Tensor) -> torch.Tensor:
            count = int(self.share * weight.numel())
            if weight.ndim < 2 or not count:
                return weight
            limit = weight.abs().flatten().kthvalue(count).values
            return torch.where(weight.abs() <= limit, 0.0, weight)

        return _with(_given(self, access.model), pruned)


class FineTuneDiffusion(ModelAttack):
    """Fine-tunes the latent diffusion model on clean images, as a user does who wants it to draw something else.

    The decoder is left alone, so a mark in the decoder should not notice. Prompts are empty; the loss is that of the
    model's own training; AdamW at one constant learning rate.

    Example:
        >>> FineTuneDiffusion(steps=100).label
        'fine-tune-diffusion(steps=100)'
    """

    name: ClassVar[str] = "fine-tune-diffusion"
    part: ClassVar[Literal["decoder", "diffusion"]] = "diffusion"
    summary: ClassVar[str] = "fine-tune the diffusion model"
    strength: ClassVar[str | None] = "steps"
    strengths: ClassVar[tuple[Any, ...]] = (10, 30, 100, 300, 1000)
    neutral: ClassVar[float | None] = 0
    seeded: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    knowledge: ClassVar[frozenset[str]] = frozenset({"model", "clean-images"})

    steps: int = param(100, doc="optimiser steps", ge=0, le=100_000)
    images: int = param(64, doc="clean images that the adversary has", ge=1, le=100_000)
    batch: int = param(4, doc="images in a step", ge=1, le=256)
    learning_rate: float = param(1e-4, doc="of AdamW", gt=0, le=1)

    @property
    def holdings(self) -> int:
        """The clean images."""
        return self.images

    @property
    def aligned(self) -> bool:
        """Another model draws other images."""
        return self.steps == 0

    def change_diffusion(self, model: LatentDiffusion, access: Access, seed: Seed) -> LatentDiffusion:
        """The fine-tuned model."""
        images = _given(self, access.clean)(self.images).float()
        with torch.no_grad():
            latents = torch.cat([model.autoencoder.encode(image) for image in images.split(1)])
            embedded = model.conditioner.embed([""])
        unet = copy.deepcopy(model.unet).requires_grad_(True)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=self.learning_rate)
        scheduler = model.scheduler()
        with torch.enable_grad():
            for step in range(self.steps):
                generator = seed.child(step).torch()
                chosen = latents[torch.randint(len(latents), (self.batch,), generator=generator)]
                times = torch.randint(scheduler.config.num_train_timesteps, (self.batch,), generator=generator)
                noise = torch.randn(chosen.shape, generator=generator)
                wanted = noise
                if scheduler.config.prediction_type == "v_prediction":
                    wanted = scheduler.get_velocity(chosen, noise, times)
                noisy = scheduler.add_noise(chosen, noise, times)
                predicted = unet(noisy, times, embedded.expand(self.batch, -1, -1)).sample
                optimizer.zero_grad(set_to_none=True)
                functional.mse_loss(predicted, wanted).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        name, digest = f"{model.name}, fine-tuned", f"{model.digest} {self.spec().id}"
        return LatentDiffusion(unet, model.autoencoder, model.conditioner, model.schedule, name, digest)


def _given(attack: ModelAttack, handle: Any) -> Any:
    if handle is None:
        raise ContractError(f"{attack.label} was not given what it must know ({', '.join(sorted(attack.knowledge))})")
    return handle


def _crops(images: torch.Tensor, size: int, count: int, factor: int, generator: torch.Generator) -> torch.Tensor:
    """Random square crops ``[count, 3, size, size]``, no larger than the images and a multiple of ``factor``."""
    size = min(size, *images.shape[2:]) // factor * factor
    crops = []
    for _ in range(count):
        number = int(torch.randint(len(images), (), generator=generator))
        top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for side in images.shape[2:])
        crops.append(images[number, :, top : top + size, left : left + size])
    return torch.stack(crops)


def _state(model: Autoencoder) -> dict[str, torch.Tensor]:
    """The decoder's weights by name."""
    parts = model.decoder_modules().items()
    return {f"{name}.{key}": tensor for name, part in parts for key, tensor in part.state_dict().items()}


def _with(model: Autoencoder, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Autoencoder:
    """A copy of the autoencoder whose decoder's floating-point weights went through ``change``."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in _state(changed).items():
            if tensor.is_floating_point():
                tensor.copy_(change(name, tensor))
    return changed
