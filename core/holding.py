"""What works through a network of its own shares: which autoencoder, model or distance, and the way through."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .components import Component, knob
from .errors import UnavailableError, UserError
from .images import Images
from .perceptual import scaled_perceptual

if TYPE_CHECKING:
    from collections.abc import Callable

    from .autoencoders import Autoencoder
    from .images import Record
    from .latent_diffusion import LatentDiffusion


class HoldsAutoencoder(Component):
    """Base of components with an autoencoder of their own, which need not be anybody else's."""

    autoencoder: str = knob("shipped", doc="autoencoder: shipped, shipped-f8, a folder, or owner/name@revision")

    @property
    def label(self) -> str:
        """Name and settings, and the autoencoder where it is not that of the package."""
        return placed(super().label, "autoencoder", self.autoencoder)

    @property
    def network(self) -> Autoencoder:
        """The autoencoder.

        Raises:
            UnavailableError: it is not here.
        """
        return open_autoencoder(self.autoencoder)

    def unavailable(self) -> str | None:
        """Needs the autoencoder."""
        return why_not(lambda: self.network)

    def digests(self) -> dict[str, str]:
        """SHA-256 of the autoencoder."""
        return {} if self.unavailable() else {"autoencoder": self.network.digest}


class HoldsDiffusion(Component):
    """Base of components with a latent diffusion model of their own."""

    model: str = knob("shipped", doc="latent diffusion model: shipped, a folder of diffusers, or owner/name@revision")

    @property
    def label(self) -> str:
        """Name and settings, and the model where it is not that of the package."""
        return placed(super().label, "model", self.model)

    @property
    def diffusion(self) -> LatentDiffusion:
        """The model.

        Raises:
            UnavailableError: it is not here.
        """
        from .latent_diffusion import load_latent_diffusion

        return load_latent_diffusion(self.model)

    def unavailable(self) -> str | None:
        """Needs the model."""
        return why_not(lambda: self.diffusion)

    def digests(self) -> dict[str, str]:
        """SHA-256 of the model: network, autoencoder, text encoder and schedule."""
        return {} if self.unavailable() else {"model": self.diffusion.digest}


@torch.no_grad()
def one_by_one(images: Images, change: Callable[[torch.Tensor, Record], torch.Tensor]) -> Images:
    """Changes each image by itself: floats ``[1, 3, H, W]`` in 0 to 1, the record, and floats of the same shape."""
    changed = []
    for i, record in enumerate(images.records):
        changed.append(change(images.take([i]).float(), record))
    return Images.from_float(torch.cat(changed), images.records) if changed else images


def through_latent(
    autoencoder: Autoencoder, image: torch.Tensor, multiple: int, change: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """An image encoded, changed as a latent, decoded and clipped; sides are extended to a multiple and cut back.

    Args:
        autoencoder: the autoencoder.
        image: floats ``[1, 3, H, W]`` in 0 to 1.
        multiple: what the sides of the latent's image must be multiples of, pixels.
        change: latent to latent.
    """
    height, width = image.shape[2:]
    grown = (0, -width % multiple, 0, -height % multiple)
    padded = torch.nn.functional.pad(image, grown, mode="replicate")
    latent = change(autoencoder.encode(padded))
    return autoencoder.decode(latent).clamp(0, 1)[..., :height, :width]


def why_no_distance(name: str) -> str | None:
    """Why a perceptual distance cannot be used here, None if it can."""
    reason = why_not(lambda: scaled_perceptual(name))
    return None if reason is None else f"{reason}; or choose distance: watson-1993, which needs no weights"


def distance_digests(name: str) -> dict[str, str]:
    """SHA-256 of a perceptual distance's weights, where it has any."""
    digest = scaled_perceptual(name)[0].digest
    return {"distance": digest} if digest else {}


def placed(label: str, name: str, source: str) -> str:
    """A label with the place of weights that are not the package's."""
    if source == "shipped":
        return label
    place = f"{name}={Path(source).name}"
    return f"{label[:-1]}, {place})" if label.endswith(")") else f"{label}({place})"


def why_not(load: Callable[[], object]) -> str | None:
    """What is said against loading something, None if it loads."""
    try:
        load()
    except UserError as error:
        return str(error)
    return None


def open_autoencoder(source: str) -> Autoencoder:
    """``shipped``, a folder, or ``owner/name@revision``; the last four stay in memory."""
    from .weights import digest_of

    path = Path(source).expanduser()
    try:
        content = digest_of(path) if path.is_dir() else ""
    except UnavailableError:
        content = ""  # an empty folder: what loads says better what belongs there
    return _loaded(source, content)


@lru_cache(maxsize=4)
def _loaded(source: str, _content: str) -> Autoencoder:
    """The folder's content is part of the key: one that was trained anew is loaded anew."""
    from .autoencoders import load_from

    return load_from(source)
