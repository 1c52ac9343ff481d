"""`r2mrf export`: a checkpoint becomes an ONNX artifact that is checked against PyTorch before it is written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from r2mrf_deploy import environment
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.convert import PrecisionOptions, convert_artifact
from r2mrf_deploy.errors import ArtifactError, UsageError, no_file
from r2mrf_deploy.files import sha256, write_atomically
from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.rewrites import optimize
from r2mrf_deploy.graph.trace import DEFAULT_OPSET, checked, trace
from r2mrf_deploy.manifest import Manifest, RewriteRecord, TensorSpec
from r2mrf_deploy.networks.deployed import Deployed
from r2mrf_deploy.parity.compare import Parity, compare, photographs_for, sample_inputs
from r2mrf_deploy.parity.node_search import Search
from r2mrf_deploy.runtimes.onnxruntime import OnnxRuntimeCPU
from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner

SMALLEST, LARGEST = 64, 1280
"""Sides of a dynamic graph's profile, in pixels."""
LARGEST_BATCH = 4


@dataclass(frozen=True)
class ExportOptions:
    """What to export. The defaults are what a program that embeds the artifact wants."""

    size: tuple[int, int] = (320, 320)
    """(height, width) in pixels, by default the papers' test size; with `dynamic`, the optimum of the profile."""
    batch: int = 1
    dynamic: bool = False
    steps: int | None = None
    """Recurrent steps, where the weights allow another number than they were trained with."""
    io: Literal["image", "tensor"] = "image"
    opset: int = DEFAULT_OPSET
    all_steps: bool = False
    """Output every `step{t}_branch{l}` too."""
    optimize: bool = True
    """Apply the exact rewrites."""
    precision: PrecisionOptions = field(default_factory=PrecisionOptions)


@dataclass(frozen=True)
class Exported:
    """An artifact that was written, and how it compares with PyTorch."""

    path: Path
    manifest: Manifest
    parity: Parity | None
    """With PyTorch; of a reduced precision with the FP32 graph, which was compared with PyTorch before. None where nothing
    here runs it."""
    warnings: tuple[str, ...] = ()
    search: Search | None = None


def to_onnx(
    checkpoint: Path | str,
    output: Path | str | None = None,
    options: ExportOptions | None = None,
    *,
    network: str | None = None,
    settings: Mapping[str, str] | None = None,
    phase: Callable[[str], None] | None = None,
) -> Exported:
    """Trace a checkpoint into `x.onnx` and `x.onnx.json`, in FP32 or with its precision reduced.

    Args:
        checkpoint: a checkpoint or a plain state dict.
        output: by default beside the checkpoint.
        network, settings: as for `Checkpoint.load`.
        phase: called with the name of each phase as it begins.

    Raises:
        InputError, CheckpointError, UsageError: the checkpoint or an option is wrong.
        GraphError: the graph cannot be written this way.
        ArtifactError: the graph does not compute what PyTorch does, or the file cannot be written; nothing is written.
    """
    options = options or ExportOptions()
    say = phase or (lambda _: None)
    if not Path(checkpoint).is_file():
        raise no_file(Path(checkpoint))
    path = Path(output) if output else Path(checkpoint).with_suffix(".onnx")
    if path.suffix != ".onnx":
        what = "an exported graph ends in .onnx, AOTInductor's package in .pt2"
        raise UsageError(f"{path}: {what}; `r2mrf build` makes .plan and .xml from the graph")
    if options.precision.precision != "fp32":
        with tempfile.TemporaryDirectory() as folder:
            plain = replace(options, precision=PrecisionOptions())
            whole = to_onnx(checkpoint, Path(folder) / path.name, plain, network=network, settings=settings, phase=say)
            low = convert_artifact(whole.path, path, options.precision, phase=say)
        return Exported(path, low.manifest, low.parity, low.warnings, low.search)
    say("reading the checkpoint")
    defaults = {"steps": str(options.steps)} if options.steps else {}
    loaded = Checkpoint.load(checkpoint, network=network, settings=settings, defaults=defaults)
    deployed = Deployed(
        loaded.module(), loaded.preprocess, io=options.io, steps=options.steps, all_steps=options.all_steps
    )
    say("tracing")
    model = trace(deployed, options.size, batch=options.batch, dynamic=options.dynamic, opset=options.opset)
    rewrites: list[RewriteRecord] = []
    if options.optimize:
        say("rewriting")
        optimized = optimize(model)
        model, rewrites = checked(optimized.model), optimized.records
    manifest = _describe(model, path, loaded, deployed, options, rewrites)
    say("comparing with PyTorch")
    checks: list[Parity] = []

    def write_checked(temporary: Path) -> None:
        temporary.write_bytes(model.SerializeToString())
        checks.append(_check(temporary, path.name, manifest, loaded, options))

    write_atomically(path, write_checked)
    known = {"sha256": sha256(path), "bytes": path.stat().st_size, "parity": [checks[0].to_dict()]}
    manifest = manifest.model_copy(update=known)
    manifest.save(path)
    warnings = (checks[0].reason,) if checks[0].reason else ()
    return Exported(path, manifest, checks[0], warnings)


