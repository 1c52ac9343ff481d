"""Calls the library from Python through ctypes, without r2mrf-deploy: `python embed_ctypes.py libr2mrf.so ARTIFACT`."""

from __future__ import annotations

import ctypes
import sys

import numpy as np


class Times(ctypes.Structure):
    """r2mrf_times: milliseconds."""

    _fields_ = [(name, ctypes.c_double) for name in ("prepare", "enqueue", "h2d", "compute", "d2h", "finish")]


def load(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    for name in ("r2mrf_last_error", "r2mrf_backends", "r2mrf_version"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


class Engine:
    """An opened artifact. Raises RuntimeError with the library's message."""

    def __init__(self, library: ctypes.CDLL, artifact: str, threads: int = 0) -> None:
        self._library, self._handle = library, ctypes.c_void_p()
        self._check(library.r2mrf_open(artifact.encode(), ctypes.c_uint32(threads), ctypes.byref(self._handle)))

    def __call__(self, image: np.ndarray, dtype: type = np.float32) -> np.ndarray:
        """The map, float32 or uint8 [H, W], of an RGB image, uint8 [H, W, 3], whose rows may have any stride."""
        assert image.strides[1:] == (3, 1)
        focus = np.empty(image.shape[:2], dtype)
        run = self._library.r2mrf_run_u8 if dtype == np.uint8 else self._library.r2mrf_run_f32
        size = (ctypes.c_uint32(image.shape[1]), ctypes.c_uint32(image.shape[0]))
        source = (ctypes.c_void_p(image.ctypes.data), *size, ctypes.c_size_t(image.strides[0]), ctypes.c_int32(0))
        self._check(run(self._handle, *source, ctypes.c_void_p(focus.ctypes.data), ctypes.c_size_t(focus.strides[0])))
        return focus

    def last_times(self) -> Times:
        times = Times()
        self._check(self._library.r2mrf_last_times(ctypes.byref(times)))
        return times

    def close(self) -> None:
        self._library.r2mrf_close(self._handle)
        self._handle = ctypes.c_void_p()

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(self._library.r2mrf_last_error().decode())


if __name__ == "__main__":
    engine = Engine(load(sys.argv[1]), sys.argv[2])
    print(f"{engine(np.full((240, 320, 3), 128, np.uint8)).mean():.4f} in focus, {engine.last_times().compute:.1f} ms")
    engine.close()
