"""Seeds: the same coordinates give the same draws, other coordinates give others."""

from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np
import pytest
import torch

from waterproof.core.seeds import Seed


def test_integers_stay_as_they_are() -> None:
    # These numbers decide every stored result: if one changes, all of them do.
    assert Seed.root(0).integer == 917077949546806129
    assert Seed.root(1).integer == 6327870850964092051
    assert Seed.root(-1).integer == 3785899114926652748
    assert Seed.root(2**40).integer == 5385234228203318732
    assert Seed.root(0).child("attack", "noise", "image-7").integer == 8761297478269446516
    assert Seed.root(0).child("image", 7).integer == 6635137669175727477
    assert Seed.root(0).child("photographie-é").numpy().integers(0, 2**31, 3).tolist() == GOLDEN_DRAW


def test_a_seed_is_the_hash_that_the_documentation_describes() -> None:
    digest = hashlib.sha256(b"waterproof-seed-15").digest()
    for text in ("sattack", "i12"):
        digest = hashlib.sha256(digest + len(text).to_bytes(8, "little") + text.encode()).digest()
    assert Seed.root(5).child("attack", 12).digest == digest
    assert Seed.root(5).child("attack", 12).integer == int.from_bytes(digest[:8], "little") // 2


def test_no_two_ways_of_cutting_or_typing_coordinates_meet() -> None:
    root = Seed.root(0)
    points = [
        root,
        root.child("ab", "c"),
        root.child("a", "bc"),
        root.child("abc"),
        root.child("abc", ""),
        root.child("", "abc"),
        root.child("1"),
        root.child(1),
        root.child("i1"),
        root.child(-1),
        root.child("s1"),
        Seed.root(1).child("abc"),
    ]
    assert all(one != other for one, other in combinations(points, 2))


def test_coordinates_may_be_given_at_once_or_one_by_one() -> None:
    assert Seed.root(3).child("a", 2, "b") == Seed.root(3).child("a").child(2).child("b")
    assert Seed.root(3).child() == Seed.root(3)


@pytest.mark.parametrize("wrong", [1.0, True, None, b"a", ("a",)])
def test_only_words_and_integers_are_coordinates(wrong: object) -> None:
    with pytest.raises(TypeError, match=f"a seed coordinate is a str or an int, not {type(wrong).__name__}"):
        Seed.root(0).child(wrong)  # type: ignore[arg-type]


def test_generators_begin_anew_at_each_call() -> None:
    seed = Seed.root(0).child("noise")
    np.testing.assert_array_equal(seed.numpy().random(5), seed.numpy().random(5))
    assert torch.equal(torch.rand(5, generator=seed.torch()), torch.rand(5, generator=seed.torch()))
    assert seed.numpy().random() != Seed.root(1).child("noise").numpy().random()


def test_global_random_state_is_neither_read_nor_moved() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]  # noqa: NPY002
    first = float(torch.rand(1, generator=Seed.root(0).torch()))
    Seed.root(0).numpy().random(3)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]  # noqa: NPY002
    torch.manual_seed(99)
    assert float(torch.rand(1, generator=Seed.root(0).torch())) == first


def test_neighbouring_seeds_give_unrelated_bits() -> None:
    bits = np.array([np.unpackbits(np.frombuffer(Seed.root(i).digest, np.uint8)) for i in range(200)])
    differing = (bits[1:] != bits[:-1]).mean()
    assert 0.48 < differing < 0.52


GOLDEN_DRAW = [824091654, 2011410886, 1639078913]
