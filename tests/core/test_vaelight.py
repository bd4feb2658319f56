"""VAElight computes what its ONNX files compute, has the right gradient, and does not mind its batch."""

from __future__ import annotations

import copy
import math
import shutil
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from waterproof.core.autoencoders import Autoencoder, load_autoencoder
from waterproof.core.errors import UnavailableError, UserError
from waterproof.core.onnx_layers import from_onnx
from waterproof.core.vaelight import VAELIGHT_FILES, VaeLight

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

onnx = pytest.importorskip("onnx", reason="the files are read with the package onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="the package onnxruntime says what is right")
helper = onnx.helper
ENCODER, DECODER = VAELIGHT_FILES


def session(model: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    source = str(model) if not isinstance(model, onnx.ModelProto) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def graph(nodes: Sequence[Any], numbers: dict[str, np.ndarray], outputs: Sequence[str] = ("y",)) -> Any:
    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)

    constants = [onnx.numpy_helper.from_array(array, name) for name, array in numbers.items()]
    made = helper.make_graph(list(nodes), "small", [value("x")], [value(name) for name in outputs], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def small(channels: int = 4, zooms: Sequence[int] = (1, 2, 4, 8)) -> tuple[Any, Any]:
    """Encoder and decoder with VAElight's inputs and outputs, one convolution for each."""
    numbers = {f"w{zoom}": normal(channels, 3, zoom, zoom) for zoom in zooms}
    nodes = [helper.make_node("ConvTranspose", ["x", f"w{z}"], [f"y{z}"], strides=[z, z]) for z in zooms]
    encoder = graph([helper.make_node("Conv", ["x", "w"], ["y"], strides=[8, 8])], {"w": normal(channels, 3, 8, 8)})
    return encoder, graph(nodes, numbers, [f"y{zoom}" for zoom in zooms])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for model, name in zip(small(), VAELIGHT_FILES, strict=True):
        onnx.save(model, str(tmp_path / name))
    return tmp_path


@pytest.fixture(scope="module")
def released(shared_data: Path) -> Path:
    source = shared_data / "weights" / "vaelight"
    if not source.is_dir():
        pytest.skip("the files of VAElight are not among the development data")
    return source


@pytest.fixture(scope="module")
def vaelight(released: Path) -> Autoencoder:
    return load_autoencoder(released)


@pytest.fixture(scope="module")
def squares(shared_data: Path) -> Any:
    """Reads photographs, their middle square resized: floats [count, 3, height, width] in 0 to 1."""

    def read(height: int, width: int, count: int) -> torch.Tensor:
        pictures = []
        for path in sorted((shared_data / "photos" / "train").iterdir())[:: 450 // count][:count]:
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            square = picture.crop((left, top, left + side, top + side))
            pictures.append(np.asarray(square.resize((width, height), Image.Resampling.BICUBIC), np.float32))
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous() / 255

    return read


def enlarging(size: int, factor: int) -> np.ndarray:
    """The matrix that enlarges one axis linearly: pixels are areas, and the outermost is repeated."""
    places = ((np.arange(size * factor) + 0.5) / factor - 0.5).clip(0, size - 1)
    weights: np.ndarray = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size)[None]))
    return weights


