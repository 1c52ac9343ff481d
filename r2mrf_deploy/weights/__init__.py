"""Trained weights that come with the package, each with a model card: how it was trained, how well it does, where it fails.

Wherever a checkpoint is expected, the name of a preset that has weights here stands for them. They are stored as FP16, which
halves the file, and used as FP32: as a checkpoint, for PyTorch, and for `ARTIFACTS` as an ONNX artifact too, which needs no
PyTorch. The SHA-256 beside the files are checked, so that only what was shipped is loaded.
"""

from __future__ import annotations

from pathlib import Path

from r2mrf_deploy.environment import importable
from r2mrf_deploy.errors import CheckpointError
from r2mrf_deploy.files import sha256

SHIPPED = ("r2mrf-lite", "r2mrf-edge")
"""Names: beside this file lie `NAME.pth`, the model card `NAME.md`, and `NAME.sha256` as `sha256sum` writes it."""
ARTIFACTS = ("r2mrf-lite",)
"""Of these, `NAME.onnx` and its manifest lie there too."""
DEFAULT = "r2mrf-lite"
"""What `r2mrf predict` and `r2mrf demo` use when no network is named."""


def folder() -> Path:
    """Where the weights lie."""
    return Path(__file__).parent


def find(name: str) -> Path | None:
    """What a name stands for: the checkpoint, or, without PyTorch, the artifact if there is one; None if nothing is shipped.

    Raises:
        CheckpointError: the file is missing, or differs from what was shipped.
    """
    if name not in SHIPPED:
        return None
    return artifact(name) if name in ARTIFACTS and not importable("torch", "torchvision") else checkpoint(name)


def checkpoint(name: str) -> Path:
    """The checkpoint of shipped weights, for PyTorch. Raises as `find` does."""
    return _verified(f"{name}.pth")


def artifact(name: str) -> Path:
    """The ONNX artifact of one of `ARTIFACTS`. It takes photographs of any size, and computes what the checkpoint does, but
    for the rounding of its weights. Raises as `find` does."""
    assert name in ARTIFACTS
    return _verified(f"{name}.onnx", f"{name}.onnx.json")


def _verified(*files: str) -> Path:
    """The first of some files of the same name, all of which must be as they were shipped."""
    path = folder() / files[0]
    said = path.with_suffix(".sha256")
    lines = said.read_text(errors="replace").splitlines(keepends=True) if said.is_file() else []
    for each in map(path.with_name, files):
        if not each.is_file() or checksum(each) not in lines:
            raise CheckpointError(f"{each} is missing or damaged; install r2mrf-deploy again")
    return path


def checksum(path: Path) -> str:
    """The line of `sha256sum` for a file."""
    return f"{sha256(path)}  {path.name}\n"
