"""The performance summary says what trtexec says: every line follows from the exported times."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy.bench import protocol
from r2mrf_deploy.bench.summary import Statistics, Summary, percentile, times
from r2mrf_deploy.cli import main
from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.report import bench_files
from r2mrf_deploy.runtimes import Timing

pytestmark = pytest.mark.artifact

KEYS = ["Enq", "H2d", "Compute", "D2h"]


def test_percentile_is_trtexec_s() -> None:
    values = list(range(100))
    # index max(n - 1 - int((1 - p/100) * n), 0); in single precision 1 - 0.9 is over 0.1, and 1 - 0.99 under 0.01
    assert [percentile(values, p) for p in (50, 90, 95, 99)] == [49, 89, 94, 99]
    assert percentile([5.0], 99) == 5.0
    assert percentile([1.0, 2.0], 50) == 1.0


def test_statistics() -> None:
    s = Statistics.of([3.0, 1.0, 2.0, 10.0], (90.0,))
    assert (s.min, s.max, s.mean, s.median, s.percentiles) == (1.0, 10.0, 4.0, 2.5, {"90": 10.0})


def on_device(start: float, enqueue: float = 0.1, h2d: float = 0.2, compute: float = 4.0, d2h: float = 0.3) -> Timing:
    a, b = start + h2d, start + h2d + compute
    return Timing(start + 0.01, start + 0.01 + enqueue, start, a, a, b, b, b + d2h)


def test_latency_is_copies_and_compute_and_throughput_is_over_the_turns() -> None:
    # two in flight: the second is enqueued while the first computes; then a pause of a second, which is nobody's
    turns = [[on_device(0), on_device(4.2)], [on_device(1010), on_device(1014.2)]]
    s = Summary.of(turns, (90.0,))
    assert s.latency.median == pytest.approx(4.5) and s.enqueue.max == pytest.approx(0.1)
    assert s.host_walltime == pytest.approx(2 * 8.7e-3) and s.throughput == pytest.approx(4 / 17.4e-3)
    assert s.compute_total == pytest.approx(16e-3) and s.variation == pytest.approx(0, abs=1e-6)


def test_warnings_are_trtexec_s_and_only_a_gpu_s_where_there_is_one() -> None:
    def warned(on_gpu: bool = True, **parts: float) -> str:
        turns = [[on_device(10.0 * i, **parts) for i in range(10)]]
        return " ".join(Summary.of(turns, (90.0,)).warnings(on_gpu))

    assert warned() == ""
    assert "`cuda_graph`" in warned(enqueue=3.3) and warned(enqueue=3.1) == ""
    assert "host to device" in warned(h2d=4.0) and "device to host" in warned(d2h=4.0)
    assert warned(False, enqueue=3.3, h2d=4.0) == ""
    shaky = [[on_device(10.0 * i, compute=4 + 0.3 * (i % 2)) for i in range(10)]]
    assert "coefficient of variation 3.6 %" in Summary.of(shaky, (90.0,)).warnings(True)[0]
    steady = [[on_device(10.0 * i, compute=4 + 0.1 * (i % 2)) for i in range(10)]]
    assert not Summary.of(steady, (90.0,)).warnings(True)


def test_exported_times_have_trtexec_s_keys() -> None:
    rows = times([[on_device(100), on_device(105)], [on_device(300)]])
    spans = [f"{end}{key}Ms" for key in KEYS for end in ("start", "end")]
    assert list(rows[0]) == [*spans, "h2dMs", "computeMs", "d2hMs", "latencyMs", "turn"]
    assert rows[0]["startH2dMs"] == 0 and rows[2]["turn"] == 1
    assert rows[1]["startComputeMs"] == pytest.approx(5.2) and rows[1]["latencyMs"] == pytest.approx(4.5)


@pytest.mark.parametrize("streams", [1, 2])
def test_every_line_follows_from_the_exported_times(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], streams: int
) -> None:
    file = tmp_path / "times.json"
    command = ["bench", str(exported), "--duration", "0", "--iterations", "25", "--percentile", "50,90,99"]
    assert main([*command, "--avgRuns", "4", "--exportTimes", str(file), "--infStreams", str(streams)]) == 0
    said = capsys.readouterr().out
    rows = json.loads(file.read_text())
    assert len(rows) >= 25
    latency = np.array([r["latencyMs"] for r in rows])
    enqueue = np.array([r["endEnqMs"] - r["startEnqMs"] for r in rows])
    compute = np.array([r["computeMs"] for r in rows])
    nothing = np.zeros(len(rows))
    turns = [[r for r in rows if r["turn"] == t] for t in range(rows[-1]["turn"] + 1)]
    walltime = sum(max(r["endD2hMs"] for r in t) - min(r["startEnqMs"] for r in t) for t in turns) / 1e3
    for name, values in [
        ("Latency", latency),
        ("Enqueue Time", enqueue),
        ("H2D Latency", nothing),
        ("CPU Compute Time", compute),
        ("D2H Latency", nothing),
    ]:
        (line,) = re.findall(rf"^{name}: (.*)$", said, re.M)
        found = dict(re.findall(r"([\w()%]+) = ([\d.e+-]+) ms", line))
        ordered = np.sort(values)
        expected = {"min": ordered[0], "max": ordered[-1], "mean": values.mean(), "median": np.median(values)}
        for p in (50, 90, 99):
            index = len(ordered) - 1 - int(np.float32(1 - np.float32(p) / np.float32(100)) * np.float32(len(ordered)))
            expected[f"percentile({p}%)"] = ordered[max(index, 0)]
        # printed with six digits; the exported differences of large numbers are good to a nanosecond
        assert {k: float(v) for k, v in found.items()} == pytest.approx(expected, rel=1e-5, abs=1e-5), name
    for name, value in [
        ("Throughput", len(rows) / walltime),
        ("Total Host Walltime", walltime),
        ("Total CPU Compute Time", compute.sum() / 1e3),
    ]:
        assert float(re.findall(rf"^{name}: ([\d.e+-]+) ", said, re.M)[0]) == pytest.approx(value, rel=1e-5), name
    averages = re.findall(
        r"^Average on (\d+) runs - CPU latency: ([\d.e+-]+) ms - Host latency: ([\d.e+-]+)", said, re.M
    )
    groups = [t[i : i + 4] for t in turns for i in range(0, len(t), 4)]
    for (count, found, host), group in zip(averages, groups, strict=True):
        assert int(count) == len(group) and float(found) == float(host)
        assert float(found) == pytest.approx(np.mean([r["computeMs"] for r in group]), rel=1e-5)


def test_averages_are_printed_where_they_are_asked_for(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(exported), "--duration", "0"]) == 0
    assert "Average on" not in capsys.readouterr().out
    assert main(["bench", str(exported), "--duration", "0", "--avgRuns", "0"]) == 2


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--plot x.bmp", "must end in .png, .svg, .pdf"),
        ("--csv text/x.csv", "cannot write"),
        ("--exportTimes .", "cannot write"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_timed(
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("no folder")
    monkeypatch.setattr(protocol, "bench_artifacts", lambda *_, **__: pytest.fail("it was timed"))
    assert main(["bench", str(exported), *option.split()]) == 2
    assert said in capsys.readouterr().err


def test_what_was_measured_is_printed_before_it_is_written(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise ArtifactError("the disk is full")

    monkeypatch.setattr(bench_files, "write", full)
    assert main(["bench", str(exported), "--duration", "0", "--csv", str(tmp_path / "x.csv")]) == 2
    assert "Throughput:" in capsys.readouterr().out
