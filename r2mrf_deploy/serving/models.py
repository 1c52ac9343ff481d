"""The models that Triton's python backend runs: the network, and the two ends of its pipeline.

The ends run in a process for each core, which answers one request after the other. The network is there once, and answers
several requests at once.

Parameters of a model's config, each a string:
    contract    the artifact's, as `Contract.embedded` writes it.
    artifact    `Network`: the name of the model file, which lies beside model.py.
    runtime     `Network`: what runs it; empty: its default.
    threads     `Network`: CPU threads, of all inferences together; empty: all cores.
    streams     `Network`: inferences side by side; empty: as many as threads, up to `MOST_STREAMS`.
    most_bytes, most_pixels     `Decode` and `Draw`: `Limits`.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

import numpy as np

from r2mrf_deploy import environment, runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import InputError, R2mrfError
from r2mrf_deploy.manifest import Contract
from r2mrf_deploy.predictor import MOST_STREAMS
from r2mrf_deploy.runtimes import OpenOptions
from r2mrf_deploy.serving.pipeline import MOST_BYTES, MOST_PIXELS, Limits, decode, draw

log = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray]
AHEAD = 1
"""How many requests `Network` takes beyond those that threads are working on, so that none of these waits for the next."""


class Model(ABC):
    """One of Triton's models: `initialize`, `execute` and `finalize` are called by its python backend."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called once, with the config as JSON and the place of the model.

        Raises:
            R2mrfError: what the model needs is missing or damaged.
        """
        config = json.loads(args["model_config"])
        self.batched = config["max_batch_size"] > 0
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.contract = Contract.parse(parameters["contract"], f"the contract in the config of {args['model_name']}")
        self._open(parameters, Path(args["model_repository"]) / args["model_version"])

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """The responses to some requests; None if they come through the requests' senders."""
        return [response for request in requests for response in self._answers([request])]

    def finalize(self) -> None:
        """Called once, at the end."""

    def _answers(self, requests: list[Any]) -> list[Any]:
        """The responses to requests that are computed together; errors if that fails."""
        import triton_python_backend_utils as triton

        try:
            return self._responses(requests, triton)
        except Exception as e:  # of any library: Triton must get its answer
            if not isinstance(e, R2mrfError):
                log.exception("a request failed")
            said = str(e) if isinstance(e, R2mrfError) else f"unexpected {type(e).__name__}: {e}"
            code = triton.TritonError.INVALID_ARG if isinstance(e, InputError) else triton.TritonError.INTERNAL
            return [triton.InferenceResponse(error=triton.TritonError(said, code)) for _ in requests]

    def _responses(self, requests: list[Any], triton: Any) -> list[Any]:
        given = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        wanted = {name for request in requests for name in request.requested_output_names()}
        counts = [len(next(iter(arrays.values()))) for arrays in given]
        outputs = self._compute({name: _joined([arrays[name] for arrays in given]) for name in given[0]}, wanted)
        ends = np.cumsum(counts)
        return [
            triton.InferenceResponse(
                [
                    triton.Tensor(name, values[end - count : end] if self.batched else values)
                    for name, values in outputs.items()
                    if name in request.requested_output_names()
                ]
            )
            for request, count, end in zip(requests, counts, ends, strict=True)
        ]

    @abstractmethod
    def _open(self, parameters: Mapping[str, str], folder: Path) -> None:
        """Open what the model needs."""

    @abstractmethod
    def _compute(self, arrays: Arrays, wanted: set[str]) -> Arrays:
        """The outputs of inputs, at least those that are wanted. The first dimension is that of the batch if `batched`."""


