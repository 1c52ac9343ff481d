"""Files that are written whole or not at all, and identified by their SHA-256.

An output is a new file or replaces a regular one. A symbolic link, a named pipe, a device or a folder is refused: to replace
it would lose it, and to follow it would write elsewhere than where the user says.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from r2mrf_deploy.errors import ArtifactError, R2mrfError

try:
    import fcntl
except ImportError:  # Windows, where two processes must not write the same file
    fcntl = None  # type: ignore[assignment]


LARGEST_DOCUMENT = 16 << 20
"""Bytes of a JSON or text file that is read at all. Ours have some tens of KiB."""


def document(path: Path) -> bytes:
    """The content of a JSON or text file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a regular file, or is larger than any that was meant to be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    with path.open("rb") as f:
        content = f.read(LARGEST_DOCUMENT + 1)
    if len(content) > LARGEST_DOCUMENT:
        raise ValueError(f"it is larger than {LARGEST_DOCUMENT >> 20} MiB")
    return content


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refuse_unwritable(path: Path) -> None:
    """Refuse a path that cannot be written, before there is anything to write.

    Raises:
        ArtifactError: it is no regular file, or its folder cannot be written or made.
    """
    refuse_special(path)
    folder = next(p for p in (path.parent, *path.parent.resolve().parents) if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write {path}: {folder} is not a writable folder")


def refuse_special(path: Path) -> None:
    """Refuse an output path at which there is something other than a regular file.

    Raises:
        ArtifactError: there is a symbolic link, a folder, a named pipe or a device.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:  # there is nothing, or writing will say what is wrong
        return
    if stat.S_ISLNK(mode):
        raise ArtifactError(
            f"cannot write {path}: it is a symbolic link to {path.readlink()}; name that file, or remove the link"
        )
    if stat.S_ISDIR(mode):
        raise ArtifactError(f"cannot write {path}: it is a folder")
    if not stat.S_ISREG(mode):
        raise ArtifactError(f"cannot write {path}: it is a named pipe or a device; name a regular file")


def refuse_outside(path: Path, within: Path | None) -> None:
    """Refuse an output path, made of names from outside, that leads out of the folder `within`, if one is given.

    Raises:
        ArtifactError: it does.
    """
    if within is not None and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(within)):
        raise ArtifactError(f"cannot write {path}: it lies outside the folder {within}")


def write_atomically(
    path: Path,
    content: bytes | Callable[[Path], object],
    *,
    within: Path | None = None,
    staged: Path | None = None,
) -> Path:
    """Write a file whole or not at all.

    Args:
        path: the file. Missing folders are made.
        content: its bytes, or a function that writes them to the path it is given.
        within: a folder that must contain the file, for a path that is made of names from outside.
        staged: a folder that `staging` has made on the same disk, for many files: making one for each takes its time.

    Raises:
        ArtifactError: the path leads out of `within`, is no regular file, its folder cannot be written, or the disk is
            full. A file at `path` is unchanged.
    """
    refuse_special(path)
    refuse_outside(path, within)
    with staging(path) if staged is None else _writing(path) as folder:
        temporary = (staged or folder) / f"content-{threading.get_ident()}"
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            content(temporary)
        flush(temporary)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(path)
    return path


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Turn an OSError into the error that a path cannot be written; yields its folder."""
    try:
        yield path.parent
    except OSError as e:
        raise ArtifactError(f"cannot write {path}: {e.strerror or e}") from None


@contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` in which files are prepared before they are moved to their place.

    The folder is removed at the end. A killed process leaves it behind; the next staging of the same path removes it.

    Raises:
        ArtifactError: an OSError inside the block, or any other exception while the disk is full: C++ libraries do not say
            that it is.
    """
    prefix = f".r2mrf-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}-"  # short, however long the name is
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as alive:
            with locked(path.parent):
                for left in path.parent.glob(f"{prefix}*"):
                    with suppress(BlockingIOError, FileNotFoundError), locked(left, wait=False) as dead:
                        if dead:
                            shutil.rmtree(left, ignore_errors=True)
                folder = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
                alive.enter_context(locked(folder))
            try:
                yield folder
            except Exception as e:
                if not isinstance(e, OSError):
                    _probe(folder)
                raise
            finally:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """A private folder for intermediate files, removed at the end. Raises as `staging` does."""
    try:
        with tempfile.TemporaryDirectory(prefix="r2mrf-", ignore_cleanup_errors=True) as name:
            try:
                yield Path(name)
            except R2mrfError:
                raise
            except Exception as e:
                if not isinstance(e, OSError):
                    _probe(Path(name))
                raise
    except OSError as e:
        where = f"{tempfile.gettempdir()} (another folder: TMPDIR=FOLDER)"
        raise ArtifactError(f"cannot write a temporary file in {where}: {e.strerror or e}") from e


def _probe(folder: Path) -> None:
    """Write on where a library has just failed. Raises the OSError that it kept to itself, if there is one."""
    for file in (*(p for p in folder.rglob("*") if p.is_file()), folder / "probe"):
        with file.open("ab") as f:
            f.write(bytes(1 << 20))
            flush(file)


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a folder's lock, which one process at a time can hold. The kernel frees it when the process ends.

    Yields:
        Whether the lock is held: some systems and file systems have no such locks.

    Raises:
        BlockingIOError: with `wait=False`, another process holds the lock.
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


def short(name: str, source: Path, room: int, *, always: bool = False) -> str:
    """A file name of at most `room` bytes: `name`; or, if it is longer or `always`, what fits of it beside a digest of the
    path of its source."""
    if not always and len(os.fsencode(name)) <= room:
        return name
    digest = f"-{hashlib.sha256(os.fsencode(source.absolute())).hexdigest()[:8]}"
    while len(os.fsencode(name)) > room - len(digest):
        name = name[:-1]
    return name + digest


def flush(path: Path) -> None:
    """Wait until a file is on the disk, so that it can be moved to its place."""
    with path.open("rb") as f:
        os.fsync(f.fileno())
