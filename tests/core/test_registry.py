"""The registry: one name, one component; a wrong name meets the nearest right one."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

import pytest

from waterproof.attacks.codec import Jpeg
from waterproof.core import registry
from waterproof.core.catalogue import CATALOGUE
from waterproof.core.components import Component
from waterproof.core.errors import SpecError
from waterproof.core.registry import KINDS, create, entries, load_class, names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MARK = """
from typing import ClassVar
import torch
from waterproof.bench.methods.base import Evidence, Watermark

class Mark(Watermark):
    bits: ClassVar[int] = 1
    def embed(self, images, keys, seed):
        return images
    def decode(self, images):
        return Evidence(logits=torch.zeros(len(images), 1))

class Plain:
    pass

word = "a word"
"""


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Pretends that other distributions registered entry points: (group, name, target)."""

    def install(*points: tuple[str, str, str]) -> None:
        made = [EntryPoint(name=name, value=target, group=group) for group, name, target in points]
        monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in made if p.group == group])
        entries.cache_clear()

    yield install
    monkeypatch.undo()
    entries.cache_clear()


@pytest.fixture
def mine(tmp_path: Path) -> str:
    file = tmp_path / "my mark.py"
    file.write_text(MARK)
    return str(file)


@pytest.mark.parametrize("line", CATALOGUE, ids=lambda line: f"{line[0]} {line[1]}")
def test_every_line_of_the_catalogue_leads_to_a_component_of_that_name(line: tuple[str, ...]) -> None:
    kind, name, _, family, summary = line
    cls = load_class(kind, name)
    assert issubclass(cls, Component)
    assert (cls.kind, cls.name) == (kind, name)
    assert family
    assert summary


def test_names_come_in_the_order_of_the_catalogue() -> None:
    for kind in KINDS:
        own = [line[1] for line in CATALOGUE if line[0] == kind]
        assert names(kind)[: len(own)] == own


