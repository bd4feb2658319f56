"""Learned compression: the way around the network with a toy codec, and the networks where CompressAI is installed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import pickle
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from waterproof.attacks import learned_codec
from waterproof.attacks.learned_codec import LearnedCompression
from waterproof.core.components import build
from waterproof.core.errors import ImageError, SpecError, UnavailableError, UserError
from waterproof.core.seeds import Seed
from waterproof.core.weights import save_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from waterproof.core.images import Images

SEED = Seed.root(0)
INSTALLED = importlib.util.find_spec("compressai") is not None
MODELS = ["bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean", "mbt2018", "cheng2020-anchor"]


class Toy(nn.Module):
    """A codec that rounds each value to multiples of 1 / ``levels``, with an entropy model's names around it."""

    def __init__(self, quality: int, pretrained: bool) -> None:
        super().__init__()
        assert not pretrained
        self.levels = nn.Parameter(torch.rand(1))
        self.skip = nn.Sequential(nn.Conv2d(3, 3, 1))
        self.entropy_bottleneck = nn.Module()
        self.entropy_bottleneck.matrices = nn.ParameterList([nn.Parameter(torch.rand(quality, 2))])
        self.entropy_bottleneck.biases = nn.ParameterList([nn.Parameter(torch.rand(2))])
        self.entropy_bottleneck.register_buffer("_quantized_cdf", torch.IntTensor())
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        assert not self.training
        self.seen.append(x)
        return {"x_hat": torch.round(x * self.levels) / self.levels}


def state(quality: int = 3, levels: float = 5.0) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        return {**Toy(quality, False).state_dict(), "levels": torch.tensor([levels])}


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> list[Toy]:
    """A package compressai that makes toy codecs; the list holds those that it made."""
    made: list[Toy] = []

    def make(quality: int, pretrained: bool) -> Toy:
        made.append(Toy(quality, pretrained))
        return made[-1]

    for name in ("compressai", "compressai.zoo"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys.modules["compressai.zoo"], "models", dict.fromkeys(MODELS, make), raising=False)
    learned_codec._load.cache_clear()
    return made


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "codec.safetensors"
    save_state(state(), path)
    return path


def rounded(pixels: np.ndarray, levels: int = 5) -> np.ndarray:
    return np.rint(255 / levels * np.rint(pixels / 255 * levels)).astype(np.uint8)


# The way around the network ------------------------------------------------------------------------------------------


def test_the_result_is_what_the_network_gives_in_the_size_of_the_image(toys: list[Toy], weights: Path, oblong: Images):
    result = LearnedCompression(weights=str(weights)).apply(oblong, SEED).numpy()
    np.testing.assert_array_equal(result, rounded(oblong.numpy()))
    (seen,) = toys[0].seen
    assert tuple(seen.shape) == (1, 3, 128, 256)
    extended = np.pad(oblong.numpy()[0], ((0, 8), (0, 56), (0, 0)), mode="edge")
    np.testing.assert_array_equal((seen[0] * 255).round().permute(1, 2, 0).numpy(), extended)


def test_images_go_through_one_by_one_and_the_network_is_made_once(toys: list[Toy], weights: Path, photographs: Images):
    attack = LearnedCompression(weights=str(weights))
    together = attack.apply(photographs, SEED).numpy()
    assert [tuple(seen.shape) for seen in toys[0].seen] == [(1, 3, 256, 256)] * 3
    np.testing.assert_array_equal(attack.apply(photographs.take([2, 0]), SEED).numpy(), together[[2, 0]])
    assert len(toys) == 1


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (65, 3)])
def test_any_size_goes_through(toys: list[Toy], weights: Path, photographs: Images, size: tuple[int, int]):
    picture = photographs.numpy()[0, : size[0], : size[1]]
    np.testing.assert_array_equal(LearnedCompression(weights=str(weights)).alter(picture, SEED), rounded(picture))


