"""Install the package with the oldest versions of its direct dependencies that pyproject.toml allows, and use it.

    python release/lower_bounds.py --python python3.10
    python release/lower_bounds.py --python python3.10 --extras cpu,export

An environment with uv resolves them (`make lower-bounds`). A bound that is too low shows here, and nowhere else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from try_install import ROOT, install_and_use, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the interpreter (default: this one)")
    parser.add_argument("--extras", default="cpu", help="extras to install (default: %(default)s)")
    given = parser.parse_args()
    extras = given.extras.split(",")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lowest.txt"
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--python", given.python, "--no-annotate"]
        chosen = [part for extra in extras for part in ("--extra", extra)]
        run([*command, "--resolution", "lowest-direct", *chosen, "-o", str(file), str(ROOT / "pyproject.toml")], ROOT)
        print(file.read_text())
        print(install_and_use(ROOT, given.python, extras, constraints=file))


if __name__ == "__main__":
    main()
