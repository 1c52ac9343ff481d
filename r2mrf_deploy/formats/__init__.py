"""What model files say of themselves, read without running anything.

Each module reads one format: `read(path) -> Content`. Whatever else is raised becomes an ArtifactError here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2mrf_deploy.errors import ArtifactError, reading
from r2mrf_deploy.manifest import Contract


@dataclass(frozen=True)
class Content:
    """What a model file says of itself."""

    contract: Contract | None = None
    """The contract stored inside the file."""
    header: Any = None
    """What else the format's own header says: `plan.PlanHeader`, `pt2.Package`, `executorch.Program`."""


KINDS = {".onnx": "onnx", ".xml": "openvino", ".plan": "plan", ".pt2": "pt2", ".pte": "executorch", ".html": "web"}
"""Suffix -> what a manifest calls the format; the module that reads it has the same name."""

EXECUTABLE = frozenset({".html", ".plan", ".pt2", ".pte"})
"""Files that hold code, which runs when they are opened. ExecuTorch trusts a `.pte` as if it were code: it ends the process
about some damage."""

KEY = "r2mrf"
"""The key of the contract in a file's own metadata."""


def read(path: Path) -> Content:
    """Read what a model file says of itself.

    Raises:
        ArtifactError: the file cannot be read, is damaged, or its format is not the one of its suffix.
    """
    kind = KINDS.get(path.suffix.lower())
    with reading(path, ArtifactError, f"is damaged, or is no {kind} file", "make it again"):
        return importlib.import_module(f"{__name__}.{kind}").read(path) if kind else Content()
