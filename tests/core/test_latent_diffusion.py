"""Latent diffusion: equal to diffusers' own pipeline, back to its noise, and loaded strictly."""

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
from torch import nn

from waterproof.core.autoencoders import load_autoencoder
from waterproof.core.errors import ImageError, UnavailableError, UserError
from waterproof.core.latent_diffusion import LatentDiffusion, Sampling, load_latent_diffusion
from waterproof.core.noise_schedule import make_scheduler
from waterproof.core.weights import digest_of, load_state, save_state
from waterproof.core.words import WordEncoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from waterproof.core.images import Images

AUTOENCODER = {
    "encoder_block_out_channels": (8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8),
    "num_encoder_blocks": (1, 1, 1),
    "num_decoder_blocks": (1, 1, 1),
}
UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": False}
REVISION = "0123456789abcdef0123456789abcdef01234567"


def save_parts(folder: Path, **changes: Any) -> Path:
    """What every model has: network, autoencoder, schedule; weights from a fixed seed."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        diffusers.UNet2DConditionModel(**{**UNET, **changes}).save_pretrained(folder / "unet")
        diffusers.AutoencoderTiny(**AUTOENCODER).save_pretrained(folder / "vae")
    diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, steps_offset=1).save_pretrained(folder / "scheduler")
    return folder


def word_model(folder: Path, **changes: Any) -> Path:
    """A tiny model of the kind that this project trains."""
    save_parts(folder, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        encoder = WordEncoder(width=16)
    save_state(encoder.state_dict(), folder / "text_encoder" / "diffusion_pytorch_model.safetensors")
    (folder / "text_encoder" / "config.json").write_text(json.dumps(encoder.config), encoding="utf-8")
    index = {"_class_name": "WordLatentDiffusion", "autoencoder": "vae"}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny word model that nobody changes."""
    return word_model(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny, random Stable Diffusion."""
    import diffusers

    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("stable")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    source = folder / "source"
    source.mkdir()
    (source / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (source / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    save_parts(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        encoder = transformers.CLIPTextModel(text)
    diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderTiny.from_pretrained(folder / "vae"),
        text_encoder=encoder,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(source, model_max_length=16),
        unet=diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=diffusers.DDIMScheduler.from_pretrained(folder / "scheduler"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


# Equal to diffusers -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' solver, NumPy 2
@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("solver", ["ddim", "dpm-solver"])
def test_a_prompt_and_a_seed_give_the_image_of_diffusers_own_pipeline(
    stable: Path, solver: Any, guidance: float
) -> None:
    import diffusers

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(stable, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    if solver == "dpm-solver":
        pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)

    def direct(kind: str, height: int, width: int) -> Any:
        return pipeline(
            "a cat on a mat", num_inference_steps=7, guidance_scale=guidance, output_type=kind, height=height,
            width=width, generator=torch.Generator().manual_seed(11),
        ).images  # fmt: skip

    model = load_latent_diffusion(stable)
    for height, width in ((32, 32), (24, 40)):
        latent = model.sample(model.noise(11, (height, width)), "a cat on a mat", Sampling(7, guidance, solver))
        wanted = direct("latent", height, width)
        torch.testing.assert_close(latent, wanted, atol=1e-4, rtol=0)
        assert float(wanted.std()) > 0.3
        images = model.autoencoder.decode(latent).clamp(0, 1)
        torch.testing.assert_close(images, direct("pt", height, width), atol=1e-4, rtol=0)


def test_the_prompt_changes_the_image_only_where_there_is_guidance_or_a_prompt(stable: Path) -> None:
    model = load_latent_diffusion(stable)
    noise = model.noise(0)
    cat, dog, none = (model.sample(noise, text, Sampling(3, 4.0)) for text in ("cat", "dog", ""))
    assert not torch.allclose(cat, dog)
    assert not torch.allclose(cat, none)
    torch.testing.assert_close(model.sample(noise, "cat", Sampling(3, 0.0)), model.sample(noise, "", Sampling(3, 1.0)))


def test_a_prompt_that_is_too_long_is_refused_and_not_cut(stable: Path) -> None:
    model = load_latent_diffusion(stable)
    assert model.conditioner.embed(["a" * 14]).shape == (1, 16, 16)
    with pytest.raises(UserError, match=r"prompt 'aaa.*\.\.\.': 17 tokens, this model takes 16"):
        model.sample(model.noise(0), "a" * 15, Sampling(1))


# The equation -------------------------------------------------------------------------------------------------------


class Formula:
    """A network that is a formula of values and time, in place of a trained one; remembers when it was asked."""

    config = SimpleNamespace(in_channels=2, sample_size=8, block_out_channels=(1,))

    def __init__(self, predict: Callable[[Any, int], Any]) -> None:
        self.predict = predict
        self.times: list[int] = []

    def eval(self) -> Formula:
        return self

    def requires_grad_(self, wanted: bool) -> Formula:
        assert not wanted
        return self

    def __call__(self, values: torch.Tensor, time: torch.Tensor, embedded: torch.Tensor) -> SimpleNamespace:
        assert len(values) == len(embedded)
        self.times.append(int(time))
        return SimpleNamespace(sample=self.predict(values, int(time)))


class Silent:
    """A conditioner for networks that read no prompt."""

    digest = ""

    def embed(self, prompts: Any) -> torch.Tensor:
        return torch.zeros(len(prompts), 1, 1)


def of_formula(predict: Callable[[Any, int], Any], **schedule: Any) -> LatentDiffusion:
    plain: Any = SimpleNamespace(factor=1)
    return LatentDiffusion(Formula(predict), plain, Silent(), {**SCHEDULE, **schedule}, "formula", "")


def kept() -> np.ndarray:
    """The share of the variance that is left of the image at each time."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def smooth(values: Any, time: int) -> Any:
    """The best prediction of the noise where latents are normal values with standard deviation 0.8."""
    share = kept()[time]
    return values * float(np.sqrt(1 - share) / (0.64 * share + 1 - share))


def solved_by_hand(x: np.ndarray, steps: int, kind: str, trailing: bool, inverse: bool, predict: Any) -> np.ndarray:
    """DDIM as equation 12 of its paper has it, sigma 0, in double precision."""
    shares, ratio = kept(), 1000 // steps
    times = [(i + 1) * ratio - 1 if trailing else i * ratio for i in range(steps)]
    for time in times if inverse else times[::-1]:
        before = float(shares[max(time - ratio, 0)]) if time >= ratio else float(shares[0])
        start, end = (before, shares[time]) if inverse else (shares[time], before)
        said = predict(x, time)
        if kind == "epsilon":
            image, noise = (x - np.sqrt(1 - start) * said) / np.sqrt(start), said
        else:
            image = np.sqrt(start) * x - np.sqrt(1 - start) * said
            noise = np.sqrt(start) * said + np.sqrt(1 - start) * x
        x = np.sqrt(end) * image + np.sqrt(1 - end) * noise
    return x


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_steps_in_both_directions_are_those_of_the_formula(kind: str, spacing: str, steps: int) -> None:
    def predict(values: Any, time: int) -> Any:
        return 0.5 * values + 0.3 * values**2 / (1 + values**2) + time / 2000

    model = of_formula(predict, prediction_type=kind, timestep_spacing=spacing)
    noise = model.noise(5)
    for inverse, made in (
        (False, model.sample(noise, "", Sampling(steps, 1.0))),
        (True, model.invert(noise, steps)),
    ):
        by_hand = solved_by_hand(noise.double().numpy(), steps, kind, spacing == "trailing", inverse, predict)
        torch.testing.assert_close(made.double(), torch.from_numpy(by_hand), atol=1e-4, rtol=1e-4)


def test_guidance_leads_away_from_the_prediction_without_a_prompt() -> None:
    def predict(values: Any, time: int) -> Any:
        # The first of the two is the one without a prompt.
        return torch.cat([0 * values[:1], 0.1 + 0 * values[1:]]) if len(values) == 2 else 0.3 + 0 * values

    model = of_formula(predict)
    noise = model.noise(1)
    torch.testing.assert_close(
        model.sample(noise, "", Sampling(5, 3.0)), model.sample(noise, "", Sampling(5, 1.0)), atol=1e-5, rtol=1e-5
    )


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("solver", "limit"), [("ddim", 0.05), ("dpm-solver", 0.25)])
def test_there_and_back_again_ends_nearer_to_the_start_with_more_steps(solver: Any, limit: float) -> None:
    model = of_formula(smooth, timestep_spacing="trailing")
    start = model.noise(2)
    errors: dict[str, list[float]] = {"noise": [], "latent": []}
    for steps in (10, 40, 100):
        latent = model.sample(start, "", Sampling(steps, 1.0, solver))
        errors["noise"].append(float((model.invert(latent, steps, solver=solver) - start).abs().max()))
        noise = model.invert(start, steps, solver=solver)
        back = model.sample(noise, "", Sampling(steps, 1.0, solver))
        errors["latent"].append(float((back - start).abs().max()))
    for found in errors.values():
        assert found[0] > found[1] > found[2], errors
        assert found[2] < limit, errors
        assert found[2] < found[0] / 2, errors


