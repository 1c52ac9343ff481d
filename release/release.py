"""Make the files of a release, and check them: wheel, sdist, a bill of materials (CycloneDX) and checksums.

    make release

The wheel is built from the sdist, both are installed into fresh environments with the extra `cpu` and used there, and the
bill names what the wheel needs at run time in the versions that were installed, and the weights in it. Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from try_install import ROOT, install_and_use, run

NEEDED = (
    "weights/r2mrf-lite.onnx",
    "weights/r2mrf-lite.md",
    "data/published.json",
    "web/page/index.html",
    "cli/__init__.py",
)
"""Some of the wheel's files, under the package: code, data, weights, pages."""
FOREIGN = re.compile(r"node_modules|__pycache__|\.venv|^tests/|\.pytest_cache")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "dist")
    given = parser.parse_args()
    folder: Path = given.output.resolve()
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{given.output} is not empty: a release has a folder of its own, so move these files away")
    with tempfile.TemporaryDirectory() as scratch:  # so that a release that fails leaves nothing
        made = make(Path(scratch))
        folder.mkdir(parents=True, exist_ok=True)
        for file in made:
            shutil.copy(file, folder)
            print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB")


def make(folder: Path) -> list[Path]:
    """Make the files of a release in a folder, and check them."""
    print("building")
    run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    check_contents(wheel, sdist)
    run([sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)], ROOT)
    for package in (sdist, wheel):
        print(install_and_use(package, sys.executable, ["cpu"]))
    bill = folder / f"{wheel.name.split('-py3')[0]}.cdx.json"
    bill.write_text(json.dumps(materials(wheel), indent=2) + "\n")
    files, sums = [wheel, sdist, bill], folder / "SHA256SUMS"
    sums.write_text("".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files))
    return [*files, sums]


def check_contents(wheel: Path, sdist: Path) -> None:
    """Refuse packages that lack files, or hold what is not theirs."""
    inside = zipfile.ZipFile(wheel).namelist()
    lacks = [name for name in NEEDED if f"r2mrf_deploy/{name}" not in inside]
    with tarfile.open(sdist) as archive:
        source = [name.partition("/")[2] for name in archive.getnames()]
    lacks += [name for name in ("Makefile", "constraints.txt", "engines/cpp/CMakeLists.txt") if name not in source]
    foreign = [name for name in inside if FOREIGN.search(name)]
    foreign += [name for name in source if FOREIGN.search(name) and not name.startswith("tests")]
    if lacks or foreign:
        raise SystemExit(f"the packages lack {lacks} and hold {foreign[:5]}, which is not theirs")


def materials(wheel: Path) -> dict[str, Any]:
    """The bill of materials of `WHEEL[cpu]`: every package of a fresh environment that has nothing else, and the weights."""
    with tempfile.TemporaryDirectory() as folder:
        venv = Path(folder) / "venv"
        run([sys.executable, "-m", "venv", "--without-pip", str(venv)], ROOT)
        python = venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        run([sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", f"{wheel}[cpu]"], ROOT)
        command = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml")]
        found = json.loads(run([*command, "--output-reproducible", "--of", "JSON", "-o", "-", str(python)], ROOT))
    found["components"] = [c for c in found["components"] if c["name"] != "r2mrf-deploy"] + weights()
    return found


def weights() -> list[dict[str, Any]]:
    """The weights in the package as components, with the SHA-256 that the package itself checks."""
    folder = ROOT / "r2mrf_deploy" / "weights"
    sums = (line.split() for file in sorted(folder.glob("*.sha256")) for line in file.read_text().splitlines())
    return [
        {
            "type": "machine-learning-model",
            "bom-ref": f"weights/{name}",
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": digest}],
            "licenses": [{"license": {"id": "Apache-2.0"}}],
            "description": f"How it was trained, and on what: r2mrf_deploy/weights/{name.partition('.')[0]}.md",
        }
        for digest, name in sums
    ]


if __name__ == "__main__":
    if importlib.util.find_spec("cyclonedx_py") is None:
        raise SystemExit("release.py needs build, twine and cyclonedx-bom: run `make release`, which installs them")
    main()
