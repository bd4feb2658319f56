"""Regeneration: as the published code and diffusers' own parts do it, image by image, with every evaluation counted."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from waterproof.attacks.regeneration import (
    AutoencoderRoundTrip,
    DiffusionRegeneration,
    InversionRegeneration,
    Rinse,
)
from waterproof.core.autoencoders import load_autoencoder
from waterproof.core.components import build
from waterproof.core.effort import measured
from waterproof.core.errors import SpecError, UnavailableError, UserError
from waterproof.core.holding import open_autoencoder
from waterproof.core.images import Images, Record
from waterproof.core.latent_diffusion import load_latent_diffusion
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from waterproof.attacks.base import Attack

SEED = Seed.root(5)
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": False}


def save_kl(folder: Path, seed: int = 3) -> Path:
    """A tiny AutoencoderKL with random weights, four pixels to a cell."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8), down_block_types=["DownEncoderBlock2D"] * 3, layers_per_block=1,
            up_block_types=["UpDecoderBlock2D"] * 3, norm_num_groups=4, latent_channels=4,
        )  # fmt: skip
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny, random Stable Diffusion."""
    import diffusers

    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("stable")
    source = folder / "source"
    source.mkdir()
    tokens = ["a", "a</w>", "<|startoftext|>", "<|endoftext|>"]
    (source / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (source / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    text = transformers.CLIPTextConfig(
        vocab_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=2, eos_token_id=3, pad_token_id=3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        encoder = transformers.CLIPTextModel(text)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, norm_num_groups=4,
            attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL.from_pretrained(save_kl(folder / "vae")),
        text_encoder=encoder,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(source, model_max_length=8),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def pipeline(stable: Path) -> Any:
    """The same as diffusers loads it."""
    import diffusers

    return diffusers.StableDiffusionPipeline.from_pretrained(stable, local_files_only=True)


@pytest.fixture(scope="module")
def small(photographs: Images) -> Images:
    """Three pieces of photographs, 50 x 70: no side is a multiple of what any network here needs."""
    return photographs.with_pixels(photographs.numpy()[:, 100:150, 90:160].copy())


@pytest.fixture(scope="module")
def square(photographs: Images) -> Images:
    """Three pieces of photographs, 64 x 64."""
    return photographs.with_pixels(photographs.numpy()[:, 60:124, 90:154].copy())


def error(attack: Attack, images: Images) -> float:
    """The mean squared error in grey levels."""
    return float(np.mean((attack.apply(images, SEED).numpy().astype(float) - images.numpy()) ** 2))


# Autoencoder --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["shipped", "kl"])
def autoencoder(request: pytest.FixtureRequest, stable: Path) -> str:
    """Where an autoencoder is: that of the package, or one of diffusers."""
    return "shipped" if request.param == "shipped" else str(stable / "vae")


@torch.no_grad()
def test_a_round_trip_is_the_reconstruction_rounded(autoencoder: str, small: Images) -> None:
    network = load_autoencoder(autoencoder)
    found = AutoencoderRoundTrip(autoencoder=autoencoder).apply(small, SEED)
    assert found.records == small.records
    for i, record in enumerate(small.records):
        wanted = Images.from_float(network.reconstruct(small.take([i]).float()), (record,))
        np.testing.assert_array_equal(found.numpy()[i], wanted.numpy()[0])
    assert float(np.abs(found.numpy().astype(int) - small.numpy()).mean()) > 1


@torch.no_grad()
def test_passes_follow_one_another_clipped_but_not_rounded(autoencoder: str, small: Images) -> None:
    network = load_autoencoder(autoencoder)
    for i, record in enumerate(small.records):
        one = small.take([i])
        values = one.float()
        for passes in (1, 2, 3):
            values = network.reconstruct(values).clamp(0, 1)
            found = AutoencoderRoundTrip(passes=passes, autoencoder=autoencoder).apply(one, SEED)
            np.testing.assert_array_equal(found.numpy(), Images.from_float(values, (record,)).numpy())


@torch.no_grad()
def test_clipping_between_passes_matters_where_the_decoder_goes_beyond_white(square: Images) -> None:
    network = open_autoencoder("shipped")
    white = square.with_pixels((square.numpy() // 128 * 255).astype(np.uint8)).take([0])
    without = network.reconstruct(network.reconstruct(white.float()))
    found = AutoencoderRoundTrip(passes=2).apply(white, SEED).numpy()
    assert np.abs(found.astype(int) - Images.from_float(without, white.records).numpy()).max() > 2


def test_more_passes_harm_more(square: Images) -> None:
    errors = [error(AutoencoderRoundTrip(passes=passes), square) for passes in AutoencoderRoundTrip.strengths]
    assert errors == sorted(set(errors))


def test_any_autoencoder_may_be_given_by_its_folder(stable: Path, tmp_path: Path, small: Images) -> None:
    shipped = AutoencoderRoundTrip()
    tiny = AutoencoderRoundTrip(autoencoder=str(stable / "vae"))
    pipeline = AutoencoderRoundTrip(autoencoder=str(stable))
    other = AutoencoderRoundTrip(passes=2, autoencoder=str(save_kl(tmp_path / "other-kl", seed=4)))
    assert shipped.label == "autoencoder(passes=1)"
    assert tiny.label == "autoencoder(passes=1, autoencoder=vae)"
    assert other.label == "autoencoder(passes=2, autoencoder=other-kl)"
    assert tiny.digests() == pipeline.digests() == {"autoencoder": load_autoencoder(stable / "vae").digest}
    assert len({attack.digests()["autoencoder"] for attack in (shipped, tiny, other)}) == 3
    np.testing.assert_array_equal(tiny.apply(small, SEED).numpy(), pipeline.apply(small, SEED).numpy())
    assert not np.array_equal(tiny.apply(small, SEED).numpy(), shipped.apply(small, SEED).numpy())


@torch.no_grad()
@pytest.mark.parametrize("name", ["taef2", "vaelight"])
def test_the_released_tiny_autoencoders_serve(name: str, shared_data: Path, photographs: Images) -> None:
    folder = shared_data / "weights" / name
    if not folder.is_dir():
        pytest.skip(f"the weights of {name} are not beside this checkout")
    attack = AutoencoderRoundTrip(autoencoder=str(folder))
    assert attack.unavailable() is None
    assert attack.label == f"autoencoder(passes=1, autoencoder={name})"
    assert attack.digests() == {"autoencoder": load_autoencoder(folder).digest}
    assert attack.digests() != AutoencoderRoundTrip().digests()
    image = photographs.with_pixels(photographs.numpy()[:, 100:196, 90:170].copy()).take([1])
    found = attack.apply(image, SEED)
    reconstructed = load_autoencoder(folder).reconstruct(image.float())
    np.testing.assert_array_equal(found.numpy(), Images.from_float(reconstructed, image.records).numpy())
    assert 2 < error(attack, image) < 500


# Diffusion ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "stride", "times", "published"),
    [
        (60, 20, [60, 40, 20], [41, 21, 1]),
        (30, 20, [30, 10], [1]),
        (100, 20, [100, 80, 60, 40, 20], [81, 61, 41, 21, 1]),
        (10, 20, [10], [1]),
        (1, 20, [1], [1]),
        (20, 20, [20], [1]),
        (61, 20, [61, 41, 21, 1], [41, 21, 1]),
        (9, 4, [9, 5, 1], [5, 1]),
        (3, 1, [3, 2, 1], [3, 2, 1]),
    ],
)
def test_the_times_are_those_of_the_noise_and_of_the_released_code(
    time: int, stride: int, times: list[int], published: list[int]
) -> None:
    assert DiffusionRegeneration(time=time, stride=stride).times == times
    assert DiffusionRegeneration(time=time, stride=stride, published=True).times == published
    assert Rinse(time=time, stride=stride).times == times


def test_the_published_times_are_the_last_of_diffusers_fifty() -> None:
    import diffusers

    scheduler = diffusers.DDIMScheduler(**SCHEDULE, steps_offset=1)
    scheduler.set_timesteps(50)
    for time in (1, 10, 19, 20, 30, 39, 60, 99, 100, 240, 500, 999):
        # head_start_step of the released code
        last = scheduler.timesteps[50 - max(time // 20, 1) :].tolist()
        assert DiffusionRegeneration(time=time, published=True).times == last


@torch.no_grad()
def regenerated_by_hand(pipeline: Any, images: Images, time: int, published: bool, passes: int) -> np.ndarray:
    """The released loop with the parts of diffusers and transformers, guided by 7.5 between two empty prompts."""
    import diffusers

    tokens = pipeline.tokenizer([""], padding="max_length", max_length=8, return_tensors="pt").input_ids
    text = torch.cat([pipeline.text_encoder(tokens)[0]] * 2)
    scheduler = diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, steps_offset=1 if published else 0)
    scheduler.set_timesteps(50)
    times = scheduler.timesteps[50 - max(time // 20, 1) :].tolist() if published else range(time, 0, -20)
    high, wide = images.size
    results = []
    for record, pixels in images:
        values = torch.tensor(pixels).permute(2, 0, 1)[None] / 127.5 - 1
        for number in range(passes):
            padded = np.pad(values[0].numpy(), ((0, 0), (0, -high % 8), (0, -wide % 8)), mode="edge")
            latents = pipeline.vae.encode(torch.tensor(padded)[None]).latent_dist.mode()
            latents = latents * pipeline.vae.config.scaling_factor
            noise = torch.randn(latents.shape, generator=SEED.child(record.id, number).torch())
            latents = scheduler.add_noise(latents, noise, torch.tensor([time]))
            for t in times:
                without, told = pipeline.unet(torch.cat([latents] * 2), t, encoder_hidden_states=text).sample.chunk(2)
                latents = scheduler.step(without + 7.5 * (told - without), t, latents).prev_sample
            decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
            values = decoded.clamp(-1, 1)[..., :high, :wide]
        results.append(((values[0].permute(1, 2, 0).numpy() + 1) * 127.5).astype(float))
    return np.stack(results)


@pytest.mark.parametrize(
    ("time", "published", "passes"),
    [(60, False, 1), (60, True, 1), (200, False, 1), (200, True, 1), (50, False, 1), (50, True, 1), (60, False, 3)],
)
def test_regeneration_is_the_loop_with_diffusers_parts(
    stable: Path, pipeline: Any, small: Images, time: int, published: bool, passes: int
) -> None:
    attack = DiffusionRegeneration(time=time, published=published, passes=passes, model=str(stable))
    wanted = regenerated_by_hand(pipeline, small, time, published, passes)
    found = attack.apply(small, SEED).numpy()
    assert float(np.abs(found - wanted).max()) < 0.55
    # What is compared depends on the steps: the other variant is another image.
    other = DiffusionRegeneration(time=time, published=not published, passes=passes, model=str(stable))
    assert float(np.abs(other.apply(small, SEED).numpy() - wanted).max()) > 2


def test_the_noise_of_an_image_depends_on_its_id_and_the_pass_alone(stable: Path, small: Images) -> None:
    for attack in (
        DiffusionRegeneration(model=str(stable)),
        DiffusionRegeneration(published=True, model=str(stable)),
        Rinse(model=str(stable)),
    ):
        assert attack.seeded
        together = attack.apply(small, SEED).numpy()
        for i in range(3):
            np.testing.assert_array_equal(attack.apply(small.take([i]), SEED).numpy()[0], together[i])
        np.testing.assert_array_equal(attack.apply(small.take([2, 0, 1]), SEED).numpy(), together[[2, 0, 1]])
        twins = Images(small.pixels[[0, 0]], (Record("astronaut"), Record("other")))
        same, other = attack.apply(twins, SEED).numpy()
        np.testing.assert_array_equal(same, together[0])
        assert not np.array_equal(other, together[0])
        assert not np.array_equal(attack.apply(small, Seed.root(6)).numpy(), together)


def test_each_pass_draws_a_noise_of_its_own_and_the_first_stays(
    stable: Path, small: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_latent_diffusion(stable)
    drawn: list[torch.Tensor] = []
    noised = model.noised

    def recorded(latent: torch.Tensor, time: int, noise: torch.Tensor) -> torch.Tensor:
        drawn.append(noise)
        return noised(latent, time, noise)

    monkeypatch.setattr(model, "noised", recorded)
    DiffusionRegeneration(passes=3, model=str(stable)).apply(small.take([1]), SEED)
    for number, noise in enumerate(drawn):
        wanted = torch.randn((1, 4, 14, 18), generator=SEED.child("chelsea", number).torch())
        assert torch.equal(noise, wanted)
    assert len(drawn) == 3


def test_more_noise_harms_more_and_to_begin_below_the_noise_leaves_noise(square: Images) -> None:
    strengths = DiffusionRegeneration.strengths[::2]
    errors, published = (
        [error(DiffusionRegeneration(time=time, published=variant), square) for time in strengths]
        for variant in (False, True)
    )
    assert errors == sorted(set(errors))
    assert published == sorted(set(published))
    assert errors[-1] > 1.5 * errors[0]
    assert errors[0] > error(AutoencoderRoundTrip(), square)
    assert all(left > default for left, default in zip(published, errors, strict=True))


def test_rinsing_is_regeneration_several_times_over(stable: Path, small: Images) -> None:
    model = str(stable)
    one, results = small.take([1]), []
    for passes, published in ((1, False), (1, True), (2, False), (4, False)):
        settings: dict[str, Any] = {"time": 30, "passes": passes, "published": published, "model": model}
        results.append(Rinse(**settings).apply(one, SEED).numpy())
        np.testing.assert_array_equal(results[-1], DiffusionRegeneration(**settings).apply(one, SEED).numpy())
    assert len({result.tobytes() for result in results}) == 4
    twice = Rinse(time=30, model=model)
    assert twice.passes == 2
    np.testing.assert_array_equal(twice.apply(one, SEED).numpy(), results[2])


# Inversion ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 5])
def test_inversion_is_the_way_there_and_back_with_diffusers_schedulers(
    stable: Path, pipeline: Any, small: Images, steps: int
) -> None:
    import diffusers

    tokens = pipeline.tokenizer([""], padding="max_length", max_length=8, return_tensors="pt").input_ids
    text = pipeline.text_encoder(tokens)[0]
    found = InversionRegeneration(steps=steps, model=str(stable)).apply(small, SEED).numpy()
    for (_, pixels), regenerated in zip(small, found, strict=True):
        padded = np.pad(pixels, ((0, 6), (0, 2), (0, 0)), mode="edge")
        values = torch.tensor(padded).permute(2, 0, 1)[None] / 127.5 - 1
        latents = pipeline.vae.encode(values).latent_dist.mode() * pipeline.vae.config.scaling_factor
        for kind in (diffusers.DDIMInverseScheduler, diffusers.DDIMScheduler):
            scheduler = kind(**SCHEDULE, clip_sample=False, steps_offset=1)
            scheduler.set_timesteps(steps)
            for t in scheduler.timesteps:
                said = pipeline.unet(latents, t, encoder_hidden_states=text).sample
                latents = scheduler.step(said, t, latents).prev_sample
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        wanted = (decoded.clamp(-1, 1)[0, :, :50, :70].permute(1, 2, 0).numpy() + 1) * 127.5
        assert float(np.abs(regenerated - wanted).max()) < 0.55


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' solver, NumPy 2
@pytest.mark.parametrize("solver", ["ddim", "dpm-solver"])
def test_nothing_is_drawn_in_an_inversion(stable: Path, small: Images, solver: Any) -> None:
    attack = InversionRegeneration(steps=4, solver=solver, model=str(stable))
    assert not attack.seeded
    together = attack.apply(small, SEED).numpy()
    load_latent_diffusion(stable)._latents.clear()
    np.testing.assert_array_equal(attack.apply(small, Seed.root(6)).numpy(), together)
    np.testing.assert_array_equal(attack.apply(small.take([2, 0]), SEED).numpy(), together[[2, 0]])
    twins = Images(small.pixels[[0, 0]], (Record("one"), Record("other")))
    np.testing.assert_array_equal(attack.apply(twins, SEED).numpy(), together[[0, 0]])


def test_an_inversion_of_any_number_of_steps_returns(square: Images) -> None:
    # diffusers' trailing times of 61 steps end below 0.
    one = square.take([0])
    around = [error(InversionRegeneration(steps=steps), one) for steps in (59, 61)]
    assert around[1] < 1.2 * around[0]


@pytest.mark.parametrize(("solver", "limit"), [("ddim", 5.0), ("dpm-solver", 1.2)])
def test_more_steps_return_nearer_to_the_image(square: Images, solver: Any, limit: float) -> None:
    one = square.take([0])
    errors = [error(InversionRegeneration(steps=steps, solver=solver), one) for steps in (5, 15, 40)]
    assert errors == sorted(set(errors), reverse=True)
    # What is left at last is mostly the autoencoder's.
    assert error(AutoencoderRoundTrip(), one) * 0.9 < errors[-1] < error(AutoencoderRoundTrip(), one) * limit


# All four -----------------------------------------------------------------------------------------------------------


def attacks(folder: Path) -> list[Attack]:
    model = str(folder)
    return [
        AutoencoderRoundTrip(passes=2, autoencoder=str(folder / "vae")),
        DiffusionRegeneration(time=30, model=model),
        DiffusionRegeneration(time=30, published=True, model=model),
        Rinse(time=30, model=model),
        InversionRegeneration(steps=2, model=model),
    ]


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (33, 1), (50, 70)])
def test_any_size_is_kept(stable: Path, photographs: Images, size: tuple[int, int]) -> None:
    images = photographs.with_pixels(photographs.numpy()[:, : size[0], : size[1]].copy())
    for attack in attacks(stable):
        found = attack.apply(images, SEED)
        assert found.size == size
        assert found.records == images.records
        assert attack.aligned


@pytest.mark.parametrize("size", [(50, 70), (1, 33)])
def test_any_size_is_kept_by_the_shipped_models(photographs: Images, size: tuple[int, int]) -> None:
    image = photographs.with_pixels(photographs.numpy()[:, : size[0], : size[1]].copy()).take([2])
    shipped: list[Attack] = [
        AutoencoderRoundTrip(), DiffusionRegeneration(time=20), Rinse(time=20), InversionRegeneration(steps=2)
    ]  # fmt: skip
    for attack in shipped:
        assert attack.apply(image, SEED).size == size


@pytest.fixture
def calls(stable: Path) -> Iterator[SimpleNamespace]:
    """How many images the networks of the tiny pipeline were really asked about, part by part."""
    model, alone = load_latent_diffusion(stable), open_autoencoder(str(stable / "vae"))
    counted = SimpleNamespace(unet=0, encoder=0, decoder=0)

    def counting(part: str) -> Any:
        def count(_module: object, given: tuple[torch.Tensor, ...], _out: object) -> None:
            setattr(counted, part, getattr(counted, part) + len(given[0]))

        return count

    watched = [(model.unet, "unet")]
    for network in (model.autoencoder.model, alone.model):
        coder: Any = network
        watched += [(coder.encoder, "encoder"), (coder.decoder, "decoder")]
    hooks = [module.register_forward_hook(counting(part)) for module, part in watched]
    model._latents.clear()
    yield counted
    for hook in hooks:
        hook.remove()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("cls", "settings", "unet", "round_trips"),
    [
        (AutoencoderRoundTrip, {"passes": 1}, 0, 1),
        (AutoencoderRoundTrip, {"passes": 3}, 0, 3),
        (DiffusionRegeneration, {"time": 60}, 3, 1),
        (DiffusionRegeneration, {"time": 60, "published": True}, 3, 1),
        (DiffusionRegeneration, {"time": 30}, 2, 1),
        (DiffusionRegeneration, {"time": 30, "published": True}, 1, 1),
        (DiffusionRegeneration, {"time": 10, "stride": 3}, 4, 1),
        (Rinse, {"time": 60}, 6, 2),
        (Rinse, {"time": 60, "passes": 4}, 12, 4),
        (InversionRegeneration, {"steps": 3}, 6, 1),
        (InversionRegeneration, {"steps": 3, "solver": "dpm-solver"}, 6, 1),
    ],
)
def test_every_evaluation_of_a_network_is_counted(
    stable: Path, small: Images, calls: SimpleNamespace, cls: Any, settings: dict[str, Any], unet: int, round_trips: int
) -> None:
    place = {"autoencoder": str(stable / "vae")} if cls is AutoencoderRoundTrip else {"model": str(stable)}
    attack = cls(**settings, **place)
    with measured() as spent:
        attack.apply(small, SEED)
    assert not load_latent_diffusion(stable)._latents
    assert (calls.unet, calls.encoder, calls.decoder) == (3 * unet, 3 * round_trips, 3 * round_trips)
    assert spent.evaluations == calls.unet + calls.encoder + calls.decoder
    assert spent.backwards == 0


def test_labels_name_the_strength_and_whose_model() -> None:
    assert DiffusionRegeneration().label == "diffusion-regeneration(time=60)"
    assert DiffusionRegeneration(published=True).label == "diffusion-regeneration(time=60, published=True)"
    assert Rinse(time=30, passes=4, model="some/folder").label == "rinse(time=30, passes=4, model=folder)"
    assert InversionRegeneration(model="some/folder").label == "inversion-regeneration(steps=25, model=folder)"
    for cls in (AutoencoderRoundTrip, DiffusionRegeneration, Rinse, InversionRegeneration):
        damage = [cls(**{cls.strength: value}).damage for value in cls.strengths]  # type: ignore[arg-type]
        assert damage == sorted(set(damage))


def test_a_spec_names_the_model_by_digest_and_not_by_place(stable: Path) -> None:
    digest = load_latent_diffusion(stable).digest
    for cls in (DiffusionRegeneration, Rinse, InversionRegeneration):
        attack = cls(model=str(stable))
        assert attack.unavailable() is None
        assert attack.digests() == attack.spec().digests == {"model": digest}
        assert attack.digests() != cls().digests()
        assert "model" not in attack.spec().params


def test_a_model_that_is_not_here_makes_the_attack_unavailable(tmp_path: Path, small: Images) -> None:
    absent = str(tmp_path / "absent")
    missing: list[Attack] = [
        AutoencoderRoundTrip(autoencoder=absent),
        *(cls(model=absent) for cls in (DiffusionRegeneration, Rinse, InversionRegeneration)),
    ]
    for attack in missing:
        said = attack.unavailable()
        assert said is not None
        assert "there is no such folder" in said
        assert absent in said
        assert "\n" not in said
        assert attack.digests() == {}
        with pytest.raises(UnavailableError, match="there is no such folder"):
            attack.apply(small, SEED)


def test_a_model_of_fewer_times_than_the_noise_says_so(
    stable: Path, small: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(load_latent_diffusion(stable).schedule, "num_train_timesteps", 50)
    DiffusionRegeneration(time=49, model=str(stable)).apply(small.take([0]), SEED)
    with pytest.raises(UserError, match="was trained with the time steps 0 to 49, not 60"):
        DiffusionRegeneration(model=str(stable)).apply(small.take([0]), SEED)
    with pytest.raises(UserError, match=r"50 time steps: .* not with 50"):
        InversionRegeneration(steps=50, model=str(stable)).apply(small.take([0]), SEED)


@pytest.mark.parametrize(
    ("cls", "params", "says"),
    [
        (AutoencoderRoundTrip, {"passes": 0}, "autoencoder: passes: input should be greater than or equal to 1, not 0"),
        (DiffusionRegeneration, {"time": 0}, "time: input should be greater than or equal to 1, not 0"),
        (DiffusionRegeneration, {"time": 1000}, "time: input should be less than or equal to 999, not 1000"),
        (DiffusionRegeneration, {"stride": 0}, "stride: input should be greater than or equal to 1, not 0"),
        (Rinse, {"passes": 101}, "rinse: passes: input should be less than or equal to 100, not 101"),
        (InversionRegeneration, {"steps": 1000}, "steps: input should be less than or equal to 999, not 1000"),
        (InversionRegeneration, {"solver": "euler"}, "'ddim' or 'dpm-solver', not 'euler'"),
        (InversionRegeneration, {"mode": "shipped"}, "unknown parameter 'mode'. Did you mean 'model'?"),
    ],
)
def test_a_bad_parameter_gives_one_clear_line(cls: Any, params: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as caught:
        build(cls, params)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
