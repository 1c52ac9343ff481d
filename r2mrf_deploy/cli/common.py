"""What the commands share: the application, the consoles, and how messages are printed."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import typer
import typer.main
from rich.console import Console

from r2mrf_deploy.progress import ProgressCallback

app = typer.Typer(
    name="r2mrf",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Recurrent defocus-blur detectors from PyTorch to ONNX, TensorRT and OpenVINO, with proof of parity.",
    epilog="--debug after any command shows the traceback of an error.",
)
out = Console(width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True)


def command(arguments: Sequence[str]) -> Any:
    """The command that the arguments begin with, or None."""
    return getattr(typer.main.get_command(app), "commands", {}).get(*arguments[:1]) if arguments else None


RUNNING: ContextVar[Any] = ContextVar("RUNNING", default=None)
"""The command that is running."""


def with_flags(text: str) -> str:
    """A message of the library with its parameters as the running command's flags: `max_drop` becomes --max-drop."""
    names = {
        p.name: max(p.opts, key=len) if p.opts[0].startswith("-") else p.metavar or p.name
        for p in getattr(RUNNING.get(), "params", ())
    }
    return re.sub(r"`(\w+)`", lambda m: names.get(m[1], m[0]), text)


def line(*texts: str, to: Console | None = None, style: str | None = None) -> None:
    """Print lines as they are, without markup or wrapping; parameters of the library become flags."""
    for text in texts:
        (to or out).print(with_flags(text), style=style, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def shown_notes() -> Iterator[None]:
    """Print what the library logs, such as how a checkpoint was read, once each on standard error."""
    log, handler = logging.getLogger("r2mrf_deploy"), _Notes()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


class _Notes(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if (text := record.getMessage()) not in self.said:
            self.said.add(text)
            warns = record.levelno >= logging.WARNING
            line(f"{'warning' if warns else 'note'}: {text}", to=err, style="yellow" if warns else None)


@contextmanager
def shown_progress() -> Iterator[ProgressCallback]:
    """Show what is being done, with a bar, on a terminal; show nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    text = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), text)
    with Bar(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda p: bar.update(task, description=p.description, completed=p.done, total=p.total)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
