"""Identities: the names under which results are stored."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from waterproof.core.identity import IDENTITY_VERSION, canonical_json, file_digest, identity

if TYPE_CHECKING:
    from pathlib import Path

VALUES: dict[str, Any] = {
    "empty": {},
    "numbers": {"int": 1, "float": 1.0, "small": 1e-7, "tenth": 0.1, "large": 1e22, "negative": -0.5, "bool": True},
    "text": {"plain": "jpeg", "accents": "é", "quote": '"\\\n', "none": None},
    "nested": {"a": [1, [2.5, "x"], {"b": {}}]},
}


def test_identities_stay_as_they_are() -> None:
    # Stored runs carry these names. If one changes, raise IDENTITY_VERSION and say so in the change log.
    assert IDENTITY_VERSION == 1
    assert {name: identity("spec", value) for name, value in VALUES.items()} == GOLDEN
    assert identity("cell", VALUES["nested"]) == GOLDEN_CELL


@pytest.mark.parametrize("name", VALUES)
def test_an_identity_is_the_hash_that_the_documentation_describes(name: str) -> None:
    wrapped = {"identity": 1, "kind": "spec", "value": VALUES[name]}
    text = json.dumps(wrapped, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert identity("spec", VALUES[name]) == hashlib.sha256(text.encode("utf-8")).hexdigest()[:24]


def test_the_order_of_keys_is_irrelevant_and_the_order_of_lists_is_not() -> None:
    assert identity("k", {"a": 1, "b": {"c": 2, "d": 3}}) == identity("k", {"b": {"d": 3, "c": 2}, "a": 1})
    assert identity("k", {"a": [1, 2]}) != identity("k", {"a": [2, 1]})


def test_kinds_never_collide() -> None:
    assert identity("cell", {"a": 1}) != identity("spec", {"a": 1})


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1, "1"), (1, True), (0, None), ("", None), (0.1, 0.1 + 2**-56)])
def test_values_that_differ_have_other_identities(one: object, other: object) -> None:
    assert identity("k", {"a": one}) != identity("k", {"a": other})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_has_no_identity(bad: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        identity("k", {"a": [bad]})


@pytest.mark.parametrize("bad", [b"bytes", {1, 2}, object()])
def test_what_is_not_json_has_no_identity(bad: object) -> None:
    with pytest.raises(TypeError):
        canonical_json({"a": bad})


def test_a_file_is_digested_in_blocks_and_says_how_far_it_is(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "weights").write_bytes(data)
    seen: list[int] = []
    assert file_digest(tmp_path / "weights", seen.append) == hashlib.sha256(data).hexdigest()
    assert sum(seen) == len(data)
    assert len(seen) == 2


GOLDEN = {
    "empty": "b7425722056036030608ed72",
    "numbers": "f5e477c38e5cca7ae700f24f",
    "text": "4aaafa5565d7aab2542ca32d",
    "nested": "841df5504e3df98e24bf1b30",
}
GOLDEN_CELL = "37fe93afae48fe59719a06c0"
