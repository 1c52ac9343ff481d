"""What the commands share: the application, the screens, and how messages are printed."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Annotated, Any

import typer
import typer.main
from rich.text import Text

from r2mrf_deploy import environment
from r2mrf_deploy.progress import Interrupted, Notice, Progress, ProgressCallback
from r2mrf_deploy.report.screen import Screen, Sheet, screen
from r2mrf_deploy.wording import plain

app = typer.Typer(
    name="r2mrf",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Recurrent defocus-blur detectors from PyTorch to ONNX, TensorRT and OpenVINO, with proof of parity.",
    epilog="r2mrf COMMAND --help lists its options. After any command, -v logs what is done, and --debug shows the "
    "traceback of an error. r2mrf completion SHELL prints a script that completes commands.",
)
out = screen()
err = screen(stderr=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        line(f"r2mrf-deploy {environment.version('r2mrf-deploy')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """What comes before a command."""


def verbs() -> dict[str, str]:
    """The commands, each with a line on what it does."""
    return {_called(info): (info.callback.__doc__ or "").partition("\n")[0] for info in app.registered_commands}


def command(arguments: Sequence[str]) -> Any:
    """The command that the arguments begin with, or None. It is made alone: to make all takes ten times as long."""
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.registered_commands = [info for info in app.registered_commands if _called(info) in arguments[:1]]
    return typer.main.get_command(alone) if alone.registered_commands else None


def _called(info: Any) -> str:
    return info.name or info.callback.__name__


RUNNING: ContextVar[Any] = ContextVar("RUNNING", default=None)
"""The command that is running."""


def with_flags(text: str) -> str:
    """A message of the library with its parameters as the running command's flags: `max_drop` becomes --max-drop."""
    names = {
        p.name: max(p.opts, key=len) if p.opts[0].startswith("-") else p.metavar or p.name
        for p in getattr(RUNNING.get(), "params", ())
    }
    return re.sub(r"`(\w+)`", lambda m: names.get(m[1], m[0]), text)


def line(*texts: str, to: Screen | None = None, style: str = "", exact: bool = False) -> None:
    """Print each text as one line, without wrapping; parameters of the library become flags, unless it must be `exact`."""
    for text in texts:
        # beside a bar, the screen of the bar prints for both, since it moves the bar out of the way
        screen = to or (err if err.bars and out.is_terminal else out)
        screen.print(Text(plain(text if exact else with_flags(text)), style), soft_wrap=True)


def table(*tables: Sheet) -> None:
    for each in tables:
        out.print(each, crop=False)


_LOG = logging.getLogger("r2mrf_deploy")


@contextmanager
def shown_notes(*, verbose: bool = False) -> Iterator[None]:
    """Print what the library logs, such as how a checkpoint was read, once each on standard error.

    Args:
        verbose: print all that it logs, each line with the time and the module.
    """
    before, handler = _LOG.level, _Log() if verbose else _Notes()
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        yield
    finally:
        _LOG.removeHandler(handler)
        _LOG.setLevel(before)


class _Notes(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if (text := record.getMessage()) not in self.said:
            self.said.add(text)
            _say(record, f"{'warning' if record.levelno >= logging.WARNING else 'note'}: {text}")


class _Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        time = datetime.fromtimestamp(record.created).isoformat(timespec="milliseconds").partition("T")[2]
        warns = "warning: " if record.levelno >= logging.WARNING else ""
        _say(record, f"{time} {record.name.removeprefix('r2mrf_deploy.')}: {warns}{record.getMessage()}")


def _say(record: logging.LogRecord, text: str) -> None:
    styles = {logging.DEBUG: "dim", logging.INFO: ""}
    line(text, to=err, style=styles.get(record.levelno, "yellow"))


@contextmanager
def shown_progress(*, rate: bool = False) -> Iterator[ProgressCallback]:
    """Show what is being done, with a bar, on a terminal; elsewhere only what the user should know at once.

    Args:
        rate: show how much is done in a second, and the time that is left, too.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    text = TextColumn("{task.description}", markup=False)
    speed = (Rate(), TimeRemainingColumn(elapsed_when_finished=True)) if rate else ()
    columns = (SpinnerColumn(), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), *speed, text)
    # standard output is the results', a file perhaps, while the bar is on standard error
    with Bar(*columns, console=err, transient=True, redirect_stdout=False, disable=not err.is_terminal) as bar:
        doing = ""
        task = bar.add_task("starting", total=None)

        def show(p: Progress) -> None:
            nonlocal doing
            if isinstance(p, Notice):
                line(p.description, to=err)
            else:
                if p.description != doing:
                    doing = p.description
                    _LOG.getChild("progress").debug("%s ...", doing)
                bar.update(task, description=plain(p.description), completed=p.done, total=p.total)

        yield show


@contextmanager
def kept_when_interrupted(show: Callable[[Any], None]) -> Iterator[None]:
    """After Ctrl-C, show what was done so far."""
    try:
        yield
    except Interrupted as e:
        show(e.done)
        raise


ANSWERED: ContextVar[bool] = ContextVar("ANSWERED", default=False)
"""Whether the running command has printed its JSON document."""


def print_json(value: Any) -> None:
    """Print one JSON document. JSON has no NaN and no infinity: they are null."""
    ANSWERED.set(True)
    sys.stdout.write(json.dumps(_finite(value), indent=2, default=str, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def libraries_shown() -> Iterator[None]:
    """Print the warnings and logs of libraries as everything else is printed."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line(f"{record.levelname.lower()}: {record.getMessage()}", to=err, style="yellow")

    def warn(message: Warning | str, *_: object, **__: object) -> None:
        line(f"warning: {message}", to=err, style="yellow")

    usual = logging.lastResort
    with warnings.catch_warnings():
        warnings.showwarning = warn
        logging.lastResort = Handler(logging.WARNING)
        try:
            yield
        finally:
            logging.lastResort = usual
