"""Tree-Ring: rings of constant value in the spectrum of the noise that an image begins as."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch

from ....core.components import param
from ....core.errors import ContractError
from ....core.seeds import Seed
from ..base import Evidence
from ..generation import InLatent

if TYPE_CHECKING:
    from ....core.images import Images


class TreeRing(InLatent):
    """Tree-Ring watermark (Wen et al., NeurIPS 2023), pattern ``rings``, presence only.

    The discrete Fourier transform of one channel of the first noise gets the key's value on each ring
    ``i - 1 < |f| <= i`` up to the radius. Reading inverts the image and compares: the score is minus the mean absolute
    difference between the transform and the key over the disc, divided by the side, so that plain noise scores about
    -1. No theory gives its threshold: use the rule ``certified`` or ``extrapolated``.

    The value of a ring is real. The noise is real, so its transform at f and -f are conjugates; of a complex value that
    is equal at both, only the real part survives the way back, and the published code in fact embeds that.

    ``chi-square`` is the paper's p-value (its equation 4): with sigma^2 the sample variance of the transform's real and
    imaginary parts, sum |F - k|^2 / sigma^2 against a non-central chi-square with two degrees of freedom for each
    frequency; the score is -log10 p. It counts f and -f as two observations though they are one, and so is not a
    p-value even on ideal noise: calibrate it as any other score.

    Example:
        >>> from waterproof.core.registry import create
        >>> create("method", "tree-ring", {"radius": 8}).label
        'tree-ring(radius=8)'
    """

    name: ClassVar[str] = "tree-ring"
    min_side: ClassVar[int] = 64
    references: ClassVar[tuple[str, ...]] = (
        "Y. Wen, J. Kirchenbauer, J. Geiping, T. Goldstein: Tree-Ring Watermarks: Fingerprints for Diffusion Images "
        "that are Invisible and Robust. NeurIPS 2023, arXiv:2305.20030.",
    )

    radius: int = param(10, doc="of the disc in the spectrum, frequencies", ge=1, le=512)
    channel: int = param(3, doc="channel of the latent that carries the rings, from 0", ge=0, le=63)
    secret: int = param(0, doc="the owner's key: the rings' values are drawn from it", ge=0)
    statistic: Literal["distance", "chi-square"] = param(
        "distance", doc="score: minus the mean absolute difference, or -log10 of the paper's p-value"
    )

    @property
    def bits(self) -> int:
        """No payload."""
        return 0

    def write(self, noise: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Puts the rings into the spectrum of one channel."""
        disc, values = self._pattern(*noise.shape[1:])
        marked = noise.clone()
        spectrum = torch.fft.fftshift(torch.fft.fft2(noise[0, self.channel].double()))
        spectrum[disc] = values.to(spectrum.dtype)
        marked[0, self.channel] = torch.fft.ifft2(torch.fft.ifftshift(spectrum)).real.to(noise.dtype)
        return marked

    def decode(self, images: Images) -> Evidence:
        """The score of each image; larger means more likely marked."""
        return Evidence(score=self.compare(self.inverted(images)))

    def compare(self, noise: torch.Tensor) -> torch.Tensor:
        """Scores float64 ``[B]`` of inverted noise ``[B, C, h, w]``."""
        disc, values = self._pattern(*noise.shape[1:])
        side = noise.shape[-1] * noise.shape[-2]
        spectrum = torch.fft.fftshift(torch.fft.fft2(noise[:, self.channel].double()), dim=(-2, -1))[:, disc]
        if self.statistic == "distance":
            distance: torch.Tensor = (spectrum - values).abs().mean(dim=1) / side**0.5
            return -distance
        return torch.from_numpy(published_log10_p(spectrum.numpy(), values.numpy()))

    def _pattern(self, channels: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.channel >= channels or self.radius >= min(height, width) // 2:
            raise ContractError(
                f"{self.label}: channel {self.channel} and radius {self.radius} do not fit latents of {channels} x "
                f"{height} x {width}: channels count from 0, the radius stays below half the side"
            )
        disc, values = _rings(height, width, self.radius, self.secret)
        return torch.from_numpy(disc), torch.from_numpy(values)


@lru_cache(maxsize=8)
def _rings(height: int, width: int, radius: int, secret: int) -> tuple[np.ndarray, np.ndarray]:
    """The disc as a mask of the shifted spectrum, and the key on it, float64, in the mask's order.

    A transform of white noise has variance ``height * width``; its real part, which is what a ring sets, half of it.
    """
    down, across = np.arange(height) - height // 2, np.arange(width) - width // 2
    ring = np.ceil(np.hypot(down[:, None], across)).astype(int)
    disc = ring <= radius
    drawn = Seed.root(secret).child("tree-ring", radius).numpy().standard_normal(radius + 1)
    # The zero frequency belongs to the innermost ring.
    values = drawn[np.maximum(ring[disc], 1)] * np.sqrt(height * width / 2)
    return disc, values


def published_log10_p(spectrum: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Minus log10 of the paper's p-value.

    Args:
        spectrum: complex ``[B, n]``, the transform on the disc.
        key: ``[n]``.
    """
    from scipy.stats import ncx2

    parts = np.concatenate([spectrum.real, spectrum.imag], axis=1)
    wanted = np.concatenate([key.real, key.imag])
    variance = parts.var(axis=1, ddof=1)
    statistic = ((parts - wanted) ** 2).sum(axis=1) / variance
    centre = (wanted**2).sum() / variance
    log_p = ncx2.logcdf(statistic, df=parts.shape[1], nc=centre)
    # Where the law underflows its logarithm is not finite; -300 is beyond every threshold.
    found: np.ndarray = np.clip(-np.nan_to_num(log_p, nan=-np.inf, neginf=-700.0) / np.log(10), 0, 300)
    return found
