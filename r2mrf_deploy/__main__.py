"""Where `r2mrf` and `python -m r2mrf_deploy` begin: Ctrl-C ends them in one line, even before the commands are imported."""

from __future__ import annotations

import sys

from r2mrf_deploy.errors import INTERRUPTED


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code, as `r2mrf_deploy.cli.main` does."""
    try:
        from r2mrf_deploy.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        return INTERRUPTED
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
