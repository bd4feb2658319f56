"""IMPRESS: the published steps on any autoencoder, each image by itself, and plain words where it cannot run."""

from __future__ import annotations

import importlib.util
import io
import json
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from waterproof.attacks import purification
from waterproof.attacks.purification import TRACKS, Impress, Track, impress_objective
from waterproof.core import descent, effort
from waterproof.core.autoencoders import load_autoencoder
from waterproof.core.components import build
from waterproof.core.errors import SpecError, UserError
from waterproof.core.images import Images, Record
from waterproof.core.perceptual import load_perceptual, scaled_perceptual
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    from pathlib import Path

SEED = Seed.root(3)
PARTS = {
    "tiny": {
        **dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8, 8, 8)),
        **dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1, 1, 1)),
    },
    "kl": {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 8, 8),
        "norm_num_groups": 4,
        "latent_channels": 4,
        "shift_factor": 0.1,
    },
}
JPEG_50 = 28.0
"""What of watson-1993 counts as 1: JPEG 50, 2.8 on average, is to stand at the published limit of .1."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small autoencoders with random weights, four pixels a cell, as diffusers saves them."""
    import diffusers

    kinds = {"tiny": diffusers.AutoencoderTiny, "kl": diffusers.AutoencoderKL}
    made = {}
    for name, kind in kinds.items():
        made[name] = tmp_path_factory.mktemp(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            network = kind(**PARTS[name])
            for parameter in network.parameters():
                parameter.data += 0.05 * torch.randn(parameter.shape)
            network.save_pretrained(made[name])
    return made


@pytest.fixture(scope="module")
def small(photographs: Images) -> Images:
    """Three pieces of photographs, 24 x 32."""
    return photographs.with_pixels(photographs.numpy()[:, 100:124, 90:122].copy())


@pytest.fixture
def steps_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """First and last floats of every descent, before they are rounded to 8 bits."""
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keeping(start: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        kept.append((start, descent.adam(start, *rest, **options)))
        return kept[-1][1]

    monkeypatch.setattr(purification, "adam", keeping)
    return kept


def impress(folder: Path, **fields: Any) -> Impress:
    return Impress(**{"autoencoder": str(folder), "distance": "watson-1993", **fields})


def noise(record: Record, size: tuple[int, int]) -> torch.Tensor:
    return torch.randn((3, *size), generator=SEED.child(record.id).torch())


@cache
def network_of(folder: Path) -> Any:
    """diffusers' own network."""
    import diffusers

    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    return getattr(diffusers, kind).from_pretrained(folder).requires_grad_(False)


def through(folder: Path, x: torch.Tensor) -> torch.Tensor:
    """Images in -1 to 1 through diffusers' own network, extended at their right and lower edge to multiples of 4."""
    height, width = x.shape[2:]
    rows, columns = torch.arange(-(-height // 4) * 4), torch.arange(-(-width // 4) * 4)
    x = x[:, :, rows.clamp(max=height - 1)][..., columns.clamp(max=width - 1)]
    network = network_of(folder)
    encoded = network.encode(x)
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    out: torch.Tensor = network.decode(latents).sample[..., :height, :width]
    return out


def published(
    folder: Path, given: torch.Tensor, drawn: torch.Tensor, track: Track, convention: str = "mean"
) -> torch.Tensor:
    """IMPRESS on one image in the scale of the paper, -1 to 1, with torch's own optimiser; the result in 0 to 1."""
    protected = 2 * given - 1
    x = (protected + track.sigma * drawn).requires_grad_(True)
    optimizer = torch.optim.Adam([x], lr=track.rate, eps=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, track.steps, eta_min=1e-5)
    error, distance = torch.nn.MSELoss(reduction=convention), load_perceptual("watson-1993")
    for _ in range(track.steps):
        optimizer.zero_grad()
        far = distance((x + 1) / 2, (protected + 1) / 2) / JPEG_50
        loss = error(through(folder, x), x) + track.alpha * torch.relu(far - track.limit).sum()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(-1, 1)
    return (x.detach() + 1) / 2


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to rounding, which Adam enlarges where a gradient is as small as its epsilon.

    Half or twice the epsilon is a mean difference of 2e-5 or more, half or twice the last rate one of 2e-6.
    """
    gap = (found - expected).abs()
    assert float(gap.mean()) < 1e-6
    assert float(gap.max()) < 5e-5


# The published steps -------------------------------------------------------------------------------------------------

NEAR = Track(steps=3, rate=0.02, alpha=0.1, sigma=0.1, limit=10.0)
"""Inside the limit."""
FAR = Track(steps=3, rate=0.02, alpha=0.5, sigma=0.6, limit=0.05)
"""Beyond the limit, and so much noise that the first image leaves its range."""


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", ["tiny", "kl"])
@pytest.mark.parametrize("track", [NEAR, FAR, TRACKS["style"], TRACKS["editing"]])
def test_steps_are_those_of_torchs_adam_in_the_published_scale(
    track: Track, kind: str, steps: int, folders: dict[str, Path], small: Images, steps_of: list[Any]
) -> None:
    given = Track(steps, track.rate, track.alpha, track.sigma, track.limit)
    attack = impress(folders[kind], **vars(given))
    result = attack.apply(small, SEED)
    for i, (record, (start, end)) in enumerate(zip(small.records, steps_of, strict=True)):
        image = small.take([i]).float()
        expected = published(folders[kind], image, noise(record, (24, 32))[None], given)
        assert start.shape == end.shape == (1, 3, 24, 32)
        close(end, expected)
        assert float((end - start.clamp(0, 1)).abs().mean()) > 2e-4
        assert torch.equal(result.pixels[i], (end[0].clamp(0, 1) * 255).round().byte())
    if track is FAR:
        assert float(steps_of[0][0].max()) > 1
        assert float(steps_of[0][0].min()) < 0


@pytest.mark.parametrize("convention", ["mean", "sum"])
def test_both_conventions_are_stepped_as_torch_does(
    convention: str, folders: dict[str, Path], small: Images, steps_of: list[Any]
) -> None:
    track = Track(steps=2, rate=0.02, alpha=200.0, sigma=0.3, limit=0.01)
    impress(folders["kl"], convention=convention, **vars(track)).apply(small.take([1]), SEED)
    drawn = noise(small.records[1], (24, 32))[None]
    expected = published(folders["kl"], small.take([1]).float(), drawn, track, convention)
    close(steps_of[0][1], expected)


def test_the_conventions_differ_by_the_number_of_values(folders: dict[str, Path], small: Images) -> None:
    network, (distance, unit) = load_autoencoder(folders["tiny"]), scaled_perceptual("watson-1993")
    given, values = small.float(), small.float().roll(1, 0)
    track, count = TRACKS["editing"], 3 * 24 * 32

    def found(convention: str, alpha: float) -> torch.Tensor:
        chosen = Track(track.steps, track.rate, alpha, track.sigma, track.limit)
        return impress_objective(network, given, distance, unit, chosen, convention)(values)

    again = torch.cat([through(folders["tiny"], 2 * image[None] - 1) for image in values])
    mean = (again - (2 * values - 1)).square().flatten(1).mean(dim=1)
    torch.testing.assert_close(found("mean", 0), mean)
    torch.testing.assert_close(found("sum", 0), count * mean)
    far = distance(values, given) / unit - track.limit
    assert float(far.min()) > 0
    torch.testing.assert_close(found("mean", 0.01) - found("mean", 0), 0.01 * far, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found("sum", 0.01 * count), count * found("mean", 0.01), rtol=1e-4, atol=0)


def test_a_distance_within_the_limit_has_no_gradient_and_beyond_it_has(folders: dict[str, Path], small: Images) -> None:
    network, (distance, unit) = load_autoencoder(folders["tiny"]), scaled_perceptual("watson-1993")
    given = small.float()
    values = (given + 0.02 * torch.stack([noise(r, (24, 32)) for r in small.records])).requires_grad_(True)
    far = (distance(values, given) / unit).detach()

    def slope(alpha: float, limit: float) -> torch.Tensor:
        objective = impress_objective(network, given, distance, unit, Track(1, 0.1, alpha, 0.1, limit), "mean")
        return torch.autograd.grad(objective(values).sum(), values)[0]

    assert torch.equal(slope(7.0, 1.01 * float(far.max())), slope(0.0, 0.1))
    (pull,) = torch.autograd.grad(distance(values, given).sum() / unit, values)
    torch.testing.assert_close(slope(7.0, 0.99 * float(far.min())) - slope(0.0, 0.1), 7 * pull, atol=1e-6, rtol=1e-3)


def test_the_tracks_are_those_of_the_release() -> None:
    table = {"style": (3000, 0.01, 0.1, 0.1, 0.1), "editing": (1000, 0.005, 0.01, 0.05, 0.1)}
    for name, (steps, rate, alpha, sigma, limit) in table.items():
        assert Impress(track=name).chosen == Track(steps, rate, alpha, sigma, limit)
        assert Impress(track=name).strength_value == steps
    assert (Impress().track, Impress().distance, Impress().convention) == ("editing", "lpips-vgg", "mean")
    changed = Impress(track="style", steps=7, alpha=0, sigma=0, limit=0, rate=0.5).chosen
    assert changed == Track(steps=7, rate=0.5, alpha=0, sigma=0, limit=0)


def test_jpeg_50_of_photographs_stands_about_at_the_published_limit(photographs: Images) -> None:
    distance, unit = scaled_perceptual("watson-1993")
    assert unit == pytest.approx(JPEG_50)
    coded = []
    for picture in photographs.pil():
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=50)
        coded.append(np.asarray(Image.open(file)))
    far = distance(photographs.with_pixels(np.stack(coded)).float(), photographs.float()) / unit
    assert float(far.mean()) == pytest.approx(0.1, abs=0.02)
    assert scaled_perceptual("watson-1993")[0] is distance


# What the result depends on ------------------------------------------------------------------------------------------


def test_the_first_noise_is_of_the_seed_and_the_id_alone(
    folders: dict[str, Path], small: Images, steps_of: list[Any]
) -> None:
    other = Images(small.pixels, [Record(r.id, source="another", label="fake", seed=9) for r in small.records])
    attack = impress(folders["tiny"], steps=1, sigma=0.2)
    one, two = attack.apply(small, SEED), attack.apply(other, SEED)
    for i, record in enumerate(small.records):
        expected = small.float()[i] + 0.1 * noise(record, (24, 32))
        torch.testing.assert_close(steps_of[i][0][0], expected)
        assert torch.equal(steps_of[i][0], steps_of[i + 3][0])
    assert torch.equal(one.pixels, two.pixels)
    assert not torch.equal(attack.apply(small, Seed.root(4)).pixels, one.pixels)
    unseeded = impress(folders["tiny"], steps=1, sigma=0)
    assert torch.equal(unseeded.apply(small, SEED).pixels, unseeded.apply(small, Seed.root(4)).pixels)


@pytest.mark.parametrize("kind", ["tiny", "kl"])
def test_an_image_has_the_same_bytes_alone_and_in_any_order(kind: str, folders: dict[str, Path], small: Images) -> None:
    attack, before = impress(folders[kind], steps=3, sigma=0.2), torch.random.get_rng_state()
    together = attack.apply(small, SEED)
    assert together.records == small.records
    for order in ([0], [1], [2], [2, 0], [1, 2, 0]):
        assert torch.equal(attack.apply(small.take(order), SEED).pixels, together.pixels[order])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert attack.apply(small.take([]), SEED).records == ()


@pytest.mark.parametrize("size", [(24, 32), (23, 29)])
@pytest.mark.parametrize("kind", ["tiny", "kl"])
def test_in_a_batch_of_two_an_image_has_the_same_bytes_whatever_fills_the_batch(
    kind: str, size: tuple[int, int], folders: dict[str, Path], small: Images
) -> None:
    images = small.with_pixels(small.numpy()[:, : size[0], : size[1]].copy())
    attack = impress(folders[kind], steps=3, sigma=0.2, batch=2)
    together = attack.apply(images, SEED)
    for order in ([0], [1], [2], [0, 2], [2, 0], [1, 2, 0], [1, 0]):
        assert torch.equal(attack.apply(images.take(order), SEED).pixels, together.pixels[order]), order
    one = impress(folders[kind], steps=3, sigma=0.2).apply(images, SEED)
    # Sums may be ordered otherwise in batches of another length; the images are the same ones.
    assert int((one.pixels.int() - together.pixels.int()).abs().max()) <= 1


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (23, 29), (24, 30)])
def test_sides_that_are_no_multiples_of_the_factor_are_extended_and_cut_back(
    size: tuple[int, int], folders: dict[str, Path], small: Images, steps_of: list[Any]
) -> None:
    images = small.take([0]).with_pixels(small.numpy()[:1, : size[0], : size[1]].copy())
    track = Track(steps=2, rate=0.02, alpha=0.5, sigma=0.2, limit=0.05)
    result = impress(folders["kl"], **vars(track)).apply(images, SEED)
    expected = published(folders["kl"], images.float(), noise(images.records[0], size)[None], track)
    assert result.size == size
    close(steps_of[0][1], expected)


# What it achieves ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces(photographs: Images) -> Images:
    """Two pieces of photographs, 64 x 64."""
    return photographs.with_pixels(photographs.numpy()[:, 96:160, 96:160].copy()).take([0, 1])


def psnr(one: Images, other: Images) -> np.ndarray:
    squares = (one.pixels.double() - other.pixels.double()).square().flatten(1).mean(dim=1)
    return np.asarray(10 * np.log10(255**2 / squares.numpy()))


def test_the_objective_falls_on_photographs_and_the_image_is_nearer_to_its_reconstruction(pieces: Images) -> None:
    attack = Impress(distance="watson-1993", steps=20)
    with effort.measured() as spent:
        result = attack.apply(pieces, SEED)
    network = load_autoencoder("shipped")

    def inconsistency(images: Images) -> torch.Tensor:
        values = images.float()
        return (2 * (values - network.reconstruct(values))).square().flatten(1).mean(dim=1)

    for record in pieces.records:
        values = [value for _, value in spent.objectives[record.id]]
        assert len(values) == 20
        assert values[-1] < 0.7 * values[0]
    # Despite the noise that it starts with.
    assert bool((inconsistency(result) < inconsistency(pieces)).all())


@pytest.mark.parametrize(("sigma", "least"), [(None, 31.5), (0.0, 48.0)])
def test_a_clean_photograph_changes_little_in_a_few_steps(sigma: float | None, least: float, pieces: Images) -> None:
    result = Impress(distance="watson-1993", steps=5, sigma=sigma).apply(pieces, SEED)
    assert psnr(result, pieces).min() > least


@pytest.mark.parametrize(("tolerance", "evaluations"), [(0.0, 2 * 80), (0.9, 2 * 51)])
def test_an_image_that_gets_no_better_stops_after_fifty_steps(
    tolerance: float, evaluations: int, folders: dict[str, Path], small: Images
) -> None:
    attack = impress(folders["tiny"], steps=80, rate=1e-6, sigma=0, tolerance=tolerance)
    with effort.measured() as spent:
        attack.apply(small.take([0]), SEED)
    assert spent.evaluations == spent.backwards == evaluations


def test_encoder_and_decoder_are_counted_forward_and_backward_for_each_image(
    folders: dict[str, Path], small: Images
) -> None:
    with effort.measured() as spent:
        impress(folders["tiny"], steps=4).apply(small, SEED)
    assert (spent.evaluations, spent.backwards) == (2 * 4 * 3, 2 * 4 * 3)
    assert list(spent.objectives) == list(small.ids)
    assert [[step for step, _ in curve] for curve in spent.objectives.values()] == [[0, 1, 2, 3]] * 3


# What a person meets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({}, "impress(steps=1000)"),
        ({"track": "style"}, "impress(steps=3000, track=style)"),
        ({"steps": 30, "distance": "watson-1993"}, "impress(steps=30, distance=watson-1993)"),
        ({"convention": "sum", "batch": 4}, "impress(steps=1000, convention=sum, batch=4)"),
        ({"steps": 5, "autoencoder": "/some/where/sd-vae"}, "impress(steps=5, autoencoder=sd-vae)"),
        ({"tolerance": 0.01, "rate": 0.1}, "impress(steps=1000, rate=0.1, tolerance=0.01)"),
    ],
)
def test_the_label_names_the_steps_and_what_differs(fields: dict[str, Any], label: str) -> None:
    assert Impress(**fields).label == label


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkpoint folder of torch without a file in it."""
    for package in ("lpips", "torchvision"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    scaled_perceptual.cache_clear()
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(
    ("distance", "file"), [("lpips-vgg", "vgg16-397923af.pth"), ("lpips", "alexnet-owt-7be5be79.pth")]
)
def test_without_the_distances_weights_the_file_and_the_alternative_are_named(
    distance: str, file: str, no_weights: Path
) -> None:
    attack = Impress(distance=distance)
    assert attack.unavailable() == (
        f"{distance} needs torchvision's {file} (download.pytorch.org/models/{file}): put it at {no_weights / file}; "
        "or choose distance: watson-1993, which needs no weights"
    )
    assert attack.digests() == {}


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    # The autoencoder's packages are still found.
    assert Impress(distance="watson-1993").unavailable() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    scaled_perceptual.cache_clear()
    reason = Impress().unavailable()
    assert reason is not None
    assert reason.startswith("lpips-vgg needs lpips and torchvision: pip install 'waterproof[quality]'; or choose")


def test_an_autoencoder_that_is_not_there_comes_first(no_weights: Path, tmp_path: Path) -> None:
    reason = Impress(autoencoder=str(tmp_path / "nowhere")).unavailable()
    assert reason is not None
    assert "nowhere: there is no such folder" in reason


def test_the_identity_holds_the_autoencoders_digest(folders: dict[str, Path]) -> None:
    attack = impress(folders["kl"])
    assert attack.unavailable() is None
    assert attack.digests() == {"autoencoder": load_autoencoder(folders["kl"]).digest}
    assert attack.spec().id != impress(folders["tiny"]).spec().id


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder that gives no numbers."""
    import diffusers

    folder = tmp_path_factory.mktemp("broken")
    with torch.random.fork_rng(devices=[]):
        network = diffusers.AutoencoderTiny(**PARTS["tiny"])
        next(network.decoder.parameters()).data.fill_(float("nan"))
        network.save_pretrained(folder)
    return folder


def test_what_is_not_finite_is_one_clear_line(broken: Path, small: Images) -> None:
    with pytest.raises(UserError) as caught:
        impress(broken, steps=7).apply(small, SEED)
    line = str(caught.value)
    assert line.startswith(f"impress(steps=7, distance=watson-1993, autoencoder={broken.name}): at step 1 of 7 the ")
    assert "image astronaut or its gradient is not a finite number" in line
    assert "\n" not in line


def test_in_a_run_it_costs_its_own_row_and_the_others_finish(
    broken: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    from waterproof.bench.benchmark import validate
    from waterproof.bench.run import run_benchmark

    def row(folder: Path) -> dict[str, Any]:
        return {"impress": {"autoencoder": str(folder), "distance": "watson-1993", "steps": 2}}

    fields = {
        "name": "tiny",
        "dataset": {"deadleaves": {"count": 2, "size": 64}},
        "methods": [{"null-protection": {"noise": "sign"}}],
        "attacks": ["identity", row(broken), row(folders["tiny"]), {"jpeg": {"quality": 60}}],
        "metrics": ["psnr"],
        "runtime": {"engine": "inline", "shard": 2},
    }
    run = run_benchmark(validate(fields), tmp_path / "run")
    failed = run.cells[run.cells["status"] != "ok"]
    assert set(failed["attack"]) == {impress(broken, steps=2).label}
    assert failed["reason"].str.contains("at step 1 of 2 the objective of image").all()
    assert (run.ok, run.measured) == (False, True)
    finished = set(run.cells[run.cells["status"] == "ok"]["attack"])
    assert finished == {"identity", impress(folders["tiny"], steps=2).label, "jpeg(quality=60)"}


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"track": "glaze"}, "track"),
        ({"steps": 0}, "steps: input should be greater than or equal to 1"),
        ({"tolerance": 1}, "tolerance: input should be less than 1"),
        ({"distance": "watson"}, "distance"),
        ({"alfa": 1}, "unknown parameter 'alfa'. Did you mean 'alpha'?"),
    ],
)
def test_a_bad_parameter_gives_one_clear_line(params: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as caught:
        build(Impress, params)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
