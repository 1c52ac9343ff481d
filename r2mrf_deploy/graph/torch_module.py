"""An ONNX graph as a PyTorch module, for exporters that start from PyTorch: they get the exact rewrites too.

The table holds the operators of the networks' graphs, traced or rewritten, in every precision except INT8, for which
`torch_dynamic` has another. Arithmetic on shapes is done in Python numbers, which stay symbolic while `torch.export` traces,
so that free sizes stay free.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from itertools import accumulate
from operator import add, mul, sub
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.networks import same

Value = Any
"""A tensor; in arithmetic on shapes, and for a constant without dimensions, a number or a list of numbers."""
Operators = Mapping[str, Callable[..., Value]]
"""ONNX operator -> the function from its inputs, and its attributes by name, to its output or a tuple of them."""
Ints = Sequence[int]
"""Of pads: (top, left, bottom, right)."""


def to_module(model: onnx.ModelProto, operators: Operators | None = None) -> nn.Module:
    """Turn a graph into a module.

    Args:
        model: with its weights loaded.
        operators: by default `OPERATORS`.

    Returns:
        `forward`: the graph's inputs, in order, to a tuple of its outputs, in order. Its buffers are the graph's weights.

    Raises:
        GraphError: an operator, or one of its attributes or inputs, is not supported.
    """
    return _Graph(model.graph, OPERATORS if operators is None else operators).eval()


def weights(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of a module that `to_module` made, by the names of the graph's initialisers."""
    assert isinstance(module, _Graph)
    return {name: getattr(module, buffer) for name, buffer in module._tensors.items()}


class _Graph(nn.Module):
    def __init__(self, graph: onnx.GraphProto, operators: Operators) -> None:
        super().__init__()
        self._numbers: dict[str, Value] = {"": None}
        self._tensors: dict[str, str] = {}
        for count, weight in enumerate(graph.initializer):
            array = onnx.numpy_helper.to_array(weight)
            # a limit of Clip, for instance: as tensors, exporters would compute with them
            if array.ndim == 0 or (array.dtype == np.int64 and array.ndim == 1):
                self._numbers[weight.name] = array.tolist()
            else:
                self._tensors[weight.name] = f"weight{count}"
                self.register_buffer(f"weight{count}", _tensor(array))
        self._inputs = [v.name for v in graph.input if v.name not in self._numbers | self._tensors]
        self._outputs = [v.name for v in graph.output]
        self._calls = [(_call(node, operators), list(node.input), list(node.output)) for node in graph.node]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = self._numbers | {name: getattr(self, buffer) for name, buffer in self._tensors.items()}
        values.update(zip(self._inputs, inputs, strict=True))
        for call, sources, targets in self._calls:
            if call is _range:  # it has no tensor to take the device from
                call = partial(call, device=inputs[0].device)
            result = call(*(values[name] for name in sources))
            values.update(zip(targets, result if isinstance(result, tuple) else (result,), strict=True))
        return tuple(values[name] for name in self._outputs)


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(array.copy())


def _call(node: onnx.NodeProto, operators: Operators) -> Callable[..., Value]:
    """The function that computes a node's outputs from its inputs."""
    name = f"{node.name or node.output[0]}: the operator {node.op_type}"
    if node.domain not in ("", "ai.onnx") or node.op_type not in operators:
        raise GraphError(f"{name} cannot be turned into PyTorch; supported are {', '.join(sorted(operators))}")
    function = operators[node.op_type]
    signature, attributes = inspect.signature(function), {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        value = value.decode() if isinstance(value, bytes) else value
        taken = attribute.name in signature.parameters
        if taken or attribute.name not in ONLY:
            attributes[attribute.name] = value
        if value not in (SOME if taken else ONLY).get(attribute.name, (value,)):
            raise GraphError(f"{name} cannot be turned into PyTorch with {attribute.name} = {value}")
    try:
        signature.bind(*node.input, **attributes)
    except TypeError as e:
        raise GraphError(f"{name} cannot be turned into PyTorch: {e}") from None
    return partial(function, **attributes) if attributes else function


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *,
    strides: Ints = (1, 1), pads: Ints = (0, 0, 0, 0), dilations: Ints = (1, 1), group: int = 1,
    kernel_shape: Ints = (), auto_pad: str = "NOTSET",
) -> Tensor:  # fmt: skip
    if auto_pad == "SAME_UPPER":
        for axis, kernel, dilation, stride in zip((2, 3), weight.shape[2:], dilations, strides, strict=True):
            x = _same(x, axis, (kernel - 1) * dilation + 1, stride)
    x, padding = _padded(x, pads, 0.0)
    return F.conv2d(x, weight, bias, strides, padding, dilations, group)


