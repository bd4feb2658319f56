"""Any tree of images: what is listed, what is rejected and why, and what makes its identity."""

from __future__ import annotations

import hashlib
import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from waterproof.core.components import build
from waterproof.core.errors import DatasetError, SpecError
from waterproof.core.images import Images, Record
from waterproof.datasets.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path


def picture(number: int, width: int = 40, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8))


def write(root: Path, *paths: str) -> None:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(int(hashlib.sha256(path.encode()).hexdigest()[:8], 16)).save(file)


def reasons(folder: Folder) -> dict[str, str]:
    return {item.id: item.reason for item in folder.index().rejected}


def ids(folder: Folder) -> list[str]:
    return [record.id for record in folder.index().records]


def test_files_are_listed_by_their_sorted_path_whatever_the_order_of_creation(tmp_path: Path) -> None:
    paths = ["b.png", "a/z.png", "a/b.PNG", "a.jpg", "c d/ü.webp", "a/deep/er/x.tiff"]
    for name, order in (("one", paths), ("two", paths[::-1])):
        write(tmp_path / name, *order)
    one, two = (Folder(root=tmp_path / name, size=16) for name in ("one", "two"))
    assert ids(one) == sorted(paths)
    assert one.index() == two.index()
    assert one.index().digest == two.index().digest
    assert one.spec().id == two.spec().id


def test_a_record_says_what_the_file_is(tmp_path: Path) -> None:
    write(tmp_path, "sub/a.webp")
    (record,) = Folder(root=tmp_path, size=16).index().records
    digest = hashlib.sha256((tmp_path / "sub/a.webp").read_bytes()).hexdigest()
    assert record == Record(id="sub/a.webp", source="sub/a", container="WEBP", size=(40, 32), digest=digest)


def test_other_files_hidden_files_and_archive_debris_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "a.png", ".hidden.png", ".git/b.png", "__MACOSX/c.png", "sub/__MACOSX/._d.png", "sub/._e.png")
    (tmp_path / "captions.txt").write_text("a cat")
    folder = Folder(root=tmp_path, size=16)
    assert ids(folder) == ["a.png"]
    assert reasons(folder) == {}


