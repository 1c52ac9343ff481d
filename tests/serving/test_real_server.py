"""A real tritonserver with the shipped weights: `make serve-env` sets it up, `make serve-test` runs all of these.

It is started by the command line of that environment, as a user starts it.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import images, predict, sample_photographs, weights
from r2mrf_deploy.predictor import Predictor
from tests.serving.test_pipeline import png_header
from tests.serving.test_server import free_port

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "build/serve-env/bin/r2mrf"
pytestmark = [
    pytest.mark.artifact,
    pytest.mark.skipif(not PROGRAM.exists(), reason="needs Triton's environment: make serve-env"),
]
NAME = weights.DEFAULT
FILES = f"{NAME}_jpeg"
OUTPUTS = ("png", "map", "scores", "verdict")


@dataclass
class Server:
    """`r2mrf serve` in a process of its own."""

    process: subprocess.Popen[str]
    ports: tuple[int, int, int]

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def grpc(self) -> str:
        return f"grpc://127.0.0.1:{self.ports[1]}"

    def post(self, path: str, body: bytes, **headers: str) -> bytes:
        request = Request(f"{self.http}/{path}", body, {k.replace("_", "-"): v for k, v in headers.items()})
        with urlopen(request, timeout=60) as answer:
            return answer.read()

    def descendants(self) -> dict[int, str]:
        """Process -> name, of the command and whatever it started."""
        known = {self.process.pid: "r2mrf"}
        rows = [(int(s[0]), int(s[-1][1]), s[1]) for s in map(_stat, Path("/proc").glob("[0-9]*")) if s]
        for _ in range(4):
            known |= {pid: name for pid, parent, name in rows if parent in known}
        return known

    def memory(self) -> int:
        """Resident memory in bytes, of all of them."""
        page = os.sysconf("SC_PAGE_SIZE")
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for pid in self.descendants())

    def kill(self) -> None:
        """As the kernel does when memory is short: without a word. What nobody could remove then is removed here."""
        left = [*left_of(self.name()), Path(self.option("model-repository")).parent]
        for pid in self.descendants():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def name(self) -> str:
        """How its folder and its shared memory are called."""
        return self.option("backend-config").rpartition("=")[2]

    def option(self, name: str) -> str:
        """What Triton was started with."""
        words = [w for pid in self.descendants() for w in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]
        return next(word.partition("=")[2] for word in words if word.startswith(f"--{name}="))

    def stop(self) -> tuple[int, float]:
        """The exit code after SIGTERM, and the seconds that it took."""
        before = time.monotonic()
        self.process.terminate()
        return self.process.wait(60), time.monotonic() - before


def left_of(name: str) -> list[Path]:
    """The folder and the shared memory of a server."""
    return [*Path("/dev/shm").glob(f"{name}*"), *Path(tempfile.gettempdir()).glob(f"{name}*")]


def _stat(process: Path) -> Any:
    try:
        before, _, after = (process / "stat").read_text().rpartition(")")
    except OSError:
        return None
    pid, _, name = before.partition(" (")
    return pid, name, after.split()


def started(ports: tuple[int, int, int] | None = None) -> Server:
    http, grpc, metrics = ports = ports or (free_port(), free_port(), free_port())
    command = [PROGRAM, "serve", NAME, "--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics, "--json"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    lines: list[str] = []
    while not lines or lines[-1] != "}\n":
        if not (line := process.stdout.readline()):
            pytest.fail(process.stderr.read())
        lines.append(line)
    said = json.loads("".join(lines))
    assert said["models"] == [NAME, f"{NAME}_decode", f"{NAME}_draw", FILES]
    return Server(process, ports)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = started()
    yield running
    assert running.stop()[0] == 0


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of many sizes and aspects, some turned by EXIF, one of 16 bits, one so large that the decoder reduces it."""
    folder = tmp_path_factory.mktemp("photographs")
    samples = [sample_photographs.sample(name) for name in (sample_photographs.DEMO, "coffee", "astronaut")]
    sizes = [(97, 131), (240, 180), (300, 420), (64, 400), (33, 31), (401, 401), (150, 150), (1, 1)]
    for number, size in enumerate(sizes):
        exif = Image.Exif()
        exif[274] = (1, 6, 3)[number % 3]
        pixels = images.resize(samples[number % 3], size)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", exif=exif, quality=92)
    grey = images.resize(samples[0], (200, 260)).mean(2) * 257
    Image.fromarray(grey.astype(np.uint16)).save(folder / "sixteen.png")
    Image.fromarray(np.kron(samples[1], np.ones((9, 9, 1), np.uint8))).save(folder / "large.jpg", quality=92)
    return folder


