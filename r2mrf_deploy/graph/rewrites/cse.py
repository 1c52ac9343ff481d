"""Compute equal nodes once: nodes with the same operator, attributes and inputs, across all recurrent steps.

Constants are compared by content, so two copies of one weight are the same weight. Conv nodes are compared by geometry,
whether or not they spell out defaults. Nodes that draw random numbers are left alone, and those with other attributes
than numbers and strings, such as subgraphs.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import onnx_ir as ir

from r2mrf_deploy.graph.inference import RANDOM
from r2mrf_deploy.graph.naming import common
from r2mrf_deploy.graph.rewrites.convolution import Convolution
from r2mrf_deploy.graph.rewrites.editor import Editor, Outcome

_COMPARABLE = frozenset(
    getattr(ir.AttributeType, kind + many) for kind in ("INT", "FLOAT", "STRING") for many in ("", "S")
)
# runtimes look for a separate pair of QuantizeLinear and DequantizeLinear around each operator
_APART = RANDOM | {"Dropout", "QuantizeLinear", "DequantizeLinear"}
"""Operators whose nodes are never merged."""


def cse(editor: Editor) -> Outcome:
    """Let the first of several equal nodes serve all their readers."""
    first: dict[Hashable, ir.Node] = {}
    count, refusals = 0, []
    for node in list(editor.graph):
        key = _key(editor, node)
        if key is None:
            continue
        twin = first.setdefault(key, node)
        if twin is not node and node.op_type in _APART:
            refusals.append(f"{node.name} beside {twin.name}: nodes of {node.op_type} are never merged")
        elif twin is not node:
            name = common([twin.name, node.name])
            if name != twin.name:
                twin.name = editor.fresh(name)
            editor.apply(editor.draft(), dict(zip(node.outputs, twin.outputs, strict=True)), before=node)
            count += 1
    return Outcome(count, tuple(refusals))


def _key(editor: Editor, node: ir.Node) -> Hashable | None:
    """What equal nodes have in common; None for a node that is not compared."""
    comparable = all(attr.type in _COMPARABLE for attr in node.attributes.values())
    if not editor.knows(node) or not node.inputs or not comparable:
        return None
    conv = Convolution.of(editor, node)
    attributes = frozenset((name, _hashable(attr.value)) for name, attr in node.attributes.items())
    inputs = tuple(None if value is None else editor.digest(value) or value for value in node.inputs)
    used = tuple(bool(value.name) for value in node.outputs)
    return node.op_type, inputs, attributes if conv is None else conv.geometry, used


def _hashable(value: Any) -> Hashable:
    return tuple(value) if isinstance(value, (list, tuple)) else value
