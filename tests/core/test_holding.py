"""What works through an autoencoder or a diffusion model: which one, how it is named, and the way through."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch

from waterproof.core.autoencoders import load_autoencoder
from waterproof.core.components import Component, param
from waterproof.core.errors import ImageError, UnavailableError, UserError
from waterproof.core.holding import (
    HoldsAutoencoder,
    HoldsDiffusion,
    one_by_one,
    open_autoencoder,
    placed,
    through_latent,
)
from waterproof.core.latent_diffusion import load_latent_diffusion
from waterproof.core.weights import load_state, save_state

if TYPE_CHECKING:
    from pathlib import Path

    from waterproof.core.images import Images, Record

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Coder(HoldsAutoencoder):
    """A component with an autoencoder and one setting."""

    kind: ClassVar[str] = "attack"
    name: ClassVar[str] = "coder"

    rate: int = param(1, doc="a setting")


class Diffuser(HoldsDiffusion):
    """A component with a diffusion model."""

    kind: ClassVar[str] = "attack"
    name: ClassVar[str] = "diffuser"


def save_tiny(folder: Path, seed: int = 3) -> Path:
    """A tiny autoencoder of diffusers with random weights."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ).save_pretrained(folder)  # fmt: skip
    return folder


# Which one ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "source", "wanted"),
    [
        ("coder", "shipped", "coder"),
        ("coder(rate=2)", "shipped", "coder(rate=2)"),
        ("coder", "some/folder", "coder(autoencoder=folder)"),
        ("coder(rate=2)", "/some/folder/", "coder(rate=2, autoencoder=folder)"),
        ("coder", f"owner/name@{REVISION}", f"coder(autoencoder=name@{REVISION})"),
    ],
)
def test_a_label_names_weights_that_are_not_the_packages(label: str, source: str, wanted: str) -> None:
    assert placed(label, "autoencoder", source) == wanted


def test_the_shipped_models_are_the_default_and_known_by_their_digests() -> None:
    coder, diffuser = Coder(), Diffuser()
    assert (coder.label, diffuser.label) == ("coder", "diffuser")
    assert coder.unavailable() is None
    assert diffuser.unavailable() is None
    assert coder.digests() == {"autoencoder": load_autoencoder("shipped").digest}
    assert diffuser.digests() == {"model": load_latent_diffusion("shipped").digest}


def test_where_the_weights_lie_is_no_part_of_the_identity_but_their_content_is(tmp_path: Path) -> None:
    first = Coder(autoencoder=str(save_tiny(tmp_path / "first")))
    moved = Coder(autoencoder=str(shutil.copytree(tmp_path / "first", tmp_path / "moved")))
    other = Coder(autoencoder=str(save_tiny(tmp_path / "other", seed=4)))
    assert first.label == "coder(autoencoder=first)"
    assert Coder(rate=2, autoencoder=str(tmp_path / "first")).label == "coder(rate=2, autoencoder=first)"
    assert first.identity_params() == {"rate": 1}
    assert first.spec().id == moved.spec().id
    assert len({first.spec().id, other.spec().id, Coder().spec().id}) == 3


def test_an_autoencoder_is_loaded_once_and_again_when_its_folder_changes(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "coder")
    coder = Coder(autoencoder=str(folder))
    before = coder.network
    assert coder.network is before
    assert open_autoencoder(str(folder)) is before
    assert open_autoencoder("shipped") is Coder().network
    path = folder / "diffusion_pytorch_model.safetensors"
    save_state({name: 1.1 * tensor for name, tensor in load_state(path).items()}, path)
    assert coder.network.digest == load_autoencoder(folder).digest != before.digest


def test_a_hub_id_is_asked_for_with_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from waterproof.core import autoencoders

    monkeypatch.chdir(tmp_path)
    asked: list[tuple[object, ...]] = []

    def load(*arguments: object) -> object:
        asked.append(arguments)
        return "loaded"

    monkeypatch.setattr(autoencoders, "load_autoencoder", load)
    assert open_autoencoder(f"an-owner/of-one@{REVISION}") == "loaded"
    assert asked == [("an-owner/of-one", REVISION)]


