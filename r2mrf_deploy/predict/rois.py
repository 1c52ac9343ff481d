"""Where the subject of each photograph is, as a person or another detector says it: boxes or masks."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from r2mrf_deploy import images
from r2mrf_deploy.errors import InputError, reading
from r2mrf_deploy.files import document

Box = tuple[float, float, float, float]


class Rois:
    """Regions of interest by the names of photographs: their paths below the folder that was given; or, in a table without
    folders, their file names.

    Args:
        path: a folder of masks (white = the subject; `a.png` for `a.jpg`, in the same subfolders); a JSON file, `{"a.jpg":
            [left, top, right, bottom]}`, also with a list of boxes; or a CSV file with the columns file, left, top, right,
            bottom. Coordinates are in pixels of the photograph.

    Raises:
        InputError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._masks = path.is_dir()
        self._boxes: Mapping[str, list[Box]] = {}
        if not self._masks:
            with reading(path, InputError, "is neither a JSON nor a CSV file of boxes", "see docs/predict.md"):
                text = document(path).decode("utf-8-sig")
                self._boxes = _of_csv(text) if path.suffix.lower() == ".csv" else _of_json(text)
        self._flat = not any("/" in name for name in self._boxes)

    def weight(self, address: str, name: str, shape: tuple[int, int], size: tuple[int, int]) -> np.ndarray | None:
        """How much of each pixel of a map lies in the photograph's region of interest; None where it has none.

        Args:
            address: the photograph's path or address.
            name: what its outputs are called, with the folders they lie in.
            shape: (height, width) of the map.
            size: (height, width) of the photograph.

        Raises:
            InputError: its mask cannot be read.
        """
        if self._masks:
            return self._of_mask(address, name, shape)
        file = Path(address)
        boxes = self._boxes.get(Path(name).with_name(file.name).as_posix())
        if not boxes and self._flat:
            boxes = self._boxes.get(file.name)
        if not boxes:
            return None
        weight = np.zeros(shape, np.float32)
        for left, top, right, bottom in boxes:
            rows, columns = _covered(top, bottom, size[0], shape[0]), _covered(left, right, size[1], shape[1])
            np.maximum(weight, np.outer(rows, columns), out=weight)
        return weight

    def _of_mask(self, address: str, name: str, shape: tuple[int, int]) -> np.ndarray | None:
        stem = Path(address).stem
        for file in (self.path / f"{name}.png", self.path / Path(name).parent / f"{stem}.png"):
            if file.is_file():
                mask = images.read(file)[:, :, 0].astype(np.float32) / 255
                return images.resize(mask, shape)
        return None


def _covered(start: float, end: float, length: float, count: int) -> np.ndarray:
    """Which share of each of `count` equal parts of a length lies between two places."""
    edges = np.arange(count + 1) * (length / count)
    inside = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
    return np.clip(inside / (length / count), 0, 1).astype(np.float32)


def _of_json(text: str) -> dict[str, list[Box]]:
    found = {}
    for name, given in json.loads(text).items():
        found[name] = [_box(box) for box in (given if isinstance(given[0], list) else [given])]
    return found


def _of_csv(text: str) -> dict[str, list[Box]]:
    found: dict[str, list[Box]] = {}
    if not text.strip():
        raise ValueError("it is empty")
    for row in csv.DictReader(text.splitlines()):
        found.setdefault(row["file"], []).append(_box([row[side] for side in ("left", "top", "right", "bottom")]))
    return found


def _box(values: list[float | str]) -> Box:
    left, top, right, bottom = map(float, values)
    if not (left < right and top < bottom):
        raise ValueError(f"a box is left, top, right, bottom, not {values}")
    return left, top, right, bottom
