"""What `predict` is given: files, folders, globs, lists and addresses of object stores, as a stream of photographs.

Nothing of the stream is kept, so that a million photographs take no more memory than one. A photograph's name among the
outputs therefore depends on nothing but itself and its folder.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from r2mrf_deploy import images
from r2mrf_deploy.errors import InputError, UsageError, first_line, no_file
from r2mrf_deploy.files import short
from r2mrf_deploy.predict.names import ROOM, names

JOURNAL = "predictions.jsonl"
"""The file among the outputs that says what has been done; see `journal`."""
MOST_SORTED = 100_000
"""The most files of one folder that are sorted by name: more come in the folder's own order, each with its whole name."""
MOST_BYTES = 2 << 30
"""The largest file that is fetched from an object store."""


@dataclass(frozen=True)
class Source:
    """A photograph that is to be read; or what cannot be read, with the reason."""

    address: str
    """Its absolute path, or its address in an object store."""
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


class Sources(Iterable[Source]):
    """The photographs among what a command was given.

    Args:
        given: files, folders, globs that the shell did not expand, addresses (`s3://bucket/folder`) that fsspec opens.
        listed: a stream of further names, one per line, or separated by NUL bytes if there is one.
        output: the folder of the outputs. It is left out where it lies in a folder that is searched.
        recursive: search the folders in folders too. The outputs keep this structure.

    Raises:
        InputError: something that was named does not exist.
        UsageError: the outputs would lie among the photographs.
    """

    def __init__(
        self,
        given: Sequence[str | Path],
        *,
        output: Path,
        listed: BinaryIO | None = None,
        recursive: bool = False,
    ) -> None:
        self._recursive, self._listed = recursive, listed
        self._output = os.path.realpath(output)
        self._files: list[Path] = []
        self._groups: list[str | Path] = []
        for each in map(str, dict.fromkeys(map(str, given))):
            if "://" in each:
                self._groups.append(each)
            elif Path(each).is_file():
                self._files.append(Path(each))
            elif Path(each).is_dir():
                self._refuse_among(Path(each))
                self._groups.append(Path(each))
            elif Path(each).exists():
                raise no_file(Path(each))
            elif any(c in each for c in "*?["):
                self._groups.append(each)
            else:
                raise InputError(f"{each}: no such file ({_supported()})")
        self._names = dict(zip(self._files, names(self._files), strict=True))
        self._real = {os.path.realpath(file): file for file in self._files}
        folders = [group for group in self._groups if isinstance(group, Path)]
        self._roots = [os.path.realpath(folder) for folder in folders]
        several = len(self._groups) + bool(self._files) + (listed is not None) > 1
        self._below = dict(zip(self._groups, self._group_names() if several else [""] * len(self._groups), strict=True))

    @property
    def one(self) -> bool:
        """Whether one file was named, and nothing else."""
        return len(self._files) == 1 and not self._groups and self._listed is None

    def holds(self, file: Path) -> Path | None:
        """The photograph, or the folder of photographs, that writing a file would change; None for other files."""
        real = os.path.realpath(file)
        if real in self._real:
            return self._real[real]
        for root in self._roots:
            within = os.path.commonpath((real, root)) == root if self._recursive else Path(real).parent == Path(root)
            if within and os.path.commonpath((self._output, root)) != root:
                return Path(root)
        return None

    @property
    def files(self) -> Iterator[Source]:
        """The photographs that were named one by one."""
        return (Source(os.path.abspath(file), name) for file, name in self._names.items())  # noqa: PTH100

    def __iter__(self) -> Iterator[Source]:
        yield from self.files
        for group in self._groups:
            found = self._in(group)
            if (first := next(found, None)) is None:
                what = "holds no images" if isinstance(group, Path) else "no such file"
                yield Source(str(group), "", error=f"{group}: {what} ({_supported()})")
                continue
            yield first
            yield from found
        if self._listed is not None:
            yield from map(self._of_list, _lines(self._listed))

    def count(self) -> int | None:
        """How many there are; None where only reading a list or asking an object store could tell."""
        if self._listed is not None or any("://" in str(group) for group in self._groups):
            return None
        return sum(1 for _ in self)

    def _in(self, group: str | Path) -> Iterator[Source]:
        below = self._below[group]
        if isinstance(group, str) and "://" in group:
            yield from _in_store(group, below, self._recursive)
            return
        if isinstance(group, Path):
            root, folders = group, self._walked(group)
        else:
            root = Path(_fixed(str(group)))
            found = (Path(p) for p in glob.iglob(group, recursive=True))  # noqa: PTH207
            files = (p for p in found if images.named_as_image(p) and p.is_file())
            folders = ((folder, (p.name for p in inside)) for folder, inside in groupby(files, lambda p: p.parent))
        for folder, inside in folders:
            if isinstance(inside, OSError):
                yield Source(str(folder), "", error=f"{folder} cannot be searched: {inside.strerror}")
                continue
            place = PurePosixPath(below, *folder.relative_to(root).parts)
            for name, called in _named(folder, inside):
                yield Source(os.path.abspath(folder / name), str(place / called))  # noqa: PTH100

    def _walked(self, folder: Path) -> Iterator[tuple[Path, Iterable[str] | OSError]]:
        """Each folder with the images in it, or why it cannot be searched."""
        inner: list[str] = []
        try:
            with os.scandir(folder) as entries:
                yield folder, _images_of(entries, inner)
        except OSError as e:
            yield folder, e
        for name in sorted(inner) if self._recursive else ():
            if os.path.realpath(folder / name) != self._output:
                yield from self._walked(folder / name)

    def _of_list(self, text: str) -> Source:
        """A photograph of a list: the outputs keep its folders, and its whole name."""
        if "://" in text:
            return next(_in_store(text, "", False))
        path = Path(os.path.normpath(text))
        if ".." in path.parts:
            path = path.absolute().resolve()
        error = None
        if os.path.commonpath((os.path.realpath(path), self._output)) == self._output:
            error = f"{path} lies in the `output` folder: choose another"
        parts = path.parts[1:] if path.is_absolute() else path.parts
        name = PurePosixPath(*parts[:-1], short(path.name, path, ROOM))
        return Source(os.path.abspath(path), str(name), error=error)  # noqa: PTH100

    def _group_names(self) -> list[str]:
        """The folder of each group's outputs, below the output folder."""
        roots = [_fixed(str(group).partition("://")[2] or str(group)) for group in self._groups]
        return names([Path(root).resolve() for root in roots], stems=False)

    def _refuse_among(self, folder: Path) -> None:
        """Refuse an output folder that is searched too, unless it holds nothing but outputs."""
        root, cure = os.path.realpath(folder), "name another `output` folder"
        if self._output == root:
            raise UsageError(f"the outputs would lie among the photographs in {folder}: {cure}")
        inside = self._recursive and os.path.commonpath((self._output, root)) == root
        output = Path(self._output)
        if inside and output.is_dir() and any(output.iterdir()) and not (output / JOURNAL).is_file():
            raise UsageError(f"{self._output} lies in {folder} and holds other files than outputs: {cure}")


