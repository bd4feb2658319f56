"""Training of a small diffusion model of pixels: what it is asked, resume, and a folder that loads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from waterproof.bench.training import make
from waterproof.bench.training.photographs import Photographs
from waterproof.bench.training.pixel_diffusion import PixelDiffusionTask
from waterproof.bench.training.recipes import PixelDiffusionRecipe, load_recipe
from waterproof.bench.training.trainer import fit
from waterproof.core.errors import SpecError, StoreError
from waterproof.core.identity import file_digest
from waterproof.core.pixel_diffusion import PixelDiffusion, load_pixel_diffusion
from waterproof.core.seeds import Seed
from waterproof.core.weights import load_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODEL = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "add_attention": False,
}
SCHEDULE = {"prediction_type": "v_prediction", "clip_sample": False}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def recipe(**changes: Any) -> PixelDiffusionRecipe:
    fields = {"name": "small", "steps": 5, "batch": 4, "size": 32, "short": 41, "validation": 2, "learning_rate": 5e-3}
    more = {"model": MODEL, "schedule": SCHEDULE, "checkpoint": 2}
    return PixelDiffusionRecipe.model_validate({**fields, **more, **changes})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of 42 x 55 pixels: a colour that brightens one way, with texture on it."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(8):
        down, across = np.mgrid[0:42, 0:55] / 50
        light = rng.uniform(40, 160) + rng.uniform(-60, 60) * down + rng.uniform(-60, 60) * across
        picture = light[..., None] * rng.uniform(0.4, 1.4, 3) + rng.normal(0, rng.uniform(2, 20), (42, 55, 1))
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def loaded(photos: Path) -> Photographs:
    return Photographs.load(photos, 41, 2)


def asked(task: PixelDiffusionTask, monkeypatch: pytest.MonkeyPatch, steps: int) -> np.ndarray:
    """The times of so many batches, without a network."""
    met: list[torch.Tensor] = []
    add_noise = task.scheduler.add_noise

    def remember(clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        met.append(times)
        noisy: torch.Tensor = add_noise(clean, noise, times)
        return noisy

    monkeypatch.setattr(task.scheduler, "add_noise", remember)
    for step in range(steps):
        task.loss(step, torch.Generator().manual_seed(step))
    return torch.cat(met).numpy()


def test_the_share_of_early_times_is_that_of_the_recipe(loaded: Photographs, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"batch": 64, "size": 16, "early": 0.5, "early_steps": 100}
    times = asked(PixelDiffusionTask(recipe(**small), loaded), monkeypatch, 12)
    assert (times.min() >= 0, times.max() < 1000) == (True, True)
    # Half of the draws are early, and a tenth of the others.
    assert abs(float((times < 100).mean()) - 0.55) < 0.06
    assert abs(float((times >= 550).mean()) - 0.5 * 0.45) < 0.06
    only = asked(PixelDiffusionTask(recipe(**{**small, "early": 1.0}), loaded), monkeypatch, 4)
    assert only.max() < 100


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_the_formula(kind: str, loaded: Photographs, monkeypatch: pytest.MonkeyPatch) -> None:
    task = PixelDiffusionTask(recipe(schedule={**SCHEDULE, "prediction_type": kind}), loaded)
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def predict(noisy: torch.Tensor, times: torch.Tensor) -> Any:
        said = forward(noisy, times)
        seen.append((noisy, times, said.sample))
        return said

    forward = task.unet.forward
    monkeypatch.setattr(task.unet, "forward", predict)
    _, numbers = task.loss(0, torch.Generator().manual_seed(1))
    noisy, times, said = (value.detach().double().numpy() for value in seen[0])
    # The same draws in the same order: the crops, two for the times, the noise.
    draws = torch.Generator().manual_seed(1)
    crops = loaded.batch(4, 32, draws)
    torch.rand(4, generator=draws), torch.rand(4, generator=draws)
    noise = torch.randn(noisy.shape, generator=draws).double().numpy()
    blocks = (2 * crops.double().numpy() - 1).reshape(4, 3, 16, 2, 16, 2).transpose(0, 1, 3, 5, 2, 4)
    clean = blocks.reshape(4, 12, 16, 16)
    share = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[times.astype(int)][:, None, None, None]
    np.testing.assert_allclose(noisy, np.sqrt(share) * clean + np.sqrt(1 - share) * noise, atol=1e-4)
    target = noise if kind == "epsilon" else np.sqrt(share) * noise - np.sqrt(1 - share) * clean
    assert numbers["loss"] == pytest.approx(float(np.mean((said - target) ** 2)), rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_few_steps_teach_the_model_something(precision: str, loaded: Photographs, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    task = PixelDiffusionTask(recipe(precision=precision, steps=40), loaded)
    first = task.judge()
    fit(task, tmp_path)
    last = task.judge()
    # Losses of single steps depend on the times that they drew.
    for step in (100, 200, 300):
        name = f"psnr, denoised, step {step}"
        assert last[name] > first[name] + 0.5
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_what_is_measured_is_the_psnr_of_one_step(kind: str, loaded: Photographs) -> None:
    task = PixelDiffusionTask(recipe(schedule={**SCHEDULE, "prediction_type": kind}), loaded)
    judged = task.judge()
    assert judged == task.judge()
    model = PixelDiffusion(task.mean_unet, dict(task.scheduler.config), 2, "judged", "")
    generator = Seed.root(0).child("judge").torch()
    images = 2 * loaded.held_out(32) - 1
    for step in (30, 100, 200, 300):
        noise = torch.randn((len(images), 12, 16, 16), generator=generator)
        values: dict[str, list[float]] = {"noisy": [], "denoised": []}
        for image, drawn in zip(images[:, None], noise[:, None], strict=True):
            noisy = model.noised(image, step + 1, torch.nn.functional.pixel_shuffle(drawn, 2))
            shrunk = noisy / float(model.alphas[step + 1]) ** 0.5
            for name, found in (("noisy", shrunk), ("denoised", model.predict(noisy, step + 1)[0])):
                values[name].append(float(-10 * np.log10(np.mean(((found - image).numpy() / 2) ** 2))))
        for name, each in values.items():
            assert judged[f"psnr, {name}, step {step}"] == pytest.approx(np.mean(each), abs=1e-3)


def saved(folder: Path) -> dict[str, bytes]:
    files = [path for part in ("unet", "scheduler") for path in (folder / part).iterdir()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in (*files, folder / "model_index.json")}


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    make.train_pixel_diffusion(recipe(), photos, folder, device="cpu")
    return folder


def test_a_training_that_is_stopped_and_resumed_saves_the_same_bytes(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    steps = []
    for _ in range(5):
        done, _ = make.train_pixel_diffusion(recipe(), photos, tmp_path, minutes=0, device="cpu")
        steps.append(done.step)
    assert steps == [1, 2, 3, 4, 5]
    assert saved(tmp_path) == saved(trained)
    assert (tmp_path / "curve.csv").read_bytes() == (trained / "curve.csv").read_bytes()
    with pytest.raises(StoreError, match="belongs to another recipe"):
        make.train_pixel_diffusion(recipe(early=0.9), photos, tmp_path, device="cpu")


def test_the_saved_folder_loads_as_the_model_that_was_trained(
    trained: Path, loaded: Photographs, tmp_path: Path
) -> None:
    model = load_pixel_diffusion(trained)
    assert (model.patch, model.multiple, model.times) == (2, 4, 1000)
    assert model.schedule["prediction_type"] == "v_prediction"
    task = PixelDiffusionTask(recipe(), loaded)
    task.follow(fit(task, tmp_path).step)
    for name, tensor in task.mean_unet.state_dict().items():
        assert torch.equal(model.unet.state_dict()[name], tensor.half().float())
    found = model.purify(torch.zeros(1, 3, 30, 33), 50, torch.Generator().manual_seed(0), 2)
    assert found.shape == (1, 3, 30, 33)
    assert bool(torch.isfinite(found).all())


def test_the_card_says_what_was_trained_and_how_good_it_is(trained: Path) -> None:
    card = json.loads((trained / "card.json").read_text(encoding="utf-8"))
    assert card["kind"] == "pixel-diffusion"
    assert (card["data"]["trained_on"], card["data"]["kept_out"]) == (6, 2)
    assert (card["training"]["steps"], card["training"]["of"]) == (5, 5)
    assert {f"psnr, {name}, step {step}" for name in ("noisy", "denoised") for step in (30, 100, 200, 300)} <= set(
        card["quality"]
    )
    assert card["digests"] == {WEIGHTS: file_digest(trained / WEIGHTS)}
    assert (trained / WEIGHTS).stat().st_mode & 0o777 == 0o644
    state = load_state(trained / WEIGHTS)
    assert card["facts"]["parameters"] == sum(tensor.numel() for tensor in state.values())
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    for name in ("README.md", "curve.csv", "curve.png", "checkpoint.pt"):
        assert (trained / name).is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"early_steps": 1001}, "small: early_steps 1001 are more than the schedule's 1000"),
        ({"size": 34}, "small: size 34 must be a multiple of 4"),
        ({"patch": 3, "size": 32}, "small: size 32 must be a multiple of 6"),
        ({"model": {**MODEL, "sorcery": 1}}, r"small: model or schedule: .*unexpected keyword argument 'sorcery'"),
        ({"model": {**MODEL, "norm_num_groups": 5}}, r"small: model or schedule: .*divisible"),
        ({"model": {**MODEL, "in_channels": 3}}, r"small: model or schedule: .*'in_channels'"),
        ({"schedule": {**SCHEDULE, "sorcery": 1}}, r"small: model or schedule: .*'sorcery'"),
        ({"schedule": {**SCHEDULE, "prediction_type": "sample"}}, "epsilon or v_prediction, not sample"),
    ],
)
def test_a_model_that_cannot_be_is_refused(changes: dict[str, Any], message: str, loaded: Photographs) -> None:
    with pytest.raises(SpecError, match=message):
        PixelDiffusionTask(recipe(**changes), loaded)


def test_the_command_trains_what_an_attack_uses(cli: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    from waterproof.attacks.pixel_diffusion import DiffPure

    assert load_recipe(PixelDiffusionRecipe, "pixel-diffusion").patch == 2
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(recipe().model_dump(mode="json")), encoding="utf-8")
    said = cli("train", "pixel-diffusion", file, "--data", photos, "--out", "out", "--steps", 2, "--device", "cpu")
    assert said.code == 0, said.err
    assert "2 of 2 steps" in said.out
    assert DiffPure(model=str(tmp_path / "out")).unavailable() is None
    wrong = cli("train", "pixel-diffusion", file, "--data", "nowhere")
    assert wrong.code == 2
    assert wrong.err.strip() == "waterproof: no such folder of photographs: nowhere"
