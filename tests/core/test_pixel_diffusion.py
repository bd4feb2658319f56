"""Diffusion of pixels: equal to diffusers' schedulers step by step, and loaded strictly."""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from skimage import data

from waterproof.core import pixel_diffusion
from waterproof.core.errors import ImageError, UnavailableError, UserError
from waterproof.core.pixel_diffusion import PixelDiffusion, load_pixel_diffusion
from waterproof.core.weights import digest_of, load_state, save_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "add_attention": False,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}
SCHEDULE = {"num_train_timesteps": 100, "beta_end": 0.05}
KINDS = ("epsilon", "v_prediction", "sample")
REVISION = "0123456789abcdef0123456789abcdef01234567"


def save_model(folder: Path, kind: str = "PixelDiffusion", patch: int = 2, **changes: Any) -> Path:
    """A tiny model as ``waterproof train`` or diffusers' pipelines save it; weights from a fixed seed."""
    import diffusers

    channels = {"in_channels": 3 * patch**2, "out_channels": 3 * patch**2}
    predicts = changes.pop("prediction_type", "v_prediction")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet = diffusers.UNet2DModel(**{**UNET, **channels, **changes})
    if kind == "PixelDiffusion":
        unet.save_pretrained(folder / "unet")
        diffusers.DDIMScheduler(**SCHEDULE, prediction_type=predicts).save_pretrained(folder / "scheduler")
        (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, "patch": patch}), encoding="utf-8")
        return folder
    scheduler = getattr(diffusers, kind.replace("Pipeline", "Scheduler"))(**SCHEDULE, prediction_type=predicts)
    getattr(diffusers, kind)(unet=unet, scheduler=scheduler).save_pretrained(folder)
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model of the kind that this project trains; nobody changes it."""
    return save_model(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny pipelines of diffusers, one for each prediction."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    return {kind: save_model(path, "DDPMPipeline", 1, prediction_type=kind) for kind, path in folders.items()}


def photograph(height: int = 16, width: int = 24) -> torch.Tensor:
    """A piece of a photograph, ``[1, 3, H, W]`` in -1 to 1."""
    pixels = data.astronaut()[100 : 100 + height, 200 : 200 + width]
    return torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


def drawn(seed: int, shape: Sequence[int] = (1, 3, 16, 24)) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Equal to diffusers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [1, 40, 100])
def test_noise_is_added_as_diffusers_adds_it(own: Path, time: int) -> None:
    import diffusers

    wanted = diffusers.DDPMScheduler(**SCHEDULE).add_noise(photograph(), drawn(1), torch.tensor([time - 1]))
    model = load_pixel_diffusion(own)
    torch.testing.assert_close(model.noised(photograph(), time, drawn(1)), wanted, atol=1e-5, rtol=0)
    assert torch.equal(model.noised(photograph(), 0, drawn(1)), photograph())


@torch.no_grad()
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_deterministic_steps_are_those_of_diffusers(pipelines: dict[str, Path], kind: str, clip: bool) -> None:
    import diffusers

    model = load_pixel_diffusion(pipelines[kind])
    for time, steps in ((100, 10), (40, 4), (50, 1)):
        scheduler = diffusers.DDIMScheduler(
            **SCHEDULE, prediction_type=kind, clip_sample=clip, timestep_spacing="trailing"
        )
        scheduler.set_timesteps(100 * steps // time)
        wanted = noisy = model.noised(photograph(), time, drawn(2))
        asked = [t for t in scheduler.timesteps.tolist() if t < time]
        assert len(asked) == steps
        for t in asked:
            wanted = scheduler.step(model.unet(wanted, t).sample, t, wanted).prev_sample
        found = model.denoise(noisy, time, torch.Generator(), steps, ancestral=False, clip=clip)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_ancestral_steps_with_the_same_noises_are_those_of_diffusers(
    pipelines: dict[str, Path], kind: str, clip: bool
) -> None:
    import diffusers

    model = load_pixel_diffusion(pipelines[kind])
    # 17 is no multiple of 5: the steps that are left out are not evenly many.
    for time, steps, asked in ((12, None, range(11, -1, -1)), (17, 5, (16, 12, 9, 5, 2)), (100, 1, (99,))):
        scheduler = diffusers.DDPMScheduler(**SCHEDULE, prediction_type=kind, clip_sample=clip)
        scheduler.set_timesteps(timesteps=list(asked))
        # Its own are float32, and 1 - alpha has then few digits at the last steps.
        scheduler.alphas_cumprod = torch.from_numpy(kept()[1:])
        wanted = noisy = model.noised(photograph(), time, drawn(3))
        draws = torch.Generator().manual_seed(9)
        for t in asked:
            said = model.unet(wanted, t).sample
            wanted = scheduler.step(said, t, wanted, generator=draws).prev_sample
        found = model.denoise(noisy, time, torch.Generator().manual_seed(9), steps, clip=clip)
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["DDPMPipeline", "DDIMPipeline"])
def test_a_pipeline_of_diffusers_makes_the_image_that_it_makes_itself(kind: str, tmp_path: Path) -> None:
    import diffusers

    folder = save_model(tmp_path, kind, 1, prediction_type="epsilon", sample_size=16)
    pipeline = getattr(diffusers, kind).from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.register_to_config(timestep_spacing="trailing")
    draws = torch.Generator().manual_seed(4)
    wanted = pipeline(generator=draws, num_inference_steps=20, output_type="np").images[0]
    model, draws = load_pixel_diffusion(folder), torch.Generator().manual_seed(4)
    start = torch.randn((1, 3, 16, 16), generator=draws)
    found = model.denoise(start, 100, draws, 20, ancestral=kind == "DDPMPipeline")
    np.testing.assert_allclose(((found[0] + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy(), wanted, atol=1e-4)
    assert wanted.std() > 0.05


# The equations ------------------------------------------------------------------------------------------------------


class Formula:
    """A network that is a formula of values and time, in place of a trained one; remembers when it was asked."""

    config = SimpleNamespace(block_out_channels=(1,))

    def __init__(self, predict: Callable[[Any, int], Any]) -> None:
        self.predict = predict
        self.times: list[int] = []

    def eval(self) -> Formula:
        return self

    def requires_grad_(self, wanted: bool) -> Formula:
        assert not wanted
        return self

    def __call__(self, values: torch.Tensor, time: int) -> SimpleNamespace:
        self.times.append(time)
        return SimpleNamespace(sample=self.predict(values, time))


def of_formula(predict: Callable[[Any, int], Any], kind: str = "epsilon", patch: int = 1) -> PixelDiffusion:
    return PixelDiffusion(Formula(predict), {**SCHEDULE, "prediction_type": kind}, patch, "formula", "")


def kept() -> np.ndarray:
    """Alpha bar from time 0."""
    return np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.05, 100))])


def estimates(kind: str, said: np.ndarray, x: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Image and noise, solved from ``x = sqrt(share) image + sqrt(1 - share) noise`` and what was said."""
    a, b = np.sqrt(share), np.sqrt(1 - share)
    if kind == "v_prediction":
        image, noise = np.linalg.solve([[a, b], [-b, a]], np.stack([x.ravel(), said.ravel()]))
        return image.reshape(x.shape), noise.reshape(x.shape)
    return ((x - b * said) / a, said) if kind == "epsilon" else (said, (x - a * said) / b)


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_is_the_image_and_the_noise_that_the_formula_gives(kind: str, patch: int) -> None:
    model = of_formula(lambda values, time: 0.3 * values**2 + time / 200, kind, patch)
    noisy = model.noised(photograph(), 60, drawn(5))
    x = noisy.double().numpy()
    for found, wanted in zip(
        model.predict(noisy, 60), estimates(kind, 0.3 * x**2 + 59 / 200, x, kept()[60]), strict=True
    ):
        np.testing.assert_allclose(found.numpy(), wanted, atol=2e-5)
    torch.testing.assert_close(model.noised(model.predict(noisy, 60)[0], 60, model.predict(noisy, 60)[1]), noisy)


