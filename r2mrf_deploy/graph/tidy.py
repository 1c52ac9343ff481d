"""Tidies the graph that PyTorch's exporter writes: constants folded, batch norms in their convolutions, equal nodes shared.

These are the passes that the exporter would run itself, in its order, but with the few of onnxscript's rules that find
something in a detector. The exporter tries some forty on every node, which takes longer than to write the graph.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

_MOST_ROUNDS = 2
"""As the exporter does: the second finds what the first has prepared."""


def tidy(model: ir.Model) -> None:
    """Tidy a graph as it comes from `torch.onnx.export(..., optimize=False)`, in place."""
    from onnxscript.optimizer import fold_constants_ir
    from onnxscript.rewriter import RewritePass
    from onnxscript.rewriter.rules import common as rules

    found = RewritePass(
        [
            *(rules.fuse_batchnorm_into_conv_rule, rules.fuse_batchnorm_into_conv_transpose_rule),
            *(rules.remove_optional_bias_from_conv_rule, rules.remove_optional_bias_from_conv_transpose_rule),
        ]
    )
    common.InlinePass()(model)
    unused = (common.RemoveUnusedNodesPass(), common.RemoveUnusedFunctionsPass(), common.RemoveUnusedOpsetsPass())
    for _ in range(_MOST_ROUNDS):
        modified = bool(fold_constants_ir(model, onnx_shape_inference=True).modified)
        for step in (found, *unused):
            modified |= bool(step(model).modified)
        if not modified:
            break
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def foldable(graph: ir.Graph) -> set[ir.Value]:
    """The initialisers from which nodes compute constants: who folds these needs their values."""
    constant = set(graph.initializers.values())
    found: set[ir.Value] = set()
    for node in graph:
        read = [value for value in node.inputs if value is not None]
        if read and constant.issuperset(read):
            constant.update(node.outputs)
            found.update(value for value in read if value.is_initializer())
    return found
