"""One thread's execution context for a TensorRT engine: TensorRT's own context with a stream and buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r2mrf_deploy.errors import ArtifactError, InputError, RuntimeUnavailable
from r2mrf_deploy.runtimes.base import LayerTimes
from r2mrf_deploy.runtimes.cuda.bindings import Cuda
from r2mrf_deploy.runtimes.cuda.execution_context import ExecutionContext, Specs
from r2mrf_deploy.runtimes.tensorrt.api import Messages


class TensorRTContext(ExecutionContext):
    """TensorRT's context with everything that it needs to run, for one thread."""

    def __init__(
        self,
        cuda: Cuda,
        trt_context: Any,
        inputs: Specs,
        outputs: Specs,
        messages: Messages,
        cuda_graph: bool,
        spin_wait: bool = False,
    ) -> None:
        super().__init__(cuda, inputs, outputs, cuda_graph, spin_wait)
        self._trt_context = trt_context
        self._messages = messages
        if all(s.static for s in inputs) or trt_context.active_optimization_profile == 0:
            return
        if not trt_context.set_optimization_profile_async(0, cuda.handle(self._stream)):
            self.close()
            raise RuntimeUnavailable(f"TensorRT rejects the plan's profile: {messages.last()}")

    def profile(self, arrays: Mapping[str, np.ndarray], runs: int, profiler: Any) -> list[LayerTimes]:
        """The time of every layer. `profiler` is the library's IProfiler."""
        times: dict[str, list[float]] = {}

        class Profiler(profiler):
            def __init__(self) -> None:
                profiler.__init__(self)  # the bindings need this call, not super()

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times.setdefault(layer_name, []).append(ms)

        self.run(arrays)
        self._drop_graph()  # a graph's layers report nothing
        self._trt_context.profiler = Profiler()
        for _ in range(runs):
            self._enqueue()
            self._cuda.synchronize(self._stream)
        return [LayerTimes(name, tuple(ms)) for name, ms in times.items()]

    def _finish(self) -> None:
        super()._finish()
        self._trt_context = None  # before its stream

    def _set_shapes(self, shapes: Sequence[tuple[int, ...]]) -> None:
        for buffer, shape in zip(self._inputs, shapes, strict=True):
            if not self._trt_context.set_input_shape(buffer.name, shape):
                raise InputError(
                    f"tensorrt: {buffer.name} {list(shape)} is outside the plan's profile: {self._messages.last()}"
                )
            buffer.resize(shape)
        for buffer in self._outputs:
            found = tuple(self._trt_context.get_tensor_shape(buffer.name))
            if any(d < 0 for d in found):
                raise ArtifactError(f"the size of output {buffer.name!r} depends on the data, which is not supported")
            buffer.resize(found)
        for buffer in (*self._inputs, *self._outputs):
            if not self._trt_context.set_tensor_address(buffer.name, buffer.address):
                raise RuntimeUnavailable(f"TensorRT rejects the memory of {buffer.name}: {self._messages.last()}")

    def _capturable(self) -> bool:
        """TensorRT-RTX knows whether an engine can be captured at this shape. TensorRT has to try."""
        asks = getattr(self._trt_context, "is_stream_capturable", None)
        return asks is None or bool(asks(self._cuda.handle(self._stream)))

    def _execute(self) -> bool:
        return self._trt_context.execute_async_v3(self._cuda.handle(self._stream))

    def _why(self) -> str:
        return f"TensorRT failed on the device: {self._messages.last()}"
