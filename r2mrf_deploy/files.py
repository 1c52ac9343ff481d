"""Files that are written whole or not at all, and identified by their SHA-256."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from r2mrf_deploy.errors import ArtifactError

try:
    import fcntl
except ImportError:  # Windows: there, two processes must not write the same file
    fcntl = None  # type: ignore[assignment]


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
    """Refuse a path that cannot be written, before there is anything to write.

    Raises:
        ArtifactError: it is a folder, or its folder cannot be written or made.
    """
    folder = next(p for p in (path.parent, *path.parent.resolve().parents) if p.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write {path}: {'it' if path.is_dir() else folder} is not a folder to write to")


def write_atomically(path: Path, content: bytes | Callable[[Path], object]) -> Path:
    """Write a file whole or not at all.

    Args:
        path: the file. Missing folders are made.
        content: its bytes, or a function that writes them to the path that it is given.

    Raises:
        ArtifactError: the folder cannot be written, or the disk is full; a file at `path` is left as it was.
    """
    with staging(path) as folder:
        temporary = folder / "content"
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            content(temporary)
        flush(temporary)
        temporary.replace(path)
    return path


@contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, to prepare files in that are then moved to their place.

    The folder is removed in the end. A killed process leaves one behind: the next staging of the same path removes it.

    Raises:
        ArtifactError: the file system refused something that was done with files inside the block.
    """
    prefix = f".r2mrf-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}-"  # short, however long the name is
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent):
            for left in path.parent.glob(f"{prefix}*"):
                with suppress(BlockingIOError, FileNotFoundError), locked(left, wait=False) as dead:
                    if dead:
                        shutil.rmtree(left, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
            alive = locked(folder)
            alive.__enter__()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            alive.__exit__(None, None, None)
    except OSError as e:
        raise ArtifactError(f"cannot write {path}: {e.strerror or e}") from None


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a folder's lock: only one process at a time does. The kernel frees it when the process ends.

    Yields:
        Whether it is held: some systems and file systems have no such locks.

    Raises:
        BlockingIOError: another process holds it, with `wait=False`.
    """
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        held = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:
            held = False
        yield held
    finally:
        os.close(handle)


def flush(path: Path) -> None:
    """Have a file on the disk before it is moved to its place."""
    with path.open("rb") as f:
        os.fsync(f.fileno())
