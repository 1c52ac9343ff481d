"""Merge convolutions of one tensor with the same geometry into a wider convolution and a split of its output.

The arithmetic is the same, but the tensor is read once instead of once per convolution, and a wide convolution uses a
processor better. The split copies the outputs, so merging pays if the input is larger than the outputs.
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
    """Merge; returns "" if that was done, else why not."""
    names = f"{', '.join(conv.name for conv in convs)} of {convs[0].x.name}"
    if convs[0].geometry.group != 1:
        return f"{names}: the convolutions are grouped"
    first, draft = convs[0], editor.draft()
    bias = None
    if any(conv.bias is not None for conv in convs):
        zero = first.weight.dtype.type(0)
        bias = np.concatenate([np.full(c.channels_out, zero) if c.bias is None else c.bias for c in convs])
    weight = np.concatenate([conv.weight for conv in convs])
    name = common([conv.name for conv in convs])
    wide = first.emit(draft, first.x, weight, bias, name=f"{name}/merged", like=first.out)
    widths = [conv.channels_out for conv in convs]
    sizes = draft.constant(np.array(widths, np.int64), f"{name}/widths")
    parts = draft.ops("Split", [wide, sizes], {"axis": 1}, name=f"{name}/split", like=first.out, channels=widths)
    replacements = {conv.out: part for conv, part in zip(convs, parts, strict=True)}
    applied = editor.apply_if_it_pays(draft, replacements, before=first.node).pays
    return "" if applied else f"{names}: splitting the output would cost more than reading the input once saves"
