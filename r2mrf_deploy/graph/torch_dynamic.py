"""An INT8 graph as a PyTorch module that finds the range of each activation in the image at hand.

Runtimes for phones multiply INT8 by INT8 in two ways. With ranges that are known beforehand, a kernel also rounds what it
computes, and our graphs do not: their Q/DQ pairs stand only before the nodes that read INT8. With ranges that are found in
each image, it returns floating point. So the weights, their scales and the nodes that stay in floating point are those of
the graph, and the ranges from its calibration are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401 (it defines the operators that exporters know INT8 by)

from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.graph.torch_module import OPERATORS, Operators, Value, to_module

_GROUPED = {"Conv": 1, "ConvTranspose": 0}
"""Convolution -> the axis of its weight that has one entry for each input channel of a group, or of all groups."""
_LOW, _HIGH = -128, 127
_NARROWEST = float(torch.finfo(torch.float32).eps)
"""The smallest scale, for an activation that is zero everywhere."""


def to_dynamic_module(model: onnx.ModelProto) -> nn.Module:
    """Turn a graph with Q/DQ pairs into a module, as `to_module` does.

    Convolutions read INT8 where the graph says so, except depthwise ones, which have no such kernels.

    Args:
        model: with its weights loaded, signed and symmetric.

    Raises:
        GraphError: an operator or the type of a weight is not supported.
    """
    return to_module(_by_channel(model), _operators())


@dataclass(frozen=True)
class _Rounded:
    """An activation that the graph rounds."""

    x: Tensor


@dataclass(frozen=True)
class _Weight:
    """A weight in INT8, with a scale for each channel along an axis."""

    values: Tensor
    scales: Tensor
    zeros: Tensor
    axis: int

    @property
    def x(self) -> Tensor:
        """In floating point."""
        return torch.ops.quantized_decomposed.dequantize_per_channel.default(
            self.values, self.scales, self.zeros, self.axis, _LOW, _HIGH, torch.int8
        )

    def depthwise(self, groups: int, axis: int) -> bool:
        """Whether each channel is read by itself; `axis`: see `_GROUPED`."""
        return groups > 1 and self.values.shape[axis] == (groups if axis == 0 else 1)


def _operators() -> Operators:
    convolutions = {name: _convolution(OPERATORS[name], axis) for name, axis in _GROUPED.items()}
    pairs: dict[str, Callable[..., Value]] = {"QuantizeLinear": _quantize, "DequantizeLinear": _dequantize}
    plain = {name: _plain(function) for name, function in OPERATORS.items()}
    return plain | convolutions | pairs | {"Concat": _concatenation(plain["Concat"])}


def _quantize(x: Value, scale: Value, zero: Value = None, *, axis: int = 1) -> _Rounded:
    return _Rounded(x)


def _dequantize(x: Value, scale: Value, zero: Value = None, *, axis: int = 1) -> Value:
    return x if isinstance(x, _Rounded) else _Weight(x, scale, zero, axis)


def _plain(function: Callable[..., Value]) -> Callable[..., Value]:
    """An operator that reads nothing rounded."""

    @functools.wraps(function)
    def computed(*inputs: Value, **attributes: Any) -> Value:
        return function(*(v.x if isinstance(v, _Rounded | _Weight) else v for v in inputs), **attributes)

    return computed


def _concatenation(function: Callable[..., Value]) -> Callable[..., Value]:
    """Parts that the graph rounds, by one scale, are one activation that it rounds."""

    @functools.wraps(function)
    def computed(*parts: Value, **attributes: Any) -> Value:
        whole = function(*parts, **attributes)
        return _Rounded(whole) if isinstance(parts[0], _Rounded) else whole

    return computed


def _convolution(function: Callable[..., Value], axis: int) -> Callable[..., Value]:
    @functools.wraps(function)
    def computed(x: Value, weight: Value, *bias: Value, group: int = 1, **attributes: Any) -> Value:
        if isinstance(x, _Rounded):
            x = _rounded(x.x) if isinstance(weight, _Weight) and not weight.depthwise(group, axis) else x.x
        return function(x, weight.x if isinstance(weight, _Weight) else weight, *bias, group=group, **attributes)

    return computed


def _rounded(x: Tensor) -> Tensor:
    """The activation in 8 bits, by its own range. Every reader rounds for itself: XNNPACK's graph would be cut otherwise."""
    q = torch.ops.quantized_decomposed
    scale, zero = q.choose_qparams.tensor(x, _LOW, _HIGH, _NARROWEST, torch.int8)
    eighth = q.quantize_per_tensor.tensor(x, scale, zero, _LOW, _HIGH, torch.int8)
    return q.dequantize_per_tensor.tensor(eighth, scale, zero, _LOW, _HIGH, torch.int8)


def _by_channel(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with a scale and a zero point for each channel of a weight, where it has one for all of them."""
    done = onnx.ModelProto()
    done.CopyFrom(model)
    constants = {i.name: numpy_helper.to_array(i) for i in done.graph.initializer}
    for node in done.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            continue
        weight, scale = constants[node.input[0]], constants[node.input[1]]
        zero = constants[node.input[2]] if len(node.input) > 2 else np.zeros((), weight.dtype)
        if weight.dtype != np.int8 or np.any(zero) or weight.ndim < 2:
            what = "only weights in signed, symmetric INT8 are supported"
            raise GraphError(f"{node.name or node.output[0]} cannot be turned into PyTorch: {what}")
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % weight.ndim if scale.ndim else 0
        channels = weight.shape[axis]
        names = [f"{node.output[0]}/scales", f"{node.output[0]}/zeros"]
        for name, array in zip(names, (np.broadcast_to(scale, channels), np.zeros(channels, np.int32)), strict=True):
            done.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        node.input[:] = [node.input[0], *names]
        del node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("axis", axis))
    read = {name for node in done.graph.node for name in node.input}
    kept = [i for i in done.graph.initializer if i.name in read]
    del done.graph.initializer[:]
    done.graph.initializer.extend(kept)
    return done
