"""The exceptions a user can meet.

Every message is one line that says what is wrong and what to do about it. The command line prints the message and exits
with `exit_code`; a library user catches `R2mrfError`.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it: 128 and the signal's number."""


class R2mrfError(Exception):
    """Base of everything this package raises on purpose."""

    exit_code = 2


class UsageError(R2mrfError):
    """An option or argument that is meaningless, or that contradicts another."""


class CheckpointError(R2mrfError):
    """A checkpoint that cannot be read, is unsafe, or does not fit its network."""


class GraphError(R2mrfError):
    """An ONNX model that is damaged, invalid, or uses something that a step cannot handle."""


class ArtifactError(R2mrfError):
    """An artifact that is damaged or does not match its manifest."""


class RuntimeUnavailable(R2mrfError):
    """A runtime, or another optional package, that is not installed or has no device here."""


class PluginError(R2mrfError):
    """A network, a format or a runtime of another package that cannot be used."""


class BuildError(R2mrfError):
    """An engine that the builder could not, or must not, build."""


class InputError(R2mrfError):
    """An image, folder or array that cannot be used as input."""


class CheckFailed(R2mrfError):
    """A check (parity, budget) that was carried out and failed."""

    exit_code = 1


def no_file(path: Path) -> InputError:
    """The error about a path that is not a regular file. Reading a named pipe or a device may never end."""
    if path.is_dir():
        return InputError(f"{path} is a folder, not a file")
    if path.exists():
        return InputError(f"{path} is a named pipe or a device: save it as a regular file first")
    return InputError(f"{path}: no such file")


@contextmanager
def reading(path: Path | str, error: type[R2mrfError], complaint: str, cure: str = "") -> Iterator[None]:
    """Turn whatever is raised while a file from outside is read into one of our errors. An R2mrfError passes.

    About damage, parsers raise anything: struct.error, KeyError, RecursionError, MemoryError, types of their own. A list of
    them is never complete, so every reader of outside data stands in this block.

    Args:
        path: the file.
        error: the type to raise.
        complaint: what is said of a file that cannot be parsed, a verb first: "is damaged, or is not a plan".
        cure: what to do about it.

    Raises:
        R2mrfError: of the type `error`, with the cause.
    """
    try:
        yield
    except R2mrfError:
        raise
    except Exception as e:
        system = isinstance(e, OSError) and e.errno not in (None, errno.EINVAL)  # EINVAL: a damaged offset was sought
        said = f"cannot be read: {e.strerror}" if system else f"{complaint} ({first_line(e)})"  # type: ignore[attr-defined]
        raise error(f"{path} {said}" + (f"; {cure}" if cure else "")) from e


def first_line(error: Exception) -> str:
    """The first line of what a library's exception says, or its type if it says nothing."""
    return _lines(error)[0]


def last_line(error: Exception) -> str:
    """The last line: of OpenVINO's many, the one that says what is wrong."""
    return _lines(error)[-1]


def _lines(error: Exception) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]


MOST_NAMES = 40
"""The most names that a message lists."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest valid name, else all of them, or the first of many."""
    known = sorted(known)
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.5):
        return f"did you mean {near[0]!r}?"
    more = f", ... ({len(known):,} in all)" if len(known) > MOST_NAMES else ""
    return f"choose from {', '.join(known[:MOST_NAMES])}{more}"
