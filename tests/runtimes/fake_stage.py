"""A driver and a TensorRT that are not there (`fake_cuda_runtime`, `fake_tensorrt`), what the package makes of them, and
what tests on them share.

The device is as late as CUDA allows. Where a test has `frees_wait`, the driver does (True) or does not (False) wait for the
device before it frees memory; CUDA says that it may.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cuda_runtime import FakeCudaRuntime
from fake_tensorrt import PLAN, FakeTensorRT, mean

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.manifest import Contract
from r2mrf_deploy.runtimes.base import OpenOptions
from r2mrf_deploy.runtimes.cuda.bindings import CudaPython
from r2mrf_deploy.runtimes.tensorrt.api import Library
from r2mrf_deploy.runtimes.tensorrt.runner import TensorRTRunner

SIZES = [(1, 8, 8), (2, 32, 16), (1, 8, 8), (1, 4, 4), (2, 32, 16), (2, 32, 32)]
LARGER = (2, 32, 32)
Arrays = dict[str, np.ndarray]


def picture(seed: int, size: tuple[int, int, int] = (1, 8, 8)) -> Arrays:
    return {"image": np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)}


def assert_map(outputs: Arrays, arrays: Arrays) -> None:
    np.testing.assert_array_equal(outputs["map"], mean(arrays["image"]))


class Stage:
    """A driver, a TensorRT and what the package makes of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch = monkeypatch
        self._plan = folder / "x.plan"
        self._plan.write_bytes(PLAN)
        self.device()

    def device(self, **options: Any) -> FakeCudaRuntime:
        """Put another device in."""
        self.rt = FakeCudaRuntime(**options)
        self._monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(runtime=self.rt))
        self.cuda = CudaPython()
        return self.rt

    def runner(
        self, options: OpenOptions | None = None, contract: Contract | None = None, **library: Any
    ) -> TensorRTRunner:
        self.trt = FakeTensorRT(self.rt, **library)
        found = Library("tensorrt_rtx" if self.trt.rtx else "tensorrt", self.trt)
        return TensorRTRunner(found, Artifact(self._plan, None, contract), options or OpenOptions(), self.cuda)

    def leaks(self) -> dict[str, int]:
        """What is alive when the device has done all that it was given."""
        gc.collect()
        self.rt.cudaDeviceSynchronize()
        assert not self.rt.why_lost
        return self.rt.alive()


LIBRARIES: list[dict[str, Any]] = [
    {},
    {"rtx": True},
    {"rtx": True, "own_graphs": False},
    {"rtx": True, "own_graphs": False, "capturable": False},
    {"implicit_profile": True},
]
every_library = pytest.mark.parametrize("library", LIBRARIES, ids=lambda x: "-".join(x) or "tensorrt")
with_and_without_graphs = pytest.mark.parametrize("graph", [None, False], ids=["graph", "no-graph"])
with_both_drivers = pytest.mark.parametrize("frees_wait", [True, False], ids=["frees-wait", "frees-do-not-wait"])


def within(seconds: float, *works: Callable[[], Any]) -> list[BaseException]:
    """What these raised, each in a thread of its own; fails where one does not end."""
    raised: list[BaseException] = []

    def guarded(work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as e:
            raised.append(e)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive(), "it hangs"
    return raised
