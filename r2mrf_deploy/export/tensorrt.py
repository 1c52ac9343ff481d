"""TensorRT plans, built by `tensorrt` or `tensorrt_rtx`. A plan has no place for a contract: only the manifest holds it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from r2mrf_deploy import environment
from r2mrf_deploy import gpus as gpu_classes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import BuildError
from r2mrf_deploy.export.base import Exporter, Written, derived
from r2mrf_deploy.export.options import FormatOptions
from r2mrf_deploy.manifest import Contract
from r2mrf_deploy.progress import ProgressCallback
from r2mrf_deploy.runtimes.base import Availability
from r2mrf_deploy.runtimes.tensorrt import api
from r2mrf_deploy.runtimes.tensorrt.api import Library
from r2mrf_deploy.runtimes.tensorrt.builder import Build, resolve_profiles
from r2mrf_deploy.runtimes.tensorrt.runner import TensorRT
from r2mrf_deploy.runtimes.tensorrt.targets import Targets


class TensorRTExporter(Exporter):
    """`gpus` names GPU classes to build for. TensorRT builds for the GPU at hand, which must be of that class.

    TensorRT-RTX builds one plan for all of them. Without names it builds for Ampere and later (8.0, 8.6, 8.9, 12.0, 12.1),
    or for the GPU at hand if that is a Turing. Otherwise Turing is left out, as in the library's own default: NVIDIA says
    that it slows the plan down on other GPUs, and it makes the plan about three times as large.
    """

    suffix = ".plan"
    title = "TensorRT"
    options = frozenset({"gpus", "build"})

    def availability(self) -> Availability:
        state = TensorRT().availability()
        return Availability(True, state.version) if api.installed() else state

    def write(self, source: Artifact, file: Path, options: FormatOptions, progress: ProgressCallback) -> Written:
        build, said = options.build, source.contract
        targets = Targets.choose([gpu_classes.get(name) for name in options.gpus], build.library)
        library = targets.library
        if targets.device is not None and build.profiling_verbosity is None:
            build = replace(build, profiling_verbosity="detailed")  # or the engine does not tell its layers' precision
        # As far as the contract tells, refuse what a GPU cannot do before the model is read.
        targets.refuse([said.precision] if said else [])
        _refuse_opset(library, said.opset if said else None)
        job = Build(library, build)
        job.parse(source.path)
        targets.refuse(job.precisions)
        if 75 in targets.requested(job.precisions) and (convolved := _without_products(source.path)):
            job = Build(library, build)
            job.parse(source.path, convolved)
        if said:
            job.check(said)
        profiles = resolve_profiles(job.inputs, build, said)
        plan = job.build(profiles, targets.requested(job.precisions), progress)
        file.write_bytes(plan)
        target = targets.record(plan, build.recorded())
        tools = environment.tool_versions("r2mrf-deploy") | {library.flavour.replace("_", "-"): library.version}
        precision = said.precision if said else next(iter(job.precisions), "fp32")
        found = {"profiles": profiles, "target": target, "precision": precision}
        said = said or Contract(kind="plan", inputs=list(job.inputs), outputs=list(job.outputs))
        return derived(source, said, tools, kind="plan", **found), targets.note(target)


def _without_products(model: Path) -> bytes | None:
    """The model with 1×1 convolutions in place of FP32 matrix products, which TensorRT-RTX does not compile for Turing.

    None if it has no such products.
    """
    from r2mrf_deploy.graph import files
    from r2mrf_deploy.graph.rewrites.pipeline import rewrite_once
    from r2mrf_deploy.graph.rewrites.products import convolve_products

    read = files.read(model)
    convolved = rewrite_once(read, convolve_products)
    return None if convolved is read else files.serialized(convolved)


def _refuse_opset(library: Library, opset: int | None) -> None:
    """TensorRT 8.6 reads models up to opset 17. For a later one it only reports that some node is wrong."""
    if opset and opset > 17 and not library.is_rtx and library.major < 10:
        raise BuildError(f"TensorRT {library.version} reads ONNX up to opset 17, not {opset}: export with `opset` 17")