def test_a_network_that_gives_no_numbers_is_an_error(toys: list[Toy], tmp_path: Path, oblong: Images):
    save_state(state(levels=math.nan), tmp_path / "w.safetensors")
    with pytest.raises(ImageError, match="NaN or infinite pixels"):
        LearnedCompression(weights=str(tmp_path / "w.safetensors")).apply(oblong, SEED)


def test_making_the_network_draws_nothing_from_the_global_generator(toys: list[Toy], weights: Path):
    before = torch.random.get_rng_state()
    assert LearnedCompression(weights=str(weights)).unavailable() is None
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(toys) == 1


# Weights ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "bias", "prefix"),
    [
        ("matrices.0", "biases.0", ""),
        ("_matrix0", "_bias0", ""),
        ("_matrices.0", "_biases.0", ""),
        ("_matrix0", "_bias0", "module."),
    ],
)
@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pth.tar"])
def test_files_of_every_release_are_read(
    toys: list[Toy], tmp_path: Path, oblong: Images, matrix: str, bias: str, prefix: str, ending: str
):
    names = {
        "entropy_bottleneck.matrices.0": f"entropy_bottleneck.{matrix}",
        "entropy_bottleneck.biases.0": f"entropy_bottleneck.{bias}",
        "skip.0.weight": "skip.0.weight",
    }
    saved = {prefix + names.get(name, name): tensor for name, tensor in state().items()}
    # The coder's tables of a trained network have a size that a new one does not have.
    saved[f"{prefix}entropy_bottleneck._quantized_cdf"] = torch.zeros(7, 9, dtype=torch.int32)
    path = tmp_path / f"codec{ending}"
    if ending != ".safetensors":
        torch.save(saved, path)
    else:
        save_state(saved, path)
    attack = LearnedCompression(weights=str(path))
    assert attack.unavailable() is None
    np.testing.assert_array_equal(attack.apply(oblong, SEED).numpy(), rounded(oblong.numpy()))
    given = saved[f"{prefix}entropy_bottleneck.{matrix}"]
    assert torch.equal(toys[0].entropy_bottleneck.matrices[0], given)


def test_a_checkpoint_of_a_training_needs_its_entry(toys: list[Toy], tmp_path: Path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"epoch": 3, "state_dict": state()}, path)
    assert "its tensors may be inside: entry='state_dict'" in str(LearnedCompression(weights=str(path)).unavailable())
    assert LearnedCompression(weights=str(path), entry="state_dict").unavailable() is None


def test_weights_that_do_not_fit_are_refused_with_what_differs(toys: list[Toy], tmp_path: Path):
    path = tmp_path / "w.safetensors"
    save_state(state(quality=5), path)
    reason = LearnedCompression(weights=str(path), quality=3).unavailable()
    assert reason is not None
    assert f"{path}: the weights do not fit the network" in reason
    assert "matrices.0 [5, 2] instead of [3, 2]" in reason
    assert LearnedCompression(weights=str(path), quality=3).digests() == {}
    save_state({name: tensor for name, tensor in state().items() if name != "levels"}, path)
    assert "1 missing (levels)" in str(LearnedCompression(weights=str(path)).unavailable())


def test_a_file_that_would_run_code_is_refused(toys: list[Toy], tmp_path: Path):
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps({"levels": Path("anything")}))
    reason = LearnedCompression(weights=str(path)).unavailable()
    assert reason is not None
    assert "full unpickling is never done" in reason


def test_the_identity_holds_what_the_weights_are_and_not_where(toys: list[Toy], weights: Path, tmp_path: Path):
    spec = LearnedCompression(weights=str(weights)).spec()
    assert spec.digests == {"weights": hashlib.sha256(weights.read_bytes()).hexdigest()}
    moved = weights.rename(tmp_path / "w.safetensors")
    assert LearnedCompression(weights=str(moved)).spec().id == spec.id
    save_state(state(levels=9.0), moved)
    assert LearnedCompression(weights=str(moved)).spec().id != spec.id


