"""Turns a small convolutional ONNX graph into differentiable torch layers.

A published extractor is often only an ONNX file, and no runtime gives the gradient of its input, which fine-tuning a
decoder against it needs. :func:`from_onnx` replays the graph with torch functions: its numbers become buffers (nothing
is trained), GELUs written out with ``Erf`` become one call, and what the file says of the input's height and width is
not used. A file cannot run code here; an operator outside the table is refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .errors import UnavailableError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    _Function = Callable[..., torch.Tensor]
    _Built = tuple[_Function, int | None]
    _Sides = tuple[tuple[int, ...], tuple[int, ...]]

_OLDEST = 7
"""Before it, operators broadcast by rules of their own."""


class OnnxLayers(nn.Module):
    """A graph of one input and one output; made by :func:`from_onnx`.

    Frozen: it has buffers and no parameters, is in eval mode, and computes in float32 unless it is cast
    (``.double()``). Gradients flow to the input.
    """

    def __init__(self, steps: Sequence[_Step], numbers: Mapping[str, torch.Tensor], source: str, result: str) -> None:
        super().__init__()
        self._source, self._result = source, result
        self._steps = tuple(steps)
        self._buffer_of = {name: f"number_{i}" for i, name in enumerate(numbers)}
        for name, value in numbers.items():
            self.register_buffer(self._buffer_of[name], value)
        self._last_use = {name: i for i, step in enumerate(steps) for name in step.inputs}
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The graph's output for its input ``x``, e.g. floats ``[B, 3, H, W]`` to ``[B, k]``."""
        values = {self._source: x}
        for i, step in enumerate(self._steps):
            values[step.output] = step.function(*(self._value(name, values) for name in step.inputs))
            for name in set(step.inputs):
                if self._last_use[name] == i and name != self._result:
                    values.pop(name, None)
        return values[self._result]

    def _value(self, name: str, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if name in values:
            return values[name]
        number: torch.Tensor = getattr(self, self._buffer_of[name])
        return number


def from_onnx(model: Any) -> OnnxLayers:
    """Converts an ONNX graph into torch layers that give the same output.

    The operators are those of convolutional networks: Conv, BatchNormalization, Gemm, MatMul, Add, Sub, Mul, Div, Erf,
    Gelu, Relu, LeakyRelu, Sigmoid, Tanh, Clip, GlobalAveragePool, AveragePool, MaxPool, ReduceMean, ReduceSum, Squeeze,
    Unsqueeze, Flatten, Reshape, Transpose, Concat, Pad, Constant and Identity. Shapes, axes and paddings must be
    constants of the graph.

    Args:
        model: path of the file, or an ``onnx.ModelProto``.

    Raises:
        UserError: the file is missing or damaged, keeps numbers in other files, has several inputs or outputs, or
            holds an operator or a setting that is not supported; the line names the operator and the node.
        UnavailableError: the onnx package is not installed.

    Example:
        >>> layers = from_onnx("extractor.onnx")  # doctest: +SKIP
        >>> layers(torch.zeros(1, 3, 256, 256)).shape  # doctest: +SKIP
        torch.Size([1, 48])
    """
    graph = _read(model)
    numbers = _initialisers(graph)
    nodes = []
    for proto in graph.node:
        node = _node(proto, numbers)
        if node.operator == "Constant":
            numbers[node.output] = _constant(node)
        elif node.operator == "Identity" and node.inputs[0] in numbers:
            numbers[node.output] = numbers[node.inputs[0]]
        else:
            nodes.append(node)
    source = _only([value.name for value in graph.input if value.name not in numbers], "input")
    result = _only([value.name for value in graph.output], "output")
    steps = [_step(node) for node in _fuse_gelu(nodes, numbers, result)]
    known = {source, *numbers}
    for step in steps:
        for name in step.inputs:
            if name not in known:
                raise UserError(f"ONNX {step.what}: its input {name!r} is made by no node before it")
        known.add(step.output)
    if result not in known:
        raise UserError(f"ONNX: the output {result!r} is made by no node")
    used = {name for step in steps for name in step.inputs} | {result}
    return OnnxLayers(steps, {name: _tensor(value) for name, value in numbers.items() if name in used}, source, result)


@dataclass(frozen=True)
class _Step:
    """One call: the tensors that go in by name, the function, the name of what comes out."""

    what: str
    function: _Function
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class _Node:
    """An ONNX node with its attributes read and its constant inputs at hand."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]
    numbers: Mapping[str, np.ndarray]

    @property
    def what(self) -> str:
        return f"operator {self.operator} (node {self.name or self.output!r})"

    def refuse(self, reason: str) -> UserError:
        return UserError(f"ONNX {self.what}: {reason}")

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] != ""

    def constant(self, index: int, role: str) -> np.ndarray | None:
        """The constant at an input; None where the input is left out."""
        if not self.has(index):
            return None
        if self.inputs[index] not in self.numbers:
            raise self.refuse(f"its {role} must be constant")
        return self.numbers[self.inputs[index]]

    def integers(self, attribute: str, index: int, role: str) -> list[int] | None:
        """Integers from an attribute (older graphs) or a constant input; None where there are none."""
        if attribute in self.attributes:
            return [int(value) for value in self.attributes[attribute]]
        value = self.constant(index, role)
        return None if value is None else [int(number) for number in value.reshape(-1)]


def _read(model: Any) -> Any:
    try:
        import onnx
    except ImportError:
        raise UnavailableError("an ONNX file needs the package onnx: pip install 'waterproof[baselines]'") from None
    if not isinstance(model, onnx.ModelProto):
        path = Path(model)
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        try:
            model = onnx.load(str(path), load_external_data=False)
        except Exception:  # protobuf's DecodeError, a class that moves between its versions
            raise UserError(f"{path}: not an ONNX file, or damaged") from None
        if not model.graph.node:
            raise UserError(f"{path}: not an ONNX file, or empty")
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    if opset < _OLDEST:
        raise UserError(f"ONNX: operator set {opset} is not supported, export the model with {_OLDEST} or later")
    return model.graph


def _initialisers(graph: Any) -> dict[str, np.ndarray]:
    from onnx import TensorProto, numpy_helper

    numbers = {}
    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise UserError(f"ONNX: {tensor.name!r} is kept in another file; save the model as one file")
        numbers[tensor.name] = numpy_helper.to_array(tensor)
    return numbers


def _node(proto: Any, numbers: Mapping[str, np.ndarray]) -> _Node:
    from onnx import helper

    operator = proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in proto.attribute}
    attributes = {key: value.decode() if isinstance(value, bytes) else value for key, value in attributes.items()}
    node = _Node(operator, proto.name, tuple(proto.input), proto.output[0], attributes, numbers)
    if operator not in _BUILDERS and operator != "Constant":
        raise node.refuse(f"not supported. Supported: {', '.join(sorted({*_BUILDERS, 'Constant'}))}")
    if len([name for name in proto.output if name]) != 1:
        raise node.refuse("more than one output is not supported")
    return node


def _constant(node: _Node) -> np.ndarray:
    from onnx import numpy_helper

    kind, value = next(iter(node.attributes.items()), ("nothing", None))
    if kind == "value":
        return np.asarray(numpy_helper.to_array(value))
    if kind in ("value_float", "value_floats", "value_int", "value_ints"):
        return np.asarray(value, np.float32 if "float" in kind else np.int64)
    raise node.refuse(f"a constant given as {kind} is not supported")


def _only(names: list[str], role: str) -> str:
    if len(names) != 1:
        raise UserError(f"ONNX: a graph with one {role} is needed, this one has {len(names)}: {', '.join(names)}")
    return names[0]


def _tensor(value: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(value, np.float32 if value.dtype.kind == "f" else value.dtype))


def _step(node: _Node) -> _Step:
    function, count = _BUILDERS[node.operator](node)
    inputs = node.inputs if count is None else node.inputs[:count]
    while inputs and not inputs[-1]:
        inputs = inputs[:-1]
    if "" in inputs or not inputs:
        raise node.refuse("an input is left out that is needed here")
    return _Step(node.what, function, inputs, node.output)


def _fuse_gelu(nodes: list[_Node], numbers: Mapping[str, np.ndarray], result: str) -> list[_Node]:
    """Puts one exact GELU where a graph spells out x * (1 + erf(x / sqrt 2)) / 2 in the order of torch's exporter."""
    makers = {node.output: node for node in nodes}
    readers: dict[str, list[_Node]] = {result: []}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)

    def follow(node: _Node, operator: str) -> tuple[_Node, str] | None:
        """The only reader of a node's output and what else it reads."""
        found = readers.get(node.output, [])
        if node.output == result or len(found) != 1 or found[0].operator != operator:
            return None
        first, second = found[0].inputs
        return found[0], second if first == node.output else first

    fused, dropped = {}, set()
    for erf in nodes:
        scale = makers.get(erf.inputs[0]) if erf.operator == "Erf" else None
        add = follow(erf, "Add")
        once = follow(add[0], "Mul") if add else None
        twice = follow(once[0], "Mul") if once else None
        if scale is None or add is None or once is None or twice is None:
            continue
        if scale.output == result or len(readers[scale.output]) != 1:
            continue
        argument = scale.inputs[0]
        half = twice[1] if once[1] == argument else once[1]
        numbers_fit = (
            _is(numbers, scale.inputs[-1], math.sqrt(2)) and _is(numbers, add[1], 1) and _is(numbers, half, 0.5)
        )
        if scale.operator == "Div" and numbers_fit and {once[1], twice[1]} == {argument, half}:
            fused[twice[0].output] = argument
            dropped |= {scale.output, erf.output, add[0].output, once[0].output}
    return [
        replace(node, operator="Gelu", inputs=(fused[node.output],), attributes={}) if node.output in fused else node
        for node in nodes
        if node.output not in dropped
    ]


