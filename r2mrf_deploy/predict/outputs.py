"""The files that are made of one photograph and its map."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from r2mrf_deploy import drawing, images
from r2mrf_deploy.errors import UsageError, did_you_mean
from r2mrf_deploy.predict.regions import Region, geojson
from r2mrf_deploy.predictor import Focus

Kind = Literal["map", "map16", "float", "overlay", "cutout", "contour", "thumbnail", "scores", "coco"]
KINDS: tuple[Kind, ...] = get_args(Kind)
THUMBNAIL_SIDE = 240
"""Longest side of a thumbnail, in pixels."""


@dataclass(frozen=True)
class Outputs:
    """What is written of each photograph."""

    save: tuple[str, ...] = ("map", "overlay")
    """Any of `KINDS`."""
    map_side: int | None = None
    """Longest side of maps, in pixels; by default the photograph's."""
    overlay_side: int = drawing.OVERLAY_SIDE
    """Longest side of overlays, in pixels: they are for looking at."""
    overlay_format: Literal["png", "jpg"] = "jpg"
    """Format of overlays. PNG takes ten times as long and keeps every pixel's value."""
    float_format: Literal["npy", "tiff"] = "npy"
    """Format of maps of kind `float`."""

    def __post_init__(self) -> None:
        if not self.save:
            raise UsageError(f"`save` names nothing: choose from {', '.join(KINDS)}")
        for kind in self.save:
            if kind not in KINDS:
                raise UsageError(f"`save` {kind}: {did_you_mean(kind, KINDS)}")

    @classmethod
    def of(cls, save: Sequence[str], **further: Any) -> Outputs:
        """Those of the kinds `save`, and what they are made from: of contours, `coco` is."""
        kinds = dict.fromkeys(kind for given in save for kind in given.replace(",", " ").split())
        if "coco" in kinds:
            kinds["contour"] = None
        return cls(tuple(kinds), **further)

    def with_kind(self, kind: Kind) -> Outputs:
        return self if kind in self.save else replace(self, save=(*self.save, kind))

    @property
    def endings(self) -> dict[str, str]:
        """The kinds that each photograph gets a file of, and what is added to its name."""
        known = {
            "map": "_map.png", "map16": "_map16.png", "float": f"_map.{self.float_format}",
            "overlay": f"_overlay.{self.overlay_format}", "cutout": "_cutout.png", "contour": "_contour.geojson",
            "thumbnail": "_thumbnail.jpg",
        }  # fmt: skip
        return {kind: known[kind] for kind in self.save if kind in known}

    @property
    def drawn_side(self) -> int | None:
        """The longest side that the photograph needs for what is drawn with it; None if that is all of it."""
        sides = {"overlay": self.overlay_side, "thumbnail": THUMBNAIL_SIDE}
        return None if "cutout" in self.save else max((sides[kind] for kind in self.save if kind in sides), default=0)

    def files(self, folder: Path, name: str) -> dict[str, Path]:
        """Kind -> file, for the photograph that is called `name`."""
        return {kind: folder / f"{name}{ending}" for kind, ending in self.endings.items()}

    def contents(self, image: np.ndarray, focus: Focus, found: Sequence[Region]) -> Iterator[tuple[str, bytes]]:
        """Each of `endings`, and the content of its file.

        Args:
            image: uint8 [h, w, 3], the photograph, or a reduction of it to at least `drawn_side`.
            focus: its map.
            found: the regions in focus.
        """
        at = lru_cache(maxsize=1)(focus.at)  # most kinds want the same size, and one of a large photograph is large
        whole = focus.photograph
        size = whole if self.map_side is None else images.within(whole, (self.map_side, self.map_side))
        drawn, small = (images.within(whole, (side, side)) for side in (self.overlay_side, THUMBNAIL_SIDE))
        packed = images.jpeg if self.overlay_format == "jpg" else images.png
        makers: dict[str, Callable[[], bytes]] = {
            "map": lambda: images.png(images.grey(at(size))),
            "map16": lambda: images.png(images.grey(at(size), np.uint16)),
            "float": lambda: _floats(at(size), self.float_format),
            "overlay": lambda: packed(drawing.overlay(images.resize(image, drawn), at(drawn), max(drawn))),
            "cutout": lambda: images.png(drawing.cutout(image, at(whole))),
            "contour": lambda: json.dumps(geojson(found, whole)).encode(),
            "thumbnail": lambda: images.jpeg(drawing.outlined(images.resize(image, small), at(small)), quality=75),
        }
        for kind in self.endings:
            yield kind, makers[kind]()


def _floats(focus: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    if form == "npy":
        np.save(buffer, focus, allow_pickle=False)
        return buffer.getvalue()
    return images.tiff(focus)