def test_a_file_that_was_replaced_is_read_again(toys: list[Toy], weights: Path, oblong: Images):
    attack = LearnedCompression(weights=str(weights))
    attack.apply(oblong, SEED)
    save_state(state(levels=9.0), weights)
    np.testing.assert_array_equal(attack.apply(oblong, SEED).numpy(), rounded(oblong.numpy(), 9))


def test_a_spec_rebuilds_the_attack_and_it_travels(toys: list[Toy], weights: Path):
    attack = LearnedCompression(weights=str(weights), quality=3)
    rebuilt = build(LearnedCompression, {**json.loads(json.dumps(attack.spec().params)), "weights": str(weights)})
    assert rebuilt.spec().id == attack.spec().id
    assert pickle.loads(pickle.dumps(attack)) == attack  # noqa: S301
    assert attack.label == "learned-compression(quality=3, weights=codec.safetensors)"


# A folder of published files ----------------------------------------------------------------------------------------


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Writes a file and takes it for the published one of a model at a quality."""
    begins = {model: ["0" * 8] * len(listed.split()) for model, listed in learned_codec._PUBLISHED.items()}

    def write(model: str, quality: int, levels: float) -> Path:
        torch.save(state(quality, levels), tmp_path / "new.pth")
        begins[model][quality - 1] = hashlib.sha256((tmp_path / "new.pth").read_bytes()).hexdigest()[:8]
        monkeypatch.setitem(learned_codec._PUBLISHED, model, " ".join(begins[model]))
        return (tmp_path / "new.pth").rename(tmp_path / f"{learned_codec._published(model, quality)}.pth")

    return write


def test_a_folder_gives_each_quality_its_own_file(
    toys: list[Toy], publish: Callable[..., Path], tmp_path: Path, oblong: Images
):
    publish("mbt2018", 1, 2.0)
    publish("mbt2018", 2, 7.0)
    save_state(state(4, 11.0), tmp_path / "mbt2018-4.safetensors")
    for quality, levels in ((1, 2), (2, 7), (4, 11)):
        attack = LearnedCompression(model="mbt2018", quality=quality, weights=str(tmp_path))
        np.testing.assert_array_equal(attack.apply(oblong, SEED).numpy(), rounded(oblong.numpy(), levels))


def test_a_published_file_is_refused_for_another_quality(toys: list[Toy], publish: Callable[..., Path]):
    path = publish("mbt2018", 2, 7.0)
    reason = LearnedCompression(model="mbt2018", quality=5, weights=str(path)).unavailable()
    assert reason == f"{path}: is mbt2018 at quality 2, not mbt2018 at quality 5"


def test_a_published_file_of_another_content_is_refused(toys: list[Toy], publish: Callable[..., Path], tmp_path: Path):
    path = publish("bmshj2018-factorized", 2, 7.0)
    path.write_bytes(b"a page that says: try again later")
    reason = LearnedCompression(quality=2, weights=str(tmp_path)).unavailable()
    assert reason is not None
    assert reason.startswith(f"{path}: is not the published file: its SHA-256 does not begin with ")


def test_missing_weights_are_named_with_their_address_and_place(
    toys: list[Toy], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("WATERPROOF_WEIGHTS", str(tmp_path))
    attack = LearnedCompression(quality=5)
    file = "bmshj2018-factorized-prior-5-866ba797.pth"
    assert attack.unavailable() == (
        f"bmshj2018-factorized at quality 5 needs its weights (compressai.s3.amazonaws.com/models/v1/{file}.tar): "
        f"put them at {tmp_path / 'compressai' / file}"
    )
    assert attack.digests() == {}
    with pytest.raises(UnavailableError, match="needs its weights"):
        attack.alter(np.zeros((64, 64, 3), np.uint8), SEED)


def test_without_its_package_the_attack_says_what_to_install(monkeypatch: pytest.MonkeyPatch, weights: Path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    reason = LearnedCompression(weights=str(weights)).unavailable()
    assert reason is not None
    assert reason.startswith("needs the package compressai: pip install --no-deps compressai, then pip install einops")


def test_a_package_that_cannot_be_imported_says_why(toys: list[Toy], monkeypatch: pytest.MonkeyPatch, weights: Path):
    monkeypatch.setitem(sys.modules, "compressai.zoo", None)
    reason = LearnedCompression(weights=str(weights)).unavailable()
    assert reason is not None
    assert reason.startswith("compressai cannot be imported (import of compressai.zoo halted")
    assert "pip install" in reason


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"model": "cheng2020-anchor", "quality": 7}, "quality: cheng2020-anchor has qualities 1 to 6, not 7"),
        ({"quality": 9}, "learned-compression: quality: input should be less than or equal to 8, not 9"),
        ({"model": "mbt2019"}, "'mbt2018' or 'cheng2020-anchor', not 'mbt2019'"),
    ],
)
def test_a_bad_parameter_gives_one_clear_line(params: dict[str, Any], says: str):
    with pytest.raises(SpecError) as caught:
        build(LearnedCompression, params)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


# CompressAI itself --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zoo() -> Any:
    if not INSTALLED:
        pytest.skip("the package compressai is not installed")
    return learned_codec._zoo()


def untrained(zoo: Any, model: str) -> Any:
    """A codec whose latents are large enough that rounding leaves something of the image."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.random.default_generator.manual_seed(0)
        codec = zoo.models[model](quality=1, pretrained=False).eval()
        weight = [p for p in codec.g_a.parameters() if p.ndim == 4][-1]
        weight.mul_(60)
        medians = codec.entropy_bottleneck.quantiles[:, 0, 1]
        medians.add_(torch.rand(medians.shape) - 0.5)
        codec.update()
    return codec


