"""`r2mrf serve-repo` and `r2mrf serve`: what is printed, and how a server ends."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r2mrf_deploy.cli import main
from r2mrf_deploy.serving import server
from tests.conftest import TinyOnnx

pytest.importorskip("tritonclient.grpc", reason="needs tritonclient")


@pytest.fixture
def net(tiny_onnx: TinyOnnx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return tiny_onnx("net").name


def test_what_was_written_is_shown(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve-repo", net, "-o", "repo", "--target-ms", "100", "--backend", "python"]) == 0
    shown = capsys.readouterr().out
    for part in ("net_decode", "net_draw", "net_jpeg", "ensemble", "UINT8 [64, 64, 3]"):
        assert part in shown
    assert "repo: start it with r2mrf serve repo" in shown
    assert main(["serve-repo", net, "-o", "native"]) == 0
    assert "tritonserver --model-repository native" in capsys.readouterr().out


def test_json_is_one_document(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["serve-repo", net, "-o", "repo", "--no-jpeg", "--backend", "python", "--target-ms", "50", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "repository": "repo",
        "server": "triton",
        "models": [
            {
                "name": "net", "backend": "python", "max_batch": 8, "delay_ms": 5.0,
                "inputs": {"image": "UINT8 [64, 64, 3]"}, "outputs": {"map": "FP32 [1, 64, 64]"},
            }
        ],
    }  # fmt: skip


def test_openvino_model_server(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino", reason="needs openvino")
    assert main(["serve-repo", net, "-o", "repo", "--server", "ovms"]) == 0
    assert "ovms --config_path repo/config.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-o repo", "Missing argument 'ARTIFACT"),
        ("net.onnx", "Missing option '-o'"),
        ("none.onnx -o repo", "none.onnx: no such file"),
        ("net.onnx -o repo --max-batch 2", "--max-batch: the batch of net.onnx is fixed at 1"),
        ("net.onnx -o repo --backend tensorrt", "--backend tensorrt does not open net.onnx: choose onnxruntime or"),
        ("net.onnx -o repo --target-ms -1", "--target-ms must be above 0, and 1,000,000 at most, not -1"),
        ("net.onnx -o net.onnx", "cannot write net.onnx: it is not a folder"),
        ("net.onnx -o repo --server ovms --gpu", "--gpu: it is for Triton"),
        ("r2mrf-edge -o repo", "is a checkpoint: export it first"),
    ],
)
def test_errors_are_one_line(arguments: str, message: str, net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve-repo", *arguments.split()]) == 2
    shown = capsys.readouterr().err.strip()
    assert message in shown and len(shown.splitlines()) == 1
    assert not Path("repo").exists()


class Fake:
    """A server: what it was started with, and how it ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ends: Any) -> None:
        self.calls: list[dict[str, Any]] = []
        self.models: list[str] = []
        self.stopped = False
        self.ends = ends
        monkeypatch.setattr(server, "serve", self.serve)
        monkeypatch.setattr(server, "find", lambda program: SimpleNamespace(kind="triton", path=program))

    @contextmanager
    def serve(self, repository: Path, **given: Any) -> Iterator[SimpleNamespace]:
        self.calls.append({"repository": repository, **given})
        self.models = sorted(p.name for p in repository.iterdir())
        addresses = {"http": "http://127.0.0.1:8000", "grpc": "grpc://127.0.0.1:8001", "metrics": "http://..."}
        try:
            yield SimpleNamespace(addresses=addresses, models=self.models, wait=self.ends)
        finally:
            self.stopped = True


def interrupted() -> int:
    raise KeyboardInterrupt


def terminated() -> int:
    signal.raise_signal(signal.SIGTERM)
    return 1


@pytest.mark.parametrize("ends", [interrupted, terminated])
def test_a_server_that_is_stopped_has_done_its_work(
    ends: Any, net: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake, before = Fake(monkeypatch, ends), signal.getsignal(signal.SIGTERM)
    assert main(["serve", net, "--http-port", "8100", "--host", "0.0.0.0", "--log", "log", "--max-batch", "2"]) == 0
    assert fake.stopped and signal.getsignal(signal.SIGTERM) == before
    (call,) = fake.calls
    assert (call["http_port"], call["grpc_port"], call["host"], call["log"]) == (8100, 8001, "0.0.0.0", Path("log"))
    assert fake.models == ["net", "net_decode", "net_draw", "net_jpeg"] and not call["repository"].exists()
    shown = capsys.readouterr().out
    assert "http: http://127.0.0.1:8000" in shown
    assert (
        "curl -X POST http://127.0.0.1:8000/v2/models/net_jpeg/infer -H 'Inference-Header-Content-Length: 0'" in shown
    )


def test_a_server_that_ends_by_itself_is_an_error(
    net: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = Fake(monkeypatch, lambda: -9)
    assert main(["serve-repo", net, "-o", "repo", "--no-jpeg"]) == 0
    assert main(["serve", "repo", "--json"]) == 2
    captured = capsys.readouterr()
    assert fake.stopped and fake.calls[0]["repository"] == Path("repo") and Path("repo").is_dir()
    assert "the server ended by itself, with code -9; give --log to see why" in captured.err
    assert json.loads(captured.out[captured.out.index("{") :])["models"] == ["net"]


def test_without_an_argument_the_shipped_network_is_served(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from r2mrf_deploy import weights

    fake = Fake(monkeypatch, interrupted)
    if weights.DEFAULT in weights.ARTIFACTS:
        assert main(["serve"]) == 0
        assert f"{weights.DEFAULT}_jpeg" in fake.models


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("repo net.onnx", "repo is a folder: serve one repository, or some artifacts"),
        ("repo --max-batch 2", "--max-batch is for artifacts; repo says already how it is served"),
        ("repo --no-jpeg", "--no-jpeg is for artifacts"),
        ("repo --log folder", "cannot write folder: it is a folder"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: str, message: str, net: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = Fake(monkeypatch, interrupted)
    for folder in ("repo", "folder"):
        Path(folder).mkdir()
    assert main(["serve", *arguments.split()]) == 2
    assert message in capsys.readouterr().err and not fake.calls
