"""Quality metrics agree with independent implementations on photographs."""

from __future__ import annotations

import importlib.util
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from waterproof.bench import metrics
from waterproof.bench.metrics import Lpips, Metric, Psnr, Ssim
from waterproof.bench.run import run_benchmark
from waterproof.core.errors import ImageError
from waterproof.core.images import Images, Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _jpeg(array: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=20)
    return np.asarray(Image.open(file))


DISTORTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "jpeg": _jpeg,
    "noise": lambda a: np.clip(a + np.random.default_rng(0).normal(0, 20, a.shape), 0, 255).astype(np.uint8),
    "blur": lambda a: np.asarray(Image.fromarray(a).filter(ImageFilter.GaussianBlur(3))),
    "brighter": lambda a: np.clip(a.astype(int) + 40, 0, 255).astype(np.uint8),
    "inverted": lambda a: 255 - a,
    "one pixel": lambda a: np.where(np.arange(a.size).reshape(a.shape) == a.size // 2, a ^ 1, a),
    "shifted": lambda a: np.roll(a, 3, axis=1),
    "black": lambda a: np.zeros_like(a),
}


def _images(*arrays: np.ndarray) -> Images:
    return Images.from_numpy(np.stack(arrays), [Record(str(i)) for i in range(len(arrays))])


def _compare(metric: Metric, images: Images, reference: Images) -> np.ndarray:
    return metric.compare(images, metric.prepare(reference))


@pytest.mark.parametrize("name", DISTORTIONS)
def test_psnr_is_the_double_precision_loop_and_scikit_image(name: str) -> None:
    originals = [data.astronaut()[:256, :301], data.chelsea()[:256, :301]]
    changed = [DISTORTIONS[name](array) for array in originals]
    values = _compare(Psnr(), _images(*changed), _images(*originals))
    for value, a, b in zip(values, changed, originals, strict=True):
        rows = zip(a.astype(np.float64), b.astype(np.float64), strict=True)
        loop = sum(float(((row_a - row_b) ** 2).sum()) for row_a, row_b in rows)
        assert value == pytest.approx(10 * np.log10(255**2 * a.size / loop), rel=1e-12)
        assert value == pytest.approx(peak_signal_noise_ratio(b, a, data_range=255), rel=1e-12)


def test_psnr_of_equal_images_is_infinite_and_of_opposite_ones_is_zero() -> None:
    black, white = np.zeros((64, 48, 3), np.uint8), np.full((64, 48, 3), 255, np.uint8)
    values = _compare(Psnr(), _images(black, white, white), _images(black, white, black))
    assert values.tolist() == [np.inf, np.inf, 0.0]


