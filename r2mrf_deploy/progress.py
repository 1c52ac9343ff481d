"""Progress of long work as a value, passed to one type of callback everywhere."""

from __future__ import annotations

from collections.abc import Callable
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
