"""`r2mrf adopt`: an ONNX model of another tool, from a photograph to a map, becomes an artifact like ours.

A saliency, matting or segmentation network of one class does to a photograph what a blur detector does. What its file does
not say is how a photograph becomes its input, and which output is the map. Once that is stated, every verb can use it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx as onnx_package
import onnx_ir as ir
from onnx_ir.passes import common

from r2mrf_deploy import environment, runtimes
from r2mrf_deploy.artifact import Artifact, publish
from r2mrf_deploy.errors import ArtifactError, CheckFailed, UsageError, did_you_mean
from r2mrf_deploy.export import onnx
from r2mrf_deploy.export.base import Exported
from r2mrf_deploy.graph import files, interface
from r2mrf_deploy.manifest import NEUTRAL, Contract, Preprocess, TensorSpec
from r2mrf_deploy.networks.base import IMAGENET
from r2mrf_deploy.parity.compare import photographs_for, sample_inputs
from r2mrf_deploy.progress import Progress, ProgressCallback, silent

NORMALIZATIONS = {
    "imagenet": IMAGENET,
    "unit": NEUTRAL,
    "bytes": NEUTRAL.model_copy(update={"std": (1 / 255,) * 3}),
}
"""Name -> what the model expects of a photograph: ImageNet's mean and deviation removed; values from 0 to 1; to 255."""
MARGIN = 1e-3
"""How far a value may be outside 0..1 by rounding."""


def adopt_artifact(
    model: Path | str,
    output: Path | str,
    *,
    normalize: str = "imagenet",
    map_output: str | None = None,
    logits: bool = False,
    size: tuple[int, int] | None = None,
    progress: ProgressCallback = silent,
) -> Exported:
    """Make an artifact of an ONNX model that takes a photograph and gives one map.

    Args:
        model: has one input [N, 3, H, W] or [N, H, W, 3], float32, or uint8, which needs no `normalize`, and an output
            [N, 1, H, W] or [N, H, W], float32. The file is not changed.
        output: the `.onnx` to write.
        normalize: a name in `NORMALIZATIONS`, or the means and deviations of R, G and B, of values from 0 to 1, as
            `0.5,0.5,0.5/0.25,0.25,0.25`.
        map_output: the name of the output that is the map; by default the only one.
        logits: the output is the map's logits: a sigmoid is added.
        size: (height, width) in pixels of the input, where the model leaves them free. Photographs are stretched to it. By
            default they stay free.

    Raises:
        InputError: no such file.
        UsageError: the model is an artifact already, an argument is wrong, or it is no model from a photograph to a map.
        GraphError: the model is damaged.
        CheckFailed: a photograph cannot be computed, or its map is not finite or not within 0..1. Nothing is written.
        ArtifactError: the file cannot be written.
    """
    path = Path(output)
    if path.suffix != ".onnx":
        raise UsageError(f"`output` {path}: the name of an adopted model must end in .onnx")
    source = Artifact.open(model)
    if source.path.suffix.lower() != ".onnx":
        raise UsageError(f"{source.path} is no .onnx file: only these can be adopted")
    if source.contract is not None:
        raise UsageError(f"{source.path} says already how it takes a photograph: it needs no `r2mrf adopt`")
    if path.resolve() == source.path.resolve():
        raise UsageError(f"`output` {path} would overwrite the model that it is made from: name another file")
    proto = files.read(source.path)
    if size is not None:
        _fix(proto, size)
    takes, gives = _input(proto), _output(proto, map_output)
    edited = ir.from_proto(proto)
    takes = _as_ours(edited, takes)
    _name_the_map(edited, gives, logits)
    ir.passes.Sequential(common.RemoveUnusedNodesPass(), common.NameFixPass())(edited)
    graph = ir.to_proto(edited)
    preprocess = NEUTRAL if takes.dtype == "uint8" else _preprocess(normalize)
    contract = onnx.describe(graph).model_copy(
        update={
            "inputs": [takes],
            "preprocess": preprocess.model_copy(update={"inside": takes.dtype == "uint8"}),
            "tools": environment.tool_versions("r2mrf-deploy", "onnx"),
        }
    )

    def check(artifact: Artifact) -> list[dict[str, object]]:
        progress(Progress(f"trying {path.name} on a photograph"))
        _try_on_photograph(artifact, contract)
        return []

    return Exported(publish(path, lambda file: onnx.write(graph, contract, file), check))


def _input(model: onnx_package.ModelProto) -> TensorSpec:
    """The input, as the model has it."""
    inputs = onnx.describe(model).inputs
    spec = inputs[0] if len(inputs) == 1 and len(inputs[0].shape) == 4 else None
    if spec is None or spec.dtype not in ("float32", "uint8") or 3 not in (spec.shape[1], spec.shape[3]):
        has = "; ".join(map(str, inputs)) or "none"
        raise UsageError(
            "a model from a photograph to a map has one input, float32 or uint8, [N, 3, H, W] or [N, H, W, 3]; "
            f"this has {has}"
        )
    return spec


