"""An ONNX graph as a PyTorch module, for exporters that start from PyTorch: they get the exact rewrites too.

The table holds the operators of the networks' graphs, as traced and as rewritten, in every precision but INT8. A shape's
arithmetic is done in Python numbers, which stay symbolic while `torch.export` traces, so that free sizes stay free.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add, mul, sub
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2mrf_deploy.errors import GraphError

Value = Any
"""A tensor, or in a shape's arithmetic a number or a list of numbers."""
Pair = Sequence[int]
Pads = Sequence[int]
"""ONNX's (top, left, bottom, right)."""


def to_module(model: onnx.ModelProto) -> nn.Module:
    """Turn a graph into a module.

    Args:
        model: its weights are inside.

    Returns:
        `forward`: the graph's inputs, in order, to a tuple of its outputs, in order. Its buffers are the graph's weights.

    Raises:
        GraphError: an operator is not in the table, or has an attribute or an input that the table does not know.
    """
    return _Graph(model.graph).eval()


class _Graph(nn.Module):
    def __init__(self, graph: onnx.GraphProto) -> None:
        super().__init__()
        self._numbers: dict[str, Value] = {"": None}
        self._tensors: dict[str, str] = {}
        for count, weight in enumerate(graph.initializer):
            array = onnx.numpy_helper.to_array(weight)
            if array.dtype == np.int64 and array.ndim < 2:
                self._numbers[weight.name] = array.tolist()
            else:
                self._tensors[weight.name] = f"weight{count}"
                self.register_buffer(f"weight{count}", _tensor(array))
        self._inputs = [v.name for v in graph.input if v.name not in self._numbers | self._tensors]
        self._outputs = [v.name for v in graph.output]
        self._calls = [(_call(node), list(node.input), list(node.output)) for node in graph.node]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = self._numbers | {name: getattr(self, buffer) for name, buffer in self._tensors.items()}
        values.update(zip(self._inputs, inputs, strict=True))
        with inputs[0].device:  # for Range, which has no tensor to take it from
            for call, sources, targets in self._calls:
                result = call(*(values[name] for name in sources))
                values.update(zip(targets, result if isinstance(result, tuple) else (result,), strict=True))
        return tuple(values[name] for name in self._outputs)


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(array.copy())


def _call(node: onnx.NodeProto) -> Callable[..., Value]:
    """The function of a node's inputs that computes its outputs.

    Raises:
        GraphError: it is not in the table.
    """
    name = f"{node.name or node.output[0]}: the operator {node.op_type}"
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        raise GraphError(f"{name} cannot be turned into PyTorch; known are {', '.join(sorted(OPERATORS))}")
    function = OPERATORS[node.op_type]
    attributes = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        value = value.decode() if isinstance(value, bytes) else value
        if attribute.name not in inspect.signature(function).parameters and attribute.name in ONLY:
            if value not in ONLY[attribute.name]:
                raise GraphError(f"{name} cannot be turned into PyTorch with {attribute.name} = {value}")
        else:
            attributes[attribute.name] = value
    try:
        inspect.signature(function).bind(*node.input, **attributes)
    except TypeError as e:
        raise GraphError(f"{name} cannot be turned into PyTorch: {e}") from None
    return lambda *inputs: function(*inputs, **attributes)


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *,
    strides: Pair = (1, 1), pads: Pads = (0, 0, 0, 0), dilations: Pair = (1, 1), group: int = 1,
    kernel_shape: Pair = (),
) -> Tensor:  # fmt: skip
    x, padding = _padded(x, pads, 0.0)
    return F.conv2d(x, weight, bias, strides, padding, dilations, group)


def _conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, strides: Pair = (1, 1), pads: Pads = (0, 0, 0, 0),
    output_padding: Pair = (0, 0), dilations: Pair = (1, 1), group: int = 1, kernel_shape: Pair = (),
) -> Tensor:  # fmt: skip
    top, left, bottom, right = pads
    y = F.conv_transpose2d(x, weight, bias, strides, 0, output_padding, group, dilations)
    return y[..., top : y.shape[-2] - bottom, left : y.shape[-1] - right]


def _max_pool(
    x: Tensor, *, kernel_shape: Pair, strides: Pair = (1, 1), pads: Pads = (0, 0, 0, 0), dilations: Pair = (1, 1),
    ceil_mode: int = 0,
) -> Tensor:  # fmt: skip
    """Rounding up is written out as padding.

    PyTorch's compiler settles by the example's size whether rounding up changes anything, and leaves it out where it does
    not. An ahead-of-time package cannot check that at another size: it writes past the end of its memory.
    """
    if ceil_mode:
        if list(strides) != list(kernel_shape) or any(pads) or any(d != 1 for d in dilations):
            raise GraphError("MaxPool that rounds up and overlaps cannot be turned into PyTorch for free sizes")
        pads = (0, 0, *(-size % step for size, step in zip(x.shape[-2:], strides, strict=True)))
    x, padding = _padded(x, pads, -torch.inf)
    return F.max_pool2d(x, list(kernel_shape), list(strides), padding, list(dilations))


def _average_pool(
    x: Tensor, *, kernel_shape: Pair, strides: Pair = (1, 1), pads: Pads = (0, 0, 0, 0), count_include_pad: int = 0
) -> Tensor:
    if any(pads) and not count_include_pad:
        raise GraphError("AveragePool that leaves its padding out of the average cannot be turned into PyTorch")
    x, padding = _padded(x, pads, 0.0)
    return F.avg_pool2d(x, list(kernel_shape), list(strides), padding)


