"""A Conv node read into one form, whatever attributes it was written with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from r2mrf_deploy.graph.rewrites.editor import Draft, Editor


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input: everything but its weights."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    """Begins, then ends; zeros where `auto_pad` decides."""
    auto_pad: str
    """NOTSET, SAME_UPPER or SAME_LOWER; VALID is zero padding."""
    group: int

    @property
    def pointwise(self) -> bool:
        """Each output pixel is a function of the input pixel at the same place: it commutes with spatial averages."""
        return set(self.kernel) == set(self.strides) == {1} and not self.padded

    @property
    def padded(self) -> bool:
        return any(self.pads) or self.auto_pad != "NOTSET"

    def attributes(self) -> dict[str, Any]:
        """As a Conv node has them; what is the default is left out."""
        rank = len(self.kernel)
        attributes: dict[str, Any] = {"kernel_shape": list(self.kernel)}
        if self.strides != (1,) * rank:
            attributes["strides"] = list(self.strides)
        if self.dilations != (1,) * rank:
            attributes["dilations"] = list(self.dilations)
        if any(self.pads):
            attributes["pads"] = list(self.pads)
        if self.auto_pad != "NOTSET":
            attributes["auto_pad"] = self.auto_pad
        if self.group != 1:
            attributes["group"] = self.group
        return attributes


@dataclass(frozen=True, eq=False)
class Convolution:
    """A Conv node with constant weights [M, C/group, ...] and a constant bias [M] or none."""

    node: ir.Node
    x: ir.Value
    weight: np.ndarray
    bias: np.ndarray | None
    geometry: Geometry

    @property
    def out(self) -> ir.Value:
        return self.node.outputs[0]

    @property
    def name(self) -> str:
        return self.node.name or self.out.name or "Conv"

    @property
    def channels_out(self) -> int:
        return self.weight.shape[0]

    @property
    def channels_in(self) -> int:
        return self.weight.shape[1] * self.geometry.group

    @classmethod
    def of(cls, editor: Editor, node: ir.Node | None) -> Convolution | None:
        """Read a node; None where it is no Conv, or its weights or bias are not constants."""
        if node is None or node.op_type != "Conv" or node.domain != "" or node.graph is not editor.graph:
            return None
        x = node.inputs[0]
        weight = editor.constant(node.inputs[1])
        given = node.inputs[2] if len(node.inputs) > 2 else None
        bias = editor.constant(given)
        if x is None or weight is None or (given is not None and bias is None) or weight.ndim < 3:
            return None
        return cls(node, x, weight, bias, _geometry(node, weight.shape[2:]))

    def emit(
        self, draft: Draft, x: ir.Value, weight: np.ndarray, bias: np.ndarray | None, *, name: str, like: ir.Value
    ) -> ir.Value:
        """A convolution of the same geometry over another tensor or with other weights, into a draft.

        Args:
            like: a tensor with the output's declared shape, up to its channels.
        """
        inputs: list[ir.Value | None] = [x, draft.constant(weight, f"{name}/weight")]
        if bias is not None:
            inputs.append(draft.constant(bias, f"{name}/bias"))
        return draft.op("Conv", inputs, self.geometry.attributes(), name=name, like=like, channels=int(weight.shape[0]))


def _geometry(node: ir.Node, kernel: Sequence[int]) -> Geometry:
    attributes, rank = node.attributes, len(kernel)
    auto_pad = attributes.get_string("auto_pad", "NOTSET")
    pads = tuple(attributes.get_ints("pads", [0] * (2 * rank))) if auto_pad == "NOTSET" else (0,) * (2 * rank)
    # SAME pads max((ceil(n / s) - 1) * s + k - n, 0) in all, which is 0 for k = 1
    unpadded = auto_pad == "VALID" or math.prod(kernel) == 1
    return Geometry(
        kernel=tuple(kernel),
        strides=tuple(attributes.get_ints("strides", [1] * rank)),
        dilations=tuple(attributes.get_ints("dilations", [1] * rank)),
        pads=pads,
        auto_pad="NOTSET" if unpadded else str(auto_pad),
        group=int(attributes.get_int("group", 1)),
    )
