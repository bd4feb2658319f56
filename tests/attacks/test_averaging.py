"""Averaging, forgery and collusion: the arithmetic against plain NumPy, and which marks it can find at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from skimage import data

from waterproof.attacks.averaging import Averaging, Collusion, Forgery
from waterproof.attacks.base import Access
from waterproof.core.errors import ContractError
from waterproof.core.images import Images, Record
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from waterproof.attacks.averaging import _MeanResidual

SEED = Seed.root(4)
SIDE = 64
TIE = 1e-4
"""Float32 may round half a grey level up or down; anything further off is another value."""


def named(pixels: np.ndarray, what: str = "image") -> Images:
    return Images.from_numpy(pixels.astype(np.uint8), [Record(f"{what} {i}") for i in range(len(pixels))])


def signs(side: int = SIDE) -> np.ndarray:
    """A mark that is alike in every image: -3 or 3 grey levels in each value."""
    return np.where(Seed.root(1).numpy().random((side, side, 3)) < 0.5, -3, 3)


@pytest.fixture(scope="module")
def crops(photographs: Images) -> np.ndarray:
    """Twelve pieces of six photographs, no value within 10 of black or white: uint8 ``[12, 64, 64, 3]``."""
    pictures = [*photographs.numpy(), data.rocket(), data.retina()[500:900, 500:900], data.hubble_deep_field()]
    pieces = [picture[y : y + SIDE, 60 : 60 + SIDE] for picture in pictures for y in (30, 120)]
    return np.clip(np.stack(pieces), 10, 245)


def first(pictures: np.ndarray, what: str = "image") -> Callable[[int], Images]:
    return lambda count: named(pictures[:count], what)


def holding(marked: np.ndarray, plain: np.ndarray) -> Access:
    return Access(samples=first(marked), counterparts=first(plain), clean=first(plain))


def residual(attack: _MeanResidual, access: Access) -> np.ndarray:
    """The estimate as ``[H, W, 3]``."""
    found = attack.mean_residual(access.only_for(attack))
    assert found.dtype == torch.float32
    return found.permute(1, 2, 0).numpy()


def smoothed(picture: np.ndarray) -> np.ndarray:
    """The 3 x 3 Gaussian of binomial weights, the border mirrored without being repeated, value by value."""
    padded = np.pad(picture.astype(np.float64), ((1, 1), (1, 1), (0, 0)), mode="reflect")
    height, width = picture.shape[:2]
    total = np.zeros(picture.shape)
    for dy, down in enumerate((0.25, 0.5, 0.25)):
        for dx, across in enumerate((0.25, 0.5, 0.25)):
            total += down * across * padded[dy : dy + height, dx : dx + width]
    return total


# The mean residual --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("estimate", ["pairs", "clean", "smooth"])
def test_the_estimate_is_the_mean_of_the_residuals(crops: np.ndarray, estimate: Any, count: int) -> None:
    rng = np.random.default_rng(3)
    marked = np.clip(crops + rng.integers(-6, 7, crops.shape), 0, 255)
    total = np.zeros(crops.shape[1:])
    for i in range(count):
        mine = marked[i].astype(np.float64)
        if estimate == "pairs":
            total += mine - crops[i]
        elif estimate == "clean":
            total += mine - crops[count + i]
        else:
            total += mine - smoothed(mine)
    found = residual(Averaging(images=count, estimate=estimate), holding(marked, crops))
    np.testing.assert_allclose(found, total / count, atol=1e-4)


@pytest.mark.parametrize("estimate", ["pairs", "clean", "smooth"])
def test_exactly_as_many_images_are_used_as_the_strength_says(crops: np.ndarray, estimate: Any) -> None:
    asked: list[tuple[str, int]] = []

    def counted(what: str, pictures: np.ndarray) -> Callable[[int], Images]:
        def handle(count: int) -> Images:
            asked.append((what, count))
            return named(pictures[:count])

        return handle

    access = Access(
        samples=counted("marked", crops), counterparts=counted("pairs", crops), clean=counted("clean", crops)
    )
    attack = Averaging(images=4, estimate=estimate)
    attack.prepare(access.only_for(attack))
    more = {"pairs": [("pairs", 4)], "clean": [("clean", 8)], "smooth": []}[estimate]
    assert asked == [("marked", 4), *more]


def test_clean_images_are_those_after_the_marked_ones(crops: np.ndarray) -> None:
    """The first ones are the marked images' own counterparts, which this adversary must not see."""
    spoilt = crops.copy()
    spoilt[:3] = 0
    attack = Averaging(images=3, estimate="clean")
    before = residual(attack, holding(crops, crops))
    np.testing.assert_array_equal(residual(attack, holding(crops, spoilt)), before)
    spoilt[5] = 0
    assert not np.array_equal(residual(attack, holding(crops, spoilt)), before)


