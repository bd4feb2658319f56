"""Training of a small latent diffusion model: captions under their crops, resume, and a folder that loads."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from waterproof.bench.training import diffusion, latent_diffusion, make
from waterproof.bench.training.latent_diffusion import LatentDiffusionTask
from waterproof.bench.training.photographs import Photographs
from waterproof.bench.training.recipes import LatentDiffusionRecipe, load_recipe
from waterproof.bench.training.trainer import fit
from waterproof.core.autoencoders import Autoencoder, load_autoencoder
from waterproof.core.errors import SpecError, StoreError
from waterproof.core.identity import file_digest
from waterproof.core.latent_diffusion import Sampling, load_latent_diffusion
from waterproof.core.weights import load_state
from waterproof.core.words import WordEncoder, describe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODEL = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
SCHEDULE = {"prediction_type": "v_prediction", "clip_sample": False, "timestep_spacing": "trailing"}


def recipe(**changes: Any) -> LatentDiffusionRecipe:
    fields = {"name": "small", "steps": 5, "batch": 4, "size": 32, "short": 41, "validation": 2, "learning_rate": 5e-3}
    more = {"model": MODEL, "schedule": SCHEDULE, "width": 16, "checkpoint": 2}
    return LatentDiffusionRecipe.model_validate({**fields, **more, **changes})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of 42 x 55 pixels: a colour that brightens one way, with texture on it."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(8):
        down, across = np.mgrid[0:42, 0:55] / 50
        light = rng.uniform(40, 160) + rng.uniform(-60, 60) * down + rng.uniform(-60, 60) * across
        picture = light[..., None] * rng.uniform(0.4, 1.4, 3) + rng.normal(0, rng.uniform(2, 20), (42, 55, 1))
        picture += rng.normal(0, 2, (42, 55, 3))
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def loaded(photos: Path) -> Photographs:
    return Photographs.load(photos, 41, 2)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny autoencoder, saved."""
    from diffusers import AutoencoderTiny

    blocks = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8, 8, 8))
    counts = dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1, 1, 1))
    folder = tmp_path_factory.mktemp("vae")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        AutoencoderTiny(**blocks, **counts).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def means() -> Autoencoder:
    """Latents that are mean colours of 4 x 4 pixels, so that a crop of a latent tells where it is from."""
    plain: Any = SimpleNamespace(factor=4, channels=3, digest="means", encode=lambda x: functional.avg_pool2d(x, 4))
    return plain  # type: ignore[no-any-return]


