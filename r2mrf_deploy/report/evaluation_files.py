"""The files of `r2mrf eval`: the scores as JSON and CSV, the curves, and a picture of each row's worst photographs."""

from __future__ import annotations

import importlib.util
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
from r2mrf_deploy.files import refuse_unwritable, write_atomically
from r2mrf_deploy.metrics import BINS, LEVELS
from r2mrf_deploy.protocols import Protocol, Published
from r2mrf_deploy.report import forms, plots, tables
from r2mrf_deploy.report.screen import Sheet
from r2mrf_deploy.wording import plain


def check(folder: Path | None, *files: Path | None) -> None:
    """Check, before an evaluation that may take hours, that `write` and `write_tables` can write afterwards. Nothing is
    created.

    Raises:
        InputError, ArtifactError: the folder, or one of the files, cannot be written.
        RuntimeUnavailable: matplotlib is not installed.
    """
    for file in filter(None, files):
        refuse_unwritable(file)
    if folder is None:
        return
    nearest = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"`output` {folder}: {nearest} is not a writable folder")
    if importlib.util.find_spec("matplotlib") is None:
        raise RuntimeUnavailable(f"`output` {folder}: {plots.CURE}")


def write_tables(table: Sheet, notes: Sequence[str], markdown: Path | None, latex: Path | None) -> list[Path]:
    """Write the table of the scores in Markdown or LaTeX, as requested, with its notes, and return the paths.

    Raises:
        ArtifactError: a folder cannot be written, or the disk is full.
    """
    texts = ((markdown, forms.markdown), (latex, forms.latex))
    return [write_atomically(path, form(table, notes).encode()) for path, form in texts if path]


def write(
    rows: Sequence[Evaluation],
    facts: dict[str, Any],
    methods: Sequence[Method],
    dataset: Dataset,
    folder: Path,
    protocol: Protocol | None = None,
    published: Sequence[Published] = (),
) -> list[Path]:
    """Write `scores.json` (everything), `scores.csv` (the table, with the published rows), `photographs.csv`, `curves.csv`
    and `curves.png`, `reliability.csv` and `reliability.png`, and a picture of each row's worst photographs,
    `worst-NAME.png`. Return their paths.

    Raises:
        ArtifactError: the folder cannot be written, or the disk is full.
        RuntimeUnavailable: matplotlib is not installed; the scores are written nevertheless.
    """
    numbers = _write_numbers(rows, facts, folder, protocol, published)
    drawn = [plots.evaluation(rows, folder / "curves.png"), plots.reliability(rows, folder / "reliability.png")]
    sheets = [contact_sheet(row, methods, dataset, folder / f"worst-{_as_file_name(row)}.png") for row in rows]
    return [*numbers, *drawn, *sheets]


def _as_file_name(row: Evaluation) -> str:
    return re.sub(r"[^\w.]+", "-", f"{row.name} {row.runtime}")


def _scores(rows: Sequence[Evaluation], protocol: Protocol | None, published: Sequence[Published]) -> bytes:
    """The table as CSV. A published row has the runtime `published`, an `f` and an `mae`, and says its source."""
    measured = [tables.evaluation_dict(row, protocol) for row in rows]
    printed = [{"name": p.title, "runtime": tables.PUBLISHED} | p.to_dict() for p in published]
    heads = [*measured[0], *(("source", "note") if printed else ())]
    return forms.csv_bytes(heads, [[row.get(head, "") for head in heads] for row in (*measured, *printed)])


def _write_numbers(
    rows: Sequence[Evaluation],
    facts: dict[str, Any],
    folder: Path,
    protocol: Protocol | None,
    published: Sequence[Published],
) -> list[Path]:
    kept = ("precision", "recall", "false_positive_rate", "share", "predicted", "focused")
    scores = [
        tables.evaluation_dict(row, protocol) | {name: getattr(row.curves, name).tolist() for name in kept}
        for row in rows
    ]
    figures = ("f_max", "f_adaptive", "f_half", "mae", "ece")
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
    bins = [
        [row.name, row.runtime, *(f"{v:.6f}" for v in (edge / BINS, (edge + 1) / BINS, share, *observed))]
        for row in rows
        for edge, (share, *observed) in enumerate(zip(row.curves.share, *row.curves.reliability, strict=True))
    ]
    contents = {
        "scores": _scores(rows, protocol, published),
        "photographs": forms.csv_bytes(["name", "runtime", "photograph", *figures], photographs),
        "curves": forms.csv_bytes(["name", "runtime", "threshold_255", *_CURVES], curves),
        "reliability": forms.csv_bytes(["name", "runtime", *_RELIABILITY], bins),
    }
    return [
        write_atomically(folder / "scores.json", (json.dumps(facts | {"rows": scores}, indent=1) + "\n").encode()),
        *(write_atomically(folder / f"{name}.csv", content) for name, content in contents.items()),
    ]


def contact_sheet(
    row: Evaluation, methods: Sequence[Method], dataset: Dataset, path: Path, *, height: int = 200
) -> Path:
    """The worst photographs of a row, the worst first: photograph, mask, map and difference, side by side. Raises
    InputError if one can no longer be read."""
    strips = []
    numbers = {pair.name: number for number, pair in enumerate(dataset.pairs)}
    for name in row.worst():
        number = numbers[name]
        image, truth = dataset.image(number), dataset.truth(number).astype(np.float32)
        found = methods[row.method].maps(image)[row.name]
        size = (height, max(1, round(image.shape[1] * height / image.shape[0])))
        greys = [np.repeat(_grey(part, size)[:, :, None], 3, 2) for part in (truth, found, np.abs(found - truth))]
        tiles = [_padded(tile, _GAP, _GAP) for tile in (images.resize(image, size), *greys)]
        judged = f"{name}: MAE {row.photographs[name].mae:.3f}, F {row.photographs[name].f_half:.3f}"
        strips += [_caption(f"{judged}   (photograph, mask, map, difference)"), np.hstack(tiles)]
    width = max(strip.shape[1] for strip in strips)
    whole = np.vstack([_padded(strip, 0, width - strip.shape[1]) for strip in strips])
    return write_atomically(path, images.png(whole))


_GAP = 6
_RELIABILITY = ("over", "at_most", "share", "mean_probability", "in_focus")
_CURVES = ("precision", "recall", "f", "false_positive_rate", "found")


def _grey(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return images.grey(images.resize(values, size))


def _padded(picture: np.ndarray, below: int, right: int) -> np.ndarray:
    return np.pad(picture, ((0, below), (0, right), (0, 0)), constant_values=255)


def _caption(text: str) -> np.ndarray:
    """An image of a line of text, which may be wider than its photograph's tiles."""
    from PIL import Image, ImageDraw, ImageFont

    text, font = plain(text), ImageFont.load_default(14)
    picture = Image.new("RGB", (math.ceil(font.getlength(text)) + 4, 22), "white")
    ImageDraw.Draw(picture).text((2, 3), text, fill="black", font=font)
    return np.asarray(picture)
