"""Purifiers by diffusion: the published steps, tile by tile, and nothing that depends on the batch."""

from __future__ import annotations

import json
import pickle
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from waterproof.attacks import pixel_diffusion
from waterproof.attacks.pixel_diffusion import DiffPure, GrIDPure
from waterproof.core.components import build
from waterproof.core.errors import ImageError, SpecError, UserError
from waterproof.core.images import Images, Record
from waterproof.core.pixel_diffusion import PixelDiffusion, load_pixel_diffusion
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SEED = Seed.root(5)
SD = 0.5


def kept() -> np.ndarray:
    """Alpha bar of the usual schedule, from time 0."""
    return np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])


class Best:
    """The best network where pixels are independent normal values, in place of a trained one; counts its calls."""

    config = SimpleNamespace(block_out_channels=(1, 1))

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[int, ...]]] = []

    def eval(self) -> Best:
        return self

    def requires_grad_(self, wanted: bool) -> Best:
        return self

    def __call__(self, values: torch.Tensor, time: int) -> SimpleNamespace:
        self.calls.append((time, tuple(values.shape)))
        share = float(kept()[time + 1])
        return SimpleNamespace(sample=values * (1 - share) ** 0.5 / (share * SD**2 + 1 - share))


@pytest.fixture
def best(monkeypatch: pytest.MonkeyPatch) -> Best:
    """Puts that network in the place of the shipped model: blocks of 2 x 2 pixels, sides multiples of 4."""
    network = Best()
    model = PixelDiffusion(network, {"num_train_timesteps": 1000}, 2, "best", "0" * 64)
    monkeypatch.setattr(pixel_diffusion, "load_pixel_diffusion", lambda source: {"shipped": model}[source])
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, as the training saves it."""
    import diffusers

    path = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        diffusers.UNet2DModel(
            sample_size=8, in_channels=12, out_channels=12, block_out_channels=(8, 16), layers_per_block=1,
            norm_num_groups=4, add_attention=False, down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        ).save_pretrained(path / "unet")  # fmt: skip
    diffusers.DDIMScheduler(prediction_type="v_prediction").save_pretrained(path / "scheduler")
    (path / "model_index.json").write_text(json.dumps({"_class_name": "PixelDiffusion", "patch": 2}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def small(photographs: Images) -> Images:
    """Three pieces of photographs, 39 x 50: no side is a multiple of 4."""
    return photographs.with_pixels(photographs.numpy()[:, 100:139, 90:140].copy())


# DiffPure -----------------------------------------------------------------------------------------------------------


def purified_by_hand(pixels: np.ndarray, draws: torch.Generator, time: int, steps: int, ancestral: bool) -> np.ndarray:
    """The attack on one picture in double precision: what the best network sees is what the formula gives."""
    high, wide = pixels.shape[:2]
    mirrored = np.pad(pixels, ((0, -high % 4), (0, -wide % 4), (0, 0)), mode="reflect")
    x0 = mirrored.astype(float).transpose(2, 0, 1)[None] / 127.5 - 1
    shares = kept()

    def noise() -> np.ndarray:
        return torch.randn(x0.shape, generator=draws).double().numpy()

    x = np.sqrt(shares[time]) * x0 + np.sqrt(1 - shares[time]) * noise()
    for i in range(steps, 0, -1):
        t, s = time * i // steps, time * (i - 1) // steps
        raw = np.sqrt(shares[t]) * SD**2 * x / (shares[t] * SD**2 + 1 - shares[t])
        error, image = (x - np.sqrt(shares[t]) * raw) / np.sqrt(1 - shares[t]), np.clip(raw, -1, 1)
        if ancestral:
            beta = 1 - shares[t] / shares[s]
            mean = np.sqrt(shares[s]) * beta * image + np.sqrt(1 - beta) * (1 - shares[s]) * x
            x = mean / (1 - shares[t])
            x = x + np.sqrt(beta * (1 - shares[s]) / (1 - shares[t])) * noise() if s else x
        else:
            x = np.sqrt(shares[s]) * image + np.sqrt(1 - shares[s]) * error
    return np.asarray((x[0, :, :high, :wide].transpose(1, 2, 0) + 1) * 127.5).clip(0, 255)


@pytest.mark.parametrize(("level", "steps"), [(0.05, None), (0.15, 20), (0.3, 7)])
@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_diffpure_is_noise_and_the_way_back(
    best: Best, small: Images, solver: Any, level: float, steps: int | None
) -> None:
    found = DiffPure(level=level, steps=steps, solver=solver).apply(small, SEED).numpy()
    time = round(1000 * level)
    assert len(best.calls) == 3 * (steps or time)
    assert set(best.calls[0][1]) == {1, 12, 20, 26}
    for (record, pixels), purified in zip(small, found, strict=True):
        draws = SEED.child(record.id).torch()
        wanted = purified_by_hand(pixels, draws, time, steps or time, solver == "ancestral")
        assert float(np.abs(purified - wanted).max()) < 0.51
    assert float(np.abs(found.astype(float) - small.numpy()).mean()) > 2


def test_steps_are_at_most_one_for_each_noised_step(best: Best, small: Images) -> None:
    one = small.take([0])
    for steps, count in ((None, 12), (500, 12), (5, 5)):
        best.calls.clear()
        DiffPure(level=0.012, steps=steps).apply(one, SEED)
        assert len(best.calls) == count


def test_a_higher_level_harms_more_and_none_harms_nothing(best: Best, small: Images) -> None:
    def error(attack: DiffPure) -> float:
        return float(np.mean((attack.apply(small, SEED).numpy().astype(float) - small.numpy()) ** 2))

    for solver in ("ancestral", "ddim"):
        errors = [error(DiffPure(level=level, solver=solver, steps=5)) for level in (0.0, *DiffPure.strengths)]
        assert errors[0] == 0
        assert errors == sorted(set(errors))


# GrIDPure -----------------------------------------------------------------------------------------------------------


def starts_by_hand(length: int, side: int) -> list[int]:
    """As the published loop finds them: every pixel is asked whether a tile begins there."""
    found = [x for x in range(length) if (x - side) % (side // 2) == 0 and x <= length - side]
    return found if length - side in found else [*found, length - side]


def round_by_hand(x: np.ndarray, side: int, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """One round on ``[H, W, 3]`` as the published code cuts and merges, for images of a tile or more."""
    total, count = np.zeros_like(x), np.zeros(x.shape[:2])
    for top in starts_by_hand(x.shape[0], side):
        for left in starts_by_hand(x.shape[1], side):
            total[top : top + side, left : left + side] += change(x[top : top + side, left : left + side])
            count[top : top + side, left : left + side] += 1
    half = side // 2
    whole = np.block([[[x[:half, :half]], [x[:half, -half:]]], [[x[-half:, :half]], [x[-half:, -half:]]]])
    changed = change(whole)
    for rows in (slice(None, half), slice(-half, None)):
        for columns in (slice(None, half), slice(-half, None)):
            total[rows, columns] += changed[rows, columns]
            count[rows, columns] += 1
    return total / count[..., None]


def uneven(part: np.ndarray) -> np.ndarray:
    """Something that depends on where a pixel lies in its tile and on all of the tile's content."""
    down, across = np.meshgrid(*(np.linspace(0, 1, n) for n in part.shape[:2]), indexing="ij")
    changed: np.ndarray = part * (0.7 + 0.2 * down + 0.1 * across)[..., None] + 0.1 * part[::-1, ::-1]
    return changed


