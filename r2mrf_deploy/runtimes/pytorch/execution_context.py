"""PyTorch's memory, streams, events and CUDA graphs as a provider of CUDA, and an execution context for its programs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from r2mrf_deploy import gpus
from r2mrf_deploy.errors import RuntimeUnavailable, first_line
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.runtimes.base import Arrays, OpenOptions, Pending
from r2mrf_deploy.runtimes.cuda.bindings import Cuda, CudaError, Device, cure_of
from r2mrf_deploy.runtimes.cuda.execution_context import Buffer, ContextRunner, ExecutionContext
from r2mrf_deploy.runtimes.pytorch.eager import Program

_SWITCHES = threading.RLock()


@contextlib.contextmanager
def precision(tf32: bool | None) -> Iterator[None]:
    """Set how FP32 convolutions and matrix products are computed by what is enqueued inside the block, and let cuDNN time
    its algorithms at the first inference of a shape.

    PyTorch's switches belong to the process: they are restored afterwards, and a lock keeps our threads from setting them
    at the same time. A kernel is chosen when it is enqueued, so work that runs after the block, or from a captured graph,
    keeps the choice. Since PyTorch 2.9 the switch is `fp32_precision`. Setting and restoring it leaves the older
    `allow_tf32` and `set_float32_matmul_precision` as the user had them, but reading those inside the block may raise, as
    always in PyTorch when the two are mixed. Before 2.9 the older ones are set.

    Args:
        tf32: True for TF32, False for full FP32, None to leave the switches alone (FP16 uses neither).
    """
    import torch

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    wanted: list[tuple[Any, str, Any]] = [(cudnn, "benchmark", True)]
    if tf32 is not None and hasattr(cudnn, "conv"):
        name = "tf32" if tf32 else "ieee"
        wanted += [(cudnn.conv, "fp32_precision", name), (matmul, "fp32_precision", name)]
    elif tf32 is not None:
        wanted += [(cudnn, "allow_tf32", tf32), (matmul, "allow_tf32", tf32)]
    with _SWITCHES:
        before = [(where, name, getattr(where, name)) for where, name, _ in wanted]
        try:
            for where, name, value in wanted:
                setattr(where, name, value)
            yield
        finally:
            for where, name, value in before:
                setattr(where, name, value)


class TorchCuda(Cuda):
    """PyTorch's own memory, streams, events and graphs, on its current device.

    cuda-python's would not do: PyTorch itself must capture a graph of its kernels, because its allocator has to know.
    """

    graphs = True

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._memory: dict[int, Any] = {}
        self._pinned: dict[int, Any] = {}

    def device(self) -> Device:
        with _clear():
            found = self._torch.cuda.get_device_properties(self._torch.cuda.current_device())
        return Device(found.name, f"{found.major}.{found.minor}")

    def on(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        """Make `stream` the current one."""
        return self._torch.cuda.stream(stream)

    def tensor(self, address: int, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
        """The memory at `address` as a tensor."""
        torch_dtype = getattr(self._torch, dtype.name)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return self._memory[address][:size].view(torch_dtype).view(*shape)

    def malloc(self, size: int) -> int:
        with _clear():
            memory = self._torch.empty(max(size, 1), dtype=self._torch.uint8, device="cuda")
            self._torch.cuda.current_stream().synchronize()  # work enqueued there may still use the memory
        self._memory[memory.data_ptr()] = memory
        return memory.data_ptr()

    def free(self, address: int) -> None:
        del self._memory[address]

    def pinned(self, size: int) -> np.ndarray:
        with _clear():
            memory = self._torch.empty(size, dtype=self._torch.uint8, pin_memory=True)
        self._pinned[memory.data_ptr()] = memory
        return memory.numpy()

    def unpin(self, memory: np.ndarray) -> None:
        del self._pinned[memory.ctypes.data]

    def copy_in(self, address: int, memory: np.ndarray, stream: Any) -> None:
        with self.on(stream):
            host = self._pinned[memory.ctypes.data][: memory.nbytes]
            self._memory[address][: memory.nbytes].copy_(host, non_blocking=True)

    def copy_out(self, memory: np.ndarray, address: int, stream: Any) -> None:
        with self.on(stream):
            host = self._pinned[memory.ctypes.data][: memory.nbytes]
            host.copy_(self._memory[address][: memory.nbytes], non_blocking=True)

    def stream(self) -> Any:
        with _clear():
            return self._torch.cuda.Stream()

    def handle(self, stream: Any) -> int:
        return stream.cuda_stream

    def synchronize(self, stream: Any) -> None:
        with _clear():
            stream.synchronize()

    def event(self, spin: bool = False) -> Any:
        return self._torch.cuda.Event(enable_timing=True, blocking=not spin)

    def wait(self, event: Any) -> None:
        with _clear():
            event.synchronize()

    def record(self, event: Any, stream: Any) -> None:
        event.record(stream)

    def elapsed(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end)

    def capture(self, stream: Any, work: Callable[[], bool]) -> Any | None:
        graph = self._torch.cuda.CUDAGraph()
        try:
            # One capture at a time: PyTorch first waits for the whole device, which would break another thread's capture.
            # `on`, because a failed capture may leave `stream` as the thread's current stream.
            with (
                _SWITCHES,
                self.on(stream),
                self._torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
            ):
                done = work()
        except (RuntimeError, RuntimeUnavailable):  # an operation that waits, or that a capture does not allow
            return None
        return graph if done else None

    def launch(self, graph: Any, stream: Any) -> None:
        with self.on(stream):
            graph.replay()

    def destroy_graph(self, graph: Any) -> None:
        graph.reset()


class TorchContext(ExecutionContext):
    """A program on a stream, for one thread. See `precision` for `tf32`, `ExecutionContext` for the other arguments."""

    _cuda: TorchCuda

    def __init__(
        self,
        cuda: TorchCuda,
        program: Program,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        tf32: bool | None,
        cuda_graph: bool,
        spin_wait: bool,
    ) -> None:
        super().__init__(cuda, inputs, outputs, cuda_graph, spin_wait)
        self._program = program
        self._tf32 = tf32
        self._feeds: list[Any] = []
        self._results: list[Any] = []

    def _set_shapes(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self._feeds = self._resized(self._inputs, shapes)
        with self._ready():
            found = [tuple(output.shape) for output in self._program(*self._feeds)]
        self._cuda.synchronize(self._stream)
        self._results = self._resized(self._outputs, found)

    def _execute(self) -> bool:
        with self._ready():
            for result, output in zip(self._results, self._program(*self._feeds), strict=True):
                result.copy_(output, non_blocking=True)
        return True

    def _why(self) -> str:
        return "PyTorch failed on the device"

    def _resized(self, buffers: Sequence[Buffer], shapes: Sequence[tuple[int, ...]]) -> list[Any]:
        """The buffers as tensors of these shapes."""
        for buffer, shape in zip(buffers, shapes, strict=True):
            buffer.resize(shape)
        return [self._cuda.tensor(b.address, b.shape, b.dtype) for b in buffers]

    @contextlib.contextmanager
    def _ready(self) -> Iterator[None]:
        import torch

        with _clear(), self._cuda.on(self._stream), precision(self._tf32), torch.inference_mode():
            yield


class TorchRunner(ContextRunner):
    """A program on the GPU, and an execution context for each thread that runs it.

    Args:
        form: what is run and its precision, which `device` mentions.
        tf32: as for `precision`.
        cuda_graph: launch it as a CUDA graph, unless `options.cuda_graph` says otherwise. If it cannot be captured, `device`
            says so.
    """

    def __init__(
        self,
        cuda: TorchCuda,
        program: Program,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        runtime: str,
        form: str,
        tf32: bool | None,
        cuda_graph: bool = False,
        options: OpenOptions,
    ) -> None:
        super().__init__()
        self.runtime = runtime
        self.inputs, self.outputs = inputs, outputs
        device = cuda.device()
        self._title = f"{device.name}, {form}"
        self.tf32 = bool(tf32) and gpus.has_tf32(device.compute_capability)
        self._cuda_graph = cuda_graph if options.cuda_graph is None else options.cuda_graph
        self.device = f"{self._title}, CUDA graph" if self._cuda_graph else self._title
        self._make_context = partial(
            TorchContext, cuda, program, inputs, outputs, tf32, self._cuda_graph, options.spin_wait
        )

    def _new_context(self) -> TorchContext:
        return self._make_context()

    def _submit(self, arrays: Arrays, transfers: bool) -> Pending:
        context = self._context()
        pending = context.submit(arrays, transfers)
        if self._cuda_graph:
            launched = "CUDA graph" if context.uses_graph else "without a CUDA graph: it could not be captured"
            self.device = f"{self._title}, {launched}"
        return pending


@contextlib.contextmanager
def _clear() -> Iterator[None]:
    """Raise PyTorch's device errors as CudaErrors of one line."""
    try:
        yield
    except RuntimeError as e:
        text = first_line(e)
        raise CudaError(f"PyTorch failed on the device: {text}", cure_of(text)) from e
