"""Noisy upscaling: equal to diffusers' own pipeline, in any batch, and loaded strictly."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from waterproof.attacks.upscaling import NoisyUpscaling, load_upscaler
from waterproof.core import effort
from waterproof.core.components import build
from waterproof.core.errors import SpecError, UnavailableError, UserError
from waterproof.core.images import Images, Record
from waterproof.core.seeds import Seed
from waterproof.core.weights import load_state, save_state

if TYPE_CHECKING:
    from pathlib import Path

SEED = Seed.root(11)
REVISION = "0123456789abcdef0123456789abcdef01234567"
UNET = {
    "sample_size": 8,
    "in_channels": 7,
    "out_channels": 4,
    "block_out_channels": (8, 8, 8, 16),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "num_class_embeds": 1000,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
}
AUTOENCODER = {
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.08333,
}
SCHEDULE = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
"""Those of the published model; the networks are much smaller."""


def text_parts(folder: Path) -> tuple[Any, Any]:
    """A tokeniser of letters and a text encoder of random weights."""
    import transformers

    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=16), transformers.CLIPTextModel(config)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny, random upscaler that nobody changes."""
    import diffusers

    pytest.importorskip("transformers", reason="the text encoder needs the package transformers")
    folder = tmp_path_factory.mktemp("upscaler")
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(3)
        tokenizer, encoder = text_parts(tmp_path_factory.mktemp("text") / "tokenizer")
        unet = diffusers.UNet2DConditionModel(**UNET)
        # Random networks hardly look at their classes, prompts and images; this one does.
        with torch.no_grad():
            for name, parameter in unet.named_parameters():
                if name.startswith(("conv_in.", "class_embedding.", "conv_out.")) or ".attn2." in name:
                    parameter.mul_(4)
        diffusers.StableDiffusionUpscalePipeline(
            vae=diffusers.AutoencoderKL(**AUTOENCODER),
            text_encoder=encoder,
            tokenizer=tokenizer,
            unet=unet,
            low_res_scheduler=diffusers.DDPMScheduler(**SCHEDULE),
            scheduler=diffusers.DDIMScheduler(
                **SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"
            ),
        ).save_pretrained(folder)
    return folder


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return shutil.copytree(made, tmp_path / "upscaler")


@pytest.fixture
def pictures(photographs: Images) -> Images:
    """Cut-outs of photographs whose sides are no multiples of anything."""
    return photographs.with_pixels(photographs.numpy()[:, 60:87, 90:131].copy())


def attack(folder: Path, **params: Any) -> NoisyUpscaling:
    return NoisyUpscaling(model=str(folder), **{"steps": 2, **params})


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def reason(folder: Path | str, **params: Any) -> str:
    """Why the attack cannot be used: one line, also of ``apply``, and no digest."""
    made = NoisyUpscaling(model=str(folder), **params)
    said = made.unavailable()
    assert said is not None
    assert "\n" not in said
    assert made.digests() == {}
    with pytest.raises(UserError) as caught:
        made.apply(Images.from_numpy(np.zeros((1, 8, 8, 3), np.uint8), [Record("a")]), SEED)
    assert str(caught.value) == said
    return said


# Equal to diffusers -------------------------------------------------------------------------------------------------


