"""The benchmark measures what it says: percentiles, interleaving, ratios."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import runtimes
from r2mrf_deploy.bench import feeds, protocol
from r2mrf_deploy.bench.protocol import Candidate, Protocol, bench_artifacts, measure, median_interval
from r2mrf_deploy.errors import InputError, UsageError
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.progress import Interrupted
from r2mrf_deploy.report import bench_files, bench_tables
from r2mrf_deploy.runtimes import OpenOptions
from r2mrf_deploy.runtimes.base import Arrays, Pending, Runner, Timing, now_ms
from r2mrf_deploy.runtimes.onnxruntime import OnnxRuntimeCPU, OnnxRuntimeRunner

pytestmark = pytest.mark.artifact

X = TensorSpec(name="x", dtype="float32", shape=[1])
IMAGE = TensorSpec(name="image", dtype="uint8", shape=[1, "height", "width", 3], layout="NHWC")
LOG: list[str] = []


class Sleeper(Runner):
    """Takes as long as it says."""

    device = "none"
    inputs = outputs = (X,)

    def __init__(self, name: str, milliseconds: float) -> None:
        self.runtime, self._seconds = name, milliseconds / 1e3

    def _run(self, arrays: Arrays) -> Arrays:
        LOG.append(self.runtime)
        time.sleep(self._seconds)
        return dict(arrays)


def candidates(*milliseconds: float) -> list[Candidate]:
    feed = {"x": np.zeros(1, np.float32)}
    return [Candidate(f"s{m}", Sleeper(f"s{m}", m), feed) for m in milliseconds]


def test_iterations_and_duration_are_both_reached() -> None:
    by_count, by_time = candidates(1), candidates(1)
    assert measure(by_count, Protocol(0, 0, 25, 10))[0].summary.inferences >= 25
    assert measure(by_time, Protocol(0, 0.1, 1, 10))[0].summary.inferences >= 50


def test_contestants_take_turns_and_ratios_follow() -> None:
    LOG.clear()
    slow, fast = measure(candidates(8, 2), Protocol(0, 0, 30, 10))
    assert (slow.summary.inferences, fast.summary.inferences) == (30, 30)
    order = [name for name, before in zip(LOG, [None, *LOG[:-1]], strict=True) if name != before]
    assert order == ["s8", "s2"] * 4, "a warm-up and three turns each"
    assert slow.speed_up == 1.0
    # sleeping overshoots by up to a millisecond or so
    assert 2 < fast.speed_up < 5
    assert fast.speed_up_range[0] <= fast.speed_up <= fast.speed_up_range[1]
    assert fast.summary.throughput == pytest.approx(1e3 / fast.latency.mean, rel=0.3)


def test_a_turn_ends_early_where_inferences_are_slow() -> None:
    # 200 ms each: three fit into half a second
    only, _ = measure(candidates(200, 200), Protocol(0, 0, 4, 10))
    assert only.summary.inferences == 6


def test_feed_follows_layout_dtype_and_free_sizes() -> None:
    specs = [
        TensorSpec(name="image", dtype="uint8", shape=["n", "h", "w", 3], layout="NHWC"),
        TensorSpec(name="tensor", dtype="float32", shape=["n", 3, "h", "w"], layout="NCHW"),
        TensorSpec(name="fixed", dtype="float32", shape=[2, 3, 5, 7], layout="NCHW"),
    ]
    feed = feeds.random(specs, (4, 32, 64))
    assert {k: (v.shape, v.dtype.name) for k, v in feed.items()} == {
        "image": ((4, 32, 64, 3), "uint8"),
        "tensor": ((4, 3, 32, 64), "float32"),
        "fixed": ((2, 3, 5, 7), "float32"),
    }
    assert feed["image"].std() > 50


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError, match="iterations"):
        Protocol(iterations=0)
    with pytest.raises(UsageError, match="percentile"):
        Protocol(percentiles=(100.0,))


def test_streams_run_side_by_side() -> None:
    (two,) = measure(candidates(20), Protocol(0, 0, 20, 10, streams=2))
    in_flight = two.summary.throughput * two.latency.mean / 1000  # by Little's law; a busy machine changes both alike
    assert in_flight == pytest.approx(2, rel=0.25)
    assert 20 <= two.latency.median < 35  # 40 if one waited for the other


def test_a_stream_that_fails_ends_the_benchmark() -> None:
    class Broken(Sleeper):
        def _run(self, arrays: Arrays) -> Arrays:
            if len(LOG) > 5:
                raise ValueError("no")
            return super()._run(arrays)

    LOG.clear()
    broken = Candidate("broken", Broken("broken", 1), {"x": np.zeros(1, np.float32)})
    with pytest.raises(ValueError, match="no"):
        measure([broken], Protocol(0, 0, 50, 10, streams=2))


def test_a_stream_that_fails_before_the_others_begin_keeps_none_waiting() -> None:
    class Single(Sleeper):
        """Refuses a second inference beside the first, as one request of OpenVINO's does."""

        lock = threading.Lock()

        def _run(self, arrays: Arrays) -> Arrays:
            if not self.lock.acquire(blocking=False):
                raise ValueError("busy")
            try:
                return super()._run(arrays)
            finally:
                self.lock.release()

    single = Candidate("single", Single("single", 50), {"x": np.zeros(1, np.float32)})
    ended: list[BaseException] = []

    def bench() -> None:
        try:
            measure([single], Protocol(0, 0, 4, 2, streams=2))
        except BaseException as e:
            ended.append(e)

    thread = threading.Thread(target=bench, daemon=True)
    thread.start()
    thread.join(20)
    assert [str(e) for e in ended] == ["busy"], "it waits for ever"


