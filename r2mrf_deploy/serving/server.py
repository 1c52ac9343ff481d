"""Start an inference server that is installed here, on a model repository, and stop it again.

Triton is found on the PATH, or in the wheel of nvidia-pytriton, which holds a whole tritonserver with the python backend;
OpenVINO Model Server on the PATH. Nothing listens beyond the loopback interface unless a host is named.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal
from urllib.error import URLError

from r2mrf_deploy import environment
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError
from r2mrf_deploy.serving import ovms
from r2mrf_deploy.serving.pipeline import MOST_BYTES
from r2mrf_deploy.wording import plain

PACKAGES = "R2MRF_PACKAGES"
"""The environment variable that tells the python models where this package and those that it needs are installed."""
CLOSED = "shared-memory,logging,trace"
"""Triton's interfaces through which a request can name files or memory of the server. They are closed to everyone."""
LEAVING = 10
"""Seconds for the requests that are under way when the server is stopped, and for clients to close their connections."""


@dataclass(frozen=True)
class Program:
    """A server that is installed here."""

    kind: Literal["triton", "ovms"]
    path: Path
    backends: Mapping[str, Path] = field(default_factory=dict)
    """File name -> place, of what makes the python backend where the server does not bring it."""
    libraries: tuple[Path, ...] = ()
    """Folders of shared libraries that it needs."""


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    addresses: Mapping[str, str]
    """`http`, `grpc`, and of Triton `metrics` -> address."""
    models: Sequence[str]
    process: subprocess.Popen[bytes]
    parts: frozenset[int] = frozenset()
    """The processes that it had started when it was ready: Triton's python models."""

    def wait(self) -> int:
        """Wait until the server ends by itself, and return its exit code.

        Raises:
            RuntimeUnavailable: one of its parts has died. Triton goes on then, says that it is ready, and answers every
                request for that model with an error.
        """
        while True:
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(1)
            if self.parts - _children(self.process.pid) and self.process.poll() is None:
                raise RuntimeUnavailable("a python model of the server has died; was there too little memory?")


def find(program: Path | None = None) -> Program:
    """The server to start.

    Args:
        program: tritonserver or ovms: a path, or a name on the PATH; by default what is found.

    Raises:
        UsageError: there is no such program.
        RuntimeUnavailable: no server is installed.
    """
    if program is not None:
        path = shutil.which(program.absolute() if program.is_file() else program)
        if path is None:
            raise UsageError(f"`server` {program} is not a program: name tritonserver or ovms")
        return Program("ovms" if "ovms" in Path(path).name else "triton", Path(path))
    if path := shutil.which("tritonserver"):
        return Program("triton", Path(path))
    if environment.importable("pytriton"):
        return _of_wheel()
    if path := shutil.which("ovms"):
        return Program("ovms", Path(path))
    raise RuntimeUnavailable(
        "no server is installed: use the image of Triton or of OpenVINO Model Server, or install Triton's python backend in "
        f"an environment of its own, which needs numpy below 2: {environment.installs('pytriton')}"
    )


