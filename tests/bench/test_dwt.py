"""dwt-dct and dwt-dct-svd give the pixels and the bits of the invisible-watermark package, image by image."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from waterproof.bench.methods.dwt import DwtDct, DwtDctSvd, _vote
from waterproof.core.errors import ImageError, SpecError
from waterproof.core.images import Images, Record
from waterproof.core.registry import create
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    from pathlib import Path

SEED = Seed.root(0)
PACKAGE = {DwtDct: "dwtDct", DwtDctSvd: "dwtDctSvd"}
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field", "immunohistochemistry")
Reference = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def package_encode() -> Reference:
    """The package's marked pixels, RGB in and out."""
    watermark = pytest.importorskip("imwatermark")

    def encode(array: np.ndarray, bits: np.ndarray, mark: type) -> np.ndarray:
        encoder = watermark.WatermarkEncoder()
        encoder.set_by_bits(bits.astype(int).tolist())
        return encoder.encode(np.ascontiguousarray(array[..., ::-1]), PACKAGE[mark])[..., ::-1]

    return encode


@pytest.fixture(scope="module")
def package_decode() -> Reference:
    """The package's bits of an RGB image."""
    watermark = pytest.importorskip("imwatermark")

    def decode(array: np.ndarray, payload: int, mark: type) -> np.ndarray:
        decoder = watermark.WatermarkDecoder("bits", payload)
        return np.asarray(decoder.decode(np.ascontiguousarray(array[..., ::-1]), PACKAGE[mark]), dtype=bool)

    return decode


def _photograph(name: str, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(getattr(data, name)()).convert("RGB").resize(size, Image.Resampling.LANCZOS))


def _images(arrays: list[np.ndarray]) -> Images:
    return Images.from_numpy(np.stack(arrays), [Record(f"image-{i}") for i in range(len(arrays))])


def _keys(count: int, payload: int) -> np.ndarray:
    return np.random.default_rng(payload).integers(0, 2, (count, payload)).astype(bool)


def _disturbed(array: np.ndarray) -> list[np.ndarray]:
    """The image with noise, and after JPEG at quality 60."""
    noise = np.random.default_rng(array[0, 0].sum()).normal(0, 6, array.shape)
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=60)
    return [np.clip(array + noise, 0, 255).astype(np.uint8), np.asarray(Image.open(file).convert("RGB"))]


def _agrees_with_the_package(
    arrays: list[np.ndarray], mark: type, payload: int, encode: Reference, decode: Reference
) -> None:
    method, keys = mark(payload=payload), _keys(len(arrays), payload)
    marked = method.embed(_images(arrays), torch.from_numpy(keys), SEED).numpy()
    theirs = [encode(array, key, mark) for array, key in zip(arrays, keys, strict=True)]
    difference = np.abs(marked.astype(int) - np.stack(theirs).astype(int))
    # Exact on every machine tried; another LAPACK may round a singular value to the other side of a truncation.
    assert np.mean(difference == 0) >= 0.9999
    assert difference.max() <= 1
    shown = [*arrays, *theirs, *(other for array in theirs for other in _disturbed(array))]
    ours = (method.decode(_images(shown)).logits > 0).numpy()
    np.testing.assert_array_equal(ours, [decode(array, payload, mark) for array in shown])


@pytest.mark.parametrize("mark", [DwtDct, DwtDctSvd])
@pytest.mark.parametrize("payload", [32, 48])
@pytest.mark.parametrize(("size", "count"), [((256, 256), 7), ((301, 262), 2), ((481, 321), 2)])
def test_pixels_and_bits_of_photographs_are_those_of_the_package(
    mark: type, payload: int, size: tuple[int, int], count: int, package_encode: Reference, package_decode: Reference
) -> None:
    start = 0 if payload == 32 else 4
    names = (PHOTOGRAPHS * 2)[start : start + count]
    arrays = [_photograph(name, size) for name in names]
    _agrees_with_the_package(arrays, mark, payload, package_encode, package_decode)


@pytest.mark.slow
@pytest.mark.parametrize("mark", [DwtDct, DwtDctSvd])
@pytest.mark.parametrize("size", [(256, 256), (301, 262), (481, 321), (512, 512)])
def test_pixels_and_bits_of_twenty_photographs_are_those_of_the_package(
    mark: type, size: tuple[int, int], shared_data: Path, package_encode: Reference, package_decode: Reference
) -> None:
    files = sorted((shared_data / "photos" / "train").iterdir())[:20]
    arrays = [np.asarray(Image.open(file).convert("RGB").resize(size)) for file in files]
    for payload in (32, 48):
        _agrees_with_the_package(arrays, mark, payload, package_encode, package_decode)