def test_unusable_files_are_listed_with_the_reason_and_stop_nothing(tmp_path: Path) -> None:
    write(tmp_path, "good.png", "large.png")
    picture(1, 300, 200).save(tmp_path / "large.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "broken-link.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    folder = Folder(root=tmp_path, size=16, max_pixels=50_000)
    assert ids(folder) == ["good.png"]
    assert reasons(folder) == {
        "broken-link.png": "no regular file, or a link to nothing",
        "empty.jpg": "empty file",
        "large.png": "300 x 200 pixels, more than max_pixels = 50000",
        "pipe.png": "no regular file, or a link to nothing",
        "text.jpg": "no image that Pillow can read",
    }


def test_a_truncated_file_is_rejected_when_it_is_loaded(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    folder = Folder(root=tmp_path, size=16)
    images, rejected = folder.load(folder.index().records)
    assert [batch.ids for batch in images] == [("a.png",)]
    assert [item.id for item in rejected] == ["b.png"]
    assert "cannot be decoded" in rejected[0].reason


def test_a_file_name_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    try:
        shutil.copy(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system takes only valid UTF-8")
    assert reasons(Folder(root=tmp_path)) == {r"\udcff.png": "the file name is not valid UTF-8"}


def test_loops_of_links_end_and_linked_folders_are_entered_once(tmp_path: Path) -> None:
    write(tmp_path / "tree", "a/x.png", "b/y.png")
    write(tmp_path / "elsewhere", "z.png")
    (tmp_path / "tree/a/up").symlink_to(tmp_path / "tree")
    (tmp_path / "tree/b/across").symlink_to(tmp_path / "tree/a")
    (tmp_path / "tree/c").symlink_to(tmp_path / "elsewhere")
    assert ids(Folder(root=tmp_path / "tree", size=16)) == ["a/x.png", "b/y.png", "c/z.png"]


def test_duplicates_are_kept_but_share_a_source(tmp_path: Path) -> None:
    write(tmp_path, "b.png", "c.png")
    for copy in ("a.png", "d/e.png"):
        (tmp_path / copy).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "b.png", tmp_path / copy)
    records = Folder(root=tmp_path, size=16).index().records
    assert [(r.id, r.source) for r in records] == [("a.png", "a"), ("b.png", "a"), ("c.png", "c"), ("d/e.png", "a")]
    assert [r.notes for r in records] == [(), ("duplicate of a.png",), (), ("duplicate of a.png",)]


def test_one_changed_byte_changes_the_list_and_is_noticed_when_loading(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.bmp")
    write(tmp_path, "b.png")
    folder = Folder(root=tmp_path, size=16)
    index = folder.index()
    data = bytearray((tmp_path / "a.bmp").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a.bmp").write_bytes(data)
    assert folder.index().digest != index.digest
    images, rejected = folder.load(index.records)
    assert [batch.ids for batch in images] == [("b.png",)]
    assert [(item.id, item.reason) for item in rejected] == [("a.bmp", "changed since the run began")]


def test_a_file_that_is_gone_when_it_is_loaded_is_rejected(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    folder = Folder(root=tmp_path, size=16)
    records = folder.index().records
    (tmp_path / "a.png").unlink()
    images, (rejected,) = folder.load(records)
    assert images == []
    assert rejected.reason == "cannot be read: No such file or directory"


def test_the_place_of_the_folder_is_no_part_of_the_identity(tmp_path: Path) -> None:
    write(tmp_path / "here", "a.png")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here, there = Folder(root=tmp_path / "here", size=16), Folder(root=tmp_path / "there", size=16)
    assert here.spec() == there.spec()
    assert "root" not in here.spec().params
    assert here.index().digest == there.index().digest
    assert here.spec().id != Folder(root=tmp_path / "here", size=17).spec().id


@pytest.mark.parametrize("policy", ["resize-crop", "resize"])
def test_an_upscaled_image_says_so(tmp_path: Path, policy: str) -> None:
    write(tmp_path, "a.png")
    assert Folder(root=tmp_path, size=32, policy=policy).index().records[0].notes == ()
    assert Folder(root=tmp_path, size=33, policy=policy).index().records[0].notes == ("upscaled",)


def test_crop_rejects_what_is_too_small(tmp_path: Path) -> None:
    picture(0, 64, 30).save(tmp_path / "low.png")
    picture(1, 64, 48).save(tmp_path / "fits.png")
    folder = Folder(root=tmp_path, size=40, policy="crop")
    assert reasons(folder) == {"low.png": "64 x 30 pixels, smaller than the crop of 40 x 40"}
    (images,), _ = folder.load(folder.index().records)
    assert np.array_equal(images.numpy()[0], np.asarray(picture(1, 64, 48))[4:44, 12:52])


def test_native_keeps_each_size_and_groups_by_it(tmp_path: Path) -> None:
    for number, size in enumerate([(40, 30), (20, 50), (40, 30)]):
        picture(number, *size).save(tmp_path / f"{number}.png")
    folder = Folder(root=tmp_path, policy="native")
    images, _ = folder.load(folder.index().records)
    assert {batch.ids: batch.size for batch in images} == {("0.png", "2.png"): (30, 40), ("1.png",): (50, 20)}
    assert np.array_equal(images[0].numpy()[1], np.asarray(picture(2, 40, 30)))


def test_what_the_loader_did_stands_in_the_notes(tmp_path: Path) -> None:
    Image.new("LA", (20, 20), (7, 0)).save(tmp_path / "a.png")
    folder = Folder(root=tmp_path, size=32)
    (record,) = folder.index().records
    assert record.notes == ("greyscale to RGB", "alpha over white", "upscaled")
    (images,), _ = folder.load([record])
    assert images.records == (record,)
    assert (images.numpy() == 255).all()


def test_patterns_fix_the_splits(tmp_path: Path) -> None:
    write(tmp_path, "cal/a.png", "cal/deep/b.png", "val/c.png", "other/d.png")
    both = Folder(root=tmp_path, size=16, calibration="cal/*", test="val/*").index().records
    assert [r.split for r in both] == ["calibration", "calibration", None, "test"]
    one = Folder(root=tmp_path, size=16, test="val/*").index().records
    assert [r.split for r in one] == ["calibration", "calibration", "calibration", "test"]
    assert {r.split for r in Folder(root=tmp_path, size=16).index().records} == {None}


def test_a_pattern_that_fits_nothing_or_both_splits_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "b/2.png")
    with pytest.raises(DatasetError, match=r"test: 'val/\*' fits no image in .*paths look like 'a/1.png'"):
        Folder(root=tmp_path, test="val/*").index()
    with pytest.raises(DatasetError, match=r"'a/1\.png' fits both the calibration and the test pattern"):
        Folder(root=tmp_path, calibration="a/*", test="*").index()


def test_a_source_stays_in_one_split(tmp_path: Path) -> None:
    write(tmp_path, "cal/p1-x.png", "test/p1-y.png", "test/p2-x.png", "rest/p1-z.png", "rest/p3.png")
    shutil.copy(tmp_path / "cal/p1-x.png", tmp_path / "test/p9-copy.png")
    index = Folder(root=tmp_path, size=16, calibration="cal/*", test="test/*", source=r"/(p\d)").index()
    assert {r.id: r.split for r in index.records} == {
        "cal/p1-x.png": "calibration",
        "rest/p1-z.png": "calibration",
        "rest/p3.png": None,
        "test/p2-x.png": "test",
    }
    assert {item.id: item.reason for item in index.rejected} == {
        "test/p1-y.png": "its source 'p1' is also in the calibration split",
        "test/p9-copy.png": "its source 'p1' is also in the calibration split",
    }


def test_an_expression_gives_the_source_and_elsewhere_the_path_does(tmp_path: Path) -> None:
    write(tmp_path, "scene1_a.png", "scene1_b.png", "other.png")
    records = Folder(root=tmp_path, size=16, source=r"^(scene\d+)_").index().records
    assert [r.source for r in records] == ["other", "scene1", "scene1"]


def test_the_images_may_come_from_a_generator(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    assert Folder(root=tmp_path, size=16, origin="sdxl").index().records[0].label == "sdxl"


def test_a_missing_folder_an_empty_one_and_a_file_are_errors_that_say_what_is_right(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"the image folder .*gone does not exist: set root to"):
        Folder(root=tmp_path / "gone").index()
    with pytest.raises(DatasetError, match=r"no image in .*looked for files that end in .*\.avif.*\.png"):
        Folder(root=tmp_path).index()
    (tmp_path / "a.png").touch()
    with pytest.raises(DatasetError, match="is a file, not a folder"):
        Folder(root=tmp_path / "a.png").load([])
    with pytest.raises(DatasetError, match=r"all 1 were rejected, the first, a\.png, because: empty file"):
        Folder(root=tmp_path).index()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"policy": "native", "size": 256}, "size 256 does not go with policy 'native': leave size out"),
        ({"size": None}, "size None does not go with policy 'resize-crop': give a size in pixels"),
        ({"source": "scene"}, "source: the expression must have one group"),
        ({"source": "("}, "source: no regular expression"),
        ({"polcy": "crop"}, "unknown parameter 'polcy'. Did you mean 'policy'"),
        ({"size": 3}, "size: input should be greater than or equal to 16, not 3"),
    ],
)
def test_a_wrong_parameter_is_one_clear_line(params: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as error:
        build(Folder, {"root": "x", **params})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_listing_ticks_once_for_each_file(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png")
    (tmp_path / "c.png").touch()
    ticks: list[tuple[int, str]] = []
    Folder(root=tmp_path, size=16).index(lambda units, doing: ticks.append((units, doing)))
    assert ticks == [(1, "a.png"), (1, "b.png"), (1, "c.png")]


def test_real_photographs_load_as_pillow_and_opencv_would(shared_data: Path, tmp_path: Path) -> None:
    for file in sorted((shared_data / "photos" / "bsds").glob("*.jpg"))[:8]:
        shutil.copy(file, tmp_path)
    folder = Folder(root=tmp_path, size=160)
    index = folder.index()
    assert len(index.records) == 8
    (images,), rejected = folder.load(index.records)
    assert not rejected
    assert isinstance(images, Images)
    for record, pixels in images:
        with Image.open(tmp_path / record.id) as opened:
            whole = opened.convert("RGB")
        # Resize everything, then cut: the same picture up to the rounding of the long side.
        scale = 160 / min(whole.size)
        resized = whole.resize([round(side * scale) for side in whole.size], Image.Resampling.LANCZOS)
        left, top = ((side - 160) // 2 for side in resized.size)
        other = np.asarray(resized.crop((left, top, left + 160, top + 160)))
        assert np.abs(pixels.astype(int) - other).mean() < 1.5


def test_include_passes_over_everything_else(tmp_path: Path) -> None:
    for name in ("a/one.png", "a/two.png", "b/three.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / name)
    assert [r.id for r in Folder(root=tmp_path, size=32, include="a/*").index().records] == ["a/one.png", "a/two.png"]
    with pytest.raises(DatasetError, match=r"include: 'c/\*' fits no image"):
        Folder(root=tmp_path, size=32, include="c/*").index()