def test_openvino_computes_on_several_streams(exported: Path) -> None:
    pytest.importorskip("openvino", reason="needs openvino")
    with runtimes.open(exported, "openvino") as runner:
        image = np.random.default_rng(0).integers(0, 256, (6, 1, 96, 128, 3), np.uint8)
        alone = [runner.run({"image": i})["map"] for i in image]
        with ThreadPoolExecutor(2) as threads:
            together = list(threads.map(lambda i: runner.run({"image": i})["map"], np.repeat(image, 5, axis=0)))
    for number, found in enumerate(together):
        np.testing.assert_allclose(found, alone[number // 5], atol=1e-5)  # the same kernels, in two streams or one


class Device(Sleeper):
    """Two inferences in flight; writes down when each begins and is waited for."""

    in_flight = 2
    on_gpu = True

    def _submit(self, arrays: Arrays, transfers: bool) -> Pending:
        LOG.append(f"begin {transfers}")
        timing = Timing.host(now_ms(), now_ms() + 1)
        return lambda: (LOG.append("end"), ({}, timing))[1]


def test_the_next_inference_is_begun_before_the_last_is_waited_for() -> None:
    LOG.clear()
    device = Candidate("d", Device("d", 0), {"x": np.zeros(1, np.float32)})
    (m,) = measure([device], Protocol(0, 0, 4, 4, transfers=False))
    assert [x for x in LOG if x != "d"] == [
        "begin False", "begin False", "end", "begin False", "end", "begin False", "end", "end",
    ]  # fmt: skip
    assert m.on_gpu and m.summary.inferences == 4


def test_noise_is_told_from_difference() -> None:
    # any median of n values lies between the k-th and the k-th last with the binomial's probability
    assert median_interval(range(5)) is None
    assert median_interval(range(6)) == (0, 5)
    assert median_interval(range(30)) == (9, 20)
    same = measure(candidates(3, 3), Protocol(0, 0, 100, 10))
    different = measure(candidates(2, 20), Protocol(0, 0, 100, 10))  # other tests run beside this one
    few = measure(candidates(2, 20), Protocol(0, 0, 10, 10))
    assert same[0].differs is None and different[1].differs is True and few[1].differs is None
    assert "too few turns" in bench_tables.bench_lines(few)[0]
    swamped = replace(same[1], differs=False)
    assert "from noise" in bench_tables.bench_lines([same[0], swamped])[0]


def test_options_go_to_those_who_know_them(small: Path, exported: Path) -> None:
    quick = Protocol(0, 0, 1, 1)
    done = bench_artifacts([small, exported], (), quick, size=(96, 128), options=OpenOptions(threads=1))
    assert [m.flags for m in done.measurements] == [("threads",), ("threads",)]
    with pytest.raises(UsageError, match=r"`cuda_graph` is not supported by PyTorch, ONNX Runtime"):
        bench_artifacts([small, exported], (), quick, options=OpenOptions(cuda_graph=True))


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (RuntimeError("libcudnn.so.9: cannot open\nmore"), "RuntimeError: libcudnn.so.9: cannot open"),
        (MemoryError("no room"), "MemoryError: no room"),
        (UsageError("`cuda_graph` needs fixed sizes"), "`cuda_graph` needs fixed sizes"),
    ],
)
def test_what_cannot_be_opened_is_left_out_alone(
    small: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str
) -> None:
    def fail(*_: object) -> Runner:
        raise raised

    monkeypatch.setattr(OnnxRuntimeCPU, "_open", fail)
    done = bench_artifacts([small, exported], (), Protocol(0, 0, 1, 1), size=(96, 128))
    assert [m.name for m in done.measurements] == ["small.pth"]
    assert done.skipped == [("small.onnx on onnxruntime", said)]
    with pytest.raises(type(raised)):
        bench_artifacts([exported], (), Protocol(0, 0, 1, 1))


