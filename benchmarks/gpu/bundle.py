"""Make a folder to carry to a GPU machine that reaches no package index.

    python benchmarks/gpu/bundle.py --python 3.12 --have packages.txt --compute-capability 9.0 -o out/gpu-bundle

`packages.txt` lists the packages of that machine: the output of `pip freeze`, or bare names. The bundle holds the toolkit,
the wheels that the machine lacks, and the kit. It comes in parts of at most `--part` MB, since transfers often have a size
limit. On the GPU machine, run:

    python part1/install.py && PYTHONPATH=r2mrf-site python part1/kit/first_minutes.py

With `--compute-capability`, ONNX Runtime's wheel keeps only the CUDA code for that GPU, without language models' kernels and
the library for C++, and is compressed harder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

import fatbin  # noqa: E402

GLIBC = ("39", "35", "34", "31", "28", "27", "24", "17", "12", "5")
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in GLIBC] + ["manylinux2014_x86_64", "manylinux1_x86_64", "linux_x86_64"]
KIT = (
    "first_minutes.py",
    "steps.py",
    "place.py",
    "device.py",
    "artifacts.py",
    "timings.py",
    "report.py",
    "suite.py",
    "native_stack.c",
)
LARGE = "libonnxruntime_providers_cuda.so"
FOR_CPP = "onnxruntime/capi/libonnxruntime.so"
"""The Python extension contains the same code."""
UNNEEDED = re.compile("contrib|3llm|flash|cutlass")
"""In the names of kernels that convolutional networks do not run: attention, mixtures of experts, 4-bit products."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, metavar="3.12", help="Python version of the GPU machine")
    parser.add_argument("--have", type=Path, required=True, metavar="FILE", help="list of its packages")
    parser.add_argument("--compute-capability", metavar="9.0", help="compute capability of its GPU")
    parser.add_argument("--part", type=float, default=60.0, metavar="MB", help="largest size of a part")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/gpu-bundle"))
    given = parser.parse_args()
    if given.output.exists() and any(given.output.iterdir()):
        raise SystemExit(f"{given.output} is not empty: choose another folder, or remove it")
    with tempfile.TemporaryDirectory() as folder:
        wheels = collect(given.python, have(given.have), Path(folder))
        if given.compute_capability:
            capability = given.compute_capability
            try:
                wheels = [reduced(w, capability) if w.name.startswith("onnxruntime_gpu") else w for w in wheels]
            except fatbin.NotFatBinary as e:
                raise SystemExit(f"--compute-capability {capability}: ONNX Runtime's library has {e}") from None
        parts = pack(wheels, given.output, int(given.part * 1e6))
    for part in parts:
        size = sum(f.stat().st_size for f in part.rglob("*") if f.is_file()) / 1e6
        print(f"{part}: {size:.1f} MB, {', '.join(sorted(f.name for f in part.iterdir()))}")


def have(file: Path) -> dict[str, str | None]:
    """Read a list of packages, each with its version if that is given."""
    found: dict[str, str | None] = {}
    for line in file.read_text().splitlines():
        text = line.partition("#")[0].partition(";")[0].partition(" @ ")[0].strip()
        if text and not text.startswith("-"):
            name, _, version = text.partition("==")
            found[canonicalize_name(name.strip())] = version.strip() or None
    return found


def collect(python: str, there: Mapping[str, str | None], folder: Path) -> list[Path]:
    """Get the toolkit's wheel, and all wheels that it needs and the machine lacks."""
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # setuptools would also pack files of earlier versions
    _pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (own,) = folder.glob("r2mrf_deploy-*.whl")
    wheels, seen = {canonicalize_name("r2mrf-deploy"): own}, set[tuple[str, frozenset[str]]]()
    waiting = [*_needs(own, python, "export", "gpu"), Requirement("cuda-bindings>=12.6"), Requirement("pytest>=9.0")]
    while waiting:
        need = waiting.pop(0)
        name = canonicalize_name(need.name)
        if (name, frozenset(need.extras)) in seen or _suffices(need, there.get(name, "missing")):
            continue
        seen.add((name, frozenset(need.extras)))
        if name not in wheels:
            if name in there:
                print(f"the machine has {name} {there[name]}, but {need} is needed: the bundle includes it")
            before = set(folder.iterdir())
            options = ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
            options += [f"--platform={p}" for p in PLATFORMS]
            _pip("download", *options, "--dest", str(folder), f"{need.name}{need.specifier}")
            (wheels[name],) = set(folder.iterdir()) - before
        waiting += _needs(wheels[name], python, *need.extras)
    return list(wheels.values())


