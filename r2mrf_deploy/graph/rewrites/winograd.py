"""Write convolutions as Winograd's minimal filtering, for a runtime whose own convolutions multiply directly.

Every 4×4 pixels of the result come from a tile d of n×n pixels, n = 3 + k for a k×k kernel g:

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

so they take n² products instead of 16 k² for each pair of channels: a fourth for 3×3, a sixth for 5×5. The products
over the channels are a batch of n² matrix products; the transforms of the tiles are one matrix product each, by B ⊗ B and by
A ⊗ A. FP32 loses one to two digits of the result, the transformed weights take n²/k² times the memory, and whether it is
faster is the runtime's affair. So the pipeline does not do this: only what makes a file for one runtime does.

A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, 2016. The matrices are made by the method of Cook
and Toom, from the points 0, 1, -1, 2, -2, 1/2, -1/2 and infinity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np
import onnx_ir as ir

from r2mrf_deploy.graph.cost import known_multiply_adds
from r2mrf_deploy.graph.rewrites.convolution import Convolution
from r2mrf_deploy.graph.rewrites.editor import Draft, Editor, Outcome
from r2mrf_deploy.graph.rewrites.rounding import rounded

_TILE = 4
_POINTS = tuple(map(Fraction, ("0", "1", "-1", "2", "-2", "1/2", "-1/2")))


def minimal_filtering(editor: Editor, channels: int = 1, tiles: int = 1) -> Outcome:
    """Replace the 3×3 and 5×5 convolutions, of static sizes and in FP32 or FP64, whose multiply-adds at least halve.

    Args:
        channels: the fewest, in and out, of a convolution that is replaced.
        tiles: the fewest of it. Those of a small map do not make up for reading the larger weights.
    """
    convolutions = (Convolution.of(editor, node) for node in editor.nodes("Conv"))
    return Outcome.of(_attempt(editor, conv, channels, tiles) for conv in convolutions if conv is not None)


def _attempt(editor: Editor, conv: Convolution, channels: int, fewest: int) -> str | None:
    """ "" for a change, the reason for a refusal, or None where nothing matched."""
    g = conv.geometry
    if g.kernel not in ((3, 3), (5, 5)) or min(conv.weight.shape[:2]) < channels:
        return None
    if {*g.strides, *g.dilations, g.group} != {1} or g.auto_pad != "NOTSET":
        return f"{conv.name}: it has strides, dilations, groups or automatic padding"
    shape, pads = conv.x.shape, g.pads
    if shape is None or not shape.is_static() or min(pads) < 0:
        return f"{conv.name}: its sizes are free"
    tiles = _Tiles(shape.numpy(), conv.weight.shape[0], g.kernel[0], pads)
    if min(tiles.sides) < 1 or min(shape.numpy()) < 1:
        return f"{conv.name}: it is empty"
    if tiles.shape[0] * math.prod(tiles.counts) < fewest:
        return f"{conv.name}: its map is small"
    constants = _constants(conv)
    if isinstance(constants, str):
        return f"{conv.name}: {constants}"
    draft = editor.draft()
    result = _emit(draft, conv, tiles, *constants)
    if 2 * editor.gain(draft, [conv.out]).multiply_adds < known_multiply_adds(conv.node, editor.types):
        draft.drop()
        return f"{conv.name}: its multiply-adds would not halve"
    editor.apply(draft, {conv.out: result}, before=conv.node)
    return ""


@dataclass(frozen=True)
class _Tiles:
    """How the tiles lie on the input [N, C, H, W] of a convolution."""

    shape: tuple[int, ...]
    channels_out: int
    kernel: int
    pads: Sequence[int]
    """Top, left, bottom, right."""

    @property
    def size(self) -> int:
        """Rows and columns of an input's tile."""
        return _TILE + self.kernel - 1

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the result."""
        (top, left, bottom, right), (height, width) = self.pads, self.shape[2:]
        return height + top + bottom - self.kernel + 1, width + left + right - self.kernel + 1

    @property
    def counts(self) -> tuple[int, int]:
        """Tiles in a column and in a row."""
        height, width = self.sides
        return -(-height // _TILE), -(-width // _TILE)

    def padding(self) -> list[int]:
        """The pads of ONNX's Pad, so that the tiles fill the input."""
        ends = [
            self.size + _TILE * (count - 1) - begin - side
            for count, begin, side in zip(self.counts, self.pads, self.shape[2:], strict=False)
        ]
        return [0, 0, *self.pads[:2], 0, 0, *ends]


