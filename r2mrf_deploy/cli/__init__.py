"""`r2mrf`: one command for each verb. This package parses and prints; what a verb does is in the module of its name."""

from __future__ import annotations

import sys
from itertools import pairwise

from r2mrf_deploy.cli import make, measure, train, use  # the order of their commands in --help
from r2mrf_deploy.cli.common import RUNNING, app, command, err, line, shown_notes
from r2mrf_deploy.errors import R2mrfError, UsageError

__all__ = ["main", "make", "measure", "train", "use"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code is 0 for done, 1 for a failed check, 2 for wrong use or bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        RUNNING.set(command(arguments))
        _refuse_json_file(arguments)
        with shown_notes():
            return app(arguments or ["--help"], prog_name="r2mrf", standalone_mode=False) or 0
    except R2mrfError as e:
        code, message = e.exit_code, str(e)
        if debug:
            raise
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    except Exception as e:
        said = getattr(e, "format_message", None)  # click's own errors: an unknown option, a missing argument
        code, message = 2, said() if said else f"unexpected {type(e).__name__}: {e}; see --debug"
        if debug and not said:
            raise
    line(f"error: {' '.join(message.split())}", to=err, style="red")
    return code


def _refuse_json_file(arguments: list[str]) -> None:
    """Refuse `--json FILE`: the file would pass for one more argument, and the error would be that it cannot be opened."""
    for option, value in pairwise(arguments):
        if option == "--json" and value.endswith(".json") and arguments[0] != "inspect":
            raise UsageError(
                f"--json {value}: --json takes no file, it prints to standard output: write --json > {value}"
            )
