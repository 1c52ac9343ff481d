"""`r2mrf inspect`: what a checkpoint, an ONNX file, a plan, a package or a manifest is, without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2mrf_deploy import formats, web
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.checkpoint_files import SUFFIXES, Loading, is_checkpoint
from r2mrf_deploy.errors import GraphError, InputError, UsageError, no_file, reading
from r2mrf_deploy.files import sha256
from r2mrf_deploy.formats import openvino
from r2mrf_deploy.manifest import Manifest

if TYPE_CHECKING:
    from typing_extensions import Unpack


def inspect(path: Path | str, **loading: Unpack[Loading]) -> dict[str, Any]:
    """What a file says of itself, by section or field.

    Args:
        loading: for a checkpoint, as in `Checkpoint.load`.

    Raises:
        InputError: no such file, or an unknown kind of file.
        CheckpointError, GraphError, ArtifactError: the file is damaged, or does not match its manifest.
    """
    path = web.file_of(Path(path))
    if not path.is_file():
        raise no_file(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return Manifest.read(path).model_dump(exclude_none=True)
    if is_checkpoint(path):
        facts = _checkpoint(path, loading)
    elif given := [f"`{name}`" for name, value in loading.items() if value]:
        raise UsageError(f"{path} is not a checkpoint: leave out {' and '.join(given)}")
    elif suffix in formats.KINDS:
        facts = _artifact(Artifact.open(path))
    else:
        raise InputError(f"{path}: inspect reads {' '.join([*SUFFIXES, *formats.KINDS])} and manifests (.json)")
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)} | facts


def _artifact(artifact: Artifact) -> dict[str, Any]:
    path = artifact.path
    suffix = path.suffix.lower()
    facts = {"kind": formats.KINDS[suffix]} | _DETAILS[suffix](artifact)
    if artifact.manifest:
        return facts | {"manifest": artifact.manifest.model_dump(exclude_none=True)}
    facts["manifest"] = f"none: {path.name}.json is missing, and with it the evidence of parity, latency and accuracy"
    if artifact.contract:
        facts["contract inside the file"] = artifact.contract.model_dump(exclude_none=True, exclude_defaults=True)
    return facts


def _checkpoint(path: Path, loading: Loading) -> dict[str, Any]:
    from r2mrf_deploy.checkpoint import Checkpoint

    checkpoint = Checkpoint.load(path, **loading)
    facts = {
        "kind": "checkpoint",
        "network": checkpoint.network,
        "config": checkpoint.config.to_dict(),
        "parameters": checkpoint.parameters,
        "preprocess": checkpoint.preprocess.model_dump(exclude={"inside"}),
        "metrics": dict(checkpoint.metrics),
    }
    return facts | ({"found": dict(checkpoint.found)} if checkpoint.found else {})


def _onnx(artifact: Artifact) -> dict[str, Any]:
    from r2mrf_deploy.graph import cost, files, interface

    path = artifact.path
    model = files.read(path)
    with reading(path, GraphError, "is not a valid ONNX file"):
        if why := interface.fault(model):
            raise GraphError(f"{path} is not a valid ONNX file: {why}")
        facts: dict[str, Any] = {
            "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
            "producer": f"{model.producer_name} {model.producer_version}".strip(),
            "inputs": [_value(v) for v in model.graph.input],
            "outputs": [_value(v) for v in model.graph.output],
            "nodes": len(model.graph.node),
            "operators": dict(Counter(n.op_type for n in model.graph.node).most_common()),
            "parameters": cost.parameters(model),
        }
    try:
        facts["multiply_adds"] = cost.multiply_adds_per_image(model)
    except GraphError:
        facts["multiply_adds"] = "depends on the input's size"
    return facts


def _value(value: Any) -> str:
    import onnx

    if (kind := value.type.WhichOneof("value")) != "tensor_type":
        return f"{value.name}: {(kind or 'of no type').removesuffix('_type')}"
    tensor = value.type.tensor_type
    dims = ", ".join(str(d.dim_param or d.dim_value or "?") for d in tensor.shape.dim)
    shape = f"[{dims}]" if tensor.HasField("shape") else "of any shape"
    return f"{value.name}: {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} {shape}"


def _header(artifact: Artifact) -> dict[str, Any]:
    return asdict(artifact.header)


def _web(artifact: Artifact) -> dict[str, Any]:
    site: web.Site = artifact.header
    files = {
        file.name: file.stat().st_size for name in site.companions if (file := artifact.path.with_name(name)).exists()
    }
    about = {"title": site.title, "runtime": site.runtime, "version": site.version, "model": site.files.model.name}
    return about | {"files": files | {artifact.path.name: artifact.path.stat().st_size}}


def _openvino(artifact: Artifact) -> dict[str, Any]:
    root = openvino.root(artifact.path)
    return {"ir_version": root.get("version"), "layers": len(root.findall("layers/layer"))}


_DETAILS: dict[str, Callable[[Artifact], dict[str, Any]]] = {
    ".onnx": _onnx,
    ".plan": _header,
    ".pt2": _header,
    ".pte": _header,
    ".html": _web,
    ".xml": _openvino,
}