@pytest.mark.parametrize("size", [(32, 32), (32, 47), (64, 32), (70, 100), (48, 33)])
def test_tiles_and_corners_are_cut_and_merged_as_published(
    photographs: Images, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, best: Best
) -> None:
    def change(model: object, part: torch.Tensor, time: int, draws: torch.Generator, steps: int | None) -> torch.Tensor:
        assert (time, steps) == (10, None)
        return torch.from_numpy(uneven(part[0].permute(1, 2, 0).double().numpy()).transpose(2, 0, 1)[None]).float()

    monkeypatch.setattr(PixelDiffusion, "purify", change)
    pixels = photographs.numpy()[0, : size[0], : size[1]]
    wanted = pixels / 127.5 - 1
    for _ in range(3):
        wanted = 0.9 * round_by_hand(wanted, 32, uneven) + 0.1 * wanted
    image = Images.from_numpy(pixels[None].copy(), [Record("one")])
    found = GrIDPure(rounds=3, tile=32).apply(image, SEED).numpy()[0]
    assert float(np.abs(found - ((wanted + 1) * 127.5).clip(0, 255)).max()) < 0.51


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (31, 31), (32, 32), (40, 31), (33, 90), (100, 64)])
def test_tiles_cover_every_pixel_and_weigh_one_in_all(
    photographs: Images, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, best: Best
) -> None:
    parts: list[tuple[int, ...]] = []

    def same(model: object, part: torch.Tensor, *_: object) -> torch.Tensor:
        parts.append(tuple(part.shape[2:]))
        return part

    monkeypatch.setattr(PixelDiffusion, "purify", same)
    image = photographs.with_pixels(photographs.numpy()[:, : size[0], : size[1]].copy()).take([1])
    found = GrIDPure(rounds=2, tile=32, gamma=0).apply(image, SEED)
    np.testing.assert_array_equal(found.numpy(), image.numpy())
    if max(size) <= 32:
        # A 32 x 32 image's corners are the image once more.
        assert parts == [size] * (4 if min(size) == 32 else 2)
    assert set(parts) == {tuple(min(side, 32) for side in size)}


