"""A CUDA driver that is not there, played on host memory behind the calls of `cuda.bindings.runtime`.

It keeps the documented rules at their worst: work on a stream runs as late as the rules allow, which is when somebody waits
for it; copies read and write pinned memory then, not before; memory is garbage until it is written, and again once it is
freed; an address is never used twice; freeing does not wait for the device unless `frees_wait` (CUDA's "may perform implicit
synchronization"). Whatever must fail fails with CUDA's own code.

What it cannot show: how long anything takes, overlap on the device, what kernels compute, faults of a driver, caches and
the coherence of memory, alignment, the default stream, several devices. Of captures it has those of one stream, and of the
calls that are "potentially unsafe" in one (CUDA gives no list) those that allocate and free.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from fake_cuda_types import (
    TEXTS,
    Handle,
    cudaError_t,
    cudaMemcpyKind,
    cudaStreamCaptureMode,
    cudaStreamCaptureStatus,
)

Work = Callable[[], None]


class Failure(Exception):
    """A call's error."""

    def __init__(self, code: int) -> None:
        super().__init__(TEXTS[code].decode())
        self.code = code


class Fault(Exception):
    """What happens on the device, long after the call, and loses it."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass
class Capture:
    mode: int
    thread: int
    works: list[Work] = field(default_factory=list)
    valid: bool = True


@dataclass(eq=False)
class Stream:
    queue: deque[Work] = field(default_factory=deque)
    enqueued: int = 0
    done: int = 0
    capture: Capture | None = None


@dataclass
class Record:
    """What an event captured: all that was in the stream until then."""

    stream: Stream
    until: int
    at: float | None = None
    """Milliseconds, once the device has come to it."""
    captured: bool = False


@dataclass
class Event:
    record: Record | None = None


@dataclass
class Executable:
    works: tuple[Work, ...]
    last: tuple[Stream, int] | None = None
    """Its last launch, which the next waits for."""


@dataclass
class Injected:
    code: int
    after: int
    times: int

    def due(self) -> bool:
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return self.times >= 0


def _call(values: int, lost: bool = True) -> Callable[[Callable[..., Any]], Callable[..., tuple[Any, ...]]]:
    """A call of CUDA's: one at a time, counted, and an error is returned with as many Nones as there would be values.

    Args:
        lost: it fails on a device that is lost.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        name = function.__name__

        @functools.wraps(function)
        def call(self: FakeCudaRuntime, *arguments: Any) -> tuple[Any, ...]:
            with self._lock:
                self.calls[name] += 1
                try:
                    if lost and self.lost:
                        raise Failure(self.lost)
                    if name in self._injected and self._injected[name].due():
                        raise Failure(self._injected[name].code)
                    found = function(self, *arguments)
                except Failure as failure:
                    self._last.error = failure.code
                    return (cudaError_t(failure.code), *[None] * values)
                return (cudaError_t.cudaSuccess, *[found] * values)

        return call

    return decorate