def test_a_folder_may_have_an_at_sign_in_its_name(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "me@home" / "coder")
    assert open_autoencoder(str(folder)).digest == load_autoencoder(folder).digest


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("absent/on/this/disk", "there is no such folder"),
        ("owner/name", "needs its revision pinned to a commit of 40 hexadecimal digits"),
        ("owner/name@main", "40 hexadecimal digits.* not 'main'"),
        (".", "no autoencoder there: put in|no latent diffusion model there"),
    ],
)
def test_what_is_not_here_is_one_line_and_has_no_digests(
    source: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for holder, name in ((Coder(autoencoder=source), "network"), (Diffuser(model=source), "diffusion")):
        with pytest.raises(UserError, match=says) as raised:
            getattr(holder, name)
        assert holder.unavailable() == str(raised.value)
        assert "\n" not in str(raised.value)
        assert holder.digests() == {}


def test_weights_that_do_not_fit_are_a_reason_too(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "coder") / "diffusion_pytorch_model.safetensors"
    state = load_state(path)
    lost = sorted(state)[0]
    save_state({name: tensor for name, tensor in state.items() if name != lost}, path)
    assert f"1 missing ({lost})" in str(Coder(autoencoder=str(path.parent)).unavailable())
    path.unlink()
    with pytest.raises(UnavailableError, match="not the weights"):
        open_autoencoder(str(path.parent))


def test_where_the_model_lies_is_a_knob() -> None:
    for holder, field in ((Coder(), "autoencoder"), (Diffuser(), "model")):
        assert isinstance(holder, Component)
        assert field not in holder.identity_params()


# The way through ----------------------------------------------------------------------------------------------------


def test_images_are_changed_one_by_one_with_their_records(photographs: Images) -> None:
    seen: list[tuple[str, torch.Tensor]] = []

    def change(image: torch.Tensor, record: Record) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        seen.append((record.id, image.clone()))
        return image * (0.5 if record.id == "chelsea" else 1.0)

    changed = one_by_one(photographs, change)
    assert changed.records == photographs.records
    assert [name for name, _ in seen] == list(photographs.ids)
    for i, (_, image) in enumerate(seen):
        assert image.dtype == torch.float32
        assert torch.equal(image, photographs.float()[i : i + 1])
    wanted = photographs.numpy().astype(float)
    wanted[1] *= 0.5
    assert float(np.abs(changed.numpy() - wanted).max()) <= 0.51
    np.testing.assert_array_equal(changed.numpy()[[0, 2]], photographs.numpy()[[0, 2]])


def test_results_are_clipped_rounded_and_must_be_numbers(photographs: Images) -> None:
    one = photographs.take([0])
    assert one_by_one(one, lambda image, _: image + 2).numpy().min() == 255
    assert one_by_one(one, lambda image, _: image - 2).numpy().max() == 0
    np.testing.assert_array_equal(one_by_one(one, lambda image, _: image + 0.49 / 255).numpy(), one.numpy())
    with pytest.raises(ImageError, match="NaN or infinite"):
        one_by_one(one, lambda image, _: image * torch.nan)


def test_no_image_is_no_work(photographs: Images) -> None:
    def never(image: torch.Tensor, record: Record) -> torch.Tensor:
        raise AssertionError(record)

    assert len(one_by_one(photographs.take([]), never)) == 0


class Folding:
    """An autoencoder that loses nothing: blocks of 2 x 2 pixels become channels. Remembers what it was given."""

    factor = 2

    def __init__(self) -> None:
        self.given: list[torch.Tensor] = []

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.given.append(images)
        return torch.nn.functional.pixel_unshuffle(images, 2)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pixel_shuffle(latents, 2)


@pytest.mark.parametrize("multiple", [2, 8, 32])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (33, 1), (50, 70), (64, 32)])
def test_sides_are_extended_by_their_edge_and_cut_back(
    photographs: Images, size: tuple[int, int], multiple: int
) -> None:
    image = photographs.float()[:1, :, : size[0], : size[1]]
    folding: Any = Folding()
    shapes: list[tuple[int, ...]] = []

    def seen(latent: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(latent.shape))
        return latent

    found = through_latent(folding, image, multiple, seen)
    assert torch.equal(found, image)
    high, wide = (-(-side // multiple) * multiple for side in size)
    grown = np.pad(image[0].numpy(), ((0, 0), (0, high - size[0]), (0, wide - size[1])), mode="edge")
    np.testing.assert_array_equal(folding.given[0][0].numpy(), grown)
    assert shapes == [(1, 12, high // 2, wide // 2)]


def test_what_comes_out_is_what_became_of_the_latent_clipped(photographs: Images) -> None:
    image = photographs.float()[:1, :, :32, :32]
    folding: Any = Folding()
    for change in (0.5, 3.0, -1.0):
        found = through_latent(folding, image, 2, lambda latent, change=change: change * latent)  # type: ignore[misc]
        torch.testing.assert_close(found, (change * image).clamp(0, 1))


def test_no_change_of_the_latent_is_the_autoencoders_own_reconstruction(photographs: Images) -> None:
    network = open_autoencoder("shipped")
    image = photographs.float()[1:2, :, 100:150, 90:160]
    with torch.no_grad():
        found = through_latent(network, image, network.factor, lambda latent: latent)
        assert torch.equal(found, network.reconstruct(image).clamp(0, 1))
    assert found.shape == image.shape