def test_a_name_and_parameters_make_a_component() -> None:
    assert create("attack", "jpeg", {"quality": 33}) == Jpeg(quality=33)


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("attack", "jpg", "unknown attack 'jpg'. Did you mean 'jpeg'?"),
        ("method", "dwt", "unknown method 'dwt'. Did you mean 'dwt-dct'?"),
        ("editor", "zzz", "unknown editor 'zzz'. Valid: image-to-image, reconstruction."),
        ("method", "jpeg", "unknown method 'jpeg'. 'jpeg' is one of the attacks."),
        ("dataset", "psnr", "unknown dataset 'psnr'. 'psnr' is one of the metrics."),
    ],
)
def test_a_wrong_name_meets_the_nearest_right_one(kind: str, name: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_class(kind, name)
    assert str(caught.value) == says


def test_a_class_in_a_file_needs_no_registration(mine: str) -> None:
    mark = create("method", f"{mine}:Mark")
    assert (mark.name, mark.kind, mark.label) == ("mark", "method", "mark")
    assert load_class("method", f"{mine}:Mark") is type(mark)


def test_a_class_in_a_module_needs_no_registration() -> None:
    assert load_class("attack", "waterproof.attacks.codec:Jpeg") is Jpeg


def test_a_class_that_is_derived_from_another_has_a_name_of_its_own_in_any_order(tmp_path: Path) -> None:
    for i, order in enumerate((("Mark", "Better"), ("Better", "Mark"))):
        file = tmp_path / f"two_marks_{i}.py"
        file.write_text(MARK + "\nclass Better(Mark):\n    pass\n")
        made = {name: create("method", f"{file}:{name}") for name in order}
        assert {name: mark.name for name, mark in made.items()} == {"Mark": "mark", "Better": "better"}
        assert made["Mark"].spec().id != made["Better"].spec().id


def test_an_edited_file_is_loaded_anew(tmp_path: Path) -> None:
    file = tmp_path / "edited.py"
    file.write_text(MARK)
    before = create("method", f"{file}:Mark")
    file.write_text(MARK.replace("] = 1", "] = 2"))
    after = create("method", f"{file}:Mark")
    assert (before.bits, after.bits) == (1, 2)  # type: ignore[attr-defined]


def test_a_class_of_another_kind_is_refused(mine: str) -> None:
    with pytest.raises(SpecError, match=r":Mark is no attack: it must be a class derived from the attack contract"):
        load_class("attack", f"{mine}:Mark")
    for name in ("Plain", "word"):
        with pytest.raises(SpecError, match=f":{name} is no method"):
            load_class("method", f"{mine}:{name}")


def test_a_misspelt_class_meets_the_nearest_right_one(mine: str) -> None:
    with pytest.raises(SpecError, match=r"has no 'Marc'\. Did you mean 'Mark'\?"):
        load_class("method", f"{mine}:Marc")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("no_such_file.py:Mark", "no such file: no_such_file.py"),
        ("no_such_module:Mark", "cannot import 'no_such_module' of no_such_module:Mark: no such module"),
        ("waterproof.no_such_module:Mark", "no such module"),
        (":Mark", "cannot import '' of :Mark"),
        ("waterproof.attacks.codec:", "has no ''"),
    ],
)
def test_a_place_that_is_not_there_is_named(target: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_class("method", target)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 / 0", "fails when it is loaded: ZeroDivisionError: division by zero"),
        ("def broken(:", "fails when it is loaded: SyntaxError"),
        ("import no_such_package", "fails when it is loaded: ModuleNotFoundError: No module named 'no_such_package'"),
        ("\0", "fails when it is loaded: "),
        (MARK.replace(": ClassVar[int]", ""), "PydanticUserError: A non-annotated attribute was detected: `bits = 1`"),
    ],
)
def test_a_broken_file_gives_one_line_and_leaves_nothing_behind(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "broken_mark.py"
    file.write_text(text)
    for _ in range(2):
        with pytest.raises(SpecError) as caught:
            load_class("method", f"{file}:Mark")
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not [name for name in sys.modules if name.startswith("broken_mark")]


def test_a_module_that_fails_on_import_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_failing_plugin.py").write_text("raise OSError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError, match=r"cannot import 'a_failing_plugin' of .*: OSError: libGL\.so\.1: cannot open"):
        load_class("method", "a_failing_plugin:Mark")


def test_a_module_that_lacks_a_package_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_needy_plugin.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError, match="needs the package 'no_such_package', which is not installed"):
        load_class("method", "a_needy_plugin:Mark")


def test_other_distributions_add_components_by_entry_points(plugins: Callable[..., None]) -> None:
    plugins(("waterproof.attacks", "their-jpeg", "waterproof.attacks.codec:Jpeg"))
    assert names("attack")[-1] == "their-jpeg"
    assert entries()["attack", "their-jpeg"].family == "plugin"
    assert load_class("attack", "their-jpeg") is Jpeg


def test_an_entry_point_may_use_a_name_of_another_kind(plugins: Callable[..., None]) -> None:
    plugins(("waterproof.methods", "jpeg", "somewhere:Mark"))
    assert {("attack", "jpeg"), ("method", "jpeg")} <= set(entries())


@pytest.mark.parametrize(
    "points",
    [
        [("waterproof.attacks", "jpeg", "theirs.codec:Jpeg")],
        [("waterproof.attacks", "glow", "one:Glow"), ("waterproof.attacks", "glow", "two:Glow")],
    ],
    ids=["against the package", "against each other"],
)
def test_one_name_registered_twice_is_an_error(
    plugins: Callable[..., None], points: list[tuple[str, str, str]]
) -> None:
    plugins(*points)
    with pytest.raises(SpecError, match=r"is registered twice, by .* uninstall one or rename it") as caught:
        entries()
    assert points[-1][2] in str(caught.value)


def test_listing_imports_no_plugin(plugins: Callable[..., None]) -> None:
    plugins(("waterproof.methods", "absent", "no_such_module:Absent"))
    assert "absent" in names("method")
    with pytest.raises(SpecError, match="no such module"):
        load_class("method", "absent")
