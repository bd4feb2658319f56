"""Who is accused when users work together: one of them, an innocent, or nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..core.errors import StatisticsError
from .keys import colluders, key_word
from .statistics.attribution import family_threshold
from .statistics.intervals import proportion
from .statistics.matching import KeyBank, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .results import Run
    from .statistics.intervals import Rate

OUTCOMES = ("colluder", "innocent", "nobody")
"""Who is named: somebody who took part, somebody who did not, or nobody."""

USERS = (10, 1000)
"""Users among whom is searched, where the benchmark does not say."""


@dataclass(frozen=True, slots=True)
class Accusations:
    """Who is named under one attack among N users.

    Attributes:
        attack: label.
        together: users who worked together, the owner of the image's key among them.
        users: users among whom is searched.
        threshold: matching bits from which a user may be named.
        images: marked test images.
        sources: sources among them.
        rates: share of the images by outcome.
        best: mean share of matching bits of the user who matches most.
    """

    attack: str
    together: int
    users: int
    threshold: int
    images: int
    sources: int
    rates: dict[str, Rate]
    best: float


def colluding(run: Run) -> list[dict[str, Any]]:
    """The attacks of a run in which users work together, as its configuration has them."""
    return [a for a in run.config["attacks"] if a["strength"] == "users"]


def study_collusion(
    run: Run, method: str, users: Sequence[int] | None = None, fpr: float | None = None
) -> list[Accusations]:
    """Attributes the test images of every attack in which users work together.

    Named is the user with most matching bits, if these reach the threshold of :func:`.attribution.family_threshold`; a
    tie between a colluder and an innocent names nobody. Searched are the colluders, the method's other users, and
    random keys.

    Args:
        run: the run.
        method: label of a method with a payload.
        users: numbers of users to search; None takes the benchmark's, else :data:`USERS`.
        fpr: family-wise FPR; None takes the run's.

    Raises:
        StatisticsError: no payload, or so few bits that no threshold keeps the FPR.
    """
    bits = int(run.about("method", method)["bits"])
    if not bits:
        raise StatisticsError(f"{method} has no payload: it cannot tell users apart")
    decided = run.decision()
    asked = users or run.config["benchmark"].get("users") or USERS
    found = []
    for attack in colluding(run):
        sample = run.sample(method, attack["label"], "marked")
        if sample.logits is None or not sample.test.any():
            continue
        read = (sample.logits > 0)[sample.test]
        keys = run.keys(method, list(sample.images))[sample.test]
        together = int(attack["value"])
        for count in sorted({max(n, together) for n in asked}):
            limit = family_threshold(bits, count, decided.fpr if fpr is None else fpr)
            best, named = _named(run, method, read, keys, together, count, limit)
            sources = sample.sources[sample.test]
            rates = {o: proportion(named == o, sources, level=decided.level) for o in OUTCOMES}
            place = (attack["label"], together, count, limit, len(read), len(set(sources)))
            found.append(Accusations(*place, rates, float(best.mean() / bits)))
    return found


def _named(
    run: Run, method: str, read: np.ndarray, keys: np.ndarray, together: int, count: int, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """The most matching bits, and who is named, for each image."""
    own, seed = run.about("method", method).get("users"), int(run.config["benchmark"]["seed"])
    best, named = [], []
    for bits, key in zip(read, keys, strict=True):
        word = key_word(key)
        guilty = [word, *colluders(seed, word, together - 1, own)]
        others = [user for user in own or () if user not in guilty][: count - together]
        more = _bystanders(len(key), count - together - len(others), seed)
        matches = [_matches(bits, np.array([[b == "1" for b in w] for w in words])) for words in (guilty, others)]
        inside, outside = matches[0].max(), max([*matches[1], *_matches(bits, more)], default=-1)
        best.append(max(inside, outside))
        tie = inside == outside or best[-1] < limit
        named.append("nobody" if tie else "colluder" if inside > outside else "innocent")
    return np.array(best), np.array(named)


def _bystanders(bits: int, count: int, seed: int) -> np.ndarray:
    """Random keys ``[count, bits]``, the same for every image."""
    if count < 1:
        return np.zeros((0, bits), dtype=bool)
    drawn: np.ndarray = unpack(KeyBank.random(count, bits, seed).keys(0, count), bits)
    return drawn


def _matches(bits: np.ndarray, keys: np.ndarray) -> np.ndarray:
    counts: np.ndarray = (keys.reshape(-1, len(bits)) == bits).sum(axis=1)
    return counts


def accusation_table(run: Run, fpr: float | None = None) -> pd.DataFrame:
    """One row for each method, attack and number of users: who is named, with intervals."""
    rows = []
    for method in run.methods:
        try:
            studied = study_collusion(run, method, fpr=fpr)
        except StatisticsError:
            continue
        for one in studied:
            row: dict[str, Any] = {"method": method, "attack": one.attack, "together": one.together}
            row |= {"users": one.users, "threshold": one.threshold, "images": one.images, "sources": one.sources}
            for outcome, rate in one.rates.items():
                row |= {outcome: rate.value, f"{outcome}_low": rate.low, f"{outcome}_high": rate.high}
            rows.append({**row, "best_match": one.best})
    return pd.DataFrame(rows)
