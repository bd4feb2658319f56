"""Classical denoisers against direct computations on small photographs, and against the packages that define them."""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from skimage import data

from waterproof.attacks.denoising import AdverseCleaner, Bm3d, NonLocalMeans, TotalVariation, _GuidedFilter
from waterproof.core.components import build
from waterproof.core.errors import SpecError
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    from waterproof.attacks.imagewise import ImagewiseAttack
    from waterproof.core.images import Images

SEED = Seed.root(0)
BM3D = importlib.util.find_spec("bm3d") is not None
needs_bm3d = pytest.mark.skipif(not BM3D, reason="the package bm3d (non-commercial) is not installed")


@pytest.fixture(scope="module")
def small() -> np.ndarray:
    """An eye of the cat: 28 high, 36 wide."""
    return data.chelsea()[100:128, 160:196]


def shifted(values: np.ndarray, radius: int, mode: Any) -> dict[tuple[int, int], np.ndarray]:
    """The picture moved by every offset of a square window."""
    height, width = values.shape[:2]
    padded = np.pad(values, ((radius, radius), (radius, radius), *[(0, 0)] * (values.ndim - 2)), mode=mode)
    offsets = range(-radius, radius + 1)
    return {
        (y, x): padded[radius + y : radius + y + height, radius + x : radius + x + width]
        for y in offsets
        for x in offsets
    }


def mean(values: np.ndarray, radius: int) -> np.ndarray:
    """Mean over the square window, mirrored with the edge pixel."""
    return np.mean(list(shifted(values, radius, "symmetric").values()), axis=0)


