"""What `predict` is given: files, folders, globs, lists and addresses of object stores, as a stream of photographs.

Nothing of the stream is kept, so that a million photographs take no more memory than one folder's names. What a photograph's
outputs are called therefore depends on nothing but itself and its folder.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from r2mrf_deploy import images, large_images
from r2mrf_deploy.errors import InputError, UsageError, no_file
from r2mrf_deploy.files import short
from r2mrf_deploy.predict import stores
from r2mrf_deploy.predict.names import ROOM, names
from r2mrf_deploy.predict.stores import Source
from r2mrf_deploy.wording import masked

JOURNAL = "predictions.jsonl"
"""The file among the outputs that says what has been done; see `journal`."""
LISTING = "photographs.jsonl"
"""The file among the outputs of a run over a cluster that lists its photographs; see `parts`."""
MOST_SORTED = 100_000
"""The most photographs of one folder that are sorted: more come in the folder's own order, each with its whole name."""


@dataclass(frozen=True)
class _Group:
    """A folder, or a glob."""

    text: str
    root: Path
    """The folder, or where the glob begins."""
    deep: bool
    """Whether photographs may lie in folders in it."""
    pattern: bool = False


class Sources(Iterable[Source]):
    """The photographs among what a command was given.

    Args:
        given: files, folders, globs that the shell did not expand, addresses (`s3://bucket/folder`) that fsspec opens.
        listed: a stream of further names, one per line, or separated by NUL bytes if there is one near its beginning.
        output: the folder of the outputs. It is left out where it lies in a folder that is searched.
        recursive: search the folders in folders too. The outputs keep this structure.
        large: take what only `large_images` reads too: slides, JPEG XL.

    Raises:
        InputError: something that was named does not exist.
        UsageError: the outputs would lie among the photographs.
        ModuleNotFoundError: an address was named, and fsspec is not installed.
    """

    def __init__(
        self,
        given: Sequence[str | Path],
        *,
        output: Path,
        listed: BinaryIO | None = None,
        recursive: bool = False,
        large: bool = False,
    ) -> None:
        self._recursive, self._listed = recursive, listed
        self._suffixes = images.SUFFIXES | (large_images.SUFFIXES if large else frozenset())
        self._output = Path(os.path.realpath(output))
        files: dict[Path, None] = {}
        groups: dict[Path | str, _Group | str] = {}
        for each in map(stores.local, map(str, given)):
            path = Path(each)
            if "://" in each:
                stores.refuse_without_fsspec()
                groups[each] = each
            elif path.is_file():
                files[path] = None
            elif path.is_dir():
                groups[path.resolve()] = _Group(each, path, recursive)
            elif path.exists():
                raise no_file(path)
            elif glob.has_magic(each):
                root = Path(stores.fixed(each))
                groups[each] = _Group(each, root, len(path.parts) > len(root.parts) + 1, pattern=True)
            else:
                raise InputError(f"{each}: no such file ({self._supported})")
        self._groups = list(groups.values())
        self._names = dict(zip(files, names(list(files)), strict=True))
        self._real = {os.path.realpath(file): file for file in files}
        for group in self._local:
            self._refuse_among(group)
        roots = list(dict.fromkeys(map(_root, self._groups)))
        several = len(roots) + bool(files) + (listed is not None) > 1
        self._below = dict(zip(roots, names(roots, stems=False) if several else [""] * len(roots), strict=True))

    @property
    def one(self) -> bool:
        """Whether one file was named, and nothing else."""
        return len(self._names) == 1 and not self._groups and self._listed is None

    def holds(self, file: Path) -> Path | None:
        """The photograph, or the folder of photographs, that writing a file would change; None for other files."""
        real = Path(os.path.realpath(file))
        if str(real) in self._real:
            return self._real[str(real)]
        for group in self._local:
            root = group.root.resolve()
            within = real.is_relative_to(root) if group.deep else real.parent == root
            if within and not self._output.is_relative_to(root):
                return group.root
        return None

    @property
    def files(self) -> Iterator[Source]:
        """The photographs that were named one by one."""
        return (Source(os.path.abspath(file), name) for file, name in self._names.items())  # noqa: PTH100

    def __iter__(self) -> Iterator[Source]:
        yield from self.files
        for group in self._groups:
            what = "holds no images" if isinstance(group, _Group) and not group.pattern else "no such file"
            text = masked(group if isinstance(group, str) else group.text)
            yield from _or_said(self._in(group), Source(text, "", error=f"{text}: {what} ({self._supported})"))
        if self._listed is not None:
            for line in _lines(self._listed):
                yield from self._of_list(line)

    def count(self) -> int | None:
        """How many there are; None where only reading a list or asking an object store could tell."""
        if self._listed is not None or len(list(self._local)) < len(self._groups):
            return None
        return sum(1 for _ in self)

    @property
    def _local(self) -> Iterator[_Group]:
        return (group for group in self._groups if isinstance(group, _Group))

    @property
    def _supported(self) -> str:
        return f"supported suffixes: {' '.join(sorted(self._suffixes))}"

    def _is_named_as_image(self, name: str) -> bool:
        return images.named_as_image(Path(name), self._suffixes)

    def _in(self, group: _Group | str) -> Iterator[Source]:
        below = PurePosixPath(self._below[_root(group)])
        if isinstance(group, str):
            yield from stores.photographs(group, below, self._is_named_as_image, recursive=self._recursive)
        elif group.pattern:
            yield from self._matching(group, below)
        else:
            yield from self._walked(group.root, below)

    def _walked(self, folder: Path, below: PurePosixPath) -> Iterator[Source]:
        """The photographs in a folder, and in the folders in it if they are searched too."""
        inner: list[str] = []
        try:
            with os.scandir(folder) as entries:
                stream = self._images_of(entries, inner)
                head = list(islice(stream, MOST_SORTED))
                for name, called in _named(folder, head, stream):
                    yield Source(os.path.abspath(folder / name), str(below / called))  # noqa: PTH100
        except OSError as e:
            yield Source(str(folder), "", error=f"{folder} cannot be searched: {e.strerror}")
        for name in sorted(inner) if self._recursive else ():
            if (folder / name).resolve() != self._output:
                yield from self._walked(folder / name, below / name)

    def _images_of(self, entries: Iterable[os.DirEntry[str]], inner: list[str]) -> Iterator[str]:
        """The names of the images among a folder's entries; the names of its folders are added to `inner`."""
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                inner.append(entry.name)
            elif self._is_named_as_image(entry.name) and os.path.isfile(entry.path):  # noqa: PTH113
                yield entry.name

    def _matching(self, group: _Group, below: PurePosixPath) -> Iterator[Source]:
        """The photographs that a glob matches. They are called as they would be if their whole folder had been named."""

        @lru_cache(maxsize=8)
        def called(folder: Path) -> dict[str, str]:
            with os.scandir(folder) as entries:
                found = list(islice(self._images_of(entries, []), MOST_SORTED))
            return dict(_named(folder, found, ()))

        for match in glob.iglob(group.text, recursive=True):  # noqa: PTH207
            path = Path(match)
            if not self._is_named_as_image(path.name) or not os.path.isfile(path):  # noqa: PTH113
                continue
            if not path.resolve().is_relative_to(self._output):
                place = below.joinpath(*path.parent.relative_to(group.root).parts)
                name = called(path.parent).get(path.name) or short(path.name, path, ROOM)
                yield Source(os.path.abspath(path), str(place / name))  # noqa: PTH100

    def _of_list(self, text: str) -> Iterator[Source]:
        """A line of a list: a photograph, whose outputs keep its folders and its whole name."""
        try:
            text = stores.local(text)
            if "://" in text:
                place = PurePosixPath(*_root(text).parts[1:-1])
                found = stores.photographs(text, place, self._is_named_as_image, recursive=self._recursive)
                yield from _or_said(found, Source(masked(text), "", error=f"{masked(text)}: no such file"))
                return
            path = Path(os.path.normpath(text))
            if ".." in path.parts:
                path = path.absolute().resolve()
            inside = Path(os.path.realpath(path)).is_relative_to(self._output)
        except (OSError, ValueError) as e:  # a NUL byte in a list of lines
            yield Source(masked(text), "", error=f"{masked(text)!r} is no path: {masked(str(e))}")
            return
        error = f"{path} lies in the `output` folder: choose another" if inside else None
        parts = (path.drive.rstrip(":"), *path.parts[1:]) if path.is_absolute() else path.parts
        name = PurePosixPath(*parts[:-1], short(path.name, path, ROOM))
        yield Source(os.path.abspath(path), str(name), error=error)  # noqa: PTH100

    def _refuse_among(self, group: _Group) -> None:
        """Refuse an output folder that is searched too, unless it holds nothing but outputs."""
        root, cure = group.root.resolve(), "name another `output` folder"
        if self._output == root:
            raise UsageError(f"the outputs would lie among the photographs in {group.root}: {cure}")
        inside, ours = group.deep and self._output.is_relative_to(root), (self._output / JOURNAL).is_file()
        if inside and self._output.is_dir() and any(self._output.iterdir()) and not ours:
            raise UsageError(f"{self._output} lies in {group.root} and holds other files than outputs: {cure}")


def _root(group: _Group | str) -> Path:
    """Where a group's photographs lie; of an address, a path that is its own."""
    return group.root.resolve() if isinstance(group, _Group) else Path("/", *stores.fixed(group).split("://"))


def _or_said(found: Iterator[Source], nothing: Source) -> Iterator[Source]:
    """What was found; or, if that is nothing, what to say about it."""
    first = next(found, nothing)
    yield first
    yield from found


def _named(folder: Path, head: list[str], stream: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each file of a folder, and what its outputs are called: `head` in order; or all as they come, if it is not all."""
    if len(head) < MOST_SORTED:
        head = sorted(head)
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
