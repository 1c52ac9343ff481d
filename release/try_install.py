"""Install the package into fresh environments, and use it there as its users do.

    python release/try_install.py dist/r2mrf_deploy-0.1.0-py3-none-any.whl --python python3.10 --python python3.13
    python release/try_install.py dist/r2mrf_deploy-0.1.0.tar.gz --extras cpu,export

A line says how large each environment is. The first command that fails ends it, with what was printed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

USES: tuple[tuple[set[str], tuple[str, ...]], ...] = (
    (
        set(),
        (
            "--version",
            "doctor",
            "inspect r2mrf-lite",
            "predict demo.png -o maps",
            "bench r2mrf-lite --iterations 3 --duration 0 --warmUp 0",
        ),
    ),
    (
        {"export"},
        (
            "init r2mrf-r50 -o r50.pth",
            "export r50.pth -o r50.onnx --size 96x96",
            "export r2mrf-edge -o edge.onnx --size 96x96",
            "export r2mrf-edge -o free.onnx --dynamic",
            "parity r2mrf-edge edge.onnx",
            "convert edge.onnx -o edge-fp16.onnx --precision fp16",
            "convert edge.onnx -o edge-int8.onnx --precision int8 --calibration .",
            "predict edge-int8.onnx demo.png -o maps",
        ),
    ),
    ({"export", "openvino"}, ("build edge.onnx -o edge.xml", "predict edge.xml demo.png -o maps")),
)
"""Extras that are needed beside `cpu` or `gpu`, and commands that work with them."""
LOOK = """
from PIL import Image
low, high = Image.open("maps/demo_map.png").convert("L").getextrema()
assert high - low > 99, "the map is flat"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="a wheel, an sdist or a checkout")
    parser.add_argument("--python", action="append", help="an interpreter; repeat it for several (default: this one)")
    parser.add_argument("--extras", default="cpu", help="extras to install (default: %(default)s)")
    given = parser.parse_args()
    for python in given.python or [sys.executable]:
        print(install_and_use(given.package, python, given.extras.split(",")))


def install_and_use(package: Path, python: str, extras: Sequence[str], constraints: Path | None = None) -> str:
    """Install `package[extras]` with an interpreter into a fresh environment, and use it.

    Returns:
        A line that says what was installed, how large it is, and how long that took.

    Raises:
        SystemExit: something failed; the message says what, and what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        started = time.monotonic()
        run([python, "-m", "venv", str(place / "venv")], place)
        within = place / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
        wanted = f"{package.resolve()}[{','.join(extras)}]"
        bounds = ["--constraint", str(constraints)] if constraints else []
        run([str(within / "python"), "-m", "pip", "install", "--quiet", *bounds, wanted], place)
        installed = time.monotonic() - started
        use(within, place, extras)
        version = run(
            [str(within / "python"), "-c", "import platform; print(platform.python_version())"], place
        ).strip()
        size = sum(f.stat().st_size for f in (place / "venv").rglob("*") if f.is_file() and not f.is_symlink())
    what = f"{package.name}[{','.join(extras)}]"
    return f"Python {version}: {what} works; {size / 1e6:.0f} MB, installed in {installed:.0f} s"


def use(within: Path, folder: Path, extras: Sequence[str]) -> None:
    """Run the commands of what the extras make possible; a map that is flat, or PyTorch without `export`, is a failure."""
    shutil.copy(ROOT / "docs" / "demo.png", folder)
    for needed, commands in USES:
        for command in commands if needed <= set(extras) else ():
            run([str(within / "r2mrf"), *command.split()], folder)
    run([str(within / "python"), "-c", LOOK], folder)
    if "export" not in extras:
        there = run(
            [str(within / "python"), "-c", "import importlib.util as u; print(u.find_spec('torch') is not None)"],
            folder,
        )
        if there.strip() != "False":
            raise SystemExit("PyTorch was installed without the extra export")
        refused = subprocess.run(
            [str(within / "r2mrf"), "export", "r2mrf-lite"], cwd=folder, capture_output=True, text=True
        )
        if refused.returncode != 2 or "r2mrf-deploy[export]" not in refused.stderr:
            raise SystemExit(f"export without PyTorch does not name the extra: {refused.stderr}")


def run(command: Sequence[str], folder: Path) -> str:
    """Run a command in a folder, and return its standard output. Raises SystemExit if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