def _same(x: Tensor, axis: int, kernel: int, stride: int) -> Tensor:
    """Pad one side as SAME_UPPER does.

    How much comes before a free side depends on its parity. The compiler takes minutes to simplify sizes that depend on it,
    and then fails. So both ways are padded to one size, and the parity, as a value, chooses between them.
    """

    def padded(before: int, after: int) -> Tensor:
        return F.pad(x, (0, 0) * (3 - axis) + (before, after))

    side = x.shape[axis]
    if isinstance(side, int):
        return padded(*same.pads(side, kernel, stride))
    if stride > 2 or kernel < stride:
        raise GraphError(f"Conv that pads a free side by auto_pad, with stride {stride}, cannot be turned into PyTorch")
    (if_even, _), (if_odd, after) = same.pads(stride, kernel, stride), same.pads(1, kernel, stride)
    total = if_odd + after
    odd = torch.scalar_tensor(side % 2, device=x.device) > 0
    return torch.where(odd, padded(if_odd, after), padded(if_even, total - if_even))


def _conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, strides: Ints = (1, 1), pads: Ints = (0, 0, 0, 0),
    output_padding: Ints = (0, 0), dilations: Ints = (1, 1), group: int = 1, kernel_shape: Ints = (),
) -> Tensor:  # fmt: skip
    if tuple(pads[:2]) != tuple(pads[2:]):
        raise GraphError("ConvTranspose with different pads at its ends cannot be turned into PyTorch")
    return F.conv_transpose2d(x, weight, bias, strides, list(pads[:2]), output_padding, group, dilations)


def _max_pool(
    x: Tensor, *, kernel_shape: Ints, strides: Ints = (1, 1), pads: Ints = (0, 0, 0, 0), dilations: Ints = (1, 1),
    ceil_mode: int = 0,
) -> Tensor:  # fmt: skip
    """Rounding up is written as padding.

    PyTorch's compiler decides from the example's size whether rounding up changes anything, and if not, leaves it out. An
    ahead-of-time package does not check this at other sizes: it writes past the end of its memory.
    """
    if ceil_mode:
        if list(strides) != list(kernel_shape) or any(pads) or any(d != 1 for d in dilations):
            raise GraphError("MaxPool that rounds up and overlaps cannot be turned into PyTorch for free sizes")
        # a free side is padded by the most that it can need: any excess does not fill a window
        pads = (0, 0, *(-d % s if isinstance(d, int) else s - 1 for d, s in zip(x.shape[-2:], strides, strict=True)))
    x, padding = _padded(x, pads, -torch.inf)
    return F.max_pool2d(x, list(kernel_shape), list(strides), padding, list(dilations))


def _average_pool(
    x: Tensor, *, kernel_shape: Ints, strides: Ints = (1, 1), pads: Ints = (0, 0, 0, 0), count_include_pad: int = 0
) -> Tensor:
    if any(pads) and not count_include_pad:
        raise GraphError("AveragePool that leaves its padding out of the average cannot be turned into PyTorch")
    x, padding = _padded(x, pads, 0.0)
    return F.avg_pool2d(x, list(kernel_shape), list(strides), padding)


def _padded(x: Tensor, pads: Ints, value: float) -> tuple[Tensor, list[int]]:
    """(x, the padding left to the operator): the operator itself can only pad both ends alike."""
    top, left, bottom, right = pads
    if (top, left) == (bottom, right):
        return x, [top, left]
    return F.pad(x, (left, right, top, bottom), value=value), [0, 0]


def _batch_norm(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, epsilon: float = 1e-5, momentum: float = 0.9
) -> Tensor:
    """As one product and one sum.

    ExecuTorch 1.5 merges PyTorch's own operator with the convolution before it, and the result is wrong if another layer has
    the same parameters, as all layers of an untrained network do.
    """
    factor = scale.float() * torch.rsqrt(var.float() + epsilon)
    offset = bias.float() - mean.float() * factor
    return x * factor.to(x.dtype)[:, None, None] + offset.to(x.dtype)[:, None, None]


def _resize(x: Tensor, roi: None, scales: None, sizes: list[int]) -> Tensor:
    return F.interpolate(x, size=tuple(sizes[2:]), mode="bilinear", align_corners=False)


def _slice(x: Value, starts: Ints, ends: Ints, axes: Ints | None = None) -> Value:
    if isinstance(x, list):
        return x[starts[0] : ends[0]]
    for start, end, axis in zip(starts, ends, range(x.ndim) if axes is None else axes, strict=False):
        x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end),)]
    return x


