"""The map of a photograph at its full resolution: by tiles that overlap, band after band, whatever the photograph's size.

A network sees a photograph reduced to a few hundred pixels, and its map has no more. Here it also sees tiles of its own
size, cut from the photograph as it is. They are blended by windows that are smooth and sum to 1 in every pixel, so that no
seam shows. Few bands of tiles are in memory at any time.

Tiles alone know too little. In one that lies within a smooth surface nothing tells whether it is in focus, and a photograph
of many megapixels is soft from pixel to pixel even where it is in focus. So the map of the whole says what is in focus, and
the tiles say where exactly that ends: see `Context`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from r2mrf_deploy import images
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.large_images import Bands
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.progress import Progress, ProgressCallback, silent

OVERLAP = 0.25
"""By how much of their side tiles overlap, at least."""
MOST_OVERLAP = 0.9
DETAIL = 8
"""The tiles' details are what is smaller than their side divided by this."""
SURE = 1e-3
"""Maps count as at most 1 minus this, and at least this, where their logits are taken."""
SIDE = 2048
"""The longest side of the reduced map, in pixels."""


class Rows(NamedTuple):
    """Some rows of a photograph and of its map."""

    top: int
    """The number of the first of them in the photograph."""
    photograph: np.ndarray
    """uint8 [n, W, 3]."""
    map: np.ndarray
    """float32 [n, W] in [0, 1], 1 = in focus."""


Sink = Callable[[Rows], object]
"""Takes the rows of a photograph as they are finished, from the first to the last."""


@dataclass(frozen=True)
class Axis:
    """Where the tiles lie along one side of a photograph, and how much each counts in the pixels that it covers."""

    tile: int
    """The side of a tile, in pixels: that of the photograph if it is shorter."""
    starts: Sequence[int]
    """The first pixel of each tile. The last tile ends with the photograph; the others are spread evenly."""
    weights: Sequence[np.ndarray]
    """float32 [tile] for each tile: raised cosines over the tile, divided by their sum in each pixel. Where only one tile
    is, it is 1."""

    @classmethod
    def of(cls, side: int, tile: int, overlap: float) -> Axis:
        """Cover `side` pixels by tiles that overlap by the share `overlap` of their side, or more."""
        tile = min(tile, side)
        steps = int(np.ceil((side - tile) / max(1.0, tile * (1 - overlap))))
        starts = [round(step * (side - tile) / max(1, steps)) for step in range(steps + 1)]
        window = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2
        total = np.zeros(side)
        for start in starts:
            total[start : start + tile] += window
        return cls(tile, starts, [(window / total[start : start + tile]).astype(np.float32) for start in starts])

    def finished(self, number: int) -> int:
        """How many pixels of tile `number` no later tile covers, counted from its start."""
        following = (*self.starts, self.starts[-1] + self.tile)[number + 1]
        return following - self.starts[number]


def run(
    predictor: Predictor,
    bands: Bands,
    sinks: Sequence[Sink] = (),
    *,
    overlap: float = OVERLAP,
    context: bool = True,
    batch: int | None = None,
    side: int = SIDE,
    progress: ProgressCallback = silent,
) -> np.ndarray:
    """Compute the map of a photograph by tiles, and hand it on row by row.

    Args:
        sinks: called with the rows as they are finished.
        side: the longest side of the map that is returned, in pixels.
        predictor, bands, overlap, context, batch, progress: as for `tiled`.

    Returns:
        The map reduced to at most `side` pixels by area means, float32 [h, w] in [0, 1].

    Raises:
        Exception: what `tiled` or a sink raises.
    """
    reduced = _Reduced(bands.size, images.within(bands.size, (side, side)))
    with closing(tiled(predictor, bands, overlap=overlap, context=context, batch=batch, progress=progress)) as found:
        for rows in found:
            for sink in (*sinks, reduced.add):
                sink(rows)
    return reduced.map()