def test_the_adversary_holds_what_the_estimate_needs() -> None:
    kinds = [Averaging(images=7, estimate=estimate) for estimate in ("pairs", "clean", "smooth")]
    assert [attack.holdings for attack in kinds] == [7, 14, 7]
    assert [sorted(attack.knowledge) for attack in kinds] == [
        ["marked-samples", "unmarked-counterparts"],
        ["clean-images", "marked-samples"],
        ["marked-samples"],
    ]
    assert Collusion(users=5).holdings == 0
    assert (Collusion(users=5).colluders, Averaging().colluders) == (5, 1)


# Taken away, put on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.3, 2.5])
@pytest.mark.parametrize(("kind", "sign"), [(Averaging, -1), (Forgery, 1)])
def test_the_estimate_is_taken_away_or_added_and_the_result_rounded_and_clipped(
    kind: type[_MeanResidual], sign: int, scale: float, crops: np.ndarray
) -> None:
    rng = np.random.default_rng(5)
    marked = np.clip(crops + rng.integers(-40, 41, crops.shape), 0, 255)
    attack = kind(images=3, scale=scale)
    victims = named(crops[6:], "victim")
    result = attack.prepare(holding(marked, crops).only_for(attack)).apply(victims, SEED)
    mean = np.mean([marked[i].astype(np.float64) - crops[i] for i in range(3)], axis=0)
    exact = np.clip(crops[6:] + sign * scale * mean, 0, 255)
    assert result.ids == victims.ids
    assert np.abs(result.numpy() - exact).max() <= 0.5 + TIE


def test_a_mark_that_is_alike_in_every_image_is_removed_and_forged(crops: np.ndarray) -> None:
    mark = signs()
    access = holding(crops[:4] + mark, crops[:4])
    fresh = crops[8:]
    removed = Averaging(images=4).prepare(access).apply(named(fresh + mark), SEED)
    np.testing.assert_array_equal(removed.numpy(), fresh)
    forged = Forgery(images=4).prepare(access).apply(named(fresh), SEED)
    np.testing.assert_array_equal(forged.numpy(), fresh + mark)


def test_half_the_scale_removes_half_the_mark(crops: np.ndarray) -> None:
    mark = 2 * signs()
    attack = Averaging(images=4, scale=0.5).prepare(holding(crops[:4] + mark, crops[:4]))
    np.testing.assert_array_equal(attack.apply(named(crops[8:] + mark), SEED).numpy(), crops[8:] + mark // 2)


def test_a_mark_that_follows_the_content_averages_out_with_the_root_of_the_number() -> None:
    side, count = 32, 400
    rng = np.random.default_rng(11)
    plain = rng.integers(10, 246, (count, side, side, 3))
    # The signs are a function of the picture, as those of a mark that hides in texture are.
    follows = [3 * Seed.root(0).child(p.tobytes().hex()).numpy().choice([-1, 1], p.shape) for p in plain]
    access = holding(plain + np.stack(follows), plain)
    for n in (1, 4, 25, 100, 400):
        found = residual(Averaging(images=n), access)
        # 3072 independent values: the standard error of their deviation is 1.3 %, that of their mean 1/55 of it.
        deviation = 3 / np.sqrt(n)
        assert abs(found.std() / deviation - 1) < 0.06
        assert abs(found.mean()) < 4 * deviation / np.sqrt(found.size)


def test_the_fixed_part_of_a_mark_stays_when_the_rest_averages_out() -> None:
    side, count = 32, 200
    rng = np.random.default_rng(12)
    plain = rng.integers(60, 190, (count, side, side, 3))
    marked = plain + signs(side) + rng.integers(-20, 21, plain.shape)
    errors = [
        np.sqrt(np.mean((residual(Forgery(images=n), holding(marked, plain)) - signs(side)) ** 2)) for n in (2, 200)
    ]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("kind", [Averaging, Forgery])
def test_preparing_leaves_the_attack_as_it_was(kind: type[_MeanResidual], crops: np.ndarray) -> None:
    attack = kind(images=2)
    prepared = attack.prepare(holding(crops, crops))
    assert prepared.spec().id == attack.spec().id
    with pytest.raises(ContractError, match=r"\(images=2\) was not prepared: it needs marked images"):
        attack.apply(named(crops), SEED)


def test_marked_images_of_another_size_are_refused_with_both_sizes(crops: np.ndarray) -> None:
    attack = Averaging(images=2).prepare(holding(crops, crops))
    with pytest.raises(ContractError) as caught:
        attack.apply(named(crops[:, :48, :40]), SEED)
    assert "the marked images have 64 x 64 pixels, the attacked ones 48 x 40: give both datasets one size" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("attack", "access", "says"),
    [
        (Averaging(images=1), Access(), "averaging(images=1) was not given its samples"),
        (Averaging(images=1), Access(samples=first(np.zeros((1, 8, 8, 3)))), "was not given its pairs"),
        (Collusion(), Access(), "collusion(users=3) was not given its copies"),
    ],
)
def test_a_missing_handle_is_named(attack: Averaging | Collusion, access: Access, says: str) -> None:
    with pytest.raises(ContractError) as caught:
        attack.prepare(access)
    assert says in str(caught.value)


