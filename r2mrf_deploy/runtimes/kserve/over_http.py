"""KServe v2 over HTTP, with the binary tensor extension."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from r2mrf_deploy import environment
from r2mrf_deploy.errors import ArtifactError, RuntimeUnavailable, first_line, reading
from r2mrf_deploy.runtimes.kserve.connection import Connection
from r2mrf_deploy.runtimes.kserve.tensors import DTYPES, LARGEST, MOST, Tensor, dimensions
from r2mrf_deploy.runtimes.kserve.wire import UNHEALTHY, Broken, Question, Refused, Wire

CONNECTIONS = 512
"""The most at once: a process may open about 1024 files."""
CONNECTING = 10.0
"""Seconds in which a connection must be made."""
_SMALL = 4 << 20
"""Bytes of an answer that is no tensor."""
_BUSY = frozenset({429, 502, 503, 504})
_LENGTH = "Inference-Header-Content-Length"


class HttpWire(Wire):
    def __init__(self, connection: Connection) -> None:
        try:
            import aiohttp
        except ImportError:
            raise RuntimeUnavailable(
                f"a server's client needs aiohttp: {environment.installs('tritonclient')}"
            ) from None
        self._http = aiohttp
        self._deadline = connection.deadline
        where = connection.where
        self._base = f"{where}/v2"
        self._proxy = urllib.request.getproxies().get(where.scheme) if where.proxied else None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=CONNECTIONS, limit_per_host=CONNECTIONS, ssl=connection.trust() if where.secure else True
            ),
            timeout=aiohttp.ClientTimeout(total=connection.deadline, sock_connect=min(CONNECTING, connection.deadline)),
            headers=connection.all_headers | {"accept-encoding": "identity"},
            auto_decompress=False,
        )

    async def ask(self, what: Question, model: str, version: str) -> dict[str, Any]:
        if what == "index":
            return {"models": _json(await self._sent("POST", f"{self._base}/repository/index", b"{}"))}
        if what == "server":
            return _object(await self._sent("GET", self._base))
        last = {"model": "", "config": "/config", "stats": "/stats", "ready": "/ready"}[what]
        answer = await self._sent("GET", self._model(model, version) + last)
        return {"ready": True} if what == "ready" else _object(answer)

    def _model(self, model: str, version: str) -> str:
        return f"{self._base}/models/{quote(model, safe='')}" + (
            f"/versions/{quote(version, safe='')}" if version else ""
        )

    def request(self, model: str, version: str, inputs: Sequence[Tensor], outputs: Sequence[str]) -> Any:
        described = {
            "inputs": [
                {
                    "name": t.name,
                    "datatype": t.datatype,
                    "shape": t.shape,
                    "parameters": {"binary_data_size": len(t.raw)},
                }
                for t in inputs
            ],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
        }
        head = json.dumps(described).encode()
        headers = {_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
        return f"{self._model(model, version)}/infer", b"".join([head, *(t.raw for t in inputs)]), headers

    async def infer(self, request: Any) -> list[Tensor]:
        url, body, headers = request
        answer = await self._sent("POST", url, body, headers, LARGEST)
        with reading("its answer", ArtifactError, "is damaged"):
            return _tensors(*answer)

    async def _sent(
        self, method: str, url: str, body: bytes | None = None, headers: Any = None, most: int = _SMALL
    ) -> tuple[bytes, str | None]:
        """The body of a good answer, and the length of its JSON where tensors follow it."""
        http = self._http
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, proxy=self._proxy, allow_redirects=False
            ) as answer:
                content = await _content(answer, most)
                if answer.status == 200:
                    return content, answer.headers.get(_LENGTH)
                raise _refusal(answer.status, content, answer.headers.get("Location"))
        except (http.ClientSSLError, ssl.SSLError) as e:
            if "certificate" in str(e).lower():
                cure = "trust its authority by `ca`, or give the `certificate` that it asks for"
                raise Refused("denied", f"{first_line(e)}: {cure}") from None
            raise Refused("denied", f"{first_line(e)}: is this a TLS address?") from None
        except (http.ClientConnectionError, http.ClientPayloadError) as e:  # also if it took too long to connect
            raise Broken(_reason(e)) from None
        except asyncio.TimeoutError:
            raise Refused("late", f"no answer within {self._deadline:g} s") from None
        except http.ClientResponseError:
            raise ArtifactError("it does not answer as HTTP does: is this a gRPC address?") from None
        except http.ClientError as e:
            raise ArtifactError(f"it does not answer as HTTP does ({first_line(e)})") from None

    async def close(self) -> None:
        await self._session.close()


async def _content(answer: Any, most: int) -> bytes:
    parts, size = [], 0
    async for part in answer.content.iter_any():
        size += len(part)
        if size > most:
            raise ArtifactError(f"its answer is larger than {most >> 20} MiB")
        parts.append(part)
    return b"".join(parts)


def _reason(error: Exception) -> str:
    """Why there is no connection, or why it broke."""
    system = getattr(error, "os_error", error)
    if not isinstance(system, OSError) or system.errno is None:
        return first_line(error)
    return f"cannot connect: {os.strerror(system.errno) if system.errno > 0 else system.strerror}"


def _refusal(status: int, content: bytes, location: str | None) -> Exception:
    said = content.decode(errors="replace").strip()
    with suppress(Exception):  # anything may be in there
        said = str(json.loads(content)["error"])
    text = f"HTTP {status}" + (f": {said}" if said else "")
    if status in _BUSY or UNHEALTHY in said:
        return Broken(text)
    if status in (401, 403):
        return Refused("denied", f"{text}: give a token that it accepts (`token_file`)")
    if 300 <= status < 400:
        return Refused("denied", f"{text}: it redirects to {location}: give that address")
    if status in (404, 405, 501):
        return Refused("missing", text)
    return Refused("bad" if status < 500 else "failed", text)


def _json(answer: tuple[bytes, str | None]) -> Any:
    try:
        return json.loads(answer[0])
    except (ValueError, RecursionError) as e:
        raise ArtifactError(f"it does not answer as a KServe v2 server does ({first_line(e)})") from None


def _object(answer: tuple[bytes, str | None]) -> dict[str, Any]:
    found = _json(answer)
    if not isinstance(found, dict):
        raise ArtifactError("it does not answer as a KServe v2 server does")
    return found


def _tensors(content: bytes, length: str | None) -> list[Tensor]:
    """The tensors of an answer.

    Raises:
        ArtifactError: they are not binary, or are more or fewer bytes than it announces.
    """
    if length is not None and not (length.isdecimal() and len(length) < 12 and int(length) <= len(content)):
        raise ArtifactError("its answer is damaged: its header is longer than itself")
    at = len(content) if length is None else int(length)
    outputs = _object((content[:at], None)).get("outputs")
    if not isinstance(outputs, list) or len(outputs) > MOST:
        raise ArtifactError("its answer has no outputs")
    tensors, view = [], memoryview(content)
    for output in outputs:
        if not isinstance(output, dict):
            raise ArtifactError("its answer is damaged: an output is no object")
        name, datatype = str(output.get("name")), output.get("datatype")
        if not isinstance(datatype, str) or datatype not in DTYPES:
            raise ArtifactError(f"its answer has {name[:MOST]!r} of type {str(datatype)[:MOST]!r}")
        parameters = output.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if not isinstance(size, int):
            raise ArtifactError("it answers in JSON numbers: it lacks the extension for binary tensors")
        if not 0 <= size <= len(content) - at:
            raise ArtifactError(f"its answer is damaged: {name[:MOST]!r} ends too early")
        tensors.append(Tensor(name, datatype, dimensions(output.get("shape")), view[at : at + size]))
        at += size
    if at != len(content):
        raise ArtifactError(f"its answer is damaged: it has {len(content) - at:,} bytes too many")
    return tensors