def guided_by_hand(guide: np.ndarray, source: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """One least-squares fit for each window, as equations 4 to 6 of the ECCV paper read with a colour guide."""
    windows = [np.stack(list(shifted(v, radius, "symmetric").values()), axis=2) for v in (guide, source)]
    slopes, offsets = np.zeros((*guide.shape[:2], 3, 3)), np.zeros(guide.shape)
    for y, x in np.ndindex(*guide.shape[:2]):
        inside, values = windows[0][y, x], windows[1][y, x]
        deviation = inside - inside.mean(axis=0)
        covariance = deviation.T @ deviation / len(inside)
        joint = deviation.T @ (values - values.mean(axis=0)) / len(inside)
        slopes[y, x] = np.linalg.solve(covariance + eps * np.eye(3), joint)
        offsets[y, x] = values.mean(axis=0) - inside.mean(axis=0) @ slopes[y, x]
    return np.einsum("yxg,yxgs->yxs", guide, mean(slopes, radius)) + mean(offsets, radius)


def bilateral_by_hand(values: np.ndarray, radius: int, colour: float, space: float) -> np.ndarray:
    """Over the disc, mirrored without the edge pixel; colours differ by the sum of their channels' differences."""
    total, weights = np.zeros(values.shape), np.zeros((*values.shape[:2], 1))
    for (y, x), other in shifted(values, radius, "reflect").items():
        if math.hypot(y, x) <= radius:
            difference = np.abs(other - values).sum(axis=-1, keepdims=True)
            weight = np.exp(-(difference**2) / (2 * colour**2) - (y * y + x * x) / (2 * space**2))
            total, weights = total + weight * other, weights + weight
    return total / weights


# AdverseCleaner -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("radius", "eps"), [(4, 16.0), (1, 1.0), (9, 100.0)])
def test_the_guided_filter_equals_a_least_squares_fit_for_each_window(small: np.ndarray, radius: int, eps: float):
    guide = small.astype(float)
    source = cv2.GaussianBlur(guide, (0, 0), 2)
    ours = _GuidedFilter(guide, radius, eps)(source)
    np.testing.assert_allclose(ours, guided_by_hand(guide, source, radius, eps), atol=1e-8)


@pytest.mark.parametrize(("bilateral", "guided"), [(1, 0), (20, 0), (0, 2), (64, 4)])
def test_adverse_cleaner_is_its_passes_one_after_another(small: np.ndarray, bilateral: int, guided: int):
    by_hand = original = small.astype(float)
    for _ in range(bilateral):
        by_hand = bilateral_by_hand(by_hand, 2, 8, 8)
    for _ in range(guided):
        by_hand = guided_by_hand(original, by_hand, 4, 16)
    ours = AdverseCleaner(bilateral=bilateral, guided=guided).alter(small, SEED).astype(float)
    # Half a grey level of rounding; OpenCV takes the exponential from a table.
    assert np.abs(ours - by_hand).max() <= 0.6


def test_adverse_cleaner_equals_the_released_script_with_opencv_contrib(photographs: Images):
    if not hasattr(cv2, "ximgproc"):
        pytest.skip("this OpenCV has no ximgproc (opencv-contrib-python)")
    for picture in photographs.numpy():
        image = picture[..., ::-1].astype(np.float32)
        released = image.copy()
        for _ in range(64):
            released = cv2.bilateralFilter(released, 5, 8, 8)
        for _ in range(4):
            released = cv2.ximgproc.guidedFilter(image, released, 4, 16)
        difference = AdverseCleaner().alter(picture, SEED)[..., ::-1] - np.rint(released).clip(0, 255)
        assert np.abs(difference).max() <= 1
        assert (difference != 0).mean() < 0.005


def test_adverse_cleaner_takes_weak_noise_away_and_leaves_a_strong_edge():
    noise = SEED.numpy().normal(0, 3, (64, 64, 3))
    clean = np.full((64, 64, 3), 60.0)
    clean[:, 32:] = 190
    picture = np.rint(clean + noise).astype(np.uint8)
    cleaned = AdverseCleaner().alter(picture, SEED).astype(float)
    assert (cleaned - clean)[:, :28].std() < 0.5 * (picture - clean)[:, :28].std()
    assert np.abs(cleaned - clean).mean(axis=(0, 2)).max() < 3


# Non-local means ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("h", "patch", "search"), [(10, 7, 21), (4, 3, 9), (30, 5, 15)])
def test_non_local_means_equals_the_weighted_mean_of_its_definition(
    small: np.ndarray, h: float, patch: int, search: int
):
    radius = (patch - 1) // 2
    border = radius + (search - 1) // 2
    height, width = small.shape[:2]
    padded = np.pad(small.astype(float), ((border, border), (border, border), (0, 0)), mode="reflect")
    cells = np.lib.stride_tricks.sliding_window_view(padded, (patch, patch), axis=(0, 1))
    mine = cells[border - radius :, border - radius :][:height, :width]
    total, weights = np.zeros(small.shape), np.zeros((height, width, 1))
    for y, x in np.ndindex(search, search):
        theirs = cells[y:, x:][:height, :width]
        weight = np.exp(-((theirs - mine) ** 2).mean(axis=(2, 3, 4)) / h**2)[..., None]
        weight[weight < 0.001] = 0
        total, weights = total + weight * theirs[..., radius, radius], weights + weight
    ours = NonLocalMeans(h=h, patch=patch, search=search).alter(small, SEED)
    # Half a grey level of rounding; OpenCV also rounds weights and distances to whole numbers.
    assert np.abs(ours - total / weights).max() <= 0.6


# Total variation ----------------------------------------------------------------------------------------------------


def gradient(u: np.ndarray) -> np.ndarray:
    """Forward differences, zero at the far border: ``[2, H, W]``."""
    result = np.zeros((2, *u.shape))
    result[0, :-1], result[1, :, :-1] = np.diff(u, axis=0), np.diff(u, axis=1)
    return result


def divergence(p: np.ndarray) -> np.ndarray:
    """Minus the adjoint of :func:`gradient`."""
    rows, columns = np.zeros_like(p)
    rows[:-1] += p[0, :-1]
    rows[1:] -= p[0, :-1]
    columns[:, :-1] += p[1, :, :-1]
    columns[:, 1:] -= p[1, :, :-1]
    return rows + columns


def objective(u: np.ndarray, f: np.ndarray, weight: float) -> float:
    return float(((u - f) ** 2).sum() / 2 + weight * np.sqrt((gradient(u) ** 2).sum(axis=0)).sum())


def total_variation_by_hand(f: np.ndarray, weight: float) -> np.ndarray:
    """Accelerated projected gradient on the dual (Beck and Teboulle, 2009), another algorithm than Chambolle's."""
    p = q = np.zeros((2, *f.shape))
    t = 1.0
    for _ in range(1000):
        moved = q + gradient(f + weight * divergence(q)) / (8 * weight)
        new = moved / np.maximum(1, np.sqrt((moved**2).sum(axis=0)))
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        q, p, t = new + (t - 1) / following * (new - p), new, following
    return f + weight * divergence(p)


@pytest.mark.parametrize("weight", [0.02, 0.1])
def test_total_variation_finds_the_minimum_that_another_algorithm_finds(small: np.ndarray, weight: float):
    picture = small[:18, :22]
    exact = np.stack([total_variation_by_hand(c, weight) for c in np.moveaxis(picture / 255, -1, 0)], axis=-1)
    close = TotalVariation(weight=weight, tolerance=0, iterations=3000).alter(picture, SEED)
    assert np.abs(close - 255 * exact).max() <= 1
    usual = TotalVariation(weight=weight).alter(picture, SEED) / 255
    for channel in range(3):
        least = objective(exact[..., channel], picture[..., channel] / 255, weight)
        assert 0.999 * least <= objective(usual[..., channel], picture[..., channel] / 255, weight) <= 1.15 * least


# BM3D ---------------------------------------------------------------------------------------------------------------


def test_bm3d_says_which_package_it_needs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    says = "needs the package bm3d, which is free for non-commercial use only: pip install bm3d"
    assert Bm3d().unavailable() == says
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: object())
    assert Bm3d().unavailable() is None


