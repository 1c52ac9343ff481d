"""How much of a graph really computes in the precision that was asked for.

A converter that finds nothing to convert reports success. What it did is in the types of the graph that it wrote.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from r2mrf_deploy.graph.cost import node_multiply_adds
from r2mrf_deploy.graph.inference import Shapes, Types, infer
from r2mrf_deploy.graph.rewrites.pipeline import nominal_shapes

_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Achieved:
    """The multiply-adds of a graph by the types that they are computed in."""

    precision: str
    multiply_adds: int
    others: dict[str, int]
    """The nodes whose multiply-adds are not in the precision, with their multiply-adds, the most costly first."""

    @property
    def share(self) -> float:
        """The part of the multiply-adds that is in the precision, 0 to 1."""
        return 1 - sum(self.others.values()) / max(self.multiply_adds, 1)

    def unexplained(self, kept: Collection[str]) -> dict[str, int]:
        """The `others` that were not to be kept."""
        return {name: count for name, count in self.others.items() if name not in kept}


def achieved(model: onnx.ModelProto, precision: str, shapes: Shapes | None = None) -> Achieved:
    """What share of the multiply-adds is in a precision.

    A node counts if both of its factors are of the type; for INT8, if both come from a DequantizeLinear, which a runtime
    fuses into it.

    Args:
        model: any ONNX model.
        precision: fp16, bf16 or int8.
        shapes: of the inputs; a free dimension without one has a nominal size.

    Raises:
        GraphError: a shape cannot be known.
    """
    loaded, types = infer(model, {**nominal_shapes(model), **(shapes or {})})
    costs = {node: node_multiply_adds(node, types) for node in loaded.graph}
    others = {n.name or "": c for n, c in costs.items() if c and not _computes_in(n, precision, types)}
    dearest = dict(sorted(others.items(), key=lambda item: -item[1]))
    return Achieved(precision, sum(costs.values()), dearest)


def _computes_in(node: ir.Node, precision: str, types: Types) -> bool:
    factors = [value for value in node.inputs[:2] if value is not None]
    if precision == "int8":
        makers = [value.producer() for value in factors]
        return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
    return all(types[value].dtype == _TYPES[precision] for value in factors)
