"""The comparison with the peers: they get nothing of ours, what fails loses nothing, and the table says what was found."""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2mrf_deploy.bench.protocol import Candidate, Protocol
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import InputError, RuntimeUnavailable, UsageError
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.runtimes import Runner, Timing
from tests.benchmarks.conftest import FOLDER, load

load("tables")  # the scripts import these by their names
models = load("peer_models")
peers = load("peers")
SIZE = (64, 64)


@pytest.fixture
def work(tmp_path: Path) -> Any:
    pytest.importorskip("skimage")
    source = Checkpoint.init("r2mrf-edge").save(tmp_path / "edge.pth")
    folder = tmp_path / "made"
    folder.mkdir()
    return models.Work(source, Checkpoint.load(source), SIZE, folder, 1, models.album(tmp_path / "album"), None, 60.0)


# ---- the table


def row(title: str, side: str, kind: str, ms: float, loss: float = 0.0, **further: Any) -> dict[str, Any]:
    return {
        "title": title, "side": side, "kind": kind, "device": "openvino, CPU, 2 threads, f32", "bytes": 12_340_000,
        "map_difference": loss, "scores": None, "loss": {"mae": loss, "f": loss / 2}, "latency_ms": {"median": ms},
        "times_as_fast_as": {"eager": 120 / ms, "fp32": 60 / ms, "int8": 24 / ms},
    } | further  # fmt: skip


FOUND = {
    "bound": 0.005,
    "rows": [
        row("PyTorch eager", "peer", "fp32", 120.0),
        row("OpenVINO", "peer", "fp32", 60.0),
        row("OpenVINO, BF16", "peer", "bf16", 30.0, 0.0004),
        row("NNCF INT8", "peer", "int8", 24.0, 0.004),
        row("ours, exact", "ours", "fp32", 30.0, scores={"f_max": 0.91, "f_half": 0.9, "mae": 0.07654}),
        row("ours, INT8", "ours", "int8", 15.0, 0.0045),
        row("ours, small", "ours", "compressed", 12.0, 0.003),
        row("ours, smallest", "ours", "compressed", 5.0, 0.006),
        {"title": "NNCF INT8, accuracy control", "side": "peer", "kind": "controlled", "failure": "a | b"},
    ],
}


def test_the_table_has_every_row_and_why_one_was_not_measured() -> None:
    lines = peers.table(FOUND).splitlines()
    assert len(lines) == 2 + len(FOUND["rows"])  # type: ignore[arg-type]
    device = "openvino, f32"  # without the threads, which are the same for all
    assert lines[2] == f"| PyTorch eager | {device} | 120.0 ms | 1.00 | 0.50 | 12.3 | - | - | - | 0.0000 |"
    assert lines[6] == f"| ours, exact | {device} | 30.0 ms | 4.00 | 2.00 | 12.3 | 0.9100 | 0.9000 | 0.0765 | 0.0000 |"
    assert lines[-1] == "| NNCF INT8, accuracy control | a / b | - | - | - | - | - | - | - | - |"
    assert {line.count("|") for line in lines} == {11}


def test_a_row_that_was_judged_but_not_timed_has_its_accuracy() -> None:
    judged = {
        k: v for k, v in row("ours", "ours", "fp32", 1.0, 0.002).items() if k not in ("latency_ms", "times_as_fast_as")
    }
    assert peers.table({"rows": [judged]}).splitlines()[2].endswith("f32 | - | - | - | 12.3 | - | - | - | 0.0020 |")


def test_a_stored_file_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    file = tmp_path / "peers.json"
    machine = {"cpu": "A", "cpu_vectors": "AVX2", "cores": 2, "system": "Linux", "threads": 2}
    about = {"network": "r2mrf-lite", "size": [320, 256], "machine": machine, "tools": {"torch": "2.15", "onnx": "1.2"}}
    file.write_text(json.dumps(about | FOUND))
    monkeypatch.setattr(sys, "argv", ["peers.py", "--table", str(file)])
    peers.main()
    said = capsys.readouterr().out
    assert said.startswith("r2mrf-lite at 320x256, 2 threads; A with AVX2, 2 cores, Linux; torch 2.15\n")
    assert peers.table(FOUND) in said and all(line in said for line in peers.goals(FOUND))