def by_diffusers(folder: Path, image: Images, sd: float, added: int | None, **call: Any) -> np.ndarray:
    """The attack of one image with diffusers' own pipeline: grey levels ``[H, W, 3]``, not rounded."""
    import diffusers

    pipeline = diffusers.StableDiffusionUpscalePipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    if added is not None:
        # The one change of the released code: another noise level is added than the one that the network is told.
        add = pipeline.low_res_scheduler.add_noise
        pipeline.low_res_scheduler.add_noise = lambda image, noise, _: add(image, noise, torch.tensor([added]))
    picture = image.numpy()[0]
    height, width = picture.shape[:2]
    padded = np.pad(picture, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge").astype(np.float64)
    draw = SEED.child(image.ids[0]).torch()
    noise = torch.randn((1, 3, *padded.shape[:2]), generator=draw)[0].permute(1, 2, 0).numpy()
    noisy = np.clip(padded + 255 * sd * noise, 0, 255).round().astype(np.uint8)
    values = torch.tensor(noisy).permute(2, 0, 1)[None].float() / 255
    large = pipeline(image=values, generator=draw, output_type="pt", **call).images[0].permute(1, 2, 0).numpy()
    assert large.shape == (4 * padded.shape[0], 4 * padded.shape[1], 3)
    blocks = large.reshape(padded.shape[0], 4, padded.shape[1], 4, 3)
    means: np.ndarray = blocks.mean(axis=(1, 3), dtype=np.float64)[:height, :width] * 255
    return means


@pytest.mark.parametrize("size", [(32, 48), (27, 41)])
@pytest.mark.parametrize(("prompt", "guidance"), [("", 9.0), ("a cat", 9.0), ("a cat", 1.0)])
@pytest.mark.parametrize("added", [None, 0])
def test_the_result_is_that_of_diffusers_own_pipeline(
    made: Path, photographs: Images, size: tuple[int, int], prompt: str, guidance: float, added: int | None
):
    image = photographs.take([1])
    image = image.with_pixels(image.numpy()[:, 60 : 60 + size[0], 90 : 90 + size[1]].copy())
    wanted = by_diffusers(
        made, image, 0.1, added, prompt=prompt, num_inference_steps=3, guidance_scale=guidance, noise_level=200
    )
    attacked = attack(made, steps=3, noise_level=200, added_level=added, prompt=prompt, guidance=guidance)
    found = attacked.apply(image, SEED)
    assert found.size == size
    assert wanted.std() > 3
    assert np.abs(found.numpy()[0] - wanted).max() <= 0.51


@torch.no_grad()
def test_the_large_image_is_diffusers_pixel_by_pixel_and_every_setting_counts(made: Path, photographs: Images):
    import diffusers

    pipeline = diffusers.StableDiffusionUpscalePipeline.from_pretrained(made, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    small = photographs.take([2]).float()[..., 100:124, 50:66]
    upscaler = load_upscaler(str(made))

    def draw() -> torch.Generator:
        return torch.Generator().manual_seed(4)

    wanted = pipeline(
        "a dog", image=small, num_inference_steps=5, guidance_scale=4.0, noise_level=50, generator=draw(),
        output_type="pt",
    ).images  # fmt: skip
    found = upscaler.enlarge(small, draw(), 5, 50, 50, "a dog", 4.0)
    assert found.shape == (1, 3, 96, 64)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    for other in ((4, 50, 50, "a dog", 4.0), (5, 300, 50, "a dog", 4.0), (5, 50, 300, "a dog", 4.0),
                  (5, 50, 50, "a cat", 4.0), (5, 50, 50, "a dog", 1.0)):  # fmt: skip
        assert float((upscaler.enlarge(small, draw(), *other) - found).abs().max()) > 1e-3
    assert float((upscaler.enlarge(1 - small, draw(), 5, 50, 50, "a dog", 4.0) - found).abs().max()) > 1e-3


def test_an_autoencoder_that_does_not_say_its_scale_has_that_of_diffusers_pipeline(
    made: Path, own: Path, pictures: Images
):
    for scale in (0.18215, None):
        config = json.loads((made / "vae" / "config.json").read_text(encoding="utf-8"))
        config.pop("scaling_factor")
        (own / "vae" / "config.json").write_text(json.dumps(config | ({"scaling_factor": scale} if scale else {})))
        found = attack(own).apply(pictures, SEED).numpy()
        np.testing.assert_array_equal(found, attack(made).apply(pictures, SEED).numpy())


# Each image by itself -----------------------------------------------------------------------------------------------


def test_an_image_is_the_same_alone_in_any_batch_and_in_any_order(made: Path, pictures: Images):
    upscaled = attack(made, prompt="a cat")
    together = upscaled.apply(pictures, SEED)
    assert together.ids == pictures.ids
    for i in range(3):
        np.testing.assert_array_equal(upscaled.apply(pictures.take([i]), SEED).numpy()[0], together.numpy()[i])
    np.testing.assert_array_equal(upscaled.apply(pictures.take([2, 0]), SEED).numpy(), together.numpy()[[2, 0]])


def test_draws_follow_the_seed_and_the_id_and_no_global_generator(made: Path, pictures: Images):
    upscaled, before = attack(made), torch.random.get_rng_state()
    twins = Images(pictures.pixels[[0, 0]], (Record("one"), Record("other")))
    one, other = upscaled.apply(twins, SEED).numpy()
    assert not np.array_equal(one, other)
    assert not np.array_equal(upscaled.apply(twins, Seed.root(12)).numpy()[0], one)
    np.testing.assert_array_equal(upscaled.apply(twins, SEED).numpy()[0], one)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (33, 1)])
def test_tiny_images_and_empty_batches_are_no_trouble(made: Path, photographs: Images, size: tuple[int, int]):
    images = photographs.with_pixels(photographs.numpy()[:, : size[0], : size[1]].copy())
    assert attack(made, steps=1).apply(images.take([0]), SEED).size == size
    assert len(attack(made, steps=1).apply(images.take([]), SEED)) == 0


