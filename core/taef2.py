"""The network of taef2, the tiny autoencoder for FLUX.2's latents; diffusers has none for its released files."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Taef2(nn.Module):
    """The tiny autoencoder for FLUX.2's latents: 32 channels, 8 pixels per cell, images in 0 to 1.

    Like diffusers' AutoencoderTiny, but the three blocks next to the latent first add a branch of 1 x 1 convolutions
    around a group norm, which sees the whole image. Without it the same weights run and give 16 to 19 dB.
    Module names are those of the released files (Boer Bohan, github.com/madebyollin/taesd, MIT licence).
    """

    channels = 32
    factor = 8

    def __init__(self) -> None:
        super().__init__()
        width = 64
        self.encoder = nn.Sequential(
            _conv(3, width),
            _Block(width),
            *(part for pooled in (False, False, True) for part in (_halve(width), *_blocks(width, pooled))),
            _conv(width, self.channels),
        )
        self.decoder = nn.Sequential(
            _Squash(),
            _conv(self.channels, width),
            nn.ReLU(),
            *(part for pooled in (True, False, False) for part in (*_blocks(width, pooled), *_double(width))),
            _Block(width),
            _conv(width, 3),
        )


class _Block(nn.Module):
    """A residual block of three convolutions, after the branch that sees the whole image where it is ``pooled``."""

    def __init__(self, width: int, pooled: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))
        wide = 4 * width
        self.pool = (
            nn.Sequential(
                nn.Conv2d(width, wide, 1, bias=False),
                nn.GroupNorm(4, wide),
                nn.ReLU(),
                nn.Conv2d(wide, width, 1, bias=False),
            )
            if pooled
            else None
        )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.pool is not None:
            values = values + self.pool(values)
        return functional.relu(self.conv(values) + values)


class _Squash(nn.Module):
    """Keeps latents softly within -3 to 3."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.tanh(values / 3) * 3


def _conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _halve(width: int) -> nn.Module:
    return nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)


def _double(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)


def _blocks(width: int, pooled: bool) -> tuple[nn.Module, ...]:
    return tuple(_Block(width, pooled) for _ in range(3))


def taef2_name(key: str) -> str:
    """A tensor's name here for its name in the released single file, which counts the decoder's layers from 0."""
    part, _, rest = key.partition(".layers.")
    number, dot, name = rest.partition(".")
    if not number.isdigit():
        return key
    return f"{part}.{int(number) + (part == 'decoder')}{dot}{name}"