def test_psnr_sums_exactly_however_large_the_image_is() -> None:
    """2048 x 2048 x 3 squares of 255 are 8e11: beyond 32 bits and beyond float32's digits."""
    black = np.zeros((2048, 2048, 3), np.uint8)
    other = np.full_like(black, 255)
    other[0, 0, 0] = 254
    total = 255**2 * (other.size - 1) + 254**2
    (value,) = _compare(Psnr(), _images(other), _images(black))
    assert value == pytest.approx(10 * np.log10(255**2 * other.size / total), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize("size", [(256, 256), (301, 263), (138, 139), (267, 40), (11, 300), (11, 11), (12, 13)])
def test_ssim_is_scikit_images_with_a_gaussian_window(name: str, size: tuple[int, int]) -> None:
    """Heights of 138 and 267 end with a whole strip and with a strip of one row."""
    originals = [getattr(data, photograph)()[: size[0], 80 : 80 + size[1]] for photograph in ("coffee", "astronaut")]
    changed = [DISTORTIONS[name](array) for array in originals]
    values = _compare(Ssim(), _images(*changed), _images(*originals))
    for value, a, b in zip(values, changed, originals, strict=True):
        theirs = structural_similarity(
            b, a, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=2, data_range=255
        )
        # A single window shows float32's rounding, which the mean over thousands of windows does not.
        assert value == pytest.approx(theirs, abs=1e-5 if min(size) > 13 or max(size) > 100 else 1e-4)


@pytest.mark.parametrize("level", [0, 3, 128, 252, 255])
def test_ssim_of_flat_images_is_scikit_images(level: int) -> None:
    """Where variances vanish, float32 has to keep enough digits of them."""
    flat = np.full((64, 64, 3), level, np.uint8)
    other = np.clip(flat.astype(int) + np.random.default_rng(0).integers(-3, 4, flat.shape), 0, 255).astype(np.uint8)
    (value,) = _compare(Ssim(), _images(other), _images(flat))
    theirs = structural_similarity(
        flat, other, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=2, data_range=255
    )
    assert value == pytest.approx(theirs, abs=1e-4)


def test_ssim_of_equal_images_is_one_and_of_too_small_ones_is_refused(photographs: Images) -> None:
    np.testing.assert_allclose(_compare(Ssim(), photographs, photographs), 1, atol=1e-6)
    small = _images(np.zeros((10, 64, 3), np.uint8))
    with pytest.raises(ImageError, match="SSIM needs images of at least 11 pixels a side, not 64x10"):
        _compare(Ssim(), small, small)


@pytest.mark.parametrize("metric", [Psnr(), Ssim()])
def test_a_value_does_not_depend_on_the_batch(metric: Metric, photographs: Images) -> None:
    changed = photographs.with_pixels(np.stack([_jpeg(array) for array in photographs.numpy()]))
    together = _compare(metric, changed, photographs)
    for i in range(3):
        assert _compare(metric, changed.take([i]), photographs.take([i])).tolist() == [together[i]]
    assert together.dtype == np.float64


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint folder without a file in it."""
    for package in ("lpips", "torchvision"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(("backbone", "file"), [("alex", "alexnet-owt-7be5be79.pth"), ("vgg", "vgg16-397923af.pth")])
def test_lpips_without_its_backbone_names_the_file_and_its_place(backbone: str, file: str, no_weights: Path) -> None:
    reason = Lpips(backbone=backbone).unavailable()
    assert reason == f"needs torchvision's {file} (download.pytorch.org/models/{file}): put it at {no_weights / file}"
    assert Lpips(backbone=backbone).digests() == {}


def test_lpips_refuses_a_file_of_another_content(no_weights: Path) -> None:
    no_weights.mkdir()
    path = no_weights / "alexnet-owt-7be5be79.pth"
    path.write_bytes(b"a page that says: try again later")
    reason = Lpips().unavailable()
    assert reason == f"{path} is not the published file: its SHA-256 does not begin with 7be5be79; fetch it again"


def test_lpips_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    assert Lpips().unavailable() == "needs lpips and torchvision: pip install 'waterproof[quality]'"


def test_without_the_backbone_the_cells_are_skipped_with_the_reason(
    no_weights: Path, tiny: Callable, tmp_path: Path
) -> None:
    run = run_benchmark(tiny(metrics=["psnr", "lpips"], limit=1), tmp_path / "run")
    skipped = run.cells[run.cells["status"] == "skipped"]
    assert set(skipped["observer"]) == {"lpips"}
    assert len(skipped) == 2
    assert skipped["reason"].str.contains("lpips: needs torchvision's alexnet-owt-7be5be79.pth").all()
    assert (run.ok, run.measured) == (True, True)
    summary = run.summary()
    assert "lpips" not in summary
    assert summary["lpips_note"].str.contains("put it at").all()


def test_lpips_gives_every_image_its_value_whatever_the_padding(
    photographs: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the network: the padding of the last batch must neither show nor move anything."""
    sizes = []

    def network(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sizes.append(len(a))
        assert a.min() >= -1
        assert a.max() <= 1
        return (a - b).abs().mean(dim=(1, 2, 3), keepdim=True)

    monkeypatch.setattr(metrics, "lpips_network", lambda _: network)
    images = photographs.take([0, 1, 2, 0, 1, 2, 0])
    other = images.with_pixels(255 - images.numpy())
    values = _compare(Lpips(), other, images)
    expected = np.abs(255.0 - 2.0 * images.numpy()).mean(axis=(1, 2, 3)) / 127.5
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert len(set(sizes)) == 1
    assert _compare(Lpips(), other.take([5]), images.take([5])).tolist() == [values[5]]


def test_the_attacked_image_is_compared_with_the_marked_one_and_the_marked_one_with_its_original(
    tiny: Callable, tmp_path: Path
) -> None:
    from waterproof.bench.plan import make_plan
    from waterproof.bench.shard import apply_attack, make_pair
    from waterproof.core.seeds import Seed

    benchmark: Any = tiny(attacks=["identity", {"jpeg": {"quality": 60}}, "flip"])
    run = run_benchmark(benchmark, tmp_path / "run")
    plan = make_plan(benchmark)
    (group,) = plan.dataset.load(plan.records)[0]
    pair = make_pair(plan, plan.methods[0], group)
    attacked = apply_attack(plan, 1, pair.marked, Seed.root(0)).numpy()
    marked, original = pair.marked.numpy(), group.numpy()
    stored = {(row["cell"], row["image"]): row["value"] for row in run.store.read("quality")}
    cells = run.cells.query("observer_kind == 'metric'").set_index("attack")["cell"]
    for i, image in enumerate(group.ids):
        mark_cost = peak_signal_noise_ratio(original[i], marked[i], data_range=255)
        attack_cost = peak_signal_noise_ratio(marked[i], attacked[i], data_range=255)
        assert stored[cells["identity"], image] == pytest.approx(mark_cost, rel=1e-12)
        assert stored[cells["jpeg(quality=60)"], image] == pytest.approx(attack_cost, rel=1e-12)
        # A mirrored image is mirrored back before it is compared.
        assert stored[next(c for a, c in cells.items() if a.startswith("flip")), image] == np.inf