def test_gamma_is_the_share_of_what_the_round_began_with(
    photographs: Images, monkeypatch: pytest.MonkeyPatch, best: Best
) -> None:
    monkeypatch.setattr(PixelDiffusion, "purify", lambda model, part, *_: torch.zeros_like(part))
    for rounds, gamma in ((1, 0.1), (3, 0.5)):
        found = GrIDPure(rounds=rounds, gamma=gamma).apply(photographs, SEED).numpy()
        wanted = gamma**rounds * (photographs.numpy() - 127.5) + 127.5
        assert float(np.abs(found - wanted).max()) < 0.51


@pytest.mark.parametrize(("steps", "count"), [(None, 10), (3, 3)])
def test_each_tile_gets_ten_steps_in_each_round_and_fresh_noise(
    best: Best, photographs: Images, steps: int | None, count: int
) -> None:
    image = photographs.with_pixels(photographs.numpy()[:, :32, :48].copy()).take([0])
    GrIDPure(rounds=2, tile=32, steps=steps).apply(image, SEED)
    assert len(best.calls) == 2 * 3 * count
    assert [time for time, _ in best.calls[:count]] == [10 * i // count - 1 for i in range(count, 0, -1)]
    grey = Images.from_numpy(np.full((1, 48, 32, 3), 128, np.uint8), [Record("grey")])
    found = GrIDPure(rounds=1, tile=32).apply(grey, SEED).numpy()[0].astype(int)
    assert not np.array_equal(found[:16], found[16:32])


def test_more_rounds_harm_more_and_begin_alike(best: Best, small: Images) -> None:
    def error(rounds: int) -> float:
        purified = GrIDPure(rounds=rounds, tile=32, steps=2).apply(small, SEED).numpy()
        return float(np.mean((purified.astype(float) - small.numpy()) ** 2))

    errors = [error(rounds) for rounds in (0, *GrIDPure.strengths)]
    assert errors[0] == 0
    assert errors == sorted(set(errors))


# Both ---------------------------------------------------------------------------------------------------------------


def attacks(folder: Path) -> list[DiffPure | GrIDPure]:
    model = str(folder)
    return [
        DiffPure(model=model, level=0.02, steps=3),
        DiffPure(model=model, level=0.02, steps=3, solver="ddim"),
        GrIDPure(model=model, rounds=2, tile=32, steps=2),
    ]


def test_an_image_gets_the_same_result_alone_and_in_any_batch(folder: Path, small: Images) -> None:
    for attack in attacks(folder):
        together = attack.apply(small, SEED).numpy()
        assert together.shape == small.numpy().shape
        np.testing.assert_array_equal(attack.apply(small.take([1]), SEED).numpy()[0], together[1])
        np.testing.assert_array_equal(attack.apply(small.take([2, 0, 1]), SEED).numpy(), together[[2, 0, 1]])
        assert len(attack.apply(small.take([]), SEED)) == 0


def test_draws_follow_the_seed_and_the_record(folder: Path, small: Images) -> None:
    for attack in attacks(folder):
        assert attack.seeded
        assert attack.aligned
        first = attack.apply(small, SEED).numpy()
        np.testing.assert_array_equal(attack.apply(small, SEED).numpy(), first)
        assert not np.array_equal(attack.apply(small, Seed.root(6)).numpy(), first)
        twins = Images(small.pixels[[0, 0]], (Record("one"), Record("other")))
        one, other = attack.apply(twins, SEED).numpy()
        assert not np.array_equal(one, other)


def test_an_attack_travels_and_its_spec_names_the_model_by_digest(folder: Path, small: Images) -> None:
    for attack in attacks(folder):
        copy = pickle.loads(pickle.dumps(attack))  # noqa: S301
        assert copy.spec().id == attack.spec().id
        np.testing.assert_array_equal(copy.apply(small, SEED).numpy(), attack.apply(small, SEED).numpy())
        spec = attack.spec()
        assert spec.digests == {"model": load_pixel_diffusion(folder).digest}
        assert "model" not in spec.params
        assert attack.unavailable() is None


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (33, 1)])
def test_tiny_images_are_no_trouble(folder: Path, size: tuple[int, int]) -> None:
    tiny = Images.from_numpy(np.full((1, *size, 3), 90, np.uint8), [Record("tiny")])
    for attack in attacks(folder):
        assert attack.apply(tiny, SEED).size == size


