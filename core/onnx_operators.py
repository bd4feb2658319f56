"""ONNX operators as torch functions: the table of what :mod:`.onnx_layers` can replay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from .errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    _Function = Callable[..., torch.Tensor]
    Built = tuple[_Function, int | None]
    _Sides = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Node:
    """An ONNX node with its attributes read and its constant inputs at hand."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]
    numbers: Mapping[str, np.ndarray]

    @property
    def what(self) -> str:
        """The node as a message names it."""
        return f"operator {self.operator} (node {self.name or self.output!r})"

    def refuse(self, reason: str) -> UserError:
        """The error that says why this node cannot be used."""
        return UserError(f"ONNX {self.what}: {reason}")

    def has(self, index: int) -> bool:
        """Whether an input is given."""
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


def _plain(function: _Function, count: int | None = None) -> Callable[[Node], Built]:
    """An operator without settings."""
    return lambda node: (function, count)


def _convolution(node: Node) -> Built:
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


def _transposed_convolution(node: Node) -> Built:
    attributes = node.attributes
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or "output_shape" in attributes:
        raise node.refuse("auto_pad and output_shape are not supported; give pads")
    pad = _padding(node)
    groups = int(attributes.get("group", 1))

    def apply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        axes = weight.ndim - 2
        if axes not in (1, 2, 3):
            raise node.refuse(f"{axes} spatial axes are not supported")
        stride = tuple(attributes.get("strides", [1] * axes))
        dilation = tuple(attributes.get("dilations", [1] * axes))
        extra = tuple(attributes.get("output_padding", [0] * axes))
        spread = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[axes - 1]
        before, after = pad(x, weight.shape[2:], stride, dilation)
        inside = tuple(map(min, before, after))
        out = spread(x, weight, bias, stride, inside, extra, groups, dilation)
        if before == after:
            return out
        # A padding here is a crop of what comes out, and torch's own is the same on both sides.
        rest = [[i - p for p, i in zip(side, inside, strict=True)] for side in (before, after)]
        return functional.pad(out, _torch_order(*rest))

    return apply, 3


def _padding(node: Node) -> Callable[[torch.Tensor, Sequence[int], Sequence[int], Sequence[int]], _Sides]:
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


def _batch_norm(node: Node) -> Built:
    if node.attributes.get("training_mode", 0):
        raise node.refuse("training mode is not supported; export the model in eval mode")
    epsilon = float(node.attributes.get("epsilon", 1e-5))

    def apply(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, mean: Any, variance: Any) -> torch.Tensor:
        return functional.batch_norm(x, mean, variance, scale, shift, False, 0.0, epsilon)

    return apply, None


def _gemm(node: Node) -> Built:
    alpha, beta = float(node.attributes.get("alpha", 1.0)), float(node.attributes.get("beta", 1.0))
    turn_a, turn_b = bool(node.attributes.get("transA", 0)), bool(node.attributes.get("transB", 0))

    def apply(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        product = (a.T if turn_a else a) @ (b.T if turn_b else b)
        product = product if alpha == 1 else alpha * product
        if c is None:
            return product
        return product + (c if beta == 1 else beta * c)

    return apply, None


def _gelu(node: Node) -> Built:
    approximate = node.attributes.get("approximate", "none")
    return lambda x: functional.gelu(x, approximate=approximate), None


def _leaky_relu(node: Node) -> Built:
    slope = float(node.attributes.get("alpha", 0.01))
    return lambda x: functional.leaky_relu(x, slope), None


def _clip(node: Node) -> Built:
    low, high = node.constant(1, "minimum"), node.constant(2, "maximum")
    least = node.attributes.get("min") if low is None else float(low.reshape(-1)[0])
    most = node.attributes.get("max") if high is None else float(high.reshape(-1)[0])
    if least is None and most is None:
        return lambda x: x, 1
    return lambda x: x.clamp(least, most), 1


def _global_average(x: torch.Tensor) -> torch.Tensor:
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


def _reduce(node: Node) -> Built:
    axes = node.integers("axes", 1, "axes")
    keep = bool(node.attributes.get("keepdims", 1))
    if not axes and node.attributes.get("noop_with_empty_axes", 0):
        return lambda x: x, 1
    total = node.operator == "ReduceSum"

    def apply(x: torch.Tensor) -> torch.Tensor:
        dims = axes or list(range(x.ndim))
        return x.sum(dim=dims, keepdim=keep) if total else x.mean(dim=dims, keepdim=keep)

    return apply, 1


def _squeeze(node: Node) -> Built:
    axes = node.integers("axes", 1, "axes")

    def apply(x: torch.Tensor) -> torch.Tensor:
        wrong = [axis for axis in axes or () if x.shape[axis] != 1]
        if wrong:
            raise node.refuse(f"axis {wrong[0]} of shape {list(x.shape)} is not 1")
        return x.squeeze() if axes is None else x.squeeze(tuple(axes))

    return apply, 1


def _unsqueeze(node: Node) -> Built:
    axes = node.integers("axes", 1, "axes")
    if not axes:
        raise node.refuse("it has no axes")

    def apply(x: torch.Tensor) -> torch.Tensor:
        rank = x.ndim + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return apply, 1


def _flatten(node: Node) -> Built:
    axis = int(node.attributes.get("axis", 1))

    def apply(x: torch.Tensor) -> torch.Tensor:
        first = axis % x.ndim if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:]))

    return apply, 1


def _reshape(node: Node) -> Built:
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


def _transpose(node: Node) -> Built:
    order = node.attributes.get("perm")
    return lambda x: x.permute(tuple(order) if order else tuple(reversed(range(x.ndim)))), None


def _concat(node: Node) -> Built:
    axis = int(node.attributes.get("axis", 1))
    return lambda *parts: torch.cat(parts, dim=axis), None


def _pad(node: Node) -> Built:
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


def _pool(node: Node) -> Built:
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


BUILDERS: dict[str, Callable[[Node], Built]] = {
    "Add": _plain(torch.add),
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
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
