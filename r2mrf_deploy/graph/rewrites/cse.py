"""Compute equal things once: nodes with the same operator, attributes and inputs, across all recurrent steps.

Constants are compared by content, so two copies of one weight are the same weight; a Conv is compared in its one form,
whichever defaults it spells out. Nodes that draw random numbers or hold a subgraph are left alone.
"""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir

from r2mrf_deploy.graph.cost import RANDOM
from r2mrf_deploy.graph.naming import common
from r2mrf_deploy.graph.rewrites.convolution import Convolution
from r2mrf_deploy.graph.rewrites.editor import Editor, Outcome

# a runtime looks for a pair of QuantizeLinear and DequantizeLinear of its own around each operator
_APART = RANDOM | {"Dropout", "QuantizeLinear", "DequantizeLinear"}
"""Operators whose nodes are never merged."""


def cse(editor: Editor) -> Outcome:
    """Let the first of equal nodes serve all of them."""
    first: dict[Hashable, ir.Node] = {}
    count, refusals = 0, []
    for node in list(editor.graph):
        key = _key(editor, node)
        if key is None:
            continue
        twin = first.setdefault(key, node)
        if twin is not node and node.op_type in _APART:
            refusals.append(f"{node.name} beside {twin.name}: each {node.op_type} is its own")
        elif twin is not node:
            names = [twin.name or "", node.name or ""]
            if common(names) != twin.name:
                twin.name = editor.fresh(common(names))
            editor.apply(editor.draft(), dict(zip(node.outputs, twin.outputs, strict=True)), before=node)
            count += 1
    return Outcome(count, tuple(refusals))


def _key(editor: Editor, node: ir.Node) -> Hashable | None:
    if node.domain != "" or not node.inputs:
        return None
    attributes = _attributes(editor, node)
    if attributes is None:
        return None
    inputs = tuple(None if value is None else editor.digest(value) or value for value in node.inputs)
    asked = tuple(bool(value.name) for value in node.outputs)
    return node.op_type, inputs, attributes, asked


def _attributes(editor: Editor, node: ir.Node) -> Hashable | None:
    conv = Convolution.of(editor, node)
    if conv is not None:
        return conv.geometry
    attributes = []
    for name, attr in sorted(node.attributes.items()):
        if attr.is_ref() or attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS, ir.AttributeType.TENSOR):
            return None
        value = attr.value
        attributes.append((name, tuple(value) if isinstance(value, (list, tuple)) else value))
    return tuple(attributes)
