"""The part of CUDA that a runner needs: memory, streams, events and graphs.

There are two providers: `cuda.bindings.runtime` (cuda-python) and, as an alternative, pycuda. Handles are opaque to
callers, addresses are ints, and host memory is pinned so that copies overlap with computation.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from r2mrf_deploy import environment
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError

Buffers = Literal["cuda-python", "pycuda"]

# CUDA's error codes -> what to do about them.
_CURES = {
    2: "free device memory, or use a smaller shape",
    35: "install an NVIDIA driver that supports the installed CUDA, or run on a machine that has one",
    46: "stop the program that holds the device, or make another GPU visible (CUDA_VISIBLE_DEVICES)",
    100: "run on a machine with an NVIDIA GPU, and make it visible (CUDA_VISIBLE_DEVICES)",
    209: "the plan holds no code for this GPU: build it for this GPU with `gpus`",
    700: "the device is in an error state: open the artifact again in a new process",
    719: "the device is in an error state: open the artifact again in a new process",
}
_DOCTOR = "check the driver and the versions with `r2mrf doctor`"


class CudaError(RuntimeUnavailable):
    """CUDA, or the package that reaches it, cannot be used."""

    def __init__(self, reason: str, cure: str) -> None:
        super().__init__(f"{reason}: {cure}")
        self.reason = reason
        self.cure = cure


@dataclass(frozen=True)
class Device:
    """The GPU at hand."""

    name: str
    compute_capability: str


class Cuda(ABC):
    """A provider of memory, streams, events and graphs on the current device. Every method may raise a CudaError."""

    graphs: ClassVar[bool] = False
    """Whether it can capture CUDA graphs."""

    @abstractmethod
    def device(self) -> Device:
        """The current device."""

    @abstractmethod
    def malloc(self, size: int) -> int:
        """Allocate `size` bytes on the device and return their address."""

    @abstractmethod
    def free(self, address: int) -> None: ...

    @abstractmethod
    def pinned(self, size: int) -> np.ndarray:
        """Allocate pinned host memory: uint8 [size]."""

    @abstractmethod
    def unpin(self, memory: np.ndarray) -> None:
        """Free what `pinned` returned."""

    @abstractmethod
    def copy_in(self, address: int, memory: np.ndarray, stream: Any) -> None:
        """Enqueue a copy of pinned memory (uint8) to the device."""

    @abstractmethod
    def copy_out(self, memory: np.ndarray, address: int, stream: Any) -> None:
        """Enqueue a copy from the device into pinned memory (uint8)."""

    @abstractmethod
    def stream(self) -> Any:
        """Create a stream that does not wait for the default one."""

    @abstractmethod
    def handle(self, stream: Any) -> int:
        """The stream's address, which TensorRT takes."""

    @abstractmethod
    def synchronize(self, stream: Any) -> None: ...

    def destroy_stream(self, stream: Any) -> None:
        """Destroy a stream, unless deleting its object does so."""

    @abstractmethod
    def event(self, spin: bool = False) -> Any:
        """Create an event. With `spin`, waiting for it polls the device instead of sleeping."""

    @abstractmethod
    def wait(self, event: Any) -> None:
        """Wait until the device has passed a recorded event."""

    @abstractmethod
    def record(self, event: Any, stream: Any) -> None: ...

    @abstractmethod
    def elapsed(self, start: Any, end: Any) -> float:
        """Milliseconds between two recorded events that the device has passed."""

    def destroy_event(self, event: Any) -> None:
        """Destroy an event, unless deleting its object does so."""

    def capture(self, stream: Any, work: Callable[[], bool]) -> Any | None:
        """Capture what `work` enqueues as a graph, or return None if it cannot be captured."""
        return None

    def launch(self, graph: Any, stream: Any) -> None:
        """Enqueue a captured graph."""

    def destroy_graph(self, graph: Any) -> None:
        """Free what `capture` returned."""


