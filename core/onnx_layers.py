"""Turns a small convolutional ONNX graph into differentiable torch layers.

A published extractor is often only an ONNX file, and no runtime gives the gradient of its input, which fine-tuning a
decoder against it needs. :func:`from_onnx` replays the graph with torch functions: its numbers become buffers (nothing
is trained) unless parameters are asked for, GELUs written out with ``Erf`` become one call, and what the file says of
the input's height and width is not used. A file cannot run code here; an operator outside the table is refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .errors import UnavailableError, UserError, nearest
from .onnx_operators import BUILDERS, Node

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    _Function = Callable[..., torch.Tensor]

_OLDEST = 7
"""Before it, operators broadcast by rules of their own."""


class OnnxLayers(nn.Module):
    """A graph of one input and one output; made by :func:`from_onnx`.

    It is in eval mode and computes in float32 unless it is cast (``.double()``). Gradients flow to the input. Unless
    ``trainable``, it is frozen: it has buffers and no parameters.
    """

    def __init__(
        self,
        steps: Sequence[_Step],
        numbers: Mapping[str, torch.Tensor],
        source: str,
        result: str,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self._source, self._result = source, result
        self._steps = tuple(steps)
        self._name_of = {name: f"number_{i}" for i, name in enumerate(numbers)}
        for name, value in numbers.items():
            if trainable and value.is_floating_point():
                self.register_parameter(self._name_of[name], nn.Parameter(value))
            else:
                self.register_buffer(self._name_of[name], value)
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
        number: torch.Tensor = getattr(self, self._name_of[name])
        return number


def from_onnx(model: Any, output: str | None = None, trainable: bool = False) -> OnnxLayers:
    """Converts an ONNX graph into torch layers that give the same output.

    The operators are those of convolutional networks: Conv, ConvTranspose, BatchNormalization, Gemm, MatMul, Add, Sub,
    Mul, Div, Erf, Gelu, Relu, LeakyRelu, Sigmoid, Tanh, Clip, GlobalAveragePool, AveragePool, MaxPool, ReduceMean,
    ReduceSum, Squeeze, Unsqueeze, Flatten, Reshape, Transpose, Concat, Pad, Constant and Identity. Shapes, axes and
    paddings must be constants of the graph.

    Args:
        model: path of the file, or an ``onnx.ModelProto``.
        output: the output's name where the graph has several; only what it depends on is kept.
        trainable: whether the floating-point numbers become parameters in the place of buffers.

    Raises:
        UserError: the file is missing or damaged, keeps numbers in other files, has several inputs, or several outputs
            and none is chosen, or holds an operator or a setting that is not supported; the line names the operator
            and the node.
        UnavailableError: the onnx package is not installed.

    Example:
        >>> layers = from_onnx("extractor.onnx")  # doctest: +SKIP
        >>> layers(torch.zeros(1, 3, 256, 256)).shape  # doctest: +SKIP
        torch.Size([1, 48])
    """
    graph = read_onnx(model).graph
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
    result = _output([value.name for value in graph.output], output)
    steps = [_step(node) for node in _fuse_gelu(_needed(nodes, result), numbers, result)]
    known = {source, *numbers}
    for step in steps:
        for name in step.inputs:
            if name not in known:
                raise UserError(f"ONNX {step.what}: its input {name!r} is made by no node before it")
        known.add(step.output)
    if result not in known:
        raise UserError(f"ONNX: the output {result!r} is made by no node")
    used = {name for step in steps for name in step.inputs} | {result}
    tensors = {name: _tensor(value) for name, value in numbers.items() if name in used}
    return OnnxLayers(steps, tensors, source, result, trainable)


def read_onnx(model: Any) -> Any:
    """An ONNX file as ``onnx.ModelProto``.

    Args:
        model: path of the file, or the ``onnx.ModelProto`` itself.

    Raises:
        UserError: the file is missing, damaged, empty, or of before operator set 7.
        UnavailableError: the onnx package is not installed.
    """
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
    return model


@dataclass(frozen=True)
class _Step:
    """One call: the tensors that go in by name, the function, the name of what comes out."""

    what: str
    function: _Function
    inputs: tuple[str, ...]
    output: str


def _initialisers(graph: Any) -> dict[str, np.ndarray]:
    from onnx import TensorProto, numpy_helper

    numbers = {}
    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise UserError(f"ONNX: {tensor.name!r} is kept in another file; save the model as one file")
        numbers[tensor.name] = numpy_helper.to_array(tensor)
    return numbers


def _node(proto: Any, numbers: Mapping[str, np.ndarray]) -> Node:
    from onnx import helper

    operator = proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in proto.attribute}
    attributes = {key: value.decode() if isinstance(value, bytes) else value for key, value in attributes.items()}
    node = Node(operator, proto.name, tuple(proto.input), proto.output[0], attributes, numbers)
    if operator not in BUILDERS and operator != "Constant":
        raise node.refuse(f"not supported. Supported: {', '.join(sorted({*BUILDERS, 'Constant'}))}")
    if len([name for name in proto.output if name]) != 1:
        raise node.refuse("more than one output is not supported")
    return node


def _constant(node: Node) -> np.ndarray:
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


def _output(names: list[str], chosen: str | None) -> str:
    if chosen is None:
        return _only(names, "output")
    if chosen not in names:
        raise UserError(f"ONNX: the graph has no output {chosen!r}.{nearest(chosen, names)}")
    return chosen


def _needed(nodes: Sequence[Node], result: str) -> list[Node]:
    """The nodes that the result depends on, in their order."""
    wanted, kept = {result}, []
    for node in reversed(nodes):
        if node.output in wanted:
            kept.append(node)
            wanted.update(node.inputs)
    return kept[::-1]


def _tensor(value: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(value, np.float32 if value.dtype.kind == "f" else value.dtype))


def _step(node: Node) -> _Step:
    function, count = BUILDERS[node.operator](node)
    inputs = node.inputs if count is None else node.inputs[:count]
    while inputs and not inputs[-1]:
        inputs = inputs[:-1]
    if "" in inputs or not inputs:
        raise node.refuse("an input is left out that is needed here")
    return _Step(node.what, function, inputs, node.output)


def _fuse_gelu(nodes: list[Node], numbers: Mapping[str, np.ndarray], result: str) -> list[Node]:
    """Puts one exact GELU where a graph spells out x * (1 + erf(x / sqrt 2)) / 2 in the order of torch's exporter."""
    makers = {node.output: node for node in nodes}
    readers: dict[str, list[Node]] = {result: []}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)

    def follow(node: Node, operator: str) -> tuple[Node, str] | None:
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
