"""rivagan gives the pixels and the bits of the invisible-watermark package."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from waterproof.bench.methods.rivagan import RivaGan, _path
from waterproof.bench.methods.tiled_convolution import TiledConvolution
from waterproof.core.errors import SpecError, UnavailableError
from waterproof.core.images import Images
from waterproof.core.registry import create
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = Seed.root(0)


@pytest.fixture(scope="module")
def package() -> Iterator[Any]:
    pytest.importorskip("onnxruntime")
    watermark = pytest.importorskip("imwatermark")
    from imwatermark.rivaGan import RivaWatermark

    watermark.WatermarkEncoder.loadModel()
    yield watermark
    RivaWatermark.encoder = RivaWatermark.decoder = None


@pytest.fixture
def images(photographs: Images) -> Images:
    """Two photographs of 256 pixels: the package takes no smaller ones."""
    return photographs.take([0, 2])


@pytest.fixture
def keys() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, 2, (2, 32)).astype(bool))


def test_pixels_and_bits_are_those_of_the_package(package: Any, images: Images, keys: torch.Tensor) -> None:
    method = RivaGan()
    marked = method.embed(images, keys, SEED)
    ours = (method.decode(marked).logits > 0).numpy()
    clean = (method.decode(images).logits > 0).numpy()
    decoder = package.WatermarkDecoder("bits", 32)
    for i, array in enumerate(images.numpy()):
        encoder = package.WatermarkEncoder()
        encoder.set_by_bits(keys[i].int().tolist())
        theirs = encoder.encode(np.ascontiguousarray(array[..., ::-1]), "rivaGan")[..., ::-1]
        difference = np.abs(theirs.astype(int) - marked.numpy()[i].astype(int))
        # The package lets the runtime use every core, which changes the last bits of its sums before it truncates.
        assert np.mean(difference == 0) >= 0.9999
        assert difference.max() <= 1
        for shown, bits in ((marked.numpy()[i], ours[i]), (array, clean[i])):
            read = decoder.decode(np.ascontiguousarray(shown[..., ::-1]), "rivaGan")
            assert np.array_equal(np.asarray(read, bool), bits)
    assert (ours == keys.numpy()).mean() > 0.95


def test_an_image_is_marked_and_read_alike_in_any_batch(package: Any, photographs: Images, keys: torch.Tensor) -> None:
    small = Images(photographs.pixels[:, :, :128, 64:192], photographs.records)
    bits = torch.cat([keys, ~keys[:1]])
    method = RivaGan()
    together = method.embed(small, bits, SEED)
    read = method.decode(together).logits
    alone = method.embed(small.take([2]), bits[2:], SEED)
    assert torch.equal(alone.pixels[0], together.pixels[2])
    assert torch.equal(method.decode(together.take([2, 1])).logits, read[[2, 1]])
    assert together.records == small.records
    assert read.dtype == torch.float32


def test_the_logit_is_the_output_above_the_threshold(package: Any, images: Images) -> None:
    one = Images(images.pixels[:1, :, :64, :96], images.records[:1])
    low, high = (RivaGan(threshold=t).decode(one).logits for t in (0.0, 0.52))
    torch.testing.assert_close(low - 0.52, high)


def test_its_identity_holds_the_digests_of_both_networks(package: Any) -> None:
    digests = RivaGan().spec().digests
    assert set(digests) == {"encoder", "decoder"}
    assert all(len(digest) == 64 for digest in digests.values())


@pytest.mark.parametrize("hidden", [("imwatermark",), ("onnxruntime",), ("imwatermark", "onnxruntime")])
def test_without_its_packages_it_says_what_to_install(hidden: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in hidden else real(name, *a))
    reason = RivaGan().unavailable()
    assert reason is not None
    assert f"needs {' and '.join(hidden)}: pip install 'waterproof[baselines]'" in reason
    if "imwatermark" in hidden:
        with pytest.raises(UnavailableError, match="pip install 'waterproof"):
            _path("encoder")


def test_it_has_32_bits_and_no_other_number() -> None:
    assert RivaGan().bits == 32
    with pytest.raises(SpecError, match="rivagan: payload"):
        create("method", "rivagan", {"payload": 48})


def test_the_tiled_decoder_agrees_with_the_onnx_file(photographs: Images, package: Any) -> None:
    tiled, onnx = (create("method", "rivagan", {"decoder": name}) for name in ("tiled", "onnx"))
    assert isinstance(tiled, RivaGan)
    assert isinstance(onnx, RivaGan)
    odd = photographs.with_pixels(photographs.numpy()[:, :203, :251])
    for images in (photographs, odd):
        a, b = tiled.decode(images).logits, onnx.decode(images).logits
        assert a is not None
        assert b is not None
        assert torch.equal(a > 0, b > 0)
        assert float((a - b).abs().max()) < 1e-3


def test_tiled_convolution_is_the_direct_sum() -> None:
    draw = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(5, 4, 11, 11, generator=draw), torch.randn(5, generator=draw)
    for height, width in ((64, 64), (54, 55), (129, 40), (11, 200)):
        x = torch.randn(2, 4, height, width, generator=draw)
        direct = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), padding=5)
        assert float((TiledConvolution(weight, bias)(x) - direct).abs().max() / direct.abs().max()) < 1e-5