def _of_wheel() -> Program:
    """Triton in the wheel of nvidia-pytriton: only the python backend, whose parts lie apart there."""
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None and spec.submodule_search_locations
    package = Path(spec.submodule_search_locations[0])
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    root = package / "tritonserver"
    parts = [
        *(root / "backends" / "python").glob("*[!_]"),
        root / "python_backend_stubs" / version / "triton_python_backend_stub",
    ]
    if not parts[-1].is_file():
        raise RuntimeUnavailable(f"nvidia-pytriton has no backend for Python {version}: use another Python")
    libraries = [package.parent / "nvidia_pytriton.libs"]
    if not ctypes.util.find_library(f"python{version}"):
        libraries.append(Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib"))
        if not list(libraries[-1].glob(f"libpython{version}.so*")):
            raise RuntimeUnavailable(
                f"Triton's python backend needs libpython{version}.so: install the system's package of that name"
            )
    return Program("triton", root / "bin" / "tritonserver", {p.name: p for p in parts if p.is_file()}, tuple(libraries))


@contextmanager
def serve(
    repository: Path,
    *,
    program: Path | None = None,
    host: str = "127.0.0.1",
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
    within: float = 300,
    log: Path | None = None,
) -> Iterator[Running]:
    """Start a server, wait until its models are ready, and stop it at the end.

    Args:
        repository: as `write_repository` writes it: of Triton, or of OpenVINO Model Server if it has a config.json.
        program: as for `find`.
        host: the address that it listens on. Anyone who reaches it may send photographs; 0.0.0.0 is every network.
        within: seconds in which it must be ready.
        log: a file for what the server says, or `-` for standard error; by default that is only kept until the end.

    Raises:
        UsageError: it is no repository, or a port is in use.
        RuntimeUnavailable: no server is installed, it ends, or is not ready in time. The message says what it said.
    """
    found = find(program)
    models = _models(repository, found.kind)
    ports = {"http": http_port, "grpc": grpc_port} | ({"metrics": metrics_port} if found.kind == "triton" else {})
    for name, port in ports.items():
        _refuse_taken(host, port, name)
    with tempfile.TemporaryDirectory(prefix="r2mrf-serve-") as folder:
        own = Path(folder)
        command = (_triton if found.kind == "triton" else _ovms)(found, repository, host, ports, own)
        place = None if log == Path("-") else log or own / "log"
        with open(2, "wb", closefd=False) if place is None else place.open("wb") as output:
            process = _started(command, found, output)
            try:
                shown = _reached(host)
                _await(process, f"http://{shown}:{http_port}/v2/health/ready", within, place)
                scheme = {"http": "http://", "grpc": "grpc://", "metrics": "http://"}
                ends = {"metrics": "/metrics"}
                addresses = {name: f"{scheme[name]}{shown}:{port}{ends.get(name, '')}" for name, port in ports.items()}
                yield Running(addresses, models, process, _children(process.pid))
            finally:
                _stop(process)
                for left in Path("/dev/shm").glob(f"{own.name}*"):  # if the server was killed
                    left.unlink(missing_ok=True)


def _models(repository: Path, kind: str) -> list[str]:
    """The names of the models in a repository."""
    if kind == "ovms":
        if (repository / ovms.CONFIG).is_file():
            return [each["config"]["name"] for each in ovms.read(repository)]
    elif found := sorted(each.parent.name for each in repository.glob("*/config.pbtxt")):
        return found
    raise UsageError(
        f"{repository} is no repository of models for {kind}: write one with r2mrf serve-repo ARTIFACT -o DIR"
        + (" --server ovms" if kind == "ovms" else "")
    )


def _triton(program: Program, repository: Path, host: str, ports: Mapping[str, int], own: Path) -> list[str]:
    """Triton's command line.

    Raises:
        RuntimeUnavailable: it does not know an option that closes it to others.
    """
    key = f"{CLOSED}:r2mrf={secrets.token_hex(16)}"
    further = {"http-max-input-size": MOST_BYTES + (1 << 20), "exit-timeout-secs": LEAVING}
    wanted: dict[str, object] = {
        "model-control-mode": "none",
        "http-restricted-api": key,
        "grpc-restricted-protocol": key,
        "backend-config": f"python,shm-region-prefix-name={own.name}",
    } | {f"{name}-{part}": value for name, port in ports.items() for part, value in (("address", host), ("port", port))}
    if program.backends:
        backend = own / "backends" / "python"
        backend.mkdir(parents=True)
        for name, place in program.backends.items():
            (backend / name).symlink_to(place)
        wanted["backend-directory"] = own / "backends"
    done = subprocess.run(
        [program.path, "--help"], env=_environment(program), capture_output=True, text=True, check=False
    )
    known = re.findall(r"--([\w-]+)", done.stdout + done.stderr)
    if lacking := [name for name in wanted if name not in known]:
        raise RuntimeUnavailable(f"{program.path} does not know --{lacking[0]}: Triton 24.04 or later is needed")
    wanted |= {name: value for name, value in further.items() if name in known}
    return [
        str(program.path),
        f"--model-repository={repository}",
        *(f"--{name}={value}" for name, value in wanted.items()),
    ]


def _ovms(program: Program, repository: Path, host: str, ports: Mapping[str, int], own: Path) -> list[str]:
    return [
        str(program.path), "--config_path", str(repository / "config.json"),
        "--rest_port", str(ports["http"]), "--rest_bind_address", host,
        "--port", str(ports["grpc"]), "--grpc_bind_address", host,
    ]  # fmt: skip


def _environment(program: Program) -> dict[str, str]:
    """The server's environment. Its python backend does not see PYTHONPATH, nor that it runs in a virtual environment."""
    given = dict(os.environ)
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    given.setdefault(PACKAGES, os.pathsep.join(packages))
    if program.libraries:
        before = [given["LD_LIBRARY_PATH"]] if given.get("LD_LIBRARY_PATH") else []
        given["LD_LIBRARY_PATH"] = os.pathsep.join([*map(str, program.libraries), *before])
    return given


def _started(command: Sequence[str], program: Program, output: IO[bytes]) -> subprocess.Popen[bytes]:
    def ends_with_parent() -> None:
        with suppress(OSError, AttributeError):  # Linux only: SIGTERM when this process dies in whatever way
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)

    try:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=_environment(program),
            start_new_session=True, preexec_fn=ends_with_parent,
        )  # fmt: skip
    except OSError as e:
        raise RuntimeUnavailable(f"{program.path} cannot be started: {e.strerror}") from None


