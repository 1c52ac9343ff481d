"""KServe v2 over gRPC."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from r2mrf_deploy import environment
from r2mrf_deploy.errors import ArtifactError, RuntimeUnavailable
from r2mrf_deploy.runtimes.kserve.connection import Connection
from r2mrf_deploy.runtimes.kserve.tensors import DTYPES, LARGEST, MOST, Tensor, dimensions
from r2mrf_deploy.runtimes.kserve.wire import UNHEALTHY, Broken, Question, Refused, Wire

_OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),  # by itself gRPC would stay away for up to two minutes
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 10000),  # which is the time in which a connection must be made
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),  # the client's are enough
)


class GrpcWire(Wire):
    def __init__(self, connection: Connection) -> None:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it would print what its errors say anyway
        try:
            import grpc
            from google.protobuf import json_format
            from tritonclient.grpc import service_pb2, service_pb2_grpc
        except ImportError:
            cure = environment.installs("tritonclient")
            raise RuntimeUnavailable(f"a gRPC server's client needs tritonclient: {cure}") from None
        self._grpc, self._messages, self._to_dict = grpc, service_pb2, json_format.MessageToDict
        self._deadline, where = connection.deadline, connection.where
        self._metadata = tuple(connection.all_headers.items())
        options = (*_OPTIONS, ("grpc.enable_http_proxy", int(where.proxied)))
        if where.secure:
            self._channel = grpc.aio.secure_channel(where.target, _trust(grpc, connection), options=options)
        else:
            self._channel = grpc.aio.insecure_channel(where.target, options=options)
        self._server = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def ask(self, what: Question, model: str, version: str) -> dict[str, Any]:
        messages, named = self._messages, {"name": model, "version": version}
        server = self._server
        method, request = {
            "server": (server.ServerMetadata, messages.ServerMetadataRequest),
            "index": (server.RepositoryIndex, messages.RepositoryIndexRequest),
            "model": (server.ModelMetadata, messages.ModelMetadataRequest),
            "config": (server.ModelConfig, messages.ModelConfigRequest),
            "stats": (server.ModelStatistics, messages.ModelStatisticsRequest),
            "ready": (server.ModelReady, messages.ModelReadyRequest),
        }[what]
        answer = await self._sent(method, request(**({} if what in ("server", "index") else named)))
        found = self._to_dict(answer, preserving_proto_field_name=True)
        return found.get("config", {}) if what == "config" else found

    def request(self, model: str, version: str, inputs: Sequence[Tensor], outputs: Sequence[str]) -> Any:
        kind = self._messages.ModelInferRequest
        return kind(
            model_name=model,
            model_version=version,
            inputs=[kind.InferInputTensor(name=t.name, datatype=t.datatype, shape=t.shape) for t in inputs],
            outputs=[kind.InferRequestedOutputTensor(name=name) for name in outputs],
            raw_input_contents=[bytes(t.raw) for t in inputs],
        )

    async def infer(self, request: Any) -> list[Tensor]:
        answer = await self._sent(self._server.ModelInfer, request)
        outputs, contents = answer.outputs, answer.raw_output_contents
        if len(outputs) > MOST or len(outputs) != len(contents):
            raise ArtifactError(f"its answer has {len(contents):,} binary tensors for {len(outputs):,} outputs")
        for output in outputs:
            if output.datatype not in DTYPES:
                raise ArtifactError(f"its answer has {output.name[:MOST]!r} of type {output.datatype[:MOST]!r}")
        return [
            Tensor(output.name, output.datatype, dimensions(list(output.shape)), raw)
            for output, raw in zip(outputs, contents, strict=True)
        ]

    async def _sent(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=self._deadline, metadata=self._metadata)
        except self._grpc.aio.AioRpcError as e:
            raise self._refusal(e.code(), e.details() or "") from None
        except (self._grpc.aio.UsageError, self._grpc.aio.InternalError) as e:  # the channel was closed
            raise Broken(str(e)) from None

    def _refusal(self, code: Any, details: str) -> Exception:
        codes, said = self._grpc.StatusCode, f"{code.name}: {details.rpartition('; last error: ')[2]}"
        if "Failed parsing HTTP/2" in details:
            return Refused("denied", f"{said}: is this an HTTP address?")
        if "CERTIFICATE_VERIFY_FAILED" in details:
            return Refused("denied", f"{said}: trust its authority by `ca`")
        if "WRONG_VERSION_NUMBER" in details:
            return Refused("denied", f"{said}: is this a TLS address?")
        if code == codes.DEADLINE_EXCEEDED:
            return Refused("late", f"no answer within {self._deadline:g} s")
        if "protocol is restricted" in details:  # Triton's words; their code is UNAVAILABLE
            return Refused("denied", said)
        if UNHEALTHY in details:
            return Broken(said)
        # the last two are how a broken connection shows in the middle of an answer
        if code in (codes.UNAVAILABLE, codes.CANCELLED) or "RST_STREAM" in details or "Stream removed" in details:
            return Broken(said)
        if code in (codes.UNAUTHENTICATED, codes.PERMISSION_DENIED):
            return Refused("denied", f"{said}: give a token that it accepts (`token_file`)")
        if code in (codes.NOT_FOUND, codes.UNIMPLEMENTED):
            return Refused("missing", said)
        bad = code in (codes.INVALID_ARGUMENT, codes.FAILED_PRECONDITION, codes.OUT_OF_RANGE)
        return Refused("bad" if bad else "failed", said)

    async def close(self) -> None:
        await self._channel.close()


def _trust(grpc: Any, connection: Connection) -> Any:
    connection.trust()  # of a damaged file, gRPC would only say that it cannot connect
    own = connection.certificate
    return grpc.ssl_channel_credentials(
        root_certificates=connection.ca.read_bytes() if connection.ca else None,
        private_key=(connection.key or own).read_bytes() if own else None,
        certificate_chain=own.read_bytes() if own else None,
    )
