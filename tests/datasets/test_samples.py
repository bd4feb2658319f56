"""The embedded photographs: how they are cut, and that the packages' versions may differ."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from skimage import data
from sklearn.datasets import load_sample_image

from waterproof.core.errors import DatasetError
from waterproof.core.images import Record
from waterproof.datasets import samples
from waterproof.datasets.samples import Samples


def pixels(dataset: Samples, name: str) -> np.ndarray:
    (images,), rejected = dataset.load([r for r in dataset.index().records if r.id == name])
    assert not rejected
    return images.numpy()[0]


@pytest.mark.parametrize("size", [256, 512])
def test_there_are_at_least_64_images_of_17_scenes(size: int) -> None:
    index = Samples(size=size).index()
    (images,), rejected = Samples(size=size).load(index.records)
    assert len(images) == len(index.records) >= 64
    assert images.size == (size, size)
    assert not rejected
    assert not index.rejected
    assert len({r.source for r in index.records}) == 17
    assert len({r.id for r in index.records}) == len({r.digest for r in index.records}) == len(index.records)
    assert len({image.tobytes() for image in images.numpy()}) == len(images)


def test_the_first_images_cover_all_photographs() -> None:
    records = Samples().index().records
    assert len({r.id.rpartition("-")[0] for r in records[:18]}) == 18
    assert all(r.id.endswith("-0") for r in records[:18])
    assert len(Samples(crops=1).index().records) == 18


def test_the_two_views_of_the_motorcycle_are_one_source() -> None:
    sources = {r.id: r.source for r in Samples().index().records}
    assert sources["motorcycle_left-0"] == sources["motorcycle_right-0"] == "motorcycle"


def test_crops_are_the_pixels_of_the_photograph() -> None:
    dataset = Samples()
    wholes = {"astronaut": data.astronaut(), "chelsea": data.chelsea(), "flower": load_sample_image("flower.jpg")}
    for name, whole in wholes.items():
        windows = np.lib.stride_tricks.sliding_window_view(whole, (256, 256, 3))[..., 0, :, :, :]
        corner = pixels(dataset, f"{name}-0")
        found = [
            np.array_equal(windows[y, x], corner)
            for y, x in np.argwhere((windows[..., 0, 0, :] == corner[0, 0]).all(-1))
        ]
        assert any(found), name


def test_four_crops_of_a_square_photograph_tile_it() -> None:
    crops = {pixels(Samples(), f"astronaut-{i}").tobytes() for i in range(4)}
    whole = data.astronaut()
    quarters = {np.ascontiguousarray(whole[y : y + 256, x : x + 256]).tobytes() for y in (0, 256) for x in (0, 256)}
    assert crops == quarters


def test_greyscale_photographs_are_replicated() -> None:
    crop = pixels(Samples(size=512), "camera-0")
    assert np.array_equal(crop, np.repeat(data.camera()[..., None], 3, axis=2))
    notes = {r.id: r.notes for r in Samples(size=512).index().records}
    assert notes["camera-0"] == ("greyscale to RGB",)
    assert notes["camera-1"] == ("greyscale to RGB", "upscaled")


def test_only_sizes_above_256_are_upscaled_and_say_so() -> None:
    for size in (64, 100, 256):
        assert not any("upscaled" in r.notes for r in Samples(size=size).index().records)
    notes = {r.id: r.notes for r in Samples(size=512).index().records}
    assert notes["astronaut-0"] == ()
    assert notes["astronaut-1"] == notes["chelsea-0"] == ("upscaled",)


@pytest.mark.parametrize("shape", [(512, 512), (451, 300), (1411, 1411), (741, 500), (384, 303)])
@pytest.mark.parametrize("size", [64, 200, 256])
def test_crops_stay_inside_and_overlap_by_a_quarter_at_most(shape: tuple[int, int], size: int) -> None:
    crops = samples._plan(shape, size, 16)
    assert 1 <= len(crops) <= 16
    for crop in crops:
        assert min(crop.left, crop.top) >= 0
        assert crop.left + size <= shape[0]
        assert crop.top + size <= shape[1]
    for one in crops:
        for other in crops:
            apart = max(abs(one.left - other.left), abs(one.top - other.top))
            assert one is other or apart >= size - size // 4


def test_a_large_photograph_gives_crops_that_do_not_overlap() -> None:
    crops = samples._plan((1411, 1411), 256, 16)
    covered = np.zeros((1411, 1411), int)
    for crop in crops:
        covered[crop.top : crop.top + 256, crop.left : crop.left + 256] += 1
    assert covered.max() == 1


def test_the_digest_is_of_the_file_and_the_place() -> None:
    record = next(r for r in Samples(size=512).index().records if r.id == "astronaut-0")
    content = hashlib.sha256((Path(data.__file__).parent / "astronaut.png").read_bytes()).hexdigest()
    assert record.digest == hashlib.sha256(f"{content} 0 0 512".encode()).hexdigest()
    assert (record.container, record.size) == ("PNG", (512, 512))


def test_a_photograph_that_a_version_lacks_is_rejected_and_the_rest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Samples().index()
    changed = [(p, "gone.png" if f == "coffee.png" else f, s) for p, f, s in samples._PHOTOGRAPHS]
    monkeypatch.setattr(samples, "_PHOTOGRAPHS", tuple(changed))
    index = Samples().index()
    assert [(r.id, r.reason) for r in index.rejected] == [
        ("gone", "skimage carries no readable gone.png in this version")
    ]
    assert index.records == tuple(r for r in whole.records if r.source != "coffee")
    assert index.digest != whole.digest


def test_no_photograph_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_PHOTOGRAPHS", (("skimage", "gone.png", "gone"), ("nowhere", "a.png", "a")))
    with pytest.raises(DatasetError, match="none of the sample photographs is there"):
        Samples().index()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Record("unicorn-0"), "no sample photograph has this name"),
        (Record("astronaut"), "no sample photograph has this name"),
        (Record("astronaut-99"), "this photograph gives 4 crops of 256 pixels"),
        (Record("astronaut-0", digest="0" * 64), "changed since the run began"),
    ],
)
def test_a_record_that_is_not_of_this_dataset_is_rejected(record: Record, reason: str) -> None:
    images, (rejected,) = Samples().load([record])
    assert images == []
    assert rejected.reason == reason
