"""One thread's way through a TensorRT engine: an execution context with its stream, buffers and CUDA graph.

Contexts are not to be shared between threads; the engine is. So each thread has a lane of its own, and no lane locks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r2mrf_deploy.errors import ArtifactError, InputError, RuntimeUnavailable
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.runtimes.base import Arrays, Timing, now_ms
from r2mrf_deploy.runtimes.cuda import Cuda
from r2mrf_deploy.runtimes.tensorrt_api import Messages

_REBASE_MS = 10_000.0
"""Events give their distance as float32 milliseconds: after 10 s that is still 1 µs fine."""


_REBASE_WIDTH_MS = 0.1
"""How well the base event must be placed on the host's clock, if that can be had."""


class Buffer:
    """The memory of one input or output on both sides; it grows and never shrinks."""

    def __init__(self, cuda: Cuda, spec: TensorSpec) -> None:
        self.name = spec.name
        self.dtype = numpy_dtype(spec.dtype)
        self.shape: tuple[int, ...] = ()
        self.address = 0
        self._cuda = cuda
        self._pinned = np.empty(0, np.uint8)

    def resize(self, shape: Sequence[int]) -> None:
        """Make room for `shape`; the address may change."""
        self.shape = tuple(shape)
        if self.address and self._size <= self._pinned.nbytes:
            return
        self.close()
        self.address = self._cuda.malloc(self._size)
        self._pinned = self._cuda.pinned(max(self._size, 1))

    @property
    def _size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def host(self) -> np.ndarray:
        """The pinned bytes that hold the tensor: uint8 [size]."""
        return self._pinned[: self._size]

    def fill(self, array: np.ndarray) -> None:
        np.copyto(self.host, array.reshape(-1).view(np.uint8))

    def value(self) -> np.ndarray:
        """A copy: the buffer is written again by the next inference."""
        return self.host.view(self.dtype).reshape(self.shape).copy()

    def close(self) -> None:
        if self.address:
            self._cuda.free(self.address)
            self.address = 0
            pinned, self._pinned = self._pinned, np.empty(0, np.uint8)
            self._cuda.unpin(pinned)


class Lane:
    """An execution context with everything that it needs to run, for one thread."""

    def __init__(
        self,
        cuda: Cuda,
        context: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        messages: Messages,
        cuda_graph: bool,
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
        self._events = [cuda.event() for _ in range(5)]
        self._base_ms = -_REBASE_MS
        if not all(s.static for s in inputs) and context.active_optimization_profile != 0:
            context.set_optimization_profile_async(0, cuda.handle(self._stream))

    @property
    def uses_graph(self) -> bool:
        """Whether the last inference was launched as a CUDA graph."""
        return self._graph is not None

    def run(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        self._prepare(arrays)
        self._copy_in()
        self._enqueue()
        self._copy_out()
        self._cuda.synchronize(self._stream)
        return self._results()

    def run_timed(self, arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, Timing]:
        """`run`, with what the device measured by events, put on the host's clock."""
        self._prepare(arrays)
        base, *marks = self._events
        self._rebase(base)
        record = self._cuda.record
        record(marks[0], self._stream)
        self._copy_in()
        record(marks[1], self._stream)
        start = now_ms()
        self._enqueue()
        end = now_ms()
        record(marks[2], self._stream)
        self._copy_out()
        record(marks[3], self._stream)
        self._cuda.synchronize(self._stream)
        zero = self._base_ms + self._cuda.elapsed(base, marks[0])
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
        return self._results(), timing

    def close(self) -> None:
        self._drop_graph()
        self._context = None
        for buffer in (*self._inputs, *self._outputs):
            buffer.close()
        for event in self._events:
            self._cuda.destroy_event(event)
        self._events = []
        self._cuda.destroy_stream(self._stream)

    def _prepare(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Put the inputs into pinned memory; where their shapes are new, make room and capture the graph again."""
        shapes = [arrays[b.name].shape for b in self._inputs]
        if shapes == self._shapes:
            self._fill(arrays)
            return
        self._shapes = None  # should this fail half-way, the next call begins again
        self._drop_graph()
        self._set_shapes(shapes)
        self._fill(arrays)
        # The first inference at a shape allocates and compiles, which cannot be captured; so it goes before.
        self._copy_in()
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

    def _fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        for buffer in self._inputs:
            buffer.fill(arrays[buffer.name])

    def _copy_in(self) -> None:
        for buffer in self._inputs:
            self._cuda.copy_in(buffer.address, buffer.host, self._stream)

    def _copy_out(self) -> None:
        for buffer in self._outputs:
            self._cuda.copy_out(buffer.host, buffer.address, self._stream)

    def _enqueue(self) -> None:
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
        elif not self._execute():
            raise RuntimeUnavailable(f"TensorRT failed on the device: {self._why()}")

    def _execute(self) -> bool:
        return self._context.execute_async_v3(self._cuda.handle(self._stream))

    def _results(self) -> Arrays:
        return {b.name: b.value() for b in self._outputs}

    def _rebase(self, base: Any) -> None:
        """Say again which moment of the host's clock the base event is, where the last time is long ago."""
        if now_ms() - self._base_ms < _REBASE_MS:
            return
        for _ in range(5):  # again, where the machine was busy with something else meanwhile
            before = now_ms()
            self._cuda.record(base, self._stream)
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
