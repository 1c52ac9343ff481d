"""`r2mrf inspect`: what a checkpoint, an ONNX file, a plan, a package or a manifest is, without running it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from r2mrf_deploy.errors import ArtifactError, GraphError, InputError, UsageError, no_file
from r2mrf_deploy.files import sha256
from r2mrf_deploy.manifest import Manifest


def inspect(
    path: Path | str, *, network: str | None = None, settings: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a file says of itself, by section or field.

    Args:
        network, settings: of a checkpoint, as for `Checkpoint.load`.

    Raises:
        InputError: no such file, or a kind of file that this does not know.
        CheckpointError, GraphError, ArtifactError: the file is damaged, or does not match its manifest.
    """
    path = Path(path)
    if not path.is_file():
        raise no_file(path)
    checkpoint = partial(_checkpoint, network=network, settings=settings)
    readers: dict[str, Callable[[Path], dict[str, Any]]] = {
        ".pth": checkpoint,
        ".pt": checkpoint,
        ".onnx": _onnx,
        ".plan": _plan,
        ".pt2": _package,
        ".xml": _openvino,
    }
    if (network or settings) and path.suffix.lower() not in (".pth", ".pt"):
        raise UsageError(f"{path} is no checkpoint: --network and --set say nothing of it")
    if path.name.endswith(".json"):
        return Manifest.read(path).model_dump(exclude_none=True)
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: inspect reads {' '.join(readers)} and manifests (.json)")
    facts = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
    facts |= readers[path.suffix.lower()](path)
    if path.suffix.lower() not in (".pth", ".pt"):
        manifest = Manifest.beside(path)
        facts["manifest"] = manifest.model_dump(exclude_none=True) if manifest else "none"
    return facts


def _checkpoint(path: Path, network: str | None, settings: Mapping[str, str] | None) -> dict[str, Any]:
    from r2mrf_deploy.checkpoint import Checkpoint

    checkpoint = Checkpoint.load(path, network=network, settings=settings)
    return {
        "kind": "checkpoint",
        "network": checkpoint.network,
        "config": checkpoint.config.to_dict(),
        "parameters": checkpoint.parameters,
        "preprocess": checkpoint.preprocess.model_dump(exclude={"inside"}),
        "metrics": dict(checkpoint.metrics),
    }


def _onnx(path: Path) -> dict[str, Any]:
    from collections import Counter

    import onnx

    from r2mrf_deploy.graph import cost

    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as e:  # protobuf's and onnx's exceptions share no base class
        raise GraphError(f"{path} is not a valid ONNX file: {str(e).splitlines()[0]}") from None
    facts: dict[str, Any] = {
        "kind": "onnx",
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "inputs": [_value(v) for v in model.graph.input],
        "outputs": [_value(v) for v in model.graph.output],
        "nodes": len(model.graph.node),
        "operators": dict(Counter(n.op_type for n in model.graph.node).most_common()),
        "parameters": cost.parameters(model),
    }
    try:
        facts["multiply_adds"] = cost.multiply_adds(model)
    except GraphError:
        facts["multiply_adds"] = "depends on the input's size"
    return facts


def _value(value: Any) -> str:
    import onnx

    tensor = value.type.tensor_type
    dims = ", ".join(str(d.dim_param or d.dim_value or "?") for d in tensor.shape.dim)
    return f"{value.name}: {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} [{dims}]"


def _plan(path: Path) -> dict[str, Any]:
    from r2mrf_deploy.runtimes.tensorrt import plan_header

    return {"kind": "plan"} | asdict(plan_header.read(path))


def _package(path: Path) -> dict[str, Any]:
    from r2mrf_deploy.runtimes.aotinductor import Package

    package = Package.read(path)
    return {
        "kind": "pt2",
        "device": package.device,
        "target": package.target.model_dump(exclude_none=True) if package.target else "unknown",
        "inputs": [str(s) for s in package.inputs],
        "outputs": [str(s) for s in package.outputs],
    }


def _openvino(path: Path) -> dict[str, Any]:
    from xml.etree import ElementTree

    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as e:
        raise ArtifactError(f"{path} is not an OpenVINO model: {e}") from None
    if root.tag != "net":
        raise ArtifactError(f"{path} is not an OpenVINO model: its root is <{root.tag}>, not <net>")
    return {"kind": "openvino", "ir_version": root.get("version"), "layers": len(root.findall("layers/layer"))}
