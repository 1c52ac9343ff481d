"""`r2mrf predict`: files of photographs become files of maps and overlays."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from r2mrf_deploy import images
from r2mrf_deploy.errors import R2mrfError, UsageError, first_line
from r2mrf_deploy.files import refuse_unwritable, short, write_atomically
from r2mrf_deploy.predictor import Predictor

OverlayFormat = Literal["png", "jpg"]


@dataclass(frozen=True)
class Prediction:
    """What became of one photograph."""

    source: Path
    map: Path | None = None
    overlay: Path | None = None
    in_focus: float | None = None
    """The share of the image, 0 to 1, that is in focus according to the map."""
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def predict(
    predictor: Predictor,
    sources: Sequence[Path],
    output: Path,
    *,
    overlays: bool = True,
    overlay_side: int = images.OVERLAY_SIDE,
    overlay_format: OverlayFormat = "png",
) -> Iterator[Prediction]:
    """Write `NAME_map.png` (8-bit grey, white = in focus) at the size of every source, and `NAME_overlay.png` or `.jpg`,
    whose longest side is at most `overlay_side` pixels.

    Whatever goes wrong with a source is said in its `Prediction.error`; the others go on.

    Raises:
        UsageError: `output` is not a folder, or a source would be overwritten; raised before anything is written.
        ArtifactError: `output` cannot be written; raised likewise.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"`output` {output} is a file: name a folder for the maps")
    refuse_unwritable(output / "_map.png")
    planned = [
        (source, output / f"{name}_map.png", output / f"{name}_overlay.{overlay_format}" if overlays else None)
        for source, name in zip(sources, _names(sources), strict=True)
    ]
    resolved = {os.path.realpath(source): source for source in sources}
    for source, *files in planned:
        for file in filter(None, files):
            if victim := resolved.get(os.path.realpath(file)):
                raise UsageError(f"what is made from {source} would overwrite {victim}: choose another `output` folder")
    for source, map_path, overlay in planned:
        try:
            image = images.read(source)
            focus = predictor(image)
            if overlay:
                encode = images.jpeg if overlay_format == "jpg" else images.png
                write_atomically(overlay, encode(images.overlay(image, focus, overlay_side)), within=output)
            del image  # a large one takes hundreds of megabytes, which encoding the map can use
            write_atomically(map_path, images.png(images.grey(focus)), within=output)
            done = Prediction(source, map_path, overlay, float((focus >= 0.5).mean()))
        except Exception as e:  # of any library: one photograph must not end a batch of thousands
            said = str(e) if isinstance(e, R2mrfError) else f"{type(e).__name__}: {first_line(e)}"
            done = Prediction(source, error=said if str(source) in said else f"{source}: {said}")
        yield done


def _names(sources: Sequence[Path]) -> list[str]:
    """A name for each source, and for no other: its stem, or its name, or as many of its folders before it as are needed.

    Case is ignored, as some file systems do. A name leaves room for the longest end of an output's name.
    """
    parts = [source.absolute().parts[1:] for source in sources]
    names, depths = [source.stem for source in sources], [0] * len(sources)
    while True:
        keys = [unicodedata.normalize("NFC", name).casefold() for name in names]
        count = Counter(keys)
        again = [n for n, key in enumerate(keys) if count[key] > 1 and depths[n] < len(parts[n])]
        if not again:
            break
        for n in again:
            depths[n] += 1
            names[n] = "_".join(parts[n][-depths[n] :])
    room = 255 - len("_overlay.png")
    return [
        short(name, source, room, always=count[key] > 1) for name, source, key in zip(names, sources, keys, strict=True)
    ]
