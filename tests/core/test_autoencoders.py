"""Autoencoders: equal to diffusers' own calls, differentiable, and loaded strictly."""

from __future__ import annotations

import copy
import json
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch.nn import functional

from waterproof.core import autoencoders, effort
from waterproof.core.autoencoders import Taef2, load_autoencoder
from waterproof.core.errors import ImageError, UnavailableError, UserError
from waterproof.core.weights import load_state, save_state

if TYPE_CHECKING:
    from pathlib import Path

    from waterproof.core.images import Images

UNET = {"block_out_channels": (8, 16, 16), "norm_num_groups": 4, "layers_per_block": 1}
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
TINY = {
    "encoder_block_out_channels": (8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8),
    "num_encoder_blocks": (1, 1, 1),
    "num_decoder_blocks": (1, 1, 1),
}
REVISION = "0123456789abcdef0123456789abcdef01234567"


def network(kind: str, **changes: Any) -> Any:
    """A small network of diffusers with weights that are drawn from a fixed seed."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if kind == "kl":
            made = diffusers.AutoencoderKL(**{**UNET, **BLOCKS, "shift_factor": 0.1, **changes})
        elif kind == "vq":
            made = diffusers.VQModel(**{**UNET, **BLOCKS, "num_vq_embeddings": 32, "vq_embed_dim": 5, **changes})
            torch.nn.init.normal_(made.quantize.embedding.weight)
        else:
            made = diffusers.AutoencoderTiny(**TINY, **changes)
        for parameter in made.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    return made.eval()


@pytest.fixture(params=["kl", "tiny", "vq"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(kind: str, tmp_path: Path) -> Path:
    network(kind).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(1))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return -10 * math.log10(float(((one - other) ** 2).mean()))


# Equal to diffusers -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_latents_and_images_are_those_of_diffusers(kind: str, folder: Path, images: torch.Tensor) -> None:
    import diffusers

    own = getattr(diffusers, {"kl": "AutoencoderKL", "tiny": "AutoencoderTiny", "vq": "VQModel"}[kind])
    direct = own.from_pretrained(folder)
    autoencoder = load_autoencoder(folder)
    encoded = direct.encode(images * 2 - 1)
    raw = encoded.latent_dist.mode() if kind == "kl" else encoded.latents
    shift = {"kl": 0.1, "tiny": 0.0, "vq": 0.0}[kind]
    scaling = {"kl": 0.18215, "tiny": 1.0, "vq": 0.18215}[kind]
    assert (autoencoder.kind, autoencoder.factor, autoencoder.scaling, autoencoder.shift) == (kind, 4, scaling, shift)
    latents = autoencoder.encode(images)
    assert latents.shape == (2, autoencoder.channels, 6, 8) == raw.shape
    torch.testing.assert_close(latents, (raw - shift) * scaling)
    decoded = direct.decode(latents / scaling + shift).sample
    torch.testing.assert_close(autoencoder.decode(latents), decoded / 2 + 0.5)
    assert float(autoencoder.decode(40 * latents).max()) > 1 or float(autoencoder.decode(40 * latents).min()) < 0


@torch.no_grad()
def test_a_spatially_normalised_decoder_sees_the_quantised_latent(tmp_path: Path, images: torch.Tensor) -> None:
    from diffusers import VQModel

    wide = {"block_out_channels": (32, 32, 32), "norm_num_groups": 32, "vq_embed_dim": 3}
    network("vq", norm_type="spatial", **wide).save_pretrained(tmp_path)
    autoencoder = load_autoencoder(tmp_path)
    direct = VQModel.from_pretrained(tmp_path)
    latents = autoencoder.encode(images)
    torch.testing.assert_close(autoencoder.decode(latents), direct.decode(latents / 0.18215).sample / 2 + 0.5)


@torch.no_grad()
def test_a_quantising_decoder_gives_one_image_for_latents_of_one_code(tmp_path: Path) -> None:
    network("vq").save_pretrained(tmp_path)
    autoencoder = load_autoencoder(tmp_path)
    codes: Any = autoencoder.model.quantize.embedding.weight
    exact = codes[:12].T.reshape(1, 5, 3, 4) * autoencoder.scaling
    torch.testing.assert_close(autoencoder.decode(exact), autoencoder.decode(exact * 1.001))
    assert autoencoder.channels == 5


def test_networks_without_the_middle_convolutions_load(tmp_path: Path, images: torch.Tensor) -> None:
    network("kl", use_quant_conv=False, use_post_quant_conv=False, shift_factor=None).save_pretrained(tmp_path)
    autoencoder = load_autoencoder(tmp_path)
    assert list(autoencoder.decoder_modules()) == ["decoder"]
    assert autoencoder.shift == 0.0
    assert autoencoder.reconstruct(images).shape == images.shape


@torch.no_grad()
def test_attention_weights_with_old_names_load(tmp_path: Path, images: torch.Tensor) -> None:
    network("kl").save_pretrained(tmp_path)
    expected = load_autoencoder(tmp_path).encode(images)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {re.sub(r"to_(?:[qkv]|out\.0)", lambda m: old[m[0]], k): v for k, v in load_state(path).items()}
    assert any("proj_attn" in key for key in state)
    save_state(state, path)
    assert torch.equal(load_autoencoder(tmp_path).encode(images), expected)


# Gradients, modes, sizes --------------------------------------------------------------------------------------------


def test_gradients_reach_latents_images_and_a_decoder_of_ones_own(
    kind: str, folder: Path, images: torch.Tensor
) -> None:
    autoencoder = load_autoencoder(folder)
    assert not autoencoder.model.training
    assert not any(parameter.requires_grad for parameter in autoencoder.model.parameters())
    images.requires_grad_()
    latents = autoencoder.encode(images)
    latents.retain_grad()
    autoencoder.decode(latents).square().mean().backward()
    for tensor in (latents, images):
        assert tensor.grad is not None
        assert float(tensor.grad.abs().sum()) > 0
    student = torch.nn.ModuleDict(copy.deepcopy(autoencoder.decoder_modules())).requires_grad_(True)
    assert set(student) == ({"decoder"} if kind == "tiny" else {"decoder", "post_quant_conv"})
    held = latents.detach()
    assert torch.equal(autoencoder.decode(held, student), autoencoder.decode(held))
    autoencoder.decode(held, student).square().mean().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.1)
    assert not torch.allclose(autoencoder.decode(held, dict(student.items())), autoencoder.decode(held))
    with pytest.raises(UserError, match="has the modules"):
        autoencoder.decode(held, {"other": student["decoder"]})


def test_sizes_that_do_not_fit_are_refused_and_padded(kind: str, folder: Path) -> None:
    autoencoder = load_autoencoder(folder)
    odd = torch.rand(1, 3, 21, 30, generator=torch.Generator().manual_seed(2))
    with pytest.raises(ImageError, match=r"21 x 30 pixels.*multiples of 4, such as 24 x 32; pad\(\)"):
        autoencoder.encode(odd)
    padded, size = autoencoder.pad(odd)
    assert size == (21, 30)
    assert np.array_equal(padded.numpy(), np.pad(odd.numpy(), ((0, 0), (0, 0), (0, 3), (0, 2)), mode="edge"))
    again = autoencoder.reconstruct(odd)
    assert torch.equal(again, autoencoder.decode(autoencoder.encode(padded))[..., :21, :30])
    assert autoencoder.pad(padded)[0] is padded


@pytest.mark.parametrize("kind", ["tiny"])
def test_wrong_tensors_are_refused(kind: str, folder: Path) -> None:
    autoencoder = load_autoencoder(folder)
    for bad in (torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ImageError, match="images must be floats"):
            autoencoder.encode(bad)
    for bad in (torch.zeros(1, 3, 4, 4), torch.zeros(4, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.int64)):
        with pytest.raises(ImageError, match=r"latents must be floats of shape \[B, 4, h, w\]"):
            autoencoder.decode(bad)


def test_the_type_follows_and_the_input_is_converted(kind: str, folder: Path, images: torch.Tensor) -> None:
    autoencoder = load_autoencoder(folder, dtype=torch.float64)
    assert autoencoder.dtype == autoencoder.encode(images).dtype == torch.float64
    assert autoencoder.to(dtype=torch.float32) is autoencoder
    assert autoencoder.dtype == autoencoder.reconstruct(images.double()).dtype == torch.float32
    assert autoencoder.device.type == "cpu"


def test_a_device_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    network("tiny").save_pretrained(tmp_path)
    with pytest.raises(UnavailableError, match="device 'cuda'"):
        load_autoencoder(tmp_path, device="cuda")


# Loading ------------------------------------------------------------------------------------------------------------


def test_loading_leaves_the_global_generator_alone(kind: str, folder: Path) -> None:
    before = torch.random.get_rng_state()
    load_autoencoder(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_digest_follows_weights_and_configuration_and_nothing_else(tmp_path: Path) -> None:
    network("tiny").save_pretrained(tmp_path)
    first = load_autoencoder(tmp_path).digest
    assert re.fullmatch("[0-9a-f]{64}", first)
    edit_config(tmp_path, _diffusers_version="0.1", _name_or_path="elsewhere")
    (tmp_path / "README.md").write_text("words")
    assert load_autoencoder(str(tmp_path)).digest == first
    edit_config(tmp_path, scaling_factor=0.5)
    assert load_autoencoder(tmp_path).digest != first
    edit_config(tmp_path, scaling_factor=1.0)
    assert load_autoencoder(tmp_path).digest == first
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_state(path)
    state["decoder.layers.0.bias"][0] += 1
    save_state(state, path)
    assert load_autoencoder(tmp_path).digest != first


def test_a_pipelines_folder_and_a_pickled_state_load(tmp_path: Path, images: torch.Tensor) -> None:
    network("kl").save_pretrained(tmp_path / "vae", safe_serialization=False)
    (tmp_path / "model_index.json").write_text("{}")
    assert (tmp_path / "vae" / "diffusion_pytorch_model.bin").is_file()
    assert torch.equal(load_autoencoder(tmp_path).encode(images), load_autoencoder(tmp_path / "vae").encode(images))


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    network("tiny").save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_state(path)
    del state["encoder.layers.0.bias"]
    save_state(state, path)
    with pytest.raises(UserError, match=r"1 missing \(encoder\.layers\.0\.bias\)"):
        load_autoencoder(tmp_path)
    path.unlink()
    with pytest.raises(UnavailableError, match="but not the weights"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "UNet2DModel"}, "a UNet2DModel, not one of AutoencoderKL"),
        ({"_class_name": None}, "without _class_name"),
        ({"in_channels": 1}, "not the 3 of an image"),
        ({"latents_mean": [0.0] * 4}, "latents_mean"),
        ({"act_fn": "sorcery"}, "cannot be built"),
        ({"upsampling_scaling_factor": 4}, "shrinks 4 times and its decoder enlarges 16 times"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    network("tiny").save_pretrained(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        load_autoencoder(tmp_path)


def test_a_broken_configuration_and_missing_folders_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnavailableError, match=r"config\.json: cannot be read"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="JSON object"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UnavailableError, match=r"no autoencoder there: put in config\.json with diffusion"):
        load_autoencoder(tmp_path)
    with pytest.raises(UnavailableError, match="there is no such folder"):
        load_autoencoder(tmp_path / "absent" / "vae")
    (tmp_path / "vae.safetensors").touch()
    with pytest.raises(UnavailableError, match="is a file; give its folder"):
        load_autoencoder(tmp_path / "vae.safetensors")
    with pytest.raises(UserError, match="only a hub id has a revision"):
        load_autoencoder(tmp_path, REVISION)
    monkeypatch.setattr(autoencoders, "_SHIPPED", tmp_path / "shipped")
    with pytest.raises(UnavailableError, match="ships no autoencoder"):
        load_autoencoder("shipped")
    network("tiny").save_pretrained(tmp_path / "shipped")
    assert load_autoencoder("shipped").kind == "tiny"


# The hub ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", [None, "main", "v1.0", REVISION[:12], REVISION.upper()])
def test_a_hub_id_needs_a_pinned_revision(
    revision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="pinned to a commit of 40 hexadecimal digits"):
        load_autoencoder("stabilityai/sd-vae-ft-mse", revision)


def cached(cache: Path, prefix: str) -> Path:
    """A repository in the form of the hub's cache."""
    snapshot = cache / "models--owner--name" / "snapshots" / REVISION / prefix
    network("tiny").save_pretrained(snapshot)
    return snapshot