def _constants(conv: Convolution) -> list[np.ndarray] | str:
    """B ⊗ B [n², n²], the transformed weights [n², M, C] and A ⊗ A [16, n²] in the type of the weights, or why not."""
    a, g, b = _matrices(conv.geometry.kernel[0])
    weight = np.einsum("ip,ocpq,jq->ijoc", g, conv.weight.astype(np.float64), g, optimize=True)
    places = weight.reshape(-1, *conv.weight.shape[:2])
    return rounded(conv.weight.dtype, np.kron(b, b), places, np.kron(a, a))


def _emit(
    draft: Draft, conv: Convolution, tiles: _Tiles, forward: np.ndarray, weight: np.ndarray, backward: np.ndarray
) -> ir.Value:
    """Draft the tiles, their products and the result, which has the type and the shape of the convolution's."""
    name, n, (rows, columns) = f"{conv.name}/winograd", tiles.size, tiles.counts
    batch, width, out = tiles.shape[0], tiles.shape[1], tiles.channels_out

    def reshaped(x: ir.Value, shape: Sequence[int], step: str) -> ir.Value:
        return draft.op("Reshape", [x, integers(shape, f"{step}/shape")], name=f"{name}/{step}")

    def integers(values: Sequence[int], step: str) -> ir.Value:
        return draft.constant(np.array(values, np.int64), f"{name}/{step}")

    x = draft.op("Pad", [conv.x, integers(tiles.padding(), "pads")], name=f"{name}/padded")
    for axis, count in ((2, rows), (3, columns)):
        # pixel i of every tile, then pixel i + 1
        reads = [_TILE * tile + i for i in range(n) for tile in range(count)]
        x = draft.op("Gather", [x, integers(reads, f"reads{axis}")], {"axis": axis}, name=f"{name}/tiles{axis}")
    x = reshaped(x, [batch, width, n, rows, n, columns], "parted")
    x = draft.op("Transpose", [x], {"perm": [2, 4, 1, 0, 3, 5]}, name=f"{name}/turned")
    x = reshaped(x, [n * n, width * batch * rows * columns], "flat")
    x = draft.op("MatMul", [draft.constant(forward, f"{name}/forward"), x], name=f"{name}/transformed")
    x = reshaped(x, [n * n, width, batch * rows * columns], "places")
    x = draft.op("MatMul", [draft.constant(weight, f"{name}/weight"), x], name=f"{name}/products")
    x = reshaped(x, [n * n, out * batch * rows * columns], "joined")
    x = draft.op("MatMul", [draft.constant(backward, f"{name}/backward"), x], name=f"{name}/pixels")
    x = reshaped(x, [_TILE, _TILE, out, batch, rows, columns], "unfolded")
    x = draft.op("Transpose", [x], {"perm": [3, 2, 4, 0, 5, 1]}, name=f"{name}/returned")
    x = reshaped(x, [batch, out, _TILE * rows, _TILE * columns], "map")
    if tiles.sides != (_TILE * rows, _TILE * columns):
        bounds = [integers(v, s) for v, s in (([0, 0], "starts"), (tiles.sides, "ends"), ([2, 3], "axes"))]
        x = draft.op("Slice", [x, *bounds], name=f"{name}/cropped")
    if conv.bias is not None:
        bias = draft.constant(conv.bias.reshape(1, -1, 1, 1), f"{name}/bias")
        x = draft.op("Add", [x, bias], name=f"{name}/biased")
    x.type, x.shape = conv.out.type, conv.out.shape
    return x


@cache
def _matrices(kernel: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Aᵀ [4, n], G [n, kernel] and Bᵀ [n, n]: Aᵀ ((G g) ⊙ (Bᵀ d)) is the correlation of d [n] with g [kernel]."""
    n = _TILE + kernel - 1
    points = _POINTS[: n - 1]
    others = [[q for q in points if q != p] for p in points]
    scales = [math.prod((p - q for q in rest), start=Fraction(1)) for p, rest in zip(points, others, strict=True)]
    a = [[p**i for p in points] + [Fraction(i == _TILE - 1)] for i in range(_TILE)]
    g = [[p**j / scale for j in range(kernel)] for p, scale in zip(points, scales, strict=True)]
    g.append([Fraction(j == kernel - 1) for j in range(kernel)])
    b = [[*_polynomial(rest), Fraction(0)] for rest in others] + [_polynomial(points)]
    in_floats = [np.array([[float(value) for value in row] for row in matrix]) for matrix in (a, g, b)]
    return in_floats[0], in_floats[1], in_floats[2]


def _polynomial(roots: Iterable[Fraction]) -> list[Fraction]:
    """The coefficients of the product of (x - root), the constant first."""
    found = [Fraction(1)]
    for root in roots:
        found = [high - root * low for high, low in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)]
    return found