def _fix(model: onnx_package.ModelProto, size: tuple[int, int]) -> None:
    """Give the input one photograph of a size, and the output what follows from it."""
    spec = _input(model)
    batch = spec.shape[0] if isinstance(spec.shape[0], int) else 1
    shape = (batch, 3, *size) if spec.shape[1] == 3 else (batch, *size, 3)
    if any(isinstance(has, int) and has != side for has, side in zip(spec.shape, shape, strict=True)):
        raise UsageError(f"`size` {size[0]}x{size[1]}: the input is {spec}, and cannot have another size; leave it out")
    consistent = interface.infer(model).level
    (given,) = (value for value in model.graph.input if value.name == spec.name)
    for dim, side in zip(given.type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = side
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    found = interface.infer(model)
    if found.level > consistent:
        raise UsageError(f"`size` {size[0]}x{size[1]}: the model cannot compute it: {found.error}")
    del model.graph.output[:], model.graph.value_info[:]
    model.graph.output.extend(found.model.graph.output)


def _output(model: onnx_package.ModelProto, name: str | None) -> TensorSpec:
    outputs = {spec.name: spec for spec in onnx.describe(model).outputs}
    if name is None and len(outputs) > 1:
        raise UsageError(f"the model has the outputs {', '.join(outputs)}: set `map_output` to the map's")
    if name is not None and name not in outputs:
        raise UsageError(f"`map_output` {name}: the model has no such output; {did_you_mean(name, outputs)}")
    spec = outputs[name] if name else next(iter(outputs.values()))
    if spec.dtype != "float32" or (len(spec.shape) != 3 and not (len(spec.shape) == 4 and spec.shape[1] == 1)):
        raise UsageError(
            f"a map is float32 [N, 1, H, W] or [N, H, W], and the model gives {spec}: name another `map_output`"
        )
    return spec


def _as_ours(model: ir.Model, spec: TensorSpec) -> TensorSpec:
    """The input with its layout: normalised floats are NCHW and bytes NHWC, as in every artifact. A model that has it the
    other way gets a Transpose."""
    channels, wanted = (1, "NCHW") if spec.dtype == "float32" else (3, "NHWC")
    if spec.shape[channels] == 3:
        return spec.model_copy(update={"layout": wanted})
    order = (0, 2, 3, 1) if wanted == "NCHW" else (0, 3, 1, 2)  # from ours to the model's
    shape: list[int | str] = [0] * 4
    for axis, place in enumerate(order):
        shape[place] = spec.shape[axis]
    graph = model.graph
    (given,) = (value for value in graph.inputs if value.name == spec.name)
    ours = ir.Value(name=spec.name, shape=ir.Shape(shape), type=given.type)
    transpose = ir.node("Transpose", [ours], {"perm": order}, name="r2mrf.transpose")
    given.name = f"{spec.name}.inside"
    ir.convenience.replace_all_uses_with(given, transpose.outputs[0])
    graph.inputs[list(graph.inputs).index(given)] = ours
    graph.insert_before(graph[0], transpose)
    return spec.model_copy(update={"shape": shape, "layout": wanted})


def _name_the_map(model: ir.Model, spec: TensorSpec, logits: bool) -> None:
    """Make `map` [N, 1, H, W] the model's only output."""
    graph = model.graph
    (found,) = (value for value in graph.outputs if value.name == spec.name)
    if len(spec.shape) == 3:
        if model.opset_imports.get("", 1) >= 13:
            axes = _appended(graph, ir.node("Constant", [], {"value": ir.tensor(np.array([1]))}, name="r2mrf.axes"))
            found = _appended(graph, ir.node("Unsqueeze", [found, axes], name="r2mrf.unsqueeze"))
        else:
            found = _appended(graph, ir.node("Unsqueeze", [found], {"axes": (1,)}, name="r2mrf.unsqueeze"))
    if logits:
        found = _appended(graph, ir.node("Sigmoid", [found], name="r2mrf.sigmoid"))
    if found.producer() is None:  # an output that is the input
        found = _appended(graph, ir.node("Identity", [found], name="r2mrf.identity"))
    shape = spec.shape if len(spec.shape) == 4 else [spec.shape[0], 1, *spec.shape[1:]]
    found.shape, found.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    nodes = ir.traversal.RecursiveGraphIterator(graph)
    inside = [value for node in nodes for value in node.outputs]
    for value in (*inside, *graph.inputs, *graph.initializers.values()):
        if value.name == "map" and value is not found:
            value.name = "map.inside"
    found.name = "map"
    graph.outputs.clear()
    graph.outputs.append(found)


def _appended(graph: ir.Graph, node: ir.Node) -> ir.Value:
    graph.append(node)
    return node.outputs[0]


def _preprocess(text: str) -> Preprocess:
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text]
    try:
        mean, std = (tuple(map(float, part.split(","))) for part in text.split("/"))
        return Preprocess(mean=mean, std=std)  # type: ignore[arg-type]
    except ValueError:
        known = ", ".join(NORMALIZATIONS)
        raise UsageError(f"`normalize` {text}: give {known}, or means/deviations: 0.5,0.5,0.5/0.25,0.25,0.25") from None


def _try_on_photograph(artifact: Artifact, contract: Contract) -> None:
    (spec,) = contract.inputs
    (array,) = sample_inputs(spec, contract.preprocess, photographs_for(None)[:1])
    try:
        with runtimes.open(artifact, runtimes.nearest("fp32").name) as runner:
            found = runner.run({spec.name: array})["map"]
    except ArtifactError as e:
        free = any(not isinstance(side, int) for side in spec.shape[1:])
        cure = "if not every height and width is possible, set `size` to one that is; " if free else ""
        raise CheckFailed(f"{e}; its input was {list(array.shape)}; {cure}nothing was written") from None
    if not np.isfinite(found).all():
        raise CheckFailed("the map of a photograph is not finite: nothing was written")
    if found.min() < -MARGIN or found.max() > 1 + MARGIN:
        raise CheckFailed(
            f"the map of a photograph has values from {found.min():.3g} to {found.max():.3g}, and not from 0 to 1: if these "
            "are logits, set `logits`; nothing was written"
        )
