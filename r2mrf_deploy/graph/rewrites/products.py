"""Write products with constant matrices as 1×1 convolutions, for a builder that has no FP32 matrix product.

A matrix that multiplies the rows or the columns of a map [N, C, H, W] is a 1×1 convolution once that axis is in the place
of the channels; moving it there and back is exact. That costs two transpositions, so the pipeline does not do it. Only a
build with TensorRT-RTX for Turing (7.5) does: for these GPUs it compiles convolutions in FP32, but no GEMM.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from r2mrf_deploy.graph.rewrites.editor import Editor, Outcome

_TURNS = {0: ([0, 2, 1, 3], [0, 2, 1, 3]), 1: ([0, 3, 1, 2], [0, 2, 3, 1])}
"""The matrix's place among the inputs -> the permutation that moves the axis to the channels, and the one back."""


def convolve_products(editor: Editor) -> Outcome:
    """Replace every FP32 MatMul of a map and a constant matrix, whatever it costs; other products stay."""
    count = 0
    for node in editor.nodes("MatMul"):
        for place in _TURNS:
            matrix, x = editor.constant(node.inputs[place]), node.inputs[1 - place]
            is_matrix = matrix is not None and matrix.ndim == 2 and matrix.dtype == np.float32
            if matrix is not None and is_matrix and x.shape is not None and len(x.shape) == 4:
                _replace(editor, node, place, x, matrix)
                count += 1
                break
    return Outcome(count)


def _replace(editor: Editor, node: ir.Node, place: int, x: ir.Value, matrix: np.ndarray) -> None:
    kernel = (matrix if place == 0 else matrix.T)[:, :, None, None]
    there, back = _TURNS[place]
    draft, name, out = editor.draft(), node.name, node.outputs[0]
    turned = draft.op("Transpose", [x], {"perm": there}, name=f"{name}/turned")
    weight = draft.constant(kernel, f"{name}/kernel")
    product = draft.op("Conv", [turned, weight], {"kernel_shape": [1, 1]}, name=f"{name}/convolution")
    returned = draft.op("Transpose", [product], {"perm": back}, name=f"{name}/returned", like=out)
    editor.apply(draft, {out: returned}, before=node)
