"""What happens to a marked image between encoder and extractor while they are trained: one operation for a batch.

Float images in 0 to 1 and gradients through all of it. JPEG is Pillow's real codec; its gradient is that of kornia's
differentiable JPEG, which knows what quantisation and chroma subsampling take away. The identity's gradient, which is
often used instead, does not.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from ....core.errors import SpecError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    Operation = Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]

_SMALLEST = 16
"""Side in pixels below which nothing is cut or shrunk."""


def augment(images: torch.Tensor, operation: str, generator: torch.Generator) -> torch.Tensor:
    """Applies one operation to a batch.

    Args:
        images: float ``[B, 3, H, W]`` in 0 to 1.
        operation: a name of :data:`OPERATIONS`, with its strength: ``"jpeg 50"``; several joined by ``+``.
        generator: of the random draws (position of a crop, angle, ...).

    Raises:
        SpecError: no such operation, or a strength that is no number.

    Example:
        >>> augment(torch.rand(2, 3, 64, 64), "crop 0.25", torch.Generator()).shape
        torch.Size([2, 3, 32, 32])
    """
    for one in operation.split("+"):
        apply, strength = parse(one)
        images = apply(images, strength, generator)
    return images


def parse(operation: str) -> tuple[Operation, float]:
    """The function and the strength of one operation.

    Raises:
        SpecError: no such operation, or a strength that is no number.
    """
    name, _, strength = operation.strip().partition(" ")
    if name not in OPERATIONS:
        raise SpecError(f"unknown augmentation '{name}'.{nearest(name, OPERATIONS)}")
    try:
        return OPERATIONS[name], float(strength or 0)
    except ValueError:
        raise SpecError(f"augmentation '{operation}': the strength '{strength}' is no number") from None


def _identity(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    return images


def _flip(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    return images.flip(-1)


def _crop(images: torch.Tensor, area: float, generator: torch.Generator) -> torch.Tensor:
    """One random rectangle of the image's shape and of this share of its area."""
    height, width = (max(_SMALLEST, round(side * area**0.5)) for side in images.shape[-2:])
    top = int(torch.randint(images.shape[-2] - height + 1, (), generator=generator))
    left = int(torch.randint(images.shape[-1] - width + 1, (), generator=generator))
    return images[..., top : top + height, left : left + width]


def _resize(images: torch.Tensor, area: float, generator: torch.Generator) -> torch.Tensor:
    size = [max(_SMALLEST, round(side * area**0.5)) for side in images.shape[-2:]]
    return functional.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


def _jpeg(images: torch.Tensor, quality: float, generator: torch.Generator) -> torch.Tensor:
    values = images.detach().clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    coded = torch.from_numpy(np.stack([_through_jpeg(value, round(quality)) for value in values]))
    coded = coded.permute(0, 3, 1, 2).to(images).div(255)
    if not images.requires_grad:
        return coded
    from kornia.enhance import jpeg_codec_differentiable

    smooth: torch.Tensor = jpeg_codec_differentiable(images.clamp(0, 1), images.new_tensor([quality]))
    return smooth + (coded - smooth).detach()


def _through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _brightness(images: torch.Tensor, factor: float, generator: torch.Generator) -> torch.Tensor:
    return _clip(images * factor)


def _contrast(images: torch.Tensor, factor: float, generator: torch.Generator) -> torch.Tensor:
    grey = images.mean(dim=(1, 2, 3), keepdim=True)
    return _clip(grey + factor * (images - grey))


def _saturation(images: torch.Tensor, factor: float, generator: torch.Generator) -> torch.Tensor:
    weights = images.new_tensor((0.299, 0.587, 0.114))[:, None, None]
    grey = (images * weights).sum(dim=1, keepdim=True)
    return _clip(grey + factor * (images - grey))


def _blur(images: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = functional.pad(images, (radius,) * 4, mode="reflect")
    across = functional.conv2d(padded, kernel[:, :, None, :], groups=3)
    return functional.conv2d(across, kernel[:, :, :, None], groups=3)


def _noise(images: torch.Tensor, deviation: float, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.randn(images.shape, generator=generator).to(images)
    return _clip(images + deviation * drawn)


def _rotate(images: torch.Tensor, degrees: float, generator: torch.Generator) -> torch.Tensor:
    """By an angle drawn between plus and minus ``degrees``; black where nothing was."""
    angle = torch.deg2rad((2 * torch.rand((), generator=generator) - 1) * degrees)
    height, width = images.shape[-2:]
    cos, sin = float(torch.cos(angle)), float(torch.sin(angle))
    turn = images.new_tensor([[cos, -sin * height / width, 0], [sin * width / height, cos, 0]])
    grid = functional.affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", align_corners=False)


def _clip(images: torch.Tensor) -> torch.Tensor:
    """Clipped to 0 to 1 as a file is, with the gradient of the identity."""
    return images + (images.clamp(0, 1) - images).detach()


OPERATIONS: dict[str, Operation] = {
    "identity": _identity,
    "flip": _flip,
    "crop": _crop,
    "resize": _resize,
    "jpeg": _jpeg,
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "blur": _blur,
    "noise": _noise,
    "rotate": _rotate,
}
"""Operations by name. Strengths: area kept (crop, resize), quality (jpeg), factor (brightness, contrast, saturation),
standard deviation (blur in pixels, noise in 0 to 1), largest angle in degrees (rotate)."""

PAPER = ("identity", "flip", "crop 0.3", "crop 0.7", "resize 0.3", "resize 0.7", "jpeg 50", "jpeg 80")
"""The operations of Stable Signature's first phase, uniform over them."""
