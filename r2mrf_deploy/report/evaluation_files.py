"""What `r2mrf eval` writes: the numbers as JSON and CSV, the curves, and each row's worst photographs as a picture."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import images
from r2mrf_deploy.datasets import Dataset
from r2mrf_deploy.errors import InputError, RuntimeUnavailable
from r2mrf_deploy.evaluation import Evaluation, Method
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.metrics import LEVELS
from r2mrf_deploy.report import plots


def check(folder: Path) -> None:
    """Refuse, before an evaluation that may take hours, what `write` could not do after it. Nothing is made.

    Raises:
        InputError: the folder cannot be written.
        RuntimeUnavailable: matplotlib is not installed.
    """
    nearest = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"-o {folder}: {nearest} is no folder that can be written")
    if importlib.util.find_spec("matplotlib") is None:
        raise RuntimeUnavailable(f"-o {folder}: {plots.CURE}")


def write(
    rows: Sequence[Evaluation], facts: dict[str, Any], methods: Sequence[Method], dataset: Dataset, folder: Path
) -> list[Path]:
    """Write the numbers and the pictures.

    `scores.json` (everything), `scores.csv` (the table), `photographs.csv`, `curves.csv`, `curves.png`, and for each row
    its worst photographs, `worst-NAME.png`.

    Returns:
        What was written.

    Raises:
        ArtifactError: the folder cannot be written, or the disk is full.
        RuntimeUnavailable: matplotlib is not installed; the numbers have been written.
    """
    numbers = _write_numbers(rows, facts, folder)
    curves = plots.evaluation(rows, folder / "curves.png")
    sheets = [contact_sheet(row, methods, dataset, folder / f"worst-{_as_file_name(row)}.png") for row in rows]
    return [*numbers, curves, *sheets]


def _as_file_name(row: Evaluation) -> str:
    return re.sub(r"[^\w.]+", "-", f"{row.name} {row.runtime}")


def _write_numbers(rows: Sequence[Evaluation], facts: dict[str, Any], folder: Path) -> list[Path]:
    document = facts | {
        "rows": [
            row.to_dict()
            | {
                "precision": row.curves.precision.tolist(),
                "recall": row.curves.recall.tolist(),
                "false_positive_rate": row.curves.false_positive_rate.tolist(),
            }
            for row in rows
        ]
    }
    figures = ("f_max", "f_adaptive", "f_half", "mae")
    photographs = [
        [row.name, row.runtime, name, *(f"{getattr(judged, figure):.6f}" for figure in figures)]
        for row in rows
        for name, judged in row.photographs.items()
    ]
    curves = [
        [row.name, row.runtime, level, *(f"{v:.6f}" for v in values)]
        for row in rows
        for level, *values in zip(range(LEVELS), *(getattr(row.curves, name) for name in _CURVES), strict=True)
    ]
    scores = [list(row.to_dict().values()) for row in rows]
    return [
        write_atomically(folder / "scores.json", (json.dumps(document, indent=1) + "\n").encode()),
        write_atomically(folder / "scores.csv", _csv(list(rows[0].to_dict()), scores)),
        write_atomically(folder / "photographs.csv", _csv(["name", "runtime", "photograph", *figures], photographs)),
        write_atomically(
            folder / "curves.csv",
            _csv(["name", "runtime", "threshold_255", *_CURVES], curves),
        ),
    ]


def contact_sheet(
    row: Evaluation, methods: Sequence[Method], dataset: Dataset, path: Path, *, height: int = 200
) -> Path:
    """The worst photographs of a row, the worst first: photograph, mask, map and how far off it is, side by side.

    Raises:
        InputError: a photograph or a mask cannot be read any more.
    """
    strips = []
    numbers = {pair.name: number for number, pair in enumerate(dataset.pairs)}
    for name in row.worst():
        number = numbers[name]
        image, truth = dataset.image(number), dataset.truth(number).astype(np.float32)
        found = methods[row.method].maps(image)[row.name]
        size = (height, max(1, round(image.shape[1] * height / image.shape[0])))
        greys = [np.repeat(_grey(part, size)[:, :, None], 3, 2) for part in (truth, found, np.abs(found - truth))]
        judged = f"{name}: MAE {row.photographs[name].mae:.3f}, F {row.photographs[name].f_half:.3f}"
        strips += [
            _caption(f"{judged}   (photograph, mask, map, difference)"),
            _join([images.resize(image, size), *greys]),
        ]
        strips.append(np.full((_GAP, 1, 3), 255, np.uint8))
    width = max(strip.shape[1] for strip in strips)
    whole = np.vstack([np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips])
    return write_atomically(path, images.png(whole))


_GAP = 6
_CURVES = ("precision", "recall", "f", "false_positive_rate", "found")


def _grey(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.rint(255 * np.clip(images.resize(values, size), 0, 1)).astype(np.uint8)


def _join(tiles: Sequence[np.ndarray]) -> np.ndarray:
    gap = np.full((tiles[0].shape[0], _GAP, 3), 255, np.uint8)
    return np.hstack([part for tile in tiles for part in (gap, tile)][1:])


def _caption(text: str) -> np.ndarray:
    """As wide as the text, which may be wider than its photograph's tiles."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(14)
    picture = Image.new("RGB", (math.ceil(font.getlength(text)) + 4, 22), "white")
    ImageDraw.Draw(picture).text((2, 3), text, fill="black", font=font)
    return np.asarray(picture)


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()
