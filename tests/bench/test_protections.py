"""Protections: the published steps, budgets that hold on 8-bit images, and nothing that depends on the batch."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from waterproof.bench.latent_metrics import LatentDistance, ReconstructionError
from waterproof.bench.methods.protections import cloak as cloak_module
from waterproof.bench.methods.protections import encoder
from waterproof.bench.methods.protections.base import latents, towards
from waterproof.bench.methods.protections.cloak import Cloak
from waterproof.bench.methods.protections.encoder import Mist, PhotoGuard, texture
from waterproof.bench.methods.protections.noise import NullProtection
from waterproof.core import descent, effort
from waterproof.core.autoencoders import load_autoencoder
from waterproof.core.components import build
from waterproof.core.errors import SpecError, UserError
from waterproof.core.images import Images, Record
from waterproof.core.latent_diffusion import Sampling, load_latent_diffusion
from waterproof.core.perceptual import load_perceptual, scaled_perceptual
from waterproof.core.seeds import Seed
from waterproof.core.weights import save_state
from waterproof.core.words import WordEncoder

if TYPE_CHECKING:
    from pathlib import Path

    from waterproof.bench.methods.base import Protection

SEED = Seed.root(3)
SIZE = (24, 32)
SCALING = 0.25
TINY = {
    **dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8, 8, 8)),
    **dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1, 1, 1)),
}
KL = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 8, 8),
    "norm_num_groups": 4,
    "latent_channels": 4,
    "scaling_factor": 0.5,
    "shift_factor": 0.2,
}


def randomised(network: Any) -> Any:
    """The network with weights so large that no gradient is lost in rounding."""
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return network


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small autoencoders with random weights, four pixels a cell, as diffusers saves them."""
    import diffusers

    made = {}
    for name, kind, parts in (("tiny", diffusers.AutoencoderTiny, TINY), ("kl", diffusers.AutoencoderKL, KL)):
        made[name] = tmp_path_factory.mktemp(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            randomised(kind(**parts)).save_pretrained(made[name])
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny latent diffusion model that reads words; sides of its images are multiples of 16."""
    import diffusers

    folder = tmp_path_factory.mktemp("tiny-model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16, 16), layers_per_block=1, cross_attention_dim=16,
            norm_num_groups=4, attention_head_dim=4,
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        ).save_pretrained(folder / "unet")  # fmt: skip
        # Weights as drawn: gradients are then small enough to show Adam's epsilon.
        diffusers.AutoencoderTiny(**TINY, scaling_factor=SCALING).save_pretrained(folder / "vae")
        words = WordEncoder(width=16)
    save_state(words.state_dict(), folder / "text_encoder" / "diffusion_pytorch_model.safetensors")
    (folder / "text_encoder" / "config.json").write_text(json.dumps(words.config), encoding="utf-8")
    diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing").save_pretrained(folder / "scheduler")
    index = {"_class_name": "WordLatentDiffusion", "autoencoder": "vae"}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def small(photographs: Images) -> Images:
    """Three pieces of photographs, 24 x 32, one with black and white in it."""
    pieces = photographs.numpy()[:, 100:124, 90:122].copy()
    pieces[0, :4], pieces[0, 4:8] = 0, 255
    return photographs.with_pixels(pieces)


@pytest.fixture(scope="module")
def pieces(photographs: Images) -> Images:
    """Two pieces of photographs, 64 x 64."""
    return photographs.with_pixels(photographs.numpy()[:, 96:160, 96:160].copy()).take([0, 1])


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The floats that each descent ends with, before they are rounded to 8 bits."""
    kept: list[torch.Tensor] = []

    def keeping(loop: Any) -> Any:
        def run(*given: Any, **options: Any) -> torch.Tensor:
            kept.append(loop(*given, **options))
            return kept[-1]

        return run

    monkeypatch.setattr(encoder, "signed_descent", keeping(descent.signed_descent))
    monkeypatch.setattr(cloak_module, "adam", keeping(descent.adam))
    return kept


@cache
def network_of(folder: Path) -> Any:
    """diffusers' own network."""
    import diffusers

    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    return getattr(diffusers, kind).from_pretrained(folder).requires_grad_(False)


def encoded(folder: Path, x: torch.Tensor, multiple: int = 4) -> torch.Tensor:
    """What diffusers' own encoder gives for images in -1 to 1, unscaled; sides repeat their last row and column."""
    height, width = x.shape[2:]
    rows, columns = (torch.arange(-(-side // multiple) * multiple).clamp(max=side - 1) for side in (height, width))
    found = network_of(folder).encode(x[:, :, rows][..., columns])
    if hasattr(found, "latents"):
        return torch.as_tensor(found.latents)
    return torch.as_tensor(found.latent_dist.mode())


def decoded(folder: Path, z: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images in -1 to 1 of these latents."""
    return torch.as_tensor(network_of(folder).decode(z).sample[..., : size[0], : size[1]])


def psnr(one: Images, other: Images) -> np.ndarray:
    squares = (one.pixels.double() - other.pixels.double()).square().flatten(1).mean(dim=1)
    return np.asarray(10 * np.log10(255**2 / squares.numpy()))


def moved(images: Images, clean: Images) -> np.ndarray:
    """How far the latent is from that of the clean image, as a share of its length."""
    metric = LatentDistance()
    return metric.compare(images, metric.prepare(clean))


def inconsistency(images: Images) -> np.ndarray:
    metric = ReconstructionError()
    return metric.compare(images, metric.prepare(images))


def largest(one: Images, other: Images) -> int:
    return int((one.pixels.int() - other.pixels.int()).abs().max())


# Signed steps ---------------------------------------------------------------------------------------------------------


def by_hand(folder: Path, image: np.ndarray, drawn: np.ndarray, wanted: torch.Tensor, attack: Any) -> np.ndarray:
    """PGD on one image in NumPy, in the published scale -1 to 1; the result too."""
    clean = image / 127.5 - 1
    low, high = np.maximum(clean - attack.budget, -1), np.minimum(clean + attack.budget, 1)
    x = np.clip(clean + attack.budget * (2 * drawn - 1), low, high)
    for number in range(attack.steps):
        leaf = torch.from_numpy(x).float().permute(2, 0, 1)[None].requires_grad_(True)
        z = encoded(folder, leaf)
        loss = (z - wanted).square().mean()
        if attack.adaptive:
            loss = loss + attack.adaptive * (decoded(folder, z, image.shape[:2]) - leaf).square().mean()
        gradient = torch.autograd.grad(loss, leaf)[0][0].permute(1, 2, 0).numpy()
        size = attack.step
        if isinstance(attack, PhotoGuard):
            # Towards one hundredth, as the release does it.
            size = attack.step - (attack.step - attack.step / 100) / attack.steps * number
        x = np.clip(x - size * np.sign(gradient), low, high)
    return np.asarray(x)


def target_of(attack: Any, folder: Path, size: tuple[int, int]) -> torch.Tensor:
    if isinstance(attack, Mist):
        return encoded(folder, torch.from_numpy(2 * texture(*size) - 1).permute(2, 0, 1)[None])
    if attack.target == "grey":
        return encoded(folder, torch.zeros(1, 3, *size))
    return torch.zeros(1)


SIGNED: list[tuple[Any, dict[str, Any]]] = [
    (PhotoGuard, {}),
    (PhotoGuard, {"target": "grey", "budget": 0.12, "step": 0.05}),
    (PhotoGuard, {"adaptive": 3.0}),
    (Mist, {}),
    (Mist, {"step": 0.1, "adaptive": 0.5}),
]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", ["tiny", "kl"])
@pytest.mark.parametrize(("cls", "fields"), SIGNED)
def test_signed_steps_are_those_of_a_loop_in_the_published_scale(
    cls: Any, fields: dict[str, Any], kind: str, steps: int, folders: dict[str, Path], small: Images, ends: list[Any]
) -> None:
    attack = cls(autoencoder=str(folders[kind]), steps=steps, **fields)
    result = attack.protect(small, SEED)
    wanted = target_of(attack, folders[kind], SIZE)
    for i, (record, end) in enumerate(zip(small.records, ends, strict=True)):
        drawn = torch.rand((3, *SIZE), generator=SEED.child(record.id).torch()).permute(1, 2, 0).numpy()
        expected = by_hand(folders[kind], small.numpy()[i].astype(float), drawn, wanted, attack)
        gap = np.abs(2 * end[0].permute(1, 2, 0).numpy() - 1 - expected)
        # Where a gradient vanishes, rounding decides its sign.
        assert (gap > 1e-5).mean() < 2e-3
        assert torch.equal(result.pixels[i], (end[0] * 255).round().byte())


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (23, 29)])
@pytest.mark.parametrize(("cls", "fields"), [(PhotoGuard, {"adaptive": 2.0}), (Mist, {})])
def test_sides_that_are_no_multiples_of_the_factor_are_extended_and_cut_back(
    cls: Any, fields: dict[str, Any], size: tuple[int, int], folders: dict[str, Path], small: Images, ends: list[Any]
) -> None:
    images = small.take([2]).with_pixels(small.numpy()[2:, : size[0], : size[1]].copy())
    attack = cls(autoencoder=str(folders["tiny"]), steps=2, **fields)
    assert attack.protect(images, SEED).size == size
    drawn = torch.rand((3, *size), generator=SEED.child("coffee").torch()).permute(1, 2, 0).numpy()
    wanted = target_of(attack, folders["tiny"], size)
    expected = by_hand(folders["tiny"], images.numpy()[0].astype(float), drawn, wanted, attack)
    assert (np.abs(2 * ends[0][0].permute(1, 2, 0).numpy() - 1 - expected) > 1e-5).mean() < 2e-3


def test_the_parameters_are_the_published_ones() -> None:
    guard, mist = PhotoGuard(), Mist()
    assert (guard.budget, guard.step, guard.steps, guard.target) == (0.06, 0.02, 1000, "zero")
    assert (guard.largest_change, mist.largest_change) == (pytest.approx(7.65), pytest.approx(16))
    assert (127.5 * mist.budget, 127.5 * mist.step, mist.steps) == (pytest.approx(16), pytest.approx(1), 100)
    assert guard.label == "photoguard"
    assert Mist(steps=40, adaptive=3).label == "mist(adaptive=3, steps=40)"
    assert PhotoGuard(autoencoder="/some/where/sd-vae", target="grey").label == (
        "photoguard(target=grey, autoencoder=sd-vae)"
    )


@pytest.mark.parametrize(
    ("cls", "fields", "most"),
    [
        (PhotoGuard, {}, 8),
        (PhotoGuard, {"budget": 0.12, "step": 0.1}, 15),
        (PhotoGuard, {"budget": 0.005}, 1),
        (PhotoGuard, {"budget": 2}, 255),
        (Mist, {}, 16),
        (Mist, {"budget": 0.037}, 5),
    ],
)
def test_8_bit_images_exceed_the_budget_by_half_a_grey_level_at_most(
    cls: Any, fields: dict[str, Any], most: int, folders: dict[str, Path], small: Images
) -> None:
    attack = cls(autoencoder=str(folders["tiny"]), steps=8, **fields)
    found = largest(attack.protect(small, SEED), small)
    assert attack.largest_change is not None
    assert found <= attack.largest_change + 0.5
    assert found == most or fields.get("budget") == 2


@pytest.mark.parametrize(
    ("cls", "fields"), [(PhotoGuard, {}), (PhotoGuard, {"target": "grey"}), (Mist, {})], ids=["zero", "grey", "mist"]
)
def test_on_photographs_the_objective_falls_and_the_latent_gets_nearer_to_its_target(
    cls: Any, fields: dict[str, Any], pieces: Images
) -> None:
    attack = cls(steps=10, **fields)
    with effort.measured() as spent:
        result = attack.protect(pieces, SEED)
    network = load_autoencoder("shipped")
    with torch.no_grad():
        wanted = torch.zeros(1)
        if fields or cls is Mist:
            picture = texture(64, 64) if cls is Mist else np.full((64, 64, 3), 0.5, np.float32)
            wanted = network.encode(torch.from_numpy(picture).permute(2, 0, 1)[None])
        before, after = ((network.encode(x.float()) - wanted).square().mean((1, 2, 3)) for x in (pieces, result))
    for i, record in enumerate(pieces.records):
        curve = [value for _, value in spent.objectives[record.id]]
        assert len(curve) == 10
        assert curve[-1] < 0.9 * curve[0]
        assert float(after[i]) < 0.9 * float(before[i])
    assert moved(result, pieces).min() > 0.1
    # What is aimed at is encoded once for each image; zero is a number.
    aims = 2 if fields or cls is Mist else 0
    assert (spent.evaluations, spent.backwards) == (2 * 10 + aims, 2 * 10)


@pytest.mark.parametrize(("cls", "fields"), [(PhotoGuard, {"adaptive": 1.0}), (PhotoGuard, {}), (Mist, {})])
@pytest.mark.parametrize("kind", ["tiny", "kl"])
def test_bytes_are_of_seed_and_id_whatever_else_is_in_the_batch(
    kind: str, cls: Any, fields: dict[str, Any], folders: dict[str, Path], small: Images
) -> None:
    before = torch.random.get_rng_state()
    for batch in (1, 2):
        attack = cls(autoencoder=str(folders[kind]), steps=3, batch=batch, **fields)
        together = attack.protect(small, SEED)
        assert together.records == small.records
        for order in ([0], [2], [0, 2], [1, 0], [2, 1, 0]):
            assert torch.equal(attack.protect(small.take(order), SEED).pixels, together.pixels[order]), (batch, order)
        assert not torch.equal(attack.protect(small, Seed.root(4)).pixels, together.pixels)
        assert attack.protect(small.take([]), SEED).records == ()
    other = Images(small.pixels, [Record(r.id, source="another", label="fake", seed=9) for r in small.records])
    assert torch.equal(attack.protect(other, SEED).pixels, together.pixels)
    assert torch.equal(torch.random.get_rng_state(), before)


# The adaptive term ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, (23, 29)])
@pytest.mark.parametrize("kind", ["tiny", "kl"])
def test_the_adaptive_term_is_the_mean_squared_reconstruction_error_in_the_published_scale(
    kind: str, size: tuple[int, int], folders: dict[str, Path], small: Images
) -> None:
    network, folder = load_autoencoder(folders[kind]), folders[kind]
    values = small.with_pixels(small.numpy()[:, : size[0], : size[1]].copy()).float()
    wanted = encoded(folder, 2 * values.flip(3) - 1)
    torch.testing.assert_close(latents(network, values), encoded(folder, 2 * values - 1), atol=1e-5, rtol=1e-4)
    with effort.measured() as plain:
        far = towards(network, wanted, 0.0)(values)
    with effort.measured() as adaptive:
        total = towards(network, wanted, 7.0)(values)
    for i in range(3):
        x = 2 * values[i : i + 1] - 1
        z = encoded(folder, x)
        distance = float((z - wanted[i]).square().mean())
        error = float((decoded(folder, z, size) - x).square().mean())
        assert float(far[i]) == pytest.approx(distance, rel=1e-4)
        assert float(total[i]) == pytest.approx(distance + 7 * error, rel=1e-4)
    assert (plain.evaluations, plain.backwards) == (3, 3)
    assert (adaptive.evaluations, adaptive.backwards) == (6, 6)


def test_an_adaptive_protection_leaves_less_for_a_purifier_to_lower(pieces: Images) -> None:
    plain, adaptive = (PhotoGuard(steps=10, adaptive=weight).protect(pieces, SEED) for weight in (0, 30))
    assert (inconsistency(adaptive) < 0.8 * inconsistency(plain)).all()
    assert moved(adaptive, pieces).min() > 0.1


# The texture ----------------------------------------------------------------------------------------------------------


def test_the_texture_is_a_pure_function_of_the_place() -> None:
    large = texture(64, 80)
    assert (large.shape, large.dtype) == ((64, 80, 3), np.float32)
    assert set(np.unique(large)) == {0.0, 1.0}
    np.testing.assert_array_equal(texture(64, 80), large)
    np.testing.assert_array_equal(texture(20, 33), large[:20, :33])
    assert texture(1, 1).shape == (1, 1, 3)


def test_the_texture_is_strong_in_every_colour_and_each_has_its_own() -> None:
    picture = texture(128, 128)
    np.testing.assert_allclose(picture.mean(axis=(0, 1)), 0.5, atol=0.05)
    assert picture.std(axis=(0, 1)).min() > 0.49
    assert np.abs(np.corrcoef(picture.reshape(-1, 3).T) - np.eye(3)).max() < 0.1


# Cloak ----------------------------------------------------------------------------------------------------------------


def cloak(folder: Path, **fields: Any) -> Cloak:
    given = {"model": str(folder), "distance": "watson-1993", "sampling_steps": 5, "prompt": "colourful bright"}
    return Cloak(**{**given, **fields})


def styled(folder: Path, attack: Cloak, image: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Latent of the image (0 to 1, sides of 16) in another style, by the model's image-to-image."""
    diffusion, vae = load_latent_diffusion(folder), folder / "vae"
    with torch.no_grad():
        latent = SCALING * encoded(vae, 2 * image - 1)
        noise = torch.randn(latent.shape[1:], generator=draw)[None]
        changed = diffusion.edit(latent, attack.prompt, noise, attack.strength, Sampling(5, attack.guidance))
        return encoded(vae, network_of(vae).decode(changed / SCALING).sample.clamp(-1, 1))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("fields", [{}, {"limit": 0.0, "weight": 2.0}, {"adaptive": 30.0, "rate": 0.05}])
def test_a_cloak_takes_steps_of_torchs_adam_towards_the_restyled_latent(
    fields: dict[str, Any], steps: int, model: Path, photographs: Images, ends: list[Any]
) -> None:
    images = photographs.with_pixels(photographs.numpy()[:, 100:132, 90:138].copy()).take([0, 1])
    attack = cloak(model, steps=steps, **fields)
    result = attack.protect(images, SEED)
    distance = load_perceptual("watson-1993")
    for i, (record, end) in enumerate(zip(images.records, ends, strict=True)):
        clean, draw = images.take([i]).float(), SEED.child(record.id).torch()
        wanted = styled(model, attack, clean, draw)
        start = 2 * clean - 1 + 0.05 * (2 * torch.rand(clean.shape[1:], generator=draw)[None] - 1)
        x = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([x], lr=attack.rate)
        for _ in range(steps):
            optimizer.zero_grad()
            z = encoded(model / "vae", x)
            far = distance((x + 1) / 2, clean) / 28
            loss = (z - wanted).square().mean() + attack.weight * torch.relu(far - attack.limit).sum()
            loss = loss + attack.adaptive * (network_of(model / "vae").decode(z).sample - x).square().mean()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                x.clamp_(-1, 1)
        gap = (end - (x.detach() + 1) / 2).abs()
        # Adam's first steps are signs: where a gradient vanishes, rounding decides them.
        assert float((gap > 1e-4).float().mean()) < 2e-3
        assert torch.equal(result.pixels[i], (end[0] * 255).round().byte())


def test_a_cloak_moves_photographs_towards_another_style_and_holds_the_perceptual_limit(pieces: Images) -> None:
    attack = Cloak(distance="watson-1993", sampling_steps=5, steps=30)
    result = attack.protect(pieces, SEED)
    diffusion = load_latent_diffusion("shipped")
    network = diffusion.autoencoder
    (distance, unit), far = scaled_perceptual("watson-1993"), []
    for i, record in enumerate(pieces.records):
        with torch.no_grad():
            clean, cloaked = pieces.take([i]).float(), result.take([i]).float()
            latent, draw = network.encode(clean), SEED.child(record.id).torch()
            noise = torch.randn(latent.shape[1:], generator=draw)[None]
            changed = diffusion.edit(latent, attack.prompt, noise, 0.4, Sampling(5, 3.0))
            wanted = network.encode(network.decode(changed).clamp(0, 1))
            assert float((network.encode(cloaked) - wanted).norm()) < 0.9 * float((latent - wanted).norm())
            far.append(float(distance(cloaked, clean) / unit))
    # A penalty, not a projection.
    assert max(far) < 2 * attack.limit
    assert attack.largest_change is None


@pytest.mark.parametrize("size", [(32, 48), (23, 29), (1, 1)])
def test_a_cloak_of_any_size_does_not_depend_on_the_batch(
    size: tuple[int, int], model: Path, photographs: Images
) -> None:
    images = photographs.with_pixels(photographs.numpy()[:, 100 : 100 + size[0], 90 : 90 + size[1]].copy())
    before = torch.random.get_rng_state()
    for batch in (1, 2):
        attack = cloak(model, steps=2, batch=batch)
        together = attack.protect(images, SEED)
        assert together.size == size
        assert together.records == images.records
        for order in ([0], [2], [0, 2], [2, 1, 0]):
            assert torch.equal(attack.protect(images.take(order), SEED).pixels, together.pixels[order]), (batch, order)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert attack.protect(images.take([]), SEED).records == ()


def test_the_work_of_a_cloak_is_counted(model: Path, photographs: Images) -> None:
    images = photographs.with_pixels(photographs.numpy()[:, :16, :16].copy())
    with effort.measured() as spent:
        cloak(model, steps=4, strength=0.6).protect(images, SEED)
    # Encoder, decoder, encoder; three steps of the diffusion model with guidance; then the encoder for each step.
    assert (spent.evaluations, spent.backwards) == (3 * (3 + 2 * 3 + 4), 3 * 4)


def test_a_batch_that_is_filled_up_has_every_objective_once(folders: dict[str, Path], small: Images) -> None:
    with effort.measured() as spent:
        PhotoGuard(autoencoder=str(folders["tiny"]), steps=4, batch=2).protect(small, SEED)
    assert [[step for step, _ in curve] for curve in spent.objectives.values()] == [[0, 1, 2, 3]] * 3


def test_a_cloak_needs_its_model_and_its_distance(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = cloak(model, steps=7)
    assert attack.unavailable() is None
    assert attack.digests() == {"model": load_latent_diffusion(model).digest}
    assert "there is no such folder" in (cloak(tmp_path / "none").unavailable() or "")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    scaled_perceptual.cache_clear()
    reason = Cloak(model=str(model)).unavailable()
    assert reason is not None
    assert reason.startswith("lpips-vgg needs ")
    assert reason.endswith("; or choose distance: watson-1993, which needs no weights")
    assert Cloak(model=str(model)).digests() == {}
    # Glaze's weights and steps as IMPRESS' authors give them.
    assert (Cloak().weight, Cloak().limit, Cloak().rate, Cloak().steps, Cloak().strength) == (30, 0.05, 0.01, 500, 0.4)
    with pytest.raises(UserError, match="this model does not know the word 'cubism'"):
        cloak(model, prompt="cubism by picasso").protect(
            Images.from_numpy(np.zeros((1, 16, 16, 3), np.uint8), [Record("a")]), SEED
        )


# Null protectors ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grey() -> Images:
    """Two grey images, 128 x 128: no noise of these budgets leaves the range."""
    return Images.from_numpy(np.full((2, 128, 128, 3), 128, np.uint8), [Record("a"), Record("b")])


@pytest.mark.parametrize("budget", [0.06, 0.18])
def test_null_noise_has_the_stated_norm(budget: float, grey: Images) -> None:
    levels = 127.5 * budget

    def change(noise: str) -> np.ndarray:
        return NullProtection(noise=noise, budget=budget).protect(grey, SEED).numpy().astype(float) - 128

    uniform, gaussian, sign = (change(noise) for noise in ("uniform", "gaussian", "sign"))
    # Rounding to whole levels adds a variance of 1/12; 98,304 values leave half a percent of doubt.
    assert uniform.std() == pytest.approx(np.sqrt(levels**2 / 3 + 1 / 12), rel=0.01)
    assert np.abs(uniform).max() == np.rint(levels)
    assert gaussian.std() == pytest.approx(np.sqrt(levels**2 + 1 / 12), rel=0.01)
    assert np.abs(gaussian).max() > 3 * levels
    np.testing.assert_array_equal(np.abs(sign), np.rint(levels))
    for drawn in (uniform, gaussian, sign):
        assert abs(drawn.mean()) < 5 * drawn.std() / np.sqrt(drawn.size)
        # Images and colours have noise of their own.
        assert abs(np.corrcoef(drawn[0].ravel(), drawn[1].ravel())[0, 1]) < 0.03
        assert abs(np.corrcoef(drawn[..., 0].ravel(), drawn[..., 1].ravel())[0, 1]) < 0.03


def test_no_noise_is_the_identity(small: Images) -> None:
    assert torch.equal(NullProtection().protect(small, SEED).pixels, small.pixels)
    assert NullProtection().label == "null-protection"


@pytest.mark.parametrize(("noise", "promised"), [("none", 0.0), ("uniform", 7.65), ("gaussian", None), ("sign", 7.65)])
def test_null_noise_keeps_its_promise_and_is_the_same_in_any_batch(
    noise: Any, promised: float | None, small: Images
) -> None:
    attack = NullProtection(noise=noise)
    together = attack.protect(small, SEED)
    assert attack.largest_change == (None if promised is None else pytest.approx(promised))
    if promised is not None:
        assert largest(together, small) <= promised + 0.5
    for order in ([0], [2, 0], [1, 2, 0]):
        assert torch.equal(attack.protect(small.take(order), SEED).pixels, together.pixels[order])
    assert attack.protect(small.take([]), SEED).records == ()
    assert together.records == small.records
    same = torch.equal(attack.protect(small, Seed.root(4)).pixels, together.pixels)
    assert same == (noise == "none")


def test_a_signed_protection_spends_what_its_null_does(pieces: Images) -> None:
    protected = PhotoGuard(steps=30).protect(pieces, SEED)
    null = NullProtection(noise="sign").protect(pieces, SEED)
    assert largest(protected, pieces) == largest(null, pieces) == 8
    assert (psnr(protected, pieces) >= psnr(null, pieces)).all()
    # The null moves the latent less, though it spends more.
    assert (moved(null, pieces) < 0.5 * moved(protected, pieces)).all()


# What a person meets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "params", "says"),
    [
        (PhotoGuard, {"budget": 0}, "photoguard: budget: input should be greater than 0"),
        (PhotoGuard, {"target": "black"}, "target"),
        (Mist, {"steps": 0}, "mist: steps: input should be greater than or equal to 1"),
        (Mist, {"target": "zero"}, "unknown parameter 'target'"),
        (Cloak, {"strength": 0}, "cloak: strength: input should be greater than 0"),
        (Cloak, {"sampling_steps": 2}, "strength 0.4 of 2 sampling_steps is less than one step"),
        (NullProtection, {"noise": "normal"}, "noise"),
    ],
)
def test_a_bad_parameter_gives_one_clear_line(cls: type[Protection], params: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as caught:
        build(cls, params)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_finite_is_one_clear_line(small: Images, tmp_path: Path) -> None:
    import diffusers

    with torch.random.fork_rng(devices=[]):
        network = diffusers.AutoencoderTiny(**TINY)
        next(network.encoder.parameters()).data.fill_(float("nan"))
        network.save_pretrained(tmp_path)
    for attack in (PhotoGuard(autoencoder=str(tmp_path), steps=4), Mist(autoencoder=str(tmp_path), steps=4)):
        with pytest.raises(UserError) as caught:
            attack.protect(small, SEED)
        line = str(caught.value)
        assert line.startswith(f"{attack.label}: at step 1 of 4 the objective of image astronaut or its gradient is")
        assert "\n" not in line