class Network(Model):
    """An artifact, by one of our runtimes. It takes batches of any size: on a GPU they are computed as such; on a CPU one by
    one, side by side, which is as fast and gives each photograph the bits that it has alone.

    Each request is answered as soon as it is computed, through its own sender, which Triton's python backend allows since
    24.04. No more is taken than there are threads for, and `AHEAD`: what waits beyond that waits in Triton's queue, where
    batches form and times are counted. What Triton counts as computation ends when the last of a batch has begun.
    """

    def _open(self, parameters: Mapping[str, str], folder: Path) -> None:
        cores = int(parameters.get("threads") or environment.cores())
        artifact, runtime = folder / parameters["artifact"], parameters.get("runtime") or None
        chosen = runtimes.get(runtime) if runtime else runtimes.default(Artifact.open(artifact))
        streams = int(parameters.get("streams") or min(MOST_STREAMS, cores))
        given = {"threads": cores, "streams": streams}
        options = OpenOptions(**{k: v for k, v in given.items() if k in chosen.supported_options})  # type: ignore[arg-type]
        self._runner = runtimes.open(artifact, chosen.name, options=options)
        own = self._runner.inputs[0].shape[0]
        self._batch = own if isinstance(own, int) else None
        self._most = self.contract.profile(self._runner.inputs[0].name).get("max", [])
        self._pool = ThreadPoolExecutor(self._runner.streams)
        self._room = BoundedSemaphore(self._runner.streams + AHEAD)

    def execute(self, requests: Sequence[Any]) -> None:
        for together in self._together(requests):
            self._room.acquire()
            self._pool.submit(self._answer, together)

    def finalize(self) -> None:
        self._pool.shutdown()
        self._runner.close()

    def _together(self, requests: Sequence[Any]) -> Iterable[list[Any]]:
        """The requests that are computed together."""
        if not self._runner.on_gpu:
            return [[request] for request in requests]
        groups: dict[Any, list[Any]] = {}
        for request in requests:  # the config lets Triton put photographs of several sizes together
            groups.setdefault(tuple(tuple(tensor.shape()[1:]) for tensor in request.inputs()), []).append(request)
        return groups.values()

    def _answer(self, requests: list[Any]) -> None:
        import triton_python_backend_utils as triton

        try:
            responses = self._answers(requests)
        finally:
            self._room.release()
        for request, response in zip(requests, responses, strict=True):
            try:
                request.get_response_sender().send(response, flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            except Exception:  # a client that has left must not take the answers of others with it
                log.exception("an answer could not be sent")

    def _compute(self, arrays: Arrays, wanted: set[str]) -> Arrays:
        for name, array in arrays.items():
            if any(side > most for side, most in zip(array.shape[1:], self._most[1:], strict=False)):
                raise InputError(f"{name} is {list(array.shape[1:])}, and at most {self._most[1:]} is taken")
            if not array.size:
                raise InputError(f"{name} is {list(array.shape[1:])}, which is empty")
        count = len(next(iter(arrays.values())))
        size = self._batch or (count if self._runner.on_gpu else 1)
        found = [
            self._run({name: a[at : at + size] for name, a in arrays.items()}, size) for at in range(0, count, size)
        ]
        return {name: np.concatenate([each[name] for each in found]) for name in found[0]}

    def _run(self, arrays: Arrays, size: int) -> Arrays:
        """Compute a batch, filled with its last image to the size that the artifact has."""
        count = len(next(iter(arrays.values())))
        full = {
            name: np.concatenate([a, *[a[-1:]] * (size - count)]) if count < size else a for name, a in arrays.items()
        }
        return {name: output[:count] for name, output in self._runner.run(full).items()}


class Decode(Model):
    """Files' bytes become the network's input, and the photographs' sizes."""

    def _open(self, parameters: Mapping[str, str], folder: Path) -> None:
        self._limits = _limits(parameters)

    def _compute(self, arrays: Arrays, wanted: set[str]) -> Arrays:
        found = [decode(content, self.contract, self._limits) for content in arrays["file"].reshape(-1)]
        spec, size = self.contract.inputs[0], np.array([size for _, size in found], np.int32)
        if self.batched:
            return {spec.name: _joined([image for image, _ in found]), "size": size}
        own = spec.shape[0]
        return {spec.name: np.repeat(found[0][0], own if isinstance(own, int) else 1, 0), "size": size[0]}


class Draw(Model):
    """The network's maps become the photographs': pictures, floats, scores."""

    def _open(self, parameters: Mapping[str, str], folder: Path) -> None:
        self._limits = _limits(parameters)

    def _compute(self, arrays: Arrays, wanted: set[str]) -> Arrays:
        maps, sizes = arrays["network_map"], arrays["size"].reshape(-1, 2)
        found = [
            draw(focus[0], (int(height), int(width)), self.contract, wanted, self._limits)
            for focus, (height, width) in zip(maps[: len(sizes)], sizes, strict=True)
        ]
        return {name: _stacked([each[name] for each in found], self.batched) for name in found[0]}


def _limits(parameters: Mapping[str, str]) -> Limits:
    return Limits(int(parameters.get("most_bytes") or MOST_BYTES), int(parameters.get("most_pixels") or MOST_PIXELS))


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays of several requests, or photographs, as one batch."""
    if len({array.shape[1:] for array in arrays}) > 1:
        raise InputError(
            "the photographs of one request must have the same size in the network's input: send them one by one"
        )
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _stacked(values: Sequence[np.ndarray | bytes], batched: bool) -> np.ndarray:
    """One output of several photographs. Bytes are Triton's strings, [1] for each."""
    as_arrays = [np.array([value], np.object_) if isinstance(value, bytes) else value for value in values]
    return np.stack(as_arrays) if batched else as_arrays[0]
