"""`r2mrf`: one command a verb. Parsing and printing; what a verb does is in the module of its name."""

from __future__ import annotations

import sys
from itertools import pairwise

from r2mrf_deploy.cli import make, measure, train, use  # the order of their commands in --help
from r2mrf_deploy.cli.common import RUNNING, app, command, err, line
from r2mrf_deploy.errors import R2mrfError, UsageError

__all__ = ["main", "make", "measure", "train", "use"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code is 0 done, 1 a check failed, 2 wrong use or bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        RUNNING.set(command(arguments))
        _refuse_json_file(arguments)
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
    line(f"error: {' '.join(message.split())}", err, "red")
    return code


def _refuse_json_file(arguments: list[str]) -> None:
    """`--json FILE` would take the file for one more argument, and say that it cannot be opened."""
    for option, value in pairwise(arguments):
        if option == "--json" and value.endswith(".json") and arguments[0] != "inspect":
            raise UsageError(
                f"--json {value}: --json prints to standard output and takes no file: write --json > {value}"
            )
