"""The page's own code in a real browser computes what Python's ONNX Runtime does with the same model.

The server's tests need no browser. The others are skipped where Chromium or ONNX Runtime Web is missing.
"""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2mrf_deploy import runtimes, sample_photographs, web, weights
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.cli import main
from r2mrf_deploy.errors import ArtifactError, RuntimeUnavailable, UsageError
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.convert import convert_artifact
from r2mrf_deploy.export.options import ExportOptions, PrecisionOptions
from r2mrf_deploy.fitting import as_input
from r2mrf_deploy.metrics import agreement
from r2mrf_deploy.parity.compare import FLAT, TOLERANCES, photographs_for
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.runtimes import OpenOptions, Runner
from r2mrf_deploy.runtimes.web import browser, runner
from r2mrf_deploy.runtimes.web.browser import Browser, BrowserFailed
from r2mrf_deploy.runtimes.web.site import Server
from tests.conftest import Once, TinyOnnx, heard
from tests.web_pages import needs_browser, small_library, unchecked

Page = Callable[[Path], Artifact]
SUMMATION = 2e-5
"""FP32, the same model in both: another order of summation. 3e-6 was measured."""


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """`page(model)`: the page of an ONNX artifact, not yet compared with anything."""
    needs_browser()
    return lambda model: unchecked(model, tmp_path / f"site-{model.stem}")


def both(made: Artifact, threads: int | None = None, runtime: str = "web") -> tuple[Runner, Runner]:
    """The page in the browser, and Python's ONNX Runtime with the page's own model."""
    model = made.path.with_name(made.header.files.model.name)
    own = runtimes.open(model, "onnxruntime")
    return runtimes.open(made, runtime, options=OpenOptions(threads=threads)), own


def photographs(made: Artifact, *sizes: tuple[int, int]) -> list[np.ndarray]:
    """Photographs as a page's input; where sizes are given, parts of one photograph of these sizes."""
    found = photographs_for(None)
    assert made.contract is not None
    (spec,) = made.contract.inputs
    preprocess = made.contract.preprocess
    assert preprocess is not None
    parts = [np.ascontiguousarray(found[0][:height, :width]) for height, width in sizes] or found
    return [as_input(p, spec, preprocess, made.contract.profile(spec.name)) for p in parts]


def compared(made: Artifact, arrays: list[np.ndarray], **how: Any) -> dict[str, float]:
    """The largest difference of each output over all inputs."""
    in_browser, in_python = both(made, **how)
    largest: dict[str, float] = {}
    with in_browser, in_python:
        for array in arrays:
            got = in_browser.run({in_browser.inputs[0].name: array})
            wanted = in_python.run({in_python.inputs[0].name: array})
            assert list(got) == [s.name for s in in_browser.outputs] and set(got) == set(wanted)
            assert wanted["map"].std() > FLAT
            for name in got:
                assert (got[name].shape, got[name].dtype) == (wanted[name].shape, wanted[name].dtype)
                difference = float(np.abs(got[name].astype(float) - wanted[name].astype(float)).max())
                spread = 1.0 if name == "map" else float(wanted[name].astype(float).std())
                largest[name] = max(largest.get(name, 0.0), difference / spread)
    return largest


@pytest.mark.artifact
@pytest.mark.parametrize("threads", [1, 2])
def test_the_shipped_network_at_odd_sizes(threads: int, page: Page) -> None:
    made = page(weights.artifact("r2mrf-lite"))
    arrays = photographs(made) + photographs(made, (117, 235), (234, 118), (97, 129), (64, 64), (320, 320))
    assert len({a.shape for a in arrays}) >= 6
    assert compared(made, arrays, threads=threads)["map"] < SUMMATION


@pytest.mark.artifact
def test_every_step_of_every_branch(exported: Path, page: Page) -> None:
    made = page(exported)
    found = compared(made, photographs(made))
    assert len(found) > 5 and found.pop("map") < TOLERANCES["fp32"].map  # untrained weights pass roundings on
    assert max(found.values()) < TOLERANCES["fp32"].logits


@pytest.fixture(scope="session")
def trained(once: Once, album: Path) -> Callable[[str], Path]:
    """`trained(precision)`: the shipped network at 192x192 in a reduced precision."""

    def fill(precision: str, folder: Path) -> None:
        plain = export_artifact(weights.checkpoint("r2mrf-lite"), folder / "fp32.onnx", ExportOptions(size=(192, 192)))
        options = PrecisionOptions(precision, calibration=album if precision == "int8" else None)  # type: ignore[arg-type]
        convert_artifact(plain.path, folder / "lite.onnx", options)

    return lambda precision: once(f"web-{precision}", partial(fill, precision)) / "lite.onnx"


