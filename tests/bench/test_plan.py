"""The plan: which cells there are, what they are called, and why some will not run."""

from __future__ import annotations

import importlib.util
import json
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest

from waterproof.bench.benchmark import validate
from waterproof.bench.plan import Plan, make_plan
from waterproof.core.errors import DatasetError
from waterproof.core.images import Record
from waterproof.datasets.base import Index, Rejected

if TYPE_CHECKING:
    from pathlib import Path

# Components of this test's own: their identities change only if the text below or the identity function changes.
PARTS = """\
from typing import ClassVar
import numpy as np
import torch
from waterproof.attacks.base import Attack
from waterproof.bench.methods.base import Evidence, Watermark
from waterproof.bench.metrics import Metric
from waterproof.core.components import knob, param
from waterproof.core.images import Record
from waterproof.datasets.base import Dataset, Index

class Pictures(Dataset):
    count: int = param(3, doc="how many")
    def index(self, tick=None):
        return Index(tuple(Record(f"picture-{i}", digest=str(i)) for i in range(self.count)))
    def load(self, records):
        return [], []

class Mark(Watermark):
    strength: float = param(1.0, doc="how strong")
    workers: int = knob(1, doc="how many hands")
    bits: ClassVar[int] = 4
    def embed(self, images, keys, seed):
        return images
    def decode(self, images):
        return Evidence(logits=torch.zeros(len(images), 4))
    def refuses(self, attack):
        return "it cannot read what is upside down" if attack == "tilt" else None

class OwnMark(Mark):
    counterparts: ClassVar[str] = "own"

class Missing(Mark):
    def unavailable(self):
        return "needs the package 'glue': pip install glue"

class Blur(Attack):
    family: ClassVar[str] = "degradation"
    sigma: float = param(1.0, doc="width")
    passes: int = param(1, doc="how often")
    def apply(self, images, seed):
        return images

class Tilt(Blur):
    aligned: ClassVar[bool] = False

class Oracle(Blur):
    knowledge: ClassVar[frozenset] = frozenset({"queries", "keys"})

class Distance(Metric):
    def compare(self, images, prepared):
        return np.zeros(len(images))
"""