class Digits(nn.Module):
    """The network of a small diffusion model that was trained on handwritten digits; state in the names of its file."""

    config = SimpleNamespace(in_channels=1, sample_size=28, block_out_channels=(1,))

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 32, 16)
        self.blocks = nn.ModuleList()
        for before, after in pairwise(widths):
            block = nn.Module()
            layers = (nn.Conv2d(before, after, 7, padding=3), nn.LayerNorm((after, 28, 28)), nn.GELU())
            block.net = nn.Sequential(*layers)
            self.blocks.append(block)
        self.blocks.append(nn.Conv2d(16, 1, 3, padding=1))
        dense = [layer for size in ((32, 128), (128, 128), (128, 128)) for layer in (nn.Linear(*size), nn.GELU())]
        self.time_embed = nn.Sequential(*dense, nn.Linear(128, 16))
        self.register_buffer("frequencies", torch.zeros(16))

    def forward(self, values: torch.Tensor, time: torch.Tensor, _: torch.Tensor) -> SimpleNamespace:
        phases = time / 1000 * self.frequencies
        told = self.time_embed(torch.cat([phases.sin(), phases.cos() - 1]))
        first, *middle, last = self.blocks
        values = first.net(values) + told[:, None, None]
        for block in middle:
            values = block.net(values)
        return SimpleNamespace(sample=last(values))


