"""Commands that use a server: bench and parity, and how they are told to reach it."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2mrf_deploy import runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.cli import main
from tests.predict.conftest import photograph
from tests.runtimes.fake_server import FakeServer

pytest.importorskip("tritonclient")

QUICK = ("--duration", "0.1", "--warmUp", "0", "--size", "8x8")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer("grpc") as running:
        yield running


def test_bench(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"{server.address}/focus"
    table, page = tmp_path / "x.csv", tmp_path / "x.md"
    assert (
        main(
            ["bench", "--server", address, "--concurrency", "1,2", *QUICK, "--csv", str(table), "--markdown", str(page)]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert f"fake 1.0 at {server.address}" in said and "2 in flight" in said and "compute" in said
    assert [row["in_flight"] for row in csv.DictReader(table.open())] == ["1", "2"] and "p99.9" in page.read_text()
    assert main(["bench", "--server", address, "--server", address, "--rate", "50", *QUICK, "--json"]) == 0
    loads = json.loads(capsys.readouterr().out)["loads"]
    assert [load["load"]["rate"] for load in loads] == [50, 50] and loads[0]["server"][0]["mean_batch"] == 4


def test_bench_with_photographs_as_an_artifact_fits_them(
    server: FakeServer, tiny_onnx: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph(tmp_path / "in" / "a.png", 10, (64, 48))
    arguments = ["bench", "--server", f"{server.address}/focus", "--images", str(tmp_path / "in"), *QUICK[:4], "--json"]
    assert main([*arguments, str(tiny_onnx())]) == 0  # 64x64
    assert json.loads(capsys.readouterr().out)["loads"][0]["inputs"] == ["1x64x64x3"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["loads"][0]["inputs"] == ["1x48x64x3"]


def test_failures_are_the_exit_code(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "--server", f"{server.address}/focus", *QUICK]
    server.fake.busy = 2
    assert main([*arguments, "--warmUp", "0"]) == 1
    said = capsys.readouterr()
    assert "1 request failed, the first with" in said.out and "error: 1 request of" in said.err
    server.fake.refused = "no"
    assert main(arguments) == 2
    assert "every request failed" in capsys.readouterr().err
    server.stop()
    assert main(arguments) == 2
    assert "onnection refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("bench", "name artifacts, or a served model by --server"),
        ("bench --server grpc://h/m --streams 2", "--infStreams has no meaning for a server (--server)"),
        ("bench --server grpc://h/m --no-record", "--record has no meaning"),
        ("bench --server grpc://h/m --percentile 90", "--percentile has no meaning"),
        ("bench --server grpc://h/m --concurrency 2 --rate 5", "--concurrency and --rate exclude"),
        ("bench --server grpc://h/m --concurrency 0", "--concurrency 0: give whole numbers"),
        ("bench --server grpc://h/m --deadline 0", "--deadline 0"),
        ("bench --server h:8000/m", "--server h:8000/m is not an address"),
        ("bench x.onnx --rate 5", "--rate is for a server (--server)"),
        ("bench x.onnx --retry-for 5", "--retry-for is for a server"),
        ("bench --server http://h/m --ca x.pem", "--ca is for https:// and grpcs://"),
        ("bench --server https://h/m --cert nothing.pem", "nothing.pem: no such file"),
        ("bench --server http://h/m --token-file nothing", "nothing: no such file"),
        ("parity r2mrf-edge", "name artifacts, or a served model by --server"),
        ("parity r2mrf-edge --token-file x", "--token-file is for a server"),
        ("parity r2mrf-edge --server http://h/m --bisect", "--bisect searches the nodes of a file"),
    ],
)
def test_what_is_refused(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 2
    assert said in capsys.readouterr().err


def test_tokens_come_from_a_file_or_the_environment(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fake.token = "s3cret"
    arguments = ["bench", "--server", f"{server.address}/focus", *QUICK]
    assert main(arguments) == 2
    assert "give a token that it accepts (--token-file)" in capsys.readouterr().err
    monkeypatch.setenv("R2MRF_TOKEN", "s3cret")
    assert main(arguments) == 0
    (tmp_path / "token").write_text("other\n")
    assert main([*arguments, "--token-file", str(tmp_path / "token")]) == 2
    (tmp_path / "token").write_text("s3cret\n")
    monkeypatch.delenv("R2MRF_TOKEN")
    assert main([*arguments, "--token-file", str(tmp_path / "token")]) == 0
    for wrong in (b"", b"two\nlines", b"\xff"):
        (tmp_path / "token").write_bytes(wrong)
        assert main([*arguments, "--token-file", str(tmp_path / "token")]) == 2
        assert "holds no token" in capsys.readouterr().err


@pytest.mark.artifact
def test_parity_of_a_served_model(
    server: FakeServer, exported: Path, small: Path, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fake server runs the artifact, with all its outputs, and then one that is a little off."""
    artifact = Artifact.open(exported)
    assert artifact.contract
    types = {"uint8": "UINT8", "float32": "FP32"}
    server.fake.models["focus"] = tuple(  # type: ignore[assignment]
        [{"name": s.name, "datatype": types[s.dtype], "shape": [-1, *s.shape[1:]]} for s in specs]
        for specs in (artifact.contract.inputs, artifact.contract.outputs)
    )
    for number in range(2):
        shutil.copy(album / f"{number}.png", tmp_path)
    off = 0.0
    with runtimes.open(artifact) as runner:

        def infer(_: str, given: Any, wanted: list[str]) -> Any:
            found = runner.run({"image": np.frombuffer(given[0][3], np.uint8).reshape(given[0][2])})
            return [(n, "FP32", list(found[n].shape), (found[n] * (1 - off)).tobytes()) for n in wanted]

        server.fake.infer = infer  # type: ignore[method-assign]
        arguments = ["parity", str(small), "--server", f"{server.address}/focus", "--images", str(tmp_path)]
        server.fake.contract = artifact.contract.embedded()
        assert main([*arguments, "--per-step", "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert (found["artifact"], found["runtime"], found["verdict"]) == ("focus", "server", "pass")
        assert found["steps"] and found["device"].startswith("fake 1.0 at grpc://")
        server.fake.contract = ""  # the artifact's then
        assert main([*arguments, str(exported), "--no-record", "--json"]) == 0
        both = json.loads(capsys.readouterr().out)
        assert [each["artifact"] for each in both] == [exported.name, "focus"]
        assert both[1]["map"] == both[0]["map"] and both[1]["whole_path"] == both[0]["whole_path"]
        assert not both[1]["not_recorded"]
        off = 0.01
        assert main(arguments) == 1
        assert "no parity: focus" in capsys.readouterr().err
