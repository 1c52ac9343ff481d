"""`r2mrf predict`: files of photographs become files of maps and overlays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import images
from r2mrf_deploy.errors import InputError, UsageError
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.predictor import Predictor


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
    predictor: Predictor, sources: Sequence[Path], output: Path, *, overlays: bool = True
) -> Iterator[Prediction]:
    """Write `NAME_map.png` (8-bit grey, white = in focus) and `NAME_overlay.png` for every source, at its size.

    A source that cannot be read is reported in its `Prediction.error`; the others go on.

    Raises:
        UsageError: `output` is not a folder, or a source would be overwritten; raised before anything is written.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"`output` {output} is a file: name a folder for the maps")
    planned = [
        (source, output / f"{name}_map.png", output / f"{name}_overlay.png" if overlays else None)
        for source, name in zip(sources, _names(sources), strict=True)
    ]
    resolved = {source.resolve(): source for source in sources}
    for source, *files in planned:
        for file in filter(None, files):
            if victim := resolved.get(file.resolve()):
                raise UsageError(f"what is made from {source} would overwrite {victim}: choose another `output` folder")
    for source, map_path, overlay in planned:
        try:
            image = images.read(source)
        except InputError as e:
            yield Prediction(source, error=str(e))
            continue
        focus = predictor(image)
        write_atomically(map_path, images.png(np.round(focus * 255).astype(np.uint8)))
        if overlay:
            write_atomically(overlay, images.png(images.overlay(image, focus)))
        yield Prediction(source, map_path, overlay, float((focus >= 0.5).mean()))


def _names(sources: Sequence[Path]) -> list[str]:
    """A name for each source: its stem, and as much more of its path as is needed to make it unique."""
    chosen: list[str] = []
    for source in sources:
        same = [s for s in sources if s.stem == source.stem]
        if len(same) == 1:
            chosen.append(source.stem)
        elif len({s.name for s in same}) == len(same):
            chosen.append(source.name)
        else:
            chosen.append("_".join(p for p in source.resolve().parts if p != source.anchor))
    return chosen
