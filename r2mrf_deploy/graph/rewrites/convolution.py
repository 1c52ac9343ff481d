"""Conv nodes in one form, whatever attributes they were written with, and the parts of a concatenation that they read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from r2mrf_deploy.graph.rewrites.editor import Draft, Editor, Reading, channels, operand


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
        """Whether each output pixel depends only on the input pixel at the same place: it then commutes with averages."""
        return set(self.kernel) == set(self.strides) == {1} and not self.padded

    @property
    def padded(self) -> bool:
        return any(self.pads) or self.auto_pad != "NOTSET"

    def attributes(self) -> dict[str, Any]:
        """The attributes of a Conv node, without defaults."""
        ones, zeros = (1,) * len(self.kernel), (0, 0) * len(self.kernel)
        defaults = {"strides": ones, "dilations": ones, "pads": zeros, "auto_pad": "NOTSET", "group": 1}
        rest = {name: getattr(self, name) for name, default in defaults.items() if getattr(self, name) != default}
        return {"kernel_shape": self.kernel, **rest}


@dataclass(frozen=True, eq=False)
class Convolution(Reading):
    """A Conv node with constant weights [M, C/group, ...] and a constant bias [M] or none."""

    weight: np.ndarray
    bias: np.ndarray | None
    geometry: Geometry

    @property
    def channels_out(self) -> int:
        return self.weight.shape[0]

    @property
    def channels_in(self) -> int:
        return self.weight.shape[1] * self.geometry.group

    @classmethod
    def of(cls, editor: Editor, node: ir.Node | None) -> Convolution | None:
        """Read a node; None if it is no Conv, or its weights or bias are not constant."""
        if node is None or not editor.has(node, "Conv"):
            return None
        weight, given = editor.constant(node.inputs[1]), operand(node, 2)
        bias = editor.constant(given)
        if weight is None or (given is not None and bias is None) or weight.ndim < 3:
            return None
        return cls(node, node.inputs[0], weight, bias, _geometry(node, weight.shape[2:]))

    def emit(
        self, draft: Draft, x: ir.Value, weight: np.ndarray, bias: np.ndarray | None, *, name: str, like: ir.Value
    ) -> ir.Value:
        """Draft a convolution with this geometry and other weights over `x`; see `Draft.op` for `like`."""
        inputs: list[ir.Value | None] = [x, draft.constant(weight, f"{name}/weight")]
        if bias is not None:
            inputs.append(draft.constant(bias, f"{name}/bias"))
        return draft.op("Conv", inputs, self.geometry.attributes(), name=name, like=like, channels=weight.shape[0])

    def emit_over(self, draft: Draft, parts: Sequence[Part], bias: np.ndarray | None, *, name: str) -> ir.Value:
        """Draft the convolution of some parts of the concatenation that this one reads."""
        x = parts[0].value
        if len(parts) > 1:
            width = sum(part.width for part in parts)
            values = [part.value for part in parts]
            x = draft.op("Concat", values, {"axis": 1}, name=f"{name}/concat", like=self.x, channels=width)
        weight = np.concatenate([self.weight[:, part.start : part.stop] for part in parts], axis=1)
        return self.emit(draft, x, weight, bias, name=name, like=self.out)


@dataclass(frozen=True)
class Part:
    """A range of the channels that a convolution reads: one input of a concatenation."""

    value: ir.Value
    start: int
    stop: int

    @property
    def width(self) -> int:
        return self.stop - self.start


def parts_of(conv: Convolution, concat: ir.Node) -> tuple[Part, ...] | str:
    """The parts of the concatenation that a convolution reads, or why they cannot be told apart."""
    if concat.attributes.get_int("axis", 0) not in (1, 1 - conv.weight.ndim):
        return "the concatenation is not along the channels"
    parts, at = [], 0
    for value in concat.inputs:
        width = channels(value)
        if width is None:
            return "a part's number of channels is not known"
        parts.append(Part(value, at, at + width))
        at += width
    return tuple(parts) if at == conv.channels_in else "the channels do not add up"


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
