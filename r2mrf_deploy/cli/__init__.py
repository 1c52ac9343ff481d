"""`r2mrf`: one command for each verb. This package parses and prints; what a verb does is in the module of its name."""

from __future__ import annotations

import io
import logging
import platform
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from r2mrf_deploy import environment
from r2mrf_deploy.cli import (  # the order of their commands in --help
    completion,
    make,
    make_cheaper,
    measure,
    measure_maps,
    predict,
    serve,
    train,
    use,
)
from r2mrf_deploy.cli.common import (
    ANSWERED,
    RUNNING,
    app,
    command,
    err,
    libraries_shown,
    line,
    print_json,
    shown_notes,
)
from r2mrf_deploy.cli.help import ANYWHERE
from r2mrf_deploy.errors import INTERRUPTED, R2mrfError, UsageError
from r2mrf_deploy.wording import masked, plain

__all__ = ["main", "make", "make_cheaper", "measure", "measure_maps", "predict", "serve", "train", "use"]

_LOG = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code is 0 for done, 1 for a failed check, 2 for wrong use or bad input, 130 for
    Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: a terminal may not have every character
    if arguments[:1] == [completion.ASKED]:
        completion.answer(arguments[1:])
        return 0
    arguments, given = _split(arguments)
    debug, verbose = "--debug" in given, not {"-v", "--verbose"}.isdisjoint(given)
    started = time.perf_counter()
    try:
        with libraries_shown(), shown_notes(verbose=verbose):
            if verbose:
                version, said = environment.version("r2mrf-deploy"), shlex.join(map(masked, arguments))
                _LOG.debug("r2mrf-deploy %s, Python %s: r2mrf %s", version, platform.python_version(), said)
            code, message = _run(arguments, debug)
            _LOG.debug("exit code %d after %.3f s", code, time.perf_counter() - started)
    finally:
        if debug:  # typer has set its own meanwhile
            sys.excepthook = _show_traceback
    if code == INTERRUPTED and "--json" in arguments and not ANSWERED.get():
        print_json({"interrupted": True})
    if message:
        line(f"error: {message}", to=err, style="red")
    return code


def _split(arguments: Sequence[str]) -> tuple[list[str], set[str]]:
    """The arguments without the options that every command takes, and those of them that are given, before any `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    known = {name for names in ANYWHERE for name in names}
    return [a for n, a in enumerate(arguments) if n >= end or a not in known], known & {*arguments[:end]}


def _run(arguments: list[str], debug: bool) -> tuple[int, str]:
    """The exit code and the error message."""
    try:
        running = command(arguments)
        RUNNING.set(running)
        ANSWERED.set(False)
        _refuse_json_file(arguments)
        if running is None:
            code = app(arguments or ["--help"], prog_name="r2mrf", standalone_mode=False) or 0
        else:
            code = running(arguments[1:], prog_name=f"r2mrf {arguments[0]}", standalone_mode=False) or 0
        return code, "interrupted" if code == INTERRUPTED else ""
    except R2mrfError as e:
        code, message = e.exit_code, str(e)
        if debug:
            raise
    except KeyboardInterrupt:
        code, message = INTERRUPTED, "interrupted"
    except Exception as e:
        said = getattr(e, "format_message", None)  # the parser's own errors: an unknown option, a missing argument
        code, message = 2, said() if said else _absent(e) or f"unexpected {type(e).__name__}: {e}; see --debug"
        if debug and not said:
            raise
    return code, " ".join(part.strip() for part in message.splitlines())


def _absent(e: Exception) -> str:
    """What to say where a package of an extra is not installed; empty for any other error."""
    if not isinstance(e, ModuleNotFoundError) or e.name not in environment.EXTRAS:
        return ""
    return f"this needs {e.name}, which is not installed: {environment.installs(e.name)}"


def _show_traceback(*error: Any) -> None:
    for part in "".join(traceback.format_exception(*error)).splitlines():
        sys.stderr.write(plain(part) + "\n")


def _refuse_json_file(arguments: list[str]) -> None:
    """Refuse `--json FILE`: the file would pass for one more argument, and the error would be that it cannot be opened."""
    for option, value in pairwise(arguments):
        if option == "--json" and value.endswith(".json") and arguments[0] != "inspect":
            raise UsageError(
                f"--json {value}: --json takes no file, it prints to standard output: write --json > {value}"
            )
