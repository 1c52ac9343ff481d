"""Files written whole or not at all, and known by their SHA-256."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r2mrf_deploy.errors import ArtifactError


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(f)


def _sha256(f: Any) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := f.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def refuse_unwritable(path: Path) -> None:
    """Say that a file cannot be written before there is anything to write.

    Raises:
        ArtifactError: it is a folder, or its folder cannot be written or made.
    """
    folder = next(p for p in (path.parent, *path.parent.resolve().parents) if p.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write {path}: {'it' if path.is_dir() else folder} is not a folder to write to")


def write_atomically(path: Path, content: bytes | Callable[[Path], object]) -> Path:
    """Write a file whole or not at all: to a temporary file beside it, then rename.

    Args:
        path: where the file shall be; missing folders are made.
        content: the bytes, or a function that writes them to the path it is given.

    Raises:
        ArtifactError: the folder cannot be written, or the disk is full; an existing file at `path` is left as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    except OSError as e:
        raise ArtifactError(f"cannot write {path}: {e.strerror or e}") from None
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as f:
            if isinstance(content, bytes):
                f.write(content)
        if not isinstance(content, bytes):
            content(temporary)
        with temporary.open("rb") as f:
            os.fsync(f.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as e:
        raise ArtifactError(f"cannot write {path}: {e.strerror or e}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path
