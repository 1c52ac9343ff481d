"""What the commands print: outside text as text, results that Ctrl-C does not lose, JSON that every reader takes."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2mrf_deploy import bench, evaluation, images, sample_photographs
from r2mrf_deploy.bench.protocol import Candidate, Protocol, measure
from r2mrf_deploy.cli import common, main
from r2mrf_deploy.datasets import read_dataset
from r2mrf_deploy.evaluation import Method
from r2mrf_deploy.progress import Interrupted, Notice, Progress, item_by_item
from r2mrf_deploy.report.screen import Screen
from tests.conftest import heard, manifest_of

CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")
HOSTILE = ("a[red]b", "c[", "\x1b[31m", "new\nline", "x`output`y", b"\xff".decode("utf-8", "surrogateescape"))


@pytest.mark.artifact
def test_names_of_files_and_texts_of_manifests_are_printed_as_they_are_and_never_act(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photograph = images.png(sample_photographs.sample("chelsea")[:64, :64])
    Path("in[").mkdir()
    for name in HOSTILE:
        Path("in[", f"{name}.png").write_bytes(photograph)
    model = Path("m[red].onnx")
    model.write_bytes(exported.read_bytes())
    manifest = manifest_of(exported)
    assert manifest
    told = {"file": model.name, "network": "\x1b[31mnet[bold]", "accuracy": [{"\x1b[2J": "\x9b2J\u202e"}]}
    manifest.model_copy(update=told).write(model.with_name(f"{model.name}.json"))
    assert main(["predict", str(model), "in[", "-o", "out["]) == 0
    said = capsys.readouterr()
    shown = (r"a[red]b", r"c[", r"\x1b[31m", r"new\nline", r"x`output`y", r"\udcff")
    assert sorted(said.out.splitlines()) == sorted(
        f"out[/{name}_map.png: {share} % in focus" for name in shown for share in re.findall(r"(\d+) %", said.out)[:1]
    )
    assert main(["inspect", str(model)]) == 0
    assert r"\x1b[31mnet[bold]" in (said := capsys.readouterr()).out and r"\x9b2J\u202e" in said.out
    assert not CONTROL.search(said.out)
    for absent in ("[red].onnx", "\x1b[31m.onnx", "two  spaces.onnx"):
        assert main(["inspect", absent]) == 2
        assert capsys.readouterr().err == f"error: {absent}: no such file\n".replace("\x1b", r"\x1b")
    assert main(["inspect", f"--{HOSTILE[2]}"]) == 2
    assert not CONTROL.search(capsys.readouterr().err)


def test_a_failure_with_its_traceback_never_acts_on_the_terminal(tmp_path: Path) -> None:
    code = "import sys; from r2mrf_deploy.cli import main; sys.exit(main(['inspect', '\\x1b[31m.onnx', '--debug']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" in done.stderr and r"\x1b[31m.onnx" in done.stderr
    assert not CONTROL.search(done.stderr)


def test_what_libraries_warn_and_log_is_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    with common.libraries_shown():
        warnings.warn("odd \x1b[31m[red]", stacklevel=1)
        handler = logging.lastResort
        assert handler is not None
        handler.emit(logging.LogRecord("library", logging.ERROR, "", 0, "node \x1b[2J", (), None))
    assert capsys.readouterr().err == "warning: odd \\x1b[31m[red]\nerror: node \\x1b[2J\n"
    assert logging.lastResort is not handler


def test_onnx_runtime_s_log_does_not_write_names_to_the_terminal(tmp_path: Path) -> None:
    import onnx

    text = '<ir_version: 8, opset_import: ["": 17]> g (float[3] x, int64[1] i) => (float[1] y) { y = Gather(x, i) }'
    model = onnx.parser.parse_model(text)
    model.graph.node[0].name = "\x1b[31mevil"
    onnx.save(model, tmp_path / "m.onnx")
    code = (
        "import numpy as np; from r2mrf_deploy import runtimes\n"
        "with runtimes.open('m.onnx', 'onnxruntime') as runner:\n"
        "    try: runner.run({'x': np.zeros(3, np.float32), 'i': np.array([9])})\n"
        "    except Exception as e: print('evil' in str(e))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "True\n" and done.stderr == ""


def test_a_terminal_without_every_character_gets_escapes() -> None:
    code = "from r2mrf_deploy.cli import main, common; main(['--version']); common.line('5 µs')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.stdout.endswith("5 \\xb5s\n")


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    common.print_json({"a": [float("nan"), 1.5, (float("-inf"),)], "b": Path("c")})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"a": [None, 1.5, [None]], "b": "c"}


def test_a_notice_stays_and_results_go_to_standard_output_beside_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Screen(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(common, "err", terminal)
    with common.shown_progress() as show:
        show(Progress("working", 1, 2))
        show(Notice("something else"))
        common.print_json(["result"])
        common.line("a result")
    assert capsys.readouterr().out == '[\n  "result"\n]\na result\n'
    assert "something else\n" in terminal.file.getvalue()
    assert not terminal.bars


def stop(*_: object) -> Any:
    raise KeyboardInterrupt


def test_ctrl_c_keeps_the_items_that_were_done() -> None:
    @item_by_item
    def work(count: int) -> Any:
        yield from range(count)
        if count == 2:
            stop()

    assert work(3) == [0, 1, 2]
    with pytest.raises(Interrupted) as caught:
        work(2)
    assert caught.value.done == [0, 1]


class Runner:
    runtime, device, on_gpu, in_flight = "fake", "none", False, 1

    def __init__(self, runs: int) -> None:
        self.left = runs

    def run(self, feed: dict[str, np.ndarray]) -> None:
        self.left -= 1
        if self.left < 0:
            stop()

    def submit(self, feed: dict[str, np.ndarray], *, transfers: bool) -> Any:
        self.run(feed)
        t = time.perf_counter() * 1e3
        return lambda: (None, bench.protocol.Timing(t, t + 1, t, t, t, t + 1, t + 1, t + 1))


@pytest.mark.parametrize(("runs", "turns"), [(1_000, 9), (3, 0)])
def test_ctrl_c_keeps_the_turns_that_every_candidate_has_had(runs: int, turns: int) -> None:
    feed = {"x": np.zeros((1, 2))}
    candidates = [Candidate(name, Runner(runs), feed) for name in "ab"]  # type: ignore[arg-type]
    calls = []

    def progress(p: Progress) -> None:
        calls.append(p)
        if len(calls) == 2 * turns + 1:  # the first candidate is a turn ahead
            stop()

    with pytest.raises(Interrupted) as caught:
        measure(candidates, Protocol(0, 100, 10**6, 2), progress=progress)
    assert [len(m.turns) for m in caught.value.done] == ([turns, turns] if turns else [])


def test_ctrl_c_keeps_the_photographs_that_every_method_has_done(tmp_path: Path) -> None:
    photograph = sample_photographs.sample("chelsea")[:64, :96]
    for folder in ("image", "gt"):
        (tmp_path / folder).mkdir()
        for name in "abc":
            content = photograph if folder == "image" else (photograph[..., 0] > 128).astype(np.uint8) * 255
            (tmp_path / folder / f"{name}.png").write_bytes(images.png(content))
    maps = iter([photograph[..., 0] / np.float32(255)] * 2)
    methods = [
        Method(lambda image: {"first": image[..., 0] / np.float32(255)}, "fake"),
        Method(lambda _: {"second": found} if (found := next(maps, None)) is not None else stop(), "fake"),
    ]
    with pytest.raises(Interrupted) as caught:
        evaluation.evaluate(methods, read_dataset(tmp_path, white="sharp"))
    assert [(row.name, list(row.photographs)) for row in caught.value.done] == [
        ("first", ["a", "b"]),
        ("second", ["a", "b"]),
    ]


@pytest.mark.parametrize("start", [["-m", "r2mrf_deploy"], ["export/to_onnx.py"]])
def test_ctrl_c_while_python_imports_is_one_line(start: list[str], tmp_path: Path) -> None:
    """As if it came while `typer` is imported."""
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{root}"}
    done = subprocess.run([sys.executable, *start, "doctor"], cwd=root, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_ctrl_c_before_anything_was_done_prints_json_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("r2mrf_deploy.doctor.examine", stop)
    assert main(["doctor", "--json"]) == 130
    said = capsys.readouterr()
    assert json.loads(said.out) == {"interrupted": True} and said.err == "error: interrupted\n"
    assert main(["doctor"]) == 130 and not capsys.readouterr().out


@pytest.mark.artifact
@pytest.mark.parametrize(("as_json", "names"), [(True, ["a.xml", "a.onnx"]), (False, ["a.onnx", "a.xml"])])
def test_ctrl_c_keeps_the_artifacts_that_are_written(
    as_json: bool,
    names: list[str],
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("r2mrf_deploy.export.chain.export_graph", stop)
    outputs = [f"-o{tmp_path / name}" for name in names]
    assert main(["export", str(small), *outputs, "--size", "64x64", *["--json"][:as_json]]) == 130
    said = capsys.readouterr().out
    assert (
        [facts["file"] for facts in json.loads(said)] == ["a.onnx"] if as_json else f"{tmp_path / 'a.onnx'}: " in said
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "a.onnx.json"]


@pytest.mark.artifact
def test_ctrl_c_prints_what_was_done_as_json(exported: Path, tmp_path: Path) -> None:
    photograph = images.png(sample_photographs.sample("chelsea"))
    for n in range(500):
        (tmp_path / f"{n:03}.png").write_bytes(photograph)
    inputs = ["predict", str(exported), str(tmp_path), "-o", str(tmp_path / "out"), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "r2mrf_deploy", *inputs],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard,
    )  # fmt: skip
    while process.poll() is None and not (tmp_path / "out" / "010_overlay.jpg").is_file():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, error = process.communicate(timeout=60)
    assert process.returncode == 130 and error == "error: interrupted\n"
    assert 2 <= len(json.loads(said)) < 500