def _refuse_taken(host: str, port: int, name: str) -> None:
    """Refuse a port on which something listens: it would pass for our server."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as e:
        raise UsageError(f"`host` {host} is no address: {e.strerror}") from None
    with socket.socket(family) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError as e:
            raise UsageError(
                f"`{name}_port` {port} on {host} cannot be listened on: {e.strerror}; choose another"
            ) from None


def _reached(host: str) -> str:
    """What an address for this machine has for a host on which a server listens."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _children(parent: int) -> frozenset[int]:
    """The processes that a process has started and that still run; none where the system does not tell."""
    found: set[int] = set()
    for file in Path(f"/proc/{parent}/task").glob("*/children"):
        with suppress(OSError):
            found |= {int(child) for child in file.read_text().split()}
    return frozenset(child for child in found if not _ended(child))


def _ended(process: int) -> bool:
    """Whether a process is gone, or waits only for its parent to notice."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _await(process: subprocess.Popen[bytes], address: str, within: float, log: Path | None) -> None:
    opener, deadline = urllib.request.build_opener(urllib.request.ProxyHandler({})), time.monotonic() + within
    while process.poll() is None:
        with suppress(URLError, OSError), opener.open(address, timeout=5) as answer:
            if answer.status == 200 and process.poll() is None:
                return
        if time.monotonic() > deadline:
            raise RuntimeUnavailable(f"the server is not ready after {within:g} s; it said: {_said(log)}")
        time.sleep(0.1)
    raise RuntimeUnavailable(f"the server ended with code {process.returncode}: {_said(log)}")


def _said(log: Path | None) -> str:
    """What matters of a server's log, in one line: why models are unavailable, else its last words."""
    if log is None:
        return "see above"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    failed = [line.strip("| ").partition("UNAVAILABLE:")[2].strip() for line in lines if "UNAVAILABLE:" in line]
    return plain("; ".join(dict.fromkeys(failed)) or next(iter(lines[-1:]), "nothing"))[:2000]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server: it may finish what is under way, and after that it is killed, with all that it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(LEAVING + 10)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
