"""Gaussian Shading: the signs of the first noise carry an encrypted, repeated payload."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from ....core.components import param
from ....core.errors import ContractError
from ....core.seeds import Seed
from ..base import Evidence
from ..generation import InLatent

if TYPE_CHECKING:
    from ....core.images import Images


class GaussianShading(InLatent):
    """Gaussian Shading (Yang et al., CVPR 2024) with one bit for each latent value.

    The payload is tiled over the latent, ``channel_copies * cell_copies^2`` times each bit, and encrypted by a stream
    of fair bits; the result is the sign of each noise value, whose magnitude stays as it was drawn. So marked noise is
    distributed exactly as unmarked noise is, as long as every image has a payload of its own: with one payload and one
    stream the signs are the same in all images. Reading inverts the image, decrypts the signs, and lets the copies of a
    bit vote: the logit is the mean vote, -1 to 1.

    The stream comes from NumPy's PCG64 seeded by SHA-256 of ``secret``, where the paper uses ChaCha20: as fair, but no
    cryptography. Do not deploy it.

    Example:
        >>> from waterproof.core.registry import create
        >>> create("method", "gaussian-shading", {"cell_copies": 4}).label
        'gaussian-shading(cell_copies=4)'
    """

    name: ClassVar[str] = "gaussian-shading"
    min_side: ClassVar[int] = 64
    references: ClassVar[tuple[str, ...]] = (
        "Z. Yang, K. Zeng, K. Chen, H. Fang, W. Zhang, N. Yu: Gaussian Shading: Provable Performance-Lossless Image "
        "Watermarking for Diffusion Models. CVPR 2024, arXiv:2404.04956.",
    )

    channel_copies: int = param(1, doc="copies of each bit over the channels (the paper's f_c)", ge=1, le=64)
    cell_copies: int = param(8, doc="copies of each bit over rows, and as many over columns (f_hw)", ge=1, le=512)
    secret: int = param(0, doc="the owner's key: the encrypting stream is drawn from it", ge=0)

    @property
    def bits(self) -> int:
        """Payload length: latent values over copies; 256 for 4 x 64 x 64."""
        return int(np.prod(self._message))

    @property
    def _message(self) -> tuple[int, int, int]:
        """The payload's shape.

        Raises:
            ContractError: the copies do not divide the latent.
        """
        model = self.diffusion
        cells = self.side // model.autoencoder.factor
        if model.channels % self.channel_copies or cells % self.cell_copies:
            raise ContractError(
                f"{self.label}: channel_copies and cell_copies must divide the latent, {model.channels} x {cells} x "
                f"{cells}"
            )
        return model.channels // self.channel_copies, cells // self.cell_copies, cells // self.cell_copies

    def write(self, noise: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Gives each value the sign of its encrypted bit."""
        message = key.reshape(self._message).tile(self.channel_copies, self.cell_copies, self.cell_copies)
        signs = 1 - 2 * (message ^ self._stream(noise.shape[1:])).to(noise.dtype)
        return noise.abs() * -signs

    def decode(self, images: Images) -> Evidence:
        """Mean votes of the copies of each bit."""
        return Evidence(logits=self.votes(self.inverted(images)))

    def votes(self, noise: torch.Tensor) -> torch.Tensor:
        """Logits float32 ``[B, k]`` of inverted noise ``[B, C, h, w]``."""
        said = (noise > 0) ^ self._stream(noise.shape[1:])
        channels, rows, columns = self._message
        copies = (self.channel_copies, self.cell_copies, self.cell_copies)
        split = (2 * said.float() - 1).reshape(len(noise), copies[0], channels, copies[1], rows, copies[2], columns)
        return split.mean(dim=(1, 3, 5)).reshape(len(noise), -1)

    def _stream(self, shape: torch.Size) -> torch.Tensor:
        return torch.from_numpy(_stream(tuple(shape), self.secret))


@lru_cache(maxsize=8)
def _stream(shape: tuple[int, ...], secret: int) -> np.ndarray:
    """The encrypting bits, bool, one for each latent value."""
    return Seed.root(secret).child("gaussian-shading").numpy().integers(0, 2, shape).astype(bool)
