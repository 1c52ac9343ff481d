"""What a run over a cluster keeps on disk: a list of the photographs, cut into numbered parts, and a Parquet file of each.

The list is written first and never changed. So a part holds the same photographs whoever works on it and however often, its
file appears whole under its number or not at all, and says itself of which run it is and whether something in it failed.
Killing anything at any time therefore loses no row and doubles none: at worst a part is made again, and replaces its equal.

(Ray Data's own checkpoints do not promise that. Its Parquet files have random names, and are written where they are read: a
worker that outlives its driver can write one after the run that followed has tidied up and begun to make the same rows.)
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r2mrf_deploy.concurrency import ordered_map
from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.predict import summaries
from r2mrf_deploy.predict.journal import run_of
from r2mrf_deploy.predict.sources import LISTING
from r2mrf_deploy.predict.stores import Fetch, Source
from r2mrf_deploy.progress import Progress, ProgressCallback

SIZE = 64
"""Photographs of a part: what is read, computed and written together, and what is done again after something was killed."""
READERS = 16
"""Files of parts whose metadata are read at once."""
ROW_GROUP = 64 << 20
"""Bytes of outputs after which a Parquet file begins a new row group: so many are in memory."""
MOST_DEATHS = 3
"""How many workers may die of a photograph, or of a step, before it is given up."""
_NAME = re.compile(r"part-(\d{7,})\.parquet")
_RUN, _FAILED = b"r2mrf.run", b"r2mrf.failed"
"""Names of the metadata of a part's file: its run, and how many of its rows have an error."""


@dataclass(frozen=True)
class Part:
    """Photographs that follow one another in the list."""

    number: int
    start: int
    """Where its lines begin in the file of the list, in bytes."""
    length: int
    """Of its lines, in bytes."""
    count: int
    """How many photographs it has."""


@dataclass(frozen=True)
class Parts:
    """The list and the files of a run in an output folder."""

    folder: Path
    run: str = ""
    """What identifies the run of the list; see `opened`."""

    @property
    def listing(self) -> Path:
        return self.folder / LISTING

    def opened(self) -> Parts:
        """The same, as those of the run whose list is there: files of another run are not taken for theirs."""
        return replace(self, run=run_of(self.folder))

    def file(self, number: int) -> Path:
        return self.folder / "parts" / f"part-{number:07}.parquet"

    def write_list(self, sources: Iterable[Source], stores: Sequence[Any], progress: ProgressCallback) -> None:
        """Write the list: a line with an identifier of the run, and one line of JSON for each photograph.

        Passwords are in it only if a file system takes them for part of a file's name (see `stores.refuse_passwords`).

        Args:
            stores: fsspec's file systems, by which the list knows where to fetch what is no local file; None where one could
                not be opened.

        Raises:
            ArtifactError: it cannot be written.
        """

        def write(path: Path) -> None:
            with path.open("w", encoding="utf-8") as f:
                f.write(json.dumps({"r2mrf": "photographs", "run": secrets.token_hex(8)}) + "\n")
                for number, source in enumerate(sources, 1):
                    f.write(json.dumps(_line(source, stores)) + "\n")
                    if number % 1000 == 0:
                        progress(Progress(f"{number:,} photographs found", 0))

        write_atomically(self.listing, write)

    def __iter__(self) -> Iterator[Part]:
        """Every part, in order. The list is read as a stream."""
        number = length = count = 0
        with self.listing.open("rb") as f:
            start = len(f.readline())
            for line in f:
                length, count = length + len(line), count + 1
                if count == SIZE:
                    yield Part(number, start, length, count)
                    number, start, length, count = number + 1, start + length, 0, 0
        if count:
            yield Part(number, start, length, count)

    def sources(self, start: int, length: int, stores: Sequence[Any]) -> list[Source]:
        """The photographs of a part."""
        with self.listing.open("rb") as f:
            f.seek(start)
            return [_source(json.loads(line), stores) for line in f.read(length).splitlines()]

    def there(self) -> set[int]:
        """The numbers of the parts whose files are there."""
        try:
            with os.scandir(self.file(0).parent) as entries:
                found = [(_NAME.fullmatch(entry.name), entry) for entry in entries]
                return {int(name[1]) for name, entry in found if name and entry.is_file() and entry.stat().st_size}
        except FileNotFoundError:
            return set()

    def done(self) -> set[int]:
        """The numbers of the parts whose files are there, whole and of this run, and in which nothing failed."""
        from pyarrow import ArrowException, parquet

        def is_done(number: int) -> bool:
            try:
                said = parquet.read_metadata(self.file(number)).metadata or {}
            except (ArrowException, OSError):  # it is cut off
                return False
            return said.get(_RUN) == self.run.encode() and said.get(_FAILED) == b"0"

        there = sorted(self.there())
        answers = ordered_map(is_done, there, READERS)
        return {number for number, yes in zip(there, answers, strict=True) if yes}

    def write(self, number: int, rows: Iterator[Mapping[str, Any]], kinds: Sequence[str]) -> tuple[int, str]:
        """Write a part's file, which has `summaries.schema(*kinds)`.

        Returns:
            How many rows have an error, and the first of these errors.

        Raises:
            ArtifactError: it cannot be written, or the folder holds another run by now.
        """
        errors: list[str] = []

        def write(path: Path) -> None:
            from pyarrow import parquet

            scores = list(summaries.COLUMNS)  # there is nothing to gain from indices of pictures
            with parquet.ParquetWriter(
                path, summaries.schema(*kinds), use_dictionary=scores, write_statistics=scores
            ) as table:
                for some in _groups(rows, kinds):
                    errors.extend(row["error"] for row in some if row["error"] is not None)
                    table.write_table(summaries.arrow(some, *kinds))
                # in the file itself, so that whichever of two workers is the last, its file and this agree
                table.add_key_value_metadata({_RUN.decode(): self.run, _FAILED.decode(): str(len(errors))})
            if run_of(self.folder) != self.run:  # this worker has outlived its driver
                raise ArtifactError(f"{self.folder} holds another run by now, or its {LISTING} is gone")

        write_atomically(self.file(number), write)
        return len(errors), errors[0] if errors else ""

    def attempts(self, number: int) -> Attempts:
        return Attempts(self.folder / ".attempts" / f"part-{number:07}")

    def forget_attempts(self) -> None:
        """Forget what workers of earlier runs died of: it was the killing of the run."""
        shutil.rmtree(self.folder / ".attempts", ignore_errors=True)