def test_the_caption_of_a_crop_is_what_is_seen_under_it_also_mirrored(
    loaded: Photographs, means: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr(latent_diffusion, "describe", lambda pixels: (seen.append(pixels), describe(pixels))[1])
    task = LatentDiffusionTask(recipe(drop=0, drop_word=0), loaded, means)
    assert loaded.train[0].shape[1] % 4, "spare rows and columns are what mirroring could get wrong"
    assert loaded.train[0].shape[2] % 4
    places = {}
    for number, image in enumerate(loaded.train):
        for mirrored in (False, True):
            turned = (image.flip(-1) if mirrored else image).permute(1, 2, 0).numpy()
            for top in range(0, turned.shape[0] - 31, 4):
                for left in range(0, turned.shape[1] - 31, 4):
                    window = turned[top : top + 32, left : left + 32]
                    places[window.tobytes()] = number, mirrored, top, left
    generator = torch.Generator().manual_seed(0)
    met, said = set(), set()
    for _ in range(200):
        latent, tokens = task._crop(generator)
        pixels = seen.pop()
        met.add(places[pixels.tobytes()])
        blocks = pixels.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(latent.numpy(), blocks, atol=1e-6)
        assert torch.equal(tokens, task.words.tokens([" ".join(describe(pixels))])[0])
        said.add(tuple(tokens.tolist()))
    coordinates = [[set(axis) for axis in zip(*some, strict=True)] for some in (met, places.values())]
    assert coordinates[0] == coordinates[1]
    assert len(said) > 5


def test_captions_and_words_are_left_out_as_often_as_the_recipe_says(loaded: Photographs, means: Autoencoder) -> None:
    def tokens(**changes: Any) -> torch.Tensor:
        task = LatentDiffusionTask(recipe(**changes), loaded, means)
        generator = torch.Generator().manual_seed(0)
        return torch.stack([task._crop(generator)[1] for _ in range(400)])

    assert int(tokens(drop=1.0).sum()) == int(tokens(drop=0, drop_word=1.0).sum()) == 0
    whole, fewer, none = tokens(drop=0, drop_word=0), tokens(drop=0, drop_word=0.3), tokens(drop=0.25, drop_word=0)
    assert int((whole > 0).sum(dim=1).min()) > 0
    assert abs(float((fewer > 0).float().mean() / (whole > 0).float().mean()) - 0.7) < 0.06
    assert abs(float(((none > 0).sum(dim=1) == 0).float().mean()) - 0.25) < 0.07


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_target_is_the_noise_or_the_velocity_of_the_formula(
    kind: str, loaded: Photographs, means: Autoencoder
) -> None:
    task = LatentDiffusionTask(recipe(schedule={**SCHEDULE, "prediction_type": kind}), loaded, means)
    rng = np.random.default_rng(1)
    clean, noise = rng.standard_normal((2, 3, 8, 8)), rng.standard_normal((2, 3, 8, 8))
    times = np.array([100, 900])
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[times][:, None, None, None]
    wanted = noise if kind == "epsilon" else np.sqrt(kept) * noise - np.sqrt(1 - kept) * clean
    found = diffusion.target(task.scheduler, torch.from_numpy(clean), torch.from_numpy(noise), torch.from_numpy(times))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_few_steps_teach_the_model_something(
    precision: str, loaded: Photographs, means: Autoencoder, tmp_path: Path
) -> None:
    before = torch.random.get_rng_state()
    task = LatentDiffusionTask(recipe(precision=precision, steps=40), loaded, means)
    curve = [row["loss"] for row in fit(task, tmp_path).curve]
    assert np.mean(curve[-10:]) < 0.8 * np.mean(curve[:5])
    assert torch.equal(torch.random.get_rng_state(), before)
    judged = task.judge()
    parts = ("kept out", "of the training")
    assert set(judged) == {f"loss, {part}{end}" for part in parts for end in ("", " without caption")}
    assert judged == task.judge()
    assert all(np.isfinite(value) for value in judged.values())


def test_what_is_saved_is_a_running_mean_that_begins_fast(loaded: Photographs, means: Autoencoder) -> None:
    task = LatentDiffusionTask(recipe(average=0.5), loaded, means)
    values, means_of = (next(iter(module.parameters())) for module in (task.words, task.mean_words))
    start = values.detach().clone()
    assert torch.equal(means_of, start)
    by_hand = start.double()
    for step in (0, 3, 50):
        with torch.no_grad():
            values.add_(1)
        task.follow(step)
        decay = min(0.5, (1 + step) / (10 + step))
        by_hand = decay * by_hand + (1 - decay) * values.detach().double()
        torch.testing.assert_close(means_of.double(), by_hand, rtol=1e-6, atol=1e-6)
    assert not means_of.requires_grad
    assert len(list(task.parameters())) == len(list(task.unet.parameters())) + len(list(task.words.parameters()))


def saved(folder: Path) -> dict[str, bytes]:
    files = [path for part in ("unet", "text_encoder", "scheduler") for path in (folder / part).iterdir()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in (*files, folder / "model_index.json")}


@pytest.fixture(scope="module")
def trained(photos: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    make.train_latent_diffusion(recipe(autoencoder=str(vae)), photos, folder, device="cpu")
    return folder


def test_a_training_that_is_stopped_and_resumed_saves_the_same_bytes(
    trained: Path, photos: Path, vae: Path, tmp_path: Path
) -> None:
    given = recipe(autoencoder=str(vae))
    steps = []
    for _ in range(5):
        done, _ = make.train_latent_diffusion(given, photos, tmp_path, minutes=0, device="cpu")
        steps.append(done.step)
    assert steps == [1, 2, 3, 4, 5]
    assert saved(tmp_path) == saved(trained)
    assert (tmp_path / "curve.csv").read_bytes() == (trained / "curve.csv").read_bytes()
    with pytest.raises(StoreError, match="belongs to another recipe"):
        make.train_latent_diffusion(recipe(autoencoder=str(vae), drop=0.5), photos, tmp_path, device="cpu")


def test_the_saved_folder_loads_as_the_model_that_was_trained(
    trained: Path, loaded: Photographs, vae: Path, tmp_path: Path
) -> None:
    model = load_latent_diffusion(trained)
    autoencoder = load_autoencoder(vae)
    assert model.autoencoder.digest == autoencoder.digest
    assert (model.size, model.channels, model.schedule["prediction_type"]) == (32, 4, "v_prediction")
    index = json.loads((trained / "model_index.json").read_text(encoding="utf-8"))
    assert index["autoencoder_digest"] == autoencoder.digest
    task = LatentDiffusionTask(recipe(autoencoder=str(vae)), loaded, autoencoder)
    task.follow(fit(task, tmp_path).step)
    for name, tensor in task.mean_unet.state_dict().items():
        assert torch.equal(model.unet.state_dict()[name], tensor.half().float())
    words: Any = model.conditioner
    assert isinstance(words.encoder, WordEncoder)
    assert torch.equal(words.encoder.embedding.weight, task.mean_words.embedding.weight.half().float())
    latent = model.sample(model.noise(0), "a dark blue photograph", Sampling(2))
    assert bool(torch.isfinite(latent).all())


def test_the_card_says_what_was_trained_and_how_good_it_is(trained: Path, photos: Path) -> None:
    card = json.loads((trained / "card.json").read_text(encoding="utf-8"))
    assert card["kind"] == "latent-diffusion"
    assert (card["data"]["trained_on"], card["data"]["kept_out"]) == (6, 2)
    assert (card["training"]["steps"], card["training"]["of"]) == (5, 5)
    assert set(card["quality"]) > {"loss, kept out", "loss, kept out without caption"}
    weights = "diffusion_pytorch_model.safetensors"
    assert set(card["digests"]) == {f"unet/{weights}", f"text_encoder/{weights}"}
    for name, digest in card["digests"].items():
        assert file_digest(trained / name) == digest
        assert (trained / name).stat().st_mode & 0o777 == 0o644
    states = [load_state(trained / part / weights) for part in ("unet", "text_encoder")]
    assert card["facts"]["parameters"] == sum(tensor.numel() for state in states for tensor in state.values())
    assert {tensor.dtype for state in states for tensor in state.values()} == {torch.float16}
    for name in ("README.md", "curve.csv", "curve.png", "checkpoint.pt"):
        assert (trained / name).is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {**MODEL, "sorcery": 1}}, r"small: model or schedule: .*unexpected keyword argument 'sorcery'"),
        ({"model": {**MODEL, "norm_num_groups": 5}}, r"small: model or schedule: .*divisible"),
        ({"model": {**MODEL, "down_block_types": ["Up", "Down"]}}, "small: model or schedule: "),
        ({"model": {**MODEL, "in_channels": 3}}, r"small: model or schedule: .*'in_channels'"),
        ({"schedule": {**SCHEDULE, "sorcery": 1}}, r"small: model or schedule: .*'sorcery'"),
        ({"size": 34}, "small: size 34 must be a multiple of 8"),
    ],
)
def test_a_model_that_cannot_be_is_refused(
    changes: dict[str, Any], message: str, loaded: Photographs, means: Autoencoder
) -> None:
    with pytest.raises(SpecError, match=message):
        LatentDiffusionTask(recipe(**changes), loaded, means)