class CudaPython(Cuda):
    """NVIDIA's own bindings of the CUDA runtime."""

    graphs = True

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._rt = runtime

    def _do(self, answer: tuple[Any, ...]) -> Any:
        """Return the value from a call's (error, value ...), or raise the error."""
        error, *values = answer
        if int(error):
            text = self._rt.cudaGetErrorString(error)[1]
            raise failure(int(error), text.decode() if isinstance(text, bytes) else str(text))
        return values[0] if values else None

    def device(self) -> Device:
        self._do(self._rt.cudaGetDeviceCount())
        properties = self._do(self._rt.cudaGetDeviceProperties(self._do(self._rt.cudaGetDevice())))
        title = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        return Device(title.rstrip("\0"), f"{properties.major}.{properties.minor}")

    def malloc(self, size: int) -> int:
        return int(self._do(self._rt.cudaMalloc(max(size, 1))))

    def free(self, address: int) -> None:
        self._do(self._rt.cudaFree(address))

    def pinned(self, size: int) -> np.ndarray:
        address = int(self._do(self._rt.cudaHostAlloc(max(size, 1), self._rt.cudaHostAllocDefault)))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def unpin(self, memory: np.ndarray) -> None:
        self._do(self._rt.cudaFreeHost(memory.ctypes.data))

    def copy_in(self, address: int, memory: np.ndarray, stream: Any) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._do(self._rt.cudaMemcpyAsync(address, memory.ctypes.data, memory.nbytes, kind, stream))

    def copy_out(self, memory: np.ndarray, address: int, stream: Any) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._do(self._rt.cudaMemcpyAsync(memory.ctypes.data, address, memory.nbytes, kind, stream))

    def stream(self) -> Any:
        return self._do(self._rt.cudaStreamCreateWithFlags(self._rt.cudaStreamNonBlocking))

    def handle(self, stream: Any) -> int:
        return int(stream)

    def synchronize(self, stream: Any) -> None:
        self._do(self._rt.cudaStreamSynchronize(stream))

    def destroy_stream(self, stream: Any) -> None:
        self._do(self._rt.cudaStreamDestroy(stream))

    def event(self, spin: bool = False) -> Any:
        flags = self._rt.cudaEventDefault if spin else self._rt.cudaEventBlockingSync
        return self._do(self._rt.cudaEventCreateWithFlags(flags))

    def wait(self, event: Any) -> None:
        self._do(self._rt.cudaEventSynchronize(event))

    def record(self, event: Any, stream: Any) -> None:
        self._do(self._rt.cudaEventRecord(event, stream))

    def elapsed(self, start: Any, end: Any) -> float:
        return float(self._do(self._rt.cudaEventElapsedTime(start, end)))

    def destroy_event(self, event: Any) -> None:
        self._do(self._rt.cudaEventDestroy(event))

    def capture(self, stream: Any, work: Callable[[], bool]) -> Any | None:
        rt = self._rt
        # Thread-local, since other threads may allocate on the device meanwhile.
        self._do(rt.cudaStreamBeginCapture(stream, rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        done, executable = False, None
        try:
            done = work()
        finally:
            error, graph = rt.cudaStreamEndCapture(stream)
            if not int(error):
                if done:
                    refused, executable = rt.cudaGraphInstantiate(graph, 0)
                    executable = None if int(refused) else executable
                rt.cudaGraphDestroy(graph)
            if executable is None:
                rt.cudaGetLastError()  # a failed capture must not make the next call fail
        return executable

    def launch(self, graph: Any, stream: Any) -> None:
        self._do(self._rt.cudaGraphLaunch(graph, stream))

    def destroy_graph(self, graph: Any) -> None:
        self._do(self._rt.cudaGraphExecDestroy(graph))


class PyCuda(Cuda):
    """pycuda, on the primary context, which TensorRT uses too. It cannot capture graphs."""

    def __init__(self) -> None:
        import pycuda.driver

        self._drv = pycuda.driver
        self._memory: dict[int, Any] = {}
        self._context: Any = None
        self._do(self._drv.init)
        if not self._do(self._drv.Device.count):
            raise failure(100, "no CUDA-capable device is detected")
        self._context = self._do(self._do(self._drv.Device, 0).retain_primary_context)

    def _do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function with the context current in this thread, and raise its error as a CudaError."""
        context = self._context
        if context is not None:
            context.push()
        try:
            return function(*arguments)
        except self._drv.Error as e:
            raise CudaError(f"CUDA: {e}", cure_of(str(e))) from None
        finally:
            if context is not None:
                context.pop()

    def device(self) -> Device:
        device = self._drv.Device(0)
        return Device(device.name(), "{}.{}".format(*device.compute_capability()))

    def malloc(self, size: int) -> int:
        allocation = self._do(self._drv.mem_alloc, max(size, 1))
        self._memory[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        self._do(self._memory.pop(address).free)

    def pinned(self, size: int) -> np.ndarray:
        return self._do(self._drv.pagelocked_empty, size, np.uint8)

    def unpin(self, memory: np.ndarray) -> None:
        allocation: Any = memory.base
        self._do(allocation.free)

    def copy_in(self, address: int, memory: np.ndarray, stream: Any) -> None:
        self._do(self._drv.memcpy_htod_async, address, memory, stream)

    def copy_out(self, memory: np.ndarray, address: int, stream: Any) -> None:
        self._do(self._drv.memcpy_dtoh_async, memory, address, stream)

    def stream(self) -> Any:
        return self._do(self._drv.Stream, 1)  # CU_STREAM_NON_BLOCKING

    def handle(self, stream: Any) -> int:
        return stream.handle

    def synchronize(self, stream: Any) -> None:
        self._do(stream.synchronize)

    def event(self, spin: bool = False) -> Any:
        flags = self._drv.event_flags
        return self._do(self._drv.Event, flags.DEFAULT if spin else flags.BLOCKING_SYNC)

    def wait(self, event: Any) -> None:
        self._do(event.synchronize)

    def record(self, event: Any, stream: Any) -> None:
        self._do(event.record, stream)

    def elapsed(self, start: Any, end: Any) -> float:
        return self._do(start.time_till, end)


def failure(code: int, text: str) -> CudaError:
    """A CUDA error as an exception with its cure."""
    return CudaError(f"CUDA error {code} ({text})", _CURES.get(code, _DOCTOR))


def cure_of(text: str) -> str:
    """What to do about an error that is given only as text."""
    return _CURES[2] if "out of memory" in text else _DOCTOR


_PROVIDERS: dict[Buffers, Callable[[], Cuda]] = {"cuda-python": CudaPython, "pycuda": PyCuda}


def provider(name: Buffers | None = None) -> Cuda:
    """The provider called `name`, or by default the first that is installed.

    Raises:
        UsageError: no provider has that name.
        CudaError: that provider, or any at all, is not installed.
    """
    if name is not None and name not in _PROVIDERS:
        raise UsageError(f"`buffers` {name}: choose from {', '.join(_PROVIDERS)}")
    for candidate in [name] if name else _PROVIDERS:
        try:
            return _PROVIDERS[candidate]()
        except ImportError:
            continue
    missing = name or "cuda-python"
    raise CudaError(f"{missing} is not installed", f"pip install {missing}")


def device() -> Device:
    """The GPU at hand.

    Raises:
        CudaError: there is no GPU or no driver, or no provider is installed.
    """
    if reason := environment.cuda_driver():  # CUDA itself would report an old driver where there is none
        raise CudaError(reason, "run it on a machine with an NVIDIA GPU")
    return provider().device()