def test_blocks_of_pixels_are_the_networks_channels_as_in_training() -> None:
    seen: list[torch.Tensor] = []

    def remember(values: torch.Tensor, time: int) -> torch.Tensor:
        seen.append(values)
        return values

    model = of_formula(remember, "sample", 4)
    image = photograph()
    assert torch.equal(model.predict(image, 1)[0], image)
    by_hand = image[0].numpy().reshape(3, 4, 4, 6, 4).transpose(0, 2, 4, 1, 3).reshape(48, 4, 6)
    np.testing.assert_array_equal(seen[0][0].numpy(), by_hand)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert model.multiple == 4


def ancestral_by_hand(
    x: np.ndarray, times: list[int], kind: str, noises: list[np.ndarray], predict: Callable[[Any, int], Any]
) -> np.ndarray:
    """Nichol and Dhariwal's shorter schedule, as betas and as the product of Gaussians that a posterior is."""
    shares = kept()
    for number, (now, after) in enumerate(pairwise(times)):
        image = np.clip(estimates(kind, predict(x, now - 1), x, shares[now])[0], -1, 1)
        beta = 1 - shares[now] / shares[after]
        if after == 0:
            break
        # x_s is normal around sqrt(share) image; x_t is normal around sqrt(1 - beta) x_s with variance beta.
        precision = 1 / (1 - shares[after]) + (1 - beta) / beta
        mean = (np.sqrt(shares[after]) * image / (1 - shares[after]) + np.sqrt(1 - beta) * x / beta) / precision
        x = mean + np.sqrt(1 / precision) * noises[number]
    return np.asarray(image)


