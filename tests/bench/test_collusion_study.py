"""Who is accused when users work together."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from waterproof.bench.collusion_study import OUTCOMES, accusation_table, study_collusion
from waterproof.bench.keys import colluders, key_word
from waterproof.bench.statistics.attribution import family_threshold
from waterproof.bench.summary import Decided, Sample
from waterproof.core.errors import StatisticsError

BITS, IMAGES = 48, 40


class Told:
    """A run whose bits a test dictates."""

    def __init__(self, read: np.ndarray, keys: np.ndarray, together: int, users: list[str] | None = None) -> None:
        self.methods = ["mark"]
        self.read, self.key_rows, self.users = read, keys, users
        attack = {"label": f"mix(users={together})", "name": "mix", "strength": "users", "value": float(together)}
        self.config: dict[str, Any] = {"attacks": [attack], "benchmark": {"seed": 3, "users": [10, 100]}}

    def about(self, _kind: str, _label: str) -> dict[str, Any]:
        return {"bits": self.read.shape[1], "users": self.users}

    def decision(self) -> Decided:
        return Decided(1e-3, "theory", "one", 0.95)

    def keys(self, _method: str, _images: list[str]) -> np.ndarray:
        return self.key_rows

    def sample(self, _method: str, _attack: str, _arm: str) -> Sample:
        names = np.array([f"image-{i}" for i in range(len(self.read))], dtype=object)
        logits = np.where(self.read, 1.0, -1.0).astype(np.float32)
        values = (self.read == self.key_rows).sum(axis=1).astype(float)
        all_of_them = np.ones(len(self.read), dtype=bool)
        return Sample(names, names, all_of_them, values, logits, BITS, len(names), 0, "ok", None)


def words(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (count, BITS)).astype(bool)


def study(run: Told, **options: Any) -> list[Any]:
    return study_collusion(cast("Any", run), "mark", **options)


def test_bits_that_are_the_owners_name_the_owner() -> None:
    keys = words(IMAGES)
    for row in study(Told(keys, keys, 2)):
        assert row.rates["colluder"].value == 1
        assert row.rates["innocent"].value == row.rates["nobody"].value == 0


def test_bits_of_another_colluder_name_a_colluder_and_not_an_innocent() -> None:
    keys = words(IMAGES)
    theirs = np.array([[b == "1" for b in colluders(3, key_word(key), 1)[0]] for key in keys])
    for row in study(Told(theirs, keys, 2)):
        assert row.rates["colluder"].value == 1


def test_bits_of_a_user_who_took_no_part_name_an_innocent() -> None:
    users = [key_word(key) for key in words(10)]
    keys = np.array([[b == "1" for b in users[0]]] * IMAGES)
    guilty = {users[0], *colluders(3, users[0], 2, users)}
    victim = next(user for user in users if user not in guilty)
    read = np.array([[b == "1" for b in victim]] * IMAGES)
    for row in study(Told(read, keys, 3, users)):
        assert row.rates["innocent"].value == 1


def test_random_bits_name_nobody() -> None:
    assert all(row.rates["nobody"].value > 0.9 for row in study(Told(words(IMAGES, 1), words(IMAGES), 2)))


def test_outcomes_add_up_and_thresholds_are_those_of_attribution() -> None:
    rng = np.random.default_rng(5)
    keys = words(IMAGES)
    rows = study(Told(keys ^ (rng.random(keys.shape) < 0.2), keys, 2))
    assert [row.users for row in rows] == [10, 100]
    for row in rows:
        assert sum(row.rates[outcome].value for outcome in OUTCOMES) == pytest.approx(1)
        assert row.threshold == family_threshold(BITS, row.users, 1e-3)
        assert all(0 <= rate.low <= rate.value <= rate.high <= 1 for rate in row.rates.values())


def test_a_tie_between_a_colluder_and_an_innocent_names_nobody() -> None:
    users = [key_word(key) for key in words(10)]
    guilty = [users[0], *colluders(3, users[0], 1, users)]
    victim = next(user for user in users if user not in guilty)
    first, second = (np.array([b == "1" for b in word]) for word in (users[0], victim))
    differ = np.flatnonzero(first != second)
    half = first.copy()
    half[differ[: len(differ) // 2]] = second[differ[: len(differ) // 2]]
    even = len(differ) % 2 == 0
    (row, _) = study(Told(half[None], first[None], 2, users), fpr=0.99)
    assert (row.rates["nobody"].value == 1) if even else (row.rates["nobody"].value in (0, 1))


def test_more_colluders_than_users_asked_for_widen_the_search() -> None:
    keys = words(4)
    assert [row.users for row in study(Told(keys, keys, 50), users=[10, 100])] == [50, 100]


def test_the_table_has_a_row_for_each_attack_and_number_of_users() -> None:
    keys = words(IMAGES)
    table = accusation_table(cast("Any", Told(keys, keys, 2)))
    assert list(table["users"]) == [10, 100]
    assert {f"{outcome}{end}" for outcome in OUTCOMES for end in ("", "_low", "_high")} <= set(table.columns)
    assert table["best_match"].tolist() == [1.0, 1.0]


def test_a_mark_without_payload_is_refused() -> None:
    run = Told(np.zeros((3, 0), bool), np.zeros((3, 0), bool), 2)
    with pytest.raises(StatisticsError, match="no payload"):
        study(run)
    assert accusation_table(cast("Any", run)).empty