@needs_bm3d
def test_bm3d_equals_the_packages_colour_function(small: np.ndarray):
    import bm3d

    theirs = bm3d.bm3d_rgb(small / 255, 0.1)
    assert np.abs(Bm3d(sigma=0.1).alter(small, SEED) - 255 * theirs).max() <= 0.51


@needs_bm3d
def test_bm3d_of_a_grey_picture_is_bm3d_of_its_one_channel(small: np.ndarray):
    import bm3d

    grey = small[..., 1] / 255
    # The luminance is a mean of three channels with independent noise.
    theirs = bm3d.bm3d((grey - grey.min()) / np.ptp(grey), 0.1 / math.sqrt(3) / np.ptp(grey))
    ours = Bm3d(sigma=0.1).alter(np.repeat(small[..., 1:2], 3, axis=-1), SEED)
    assert np.ptp(ours, axis=-1).max() == 0
    assert np.abs(ours[..., 0] - 255 * (theirs * np.ptp(grey) + grey.min())).max() <= 0.51


@needs_bm3d
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (33, 1)])
def test_bm3d_takes_pictures_that_its_package_does_not(small: np.ndarray, size: tuple[int, int]):
    flat = np.full((*size, 3), 90, np.uint8)
    np.testing.assert_array_equal(Bm3d().alter(flat, SEED), flat)
    assert Bm3d().alter(np.resize(small, (*size, 3)), SEED).shape == (*size, 3)


# All ----------------------------------------------------------------------------------------------------------------

HERE = [AdverseCleaner, NonLocalMeans, TotalVariation, *([Bm3d] if BM3D else [])]


@pytest.mark.parametrize("cls", [AdverseCleaner, NonLocalMeans, TotalVariation])
def test_a_grey_picture_stays_grey(cls: type[ImagewiseAttack], small: np.ndarray):
    grey = np.repeat(small[..., 1:2], 3, axis=-1)
    assert np.ptp(cls().alter(grey, SEED).astype(int), axis=-1).max() <= 1


@pytest.mark.parametrize("cls", HERE)
@pytest.mark.parametrize("value", [0, 255])
def test_an_even_picture_stays_as_it_is(cls: type[ImagewiseAttack], value: int):
    even = np.full((20, 30, 3), value, np.uint8)
    np.testing.assert_array_equal(cls().alter(even, SEED), even)


@pytest.mark.parametrize("cls", HERE[1:])
def test_noise_is_taken_off_a_photograph(cls: type[ImagewiseAttack], photographs: Images):
    clean = photographs.numpy()[2, :96, :96].astype(float)
    noisy = np.clip(np.rint(clean + SEED.numpy().normal(0, 8, clean.shape)), 0, 255).astype(np.uint8)
    settings: dict[str, Any] = {"sigma": 8 / 255} if cls is Bm3d else {}
    cleaned = cls(**settings).alter(noisy, SEED)
    assert np.mean((cleaned - clean) ** 2) < 0.8 * np.mean((noisy - clean) ** 2)


@pytest.mark.parametrize(
    ("cls", "params", "says"),
    [
        (AdverseCleaner, {"diameter": 4}, "diameter: a neighbourhood has an odd number of pixels, e.g. 5, not 4"),
        (AdverseCleaner, {"eps": 0}, "adverse-cleaner: eps: input should be greater than 0, not 0"),
        (AdverseCleaner, {"sigma_color": 8}, "unknown parameter 'sigma_color'. Did you mean 'sigma_colour'?"),
        (NonLocalMeans, {"search": 20}, "search: a neighbourhood has an odd number of pixels, e.g. 21, not 20"),
        (NonLocalMeans, {"h": 101}, "non-local-means: h: input should be less than or equal to 100, not 101"),
        (TotalVariation, {"weight": -1}, "weight: input should be greater than or equal to 0, not -1"),
        (Bm3d, {"sigma": 25}, "bm3d: sigma: input should be less than or equal to 1, not 25"),
    ],
)
def test_a_bad_parameter_gives_one_clear_line(cls: type[ImagewiseAttack], params: dict[str, Any], says: str):
    with pytest.raises(SpecError) as caught:
        build(cls, params)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
