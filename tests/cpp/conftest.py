"""The C++ library through its C API, as `make cpp` installed it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

PREFIX = Path(__file__).parents[2] / "out" / "cpp"

TinyOnnx = Callable[..., Path]
OpenEngine = Callable[[Path], "Engine"]


class Engine:
    """An artifact that the library opened."""

    def __init__(self, library: ctypes.CDLL, artifact: Path) -> None:
        self._library = library
        self._handle = ctypes.c_void_p()
        self._check(library.r2mrf_open(str(artifact).encode(), ctypes.c_uint32(0), ctypes.byref(self._handle)))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The map of uint8 [H, W, 3] RGB, rows of any stride: float32 [H, W]."""
        focus = np.empty(image.shape[:2], np.float32)
        self._run("r2mrf_run_f32", image, focus)
        return focus

    def as_bytes(self, image: np.ndarray) -> np.ndarray:
        """The same as uint8 [H, W]."""
        focus = np.empty(image.shape[:2], np.uint8)
        self._run("r2mrf_run_u8", image, focus)
        return focus

    def close(self) -> None:
        self._library.r2mrf_close(self._handle)

    def _run(self, function: str, image: np.ndarray, focus: np.ndarray) -> None:
        height, width = image.shape[:2]
        assert image.strides[1:] == (3, 1)
        arguments = (
            *(self._handle, ctypes.c_void_p(image.ctypes.data), ctypes.c_uint32(width), ctypes.c_uint32(height)),
            *(ctypes.c_size_t(image.strides[0]), ctypes.c_int32(0)),
            *(ctypes.c_void_p(focus.ctypes.data), ctypes.c_size_t(focus.strides[0])),
        )
        self._check(getattr(self._library, function)(*arguments))

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(self._library.r2mrf_last_error().decode())


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    path = PREFIX / "lib" / "libr2mrf.so"
    if not path.exists():
        pytest.skip("needs the C++ library: make cpp")
    found = ctypes.CDLL(str(path))
    for name in ("r2mrf_last_error", "r2mrf_backends", "r2mrf_version"):
        getattr(found, name).restype = ctypes.c_char_p
    if b"openvino" not in found.r2mrf_backends():
        pytest.skip("the C++ library was built without OpenVINO")
    return found


@pytest.fixture
def open_engine(library: ctypes.CDLL) -> Iterator[OpenEngine]:
    opened: list[Engine] = []

    def make(artifact: Path) -> Engine:
        opened.append(Engine(library, artifact))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


@pytest.fixture(scope="session")
def infer(library: ctypes.CDLL) -> Path:
    """The program `r2mrf-infer`."""
    return PREFIX / "bin" / "r2mrf-infer"
