"""The configs of Triton's models, `config.pbtxt`, made of an artifact's contract.

An artifact NAME becomes four models: `NAME`, the network; and, for files, `NAME_decode`, `NAME_draw` and the ensemble
`NAME_jpeg` of all three. Each config is a mapping with the names of Triton's `model_config.proto`, and becomes a message
and its text in `text`. `checks` compares what was written with the artifact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.manifest import NEUTRAL, Contract, TensorSpec
from r2mrf_deploy.serving.pipeline import MOST_BYTES, MOST_PIXELS

Config = dict[str, Any]
Backend = Literal["tensorrt", "onnxruntime", "openvino", "python"]

FILES: dict[Backend, str] = {"tensorrt": ".plan", "onnxruntime": ".onnx", "openvino": ".xml"}
"""Backend that reads an artifact itself -> the suffix of what it reads."""
OWNER = "r2mrf"
"""The parameter of every config that we write: the name of the network that the model belongs to."""
PARTS = ("decode", "draw", "jpeg")
"""What is appended to a network's name for the models that take files."""
LABELS = "labels.txt"
SHARE = 0.1
"""Of a latency target, what a request may wait for others where nothing is known of the time of the computation."""

_TYPES = {
    **{name: f"TYPE_{name.upper()}" for name in ("uint8", "int8", "int32", "int64")},
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}


@dataclass(frozen=True)
class Service:
    """How one artifact is served."""

    name: str
    contract: Contract
    backend: Backend
    file: str
    """What the model file is called in the repository."""
    max_batch: int
    """The most images of one inference; 0 if the server must send the artifact's own, fixed batch."""
    delay_us: int = 0
    """How long a request may wait for others, in microseconds."""
    instances: int = 1
    workers: int = 1
    """Instances of the decoder, and of the drawer."""
    threads: int | None = None
    runtime: str = ""
    """For the python backend: what runs the artifact; empty: its default."""
    gpu: bool = False


def delay_us(target_ms: float | None, compute_ms: float | None) -> int:
    """How long a request may wait for others that are computed together with it, in microseconds.

    Without a target, nothing is held up: what has come while the network computed is the next batch. With one, a request
    may wait for half of what the target leaves beside the computation of a full batch; the other half is for the batch
    before it, decoding and drawing. If the time of the computation is not known, it may wait for a tenth of the target.

    Args:
        target_ms: within how many milliseconds most requests should be answered.
        compute_ms: how long a full batch takes.
    """
    if target_ms is None:
        return 0
    wait = target_ms * SHARE if compute_ms is None else max(0.0, (target_ms - compute_ms) / 2)
    return round(wait * 1000)


def network(service: Service) -> Config:
    """The config of the network itself, with exactly the artifact's inputs and outputs."""
    contract, batched = service.contract, service.max_batch > 0
    found = _model(service, service.name, service.instances, service.gpu) | {
        "backend": service.backend,
        "input": [tensor(spec, batched) for spec in contract.inputs],
        "output": [tensor(spec, batched) for spec in contract.outputs],
        "model_warmup": [_warmup(contract, batched)],
    }
    if batched:
        found["dynamic_batching"] = {"max_queue_delay_microseconds": service.delay_us}
    if batched and service.backend == "python":  # our model sorts requests by their shapes itself
        found["input"] = [
            each | {"allow_ragged_batch": True} if -1 in each["dims"] else each for each in found["input"]
        ]
    found["parameters"] |= _parameters(_settings(service) | {"contract": contract.embedded()})
    return found


def decode(service: Service) -> Config:
    """The config of the model that turns files into the network's input."""
    batched = service.max_batch > 0
    limits = {"most_bytes": str(MOST_BYTES), "most_pixels": str(MOST_PIXELS)}
    found = _model(service, f"{service.name}_decode", service.workers) | {
        "backend": "python",
        "input": [_tensor("file", "TYPE_STRING", 1)],
        "output": [tensor(service.contract.inputs[0], batched), _tensor("size", "TYPE_INT32", 2)],
    }
    found["parameters"] |= _parameters(limits | {"contract": service.contract.embedded()})
    return found


def draw(service: Service) -> Config:
    """The config of the model that turns the network's maps into what a client gets."""
    focus = tensor(map_of(service.contract), service.max_batch > 0)
    found = _model(service, f"{service.name}_draw", service.workers) | {
        "backend": "python",
        "input": [focus | {"name": "network_map"}, _tensor("size", "TYPE_INT32", 2)],
        "output": _results(),
    }
    found["parameters"] |= _parameters({"most_pixels": str(MOST_PIXELS), "contract": service.contract.embedded()})
    return found


