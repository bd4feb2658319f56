"""Which of N users, against Python loops, exact fractions and simulated coins."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waterproof.bench.statistics import binomial, matching
from waterproof.bench.statistics.attribution import attribute, family_fpr, family_threshold
from waterproof.bench.statistics.matching import KeyBank, best, pack, unpack
from waterproof.core.errors import StatisticsError

if TYPE_CHECKING:
    from pathlib import Path

WIDTHS = [8, 32, 48, 64, 100, 256]


def coins(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < 0.5


def flipped(bits: np.ndarray, share: float, seed: int) -> np.ndarray:
    return bits ^ (np.random.default_rng(seed).random(bits.shape) < share)


def slow_best(image: np.ndarray, keys: np.ndarray, n: int, own: np.ndarray | None = None) -> tuple[int, int, int]:
    others = [j for j, key in enumerate(keys) if own is None or key.tolist() != own.tolist()][:n]
    assert len(others) == n
    matches = [sum(int(a == b) for a, b in zip(image, keys[j], strict=True)) for j in others]
    top = max(matches, default=-1)
    return top, matches.count(top), others[matches.index(top)] if others else -1


def as_tuples(found: matching.Best, image: int) -> list[tuple[int, int, int]]:
    rows = zip(found.matches[image], found.ties[image], found.first[image], strict=True)
    return [(int(a), int(b), int(c)) for a, b, c in rows]


# Packing


@pytest.mark.parametrize("k", [1, 7, 63, 64, 65, 128, 300, *WIDTHS])
def test_bit_j_of_a_payload_is_bit_j_of_its_words_and_unused_bits_are_zero(k: int) -> None:
    bits = coins(k, 20, k)
    words = pack(bits)
    assert words.dtype == np.uint64
    numbers = [sum(int(word) << (64 * w) for w, word in enumerate(row)) for row in words]
    assert numbers == [sum(1 << j for j in np.flatnonzero(row).tolist()) for row in bits]
    np.testing.assert_array_equal(unpack(words, k), bits)


@pytest.mark.parametrize("bits", [np.zeros((2, 0), bool), np.zeros(3, bool), np.zeros((2, 3)), [[0, 1]]])
def test_what_is_no_payload_is_not_packed(bits: object) -> None:
    with pytest.raises(StatisticsError, match=r"bits must be"):
        pack(bits)  # type: ignore[arg-type]


def test_words_of_another_width_are_refused() -> None:
    with pytest.raises(StatisticsError, match=r"uint64 \[n, 2\] for 100 bits"):
        unpack(pack(coins(0, 3, 48)), 100)


# Banks


@pytest.mark.parametrize("k", WIDTHS)
def test_a_random_bank_is_the_beginning_of_every_larger_one(k: int) -> None:
    small, large = KeyBank.random(10, k, 3), KeyBank.random(10**7, k, 3)
    np.testing.assert_array_equal(small.keys(0, 10), large.keys(0, 10))
    middle = large.keys(65_530, 65_540)
    np.testing.assert_array_equal(middle[:6], large.keys(0, 65_536)[-6:])
    np.testing.assert_array_equal(middle[6:], large.keys(65_536, 65_540))
    assert not np.array_equal(small.keys(0, 10), KeyBank.random(10, k, 4).keys(0, 10))


@pytest.mark.parametrize("k", WIDTHS)
def test_random_keys_are_fair_coins(k: int) -> None:
    ones = unpack(KeyBank.random(20_000, k, 0).keys(0, 20_000), k).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / math.sqrt(20_000)


def test_a_random_bank_never_changes() -> None:
    # A change of these numbers is a change of every published attribution.
    assert KeyBank.random(2, 48, 0).keys(0, 2)[:, 0].tolist() == [31266153807111, 150209855252024]


def test_duplicates_are_counted_and_can_be_left_out() -> None:
    for k in (3, 100):
        keys = coins(1, 12, k)
        keys[[5, 7, 11]] = keys[[2, 2, 0]]
        expected = list(dict.fromkeys(tuple(row) for row in keys.tolist()))
        bank = KeyBank.of(keys, [f"user {i}" for i in range(12)])
        assert bank.duplicates == 12 - len(expected)
        assert bank.repeats(6) == 6 - len({tuple(row) for row in keys[:6].tolist()})
        alone = bank.distinct()
        assert unpack(alone.keys(0, alone.users), k).tolist() == [list(row) for row in expected]
        assert alone.names == tuple(f"user {keys.tolist().index(list(row))}" for row in expected)


def test_keys_are_counted_in_the_bank_also_where_only_later_words_differ() -> None:
    keys = np.zeros((5, 100), bool)
    keys[1:4, 99] = True
    keys[2, 0] = True
    assert KeyBank.of(keys).count(pack(keys)).tolist() == [2, 2, 1, 2, 2]


def test_a_text_bank_reads_names_hexadecimal_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("# users\n\nanna 00011111\nbob, 0x1E  # left the company\n 0XfF\n", encoding="utf-8")
    bank = KeyBank.read(file, 8)
    assert unpack(bank.keys(0, 3), 8).astype(int).tolist() == [
        [0, 0, 0, 1, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, 1, 1, 0],
        [1] * 8,
    ]
    assert bank.names == ("anna", "bob", "line 5")
    file.write_text("01\n0x2\n")
    assert KeyBank.read(file, 2).names == ()


@pytest.mark.parametrize("kind", [np.bool_, np.uint8])
def test_an_array_bank_is_read(tmp_path: Path, kind: type) -> None:
    keys = coins(0, 5, 100)
    np.save(tmp_path / "keys.npy", keys.astype(kind))
    np.testing.assert_array_equal(unpack(KeyBank.read(tmp_path / "keys.npy", 100).keys(0, 5), 100), keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0101\n01\n", r"keys\.txt, line 2: the key has 2 bits; keys have 4"),
        ("0101\n0x1F\n", r"line 2: 0x1F has 5 bits; keys have 4"),
        ("0101\n0x1G\n", r"line 2: '0x1G' is no hexadecimal number"),
        ("0101\n\nanna\n", r"line 3: 'anna' is no key; write 4 characters 0 and 1"),
        ("anna b 0101\n", r"line 1: 3 words; a line is a key, or a user name and a key"),
        ("anna 0101\nanna 0111\n", r"line 2: user anna already stands in line 1"),
        ("# nothing\n", r"there is no key in it; put one of 4 bits on each line"),
        ("\udc80", r"no text in UTF-8"),
    ],
)
def test_a_text_bank_that_is_wrong_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "keys.txt"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(StatisticsError, match=message):
        KeyBank.read(file, 4)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 5), np.uint8), r"shape \[3, 5\]; it must be \[N, 4\]"),
        (np.array([[0, 1, 0, 1], [0, 2, 0, 1]], np.uint8), r"row 1: a value above 1"),
        (np.zeros((3, 4)), r"float64; it must be bool, or uint8"),
        (np.array([[{}] * 4]), r"no NumPy array"),
    ],
)
def test_an_array_bank_that_is_wrong_is_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "keys.npy", array, allow_pickle=True)
    with pytest.raises(StatisticsError, match=message):
        KeyBank.read(tmp_path / "keys.npy", 4)


def test_a_bank_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StatisticsError, match=r"keys\.txt: No such file"):
        KeyBank.read(tmp_path / "keys.txt", 4)
    with pytest.raises(StatisticsError, match="at least one key"):
        KeyBank.random(0, 48, 0)
    with pytest.raises(StatisticsError, match="3 names for 2 keys"):
        KeyBank.of(coins(0, 2, 4), ["a", "b", "c"])
    with pytest.raises(StatisticsError, match="same user name"):
        KeyBank.of(coins(0, 2, 4), ["a", "a"])
    with pytest.raises(StatisticsError, match=r"keys 0\.\.3 of a bank of 2"):
        KeyBank.of(coins(0, 2, 4)).keys(0, 3)


# The search


@pytest.mark.parametrize("k", WIDTHS)
def test_the_search_agrees_with_a_loop_over_all_pairs(k: int) -> None:
    bank = KeyBank.random(300, k, 1)
    keys = unpack(bank.keys(0, 300), k)
    images = np.concatenate([coins(2, 3, k), flipped(keys[[0, 150, 299]], 0.1, 3)])
    ends = [0, 1, 17, 300]
    found = best(pack(images), bank, ends)
    assert found.checkpoints == tuple(ends)
    for i, image in enumerate(images):
        assert as_tuples(found, i) == [slow_best(image, keys, n) for n in ends]


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 3, 8, 65, 254, 255, 256]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_own_keys_are_passed_over_wherever_and_how_often_they_stand(seed: int, k: int, one_user: bool) -> None:
    draws = np.random.default_rng(seed)
    keys, count = coins(seed, int(draws.integers(1, 40)), k), int(draws.integers(1, 6))
    own = keys[draws.integers(0, len(keys), 1 if one_user else count)].repeat(count if one_user else 1, axis=0)
    images = flipped(own, 0.2, seed)
    most = min(sum(key.tolist() != mine.tolist() for key in keys) for mine in own)
    ends = sorted({0, most // 3, most})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_TILE", int(draws.choice([1, 5, 8192])))
        patch.setattr(matching, "BLOCK", int(draws.choice([4, 7, 65_536])))
        found = best(pack(images), KeyBank.of(keys), ends, pack(own), threads=2)
    for i in range(count):
        assert as_tuples(found, i) == [slow_best(images[i], keys, n, own[i]) for n in ends]
    if most < len(keys):
        with pytest.raises(StatisticsError, match="besides an image's own"):
            best(pack(images), KeyBank.of(keys), [most + 1], pack(own))


@pytest.mark.parametrize("k", [48, 100])
def test_the_answer_depends_on_no_thread_tile_chunk_or_checkpoint_beside_it(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = KeyBank.random(150_000, k, 5)
    own = unpack(bank.keys(70_000, 70_030), k)
    images = pack(flipped(own, 0.2, 1))
    reference = best(images, bank, [1000, 149_999], pack(own), threads=1)
    alone = best(images, bank, [149_999], pack(own), threads=3)
    monkeypatch.setattr(matching, "_TILE", 1000)
    monkeypatch.setattr(matching, "_PAIRS", 3000)
    monkeypatch.setattr(matching, "_CHUNK", 7)
    other = best(images, bank, [1000, 149_999], pack(own), threads=2)
    for name in ("matches", "ties", "first"):
        np.testing.assert_array_equal(getattr(other, name), getattr(reference, name))
        np.testing.assert_array_equal(getattr(alone, name)[:, 0], getattr(reference, name)[:, 1])


def test_progress_tells_every_pair_once() -> None:
    told: list[int] = []
    best(pack(coins(0, 7, 48)), KeyBank.random(70_000, 48, 0), [10, 70_000], tick=lambda n, _: told.append(n))
    assert sum(told) == 7 * 70_000


def test_a_search_that_cannot_be_had_is_refused() -> None:
    images, bank = pack(coins(0, 3, 48)), KeyBank.random(10, 48, 0)
    with pytest.raises(StatisticsError, match=r"must lie in 0\.\.10 \(the bank's\), not \[11\]"):
        best(images, bank, [11])
    with pytest.raises(StatisticsError, match="2 keys to exclude for 3 images"):
        best(images, bank, [1], images[:2])
    with pytest.raises(StatisticsError, match="0 threads"):
        best(images, bank, [1], threads=0)
    with pytest.raises(StatisticsError, match="uint64"):
        best(pack(coins(0, 3, 100)), bank, [1])


# The threshold


@given(st.integers(1, 60), st.integers(1, 200), st.floats(1e-9, 0.999))
@settings(max_examples=200, deadline=None)
def test_the_threshold_is_the_smallest_that_exact_fractions_allow(k: int, users: int, fpr: float) -> None:
    def allowed(tau: int) -> bool:
        single = Fraction(sum(math.comb(k, i) for i in range(tau, k + 1)), 2**k)
        return 1 - (1 - single) ** users <= Fraction(fpr)

    if not allowed(k):
        with pytest.raises(StatisticsError, match=rf"{k} bits cannot"):
            family_threshold(k, users, fpr)
        return
    tau = family_threshold(k, users, fpr)
    assert allowed(tau)
    assert not allowed(tau - 1)


def test_the_border_itself_is_allowed() -> None:
    # Two users at a single FPR of exactly 1/2 reach exactly 3/4.
    assert family_threshold(49, 2, 0.75) == 25
    assert family_threshold(49, 2, float(np.nextafter(0.75, 0))) == 26
    assert family_threshold(48, 1, 1e-6) == binomial.threshold(48, 1e-6)


def test_the_family_wise_rate_keeps_its_digits_where_it_is_tiny() -> None:
    for k, tau, users in ((256, 256, 10**6), (48, 48, 10**7), (100, 60, 3)):
        single = Fraction(sum(math.comb(k, i) for i in range(tau, k + 1)), 2**k)
        # Bonferroni's first terms bound it from both sides.
        high = users * single
        low = high - Fraction(users * (users - 1), 2) * single**2
        assert float(low) * (1 - 1e-14) <= family_fpr(k, tau, users) <= float(high) * (1 + 1e-14)
    assert family_fpr(8, 0, 5) == 1


def test_too_few_bits_are_told_how_many_would_do() -> None:
    with pytest.raises(StatisticsError, match=r"32 bits .* 1e-06 among 1000000 users.*use 40 bits or more"):
        family_threshold(32, 10**6, 1e-6)
    assert family_threshold(40, 10**6, 1e-6) == 40


# Attribution


def test_small_cases_agree_with_a_loop_over_users() -> None:
    bank_keys, own = coins(1, 40, 12), coins(2, 25, 12)
    own[:5] = bank_keys[:5]
    marked, unmarked = flipped(own, 0.15, 3), coins(4, 30, 12)
    rows = attribute(marked, own, unmarked, [1, 2, 35, 10], 0.2, bank=KeyBank.of(bank_keys))
    assert [row.users for row in rows] == [1, 2, 35, 10]
    for row in rows:
        tau = family_threshold(12, row.users, 0.2)
        assert row.threshold == tau
        counts = {"correct": 0, "wrong": 0, "missed": 0, "closed": 0, "false": 0}
        for image, key in zip(marked, own, strict=True):
            top, ties, _ = slow_best(image, bank_keys, row.users - 1, key)
            mine = int((image == key).sum())
            counts["closed"] += mine > top
            if mine > top and mine >= tau:
                counts["correct"] += 1
            elif top > mine and ties == 1 and top >= tau:
                counts["wrong"] += 1
            else:
                counts["missed"] += 1
        for image in unmarked:
            top, ties, _ = slow_best(image, bank_keys, row.users)
            counts["false"] += top >= tau and ties == 1
        for name, count in counts.items():
            rate = getattr(row, name)
            assert rate.value == pytest.approx(count / (30 if name == "false" else 25))
    assert rows[0].closed is not None
    assert rows[0].closed.value == 1


def test_a_tie_names_nobody() -> None:
    own = np.array([[True, True, True, True]])
    others = np.array([[True, True, False, False], [False, False, True, True], [False, False, False, False]])
    read = np.array([[True, True, True, False]])
    rows = attribute(read, own, read, [2, 3], 0.99, bank=KeyBank.of(others))
    assert [(r.correct.value, r.wrong.value, r.missed.value, r.closed.value) for r in rows] == [(0, 0, 1, 0)] * 2
    # The unmarked image has 3 matches with the first key and 1 with the second.
    assert [row.false.value for row in rows] == [1, 1]
    mirrored = KeyBank.of(np.array([[True, True, False, False], [True, False, True, False]]))
    assert attribute(read, own, read, [2], 0.99, bank=mirrored)[0].false.value == 0


@pytest.mark.parametrize(("k", "share"), [(32, 0.2), (48, 0.25), (64, 0.3), (100, 0.35), (256, 0.4)])
def test_fair_coins_are_attributed_as_theory_says(k: int, share: float) -> None:
    own = coins(1, 1500, k)
    marked, unmarked = flipped(own, share, 2), coins(3, 1500, k)
    for row in attribute(marked, own, unmarked, [10, 300, 10_000], 0.05, level=0.9999):
        for rate, expected in (
            (row.closed, row.theory_closed),
            (row.correct, row.theory_correct),
            (row.false, row.theory_false),
        ):
            assert rate.low <= expected <= rate.high
        assert row.theory_false <= row.attained <= 0.05
        assert row.correct.value + row.wrong.value + row.missed.value == pytest.approx(1)
        assert not row.refused
        assert not row.note


def test_theory_is_exact_where_all_banks_can_be_tried() -> None:
    k, users = 3, 3
    keys = np.array(list(product([False, True], repeat=k)))
    own = keys[[0, 0, 0, 0]]
    marked = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=bool)
    row = attribute(marked, own, keys, [users], 0.9, bank=None)[0]
    wins = named = 0
    for a, b in product(range(1, 8), repeat=2):
        others = keys[[a, b]]
        wins += sum(
            (image == key).sum() > (others == image).sum(axis=1).max() for image, key in zip(marked, own, strict=True)
        )
    for bank in product(range(8), repeat=users):
        matches = (~keys[list(bank)]).sum(axis=1)
        named += int(matches.max() >= row.threshold and (matches == matches.max()).sum() == 1)
    assert row.theory_closed == pytest.approx(wins / 49 / 4, rel=1e-12)
    assert row.theory_false == pytest.approx(named / 8**users, rel=1e-12)


def test_theory_keeps_its_digits_among_ten_million_users() -> None:
    own = np.zeros((1, 48), bool)
    read = own.copy()
    read[0, :4] = True
    row = attribute(read, own, None, [1000], 1e-6)[0]
    lose = Fraction(sum(math.comb(48, i) for i in range(44, 49)) - 1, 2**48 - 1)
    assert row.theory_closed == pytest.approx(float((1 - lose) ** 999), rel=1e-14)
    assert row.false is None
    assert row.unmarked == 0


def test_what_the_bits_cannot_express_is_refused_in_words_and_the_rest_is_given() -> None:
    own = coins(0, 20, 16)
    few, many, beyond = attribute(own, own, own, [5, 1000, 100_000], 1e-3)
    assert (few.threshold, few.refused) == (16, "")
    assert many.threshold is None
    assert many.correct is None
    assert many.false is None
    assert many.closed is not None
    assert many.closed.value == 1
    assert math.isnan(many.attained)
    assert "16 bits cannot keep a family-wise FPR of 0.001 among 1000 users" in many.refused
    assert "use 20 bits or more" in many.refused
    assert beyond.closed is None
    assert beyond.refused == "16 bits make 65536 different keys, 100000 users need one each; use 17 bits or more"


def test_keys_of_a_run_are_each_others_users() -> None:
    keys = coins(0, 30, 48)
    own = keys[np.arange(90) % 30]
    bank = KeyBank.of(own).distinct()
    everyone, more = attribute(flipped(own, 0.1, 1), own, None, [30, 31], 1e-3, bank=bank)
    assert everyone.correct.value > 0.9
    assert everyone.note == "the bank was given; theory takes its keys to be random"
    assert more.refused == "the bank holds 30 keys, 31 users need as many; give a larger bank"
    repeated = attribute(own, own, None, [88, 89], 1e-3, bank=KeyBank.of(own))
    assert "58 of the 88 keys repeat another" in repeated[0].note
    assert "88 users need" not in repeated[0].refused
    assert repeated[1].refused == "the bank holds 87 keys besides the own key of some image, 89 users need 88"


def test_one_key_for_all_images_and_few_keys_are_noted() -> None:
    one, few = np.tile(coins(0, 1, 48), (50, 1)), np.tile(coins(0, 5, 48), (10, 1))
    assert "the key of the same user" in attribute(one, one, None, [10], 1e-3)[0].note
    assert "only 5 different keys" in attribute(few, few, None, [10], 1e-3)[0].note
    assert "detection of the image's own key" in attribute(coins(0, 50, 48), coins(0, 50, 48), None, [1], 1e-3)[0].note


def test_users_of_a_short_key_repeat_each_other() -> None:
    own = coins(0, 40, 8)
    row = attribute(own, own, None, [200], 0.9)[0]
    keys = unpack(KeyBank.random(200, 8, 0).keys(0, 200), 8)
    assert f"{200 - len(np.unique(keys, axis=0))} of the 200 keys repeat another" in row.note


def test_images_of_one_source_widen_the_interval() -> None:
    own = coins(0, 200, 48)
    marked = flipped(own, 0.2, 1)
    marked[::20], marked[1::20] = ~marked[::20], ~marked[1::20]
    alone = attribute(marked, own, marked, [100], 0.05)[0]
    together = attribute(
        marked, own, marked, [100], 0.05, marked_sources=np.arange(200) // 4, unmarked_sources=np.arange(200) // 4
    )[0]
    assert together.sources == 50
    assert together.false.sources == 50
    assert together.correct.value == alone.correct.value
    assert together.correct.high - together.correct.low > alone.correct.high - alone.correct.low


def test_attribution_depends_on_no_thread_and_on_the_seed_of_the_bank() -> None:
    own = coins(0, 300, 32)
    marked, unmarked = flipped(own, 0.3, 1), coins(2, 300, 32)
    first = attribute(marked, own, unmarked, [100, 5000], 0.5, threads=1)
    assert first == attribute(marked, own, unmarked, [100, 5000], 0.5, threads=3)
    assert first != attribute(marked, own, unmarked, [100, 5000], 0.5, seed=1)
    # A row does not depend on the other numbers of users asked for.
    assert first[0] == attribute(marked, own, unmarked, [100], 0.5)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"marked": np.zeros((0, 8), bool)}, r"marked must be bool \[n, k\] with at least one image"),
        ({"marked": np.zeros((4, 8))}, "marked must be bool"),
        ({"true_keys": np.zeros((4, 9), bool)}, r"true_keys must be bool \[4, 8\] as marked"),
        ({"unmarked": np.zeros((4, 9), bool)}, r"unmarked must be bool \[m, 8\]"),
        ({"users": []}, "no number of users"),
        ({"users": [10, 0]}, "0 users"),
        ({"users": [1.5]}, r"1.5 users"),
        ({"fpr": 0}, "family-wise FPR is 0"),
        ({"bank": KeyBank.random(10, 9, 0)}, "keys have 9 bits, the images 8"),
        ({"marked_sources": ["a"]}, "1 sources for 4 images"),
    ],
)
def test_input_that_cannot_be_attributed_is_one_clear_line(change: dict[str, object], message: str) -> None:
    given = {"marked": coins(0, 4, 8), "true_keys": coins(1, 4, 8), "unmarked": None, "users": [2], "fpr": 0.5}
    with pytest.raises(StatisticsError, match=message):
        attribute(**(given | change))  # type: ignore[arg-type]