@pytest.mark.parametrize(
    ("prompt", "guidance", "calls"), [("", 1.0, 3), ("", 9.0, 3), ("a cat", 1.0, 3), ("a cat", 9.0, 6)]
)
def test_evaluations_are_counted_twice_with_guidance(
    made: Path, pictures: Images, prompt: str, guidance: float, calls: int
):
    with effort.measured() as spent:
        attack(made, steps=3, prompt=prompt, guidance=guidance).apply(pictures, SEED)
    # For each of three images; one more to decode the latent.
    assert spent.evaluations == 3 * (calls + 1)


# Weights ------------------------------------------------------------------------------------------------------------


def test_where_nothing_is_it_says_what_to_put_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: Path, pictures: Images
):
    monkeypatch.setenv("WATERPROOF_WEIGHTS", str(tmp_path / "weights"))
    place = tmp_path / "weights" / "x4-upscaler"
    left_out = NoisyUpscaling(steps=1)
    assert left_out.unavailable() == (
        f"diffusion upscaler {place}: there is no such folder: put one of diffusers' StableDiffusionUpscalePipeline "
        "there (such as that of stabilityai/stable-diffusion-x4-upscaler), or give model: its folder, or "
        "owner/name@revision"
    )
    assert left_out.digests() == {}
    with pytest.raises(UnavailableError, match="there is no such folder"):
        left_out.apply(pictures, SEED)
    assert reason("no/such/folder").startswith("diffusion upscaler no/such/folder: there is no such folder: put one")
    assert reason("shipped").startswith("diffusion upscaler shipped: there is no such folder: put one")
    place.parent.mkdir()
    own.rename(place)
    assert left_out.unavailable() is None
    assert left_out.spec().id == attack(place, steps=1).spec().id


def test_a_hub_id_needs_its_revision_and_is_looked_for_in_the_cache_first(monkeypatch: pytest.MonkeyPatch, made: Path):
    hub = pytest.importorskip("huggingface_hub")
    assert "needs its revision pinned to a commit of 40 hexadecimal digits" in reason("somebody/upscaler")
    asked: list[dict[str, Any]] = []

    def snapshot(repository: str, **options: Any) -> str:
        asked.append({"repository": repository, **options})
        return str(made)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert NoisyUpscaling(model=f"somebody/upscaler@{REVISION}").unavailable() is None
    assert [(a["repository"], a["revision"], a["local_files_only"]) for a in asked] == [
        ("somebody/upscaler", REVISION, True)
    ]
    patterns = asked[0]["allow_patterns"]
    assert {"low_res_scheduler/*.json", "text_encoder/model.safetensors"} < set(patterns)
    assert all(pattern.endswith((".json", ".txt", ".safetensors")) for pattern in patterns)


def test_a_folder_of_another_kind_is_refused(own: Path):
    edit(own / "model_index.json", _class_name="StableDiffusionPipeline")
    assert reason(own) == f"{own}: a StableDiffusionPipeline, not a StableDiffusionUpscalePipeline"
    (own / "model_index.json").unlink()
    assert reason(own).startswith(f"{own}: no diffusion upscaler there: model_index.json is missing (a folder as ")


@pytest.mark.parametrize(
    "part",
    [
        "unet/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "low_res_scheduler/scheduler_config.json",
        "text_encoder/model.safetensors",
    ],
)
def test_a_missing_part_is_named(own: Path, part: str):
    (own / part).unlink()
    assert reason(own).startswith(f"{own}: no diffusion upscaler there: {part} is missing")


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_only_safetensors_are_read(own: Path, part: str):
    weights = own / part / "diffusion_pytorch_model.safetensors"
    torch.save(load_state(weights), weights.with_suffix(".bin"))
    weights.unlink()
    wanted = f"{own / part}: config.json is there, but not the weights: put {weights.name} beside it"
    assert reason(own) == wanted


@pytest.mark.parametrize(
    "file",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ],
)
@pytest.mark.parametrize("what", ["missing", "unexpected"])
def test_weights_that_do_not_fit_are_refused(own: Path, file: str, what: str):
    state = load_state(own / file)
    if what == "missing":
        state.pop(sorted(state)[0])
    else:
        state["spare"] = torch.zeros(1)
    save_state(state, own / file, {"format": "pt"})
    said = reason(own)
    assert said.startswith(f"{own / file}: the weights do not fit the network of ")
    assert f"1 {what} (" in said


