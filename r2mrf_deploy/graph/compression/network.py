"""A graph as compression changes it: its nodes, who reads what, and its weights as arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from r2mrf_deploy.graph.precision import tidied
from r2mrf_deploy.graph.prepare import standard


class Network:
    """A prepared FP32 model (see `prepare`), whose nodes may be changed. The given model is not.

    Attributes:
        nodes: in the graph's order; sorted again by `model`.
        makers: tensor -> the node that computes it.
        readers: tensor -> (node, input slot) of everything that reads it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._frame = onnx.ModelProto()
        self._frame.CopyFrom(model)
        self.nodes = list(self._frame.graph.node)
        self._weights = {i.name: i for i in self._frame.graph.initializer}
        self._arrays: dict[str, np.ndarray] = {}
        self.outputs = {v.name for v in model.graph.output}
        self._channels = {
            v.name: _channels(v) for v in (*model.graph.input, *model.graph.value_info, *model.graph.output)
        }
        self._parts: dict[tuple[str, bytes, int], str] = {}
        self.index()

    def index(self) -> None:
        """Take in changed nodes."""
        self.makers = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in self.nodes:
            for slot, name in enumerate(_reads(node)):
                self.readers.setdefault(name, []).append((node, slot))

    def named(self, name: str) -> onnx.NodeProto:
        """The node called `name`."""
        return next(node for node in self.nodes if node.name == name)

    def channels(self, tensor: str) -> int | None:
        """The channels of a tensor [N, C, H, W]; None if they are not known."""
        return self._channels.get(tensor)

    def set_channels(self, tensor: str, count: int) -> None:
        """Say that a tensor has another number of channels now."""
        self._channels[tensor] = count

    def part(self, name: str, kept: np.ndarray, axis: int) -> str:
        """The name of a constant's part, the same for every node that asks for the same."""
        key = (name, kept.tobytes(), axis)
        if key not in self._parts:
            array = self.constant(name)
            assert array is not None
            self._parts[key] = self.add_constant(f"{name}/part", array.take(kept, axis))
        return self._parts[key]

    def prune(self) -> None:
        """Remove the nodes that no output needs."""
        needed = set(self.outputs)
        for node in reversed(self.nodes):
            if needed & set(node.output):
                needed.update(_reads(node))
        self.nodes = [node for node in self.nodes if needed & set(node.output)]
        self.index()

    def constant(self, name: str) -> np.ndarray | None:
        """The array of an initialiser; None for any other tensor."""
        if name not in self._arrays and name in self._weights:
            self._arrays[name] = onnx.numpy_helper.to_array(self._weights[name])
        return self._arrays.get(name)

    def add_constant(self, name: str, array: np.ndarray) -> str:
        """A new initialiser, called `name` or, where that is taken, with a number after it."""
        chosen, number = name, 1
        while chosen in self._weights or chosen in self.makers:
            chosen, number = f"{name}_{number}", number + 1
        self._weights[chosen] = onnx.numpy_helper.from_array(np.ascontiguousarray(array), chosen)
        return chosen

    def convolutions(self) -> Iterator[Convolution]:
        """Those of two dimensions with constant weights, in the graph's order."""
        for node in self.nodes:
            found = self.convolution(node)
            if found is not None:
                yield found

    def convolution(self, node: onnx.NodeProto | None) -> Convolution | None:
        """A node as a convolution; None if it is none of those."""
        if node is None or not standard(node, "Conv"):
            return None
        weight = self.constant(node.input[1])
        bias = self.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if weight is None or weight.ndim != 4 or (len(node.input) > 2 and node.input[2] and bias is None):
            return None
        return Convolution(node, weight, bias)

    def model(self) -> onnx.ModelProto:
        """The changed graph, without what nothing reads, checked and with its shapes inferred.

        Raises:
            GraphError: it is not valid ONNX.
        """
        made = onnx.ModelProto()
        made.CopyFrom(self._frame)
        del made.graph.node[:], made.graph.initializer[:]
        made.graph.node.extend(self.nodes)
        read = {name for node in self.nodes for name in _reads(node)}
        made.graph.initializer.extend(w for name, w in self._weights.items() if name in read)
        return tidied(made)


def _reads(node: onnx.NodeProto) -> list[str]:
    """The inputs of a node in their slots, and after them what its subgraphs read."""
    found = list(node.input)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            found += [name for inner in graph.node for name in _reads(inner)]
    return found


def _channels(value: onnx.ValueInfoProto) -> int | None:
    dims = value.type.tensor_type.shape.dim
    return dims[1].dim_value or None if len(dims) == 4 else None


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution with weights [M, C / group, h, w] and a bias [M] or none."""

    node: onnx.NodeProto
    weight: np.ndarray
    bias: np.ndarray | None

    @cached_property
    def attributes(self) -> dict[str, Any]:
        return {a.name: onnx.helper.get_attribute_value(a) for a in self.node.attribute}

    @property
    def group(self) -> int:
        return int(self.attributes.get("group", 1))

    @property
    def depthwise(self) -> bool:
        return self.group > 1 and self.weight.shape[1] == 1 and self.weight.shape[0] == self.group

    @property
    def kernel(self) -> tuple[int, int]:
        return self.weight.shape[2], self.weight.shape[3]

    @property
    def pointwise(self) -> bool:
        """Whether each output pixel reads one input pixel, and no padding."""
        return self.kernel == (1, 1) and not any(self.attributes.get("pads", ()))
