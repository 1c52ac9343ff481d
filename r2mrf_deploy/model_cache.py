"""What runtimes compiled of models, kept in a folder of the user, so that a model opens faster the next time.

Whatever lies in the folder is only a copy of what can be made again. It is computed with, though, so the folder must be one
that nobody else can write. A file's name holds its key, its length and its CRC-32, which find damage; a damaged file is
removed, and the model is opened as if there were none. Nothing in here ever fails: without a place to write, there is no
cache. The files that were not used for the longest time make room for new ones.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from r2mrf_deploy import environment
from r2mrf_deploy.files import locked

FOLDER = "r2mrf-deploy"
LIMIT = 2 << 30
"""Bytes that a cache holds at most."""
ABANDONED = 3600.0
"""Seconds after which an unfinished file belongs to a process that was killed."""
_UNFINISHED = ".r2mrf-unfinished-"
_NAME = re.compile(r"[0-9a-f]{40}-\d+-[0-9a-f]{8}")
"""The names of what is kept: whatever else lies in the folder is somebody's own."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelCache:
    """A folder of compiled models that only its user can write."""

    folder: Path
    limit: int = LIMIT
    """Bytes that it may hold."""

    @classmethod
    def of_user(cls) -> ModelCache | None:
        """The user's cache: `r2mrf-deploy` below R2MRF_CACHE, or else below XDG_CACHE_HOME or `~/.cache`.

        Returns:
            None where the folder cannot be made; or is not safe, or is a file, which is logged.
        """
        try:
            folder = _place()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            reason = _unsafe(folder)
        except (FileExistsError, NotADirectoryError):
            reason = "it, or a folder above it, is a file or a link to nothing"
        except (OSError, RuntimeError):  # a read-only home, or none
            return None
        if reason:
            _LOG.warning(
                "the cache %s is not used, because %s: make it yours alone, or name another (R2MRF_CACHE)",
                folder,
                reason,
            )
            return None
        return cls(folder)

    def find(self, key: str) -> Path | None:
        """The file that was kept under a key of `key`, as it was kept; None if there is none. A damaged one is removed."""
        for file in _kept(self.folder, key):
            with suppress(OSError):
                if _is_sound(file):
                    with suppress(OSError):  # of a cache that can only be read
                        os.utime(file)  # it was used
                    _LOG.debug("found a compiled model: %s", file)
                    return file
            _LOG.debug("removed a damaged file: %s", file)
            self.discard(file)
        _LOG.debug("no compiled model is kept in %s", self.folder)
        return None

    def discard(self, file: Path) -> None:
        """Remove a file that is of no use."""
        with suppress(OSError):
            file.unlink()

    @contextmanager
    def adding(self, key: str) -> Iterator[Path | None]:
        """Keep, under a key of `key`, what is written to the path that this yields, if it is there in the end.

        Yields:
            The path of a file that is not there yet; None where the folder cannot be written. What cannot be kept is not.

        Raises:
            Exception: what is raised within; nothing is kept then.
        """
        place = None
        with suppress(OSError):
            place = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.folder))
        file = place / "model" if place else None
        try:
            yield file
            if file is not None:
                with suppress(OSError):
                    self._keep(file, key)
        finally:
            if place is not None:
                _remove(place)

    def _keep(self, file: Path, key: str) -> None:
        size = file.stat().st_size
        if not 0 < size <= self.limit:
            return
        file.chmod(0o600)
        name = f"{key}-{size}-{_crc(file):08x}"
        with locked(self.folder):
            self._make_room(size)
            file.replace(self.folder / name)
        _LOG.debug("kept a compiled model of %d bytes: %s", size, self.folder / name)

    def _make_room(self, size: int) -> None:
        """Remove those that were not used for the longest time, and what killed processes left, until `size` bytes fit."""
        for left in self.folder.glob(f"{_UNFINISHED}*"):
            with suppress(OSError):
                if time.time() - left.lstat().st_mtime > ABANDONED:
                    _remove(left)
        kept = []
        for file in _kept(self.folder):
            with suppress(OSError):  # another process removed it
                status = file.lstat()
                kept.append((status.st_mtime, status.st_size, file))
        held = sum(length for _, length, _ in kept)
        for _, length, file in sorted(kept):
            if held + size <= self.limit:
                return
            self.discard(file)
            held -= length


def key(*facts: object) -> str:
    """A name for what this machine makes of some facts: the model's SHA-256, the runtime with its version, its settings.

    The processor and its instructions are among the facts, since compiled models use what is there.
    """
    return hashlib.sha256(repr((_processor(), *facts)).encode()).hexdigest()[:40]


@cache
def _processor() -> tuple[str, ...]:
    return platform.system(), platform.machine(), environment.cpu(), *environment.instructions()


def _place() -> Path:
    """Where the user's cache is: a folder of its own. Raises RuntimeError if the user has no home."""
    if own := os.environ.get("R2MRF_CACHE"):
        return Path(own).expanduser().absolute() / FOLDER
    general = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # the specification of base directories says that a relative path is ignored
    return (general if general.is_absolute() else Path.home() / ".cache") / FOLDER


def _unsafe(folder: Path) -> str:
    """Why somebody else might have put files into a folder; empty if nobody can have."""
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "it is a symbolic link"
    if not stat.S_ISDIR(status.st_mode):
        return "it is no folder"
    above = folder.parent.stat().st_mode
    if hasattr(os, "geteuid") and above & stat.S_IWOTH and not above & stat.S_ISVTX:
        return "other users can replace it, since they can write the folder above it"
    return _shared(status)


def _shared(status: os.stat_result) -> str:
    """Why a file or folder is not the user's alone to write; empty if it is, and where systems have no such rights."""
    if not hasattr(os, "geteuid"):
        return ""
    if status.st_uid != os.geteuid():
        return "it belongs to another user"
    return "other users can write it" if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


def _kept(folder: Path, key: str = "") -> list[Path]:
    """What is kept in a folder, under a key if one is given."""
    with suppress(OSError):
        return sorted(f for f in folder.iterdir() if f.name.startswith(key) and _NAME.fullmatch(f.name))
    return []


def _is_sound(file: Path) -> bool:
    """Whether a file is a regular one of the user's, with the length and the CRC-32 of its name."""
    _, size, crc = file.name.split("-")
    status = file.lstat()
    whole = stat.S_ISREG(status.st_mode) and not _shared(status) and str(status.st_size) == size
    return whole and f"{_crc(file):08x}" == crc


def _crc(file: Path) -> int:
    """The CRC-32 of a file: it finds accidents, at more than twice the speed of SHA-256."""
    found = 0
    with file.open("rb") as f:
        while block := f.read(1 << 20):
            found = zlib.crc32(block, found)
    return found


def _remove(folder: Path) -> None:
    """Remove a folder that holds files only."""
    with suppress(OSError):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