def _check(file: Path, name: str, manifest: Manifest, checkpoint: Checkpoint, options: ExportOptions) -> Parity:
    """Compare the graph with PyTorch on a photograph, and a dynamic one on an odd size too."""
    reference = PyTorchRunner(checkpoint, io=options.io, steps=options.steps, all_steps=options.all_steps)
    photograph = photographs_for(None)[0]
    with OnnxRuntimeCPU().open(file, manifest) as runner:
        inputs = sample_inputs(runner, checkpoint.preprocess, [photograph], _example(options, *options.size))
        if options.dynamic:
            odd = np.ascontiguousarray(photograph[:117, :235])
            inputs += sample_inputs(runner, checkpoint.preprocess, [odd])
        parity = compare(reference, runner, inputs, artifact=name, per_step=options.all_steps)
    if parity.verdict == "fail":
        raise ArtifactError(f"{name} was not written: it does not compute what PyTorch computes; {parity.reason}")
    return parity


def _describe(
    model: onnx.ModelProto,
    path: Path,
    checkpoint: Checkpoint,
    deployed: Deployed,
    options: ExportOptions,
    rewrites: list[RewriteRecord],
) -> Manifest:
    """The manifest of a graph that is not written yet."""
    free: tuple[int | str, ...] = ("batch", "height", "width")
    spec = deployed.input_spec(*(free if options.dynamic else (options.batch, *options.size)))
    optimum = _example(options, *options.size)
    batch = 1 if options.dynamic else options.batch
    profile = {
        "min": _example(options, SMALLEST, SMALLEST),
        "opt": optimum,
        "max": [LARGEST_BATCH, *_example(options, max(LARGEST, options.size[0]), max(LARGEST, options.size[1]))[1:]],
    }
    return Manifest(
        file=path.name,
        sha256="",
        bytes=0,
        kind="onnx",
        checkpoint_sha256=checkpoint.sha256,
        network=checkpoint.network,
        config=checkpoint.config.to_dict() | {"steps": deployed.steps},
        inputs=[spec],
        outputs=[_output_spec(value) for value in model.graph.output],
        profiles={spec.name: profile} if options.dynamic else {},
        preprocess=checkpoint.preprocess.model_copy(update={"inside": options.io == "image"}),
        opset=options.opset,
        rewrites=rewrites,
        parameters=checkpoint.parameters,
        multiply_adds=cost.multiply_adds(model, {spec.name: optimum} if options.dynamic else None) // batch,
        tools=environment.tool_versions("r2mrf-deploy", "torch", "torchvision", "onnx", "onnxscript", "onnxsim"),
    )


def _example(options: ExportOptions, height: int, width: int) -> list[int]:
    return [1, height, width, 3] if options.io == "image" else [1, 3, height, width]


def _output_spec(value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = [d.dim_param or d.dim_value for d in tensor.shape.dim]
    return TensorSpec(name=value.name, dtype=dtype, shape=shape, layout="NCHW")
