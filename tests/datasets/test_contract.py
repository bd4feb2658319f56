"""What holds for every dataset."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from waterproof.core.components import field_roles
from waterproof.core.registry import load_class, names
from waterproof.datasets.deadleaves import DeadLeaves
from waterproof.datasets.folder import Folder
from waterproof.datasets.prompts import Prompts
from waterproof.datasets.samples import Samples

if TYPE_CHECKING:
    from waterproof.core.images import Images, Record
    from waterproof.datasets.base import Dataset


@pytest.fixture(params=["samples", "samples-512", "deadleaves", "prompts", "folder", "folder-native"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path, photographs: Images) -> Dataset:
    if request.param.startswith("samples"):
        return Samples(size=512 if request.param.endswith("512") else 128, crops=2)
    if request.param == "deadleaves":
        return DeadLeaves(count=7, size=64, jpeg=80)
    if request.param == "prompts":
        return Prompts(count=3, size=64, steps=2)
    for i, (record, pixels) in enumerate(photographs):
        Image.fromarray(pixels[: 200 + 20 * i]).save(tmp_path / f"{record.id}.jpg")
        Image.fromarray(pixels[::2, ::2]).save(tmp_path / f"{record.id}.png")
    return Folder(root=tmp_path, size=96) if request.param == "folder" else Folder(root=tmp_path, policy="native")


def by_id(groups: list[Images]) -> dict[str, tuple[Record, bytes, tuple[int, ...]]]:
    return {record.id: (record, pixels.tobytes(), pixels.shape) for batch in groups for record, pixels in batch}


def test_an_image_is_the_same_whatever_is_loaded_beside_it(dataset: Dataset) -> None:
    records = dataset.index().records
    whole, rejected = dataset.load(records)
    assert not rejected
    expected = by_id(whole)
    assert set(expected) == {r.id for r in records}
    assert by_id(dataset.load(records[::-1])[0]) == expected
    for record in records:
        assert by_id(dataset.load([record])[0]) == {record.id: expected[record.id]}


def test_each_group_has_one_size_and_its_records(dataset: Dataset) -> None:
    records = dataset.index().records
    groups, _ = dataset.load(records)
    assert len({batch.size for batch in groups}) == len(groups)
    assert all(record in records for batch in groups for record in batch.records)
    assert dataset.load([]) == ([], [])


def test_listing_twice_gives_the_same_list(dataset: Dataset) -> None:
    one, two = dataset.index(), dataset.index()
    assert one == two
    assert one.digest == two.digest
    assert len({r.id for r in one.records}) == len(one.records)
    assert all(r.digest and len(r.digest) == 64 and r.source for r in one.records)


def test_a_dataset_survives_pickling(dataset: Dataset) -> None:
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - our own bytes
    assert again == dataset
    assert again.spec().id == dataset.spec().id
    record = dataset.index().records[0]
    assert by_id(again.load([record])[0]) == by_id(dataset.load([record])[0])


def test_pixels_do_not_change_a_cached_photograph(dataset: Dataset) -> None:
    records = dataset.index().records[:1]
    before = dataset.load(records)[0][0]
    copy = before.numpy().copy()
    before.pixels.zero_()
    assert np.array_equal(dataset.load(records)[0][0].numpy(), copy)


@pytest.mark.parametrize("name", ["samples", "deadleaves", "folder"])
def test_it_is_registered_classified_and_documented(name: str) -> None:
    assert name in names("dataset")
    cls = load_class("dataset", name)
    assert cls.name == name
    roles = field_roles(cls)
    assert set(roles.values()) <= {"identity", "knob"}
    assert [field for field, role in roles.items() if role == "knob"] == (["root"] if name == "folder" else [])
    assert all(info.description for info in cls.model_fields.values())


def test_spec_ids_stay_as_they_are() -> None:
    assert {d.name: d.spec().id for d in (Samples(), DeadLeaves(), Folder(root=Path("anywhere")))} == GOLDEN_SPECS


def test_another_process_draws_and_cuts_the_same_pixels() -> None:
    code = (
        "import sys; from waterproof.datasets.samples import Samples; "
        "from waterproof.datasets.deadleaves import DeadLeaves\n"
        "for d in (DeadLeaves(count=3, size=64), Samples(size=300, crops=1)):\n"
        "    sys.stdout.buffer.write(d.load(d.index().records)[0][0].numpy().tobytes())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    here = [d.load(d.index().records)[0][0] for d in (DeadLeaves(count=3, size=64), Samples(size=300, crops=1))]
    assert there == b"".join(images.numpy().tobytes() for images in here)


GOLDEN_SPECS = {
    "deadleaves": "e99bb0b8e067e593d1fb77ef",
    "folder": "f3783b3eb450e1eb7ff78699",
    "samples": "8580561b8b2de8b2937ef14a",
}
