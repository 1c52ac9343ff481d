"""The wrapper of CUDA on a machine without a driver: every verb is a call that the bindings take, and fails clearly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from r2mrf_deploy import environment
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError
from r2mrf_deploy.runtimes.cuda import bindings

runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python")


def driverless() -> bool:
    return int(runtime.cudaGetDeviceCount()[0]) != 0


@pytest.mark.skipif(not driverless(), reason="needs a machine without a CUDA device")
@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("device", ()),
        ("malloc", (8,)),
        ("free", (1024,)),
        ("pinned", (8,)),
        ("unpin", (np.zeros(8, np.uint8),)),
        ("copy_in", (1024, np.zeros(8, np.uint8), runtime.cudaStream_t(0))),
        ("copy_out", (np.zeros(8, np.uint8), 1024, runtime.cudaStream_t(0))),
        ("stream", ()),
        ("synchronize", (runtime.cudaStream_t(0),)),
        ("destroy_stream", (runtime.cudaStream_t(0),)),
        ("event", (True,)),
        ("event", (False,)),
        ("wait", (runtime.cudaEvent_t(0),)),
        ("record", (runtime.cudaEvent_t(0), runtime.cudaStream_t(0))),
        ("elapsed", (runtime.cudaEvent_t(0), runtime.cudaEvent_t(0))),
        ("destroy_event", (runtime.cudaEvent_t(0),)),
        ("capture", (runtime.cudaStream_t(0), lambda: True)),
        ("launch", (runtime.cudaGraphExec_t(0), runtime.cudaStream_t(0))),
        ("destroy_graph", (runtime.cudaGraphExec_t(0),)),
    ],
)
def test_every_verb_fails_clearly_without_a_driver(verb: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(bindings.CudaError, match=r"^CUDA error \d+ \(.*\): ") as e:
        getattr(bindings.CudaPython(), verb)(*arguments)
    assert e.value.cure and "\n" not in str(e.value)


def test_errors_say_what_to_do() -> None:
    assert "CUDA_VISIBLE_DEVICES" in str(bindings.failure(100, "no CUDA-capable device is detected"))
    assert "driver" in bindings.failure(35, "insufficient").cure
    assert "`gpus`" in bindings.failure(209, "no kernel image").cure
    assert "doctor" in bindings.failure(999, "unknown error").cure
    assert isinstance(bindings.failure(1, "x"), RuntimeUnavailable)


def test_no_driver_is_said_before_cuda_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cuda_driver", lambda: "no NVIDIA driver on this machine")
    with pytest.raises(bindings.CudaError, match=r"^no NVIDIA driver on this machine: run it on"):
        bindings.device()


def test_unknown_and_missing_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="choose from cuda-python, pycuda"):
        bindings.provider("cupy")  # type: ignore[arg-type]

    def missing() -> bindings.Cuda:
        raise ImportError

    monkeypatch.setattr(bindings, "_PROVIDERS", {"cuda-python": missing, "pycuda": missing})
    with pytest.raises(bindings.CudaError, match="pycuda is not installed: pip install pycuda"):
        bindings.provider("pycuda")
    with pytest.raises(bindings.CudaError, match="cuda-python is not installed"):
        bindings.provider()
