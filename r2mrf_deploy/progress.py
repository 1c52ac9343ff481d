"""Progress of long work as a value, passed to one type of callback everywhere; and silence for libraries meanwhile."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """What is being done, and how much of it is done."""

    description: str
    done: int = 0
    total: int | None = None
    """None where it is not known."""

    def __str__(self) -> str:
        return self.description if self.total is None else f"{self.description} {self.done}/{self.total}"


ProgressCallback = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """The callback that shows nothing."""


_LOUD = ("torch", "torch.onnx", "torch.onnx._internal.exporter", "onnxscript", "onnx_ir")
# The streams, the filters of warnings and the loggers' levels belong to the whole process.
_SILENCED = threading.RLock()


@contextlib.contextmanager
def no_stdout() -> Iterator[None]:
    """Drop what libraries print. Threads take turns."""
    with _SILENCED, contextlib.redirect_stdout(io.StringIO()):
        yield


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