def test_a_trained_network_leads_its_own_images_back_to_their_noise(shared_data: Path) -> None:
    file = shared_data / "weights" / "ddpm-mnist" / "ddpm_mnist_augmentation.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    network = Digits()
    network.load_state_dict({name.removeprefix("gt."): v for name, v in state.items() if name.startswith("gt.")})
    schedule = {"trained_betas": state["beta_t"][:1000].tolist(), "set_alpha_to_one": False, "steps_offset": 1}
    plain: Any = SimpleNamespace(factor=1)
    model = LatentDiffusion(network, plain, Silent(), schedule, "digits", "")
    for seed in range(2):
        noise = model.noise(seed)
        likeness = []
        for steps in (20, 100, 250):
            image = model.sample(noise, "", Sampling(steps, 1.0))
            # A digit is bright strokes on a dark ground, -.5 to .5; noise is neither.
            assert 0.05 < float((image > 0.2).float().mean()) < 0.35
            assert float((image.abs() > 0.3).float().mean()) > 0.8
            found = model.invert(image, steps)
            likeness.append(float(nn.functional.cosine_similarity(found.flatten(), noise.flatten(), dim=0)))
        # The scheduler asks the network about the time that a step goes to. Where the image is all but certain, as here
        # at the end, that shrinks what is left of the noise, and only more steps help.
        assert likeness[0] < likeness[1] < likeness[2], likeness
        assert likeness[1] > 0.8, likeness
        assert likeness[2] > 0.95, likeness
        assert float((found.sign() == noise.sign()).float().mean()) > 0.94