def summed(images: Sequence[np.ndarray]) -> np.ndarray:
    height, width = images[-1].shape[2:]
    total = np.zeros(images[-1].shape)
    for image in images:
        rows, columns = (enlarging(a, b // a) for a, b in zip(image.shape[2:], (height, width), strict=True))
        total += np.einsum("yh,xw,bchw->bcyx", rows, columns, image.astype(float), optimize=True)
    return total


# The released files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(256, 256), (200, 328)])
@torch.no_grad()
def test_it_computes_what_the_runtime_computes(
    size: tuple[int, int], vaelight: Autoencoder, released: Path, squares: Any
) -> None:
    images = squares(*size, 2)
    (latents,) = session(released / ENCODER).run(None, {"input": images.numpy() * 2 - 1})
    images_of = session(released / DECODER).run(None, {"latent": latents})
    assert [image.shape[3] * 8 // size[1] for image in images_of] == [1, 2, 4, 8]
    found = vaelight.encode(images)
    # Single precision: unscaled latents reach 46, images 1.3.
    np.testing.assert_allclose(found.numpy() / 0.18215, latents, rtol=1e-5, atol=5e-5)
    again = vaelight.decode(torch.from_numpy(latents) * 0.18215)
    np.testing.assert_allclose(again.numpy(), summed(images_of) / 2 + 0.5, rtol=0, atol=1e-5)


@torch.no_grad()
def test_photographs_come_back(vaelight: Autoencoder, squares: Any) -> None:
    images = squares(256, 256, 5)
    latents = vaelight.encode(images)
    errors = (vaelight.decode(latents).clamp(0, 1) - images).square().mean((1, 2, 3))
    # These five are easier than all, of 21.95 dB: 29.1, 20.4, 27.8, 20.0 and 22.2.
    assert float((-10 * errors.log10()).mean()) == pytest.approx(23.9, abs=0.1)
    # Latents as a diffusion model wants them: about one. Stable Diffusion's scale was fitted to that.
    assert 0.7 < float(latents.std()) < 1.2


@torch.no_grad()
@pytest.mark.parametrize("size", [(256, 256), (64, 72)])
def test_an_image_gets_the_same_bytes_alone_and_in_any_batch_and_order(
    size: tuple[int, int], vaelight: Autoencoder, squares: Any
) -> None:
    images = squares(*size, 3)
    latents = vaelight.encode(images)
    back = vaelight.decode(latents)
    assert torch.equal(vaelight.encode(images.contiguous(memory_format=torch.channels_last)), latents)
    assert torch.equal(vaelight.encode(images[1:]), latents[1:])
    for i in range(3):
        assert torch.equal(vaelight.encode(images[i : i + 1])[0], latents[i])
        assert torch.equal(vaelight.decode(latents[i : i + 1])[0], back[i])


def test_gradients_are_those_of_finite_differences(released: Path, squares: Any) -> None:
    autoencoder = load_autoencoder(released, dtype=torch.float64)
    images = squares(16, 24, 2).double().requires_grad_()
    generator = torch.Generator().manual_seed(7)
    weights = torch.randn(images.shape, generator=generator, dtype=torch.float64)

    def encoded(values: torch.Tensor) -> torch.Tensor:
        return autoencoder.encode(values).sin().sum()

    def decoded(values: torch.Tensor) -> torch.Tensor:
        return (autoencoder.decode(autoencoder.encode(values)) * weights).sum()

    for loss in (encoded, decoded):
        (gradient,) = torch.autograd.grad(loss(images), images)
        for _ in range(4):
            direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
            # Small, because a leaky ReLU's bend between the two points would be counted.
            step = 1e-7
            with torch.no_grad():
                rise = loss(images + step * direction) - loss(images - step * direction)
            assert float((gradient * direction).sum()) == pytest.approx(float(rise) / (2 * step), rel=1e-5)


def test_everything_is_a_parameter_and_a_copy_of_the_decoder_can_be_trained(vaelight: Autoencoder) -> None:
    assert sum(parameter.numel() for parameter in vaelight.model.parameters()) == 467_124
    assert list(vaelight.model.buffers()) == []
    assert not vaelight.model.training
    assert not any(parameter.requires_grad for parameter in vaelight.model.parameters())
    student = torch.nn.ModuleDict(copy.deepcopy(vaelight.decoder_modules())).requires_grad_(True)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    before = vaelight.decode(latents)
    assert torch.equal(vaelight.decode(latents, student), before)
    torch.autograd.backward(vaelight.decode(latents, student).square().mean())
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in student.parameters())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.01)
    assert torch.equal(vaelight.decode(latents), before)
    assert not torch.equal(vaelight.decode(latents, student), before)


# Files --------------------------------------------------------------------------------------------------------------


def test_a_folder_with_the_two_files_is_an_autoencoder(folder: Path) -> None:
    before = torch.random.get_rng_state()
    autoencoder = load_autoencoder(folder)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(autoencoder.model, VaeLight)
    assert (autoencoder.kind, autoencoder.factor, autoencoder.channels) == ("tiny", 8, 4)
    assert (autoencoder.scaling, autoencoder.shift) == (0.18215, 0.0)
    assert autoencoder.dtype == torch.float32
    images = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(1))
    assert autoencoder.reconstruct(images).shape == images.shape
    assert list(autoencoder.decoder_modules()) == ["decoder"]


def test_the_digest_is_of_both_files(folder: Path) -> None:
    digests = {load_autoencoder(folder).digest}
    for name in VAELIGHT_FILES:
        model = onnx.load(str(folder / name))
        model.producer_name = "another"
        onnx.save(model, str(folder / name))
        digests.add(load_autoencoder(folder).digest)
    assert len(digests) == 3


@pytest.mark.parametrize("name", VAELIGHT_FILES)
def test_one_file_of_the_two_is_not_enough(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(UnavailableError, match=rf"{name}: there is no such file; .*{ENCODER} and {DECODER}$"):
        load_autoencoder(folder)


def test_an_empty_folder_says_which_files_would_do(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=f"no autoencoder there: put in .*{ENCODER} with {DECODER}$"):
        load_autoencoder(tmp_path)


def test_without_the_package_onnx_the_error_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UnavailableError, match=r"package onnx: pip install 'waterproof\[baselines\]'$"):
        load_autoencoder(folder)