@pytest.mark.parametrize("model", MODELS)
def test_the_loaded_codec_computes_what_compressai_computes(zoo: Any, model: str, tmp_path: Path, oblong: Images):
    codec = untrained(zoo, model)
    # As in the files of 2020, which CompressAI renames while it loads them.
    old = {re.sub(r"(bottleneck\.)(matrices|biases|factors)", r"\1_\2", n): t for n, t in codec.state_dict().items()}
    assert any("._matrices.0" in name for name in old)
    torch.save(old, tmp_path / "codec.pth")
    attack = LearnedCompression(model=model, quality=1, weights=str(tmp_path / "codec.pth"))
    assert attack.unavailable() is None
    values = nn.functional.pad(oblong.float(), (0, 56, 0, 8), mode="replicate")
    with torch.inference_mode():
        theirs = codec(values)["x_hat"][0, :, :120, :200].clamp(0, 1).permute(1, 2, 0).numpy() * 255
    ours = attack.apply(oblong, SEED).numpy()[0].astype(float)
    assert ours.std() > 5
    assert np.abs(ours - theirs).max() <= 0.501


@pytest.mark.parametrize("model", MODELS[:3])
def test_the_forward_pass_gives_what_the_decoder_gives(zoo: Any, model: str, tmp_path: Path, photographs: Images):
    codec = untrained(zoo, model)
    save_state(codec.state_dict(), tmp_path / "codec.safetensors")
    picture = photographs.numpy()[0, :128, :64]
    with torch.inference_mode():
        written = codec.compress(torch.tensor(picture).permute(2, 0, 1)[None] / 255)
        read = codec.decompress(**written)["x_hat"][0].permute(1, 2, 0).numpy() * 255
    ours = LearnedCompression(model=model, quality=1, weights=str(tmp_path / "codec.safetensors")).alter(picture, SEED)
    assert np.abs(ours - read).max() <= 0.501


def test_the_files_are_those_of_the_packages_own_list(zoo: Any):
    for model in MODELS:
        for quality, url in zoo.image.model_urls[model]["mse"].items():
            assert url == f"https://{learned_codec._SITE}/{learned_codec._published(model, quality)}.pth.tar"
        with pytest.raises(UserError):
            build(LearnedCompression, {"model": model, "quality": len(zoo.image.model_urls[model]["mse"]) + 1})
