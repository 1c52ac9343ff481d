"""Which operators the rewrites know: the standard ones, in the versions and with the attributes they were written for.

An operator of another domain may have a standard name and compute something else. A version that came after this file may
mean something else under the old name, and an attribute that the standard does not have may change what the node computes
(ONNX's checker lets names through that begin with two underscores).
"""

from __future__ import annotations

from functools import cache

import onnx
import onnx_ir as ir

LATEST = 28
"""The opset up to which the standard was read: an operator that changed later is not known."""


def is_known(node: ir.Node, opset: int) -> bool:
    """Whether a node's operator is a standard one that is known at this opset, with all the attributes that the node has."""
    if node.domain != "":
        return False
    attributes = _attributes(node.op_type, opset)
    return attributes is not None and all(name in attributes for name in node.attributes)


@cache
def _attributes(op_type: str, opset: int) -> frozenset[str] | None:
    """The attributes of a standard operator; None if it is not known."""
    if opset > onnx.defs.onnx_opset_version():  # the installed onnx cannot tell what changed up to there
        return None
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    return frozenset(schema.attributes) if schema.since_version <= LATEST and not schema.deprecated else None
