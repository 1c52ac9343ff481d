"""Finds ONNX Runtime Web: the npm package that a page is made with.

`package.json` pins its version and the SHA-256 of each file that is used, since npm's lock file only knows the hash of the
whole archive. The package is looked for beside this file, where `make web` puts it, and in `node_modules` of the working
directory and the folders above it, as npm does. Nothing is downloaded.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from r2mrf_deploy.errors import RuntimeUnavailable, reading
from r2mrf_deploy.files import document, sha256

NAME = "onnxruntime-web"
OPERATORS = "docs/webgpu-operators.md"
"""The package's table of the operators that run on WebGPU."""


@dataclass(frozen=True)
class Parts:
    """The package's files for one way of running."""

    script: str
    loader: str
    binary: str


WASM = Parts("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm")
# of the two builds with WebGPU, this one runs in every browser: the other needs WebAssembly's stack switching
WEBGPU = Parts(
    "dist/ort.webgpu.min.mjs",
    "dist/ort-wasm-simd-threaded.asyncify.mjs",
    "dist/ort-wasm-simd-threaded.asyncify.wasm",
)


@dataclass(frozen=True)
class Library:
    """The installed package, whose files are as they were pinned."""

    folder: Path
    version: str

    def read(self, name: str) -> bytes:
        """The content of one of its files."""
        with reading(self.folder / name, RuntimeUnavailable, "cannot be read", cure()):
            return (self.folder / name).read_bytes()

    def compressed(self, name: str) -> bytes:
        """The same, by gzip; each time the same bytes."""
        return _compressed(self.folder / name)


def version() -> str:
    """The pinned version."""
    return _pinned()["dependencies"][NAME]


def cure() -> str:
    """How to get the package."""
    return f"make web, or npm install {NAME}@{version()}"


def find() -> Library:
    """The installed package.

    Raises:
        RuntimeUnavailable: it is not installed, has another version, or one of its files is not as it was pinned.
    """
    refused = f"{NAME} is not installed"
    for folder in filter(Path.is_dir, _places()):
        if not (refused := _refusal(folder)):
            return Library(folder, version())
    raise RuntimeUnavailable(f"{refused}; {cure()}")


def missing() -> str:
    """Why the package cannot be used here; empty if it can."""
    try:
        find()
    except RuntimeUnavailable as e:
        return str(e).removesuffix(f"; {cure()}")
    return ""


def _places() -> Iterator[Path]:
    """Where the package may be, in the order of preference."""
    try:
        here = Path.cwd()
    except OSError:  # the working directory was removed
        here = Path("/")
    for folder in (Path(__file__).parent, here, *here.parents):
        yield folder / "node_modules" / NAME


def _refusal(folder: Path) -> str:
    """Why a folder is not the pinned package; empty if it is."""
    with reading(folder / "package.json", RuntimeUnavailable, "is not a package of npm", cure()):
        found = json.loads(document(folder / "package.json")).get("version")
    if found != version():
        return f"{folder} has version {found}, and pages are made with {version()}"
    for name, digest in _pinned()["sha256"].items():
        if not (folder / name).is_file() or _digest(folder / name, _stamp(folder / name)) != digest:
            return f"{folder / name} is missing, or is not the file of version {version()}"
    return ""


@cache
def _pinned() -> Mapping[str, Mapping[str, str]]:
    return json.loads(Path(__file__).with_name("package.json").read_text(encoding="utf-8"))


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


@cache
def _digest(file: Path, stamp: tuple[int, int]) -> str:
    """The SHA-256 of a file, computed once for as long as its size and time stay."""
    return sha256(file)


@cache
def _compressed(file: Path) -> bytes:
    return gzip.compress(file.read_bytes(), 6, mtime=0)  # 9 takes three times as long and saves one part in a hundred
