"""An ONNX graph as a PyTorch module, for exporters that start from PyTorch: they get the exact rewrites too.

The table holds the operators that traced and rewritten graphs of the networks are made of. Shapes are computed with Python
integers, which stay symbolic while `torch.export` traces, so that free sizes stay free.
"""

from __future__ import annotations

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
"""A tensor, or of a shape's arithmetic an int or a list of ints."""


def to_module(model: onnx.ModelProto) -> nn.Module:
    """Turn a graph into a module.

    Args:
        model: its weights are inside.

    Returns:
        `forward`: the graph's inputs, in order, to a tuple of its outputs, in order.

    Raises:
        GraphError: an operator is not in the table, or is used in a way that the table does not know.
    """
    return _Graph(model).eval()


class _Graph(nn.Module):
    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        graph = model.graph
        self._inputs = [v.name for v in graph.input if v.name not in {t.name for t in graph.initializer}]
        self._outputs = [v.name for v in graph.output]
        self._constants: dict[str, Value] = {"": None}
        self._buffers_of: dict[str, str] = {}
        for number, tensor in enumerate(graph.initializer):
            self._add_constant(tensor.name, tensor, f"weight{number}")
        self._nodes: list[tuple[str, Callable[..., Value], list[str], list[str], dict[str, Any]]] = []
        for number, node in enumerate(graph.node):
            attributes = {a.name: _attribute(a) for a in node.attribute}
            if node.op_type == "Constant":
                self._add_constant(node.output[0], attributes["value"], f"constant{number}")
                continue
            if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
                raise GraphError(
                    f"{node.name or node.op_type}: the operator {node.op_type} cannot be turned into PyTorch; "
                    f"known are {', '.join(sorted(OPERATORS))}"
                )
            if node.op_type == "Split":
                attributes["count"] = len(node.output)
            function = OPERATORS[node.op_type]
            self._nodes.append((node.name, function, list(node.input), list(node.output), attributes))

    def _add_constant(self, name: str, tensor: onnx.TensorProto, buffer: str) -> None:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.int64:
            self._constants[name] = array.tolist()
        else:
            self.register_buffer(buffer, _tensor(array), persistent=False)
            self._buffers_of[name] = buffer

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = {name: getattr(self, buffer) for name, buffer in self._buffers_of.items()}
        values |= self._constants | dict(zip(self._inputs, inputs, strict=True))
        for name, function, taken, given, attributes in self._nodes:
            try:
                result = function(*(values[i] for i in taken), **attributes)
            except TypeError as e:  # an attribute or an input that the table does not know
                raise GraphError(f"{name} cannot be turned into PyTorch: {e}") from e
            values.update(zip(given, result if isinstance(result, tuple) else (result,), strict=False))
        return tuple(values[name] for name in self._outputs)


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(array.copy())


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def _conv(
    x: Tensor, w: Tensor, b: Tensor | None = None, *, group: int = 1, dilations: Sequence[int] = (1, 1),
    strides: Sequence[int] = (1, 1), pads: Sequence[int] = (0, 0, 0, 0), kernel_shape: Any = None, auto_pad: str = "NOTSET",
) -> Tensor:  # fmt: skip
    _known(auto_pad in ("NOTSET", ""), "auto_pad")
    x, padding = _padded(x, pads)
    return F.conv2d(x, w, b, list(strides), padding, list(dilations), group)


def _conv_transpose(
    x: Tensor, w: Tensor, b: Tensor | None = None, *, group: int = 1, dilations: Sequence[int] = (1, 1),
    strides: Sequence[int] = (1, 1), pads: Sequence[int] = (0, 0, 0, 0), output_padding: Sequence[int] = (0, 0),
    kernel_shape: Any = None, auto_pad: str = "NOTSET",
) -> Tensor:  # fmt: skip
    _known(auto_pad in ("NOTSET", "") and tuple(pads[:2]) == tuple(pads[2:]), "pads")
    return F.conv_transpose2d(x, w, b, list(strides), list(pads[:2]), list(output_padding), group, list(dilations))


def _batch_norm(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, epsilon: float = 1e-5, **unused: Any
) -> Tensor:
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """The same padding on both sides is left to the operator."""
    top, left, bottom, right = pads
    if (top, left) == (bottom, right):
        return x, [top, left]
    return F.pad(x, (left, right, top, bottom), value=value), [0, 0]


def _max_pool(
    x: Tensor, *, kernel_shape: Sequence[int], strides: Sequence[int] = (1, 1), pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1), ceil_mode: int = 0, auto_pad: str = "NOTSET", storage_order: int = 0,
) -> Tensor:  # fmt: skip
    _known(auto_pad in ("NOTSET", ""), "auto_pad")
    x, padding = _padded(x, pads, -torch.inf)
    return F.max_pool2d(x, list(kernel_shape), list(strides), padding, list(dilations), bool(ceil_mode))


def _average_pool(
    x: Tensor, *, kernel_shape: Sequence[int], strides: Sequence[int] = (1, 1), pads: Sequence[int] = (0, 0, 0, 0),
    ceil_mode: int = 0, count_include_pad: int = 0, auto_pad: str = "NOTSET",
) -> Tensor:  # fmt: skip
    _known(auto_pad in ("NOTSET", "") and tuple(pads[:2]) == tuple(pads[2:]), "pads")
    counted = bool(count_include_pad)
    return F.avg_pool2d(x, list(kernel_shape), list(strides), list(pads[:2]), bool(ceil_mode), counted)


