"""Model files as they lie on the disk: what each format says of itself, read without running anything.

Each module reads one format: `read(path) -> Content`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2mrf_deploy.manifest import Contract


@dataclass(frozen=True)
class Content:
    """What a model file says of itself."""

    contract: Contract | None = None
    """The contract that lies inside the file."""
    header: Any = None
    """What else the format's own header says: `plan.PlanHeader`, `pt2.Package`."""


_READERS = {
    ".onnx": "r2mrf_deploy.formats.onnx",
    ".xml": "r2mrf_deploy.formats.openvino",
    ".plan": "r2mrf_deploy.formats.plan",
    ".pt2": "r2mrf_deploy.formats.pt2",
}

KINDS = {".onnx": "onnx", ".xml": "openvino", ".plan": "plan", ".pt2": "pt2"}
"""Suffix -> what a manifest calls the format."""

EXECUTABLE = frozenset({".plan", ".pt2"})
"""Files that hold code, which runs when they are opened."""

KEY = "r2mrf"
"""Where the contract lies in a file's own metadata."""


def read(path: Path) -> Content:
    """What a model file says of itself.

    Raises:
        ArtifactError: the file is damaged, or is not of the format that its suffix says.
    """
    reader = _READERS.get(path.suffix.lower())
    return importlib.import_module(reader).read(path) if reader else Content()
