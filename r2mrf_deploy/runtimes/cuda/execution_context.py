"""Execution contexts: a stream with its buffers, events and CUDA graph, and a runner that gives each thread its own.

Threads share engines and weights, but not streams and buffers. So each thread has a context of its own and needs no lock.
The subclass for a runtime (TensorRT, PyTorch, ONNX Runtime) says what is enqueued.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from r2mrf_deploy.errors import ArtifactError, RuntimeUnavailable
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.runtimes.base import Arrays, Pending, Runner, Timing, now_ms
from r2mrf_deploy.runtimes.cuda.bindings import Cuda, CudaError

Specs = Sequence[TensorSpec]

IN_FLIGHT = 2
"""Inferences enqueued at once: the device runs one while the host prepares the next, as in trtexec."""

PREPARING = threading.RLock()
"""Held while anything is allocated, compiled or captured for a device: ONNX Runtime captures its graphs in a mode that an
allocation in any thread breaks, and PyTorch waits for the whole device before a capture."""

_REBASE_MS = 10_000.0
"""The time between events is a float32 in milliseconds, which resolves 1 µs up to 10 s."""
_REBASE_WIDTH_MS = 0.1
"""How precisely the base event should be placed on the host's clock."""


class Buffer:
    """One input or output: memory on the device, and pinned host memory for each inference in flight. It never shrinks."""

    def __init__(self, cuda: Cuda, spec: TensorSpec) -> None:
        self.name = spec.name
        self.dtype = numpy_dtype(spec.dtype)
        self.shape: tuple[int, ...] = ()
        self.address = 0
        self._cuda = cuda
        self._pinned: list[np.ndarray] = []

    def resize(self, shape: Sequence[int]) -> None:
        """Make room for `shape`; the address may change."""
        self.shape = tuple(shape)
        if len(self._pinned) == IN_FLIGHT and self._size <= self._pinned[0].nbytes:
            return
        self.close()
        self.address = self._cuda.malloc(self._size)
        while len(self._pinned) < IN_FLIGHT:
            self._pinned.append(self._cuda.pinned(max(self._size, 1)))

    @property
    def _size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def host(self, slot: int) -> np.ndarray:
        """The pinned bytes that hold the tensor: uint8 [size]."""
        return self._pinned[slot][: self._size]

    def fill(self, slot: int, array: np.ndarray) -> None:
        np.copyto(self.host(slot), array.reshape(-1).view(np.uint8))

    def value(self, slot: int) -> np.ndarray:
        """A copy: the buffer is written again by a later inference."""
        return self.host(slot).view(self.dtype).reshape(self.shape).copy()

    def close(self) -> None:
        address, self.address = self.address, 0
        with suppress(CudaError):  # a lost device has lost its memory too
            if address:
                self._cuda.free(address)
        while self._pinned:
            with suppress(CudaError):
                self._cuda.unpin(self._pinned.pop())


