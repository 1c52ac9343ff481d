"""Convolve before interpolating, whatever the kernel: every tap is a 1×1 convolution, and those commute with upsampling.

Conv k×k(up(x)) = sum over the taps (i, j) of shift_ij(up(W_ij x)). All W_ij together are one 1×1 convolution at x's own
resolution. Interpolation and shift of rows and columns are independent, so the rest is two small matrix products, with what
the border does (the convolution's zeros, the interpolation's clamping) in the matrices:

    y_m = sum_j (sum_i A_i z_mij) B_j^T,  A_i = S_i U  [H, h],  B_j = S_j U  [W, w]

with U the interpolation along an axis and S_i the shift of a tap. The sizes have to be known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from r2mrf_deploy.graph.rewrites.averaging import Averaging, averaging, operand
from r2mrf_deploy.graph.rewrites.convolution import Convolution, Geometry
from r2mrf_deploy.graph.rewrites.editor import Draft, Editor, Outcome, channels


@dataclass(frozen=True)
class Upsampled:
    """A part of what a convolution reads that was interpolated: its channels there, and what it was made from."""

    index: int | None
    """Its place in a concatenation; None where it is all that the convolution reads."""
    start: int
    stop: int
    resize: ir.Node

    @property
    def x(self) -> ir.Value:
        value = self.resize.inputs[0]
        assert value is not None
        return value


def interpolate_last(editor: Editor) -> Outcome:
    """Take upsampled parts out of convolutions, the largest first, where that pays."""
    attempts: list[str | None] = []
    for node in editor.nodes("Conv"):
        current: ir.Node | None = node
        while current is not None:
            conv = Convolution.of(editor, current)
            current, attempt = _first_that_pays(editor, conv) if conv is not None else (None, None)
            attempts.append(attempt)
    return Outcome.of(attempts)


def _first_that_pays(editor: Editor, conv: Convolution) -> tuple[ir.Node | None, str | None]:
    """The convolution of what is left, if any; "" where something was done, else why not."""
    if len(conv.geometry.kernel) != 2 or conv.geometry.pointwise:
        return None, None
    parts, refusal = _parts(editor, conv)
    if parts and conv.geometry.group != 1:
        return None, f"{conv.name} over {parts[0].resize.name}: the convolution has {conv.geometry.group} groups"
    if parts and conv.geometry.auto_pad != "NOTSET":
        return None, f"{conv.name} over {parts[0].resize.name}: the convolution is padded by auto_pad"
    for part in parts:
        matrices = _matrices(editor, part.resize, conv)
        if isinstance(matrices, str):
            refusal = f"{conv.name} over {part.resize.name}: {matrices}"
            continue
        draft = editor.draft()
        rest, total = _emit(draft, conv, part, *matrices)
        if editor.gain(draft, [conv.out]).pays:
            editor.apply(draft, {conv.out: total}, before=conv.node)
            return rest, ""
        draft.drop()
        refusal = f"{conv.name} over {part.resize.name}: it would cost more than it saves"
    return None, refusal


def _parts(editor: Editor, conv: Convolution) -> tuple[list[Upsampled], str | None]:
    """The interpolated parts, the widest first; and why one that is resized is none of them."""
    source = conv.x.producer()
    if source is None or source.graph is not editor.graph:
        return [], None
    resized: list[Upsampled] = []
    if source.op_type == "Resize":
        resized.append(Upsampled(None, 0, conv.channels_in, source))
    elif source.op_type == "Concat" and source.attributes.get_int("axis", 0) in (1, -3):
        at = 0
        for index, value in enumerate(source.inputs):
            width = channels(value)
            if value is None or width is None:
                return [], None
            producer = value.producer()
            if producer is not None and producer.op_type == "Resize":
                resized.append(Upsampled(index, at, at + width, producer))
            at += width
        if at != conv.channels_in:
            return [], None
    reasons = {part: _why_not_linear(editor, part.resize) for part in resized}
    refused = next((f"{conv.name} over {p.resize.name}: {why}" for p, why in reasons.items() if why), None)
    return sorted((p for p, why in reasons.items() if not why), key=lambda p: p.start - p.stop), refused


def _why_not_linear(editor: Editor, resize: ir.Node) -> str | None:
    """Why a Resize is not the linear interpolation between pixel centres that the matrices hold; None if it is."""
    known = averaging(editor, resize)
    if not isinstance(known, Averaging):
        return known or "the resizing is not one of this graph"
    if known.selects:
        return "the resizing is nearest"
    transformation = resize.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    return None if transformation == "half_pixel" else f"the resizing's coordinates are {transformation}"


def _matrices(editor: Editor, resize: ir.Node, conv: Convolution) -> tuple[np.ndarray, np.ndarray] | str:
    """A [H, kernel·h] and B [W, kernel·w] in float64, or why there are none."""
    before, after = _sides(resize.inputs[0]), _sides(resize.outputs[0])
    if before is None or after is None:
        return "the sizes are free, and the matrices depend on them"
    scales = operand(resize, 2)
    if scales is not None:
        factors = editor.constant(scales)
        if factors is None:
            return "the scales are not constant"
        axes = resize.attributes.get_ints("axes", range(4))
        of_axis = dict(zip((axis % 4 for axis in axes), map(float, factors), strict=True))
        if any(n * of_axis.get(axis, 1.0) != m for axis, n, m in zip((2, 3), before, after, strict=True)):
            return "the scales do not give whole sizes"
    rows, columns = (
        _taps(_interpolation(n, m), conv.geometry, axis) for axis, (n, m) in enumerate(zip(before, after, strict=True))
    )
    return rows, columns


def _sides(value: ir.Value | None) -> tuple[int, ...] | None:
    """Height and width where both are known."""
    if value is None or value.shape is None or len(value.shape) != 4:
        return None
    sides = tuple(dim for dim in list(value.shape)[2:] if isinstance(dim, int))
    return sides if len(sides) == 2 else None


def _interpolation(n: int, m: int) -> np.ndarray:
    """The weights [m, n] of m pixels in terms of n: linear, half-pixel centres, clamped at the border."""
    at = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)))


def _taps(interpolation: np.ndarray, geometry: Geometry, axis: int) -> np.ndarray:
    """[outputs, kernel · n]: for every tap, the interpolation shifted to where it reads; zero beyond the border."""
    m, n = interpolation.shape
    kernel, stride, dilation = geometry.kernel[axis], geometry.strides[axis], geometry.dilations[axis]
    begin, end = geometry.pads[axis], geometry.pads[axis + 2]
    outputs = (m + begin + end - dilation * (kernel - 1) - 1) // stride + 1
    padded = np.zeros((m + begin + end, n))
    padded[begin : begin + m] = interpolation
    reads = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation
    return padded[reads].reshape(outputs, kernel * n)


def _emit(
    draft: Draft, conv: Convolution, part: Upsampled, rows: np.ndarray, columns: np.ndarray
) -> tuple[ir.Node | None, ir.Value]:
    """Draft the convolution of the rest, if there is one, and the whole result."""
    dtype, name = conv.weight.dtype, conv.name
    out, (taps_y, taps_x) = conv.channels_out, conv.geometry.kernel
    h, w = rows.shape[1] // taps_y, columns.shape[1] // taps_x
    # channels in the order (output, j, i): a tap's rows then lie one below the other
    weight = conv.weight[:, part.start : part.stop].transpose(0, 3, 2, 1).reshape(-1, part.stop - part.start, 1, 1)
    z = draft.op("Conv", [part.x, draft.constant(weight, f"{name}/taps/weight")], name=f"{name}/taps")
    z = _reshaped(draft, z, [0, out * taps_x, taps_y * h, w], f"{name}/rows")
    z = draft.op("MatMul", [draft.constant(rows.astype(dtype), f"{name}/rows/matrix"), z], name=f"{name}/rows")
    z = _reshaped(draft, z, [-1, taps_x, len(rows), w], f"{name}/columns")  # batch and channels on one axis
    z = draft.op("Transpose", [z], {"perm": [0, 2, 1, 3]}, name=f"{name}/columns/turned")
    z = _reshaped(draft, z, [-1, out, len(rows), taps_x * w], f"{name}/columns/joined")
    matrix = draft.constant(np.ascontiguousarray(columns.T).astype(dtype), f"{name}/columns/matrix")
    z = draft.op("MatMul", [z, matrix], name=f"{name}/columns/sum", like=conv.out)
    if part.index is None:
        if conv.bias is None:
            return None, z
        bias = draft.constant(conv.bias.reshape(1, -1, 1, 1), f"{name}/bias")
        return None, draft.op("Add", [z, bias], name=f"{name}/biased", like=conv.out)
    rest = _rest(draft, conv, part)
    return rest.producer(), draft.op("Add", [rest, z], name=f"{name}/sum", like=conv.out)


def _rest(draft: Draft, conv: Convolution, part: Upsampled) -> ir.Value:
    """The convolution of the other parts, with the bias."""
    concat = conv.x.producer()
    assert concat is not None
    others = [value for index, value in enumerate(concat.inputs) if index != part.index]
    count = conv.channels_in - (part.stop - part.start)
    x = others[0]
    if len(others) > 1:
        x = draft.op("Concat", others, {"axis": 1}, name=f"{conv.name}/rest/concat", like=conv.x, channels=count)
    assert x is not None
    weight = np.delete(conv.weight, np.s_[part.start : part.stop], axis=1)
    return conv.emit(draft, x, weight, conv.bias, name=f"{conv.name}/rest", like=conv.out)


def _reshaped(draft: Draft, x: ir.Value, shape: list[int], name: str) -> ir.Value:
    sizes = draft.constant(np.array(shape, np.int64), f"{name}/shape")
    return draft.op("Reshape", [x, sizes], name=f"{name}/reshaped")
