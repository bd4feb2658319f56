"""An ONNX graph as torch layers computes what onnxruntime computes, and has the right gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from waterproof.core.errors import UserError
from waterproof.core.onnx_layers import from_onnx

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
helper = onnx.helper
DRAW = np.random.default_rng(5)
MEAN, STD = (np.array(values, np.float32)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def graph(nodes: Sequence[Any], numbers: dict[str, np.ndarray] | None = None, opset: int = 18) -> Any:
    """A model from ``x`` to ``y``, both float and of any shape."""
    made = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in (numbers or {}).items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def session(model: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def normal(*shape: int) -> np.ndarray:
    return DRAW.standard_normal(shape).astype(np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)


NUMBERS = {
    "w": normal(5, 4, 3, 3),
    "grouped": normal(4, 2, 3, 2),
    "b": normal(5),
    "channel": normal(4, 1, 1),
    "four": normal(4),
    "variance": np.abs(normal(4)) + 0.1,
    "matrix": normal(13, 7),
    "turned": normal(7, 13),
    "seven": normal(7),
    "half": scalar(0.5),
    "one": scalar(1),
    "sqrt2": scalar(np.sqrt(2)),
    "sqrt_half": scalar(np.sqrt(0.5)),
    "spatial": whole(2, 3),
    "last": whole(-1),
    "first": whole(0),
    "rows": whole(0, 4, -1, 1),
    "around": whole(0, 0, 1, 2, 0, 0, 3, 0),
    "spatial_pads": whole(1, 0, 2, 3),
}


def node(operator: str, *inputs: str, y: str = "y", **attributes: Any) -> Any:
    return helper.make_node(operator, list(inputs), [y], name=f"{operator}_{y}", **attributes)


def gelu(x: str, y: str, late_half: bool = True) -> list[Any]:
    """x (1 + erf(x / sqrt 2)) / 2, spelt out."""
    return [
        node("Div", x, "sqrt2", y=f"{y}.d"),
        node("Erf", f"{y}.d", y=f"{y}.e"),
        node("Add", "one", f"{y}.e", y=f"{y}.a"),
        node("Mul", f"{y}.a", x if late_half else "half", y=f"{y}.m"),
        node("Mul", "half" if late_half else x, f"{y}.m", y=y),
    ]


CASES = {
    "conv": [node("Conv", "x", "w", "b", pads=[1, 1, 1, 1])],
    "conv-strided": [node("Conv", "x", "w", strides=[2, 1], dilations=[1, 2], pads=[0, 1, 2, 1])],
    "conv-grouped": [node("Conv", "x", "grouped", "", group=2)],
    "conv-same": [node("Conv", "x", "w", auto_pad="SAME_UPPER", strides=[2, 2])],
    "conv-same-lower": [node("Conv", "x", "grouped", auto_pad="SAME_LOWER", group=2)],
    "batch-norm": [node("BatchNormalization", "x", "four", "four", "four", "variance", epsilon=1e-3)],
    "arithmetic": [
        node("Sub", "x", "channel", y="s"),
        node("Div", "s", "half", y="d"),
        node("Mul", "channel", "d", y="m"),
        node("Add", "x", "m"),
    ],
    "gelu": gelu("x", "y"),
    "gelu-other-order": gelu("x", "y", late_half=False),
    "gelu-multiplied": [
        node("Mul", "x", "sqrt_half", y="d"),
        node("Erf", "d", y="e"),
        node("Add", "e", "one", y="a"),
        node("Mul", "x", "half", y="h"),
        node("Mul", "h", "a"),
    ],
    "almost-gelu": [*gelu("x", "g"), node("Add", "g", "g.m")],
    "almost-gelu-of-another": [
        node("Sub", "x", "one", y="z"),
        node("Div", "x", "sqrt2", y="d"),
        node("Erf", "d", y="e"),
        node("Add", "e", "one", y="a"),
        node("Mul", "z", "a", y="m"),
        node("Mul", "m", "half"),
    ],
    "activations": [
        node("Relu", "x", y="r"),
        node("LeakyRelu", "x", y="l", alpha=0.2),
        node("Sigmoid", "x", y="s"),
        node("Tanh", "x", y="t"),
        node("Clip", "x", "", "half", y="c"),
        node("Clip", "x", "half", "one", y="c2"),
        node("Concat", "r", "l", "s", "t", "c", "c2", axis=1),
    ],
    "global-average": [node("GlobalAveragePool", "x")],
    "pooled-linear": [
        node("Constant", y="axes", value_ints=[2, 3]),
        node("GlobalAveragePool", "x", y="p"),
        node("Squeeze", "p", "axes", y="v"),
        node("Constant", y="w4", value=onnx.numpy_helper.from_array(normal(4, 3))),
        node("Gemm", "v", "w4", y="g", alpha=0.5),
        node("Unsqueeze", "g", "spatial"),
    ],
    "gemm": [
        node("Transpose", "x", y="t", perm=[0, 1, 3, 2]),
        node("Reshape", "t", "rows", y="r"),
        node("Flatten", "x", y="f", axis=3),
        node("Gemm", "f", "turned", "seven", y="a", transB=1, beta=2.0),
        node("Gemm", "turned", "f", y="c", transA=0, transB=1),
        node("Transpose", "c", y="ct"),
        node("Add", "a", "ct"),
    ],
    "matmul": [node("MatMul", "x", "matrix")],
    "reshape": [node("Reshape", "x", "rows")],
    "reduce": [node("ReduceMean", "x", "spatial", keepdims=1, y="m"), node("ReduceSum", "m", "last", keepdims=0)],
    "reduce-all": [node("ReduceMean", "x")],
    "reduce-nothing": [node("ReduceMean", "x", noop_with_empty_axes=1)],
    "squeeze-all": [node("ReduceMean", "x", "last", y="m"), node("Squeeze", "m")],
    "pad": [node("Pad", "x", "around", "half")],
    "pad-reflect": [node("Pad", "x", "around", mode="reflect")],
    "pad-edge-of-axes": [node("Pad", "x", "spatial_pads", "", "spatial", mode="edge")],
    "max-pool": [node("MaxPool", "x", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1], dilations=[2, 1])],
    "average-pool": [node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 2, 1])],
    "average-pool-counted": [
        node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, auto_pad="NOTSET")
    ],
    "average-pool-same": [node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")],
    "identity": [node("Identity", "half", y="h"), node("Identity", "x", y="i"), node("Mul", "i", "h")],
}


@pytest.mark.parametrize("case", CASES)
def test_each_operator_gives_what_the_runtime_gives(case: str) -> None:
    model = graph(CASES[case], NUMBERS)
    x = normal(2, 4, 9, 13)
    expected = session(model).run(None, {"x": x})[0]
    actual = from_onnx(model)(torch.from_numpy(x))
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=2e-5)


def test_settings_of_older_graphs_are_read_from_attributes() -> None:
    nodes = [
        node("Clip", "x", y="c", min=-0.5, max=0.7),
        node("Pad", "c", y="p", pads=[0, 0, 0, 1, 0, 0, 2, 0], value=0.25),
        node("ReduceMean", "p", y="m", axes=[2], keepdims=0),
        node("Unsqueeze", "m", y="u", axes=[1]),
        node("Squeeze", "u", axes=[1]),
    ]
    model, x = graph(nodes, opset=8), normal(2, 4, 9, 13)
    np.testing.assert_allclose(from_onnx(model)(torch.from_numpy(x)), session(model).run(None, {"x": x})[0], atol=1e-6)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_gelu_node_is_a_gelu(approximate: str) -> None:
    model, x = graph([node("Gelu", "x", approximate=approximate)], opset=20), normal(2, 4, 9, 13)
    np.testing.assert_allclose(from_onnx(model)(torch.from_numpy(x)), session(model).run(None, {"x": x})[0], atol=1e-6)


def test_a_gelu_that_is_spelt_out_becomes_one_call() -> None:
    counts = {case: len(from_onnx(graph(CASES[case], NUMBERS))._steps) for case in CASES if "gelu" in case}
    assert counts == {
        "gelu": 1,
        "gelu-other-order": 1,
        "gelu-multiplied": 5,
        "almost-gelu": 6,
        "almost-gelu-of-another": 6,
    }


def test_the_gradient_is_that_of_finite_differences() -> None:
    nodes = [
        node("Conv", "x", "w", "b", y="c", pads=[1, 1, 1, 1]),
        *gelu("c", "g"),
        node("AveragePool", "g", y="p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Tanh", "p", y="t"),
        node("ReduceMean", "t", "spatial", keepdims=0),
    ]
    layers = from_onnx(graph(nodes, NUMBERS)).double()
    x = torch.from_numpy(DRAW.standard_normal((1, 4, 5, 6))).requires_grad_()
    assert torch.autograd.gradcheck(layers, (x,))
    direction = torch.from_numpy(DRAW.standard_normal((1, 4, 5, 6)))
    layers(x).sum().backward()
    step = 1e-6
    with torch.no_grad():
        rise = layers(x + step * direction).sum() - layers(x - step * direction).sum()
    assert x.grad is not None
    assert float((x.grad * direction).sum()) == pytest.approx(float(rise) / (2 * step), rel=1e-6)


def test_nothing_is_trained_and_everything_moves_with_the_module() -> None:
    layers = from_onnx(graph(CASES["conv"], {key: value.astype(np.float16) for key, value in NUMBERS.items()}))
    assert list(layers.parameters()) == []
    assert not layers.training
    assert {buffer.dtype for buffer in layers.buffers()} == {torch.float32}
    assert sum(buffer.numel() for buffer in layers.buffers()) == 5 * 4 * 9 + 5
    assert layers.double()(torch.zeros(1, 4, 8, 8, dtype=torch.float64)).dtype == torch.float64


REFUSED = {
    "operator": (graph([node("Softmax", "x")]), r"operator Softmax \(node 'Softmax_y'\): not supported"),
    "other-domain": (graph([helper.make_node("Fast", ["x"], ["y"], domain="com.lab")]), r"com\.lab\.Fast \(node 'y'\)"),
    "shape-not-constant": (graph([node("Relu", "x", y="s"), node("Reshape", "x", "s")]), "shape must be constant"),
    "mode": (graph([node("Pad", "x", "around", mode="wrap")], NUMBERS), "mode wrap is not supported"),
    "training": (
        graph([node("BatchNormalization", "x", "four", "four", "four", "variance", training_mode=1)], NUMBERS),
        "eval mode",
    ),
    "ceil": (graph([node("MaxPool", "x", kernel_shape=[2, 2], ceil_mode=1)]), "ceil_mode"),
    "two-outputs": (graph([helper.make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])]), "more than one out"),
    "dangling": (graph([node("Add", "x", "nowhere")]), "'nowhere' is made by no node"),
    "no-output": (graph([node("Relu", "x", y="z")]), "the output 'y' is made by no node"),
    "text-constant": (graph([node("Constant", value_string="a", y="c"), node("Add", "x", "c")]), "value_string"),
    "old": (graph([node("Relu", "x")], opset=6), "operator set 6 is not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(case: str) -> None:
    model, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        from_onnx(model)


def test_a_graph_of_two_inputs_is_refused() -> None:
    model = graph([node("Relu", "x")])
    model.graph.input.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
    with pytest.raises(UserError, match="one input is needed, this one has 2: x, z"):
        from_onnx(model)


def test_a_size_that_the_graph_cannot_take_is_refused() -> None:
    layers = from_onnx(graph([node("Reshape", "x", "to")], {"to": whole(1, 64)}))
    with pytest.raises(UserError, match=r"shape \[1, 1, 4, 4\] does not fit \[1, 64\]"):
        layers(torch.zeros(1, 1, 4, 4))
    with pytest.raises(UserError, match="axis 3 of shape"):
        from_onnx(graph([node("Squeeze", "x", "to")], {"to": whole(3)}))(torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>not found</html>", None])
def test_a_missing_or_damaged_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "extractor.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"extractor\.onnx: (not an ONNX file|no such file)"):
        from_onnx(path)


def test_numbers_in_other_files_are_not_read(tmp_path: Path) -> None:
    model = graph(CASES["conv"], NUMBERS)
    onnx.save(model, str(tmp_path / "a.onnx"), save_as_external_data=True, size_threshold=0, location="a.data")
    with pytest.raises(UserError, match="kept in another file"):
        from_onnx(tmp_path / "a.onnx")


@pytest.fixture(scope="module")
def released(shared_data: Path) -> Path:
    return shared_data / "weights" / "stable-signature-extractor" / "stable_signature.onnx"


@pytest.fixture(scope="module")
def photographs_of(shared_data: Path) -> Any:
    def read(height: int, width: int, count: int = 1) -> np.ndarray:
        paths = sorted((shared_data / "photos" / "test").iterdir())[:count]
        pictures = [Image.open(path).convert("RGB").resize((width, height)) for path in paths]
        values = np.stack([np.asarray(picture, np.float32) for picture in pictures]).transpose(0, 3, 1, 2) / 255
        return (values - MEAN) / STD

    return read


@pytest.mark.parametrize("shape", [(256, 256), (512, 512), (200, 264, 2)])
def test_the_released_extractor_reads_photographs_of_any_size(
    shape: tuple[int, ...], released: Path, photographs_of: Any
) -> None:
    model = onnx.load(released)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"axis{axis}"
    x = photographs_of(*shape)
    expected = session(model).run(None, {"image": x})[0]
    layers = from_onnx(released)
    with torch.inference_mode():
        actual = layers(torch.from_numpy(x)).numpy()
    assert actual.shape == (len(x), 48)
    assert np.array_equal(actual > 0, expected > 0)
    # The runtime adds 262,144 pixels one after the other in float32; the next test says whose rounding it is.
    assert np.abs(actual - expected).max() < (1e-4 if shape != (512, 512) else 3e-4)


def test_the_released_extractor_agrees_with_double_precision_in_either_memory_order(
    released: Path, photographs_of: Any
) -> None:
    x = torch.from_numpy(photographs_of(176, 176))
    layers = from_onnx(released)
    with torch.inference_mode():
        exact = from_onnx(released).double()(x.double())
        assert float((layers(x) - exact).abs().max()) < 1e-5
        assert float((layers(x.contiguous(memory_format=torch.channels_last)) - exact).abs().max()) < 1e-5
