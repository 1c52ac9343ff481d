"""What has been done, in a file that only grows: one JSON line for each photograph, after its outputs are in their place.

A process that is killed at any time loses no line but the one that it was writing, and `resume` goes on after the last whole
one. What failed is tried again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy.errors import ArtifactError, UsageError
from r2mrf_deploy.files import locked, refuse_unwritable, write_atomically
from r2mrf_deploy.predict.sources import JOURNAL, LISTING
from r2mrf_deploy.predict.stores import Source
from r2mrf_deploy.wording import count

log = logging.getLogger(__name__)
VERSION = 1
Record = dict[str, Any]


class Journal:
    """The journal of an output folder, opened to be continued.

    Args:
        folder: the output folder. It is made.
        settings: whatever the outputs depend on. A run with others cannot be resumed.
        resume: keep what is done; otherwise begin again, and keep the journal of a run before under another name.

    Raises:
        UsageError: another process writes it, `resume` would go on with other settings, or the folder holds a run over a
            cluster that these do not go on with.
        ArtifactError: the folder cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, resume: bool = False) -> None:
        self.path = folder / JOURNAL
        refuse_unwritable(self.path)
        header = {"r2mrf": "predictions", "version": VERSION, "settings": dict(settings)}
        self._stack = ExitStack()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock(folder)
            if run_of(folder) and not (resume and "ray" in settings):  # whose header this would replace
                raise UsageError(
                    f"{folder} holds a run of `ray`: `resume` with `ray` goes on with it; or name another `output`"
                )
            kept: list[Record] | Iterator[Record] = []
            if self.path.exists():
                if resume:
                    _refuse_others(self.path, header)
                    kept = _successes(self.path)
                else:
                    self._set_aside()
            digests: list[int] = []

            def write(path: Path) -> None:
                with path.open("w", encoding="utf-8") as f:
                    f.write(json.dumps(header) + "\n")
                    for record in kept:
                        f.write(json.dumps(record) + "\n")
                        digests.append(_digest(record["source"], record.get("bytes")))

            write_atomically(self.path, write)
            self._file = self._stack.enter_context(self.path.open("a", encoding="utf-8"))
        except OSError as e:
            self._stack.close()
            raise ArtifactError(f"cannot write {self.path}: {e.strerror or e}") from None
        except BaseException:
            self._stack.close()
            raise
        self._done = np.unique(np.array(digests, np.uint64))
        if resume and digests:
            log.info("%s done before", count(len(digests), "photograph"))

    def _lock(self, folder: Path) -> None:
        place = folder / ".predict.lock"
        place.touch()
        try:
            self._stack.enter_context(locked(place, wait=False))
        except BlockingIOError:
            raise UsageError(f"another process predicts into {folder}: wait for it, or name another `output`") from None
        self._stack.callback(place.unlink, missing_ok=True)  # before the lock is given back

    def _set_aside(self) -> None:
        """Keep the journal of a run before that was not finished."""
        if not (many := _unfinished(self.path)):
            return
        previous = self.path.with_suffix(".previous.jsonl")
        self.path.replace(previous)
        log.warning(
            "%s holds an unfinished run of %s, which begins again: its journal is now %s; --resume would have gone on",
            self.path.parent, count(many, "photograph"), previous.name,
        )  # fmt: skip

    def has(self, source: Source) -> bool:
        """Whether a photograph was done before. It is known by its address and its number of bytes, not by dates."""
        if not len(self._done):
            return False
        digest = np.uint64(_digest(source.address, source.size()))
        at = int(np.searchsorted(self._done, digest))
        return at < len(self._done) and bool(self._done[at] == digest)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line, and hand it to the system at once.

        Raises:
            ArtifactError: it cannot be written; the disk may be full.
        """
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as e:
            raise ArtifactError(f"cannot write {self.path}: {e.strerror or e}") from None

    def finish(self) -> None:
        """Note that nothing is left to do."""
        self.append({"finished": True})

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_of(folder: Path) -> str:
    """What identifies the run over a cluster whose list of photographs lies in a folder; an empty text if none does."""
    try:
        with (folder / LISTING).open("rb") as f:
            header = json.loads(f.readline(1 << 10))
        return header["run"] if header["r2mrf"] == "photographs" else ""
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ""


def records(path: Path) -> Iterator[Record]:
    """The whole lines of a journal, one for each photograph; the header and a last line that was cut off are left out.

    Raises:
        ArtifactError: it is not a journal.
    """
    with path.open(encoding="utf-8") as f:
        _header(path, f.readline())
        for line in f:
            if (record := _parsed(line)) is not None:
                yield record


def _parsed(line: str) -> Record | None:
    try:
        record = json.loads(line) if line.endswith("\n") else None
    except (ValueError, RecursionError):  # the power failed while it was written
        return None
    return record if isinstance(record, dict) and isinstance(record.get("source"), str) else None


def _header(path: Path, line: str) -> Record:
    try:
        header = json.loads(line)
        known = (
            header["r2mrf"] == "predictions" and header["version"] == VERSION and isinstance(header["settings"], dict)
        )
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ArtifactError(f"{path} is not a journal of predictions: name another `output` folder, or remove it")
    return header


def _unfinished(path: Path) -> int:
    """How many photographs a run did that did not come to its end."""
    many = 0
    with path.open(encoding="utf-8") as f:
        _header(path, f.readline())
        for line in f:
            if line == '{"finished": true}\n':
                return 0
            many += 1
    return many


def _refuse_others(path: Path, header: Record) -> None:
    with path.open(encoding="utf-8") as f:
        before = _header(path, f.readline())["settings"]
    now = json.loads(json.dumps(header["settings"]))
    for name in now.keys() | before.keys():
        if before.get(name) != now.get(name):
            was = f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            raise UsageError(f"{path} is of another run, whose {was}: leave out `resume`, or name another `output`")


def _successes(path: Path) -> Iterator[Record]:
    """The records of photographs whose outputs are all there, once each."""
    seen: set[int] = set()
    for record in records(path):
        digest = _digest(record["source"], record.get("bytes"))
        there = (os.path.exists(path.parent / file) for file in record.get("outputs", {}).values())  # noqa: PTH110
        if record.get("error") is None and digest not in seen and all(there):
            seen.add(digest)
            yield record


def _digest(address: str, size: int | None) -> int:
    text = f"{size}\0{address}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
