"""The kit for a GPU machine: what it carries arrives whole, and what its steps find is on disk whatever becomes of them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from r2mrf_deploy import environment

KIT = Path(__file__).parents[2] / "benchmarks" / "gpu"


def load(name: str) -> ModuleType:
    sys.path.insert(0, str(KIT))
    try:
        spec = importlib.util.spec_from_file_location(f"gpu_kit_{name}", KIT / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(KIT))
    return module


fatbin, bundle, report = load("fatbin"), load("bundle"), load("report")


def fat(codes: dict[int, bytes]) -> bytes:
    """A library that holds machine code for some architectures, with other bytes around it."""
    entries = b"".join(
        struct.pack("<HHIQ12xI32x", 2, 257, 64, len(code), architecture) + code for architecture, code in codes.items()
    )
    return b"before" + struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries + b"after"


def test_only_the_code_for_other_gpus_is_taken_out() -> None:
    whole = fat({75: b"seventy-five", 90: b"ninety", 120: b"hundred-and-twenty"})
    left, held = fatbin.reduce(whole, 90)
    assert left == whole.replace(b"seventy-five", bytes(12)).replace(b"hundred-and-twenty", bytes(18))
    assert dict(held) == {75: 12, 90: 6, 120: 18}


def test_a_library_without_code_for_the_gpu_is_refused() -> None:
    with pytest.raises(fatbin.NotFatBinary, match=r"no code for 61, only for \[75, 90\]"):
        fatbin.reduce(fat({75: b"a", 90: b"b"}), 61)


def test_code_that_is_not_needed_is_taken_out_too() -> None:
    whole = fat({75: b"seventy-five", 90: b"attention"}) + fat({75: b"again", 90: b"convolution"})
    left, _ = fatbin.reduce(whole, 90, [True, False])
    assert b"attention" not in left and b"convolution" in left and len(left) == len(whole)
    with pytest.raises(fatbin.NotFatBinary, match="2 pieces of code for 90, not 1"):
        fatbin.reduce(whole, 90, [True])


@pytest.mark.artifact
def test_the_names_of_kernels_are_read_in_the_order_of_their_code() -> None:
    pytest.importorskip("onnxruntime")
    library = Path(sys.modules["onnxruntime"].__file__ or "").parent / "capi" / bundle.LARGE
    if not library.is_file() or fatbin._cuobjdump() is None:
        pytest.skip("needs onnxruntime-gpu, and cuobjdump, which comes with Triton")
    content = library.read_bytes()
    pieces = [e for e in fatbin.entries(content) if e[:2] == (fatbin.MACHINE_CODE, 90)]
    names = fatbin.kernels(content, 90)
    assert len(names) == len(pieces)  # some hold data alone, and no kernel
    needed = [n for n in names if not all(map(bundle.UNNEEDED.search, n))]
    resize = {name for piece in needed for name in piece if "ResizeKernel" in name or "ResizeNearest" in name}
    assert resize and len(needed) < len(names) / 2


def test_an_entry_that_is_not_as_expected_is_not_guessed_at() -> None:
    damaged = bytearray(fat({90: b"ninety"}))
    struct.pack_into("<Q", damaged, 6 + 16 + 8, 10_000)  # its code would reach past the end
    with pytest.raises(fatbin.NotFatBinary, match="not as expected"):
        fatbin.reduce(bytes(damaged), 90)


def test_the_list_of_what_is_there_is_read_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "have").write_text(
        "# comment\nTorch==2.11.0\nscikit_image\nx @ file:///somewhere\n-e .\n\nnumpy==2.5 ; python_version>'3'\n"
    )
    found = bundle.have(tmp_path / "have")
    assert found == {"torch": "2.11.0", "scikit-image": None, "x": None, "numpy": "2.5"}


def test_what_is_there_is_not_carried_unless_it_is_too_old() -> None:
    need = bundle.Requirement("torch>=2.7")
    assert bundle._suffices(need, "2.11.0") and bundle._suffices(need, None)
    assert not bundle._suffices(need, "2.6.0") and not bundle._suffices(need, "missing")


def wheel(folder: Path, name: str, files: dict[str, bytes], needs: Sequence[str] = ()) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    content = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
        + "".join(f"Requires-Dist: {need}\n" for need in needs).encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, data in content.items():
            archive.writestr(file, data)
        archive.writestr(f"{info}/RECORD", "".join(f"{f},,\n" for f in content) + f"{info}/RECORD,,\n")
    return path


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """A bundle whose larger wheel is cut in two."""
    small = wheel(tmp_path, "smaller", {"smaller.py": b"answer = 42\n"})
    large = wheel(tmp_path, "larger", {"larger.py": b"answer = 43\n#" + bytes(range(1, 10)) * 300_000})
    return bundle.pack([large, small], tmp_path / "bundle", 2_000_000)


def install(parts: list[Path], target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(parts[0] / "install.py"), *map(str, parts), "--target", str(target)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_bundle_is_cut_into_parts_and_installs_whole(parts: list[Path], tmp_path: Path) -> None:
    sizes = [sum(f.stat().st_size for f in part.rglob("*") if f.is_file()) for part in parts]
    assert len(parts) == 2 and max(sizes) <= 2_000_000
    done = install(parts, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    program = "import smaller, larger; print(smaller.answer + larger.answer)"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True
    )
    assert done.stdout.strip() == b"85"


@pytest.mark.artifact
def test_the_kit_in_a_bundle_is_whole(parts: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, str(parts[0] / "kit" / "first_minutes.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "--dry-run" in done.stdout, done.stderr


def test_a_part_that_is_not_here_yet_is_named_and_the_rest_installed(parts: list[Path], tmp_path: Path) -> None:
    done = install(parts[:1], tmp_path / "site")
    assert (
        done.returncode == 0
        and "1 of 2 wheels" in done.stdout
        and "larger-1.0-py3-none-any.whl is not complete" in done.stdout
    )
    assert (tmp_path / "site" / "smaller.py").exists() and not (tmp_path / "site" / "larger.py").exists()


def test_a_damaged_part_is_refused(parts: list[Path], tmp_path: Path) -> None:
    (volume,) = parts[1].iterdir()
    content = bytearray(volume.read_bytes())
    content[100] ^= 1
    volume.write_bytes(content)
    done = install(parts, tmp_path / "site")
    assert done.returncode != 0 and f"{volume} is damaged" in done.stderr and not (tmp_path / "site").exists()


def test_a_reduced_wheel_is_a_version_of_its_own_with_a_record_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "_does_not_load", lambda library: None)
    monkeypatch.setattr(bundle.fatbin, "kernels", lambda library, architecture: [{"conv"}, {"flash_a", "flash_b"}])
    library = f"onnxruntime/capi/{bundle.LARGE}"
    code = fat({75: b"old" * 1000, 90: b"new"}) + fat({90: b"attention"})
    files = {library: code, f"{bundle.FOR_CPP}.1": b"C++", "onnxruntime/x.py": b"x = 1\n"}
    whole = wheel(tmp_path, "onnxruntime_gpu", files)
    made = bundle.reduced(whole, "9.0")
    assert made.name == "onnxruntime_gpu-1.0+sm90-py3-none-any.whl"
    with zipfile.ZipFile(made) as archive:
        assert b"old" not in archive.read(library) and b"new" in archive.read(library)
        assert b"attention" not in archive.read(library) and f"{bundle.FOR_CPP}.1" not in archive.namelist()
        info = "onnxruntime_gpu-1.0+sm90.dist-info"
        assert b"\nVersion: 1.0+sm90\n" in archive.read(f"{info}/METADATA")
        for line in archive.read(f"{info}/RECORD").decode().splitlines():
            name, digest, size = line.split(",")
            if digest:
                content = archive.read(name)
                wanted = bundle.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                assert (digest, int(size)) == (f"sha256={wanted}", len(content))


class Steps:
    """Steps that end in every way, in place of the real ones."""

    PROGRAM = """
