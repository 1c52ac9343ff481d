"""The fake driver keeps the rules that CUDA documents, and has the bindings' names, numbers and words."""

from __future__ import annotations

import inspect
import threading
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
from fake_cuda_runtime import FakeCudaRuntime
from fake_cuda_types import cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode

GLOBAL = cudaStreamCaptureMode.cudaStreamCaptureModeGlobal
THREAD_LOCAL = cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
IN, OUT = cudaMemcpyKind.cudaMemcpyHostToDevice, cudaMemcpyKind.cudaMemcpyDeviceToHost
SIZE = 16


class Host:
    """What a careful caller does: it has a stream, memory on both sides, and every error is an exception."""

    def __init__(self, cuda: FakeCudaRuntime) -> None:
        self.cuda = cuda
        self.stream = self.do("cudaStreamCreateWithFlags", 1)
        self.device = self.do("cudaMalloc", SIZE)
        self.pinned = [self.do("cudaHostAlloc", SIZE, 0) for _ in range(2)]

    def do(self, call: str, *arguments: Any) -> Any:
        error, *values = getattr(self.cuda, call)(*arguments)
        assert error == 0, error.name
        return values[0] if values else None

    def code(self, call: str, *arguments: Any) -> int:
        return int(getattr(self.cuda, call)(*arguments)[0])

    def view(self, number: int) -> np.ndarray:
        return self.cuda._pinned[self.pinned[number]]

    def copy_in(self, number: int = 0) -> None:
        self.do("cudaMemcpyAsync", self.device, self.pinned[number], SIZE, IN, self.stream)

    def copy_out(self, number: int = 1) -> None:
        self.do("cudaMemcpyAsync", self.pinned[number], self.device, SIZE, OUT, self.stream)

    def event(self) -> Any:
        return self.do("cudaEventCreateWithFlags", 1)

    def synchronize(self) -> None:
        self.do("cudaStreamSynchronize", self.stream)


@pytest.fixture
def host() -> Host:
    return Host(FakeCudaRuntime())