def test_what_fails_after_the_timing_does_not_lose_it(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[BaseException] = [KeyboardInterrupt(), *(OSError(f"full {n}") for n in range(3))]

    def fail(*_: object) -> None:
        raise failures.pop(0)

    monkeypatch.setattr(protocol, "profile", fail)
    with pytest.raises(Interrupted) as caught:
        bench_artifacts([exported], (), Protocol(0, 0, 1, 1), profiles=True)
    assert [m.name for m in caught.value.done.measurements] == ["small.onnx"]
    monkeypatch.setattr(OnnxRuntimeRunner, "close", fail)  # of the one that is profiled, and of the one that was timed
    found = bench_artifacts([exported], (), Protocol(0, 0, 1, 1), profiles=True, record=False)
    assert [m.name for m in found.measurements] == ["small.onnx"] and not failures
    assert found.skipped == [("the profile of small.onnx on onnxruntime", "OSError: full 1")]
    assert found.not_recorded == ["small.onnx on onnxruntime: OSError: full 2"]


def test_what_was_measured_so_far_is_told_after_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "KEPT_EVERY", 0.0)
    kept: list[list[int]] = []
    measure(candidates(1, 1), Protocol(0, 0, 6, 2), keep=lambda found: kept.append([len(m.turns) for m in found]))
    assert kept == [[1, 1], [2, 2], [3, 3]]


def test_a_crash_leaves_the_files_of_what_was_measured_before(small: Path, exported: Path, tmp_path: Path) -> None:
    program = """
import os, sys
from r2mrf_deploy.bench import protocol
from r2mrf_deploy.cli import main
protocol.KEPT_EVERY, whole, turns = 0.0, protocol._turn, []
def turn(*given):
    turns.append(given)
    if len(turns) == 6:
        os.kill(os.getpid(), 9)
    return whole(*given)
protocol._turn = turn
main(sys.argv[1:])
"""
    files = ["--csv", str(tmp_path / "b.csv"), "--markdown", str(tmp_path / "b.md")]
    quick = ["--size", "96x128", "--warmUp", "0", "--duration", "60", "--no-record"]
    command = [sys.executable, "-c", program, "bench", str(small), str(exported), *quick, *files]
    assert subprocess.run(command, capture_output=True).returncode == -9
    with (tmp_path / "b.csv").open(newline="") as f:
        assert [row[0] for row in csv.reader(f)][1:] == ["small.pth", "small.onnx"]
    assert "small.onnx" in (tmp_path / "b.md").read_text()