@pytest.fixture(scope="module")
def local(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, predict.Prediction]:
    """What `predict` makes of each, here: file name -> prediction."""
    output = tmp_path_factory.mktemp("local")
    with Predictor.open(weights.artifact(NAME)) as predictor:
        found = list(predict.predict(predictor, images.find([photographs]), output, predict.Outputs(("map", "scores"))))
    assert all(each.error is None for each in found)
    return {Path(each.source).name: each for each in found}


Send = Callable[..., dict[str, np.ndarray]]


@pytest.fixture(params=["http", "grpc"])
def send(request: pytest.FixtureRequest, server: Server) -> Iterator[Send]:
    """`send(content, outputs)`: the outputs for a file, by NVIDIA's own client."""
    if request.param == "http":
        import tritonclient.http as triton
    else:
        import tritonclient.grpc as triton
    client = triton.InferenceServerClient(f"127.0.0.1:{server.ports[0 if request.param == 'http' else 1]}")
    yield lambda content, outputs=OUTPUTS: _infer(triton, client, content, outputs)
    client.close()


def _infer(triton: Any, client: Any, content: bytes, outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
    given = triton.InferInput("file", [1, 1], "BYTES")
    given.set_data_from_numpy(np.array([[content]], np.object_))
    answer = client.infer(FILES, [given], outputs=[triton.InferRequestedOutput(name) for name in outputs])
    return {name: answer.as_numpy(name)[0] for name in outputs}


def test_a_file_gets_what_predict_writes(photographs: Path, local: dict[str, predict.Prediction], send: Send) -> None:
    for file in images.find([photographs]):
        wanted, found = local[file.name], send(file.read_bytes())
        assert wanted.map is not None and wanted.scores is not None
        assert found["png"][0] == wanted.map.read_bytes(), file.name
        assert json.loads(found["scores"][0]) == wanted.scores.to_dict(), file.name
        assert found["verdict"].sum() == 1 and found["map"].dtype == np.float32


def test_curl_can_do_it(server: Server, photographs: Path, local: dict[str, predict.Prediction]) -> None:
    """A bare file, without any client: the answer's length of the header, and the outputs after it."""
    content = (photographs / "1.jpg").read_bytes()
    path = f"{server.http}/v2/models/{FILES}/infer"
    with urlopen(Request(path, content, {"Inference-Header-Content-Length": "0"}), timeout=60) as answer:
        body, header = answer.read(), int(answer.headers["Inference-Header-Content-Length"])
    wanted = local["1.jpg"].map
    assert wanted is not None and wanted.read_bytes() in body[header:]


def test_predict_is_the_same_with_a_server(
    server: Server, photographs: Path, local: dict[str, predict.Prediction], tmp_path: Path
) -> None:
    """The network runs there, all else here: to the byte, over both protocols."""
    for address in (server.http, f"{server.grpc}/{NAME}"):
        output = tmp_path / address.partition(":")[0]
        _predict(photographs, output, "--server", address)
        for name, wanted in local.items():
            assert wanted.map is not None
            assert (output / wanted.map.name).read_bytes() == wanted.map.read_bytes(), (address, name)


def _predict(*arguments: object) -> str:
    command = [sys.executable, "-m", "r2mrf_deploy", "predict", *map(str, arguments), "--save", "map,scores"]
    command[command.index("predict") + 2 : command.index("predict") + 2] = ["-o"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_parity_with_the_checkpoint(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    from r2mrf_deploy.cli import main

    assert main(["parity", NAME, "--server", f"{server.grpc}/{NAME}", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "pass" and found["reference_spread"] > 0.1 and found["rounding"] == "fp16"


HOSTILE = {
    "a bomb": (png_header(26755, 26755), "million pixels"),
    "a large picture": (png_header(11000, 11000), "at most 100,000,000 are taken"),
    "nothing": (b"", "is empty"),
    "no picture": (b"<svg onload='alert(1)'/>", "not an image"),
    "too many bytes": (b"\xff\xd8" * (33 << 20), "at most 67,108,864 are taken"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_and_the_next_is_answered(what: str, send: Send, photographs: Path) -> None:
    content, said = HOSTILE[what]
    good = (photographs / "0.jpg").read_bytes()
    with pytest.raises(Exception, match=said):
        send(content)
    assert send(good)["png"][0].startswith(b"\x89PNG")
    if what == "no picture":
        with pytest.raises(Exception, match="is damaged"):
            send(good[: len(good) // 2])
        assert send(good)["png"][0].startswith(b"\x89PNG")


def test_hostile_requests_are_refused_and_the_next_is_answered(server: Server, photographs: Path) -> None:
    def refused(path: str, body: bytes = b"{}", **headers: str) -> str:
        with pytest.raises(HTTPError) as error:
            server.post(path, body, **headers)
        return f"{error.value.code} {error.value.read().decode()}"

    assert "400" in refused("v2/models/nothing/infer") or "404" in refused("v2/models/nothing/infer")
    assert "unknown model" in refused("v2/models/nothing/infer")
    declared = json.dumps({"inputs": [{"name": "file", "shape": [1, 1], "datatype": "BYTES",
                                       "parameters": {"binary_data_size": 2 << 30}}]}).encode()  # fmt: skip
    for body in (
        declared + b"x" * 9,
        declared.replace(b"2147483648", b"9") + (2 << 29).to_bytes(4, "little") + b"x" * 5,
    ):
        assert "400" in refused(
            f"v2/models/{FILES}/infer", body, Inference_Header_Content_Length=str(body.index(b"}]}") + 3)
        )
    large = json.dumps({"inputs": [{"name": "image", "shape": [1, 1300, 8, 3], "datatype": "UINT8",
                                    "parameters": {"binary_data_size": 1300 * 24}}]}).encode()  # fmt: skip
    said = refused(f"v2/models/{NAME}/infer", large + bytes(1300 * 24), Inference_Header_Content_Length=str(len(large)))
    assert "at most [1280, 1280, 3] is taken" in said
    with socket.create_connection(("127.0.0.1", server.ports[0])) as stalled:  # 2 GB are announced, and never come
        head = f"POST /v2/models/{FILES}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {2 << 30}\r\n\r\n"
        stalled.sendall(head.encode())
        answer = server.post(
            f"v2/models/{FILES}/infer", (photographs / "0.jpg").read_bytes(), Inference_Header_Content_Length="0"
        )
        assert b"\x89PNG" in answer


def test_a_request_names_no_file_of_the_server(server: Server, tmp_path: Path) -> None:
    """Interfaces of Triton that take a path or a key of shared memory are closed, and models cannot be loaded."""
    target = tmp_path / "written"
    trials = {
        "v2/systemsharedmemory/region/mine/register": {"key": "/any", "offset": 0, "byte_size": 64},
        "v2/logging": {"log_file": str(target), "log_verbose_level": 1},
        "v2/trace/setting": {"trace_file": str(target), "trace_level": ["TIMESTAMPS"], "trace_rate": "1"},
        f"v2/repository/models/{NAME}/unload": {},
        "v2/repository/models/other/load": {"parameters": {"config": "{}", "file:1/model.py": "aW1wb3J0IG9z"}},
    }
    for path, body in trials.items():
        with pytest.raises(HTTPError) as error:
            server.post(path, json.dumps(body).encode())
        said = error.value.read().decode()
        assert "restricted" in said or "not allowed" in said, (path, said)
    assert not target.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net")
def test_nothing_listens_beyond_the_loopback_interface(server: Server) -> None:
    listening = [
        line.split()[1].split(":")
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    ]
    ours = {address for address, port in listening if int(port, 16) in server.ports}
    assert ours and ours <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, in IPv4 and within IPv6


def _clients(server: Server, folder: Path, many: int, seconds: float, requests: int) -> tuple[int, list[str]]:
    """The number of answers, and the errors, of clients that send files of mixed sizes for some time and some number."""
    import tritonclient.grpc as triton

    files = [file.read_bytes() for file in images.find([folder]) if file.stat().st_size < 60_000]
    assert len(files) > 5
    end, lock, left = time.monotonic() + seconds, threading.Lock(), [requests]
    errors: list[str] = []

    def client(number: int) -> int:
        order, answers = random.Random(number), 0
        with triton.InferenceServerClient(f"127.0.0.1:{server.ports[1]}") as connection:
            while True:
                with lock:
                    if left[0] <= 0 and time.monotonic() > end:
                        return answers
                    left[0] -= 1
                try:
                    assert _infer(triton, connection, order.choice(files), OUTPUTS)["png"][0].startswith(b"\x89PNG")
                    answers += 1
                except Exception as e:
                    errors.append(str(e))

    with ThreadPoolExecutor(many) as pool:
        return sum(pool.map(client, range(many))), errors


def _counts(server: Server) -> tuple[int, int]:
    """Inferences and executions of the network so far."""
    with urlopen(f"{server.http}/v2/models/{NAME}/stats", timeout=60) as answer:
        [found] = json.loads(answer.read())["model_stats"]
    return found["inference_count"], found["execution_count"]


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_64_clients_at_once(server: Server, photographs: Path, seconds: float) -> None:
    """None gets an error, and what waits is computed together."""
    before = _counts(server)
    answers, errors = _clients(server, photographs, 64, seconds, 0)
    assert not errors and answers >= 64
    inferences, executions = (now - then for now, then in zip(_counts(server), before, strict=True))
    assert inferences == answers and executions < inferences / 1.5


@pytest.mark.parametrize("requests", [500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow(server: Server, photographs: Path, requests: int) -> None:
    """After the first requests, which fill pools and caches: not by more than a tenth, and a photograph's memory."""
    _clients(server, photographs, 16, 0, max(300, requests // 10))
    before = server.memory()
    answers, errors = _clients(server, photographs, 16, 0, requests)
    assert not errors and answers >= requests
    assert server.memory() < 1.1 * before + (32 << 20)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_client_survives_a_server_that_is_killed(scheme: str, photographs: Path, tmp_path: Path) -> None:
    """It is killed and started again in the middle; all photographs are done, and equal to the local ones."""
    many = tmp_path / "many"
    many.mkdir()
    for number in range(120):
        content = (photographs / f"{number % 7}.jpg").read_bytes()
        (many / f"{number:03}.jpg").write_bytes(content + number.to_bytes(2, "big"))  # after its end, no decoder looks
    first = started()
    try:
        address = first.http if scheme == "http" else first.grpc
        command = [sys.executable, "-m", "r2mrf_deploy", "predict", many, "-o", tmp_path / "out", "--save", "map",
                   "--server", f"{address}/{NAME}", "--retry-for", "120"]  # fmt: skip
        with subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as client:
            assert client.stdout is not None
            said = [client.stdout.readline() for _ in range(10)]
            first.kill()
            time.sleep(2)
            assert client.poll() is None, said
            first = started(first.ports)
            rest = client.stdout.read()
        assert client.returncode == 0, rest
        assert len(list((tmp_path / "out").glob("*_map.png"))) == 120
    finally:
        first.stop()
    with Predictor.open(weights.artifact(NAME)) as predictor:
        for number in (0, 60, 119):
            wanted = images.png(images.grey(predictor(images.read(many / f"{number:03}.jpg"))))
            assert (tmp_path / "out" / f"{number:03}_map.png").read_bytes() == wanted


def test_a_model_that_dies_ends_the_server() -> None:
    """Triton would say that it is ready, and answer with errors. Whoever watches the command starts it anew."""
    first = started()
    try:
        stubs = [pid for pid, name in first.descendants().items() if name.startswith("triton_python")]
        os.kill(stubs[0], signal.SIGKILL)
        assert first.process.wait(30) == 2
        assert (
            first.process.stderr is not None and "a python model of the server has died" in first.process.stderr.read()
        )
    finally:
        first.stop()


def test_it_stops_cleanly() -> None:
    """Nothing is left of it: no process, no shared memory, no folder."""
    running = started()
    processes, name = running.descendants(), running.name()
    assert len(processes) >= 5 and len(left_of(name)) >= 4  # the command, the server, three models and their memory
    code, seconds = running.stop()
    assert code == 0 and seconds < 20
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]
    assert not left_of(name)


def test_a_port_in_use_is_an_error_of_one_line(server: Server) -> None:
    command = [PROGRAM, "serve", NAME, "--http-port", server.ports[0], "--grpc-port", free_port()]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "--http-port" in done.stderr and "choose another" in done.stderr


def test_pictures_of_the_map_are_maps(send: Send, photographs: Path) -> None:
    """The picture has the photograph's size, upright."""
    for name, size in (("1.jpg", (240, 180)), ("3.jpg", (64, 400))):
        picture = Image.open(io.BytesIO(send((photographs / name).read_bytes(), ("png",))["png"][0]))
        turned = images.size(photographs / name)
        assert picture.mode == "L" and (picture.height, picture.width) == turned
        assert sorted(turned) == sorted(size)