# Copies of many users -----------------------------------------------------------------------------------------------


def copies_of(crops: np.ndarray, users: int) -> np.ndarray:
    """The copy of each user: ``[users, 12, 64, 64, 3]``."""
    rng = np.random.default_rng(6)
    return np.clip(crops + rng.integers(-9, 10, (users, *crops.shape)), 0, 255)


def mixed(attack: Collusion, copies: Sequence[np.ndarray] | np.ndarray, seed: Seed = SEED) -> np.ndarray:
    access = Access(copies=lambda count: [named(copy) for copy in copies[:count]])
    return attack.prepare(access.only_for(attack)).apply(named(copies[0]), seed).numpy()


@pytest.mark.parametrize("users", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("how", ["mean", "median"])
def test_copies_are_mixed_value_by_value(how: Any, users: int, crops: np.ndarray) -> None:
    copies = copies_of(crops, 7)
    exact = getattr(np, how)(copies[:users].astype(np.float64), axis=0)
    assert np.abs(mixed(Collusion(users=users, how=how), copies) - exact).max() <= 0.5 + TIE


@pytest.mark.parametrize("how", ["mean", "median", "paste"])
def test_one_user_alone_gets_the_image_as_it_is(how: Any, crops: np.ndarray) -> None:
    copies = copies_of(crops, 3)
    np.testing.assert_array_equal(mixed(Collusion(users=1, how=how), copies), copies[0])


@pytest.mark.parametrize("how", ["mean", "median", "paste"])
def test_equal_copies_give_themselves(how: Any, crops: np.ndarray) -> None:
    np.testing.assert_array_equal(mixed(Collusion(users=3, how=how), [crops, crops, crops]), crops)


@pytest.mark.parametrize(
    ("size", "tile", "least"), [((64, 64), 16, 5), ((70, 45), 32, 3), ((20, 20), 64, 1), ((9, 7), 1, 5)]
)
def test_paste_takes_whole_squares_each_from_one_user(size: tuple[int, int], tile: int, least: int) -> None:
    users = 5
    flat = np.stack([np.full((2, *size, 3), 40 * user + 10) for user in range(users)])
    result = mixed(Collusion(users=users, how="paste", tile=tile), flat)
    seen = set()
    for picture in result:
        for y in range(0, size[0], tile):
            for x in range(0, size[1], tile):
                values = set(np.unique(picture[y : y + tile, x : x + tile]))
                assert len(values) == 1
                seen |= values
    assert seen <= {10, 50, 90, 130, 170}
    assert len(seen) >= least


def test_every_pasted_pixel_is_one_users_at_its_own_place(crops: np.ndarray) -> None:
    copies = copies_of(crops, 3)
    result = mixed(Collusion(users=3, how="paste", tile=8), copies)
    owners = (result[None] == copies).all(axis=-1)
    assert owners.any(axis=0).all()
    shares = owners.mean(axis=(1, 2, 3))
    # 768 squares: each user has a third of them, give or take 1.7 points; few pixels are two users' at once.
    assert np.abs(shares - 1 / 3).max() < 0.08


def test_paste_draws_from_the_image_and_the_seed_and_from_nothing_else(crops: np.ndarray) -> None:
    attack = Collusion(users=3, how="paste", tile=8)
    copies = copies_of(crops, 3)
    together = mixed(attack, copies)
    access = Access(copies=lambda count: [named(copy).take([7, 2]) for copy in copies[:count]])
    alone = attack.prepare(access).apply(named(copies[0]).take([7, 2]), SEED).numpy()
    np.testing.assert_array_equal(alone, together[[7, 2]])
    assert not np.array_equal(mixed(attack, copies, Seed.root(5)), together)
    assert (attack.seeded, Collusion(how="mean").seeded) == (True, False)


def test_colluding_averages_independent_marks_away(crops: np.ndarray) -> None:
    """Each mark is left with a c-th of itself, and the others' add noise that falls with the root of c."""
    rng = np.random.default_rng(8)
    marks = 6 * rng.choice([-1, 1], (10, 1, SIDE, SIDE, 3))
    copies = crops[None] + marks
    for users in (2, 5, 10):
        left = mixed(Collusion(users=users), copies) - crops.astype(float)
        share = float((left * marks[0]).mean() / 36)
        # 12288 values: the standard error of the share is at most 0.009.
        assert share == pytest.approx(1 / users, abs=0.03)