@pytest.mark.parametrize("file", sorted(FOLDER.glob("results/peers-*.json")), ids=lambda file: file.stem)
def test_the_stored_results_of_this_project_render(file: Path) -> None:
    found = json.loads(file.read_text())
    assert len(peers.table(found).splitlines()) == 2 + len(found["rows"]) and len(peers.goals(found)) == 3
    failures = [row["failure"] for row in found["rows"] if "failure" in row]
    assert all(why.startswith(("this CPU has no BF16", "left out, since it takes minutes")) for why in failures)


# ---- the goals


def test_goals_are_judged_by_what_is_accurate_enough() -> None:
    exact, int8, best = peers.goals(FOUND)
    assert exact.endswith("the best FP32 peer: reached, 2.00 times (ours, exact; OpenVINO)")
    # ours in INT8 is within the bound, but less accurate than NNCF's; the fastest is not within it
    assert int8.endswith("no less accurate: reached, 2.00 times (ours, small; NNCF INT8)")
    assert best.endswith("PyTorch eager: missed, 10.00 times (ours, small; PyTorch eager)")


def test_a_goal_that_nothing_accurate_enough_meets_is_missed() -> None:
    found = copy.deepcopy(FOUND)
    found["rows"] = [r for r in found["rows"] if r["title"] not in ("ours, exact", "ours, small")]  # type: ignore[index]
    _, int8, best = peers.goals(found)
    assert int8.endswith("missed, since none of ours is that accurate")
    assert best.endswith("missed, 8.00 times (ours, INT8; PyTorch eager)")


def test_a_goal_without_its_peer_is_not_judged() -> None:
    found = {"bound": 0.005, "rows": [r for r in FOUND["rows"] if r["title"] != "NNCF INT8"]}  # type: ignore[index]
    assert peers.goals(found)[1].endswith("no less accurate: not judged, since that was not measured")


# ---- the time


