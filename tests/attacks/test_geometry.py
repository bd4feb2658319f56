"""Crop, resize, rotation and flip against Pillow, scikit-image and plain indexing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image
from skimage import transform

from waterproof.attacks.geometry import Crop, Flip, Resize, Rotation
from waterproof.core.images import Images, Record
from waterproof.core.seeds import Seed

SEED = Seed.root(0)


def by_pillow(pictures: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    height, width = size
    return np.stack([np.asarray(Image.fromarray(p).resize((width, height), how)) for p in pictures]).astype(int)


@pytest.mark.parametrize("area", Crop.strengths)
def test_a_crop_keeps_the_share_of_area_and_the_aspect(attacked, oblong: Images, area: float):
    _, height, width, _ = attacked("crop", oblong, area=area, resize_back=False).shape
    assert height * width / (120 * 200) == pytest.approx(area, rel=0.02)
    assert width / height == pytest.approx(200 / 120, rel=0.03)


def test_a_centre_crop_is_the_middle(attacked, oblong: Images):
    kept = attacked("crop", oblong, area=0.25, resize_back=False)
    np.testing.assert_array_equal(kept, oblong.numpy()[:, 30:90, 50:150])


def test_a_random_crop_is_a_window_of_the_image_and_reaches_every_corner(attacked):
    rows, columns = np.mgrid[0:8, 0:8]
    grid = np.stack([rows, columns, rows], axis=-1).astype(np.uint8)[None]
    images = Images.from_numpy(np.repeat(grid, 400, axis=0), [Record(str(i)) for i in range(400)])
    kept = attacked("crop", images, area=0.5, position="random", resize_back=False)
    assert kept.shape == (400, 6, 6, 3)
    corners = {(int(k[0, 0, 0]), int(k[0, 0, 1])) for k in kept}
    assert corners == {(top, left) for top in range(3) for left in range(3)}
    for window in kept:
        top, left = window[0, 0, :2]
        np.testing.assert_array_equal(window, grid[0, top : top + 6, left : left + 6])


def test_a_crop_resized_back_is_bilinear(attacked, oblong: Images):
    kept = attacked("crop", oblong, area=0.25, resize_back=False)
    ours = attacked("crop", oblong, area=0.25).astype(int)
    assert np.abs(ours - by_pillow(kept, (120, 200), Image.Resampling.BILINEAR)).max() <= 1


@pytest.mark.parametrize(("scale", "size"), [(0.5, (128, 128)), (0.25, (64, 64)), (0.125, (32, 32))])
def test_shrinking_averages_areas(attacked, photographs: Images, scale: float, size: tuple[int, int]):
    ours = attacked("resize", photographs, scale=scale, back=False).astype(int)
    assert np.abs(ours - by_pillow(photographs.numpy(), size, Image.Resampling.BOX)).max() <= 1


@pytest.mark.parametrize("scale", [0.9, 0.7, 0.32, 0.1])
def test_shrinking_by_any_factor_weighs_pixels_by_their_overlap(attacked, oblong: Images, scale: float):
    height, width = round(120 * scale), round(200 * scale)
    down, across = overlaps(120, height), overlaps(200, width)
    exact = np.einsum("ab,bcd,ec->aed", down, oblong.numpy()[0].astype(float), across, optimize=True)
    ours = attacked("resize", oblong, scale=scale, back=False)[0]
    assert np.abs(ours - exact).max() <= 1


def overlaps(old: int, new: int) -> np.ndarray:
    """Share of each new pixel that each old one covers, [new, old]."""
    edges = np.arange(new + 1) * old / new
    starts, stops = np.maximum.outer(edges[:-1], np.arange(old)), np.minimum.outer(edges[1:], np.arange(1, old + 1))
    return np.clip(stops - starts, 0, None) * new / old


@pytest.mark.parametrize("params", [{"scale": 0.25}, {"side": 64}])
def test_resize_and_back_interpolates_bilinearly_from_the_small_image(attacked, photographs: Images, params: dict):
    small = attacked("resize", photographs, back=False, **params)
    assert small.shape[1:3] == (64, 64)
    ours = attacked("resize", photographs, **params).astype(int)
    assert np.abs(ours - by_pillow(small, (256, 256), Image.Resampling.BILINEAR)).max() <= 1


def test_a_side_is_the_shorter_one(attacked, oblong: Images):
    assert attacked("resize", oblong, side=60, back=False).shape == (1, 60, 100, 3)


def test_resize_says_which_of_its_sizes_is_the_strength():
    assert (Resize().strength_value, Resize(scale=0.1).strength_value, Resize(side=64).strength_value) == (0.5, 0.1, 64)
    assert Resize(side=64).damage > Resize(side=112).damage
    assert Resize().spec().id == Resize(scale=0.5).spec().id


@pytest.mark.parametrize("degrees", [3, 30, 45, -20, 100])
def test_a_filled_rotation_equals_scikit_images(attacked, oblong: Images, degrees: float):
    ours = attacked("rotation", oblong, degrees=degrees)[0]
    theirs = transform.rotate(oblong.numpy()[0].astype(float), degrees, order=1, mode="constant")
    # Before version 5, OpenCV places samples on a grid of 1/32 pixel, which shows at edges.
    difference = np.abs(ours - theirs)
    assert difference.mean() < 0.6
    assert np.percentile(difference, 99) <= 4


@pytest.mark.parametrize("degrees", [3, 30, 60, -20])
def test_a_cropped_rotation_samples_the_inscribed_rectangle(attacked, oblong: Images, degrees: float):
    ours = attacked("rotation", oblong, degrees=degrees, fit="crop")[0]
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    scale = largest_scale(120, 200, degrees)

    def source(points: np.ndarray) -> np.ndarray:
        x, y = (points - [99.5, 59.5]).T * scale
        return np.stack([c * x - s * y + 99.5, s * x + c * y + 59.5], axis=1)

    theirs = transform.warp(oblong.numpy()[0].astype(float), source, order=1, mode="edge")
    difference = np.abs(ours - theirs)
    assert difference.mean() < 0.6
    assert np.percentile(difference, 99) <= 4


def largest_scale(height: int, width: int, degrees: float) -> float:
    """By bisection: the largest shrunken copy of the frame whose corners, turned, stay inside the frame."""
    angle = math.radians(degrees)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        corners = [(x * width / 2 * middle, y * height / 2 * middle) for x in (-1, 1) for y in (-1, 1)]
        turned = [
            (math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y) for x, y in corners
        ]
        inside = all(abs(x) <= width / 2 and abs(y) <= height / 2 for x, y in turned)
        low, high = (middle, high) if inside else (low, middle)
    return low


@pytest.mark.parametrize("degrees", Rotation.strengths[:-3])
def test_only_a_filled_rotation_has_black_corners(attacked, degrees: float):
    white = Images.from_numpy(np.full((1, 80, 120, 3), 255, np.uint8), [Record("white")])
    assert attacked("rotation", white, degrees=degrees, fit="fill").min() < 128
    assert attacked("rotation", white, degrees=degrees, fit="crop").min() == 255


@pytest.mark.parametrize("fit", ["fill", "crop"])
@pytest.mark.parametrize("degrees", [-360, -90, 0, 90, 180, 270, 360])
def test_quarter_turns_move_whole_pixels_and_are_undone_exactly(attacked, oblong: Images, degrees: int, fit: str):
    turned = attacked("rotation", oblong, degrees=degrees, fit=fit)
    np.testing.assert_array_equal(turned[0], np.rot90(oblong.numpy()[0], degrees // 90))
    attack = Rotation(degrees=degrees, fit=fit)
    assert attack.aligned
    np.testing.assert_array_equal(attack.undo(attack.apply(oblong, SEED)).numpy(), oblong.numpy())


@pytest.mark.parametrize(("axis", "number"), [("horizontal", 2), ("vertical", 1)])
def test_a_flip_mirrors_and_is_undone_exactly(attacked, photographs: Images, axis: str, number: int):
    np.testing.assert_array_equal(attacked("flip", photographs, axis=axis), np.flip(photographs.numpy(), number))
    attack = Flip(axis=axis)
    np.testing.assert_array_equal(attack.undo(attack.apply(photographs, SEED)).numpy(), photographs.numpy())


def test_only_what_can_be_undone_is_called_aligned():
    assert [Crop().aligned, Crop(resize_back=False).aligned, Crop(area=1).aligned] == [False, False, True]
    assert [Resize().aligned, Resize(back=False).aligned, Resize(side=64, back=False).aligned] == [True, False, False]
    assert [Rotation(degrees=9).aligned, Rotation(degrees=180).aligned, Flip().aligned] == [False, True, True]
