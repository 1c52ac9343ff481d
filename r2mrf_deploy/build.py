"""`r2mrf build`: an ONNX artifact becomes a TensorRT plan or an OpenVINO model, with its manifest.

The new artifact is written whole, files and manifest, or not at all: it is made in a folder beside its place and moved
there when it is complete. It is bound to the ONNX file by SHA-256.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from r2mrf_deploy import environment
from r2mrf_deploy import gpus as gpu_classes
from r2mrf_deploy.errors import ArtifactError, BuildError, GraphError, RuntimeUnavailable, UsageError, no_file
from r2mrf_deploy.files import sha256, write_atomically
from r2mrf_deploy.gpus import GPU
from r2mrf_deploy.manifest import Manifest, Target, TensorSpec
from r2mrf_deploy.runtimes import specs
from r2mrf_deploy.runtimes.openvino import spec as openvino_spec
from r2mrf_deploy.runtimes.tensorrt.api import Library
from r2mrf_deploy.runtimes.tensorrt.builder import Build, Progress, resolve_profiles
from r2mrf_deploy.runtimes.tensorrt.options import BuildOptions, parse_pool_sizes, parse_shapes
from r2mrf_deploy.runtimes.tensorrt.targets import Targets

# What an engine has in common with the model that it is made from.
_INHERITED = {
    "checkpoint_sha256", "network", "config", "inputs", "outputs", "preprocess", "precision", "kept", "calibration", "opset",
    "rewrites", "parameters", "multiply_adds", "tools",
}  # fmt: skip

__all__ = ["BuildOptions", "BuiltArtifact", "Progress", "build_engine", "parse_pool_sizes", "parse_shapes"]


@dataclass(frozen=True)
class BuiltArtifact:
    """An artifact that was built."""

    path: Path
    manifest: Manifest
    note: str = ""
    """What its user has to know: for what it was built, and what could not be verified."""


def build_engine(
    model: Path,
    output: Path | None = None,
    *,
    gpus: Sequence[str] = (),
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> BuiltArtifact:
    """Build an engine from an ONNX file.

    Args:
        model: the ONNX file. Where a manifest lies beside it, the two must match, and the engine inherits it.
        output: `.plan` for TensorRT (by default beside the model), `.xml` for OpenVINO.
        gpus: names of GPU classes to build for. TensorRT builds for the GPU at hand, which must be of that class.
            TensorRT-RTX builds one plan for all of them; without a name, for Ampere and later (8.0, 8.6, 8.9, 12.0,
            12.1), or for the GPU at hand where that is a Turing. Turing is left out otherwise, as in the library's own
            default: NVIDIA says it slows the plan on the others, and it makes the plan about three times as large.
        options: trtexec's options.
        progress: called with (phase, steps done, steps in all), from other threads too.

    Raises:
        InputError: no such model.
        UsageError: a name, suffix or shape means nothing, or an option is not for this kind of output.
        ArtifactError: the model does not match its manifest, or the output cannot be written.
        GraphError: the model is damaged.
        BuildError: the engine cannot or must not be built: for that GPU, with that option, from that node.
        RuntimeUnavailable: the builder is not installed, or needs a device and there is none.
    """
    options = options or BuildOptions()
    model = Path(model)
    if not model.is_file():
        raise no_file(model)
    output = Path(output) if output else model.with_suffix(".plan")
    if model.suffix.lower() != ".onnx":
        raise UsageError(f"{model}: an engine is built from an .onnx file; make one with `r2mrf export`")
    manifest = Manifest.beside(model)
    if output.suffix == ".xml":
        if gpus or options != BuildOptions():
            raise UsageError("--gpu and TensorRT's options are not for OpenVINO (.xml): leave them out")
        return _build_openvino(model, output, manifest)
    if output.suffix != ".plan":
        raise UsageError(f"{output}: write .plan for TensorRT or .xml for OpenVINO")
    return _build_tensorrt(model, output, manifest, [gpu_classes.get(name) for name in gpus], options, progress)


def _build_tensorrt(
    model: Path,
    output: Path,
    manifest: Manifest | None,
    classes: Sequence[GPU],
    options: BuildOptions,
    progress: Progress | None,
) -> BuiltArtifact:
    targets = Targets.choose(classes, options.library)
    library = targets.library
    if targets.device is not None and options.profiling_verbosity is None:
        options = replace(options, profiling_verbosity="detailed")  # or the engine cannot say what it computes in
    # What a GPU cannot do is said before the model is read, as far as its manifest tells what is in it.
    targets.refuse([manifest.precision] if manifest else [])
    _refuse_opset(library, manifest.opset if manifest else None)
    job = Build(library, options)
    job.parse(model)
    targets.refuse(job.precisions)
    if 75 in targets.requested(job.precisions) and (convolved := _without_products(model)):
        job = Build(library, options)
        job.parse(model, convolved)
    if manifest:
        job.check(manifest)
    profiles = resolve_profiles(job.inputs, options, manifest)
    engine = job.build(profiles, targets.requested(job.precisions), progress)
    target = targets.record(engine, options.recorded())
    engine_manifest = _describe(
        model,
        output,
        manifest,
        kind="plan",
        inputs=list(engine.inputs),
        outputs=list(engine.outputs),
        profiles=engine.profiles,
        precision=next(iter(engine.precisions), "fp32"),
        target=target,
        tool={library.flavour.replace("_", "-"): library.version},
    )

    def write(folder: Path) -> Manifest:
        return _bind(engine_manifest, write_atomically(folder / output.name, engine.plan))

    return BuiltArtifact(output, _publish(output, write), targets.note(target))


def _without_products(model: Path) -> bytes | None:
    """The model with 1×1 convolutions for its FP32 matrix products, which TensorRT-RTX does not compile for Turing.

    None where there are none.
    """
    try:
        from r2mrf_deploy.graph import files
        from r2mrf_deploy.graph.rewrites.pipeline import rewrite_once
        from r2mrf_deploy.graph.rewrites.products import convolve_products
    except (
        ImportError
    ):  # building alone does without onnx; where it matters, TensorRT-RTX refuses, and the cure is named
        return None
    read = files.read(model)
    convolved = rewrite_once(read, convolve_products)
    return None if convolved is read else files.serialized(convolved)


def _refuse_opset(library: Library, opset: int | None) -> None:
    """TensorRT 8.6 reads models up to opset 17, and of a later one says only that some node is wrong."""
    if opset and opset > 17 and not library.is_rtx and library.major < 10:
        raise BuildError(f"TensorRT {library.version} reads ONNX up to opset 17, not {opset}: export with --opset 17")


def _describe(
    model: Path,
    output: Path,
    source: Manifest | None,
    *,
    kind: Literal["plan", "openvino"],
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    profiles: dict[str, dict[str, list[int]]],
    precision: str,
    target: Target | None,
    tool: dict[str, str],
) -> Manifest:
    """The manifest of a file that is not written yet. What the model's own manifest says goes before what was found."""
    inherited: dict[str, Any] = {"inputs": inputs, "outputs": outputs, "precision": precision}
    if source:
        inherited = source.model_dump(include=_INHERITED)
    tools = inherited.pop("tools", {}) | environment.tool_versions("r2mrf-deploy") | tool
    return Manifest(
        **inherited,
        file=output.name,
        sha256="",
        bytes=0,
        kind=kind,
        source_sha256=sha256(model),
        profiles=profiles,
        target=target,
        tools=tools,
    )


