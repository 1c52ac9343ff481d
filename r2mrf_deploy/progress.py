"""Progress of long work as a value, passed to one type of callback everywhere; and silence for libraries meanwhile."""

from __future__ import annotations

import contextlib
import io
import logging
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what libraries print, warn and log below errors; their exceptions still raise."""
    disabled = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            logging.disable(logging.WARNING)
            yield
        finally:
            logging.disable(disabled)