def _suffices(need: Requirement, version: str | None) -> bool:
    """Whether a version meets a requirement. A version that is not known counts as sufficient."""
    return version is None or (version != "missing" and need.specifier.contains(version, prereleases=True))


def _needs(wheel: Path, python: str, *extras: str) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1)
        said = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist", [])
    place = {"python_version": python, "python_full_version": f"{python}.0", "implementation_name": "cpython"}
    place |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    return [
        need
        for need in map(Requirement, said)
        if need.marker is None or any(need.marker.evaluate(place | {"extra": extra}) for extra in ("", *extras))
    ]


def _pip(*arguments: str) -> None:
    if subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments]).returncode:
        raise SystemExit(f"`pip {arguments[0]}` failed for {arguments[-1]}: see its message above")


def reduced(wheel: Path, compute_capability: str) -> Path:
    """Make a wheel of ONNX Runtime, with a version of its own, that holds only the CUDA code for one GPU.

    Returns:
        the new wheel, or the one given if its library no longer loads.
    """
    architecture = int(compute_capability.replace(".", ""))
    name, version, tags = wheel.name.split("-", 2)
    local = f"{version}+sm{architecture}"
    target = wheel.with_name(f"{name}-{local}-{tags}")
    record: list[str] = []
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as packed:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                continue
            if entry.filename.startswith(FOR_CPP):
                continue
            if entry.filename.endswith(LARGE):
                names = fatbin.kernels(content, architecture)
                unneeded = [bool(piece) and all(map(UNNEEDED.search, piece)) for piece in names]
                content, held = fatbin.reduce(content, architecture, unneeded)
                print(f"ONNX Runtime has code for {', '.join(map(str, sorted(held)))}: only {architecture} is kept")
                if (why := _does_not_load(content)) is not None:
                    print(f"the reduced {LARGE} does not load ({why}): the bundle includes the whole one")
                    return wheel
            if entry.filename.endswith(".dist-info/METADATA"):
                content = content.replace(f"\nVersion: {version}\n".encode(), f"\nVersion: {local}\n".encode())
            path = entry.filename.replace(f"{name}-{version}.dist-info", f"{name}-{local}.dist-info")
            digest = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{path},sha256={digest},{len(content)}")
            packed.writestr(path, content)
        record.append(f"{name}-{local}.dist-info/RECORD,,")
        packed.writestr(f"{name}-{local}.dist-info/RECORD", "\n".join(record) + "\n")
    return target


def _does_not_load(library: bytes) -> str | None:
    """Why a library of ONNX Runtime does not load; None if it does, or if not even the original loads on this machine."""
    program = (
        "import ctypes, pathlib, sys, onnxruntime\nfrom r2mrf_deploy.runtimes.onnxruntime import _preload\n_preload()\n"
        "folder = pathlib.Path(onnxruntime.__file__).parent / 'capi'\n"
        "ctypes.CDLL(str(folder / 'libonnxruntime_providers_shared.so'), ctypes.RTLD_GLOBAL)\n"
        "try: ctypes.CDLL(str(folder / 'libonnxruntime_providers_cuda.so'))\n"
        "except OSError: sys.exit(0)\n"  # not even the original loads
        "ctypes.CDLL(sys.argv[1])\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / LARGE
        path.write_bytes(library)
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, cwd=ROOT)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def pack(wheels: list[Path], output: Path, limit: int) -> list[Path]:
    """Distribute the wheels and the kit over parts. Files that are larger than a part are split into volumes."""
    first = output / "part1"
    (first / "kit").mkdir(parents=True)
    for name in KIT:
        shutil.copy(HERE / name, first / "kit" / name)
    shutil.copy(HERE / "install.py", first)
    parts, room = [first], limit - 200_000  # the kit, and the table of contents
    contents: dict[str, list[dict[str, str]]] = {}
    for wheel in sorted(wheels, key=lambda w: w.stat().st_size):
        content, volumes = wheel.read_bytes(), contents.setdefault(wheel.name, [])
        while content:
            if room < min(len(content), 1_000_000):
                parts.append(output / f"part{len(parts) + 1}")
                parts[-1].mkdir()
                room = limit
            piece, content = content[:room], content[room:]
            name = wheel.name if not content and not volumes else f"{wheel.name}.{len(volumes) + 1}"
            (parts[-1] / name).write_bytes(piece)
            volumes.append({"name": name, "sha256": hashlib.sha256(piece).hexdigest()})
            room -= len(piece)
    (first / "contents.json").write_text(json.dumps(contents, indent=1))
    return parts


if __name__ == "__main__":
    main()