def jpeg(service: Service) -> Config:
    """The config of the ensemble: the bytes of a JPEG or PNG in, a picture of the map, the map and its scores out."""
    name, image = service.name, service.contract.inputs[0].name
    steps = (
        (f"{name}_decode", {"file": "file"}, {image: "network_input", "size": "size"}),
        (name, {image: "network_input"}, {"map": "network_map"}),
        (
            f"{name}_draw",
            {"network_map": "network_map", "size": "size"},
            {output["name"]: output["name"] for output in _results()},
        ),
    )
    return {
        "name": f"{name}_jpeg",
        "platform": "ensemble",
        "max_batch_size": service.max_batch,
        "version_policy": {"latest": {"num_versions": 1}},
        "parameters": _parameters({OWNER: name}),
        "input": [_tensor("file", "TYPE_STRING", 1)],
        "output": _results(),
        "ensemble_scheduling": {
            "step": [
                {"model_name": model, "model_version": -1, "input_map": inputs, "output_map": outputs}
                for model, inputs, outputs in steps
            ]
        },
    }


def map_of(contract: Contract) -> TensorSpec:
    """The output that is the network's map."""
    return next(spec for spec in contract.outputs if spec.name == "map")


def tensor(spec: TensorSpec, batched: bool) -> Config:
    """An input or output as Triton's configs have it: without the batch if Triton forms batches; -1 for a free size."""
    shape = spec.shape[1:] if batched else spec.shape
    return _tensor(spec.name, triton_type(spec), *(side if isinstance(side, int) else -1 for side in shape))


def triton_type(spec: TensorSpec) -> str:
    """Triton's name of a tensor's type.

    Raises:
        ArtifactError: Triton has none.
    """
    if spec.dtype not in _TYPES:
        raise ArtifactError(f"{spec}: Triton has no type {spec.dtype}")
    return _TYPES[spec.dtype]


def text(config: Mapping[str, Any]) -> str:
    """A config as the text of a `config.pbtxt`. Names and types that Triton's message does not have are errors."""
    from google.protobuf import json_format, text_format
    from tritonclient.grpc import model_config_pb2

    return str(text_format.MessageToString(json_format.ParseDict(config, model_config_pb2.ModelConfig())))


def _model(service: Service, name: str, instances: int, gpu: bool = False) -> Config:
    return {
        "name": name,
        "max_batch_size": service.max_batch,
        "version_policy": {"latest": {"num_versions": 1}},
        "instance_group": [{"kind": "KIND_GPU" if gpu else "KIND_CPU", "count": instances}],
        "parameters": _parameters({OWNER: service.name}),
    }


def _settings(service: Service) -> dict[str, str]:
    """What the backend is told, by the names in its documentation."""
    threads = str(service.threads) if service.threads else ""
    if service.backend == "python":
        return {"artifact": service.file, "runtime": service.runtime, "threads": threads, "streams": ""}
    if service.backend == "openvino":
        many = service.instances > 1
        hint = {"NUM_STREAMS": str(service.instances)} if many else {"PERFORMANCE_HINT": "LATENCY"}
        return hint | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    return {"intra_op_thread_count": threads} if threads else {}


def _warmup(contract: Contract, batched: bool) -> Config:
    """A request that Triton sends before the model is ready: random values in a shape that the artifact takes."""
    return {
        "name": "one",
        "batch_size": 1,
        "inputs": {
            spec.name: {
                "data_type": triton_type(spec),
                "dims": usual_shape(contract, spec)[1 if batched else 0 :],
                "random_data": True,
            }
            for spec in contract.inputs
        },
    }


def usual_shape(contract: Contract, spec: TensorSpec) -> list[int]:
    """A shape that an input takes: its own; the best of its profile; or a square of the longest side that is used."""
    if best := contract.profile(spec.name).get("opt"):
        return best
    side = (contract.preprocess or NEUTRAL).longest_side
    free = [side if axis in spec.spatial_axes else 1 for axis in range(len(spec.shape))]
    return [own if isinstance(own, int) else other for own, other in zip(spec.shape, free, strict=True)]


def _results() -> list[Config]:
    """What a client gets of a file."""
    return [
        _tensor("png", "TYPE_STRING", 1),
        _tensor("map", "TYPE_FP32", -1, -1),
        _tensor("scores", "TYPE_STRING", 1),
        _tensor("verdict", "TYPE_FP32", 4) | {"label_filename": LABELS},
    ]


def _tensor(name: str, data_type: str, *dims: int) -> Config:
    return {"name": name, "data_type": data_type, "dims": list(dims)}


def _parameters(values: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {key: {"string_value": value} for key, value in values.items()}


def configs(service: Service, parts: Sequence[str] = PARTS) -> dict[str, Config]:
    """The configs of the models of an artifact: name -> config, the network first."""
    makers = {"decode": decode, "draw": draw, "jpeg": jpeg}
    found = [network(service), *(makers[part](service) for part in parts)]
    return {config["name"]: config for config in found}