Make = Any


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a plan of components from the text above; ``~Name`` stands for one of them."""
    file = tmp_path / "parts.py"
    file.write_text(PARTS)

    def plan(text: str = "{}", index: Index | None = None) -> Plan:
        default = {"name": "b", "dataset": "~Pictures", "methods": ["~Mark"], "attacks": ["~Blur"]}
        value = {**default, "metrics": ["~Distance"], **json.loads(text)}
        return make_plan(validate(json.loads(json.dumps(value).replace("~", f"{file}:"))), index)

    return plan


def ids(plan: Plan) -> list[str]:
    return [cell.id for cell in plan.cells]


def table(plan: Plan) -> list[tuple[str, str | None, str, str]]:
    """Arm, maker, attack and observer of each cell."""
    names = (plan.names(cell) for cell in plan.cells)
    return [(row["arm"], row["maker"], row["attack"], row["observer"]) for row in names]


# Which cells there are ----------------------------------------------------------------------------------------------


def test_every_method_meets_every_attack_in_both_arms_and_every_metric_sees_the_marked_images(make: Make) -> None:
    plan = make('{"attacks": [{"~Blur": {"sigma": 1}}, {"~Blur": {"sigma": 2}}], "methods": ["~Mark", "~OwnMark"]}')
    expected = []
    for blur in ("blur", "blur(sigma=2)"):
        for method, origin in (("mark", None), ("ownmark", "ownmark")):
            expected += [("unmarked", origin, blur, method), ("marked", method, blur, method)]
            expected += [("marked", method, blur, "distance")]
    assert table(plan) == expected
    assert len(set(ids(plan))) == len(plan.cells)
    assert [plan.by_id[cell.id] for cell in plan.cells] == list(plan.cells)


def test_unmarked_dataset_images_are_attacked_once_for_all_methods(make: Make) -> None:
    plan = make('{"methods": ["~Mark", {"~Mark": {"strength": 2}}]}')
    works = [cell.work for cell in plan.cells if cell.arm == "unmarked"]
    assert works == [(None, "unmarked", 0, None)] * 2
    assert len({cell.work for cell in plan.cells}) == 3


def test_shards_cut_the_images_and_keep_their_order(make: Make) -> None:
    plan = make('{"dataset": {"~Pictures": {"count": 5}}}')
    assert [[r.id for r in shard] for shard in plan.shards(2)] == [
        ["picture-0", "picture-1"],
        ["picture-2", "picture-3"],
        ["picture-4"],
    ]
    assert plan.shards(99) == [plan.records]


# What they are called -----------------------------------------------------------------------------------------------


def test_the_names_of_cells_stay_as_they_are(make: Make) -> None:
    # Stored results carry these names. If they change, no old result is found: raise plan.SCHEMA and say so.
    plan = make('{"methods": ["~Mark", "~OwnMark"], "seed": 5, "key": "per-image"}')
    assert ids(plan) == GOLDEN


def test_names_do_not_depend_on_the_order_of_anything(make: Make) -> None:
    one = make(
        '{"seed": 1, "attacks": [{"~Blur": {"sigma": 2, "passes": 3}}, "~Tilt"], "methods": ["~Mark", "~OwnMark"]}'
    )
    other = make(
        '{"methods": ["~OwnMark", "~Mark"], "attacks": ["~Tilt", {"~Blur": {"passes": 3, "sigma": 2.0}}], "seed": 1}'
    )
    assert ids(one) != ids(other)
    assert set(ids(one)) == set(ids(other))


CHANGES = {
    "nothing": "{}",
    "seed": '{"seed": 1}',
    "key": '{"key": "per-image"}',
    "another key": '{"key": "0101"}',
    "method": '{"methods": ["~OwnMark"]}',
    "a parameter of the method": '{"methods": [{"~Mark": {"strength": 2}}]}',
    "attack": '{"attacks": ["~Tilt"]}',
    "strength of the attack": '{"attacks": [{"~Blur": {"sigma": 2}}]}',
    "images": '{"dataset": {"~Pictures": {"count": 4}}}',
    "limit": '{"limit": 2}',
}


@pytest.mark.parametrize(("one", "other"), list(combinations(CHANGES, 2)))
def test_cells_that_could_hold_other_results_have_other_names(make: Make, one: str, other: str) -> None:
    marked = [{c.id for c in make(CHANGES[x]).cells if c.arm == "marked"} for x in (one, other)]
    assert not marked[0] & marked[1]


def test_the_key_is_no_part_of_what_unmarked_images_are_called(make: Make) -> None:
    one, other = make(CHANGES["nothing"]), make(CHANGES["key"])
    unmarked = [[c.id for c in plan.cells if c.arm == "unmarked"] for plan in (one, other)]
    assert unmarked[0] == unmarked[1]


@pytest.mark.parametrize("field", ["id", "source", "label", "split", "digest"])
def test_any_change_in_the_list_of_images_changes_every_name(make: Make, field: str) -> None:
    records = [
        Record(**{"id": "a", "source": "s", "label": "real", "digest": "0", **changed})  # type: ignore[arg-type]
        for changed in ({}, {field: "test"})
    ]
    one, other = (make("{}", Index((record,))) for record in records)
    assert not set(ids(one)) & set(ids(other))


@pytest.mark.parametrize(
    "change",
    [
        '{"runtime": {"engine": "inline", "workers": 3, "shard": 1, "cell_seconds": 5}}',
        '{"decision": {"fpr": 0.3, "rule": "certified", "sided": "two", "calibration": 0, "level": 0.9}}',
        '{"name": "another", "version": 9, "summary": "another"}',
        '{"methods": [{"~Mark": {"workers": 7}}]}',
        '{"metrics": ["~Distance"], "limit": 99}',
    ],
)
def test_what_cannot_change_a_result_does_not_change_a_name(make: Make, change: str) -> None:
    assert ids(make(change)) == ids(make())


def test_a_metric_more_or_less_changes_no_other_cell(make: Make) -> None:
    assert set(ids(make('{"metrics": []}'))) < set(ids(make())) < set(ids(make('{"metrics": ["~Distance", "psnr"]}')))


# What will not run --------------------------------------------------------------------------------------------------


def reasons(plan: Plan) -> dict[tuple[str, str], str | None]:
    """The reason by attack and observer, for marked images."""
    return {(row[2], row[3]): c.skipped for row, c in zip(table(plan), plan.cells, strict=True) if c.arm == "marked"}


def test_an_attack_that_moves_pixels_is_scored_but_not_compared_pixel_by_pixel(make: Make) -> None:
    plan = make('{"attacks": ["~Blur", {"~Tilt": {"sigma": 2}}], "methods": ["dwt-dct"]}')
    assert reasons(plan) == {
        ("blur", "dwt-dct"): None,
        ("blur", "distance"): None,
        ("tilt(sigma=2)", "dwt-dct"): None,
        ("tilt(sigma=2)", "distance"): "not comparable pixel by pixel after tilt(sigma=2)",
    }


def test_built_in_attacks_that_move_pixels_skip_metrics_and_those_that_can_be_undone_do_not(make: Make) -> None:
    turns = '{"rotation": {"degrees": 90}}, {"rotation": {"degrees": 9}}'
    attacks = f'["flip", {turns}, "crop", {{"chain": {{"attacks": ["crop"]}}}}]'
    skipped = [c.skipped for c in make(f'{{"attacks": {attacks}}}').cells if c.observer == "metric"]
    assert [reason is None for reason in skipped] == [True, True, False, False, False]


def test_a_method_that_is_not_here_is_skipped_with_what_to_install(make: Make) -> None:
    plan = make('{"methods": ["~Missing", "~Mark"]}')
    skipped = {row: cell.skipped for row, cell in zip(table(plan), plan.cells, strict=True)}
    for (_, maker, _, observer), reason in skipped.items():
        absent = "missing" in (maker, observer)
        assert reason == ("missing: needs the package 'glue': pip install glue" if absent else None)


def test_rivagan_without_its_packages_says_which_to_install(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "onnxruntime" else find(n, *a))
    reason = "rivagan: needs onnxruntime: pip install 'waterproof[baselines]'"
    assert {cell.skipped for cell in make('{"methods": ["rivagan"]}').cells} == {reason}


def test_a_method_may_refuse_an_attack_and_says_why(make: Make) -> None:
    plan = make('{"attacks": ["~Tilt"], "methods": ["~Mark"], "metrics": []}')
    assert {cell.skipped for cell in plan.cells} == {"it cannot read what is upside down"}


def test_an_attack_that_needs_more_than_images_is_skipped_with_what_it_needs(make: Make) -> None:
    plan = make('{"attacks": ["~Oracle"]}')
    needs = "oracle needs access to keys, queries, which this protocol does not give"
    assert {cell.skipped for cell in plan.cells} == {needs}


# Which images -------------------------------------------------------------------------------------------------------


def limited(make: Make, limit: int, count: int = 40) -> list[str]:
    return [r.id for r in make(f'{{"limit": {limit}, "dataset": {{"~Pictures": {{"count": {count}}}}}}}').records]


def test_a_limit_takes_the_same_images_every_time_and_a_larger_one_only_adds(make: Make) -> None:
    assert limited(make, 5) == limited(make, 5)
    assert set(limited(make, 5)) < set(limited(make, 10)) < set(limited(make, 40))
    assert [len(limited(make, n)) for n in (1, 5, 40, 99)] == [1, 5, 40, 40]


def test_a_limit_keeps_the_order_of_the_dataset(make: Make) -> None:
    kept = limited(make, 10)
    assert kept == sorted(kept, key=lambda name: int(name.split("-")[1]))


def test_a_limit_is_no_favour_to_the_first_images(make: Make) -> None:
    positions = [int(name.split("-")[1]) for name in limited(make, 100, 1000)]
    # The mean of 100 of 1000 positions has a standard deviation of 27.
    assert abs(sum(positions) / 100 - 499.5) < 4 * 27


def test_an_image_more_in_the_dataset_replaces_at_most_one_under_a_limit(make: Make) -> None:
    assert len(set(limited(make, 10, 40)) - set(limited(make, 10, 41))) <= 1


def test_an_empty_dataset_is_refused_with_the_reasons(make: Make) -> None:
    with pytest.raises(DatasetError, match=r"the dataset holds no usable image$"):
        make('{"dataset": {"~Pictures": {"count": 0}}}')
    with pytest.raises(DatasetError, match="the image folder absent does not exist"):
        make('{"dataset": {"folder": {"root": "absent"}}}')


def test_rejected_images_stay_in_the_plan(make: Make) -> None:
    plan = make("{}", Index((Record("a"),), (Rejected("b", "broken"),)))
    assert plan.index.rejected == (Rejected("b", "broken"),)


GOLDEN = [
    "87918836144f7e432bc66fff",
    "fe65aaddceebd8446f7d202e",
    "b46b688f6ae2c0d0e0bd7dee",
    "05e44ea485633bab475efede",
    "a606e721070077893b9e8c0d",
    "b3f33d1721a339e8d0c9b179",
]
"""Made by this file's own components; see the first test of names."""