def _synthetic(name: str) -> np.ndarray:
    """Images whose blocks lie on decision boundaries, or whose values run over at 0 or 255."""
    y, x = np.mgrid[0:256, 0:256]
    colours = {"126": (126, 126, 126), "grey-blue": (126, 126, 144), "black": (0, 0, 0), "white": (255, 255, 255)}
    colours |= {"blue": (0, 0, 255), "yellow": (255, 255, 0), "18": (18, 18, 18)}
    if name in colours:
        return np.full((256, 256, 3), colours[name], np.uint8)
    patterns = {
        "gradient": np.stack([x, y, (x + y) // 2], -1),
        "stripes": np.repeat((x % 2 * 255)[..., None], 3, -1),
        "checks": np.stack([(x // 4 + y // 4) % 2 * 255] * 2 + [255 * np.ones_like(x)], -1),
        "halves": np.stack([x * 0, x * 0, np.where(x < 128, 0, 255)], -1),
        "noise": np.random.default_rng(0).integers(0, 256, (256, 256, 3)),
    }
    return patterns[name].astype(np.uint8)


@pytest.mark.parametrize("mark", [DwtDct, DwtDctSvd])
@pytest.mark.parametrize(
    "name",
    ["126", "grey-blue", "black", "white", "blue", "yellow", "18", "gradient", "stripes", "checks", "halves", "noise"],
)
def test_flat_saturated_and_synthetic_images_agree_with_the_package_too(
    mark: type, name: str, package_encode: Reference, package_decode: Reference
) -> None:
    _agrees_with_the_package([_synthetic(name)], mark, 32, package_encode, package_decode)


@pytest.mark.parametrize("mark", [DwtDct, DwtDctSvd])
def test_a_tied_vote_gives_the_bit_of_the_package(
    mark: type, package_encode: Reference, package_decode: Reference
) -> None:
    """64 bits marked and 32 read: each bit is voted on by as many blocks that hold 1 as hold 0."""
    bits = np.r_[np.ones(32), np.zeros(32)].astype(bool)
    tied = package_encode(_synthetic("126"), bits, mark)
    (logits,) = mark(payload=32).decode(_images([tied])).logits.numpy()
    np.testing.assert_allclose(logits, 0.5 - 127 / 255, rtol=1e-6)
    assert package_decode(tied, 32, mark).tolist() == [True] * 32
    assert (logits > 0).all()


@pytest.mark.parametrize("blocks", [*range(1, 40), 127, 128, 254, 255, 256, 510, 1020, 1021])
def test_the_sign_of_the_vote_is_the_packages_comparison_for_every_share(blocks: int) -> None:
    ones = np.arange(blocks)[None] < np.arange(blocks + 1)[:, None]
    shares = np.array([np.array(row.astype(int).tolist()).mean() for row in ones])
    assert ((_vote(ones, 1)[:, 0] > 0) == (shares * 255 > 127)).all()


def test_the_vote_counts_the_blocks_of_each_bit() -> None:
    ones = np.random.default_rng(0).integers(0, 2, (3, 1029)).astype(bool)
    for payload in (32, 48, 1000):
        expected = [[row[bit::payload].mean() - 127 / 255 for bit in range(payload)] for row in ones]
        np.testing.assert_allclose(_vote(ones, payload), expected, atol=1e-7)


@pytest.mark.parametrize("mark", [DwtDct, DwtDctSvd])
def test_the_corrected_variant_costs_less_and_still_reads(mark: type) -> None:
    """Swapped detail bands and truncation cost about 3 dB."""
    images = _images([_photograph(name, (320, 320)) for name in PHOTOGRAPHS])
    keys = torch.from_numpy(_keys(len(images), 32))
    psnr, accuracy = {}, {}
    for variant in ("faithful", "corrected"):
        method: Any = mark(variant=variant)
        marked = method.embed(images, keys, SEED)
        error = (marked.numpy().astype(float) - images.numpy()) ** 2
        psnr[variant] = 10 * np.log10(255**2 / error.mean(axis=(1, 2, 3)))
        accuracy[variant] = ((method.decode(marked).logits > 0) == keys).float().mean().item()
    gain = psnr["corrected"] - psnr["faithful"]
    assert gain.min() > 0.5
    assert 2 < gain.mean() < 6
    assert accuracy["corrected"] >= accuracy["faithful"] - 0.02 > 0.9


@pytest.mark.parametrize("mark", [DwtDct, DwtDctSvd])
@pytest.mark.parametrize("variant", ["faithful", "corrected"])
def test_an_image_is_marked_and_read_alike_in_any_batch(mark: type, variant: str) -> None:
    method: Any = mark(payload=48, variant=variant)
    images = _images([_photograph(name, (301, 262)) for name in PHOTOGRAPHS[:4]] + [np.zeros((262, 301, 3), np.uint8)])
    keys = torch.from_numpy(_keys(5, 48))
    together = method.embed(images, keys, SEED)
    read = method.decode(together).logits
    for i in (4, 0, 2):
        alone = method.embed(images.take([i]), keys[i : i + 1], SEED)
        assert torch.equal(alone.pixels[0], together.pixels[i])
        assert torch.equal(method.decode(alone).logits[0], read[i])
    backwards = images.take([4, 3, 2, 1, 0])
    assert torch.equal(method.embed(backwards, keys.flip(0), SEED).pixels.flip(0), together.pixels)


@pytest.mark.parametrize("mark", [DwtDct, DwtDctSvd])
def test_a_mark_survives_its_own_embedding_and_unmarked_photographs_read_at_random(mark: type) -> None:
    images = _images([_photograph(name, (384, 384)) for name in PHOTOGRAPHS])
    keys = torch.from_numpy(_keys(len(images), 32))
    marked = (mark().decode(mark().embed(images, keys, SEED)).logits > 0) == keys
    unmarked = (mark().decode(images).logits > 0) == keys
    assert marked.float().mean() > 0.9
    assert 0.3 < unmarked.float().mean() < 0.7


def test_an_image_below_the_packages_size_is_refused_by_name() -> None:
    small = _images([np.zeros((255, 256, 3), np.uint8)])
    with pytest.raises(ImageError, match="dwt-dct marks images of at least 65,536 pixels, this one has 256 x 255"):
        DwtDct().embed(small, torch.zeros(1, 32, dtype=torch.bool), SEED)
    wide = _images([np.zeros((16, 4096, 3), np.uint8)])
    assert DwtDct().embed(wide, torch.zeros(1, 32, dtype=torch.bool), SEED).size == (16, 4096)


def test_an_image_with_fewer_blocks_than_bits_is_refused_with_both_numbers() -> None:
    small = _images([np.zeros((40, 48, 3), np.uint8)])
    with pytest.raises(ImageError, match="dwt-dct-svd needs 32 blocks to read 32 bits; 48 x 40 has 30"):
        DwtDctSvd().decode(small)
    assert DwtDctSvd(payload=30).decode(small).logits.shape == (1, 30)


def test_the_input_is_left_alone_and_the_records_stay() -> None:
    images = _images([_photograph("coffee", (256, 256))])
    before = images.pixels.clone()
    marked = DwtDct().embed(images, torch.ones(1, 32, dtype=torch.bool), SEED)
    assert torch.equal(images.pixels, before)
    assert marked.records == images.records
    assert marked.pixels.data_ptr() != images.pixels.data_ptr()


@pytest.mark.parametrize(
    ("params", "wrong"), [({"payload": 0}, "payload"), ({"step": 0}, "step"), ({"variant": "x"}, "variant")]
)
def test_parameters_out_of_range_are_one_line(params: dict[str, Any], wrong: str) -> None:
    with pytest.raises(SpecError, match=f"dwt-dct: {wrong}: .*, not "):
        create("method", "dwt-dct", params)


def test_a_wider_step_reads_better_and_costs_more() -> None:
    """Another step than the package's 36 is this project's own; both ends must agree on it."""
    images = _images([_photograph(name, (320, 320)) for name in PHOTOGRAPHS])
    keys = torch.from_numpy(_keys(len(images), 32))
    errors, accuracies = [], []
    for step in (12.0, 36.0, 80.0):
        method = DwtDctSvd(step=step)
        marked = method.embed(images, keys, SEED)
        errors.append(float(((marked.float() - images.float()) ** 2).mean()))
        accuracies.append(float(((method.decode(marked).logits > 0) == keys).float().mean()))
    assert errors == sorted(errors)
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] > 0.98
