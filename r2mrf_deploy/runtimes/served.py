"""A model on an inference server, used as every other runtime is: Triton, OpenVINO Model Server, MLServer, KServe."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from r2mrf_deploy.errors import ArtifactError, InputError, UsageError, did_you_mean, reading
from r2mrf_deploy.formats import KEY
from r2mrf_deploy.manifest import Contract, TensorSpec
from r2mrf_deploy.progress import timed
from r2mrf_deploy.runtimes.base import Arrays, OpenOptions, Runner, changed
from r2mrf_deploy.runtimes.kserve import tensors
from r2mrf_deploy.runtimes.kserve.client import Client
from r2mrf_deploy.runtimes.kserve.connection import Connection, ServerUnavailable
from r2mrf_deploy.runtimes.kserve.statistics import ServerStatistics
from r2mrf_deploy.wording import plain

__all__ = ["Connection", "Prepared", "ServedRunner", "ServerStatistics", "ServerUnavailable", "connect"]

log = logging.getLogger(__name__)

IN_FLIGHT = 8
"""Requests under way at once unless more are asked for: what a server puts together in a batch, and a network's delay."""
CONTRACT = "contract"
"""The parameter of Triton's model configuration that holds the contract."""
ARTIFACT = "artifact"
"""The parameter that names the file of a network in Triton's python backend."""
MOST_MODELS = 64
"""The most models of a server that are asked what they take."""


@dataclass(frozen=True)
class Prepared:
    """An inference, ready to be sent any number of times."""

    request: Any
    outputs: tuple[str, ...]
    batch: int | None
    """How many images it holds; None where the input is none."""
    input: str
    """The shape of the first input: `1x320x320x3`."""


class ServedRunner(Runner):
    """A model on a server. Any number of threads may use it at once."""

    runtime = "server"

    def __init__(
        self,
        client: Client,
        model: str,
        version: str,
        device: str,
        versions: str,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        contract: Contract | None,
        steps: tuple[str, ...] = (),
        streams: int = IN_FLIGHT,
        most_batch: int | None = None,
        early: tuple[str, ...] = (),
    ) -> None:
        self.client, self.model, self.version, self.versions = client, model, version, versions
        self.device, self.inputs, self.outputs, self.streams = device, inputs, outputs, streams
        self.contract = contract
        """What the server knows of the artifact; or the contract that the caller gave."""
        self.most_batch = most_batch
        self.early = early
        """Those of the model and its steps of whose computation the server counts a part only (see `serving.models`)."""
        self.steps = steps
        """The models that an ensemble consists of."""

    @property
    def identity(self) -> str:
        """What tells the model from others."""
        checkpoint = self.contract.checkpoint_sha256 if self.contract else None
        return " ".join(filter(None, (checkpoint or self.client.address, self.model, self.versions)))

    def prepare(self, arrays: Mapping[str, np.ndarray], outputs: Collection[str] | None = None) -> Prepared:
        """An inference, for `infer`.

        Args:
            arrays: as for `run`.
            outputs: the names of those that are wanted; by default all.

        Raises:
            InputError: as `run` raises it.
            UsageError: there is no such output.
        """
        known = [s.name for s in self.outputs]
        if unknown := [name for name in outputs or () if name not in known]:
            raise UsageError(f"{self.model} has no output {unknown[0]!r}: {did_you_mean(unknown[0], known)}")
        sent = self._checked(arrays)
        first = self.inputs[0]
        shape = sent[first.name].shape
        wanted = tuple(outputs or known)
        encoded = [tensors.encode(name, array) for name, array in sent.items()]
        request = self.client.request(self.model, self.version, encoded, wanted)
        return Prepared(request, wanted, shape[0] if first.layout else None, "x".join(map(str, shape)))

    async def infer(self, prepared: Prepared) -> Arrays:
        """The outputs; on the client's event loop."""
        answer = await self.client.infer(self.model, self.version, prepared.request)
        try:
            return tensors.checked(answer, self.outputs, prepared.outputs, prepared.batch)
        except ArtifactError as e:
            raise ArtifactError(f"{self.client.address}: the answer of {self.model} is damaged: {e}") from None

    def _run(self, arrays: Arrays) -> Arrays:
        return self.client.call(self.infer(self.prepare(arrays)))

    def statistics(self) -> list[ServerStatistics]:
        """What the server counted for the model, and for the steps of an ensemble; empty where it keeps no statistics."""
        return self.client.call(self.counted())

    async def counted(self) -> list[ServerStatistics]:
        """`statistics`, on the client's event loop."""
        counted = []
        for model in (self.model, *self.steps):
            version = self.version if model == self.model else ""
            if (found := await self.client.ask("stats", model, version)) is None:
                continue
            with reading(self.client.address, ArtifactError, f"has statistics of {model} that are damaged"):
                counted.append(ServerStatistics.of(model, found))
        return counted

    def abandon(self) -> None:
        self.client.abandon()

    def close(self) -> None:
        self.client.close()

    def __enter__(self) -> ServedRunner:
        return self


