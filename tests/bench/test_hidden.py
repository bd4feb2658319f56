"""HiDDeN's networks, augmentations and the method with the weights that ship."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from waterproof.bench.check import check_component
from waterproof.bench.methods.hidden import augment as augmentation
from waterproof.bench.methods.hidden.method import Hidden
from waterproof.bench.methods.hidden.network import (
    DEVIATION,
    MEAN,
    Encoder,
    Extractor,
    NetworkConfig,
    attenuate,
    fold,
    load_config,
    load_encoder,
    load_extractor_folder,
    normalise,
    save_networks,
)
from waterproof.core.errors import ImageError, SpecError, UnavailableError, UserError
from waterproof.core.seeds import Seed
from waterproof.core.weights import save_state

if TYPE_CHECKING:
    from pathlib import Path

    from waterproof.core.images import Images

SMALL = NetworkConfig(
    bits=8, stages=((8, 1), (8, 1)), detail=True, even=True, encoder_width=8, encoder_depth=1, patch=4
)


def test_the_published_shape_has_the_published_number_of_parameters() -> None:
    extractor = Extractor(NetworkConfig())
    assert sum(p.numel() for p in extractor.parameters()) == 291_456
    assert len([m for m in extractor.modules() if isinstance(m, torch.nn.Conv2d)]) == 9


@pytest.mark.parametrize("size", [(16, 16), (33, 50), (64, 24)])
@pytest.mark.parametrize(
    "config", [SMALL, NetworkConfig(bits=8, stages=((8, 2),), encoder_width=8)], ids=["small", "paper"]
)
def test_any_size_goes_through(config: NetworkConfig, size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0), requires_grad=True)
    message = torch.tensor([[1.0, -1] * 4, [-1.0] * 8])
    delta = Encoder(config)(normalise(images), message)
    assert delta.shape == images.shape
    assert float(delta.detach().abs().max()) <= 1
    logits = Extractor(config)(images + delta)
    assert logits.shape == (2, 8)
    logits.sum().backward()
    assert images.grad is not None
    assert bool(torch.isfinite(images.grad).all())
    assert float(images.grad.abs().sum()) > 0


def test_the_extractor_is_what_a_plain_computation_gives(photographs: Images) -> None:
    """Convolutions, batch norms and GELU written out with NumPy's error function, on a photograph."""
    from scipy.special import erf

    torch.manual_seed(0)
    extractor = Extractor(NetworkConfig(bits=4, stages=((3, 1), (5, 1)), detail=True, even=True)).train()
    image = photographs.float()[:1, :, :24, :32]
    extractor(torch.cat([image, image.flip(-1), image.flip(-2)]))
    extractor.eval()
    state = {name: value.detach().numpy() for name, value in extractor.state_dict().items()}
    x = ((image[0].numpy() - np.array(MEAN)[:, None, None]) / np.array(DEVIATION)[:, None, None]).astype(float)
    row = np.array([1, 4, 6, 4, 1]) / 16
    blurred = np.stack([_correlate(np.pad(c, 2, "edge")[None], np.outer(row, row)[None, None])[0] for c in x])
    values = np.concatenate([x, 8 * (x - blurred)])
    for index in (0, 1, 2, 3):
        name = f"blocks.{index}"
        if f"{name}.0.weight" not in state:
            height, width = values.shape[1] // 2 * 2, values.shape[2] // 2 * 2
            values = values[:, :height, :width].reshape(len(values), height // 2, 2, width // 2, 2).mean((2, 4))
            continue
        values = _correlate(np.pad(values, ((0, 0), (1, 1), (1, 1))), state[f"{name}.0.weight"])
        values += state[f"{name}.0.bias"][:, None, None]
        scale = state[f"{name}.1.weight"] / np.sqrt(state[f"{name}.1.running_var"] + 1e-3)
        values = (values - state[f"{name}.1.running_mean"][:, None, None]) * scale[:, None, None]
        values += state[f"{name}.1.bias"][:, None, None]
        values = values * (1 + erf(values / np.sqrt(2))) / 2
    pooled = (values.mean((1, 2)) - state["even.running_mean"]) / np.sqrt(state["even.running_var"] + 1e-5)
    expected = state["linear.weight"] @ pooled + state["linear.bias"]
    assert np.allclose(extractor(image).detach().numpy()[0], expected, atol=1e-4, rtol=1e-4)


def _correlate(padded: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    size = kernels.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return np.einsum("chwij,ocij->ohw", windows, kernels)


def test_folding_puts_squares_into_channels() -> None:
    image = torch.arange(3 * 4 * 6.0).reshape(1, 3, 4, 6)
    folded = fold(image, 2)
    assert folded.shape == (1, 12, 2, 3)
    assert folded[0, :4, 1, 2].tolist() == [image[0, 0, y, x].item() for y in (2, 3) for x in (4, 5)]
    assert fold(image, 1) is image
    assert fold(image[..., :5], 4).shape == (1, 48, 1, 2)
    with pytest.raises(ImageError, match="too small"):
        fold(image[..., :1, :], 2)


def test_attenuation_is_bounded_by_its_strength() -> None:
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    added = attenuate(images, torch.ones_like(images), "uniform", 0.3)
    assert torch.allclose(added.amax(dim=(2, 3))[0], 0.3 * torch.tensor(DEVIATION))
    assert float(attenuate(images, torch.ones_like(images), "jnd", 1.0).max()) < 0.3


def test_networks_come_back_from_their_folder(tmp_path: Path) -> None:
    encoder, extractor = Encoder(SMALL).eval(), Extractor(SMALL).eval()
    save_networks(tmp_path, SMALL, encoder.state_dict(), extractor.state_dict())
    assert load_config(tmp_path) == SMALL
    image = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(load_extractor_folder(tmp_path, whitened=False)(image), extractor(image), atol=1e-6)
    ones = torch.ones(1, 8)
    loaded = load_encoder(tmp_path)
    assert loaded is not None
    assert torch.allclose(loaded(image, ones), encoder(image, ones), atol=1e-6)
    with pytest.raises(UnavailableError, match=r"whitening.safetensors"):
        load_extractor_folder(tmp_path)


def test_marks_by_descent_need_no_encoder_but_steps(tmp_path: Path, photographs: Images) -> None:
    config = SMALL.model_copy(update={"embed": "descent", "refine": 3})
    save_networks(tmp_path, config, {}, Extractor(SMALL).state_dict())
    assert not (tmp_path / "encoder.safetensors").exists()
    assert load_encoder(tmp_path) is None
    mark = Hidden(weights=str(tmp_path))
    assert "whitening.safetensors" in str(mark.unavailable())
    save_state({"weight": 2 * torch.eye(8), "bias": torch.ones(8)}, tmp_path / "whitening.safetensors", {})
    assert set(mark.digests()) == {"whitening.safetensors", "extractor.safetensors", "config.json"}
    plain = load_extractor_folder(tmp_path, whitened=False)(photographs.float()[:1])
    read = mark.decode(photographs.take([0])).logits
    assert torch.allclose(read, 2 * plain + 1, atol=1e-5)
    keys = torch.rand(3, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    marked = mark.embed(photographs, keys, Seed.root(0))
    assert not torch.equal(marked.pixels, photographs.pixels)
    with pytest.raises(ValueError, match="refine must be 1 or more"):
        NetworkConfig(embed="descent")


def test_folders_that_hold_no_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no trained networks"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text('{"bits": 0}', encoding="utf-8")
    with pytest.raises(UnavailableError, match="bits"):
        load_config(tmp_path)
    save_networks(tmp_path, SMALL, Encoder(SMALL).state_dict(), Extractor(SMALL).state_dict())
    other = SMALL.model_copy(update={"bits": 9})
    (tmp_path / "config.json").write_text(other.model_dump_json(), encoding="utf-8")
    with pytest.raises(UserError, match="the extractor in"):
        load_extractor_folder(tmp_path, whitened=False)
    (tmp_path / "config.json").write_text(SMALL.model_dump_json(), encoding="utf-8")
    path = tmp_path / "extractor.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnavailableError, match=r"extractor.safetensors"):
        load_extractor_folder(tmp_path, whitened=False)


@pytest.fixture
def images(photographs: Images) -> torch.Tensor:
    return photographs.float()[:, :, :96, :96]


def apply(images: torch.Tensor, operation: str, seed: int = 0) -> torch.Tensor:
    return augmentation.augment(images, operation, torch.Generator().manual_seed(seed))


def test_jpeg_is_pillows_and_its_gradient_knows_what_is_lost(images: torch.Tensor) -> None:
    wanted = images.clone().requires_grad_()
    coded = apply(wanted, "jpeg 50")
    for before, after in zip(images, coded, strict=True):
        file = io.BytesIO()
        Image.fromarray((before * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=50)
        again = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1) / 255
        assert torch.allclose(after, again, atol=1e-6)
    # A fine checkerboard does not survive quality 50, a coarse step does: the gradients along both say so.
    board = torch.ones(96, 96)
    board[::2, 1::2] = board[1::2, ::2] = -1
    step = torch.ones(96, 96)
    step[:, 48:] = -1
    (along_board,) = torch.autograd.grad((coded * board).sum(), wanted, retain_graph=True)
    (along_step,) = torch.autograd.grad((coded * step).sum(), wanted)
    assert abs(float((along_board * board).sum())) < 0.3 * abs(float((along_step * step).sum()))


@pytest.mark.parametrize(
    ("operation", "side"),
    [
        ("identity", 96),
        ("flip", 96),
        ("crop 0.25", 48),
        ("resize 0.25", 48),
        ("crop 0.5+jpeg 80", 68),
        ("rotate 20", 96),
    ]
    + [(f"{name} 1.5", 96) for name in ("brightness", "contrast", "saturation", "blur")]
    + [("noise 0.05", 96)],
)
def test_every_augmentation_keeps_range_gradient_and_seed(images: torch.Tensor, operation: str, side: int) -> None:
    wanted = images.clone().requires_grad_()
    out = apply(wanted, operation)
    assert out.shape == (3, 3, side, side)
    assert -1e-5 <= float(out.detach().min()) <= float(out.detach().max()) <= 1 + 1e-5
    out.sum().backward()
    assert wanted.grad is not None
    assert float(wanted.grad.abs().sum()) > 0
    assert torch.allclose(out, apply(images, operation), atol=1e-6)


def test_augmentations_against_other_computations(images: torch.Tensor) -> None:
    import cv2

    assert torch.equal(apply(images, "flip"), images.flip(-1))
    assert torch.allclose(apply(images, "brightness 1.5"), (1.5 * images).clamp(0, 1))
    blurred = cv2.GaussianBlur(images[0].permute(1, 2, 0).numpy(), (9, 9), 1.5, borderType=cv2.BORDER_REFLECT_101)
    assert np.allclose(apply(images, "blur 1.5")[0].permute(1, 2, 0).numpy(), blurred, atol=2e-3)
    small = functional.interpolate(images, size=[48, 48], mode="area")
    assert float((apply(images, "resize 0.25") - small).abs().mean()) < 0.02
    turned = apply(images, "rotate 30", seed=3)
    assert float((turned - images).abs().mean()) > 0.01
    assert torch.allclose(turned[..., 47:49, 47:49], images[..., 47:49, 47:49], atol=0.1)


def test_an_augmentation_that_nobody_knows() -> None:
    with pytest.raises(SpecError, match="Did you mean 'jpeg'"):
        augmentation.parse("jpg 50")
    with pytest.raises(SpecError, match="is no number"):
        augmentation.parse("jpeg high")


def test_the_shipped_weights_keep_the_contract() -> None:
    for result in check_component("hidden"):
        assert result.ok, f"{result.promise}: {result.detail}"


def test_the_shipped_weights_mark_photographs(photographs: Images) -> None:
    mark = Hidden()
    keys = torch.rand(3, mark.bits, generator=torch.Generator().manual_seed(0)) > 0.5
    marked = mark.embed(photographs, keys, Seed.root(0))
    logits = mark.decode(marked).logits
    assert logits is not None
    assert float(((logits > 0) == keys).float().mean()) > 0.9
    errors = (marked.float() - photographs.float()).square().mean(dim=(1, 2, 3))
    assert float(-10 * torch.log10(errors).max()) > 28
    one_by_one = torch.cat([mark.decode(marked.take([i])).logits for i in range(3)])  # type: ignore[misc]
    assert torch.equal(one_by_one, logits)


def test_missing_weights_are_a_reason_and_no_crash(tmp_path: Path) -> None:
    mark = Hidden(weights=str(tmp_path / "absent"))
    reason = mark.unavailable()
    assert reason is not None
    assert "absent" in reason
    assert mark.digests() == {}
    assert mark.label == "hidden(weights=absent)"