def _padded(x: Tensor, pads: Pads, value: float) -> tuple[Tensor, list[int]]:
    """(x, the padding that is left to the operator): the operator does what is the same at both ends."""
    top, left, bottom, right = pads
    if isinstance(bottom, int) and isinstance(right, int) and (top, left) == (bottom, right):
        return x, [top, left]
    return F.pad(x, (left, right, top, bottom), value=value), [0, 0]


def _resize(x: Tensor, roi: None, scales: None, sizes: list[int]) -> Tensor:
    return F.interpolate(x, size=tuple(sizes[2:]), mode="bilinear", align_corners=False)


def _slice(x: Value, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None = None) -> Value:
    if isinstance(x, list):
        return x[starts[0] : ends[0]]
    for start, end, axis in zip(starts, ends, range(x.ndim) if axes is None else axes, strict=False):
        x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end),)]
    return x


def _reshape(x: Value, shape: list[int]) -> Value:
    if not isinstance(x, Tensor):
        flat = x if isinstance(x, list) else [x]
        return flat if shape else flat[0]
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


def _squeeze(x: Value, axes: list[int] | None = None) -> Value:
    if isinstance(x, Tensor):
        return x.squeeze() if axes is None else x.squeeze(tuple(axes))
    return x[0] if isinstance(x, list) else x


def _unsqueeze(x: Value, axes: list[int]) -> Value:
    return reduce(torch.unsqueeze, sorted(axes), x) if isinstance(x, Tensor) else [x]


def _cast(x: Value, *, to: int) -> Value:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(to)
    if isinstance(x, Tensor):
        return x.to(getattr(torch, dtype.name))
    convert: Callable[[Any], Any] = torch.sym_float if dtype.kind == "f" else torch.sym_int
    return [convert(v) for v in x] if isinstance(x, list) else convert(x)


def _arithmetic(operation: Callable[[Any, Any], Any]) -> Callable[..., Value]:
    """An operator on tensors, and on the numbers and lists of numbers of a shape's arithmetic."""

    def apply(a: Value, b: Value) -> Value:
        lists = [v for v in (a, b) if isinstance(v, list)]
        if not lists:
            return operation(a, b)
        if isinstance(a, Tensor) or isinstance(b, Tensor):  # a list of one is a number to a tensor
            (one,) = lists[0]
            return operation(a, one) if isinstance(a, Tensor) else operation(one, b)
        count = max(map(len, lists))
        left, right = (v * (count // len(v)) if isinstance(v, list) else [v] * count for v in (a, b))
        return [operation(x, y) for x, y in zip(left, right, strict=True)]

    return apply


def _divide(a: Any, b: Any) -> Any:
    """Integers are rounded down: none that are divided are negative."""
    return a / b if _floating(a) or _floating(b) else a // b


def _floating(x: Any) -> bool:
    return x.is_floating_point() if isinstance(x, Tensor) else isinstance(x, (float, torch.SymFloat))


OPERATORS: dict[str, Callable[..., Value]] = {
    "Abs": abs,
    "Add": _arithmetic(add),
    "AveragePool": _average_pool,
    "BatchNormalization": lambda x, scale, bias, mean, var, *, epsilon=1e-5, momentum=0.9: F.batch_norm(
        x, mean, var, scale, bias, eps=epsilon
    ),
    "Cast": _cast,
    "Clip": lambda x, low=None, high=None: torch.clamp(x, low, high),
    "Concat": lambda *parts, axis: torch.cat(parts, axis) if isinstance(parts[0], Tensor) else reduce(add, parts),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _arithmetic(_divide),
    "HardSigmoid": lambda x, *, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "HardSwish": lambda x: F.hardswish(x),
    "Identity": lambda x: x,
    "MatMul": lambda a, b: torch.matmul(a, b),
    "MaxPool": _max_pool,
    "Mul": _arithmetic(mul),
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Range": lambda start, end, step: torch.arange(start, end, step),
    "ReduceMean": lambda x, axes_=None, *, axes=None, keepdims=1: x.mean(axes or axes_, bool(keepdims)),
    "Relu": lambda x: F.relu(x),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": lambda x, *, start=0, end=None: list(x.shape)[start:end],
    "Sigmoid": lambda x: torch.sigmoid(x),
    "Slice": _slice,
    "Split": lambda x, sizes, *, axis=0: torch.split(x, sizes, axis),
    "Squeeze": _squeeze,
    "Sub": _arithmetic(sub),
    "Transpose": lambda x, *, perm: x.permute(perm),
    "Unsqueeze": _unsqueeze,
}

ONLY: dict[str, tuple[Any, ...]] = {
    "allowzero": (0,),
    "antialias": (0,),
    "auto_pad": ("NOTSET", ""),
    "ceil_mode": (0,),
    "coordinate_transformation_mode": ("half_pixel",),
    "cubic_coeff_a": (-0.75,),
    "exclude_outside": (0,),
    "extrapolation_value": (0.0,),
    "keep_aspect_ratio_policy": ("stretch",),
    "mode": ("linear",),
    "nearest_mode": ("round_prefer_floor", "floor"),
    "noop_with_empty_axes": (0,),
    "storage_order": (0,),
    "training_mode": (0,),
}
"""The attributes that no function takes, and the values that they may have."""
