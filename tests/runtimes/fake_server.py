"""An inference server in this process that speaks KServe v2 over HTTP or gRPC, and fails when it is told to.

Its model `focus` finds the brightness of a photograph; `focus_jpeg` takes the bytes of a file.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

Wire = tuple[str, str, list[int], bytes]
"""Name, datatype, shape and bytes."""

IMAGE = [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
MAP = [{"name": "map", "datatype": "FP32", "shape": [-1, 1, -1, -1]}]
FILE = [{"name": "file", "datatype": "BYTES", "shape": [1]}]
RESULTS = [
    {"name": "png", "datatype": "BYTES", "shape": [1]},
    {"name": "map", "datatype": "FP32", "shape": [-1, -1]},
    {"name": "scores", "datatype": "BYTES", "shape": [1]},
    {"name": "verdict", "datatype": "FP32", "shape": [4]},
]


class Down(Exception):
    """No to a request, by HTTP's number."""

    def __init__(self, status: int, said: str = "no") -> None:
        super().__init__(said)
        self.status = status


@dataclass
class Fake:
    """What the server does. Counts say how often it still fails."""

    busy: int = 0
    busy_status: int = 503
    cut: int = 0
    unloaded: int = 0
    max_batch: int = 0
    artifact: str = ""
    """The file of a network in Triton's python backend."""
    refused: str = ""
    """What it says to every inference instead of an answer."""
    broken: str = ""
    """What it says when every inference fails."""
    delay: float = 0.0
    damage: str = ""
    token: str = ""
    contract: str = ""
    rt_info: str = ""
    statistics: bool = True
    redirect: str = ""
    """Another server's address, which it gives to everybody who asks by HTTP."""
    restricted: tuple[str, ...] = ()
    """Questions that it answers nobody."""
    models: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = field(
        default_factory=lambda: {"focus": (IMAGE, MAP), "focus_jpeg": (FILE, RESULTS)}
    )
    asked: Counter[str] = field(default_factory=Counter)
    headers: dict[str, str] = field(default_factory=dict)
    """Of the last request."""
    under_way: int = 0
    most_under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, name: str) -> bool:
        with self.lock:
            left = getattr(self, name)
            setattr(self, name, max(0, left - 1))
            return left > 0

    def admit(self, headers: dict[str, str]) -> None:
        self.headers = {name.lower(): value for name, value in headers.items()}
        if self.token and self.headers.get("authorization") != f"Bearer {self.token}":
            raise Down(401, f"not with {self.headers.get('authorization')}")

    def ask(self, what: str, model: str = "") -> dict[str, Any]:
        self.asked[what] += 1
        if what in self.restricted:
            raise Down(403, "This protocol is restricted")
        if what == "server":
            return {"name": "fake", "version": "1.0"}
        if what == "index":
            return {"models": [{"name": name, "version": "1", "state": "READY"} for name in self.models]}
        if model not in self.models:
            raise Down(404, f"unknown model {model}")
        if what == "ready" and self.take("unloaded"):
            raise Down(400)
        inputs, outputs = self.models[model]
        if what == "config":
            steps = [{"model_name": "focus"}] if model.endswith("_jpeg") else []
            given: dict[str, Any] = (
                {"parameters": {"contract": {"string_value": self.contract}}} if self.contract else {}
            )
            given["max_batch_size"] = self.max_batch
            if self.artifact and not model.endswith("_jpeg"):
                given.setdefault("parameters", {})["artifact"] = {"string_value": self.artifact}
            return given | {"name": model} | ({"ensemble_scheduling": {"step": steps}} if steps else {})
        if what == "stats":
            if not self.statistics:
                raise Down(404)
            n = self.asked["infer"]
            times = {"queue": 2, "compute_input": 1, "compute_infer": 4, "compute_output": 1}
            counted = {name: {"count": n, "ns": ms * n * 10**6} for name, ms in times.items()}
            stats = {"success": {"count": n, "ns": 0}, "fail": {"count": 0, "ns": 0}, **counted}
            return {"model_stats": [{"name": model, "version": "1", "inference_count": 4 * n, "execution_count": n,
                                     "inference_stats": stats}]}  # fmt: skip
        told = {"rt_info": {"r2mrf": self.rt_info}} if self.rt_info else {}
        return {"name": model, "versions": ["1"], "platform": "fake", "inputs": inputs, "outputs": outputs} | told

    def infer(self, model: str, tensors: list[Wire], wanted: list[str]) -> list[Wire]:
        self.asked["infer"] += 1
        with self.lock:
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            time.sleep(self.delay)
            if self.take("busy"):
                raise Down(self.busy_status, "busy")
            if self.unloaded:
                raise Down(400, "no available versions")
            if self.refused:
                raise Down(400, self.refused)
            if self.broken:
                raise Down(500, self.broken)
            return self._damaged([t for t in _computed(tensors[0]) if t[0] in wanted])
        finally:
            with self.lock:
                self.under_way -= 1

    def _damaged(self, found: list[Wire]) -> list[Wire]:
        name, datatype, shape, raw = found[0]
        return {
            "": found,
            "dtype": [(name, "FP16", shape, raw[: len(raw) // 2])],
            "type": [(name, "FP9", shape, raw)],
            "short": [(name, datatype, shape, raw[:-4])],
            "rank": [(name, datatype, shape[1:], raw)],
            "batch": [(name, datatype, [2, *shape[1:]], raw + raw)],
            "huge": [(name, datatype, [1, 1, 1 << 20, 1 << 20], raw)],
            "missing": [("other", datatype, shape, raw)],
        }.get(self.damage, found)


def _computed(given: Wire) -> list[Wire]:
    _, datatype, shape, raw = given
    if datatype == "BYTES":
        (size,) = struct.unpack_from("<I", raw)
        assert len(raw) == size + 4
        picture = struct.pack("<I", 3) + b"PNG"
        return [("png", "BYTES", [1], picture), ("map", "FP32", [2, 3], bytes(24)),
                ("scores", "BYTES", [1], struct.pack("<I", 2) + b"{}"), ("verdict", "FP32", [4], bytes(16))]  # fmt: skip
    image = np.frombuffer(raw, np.uint8).reshape(shape)
    focus = image.mean(3, dtype=np.float32)[:, None] / np.float32(255)
    return [("map", "FP32", list(focus.shape), focus.tobytes())]


@dataclass(frozen=True)
class Certificates:
    """Files of a certificate authority, of the server and of a client."""

    ca: Path
    certificate: Path
    key: Path
    client: Path
    """Its certificate and key."""


class FakeServer:
    """A server on a port of its own, which it keeps over restarts."""

    def __init__(self, scheme: str, certificates: Certificates | None = None, mutual: bool = False) -> None:
        self.fake, self.scheme, self.certificates, self.mutual = Fake(), scheme, certificates, mutual
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    @property
    def address(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def start(self) -> None:
        start = _start_grpc if self.scheme.startswith("grpc") else _start_http
        self.stop = start(self)

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _start_http(server: FakeServer) -> Any:
    fake, open_sockets = server.fake, set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None: ...

        def setup(self) -> None:
            super().setup()
            open_sockets.add(self.connection)

        def do_GET(self) -> None:
            self.answer(lambda: json.dumps(self.found(b"")).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(
                lambda: self.inferred(body) if self.path.endswith("/infer") else json.dumps(self.found(body)).encode()
            )

        def found(self, body: bytes) -> Any:
            fake.admit(dict(self.headers))
            path = self.path.removeprefix("/v2").strip("/")
            if path == "":
                return fake.ask("server")
            if path == "repository/index":
                return fake.ask("index")["models"]
            parts = path.split("/")[1:]
            if parts[1:2] == ["versions"]:
                if parts[2] != "1":
                    raise Down(404, "no such version")
                del parts[1:3]
            return fake.ask(parts[1] if len(parts) > 1 else "model", parts[0])

        def inferred(self, body: bytes) -> bytes:
            fake.admit(dict(self.headers))
            at = int(self.headers["Inference-Header-Content-Length"])
            head, tensors = json.loads(body[:at]), []
            for t in head["inputs"]:
                size = t["parameters"]["binary_data_size"]
                tensors.append((t["name"], t["datatype"], t["shape"], body[at : at + size]))
                at += size
            assert at == len(body)
            wanted = [o["name"] for o in head["outputs"] if o["parameters"]["binary_data"]]
            found = fake.infer(self.path.split("/")[3], tensors, wanted)
            if fake.damage == "garbage":
                return b"\x00garbage"
            if fake.damage == "json":
                return json.dumps(
                    {"outputs": [{"name": "map", "datatype": "FP32", "shape": [1], "data": [1]}]}
                ).encode()
            outputs = [
                {"name": n, "datatype": d, "shape": s, "parameters": {"binary_data_size": len(r)}}
                for n, d, s, r in found
            ]
            header = json.dumps({"outputs": outputs}).encode()
            self.length = len(header) + (10**6 if fake.damage == "header" else 0)
            return header + b"".join(r for *_, r in found) + (b"more" if fake.damage == "surplus" else b"")

        def answer(self, work: Any) -> None:
            self.length, status = 0, 200
            try:
                content = work()
            except Down as e:
                content, status = json.dumps({"error": str(e)}).encode(), e.status
            self.send_response(307 if fake.redirect else status)
            if fake.redirect:
                self.send_header("Location", fake.redirect + self.path)
            self.send_header("Content-Length", str(len(content)))
            if self.length:
                self.send_header("Inference-Header-Content-Length", str(self.length))
            self.end_headers()
            if self.path.endswith("/infer") and status == 200 and fake.take("cut"):
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            else:
                self.wfile.write(content)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None: ...  # a client that has gone

    http = Server(("127.0.0.1", server.port), Handler)
    if server.certificates:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server.certificates.certificate, server.certificates.key)
        if server.mutual:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(server.certificates.ca)
        http.socket = context.wrap_socket(http.socket, server_side=True)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()

    def stop() -> None:
        http.shutdown()
        http.server_close()
        for each in open_sockets:  # as a killed process leaves them
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    return stop


def _start_grpc(server: FakeServer) -> Any:
    import grpc
    from google.protobuf import json_format
    from tritonclient.grpc import service_pb2 as messages
    from tritonclient.grpc import service_pb2_grpc

    fake, codes = server.fake, grpc.StatusCode
    numbers = {
        503: codes.UNAVAILABLE, 429: codes.UNAVAILABLE, 403: codes.UNAVAILABLE, 401: codes.UNAUTHENTICATED,
        404: codes.NOT_FOUND, 400: codes.INVALID_ARGUMENT, 500: codes.INTERNAL,
    }  # fmt: skip

    def answered(context: Any, work: Any) -> Any:
        try:
            fake.admit(dict(context.invocation_metadata()))
            return work()
        except Down as e:
            context.abort(numbers[e.status], str(e))

    def question(what: str, kind: Any) -> Any:
        def method(self: Any, request: Any, context: Any) -> Any:
            def work() -> Any:
                if getattr(request, "version", "") not in ("", "1"):
                    raise Down(404, "no such version")
                found = fake.ask(what, getattr(request, "name", ""))
                found = {"config": found} if what == "config" else {"ready": True} if what == "ready" else found
                return json_format.ParseDict(found, kind(), ignore_unknown_fields=True)

            return answered(context, work)

        return method

    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
        ServerMetadata = question("server", messages.ServerMetadataResponse)
        RepositoryIndex = question("index", messages.RepositoryIndexResponse)
        ModelMetadata = question("model", messages.ModelMetadataResponse)
        ModelConfig = question("config", messages.ModelConfigResponse)
        ModelStatistics = question("stats", messages.ModelStatisticsResponse)
        ModelReady = question("ready", messages.ModelReadyResponse)

        def ModelInfer(self, request: Any, context: Any) -> Any:
            tensors = [
                (t.name, t.datatype, list(t.shape), raw)
                for t, raw in zip(request.inputs, request.raw_input_contents, strict=True)
            ]
            if fake.take("cut"):
                context.abort(codes.INTERNAL, "Received RST_STREAM with error code 2")
            wanted = [o.name for o in request.outputs]
            found = answered(context, lambda: fake.infer(request.model_name, tensors, wanted))
            answer = messages.ModelInferResponse(model_name=request.model_name)
            for name, datatype, shape, raw in found:
                answer.outputs.add(name=name, datatype=datatype, shape=shape)
                answer.raw_output_contents.append(raw)
            if fake.damage == "surplus":
                answer.raw_output_contents.append(b"more")
            return answer

    running = grpc.server(
        ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), running)
    where = f"127.0.0.1:{server.port}"
    if given := server.certificates:
        pairs = [(given.key.read_bytes(), given.certificate.read_bytes())]
        ca = given.ca.read_bytes() if server.mutual else None
        running.add_secure_port(where, grpc.ssl_server_credentials(pairs, ca, server.mutual))
    else:
        running.add_insecure_port(where)
    running.start()
    return lambda: running.stop(0).wait()
