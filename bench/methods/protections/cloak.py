"""A cloak after Glaze: the image's latent is moved towards that of the same image in another style."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import model_validator

from ....core.components import param
from ....core.descent import adam, in_batches
from ....core.holding import HoldsDiffusion, distance_digests, why_no_distance
from ....core.latent_diffusion import Sampling, edit_steps
from ....core.perceptual import scaled_perceptual
from ..base import Protection
from .base import latents, towards

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ....core.images import Images, Record
    from ....core.seeds import Seed


class Cloak(HoldsDiffusion, Protection):
    """A cloak after Glaze (Shan et al., USENIX Security 2023): min |E(x) - E(restyled)|^2 + 30 max(d - limit, 0).

    The restyled image comes from image-to-image with a prompt; Adam (.01, for values in -1 to 1) from uniform noise of
    .05. It is no Glaze: that is closed software. E is the posterior's mode, where the code that this follows draws from
    it. d is as in the attack ``impress``.

    Example:
        >>> Cloak(steps=40, distance="watson-1993").label
        'cloak(distance=watson-1993, steps=40)'
    """

    name: ClassVar[str] = "cloak"
    family: ClassVar[str] = "encoder"
    references: ClassVar[tuple[str, ...]] = (
        "S. Shan, J. Cryan, E. Wenger, H. Zheng, R. Hanocka, B. Y. Zhao: Glaze: Protecting Artists from Style Mimicry "
        "by Text-to-Image Models. USENIX Security 2023, arXiv:2302.04222.",
    )

    prompt: str = param("colourful detailed contrasty", doc="style of the target, in words that the model knows")
    strength: float = param(0.4, doc="share of the noise in image-to-image, 0 to 1", gt=0, le=1)
    sampling_steps: int = param(20, doc="steps of the sampler, of which strength is used", ge=1, le=999)
    guidance: float = param(3.0, doc="classifier-free guidance; 1 for none", ge=0, le=100)
    distance: Literal["lpips-vgg", "lpips", "watson-1993"] = param(
        "lpips-vgg", doc="perceptual distance: lpips-vgg (published), lpips (AlexNet), or watson-1993 (no weights)"
    )
    limit: float = param(0.05, doc="perceptual distance that costs nothing", ge=0)
    weight: float = param(30.0, doc="of the perceptual term", ge=0)
    rate: float = param(0.01, doc="learning rate, for values in -1 to 1", gt=0, le=1)
    steps: int = param(500, doc="steps of Adam", ge=1, le=100_000)
    adaptive: float = param(
        0.0, doc="weight of the mean squared reconstruction error, values in -1 to 1; 30 in the adaptive version", ge=0
    )
    batch: int = param(1, doc="images in one step", ge=1, le=256)

    @model_validator(mode="after")
    def _restyles(self) -> Cloak:
        if edit_steps(self.sampling_steps, self.strength) < 1:
            raise ValueError(
                f"strength {self.strength:g} of {self.sampling_steps} sampling_steps is less than one step"
            )
        return self

    def unavailable(self) -> str | None:
        """Needs the model and the weights of the distance."""
        return super().unavailable() or why_no_distance(self.distance)

    def digests(self) -> dict[str, str]:
        """SHA-256 of the model and of the distance's weights."""
        found = super().digests()
        return {**found, **distance_digests(self.distance)} if found else found

    def protect(self, images: Images, seed: Seed) -> Images:
        """The cloaked images.

        Raises:
            UserError: the objective is not finite.
        """
        model = self.diffusion
        network, (distance, unit) = model.autoencoder, scaled_perceptual(self.distance)
        sampling = Sampling(self.sampling_steps, self.guidance)

        def change(given: torch.Tensor, records: Sequence[Record]) -> torch.Tensor:
            draws = [seed.child(record.id).torch() for record in records]
            with torch.no_grad():
                padded = torch.nn.functional.pad(given, _grown(given, model.multiple), mode="replicate")
                before = network.encode(padded)
                noises = [torch.randn(before.shape[1:], generator=draw)[None] for draw in draws]
                # What is aimed at is the encoding of an image: a sampled latent need not be one.
                styled = [
                    latents(network, network.decode(
                        model.edit(before[i : i + 1], self.prompt, noises[i], self.strength, sampling)
                    ).clamp(0, 1))
                    for i in range(len(given))
                ]  # fmt: skip
            aim = towards(network, torch.cat(styled), self.adaptive)

            def objective(values: torch.Tensor) -> torch.Tensor:
                far = (distance(values, given) / unit - self.limit).clamp(min=0)
                grown = torch.nn.functional.pad(values, _grown(values, model.multiple), mode="replicate")
                total: torch.Tensor = aim(grown) + self.weight * far
                return total

            start = given + 0.025 * (2 * torch.stack([torch.rand(given.shape[1:], generator=d) for d in draws]) - 1)
            # Adam's epsilon of 1e-8 in the published scale: gradients are twice as large here.
            return adam(start, objective, records, rate=self.rate / 2, epsilon=2e-8, steps=self.steps, what=self.label)

        return in_batches(images, self.batch, change)


def _grown(images: torch.Tensor, multiple: int) -> tuple[int, int, int, int]:
    return (0, -images.shape[3] % multiple, 0, -images.shape[2] % multiple)
