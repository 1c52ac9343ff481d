"""The regions of a photograph that are in focus, as polygons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import contourpy
import numpy as np

THRESHOLD = 0.5
"""A pixel is in focus where the map is at least this."""
SMALLEST = 1e-4
"""The smallest region that is kept, as a share of the photograph: smaller ones are single pixels of the network's map."""


@dataclass(frozen=True)
class Region:
    """A connected part of a photograph that is in focus: the inside of its first ring, without the insides of the others.

    A ring is float64 [n, 2], (x, y) in pixels of the photograph, whose upper left corner is (0, 0); its last point is its
    first.
    """

    rings: Sequence[np.ndarray]

    @property
    def area(self) -> float:
        """In pixels of the photograph."""
        return sum(_moments(ring)[0] for ring in self.rings)

    @property
    def centre(self) -> tuple[float, float]:
        """The centroid, (x, y)."""
        area, x, y = np.sum([_moments(ring) for ring in self.rings], axis=0)
        return float(x / area), float(y / area)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        (left, top), (right, bottom) = self.rings[0].min(0), self.rings[0].max(0)
        return float(left), float(top), float(right), float(bottom)

    @property
    def coordinates(self) -> list[list[list[float]]]:
        """As GeoJSON has them, to a tenth of a pixel."""
        return [np.round(ring, 1).tolist() for ring in self.rings]


def regions(focus: np.ndarray, size: tuple[int, int]) -> list[Region]:
    """The regions in focus, the largest first.

    Args:
        focus: the map, float32 [h, w], of any scale: that of the network is enough.
        size: (height, width) of the photograph.
    """
    # a border that is out of focus closes every ring; beside a pixel in focus, the contour runs along the edge
    padded = np.pad(focus, 1, mode="edge")
    for side in (padded[0], padded[-1], padded[:, 0], padded[:, -1]):
        np.minimum(side, 2 * THRESHOLD - side, out=side)
    scale = np.array([size[1] / focus.shape[1], size[0] / focus.shape[0]])
    generator = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    points, offsets = generator.filled(THRESHOLD, np.inf)
    smallest = SMALLEST * size[0] * size[1]
    # a ring of n points, each within the diagonal of a pixel of the last, encloses at most n² / 2π pixels
    fewest = math.sqrt(2 * math.pi * SMALLEST * focus.size)
    found = []
    for polygon, ends in zip(points, offsets, strict=True):
        if ends[1] - ends[0] < fewest:
            continue
        placed = np.clip((polygon - 0.5) * scale, 0, size[::-1])  # the centre of pixel 0 is 1 in the padded map
        found.append(Region(tuple(placed[a:b] for a, b in pairwise(ends))))
    return sorted((r for r in found if r.area >= smallest), key=lambda region: -region.area)


def geojson(found: Sequence[Region], size: tuple[int, int]) -> dict[str, Any]:
    """A FeatureCollection of the regions (RFC 7946), but in pixels of the photograph, y downwards."""
    features = [
        {
            "type": "Feature",
            "properties": {"area": round(region.area, 1)},
            "geometry": {"type": "Polygon", "coordinates": region.coordinates},
        }
        for region in found
    ]
    return {"type": "FeatureCollection", "width": size[1], "height": size[0], "features": features}


def _moments(ring: np.ndarray) -> tuple[float, float, float]:
    """The signed area of a ring, and its first moments about both axes: positive for an outer ring."""
    (x0, y0), (x1, y1) = ring[:-1].T, ring[1:].T
    cross = x0 * y1 - x1 * y0
    return float(cross.sum() / 2), float(((x0 + x1) * cross).sum() / 6), float(((y0 + y1) * cross).sum() / 6)


def seamed_ring(rings: Sequence[Sequence[Sequence[float]]]) -> list[float]:
    """One ring of x, y, x, y, ... that encloses a region and, by seams of no width, leaves its holes out: COCO's polygons
    have no holes."""
    outer, *holes = rings
    points = [*outer, *(point for hole in holes for point in (*hole, outer[0]))]
    return [coordinate for point in points for coordinate in point]