class ExecutionContext(ABC):
    """A stream with everything that inferences on it need, for one thread.

    Args:
        cuda_graph: launch inferences as a CUDA graph if they can be captured.
        spin_wait: poll the device instead of sleeping until it is done.
    """

    def __init__(self, cuda: Cuda, inputs: Specs, outputs: Specs, cuda_graph: bool, spin_wait: bool = False) -> None:
        self._cuda = cuda
        self._inputs = [Buffer(cuda, s) for s in inputs]
        self._outputs = [Buffer(cuda, s) for s in outputs]
        self._capturing = cuda_graph and cuda.graphs
        self._shapes: list[tuple[int, ...]] | None = None
        self._graph: Any | None = None
        self._waiting: list[int] = []  # slots in flight, the oldest first
        self._base_ms = -_REBASE_MS
        self._stream = cuda.stream()
        self._events: list[Any] = []
        try:
            while len(self._events) < 4 * IN_FLIGHT + 1:
                self._events.append(cuda.event(spin_wait))
        except CudaError:
            ExecutionContext.close(self)
            raise
        self._base, *marks = self._events
        self._marks = [marks[4 * slot : 4 * slot + 4] for slot in range(IN_FLIGHT)]

    @abstractmethod
    def _set_shapes(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Make room for inputs of these shapes and for the resulting outputs.

        Raises:
            InputError: the runtime does not accept the shapes.
        """

    @abstractmethod
    def _execute(self) -> bool:
        """Enqueue one inference from the input buffers to the output buffers. Return False if the runtime refuses."""

    @abstractmethod
    def _why(self) -> str:
        """The runtime's reason for refusing."""

    def _capturable(self) -> bool:
        """Whether an inference may be captured at this shape."""
        return True

    @property
    def uses_graph(self) -> bool:
        """Whether the last inference was launched as a CUDA graph."""
        return self._graph is not None

    def run(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        return self.submit(arrays)()[0]

    def submit(self, arrays: Mapping[str, np.ndarray], transfers: bool = True) -> Pending:
        """Enqueue an inference and return a function that waits for it. All times are on the host's clock."""
        if len(self._waiting) == IN_FLIGHT:
            raise RuntimeError(f"{IN_FLIGHT} inferences are in flight: wait for the first")
        slot = next(s for s in range(IN_FLIGHT) if s not in self._waiting)
        self._prepare(arrays, slot)
        if not self._waiting:
            self._rebase()
        marks, record = self._marks[slot], self._cuda.record
        record(marks[0], self._stream)
        if transfers:
            self._copy_in(slot)
        record(marks[1], self._stream)
        start = now_ms()
        self._enqueue()
        end = now_ms()
        record(marks[2], self._stream)
        if transfers:
            self._copy_out(slot)
        record(marks[3], self._stream)
        self._waiting.append(slot)
        return lambda: self._wait(slot, start, end, transfers)

    def _wait(self, slot: int, start: float, end: float, transfers: bool) -> tuple[Arrays, Timing]:
        marks = self._marks[slot]
        try:
            self._cuda.wait(marks[-1])
        finally:
            self._waiting.remove(slot)
        zero = self._base_ms + self._cuda.elapsed(self._base, marks[0])
        h2d, compute, d2h = (self._cuda.elapsed(marks[0], mark) for mark in marks[1:])
        timing = Timing(
            start_enqueue=start,
            end_enqueue=end,
            start_h2d=zero,
            end_h2d=zero + h2d,
            start_compute=zero + h2d,
            end_compute=zero + compute,
            start_d2h=zero + compute,
            end_d2h=zero + d2h,
        )
        return {b.name: b.value(slot) for b in self._outputs} if transfers else {}, timing

    def close(self) -> None:
        """Release everything. A lost device refuses, and has nothing left to release."""
        self._finish()
        for buffer in (*self._inputs, *self._outputs):
            buffer.close()
        while self._events:
            with suppress(CudaError):
                self._cuda.destroy_event(self._events.pop())
        with suppress(CudaError):
            self._cuda.destroy_stream(self._stream)

    def _finish(self) -> None:
        """Wait for enqueued work, which may use what is released next, and drop the graph."""
        with suppress(CudaError):
            self._cuda.synchronize(self._stream)
        with suppress(CudaError):
            self._drop_graph()

    def _prepare(self, arrays: Mapping[str, np.ndarray], slot: int) -> None:
        """Put the inputs into pinned memory. If their shapes are new, make room first, and capture the graph again."""
        shapes = [arrays[b.name].shape for b in self._inputs]
        if shapes == self._shapes:
            self._fill(arrays, slot)
            return
        if self._waiting:
            raise RuntimeError("an inference of another shape is in flight: wait for it")
        with PREPARING:
            self._shapes = None  # if this fails half-way, the next call starts over
            self._cuda.synchronize(self._stream)  # an inference that failed may still use the buffers
            self._drop_graph()
            self._set_shapes(shapes)
            self._fill(arrays, slot)
            # The first inference at a shape allocates and compiles, which cannot be captured.
            self._copy_in(slot)
            self._enqueue()
            self._cuda.synchronize(self._stream)
            if self._capturing and self._capturable():
                self._graph = self._cuda.capture(self._stream, self._execute)
            self._shapes = shapes

    def _fill(self, arrays: Mapping[str, np.ndarray], slot: int) -> None:
        for buffer in self._inputs:
            buffer.fill(slot, arrays[buffer.name])

    def _copy_in(self, slot: int) -> None:
        for buffer in self._inputs:
            self._cuda.copy_in(buffer.address, buffer.host(slot), self._stream)

    def _copy_out(self, slot: int) -> None:
        for buffer in self._outputs:
            self._cuda.copy_out(buffer.host(slot), buffer.address, self._stream)

    def _enqueue(self) -> None:
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
        elif not self._execute():
            raise RuntimeUnavailable(self._why())

    def _rebase(self) -> None:
        """Place the base event on the host's clock, unless that was done recently."""
        if now_ms() - self._base_ms < _REBASE_MS:
            return
        for _ in range(5):  # again if the machine was busy with something else
            before = now_ms()
            self._cuda.record(self._base, self._stream)
            self._cuda.synchronize(self._stream)
            width = now_ms() - before
            self._base_ms = before + width / 2
            if width < _REBASE_WIDTH_MS:
                break

    def _drop_graph(self) -> None:
        if self._graph is not None:
            graph, self._graph = self._graph, None
            self._cuda.destroy_graph(graph)


class ContextRunner(Runner):
    """An artifact on the GPU, with a context for every thread that runs it."""

    on_gpu = True
    streams = 2  # one computes while the other's maps are taken away
    in_flight = IN_FLIGHT

    def __init__(self) -> None:
        self._contexts: list[ExecutionContext] = []
        self._mine = threading.local()
        self._closed = False

    @abstractmethod
    def _new_context(self) -> ExecutionContext:
        """Make a context for one thread. Called by one thread at a time."""

    def _run(self, arrays: Arrays) -> Arrays:
        return self._submit(arrays, True)()[0]

    def _submit(self, arrays: Arrays, transfers: bool) -> Pending:
        return self._context().submit(arrays, transfers)

    def close(self) -> None:
        """Free the device's memory. No thread may be running."""
        contexts, self._contexts = self._contexts, []
        for context in contexts:
            context.close()
        self._mine = threading.local()
        self._closed = True

    def _context(self) -> Any:
        """This thread's context, made at its first inference."""
        context = getattr(self._mine, "context", None)
        if context is None:
            if self._closed:
                raise ArtifactError("this runner is closed: open the artifact again")
            with PREPARING:
                context = self._new_context()
                self._contexts.append(context)
            self._mine.context = context
        return context


def numpy_dtype(name: str) -> np.dtype[Any]:
    """numpy's dtype of that name.

    Raises:
        RuntimeUnavailable: it is bfloat16 or an FP8 type, and ml_dtypes is not installed.
    """
    try:
        return np.dtype(name)
    except TypeError:
        with suppress(ImportError):
            import ml_dtypes

            return np.dtype(getattr(ml_dtypes, name))
        raise RuntimeUnavailable(f"{name} arrays need ml_dtypes: pip install ml_dtypes") from None