def test_at_its_neutral_strength_the_image_stays(folder: Path, small: Images) -> None:
    for attack in (DiffPure(model=str(folder), level=0), GrIDPure(model=str(folder), rounds=0)):
        assert attack.apply(small, SEED) is small


def test_labels_name_the_strength_and_what_is_unusual() -> None:
    assert DiffPure().label == "diffpure(level=0.15)"
    assert GrIDPure().label == "gridpure(rounds=20)"
    assert DiffPure(level=0.1, model="some/folder", steps=None).label == "diffpure(level=0.1, model=folder, steps=None)"
    assert GrIDPure(rounds=5, gamma=0.2).label == "gridpure(rounds=5, gamma=0.2)"
    for cls in (DiffPure, GrIDPure):
        damage = [cls(**{cls.strength: value}).damage for value in cls.strengths]  # type: ignore[arg-type]
        assert damage == sorted(set(damage))


def test_a_model_that_is_not_here_makes_the_attack_unavailable(tmp_path: Path, small: Images) -> None:
    for attack in (DiffPure(model=str(tmp_path / "absent")), GrIDPure(model=str(tmp_path / "absent"))):
        said = attack.unavailable()
        assert said is not None
        assert "there is no such folder" in said
        assert attack.digests() == {}
        with pytest.raises(UserError, match="there is no such folder"):
            attack.apply(small, SEED)


def test_more_steps_than_the_schedule_has_are_one_line(best: Best, small: Images) -> None:
    model = PixelDiffusion(Best(), {"num_train_timesteps": 8}, 2, "short", "")
    with pytest.raises(UserError, match="short has the times 0 to 8: there is no 10"):
        GrIDPure()._round(model, torch.zeros(1, 3, 4, 4), torch.Generator())


def test_a_network_that_gives_no_numbers_is_one_line(
    best: Best, small: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Best, "__call__", lambda *_: SimpleNamespace(sample=torch.full((1, 12, 20, 26), torch.nan)))
    with pytest.raises(ImageError, match="NaN or infinite"):
        DiffPure(steps=1).apply(small, SEED)


@pytest.mark.parametrize(
    ("cls", "params", "says"),
    [
        (DiffPure, {"level": 1.5}, "diffpure: level: input should be less than or equal to 1, not 1.5"),
        (DiffPure, {"level": float("nan")}, "diffpure: level: input should be"),
        (DiffPure, {"steps": 0}, "diffpure: steps: input should be greater than or equal to 1, not 0"),
        (DiffPure, {"solver": "euler"}, "'ancestral' or 'ddim', not 'euler'"),
        (GrIDPure, {"gamma": 1}, "gridpure: gamma: input should be less than 1, not 1"),
        (GrIDPure, {"tile": 33}, "gridpure: tile: input should be a multiple of 2, not 33"),
        (GrIDPure, {"rounds": -1}, "gridpure: rounds: input should be greater than or equal to 0, not -1"),
    ],
)
def test_a_bad_parameter_gives_one_clear_line(cls: Any, params: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as caught:
        build(cls, params)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