def _resize(
    x: Tensor, roi: Value = None, scales: Tensor | None = None, sizes: list[int] | None = None, *, mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel", antialias: int = 0, **unused: Any,
) -> Tensor:  # fmt: skip
    _known(mode == "linear" and coordinate_transformation_mode == "half_pixel" and not antialias, "mode")
    if sizes:
        return F.interpolate(x, size=tuple(sizes[2:]), mode="bilinear", align_corners=False)
    assert scales is not None
    factors = [float(s) for s in scales[2:]]
    return F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=False, recompute_scale_factor=False)


def _slice(x: Value, starts: list[int], ends: list[int], axes: list[int] | None = None, steps: Value = None) -> Value:
    axes = list(range(len(starts))) if axes is None else axes
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        cut = slice(start, end, step)
        x = x[cut] if isinstance(x, list) else x[(slice(None),) * (axis % x.ndim) + (cut,)]
    return x


def _split(x: Tensor, sizes: list[int] | None = None, *, axis: int = 0, count: int, num_outputs: int = 0) -> Value:
    return torch.split(x, sizes if sizes else -(-x.shape[axis] // count), axis)


def _reduce_mean(x: Tensor, axes: list[int] | None = None, *, keepdims: int = 1, **old: Any) -> Tensor:
    return x.mean(old.get("axes", axes), bool(keepdims))


def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> list[int]:
    return list(x.shape)[start:end]


def _gather(x: Value, indices: Value, *, axis: int = 0) -> Value:
    if isinstance(x, list):
        return [x[i] for i in indices] if isinstance(indices, list) else x[indices]
    _known(not isinstance(indices, Tensor), "indices")
    return (
        x.select(axis, indices)
        if isinstance(indices, int)
        else torch.cat([x.narrow(axis, i, 1) for i in indices], axis)
    )


def _reshape(x: Value, shape: list[int], *, allowzero: int = 0) -> Value:
    if isinstance(x, Tensor):
        return x.reshape([x.shape[i] if d == 0 and not allowzero else d for i, d in enumerate(shape)])
    flat = x if isinstance(x, list) else [x]
    return flat if shape else flat[0]


def _concat(*parts: Value, axis: int) -> Value:
    if isinstance(parts[0], list):
        return reduce(add, parts)
    return torch.cat(parts, axis)


def _unsqueeze(x: Value, axes: list[int]) -> Value:
    return reduce(Tensor.unsqueeze, sorted(axes), x) if isinstance(x, Tensor) else [x]


def _squeeze(x: Value, axes: list[int] | None = None) -> Value:
    if isinstance(x, list):
        return x[0]
    return x.squeeze(axes) if axes else x.squeeze()


def _cast(x: Value, *, to: int) -> Value:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(to)
    if isinstance(x, Tensor):
        return x.to(getattr(torch, dtype.name))
    if dtype.kind != "f":
        return x
    return [torch.sym_float(d) for d in x] if isinstance(x, list) else torch.sym_float(x)


def _pad(
    x: Tensor, pads: list[int], value: Tensor | None = None, axes: list[int] | None = None, *, mode: str = "constant"
) -> Tensor:
    _known(mode in ("constant", "reflect", "edge") and axes is None, "mode")
    half = len(pads) // 2
    sides = [side for axis in reversed(range(half)) for side in (pads[axis], pads[half + axis])]
    while mode != "constant" and sides[-2:] == [0, 0]:
        sides = sides[:-2]
    constant = float(value) if value is not None and mode == "constant" else None
    return F.pad(x, sides, {"edge": "replicate"}.get(mode, mode), constant)


def _known(holds: bool, what: str) -> None:
    if not holds:
        raise TypeError(f"this use of {what} is not in the table")


def _arithmetic(numbers: Callable[[Any, Any], Any], tensors: Callable[[Any, Any], Any]) -> Callable[..., Value]:
    """An operator on tensors, and on the numbers and lists of numbers of a shape's arithmetic."""

    def apply(a: Value, b: Value) -> Value:
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            return tensors(*(torch.tensor(v) if isinstance(v, list) else v for v in (a, b)))
        if isinstance(a, list) or isinstance(b, list):
            count = max(len(v) for v in (a, b) if isinstance(v, list))
            left, right = (v * (count // len(v)) if isinstance(v, list) else [v] * count for v in (a, b))
            return [numbers(x, y) for x, y in zip(left, right, strict=True)]
        return numbers(a, b)

    return apply


def _divide(a: Any, b: Any) -> Any:
    integers = isinstance(a, (int, torch.SymInt)) and isinstance(b, (int, torch.SymInt))
    return a // b if integers else a / b


OPERATORS: dict[str, Callable[..., Value]] = {
    "Abs": abs,
    "Add": _arithmetic(add, torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": lambda x, low=None, high=None: torch.clamp(x, low, high),
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _arithmetic(_divide, torch.div),
    "Gather": _gather,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "MatMul": torch.matmul,
    "MaxPool": _max_pool,
    "Mul": _arithmetic(mul, torch.mul),
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Pad": _pad,
    "Range": torch.arange,
    "ReduceMean": _reduce_mean,
    "Relu": F.relu,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": torch.sigmoid,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _arithmetic(sub, torch.sub),
    "Transpose": lambda x, perm: x.permute(perm),
    "Unsqueeze": _unsqueeze,
}
