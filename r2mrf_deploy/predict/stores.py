"""Photographs in object stores and on servers: whatever fsspec opens, folder by folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from r2mrf_deploy.errors import InputError, UsageError, first_line
from r2mrf_deploy.files import short
from r2mrf_deploy.predict.names import ROOM, names
from r2mrf_deploy.wording import masked

MOST_BYTES = 1 << 30
"""The largest file that is fetched."""


@dataclass(frozen=True)
class Source:
    """A photograph that is to be read; or what cannot be read, with the reason."""

    address: str
    """Its absolute path, or its address in an object store, without a password."""
    name: str
    """What its outputs are called, before their endings, below the output folder: `2026/harbour`."""
    read: Callable[[], bytes] | None = None
    """Fetches what is not a local file."""
    error: str | None = None

    def content(self) -> Path | bytes:
        """The file, or what was fetched of it."""
        return Path(self.address) if self.read is None else self.read()

    def size(self) -> int | None:
        """In bytes; None where that is not known without reading it."""
        if self.read is not None:
            return None
        try:
            return Path(self.address).stat().st_size
        except OSError:
            return None


def refuse_without_fsspec() -> None:
    """Raise ModuleNotFoundError if addresses cannot be opened."""
    import fsspec  # noqa: F401


def system(address: str) -> Any:
    """fsspec's file system of an address.

    Raises:
        InputError: there is none, or it cannot be reached.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)[0]
    except Exception as e:  # each store raises what its library does
        raise InputError(f"{masked(address)} cannot be opened: {masked(first_line(e))}") from None


def refuse_passwords(address: str) -> None:
    """Refuse an address whose password would be part of each file's name: fsspec calls those of web servers so.

    Raises:
        UsageError: it has a user's name or a password.
    """
    if re.search(r"https?://[^/?#\s]*@", address):
        raise UsageError(
            f"{masked(address)}: with `ray`, whose list has the names of all files, a web address has no user and password: "
            "leave them out, and give the header Authorization by `client_kwargs` in fsspec's configuration of http"
        )


def local(text: str) -> str:
    """The path of a `file:` address; anything else as it is."""
    if not text.startswith(("file://", "local://")):
        return text
    from urllib.request import url2pathname  # whose import takes the time of reading a photograph

    return url2pathname(urlsplit(text).path)


def fixed(pattern: str) -> str:
    """Where a glob begins: the folder before its first wildcard; any other path as it is."""
    wild = [pattern.index(c) for c in _wildcards(pattern) if c in pattern]
    return pattern[: min(wild)].rpartition("/")[0] or ("/" if pattern.startswith("/") else ".") if wild else pattern


def _wildcards(pattern: str) -> str:
    return "*" if pattern.startswith(("http://", "https://")) else "*?["  # a question mark begins a query there


def photographs(
    address: str, below: PurePosixPath, is_image: Callable[[str], bool], *, recursive: bool = False
) -> Iterator[Source]:
    """The photographs at an address: of a file, a folder or a glob. Those that were named, or match, keep their whole names.

    Args:
        below: the folder of their outputs, below the output folder.
        is_image: whether a name is that of an image.
        recursive: search the folders in folders too.
    """
    try:
        import fsspec

        store, path = fsspec.core.url_to_fs(address)
        if any(c in path for c in _wildcards(address)) and not store.exists(path):
            root = fixed(path)
            for match in store.glob(path):
                folder, _, name = match.rpartition("/")
                if is_image(name):
                    place = below / folder.removeprefix(root).strip("/")
                    yield _source(store, match, place / short(name, Path(match), ROOM))
        elif not is_image(path) and store.isdir(path):
            root = path.rstrip("/")
            for folder, _, files in store.walk(path, maxdepth=None if recursive else 1):
                place = below / folder.removeprefix(root).strip("/")
                for name, called in _called(folder, filter(is_image, files)):
                    yield _source(store, f"{folder.rstrip('/')}/{name}", place / called)
        else:
            name = PurePosixPath(path.partition("?")[0]).name
            yield _source(store, path, below / short(name or "image", Path(path), ROOM))
    except Exception as e:  # each store raises what its library does
        yield Source(masked(address), "", error=f"{masked(address)} cannot be opened: {masked(first_line(e))}")


def _called(folder: str, files: Iterable[str]) -> Iterator[tuple[str, str]]:
    found = sorted(files)
    return zip(found, names([Path("/", folder, name) for name in found]), strict=True)


@dataclass(frozen=True)
class Fetch:
    """Reads a file of a store."""

    store: Any
    """fsspec's file system."""
    path: str
    """The file, as the store calls it."""
    address: str
    """Its address for people, without a password."""

    def __call__(self) -> bytes:
        try:
            with self.store.open(self.path, "rb") as f:
                content = f.read(MOST_BYTES + 1)
        except Exception as e:
            raise InputError(f"{self.address} cannot be fetched: {masked(first_line(e))}") from None
        if len(content) > MOST_BYTES:
            raise InputError(f"{self.address} has more than {MOST_BYTES >> 20:,} MiB: fetch it, and name the file")
        return content


def _source(store: Any, path: str, name: PurePosixPath) -> Source:
    address = masked(store.unstrip_protocol(path))
    return Source(address, _safe(name), Fetch(store, path, address))


def _safe(name: PurePosixPath) -> str:
    """A name of outputs without what leads out of their folder."""
    return str(PurePosixPath(*(part for part in name.parts if part not in ("..", "/"))))