def tiled(
    predictor: Predictor,
    bands: Bands,
    *,
    overlap: float = OVERLAP,
    context: bool = True,
    batch: int | None = None,
    progress: ProgressCallback = silent,
) -> Generator[Rows, None, None]:
    """The map of a photograph by tiles, from its first row to its last.

    A photograph that is not larger than a tile is computed as a whole, as without tiles.

    Args:
        predictor: computes the tiles, as many at once as it has streams.
        bands: the photograph. It is read once, and once more for the context.
        overlap: the share of their side by which tiles overlap, 0 to 0.9.
        context: take from the tiles only the details of the map of the whole photograph: see `Context`.
        batch: as for `Predictor.map`.

    Yields:
        Rows: those that no later tile covers.

    Raises:
        UsageError: `overlap` is out of its range, or the artifact cannot have this batch.
        InputError: the photograph is damaged.
        ArtifactError: a map is not finite.
    """
    refuse_overlap(overlap)
    tile = predictor.largest
    down, across = (Axis.of(side, most, overlap) for side, most in zip(bands.size, tile, strict=True))
    total = len(down.starts) * len(across.starts)
    if total == 1:
        photograph = bands.read(0, bands.size[0])
        yield Rows(0, photograph, predictor(photograph))
        progress(Progress("computing tiles", 1, 1))
        return
    whole = None
    if context:
        whole = Context.of(predictor(bands.reduced(images.within(bands.size, tile))), bands.size, tile)
    read: deque[np.ndarray] = deque()

    def crops() -> Iterator[np.ndarray]:
        for band in _bands(bands, down):
            read.append(band)
            for left in across.starts:
                yield band[:, left : left + across.tile]

    begun = np.empty((0, bands.size[1]), np.float32)
    maps = predictor.map(crops(), batch)
    for number, top in enumerate(down.starts):
        found = np.zeros((down.tile, bands.size[1]), np.float32)
        found[: len(begun)] = begun
        for column, left in enumerate(across.starts):
            weight = np.outer(down.weights[number], across.weights[column])
            values = next(maps) if whole is None else whole.detail(next(maps))
            found[:, left : left + across.tile] += weight * values
            progress(Progress("computing tiles", number * len(across.starts) + column + 1, total))
        rows = down.finished(number)
        finished, begun = found[:rows], found[rows:]
        focus = finished if whole is None else whole.map(top, finished)
        yield Rows(top, read.popleft()[:rows], np.clip(focus, 0, 1))


def refuse_overlap(overlap: float) -> None:
    """Raise UsageError if tiles cannot overlap by this share."""
    if not 0 <= overlap <= MOST_OVERLAP:
        raise UsageError(f"`overlap` {overlap:g} is not from 0 to {MOST_OVERLAP:g}")


@dataclass(frozen=True)
class Context:
    """What the map of a whole photograph says about the tiles.

    Of the tiles only the details count, and they count where the whole is unsure: along the contours of what is in focus.
    With the logits L of the map of the whole P, those of a tile T, and S(x) what is left of x without details,

        M = P + 4 P (1 - P) (sigmoid(S(L) + T - S(T)) - P).

    Measured with r2mrf-lite on the 60 photographs of CUHK's validation split. Their 640 pixels are 1.6 times the side of its
    tiles. Enlarged 2 and 4 times (of these, 20), they are as soft from pixel to pixel as large photographs are. F is the
    best of the curve, for what is in focus; MAE is the mean absolute error:

                                               F                    MAE
                                     1x    2x    4x       1x    2x    4x
        the whole alone             .874  .874  .880     .096  .096  .100
        tiles alone                 .875  .788  .457     .121  .218  .457
        mean of the two maps        .888  .873  .874     .108  .157  .279
        mean of their logits        .890  .880  .851     .095  .110  .209
        S(L) + T - S(T) everywhere  .884  .873  .877     .091  .096  .103
        this                        .881  .876  .879     .091  .094  .100

    The means gain more F where a photograph is sharp to the pixel, and ruin one that is not. There this loses next to
    nothing.
    """

    whole: np.ndarray
    """P, float32 [h, w] in [0, 1]."""
    coarse: np.ndarray
    """S(L), float32 [h', w']: of the same scale or a smaller one."""
    size: tuple[int, int]
    """Height and width of the photograph."""
    details: float
    """The size of the largest details, in pixels of the photograph."""

    @classmethod
    def of(cls, whole: np.ndarray, size: tuple[int, int], tile: tuple[int, int]) -> Context:
        """The context of the tiles of a photograph; `whole` is its map, float32 [h, w] in [0, 1] of a smaller scale."""
        details = min(tile) / DETAIL
        return cls(whole, _coarse(_logits(whole), whole.shape[0] / size[0] * details), size, details)

    def detail(self, tile: np.ndarray) -> np.ndarray:
        """T - S(T) of the map of a tile, float32 [h, w] in [0, 1]."""
        logits = _logits(tile)
        return logits - _enlarged(_coarse(logits, self.details), logits.shape)

    def map(self, top: int, detail: np.ndarray) -> np.ndarray:
        """Rows of the map M, float32 [n, W] in [0, 1], from row `top` on, of the tiles' blended details, float32 [n, W]."""
        ends = top, top + len(detail)
        whole = np.clip(_enlarged(self.whole, self.size, *ends), 0, 1)
        refined = 1 / (1 + np.exp(-(_enlarged(self.coarse, self.size, *ends) + detail)))
        return whole + 4 * whole * (1 - whole) * (refined - whole)


