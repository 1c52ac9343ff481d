"""Convolve before interpolating, whatever the kernel: every tap is a 1×1 convolution, and those commute with upsampling.

Conv k×k(up(x)) = sum over the taps (i, j) of shift_ij(up(W_ij x)). All W_ij together are one 1×1 convolution at x's own
resolution. Rows and columns are interpolated and shifted independently, so the rest is two small matrix products. The
matrices include the treatment of the border (zeros for the convolution, clamping for the interpolation):

    y_m = sum_j (sum_i A_i z_mij) B_j^T,  A_i = S_i U  [H, h],  B_j = S_j U  [W, w]

with U the interpolation along an axis and S_i the shift of a tap. The sizes must be static.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from r2mrf_deploy.graph.rewrites.averaging import Averaging, averaging, keeps
from r2mrf_deploy.graph.rewrites.convolution import Convolution, Geometry, Part, parts_of
from r2mrf_deploy.graph.rewrites.editor import Draft, Editor, Outcome, operand
from r2mrf_deploy.graph.rewrites.rounding import rounded


def interpolate_last(editor: Editor) -> Outcome:
    """Take upsampled parts out of convolutions, the widest first, where that pays."""
    attempts: list[str | None] = []
    for node in editor.nodes("Conv"):
        current: ir.Node | None = node
        while current is not None:
            conv = Convolution.of(editor, current)
            current, attempt = _first_that_pays(editor, conv) if conv is not None else (None, None)
            attempts.append(attempt)
    return Outcome.of(attempts)


def _first_that_pays(editor: Editor, conv: Convolution) -> tuple[ir.Node | None, str | None]:
    """The convolution that is left, if any; and "" if something was done, else why not, or None if nothing matched."""
    if len(conv.geometry.kernel) != 2 or conv.geometry.pointwise:
        return None, None
    parts, refusal = _parts(editor, conv), None
    resized = [part for part in parts if editor.has(part.value.producer(), "Resize")]
    for part in sorted(resized, key=lambda part: -part.width):
        resize = part.value.producer()
        matrices = _why_not(editor, resize, conv) or _matrices(editor, resize, conv)
        if isinstance(matrices, str):
            refusal = f"{conv.name} over {resize.name}: {matrices}"
            continue
        draft = editor.draft()
        rest, total = _emit(draft, conv, part, [other for other in parts if other is not part], *matrices)
        if editor.apply_if_it_pays(draft, {conv.out: total}, before=conv.node).pays:
            return rest, ""
        refusal = f"{conv.name} over {resize.name}: it would cost more than it saves"
    return None, refusal


def _parts(editor: Editor, conv: Convolution) -> tuple[Part, ...]:
    """The parts of what a convolution reads; none if they cannot be told apart."""
    source = conv.x.producer()
    if not editor.has(source, "Concat"):
        return (Part(conv.x, 0, conv.channels_in),)
    parts = parts_of(conv, source)
    return () if isinstance(parts, str) else parts


def _why_not(editor: Editor, resize: ir.Node, conv: Convolution) -> str | None:
    """Why the matrices cannot express this pair; None if they can."""
    if conv.geometry.group != 1:
        return f"the convolution has {conv.geometry.group} groups"
    if conv.geometry.auto_pad != "NOTSET":
        return "the convolution is padded by auto_pad"
    known = averaging(editor, resize)
    if not isinstance(known, Averaging):
        return known
    if known.selects:
        return "the resizing's mode is nearest"
    if not keeps(editor, resize, axis=0):
        return "the resizing may change the batch"
    transformation = resize.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    return None if transformation == "half_pixel" else f"the resizing's coordinates are {transformation}"


def _matrices(editor: Editor, resize: ir.Node, conv: Convolution) -> list[np.ndarray] | str:
    """A [H, kernel·h] and B [W, kernel·w] in the type of the weights, or why they cannot be made."""
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
    rows, columns = (_interpolation(n, m) for n, m in zip(before, after, strict=True))
    return rounded(conv.weight.dtype, _taps(rows, conv.geometry, 0), _taps(columns, conv.geometry, 1))


def _sides(value: ir.Value) -> tuple[int, ...] | None:
    """Height and width if both are static."""
    if value.shape is None or len(value.shape) != 4:
        return None
    sides = value.shape[2:]
    return sides if all(isinstance(side, int) for side in sides) else None


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
    draft: Draft, conv: Convolution, part: Part, others: list[Part], rows: np.ndarray, columns: np.ndarray
) -> tuple[ir.Node | None, ir.Value]:
    """Draft the convolution of the other parts, if there are any, and the whole result."""
    name, out, (taps_y, taps_x) = conv.name, conv.channels_out, conv.geometry.kernel
    h, w = rows.shape[1] // taps_y, columns.shape[1] // taps_x
    x = part.value.producer().inputs[0]
    # channels in the order (output, j, i), so that a tap's rows lie one below the other
    weight = conv.weight[:, part.start : part.stop].transpose(0, 3, 2, 1).reshape(-1, part.width, 1, 1)
    z = draft.op("Conv", [x, draft.constant(weight, f"{name}/taps/weight")], name=f"{name}/taps")
    z = _product(draft, z, [0, out * taps_x, taps_y, h, w], rows, name=f"{name}/rows")
    z = _product(draft, z, [0, out, taps_x, w, len(rows)], columns, name=f"{name}/columns", like=conv.out)
    if others:
        rest = conv.emit_over(draft, others, conv.bias, name=f"{name}/rest")
        return rest.producer(), draft.op("Add", [rest, z], name=f"{name}/sum", like=conv.out)
    if conv.bias is None:
        return None, z
    bias = draft.constant(conv.bias.reshape(1, -1, 1, 1), f"{name}/bias")
    return None, draft.op("Add", [z, bias], name=f"{name}/biased", like=conv.out)


def _product(
    draft: Draft, x: ir.Value, shape: list[int], matrix: np.ndarray, *, name: str, like: ir.Value | None = None
) -> ir.Value:
    """Read `x` as [batch, channels, taps, n, rest] and multiply it along taps and n by a matrix [m, taps · n].

    The result is [batch, channels, rest, m]. The batch, written as 0, may be free or empty. ONNX Runtime multiplies an
    empty batch only by a matrix on the right, and only if no transposition comes right before.
    """
    _, count, taps, n, rest = shape

    def reshaped(x: ir.Value, shape: list[int], name: str) -> ir.Value:
        return draft.op("Reshape", [x, draft.constant(np.array(shape, np.int64), f"{name}/shape")], name=name)

    x = reshaped(x, shape, f"{name}/parted")
    x = draft.op("Transpose", [x], {"perm": [0, 1, 4, 2, 3]}, name=f"{name}/turned")
    x = reshaped(x, [0, count, rest, taps * n], f"{name}/joined")
    return draft.op("MatMul", [x, draft.constant(matrix.T, f"{name}/matrix")], name=name, like=like)
