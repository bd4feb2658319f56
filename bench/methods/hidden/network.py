"""HiDDeN's networks as Stable Signature trains them: an encoder that adds a message, an extractor that reads it.

Zhu et al., "HiDDeN: Hiding Data With Deep Networks" (ECCV 2018), in the form of Fernandez et al., "The Stable
Signature" (ICCV 2023), section 3.1. The defaults are the published shape (291,456 parameters in an extractor of 48
bits). Smaller shapes pool between stages of the extractor, fold squares of pixels into channels of the encoder, and
show the extractor the image's fine detail as well: they train in hours on two cores instead of days on many GPUs.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn
from torch.nn import functional

from ....core.components import describe
from ....core.errors import ImageError, UnavailableError
from ....core.weights import load_module, load_state, save_state
from .jnd import heat_map

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's channels, images in 0 to 1."""

DEVIATION = (0.229, 0.224, 0.225)
"""Their standard deviation."""

_DETAIL_GAIN = 8
M = TypeVar("M", bound=nn.Module)


class NetworkConfig(BaseModel):
    """The shape of an encoder and its extractor.

    Attributes:
        bits: payload length k.
        stages: (channels, blocks) of the extractor; between stages the resolution is halved. A last block leads to
            ``bits`` channels.
        detail: whether the extractor sees ``image - blurred image`` as three more channels. Photographs hold most of
            their energy in coarse structure, marks in fine structure; without it a short training finds the marks late.
        even: whether each pooled feature is brought to mean 0 and variance 1 before the last layer, so that all bits
            learn at once.
        padding: what lies beyond the image's border for both networks: ``zeros`` in the paper. Zeros shift the pooled
            features by the share of pixels near the border, so that an extractor reads small and large images
            differently; ``replicate`` does not.
        encoder_width: channels of the encoder's blocks.
        encoder_depth: blocks before the message comes in.
        patch: side in pixels of the squares that the encoder folds into channels.
        momentum: of the batch norms; .01 in the paper, more for short trainings.
        attenuation: ``uniform`` adds ``strength * delta`` in ImageNet-normalised space (the paper's training), ``jnd``
            adds ``strength * heat_map * delta`` to the image (its post-hoc use).
        strength: factor of the mark.
        embed: what a mark begins with: the ``encoder``'s proposal, or nothing: ``descent`` alone, without an encoder.
        refine: gradient steps that lead the mark of an image to its message; see :mod:`.search`. None in the paper.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: int = Field(48, ge=1, le=1024)
    stages: tuple[tuple[int, int], ...] = Field(((64, 8),), min_length=1, max_length=5)
    detail: bool = False
    even: bool = False
    padding: Literal["zeros", "replicate"] = "zeros"
    encoder_width: int = Field(64, ge=1, le=1024)
    encoder_depth: int = Field(4, ge=1, le=64)
    patch: int = Field(1, ge=1, le=8)
    momentum: float = Field(0.01, gt=0, le=1)
    attenuation: Literal["uniform", "jnd"] = "uniform"
    strength: float = Field(0.3, gt=0, le=100)
    embed: Literal["encoder", "descent"] = "encoder"
    refine: int = Field(0, ge=0, le=1000)

    @model_validator(mode="after")
    def _marks(self) -> Self:
        if self.embed == "descent" and not self.refine:
            raise ValueError("embed: descent marks nothing without steps: refine must be 1 or more")
        return self


class Block(nn.Sequential):
    """3 x 3 convolution, batch norm (eps 1e-3), GELU."""

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode=config.padding),
            nn.BatchNorm2d(outputs, eps=1e-3, momentum=config.momentum),
            nn.GELU(),
        )


class Encoder(nn.Module):
    """From an image and a message to a perturbation in -1 to 1.

    Args:
        config: the shape.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width, folded = config.encoder_width, 3 * config.patch**2
        self.patch = config.patch
        self.features = nn.Sequential(
            Block(folded, width, config), *(Block(width, width, config) for _ in range(config.encoder_depth - 1))
        )
        self.join = Block(config.bits + width + folded, width, config)
        self.delta = nn.Conv2d(width, folded, 1)

    def forward(self, images: torch.Tensor, message: torch.Tensor) -> torch.Tensor:
        """The perturbation ``[B, 3, H, W]``.

        Args:
            images: ImageNet-normalised, ``[B, 3, H, W]``, any size.
            message: -1 or 1, ``[B, k]``.
        """
        height, width = images.shape[-2:]
        folded = fold(images, self.patch)
        features = self.features(folded)
        maps = message.to(features)[:, :, None, None].expand(-1, -1, *features.shape[-2:])
        delta = self.delta(self.join(torch.cat([maps, features, folded.to(features)], dim=1)))
        return torch.tanh(functional.pixel_shuffle(delta, self.patch))[..., :height, :width]