class Fixed(Runner):
    """A runner whose every inference takes the same time by its own clock."""

    runtime, device = "fixed", "CPU"

    def __init__(self, ms: float) -> None:
        self.inputs = self.outputs = (TensorSpec(name="map", dtype="float32", shape=[1]),)
        self._ms = ms

    def _run(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._ms < 0:
            raise InputError("it fails")
        return arrays

    def _submit(self, arrays: dict[str, np.ndarray], transfers: bool) -> Any:
        return lambda: (self._run(arrays), Timing.host(0, self._ms))


def timed(**milliseconds: float) -> list[dict[str, Any]]:
    """The rows of peers called eager and fp32, and of ours, after their timing."""
    kinds = {
        "eager": (peers.EAGER, "peer", "fp32"),
        "fp32": ("OpenVINO", "peer", "fp32"),
        "ours": ("ours", "ours", "fp32"),
    }
    feed = {"map": np.zeros(1, np.float32)}
    opened: list[tuple[dict[str, Any], Candidate]] = []
    for name, ms in milliseconds.items():
        title, side, kind = kinds[name]
        opened.append(({"title": title, "side": side, "kind": kind}, Candidate(title, Fixed(ms), feed)))
    peers.time_all(opened, Protocol(warm_up=0, duration=0, iterations=3))
    return [row for row, _ in opened]


def test_ratios_are_to_eager_and_to_the_fastest_peer() -> None:
    eager, fp32, own = timed(eager=12.0, fp32=6.0, ours=2.0)
    assert own["times_as_fast_as"] == {"eager": 6.0, "fp32": 3.0} and own["latency_ms"]["median"] == 2.0
    assert eager["times_as_fast_as"] == {"eager": 1.0, "fp32": 0.5} and own["inferences"] >= 3
    assert fp32["times_as_fast_as"]["fp32"] == 1.0


def test_what_fails_while_it_is_timed_is_listed_and_the_others_are_measured() -> None:
    _, fp32, own = timed(eager=12.0, fp32=-1.0, ours=2.0)
    assert fp32["failure"] == "it fails" and "latency_ms" not in fp32
    assert own["times_as_fast_as"] == {"eager": 6.0, "fp32": 6.0}
    assert all("failure" in each for each in timed(eager=-1.0, ours=-1.0))


# ---- what is made


def test_a_model_is_made_once_and_whole_or_not_at_all(work: Any) -> None:
    tries = []

    def make(file: Path) -> None:
        tries.append(file)
        file.write_text("half")
        if len(tries) == 1:
            raise InputError("it cannot be made")

    for _ in range(2):
        with pytest.raises(InputError, match="it cannot be made"):
            work.product("x", ".onnx", make)
    assert len(tries) == 1, "a failure is not tried again"
    work.made.clear()
    assert work.product("x", ".onnx", make).read_text() == "half"
    work.made.clear()
    work.product("x", ".onnx", make)
    assert len(tries) == 2, "a model of an earlier run is reused"


def test_without_nncf_its_rows_say_how_to_install_it(monkeypatch: pytest.MonkeyPatch, work: Any) -> None:
    monkeypatch.setattr(models.environment, "importable", lambda *modules: False)
    for make in (work.quantised, work.controlled):
        with pytest.raises(RuntimeUnavailable, match="not installed: pip install nncf"):
            make()


def test_accuracy_control_is_left_out_unless_it_gets_time(monkeypatch: pytest.MonkeyPatch, work: Any) -> None:
    monkeypatch.setattr(models, "installed_nncf", lambda: None)
    with pytest.raises(UsageError, match="left out, since it takes minutes: give --control-seconds"):
        replace(work, control_seconds=0.0).controlled()


@pytest.fixture
def given(work: Any, tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        checkpoint=str(work.source), folder=work.folder, size=SIZE, threads=1, seconds=0.0, data=None, split=None,
        calibration=work.calibration, control_seconds=60.0, max_autotune=False, compress=False, compressed=[],
        json=tmp_path / "found.json",
    )  # fmt: skip


@pytest.mark.artifact
def test_the_peers_get_the_graph_as_it_is(work: Any) -> None:
    import onnx

    from r2mrf_deploy.graph import cost
    from r2mrf_deploy.graph.rewrites import optimize
    from r2mrf_deploy.graph.trace import trace

    traced = trace(work.module, SIZE)
    plain = cost.multiply_adds(onnx.load(work.exported()))
    assert plain >= cost.multiply_adds(traced) > 1.05 * cost.multiply_adds(optimize(traced).model)


@pytest.mark.artifact
def test_all_are_judged_timed_and_stored(given: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def entries(work: Any, given: argparse.Namespace) -> Iterator[Any]:
        some = ("PyTorch eager", "ONNX Runtime", "OpenVINO", "ours, exact")
        yield from (entry for entry in every(work, given) if entry.title in some)
        yield peers.Entry("broken", "ours", "int8", lambda: 1 / 0)

    every = peers.entries
    monkeypatch.setattr(peers, "entries", entries)
    found = peers.run(given)
    eager, *others, broken = found["rows"]
    assert broken["failure"] == "ZeroDivisionError: division by zero"
    for each in others:
        # FP32 rounds differently in each, by a few 1e-7 of a map in 0 .. 1, which a deep network amplifies
        assert each["map_difference"] < 1e-4 and each["latency_ms"]["median"] > 0 and each["bytes"] > 100_000
    assert eager["map_difference"] == 0 and next(iter(found["layouts_ms"])) in eager["device"]
    assert json.loads(given.json.read_text())["rows"] == json.loads(json.dumps(found["rows"]))


@pytest.mark.artifact
def test_a_file_of_another_size_is_refused(work: Any) -> None:
    from r2mrf_deploy.export.chain import export_artifact
    from r2mrf_deploy.export.options import ExportOptions

    file = export_artifact(work.source, work.folder / "other.onnx", ExportOptions((96, 64))).path
    with pytest.raises(InputError, match="make it with --size 64x64"):
        work.run_file(lambda: file, "onnxruntime")


# ---- NNCF's accuracy control


def test_accuracy_control_judges_by_the_loss_of_our_own_search() -> None:
    wanted = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    case = models.Case(np.zeros((64, 64, 3), np.uint8), None, wanted, {})
    assert models.loss(wanted, case) == (0, 0)
    mae, f = models.loss(np.clip(wanted + 0.1, 0, 1), case)
    # 0.1 in nine tenths of the pixels, 0.05 on average in those that are clipped; precision 5/6 with β² = 0.3
    assert mae == pytest.approx(0.095, abs=1e-3) and f == pytest.approx(1 - 1.3 / 1.5, abs=1e-3)
    masked = models.Case(case.photograph, wanted > 0.3, wanted, {})
    better = (wanted > 0.3).astype(np.float32)
    mae, f = models.loss(better, masked)
    assert mae < -0.1 and f < -0.01, "a better map than PyTorch eager's is a gain"
