"""A device made of host memory, which keeps the rules that a real one has.

Memory that was given back must not be touched, what is enqueued during a capture does not run, and a graph repeats exactly
what was captured, addresses included.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from r2mrf_deploy.runtimes.base import now_ms
from r2mrf_deploy.runtimes.cuda.bindings import Cuda, Device

Work = Callable[[], None]


class HostCuda(Cuda):
    graphs = True

    def __init__(self) -> None:
        self.live: dict[int, Any] = {}
        self.held = 0  # pinned blocks, streams, events and graphs that were not given back
        self.captures = self.launches = 0
        self._recording: list[Work] | None = None

    def device(self) -> Device:
        return Device("fake GPU", "8.6")

    def enqueue(self, work: Work) -> None:
        if self._recording is None:
            work()
        else:
            self._recording.append(work)

    def memory(self, address: int, size: int) -> np.ndarray:
        assert address in self.live, "memory that was given back"
        assert size <= len(self.live[address]), "past the end of the memory"
        return np.ctypeslib.as_array(self.live[address])[:size]

    def malloc(self, size: int) -> int:
        block = (ctypes.c_uint8 * size)()
        self.live[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, address: int) -> None:
        del self.live[address]

    def pinned(self, size: int) -> np.ndarray:
        self.held += 1
        return np.empty(size, np.uint8)

    def unpin(self, memory: np.ndarray) -> None:
        self.held -= 1

    def copy_in(self, address: int, memory: np.ndarray, stream: Any) -> None:
        self.enqueue(lambda: np.copyto(self.memory(address, memory.nbytes), memory))

    def copy_out(self, memory: np.ndarray, address: int, stream: Any) -> None:
        self.enqueue(lambda: np.copyto(memory, self.memory(address, memory.nbytes)))

    def stream(self) -> Any:
        self.held += 1
        return object()

    def handle(self, stream: Any) -> int:
        return id(stream)

    def synchronize(self, stream: Any) -> None:
        assert self._recording is None, "a stream cannot be waited for while it is captured"

    def destroy_stream(self, stream: Any) -> None:
        self.held -= 1

    def event(self, spin: bool = False) -> Any:
        self.held += 1
        return SimpleNamespace(at=None)

    def wait(self, event: Any) -> None:
        assert event.at is not None

    def record(self, event: Any, stream: Any) -> None:
        event.at = now_ms()

    def elapsed(self, start: Any, end: Any) -> float:
        return end.at - start.at

    def destroy_event(self, event: Any) -> None:
        self.held -= 1

    def capture(self, stream: Any, work: Callable[[], bool]) -> Any | None:
        self._recording = []
        done, recorded, self._recording = work(), self._recording, None
        if not done:
            return None
        self.captures += 1
        self.held += 1
        return recorded

    def launch(self, graph: Any, stream: Any) -> None:
        self.launches += 1
        for work in graph:
            work()

    def destroy_graph(self, graph: Any) -> None:
        self.held -= 1
