"""Whether what was written for Triton is what the artifact is: every config is read back as the server reads it.

The network's inputs and outputs must have the contract's names, types and sizes, and the models of an ensemble must fit
together. The first difference is the message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from r2mrf_deploy.errors import ArtifactError, reading
from r2mrf_deploy.files import document
from r2mrf_deploy.manifest import Contract, TensorSpec
from r2mrf_deploy.serving.triton import OWNER, triton_type

CONFIG = "config.pbtxt"


def read(folder: Path) -> Any:
    """The config of a model's folder, as Triton's `ModelConfig`.

    Raises:
        ArtifactError: there is none, or it is not a config of a model of that name.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    path = folder / CONFIG
    with reading(path, ArtifactError, "is not a config of Triton's"):
        config = text_format.Parse(document(path).decode(), model_config_pb2.ModelConfig())
    if config.name != folder.name:
        raise ArtifactError(f"{path} is the config of {config.name!r}; its folder is called {folder.name!r}")
    return config


def owner(folder: Path) -> str | None:
    """The network that a model's folder was written for; None if we did not write it."""
    try:
        config = read(folder)
    except ArtifactError:
        return None
    return config.parameters[OWNER].string_value if OWNER in config.parameters else None


def check_network(config: Any, contract: Contract) -> None:
    """Compare a network's config with its contract.

    Raises:
        ArtifactError: a name, a type or a size differs.
    """
    for found, said in ((config.input, contract.inputs), (config.output, contract.outputs)):
        _check_names(config.name, {t.name for t in found}, {spec.name for spec in said})
        for spec in said:
            _check_tensor(config, _named(found, spec.name), spec)


def check_ensemble(config: Any, models: Mapping[str, Any]) -> None:
    """Check that the steps of an ensemble fit together.

    Args:
        models: the configs of the models of its steps, by name.

    Raises:
        ArtifactError: a step has no model, or no such tensor, or what flows between two of them differs in type or sizes.
    """
    known = {tensor.name: (config.name, tensor) for tensor in config.input}
    for step in config.ensemble_scheduling.step:
        model = models.get(step.model_name)
        if model is None:
            raise ArtifactError(f"{config.name}: there is no model {step.model_name}")
        if model.max_batch_size != config.max_batch_size:
            raise ArtifactError(
                f"{config.name} has batches of at most {config.max_batch_size}, {model.name} of {model.max_batch_size}"
            )
        if set(step.input_map) != (wants := {tensor.name for tensor in model.input}):
            raise ArtifactError(
                f"{config.name} gives {sorted(step.input_map)} to {model.name}, which takes {sorted(wants)}"
            )
        for inner, outer in step.input_map.items():
            if outer not in known:
                raise ArtifactError(f"{config.name}: nothing makes {outer}, which {model.name} takes")
            _check_same(known[outer], (model.name, _named(model.input, inner)))
        for inner, outer in step.output_map.items():
            if inner not in {t.name for t in model.output}:
                raise ArtifactError(f"{config.name}: {model.name} has no output {inner}")
            known[outer] = (model.name, _named(model.output, inner))
    for tensor in config.output:
        if tensor.name not in known:
            raise ArtifactError(f"{config.name}: nothing makes its output {tensor.name}")
        _check_same(known[tensor.name], (config.name, tensor))


def _check_tensor(config: Any, tensor: Any, spec: TensorSpec) -> None:
    batched = config.max_batch_size > 0
    said = [side if isinstance(side, int) else -1 for side in (spec.shape[1:] if batched else spec.shape)]
    kind = _type(tensor)
    if kind != triton_type(spec) or list(tensor.dims) != said:
        found = f"{kind} {list(tensor.dims)}"
        raise ArtifactError(f"{config.name}: {tensor.name} is {found}, the artifact says {triton_type(spec)} {said}")


def _check_names(where: str, found: set[str], said: set[str]) -> None:
    if found != said:
        raise ArtifactError(f"{where} has {sorted(found)}, the artifact says {sorted(said)}")


def _check_same(one: tuple[str, Any], other: tuple[str, Any]) -> None:
    """Two ends of a connection: their types are the same, and their sizes where both are fixed."""
    (giver, given), (taker, taken) = one, other
    sizes = list(given.dims), list(taken.dims)
    fits = len(sizes[0]) == len(sizes[1]) and all(a == b or -1 in (a, b) for a, b in zip(*sizes, strict=True))
    if given.data_type != taken.data_type or not fits:
        raise ArtifactError(
            f"{giver} gives {given.name} as {_type(given)} {sizes[0]}, {taker} takes {_type(taken)} {sizes[1]}"
        )


def _named(tensors: Iterable[Any], name: str) -> Any:
    return next(tensor for tensor in tensors if tensor.name == name)


def _type(tensor: Any) -> str:
    from tritonclient.grpc import model_config_pb2

    return str(model_config_pb2.DataType.Name(tensor.data_type))