def _supported() -> str:
    return f"supported suffixes: {' '.join(sorted(images.SUFFIXES))}"


def _fixed(pattern: str) -> str:
    """The folder that a glob begins with, before its first wildcard; any other path as it is."""
    wild = [pattern.index(c) for c in "*?[" if c in pattern]
    return os.path.dirname(pattern[: min(wild)]) if wild else pattern  # noqa: PTH120


def _images_of(entries: Iterable[os.DirEntry[str]], inner: list[str]) -> Iterator[str]:
    """The names of the images among a folder's entries; the names of its folders are added to `inner`."""
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            inner.append(entry.name)
        elif images.named_as_image(Path(entry.name)):
            with suppress(OSError):  # a link to where nobody may look
                if entry.is_file():
                    yield entry.name


def _named(folder: Path, inside: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each file of a folder, and what its outputs are called."""
    stream = iter(inside)
    head = sorted(islice(stream, MOST_SORTED))
    if len(head) < MOST_SORTED:
        yield from zip(head, names([folder / name for name in head]), strict=True)
    else:
        yield from ((name, short(name, folder / name, ROOM)) for name in chain(head, stream))


def _lines(stream: BinaryIO) -> Iterator[str]:
    """The names in a list, which NUL bytes separate if there is one near its beginning, else line ends."""
    rest = stream.read(1 << 16)
    separator = b"\0" if b"\0" in rest else b"\n"
    while rest:
        *complete, rest = rest.split(separator)
        more = stream.read(1 << 16)
        if not more:
            complete, rest = [*complete, rest], b""
        for line in complete:
            if text := os.fsdecode(line if separator == b"\0" else line.rstrip(b"\r")):
                yield text
        rest += more


def _in_store(address: str, below: str, recursive: bool) -> Iterator[Source]:
    """The photographs at an address that fsspec opens: a file, a folder or a glob."""
    import fsspec

    try:
        store, path = fsspec.core.url_to_fs(address)
        root = _fixed(path).rstrip("/")
        if root != path.rstrip("/"):
            found = store.glob(path)
        elif store.isdir(path):
            found = store.find(path, maxdepth=None if recursive else 1)
        else:
            stem = PurePosixPath(path.partition("?")[0]).stem or "image"
            yield _stored(store, path, str(PurePosixPath(below, short(stem, Path(path), ROOM))))
            return
    except Exception as e:  # each store raises what its library does
        yield Source(address, "", error=f"{address} cannot be opened: {first_line(e)}")
        return
    found = sorted(found, key=lambda p: p.rpartition("/")[::2])
    for folder, inside in groupby(found, lambda p: p.rpartition("/")[0]):
        prefix = PurePosixPath(below, folder.removeprefix(root).strip("/"))
        files = [p.rpartition("/")[2] for p in inside]
        kept = [name for name in files if images.named_as_image(Path(name))]
        for name, called in _named(Path("/", folder), kept):
            yield _stored(store, f"{folder}/{name}", str(prefix / called))


def _stored(store: Any, path: str, name: str) -> Source:
    address = store.unstrip_protocol(path)

    def read() -> bytes:
        try:
            size = store.size(path)
            if size and size > MOST_BYTES:
                raise InputError(f"{address} has {size >> 20:,} MiB: fetch it, and name the file")
            return store.cat_file(path)
        except InputError:
            raise
        except Exception as e:
            raise InputError(f"{address} cannot be fetched: {first_line(e)}") from None

    return Source(address, name, read=read)