def test_text_encoders_of_every_release_are_read(own: Path, pictures: Images):
    before = attack(own, prompt="a cat").apply(pictures, SEED).numpy()
    file = own / "text_encoder" / "model.safetensors"
    short = {name.removeprefix("text_model."): tensor for name, tensor in load_state(file).items()}
    for prefix in ("", "text_model."):
        state = {prefix + name: tensor for name, tensor in short.items()}
        state[f"{prefix}embeddings.position_ids"] = torch.arange(16)[None]
        save_state(state, file, {"format": "pt"})
        np.testing.assert_array_equal(attack(own, prompt="a cat").apply(pictures, SEED).numpy(), before)


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("unet/config.json", {"_class_name": "UNet2DModel"}, "a UNet2DModel, not a UNet2DConditionModel"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "steep"}, "no schedule can be built from it: steep"),
        ("low_res_scheduler/scheduler_config.json", {"beta_schedule": "steep"}, "no schedule can be built from it"),
        ("model_index.json", {"max_noise_level": "high"}, "max_noise_level is a time step, not high"),
    ],
)
def test_a_bad_configuration_gives_one_line(own: Path, file: str, changes: dict[str, Any], says: str):
    edit(own / file, **changes)
    assert says in reason(own)


def test_a_network_for_something_else_is_refused(own: Path):
    import diffusers

    for changes, says in (
        ({"num_class_embeds": None}, "the network has no classes (num_class_embeds) to be told a noise level by"),
        ({"in_channels": 4}, "the network takes 4 channels and gives 4; with this autoencoder it takes 7"),
    ):
        with torch.random.fork_rng(devices=[]):
            diffusers.UNet2DConditionModel(**{**UNET, **changes}).save_pretrained(own / "unet")
        assert says in reason(own)


def test_steps_levels_and_prompts_that_the_model_does_not_know_are_refused(own: Path, pictures: Images):
    assert reason(own, noise_level=351) == f"{own} knows the noise levels 0 to 350, not 351"
    assert reason(own, added_level=400) == f"{own} knows the noise levels 0 to 350, not 400"
    edit(own / "model_index.json", max_noise_level=100)
    assert reason(own) == f"{own} knows the noise levels 0 to 100, not 320"
    edit(own / "scheduler" / "scheduler_config.json", num_train_timesteps=50)
    said = f"{own} was trained with 50 time steps: it samples with fewer, not with 75"
    assert reason(own, noise_level=20) == said
    with pytest.raises(UserError, match="17 tokens, this model takes 16"):
        attack(own, noise_level=20, prompt="a" * 15).apply(pictures, SEED)


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, own: Path):
    # A copy that was not loaded before: its content is part of the key.
    edit(own / "model_index.json", note="another")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "transformers" else find(name, *a)
    )
    assert "needs transformers: pip install 'waterproof[generation]'" in reason(own)


# Identity -----------------------------------------------------------------------------------------------------------


def test_the_identity_holds_what_the_weights_are_and_not_where(made: Path, own: Path):
    spec = attack(made).spec()
    assert set(spec.digests) == {"model"}
    assert attack(own).spec().id == spec.id
    digests = {spec.digests["model"]}
    for part, file in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        path = own / part / f"{file}.safetensors"
        state = load_state(path)
        name = max(state, key=lambda name: state[name].numel())
        save_state({**state, name: state[name] * 1.5}, path, {"format": "pt"})
        digests.add(attack(own).spec().digests["model"])
    edit(own / "low_res_scheduler" / "scheduler_config.json", beta_end=0.03)
    digests.add(attack(own).spec().digests["model"])
    assert len(digests) == 5


def test_weights_that_were_replaced_are_read_again(made: Path, own: Path, pictures: Images):
    before = attack(own).apply(pictures, SEED).numpy()
    path = own / "vae" / "diffusion_pytorch_model.safetensors"
    save_state({name: tensor * 0.8 for name, tensor in load_state(path).items()}, path)
    assert not np.array_equal(attack(own).apply(pictures, SEED).numpy(), before)


def test_a_spec_rebuilds_the_attack_and_it_travels(made: Path):
    upscaled = attack(made, sd=0.2)
    params = json.loads(json.dumps(upscaled.spec().params))
    assert "model" not in params
    assert build(NoisyUpscaling, {**params, "model": str(made)}).spec().id == upscaled.spec().id
    assert pickle.loads(pickle.dumps(upscaled)) == upscaled  # noqa: S301
    assert upscaled.label == f"noisy-upscaling(sd=0.2, model={made.name}, steps=2)"


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"sd": 25}, "noisy-upscaling: sd: input should be less than or equal to 1, not 25"),
        ({"steps": 0}, "noisy-upscaling: steps: input should be greater than or equal to 1, not 0"),
        ({"guidance": 0.5}, "noisy-upscaling: guidance: input should be greater than or equal to 1, not 0.5"),
    ],
)
def test_a_bad_parameter_gives_one_clear_line(params: dict[str, Any], says: str):
    with pytest.raises(SpecError) as caught:
        build(NoisyUpscaling, params)
    assert says in str(caught.value)