@pytest.mark.parametrize("name", VAELIGHT_FILES)
@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", b"<html></html>"]
)
def test_a_file_that_is_no_network_is_refused(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: not an ONNX file") as error:
        load_autoencoder(folder)
    assert "\n" not in str(error.value)


def relu(x: str, y: str) -> Any:
    return helper.make_node("Relu", [x], [y])


OTHERS = {
    "another operator": (graph([helper.make_node("Softmax", ["x"], ["y"])], {}), "operator Softmax"),
    "another shape": (graph([relu("x", "y")], {}), r"\[1, \d, \d+, \d+\] becomes \[1, \d, \d+, \d+\] instead of"),
    "more channels": (graph([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": normal(4, 5, 3, 3)}), "channels"),
    "two outputs": (graph([relu("x", "y"), relu("x", "z")], {}, ["y", "z"]), "instead of"),
    "no output": (graph([relu("x", "y")], {}, []), "becomes nothing instead of"),
    "a broken graph": (graph([relu("nowhere", "y")], {}), "made by no node before it"),
}


@pytest.mark.parametrize(("name", "role"), [(ENCODER, "encoder"), (DECODER, "decoder")])
@pytest.mark.parametrize("other", OTHERS)
def test_another_network_is_refused(name: str, role: str, other: str, folder: Path) -> None:
    model, message = OTHERS[other]
    onnx.save(model, str(folder / name))
    with pytest.raises(UserError, match=rf"{name}: not VAElight's {role}: .*{message}") as error:
        load_autoencoder(folder)
    assert "\n" not in str(error.value)


def test_a_damaged_or_exchanged_file_is_refused(released: Path, tmp_path: Path) -> None:
    for name, other in (VAELIGHT_FILES, VAELIGHT_FILES[::-1]):
        shutil.copyfile(released / name, tmp_path / other)
    with pytest.raises(UserError, match=rf"{ENCODER}: not VAElight's encoder"):
        load_autoencoder(tmp_path)
    for name in VAELIGHT_FILES:
        (tmp_path / name).write_bytes((released / name).read_bytes()[:200_000])
    with pytest.raises(UserError, match=rf"{ENCODER}: not an ONNX file, or damaged"):
        load_autoencoder(tmp_path)


# What it needs of ONNX ----------------------------------------------------------------------------------------------


TRANSPOSED: dict[str, dict[str, Any]] = {
    "plain": {},
    "doubling": {"strides": [2, 2]},
    "padded": {"strides": [2, 1], "pads": [1, 2, 1, 2]},
    "unevenly padded": {"strides": [2, 3], "pads": [0, 2, 1, 1]},
    "extended": {"strides": [3, 2], "output_padding": [2, 1], "pads": [1, 0, 0, 1]},
    "grouped and dilated": {"group": 2, "dilations": [2, 1]},
    "valid": {"auto_pad": "VALID", "strides": [2, 2]},
}


@pytest.mark.parametrize("case", TRANSPOSED)
@pytest.mark.parametrize("biased", [True, False])
def test_a_transposed_convolution_is_the_runtimes(case: str, biased: bool) -> None:
    settings = TRANSPOSED[case]
    numbers = {"w": normal(4, 3, 3, 2), "b": normal(3 * settings.get("group", 1))}
    node = helper.make_node("ConvTranspose", ["x", "w", *(["b"] if biased else [])], ["y"], **settings)
    model, x = graph([node], numbers), normal(2, 4, 5, 7)
    (expected,) = session(model).run(None, {"x": x})
    found = from_onnx(model)(torch.from_numpy(x))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("setting", [{"auto_pad": "SAME_UPPER"}, {"output_shape": [10, 14]}])
def test_a_transposed_convolution_that_is_told_its_size_is_refused(setting: dict[str, Any]) -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], **setting)
    with pytest.raises(UserError, match=r"operator ConvTranspose .*: auto_pad and output_shape are not supported"):
        from_onnx(graph([node], {"w": normal(4, 3, 2, 2)}))


def test_an_output_of_several_is_chosen_and_keeps_only_what_it_needs() -> None:
    model, x = small()[1], normal(1, 4, 3, 5)
    expected = session(model).run(None, {"x": x})
    for zoom, image in zip((1, 2, 4, 8), expected, strict=True):
        layers = from_onnx(model, output=f"y{zoom}")
        np.testing.assert_allclose(layers(torch.from_numpy(x)).numpy(), image, rtol=1e-5, atol=1e-5)
        assert [tuple(buffer.shape) for buffer in layers.buffers()] == [(4, 3, zoom, zoom)]
    with pytest.raises(UserError, match="one output is needed, this one has 4: y1, y2, y4, y8"):
        from_onnx(model)
    with pytest.raises(UserError, match=r"the graph has no output 'y3'\. Did you mean 'y"):
        from_onnx(model, output="y3")


def test_numbers_become_parameters_where_they_are_asked_for() -> None:
    axes = np.array([2, 3], np.int64)
    nodes = [helper.make_node("Mul", ["x", "m"], ["z"]), helper.make_node("ReduceMean", ["z", "a"], ["y"])]
    layers = from_onnx(graph(nodes, {"m": normal(3, 1, 1), "a": axes}), trainable=True)
    (factor,) = layers.parameters()
    layers(torch.ones(1, 3, 4, 4)).sum().backward()
    assert factor.grad is not None
    assert factor.grad.flatten().tolist() == [1, 1, 1]
    assert math.isclose(float(factor.detach().sum()), float(normal(3, 1, 1).sum()), rel_tol=1e-6)
