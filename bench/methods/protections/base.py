"""What protections by gradient share: the encoder that they mislead, and the purifier's term of adaptive ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ....core import effort
from ....core.components import param
from ....core.holding import HoldsAutoencoder
from ..base import Protection

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from ....core.autoencoders import Autoencoder


class EncoderProtection(HoldsAutoencoder, Protection):
    """Base of protections that move an image's latent. ``adaptive`` adds what purifiers lower: ||x - D(E(x))||^2."""

    family: ClassVar[str] = "encoder"

    adaptive: float = param(
        0.0, doc="weight of the mean squared reconstruction error, values in -1 to 1; 0: not adaptive", ge=0, le=1e6
    )
    batch: int = param(1, doc="images in one step", ge=1, le=256)


def latents(network: Autoencoder, values: torch.Tensor) -> torch.Tensor:
    """Latents of images of any size, extended to a multiple of the factor, as the encoder gives them.

    The published objectives are in this unit, not in that of a diffusion model, which shifts and scales.
    """
    return unscaled(network, network.encode(network.pad(values)[0]))


def unscaled(network: Autoencoder, values: torch.Tensor) -> torch.Tensor:
    """A diffusion model's latents in the unit of the encoder."""
    return values / network.scaling + network.shift


def towards(network: Autoencoder, wanted: torch.Tensor, adaptive: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The objective of an encoder attack: mean squared distance of the latent from ``wanted``, one number an image.

    Args:
        network: the autoencoder whose encoder is misled.
        wanted: latents ``[B, C, h, w]`` of :func:`latents`, or a number.
        adaptive: weight of the mean squared reconstruction error, values in -1 to 1.
    """

    def objective(values: torch.Tensor) -> torch.Tensor:
        found = network.encode(network.pad(values)[0])
        far = (unscaled(network, found) - wanted).square().flatten(1).mean(dim=1)
        passes = 2 if adaptive else 1
        effort.count(backwards=passes * len(values))
        if not adaptive:
            return far
        height, width = values.shape[2:]
        again = network.decode(found)[..., :height, :width]
        return far + adaptive * (2 * (values - again)).square().flatten(1).mean(dim=1)

    return objective
