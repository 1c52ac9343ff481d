"""`predict --server`: the files are those of a model here, and the run can be resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2mrf_deploy import runtimes
from r2mrf_deploy.cli import main
from tests.predict.conftest import photograph
from tests.runtimes.fake_server import FakeServer

pytest.importorskip("tritonclient")


@pytest.fixture(params=["http", "grpc"])
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server, in a folder with three photographs."""
    monkeypatch.chdir(tmp_path)
    for number, size in enumerate(((64, 48), (48, 64), (200, 100))):
        file = photograph(Path("in") / f"{number}.png", 0, size)
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        from PIL import Image

        Image.fromarray(pixels).save(file)
    with FakeServer(request.param) as running:
        yield running


def written(folder: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.suffix in (".png", ".jpg")}


def test_files_are_those_of_the_artifact_here(
    server: FakeServer, tiny_onnx: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server runs the artifact; who names it tells the client how its photographs are fitted."""
    model = tiny_onnx()
    assert main(["predict", str(model), "in", "-o", "local", "--runtime", "onnxruntime"]) == 0
    with runtimes.open(model, "onnxruntime") as runner:

        def infer(_: str, given: Any, wanted: list[str]) -> Any:
            assert wanted == ["map"]
            found = runner.run({"image": np.frombuffer(given[0][3], np.uint8).reshape(given[0][2])})["map"]
            return [("map", "FP32", list(found.shape), found.tobytes())]

        server.fake.infer = infer  # type: ignore[method-assign]
        assert main(["predict", str(model), "in", "-o", "served", "--server", f"{server.address}/focus"]) == 0
    assert written("served") == written("local") and len(written("served")) == 6
    assert "3 done" in capsys.readouterr().err


def test_a_server_that_dies_ends_the_run_which_is_resumed(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", "in", "--server", server.address, "--retry-for", "0.2", "--streams", "1"]
    compute, asked = server.fake.infer, []

    def dying(*given: Any) -> Any:
        asked.append(given)
        if len(asked) > 1:
            server.fake.busy = 10**6
        return compute(*given)

    server.fake.infer = dying  # type: ignore[method-assign]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert "did not come back within 0.2 s (--retry-for)" in said.err
    journal = Path("out/predictions.jsonl").read_text()
    assert '"error": null' in journal or "error" not in journal
    server.fake.infer, server.fake.busy = compute, 0  # type: ignore[method-assign]
    assert main([*arguments, "--resume"]) == 0
    assert len(written("out")) == 6
    server.fake.models["second"] = server.fake.models["focus"]
    assert main(["predict", "in", "--server", f"{server.address}/second", "--resume"]) == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--server http://h/m --runtime openvino", "--runtime has no meaning for a server (--server)"),
        ("--server http://h/m --threads 2", "--threads has no meaning"),
        ("--server http://h/m --set a=b", "--set has no meaning"),
        ("--deadline 3", "--deadline is for a server"),
        ("--server http://me:s3cret@h/m", "--server http://h: an address holds no password"),
    ],
)
def test_what_is_refused(arguments: str, said: str, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "in", *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert said in err and "s3cret" not in err


def test_json(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "in/0.png", "--server", server.address, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["error"] is None and found["in_focus"] is not None