import json, os, sys, time
order = json.loads(sys.argv[1])
name = order["step"]
if name != "raises": open(order["result"], "w").write('{"so far": 1}')
if name == "hangs": time.sleep(60)
if name == "raises": raise ValueError("what went wrong")
if name == "crashes": __import__("ctypes").string_at(0)
open(order["result"], "w").write(json.dumps({"answer": name}))
"""

    def __init__(self, folder: Path) -> None:
        self.kit = folder / "kit"
        self.kit.mkdir()
        (self.kit / "steps.py").write_text(self.PROGRAM)


@pytest.mark.parametrize(
    ("name", "limit", "said"),
    [
        ("works", 60, None),
        ("raises", 60, "ValueError: what went wrong"),
        ("crashes", 60, "crashed with signal 11"),
        ("hangs", 1, "stopped after 1 s"),
    ],
)
def test_a_step_that_fails_says_why_and_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: float, said: str | None
) -> None:
    first_minutes = load("first_minutes")
    monkeypatch.setattr(first_minutes, "HERE", Steps(tmp_path).kit)
    shutil.copy(KIT / "native_stack.c", first_minutes.HERE)
    step = first_minutes.all_steps.Step(name, limit, lambda place: {})
    started = time.monotonic()
    line = first_minutes.run(step, tmp_path, {}, limit)
    assert time.monotonic() - started < 30 and line["step"] == name
    if said is None:
        assert line["ok"] and line["result"] == {"answer": name}
    else:
        assert not line["ok"] and said in line["reason"]
        assert line.get("result") == (None if name == "raises" else {"so far": 1})  # what it had found is not lost
    if name == "crashes" and shutil.which("cc"):
        where = line["reason"].split(", ")[-1]
        assert "_ctypes" in where or "libffi" in where or "libpython" in where or "python" in where
        assert "Native stack" in (tmp_path / "crashes.log").read_text()


def test_a_line_that_was_cut_off_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    log = tmp_path / "steps.jsonl"
    log.write_text(
        '{"step": "a", "ok": false, "reason": "x"}\n{"step": "a", "ok": true, "result": {}}\n{"step": "b", "o'
    )
    assert [(line["step"], line["ok"]) for line in report.lines(log)] == [("a", True)]
    assert report.lines(tmp_path / "none") == []
    report.add(log, {"step": "c", "ok": True, "result": {}})  # the next one is not glued to it
    assert [line["step"] for line in report.lines(log)] == ["a", "c"]


def test_a_card_that_is_not_in_the_table_has_no_roof_and_still_a_file(tmp_path: Path) -> None:
    card = {"step": "card", "ok": False, "reason": "cut off", "result": {"machine": {"gpu": "NVIDIA A10"}}}
    report.add(tmp_path / "steps.jsonl", card)
    report.write(tmp_path, tmp_path)
    assert (tmp_path / "gpu-a10.json").exists() and "card failed: cut off" in (tmp_path / "table.md").read_text()
    (tmp_path / "steps.jsonl").unlink()
    report.write(tmp_path, tmp_path)
    assert (tmp_path / "gpu-unknown.json").exists() and not (tmp_path / "gpu-dry-run.json").exists()


@pytest.mark.artifact
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_runs_is_stopped_with_the_kit(tmp_path: Path, number: int) -> None:
    """A dropped connection must not leave a step on the card."""
    command = [sys.executable, str(KIT / "first_minutes.py"), "--dry-run", "--folder", str(tmp_path), "--only", "card"]
    kit = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    listed = ["pgrep", "-f", str(tmp_path / "card.json")]
    end = time.monotonic() + 120
    while subprocess.run(listed, stdout=subprocess.DEVNULL).returncode and time.monotonic() < end:
        time.sleep(0.1)
    kit.send_signal(number)
    assert kit.wait(60) == 1
    assert subprocess.run(listed, stdout=subprocess.DEVNULL).returncode == 1
    assert not (tmp_path / "steps.jsonl").exists()  # it is not taken for done


def test_without_a_gpu_nothing_is_recorded(tmp_path: Path) -> None:
    if environment.cuda_driver() is None:
        pytest.skip("there is a GPU here")
    command = [sys.executable, str(KIT / "first_minutes.py"), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "NVIDIA" in done.stderr and "--dry-run" in done.stderr
    assert not (tmp_path / "steps.jsonl").exists()


@pytest.mark.parametrize(("beside", "alone"), [("out of memory", None), ("out of memory", "no"), ("it is wrong", None)])
def test_what_finds_no_room_is_timed_alone_and_what_could_not_be_captured_is_no_cuda_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: str, alone: str | None
) -> None:
    timings = load("timings")
    first, second, third = (timings.Way(f"pytorch-cuda{name}", cuda_graph=True) for name in ("", "-fp16", "-graph"))
    uncaptured = "a card, without a CUDA graph: it could not be captured"

    def opened(place: Any, config: Any, ways: Any, skipped: Any) -> Any:
        for way in ways:
            if way == third and (why := beside if len(ways) > 1 else alone):
                skipped[way] = why
            else:
                device = uncaptured if way == second else "a card, CUDA graph"
                runner = SimpleNamespace(device=device, close=lambda: None)
                yield way, SimpleNamespace(way=way, runner=runner, failure=None)

    def measured(candidates: Any, *_: Any, **__: Any) -> list[Any]:
        return [
            SimpleNamespace(device=c.runner.device, to_dict=lambda c=c: {"runtime": c.way.runtime, "speed_up": 1.0})
            for c in candidates
        ]

    monkeypatch.setattr(timings, "_opened", opened)
    monkeypatch.setattr(timings, "measure", measured)
    place, config = timings.Place(tmp_path, "cuda", "r2mrf"), timings.Config((32, 32), 1)
    found = timings.timing(place, config, [first, second, third])
    times = {m["runtime"]: m["speed_up"] for m in found["measurements"]}
    works = beside == "out of memory" and alone is None
    assert times == {"pytorch-cuda": 1.0} | ({"pytorch-cuda-graph": None} if works else {})
    left = {f"{second} on {second.runtime}": uncaptured} | ({} if works else {f"{third} on {third.runtime}": beside})
    assert found["skipped"] == left


def test_what_an_extra_of_a_requirement_needs_is_carried_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = {
        "r2mrf_deploy": ["torch"],
        "torch": ["toolkit[blas]", "toolkit"],
        "toolkit": ["blas; extra == 'blas'"],
        "blas": [],
    }
    monkeypatch.setattr(bundle, "ROOT", tmp_path)

    def pip(verb: str, *arguments: str) -> None:
        name = "r2mrf_deploy" if verb == "wheel" else re.split(r"\W", arguments[-1])[0]
        wheel(tmp_path / "wheels", name, {}, needs.get(name, []))

    (tmp_path / "wheels").mkdir()
    monkeypatch.setattr(bundle, "_pip", pip)
    there = dict.fromkeys(("cuda-bindings", "pytest"))
    names = [w.name.split("-")[0] for w in bundle.collect("3.12", there, tmp_path / "wheels")]
    assert names == ["r2mrf_deploy", "torch", "toolkit", "blas"]


@pytest.mark.parametrize(
    ("line", "done", "done_again"),
    [
        ({"ok": True, "result": {"skipped": {"x": "no room"}}}, True, True),
        ({"ok": True, "result": {"skipped": {"x": "a.onnx was not made: see the step export-1"}}}, False, False),
        ({"ok": False, "reason": "RuntimeUnavailable: a.onnx was not made: see the step export-1"}, False, False),
        ({"ok": False, "reason": "it crashed"}, True, False),
    ],
)
def test_a_step_that_lacked_artifacts_runs_when_they_are_there(
    line: dict[str, Any], done: bool, done_again: bool
) -> None:
    first_minutes = load("first_minutes")
    assert first_minutes._is_done(line, False) == done and first_minutes._is_done(line, True) == done_again


def test_a_folder_holds_the_results_of_one_card(tmp_path: Path) -> None:
    first_minutes = load("first_minutes")
    place = {"device": "cuda", "network": "r2mrf", "settings": (), "card": "NVIDIA H200 GPU-1"}
    for _ in range(2):
        first_minutes._refuse_other(tmp_path, place)
    with pytest.raises(SystemExit, match="choose another --folder"):
        first_minutes._refuse_other(tmp_path, place | {"card": "NVIDIA H200 GPU-2"})


def test_a_compiler_whose_smallest_package_crashes_gets_no_more_time() -> None:
    first_minutes = load("first_minutes")
    crashed, worked = ({"step": "aotinductor-minimal", "ok": ok} for ok in (False, True))
    for lines, left in (([], 3), ([worked], 3), ([crashed], 2)):
        assert len(first_minutes._unbroken(["pytorch", "aotinductor", "tensorrt"], lines)) == left


def measurement(runtime: str, precision: str, latency: float) -> dict[str, Any]:
    figures = {"latency": {"median": latency}, "compute": {"median": latency}, "images_per_second": 1000 / latency}
    return figures | {
        "name": f"traced {precision}",
        "runtime": runtime,
        "form": "traced",
        "precision": precision,
        "speed_up": 1.0,
    }


def test_the_table_shows_every_measurement_beside_its_roof_and_every_failure(tmp_path: Path) -> None:
    timing = {
        "config": "32x32-b1",
        "measurements": [measurement("pytorch-cuda", "fp32", 4.0)],
        "skipped": {"x": "no room"},
    }
    lines = [
        {"step": "card", "ok": True, "result": {"machine": {"gpu": "NVIDIA X 1"}}},
        {"step": "pytorch-32x32-b1", "ok": True, "result": timing},
        {"step": "export-32x32-b1", "ok": False, "reason": "it crashed"},
    ]
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "32x32-b1").mkdir()
    (tmp_path / "32x32-b1" / "traced.roof.json").write_text('{"fp32": {"roof_ms": 1.0}}')
    report.write(tmp_path, tmp_path / "results")
    said = (tmp_path / "table.md").read_text()
    assert "| pytorch-cuda | traced fp32 | 4.00 | 250 | 25 % | 1.00 |" in said
    assert "x was not timed: no room" in said and "export-32x32-b1 failed: it crashed" in said
    kept = json.loads((tmp_path / "results" / "gpu-x-1.json").read_text())
    assert kept["roofs"] == {"32x32-b1": {"traced-fp32": {"roof_ms": 1.0}}} and len(kept["steps"]) == 3


def test_no_two_ways_of_running_share_a_row() -> None:
    timings = load("timings")
    ways = {*timings.PYTORCH, *(way for ways in timings.COMPILE.values() for way in ways)}
    ways |= {way for family in timings.SUFFIXES for as_ in timings.PAIRS for way in timings.pair(family, *as_)}
    ways.discard(timings.Way("pytorch-cuda-graph", precision="fp16", cuda_graph=True))  # it is this one:
    assert timings.Way("pytorch-cuda-channels-last", precision="fp16", cuda_graph=True) in ways
    last = ("channels-last", "compile")
    rows = [
        report._title(
            {"runtime": way.runtime, "precision": way.precision, "form": way.form, "name": str(way)}
            | {"device": "channels last" if way.runtime.endswith(last) else ""}
        )
        for way in ways
    ]
    assert len(rows) == len(set(rows)) > 20


def test_every_step_has_a_name_of_its_own_and_they_are_those_of_the_wanted_families() -> None:
    steps = load("steps")
    every = [step.name for step in steps.steps([(320, 320), (427, 640)], [1, 16], list(steps.SUFFIXES))]
    assert len(every) == len(set(every))
    few = [step.name for step in steps.steps([(320, 320)], [1], ["pytorch"])]
    assert set(few) < set(every) and not [name for name in few if "tensorrt" in name or "onnx" in name]
    assert {"pytorch-320x320-b1-fp16-graph", "compile-320x320-b1-rewritten", "tests-pytorch_cuda"} < set(few)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("def test_a():\n    pass\n\n@pytest.mark.skip('no card')\ndef test_b():\n    pass\n", None),
        ("def test_a():\n    pass\n\ndef test_b():\n    assert not 1\n", "1 of 2 tests failed, the first: test_b"),
        ("def test_a():\n    __import__('os')._exit(3)\n", "pytest did not run to its end"),
    ],
)  # fmt: skip
def test_the_project_s_tests_are_steps_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, said: str | None
) -> None:
    suite = load("suite")
    assert suite.files(["pytorch", "tensorrt"]) == ["pytorch_cuda", "tensorrt", "training_cuda", "latency"]
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    monkeypatch.setattr(suite, "FOLDER", tmp_path)
    assert suite.files(["pytorch"]) == []  # as in a bundle
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    (tmp_path / "test_latency.py").write_text(f"import pytest\npytestmark = pytest.mark.gpu\n\n{content}")
    place = suite.Place(tmp_path, "cuda", "r2mrf")
    if said is None:
        assert suite.tests(place, "latency") == {"tests": 2, "passed": 1, "skipped": {"test_b": "no card"}}
    else:
        with pytest.raises(AssertionError, match=said):
            suite.tests(place, "latency")


@pytest.mark.artifact
def test_the_steps_run_on_a_cpu_and_go_on_where_they_were_cut_off(tmp_path: Path) -> None:
    command = [sys.executable, str(KIT / "first_minutes.py"), "--dry-run", "--folder", str(tmp_path / "dry")]
    few = [*command, "--only", "card", "--only", "bindings", "--runtimes", "pytorch"]
    done = subprocess.run([*few, "--only", "pytorch-65x96-b1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {line["step"]: line for line in report.lines(tmp_path / "dry" / "steps.jsonl")}
    assert list(found) == ["card", "bindings", "pytorch-65x96-b1"] and all(line["ok"] for line in found.values())
    assert (tmp_path / "dry" / "gpu-dry-run.json").exists()
    again = subprocess.run(few, capture_output=True, text=True)
    assert again.returncode == 0 and "done" not in again.stdout  # what was done is not done again
    other = subprocess.run([*command[:2], "--folder", str(tmp_path / "dry")], capture_output=True, text=True)
    assert other.returncode != 0 and "choose another --folder" in other.stderr
