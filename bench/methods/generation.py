"""What marks that are born with the image share: a latent diffusion model, a prompt and a seed for each image."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch.nn import functional

from ...core.components import knob, labelled, param
from ...core.errors import ContractError, UserError
from ...core.images import Images
from ...core.latent_diffusion import LatentDiffusion, Sampling, Solver, load_latent_diffusion
from .base import Changed, Pair, Watermark

if TYPE_CHECKING:
    from ...core.autoencoders import Autoencoder
    from ...core.images import Record
    from ...core.seeds import Seed


class InGeneration(Watermark):
    """Base of marks that a latent diffusion model makes: the same prompt, seed and settings with and without the mark.

    Images come from the dataset ``prompts``; the records' captions and seeds are what is used of them. With the
    dataset's own model and settings the unmarked counterparts are the dataset's images.
    """

    family: ClassVar[str] = "in-generation"
    counterparts: ClassVar[Literal["input", "own"]] = "own"

    model: str = knob("shipped", doc="latent diffusion model: shipped, a folder of diffusers, or owner/name@revision")
    steps: int = param(Sampling().steps, doc="evaluations of the network in generation", ge=1, le=1000)
    guidance: float = param(Sampling().guidance, doc="classifier-free guidance; 1 for none", ge=0, le=100)
    solver: Solver = param(Sampling().solver, doc="ddim or dpm-solver (DPM-Solver++ of second order)")

    @property
    def label(self) -> str:
        """The name, whose model where it is not that of the package, and what differs from the defaults."""
        place = {} if self.model == "shipped" else {"model": Path(self.model).name}
        return labelled(self.name, {**place, **self.changed_params()})

    @property
    def sampling(self) -> Sampling:
        """Steps, guidance and solver of the generation."""
        return Sampling(self.steps, self.guidance, self.solver)

    @property
    def diffusion(self) -> LatentDiffusion:
        """The model.

        Raises:
            UnavailableError: it is not here.
        """
        return load_latent_diffusion(self.model)

    def unavailable(self) -> str | None:
        """Needs the model."""
        try:
            _ = self.diffusion
        except UserError as error:
            return str(error)
        return None

    def digests(self) -> dict[str, str]:
        """SHA-256 of the model: network, autoencoder, text encoder and schedule."""
        return {} if self.unavailable() else {"model": self.diffusion.digest}

    def embed(self, images: Images, keys: torch.Tensor, seed: Seed) -> Images:
        """The marked images of :meth:`mark`."""
        return self.mark(images, keys, seed).marked

    def mark(self, images: Images, keys: torch.Tensor, seed: Seed) -> Pair:
        """The images of :meth:`remake` with the owner's own model, which nobody attacked."""
        return self.remake(images, keys, seed, Changed(self.decoder_of, lambda model: model))

    def first_noise(self, record: Record, size: tuple[int, int]) -> torch.Tensor:
        """The noise of an image, from its record's seed: ``[1, C, h, w]``.

        Raises:
            ContractError: the record has no seed or no prompt.
        """
        if record.seed is None or record.caption is None:
            raise ContractError(
                f"{self.label} makes its own images and needs a prompt and a seed for each, which image {record.id} "
                "has not: use the dataset 'prompts'"
            )
        return self.diffusion.noise(record.seed, size)


class InLatent(InGeneration):
    """Base of marks in the first noise, which are read by running the diffusion backwards.

    An image that is to be read is brought to ``size``, encoded, and inverted without prompt or guidance, because
    whoever reads knows neither.
    """

    inversion_steps: int = param(10, doc="evaluations of the network when the mark is read", ge=1, le=1000)
    size: int | None = param(
        None, doc="side of the square images, pixels, to which they are brought before reading; the model's own", ge=8
    )

    @property
    def invents(self) -> bool:
        """Always."""
        return True

    @property
    def parts(self) -> frozenset[str]:
        """Both make the images."""
        return frozenset({"decoder", "diffusion"})

    def decoder_of(self, key: str | None) -> Autoencoder:
        """The model's own: the mark is not in it."""
        return self.diffusion.autoencoder

    @torch.no_grad()
    def remake(self, images: Images, keys: torch.Tensor, seed: Seed, changed: Changed) -> Pair:
        """Images from the marked and from the plain noise of each record.

        Raises:
            ContractError: a record without prompt or seed, or images of another size than is read.
        """
        model, side = changed.diffusion(self.diffusion), self.side
        if images.size != (side, side):
            raise ContractError(
                f"{self.label} reads marks at {side} x {side} pixels and cannot make images of "
                f"{images.size[0]} x {images.size[1]}: set 'size' of both the dataset and the method"
            )
        sides: dict[str, list[torch.Tensor]] = {"marked": [], "unmarked": []}
        for record, key in zip(images.records, keys, strict=True):
            noise = self.first_noise(record, images.size)
            for name, start in (("marked", self.write(noise, key)), ("unmarked", noise)):
                latent = model.sample(start, record.caption or "", self.sampling)
                # The mark is in the noise: there is one decoder for all.
                sides[name].append(changed.decoder(None).decode(latent))
        marked, unmarked = (Images.from_float(torch.cat(values), images.records) for values in sides.values())
        return Pair(marked, unmarked)

    @property
    def side(self) -> int:
        """Side of the square images, pixels."""
        return self.size or self.diffusion.size

    @abstractmethod
    def write(self, noise: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """The marked noise of one image.

        Args:
            noise: ``[1, C, h, w]``, standard normal.
            key: bool ``[k]``.
        """

    @torch.no_grad()
    def inverted(self, images: Images) -> torch.Tensor:
        """The noise that each image seems to have begun as: float32 ``[B, C, h, w]``."""
        model, side = self.diffusion, self.side
        found = []
        for image in images.float()[:, None]:
            square: Any = image
            if images.size != (side, side):
                square = functional.interpolate(image, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
            found.append(model.invert(model.autoencoder.encode(square), self.inversion_steps, solver=self.solver))
        return torch.cat(found)
