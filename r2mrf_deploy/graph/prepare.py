"""What the converters need of a graph: every node has a name of its own, weights are initialisers, and nothing is hidden.

The converters tell nodes apart by their names and look for weights among the initialisers. Many exporters give no names,
write weights as Constant nodes, share one through an Identity, or put layers into local functions.
"""

from __future__ import annotations

from collections import Counter

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    NameFixPass,
    RemoveInitializersFromInputsPass,
)

from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.graph.nodes import load
from r2mrf_deploy.wording import count

_INITIALISERS_ALONE = 4
"""The first IR version in which an initialiser need not be an input too."""


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph as the converters need it. A graph that is prepared already keeps all its names.

    Weights that were also inputs, as older exporters write them, are no longer inputs.

    Raises:
        GraphError: the model is damaged, or has sparse weights.
    """
    kinds = {a.name for n in model.graph.node if standard(n, "Constant") for a in n.attribute}
    if model.graph.sparse_initializer or "sparse_value" in kinds:
        raise GraphError("the graph has sparse weights, which cannot be converted: make them dense")
    passes = (
        RemoveInitializersFromInputsPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        IdentityEliminationPass(),
        NameFixPass(_Names()),
    )
    done = ir.to_proto(ir.passes.Sequential(*passes)(load(model)).model)
    done.ir_version = max(done.ir_version, _INITIALISERS_ALONE)
    return done


class _Names:
    """A node without a name is called after its operator; a number makes the name its own."""

    def generate_node_name(self, node: ir.Node) -> str:
        return node.name or node.op_type

    def generate_value_name(self, value: ir.Value) -> str:
        return value.name or "value"


def standard(node: onnx.NodeProto, *operators: str) -> bool:
    """Whether a node is one of these operators of the ONNX standard, not one of another domain with the same name."""
    return node.op_type in operators and node.domain in ("", "ai.onnx")


def refuse_unnamed(model: onnx.ModelProto) -> None:
    """Refuse a graph whose nodes cannot be told apart by their names.

    Raises:
        GraphError: nodes have no name, or the same one.
    """
    (name, times), *_ = [*Counter(n.name for n in model.graph.node).most_common(1), ("", 0)]
    if times > 1 or (times and not name):
        raise GraphError(f"{name!r} is the name of {count(times, 'node')}: pass the graph through `prepared`")
