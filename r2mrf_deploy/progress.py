"""Progress of long work as a value, passed to one type of callback everywhere; how long steps took, for the log; what is
kept of work that is interrupted; and silence for libraries meanwhile."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ParamSpec, TextIO, TypeVar, cast


@dataclass(frozen=True)
class Progress:
    """What is being done, and how much of it is done."""

    description: str
    done: int = 0
    total: int | None = None
    """None where it is not known."""

    def __str__(self) -> str:
        return self.description if self.total is None else f"{self.description} {self.done}/{self.total}"


@dataclass(frozen=True)
class Notice(Progress):
    """Something that the user should know at once, and that is kept on the screen."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in long work."""

    def __init__(self, done: Any) -> None:
        super().__init__("interrupted")
        self.done = done
        """What was done so far, as the function would have returned it."""


P = ParamSpec("P")
T = TypeVar("T")


def item_by_item(function: Callable[P, Iterator[T]]) -> Callable[P, list[T]]:
    """Make a function that returns its results as a list of one that yields them. Ctrl-C raises `Interrupted` with
    the results so far."""

    @functools.wraps(function)
    def listed(*args: P.args, **kwargs: P.kwargs) -> list[T]:
        done: list[T] = []
        try:
            for each in function(*args, **kwargs):
                done.append(each)
        except KeyboardInterrupt:
            raise Interrupted(done) from None
        return done

    return listed


ProgressCallback = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """The callback that shows nothing."""


@contextlib.contextmanager
def timed(log: logging.Logger, what: str, *names: object) -> Iterator[None]:
    """Log at DEBUG what was done within, and in how many seconds, unless it raises.

    Args:
        what: in the past tense, with a placeholder for each of `names`: "read %s".
    """
    start = time.perf_counter()
    yield
    log.debug(f"{what} in %.3f s", *names, time.perf_counter() - start)


_LOUD = ("torch", "torch.onnx", "torch.onnx._internal.exporter", "onnxscript", "onnx_ir")
# The streams, the filters of warnings and the loggers' levels belong to the whole process.
_SILENCED = threading.RLock()


_WARNINGS = contextlib.ExitStack()
_unwarned = 0


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Drop warnings. Any number of threads may do so at once: `warnings.catch_warnings` alone would leave them dropped."""
    global _unwarned
    with _SILENCED:
        if not _unwarned:
            _WARNINGS.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _unwarned += 1
    try:
        yield
    finally:
        with _SILENCED:
            _unwarned -= 1
            if not _unwarned:
                _WARNINGS.close()


@contextlib.contextmanager
def no_stdout() -> Iterator[None]:
    """Drop what libraries print. Threads take turns."""
    with _SILENCED, contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def without_threads(prefix: str) -> Iterator[None]:
    """Drop what threads whose names begin so print; others print as before, and need not take turns."""
    with _SILENCED:  # not while another stream is in its place
        before = sys.stdout
        sys.stdout = cast(TextIO, _Without(before, prefix))
    try:
        yield
    finally:
        with _SILENCED:
            sys.stdout = before


class _Without:
    """A stream that some threads cannot write to."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self._stream, self._prefix = stream, prefix

    def write(self, text: str) -> int:
        return len(text) if threading.current_thread().name.startswith(self._prefix) else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what is printed and warned, and what PyTorch and ONNX log below errors; exceptions still raise.

    Threads take turns.
    """
    loggers = [logging.getLogger(name) for name in _LOUD]
    with (
        no_stdout(),
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(max(logger.level, logging.ERROR))
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