def test_a_sweep_over_batches(small: Path, exported: Path, tmp_path: Path) -> None:
    done = bench_artifacts([small, exported], (), Protocol(0, 0, 1, 1), size=(96, 128), batches=(1, 3))
    assert done.skipped == [("small.onnx on onnxruntime, batch 3", "its batch is 1")]
    assert [(m.name, m.batch) for m in done.measurements] == [("small.pth", 1), ("small.pth", 3), ("small.onnx", 1)]
    big = done.measurements[1]
    assert big.images_per_second == pytest.approx(3 * big.summary.throughput)
    files = bench_files.write(done, table=tmp_path / "b.csv", markdown=tmp_path / "b.md", plot=tmp_path / "b.png")
    rows = list(csv.DictReader(files[0].open()))
    assert [r["batch"] for r in rows] == ["1", "3", "1"] and float(rows[1]["latency_median_ms"]) == big.latency.median
    assert files[1].read_text().count("| small.") == 3 and "images/s" in files[1].read_text()
    assert Image.open(files[2]).size[0] > 1000
    with pytest.raises(UsageError, match="the batch is fixed at 1 here"):
        bench_artifacts([exported], (), Protocol(0, 0, 1, 1), batches=(4,))
    with pytest.raises(UsageError, match="`batch` 2,4: the batch is fixed at 1 here"):
        bench_artifacts([exported], (), Protocol(0, 0, 1, 1), batches=(2, 4))


def test_what_would_do_nothing_is_refused(small: Path, exported: Path) -> None:
    quick = Protocol(0, 0, 1, 1)
    with pytest.raises(UsageError, match=r"small\.onnx has a fixed size, 96x128: omit `size`"):
        bench_artifacts([exported], (), quick, size=(320, 320))
    with pytest.raises(UsageError, match="`transfers` cannot be omitted on a CPU"):
        bench_artifacts([exported], (), replace(quick, transfers=False))
    with pytest.raises(UsageError, match=r"`runtime` tensorrt opens none .* make a \.plan file with `r2mrf build"):
        bench_artifacts([small, exported], ["onnxruntime", "tensorrt"], quick)


def test_shapes_and_inputs_are_given(small: Path, exported: Path, tmp_path: Path) -> None:
    quick = Protocol(0, 0, 1, 1)
    image = np.random.default_rng(0).integers(0, 256, (1, 96, 128, 3), np.uint8)
    np.save(tmp_path / "a.npy", image)
    image.tofile(tmp_path / "a.bin")
    for file in ("a.npy", "a.bin"):
        ((_, feed),) = feeds.sweep([IMAGE], [1], (96, 128), {}, {"image": tmp_path / file})
        np.testing.assert_array_equal(feed["image"], image)
    bench_artifacts(
        [small, exported], (), quick, shapes={"image": (1, 96, 128, 3)}, inputs={"image": tmp_path / "a.npy"}
    )
    for given, said in [
        ({"shapes": {"image": (1, 64, 64, 3)}}, "does not fit"),
        ({"shapes": {"imag": (1, 96, 128, 3)}}, "did you mean 'image'"),
        ({"inputs": {"picture": tmp_path / "a.npy"}}, "no input 'picture'"),
    ]:
        with pytest.raises(UsageError, match=said):
            bench_artifacts([exported], (), quick, **given)  # type: ignore[arg-type]
    (tmp_path / "short.bin").write_bytes(b"123")
    (tmp_path / "no.npy").write_bytes(b"123")
    np.save(tmp_path / "f.npy", image.astype(np.float32))
    for file, said in [
        ("short.bin", "has 3 bytes"),
        ("no.npy", "cannot be read"),
        ("f.npy", "float32"),
        ("x", "no such file"),
    ]:
        with pytest.raises(InputError, match=said):
            bench_artifacts([exported], (), quick, inputs={"image": tmp_path / file})
    with pytest.raises(UsageError, match="name:file"):
        feeds.parse_files("a.bin")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_profile_is_in_the_network_s_words(exported: Path, tmp_path: Path, runtime: str) -> None:
    pytest.importorskip(runtime)
    done = bench_artifacts([exported], [runtime], Protocol(50, 0.2, 10, 10), profiles=True)
    (profile,) = done.profiles
    words = profile.scopes()
    assert {"backbone", "shared", "step1.branch5", "step2.branch1", "fusion", "output"} <= set(words)
    assert list(words).index("step1.branch1") + 1 == list(words).index("step1.branch2")
    assert sum(words.values()) == pytest.approx(profile.average)
    assert all(layer.median > 0 for layer in profile.layers if "Conv" in layer.name)
    assert not [layer.name for layer in profile.layers if layer.scope == "other" and "Conv" in layer.name]
    (file,) = bench_files.write(done, profiles=tmp_path / "p.json")
    count, *rows = json.loads(file.read_text())
    assert count == {"count": 10} and sum(r["percentage"] for r in rows) == pytest.approx(100)
    assert all({"name", "timeMs", "averageMs", "medianMs", "percentage"} <= set(r) for r in rows)