@pytest.mark.artifact
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_reduced_precision(precision: str, trained: Callable[[str], Path], page: Page) -> None:
    """FP16 is computed in FP32 in both. INT8 is rounded at other places by kernels for other processors."""
    made = page(trained(precision))
    in_browser, in_python = both(made)
    bound = TOLERANCES[precision]
    with in_browser, in_python:
        assert bool(in_browser.emulates) == (precision == "fp16")
        for array in photographs(made):
            got, wanted = (r.run({"image": array})["map"] for r in (in_browser, in_python))
            assert wanted.std() > FLAT
            assert np.abs(got - wanted).max() < (SUMMATION if precision == "fp16" else bound.map)
            assert np.abs(got - wanted).mean() < bound.mean
            assert 1 - agreement(got, wanted) < bound.f


FAMILIES = [
    ("br2net-vgg16", {"width": "16"}),
    ("defusionnet", {"width": "8"}),
    ("btbnet", {"width": "0.25"}),
    ("btbcrl", {"width": "0.25"}),
]


@pytest.mark.artifact
@pytest.mark.parametrize(("preset", "settings"), FAMILIES, ids=[preset for preset, _ in FAMILIES])
def test_the_other_networks(preset: str, settings: dict[str, str], tmp_path: Path, page: Page) -> None:
    checkpoint = Checkpoint.init(preset, settings).save(tmp_path / "x.pth")
    graph = export_artifact(checkpoint, tmp_path / "x.onnx", ExportOptions(size=(64, 96)))
    assert graph.manifest.parity[0]["verdict"] == "pass"
    made = page(graph.path)
    assert compared(made, photographs(made))["map"] < TOLERANCES["fp32"].map


@pytest.mark.artifact
@pytest.mark.parametrize("io", ["image", "tensor"])
def test_webgpu(io: str, export: Callable[..., Path], page: Page) -> None:
    made = page(export(io=io))
    if not (state := runtimes.get("web-webgpu").availability()).ok:
        pytest.skip(f"needs WebGPU: {state.reason}")
    # what is summed in which order differs from one adapter to another: FP32's bound against PyTorch
    assert compared(made, photographs(made), runtime="web-webgpu")["map"] < TOLERANCES["fp32"].map


@pytest.mark.artifact
def test_the_exporter_compares_the_page_in_the_browser(small: Path, tmp_path: Path) -> None:
    needs_browser()
    made = export_artifact(small, tmp_path / "site", ExportOptions(size=(96, 128)))
    assert made.parity is not None and made.parity.verdict == "pass" and "Chromium" in made.parity.device
    assert made.manifest.parity[0]["runtime"] == "web" and "runs in a browser" in made.note
    assert Artifact.open(tmp_path / "site").header.title == "small"