@dataclass(frozen=True)
class Attempts:
    """A file that says what workers have begun and ended of a part: who has not ended has died, or is at it."""

    path: Path

    def deaths(self) -> dict[str, int]:
        """How often each thing was begun and not ended, of those that were."""
        found: dict[str, int] = {}
        with suppress(FileNotFoundError):
            for line in self.path.read_text().splitlines():
                found[line[1:]] = found.get(line[1:], 0) + (1 if line[0] == "+" else -1)
        return {what: often for what, often in found.items() if often > 0}

    @contextmanager
    def at(self, what: str) -> Iterator[None]:
        """Note that something is begun, and when it has ended, with an exception too."""
        self._note(f"+{what}\n")
        try:
            yield
        finally:
            self._note(f"-{what}\n")

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """`at`, for a step that cannot be left out.

        Raises:
            ArtifactError: too many workers have died of it.
        """
        if self.deaths().get(what, 0) >= MOST_DEATHS:
            raise ArtifactError(
                f"{MOST_DEATHS} workers died one after the other, at {what} of {self.path.name}: is there enough memory? "
                "`resume` goes on"
            )
        with self.at(what):
            yield

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)

    def _note(self, line: str) -> None:
        self.path.parent.mkdir(exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)


def _line(source: Source, stores: Sequence[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"source": source.address}
    if isinstance(source.read, Fetch):
        found |= {"store": stores.index(source.read.store), "path": source.read.path}
    return found if source.error is None else found | {"error": source.error}


def _source(line: Mapping[str, Any], stores: Sequence[Any]) -> Source:
    address = line["source"]
    if "store" not in line:
        return Source(address, "", error=line.get("error"))
    if (store := stores[line["store"]]) is None:
        return Source(address, "", error=f"{address}: its store cannot be opened any more")
    return Source(address, "", Fetch(store, line["path"], address), line.get("error"))


def _groups(rows: Iterator[Mapping[str, Any]], kinds: Sequence[str]) -> Iterator[list[Mapping[str, Any]]]:
    """Rows together, as many as a row group takes."""
    found: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        found.append(row)
        size += sum(len(row.get(kind, b"")) for kind in kinds)
        if size >= ROW_GROUP:
            yield found
            found, size = [], 0
    if found:
        yield found
