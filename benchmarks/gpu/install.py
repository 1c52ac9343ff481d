"""Installs a bundle on a machine without network access, from all parts or some of them.

    python install.py [FOLDER ...] --target FOLDER

This needs only Python and pip. Every file is checked before it is installed. Wheels in parts that have not arrived yet are
named and left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parent
    parts = sorted(here.parent.glob("part*"))
    parser.add_argument("parts", nargs="*", type=Path, default=parts, help="the parts that are here; by default all")
    parser.add_argument("--target", type=Path, default=Path("r2mrf-site"), help="folder to install into")
    given = parser.parse_args()
    contents = json.loads((here / "contents.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        whole, missing = [], []
        for wheel, volumes in contents.items():
            files = [next((p / v["name"] for p in given.parts if (p / v["name"]).is_file()), None) for v in volumes]
            if None in files:
                missing.append(wheel)
                continue
            path = Path(folder) / wheel
            with path.open("wb") as joined:
                for file, volume in zip(files, volumes, strict=True):
                    content = file.read_bytes()
                    if hashlib.sha256(content).hexdigest() != volume["sha256"]:
                        raise SystemExit(f"{file} is damaged: copy it again")
                    joined.write(content)
            whole.append(str(path))
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(given.target)]
        if whole and subprocess.run([sys.executable, "-m", "pip", "install", *options, *whole]).returncode:
            raise SystemExit("pip failed to install the wheels: were they made for this version of Python?")
    print(f"{len(whole)} of {len(contents)} wheels are in {given.target}")
    for wheel in missing:
        print(f"{wheel} is not complete: copy the other parts too")
    print(f"next, run: PYTHONPATH={given.target.resolve()} {sys.executable} {here / 'kit' / 'first_minutes.py'}")


if __name__ == "__main__":
    main()
