"""The heat map is the published formulas, pixel by pixel, on photographs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from waterproof.bench.methods.hidden.jnd import heat_map
from waterproof.core.errors import ImageError

if TYPE_CHECKING:
    from waterproof.core.images import Images

MEAN = np.array([[1, 1, 1, 1, 1], [1, 2, 2, 2, 1], [1, 2, 0, 2, 1], [1, 2, 2, 2, 1], [1, 1, 1, 1, 1]]) / 32
ACROSS = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])


def _pixel(grey: np.ndarray, row: int, column: int) -> float:
    """The map at one pixel of the padded luminance ``grey``, as the formulas are written."""
    level = float((grey[row - 2 : row + 3, column - 2 : column + 3] * MEAN).sum())
    near = grey[row - 1 : row + 2, column - 1 : column + 2]
    gradient = float(np.hypot((near * ACROSS).sum(), (near * ACROSS.T).sum()))
    adaptation = 17 * (1 - np.sqrt(level / 127)) + 3 if level <= 127 else 3 / 128 * (level - 127) + 3
    masking = 0.117 * 16 * gradient**2.4 / (gradient**2 + 26**2)
    return float(adaptation + masking - 0.3 * min(adaptation, masking)) / 255


def _loop(image: np.ndarray) -> np.ndarray:
    """The map of one image ``[3, H, W]``, in double precision."""
    grey = 255 * (0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2])
    padded = np.pad(grey, 2, mode="reflect")
    height, width = grey.shape
    return np.array([[_pixel(padded, r + 2, c + 2) for c in range(width)] for r in range(height)])


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_map_is_the_loop_over_pixels_of_a_photograph(photographs: Images, index: int) -> None:
    crop = photographs.float()[index : index + 1, :, 100:140, 90:143]
    reference = _loop(crop[0].double().numpy())
    assert reference.min() < 0.02
    assert reference.max() > 0.04, "the crop has no edge to mask anything"
    assert heat_map(crop)[0, 0].numpy() == pytest.approx(reference, rel=1e-4)
    assert heat_map(crop.double())[0, 0].numpy() == pytest.approx(reference, rel=1e-12)


@pytest.mark.parametrize("size", [(5, 5), (5, 9), (7, 6), (64, 31)])
def test_any_size_from_five_pixels_on(photographs: Images, size: tuple[int, int]) -> None:
    crop = photographs.float()[:1, :, : size[0], : size[1]]
    assert heat_map(crop).shape == (1, 1, *size)
    assert heat_map(crop.double())[0, 0].numpy() == pytest.approx(_loop(crop[0].double().numpy()), rel=1e-9)


def test_an_image_has_the_same_map_in_every_batch(photographs: Images) -> None:
    pixels = photographs.float()
    assert torch.equal(heat_map(pixels)[1:2], heat_map(pixels[1:2]))


@pytest.mark.parametrize(("level", "expected"), [(0.0, 20.0), (127.0, 3.0), (255.0, 6.0)])
def test_flat_areas_have_the_published_thresholds(level: float, expected: float) -> None:
    flat = torch.full((1, 3, 9, 9), level / 255)
    assert heat_map(flat).mul(255).flatten().tolist() == pytest.approx([expected] * 81, rel=1e-4)


def test_a_black_neighbourhood_gives_no_nan() -> None:
    dot = torch.zeros(1, 3, 9, 9)
    dot[..., 4, 4] = 1.0
    heat = heat_map(dot)
    assert bool(torch.isfinite(heat).all())
    assert float(heat.min()) > 0


def test_no_gradient_flows_through_the_map() -> None:
    assert not heat_map(
        torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ).requires_grad


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 8, 8),
        torch.zeros(1, 1, 8, 8),
        torch.zeros(1, 3, 4, 8),
    ],
)
def test_what_is_no_batch_of_images_is_refused(images: torch.Tensor) -> None:
    with pytest.raises(ImageError, match=r"\[B, 3, H, W\]|at least 5 pixels"):
        heat_map(images)
