"""Install a bundle on a machine that reaches no other, with any number of its parts at hand.

    python install.py [FOLDER ...] --target FOLDER

Nothing but Python and pip is needed. Every file is checked before it is installed; a wheel that lies in a part which is not
here yet is left for later, and named.
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
    parser.add_argument(
        "parts", nargs="*", type=Path, default=sorted(here.parent.glob("part*")), help="the parts at hand"
    )
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
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-compile",
            "--upgrade",
        ]
        if whole and subprocess.run([*pip, "--target", str(given.target), *whole]).returncode:
            raise SystemExit("pip could not install the wheels: are they for this Python?")
    print(f"{len(whole)} of {len(contents)} wheels are in {given.target}")
    for wheel in missing:
        print(f"{wheel} is not here whole: bring the other parts too")
    print(f"now: PYTHONPATH={given.target.resolve()} {sys.executable} {here / 'kit' / 'first_minutes.py'}")


if __name__ == "__main__":
    main()