@pytest.mark.parametrize(("time", "steps"), [(30, None), (30, 7), (100, 3), (5, 50), (1, None)])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_respaced_ancestral_steps_are_draws_from_the_posterior(kind: str, time: int, steps: int | None) -> None:
    def predict(values: Any, t: int) -> Any:
        return 0.5 * values + 0.3 * values**2 / (1 + values**2) + t / 300

    model = of_formula(predict, kind, 2)
    noisy = model.noised(photograph(), time, drawn(6))
    found = model.denoise(noisy, time, torch.Generator().manual_seed(8), steps)
    count = min(steps or time, time)
    times = [time * i // count for i in range(count, -1, -1)]
    unet: Any = model.unet
    assert unet.times == [t - 1 for t in times[:-1]]
    assert (times[0], times[-1], len(set(times))) == (time, 0, count + 1)
    draws = torch.Generator().manual_seed(8)
    noises = [torch.randn(noisy.shape, generator=draws).double().numpy() for _ in times[2:]]
    wanted = ancestral_by_hand(noisy.double().numpy(), times, kind, noises, predict)
    np.testing.assert_allclose(found.numpy(), wanted, atol=5e-5)


def test_ancestral_steps_of_the_best_network_keep_the_statistics_of_the_images() -> None:
    sd = 0.3

    def best(values: Any, time: int) -> Any:
        share = float(kept()[time + 1])
        return values * (1 - share) ** 0.5 / (share * sd**2 + 1 - share)

    model, draws = of_formula(best), torch.Generator().manual_seed(0)
    images = sd * torch.randn((1, 3, 128, 128), generator=draws)
    ancestral, deterministic = (model.purify(images, 80, draws, ancestral=way) for way in (True, False))
    for found in (ancestral, deterministic):
        assert abs(float(found.std()) / sd - 1) < 0.08
        assert float((found - images).std()) > 0.5 * sd
    # One step is the mean of what may have been, which varies less.
    assert float(model.purify(images, 80, draws, 1).std()) < 0.8 * sd


# Draws, sizes, memory -----------------------------------------------------------------------------------------------


def test_equal_draws_give_equal_images_and_other_draws_others(own: Path) -> None:
    model = load_pixel_diffusion(own)

    def run(seed: int, ancestral: bool = True) -> torch.Tensor:
        return model.purify(photograph(), 20, torch.Generator().manual_seed(seed), 4, ancestral)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert not torch.equal(run(1), run(1, ancestral=False))
    assert not torch.equal(run(1, ancestral=False), run(2, ancestral=False))


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (4, 7), (16, 24), (33, 2)])
def test_any_size_is_mirrored_over_its_edge_and_cut_back(own: Path, size: tuple[int, int]) -> None:
    model = load_pixel_diffusion(own)
    assert model.multiple == 4
    image = photograph(*size)
    padded, before = model.pad(image)
    assert before == size
    assert padded.shape[2:] == tuple(-(-side // 4) * 4 for side in size)
    places = [np.abs((np.arange(-(-n // 4) * 4) + n - 1) % max(1, 2 * n - 2) - (n - 1)) for n in size]
    np.testing.assert_array_equal(padded.numpy(), image.numpy()[:, :, places[0]][..., places[1]])
    draws = torch.Generator().manual_seed(1)
    noisy = model.noised(padded, 10, torch.randn(padded.shape, generator=draws))
    wanted = model.denoise(noisy, 10, draws, 2)[..., : size[0], : size[1]]
    found = model.purify(image, 10, torch.Generator().manual_seed(1), 2)
    assert found.shape == image.shape
    assert torch.equal(found, wanted)


def test_time_0_is_the_image(own: Path) -> None:
    model = load_pixel_diffusion(own)
    assert torch.equal(model.purify(photograph(5, 7), 0, torch.Generator()), photograph(5, 7))
    assert torch.equal(model.denoise(photograph(5, 7), 0, torch.Generator(), 3), photograph(5, 7))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.predict(photograph(), 0), r"has the times 1 to 100: there is no 0"),
        (lambda m: m.predict(photograph(), 101), "has the times 1 to 100: there is no 101"),
        (lambda m: m.noised(photograph(), -1, drawn(0)), "has the times 0 to 100: there is no -1"),
        (lambda m: m.denoise(photograph(), 101, torch.Generator()), "there is no 101"),
        (lambda m: m.denoise(photograph(), 5, torch.Generator(), 0), "1 step or more, not 0"),
        (lambda m: m.predict(photograph(16, 23), 1), "multiples of 4 pixels, not 16 x 23: pad"),
        (lambda m: m.predict(photograph().repeat(2, 1, 1, 1), 1), r"one image at a time, .*\[2, 3, 16, 24\]"),
        (lambda m: m.purify(photograph()[0], 1, torch.Generator()), r"one image at a time, .*\[3, 16, 24\]"),
        (lambda m: m.predict(photograph().double(), 1), r"float32 \[1, 3, H, W\], not torch\.float64"),
    ],
)
def test_what_cannot_be_done_is_one_line(own: Path, call: Callable[[PixelDiffusion], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        call(load_pixel_diffusion(own))
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, ImageError) is any(word in message for word in ("pixels", "float32", "image"))


def test_no_global_random_state_is_moved_and_no_gradient_is_kept(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    before = torch.random.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    model = load_pixel_diffusion(folder)
    found = model.purify(photograph().requires_grad_(), 10, torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))  # noqa: NPY002
    assert random.getstate() == before[2]
    assert not found.requires_grad
    assert not model.unet.training
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())


# Loading ------------------------------------------------------------------------------------------------------------


def test_a_folder_of_ours_loads_in_float32(own: Path, tmp_path: Path) -> None:
    model = load_pixel_diffusion(own)
    assert (model.patch, model.multiple, model.times, model.name) == (2, 4, 100, str(own))
    np.testing.assert_allclose(model.alphas.numpy(), kept(), rtol=1e-6)
    assert model.alphas.dtype == torch.float64
    folder = save_model(tmp_path)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_state({name: tensor.half() for name, tensor in load_state(path).items()}, path)
    halved = load_pixel_diffusion(folder)
    assert {p.dtype for p in halved.unet.parameters()} == {torch.float32}
    assert not torch.equal(halved.predict(photograph(), 9)[0], model.predict(photograph(), 9)[0])
    torch.testing.assert_close(halved.predict(photograph(), 9), model.predict(photograph(), 9), atol=1e-2, rtol=0)


def test_of_learned_variances_only_the_prediction_is_taken(own: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path, "DDPMPipeline", 1, out_channels=6, prediction_type="epsilon")
    edit(folder / "scheduler" / "scheduler_config.json", variance_type="learned_range")
    model = load_pixel_diffusion(folder)
    with torch.no_grad():
        said = model.unet(photograph(), 29).sample
    assert said.shape[1] == 6
    torch.testing.assert_close(model.predict(photograph(), 30)[1], said[:, :3])


def test_the_oldest_pipelines_have_no_folders_for_their_parts(pipelines: dict[str, Path], tmp_path: Path) -> None:
    folder = save_model(tmp_path, "DDPMPipeline", 1, prediction_type="epsilon")
    for file in [*(folder / "unet").iterdir(), *(folder / "scheduler").iterdir()]:
        file.rename(folder / file.name)
    assert load_pixel_diffusion(folder).digest == load_pixel_diffusion(pipelines["epsilon"]).digest


def test_the_digest_follows_what_decides_the_images_and_nothing_else(own: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    first = load_pixel_diffusion(folder).digest
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert load_pixel_diffusion(own).digest == first
    edit(folder / "unet" / "config.json", _diffusers_version="0.1")
    edit(folder / "scheduler" / "scheduler_config.json", _class_name="PNDMScheduler")
    (folder / "card.json").write_text("{}", encoding="utf-8")
    assert load_pixel_diffusion(folder).digest == first
    seen = {first}
    for name, change in (
        ("scheduler/scheduler_config.json", {"beta_end": 0.04}),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}),
        ("unet/config.json", {"norm_eps": 1e-6}),
    ):
        edit(folder / name, **change)
        seen.add(load_pixel_diffusion(folder).digest)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_state({key: 1.1 * tensor for key, tensor in load_state(path).items()}, path)
    seen.add(load_pixel_diffusion(folder).digest)
    assert len(seen) == 5


def test_a_folder_that_is_trained_anew_is_loaded_anew(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    before = load_pixel_diffusion(folder)
    assert load_pixel_diffusion(str(folder)) is before
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_state({name: 1.1 * tensor for name, tensor in load_state(path).items()}, path)
    after = load_pixel_diffusion(folder)
    assert not torch.equal(after.predict(photograph(), 5)[0], before.predict(photograph(), 5)[0])


@pytest.mark.parametrize("part", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_a_folder_that_lacks_a_part_says_which(part: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    (folder / part).unlink()
    with pytest.raises(UnavailableError, match=rf"no pixel diffusion model there: {re.escape(part)} is missing"):
        load_pixel_diffusion(folder)


def test_weights_that_are_absent_or_do_not_fit_are_one_line(tmp_path: Path) -> None:
    path = save_model(tmp_path) / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_state(path)
    lost = sorted(state)[0]
    save_state({name: tensor for name, tensor in state.items() if name != lost}, path)
    with pytest.raises(UserError, match=rf"1 missing \({re.escape(lost)}\)"):
        load_pixel_diffusion(tmp_path)
    path.unlink()
    with pytest.raises(UnavailableError, match=r"not the weights: put diffusion_pytorch_model\.safetensors"):
        load_pixel_diffusion(tmp_path)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "StableDiffusionPipeline"},
            "a StableDiffusionPipeline, not one of DDPMPi",
        ),
        ("model_index.json", {"_class_name": None}, "a model without _class_name, not one of"),
        ("model_index.json", {"patch": 0}, r"model_index\.json: patch is a whole number .* not 0"),
        ("model_index.json", {"patch": 4}, "takes 12 channels and gives 12; for RGB in blocks of 4 x 4 .* takes 48"),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "unet: a UNet2DConditionModel, not a UNet2DM"),
        ("unet/config.json", {"num_class_embeds": 10}, "wants a class for each image"),
        ("unet/config.json", {"down_block_types": ["DownBlock2D", "Sorcery"]}, r"config\.json: the network cannot be"),
        ("unet/config.json", {"sorcery": 3}, "cannot be built"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "epsilon, v_prediction, sample, not flow"),
        ("scheduler/scheduler_config.json", {"beta_schedule": None}, "names neither beta_schedule nor trained_betas"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sorcery"}, "no schedule can be built from it: sorcery"),
        ("scheduler/scheduler_config.json", {"beta_end": -1}, "are not all above 0 and up to 1"),
    ],
)
def test_a_model_of_another_kind_is_one_line(file: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    edit(folder / file, **changes)
    with pytest.raises(UserError, match=message) as raised:
        load_pixel_diffusion(folder)
    assert "\n" not in str(raised.value)


def test_broken_configurations_are_one_line(tmp_path: Path) -> None:
    path = save_model(tmp_path) / "scheduler" / "scheduler_config.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UnavailableError, match=r"scheduler_config\.json: cannot be read"):
        load_pixel_diffusion(tmp_path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="must hold a JSON object, not a list"):
        load_pixel_diffusion(tmp_path)


def test_a_name_that_is_nothing_says_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match=r"there is no such folder; give 'shipped', a folder"):
        load_pixel_diffusion(tmp_path / "absent" / "model")
    monkeypatch.setattr(pixel_diffusion, "_SHIPPED", tmp_path / "nothing")
    with pytest.raises(UnavailableError, match="this copy of waterproof ships no pixel diffusion model: give a folder"):
        load_pixel_diffusion("shipped")


@pytest.mark.parametrize("revision", ["", "@main", f"@{REVISION[:12]}", f"@{REVISION.upper()}"])
def test_a_hub_id_needs_a_pinned_revision(revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"pixel diffusion model owner/name: .* pinned to a commit of 40 hexadecimal"):
        load_pixel_diffusion(f"owner/name{revision}")


def test_a_hub_id_out_of_reach_says_what_to_fetch(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    monkeypatch.chdir(tmp_path)
    asked: list[bool] = []
    answers: list[Exception | Path] = []

    def download(repository: str, *, revision: str, allow_patterns: list[str], local_files_only: bool) -> str:
        assert (repository, revision) == ("owner/name", REVISION)
        assert {"unet/config.json", "config.json", "diffusion_pytorch_model.safetensors"} < set(allow_patterns)
        asked.append(local_files_only)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    absent = LocalEntryNotFoundError("not in the cache")
    fetch = f"run 'hf download owner/name --revision {REVISION} --local-dir FOLDER', then give FOLDER"
    for second, reason in ((absent, "neither in the local cache nor within reach"), (OSError("403\nlong"), ": 403:")):
        answers[:] = [absent, second]
        with pytest.raises(UnavailableError, match=reason) as raised:
            load_pixel_diffusion(f"owner/name@{REVISION}")
        assert fetch in str(raised.value)
        assert "\n" not in str(raised.value)
    # A part of it in the cache does not do.
    answers[:] = [tmp_path, own]
    assert load_pixel_diffusion(f"owner/name@{REVISION}").digest == load_pixel_diffusion(own).digest
    assert asked == [True, False, True, False, True, False]


def test_the_shipped_model_loads_and_is_the_folder_that_ships() -> None:
    if not pixel_diffusion._SHIPPED.is_dir():
        pytest.skip("no pixel diffusion model ships yet")
    model = load_pixel_diffusion("shipped")
    assert model.name == "the shipped pixel diffusion model"
    assert model.digest == load_pixel_diffusion(pixel_diffusion._SHIPPED).digest
    assert len(digest_of(pixel_diffusion._SHIPPED)) == 64
    image = photograph(64, 64)
    noisy = model.noised(image, 100, drawn(0, image.shape))
    errors = [float((found - image).square().mean()) for found in (model.predict(noisy, 100)[0], noisy)]
    assert errors[0] < 0.3 * errors[1]