@pytest.mark.artifact
def test_without_a_browser_the_page_is_written_and_not_compared(
    export: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_browser()
    monkeypatch.setattr(browser, "program", lambda: None)
    made = build_artifact(export(), tmp_path / "site")
    assert made.parity is not None and made.parity.verdict == "not run" and "there is no Chromium" in made.parity.reason


@pytest.mark.artifact
def test_the_commands_take_a_folder(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_browser()
    monkeypatch.chdir(tmp_path)
    from PIL import Image

    Image.fromarray(sample_photographs.sample("coffee")).save("photo.png")
    assert main(["export", str(small), "-o", "a.onnx", "-o", "site/", "--size", "96x128"]) == 0
    assert main(["parity", str(small), "site/"]) == 0
    assert main(["inspect", "site/"]) == 0
    assert "onnxruntime-web" in capsys.readouterr().out
    few = ["--iterations", "2", "--duration", "0", "--warmUp", "0"]
    assert main(["bench", "site/", "a.onnx", *few]) == 0
    assert main(["bench", "site/", "--runtime", "web", "--threads", "1", *few]) == 0
    assert "1 thread" in capsys.readouterr().out
    assert main(["predict", "site/", "photo.png", "-o", "out"]) == 0
    assert list(Path("out").iterdir())


@pytest.mark.artifact
def test_a_time_is_that_of_the_browser_s_clock(export: Callable[..., Path], page: Page) -> None:
    made = page(export())
    in_browser, in_python = both(made, threads=1)
    with in_browser, in_python:
        array = photographs(made)[0]
        begun = time.perf_counter() * 1e3
        outputs, timing = in_browser.run_timed({"image": array})
        ended = time.perf_counter() * 1e3
        assert 0 < timing.compute == timing.latency < ended - begun
        assert begun <= timing.start_compute < timing.end_compute <= ended
        assert np.array_equal(outputs["map"], in_browser.run({"image": array})["map"])


def living() -> set[int]:
    """The processes that this one started, and those that they started."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in found.splitlines():
        pid, parent, name = line.split(None, 2)
        if name.strip() != "ps":
            children.setdefault(int(parent), []).append(int(pid))
    alive, todo = set(), [os.getpid()]
    while todo:
        alive |= (new := set(children.get(todo.pop(), ())))
        todo += new
    return alive


def profiles() -> set[str]:
    return {p.name for p in Path(tempfile.gettempdir()).glob("playwright*")}


@pytest.fixture
def opened(export: Callable[..., Path], page: Page) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    made = page(export())
    with runtimes.open(made, "web", options=OpenOptions(threads=1)) as run:
        yield run, {"image": photographs(made)[0]}


@pytest.mark.artifact
def test_a_browser_leaves_nothing_behind(export: Callable[..., Path], page: Page, monkeypatch: Any) -> None:
    made = page(export())
    own = tempfile.TemporaryDirectory(prefix="w")  # Chromium's sockets need a short path
    monkeypatch.setenv("TMPDIR", own.name)
    monkeypatch.setattr(tempfile, "tempdir", None)
    before = living()
    with runtimes.open(made, "web"):
        assert len(living()) > len(before) and profiles()
    deadline = time.monotonic() + 20
    while (living() - before or profiles()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not living() - before and not profiles()
    own.cleanup()
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.mark.artifact
def test_a_browser_that_dies_gives_an_error(opened: tuple[Any, dict[str, np.ndarray]]) -> None:
    run, arrays = opened
    run.run(arrays)
    root = min(p for p in living() if "--remote-debugging-pipe" in Path(f"/proc/{p}/cmdline").read_text())
    os.kill(root, signal.SIGKILL)
    with pytest.raises(ArtifactError, match="failed in Chromium"):
        run.run(arrays)
    run.close()
    run.close()


@pytest.mark.artifact
def test_an_inference_can_be_given_up(opened: tuple[Any, dict[str, np.ndarray]]) -> None:
    run, arrays = opened
    run._browser.call("async () => { window.r2mrf.run = () => new Promise(() => {}); }", seconds=10)
    timer = threading.Timer(0.5, run.abandon)
    timer.start()
    with pytest.raises(ArtifactError, match="it was given up"):
        run.run(arrays)
    timer.join()


@pytest.mark.artifact
def test_a_page_that_hangs_is_not_waited_for(
    opened: tuple[Any, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, arrays = opened
    monkeypatch.setattr(runner, "RUNNING", 0.5)
    run._browser.call("async () => { window.r2mrf.run = () => new Promise(() => {}); }", seconds=10)
    with pytest.raises(ArtifactError, match=r"did not answer within 0\.5 s"):
        run.run(arrays)


@pytest.mark.artifact
def test_a_page_without_its_model_says_so(export: Callable[..., Path], page: Page) -> None:
    made = page(export())
    model = made.path.with_name(made.header.files.model.name)
    model.write_bytes(model.read_bytes()[:-100])  # after it was opened and verified
    with pytest.raises(ArtifactError, match=r"index\.html does not run in Chromium"):
        runtimes.open(made, "web")


@pytest.mark.artifact
def test_many_threads_may_call_it(export: Callable[..., Path], page: Page) -> None:
    made = page(export(dynamic=True))
    with Predictor.open(made, "web", options=OpenOptions(threads=1)) as predictor:
        photographs = [sample_photographs.sample(name) for name in ("chelsea", "coffee", "astronaut")] * 2
        together = list(predictor.map(photographs))
        assert all(np.array_equal(a, predictor(p)) for a, p in zip(together, photographs, strict=True))


@pytest.mark.artifact
def test_the_browser_says_what_a_script_throws() -> None:
    needs_browser()
    with Browser() as opened:
        opened.blank()
        assert opened.call("async (x) => x + 1", 2, seconds=10) == 3
        with pytest.raises(BrowserFailed, match=r"^too bad$"):
            opened.call("async () => { throw new Error('too bad'); }", seconds=10)
    with pytest.raises(BrowserFailed):
        opened.call("async () => 1", seconds=10)


def test_a_missing_browser_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    monkeypatch.delenv(browser.VARIABLE, raising=False)
    state = runtimes.get("web").availability()
    assert not state.ok and state.reason in ("there is no Chromium", "playwright is not installed")
    own = tmp_path / "chromium-1200" / "chrome-linux" / "chrome"
    own.parent.mkdir(parents=True)
    own.touch()
    assert browser.program() == own
    monkeypatch.setenv(browser.VARIABLE, "/nowhere/chrome")
    assert browser.program() is None
    with pytest.raises(RuntimeUnavailable, match=r"names no program: /nowhere/chrome|playwright is not installed"):
        Browser()


# The server


@pytest.fixture
def served(tiny_onnx: TinyOnnx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Artifact, Server]]:
    from r2mrf_deploy.web import library

    found = small_library(tmp_path / "package")
    monkeypatch.setattr(library, "find", lambda: found)
    made = unchecked(tiny_onnx(), tmp_path / "site")
    with Server(made) as server:
        yield made, server


def ask(
    server: Server, address: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, dict, bytes]:
    """Send exactly this address, which clients that tidy addresses up would not."""
    host, _, port = server.address.removeprefix("http://").rstrip("/").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request(method, address, body, headers)
    answer = connection.getresponse()
    found = answer.status, dict(answer.headers), answer.read()
    connection.close()
    return found


def test_every_file_of_the_page_is_served(served: tuple[Artifact, Server]) -> None:
    made, server = served
    for name in ("index.html", *made.header.companions):
        status, headers, body = ask(server, f"/{name}")
        assert status == 200 and body == made.path.with_name(name).read_bytes()
        assert headers.items() >= web.headers(name).items() and "Content-Encoding" not in headers
    assert ask(server, "/")[2] == ask(server, "/?ui=0&threads=2")[2] == made.path.read_bytes()
    assert ask(server, "/sw.js")[1]["Content-Type"].startswith("text/javascript")
    status, headers, body = ask(server, "/index.html", "HEAD")
    assert (status, body) == (200, b"") and int(headers["Content-Length"]) == made.path.stat().st_size


@pytest.mark.parametrize(
    "address",
    [
        *("/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "//secret.txt", "/./index.html", "/mine.txt"),
        *("/index.html/", "/pictures/", "/pictures/a.png", "/index.html.json", "/nothing", "/exchange/"),
        *("/%00", "/\\..\\secret.txt"),
    ],
)  # fmt: skip
def test_nothing_else_is_served(address: str, served: tuple[Artifact, Server]) -> None:
    made, server = served
    folder = made.path.parent
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "mine.txt").write_text("secret")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_text("secret")
    status, _, body = ask(server, address)
    assert status == 404 and b"secret" not in body
    assert ask(server, address, "POST", b"x")[0] == 404


def test_another_site_whose_name_leads_here_reads_nothing(served: tuple[Artifact, Server]) -> None:
    _, server = served
    port = server.address.rsplit(":", 1)[1].rstrip("/")
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        assert ask(server, "/", Host=host)[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "[", ""):
        assert ask(server, "/", Host=host)[0] == 421, host
    assert ask(server, "http://[", Host=f"127.0.0.1:{port}")[0] == 400


def test_a_file_that_was_changed_is_not_sent(served: tuple[Artifact, Server]) -> None:
    made, server = served
    model = made.header.files.model.name
    made.path.with_name(model).write_bytes(b"another")
    status, _, body = ask(server, f"/{model}")
    assert status == 500 and b"was changed" in body


def test_arrays_are_exchanged_at_an_address_that_nobody_guesses(served: tuple[Artifact, Server]) -> None:
    _, server = served
    address = server.exchange(b"inputs")
    assert len(address) > 40 and address != server.exchange(b"others")
    status, headers, body = ask(server, address)
    assert (status, body, headers["Cache-Control"]) == (200, b"inputs", "no-store")
    assert ask(server, address, "POST", b"outputs")[0] == 200
    assert server.exchanged.pop(address) == b"outputs" and ask(server, address)[0] == 404


def test_a_taken_port_is_refused(served: tuple[Artifact, Server]) -> None:
    made, server = served
    port = int(server.address.rstrip("/").rpartition(":")[2])
    with pytest.raises(RuntimeUnavailable, match="choose another port"):
        Server(made, port=port)


def test_messages_keep_names_types_and_shapes() -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(1, 2, 3),
        "ä": np.zeros((0, 3), np.float16),
        "b": np.arange(5, dtype=np.uint8),
    }
    found = runner._unpacked(runner._packed(arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)


def test_serve_shows_a_page_until_it_is_stopped(served: tuple[Artifact, Server]) -> None:
    made, _ = served
    command = [sys.executable, "-m", "r2mrf_deploy", "serve", str(made.path.parent), "--http-port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("http: ").strip()
        assert address.startswith("http://127.0.0.1:")
        import urllib.request

        with urllib.request.urlopen(address, timeout=10) as answer:
            assert answer.read() == made.path.read_bytes()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_options_of_inference_servers_are_refused(
    served: tuple[Artifact, Server], capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = served
    assert main(["serve", str(made.path.parent), "--threads", "2"]) == 2
    assert "--threads has no meaning for a web page" in capsys.readouterr().err
    assert main(["serve", str(made.path.parent), str(made.path)]) == 2
    assert "serve it alone" in capsys.readouterr().err


def test_a_runtime_of_another_format_is_refused(served: tuple[Artifact, Server]) -> None:
    made, _ = served
    with pytest.raises(UsageError, match=r"onnxruntime does not open \.html files; web or web-webgpu does"):
        runtimes.open(made, "onnxruntime")