@pytest.mark.parametrize("prefix", ["", "vae"])
def test_a_hub_id_in_the_cache_needs_no_network(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    snapshot = cached(tmp_path, prefix)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(autoencoders, "_fetched", lambda *_: pytest.fail("asked the network"))
    assert load_autoencoder("owner/name", REVISION).digest == load_autoencoder(snapshot).digest


def test_a_hub_id_out_of_reach_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnavailableError, match="neither in the local cache nor within reach") as error:
        load_autoencoder("owner/name", REVISION)
    assert f"hf download owner/name --revision {REVISION} --local-dir FOLDER" in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_a_repository_lacks_are_looked_for_in_its_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    network("tiny").save_pretrained(tmp_path / "vqvae")

    def download(repository: str, file: str, *, revision: str) -> str:
        assert (repository, revision) == ("owner/name", REVISION)
        if not (tmp_path / file).is_file():
            raise EntryNotFoundError(f"404: {file}")
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    assert load_autoencoder("owner/name", REVISION).kind == "tiny"
    (tmp_path / "vqvae" / "config.json").unlink()
    with pytest.raises(UnavailableError, match="no autoencoder there"):
        load_autoencoder("owner/name", REVISION)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", _refuse)
    with pytest.raises(UnavailableError, match="403 forbidden: where there is a network"):
        load_autoencoder("owner/name", REVISION)


