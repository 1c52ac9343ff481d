"""Fixtures that open the installed C++ library (`make cpp`) through its C API."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from embed_ctypes import Engine, load

PREFIX = Path(__file__).parents[2] / "out" / "cpp"

TinyOnnx = Callable[..., Path]
OpenEngine = Callable[[Path], Engine]


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    path = PREFIX / "lib" / "libr2mrf.so"
    if not path.exists():
        pytest.skip("needs the C++ library: make cpp")
    found = load(str(path))
    if b"openvino" not in found.r2mrf_backends():
        pytest.skip("the C++ library was built without OpenVINO")
    return found


@pytest.fixture
def open_engine(library: ctypes.CDLL) -> Iterator[OpenEngine]:
    opened: list[Engine] = []

    def make(artifact: Path) -> Engine:
        opened.append(Engine(library, str(artifact)))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


@pytest.fixture(scope="session")
def infer(library: ctypes.CDLL) -> Path:
    """The program `r2mrf-infer`."""
    return PREFIX / "bin" / "r2mrf-infer"
