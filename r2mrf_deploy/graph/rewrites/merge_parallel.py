"""Merge convolutions of one tensor with one geometry into a wider convolution and a split of its output.

The arithmetic is the same; the tensor is read once instead of once for each, and a wide convolution fills a processor
better. The split costs a copy of the outputs, so it pays where the input is larger than the outputs.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_ir as ir

from r2mrf_deploy.graph.naming import common
from r2mrf_deploy.graph.rewrites.convolution import Convolution, Geometry
from r2mrf_deploy.graph.rewrites.editor import Editor, Outcome


def merge_parallel(editor: Editor) -> Outcome:
    """Merge each set of parallel convolutions where that pays."""
    parallel: dict[tuple[ir.Value, Geometry, np.dtype], list[Convolution]] = defaultdict(list)
    for node in editor.nodes("Conv"):
        conv = Convolution.of(editor, node)
        if conv is not None:
            parallel[conv.x, conv.geometry, conv.weight.dtype].append(conv)
    return Outcome.of(
        _merge(editor, [now for conv in convs if (now := Convolution.of(editor, conv.node)) is not None])
        for convs in parallel.values()
        if len(convs) > 1
    )


def _merge(editor: Editor, convs: list[Convolution]) -> str:
    """Merge; "" where it was done, else why not."""
    names = f"{', '.join(conv.name for conv in convs)} of {convs[0].x.name}"
    if convs[0].geometry.group != 1:
        return f"{names}: grouped convolutions"
    first, draft = convs[0], editor.draft()
    bias = None
    if any(conv.bias is not None for conv in convs):
        none = [np.zeros(conv.channels_out, conv.weight.dtype) for conv in convs]
        bias = np.concatenate([n if conv.bias is None else conv.bias for conv, n in zip(convs, none, strict=True)])
    weight = np.concatenate([conv.weight for conv in convs])
    name = common([conv.name for conv in convs])
    wide = first.emit(draft, first.x, weight, bias, name=f"{name}/merged", like=first.out)
    widths = [conv.channels_out for conv in convs]
    sizes = draft.constant(np.array(widths, np.int64), f"{name}/widths")
    parts = draft.ops("Split", [wide, sizes], {"axis": 1}, name=f"{name}/split", like=first.out, channels=widths)
    outs = [conv.out for conv in convs]
    if not editor.gain(draft, outs).pays:
        draft.drop()
        return f"{names}: splitting the output would cost more than reading the input once saves"
    editor.apply(draft, dict(zip(outs, parts, strict=True)), before=first.node)
    return ""