def _refuse(*_: object, **__: object) -> str:
    raise OSError("403 forbidden\nlong story")


# The tiny autoencoder for FLUX.2 ------------------------------------------------------------------------------------


def block(values: torch.Tensor, state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """A residual block from its weights, the group norm written out."""
    if f"{name}.pool.0.weight" in state:
        wide = functional.conv2d(values, state[f"{name}.pool.0.weight"])
        groups = wide.reshape(len(wide), 4, -1)
        centred = groups - groups.mean(2, keepdim=True)
        normal = (centred / (groups.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()).reshape(wide.shape)
        scaled = normal * state[f"{name}.pool.1.weight"][:, None, None] + state[f"{name}.pool.1.bias"][:, None, None]
        values = values + functional.conv2d(scaled.clamp(min=0), state[f"{name}.pool.3.weight"])
    out = values
    for layer in ("conv.0", "conv.2", "conv.4"):
        out = functional.conv2d(out, state[f"{name}.{layer}.weight"], state[f"{name}.{layer}.bias"], padding=1)
        out = out.clamp(min=0) if layer != "conv.4" else out
    return (out + values).clamp(min=0)


def walk(values: torch.Tensor, state: dict[str, torch.Tensor], decoder: bool) -> torch.Tensor:
    """Encoder or decoder, layer by layer in the numbering of the released files."""
    for number in range(max(int(key.split(".")[0]) for key in state) + 1):
        name = str(number)
        if f"{name}.conv.0.weight" in state:
            values = block(values, state, name)
        elif f"{name}.weight" in state:
            bias = state.get(f"{name}.bias")
            stride = 1 if decoder or bias is not None else 2
            values = functional.conv2d(values, state[f"{name}.weight"], bias, stride=stride, padding=1)
        elif number == 0:
            values = 3 * torch.tanh(values / 3)
        elif number == 2:
            values = values.clamp(min=0)
        else:
            values = values.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return values


@torch.no_grad()
def test_taef2_is_the_network_of_the_released_weights(shared_data: Path, photographs: Images) -> None:
    source = shared_data / "weights" / "taef2"
    autoencoder = load_autoencoder(source)
    assert (autoencoder.kind, autoencoder.factor, autoencoder.channels) == ("tiny", 8, 32)
    assert (autoencoder.scaling, autoencoder.shift) == (1.0, 0.0)
    states = [
        {key: value.float() for key, value in load_state(source / f"taef2_{part}.pth").items()}
        for part in ("encoder", "decoder")
    ]
    values = photographs.pixels[:2, :, :64, :96].float() / 255
    latents = walk(values, states[0], decoder=False)
    torch.testing.assert_close(autoencoder.encode(values), latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        autoencoder.decode(latents), walk(latents, states[1], decoder=True), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_taef2_reconstructs_photographs(shared_data: Path) -> None:
    autoencoder = load_autoencoder(shared_data / "weights" / "taef2")
    files = sorted((shared_data / "photos" / "test").iterdir())[::40]
    values = []
    for path in files:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side)).resize((256, 256), Image.Resampling.BICUBIC)
        image = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255
        values.append(psnr(autoencoder.reconstruct(image).clamp(0, 1), image))
    assert len(values) == 5
    assert np.mean(values) > 27


@torch.no_grad()
def test_taef2_in_one_file_is_the_same_network(tmp_path: Path, images: torch.Tensor) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = Taef2()
    pair, single = tmp_path / "pair", tmp_path / "single"
    pair.mkdir()
    torch.save(model.encoder.state_dict(), pair / "taef2_encoder.pth")
    with pytest.raises(UnavailableError, match=r"taef2_decoder\.pth: there is no such file"):
        load_autoencoder(pair)
    torch.save(model.decoder.state_dict(), pair / "taef2_decoder.pth")
    # The single file has diffusers' numbers, which leave the decoder's first layer (it holds no weights) out.
    state = {f"encoder.layers.{key}": value for key, value in model.encoder.state_dict().items()}
    for key, value in model.decoder.state_dict().items():
        number, _, rest = key.partition(".")
        state[f"decoder.layers.{int(number) - 1}.{rest}"] = value
    save_state(state, single / "taef2.safetensors")
    one, other = load_autoencoder(pair), load_autoencoder(single)
    assert torch.equal(one.reconstruct(images), other.reconstruct(images))
    assert one.digest != other.digest
    assert sum(parameter.numel() for parameter in one.model.parameters()) == 2_677_027


def test_taef2_passes_gradients(images: torch.Tensor) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = Taef2()
    autoencoder = autoencoders.Autoencoder(model, "tiny", 8, 32, 1.0, 0.0, "")
    latents = autoencoder.encode(images.requires_grad_())
    autoencoder.decode(latents).mean().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("source", "factor", "channels", "least"), [("shipped", 4, 4, 24.0), ("shipped-f8", 8, 8, 20.0)]
)
def test_the_autoencoders_that_ship_reconstruct_a_photograph(
    source: str, factor: int, channels: int, least: float
) -> None:
    autoencoder = load_autoencoder(source)
    assert (autoencoder.factor, autoencoder.channels) == (factor, channels)
    image = torch.tensor(data.coffee()[:128, 200:328].transpose(2, 0, 1)[None] / 255.0, dtype=torch.float32)
    with torch.no_grad():
        again = autoencoder.reconstruct(image).clamp(0, 1)
    assert float(-10 * torch.log10((again - image).square().mean())) > least


def test_every_pass_through_an_autoencoder_is_counted() -> None:
    autoencoder = load_autoencoder("shipped")
    with effort.measured() as spent, torch.no_grad():
        autoencoder.reconstruct(torch.rand(3, 3, 8, 8))
    assert (spent.evaluations, spent.backwards) == (6, 0)