def elsewhere(work: Any) -> Any:
    """What another thread gets."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join(10)
    return found[0]


# ---- as the bindings


def test_names_numbers_and_words_are_the_bindings() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python")
    fake = FakeCudaRuntime()
    names = [n for n in dir(fake) if n.startswith("cuda")]
    assert len(names) > 25
    for name in names:
        ours, theirs = getattr(fake, name), getattr(real, name)
        if inspect.isclass(ours):
            assert issubclass(ours, IntEnum)
            assert {m.name: int(m) for m in ours} == {m.name: int(getattr(theirs, m.name)) for m in ours}
        elif callable(ours):
            assert len(inspect.signature(ours).parameters) == len(inspect.signature(theirs).parameters), name
        else:
            assert int(ours) == int(theirs), name
    for error in cudaError_t:
        assert fake.cudaGetErrorString(error)[1] == real.cudaGetErrorString(real.cudaError_t(int(error)))[1]


def test_a_failed_call_returns_as_many_nones_as_the_bindings_do() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python")
    if int(real.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("needs a machine without a CUDA device")
    fake = FakeCudaRuntime()
    fake.lost = 719
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("cudaMalloc", (8,)),
        ("cudaFree", (1024,)),
        ("cudaHostAlloc", (8, 0)),
        ("cudaStreamCreateWithFlags", (1,)),
        ("cudaStreamSynchronize", (7,)),
        ("cudaEventElapsedTime", (7, 7)),
        ("cudaStreamEndCapture", (7,)),
        ("cudaStreamIsCapturing", (7,)),
        ("cudaGraphInstantiate", (7, 0)),
        ("cudaGraphLaunch", (7, 7)),
        ("cudaGetDeviceProperties", (0,)),
    ]
    for name, arguments in calls:
        ours, theirs = getattr(fake, name)(*arguments), getattr(real, name)(*arguments)
        assert ours[1:] == theirs[1:], name
        assert int(ours[0]) == 719


# ---- when work runs


def test_pinned_memory_is_read_when_the_copy_runs_and_not_before(host: Host) -> None:
    host.view(0)[:] = 1
    host.copy_in()
    host.view(0)[:] = 2  # too early: nobody has waited
    host.copy_out()
    assert not np.any(host.view(1) == 2)
    host.synchronize()
    assert np.all(host.view(1) == 2)


def test_pageable_memory_is_staged_by_the_call(host: Host) -> None:
    there, back = np.full(SIZE, 3, np.uint8), np.zeros(SIZE, np.uint8)
    host.do("cudaMemcpyAsync", host.device, there.ctypes.data, SIZE, IN, host.stream)
    there[:] = 4
    host.do("cudaMemcpyAsync", back.ctypes.data, host.device, SIZE, OUT, host.stream)
    assert np.all(back == 3)


def test_an_event_waits_for_what_came_before_it_and_for_no_more(host: Host) -> None:
    event = host.event()
    host.view(0)[:] = 5
    host.copy_in()
    host.copy_out()
    host.do("cudaEventRecord", event, host.stream)
    ran: list[int] = []
    host.do("launch_kernel", host.stream, lambda: ran.append(1))
    host.do("cudaEventSynchronize", event)
    assert np.all(host.view(1) == 5) and not ran
    host.synchronize()
    assert ran


def test_streams_are_ordered_by_events_only(host: Host) -> None:
    other, event, ran = host.do("cudaStreamCreateWithFlags", 1), host.event(), list[str]()
    host.do("launch_kernel", host.stream, lambda: ran.append("first"))
    host.do("launch_kernel", other, lambda: ran.append("unordered"))
    host.do("cudaStreamSynchronize", other)
    assert ran == ["unordered"]
    host.do("cudaEventRecord", event, host.stream)
    host.do("cudaStreamWaitEvent", other, event, 0)
    host.do("cudaEventRecord", event, other)  # a wait means the record that was there when it was called
    host.do("launch_kernel", other, lambda: ran.append("second"))
    host.do("cudaStreamSynchronize", other)
    assert ran == ["unordered", "first", "second"]


def test_a_destroyed_stream_finishes_its_work(host: Host) -> None:
    ran: list[int] = []
    host.do("launch_kernel", host.stream, lambda: ran.append(1))
    host.do("cudaStreamDestroy", host.stream)
    assert not ran
    host.do("cudaDeviceSynchronize")
    assert ran


def test_time_is_told_of_events_that_have_passed(host: Host) -> None:
    start, end = host.event(), host.event()
    assert host.code("cudaEventElapsedTime", start, end) == 400
    assert host.code("cudaEventSynchronize", start) == 0  # never recorded: nothing to wait for
    host.do("cudaEventRecord", start, host.stream)
    host.synchronize()
    host.do("cudaEventRecord", end, host.stream)
    assert host.code("cudaEventElapsedTime", start, end) == 600
    host.synchronize()
    assert host.do("cudaEventElapsedTime", start, end) >= 0
    host.do("cudaEventRecord", start, host.stream)  # again: what it held before is gone
    assert host.code("cudaEventElapsedTime", start, end) == 600


# ---- memory


def test_memory_runs_out_and_comes_back() -> None:
    cuda = FakeCudaRuntime(device_bytes=100)
    _, first = cuda.cudaMalloc(60)
    assert [int(a) if a is not None else a for a in cuda.cudaMalloc(41)] == [2, None]
    assert cuda.cudaGetLastError() == (2,) and cuda.cudaGetLastError() == (0,)
    assert cuda.cudaFree(first) == (0,)
    assert cuda.cudaMalloc(100)[0] == 0


def test_what_is_freed_twice_or_unknown_is_an_invalid_value(host: Host) -> None:
    host.do("cudaFree", host.device)
    assert host.code("cudaFree", host.device) == 1
    assert host.code("cudaFree", 0) == 0
    assert host.code("cudaFree", host.pinned[0]) == 1
    assert host.code("cudaFreeHost", host.device) == 1
    host.do("cudaFreeHost", host.pinned[0])
    assert host.code("cudaFreeHost", host.pinned[0]) == 1
    assert host.code("cudaMemcpyAsync", host.device, host.pinned[1], SIZE, IN, host.stream) == 1


def test_a_copy_past_the_end_is_an_invalid_value(host: Host) -> None:
    assert host.code("cudaMemcpyAsync", host.device, host.pinned[0], SIZE + 1, IN, host.stream) == 1
    assert host.code("cudaMemcpyAsync", host.device + 8, host.pinned[0], SIZE - 8, IN, host.stream) == 0


@pytest.mark.parametrize("what", ["cudaFree", "cudaFreeHost"])
def test_memory_that_is_freed_under_its_work_loses_the_device(host: Host, what: str) -> None:
    host.copy_in()
    host.do(what, host.device if what == "cudaFree" else host.pinned[0])
    assert host.code("cudaStreamSynchronize", host.stream) == 700
    assert "were freed" in host.cuda.why_lost


def test_freeing_may_wait_for_the_device() -> None:
    host = Host(FakeCudaRuntime(frees_wait=True))
    host.copy_in()
    host.do("cudaFree", host.device)
    host.synchronize()


# ---- captures


def test_what_is_captured_runs_when_it_is_launched_with_the_memory_of_then(host: Host) -> None:
    host.do("cudaStreamBeginCapture", host.stream, THREAD_LOCAL)
    host.copy_in()
    host.copy_out()
    graph = host.do("cudaStreamEndCapture", host.stream)
    executable = host.do("cudaGraphInstantiate", graph, 0)
    host.do("cudaGraphDestroy", graph)  # an executable stands alone
    host.synchronize()
    assert not np.any(host.view(1) == 6)
    for value in (6, 7):
        host.view(0)[:] = value
        host.do("cudaGraphLaunch", executable, host.stream)
        host.synchronize()
        assert np.all(host.view(1) == value)
    host.do("cudaGraphLaunch", executable, host.stream)
    host.do("cudaGraphExecDestroy", executable)  # in flight: it ends all the same
    host.synchronize()
    host.do("cudaFree", host.device)
    assert host.code("cudaGraphLaunch", executable, host.stream) == 1


def test_a_graph_that_outlives_its_memory_loses_the_device(host: Host) -> None:
    host.do("cudaStreamBeginCapture", host.stream, THREAD_LOCAL)
    host.copy_in()
    executable = host.do("cudaGraphInstantiate", host.do("cudaStreamEndCapture", host.stream), 0)
    host.do("cudaFree", host.device)
    host.do("cudaGraphLaunch", executable, host.stream)
    assert host.code("cudaStreamSynchronize", host.stream) == 700


def test_launches_of_one_graph_do_not_overtake_each_other(host: Host) -> None:
    other, ran = host.do("cudaStreamCreateWithFlags", 1), list[int]()
    host.do("cudaStreamBeginCapture", host.stream, THREAD_LOCAL)
    host.do("launch_kernel", host.stream, lambda: ran.append(len(ran)))
    executable = host.do("cudaGraphInstantiate", host.do("cudaStreamEndCapture", host.stream), 0)
    host.do("cudaGraphLaunch", executable, host.stream)
    host.do("cudaGraphLaunch", executable, other)
    host.do("cudaStreamSynchronize", other)
    assert ran == [0, 1]


@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL])
@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("call", ["cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaFreeHost"])
def test_who_may_allocate_during_a_capture(host: Host, mode: cudaStreamCaptureMode, here: bool, call: str) -> None:
    arguments = {"cudaMalloc": (8,), "cudaFree": (0,), "cudaHostAlloc": (8, 0), "cudaFreeHost": (host.pinned[0],)}
    host.do("cudaStreamBeginCapture", host.stream, mode)

    def ask() -> int:
        return host.code(call, *arguments[call])

    refused = here or mode == GLOBAL
    assert (ask() if here else elsewhere(ask)) == (900 if refused else 0)
    assert host.do("cudaStreamIsCapturing", host.stream) == (2 if refused else 1)
    if refused:  # the stream is of no use until the capture is ended, which gives nothing
        assert host.code("launch_kernel", host.stream, lambda: None) == 901
        assert host.cuda.cudaStreamEndCapture(host.stream) == (901, None)
    else:
        host.do("cudaStreamEndCapture", host.stream)
    assert host.do("cudaStreamIsCapturing", host.stream) == 0
    assert host.code("cudaMalloc", 8) == 0
    host.synchronize()


@pytest.mark.parametrize("call", ["cudaStreamSynchronize", "cudaDeviceSynchronize"])
def test_a_capturing_stream_cannot_be_waited_for(host: Host, call: str) -> None:
    host.do("cudaStreamBeginCapture", host.stream, THREAD_LOCAL)
    assert host.code(call, *[host.stream] * (call == "cudaStreamSynchronize")) == 900
    assert host.cuda.cudaStreamEndCapture(host.stream) == (901, None)
    assert host.cuda.alive().get("graphs") is None


def test_captured_events_tell_nothing(host: Host) -> None:
    event = host.event()
    host.do("cudaStreamBeginCapture", host.stream, THREAD_LOCAL)
    host.do("cudaEventRecord", event, host.stream)
    assert host.code("cudaEventSynchronize", event) == 907
    assert host.code("cudaEventElapsedTime", event, event) == 907


def test_a_capture_is_ended_once_and_by_its_own_thread(host: Host) -> None:
    assert host.code("cudaStreamEndCapture", host.stream) == 401
    host.do("cudaStreamBeginCapture", host.stream, THREAD_LOCAL)
    assert elsewhere(lambda: host.code("cudaStreamEndCapture", host.stream)) == 908
    host.code("cudaStreamEndCapture", host.stream)
    host.do("cudaStreamBeginCapture", host.stream, THREAD_LOCAL)
    host.do("cudaStreamEndCapture", host.stream)


def test_a_capture_does_not_wait_for_what_is_outside(host: Host) -> None:
    other, event = host.do("cudaStreamCreateWithFlags", 1), host.event()
    host.do("cudaEventRecord", event, other)
    host.do("cudaStreamBeginCapture", host.stream, THREAD_LOCAL)
    assert host.code("cudaStreamWaitEvent", host.stream, event, 0) == 905
    assert host.code("cudaStreamEndCapture", host.stream) == 901


# ---- failures


def test_a_lost_device_stays_lost_and_says_so_first_to_who_waits(host: Host) -> None:
    host.cuda.lose(719, after=1)
    for _ in range(3):
        assert host.code("launch_kernel", host.stream, lambda: None) == 0
    assert host.code("cudaStreamSynchronize", host.stream) == 719
    assert host.cuda.kernels == 1
    for call, arguments in [("cudaMalloc", (1,)), ("cudaFree", (host.device,)), ("cudaStreamDestroy", (host.stream,))]:
        assert host.code(call, *arguments) == 719
    assert host.cuda.cudaGetLastError() == host.cuda.cudaGetLastError() == (719,)
    assert host.cuda.cudaGetErrorString(719)[1] == b"unspecified launch failure"


def test_a_call_fails_as_often_as_it_was_asked_to(host: Host) -> None:
    host.cuda.fail("cudaMalloc", 2, after=1, times=2)
    assert [host.code("cudaMalloc", 1) for _ in range(5)] == [0, 2, 2, 0, 0]


@pytest.mark.parametrize(
    ("create", "destroy", "code"),
    [("cudaStreamCreateWithFlags", "cudaStreamDestroy", 400), ("cudaEventCreateWithFlags", "cudaEventDestroy", 400)],
)
def test_a_destroyed_handle_is_refused(host: Host, create: str, destroy: str, code: int) -> None:
    handle = host.do(create, 1)
    host.do(destroy, handle)
    assert host.code(destroy, handle) == code


def test_what_is_alive_is_counted(host: Host) -> None:
    assert host.cuda.alive() == {"allocations": 1, "pinned": 2, "streams": 1}
    event = host.event()
    host.do("cudaStreamBeginCapture", host.stream, THREAD_LOCAL)
    graph = host.do("cudaStreamEndCapture", host.stream)
    executable = host.do("cudaGraphInstantiate", graph, 0)
    everything = {"allocations": 1, "pinned": 2, "streams": 1, "events": 1, "graphs": 1, "executables": 1}
    assert host.cuda.alive() == everything
    assert host.code("cudaGraphDestroy", None) == 1  # what a capture gives that was invalidated
    for call, handle in [
        ("cudaGraphExecDestroy", executable),
        ("cudaGraphDestroy", graph),
        ("cudaEventDestroy", event),
        ("cudaStreamDestroy", host.stream),
        ("cudaFree", host.device),
        *(("cudaFreeHost", address) for address in host.pinned),
    ]:
        host.do(call, handle)
    assert host.cuda.alive() == {}
