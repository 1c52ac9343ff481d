"""The load generator: what it sends, what it counts, and that slow answers hide nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2mrf_deploy.bench import load
from r2mrf_deploy.bench.load import Load, LoadResult, bench_servers
from r2mrf_deploy.errors import InputError, UsageError
from r2mrf_deploy.manifest import NEUTRAL, Contract, TensorSpec
from r2mrf_deploy.report import load_tables
from r2mrf_deploy.report.screen import Screen
from r2mrf_deploy.runtimes.served import Connection
from tests.predict.conftest import photograph
from tests.runtimes.fake_server import MAP, FakeServer

pytest.importorskip("tritonclient")


@pytest.fixture(params=["http", "grpc"])
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with FakeServer(request.param) as running:
        yield running


def loaded(server: FakeServer, *loads: Load, name: str = "focus", **options: Any) -> list[LoadResult]:
    options = {"size": (8, 8)} | options if not options.get("folder") else options
    return bench_servers([Connection(f"{server.address}/{name}", deadline=5, retry_for=0)], loads, **options)


def test_a_closed_loop_keeps_so_many_in_flight(server: FakeServer) -> None:
    server.fake.delay = 0.02
    one, six = loaded(server, Load(1, duration=0.6, warm_up=0), Load(6, duration=0.6, warm_up=0))
    assert server.fake.most_under_way == 6
    for result, most in ((one, 1), (six, 6)):
        assert result.errors == 0 and result.latency and 20 <= result.latency.min < 60
        assert result.requests <= most * 0.6 / 0.02 + most  # and at least some of what is possible on a busy machine
        assert result.throughput == pytest.approx(result.requests / result.seconds) and result.seconds >= 0.6
        assert list(result.latency.percentiles) == ["50", "90", "99", "99.9"]
    assert six.throughput > 2 * one.throughput
    (counted,) = six.server
    assert (counted.requests, counted.batch, counted.queue_ms, counted.compute_ms) == (six.requests, 4, 2, 6)
    assert six.inputs == ["1x8x8x3"] and six.to_dict()["images_per_second"] == six.throughput


def test_an_open_loop_comes_at_random_times_whatever_the_server_does(server: FakeServer) -> None:
    (first,) = loaded(server, Load(rate=200, duration=0.4, warm_up=0, seed=3))
    server.fake.delay = 0.05
    (again,) = loaded(server, Load(rate=200, duration=0.4, warm_up=0, seed=3))
    assert first.requests == again.requests and 45 < first.requests < 120  # the seed says when
    assert server.fake.most_under_way > 2  # none waits for another
    (other,) = loaded(server, Load(rate=200, duration=0.4, warm_up=0, seed=4))
    assert (other.requests, other.seconds) != (first.requests, first.seconds)


def test_the_latency_of_an_open_loop_counts_from_when_a_request_was_due(server: FakeServer) -> None:
    """A server that does one at a time, in 20 ms, falls behind at 100 in a second: those that come last wait for long.

    Each answer by itself still takes 20 ms, which is all that a generator would see that waits before it sends.
    """
    compute, queue = server.fake.infer, threading.Lock()

    def slowly(*given: Any) -> Any:
        with queue:
            return compute(*given)

    server.fake.infer, server.fake.delay = slowly, 0.02  # type: ignore[method-assign]
    (result,) = loaded(server, Load(rate=100, duration=0.6, warm_up=0))
    assert result.latency and result.latency.max > 300 and result.latency.median > 100
    assert result.seconds > 0.8 and any("fell behind" in text for text in load_tables.load_lines([result]))


def test_a_generator_that_is_late_says_so() -> None:
    late = []

    async def send(due: float) -> bool:
        late.append(time.perf_counter() - due)
        time.sleep(0.02)
        return True

    asyncio.run(load._open(send, 100, 0.4, np.random.default_rng(0)))
    assert 0 <= min(late) < 0.02 and max(late) > 0.15 and len(late) > 20


def test_failures_are_counted_and_the_first_said(server: FakeServer) -> None:
    (whole,) = loaded(server, Load(2, duration=0.2, warm_up=0))
    assert whole.errors == 0
    server.fake.refused = "no more"
    (none,) = loaded(server, Load(2, duration=0.3, warm_up=0))
    assert none.latency is None and none.errors == none.requests <= 2 * 8  # it is not asked without a pause
    assert "no more" in none.first_error and none.throughput == 0
    assert any("no more" in text for text in load_tables.load_lines([none]))
    server.fake.refused, server.fake.busy = "", 3
    (some,) = loaded(server, Load(2, duration=0.3, warm_up=0))
    assert 0 < some.errors <= 3 < some.requests and some.latency  # the warm-up takes one of them


def test_photographs_of_many_sizes(server: FakeServer, tmp_path: Path) -> None:
    for number, size in enumerate(((64, 48), (48, 64), (40, 40))):
        photograph(tmp_path / f"{number}.png", 10, size)
    compute, sent = server.fake.infer, set()

    def noting(model: str, tensors: Any, wanted: list[str]) -> Any:
        sent.add("x".join(map(str, tensors[0][2])))
        return compute(model, tensors, wanted)

    server.fake.infer = noting  # type: ignore[method-assign]
    (result,) = loaded(server, Load(2, duration=0.3), folder=tmp_path)
    assert sent == set(result.inputs)
    assert set(result.inputs) == {"1x48x64x3", "1x64x48x3", "1x40x40x3"} and not result.errors
    (batched,) = loaded(server, Load(1, duration=0.1), folder=tmp_path, batches=[3])
    assert "3x40x40x3" in batched.inputs and batched.batch == 3
    assert batched.to_dict()["images_per_second"] == pytest.approx(3 * batched.throughput)


def test_photographs_are_fitted_as_the_contract_says(server: FakeServer, tmp_path: Path) -> None:
    photograph(tmp_path / "a.png", 10, (64, 48))
    said = Contract(
        kind="onnx",
        inputs=[TensorSpec(name="image", dtype="uint8", shape=["n", "h", "w", 3], layout="NHWC")],
        outputs=[TensorSpec(name="map", dtype="float32", shape=["n", 1, "h", "w"], layout="NCHW")],
        preprocess=NEUTRAL.model_copy(update={"longest_side": 40}),
    )
    (given,) = loaded(server, Load(duration=0.05), folder=tmp_path, contract=said)
    server.fake.contract = said.embedded()
    (known,) = loaded(server, Load(duration=0.05), folder=tmp_path)
    assert given.inputs == known.inputs == ["1x32x40x3"]


def test_files_are_sent_to_a_model_that_takes_files(server: FakeServer, tmp_path: Path) -> None:
    photograph(tmp_path / "a.png")
    asked = []
    compute = server.fake.infer

    def noting(model: str, tensors: Any, wanted: list[str]) -> Any:
        asked.append((wanted, tensors[0][3][4:]))
        return compute(model, tensors, wanted)

    server.fake.infer = noting  # type: ignore[method-assign]
    (result,) = loaded(server, Load(duration=0.1), name="focus_jpeg", folder=tmp_path)
    assert not result.errors and asked[0] == (["png"], (tmp_path / "a.png").read_bytes())
    assert [s.model for s in result.server] == ["focus_jpeg", "focus"]
    loaded(server, Load(duration=0.1), name="focus_jpeg", folder=tmp_path, outputs=["verdict", "map"])
    assert asked[-1][0] == ["verdict", "map"]
    with pytest.raises(UsageError, match="`images`"):
        loaded(server, Load(), name="focus_jpeg")
    with pytest.raises(UsageError, match="has no output 'pgn': did you mean 'png'"):
        loaded(server, Load(), name="focus_jpeg", folder=tmp_path, outputs=["pgn"])


def test_what_cannot_be_sent(server: FakeServer, tmp_path: Path) -> None:
    server.fake.models["other"] = ([{"name": "x", "datatype": "FP32", "shape": [1, 4]}], MAP)
    photograph(tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"takes no photographs \(`images`\)"):
        loaded(server, Load(), name="other", folder=tmp_path)
    with pytest.raises(UsageError, match="`size` and photographs"):
        loaded(server, Load(), folder=tmp_path, size=(8, 8))
    with pytest.raises(UsageError, match="no input 'y'"):
        loaded(server, Load(), shapes={"y": [1]})
    with pytest.raises(InputError):
        loaded(server, Load(), folder=tmp_path / "nothing")
    for wrong in ({"concurrency": 0}, {"rate": 0.0}, {"rate": float("nan")}, {"duration": 0.0}, {"warm_up": -1.0}):
        with pytest.raises(UsageError, match=f"`{next(iter(wrong))}`"):
            Load(**wrong)  # type: ignore[arg-type]


def test_the_tables_fit_80_columns(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    result = loaded(server, Load(1, duration=0.1))
    Screen(width=80).print(load_tables.load_table(result), load_tables.server_table(result))
    said = capsys.readouterr().out
    assert "p99.9" in said and "compute" in said and "1 in flight" in said
    assert max(map(len, said.splitlines())) <= 80
    (row,) = load_tables.load_rows(result)
    assert row["in_flight"] == 1 and row["latency_p99.9_ms"] and row["server_mean_batch"] == 4
    server.fake.statistics = False
    assert "the server keeps no statistics" in load_tables.load_lines(loaded(server, Load(duration=0.1)))[0]


def test_what_the_server_counts_in_part_is_said(server: FakeServer, tmp_path: Path) -> None:
    """Of a network in Triton's python backend, alone and as a step of an ensemble."""
    photograph(tmp_path / "a.png")
    server.fake.artifact = "model.onnx"
    for name in ("focus", "focus_jpeg"):
        said = load_tables.load_lines(loaded(server, Load(duration=0.1), name=name, folder=tmp_path))
        assert said == ["focus: its computation is counted until the last of a batch has begun; it takes longer"]