def _logits(values: np.ndarray) -> np.ndarray:
    values = np.clip(values, SURE, 1 - SURE)
    return np.log(values / (1 - values))


def _coarse(values: np.ndarray, details: float) -> np.ndarray:
    """Values, float32 [h, w], at a scale at which details of this size, in pixels, are single pixels."""
    height, width = (max(1, round(side / max(1.0, details))) for side in values.shape)
    return images.resize(values, (height, width))


def _bands(bands: Bands, down: Axis) -> Iterator[np.ndarray]:
    """The rows of the photograph that each row of tiles covers, uint8 [tile, W, 3]. Each row is read once."""
    band, previous = bands.read(0, down.tile), 0
    yield band
    for top in down.starts[1:]:
        band = np.concatenate([band[top - previous :], bands.read(previous + down.tile, top + down.tile)])
        previous = top
        yield band


def _enlarged(values: np.ndarray, size: tuple[int, ...], top: int = 0, bottom: int | None = None) -> np.ndarray:
    """Rows `top` to `bottom` - 1 of float32 [h, w] at a larger height and width, by cubic interpolation: linear would show
    the pixels of the small ones."""
    height, width = size
    bottom = height if bottom is None else bottom
    scale = values.shape[0] / height
    box = (0, top * scale, values.shape[1], bottom * scale)
    return np.asarray(Image.fromarray(values).resize((width, bottom - top), Image.Resampling.BICUBIC, box))


class _Reduced:
    """Means of a map over equal areas, of rows that come one after the other."""

    def __init__(self, size: tuple[int, int], reduced: tuple[int, int]) -> None:
        self._scale = size[0] / reduced[0], size[1] / reduced[1]  # pixels for one of the reduced map
        self._sums = np.zeros(reduced)

    def add(self, rows: Rows) -> None:
        height, width = self._scale
        first = int(rows.top / height)
        last = min(len(self._sums), int(np.ceil((rows.top + len(rows.map)) / height)) + 1)
        # how much of each row lies in which row of the reduced map
        edges = np.clip(np.arange(first, last + 1)[:, None] * height - np.arange(len(rows.map)) - rows.top, 0, 1)
        sums = np.diff(edges, axis=0).astype(np.float32) @ rows.map
        # the integral from the left, at the edges of the reduced map's columns
        integral = np.pad(np.cumsum(sums, 1, np.float64), ((0, 0), (1, 0)))
        at = np.arange(self._sums.shape[1] + 1) * width
        left = np.minimum(at.astype(int), sums.shape[1] - 1)
        self._sums[first:last] += np.diff(integral[:, left] + (at - left) * sums[:, left], axis=1)

    def map(self) -> np.ndarray:
        return np.clip(self._sums / (self._scale[0] * self._scale[1]), 0, 1).astype(np.float32)
