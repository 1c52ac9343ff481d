"""Trained weights that come with the package, each with a model card: how it was trained, how well it does, where it fails.

Wherever a checkpoint is expected, the name of a preset that has weights here stands for them. They are stored as FP16, which
halves the file, and used as FP32. The SHA-256 beside each file is checked, so that only what was shipped is loaded.
"""

from __future__ import annotations

from pathlib import Path

from r2mrf_deploy.errors import CheckpointError
from r2mrf_deploy.files import sha256

SHIPPED = ("r2mrf-edge",)
"""Names: beside this file lie `NAME.pth`, its model card `NAME.md`, and `NAME.sha256` as `sha256sum` writes it."""
DEFAULT = "r2mrf-edge"
"""What `r2mrf predict` and `r2mrf demo` use when no network is named."""


def find(name: str) -> Path | None:
    """The checkpoint that is shipped under a name; None if there is none.

    Raises:
        CheckpointError: the file is missing, or differs from what was shipped.
    """
    if name not in SHIPPED:
        return None
    path = Path(__file__).with_name(f"{name}.pth")
    said = path.with_suffix(".sha256")
    if not (path.is_file() and said.is_file()) or said.read_bytes() != checksum(path).encode():
        raise CheckpointError(f"{path} is missing or damaged; install r2mrf-deploy again")
    return path


def checksum(path: Path) -> str:
    """The line of `sha256sum` for a file."""
    return f"{sha256(path)}  {path.name}\n"