def _split(x: Tensor, sizes: list[int], *, axis: int = 0) -> tuple[Tensor, ...]:
    """As slices, which XNNPACK has, other than a split."""
    starts = accumulate(sizes, initial=0)
    return tuple(x.narrow(axis, start, size) for start, size in zip(starts, sizes, strict=False))


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """By one matrix as one product: `matmul` would repeat the matrix for each of the others."""
    if a.ndim < 3 or b.ndim != 2:
        return torch.matmul(a, b)
    return torch.mm(a.reshape(-1, a.shape[-1]), b).reshape([*a.shape[:-1], b.shape[-1]])


def _reshape(x: Value, shape: list[int]) -> Value:
    if not isinstance(x, Tensor):  # to one dimension
        return x if isinstance(x, list) else [x]
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


def _squeeze(x: Value, axes: list[int] | None = None) -> Value:
    if not isinstance(x, Tensor):
        return x[0]
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _range(start: Any, end: Any, step: Any, *, device: torch.device | None = None) -> Tensor:
    return torch.arange(start, end, step, device=device)


_DTYPES: dict[int, torch.dtype] = {
    getattr(onnx.TensorProto, ours): getattr(torch, theirs)
    for ours, theirs in (
        ("FLOAT", "float32"), ("FLOAT16", "float16"), ("BFLOAT16", "bfloat16"), ("DOUBLE", "float64"), ("BOOL", "bool"),
        ("UINT8", "uint8"), ("INT8", "int8"), ("INT16", "int16"), ("INT32", "int32"), ("INT64", "int64"),
    )
}  # fmt: skip


def _cast(x: Value, *, to: int) -> Value:
    dtype = _DTYPES[to]
    if isinstance(x, Tensor):
        return x.to(dtype)
    convert: Callable[[Any], Any] = torch.sym_float if dtype.is_floating_point else torch.sym_int
    return [convert(v) for v in x] if isinstance(x, list) else convert(x)


def _arithmetic(operation: Callable[[Any, Any], Any]) -> Callable[..., Value]:
    """An operator on tensors, and on numbers and lists of numbers in arithmetic on shapes."""

    def apply(a: Value, b: Value) -> Value:
        lists = [v for v in (a, b) if isinstance(v, list)]
        if not lists:
            return operation(a, b)
        if isinstance(a, Tensor) or isinstance(b, Tensor):  # with a tensor, a list of one is a number
            (one,) = lists[0]
            return operation(a, one) if isinstance(a, Tensor) else operation(one, b)
        count = max(map(len, lists))
        left, right = (v * (count // len(v)) if isinstance(v, list) else [v] * count for v in (a, b))
        return [operation(x, y) for x, y in zip(left, right, strict=True)]

    return apply


def _divide(a: Any, b: Any) -> Any:
    """Integers are rounded down, which is right as long as none is negative: sizes are not."""
    floats = (
        v.is_floating_point() if isinstance(v, Tensor) else isinstance(v, (float, torch.SymFloat)) for v in (a, b)
    )
    return a / b if any(floats) else a // b


OPERATORS: dict[str, Callable[..., Value]] = {
    "Abs": abs,
    "Add": _arithmetic(add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": lambda x, low=None, high=None: torch.clamp(x, low, high),
    "Concat": lambda *parts, axis: torch.cat(parts, axis) if isinstance(parts[0], Tensor) else reduce(add, parts),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _arithmetic(_divide),
    "HardSigmoid": lambda x, *, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "HardSwish": lambda x: F.hardswish(x),
    "Identity": lambda x: x,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _arithmetic(mul),
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Range": _range,
    "ReduceMean": lambda x, axes_=None, *, axes=None, keepdims=1: x.mean(axes or axes_, bool(keepdims)),
    "Relu": lambda x: F.relu(x),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": lambda x, *, start=0, end=None: list(x.shape)[start:end],
    "Sigmoid": lambda x: torch.sigmoid(x),
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _arithmetic(sub),
    "Transpose": lambda x, *, perm: x.permute(perm),
    "Unsqueeze": lambda x, axes: reduce(torch.unsqueeze, sorted(axes), x) if isinstance(x, Tensor) else [x],
}

SOME: dict[str, tuple[Any, ...]] = {"auto_pad": ("NOTSET", "", "SAME_UPPER"), "to": tuple(_DTYPES)}
"""Attributes that a function takes, with the values that it knows, where these are not all."""
ONLY: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("allowzero", "antialias", "ceil_mode", "exclude_outside", "extrapolation_value"), (0,)),
    **dict.fromkeys(("noop_with_empty_axes", "storage_order", "training_mode"), (0,)),
    "auto_pad": ("NOTSET", ""),
    "coordinate_transformation_mode": ("half_pixel",),
    "cubic_coeff_a": (-0.75,),
    "keep_aspect_ratio_policy": ("stretch",),
    "mode": ("linear",),
    "nearest_mode": ("round_prefer_floor", "floor"),
}
"""Attributes that no function takes, with the values that they may have."""