def test_who_gives_no_profile_is_named(small: Path) -> None:
    done = bench_artifacts([small], (), Protocol(0, 0, 1, 1), size=(64, 64), profiles=True)
    assert done.skipped == [("the profile of small.pth on pytorch", "PyTorch cannot profile")]


class Failing(Sleeper):
    """Fails from its nth inference on."""

    def __init__(self, name: str, good: int) -> None:
        super().__init__(name, 1)
        self._left = good

    def _run(self, arrays: Arrays) -> Arrays:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError(f"{self.runtime}: the device was lost")
        return super()._run(arrays)


@pytest.mark.parametrize("good", [0, 3, 14])  # in the warm-up, in its first turn, in its second
@pytest.mark.parametrize("first", [True, False])
def test_a_candidate_that_fails_does_so_alone(good: int, first: bool) -> None:
    sound = candidates(1, 2)
    failing = Candidate("bad", Failing("bad", good), sound[0].feed)
    measured = measure([failing, *sound] if first else [*sound, failing], Protocol(0, 0, 30, 10))
    assert [m.name for m in measured] == ["s1", "s2"]
    assert measured[0].speed_up == 1.0 and all(m.summary.inferences >= 30 for m in measured)
    assert str(failing.failure) == "bad: the device was lost"


def test_where_all_fail_the_first_reason_is_raised() -> None:
    feed = candidates(1)[0].feed
    with pytest.raises(RuntimeError, match="one: the device was lost"):
        measure([Candidate(n, Failing(n, 0), feed) for n in ("one", "two")], Protocol(0, 0, 10, 10))


def test_every_stream_warms_up_in_the_thread_that_is_timed() -> None:
    threads: list[int] = []

    class Remembering(Sleeper):
        def _run(self, arrays: Arrays) -> Arrays:
            threads.append(threading.get_ident())
            return super()._run(arrays)

    measure([Candidate("x", Remembering("x", 1), candidates(1)[0].feed)], Protocol(20, 0, 20, 10, streams=2))
    assert len(set(threads)) == 2 and threading.get_ident() not in threads


def test_a_free_size_is_that_of_the_others() -> None:
    """A checkpoint beside its artifact is timed at the artifact's size, or the ratio would mean nothing."""
    free = TensorSpec(name="image", dtype="uint8", shape=["batch", "height", "width", 3], layout="NHWC")
    fixed = free.model_copy(update={"shape": [1, 96, 128, 3]})
    assert feeds.fixed_size([free, fixed]) == (96, 128)
    assert feeds.fixed_size([free, TensorSpec(name="v", dtype="float32", shape=[1, 8])]) is None
