"""Colour and brightness against torchvision, Pillow, colorsys and NumPy."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import ImageEnhance

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from waterproof.core.images import Images

FACTORS = [0.0, 0.1, 0.5, 1.5, 2.0]


@pytest.fixture(scope="module")
def torchvision_says() -> Callable[..., np.ndarray]:
    """Computes in floats with torchvision; returns grey levels [B, H, W, 3], not rounded."""
    functional: Any = pytest.importorskip("torchvision.transforms.v2.functional", exc_type=ImportError)

    def compute(name: str, images: Images, value: float) -> np.ndarray:
        result: torch.Tensor = getattr(functional, name)(images.float(), value)
        return result.permute(0, 2, 3, 1).numpy() * 255

    return compute


@pytest.mark.parametrize(
    ("name", "function", "field", "values", "tolerance"),
    [
        ("brightness", "adjust_brightness", "factor", FACTORS, 0.51),
        ("contrast", "adjust_contrast", "factor", FACTORS, 0.55),
        ("saturation", "adjust_saturation", "factor", FACTORS, 1.05),
        ("sharpness", "adjust_sharpness", "factor", FACTORS, 1.05),
        ("hue", "adjust_hue", "shift", [-0.5, -0.25, 0.1, 0.3, 0.5], 0.55),
        ("gamma", "adjust_gamma", "gamma", [0.5, 0.75, 1.5, 2.0], 0.51),
    ],
)
def test_photometric_attacks_agree_with_torchvision(
    attacked,
    torchvision_says,
    photographs: Images,
    name: str,
    function: str,
    field: str,
    values: list,
    tolerance: float,
):
    for value in values:
        ours = attacked(name, photographs, **{field: value})
        assert np.abs(ours - torchvision_says(function, photographs, value)).max() <= tolerance


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("name", "enhancer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_blends_agree_with_pillow(attacked, photographs: Images, name: str, enhancer: Any, factor: float):
    theirs = np.stack([np.asarray(enhancer(picture).enhance(factor)) for picture in photographs.pil()])
    # Pillow truncates after the blend.
    assert np.abs(attacked(name, photographs, factor=factor) - theirs.astype(int)).max() <= 2


def test_brightness_multiplies_and_does_not_add(attacked, photographs: Images):
    exact = np.clip(photographs.numpy() * 1.5, 0, 255)
    assert np.abs(attacked("brightness", photographs, factor=1.5) - exact).max() <= 0.5
    assert attacked("brightness", photographs, factor=0).max() == 0


def test_contrast_at_zero_is_the_images_mean_grey(attacked, photographs: Images):
    grey = (photographs.numpy() @ [0.299, 0.587, 0.114]).mean(axis=(1, 2))
    result = attacked("contrast", photographs, factor=0)
    assert np.abs(result - grey[:, None, None, None]).max() <= 0.5


def test_saturation_at_zero_is_grey(attacked, photographs: Images):
    result = attacked("saturation", photographs, factor=0).astype(int)
    assert np.ptp(result, axis=-1).max() == 0
    assert np.abs(result[..., 0] - photographs.numpy() @ [0.299, 0.587, 0.114]).max() <= 0.51


def test_sharpness_leaves_the_outermost_pixels(attacked, photographs: Images):
    result, before = attacked("sharpness", photographs, factor=2), photographs.numpy()
    for edge in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):
        np.testing.assert_array_equal(result[edge], before[edge])


@pytest.mark.parametrize("shift", [-0.4, 0.25, 0.5])
def test_hue_turns_the_circle_as_colorsys_does(attacked, photographs: Images, shift: float):
    result = attacked("hue", photographs, shift=shift)
    picks = np.random.default_rng(0).integers(0, 256, (300, 2))
    for row, column in picks:
        h, s, v = colorsys.rgb_to_hsv(*(photographs.numpy()[0, row, column] / 255))
        exact = np.array(colorsys.hsv_to_rgb((h + shift) % 1, s, v)) * 255
        assert np.abs(result[0, row, column] - exact).max() <= 0.55


def test_gamma_is_a_power_law(attacked, photographs: Images):
    exact = 255 * (photographs.numpy() / 255) ** 0.5
    assert np.abs(attacked("gamma", photographs, gamma=0.5) - exact).max() <= 0.51


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("brightness", {"factor": 1.001}),
        ("contrast", {"factor": 0.999}),
        ("saturation", {"factor": 1.001}),
        ("sharpness", {"factor": 1.001}),
        ("hue", {"shift": 0.0002}),
        ("gamma", {"gamma": 1.001}),
    ],
)
def test_nothing_jumps_beside_the_neutral_setting(attacked, photographs: Images, name: str, params: dict):
    assert np.abs(attacked(name, photographs, **params).astype(int) - photographs.numpy()).max() <= 1
