"""What a runtime compiled of an artifact, kept in a `ModelCache` under a key that holds all that it was compiled of."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.files import sha256
from r2mrf_deploy.model_cache import ModelCache

_EXTERNAL = b"\n\x08location"
"""How ONNX writes that a tensor's values are in another file: the key of an entry of `TensorProto.external_data`."""


def source(artifact: Artifact) -> str | None:
    """The SHA-256 of all files that a runtime reads of an artifact, as they were verified.

    Returns:
        None where that is not known, so that nothing of it may be kept: a file cannot be read, or an ONNX file without a
        manifest names others.
    """
    if artifact.manifest is not None:
        companions = artifact.manifest.companions
        return " ".join([artifact.manifest.sha256, *(companions[name] for name in sorted(companions))])
    try:
        if artifact.path.suffix.lower() == ".onnx" and _has_external_data(artifact.path):
            return None
        return _read(artifact)
    except (OSError, ValueError):  # an empty file cannot be mapped
        return None


@contextmanager
def keeping(cache: ModelCache, key: str, artifact: Artifact, source: str) -> Iterator[Path | None]:
    """`ModelCache.adding`, for what is compiled of an artifact within: it is kept only if the files are still `source`.

    They are verified before a runtime reads them, and another process may replace them in between.
    """
    with cache.adding(key) as file:
        yield file
        if file is not None and _read(artifact) != source:
            file.unlink(missing_ok=True)


def _read(artifact: Artifact) -> str:
    path = artifact.path
    names = sorted(artifact.manifest.companions) if artifact.manifest else []
    if artifact.manifest is None and path.suffix.lower() == ".xml":
        names = [path.with_suffix(".bin").name]
    return " ".join(map(sha256, [path, *map(path.with_name, names)]))


def _has_external_data(path: Path) -> bool:
    """Whether a tensor of an ONNX file, wherever it is, has its values in another file."""
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(_EXTERNAL) >= 0