class Extractor(nn.Module):
    """From an image of any size to one logit for each bit; a bit is 1 where its logit is above 0.

    Args:
        config: the shape.
        whitened: whether a linear layer that whitens the logits follows.
    """

    def __init__(self, config: NetworkConfig, whitened: bool = False) -> None:
        super().__init__()
        self.bits = config.bits
        self.detail = config.detail
        layers: list[nn.Module] = []
        channels = 6 if config.detail else 3
        for number, (width, blocks) in enumerate(config.stages):
            if number:
                layers.append(nn.AvgPool2d(2))
            for _ in range(blocks):
                layers.append(Block(channels, width, config))
                channels = width
        self.smallest = 2 ** (len(config.stages) - 1)
        self.blocks = nn.Sequential(*layers, Block(channels, config.bits, config))
        self.even = nn.BatchNorm1d(config.bits, momentum=config.momentum, affine=False) if config.even else None
        self.linear = nn.Linear(config.bits, config.bits)
        self.whitening = nn.Linear(config.bits, config.bits) if whitened else None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, k]`` of images ``[B, 3, H, W]`` in 0 to 1."""
        height, width = images.shape[-2:]
        if min(height, width) < self.smallest:
            raise ImageError(f"images of {width}x{height} pixels are too small: at least {self.smallest} a side")
        seen = normalise(images)
        if self.detail:
            seen = torch.cat([seen, _detail(seen)], dim=1)
        pooled = self.blocks(seen).float().mean(dim=(2, 3))
        logits: torch.Tensor = self.linear(pooled if self.even is None else self.even(pooled))
        return logits if self.whitening is None else self.whitening(logits)


def _detail(images: torch.Tensor) -> torch.Tensor:
    """What a binomial blur of 5 x 5 takes away, brought to about the range of the images."""
    row = images.new_tensor((1, 4, 6, 4, 1)) / 16
    kernel = (row[:, None] * row).expand(3, 1, 5, 5)
    blurred = functional.conv2d(functional.pad(images, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)
    return _DETAIL_GAIN * (images - blurred)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Images in 0 to 1 to ImageNet's mean and standard deviation."""
    return (images - images.new_tensor(MEAN)[:, None, None]) / images.new_tensor(DEVIATION)[:, None, None]


def fold(images: torch.Tensor, patch: int) -> torch.Tensor:
    """Squares of ``patch`` pixels into channels; the border is repeated where a side does not divide."""
    if patch == 1:
        return images
    height, width = images.shape[-2:]
    if height < patch or width < patch:
        raise ImageError(f"images of {width}x{height} pixels are too small: at least {patch} a side")
    padded = functional.pad(images, (0, -width % patch, 0, -height % patch), mode="replicate")
    return functional.pixel_unshuffle(padded, patch)


def attenuate(images: torch.Tensor, delta: torch.Tensor, attenuation: str, strength: float) -> torch.Tensor:
    """What is added to images in 0 to 1 for a perturbation in -1 to 1; see :class:`NetworkConfig`."""
    if attenuation == "jnd":
        return strength * heat_map(images) * delta
    return strength * delta * images.new_tensor(DEVIATION)[:, None, None]


def save_networks(
    folder: Path, config: NetworkConfig, encoder: Mapping[str, torch.Tensor], extractor: Mapping[str, torch.Tensor]
) -> None:
    """Writes ``config.json``, ``extractor.safetensors`` and, where marks begin with it, ``encoder.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    if config.embed == "encoder":
        save_state(dict(encoder), folder / "encoder.safetensors", {})
    save_state(dict(extractor), folder / "extractor.safetensors", {})
    (folder / "config.json").write_text(json.dumps(config.model_dump(), indent=2) + "\n", encoding="utf-8")


def load_config(folder: Path) -> NetworkConfig:
    """The shape of the networks in ``folder``.

    Raises:
        UnavailableError: no ``config.json``, or none of these networks.
    """
    path = folder / "config.json"
    try:
        return NetworkConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError:
        raise UnavailableError(f"{folder} holds no trained networks: it has no config.json") from None
    except ValidationError as error:
        raise UnavailableError(f"{path} describes no such networks: {describe(error)}") from None


def load_encoder(folder: Path) -> Encoder | None:
    """The trained encoder of ``folder``, ready to use; None where marks are made by descent alone."""
    config = load_config(folder)
    if config.embed == "descent":
        return None
    encoder = Encoder(config)
    load_module(encoder, load_state(folder / "encoder.safetensors"), f"the encoder in {folder}")
    return _ready(encoder)


def load_extractor_folder(folder: Path, whitened: bool = True) -> Extractor:
    """The trained extractor of ``folder``, ready to use.

    Args:
        folder: written by ``waterproof train hidden``.
        whitened: with the whitening layer: other bits than the encoder writes, for decoders trained against it.
    """
    extractor = Extractor(load_config(folder), whitened=whitened)
    state = load_state(folder / "extractor.safetensors")
    if whitened:
        state |= {f"whitening.{k}": v for k, v in load_state(folder / "whitening.safetensors").items()}
    load_module(extractor, state, f"the extractor in {folder}")
    return _ready(extractor)


def _ready(module: M) -> M:
    module.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module
