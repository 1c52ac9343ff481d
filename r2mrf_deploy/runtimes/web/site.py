"""Serves the files of a web page on this machine, and nothing else.

A name is looked up among the artifact's files, so that no address leads to another file. What is sent is what the manifest
says: a file that was changed meanwhile is not. A runner also exchanges arrays with its page through the server.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import unquote, urlsplit

from r2mrf_deploy import web
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, RuntimeUnavailable

LARGEST = 1 << 31
"""Bytes of the outputs of one inference."""
_EXCHANGE = "exchange"
IDLE = 60
"""Seconds after which a connection that asks for nothing is closed."""


class Server(AbstractContextManager["Server"]):
    """Serves one artifact for as long as the `with` block lasts."""

    def __init__(self, artifact: Artifact, *, host: str = "127.0.0.1", port: int = 0) -> None:
        """
        Args:
            port: 0 takes one that is free.

        Raises:
            ArtifactError: the artifact is no page.
            RuntimeUnavailable: the port is taken, or there is no such address here.
        """
        if not isinstance(artifact.header, web.Site):
            raise ArtifactError(f"{artifact.path} is not a web page")
        self._folder = artifact.path.parent
        self._digests = _digests(artifact)
        self._content: dict[str, bytes] = {}
        self.exchanged: dict[str, bytes] = {}
        """Address of an exchange -> the inputs of an inference, and once there are any, its outputs."""
        try:
            self._http = ThreadingHTTPServer((host, port), _handler(self))
        except (OSError, OverflowError) as e:
            raise RuntimeUnavailable(f"cannot listen on {host}:{port}: {e}; choose another port") from None
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.1,), daemon=True, name="web server")
        self._thread.start()

    @property
    def address(self) -> str:
        """Where the page is."""
        host, port = self._http.server_address[:2]
        return f"http://{host!s}:{port}/"

    def file(self, address: str) -> tuple[str, bytes] | None:
        """The name and content of the file that an address means; None if there is none.

        Raises:
            ArtifactError: it was changed.
        """
        name = unquote(urlsplit(address).path).removeprefix("/") or web.INDEX
        if name not in self._digests:
            return None
        if name not in self._content:
            content, digest = (self._folder / name).read_bytes(), self._digests[name]
            if digest and hashlib.sha256(content).hexdigest() != digest:
                raise ArtifactError(f"{name} was changed")
            self._content[name] = content
        return name, self._content[name]

    def named(self, host: str) -> bool:
        """Whether a request may call this server so. On this machine alone, its own names are all there are: a web site
        that has its name lead here (DNS rebinding) could read the page otherwise."""
        with suppress(ValueError):
            own = str(self._http.server_address[0])
            return not ip_address(own).is_loopback or urlsplit(f"//{host}").hostname in (own, "localhost")
        return False

    def exchange(self, inputs: bytes) -> str:
        """Offer inputs to the page at an address that nobody can guess, at which it then leaves the outputs."""
        self.exchanged[address := f"/{_EXCHANGE}/{secrets.token_hex(16)}"] = inputs
        return address

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def wait(self) -> None:
        """Serve until Ctrl-C."""
        while self._thread.is_alive():
            self._thread.join(1)

    def __exit__(self, *_: object) -> None:
        self.close()


def _digests(artifact: Artifact) -> Mapping[str, str]:
    """Name of each file of a page -> its SHA-256; empty where there is no manifest."""
    manifest, site = artifact.manifest, artifact.header
    if manifest is not None:
        return {**manifest.companions, artifact.path.name: manifest.sha256}
    return dict.fromkeys([*(name for name in site.companions if Path(name).name == name), artifact.path.name], "")


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    """What answers the requests to a server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version, sys_version = "r2mrf", ""
        timeout = IDLE

        def do_GET(self) -> None:
            if not server.named(self.headers.get("Host", "")):
                return self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            if (inputs := server.exchanged.get(self.path)) is not None:
                return self._send(_EXCHANGE, inputs)
            try:
                found = server.file(self.path)
            except ValueError:  # the address is none
                return self.send_error(HTTPStatus.BAD_REQUEST)
            except (ArtifactError, OSError) as e:
                return self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, explain=str(e))
            return self._send(*found) if found else self.send_error(HTTPStatus.NOT_FOUND)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path not in server.exchanged or not length.isdigit() or int(length) > LARGEST:
                self.close_connection = True
                return self.send_error(HTTPStatus.NOT_FOUND)
            content = self.rfile.read(int(length))
            if len(content) == int(length):
                server.exchanged[self.path] = content
            return self._send(_EXCHANGE, b"")

        def _send(self, name: str, content: bytes) -> None:
            headers = web.headers(name) | ({"Cache-Control": "no-store"} if name == _EXCHANGE else {})
            self.send_response(HTTPStatus.OK)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def handle(self) -> None:
            with suppress(ConnectionError, TimeoutError):  # a browser that was closed
                super().handle()

        def log_message(self, *_: object) -> None:
            pass

    return Handler