def _is(numbers: Mapping[str, np.ndarray], name: str, value: float) -> bool:
    return name in numbers and numbers[name].size == 1 and abs(float(numbers[name].reshape(-1)[0]) - value) < 1e-6


def _plain(function: _Function, count: int | None = None) -> Callable[[_Node], _Built]:
    """An operator without settings."""
    return lambda node: (function, count)


def _convolution(node: _Node) -> _Built:
    attributes = node.attributes
    pad = _padding(node)
    groups = int(attributes.get("group", 1))

    def apply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        axes = weight.ndim - 2
        if axes not in (1, 2, 3):
            raise node.refuse(f"{axes} spatial axes are not supported")
        stride = tuple(attributes.get("strides", [1] * axes))
        dilation = tuple(attributes.get("dilations", [1] * axes))
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[axes - 1]
        before, after = pad(x, weight.shape[2:], stride, dilation)
        # A padding of the convolution itself saves a copy of the input.
        inside = before if before == after else (0,) * axes
        if before != after:
            x = functional.pad(x, _torch_order(before, after))
        return convolve(x, weight, bias, stride, inside, dilation, groups)

    return apply, 3


def _padding(node: _Node) -> Callable[[torch.Tensor, Sequence[int], Sequence[int], Sequence[int]], _Sides]:
    """How much to pad before and after each spatial axis, given input, kernel, strides and dilations."""
    automatic = node.attributes.get("auto_pad", "NOTSET")
    if automatic not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise node.refuse(f"auto_pad {automatic} is not supported")
    given = node.attributes.get("pads", []) if automatic == "NOTSET" else []

    def sides(x: torch.Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> _Sides:
        axes = len(kernel)
        if automatic.startswith("SAME"):
            totals = [
                max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
                for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
            ]
            small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
            return (small, large) if automatic == "SAME_UPPER" else (large, small)
        pads = tuple(int(p) for p in given) or (0,) * (2 * axes)
        return pads[:axes], pads[axes:]

    return sides


def _torch_order(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Paddings as torch lists them: the last axis first."""
    return [p for pair in reversed(list(zip(before, after, strict=True))) for p in pair]


def _batch_norm(node: _Node) -> _Built:
    if node.attributes.get("training_mode", 0):
        raise node.refuse("training mode is not supported; export the model in eval mode")
    epsilon = float(node.attributes.get("epsilon", 1e-5))

    def apply(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, mean: Any, variance: Any) -> torch.Tensor:
        return functional.batch_norm(x, mean, variance, scale, shift, False, 0.0, epsilon)

    return apply, None


def _gemm(node: _Node) -> _Built:
    alpha, beta = float(node.attributes.get("alpha", 1.0)), float(node.attributes.get("beta", 1.0))
    turn_a, turn_b = bool(node.attributes.get("transA", 0)), bool(node.attributes.get("transB", 0))

    def apply(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        product = (a.T if turn_a else a) @ (b.T if turn_b else b)
        product = product if alpha == 1 else alpha * product
        if c is None:
            return product
        return product + (c if beta == 1 else beta * c)

    return apply, None


def _gelu(node: _Node) -> _Built:
    approximate = node.attributes.get("approximate", "none")
    return lambda x: functional.gelu(x, approximate=approximate), None


def _leaky_relu(node: _Node) -> _Built:
    slope = float(node.attributes.get("alpha", 0.01))
    return lambda x: functional.leaky_relu(x, slope), None


def _clip(node: _Node) -> _Built:
    low, high = node.constant(1, "minimum"), node.constant(2, "maximum")
    least = node.attributes.get("min") if low is None else float(low.reshape(-1)[0])
    most = node.attributes.get("max") if high is None else float(high.reshape(-1)[0])
    if least is None and most is None:
        return lambda x: x, 1
    return lambda x: x.clamp(least, most), 1


def _global_average(x: torch.Tensor) -> torch.Tensor:
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


def _reduce(node: _Node) -> _Built:
    axes = node.integers("axes", 1, "axes")
    keep = bool(node.attributes.get("keepdims", 1))
    if not axes and node.attributes.get("noop_with_empty_axes", 0):
        return lambda x: x, 1
    total = node.operator == "ReduceSum"

    def apply(x: torch.Tensor) -> torch.Tensor:
        dims = axes or list(range(x.ndim))
        return x.sum(dim=dims, keepdim=keep) if total else x.mean(dim=dims, keepdim=keep)

    return apply, 1


def _squeeze(node: _Node) -> _Built:
    axes = node.integers("axes", 1, "axes")

    def apply(x: torch.Tensor) -> torch.Tensor:
        wrong = [axis for axis in axes or () if x.shape[axis] != 1]
        if wrong:
            raise node.refuse(f"axis {wrong[0]} of shape {list(x.shape)} is not 1")
        return x.squeeze() if axes is None else x.squeeze(tuple(axes))

    return apply, 1


def _unsqueeze(node: _Node) -> _Built:
    axes = node.integers("axes", 1, "axes")
    if not axes:
        raise node.refuse("it has no axes")

    def apply(x: torch.Tensor) -> torch.Tensor:
        rank = x.ndim + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return apply, 1


def _flatten(node: _Node) -> _Built:
    axis = int(node.attributes.get("axis", 1))

    def apply(x: torch.Tensor) -> torch.Tensor:
        first = axis % x.ndim if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:]))

    return apply, 1


def _reshape(node: _Node) -> _Built:
    target = node.integers("shape", 1, "shape")
    if target is None:
        raise node.refuse("it has no shape")
    zero_is_zero = bool(node.attributes.get("allowzero", 0))

    def apply(x: torch.Tensor) -> torch.Tensor:
        shape = [x.shape[i] if size == 0 and not zero_is_zero else size for i, size in enumerate(target)]
        try:
            return x.reshape(shape)
        except RuntimeError:
            raise node.refuse(f"shape {list(x.shape)} does not fit {target}; the graph needs another input") from None

    return apply, 1


def _transpose(node: _Node) -> _Built:
    order = node.attributes.get("perm")
    return lambda x: x.permute(tuple(order) if order else tuple(reversed(range(x.ndim)))), None


def _concat(node: _Node) -> _Built:
    axis = int(node.attributes.get("axis", 1))
    return lambda *parts: torch.cat(parts, dim=axis), None


def _pad(node: _Node) -> _Built:
    pads = node.integers("pads", 1, "paddings")
    if pads is None:
        raise node.refuse("it has no paddings")
    axes = node.integers("axes", 3, "axes")
    fill = node.constant(2, "value")
    value = float(node.attributes.get("value", 0.0)) if fill is None else float(fill.reshape(-1)[0])
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    mode = node.attributes.get("mode", "constant")
    if mode not in modes:
        raise node.refuse(f"mode {mode} is not supported. Supported: {', '.join(modes)}")

    def apply(x: torch.Tensor) -> torch.Tensor:
        half = len(pads) // 2
        before, after = [0] * x.ndim, [0] * x.ndim
        for axis, first, last in zip(axes or range(x.ndim), pads[:half], pads[half:], strict=True):
            before[axis], after[axis] = first, last
        if mode == "constant":
            return functional.pad(x, _torch_order(before, after), value=value)
        if any((*before[:2], *after[:2])):
            raise node.refuse(f"mode {mode} along the batch or the channels is not supported")
        return functional.pad(x, _torch_order(before[2:], after[2:]), mode=modes[mode])

    return apply, 1


def _pool(node: _Node) -> _Built:
    attributes = node.attributes
    kernel = tuple(attributes.get("kernel_shape", ()))
    if len(kernel) not in (1, 2, 3):
        raise node.refuse(f"kernel {list(kernel)} is not supported")
    stride = tuple(attributes.get("strides", [1] * len(kernel)))
    dilation = tuple(attributes.get("dilations", [1] * len(kernel)))
    ceil = bool(attributes.get("ceil_mode", 0))
    largest = node.operator == "MaxPool"
    counted = bool(attributes.get("count_include_pad", 0))
    if ceil or (not largest and any(d != 1 for d in dilation)):
        raise node.refuse("ceil_mode and dilated averages are not supported")
    pad = _padding(node)
    maximum = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(kernel) - 1]
    average = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(kernel) - 1]

    def apply(x: torch.Tensor) -> torch.Tensor:
        before, after = pad(x, kernel, stride, dilation)
        around = _torch_order(before, after)
        if largest:
            return maximum(functional.pad(x, around, value=-math.inf), kernel, stride, 0, dilation)
        mean = average(functional.pad(x, around), kernel, stride)
        if counted or not any(around):
            return mean
        inside = functional.pad(torch.ones_like(x[:1, :1]), around)
        return mean / average(inside, kernel, stride)

    return apply, 1


_BUILDERS: dict[str, Callable[[_Node], _Built]] = {
    "Add": _plain(torch.add),
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _convolution,
    "Div": _plain(torch.div),
    "Erf": _plain(torch.erf),
    "Flatten": _flatten,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _plain(_global_average),
    "Identity": _plain(lambda x: x),
    "LeakyRelu": _leaky_relu,
    "MatMul": _plain(torch.matmul),
    "MaxPool": _pool,
    "Mul": _plain(torch.mul),
    "Pad": _pad,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "Relu": _plain(torch.relu),
    "Reshape": _reshape,
    "Sigmoid": _plain(torch.sigmoid),
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Tanh": _plain(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""How each operator becomes a function of its tensors, and how many of the node's inputs are tensors (None: all)."""