def connect(
    connection: Connection,
    options: OpenOptions | None = None,
    *,
    contract: Contract | None = None,
    photographs: bool = False,
    outputs: Collection[str] | None = None,
) -> ServedRunner:
    """Connect to a model on a server.

    Args:
        connection: where the address names no model, it is the only one there that makes a map of a photograph.
        options: `streams` is the number of requests that are under way at once.
        contract: of the artifact that is served, for a server that does not know it.
        photographs: refuse a model that takes no photograph, and leave out the outputs that are no maps.
        outputs: leave out all others.

    Raises:
        UsageError: there is no such model, or no only one; or an option has no meaning for a server.
        InputError: `photographs` is set, and the model takes none, or there is no contract that says how.
        ServerUnavailable: the server is away, or does not let us in.
        ArtifactError: it says something that the protocol does not have, or the contract is another's.
    """
    options = options or OpenOptions()
    if refused := [name for name in changed(options) if name != "streams"]:
        raise UsageError(f"a server does not support `{refused[0]}`: leave it out")
    client = Client(connection)
    try:
        with timed(log, "connected to %s", client.address):
            runner = client.call(_found(client, contract, options.streams or IN_FLIGHT))
        log.debug("it is %s, with the model %s", runner.device, runner.model)
        if photographs:
            _refuse_no_photographs(runner)
            runner.outputs = tuple(s for s in runner.outputs if s.layout == "NCHW")
            if runner.contract is None:
                log.warning(
                    "%s at %s has no contract that says how photographs are fitted, and at what scale: name the artifact "
                    "that is served, too", runner.model, client.address,
                )  # fmt: skip
        if outputs is not None:
            runner.outputs = tuple(s for s in runner.outputs if s.name in outputs)
        return runner
    except BaseException:
        client.close()
        raise


async def _found(client: Client, contract: Contract | None, streams: int) -> ServedRunner:
    where = client.connection.where
    server = await client.ask("server") or {}
    device = f"{plain(server.get('name', 'a server'))[:40]} {plain(server.get('version', ''))[:20]}".strip()
    model = where.model or await _only_model(client)
    found = await client.ask("model", model, where.version)
    if found is None:
        there = await _names(client)
        which = f"{model} in version {where.version}" if where.version else model
        raise UsageError(f"`server` {client.address} has no model {which}: " + _listed(model, there))
    config = await client.ask("config", model, where.version) or {}
    with reading(client.address, ArtifactError, f"has a model {model} whose description is damaged"):
        contract = _contract(found, config, f"the contract of {model} at {client.address}") or contract
        steps = [step["model_name"] for step in (config.get("ensemble_scheduling") or {}).get("step", ())]
        most = int(config.get("max_batch_size") or 0)
        configs = {model: config} | {step: await client.ask("config", step) or {} for step in steps[:MOST_MODELS]}
        early = tuple(name for name, each in configs.items() if ARTIFACT in (each.get("parameters") or {}))
        versions = ",".join(str(v)[:20] for v in found.get("versions") or ())
        try:
            inputs = tensors.specs(found.get("inputs"), contract)
            same = contract and {s.name for s in contract.inputs} == {s.name for s in inputs}
            outputs = tensors.specs(
                found.get("outputs"), contract if same else None
            )  # else it is what drives the model
        except ArtifactError as e:
            raise ArtifactError(f"{model} at {client.address}: {e}") from None
    return ServedRunner(
        client, model, where.version, f"{device} at {client.address}", where.version or versions, inputs, outputs,
        contract, tuple(dict.fromkeys(map(str, steps[:MOST_MODELS]))), streams, most if most > 0 else None, early,
    )  # fmt: skip


def _contract(metadata: Mapping[str, Any], config: Mapping[str, Any], name: str) -> Contract | None:
    """The contract in Triton's configuration, or in what OpenVINO Model Server tells of our file; None without one."""
    said = (config.get("parameters") or {}).get(CONTRACT)
    text = said.get("string_value") if isinstance(said, dict) else None
    if not text and isinstance(told := metadata.get("rt_info"), dict):
        text = told.get(KEY)
        text = text.get("value") if isinstance(text, dict) else text
    return Contract.parse(text, name) if isinstance(text, str) and text else None


async def _names(client: Client) -> list[str]:
    """The models that are ready, where the server lists them."""
    found = await client.ask("index") or {}
    listed = found.get("models")
    each = [m for m in listed if isinstance(m, dict)] if isinstance(listed, list) else []
    ready = [str(m.get("name"))[: tensors.MOST] for m in each if m.get("state", "READY") == "READY"]
    return list(dict.fromkeys(ready))


def _listed(name: str, there: list[str]) -> str:
    return did_you_mean(name, there) if there else "it does not list those that it has"


async def _only_model(client: Client) -> str:
    """The only model that makes a map of a photograph.

    Raises:
        UsageError: there are several, or none, or the server does not tell.
    """
    there = await _names(client)
    fit = []
    for name in there[:MOST_MODELS]:
        found = await client.ask("model", name) or {}
        try:
            inputs, outputs = (tensors.specs(found.get(part), None) for part in ("inputs", "outputs"))
        except ArtifactError:  # another's model
            continue
        if len(inputs) == 1 and inputs[0].layout and any(s.name == "map" for s in outputs):
            fit.append(name)
    if len(fit) == 1:
        return fit[0]
    if not there:
        raise UsageError(f"`server` {client.address} lists no models: name one, as in {client.address}/NAME")
    what = "several models make" if fit else "no model makes"
    raise UsageError(
        f"`server` {client.address}: {what} a map of a photograph: name one, as in {client.address}/{(fit or there)[0]}; "
        f"{did_you_mean('', fit or there)}"
    )


def _refuse_no_photographs(runner: ServedRunner) -> None:
    inputs, outputs = runner.inputs, [s for s in runner.outputs if s.name == "map"]
    if len(inputs) != 1 or inputs[0].layout is None or not outputs or outputs[0].layout != "NCHW":
        takes = ", ".join(map(str, inputs))
        raise InputError(f"{runner.model} at {runner.client.address} makes no map of one photograph: it takes {takes}")
    if inputs[0].dtype != "uint8" and runner.contract is None:
        raise InputError(
            f"{runner.model} at {runner.client.address} takes {inputs[0].dtype}, and has no contract that says how a "
            "photograph is normalised: name the artifact that is served, too"
        )
