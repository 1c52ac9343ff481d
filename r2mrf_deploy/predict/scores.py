"""What a map says of its photograph, in figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from r2mrf_deploy.predict.regions import THRESHOLD, Region, regions

Verdict = Literal["partial", "all sharp", "all blurred", "flat"]
SURE = 0.7
"""All is sharp where 95 % of the map is at least this; all is blurred where 95 % is at most 1 minus this."""
FLAT = 0.1
"""A map is flat where 90 % of it lies within such a range, and it is not sure: the network says nothing."""
SUBJECT = 0.25
"""Standard deviation of the weight around the centre, as a share of each side."""


@dataclass(frozen=True)
class Scores:
    """The figures of one photograph or frame. Coordinates are in its pixels, from its upper left corner."""

    width: int
    height: int
    in_focus: float
    """The share of the area that is in focus: where the map is at least 0.5."""
    mean_confidence: float
    """The mean of the map, over the whole photograph."""
    peak_confidence: float
    """The maximum of the map."""
    subject: float
    """How sharp the subject is: the mean of the map, weighted by a Gaussian around the centre whose standard deviation is a
    quarter of each side."""
    roi: float | None
    """The mean of the map inside the region of interest that was given for this photograph."""
    verdict: Verdict
    """`all sharp`, `all blurred`, `partial`, or `flat`: the network says neither."""
    region_left: float | None = None
    """The bounding box of the largest connected region in focus; none where nothing is in focus."""
    region_top: float | None = None
    region_right: float | None = None
    region_bottom: float | None = None
    region_x: float | None = None
    """The centre of that region: its centroid."""
    region_y: float | None = None
    region_share: float | None = None
    """The share of the area that it takes."""

    @classmethod
    def of(
        cls,
        focus: np.ndarray,
        size: tuple[int, int],
        roi: np.ndarray | None = None,
        found: Sequence[Region] | None = None,
    ) -> Scores:
        """The scores of a map.

        Args:
            focus: float32 [h, w] in [0, 1], at any scale: that of the network is enough.
            size: (height, width) of the photograph.
            roi: float [h, w], the weight of each pixel of the map in the region of interest.
            found: `regions(focus, size)`, where they are known.
        """
        ends = (focus.size // 20, focus.size - 1 - focus.size // 20)
        low, high = np.partition(focus, ends, axis=None)[list(ends)]
        rows, columns = (_gaussian(side) for side in focus.shape)
        largest = next(iter(regions(focus, size) if found is None else found), None)
        region: dict[str, float] = {}
        if largest is not None:
            values = (*largest.box, *largest.centre)
            names = ("left", "top", "right", "bottom", "x", "y")
            region = {f"region_{name}": round(value, 1) for name, value in zip(names, values, strict=True)}
            region["region_share"] = round(largest.area / (size[0] * size[1]), 4)
        return cls(
            width=size[1],
            height=size[0],
            in_focus=_rounded((focus >= THRESHOLD).mean()),
            mean_confidence=_rounded(focus.mean()),
            peak_confidence=_rounded(focus.max()),
            subject=_rounded(rows @ focus @ columns),
            roi=None if roi is None or not roi.sum() else _rounded((roi * focus).sum() / roi.sum()),
            verdict=_verdict(float(low), float(high)),
            **region,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


NAMES = tuple(field.name for field in fields(Scores))


def _verdict(low: float, high: float) -> Verdict:
    if low >= SURE:
        return "all sharp"
    if high <= 1 - SURE:
        return "all blurred"
    return "flat" if high - low < FLAT else "partial"


def _gaussian(side: int) -> np.ndarray:
    """Weights of the pixels of a side, which sum to 1."""
    distance = (np.arange(side) + 0.5) / side - 0.5
    weight = np.exp(-(distance**2) / (2 * SUBJECT**2))
    return weight / weight.sum()


def _rounded(value: Any) -> float:
    """To four digits: more would be noise, and would differ between runtimes."""
    return round(float(value), 4)
