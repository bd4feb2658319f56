"""Metrics inside an autoencoder agree with diffusers' own networks on photographs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from waterproof.bench.latent_metrics import LargestChange, LatentDistance, ReconstructionError
from waterproof.core.autoencoders import load_autoencoder
from waterproof.core.images import Images, Record

if TYPE_CHECKING:
    from pathlib import Path

    from waterproof.bench.metrics import Metric

KL = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 8, 8),
    "norm_num_groups": 4,
    "latent_channels": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small autoencoder with random weights, four pixels a cell, and a scaling of latents."""
    import diffusers

    path = tmp_path_factory.mktemp("kl")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        diffusers.AutoencoderKL(**KL, scaling_factor=0.5, shift_factor=0.2).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def network(folder: Path) -> Any:
    """diffusers' own network."""
    import diffusers

    return diffusers.AutoencoderKL.from_pretrained(folder).requires_grad_(False)


@pytest.fixture(scope="module", params=[(24, 32), (23, 30)])
def pair(request: pytest.FixtureRequest, photographs: Images) -> tuple[Images, Images]:
    """Noisy pieces of photographs and the pieces; sides that are multiples of the factor, and others."""
    height, width = request.param
    pieces = photographs.numpy()[:, 100 : 100 + height, 90 : 90 + width]
    noisy = pieces + np.random.default_rng(0).normal(0, [[[[5]]], [[[20]]], [[[60]]]], pieces.shape)
    noisy = np.clip(noisy, 0, 255).astype(np.uint8)
    return photographs.with_pixels(noisy), photographs.with_pixels(pieces.copy())


def measured(metric: Metric, images: Images, reference: Images) -> np.ndarray:
    values = metric.compare(images, metric.prepare(reference))
    assert values.dtype == np.float64
    assert values.shape == (len(images),)
    return values


def extended(image: np.ndarray) -> torch.Tensor:
    """uint8 ``[H, W, 3]`` in the scale -1 to 1, its last row and column repeated up to multiples of 4."""
    height, width = image.shape[:2]
    grown = np.pad(image, ((0, -height % 4), (0, -width % 4), (0, 0)), mode="edge")
    return torch.from_numpy(grown / 127.5 - 1).float().permute(2, 0, 1)[None]


def test_latent_distance_is_the_share_of_the_references_length(
    folder: Path, network: Any, pair: tuple[Images, Images]
) -> None:
    images, reference = pair
    found = measured(LatentDistance(autoencoder=str(folder)), images, reference)
    for value, one, other in zip(found, images.numpy(), reference.numpy(), strict=True):
        # Latents as a diffusion model sees them.
        a, b = ((network.encode(extended(x)).latent_dist.mode() - 0.2) * 0.5 for x in (one, other))
        a, b = a.double().numpy(), b.double().numpy()
        assert value == pytest.approx(np.sqrt(((a - b) ** 2).sum() / (b**2).sum()), rel=1e-5)
    assert list(found) == sorted(found)


def test_an_image_is_at_no_distance_from_itself(folder: Path, pair: tuple[Images, Images]) -> None:
    metric = LatentDistance(autoencoder=str(folder))
    assert measured(metric, pair[1], pair[1]).tolist() == [0.0, 0.0, 0.0]


def test_reconstruction_error_is_what_impress_lowers(folder: Path, network: Any, pair: tuple[Images, Images]) -> None:
    images, reference = pair
    found = measured(ReconstructionError(autoencoder=str(folder)), images, reference)
    height, width = images.size
    for value, image in zip(found, images.numpy(), strict=True):
        again = network(extended(image)).sample[0, :, :height, :width].permute(1, 2, 0).double().numpy()
        assert value == pytest.approx(((again - (image / 127.5 - 1)) ** 2).mean(), rel=1e-5)
    swapped = measured(ReconstructionError(autoencoder=str(folder)), images, images)
    np.testing.assert_array_equal(found, swapped)


def test_reconstruction_error_of_photographs_is_small_and_of_noise_large(photographs: Images) -> None:
    pieces = photographs.with_pixels(photographs.numpy()[:, 96:160, 96:160].copy())
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    metric = ReconstructionError()
    assert measured(metric, pieces, pieces).max() < 0.01
    assert measured(metric, pieces.with_pixels(noise), pieces).min() > 0.05


@pytest.mark.parametrize("metric", [LatentDistance, ReconstructionError])
def test_a_value_does_not_depend_on_the_batch(metric: Any, folder: Path, pair: tuple[Images, Images]) -> None:
    images, reference = pair
    together = measured(metric(autoencoder=str(folder)), images, reference)
    for order in ([0], [2, 1], [1, 0, 2]):
        part = measured(metric(autoencoder=str(folder)), images.take(order), reference.take(order))
        np.testing.assert_array_equal(part, together[order])


@pytest.mark.parametrize("changes", [(0, 0, 0), (1, 7, 255), (255, 16, 8)])
def test_largest_change_is_found_wherever_and_whichever_way(changes: tuple[int, int, int]) -> None:
    before = np.full((3, 20, 30, 3), 255, np.uint8)
    before[1] = 0
    after = before.copy()
    for i, change in enumerate(changes):
        after[i, 3 * i, 19 + i, i] = change if i == 1 else 255 - change
        # A smaller one elsewhere does not count.
        after[i, 10, 10, 1] = min(change, 1) if i == 1 else 255 - min(change, 1)
    records = [Record(str(i)) for i in range(3)]
    found = measured(LargestChange(), Images.from_numpy(after, records), Images.from_numpy(before, records))
    assert found.tolist() == [float(change) for change in changes]


def test_largest_change_of_photographs_is_numpys(pair: tuple[Images, Images]) -> None:
    images, reference = pair
    gaps = np.abs(images.numpy().astype(int) - reference.numpy().astype(int)).max(axis=(1, 2, 3))
    np.testing.assert_array_equal(measured(LargestChange(), images, reference), gaps)


def test_all_are_better_when_lower_and_name_their_autoencoder(folder: Path, tmp_path: Path) -> None:
    assert {metric.better for metric in (LatentDistance, ReconstructionError, LargestChange)} == {"lower"}
    assert (LatentDistance().label, LargestChange().unit) == ("latent-distance", "grey levels")
    for metric in (LatentDistance, ReconstructionError):
        mine = metric(autoencoder=str(folder))
        assert mine.label == f"{metric.name}(autoencoder={folder.name})"
        assert mine.digests() == {"autoencoder": load_autoencoder(folder).digest}
        assert mine.spec().id != metric().spec().id
        assert "there is no such folder" in (metric(autoencoder=str(tmp_path / "none")).unavailable() or "")
