"""Starting and stopping a server, with a stand-in for tritonserver."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from r2mrf_deploy.errors import RuntimeUnavailable, UsageError
from r2mrf_deploy.serving import server

STAND_IN = """#!{python}
import http.server, os, signal, sys, time
options = dict(a[2:].split("=", 1) for a in sys.argv[1:] if "=" in a)
if "--help" in sys.argv:
    print({help!r})
    sys.exit()
print("started with", sys.argv[1:], "and", os.environ.get("R2MRF_PACKAGES"), flush=True)
{first}
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response({status})
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer((options["http-address"], int(options["http-port"])), Ready).serve_forever()
"""
FLAGS = " ".join(
    f"--{name}"
    for name in (
        *(
            "model-control-mode",
            "http-restricted-api",
            "grpc-restricted-protocol",
            "backend-config",
            "backend-directory",
        ),
        *(f"{way}-{part}" for way in ("http", "grpc", "metrics") for part in ("address", "port")),
    )
)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def ports() -> dict[str, int]:
    return {"http_port": free_port(), "grpc_port": free_port(), "metrics_port": free_port()}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("edge", "edge_jpeg"):
        (tmp_path / "repository" / name / "1").mkdir(parents=True)
        (tmp_path / "repository" / name / "config.pbtxt").touch()
    return tmp_path / "repository"


Program = Callable[..., Path]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """`program(first="", status=200)`: a tritonserver that runs some Python first, and then says whether it is ready."""

    def make(first: str = "", status: int = 200, name: str = "tritonserver", help: str = FLAGS) -> Path:
        path = tmp_path / name
        path.write_text(STAND_IN.format(python=sys.executable, help=help, first=first, status=status))
        path.chmod(0o755)
        return path

    return make


def test_it_is_ready_and_ends(repository: Path, program: Program, ports: dict[str, int], tmp_path: Path) -> None:
    with server.serve(repository, program=program(), log=tmp_path / "log", **ports) as running:
        assert running.models == ["edge", "edge_jpeg"]
        assert running.addresses["http"] == f"http://127.0.0.1:{ports['http_port']}"
        assert running.process.poll() is None
    assert running.process.poll() is not None
    said = (tmp_path / "log").read_text()
    assert (
        "--model-control-mode=none" in said
        and "--http-address=127.0.0.1" in said
        and "--grpc-address=127.0.0.1" in said
    )
    assert "--http-restricted-api=shared-memory,logging,trace:" in said
    assert "--exit-timeout-secs" not in said  # its help does not know it
    assert any(Path(path).name == "site-packages" for path in said.split(" and ")[-1].strip().split(os.pathsep))


@pytest.mark.parametrize("lacking", ["http-address", "grpc-restricted-protocol", "model-control-mode"])
def test_one_that_cannot_be_closed_is_not_started(
    lacking: str, repository: Path, program: Program, ports: dict[str, int], tmp_path: Path
) -> None:
    old = program(first=f"open({str(tmp_path / 'started')!r}, 'w')", help=FLAGS.replace(f"--{lacking}", ""))
    with (
        pytest.raises(RuntimeUnavailable, match=f"does not know --{lacking}: Triton 24.04 or later"),
        server.serve(repository, program=old, **ports),
    ):
        pass
    assert not (tmp_path / "started").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the children of a process")
def test_a_model_that_dies_ends_it(repository: Path, program: Program, ports: dict[str, int]) -> None:
    """Triton would answer every further request with an error, and say that it is ready."""
    child = "import subprocess; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    with server.serve(repository, program=program(child), **ports) as running:
        [part] = running.parts
        os.kill(part, signal.SIGKILL)
        with pytest.raises(RuntimeUnavailable, match="a python model of the server has died"):
            running.wait()


def test_its_log_can_go_to_standard_error(
    repository: Path, program: Program, ports: dict[str, int], capfd: pytest.CaptureFixture[str]
) -> None:
    with server.serve(repository, program=program(), log=Path("-"), **ports):
        pass
    assert "started with" in capfd.readouterr().err


def test_one_that_ends_says_why(repository: Path, program: Program, ports: dict[str, int]) -> None:
    why = "print('| edge | 1 | UNAVAILABLE: Internal: No module named numpy |'); print('error'); sys.exit(1)"
    with (
        pytest.raises(RuntimeUnavailable, match="ended with code 1: Internal: No module named numpy"),
        server.serve(repository, program=program(why), **ports),
    ):
        pass


def test_one_that_is_never_ready_is_stopped(repository: Path, program: Program, ports: dict[str, int]) -> None:
    with (
        pytest.raises(RuntimeUnavailable, match=r"not ready after 1 s; it said: .*started with"),
        server.serve(repository, program=program(status=503), within=1, **ports),
    ):
        pass
    with socket.socket() as s:
        assert s.connect_ex(("127.0.0.1", ports["http_port"]))  # nobody is there


def test_one_that_does_not_listen_to_signals_is_killed(
    repository: Path, program: Program, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LEAVING", -9.5)
    with server.serve(repository, program=program("signal.signal(signal.SIGTERM, signal.SIG_IGN)"), **ports) as running:
        pass
    assert running.process.returncode == -signal.SIGKILL


def test_a_port_in_use_is_refused(repository: Path, program: Program, ports: dict[str, int]) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        taken = ports | {"grpc_port": s.getsockname()[1]}
        with (
            pytest.raises(UsageError, match=r"`grpc_port` \d+ on 127.0.0.1 cannot be listened on"),
            server.serve(repository, program=program(), **taken),
        ):
            pass


def test_a_host_that_is_none_is_refused(repository: Path, program: Program, ports: dict[str, int]) -> None:
    with (
        pytest.raises(UsageError, match="`host` not a host is no address"),
        server.serve(repository, program=program(), host="not a host", **ports),
    ):
        pass


def test_what_is_no_repository_is_refused(tmp_path: Path, program: Program, ports: dict[str, int]) -> None:
    for name, said in (("tritonserver", "for triton: write one"), ("ovms", "for ovms: write one.*--server ovms")):
        with pytest.raises(UsageError, match=said), server.serve(tmp_path, program=program(name=name), **ports):
            pass


def test_the_server_is_found(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.environment, "importable", lambda *_: False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(RuntimeUnavailable, match=r"no server is installed: .*r2mrf-deploy\[triton\]"):
        server.find()
    with pytest.raises(UsageError, match="`server` nothing is not a program"):
        server.find(Path("nothing"))
    ovms = program(name="ovms")
    assert server.find(ovms) == server.Program("ovms", ovms)
    monkeypatch.chdir(tmp_path)
    assert server.find(Path("./ovms")).path.samefile(ovms)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server.find() == server.Program("ovms", ovms)
    triton = program()
    assert server.find() == server.Program("triton", triton)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_it_ends_with_a_parent_that_is_killed(repository: Path, program: Program, ports: dict[str, int]) -> None:
    code = (
        "import sys; from pathlib import Path; from r2mrf_deploy.serving import server\n"
        f"with server.serve(Path({str(repository)!r}), program=Path({str(program())!r}), **{ports}) as running:\n"
        "    print(running.process.pid, flush=True); running.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":  # ended; whoever inherited it has not looked yet
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the server outlived its parent")
