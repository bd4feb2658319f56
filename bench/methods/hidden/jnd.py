"""How much each pixel may change before an eye notices: the heat map that attenuates a mark (JND attenuation).

Luminance adaptation after Chou and Li (1995), contrast masking after Wu et al. (2017), joined by the rule of Yang et
al. (2005) for masks that overlap; the constants are those under which Stable Signature's post-hoc results were made.
The map is smallest in flat mid-grey, larger in shadows and at edges; a mark is multiplied by it.

Every step adds or multiplies pixels one by one, no convolution kernel of a library is involved: an image's map is the
same, bit for bit, in every batch, and reduced-precision convolutions of a GPU cannot touch it.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from ....core.errors import ImageError

_LUMA = (0.299, 0.587, 0.114)
_MIN_SIDE = 5
_MID_GREY = 127.0
_OVERLAP = 0.3
_MASKING = 0.117


@torch.no_grad()
def heat_map(images: torch.Tensor) -> torch.Tensor:
    """The just noticeable difference of every pixel's luminance; no gradient flows through it.

    With l a 5 x 5 weighted mean of luminance in 0 to 255 (weights 1 on the border, 2 around the centre, 0 at the
    centre, over 32) and g the magnitude of the Sobel gradient of luminance::

        LA = 17 (1 - sqrt(l / 127)) + 3       for l <= 127, else 3 / 128 (l - 127) + 3
        CM = .117 * 16 g^2.4 / (g^2 + 26^2)
        map = (LA + CM - .3 min(LA, CM)) / 255

    Beyond the border the image is continued by reflection without repeating the edge, so that the frame is no edge:
    the published code continues it with black, which makes the map two to six times larger along the frame.

    Args:
        images: float ``[B, 3, H, W]``, 0 to 1, sides of 5 pixels or more.

    Returns:
        Float ``[B, 1, H, W]`` in units of the images' range; above 0; .012 to .13 on photographs.

    Raises:
        ImageError: not a float batch of colour images, or smaller than 5 pixels.

    Example:
        >>> grey = torch.full((1, 3, 8, 8), 127 / 255)
        >>> round(float(heat_map(grey).mean()) * 255, 3)
        3.0
    """
    _check(images)
    luminance = _total([255 * weight * images[:, i : i + 1] for i, weight in enumerate(_LUMA)])
    wide = pad(luminance, (2, 2, 2, 2), mode="reflect")
    adaptation = _adaptation((_box(wide, 5) + _box(wide[..., 1:-1, 1:-1], 3) - 2 * luminance) / 32)
    masking = _masking(_squared_gradient(wide[..., 1:-1, 1:-1]))
    return (adaptation + masking - _OVERLAP * torch.minimum(adaptation, masking)) / 255


def _check(images: torch.Tensor) -> None:
    if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        raise ImageError(f"expected floats [B, 3, H, W] in 0 to 1, got {images.dtype} {list(images.shape)}")
    if min(images.shape[2:]) < _MIN_SIDE:
        height, width = images.shape[2:]
        raise ImageError(f"the heat map needs images of at least {_MIN_SIDE} pixels a side, not {width}x{height}")


def _adaptation(level: torch.Tensor) -> torch.Tensor:
    """Luminance adaptation: 20 grey levels in black, 3 at mid-grey, 6 in white."""
    # A mean that rounding left a hair below 0 has no square root.
    dark = 17 * (1 - (level.clamp(min=0) / _MID_GREY).sqrt()) + 3
    return torch.where(level <= _MID_GREY, dark, 3 / 128 * (level - _MID_GREY) + 3)


def _masking(square: torch.Tensor) -> torch.Tensor:
    """Contrast masking of a squared gradient g^2."""
    return _MASKING * 16 * square**1.2 / (square + 26**2)


def _box(values: torch.Tensor, side: int) -> torch.Tensor:
    """Sums over windows of ``side`` x ``side`` pixels that lie inside."""
    height, width = values.shape[2] - side + 1, values.shape[3] - side + 1
    rows = _total([values[:, :, i : i + height] for i in range(side)])
    return _total([rows[..., i : i + width] for i in range(side)])


def _squared_gradient(values: torch.Tensor) -> torch.Tensor:
    """The squared magnitude of the Sobel gradient (weights 1, 2, 1) inside a border of one pixel."""
    rise, run = values[:, :, 2:] - values[:, :, :-2], values[..., 2:] - values[..., :-2]
    down = rise[..., :-2] + 2 * rise[..., 1:-1] + rise[..., 2:]
    across = run[:, :, :-2] + 2 * run[:, :, 1:-1] + run[:, :, 2:]
    return down * down + across * across


def _total(parts: list[torch.Tensor]) -> torch.Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
