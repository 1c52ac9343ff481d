"""Names of outputs: one for each photograph, and for no other."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from r2mrf_deploy.files import short

ROOM = 255 - len("_contour.geojson")
"""Bytes of a name, so that every ending still fits in the 255 that file systems allow."""


def names(paths: Sequence[Path], *, stems: bool = True) -> list[str]:
    """The name of each path, and of no other: its stem, or its name, or as many of its folders before it as are needed.

    Case is ignored, as some file systems do.

    Args:
        stems: begin with the stem; else with the whole name.
    """
    parts = [path.absolute().parts[1:] for path in paths]
    found, depths = [path.stem if stems else path.name for path in paths], [0 if stems else 1] * len(paths)
    while True:
        keys = [unicodedata.normalize("NFC", name).casefold() for name in found]
        count = Counter(keys)
        again = [n for n, key in enumerate(keys) if count[key] > 1 and depths[n] < len(parts[n])]
        if not again:
            break
        for n in again:
            depths[n] += 1
            found[n] = "_".join(parts[n][-depths[n] :])
    return [short(name, path, ROOM, always=count[key] > 1) for name, path, key in zip(found, paths, keys, strict=True)]
