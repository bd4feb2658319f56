"""Procedural images: natural statistics, and one image for one number."""

from __future__ import annotations

from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from waterproof.core.images import Record
from waterproof.datasets.deadleaves import DeadLeaves, _radii


def drawn(dataset: DeadLeaves) -> np.ndarray:
    (images,), rejected = dataset.load(dataset.index().records)
    assert not rejected
    return images.numpy()


@pytest.fixture(scope="module")
def leaves() -> np.ndarray:
    return drawn(DeadLeaves(count=32))


def spectral_slope(pictures: np.ndarray) -> float:
    """Slope of log power over log frequency, from 4 periods an image to a quarter of the sampling rate."""
    side = pictures.shape[1]
    window = np.outer(np.hanning(side), np.hanning(side))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)) * side
    edges = np.geomspace(4, side / 4, 12)
    grey = pictures.astype(float).mean(-1)
    power = np.abs(np.fft.fft2((grey - grey.mean((1, 2), keepdims=True)) * window)) ** 2
    rings = [power[:, (frequency >= a) & (frequency < b)].mean() for a, b in pairwise(edges)]
    return float(np.polyfit(np.log(edges[:-1]), np.log(rings), 1)[0])


def test_power_falls_about_as_the_square_of_frequency(leaves: np.ndarray) -> None:
    assert -2.6 < spectral_slope(leaves) < -1.4
    assert -2.6 < spectral_slope(drawn(DeadLeaves(count=6, size=512))) < -1.4


def test_images_differ_and_use_the_range(leaves: np.ndarray) -> None:
    assert len({image.tobytes() for image in leaves}) == len(leaves)
    flat = leaves.reshape(len(leaves), -1).astype(float)
    alike = np.corrcoef(flat) - np.eye(len(flat))
    assert np.abs(alike).max() < 0.5
    assert np.abs(alike).mean() < 0.1
    assert flat.std(axis=1).min() > 15
    assert 80 < flat.mean() < 150


def test_luminance_varies_more_than_colour(leaves: np.ndarray) -> None:
    values = leaves.astype(float)
    grey = values.mean(-1).std()
    assert (values[..., 0] - values[..., 2]).std() < grey
    assert (values[..., 0] - values[..., 1]).std() < grey


def test_no_region_is_flat(leaves: np.ndarray) -> None:
    blocks = leaves.reshape(len(leaves), 32, 8, 32, 8, 3).astype(float).std(axis=(2, 4))
    assert blocks.min() > 0.2
    assert np.isin(leaves, (0, 255)).mean() < 0.005


def test_radii_follow_the_power_law_that_the_edges_of_the_image_bias() -> None:
    size = 256
    radii, below, count = _radii(size)
    sample = np.interp(np.random.default_rng(0).random(400_000), below, radii)
    # Undo the bias towards large leaves, which touch the image from further away.
    weights = 1 / (size + 2 * sample) ** 2
    edges = np.geomspace(2, 64, 6)
    numbers, _ = np.histogram(sample, edges, weights=weights)
    octaves = np.log(numbers[:-1] / numbers[1:]) / np.log(edges[1] / edges[0])
    assert octaves == pytest.approx([2] * 4, abs=0.15)
    assert count > 1000


def test_an_image_is_the_same_whatever_the_first_and_the_count() -> None:
    long = DeadLeaves(count=6, size=64).index()
    late = DeadLeaves(count=2, first=3, size=64).index()
    assert long.records[3:5] == late.records
    assert np.array_equal(drawn(DeadLeaves(count=6, size=64))[3:5], drawn(DeadLeaves(count=2, first=3, size=64)))


@pytest.mark.parametrize("other", [{"seed": 1}, {"jpeg": 90}, {"size": 65}])
def test_another_seed_jpeg_or_size_gives_other_images_with_other_digests(other: dict[str, int]) -> None:
    one, two = DeadLeaves(count=1, size=64), DeadLeaves(**{"count": 1, "size": 64, **other})
    assert one.index().records[0].digest != two.index().records[0].digest
    assert drawn(one).tobytes() != drawn(two).tobytes()


def test_a_jpeg_history_is_one_trip_through_the_codec() -> None:
    plain, once = drawn(DeadLeaves(count=1, size=96)), drawn(DeadLeaves(count=1, size=96, jpeg=75))
    file = BytesIO()
    Image.fromarray(plain[0]).save(file, "JPEG", quality=75)
    with Image.open(file) as decoded:
        assert np.array_equal(once[0], np.asarray(decoded))
    record = DeadLeaves(count=1, size=96, jpeg=75).index().records[0]
    assert record.container == "JPEG"


def test_a_million_images_are_listed_without_drawing_one() -> None:
    index = DeadLeaves(count=2000, first=10**6).index()
    assert index.records[-1].id == "deadleaves-1001999"
    assert len({r.source for r in index.records}) == 2000


@pytest.mark.parametrize(
    "record", [Record("deadleaves-1"), Record("leaf"), Record("deadleaves-000001", digest="0" * 64)]
)
def test_a_record_of_another_series_is_rejected(record: Record) -> None:
    images, (rejected,) = DeadLeaves(size=64).load([record])
    assert images == []
    assert rejected.reason == "not an image of this procedural series"


def test_the_images_are_those_of_version_1() -> None:
    # Another value means another version: raise it. The tolerance is for other processors' arithmetic.
    image = drawn(DeadLeaves(count=1))[0].astype(float)
    assert image.mean(axis=(0, 1)) == pytest.approx(GOLDEN_MEAN, abs=0.05)


GOLDEN_MEAN = [101.663, 103.021, 96.183]
