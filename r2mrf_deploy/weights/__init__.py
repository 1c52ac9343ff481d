"""Trained weights that come with the package, each with a model card: how it was trained, how well it does, where it fails.

The name of a preset that has weights here stands for them wherever a checkpoint is asked for. They are stored as FP16, which
halves the file, and computed with as FP32. What is on the disk must be what was shipped: the SHA-256 is checked.
"""

from __future__ import annotations

from pathlib import Path

from r2mrf_deploy.errors import CheckpointError
from r2mrf_deploy.manifest import sha256

SHIPPED: dict[str, str] = {
    "r2mrf-edge": "f5b49bfd38dc79388d791764c94cae796d604f00c127f445330be41c1c36be71",
}
"""Name -> SHA-256 of `NAME.pth` beside this file."""
DEFAULT = "r2mrf-edge"
"""What `r2mrf predict` and `r2mrf demo` use where no other network is named."""


def find(name: str) -> Path | None:
    """The checkpoint of a name, or None where none is shipped.

    Raises:
        CheckpointError: the file is missing or is not what was shipped.
    """
    if name not in SHIPPED:
        return None
    path = Path(__file__).with_name(f"{name}.pth")
    if not path.is_file() or sha256(path) != SHIPPED[name]:
        raise CheckpointError(f"{path} is missing or damaged; install r2mrf-deploy again")
    return path
