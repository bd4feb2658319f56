"""Components: validated parameters, roles, labels, and a spec that holds all that decides a result."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest
from pydantic import ValidationError, create_model

from waterproof.attacks.base import Attack
from waterproof.attacks.codec import Jpeg
from waterproof.core.components import (
    Component,
    Spec,
    build,
    external_source,
    field_roles,
    format_value,
    knob,
    labelled,
    param,
)
from waterproof.core.errors import SpecError
from waterproof.core.identity import identity
from waterproof.core.registry import load_class

if TYPE_CHECKING:
    from pathlib import Path


class Blender(Component):
    kind: ClassVar[str] = "attack"
    name: ClassVar[str] = "blender"
    version: ClassVar[int] = 3

    speed: float = param(0.5, ge=0, le=1, doc="how fast")
    mode: Literal["chop", "stir"] = param("chop", doc="what it does")
    times: tuple[int, ...] = param((1, 2), doc="when")
    workers: int = knob(1, ge=1, doc="how many hands")
    undeclared: int = 0

    def digests(self) -> dict[str, str]:
        return {"blade": "ab" * 32}


class Needy(Component):
    name: ClassVar[str] = "needy"
    amount: int = param(doc="how much")


def test_a_field_is_identity_knob_or_unclassified() -> None:
    assert field_roles(Blender) == {
        "speed": "identity",
        "mode": "identity",
        "times": "identity",
        "workers": "knob",
        "undeclared": "unclassified",
    }


def test_fields_of_a_plain_model_are_unclassified() -> None:
    assert field_roles(create_model("Plain", a=(int, 1))) == {"a": "unclassified"}


def test_a_knob_is_no_part_of_the_identity() -> None:
    assert Blender(workers=8).spec() == Blender().spec()
    assert Blender(workers=8).label == "blender"
    assert "workers" not in Blender().identity_params()


def test_every_other_field_is_part_of_the_identity() -> None:
    changed: list[dict[str, Any]] = [{}, {"speed": 0.6}, {"mode": "stir"}, {"times": (2, 1)}, {"undeclared": 1}]
    assert len({Blender(**values).spec().id for values in changed}) == len(changed)


def test_two_spellings_of_one_value_have_one_identity() -> None:
    assert build(Blender, {"speed": 1, "times": [1, 2]}).spec().id == build(Blender, {"speed": 1.0}).spec().id


def test_version_and_digests_are_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Blender().spec()
    monkeypatch.setattr(Blender, "version", 4)
    newer = Blender().spec()
    monkeypatch.setattr(Blender, "digests", lambda _self: {"blade": "cd" * 32})
    assert len({before.id, newer.id, Blender().spec().id}) == 3
    assert before.digests["blade"] == "ab" * 32


def test_the_identity_of_a_spec_stays_as_it_is() -> None:
    spec = Spec(kind="attack", name="jpeg", version=1, params={"quality": 50}, digests={"a": "b"})
    assert spec.id == identity("spec", spec.model_dump()) == "66968d0cbd5dc05a6b16074f"
    assert Spec.model_validate_json(spec.model_dump_json()).id == spec.id


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"sped": 1}, "blender: unknown parameter 'sped'. Did you mean 'speed'?"),
        ({"zzzz": 1}, "blender: unknown parameter 'zzzz'. Valid: mode, speed, times, undeclared, workers."),
        ({"speed": 2}, "blender: speed: input should be less than or equal to 1, not 2"),
        ({"speed": "fast"}, "blender: speed: input should be a valid number"),
        ({"mode": "boil"}, "blender: mode: input should be 'chop' or 'stir', not 'boil'"),
        ({"times": [1, "x"]}, "blender: times.1: input should be a valid integer"),
        ({"speed": -1, "workers": 0}, "; workers: input should be greater than or equal to 1, not 0"),
    ],
)
def test_a_wrong_parameter_gives_one_line_that_says_what_would_be_right(params: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as caught:
        build(Blender, params)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(SpecError, match=r"needy: amount: field required$"):
        build(Needy, {})


def test_a_class_that_leaves_out_part_of_its_contract_is_refused_by_name() -> None:
    class Lazy(Attack):
        name: ClassVar[str] = "lazy"

    with pytest.raises(SpecError, match="lazy cannot be used: it lacks apply, which every attack defines"):
        build(Lazy, {})


def test_a_component_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Blender().speed = 1.0


def test_a_label_names_what_differs_from_the_defaults() -> None:
    assert Blender().label == "blender"
    assert Blender(speed=0.25, times=(7,)).label == "blender(speed=0.25, times=[7])"
    assert labelled("crop", {"area": 0.5}) == "crop(area=0.5)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.5"),
        (2.0, "2"),
        (1e-6, "1e-06"),
        (7, "7"),
        (True, "True"),
        ("centre", "centre"),
        ([1, 0.5], "[1, 0.5]"),
        ((), "[]"),
        ({"jpeg": {"quality": 5}}, "{jpeg: {quality: 5}}"),
        (None, "None"),
    ],
)
def test_values_are_written_as_a_person_would(value: object, text: str) -> None:
    assert format_value(value) == text


SOURCE = """
from waterproof.attacks.base import Attack
from waterproof.core.components import param

class Grey(Attack):
    level: int = param(128, ge=0, le=255, doc="the level")
    def apply(self, images, seed):
        return images
"""


def test_a_component_of_the_package_carries_no_source() -> None:
    assert external_source(Jpeg) is None
    assert Jpeg().spec().digests == {}


def test_a_component_from_a_file_carries_the_digest_of_its_source_and_changes_with_it(tmp_path: Path) -> None:
    file = tmp_path / "grey.py"
    ids = set()
    for text in (SOURCE, SOURCE.replace("128", "64"), SOURCE + "# a comment\n"):
        file.write_text(text)
        spec = build(load_class("attack", f"{file}:Grey"), {}).spec()
        assert spec.name == "grey"
        assert spec.digests == {"source": hashlib.sha256(text.encode()).hexdigest()}
        ids.add(spec.id)
    assert len(ids) == 3


def test_where_a_file_lies_is_no_part_of_the_identity(tmp_path: Path) -> None:
    ids = set()
    for name in ("here.py", "there.py"):
        (tmp_path / name).write_text(SOURCE)
        ids.add(build(load_class("attack", f"{tmp_path / name}:Grey"), {"level": 3}).spec().id)
    assert len(ids) == 1
    assert external_source(load_class("attack", f"{tmp_path / 'here.py'}:Grey")) == tmp_path / "here.py"