def test_a_prediction_that_is_neither_noise_nor_velocity_is_refused(loaded: Photographs, means: Autoencoder) -> None:
    def begin() -> None:
        task = LatentDiffusionTask(recipe(schedule={**SCHEDULE, "prediction_type": "sample"}), loaded, means)
        task.loss(0, torch.Generator().manual_seed(0))

    with pytest.raises(SpecError, match="prediction_type is epsilon or v_prediction, not sample"):
        begin()


def test_the_command_trains_what_a_dataset_uses(
    cli: Callable[..., Any], photos: Path, vae: Path, tmp_path: Path
) -> None:
    from waterproof.datasets.prompts import Prompts

    assert load_recipe(LatentDiffusionRecipe, "latent-diffusion").autoencoder == "shipped"
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(recipe(autoencoder=str(vae)).model_dump(mode="json")), encoding="utf-8")
    said = cli("train", "latent-diffusion", file, "--data", photos, "--out", "out", "--steps", 2, "--device", "cpu")
    assert said.code == 0, said.err
    assert "2 of 2 steps" in said.out
    dataset = Prompts(model=str(tmp_path / "out"), count=1, steps=1)
    assert dataset.load(dataset.index().records)[0][0].size == (32, 32)
    wrong = cli("train", "latent-diffusion", file, "--data", "nowhere")
    assert wrong.code == 2
    assert wrong.err.strip() == "waterproof: no such folder of photographs: nowhere"