def _bind(manifest: Manifest, file: Path, companions: Sequence[Path] = ()) -> Manifest:
    """Complete a manifest with its file, which is written now, and save it beside it."""
    whole = manifest.model_copy(
        update={
            "sha256": sha256(file),
            "bytes": file.stat().st_size + sum(c.stat().st_size for c in companions),
            "companions": {c.name: sha256(c) for c in companions},
        }
    )
    whole.save(file)
    return whole


def _publish(output: Path, write: Callable[[Path], Manifest]) -> Manifest:
    """Have an artifact written into a folder beside `output`, then move all of it there."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as name:
            folder = Path(name)
            manifest = write(folder)
            for file in sorted(folder.iterdir()):
                file.replace(output.with_name(file.name))
    except OSError as e:
        raise ArtifactError(f"cannot write {output}: {e.strerror or e}") from None
    return manifest


def _build_openvino(model: Path, output: Path, source: Manifest | None) -> BuiltArtifact:
    try:
        import openvino
    except ImportError:
        raise RuntimeUnavailable('OpenVINO is not installed: pip install "r2mrf-deploy[openvino]"') from None
    try:
        converted = openvino.Core().read_model(model)  # convert_model rewrites quantised graphs, and changes their maps
    except Exception as e:  # OpenVINO raises RuntimeError and kinds of its own, in many lines
        raise GraphError(f"OpenVINO cannot take {model.name}: {_last_line(e)}") from None
    layouts = {s.name: s.layout for s in (*source.inputs, *source.outputs)} if source else {}
    inputs = [openvino_spec(port, layouts) for port in converted.inputs]
    outputs = [openvino_spec(port, layouts) for port in converted.outputs]
    if source and (differs := specs.difference(inputs, source.inputs) or specs.difference(outputs, source.outputs)):
        raise BuildError(f"the model has {differs}; export it again")
    manifest = _describe(
        model,
        output,
        source,
        kind="openvino",
        inputs=inputs,
        outputs=outputs,
        profiles=source.profiles if source else {},
        precision="fp32",
        target=None,
        tool=environment.tool_versions("openvino"),
    )

    def write(folder: Path) -> Manifest:
        file = folder / output.name
        # Weights as they are: precision is the graph's, and the default here would halve it unasked.
        openvino.save_model(converted, file, compress_to_fp16=False)
        return _bind(manifest, file, [file.with_suffix(".bin")])

    return BuiltArtifact(output, _publish(output, write), f"converted by OpenVINO {environment.version('openvino')}")


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
