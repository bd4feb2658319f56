"""What a protection did inside an autoencoder: how far the latent moved, and how badly the image is reconstructed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from ..core.holding import HoldsAutoencoder
from .metrics import Metric

if TYPE_CHECKING:
    from ..core.autoencoders import Autoencoder
    from ..core.images import Images


class LatentDistance(HoldsAutoencoder, Metric):
    """Distance of an image's latent from its reference's, as a share of the reference's own length.

    Also the proxy of an editor that is not at hand: whoever edits in this latent space sees this much of the change.
    """

    name: ClassVar[str] = "latent-distance"
    better: ClassVar[Literal["higher", "lower"]] = "lower"

    def prepare(self, reference: Images) -> Any:
        """The reference's latents."""
        return _latents(reference, self.network)

    def compare(self, images: Images, prepared: Any) -> np.ndarray:
        """|E(x) - E(reference)| / |E(reference)| for each image."""
        pairs = zip(_latents(images, self.network), prepared, strict=True)
        return np.array([float((a - b).norm() / b.norm()) for a, b in pairs])


class ReconstructionError(HoldsAutoencoder, Metric):
    """Mean squared difference of an image and its reconstruction, values in -1 to 1: what IMPRESS lowers.

    It looks at the image alone; the reference is not used.
    """

    name: ClassVar[str] = "reconstruction-error"
    compares: ClassVar[bool] = False
    better: ClassVar[Literal["higher", "lower"]] = "lower"

    def compare(self, images: Images, prepared: Any) -> np.ndarray:
        """The error of each image."""
        network = self.network
        with torch.no_grad():
            values = [images.take([i]).float() for i in range(len(images))]
            errors = [(2 * (x - network.reconstruct(x))).square().mean() for x in values]
        return np.array([float(error) for error in errors])


class LargestChange(Metric):
    """The largest difference of a value from its reference, in grey levels: the maximum norm of 8-bit images."""

    name: ClassVar[str] = "largest-change"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    unit: ClassVar[str] = "grey levels"

    def compare(self, images: Images, prepared: Any) -> np.ndarray:
        """Largest |x - reference| for each image."""
        changes = (images.pixels.int() - prepared.pixels.int()).abs().flatten(1)
        largest: np.ndarray = changes.amax(dim=1).numpy().astype(np.float64)
        return largest


@torch.no_grad()
def _latents(images: Images, network: Autoencoder) -> list[torch.Tensor]:
    return [network.encode(network.pad(images.take([i]).float())[0]) for i in range(len(images))]