# Image to image -----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize(("strength", "count"), [(0.15, 1), (0.5, 3), (0.7, 4), (0.99, 6), (1.0, 7)])
def test_an_edit_is_that_of_diffusers_own_pipeline(
    stable: Path, photographs: Images, strength: float, count: int, guidance: float
) -> None:
    import diffusers

    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(stable, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    image = photographs.take([1]).float()[..., 100:124, 90:130]

    def direct(kind: str) -> Any:
        return pipeline(
            "a cat on a mat", image, strength, num_inference_steps=7, guidance_scale=guidance, output_type=kind,
            generator=torch.Generator().manual_seed(11),
        ).images  # fmt: skip

    model = load_latent_diffusion(stable)
    latent, noise = model.autoencoder.encode(image), model.noise(11, (24, 40))
    edited = model.edit(latent, "a cat on a mat", noise, strength, Sampling(7, guidance))
    wanted = direct("latent")
    assert int(7 * strength) == count == pipeline._num_timesteps
    torch.testing.assert_close(edited, wanted, atol=1e-4, rtol=0)
    assert float((wanted - latent).abs().mean()) > 0.01
    images = model.autoencoder.decode(edited).clamp(0, 1)
    torch.testing.assert_close(images, direct("pt"), atol=1e-4, rtol=0)


def test_an_edit_of_no_step_is_the_latent(stable: Path) -> None:
    # diffusers' pipeline then returns no image at all.
    model = load_latent_diffusion(stable)
    latent, noise = model.noise(1), model.noise(2)
    for strength in (0.0, 0.1, 0.999 / 7):
        assert torch.equal(model.edit(latent, "a cat", noise, strength, Sampling(7, 7.5)), latent)


def test_an_edit_follows_its_prompt_its_noise_and_its_guidance(stable: Path) -> None:
    model = load_latent_diffusion(stable)
    latent, noise = model.noise(1), model.noise(2)

    def edited(prompt: str = "cat", noise: torch.Tensor = noise, guidance: float = 4.0) -> torch.Tensor:
        return model.edit(latent, prompt, noise, 0.5, Sampling(6, guidance))

    first = edited()
    assert torch.equal(edited(), first)
    for other in (edited("dog"), edited(noise=model.noise(3)), edited(guidance=2.0), edited(guidance=1.0)):
        assert not torch.allclose(other, first)
    torch.testing.assert_close(edited(guidance=0.0), edited("", guidance=1.0))


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize(("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0)])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_denoising_goes_the_steps_of_diffusers_scheduler(kind: str, spacing: str, offset: int, closed: bool) -> None:
    import diffusers

    def predict(values: Any, time: int) -> Any:
        return 0.5 * values + 0.3 * values**2 / (1 + values**2) + time / 2000

    settings: dict[str, Any] = {
        **SCHEDULE, "prediction_type": kind, "timestep_spacing": spacing, "steps_offset": offset,
        "set_alpha_to_one": closed,
    }  # fmt: skip
    model = of_formula(predict, **settings)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, **settings)
    for steps in (1, 4, 10, 50):
        scheduler.set_timesteps(steps)
        assert model.times(steps) == scheduler.timesteps.tolist()
        for last in {1, (steps + 1) // 2, steps}:
            times = scheduler.timesteps[-last:]
            noisy = scheduler.add_noise(model.noise(5), model.noise(6), times[:1])
            values = noisy
            for time in times:
                values = scheduler.step(predict(values, int(time)), time, values).prev_sample
            torch.testing.assert_close(model.denoise(noisy, times.tolist()), values, atol=1e-5, rtol=1e-5)


def test_denoising_is_the_formula_on_any_times() -> None:
    def predict(values: Any, time: int) -> Any:
        return 0.5 * values + 0.3 * values**2 / (1 + values**2) + time / 2000

    model, shares = of_formula(predict), kept()
    unet: Any = model.unet
    for times in ([60, 40, 20], [999], [0], [700, 650, 321, 5, 0]):
        noisy = model.noise(7)
        x = noisy.double().numpy()
        for time, after in zip(times, [*times[1:], 0], strict=True):
            said = predict(x, time)
            image = (x - np.sqrt(1 - shares[time]) * said) / np.sqrt(shares[time])
            x = np.sqrt(shares[after]) * image + np.sqrt(1 - shares[after]) * said
        unet.times.clear()
        torch.testing.assert_close(model.denoise(noisy, times).double(), torch.from_numpy(x), atol=1e-4, rtol=1e-4)
        assert unet.times == times


def test_times_are_those_of_diffusers_scheduler(stable: Path) -> None:
    import diffusers

    scheduler = diffusers.DDIMScheduler.from_pretrained(stable / "scheduler")
    model = load_latent_diffusion(stable)
    for steps in (1, 7, 20, 50, 333, 999):
        scheduler.set_timesteps(steps)
        assert model.times(steps) == scheduler.timesteps.tolist()
    assert model.times(50)[-3:] == [41, 21, 1]


def test_noise_is_added_as_diffusers_scheduler_adds_it(stable: Path) -> None:
    import diffusers

    scheduler = diffusers.DDIMScheduler.from_pretrained(stable / "scheduler")
    model = load_latent_diffusion(stable)
    latent, noise = model.noise(1), model.noise(2)
    for time in (0, 1, 60, 500, 999):
        wanted = scheduler.add_noise(latent, noise, torch.tensor([time]))
        torch.testing.assert_close(model.noised(latent, time, noise), wanted, atol=1e-6, rtol=1e-6)


def test_times_and_steps_that_the_model_does_not_know_are_one_line(words: Path) -> None:
    model = load_latent_diffusion(words)
    latent = model.noise(0)
    for time in (-1, 1000, 5000):
        with pytest.raises(UserError, match=rf"was trained with the time steps 0 to 999, not {time}$") as raised:
            model.noised(latent, time, latent)
        assert "\n" not in str(raised.value)
    for steps in (-1, 0, 1000):
        asked: list[Callable[[], object]] = [
            lambda steps=steps: model.times(steps),  # type: ignore[misc]
            lambda steps=steps: model.sample(latent, "", Sampling(steps)),  # type: ignore[misc]
            lambda steps=steps: model.invert(latent, steps),  # type: ignore[misc]
            lambda steps=steps: model.edit(latent, "", latent, 0.5, Sampling(steps)),  # type: ignore[misc]
        ]
        for ask in asked:
            with pytest.raises(UserError, match=rf"1000 time steps: it samples .* fewer, not with {steps}$") as raised:
                ask()
            assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("solver", ["ddim", "dpm-solver"])
def test_no_time_is_below_zero(solver: Any) -> None:
    # diffusers counts 62 times where 61 are asked for, and the last is -1.
    model = of_formula(smooth, timestep_spacing="trailing")
    unet: Any = model.unet
    start = model.noise(4)
    for steps in (61, 103, 499):
        for run in (
            lambda count: model.sample(start, "", Sampling(count, 1.0, solver)),
            lambda count: model.invert(start, count, solver=solver),
        ):
            unet.times.clear()
            found = run(steps)
            assert len(unet.times) == steps
            assert min(unet.times) >= 0
            # Neighbours find about the same; 500 steps of DDIM find what 499 would if they did not lag behind.
            if steps < 200:
                torch.testing.assert_close(found, run(steps + 1), atol=0.1, rtol=0.1)
    for steps in range(1, 1000):
        times = model.times(steps)
        assert len(times) == steps
        assert all(0 <= later < time <= 999 for time, later in pairwise(times))


@pytest.mark.parametrize("times", [[], [1000], [60, -1], [20, 60], [60, 60]])
def test_times_that_do_not_fall_or_are_unknown_are_one_line(words: Path, times: list[int]) -> None:
    model = load_latent_diffusion(words)
    with pytest.raises(UserError, match=r"time steps 0 to 999, not|one or more and fall: not") as raised:
        model.denoise(model.noise(0), times)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("strength", [-0.1, 1.01, 1.5, float("nan"), float("inf")])
def test_the_strength_of_an_edit_is_a_share(words: Path, strength: float) -> None:
    model = load_latent_diffusion(words)
    with pytest.raises(UserError, match=rf"share of the steps, 0 to 1, not {strength}"):
        model.edit(model.noise(0), "", model.noise(1), strength, Sampling(4))


def test_what_nobody_asks_for_again_is_not_remembered(words: Path) -> None:
    model = load_latent_diffusion(words)
    model._latents.clear()
    noise = model.noise(5)
    latent = model.sample(noise, "red", Sampling(2), remember=False)
    back = model.invert(latent, 2, remember=False)
    assert not model._latents
    assert torch.equal(model.sample(noise, "red", Sampling(2)), latent)
    assert torch.equal(model.invert(latent, 2), back)
    assert len(model._latents) == 2


# Seeds and memory ---------------------------------------------------------------------------------------------------


def test_noise_is_what_torch_draws_from_the_seed(words: Path) -> None:
    model = load_latent_diffusion(words)
    assert (model.channels, model.size, model.multiple) == (4, 32, 8)
    for seed in (0, 7, 2**63 - 1):
        expected = torch.randn((1, 4, 6, 10), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(model.noise(seed, (24, 40)), expected)
    assert model.noise(1).shape == (1, 4, 8, 8)
    assert not torch.equal(model.noise(1), model.noise(2))


def test_remembered_latents_are_the_fresh_ones_and_nobody_can_write_into_them(
    words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_latent_diffusion(words)
    assert load_latent_diffusion(str(words)) is not None
    noise = model.noise(21)
    calls: list[object] = []
    run = model._run
    monkeypatch.setattr(model, "_run", lambda *args, **kwargs: (calls.append(args), run(*args, **kwargs))[1])
    first = model.sample(noise, "dark blue", Sampling(3))
    kept_aside = first.clone()
    first.zero_()
    again = model.sample(noise.clone(), "dark blue", Sampling(3))
    assert len(calls) == 1
    assert torch.equal(again, kept_aside)
    model._latents.clear()
    assert torch.equal(model.sample(noise, "dark blue", Sampling(3)), kept_aside)
    back = model.invert(again, 3)
    back_aside = back.clone()
    back.zero_()
    assert torch.equal(model.invert(again, 3), back_aside)
    assert len(calls) == 3
    for other in (Sampling(4), Sampling(3, 2.0)):
        assert not torch.equal(model.sample(noise, "dark blue", other), kept_aside)
    assert not torch.equal(model.sample(noise, "red", Sampling(3)), kept_aside)
    assert not torch.equal(model.sample(model.noise(22), "dark blue", Sampling(3)), kept_aside)
    assert len(calls) == 7


def test_what_is_remembered_does_not_grow_without_end(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from waterproof.core import latent_diffusion

    monkeypatch.setattr(latent_diffusion, "_REMEMBERED", 3)
    model = of_formula(smooth)
    for seed in (0, 1, 2, 0, 3):
        model.sample(model.noise(seed), "", Sampling(1, 1.0))
    assert len(model._latents) == 3
    unet: Any = model.unet
    asked = len(unet.times)
    # The one that was not asked for longest is gone.
    for seed, fresh in ((0, 0), (2, 0), (3, 0), (1, 1)):
        model.sample(model.noise(seed), "", Sampling(1, 1.0))
        assert len(unet.times) - asked == fresh


def test_no_global_random_state_is_moved(tmp_path: Path) -> None:
    folder = word_model(tmp_path)
    before = torch.random.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    model = load_latent_diffusion(folder)
    model.invert(model.sample(model.noise(3), "red", Sampling(2)), 2)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))  # noqa: NPY002
    assert random.getstate() == before[2]


def test_gradients_are_neither_kept_nor_needed(words: Path) -> None:
    model = load_latent_diffusion(words)
    assert not model.unet.training
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())
    assert not model.sample(model.noise(4).requires_grad_(), "", Sampling(1)).requires_grad


# Loading ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_word_model_reads_words_and_makes_images(words: Path) -> None:
    model = load_latent_diffusion(words)
    noise = model.noise(8)
    one, same, other = (
        model.sample(noise, text, Sampling(4)) for text in ("a dark blue photograph", "blue, dark", "bright red")
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    assert model.autoencoder.decode(one).shape == (1, 3, 32, 32)
    with pytest.raises(UserError, match=r"does not know the word 'bleu'\. Did you mean 'blue'"):
        model.sample(noise, "bleu", Sampling(4))
    assert model.name == str(words)


def test_the_autoencoder_is_the_one_that_the_index_names(words: Path, tmp_path: Path) -> None:
    folder = word_model(tmp_path)
    assert load_latent_diffusion(folder).autoencoder.digest == load_autoencoder(words / "vae").digest
    (folder / "vae").rename(folder / "over")
    edit(folder / "model_index.json", autoencoder="over")
    digest = load_latent_diffusion(folder).digest
    edit(folder / "model_index.json", autoencoder="shipped")
    model = load_latent_diffusion(folder)
    assert model.autoencoder.digest == load_autoencoder("shipped").digest
    assert model.digest != digest


def test_the_digest_follows_what_decides_the_images_and_nothing_else(words: Path, tmp_path: Path) -> None:
    folder = word_model(tmp_path)
    first = load_latent_diffusion(folder).digest
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert load_latent_diffusion(words).digest == first
    edit(folder / "unet" / "config.json", _diffusers_version="0.1")
    edit(folder / "scheduler" / "scheduler_config.json", _class_name="PNDMScheduler")
    edit(folder / "text_encoder" / "config.json", _name_or_path="elsewhere")
    (folder / "card.json").write_text("{}", encoding="utf-8")
    assert load_latent_diffusion(folder).digest == first
    seen = {first}
    for path, change in (
        ("scheduler/scheduler_config.json", {"beta_end": 0.013}),
        ("unet/config.json", {"norm_eps": 1e-6}),
        ("vae/config.json", {"scaling_factor": 0.9}),
        ("text_encoder/config.json", {"ignored": ["very"]}),
    ):
        edit(folder / path, **change)
        seen.add(load_latent_diffusion(folder).digest)
    word_model(folder, norm_num_groups=8)
    seen.add(load_latent_diffusion(folder).digest)
    assert len(seen) == 6


def test_a_folder_that_is_trained_anew_is_loaded_anew(tmp_path: Path) -> None:
    folder = word_model(tmp_path)
    before = load_latent_diffusion(folder)
    assert load_latent_diffusion(folder) is before
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_state({name: 1.1 * tensor for name, tensor in load_state(path).items()}, path)
    after = load_latent_diffusion(folder)
    noise = after.noise(0)
    assert not torch.equal(after.sample(noise, "", Sampling(1)), before.sample(noise, "", Sampling(1)))


def test_sizes_that_the_network_cannot_make_are_answered_with_one_that_it_can(words: Path) -> None:
    model = load_latent_diffusion(words)
    for size, near in (((30, 41), "32 x 40"), ((3, 8), "8 x 8"), ((0, 32), "8 x 32")):
        with pytest.raises(ImageError, match=rf"multiples of 8 pixels: not {size[0]} x {size[1]}, .* example {near}"):
            model.noise(0, size)


@pytest.mark.parametrize("part", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_a_folder_that_lacks_a_part_says_which(part: str, tmp_path: Path) -> None:
    folder = word_model(tmp_path)
    (folder / part).unlink()
    with pytest.raises(UnavailableError, match=rf"no latent diffusion model there: {re.escape(part)} is missing"):
        load_latent_diffusion(folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_that_are_absent_or_do_not_fit_are_one_line(part: str, tmp_path: Path) -> None:
    path = word_model(tmp_path) / part / "diffusion_pytorch_model.safetensors"
    state = load_state(path)
    lost = sorted(state)[0]
    save_state({name: tensor for name, tensor in state.items() if name != lost}, path)
    with pytest.raises(UserError, match=rf"1 missing \({re.escape(lost)}\)"):
        load_latent_diffusion(tmp_path)
    path.unlink()
    with pytest.raises(UnavailableError, match=r"not the weights: put diffusion_pytorch_model\.safetensors"):
        load_latent_diffusion(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "UNet2DModel"}, r"unet: a UNet2DModel, not a UNet2DConditionModel"),
        ({"addition_embed_type": "text_time"}, "Stable Diffusion XL"),
        ({"class_embed_type": "timestep"}, "wants more than a prompt"),
        ({"down_block_types": ["DownBlock2D", "Sorcery"]}, r"config\.json: the network cannot be built"),
        ({"sorcery": 3}, "cannot be built"),
    ],
)
def test_a_network_of_another_kind_is_refused(
    changes: dict[str, Any], message: str, words: Path, tmp_path: Path
) -> None:
    folder = word_model(tmp_path)
    edit(folder / "unet" / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        load_latent_diffusion(folder)


def test_latents_of_other_channels_than_the_autoencoders_are_refused(tmp_path: Path) -> None:
    folder = word_model(tmp_path, in_channels=3, out_channels=3)
    with pytest.raises(UserError, match="takes latents of 3 channels, its autoencoder makes 4"):
        load_latent_diffusion(folder)


def test_a_pipeline_without_its_text_encoder_is_one_line(stable: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(stable, tmp_path / "copy")
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(UnavailableError, match=r"tokenizer/ or text_encoder/ cannot be loaded") as raised:
        load_latent_diffusion(folder)
    assert "\n" not in str(raised.value)


def test_a_name_that_is_nothing_says_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from waterproof.core import latent_diffusion

    with pytest.raises(UnavailableError, match=r"there is no such folder; give 'shipped', a folder"):
        load_latent_diffusion(tmp_path / "absent" / "model")
    monkeypatch.setattr(latent_diffusion, "_SHIPPED", tmp_path / "nothing")
    with pytest.raises(UnavailableError, match="ships no latent diffusion model"):
        load_latent_diffusion("shipped")


@pytest.mark.parametrize("revision", ["", "@main", f"@{REVISION[:12]}", f"@{REVISION.upper()}"])
def test_a_hub_id_needs_a_pinned_revision(revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="pinned to a commit of 40 hexadecimal digits, as owner/name@REVISION"):
        load_latent_diffusion(f"owner/name{revision}")


def test_a_hub_id_out_of_reach_says_what_to_fetch(tmp_path: Path, words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    monkeypatch.chdir(tmp_path)
    asked: list[bool] = []
    answers: list[Exception | Path] = []

    def download(repository: str, *, revision: str, allow_patterns: list[str], local_files_only: bool) -> str:
        assert (repository, revision) == ("owner/name", REVISION)
        assert "unet/*.json" in allow_patterns
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
            load_latent_diffusion(f"owner/name@{REVISION}")
        assert fetch in str(raised.value)
        assert "\n" not in str(raised.value)
    answers[:] = [words]
    assert load_latent_diffusion(f"owner/name@{REVISION}").digest == load_latent_diffusion(words).digest
    assert asked == [True, False, True, False, True]


def test_broken_configurations_are_one_line(tmp_path: Path) -> None:
    folder = word_model(tmp_path)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UnavailableError, match=r"scheduler_config\.json: cannot be read"):
        load_latent_diffusion(folder)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="must hold a JSON object, not a list"):
        load_latent_diffusion(folder)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_schedules_keep_what_the_model_was_trained_with_and_what_others_know_is_left_out() -> None:
    schedule = {**SCHEDULE, "prediction_type": "v_prediction", "skip_prk_steps": True, "clip_sample": True}
    for solver in ("ddim", "dpm-solver"):
        for inverse in (False, True):
            scheduler = make_scheduler(schedule, solver, inverse)  # type: ignore[arg-type]
            assert scheduler.config.prediction_type == "v_prediction"
            np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), kept(), rtol=1e-4)
            if solver == "ddim":
                assert not scheduler.config.clip_sample
            else:
                assert (scheduler.config.algorithm_type, scheduler.config.solver_order) == ("dpmsolver++", 2)


def test_the_shipped_model_loads_and_is_the_folder_that_ships() -> None:
    from waterproof.core import latent_diffusion

    model = load_latent_diffusion("shipped")
    assert (model.name, model.size) == ("the shipped latent diffusion model", 256)
    assert model.autoencoder.digest == load_autoencoder("shipped").digest
    assert model.digest == load_latent_diffusion(latent_diffusion._SHIPPED).digest
    assert len(digest_of(latent_diffusion._SHIPPED)) == 64
    assert model.sample(model.noise(0, (64, 64)), "a dark blue photograph", Sampling(2)).std() > 0
