"""Blur and noise against SciPy and against what the field means by their parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from waterproof.core.images import Images, Record


@pytest.fixture
def grey() -> Images:
    """Mid-grey, where noise of the field's strengths is not clipped."""
    return Images.from_numpy(np.full((2, 256, 256, 3), 128, np.uint8), [Record("a"), Record("b")])


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1, 2, 5, 20])
def test_gaussian_blur_equals_scipys(attacked, photographs: Images, sigma: float):
    ours = attacked("gaussian-blur", photographs, sigma=sigma)
    for result, picture in zip(ours, photographs.numpy(), strict=True):
        theirs = ndimage.gaussian_filter(picture.astype(float), (sigma, sigma, 0), mode="mirror", truncate=4)
        assert np.abs(result - theirs).max() <= 1.5


@pytest.mark.parametrize(("sigma", "kernel"), [(2, 9), (1, 3), (5, 17)])
def test_a_kernel_cuts_the_gaussian(attacked, photographs: Images, sigma: float, kernel: int):
    ours = attacked("gaussian-blur", photographs, sigma=sigma, kernel=kernel)
    theirs = ndimage.gaussian_filter(
        photographs.numpy().astype(float), (0, sigma, sigma, 0), mode="mirror", radius=(0, kernel // 2, kernel // 2, 0)
    )
    assert np.abs(ours - theirs).max() <= 1.5


@pytest.mark.parametrize("kernel", [3, 5, 7, 17, 23])
def test_median_blur_equals_scipys_exactly(attacked, photographs: Images, kernel: int):
    theirs = ndimage.median_filter(photographs.numpy(), (1, kernel, kernel, 1), mode="nearest")
    np.testing.assert_array_equal(attacked("median-blur", photographs, kernel=kernel), theirs)


@pytest.mark.parametrize("sd", [0.02, 0.05, 0.1])
def test_noise_has_the_psnr_that_its_sd_means(attacked, grey: Images, sd: float):
    error = (attacked("gaussian-noise", grey, sd=sd).astype(float) - 128) / 255
    psnr = -10 * math.log10(np.mean(error**2))
    assert psnr == pytest.approx(-20 * math.log10(sd), abs=0.3)
    assert abs(error.mean()) < 5 * sd / math.sqrt(error.size)


def test_noise_is_independent_between_pixels_and_channels(attacked, grey: Images):
    noise = attacked("gaussian-noise", grey, sd=0.1)[0].astype(float) - 128
    pairs = [(noise[..., 0], noise[..., 1]), (noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1])]
    for one, other in pairs:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / math.sqrt(one.size)


def test_noise_is_clipped_and_does_not_wrap_around(attacked):
    white = Images.from_numpy(np.full((1, 64, 64, 3), 255, np.uint8), [Record("white")])
    assert attacked("gaussian-noise", white, sd=0.1).min() > 100


@pytest.mark.parametrize("amount", [0.01, 0.2, 1.0])
def test_salt_and_pepper_hit_their_share_of_pixels_evenly(attacked, grey: Images, amount: float):
    result = attacked("salt-and-pepper", grey, amount=amount)
    assert np.ptp(result, axis=-1).max() == 0
    pixels = result[..., 0]
    for level in (0, 255):
        spread = math.sqrt(pixels.size * amount / 2 * (1 - amount / 2))
        assert abs((pixels == level).sum() - pixels.size * amount / 2) < 4 * spread
    assert set(np.unique(pixels)) <= {0, 128, 255}
