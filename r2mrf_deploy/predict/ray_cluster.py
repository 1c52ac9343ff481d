"""Connecting to a Ray cluster, or starting one on this machine, without its output; and its errors as ours."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from r2mrf_deploy import environment
from r2mrf_deploy.errors import R2mrfError, RuntimeUnavailable, UsageError, first_line
from r2mrf_deploy.files import locked
from r2mrf_deploy.progress import no_stdout, without_threads

_QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal"}
"""Variables of Ray's. What goes wrong is raised as an exception too."""
_LOCAL = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # whatever its name says: Ray then listens on the loopback address alone
    "RAY_AUTH_MODE": "token",  # other users of this machine must not run code in our workers
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # which Ray reads once in a process
}
_TOKEN = "; where a cluster wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
_LONGEST_FOLDER = 14
"""Bytes of the path of a temporary folder: a socket's path has at most 103, and Ray's own folders in ours take the rest."""
_OLD = 60
"""Seconds after which a folder that nobody has locked was left by a run that was killed."""


def address_of(address: str | None) -> str | None:
    """The cluster that is meant: `address`, or else that of RAY_ADDRESS. None for this machine (`local`)."""
    address = address or os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[None]:
    """Connect to a cluster; or start one on this machine for `cpus` CPUs or all its cores, and end it and its files.

    Raises:
        UsageError: this process uses Ray already.
        RuntimeUnavailable: there is no such cluster, or none can be started.
    """
    if (used := sys.modules.get("ray")) and used.is_initialized():
        raise UsageError("`ray`: this process uses Ray already: call ray.shutdown() before")
    how: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "configure_logging": False}
    with ExitStack() as stack:
        if address is None:
            stack.callback(_read_variables)
        stack.enter_context(_environment(_QUIET | ({} if address else _LOCAL)))
        import ray
        import ray.data

        for name in ("ray", "ray.data"):
            stack.callback(logging.getLogger(name).setLevel, logging.getLogger(name).level)
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if address:
            _refuse_unreachable(address)
        else:
            _read_variables()
            folder = stack.enter_context(_folder())
            how |= {"num_cpus": max(cpus, environment.cores()), "include_dashboard": False, "_temp_dir": str(folder)}
        try:
            with no_stdout(), without_stderr():  # its C++ library says there how it logs
                ray.init(**how)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as e:
            cure = _TOKEN if address else ""
            raise RuntimeUnavailable(f"Ray cannot be started here, or reached: {first_line(e)}{cure}") from None
        stack.callback(_end)
        stack.enter_context(without_threads("ray_"))  # one of which says what happens to workers
        yield


def _end() -> None:
    import ray

    with no_stdout():
        ray.shutdown()


def _read_variables() -> None:
    """Have Ray read its variables again, in case that it was imported before they were set."""
    if (library := sys.modules.get("ray._raylet")) is not None:
        library.Config.initialize("")


@contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder for Ray's files, with a path so short that sockets can lie in it.

    Those of runs that were killed are removed.
    """
    place, user = Path(tempfile.gettempdir()), os.getuid() if hasattr(os, "getuid") else ""
    if os.name == "posix" and len(os.fsencode(place)) > _LONGEST_FOLDER:
        place = Path("/tmp")
    for left in place.glob(f"r2-{user}-*"):
        with suppress(OSError), locked(left, wait=False) as dead:
            if dead and time.time() - left.stat().st_mtime > _OLD:
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"r2-{user}-", dir=place))
    try:
        with locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_unreachable(address: str) -> None:
    """Raise RuntimeUnavailable where nothing listens at HOST:PORT: Ray would try for many minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as e:
            raise RuntimeUnavailable(f"no Ray cluster can be reached at {address}: {e.strerror or e}") from None


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for a while; those that are set already stay as they are."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def without_stderr() -> Iterator[None]:
    """Drop what libraries write on the file descriptor of standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def errors() -> Iterator[None]:
    """Turn what Ray raises into one of our errors: that of the worker, if it raised one."""
    import ray

    try:
        yield
    except (R2mrfError, ModuleNotFoundError) as e:
        raise _cause(e) from None
    except ray.exceptions.RayError as e:
        raise _cause(e) from e


def _cause(e: Exception) -> Exception:
    """The error of ours that an exception of Ray's contains, or one that says what is wrong with the cluster."""
    inner: Any = e
    while inner is not None:
        if type(inner).__module__ == R2mrfError.__module__:
            return type(inner)(_said(inner))
        e, inner = inner, getattr(inner, "cause", None) or inner.__cause__
    if isinstance(e, ModuleNotFoundError) and e.name == "r2mrf_deploy":
        return RuntimeUnavailable("the cluster's machines have no r2mrf-deploy: install the same version on each")
    if isinstance(e, ModuleNotFoundError):
        return e
    return RuntimeUnavailable(f"Ray's workers failed: {_said(e)}; what is done stays, `resume` goes on")


def _said(e: Exception) -> str:
    """The first line of an exception, without what Ray adds to it."""
    return re.sub(r"\s*Failed to .* after \d+/\d+ attempts.*", "", first_line(e))
