"""One thread's way through a TensorRT engine: an execution context with its stream, buffers and CUDA graph.

Contexts are not to be shared between threads; the engine is. So each thread has a lane of its own, and no lane locks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r2mrf_deploy.errors import ArtifactError, InputError, RuntimeUnavailable
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.runtimes.base import Arrays, LayerTimes, Pending, Timing, now_ms
from r2mrf_deploy.runtimes.cuda import Cuda
from r2mrf_deploy.runtimes.tensorrt_api import Messages

IN_FLIGHT = 2
"""Inferences enqueued at once: the device does one while the host prepares the next, as in trtexec."""

_REBASE_MS = 10_000.0
"""Events give their distance as float32 milliseconds: after 10 s that is still 1 µs fine."""


_REBASE_WIDTH_MS = 0.1
"""How well the base event must be placed on the host's clock, if that can be had."""


class Buffer:
    """The memory of one input or output: on the device, and pinned on the host once for each inference in flight. It grows
    and never shrinks."""

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
        if self._pinned and self._size <= self._pinned[0].nbytes:
            return
        self.close()
        self.address = self._cuda.malloc(self._size)
        self._pinned = [self._cuda.pinned(max(self._size, 1)) for _ in range(IN_FLIGHT)]

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
        if self.address:
            self._cuda.free(self.address)
            self.address = 0
        while self._pinned:
            self._cuda.unpin(self._pinned.pop())


class Lane:
    """An execution context with everything that it needs to run, for one thread.

    Args:
        cuda_graph: launch inferences as a CUDA graph where they can be captured.
        spin_wait: wait for the device by asking it again and again.
    """

    def __init__(
        self,
        cuda: Cuda,
        context: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        messages: Messages,
        cuda_graph: bool,
        spin_wait: bool = False,
    ) -> None:
        self._cuda = cuda
        self._context = context
        self._messages = messages
        self._inputs = [Buffer(cuda, s) for s in inputs]
        self._outputs = [Buffer(cuda, s) for s in outputs]
        self._capturing = cuda_graph and cuda.graphs
        self._shapes: list[tuple[int, ...]] | None = None
        self._graph: Any | None = None
        self._stream = cuda.stream()
        self._base = cuda.event(spin_wait)
        self._base_ms = -_REBASE_MS
        self._marks = [[cuda.event(spin_wait) for _ in range(4)] for _ in range(IN_FLIGHT)]
        self._waiting: list[int] = []  # slots, the oldest first
        if not all(s.static for s in inputs) and context.active_optimization_profile != 0:
            context.set_optimization_profile_async(0, cuda.handle(self._stream))

    @property
    def uses_graph(self) -> bool:
        """Whether the last inference was launched as a CUDA graph."""
        return self._graph is not None

    def run(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        return self.submit(arrays)()[0]

    def submit(self, arrays: Mapping[str, np.ndarray], transfers: bool = True) -> Pending:
        """Enqueue an inference; what is returned waits for it, with what the device measured put on the host's clock."""
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
        self._cuda.wait(marks[-1])
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

    def profile(self, arrays: Mapping[str, np.ndarray], runs: int, profiler: Any) -> list[LayerTimes]:
        """The time of every layer, as TensorRT tells its profiler.

        Args:
            profiler: the library's IProfiler.
        """
        times: dict[str, list[float]] = {}

        class Profiler(profiler):
            def __init__(self) -> None:
                profiler.__init__(self)  # the bindings want it called by name

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times.setdefault(layer_name, []).append(ms)

        self.run(arrays)
        self._drop_graph()  # what is launched as a graph reports nothing
        self._context.profiler = Profiler()
        for _ in range(runs):
            self._enqueue()
            self._cuda.synchronize(self._stream)
        return [LayerTimes(name, tuple(ms)) for name, ms in times.items()]

    def close(self) -> None:
        self._drop_graph()
        self._context = None
        for buffer in (*self._inputs, *self._outputs):
            buffer.close()
        for event in (self._base, *(mark for marks in self._marks for mark in marks)):
            self._cuda.destroy_event(event)
        self._marks = []
        self._cuda.destroy_stream(self._stream)

    def _prepare(self, arrays: Mapping[str, np.ndarray], slot: int) -> None:
        """Put the inputs into pinned memory; where their shapes are new, make room and capture the graph again."""
        shapes = [arrays[b.name].shape for b in self._inputs]
        if shapes == self._shapes:
            self._fill(arrays, slot)
            return
        if self._waiting:
            raise RuntimeError("an inference of another shape is in flight: wait for it")
        self._shapes = None  # should this fail half-way, the next call begins again
        self._drop_graph()
        self._set_shapes(shapes)
        self._fill(arrays, slot)
        # The first inference at a shape allocates and compiles, which cannot be captured; so it goes before.
        self._copy_in(slot)
        self._enqueue()
        self._cuda.synchronize(self._stream)
        if self._capturing and self._capturable():
            self._graph = self._cuda.capture(self._stream, self._execute)
        self._shapes = shapes

    def _set_shapes(self, shapes: Sequence[tuple[int, ...]]) -> None:
        for buffer, shape in zip(self._inputs, shapes, strict=True):
            if not self._context.set_input_shape(buffer.name, shape):
                raise InputError(f"tensorrt: {buffer.name} {list(shape)} is outside the plan's profile: {self._why()}")
            buffer.resize(shape)
        for buffer in self._outputs:
            found = tuple(self._context.get_tensor_shape(buffer.name))
            if any(d < 0 for d in found):
                raise ArtifactError(f"the size of output {buffer.name!r} depends on the data, which is not supported")
            buffer.resize(found)
        for buffer in (*self._inputs, *self._outputs):
            self._context.set_tensor_address(buffer.name, buffer.address)

    def _capturable(self) -> bool:
        """TensorRT-RTX can say that an engine cannot be captured at this shape; the others try."""
        asks = getattr(self._context, "is_stream_capturable", None)
        return asks is None or bool(asks(self._cuda.handle(self._stream)))

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
            raise RuntimeUnavailable(f"TensorRT failed on the device: {self._why()}")

    def _execute(self) -> bool:
        return self._context.execute_async_v3(self._cuda.handle(self._stream))

    def _rebase(self) -> None:
        """Say again which moment of the host's clock the base event is, where the last time is long ago."""
        if now_ms() - self._base_ms < _REBASE_MS:
            return
        for _ in range(5):  # again, where the machine was busy with something else meanwhile
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

    def _why(self) -> str:
        return self._messages.last()


def numpy_dtype(name: str) -> np.dtype[Any]:
    """numpy's dtype of that name; bfloat16 and the FP8 types come from ml_dtypes.

    Raises:
        RuntimeUnavailable: it is one of those, and ml_dtypes is not installed.
    """
    try:
        return np.dtype(name)
    except TypeError:
        pass
    try:
        import ml_dtypes
    except ImportError:
        raise RuntimeUnavailable(f"{name} arrays need ml_dtypes: pip install ml_dtypes") from None
    return np.dtype(getattr(ml_dtypes, name))
