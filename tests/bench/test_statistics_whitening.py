"""Whitening of decoder logits: against linear algebra written down, and on marks that exist."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from waterproof.bench.statistics.whitening import Whitening, null_before_after
from waterproof.core.errors import StatisticsError


def unmarked(n: int, k: int = 16, seed: int = 0) -> np.ndarray:
    """Logits with a common part, unequal scales and shifted centres, as those of a DWT decoder."""
    draws = np.random.default_rng(seed)
    common = draws.standard_normal((n, 1)) * np.linspace(0.5, 1.5, k)
    return (common + draws.standard_normal((n, k))) * np.linspace(0.2, 3, k) + np.linspace(-1, 0.5, k)


@pytest.mark.parametrize("rotation", ["zca", "pca"])
def test_calibration_logits_become_uncorrelated_with_the_stated_scale(rotation: str) -> None:
    logits = unmarked(2000)
    found = Whitening.fit(logits, None, rotation, "mean", scale=2.5, shrinkage=0.0, floor=0.0)
    white = found.apply(logits)
    assert np.cov(white.T, bias=True) == pytest.approx(6.25 * np.eye(16), abs=1e-9)
    assert white.mean(axis=0) == pytest.approx(np.zeros(16), abs=1e-9)
    assert (found.floored, found.stuck, found.shrinkage, found.sources) == (0, (), 0.0, 2000)


def test_zca_is_the_inverse_square_root_of_the_shrunk_covariance() -> None:
    logits = unmarked(200)
    found = Whitening.fit(logits, None, floor=0.0)
    covariance, shrinkage = ledoit_wolf(logits)
    assert found.shrinkage == pytest.approx(shrinkage)
    assert found.matrix @ covariance @ found.matrix == pytest.approx(np.eye(16), abs=1e-9)
    assert found.matrix == pytest.approx(found.matrix.T, abs=1e-12)
    assert np.linalg.eigvalsh(found.matrix).min() > 0


def test_pca_sorts_its_bits_by_variance_and_zca_turns_them_back() -> None:
    logits = unmarked(500)
    pca, zca = (Whitening.fit(logits, None, rotation, "mean") for rotation in ("pca", "zca"))
    lengths = np.linalg.norm(pca.matrix, axis=1)
    assert (np.diff(lengths) > 0).all()
    turn = zca.matrix @ np.linalg.inv(pca.matrix)
    assert turn @ turn.T == pytest.approx(np.eye(16), abs=1e-8)


def test_the_median_makes_skewed_bits_fair_where_the_mean_does_not() -> None:
    logits = np.random.default_rng(1).exponential(size=(1000, 8)) - 2
    fair = (Whitening.fit(logits, None).apply(logits) > 0).mean(axis=0)
    assert fair == pytest.approx(np.full(8, 0.5), abs=1e-3)
    mean = (Whitening.fit(logits, None, centre="mean").apply(logits) > 0).mean(axis=0)
    assert (mean < 0.45).all()


def test_zca_keeps_the_meaning_of_the_bits_of_marks_that_exist_and_pca_does_not() -> None:
    draws = np.random.default_rng(2)
    keys = draws.random((300, 16)) < 0.5
    marked = unmarked(300, seed=3) + np.linspace(0.2, 3, 16) * np.where(keys, 2.0, -2.0)
    right = {r: (Whitening.fit(unmarked(2000), None, r).apply(marked) > 0) == keys for r in ("zca", "pca")}
    assert right["zca"].mean() > 0.95
    assert right["zca"].mean() > ((marked > 0) == keys).mean() + 0.05
    assert right["pca"].mean() < 0.7


def test_a_flat_direction_is_floored_and_not_blown_up() -> None:
    logits = unmarked(400)
    logits[:, 5] = logits[:, 4] + 1e-9 * np.random.default_rng(4).standard_normal(400)
    found = Whitening.fit(logits, None, shrinkage=0.0, floor=1e-3)
    assert found.floored >= 1
    assert np.abs(found.apply(logits)).max() < 20
    # Without the floor the difference of the two bits, mere noise, weighs as much as anything.
    logits[:, 5] = logits[:, 4] + 1e-4 * np.random.default_rng(4).standard_normal(400)
    bare = Whitening.fit(logits, None, shrinkage=0.0, floor=0.0)
    assert bare.floored == 0
    assert np.abs(bare.matrix).max() > 100 * np.abs(found.matrix).max()


@pytest.mark.parametrize("rotation", ["zca", "pca"])
def test_a_bit_that_never_changes_passes_as_it_is(rotation: str) -> None:
    logits = unmarked(400)
    logits[:, 7] = -0.25
    found = Whitening.fit(logits, None, rotation)
    assert found.stuck == (7,)
    assert (found.apply(logits)[:, 7] == -0.25).all()
    others = np.delete(np.arange(16), 7)
    alone = Whitening.fit(logits[:, others], None, rotation)
    assert found.apply(logits)[:, others] == pytest.approx(alone.apply(logits[:, others]), abs=1e-9)


def test_one_image_of_each_source_counts() -> None:
    logits, sources = np.repeat(unmarked(100), 3, axis=0), np.repeat(np.arange(100), 3)
    found = Whitening.fit(logits, sources)
    assert (found.n, found.sources) == (300, 100)
    assert found.digest == Whitening.fit(unmarked(100), None).digest


def test_the_digest_names_what_apply_does() -> None:
    logits = unmarked(300)
    found = Whitening.fit(logits, None)
    assert found.digest == Whitening.fit(logits, None).digest
    assert len(found.digest) == 64
    others = (
        Whitening.fit(logits[:-1], None),
        Whitening.fit(logits, None, "pca"),
        Whitening.fit(logits, None, centre="mean"),
        Whitening.fit(logits, None, scale=2.0),
        Whitening.fit(logits, None, shrinkage=0.5),
    )
    assert len({found.digest, *(other.digest for other in others)}) == 6


def test_a_fitted_whitening_cannot_be_changed() -> None:
    found = Whitening.fit(unmarked(100), None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.scale = 2.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        found.matrix[0, 0] = 1.0


def test_the_null_of_other_images_gets_better() -> None:
    logits = unmarked(4400)
    key = np.arange(16) % 2 == 0
    before, after, whitening = null_before_after(logits[:4000], None, logits[4000:], None, key, 1e-2)
    assert not before.holds
    assert after.holds
    assert (before.n, after.n, whitening.n) == (400, 400, 4000)
    assert after.effective_bits > before.effective_bits + 4
    assert after.worst_bias < before.worst_bias / 2


def test_a_source_on_both_sides_is_refused() -> None:
    logits = unmarked(100)
    with pytest.raises(StatisticsError, match="1 sources are among the calibration and the test images"):
        null_before_after(
            logits[:60], list(range(60)), logits[60:], ["59", *[None] * 39], np.ones(16, dtype=bool), 0.01
        )


@pytest.mark.parametrize(
    ("logits", "arguments", "message"),
    [
        (unmarked(31), {}, "at least 32 sources, there are 31; 160 make it good"),
        (np.repeat(unmarked(20), 3, axis=0), {"sources": np.repeat(np.arange(20), 3)}, "there are 20"),
        (np.full((40, 16), np.nan), {}, "NaN or infinity"),
        (np.ones((40, 16), dtype=bool), {}, "floating point"),
        (np.ones(16), {}, r"\[n, k\]"),
        (unmarked(40), {"rotation": "cholesky"}, "rotation is 'cholesky'; it must be 'zca' or 'pca'"),
        (unmarked(40), {"centre": "mode"}, "centre is 'mode'; it must be 'median' or 'mean'"),
        (unmarked(40), {"scale": 0.0}, "scale is 0; it must be above 0"),
        (unmarked(40), {"shrinkage": 1.5}, "shrinkage is 1.5; it must lie in 0..1"),
        (unmarked(40), {"floor": -0.1}, "floor is -0.1; it must lie in 0..1"),
        (unmarked(80)[:, [*range(15), 3]], {"rotation": "pca"}, "the 16 logits that change follow from 15 of them"),
        (unmarked(80)[:, [*range(15), 3]], {"shrinkage": 0.0, "floor": 0.0}, "set a floor or a shrinkage above 0"),
    ],
)
def test_what_cannot_be_whitened_is_refused(logits, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        Whitening.fit(logits, **({"sources": None} | arguments))


def test_logits_of_another_payload_are_refused() -> None:
    with pytest.raises(StatisticsError, match="there are 8 logits for each image; the whitening was fitted to 16"):
        Whitening.fit(unmarked(100), None).apply(np.zeros((3, 8)))
