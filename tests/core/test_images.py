"""Images: always 8-bit, always with a record each, never copied without need."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from waterproof.core.errors import ImageError
from waterproof.core.images import Images, Record, group_by_size


def pixels(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("wrong", "records", "says"),
    [
        (pixels(1, 3, 8, 8, dtype=torch.float32), 1, "pixels must be uint8 (0 to 255), not torch.float32"),
        (pixels(1, 3, 8, 8, dtype=torch.int64), 1, "not torch.int64"),
        (pixels(3, 8, 8), 3, "shape [B, 3, H, W], not [3, 8, 8]"),
        (pixels(1, 1, 8, 8), 1, "not [1, 1, 8, 8]"),
        (pixels(1, 4, 8, 8), 1, "not [1, 4, 8, 8]"),
        (pixels(1, 8, 8, 3), 1, "not [1, 8, 8, 3]"),
        (pixels(1, 3, 0, 8), 1, "not [1, 3, 0, 8]"),
        (pixels(2, 3, 8, 8), 1, "2 images but 1 records"),
        (pixels(1, 3, 8, 8), 2, "1 images but 2 records"),
        (np.zeros((1, 3, 8, 8), np.uint8), 1, "a torch tensor, not ndarray"),
    ],
)
def test_wrong_pixels_are_refused_with_what_would_be_right(wrong: torch.Tensor, records: int, says: str) -> None:
    with pytest.raises(ImageError) as caught:
        Images(wrong, tuple(Record(str(i)) for i in range(records)))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((1, 8, 8, 4), np.uint8),
        np.zeros((1, 3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
    ],
)
def test_arrays_of_another_type_or_shape_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"expected uint8 \[B, H, W, 3\], got"):
        Images.from_numpy(array, [Record("a")])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_floats_that_are_no_numbers_are_refused(bad: float) -> None:
    values = torch.full((1, 3, 4, 4), 0.5)
    values[0, 1, 2, 3] = bad
    with pytest.raises(ImageError, match="NaN or infinite"):
        Images.from_float(values, [Record("a")])


def test_integers_are_no_floats() -> None:
    with pytest.raises(ImageError, match=r"expected floats in 0 to 1, got torch\.uint8"):
        Images.from_float(pixels(1, 3, 4, 4), [Record("a")])


def test_pictures_must_be_rgb_and_of_one_size() -> None:
    with pytest.raises(ImageError, match=r"modes \['L'\]"):
        Images.from_pil([Image.new("L", (8, 8))], [Record("a")])
    with pytest.raises(ImageError, match=r"sizes \[\(8, 8\), \(8, 9\)\]"):
        Images.from_pil([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))], [Record("a"), Record("b")])


def test_numpy_is_a_read_only_view_of_the_same_memory(photographs: Images) -> None:
    view = photographs.numpy()
    assert view.ctypes.data == photographs.pixels.data_ptr()
    assert view.flags.c_contiguous
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0, 0, 0] = 1


def test_a_contiguous_array_is_not_copied() -> None:
    array = np.zeros((2, 5, 7, 3), np.uint8)
    assert np.shares_memory(Images.from_numpy(array, [Record("a"), Record("b")]).numpy(), array)


def test_a_read_only_array_is_copied_so_that_nobody_can_write_into_it(photographs: Images) -> None:
    other = photographs.with_pixels(photographs.numpy())
    other.pixels.zero_()
    assert photographs.numpy().any()


def test_pixels_in_any_memory_order_keep_their_values(photographs: Images) -> None:
    planar = photographs.pixels.clone(memory_format=torch.contiguous_format)
    np.testing.assert_array_equal(Images(planar, photographs.records).numpy(), photographs.numpy())
    mirrored = photographs.numpy()[:, :, ::-1]
    np.testing.assert_array_equal(photographs.with_pixels(mirrored).numpy(), mirrored)


def test_channels_are_red_green_blue_in_that_order() -> None:
    red = Images.from_pil([Image.new("RGB", (4, 2), (200, 100, 50))], [Record("red")])
    assert red.size == (2, 4)
    assert red.pixels[0, :, 1, 3].tolist() == [200, 100, 50]
    assert red.numpy()[0, 1, 3].tolist() == [200, 100, 50]


def test_the_way_through_floats_is_exact_for_every_grey_level() -> None:
    array = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    images = Images.from_numpy(array, [Record("ramp")])
    assert images.float().dtype == torch.float32
    assert images.float().max() == 1
    np.testing.assert_array_equal(Images.from_float(images.float(), images.records).numpy(), array)
    np.testing.assert_array_equal(Images.from_float(images.float().double(), images.records).numpy(), array)


def test_floats_are_clipped_and_rounded_to_the_nearest_grey_level() -> None:
    levels = np.array([-3.0, -0.001, 0.4999 / 255, 0.5001 / 255, 127.49 / 255, 127.51 / 255, 1.001, 9.0])
    values = torch.from_numpy(levels).expand(1, 3, 1, 8)
    expected = [0, 0, 0, 1, 127, 128, 255, 255]
    assert Images.from_float(values, [Record("a")]).numpy()[0, 0, :, 0].tolist() == expected


def test_the_way_through_pictures_is_exact(photographs: Images) -> None:
    again = Images.from_pil(photographs.pil(), photographs.records)
    np.testing.assert_array_equal(again.numpy(), photographs.numpy())
    assert photographs.pil()[1].size == (256, 256)


def test_take_picks_images_with_their_records(photographs: Images) -> None:
    taken = photographs.take([2, 0])
    assert taken.ids == ("coffee", "astronaut")
    np.testing.assert_array_equal(taken.numpy(), photographs.numpy()[[2, 0]])
    assert len(photographs.take([])) == 0
    assert photographs.take([]).size == (256, 256)


def test_iterating_gives_each_record_with_its_pixels(photographs: Images) -> None:
    pairs = list(photographs)
    assert [record.id for record, _ in pairs] == ["astronaut", "chelsea", "coffee"]
    np.testing.assert_array_equal(pairs[1][1], photographs.numpy()[1])


def test_images_of_different_sizes_travel_in_groups_of_one_size() -> None:
    sizes = {"a": (4, 6), "b": (6, 4), "c": (4, 6), "d": (5, 5)}
    items = [(Record(name), np.full((*size, 3), i, np.uint8)) for i, (name, size) in enumerate(sizes.items())]
    groups = group_by_size(items)
    assert [(group.ids, group.size) for group in groups] == [(("a", "c"), (4, 6)), (("b",), (6, 4)), (("d",), (5, 5))]
    assert groups[0].numpy()[:, 0, 0, 0].tolist() == [0, 2]
    assert group_by_size([]) == []


def test_notes_are_added_and_nothing_else_changes(photographs: Images) -> None:
    noted = photographs.with_notes("upscaled").with_notes("alpha dropped")
    assert {record.notes for record in noted.records} == {("upscaled", "alpha dropped")}
    assert photographs.records[0].notes == ()
    assert noted.pixels is photographs.pixels


def test_a_record_is_its_own_source_unless_it_says_otherwise() -> None:
    assert Record("a").source == "a"
    assert Record("a", source="scene").source == "scene"


def test_images_survive_pickling(photographs: Images) -> None:
    again = pickle.loads(pickle.dumps(photographs))  # noqa: S301  our own bytes
    assert again.records == photographs.records
    np.testing.assert_array_equal(again.numpy(), photographs.numpy())
    assert again.numpy().ctypes.data == again.pixels.data_ptr()
