"""The files of a photograph whose map is computed tile by tile: those as large as it is are written row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from r2mrf_deploy import drawing, images, large_images
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.files import scratch, write_atomically
from r2mrf_deploy.predict import streamed
from r2mrf_deploy.predict.outputs import Outputs
from r2mrf_deploy.predict.regions import regions
from r2mrf_deploy.predict.tiles import SIDE, Rows, Sink, refuse_overlap, run
from r2mrf_deploy.predictor import Focus, Predictor
from r2mrf_deploy.progress import ProgressCallback, silent

_APPENDED: Mapping[str, Callable[[Rows], np.ndarray]] = {
    "map": lambda rows: images.grey(rows.map),
    "map16": lambda rows: images.grey(rows.map, np.uint16),
    "float": lambda rows: rows.map,
    "cutout": lambda rows: drawing.cutout(rows.photograph, rows.map),
}
"""The kinds that are as large as the photograph, and what is added to them for some of its rows."""
_NOTHING = np.zeros((1, 1, 3), np.uint8)
_FORMS: Mapping[str, streamed.Kind] = {"map": "grey8", "map16": "grey16", "cutout": "rgba8"}


def refuse_options(outputs: Outputs, overlap: float) -> None:
    """Refuse what cannot be had of tiles.

    Raises:
        UsageError: maps would be reduced, or floats written as TIFF, or `overlap` is out of its range.
    """
    refuse_overlap(overlap)
    if outputs.map_side is not None:
        raise UsageError("`tile` computes maps at the photograph's own size: leave out `map_side`")
    if "float" in outputs.save and outputs.float_format == "tiff":
        raise UsageError("`tile` writes floats as npy, row by row: leave out `float_format` tiff")


def write(
    predictor: Predictor,
    source: Path | bytes,
    name: str,
    files: Mapping[str, Path],
    outputs: Outputs,
    within: Path,
    *,
    overlap: float,
    batch: int | None = None,
    progress: ProgressCallback = silent,
) -> tuple[np.ndarray, tuple[int, int], str]:
    """Compute a map by tiles, and write the files that are made of it.

    Args:
        source: the photograph's file, or its content.
        name: its path or address.
        files: kind -> file, as `Outputs.files` gives them.
        within: the folder that contains them.
        overlap, batch, progress: as for `tiles.tiled`.

    Returns:
        The map reduced to at most 2048 pixels, float32 [h, w], the photograph's (height, width), and which of the file's
        pictures it is, as `images.Photograph` has it.

    Raises:
        InputError: the photograph is damaged, or of an unsupported kind.
        UsageError, ArtifactError: as `tiles.tiled`; or a file cannot be written.
    """
    streamed_kinds = {kind: file for kind, file in files.items() if kind in _APPENDED}
    drawn = tuple(kind for kind in outputs.save if kind not in _APPENDED)
    rest = replace(outputs, save=drawn or ("scores",))
    with ExitStack() as stack:
        if isinstance(source, bytes):
            source = write_atomically(stack.enter_context(scratch()) / f"photograph{Path(name).suffix}", source)
        bands = stack.enter_context(large_images.open_bands(source))
        with ExitStack() as written:
            sinks = [
                written.enter_context(_sink(kind, file, bands.size, within)) for kind, file in streamed_kinds.items()
            ]
            small = run(
                predictor,
                bands,
                sinks,
                overlap=overlap,
                batch=batch,
                progress=progress,
                side=max(SIDE, rest.drawn_side or 0),
            )
        picture = bands.reduced((small.shape[0], small.shape[1])) if rest.drawn_side else _NOTHING
        focus = Focus(bands.size, (small,))
    for kind, content in rest.contents(picture, focus, regions(small, focus.photograph)):
        write_atomically(files[kind], content, within=within)
    return small, focus.photograph, bands.note


@contextmanager
def _sink(kind: str, file: Path, size: tuple[int, int], within: Path) -> Iterator[Sink]:
    """What writes a map's rows into a file, which is in its place when the block ends."""
    writer = (
        streamed.npy(file, size, within=within)
        if kind == "float"
        else streamed.png(file, size, _FORMS[kind], within=within)
    )
    with writer as append:
        yield lambda rows: append(_APPENDED[kind](rows))