class FakeCudaRuntime:
    """A device with its driver, in place of the module `cuda.bindings.runtime`.

    Args:
        device_bytes: how much memory the device has; None is no limit.
        frees_wait: `cudaFree` waits for the device first, as drivers do and need not.
    """

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamCaptureStatus = cudaStreamCaptureStatus
    cudaHostAllocDefault = 0
    cudaEventDefault = 0
    cudaEventBlockingSync = 1
    cudaStreamNonBlocking = 1

    def __init__(self, device_bytes: int | None = None, frees_wait: bool = False) -> None:
        self.device_bytes = device_bytes
        self.calls: Counter[str] = Counter()
        self.kernels = 0
        """How many have run."""
        self.lost = 0
        """The error that the device is in for good; 0 for none."""
        self.why_lost = ""
        self._frees_wait = frees_wait
        self._lock = threading.RLock()
        self._last = threading.local()
        self._injected: dict[str, Injected] = {}
        self._kernel_fault: Injected | None = None
        self._addresses = itertools.count(1 << 40, 1 << 28)
        self._memory: dict[int, np.ndarray] = {}
        self._pinned: dict[int, np.ndarray] = {}
        self._unpinned: list[np.ndarray] = []  # kept, so that who still looks sees garbage and crashes nothing
        self._streams: dict[int, Stream] = {}
        self._destroyed: list[Stream] = []  # with work that goes on
        self._events: dict[int, Event] = {}
        self._graphs: dict[int, tuple[Work, ...]] = {}
        self._executables: dict[int, Executable] = {}

    # ---- what a test asks for and looks at

    def fail(self, call: str, code: int, after: int = 0, times: int = 1) -> None:
        """Have a call, by its name, fail `times` times after `after` more that do not; a failed call does nothing."""
        self._injected[call] = Injected(code, after, times)

    def lose(self, code: int, after: int = 0) -> None:
        """Lose the device in the kernel that runs after `after` more: whoever waits next gets the error, then everybody."""
        self._kernel_fault = Injected(code, after, 1)

    def alive(self) -> dict[str, int]:
        """How many of what were not given back; empty where nothing leaks."""
        found: dict[str, Mapping[int, Any]] = {
            "allocations": self._memory,
            "pinned": self._pinned,
            "streams": self._streams,
            "events": self._events,
            "graphs": self._graphs,
            "executables": self._executables,
        }
        return {name: len(things) for name, things in found.items() if things}

    # ---- what the fake TensorRT asks for

    @_call(0)
    def launch_kernel(self, stream: int, kernel: Work) -> None:
        """Enqueue a kernel, as `kernel<<<stream>>>` does; returns (error,) as all calls do."""

        def run() -> None:
            if self._kernel_fault is not None and self._kernel_fault.due():
                raise Fault(self._kernel_fault.code, "as the test wants it")
            kernel()
            self.kernels += 1

        self._enqueue(self._stream(stream), run)

    def memory(self, address: int, size: int) -> np.ndarray:
        """Device memory as a kernel sees it: uint8 [size].

        Raises:
            Fault: it is not there.
        """
        return self._span(self._memory, address, size, "device memory")

    # ---- device memory and pinned memory

    @_call(1)
    def cudaMalloc(self, size: int) -> int:
        self._unsafe_in_a_capture()
        taken = sum(block.nbytes for block in self._memory.values())
        if self.device_bytes is not None and taken + size > self.device_bytes:
            raise Failure(2)
        address = next(self._addresses)
        self._memory[address] = np.full(size, 0xCD, np.uint8)
        return address

    @_call(0)
    def cudaFree(self, address: int) -> None:
        self._unsafe_in_a_capture()
        if not address:
            return
        if address not in self._memory:
            raise Failure(1)
        if self._frees_wait:
            self._finish_all()
        del self._memory[address]

    @_call(1)
    def cudaHostAlloc(self, size: int, flags: int) -> int:
        self._unsafe_in_a_capture()
        block = np.full(size, 0xCD, np.uint8)
        self._pinned[block.ctypes.data] = block
        return block.ctypes.data

    @_call(0)
    def cudaFreeHost(self, address: int) -> None:
        self._unsafe_in_a_capture()
        if address not in self._pinned:
            raise Failure(1)
        block = self._pinned.pop(address)
        block.fill(0xDD)
        self._unpinned.append(block)

    @_call(0)
    def cudaMemcpyAsync(self, to: int, source: int, count: int, kind: cudaMemcpyKind, stream: Any) -> None:
        kind = cudaMemcpyKind(kind.value)  # the bindings take no integer
        inwards = kind == cudaMemcpyKind.cudaMemcpyHostToDevice
        if not inwards and kind != cudaMemcpyKind.cudaMemcpyDeviceToHost:
            raise NotImplementedError(kind)
        device, host = (to, source) if inwards else (source, to)
        if self._block(self._memory, device, count) is None:  # the driver knows every address of its own
            raise Failure(1)
        if self._block(self._pinned, host, 1) is None:
            pageable = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(host))
            staged = pageable.copy() if inwards else pageable
        elif self._block(self._pinned, host, count) is None:
            raise Failure(1)
        else:
            staged = None

        def copy() -> None:
            there = self._span(self._pinned, host, count, "pinned memory") if staged is None else staged
            here = self.memory(device, count)
            np.copyto(here, there) if inwards else np.copyto(there, here)

        queue = self._stream(stream)
        self._enqueue(queue, copy)
        if staged is not None and not inwards:  # into pageable memory: it returns when that is done
            self._finish(queue, queue.enqueued)

    # ---- streams

    @_call(1)
    def cudaStreamCreateWithFlags(self, flags: int) -> Handle:
        return self._new(self._streams, Stream())

    @_call(0)
    def cudaStreamDestroy(self, stream: Any) -> None:
        self._destroyed.append(self._stream(stream))
        del self._streams[int(stream)]

    @_call(0)
    def cudaStreamSynchronize(self, stream: Any) -> None:
        found = self._stream(stream)
        if found.capture is not None:
            raise _invalidated(found.capture, 900)
        self._finish(found, found.enqueued)

    @_call(0)
    def cudaDeviceSynchronize(self) -> None:
        for stream in self._streams.values():
            if stream.capture is not None:
                raise _invalidated(stream.capture, 900)
        self._finish_all()

    @_call(0)
    def cudaStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> None:
        queue, record = self._stream(stream), self._event(event).record
        if record is None:
            return
        if record.captured:
            raise NotImplementedError("a capture over several streams")
        if queue.capture is not None:
            raise _invalidated(queue.capture, 905)
        self._enqueue(queue, lambda: self._finish(record.stream, record.until))

    # ---- events

    @_call(1)
    def cudaEventCreateWithFlags(self, flags: int) -> Handle:
        return self._new(self._events, Event())

    @_call(0)
    def cudaEventDestroy(self, event: Any) -> None:
        self._event(event)
        del self._events[int(event)]

    @_call(0)
    def cudaEventRecord(self, event: Any, stream: Any) -> None:
        found, queue = self._event(event), self._stream(stream)
        record = Record(queue, queue.enqueued + 1, captured=queue.capture is not None)

        def arrive() -> None:
            record.at = time.perf_counter() * 1e3

        self._enqueue(queue, (lambda: None) if record.captured else arrive)
        found.record = record

    @_call(0)
    def cudaEventSynchronize(self, event: Any) -> None:
        record = self._event(event).record
        if record is None:
            return
        if record.captured:
            raise Failure(907)
        self._finish(record.stream, record.until)

    @_call(1)
    def cudaEventElapsedTime(self, start: Any, end: Any) -> float:
        first, last = self._event(start).record, self._event(end).record
        if first is None or last is None:
            raise Failure(400)
        if first.captured or last.captured:
            raise Failure(907)
        if first.at is None or last.at is None:
            raise Failure(600)
        return float(np.float32(last.at - first.at))

    # ---- captures and graphs

    @_call(0)
    def cudaStreamBeginCapture(self, stream: Any, mode: cudaStreamCaptureMode) -> None:
        found = self._stream(stream)
        if found.capture is not None:
            raise _invalidated(found.capture, 401)
        found.capture = Capture(cudaStreamCaptureMode(mode.value), threading.get_ident())

    @_call(1)
    def cudaStreamEndCapture(self, stream: Any) -> Handle:
        found = self._stream(stream)
        capture = found.capture
        if capture is None:
            raise Failure(401)
        relaxed = capture.mode == cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        if not relaxed and capture.thread != threading.get_ident():
            raise _invalidated(capture, 908)
        found.capture = None
        if not capture.valid:
            raise Failure(901)
        return self._new(self._graphs, tuple(capture.works))

    @_call(1)
    def cudaStreamIsCapturing(self, stream: Any) -> cudaStreamCaptureStatus:
        capture = self._stream(stream).capture
        return cudaStreamCaptureStatus(0 if capture is None else 1 if capture.valid else 2)

    @_call(1)
    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Handle:
        return self._new(self._executables, Executable(self._found(self._graphs, graph, 1)))

    @_call(0)
    def cudaGraphDestroy(self, graph: Any) -> None:
        self._found(self._graphs, graph, 1)
        del self._graphs[int(graph)]

    @_call(0)
    def cudaGraphLaunch(self, executable: Any, stream: Any) -> None:
        graph, queue = self._found(self._executables, executable, 1), self._stream(stream)
        if queue.capture is not None:
            raise NotImplementedError("a graph in a graph")
        works, before = graph.works, graph.last

        def run() -> None:
            if before is not None:
                self._finish(*before)
            for work in works:
                work()

        self._enqueue(queue, run)
        graph.last = (queue, queue.enqueued)

    @_call(0)
    def cudaGraphExecDestroy(self, executable: Any) -> None:
        self._found(self._executables, executable, 1)
        del self._executables[int(executable)]

    # ---- the device, and errors

    @_call(1)
    def cudaGetDeviceCount(self) -> int:
        return 1

    @_call(1)
    def cudaGetDevice(self) -> int:
        return 0

    @_call(1)
    def cudaGetDeviceProperties(self, device: int) -> Any:
        if device:
            raise Failure(101)
        return SimpleNamespace(name=b"fake GPU", major=8, minor=6)

    @_call(1, lost=False)
    def cudaDriverGetVersion(self) -> int:
        return 13000

    @_call(1, lost=False)
    def cudaRuntimeGetVersion(self) -> int:
        return 13000

    @_call(1, lost=False)
    def cudaGetErrorString(self, error: int) -> bytes:
        return TEXTS.get(int(error), b"unrecognized error code")

    def cudaGetLastError(self) -> tuple[cudaError_t]:
        """The last error in this thread, which is then forgotten; that of a lost device is not."""
        last, self._last.error = getattr(self._last, "error", 0), 0
        return (cudaError_t(self.lost or last),)

    # ---- how it runs

    def _new(self, things: dict[int, Any], thing: Any) -> Handle:
        handle = Handle(next(self._addresses))
        things[int(handle)] = thing
        return handle

    def _found(self, things: Mapping[int, Any], handle: Any, otherwise: int) -> Any:
        address = 0 if handle is None else int(handle)
        if address not in things:
            raise Failure(otherwise)
        return things[address]

    def _stream(self, handle: Any) -> Stream:
        return self._found(self._streams, handle, 400)

    def _event(self, handle: Any) -> Event:
        return self._found(self._events, handle, 400)

    def _enqueue(self, stream: Stream, work: Work) -> None:
        if stream.capture is None:
            stream.queue.append(work)
            stream.enqueued += 1
        elif stream.capture.valid:
            stream.capture.works.append(work)
        else:
            raise Failure(901)

    def _finish(self, stream: Stream, until: int) -> None:
        """Run a stream's work in its order, up to a place in it."""
        while stream.done < until:
            stream.done += 1
            try:
                stream.queue.popleft()()
            except Fault as fault:
                self.lost, self.why_lost = fault.code, str(fault)
                raise Failure(fault.code) from fault

    def _finish_all(self) -> None:
        for stream in (*self._streams.values(), *self._destroyed):
            self._finish(stream, stream.enqueued)

    def _unsafe_in_a_capture(self) -> None:
        """Refuse what a capture would not see: to every thread in the global mode, to the capturing one in the local."""
        captures = [s.capture for s in self._streams.values() if s.capture is not None]
        modes = cudaStreamCaptureMode
        mine = {modes.cudaStreamCaptureModeGlobal, modes.cudaStreamCaptureModeThreadLocal}
        others = {modes.cudaStreamCaptureModeGlobal}
        broken = [c for c in captures if c.mode in (mine if c.thread == threading.get_ident() else others)]
        for capture in broken:
            capture.valid = False
        if broken:
            raise Failure(900)

    def _block(self, blocks: Mapping[int, np.ndarray], address: int, size: int) -> np.ndarray | None:
        """Where these bytes lie in one of the blocks, or None."""
        for start, block in blocks.items():
            if start <= address and address + size <= start + block.nbytes:
                return block[address - start :][:size]
        return None

    def _span(self, blocks: Mapping[int, np.ndarray], address: int, size: int, what: str) -> np.ndarray:
        found = self._block(blocks, address, size)
        if found is None:
            raise Fault(700, f"{size} bytes of {what} at {address:#x} were freed, or were never there")
        return found


def _invalidated(capture: Capture, code: int) -> Failure:
    capture.valid = False
    return Failure(code)
