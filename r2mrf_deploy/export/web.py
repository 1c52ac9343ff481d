"""Web pages: a folder of static files that runs the model in a browser, from any static host. See `r2mrf_deploy.web`."""

from __future__ import annotations

import shutil
from pathlib import Path

from r2mrf_deploy import environment, web
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import BuildError, RuntimeUnavailable
from r2mrf_deploy.export.base import Exporter, Written, derived
from r2mrf_deploy.export.options import FormatOptions
from r2mrf_deploy.export.web_operators import session, without_webgpu
from r2mrf_deploy.export.web_site import write_site
from r2mrf_deploy.graph import files
from r2mrf_deploy.graph.half_storage import store_half
from r2mrf_deploy.graph.webgpu_channels import fill_channels
from r2mrf_deploy.manifest import Contract
from r2mrf_deploy.parity.compare import compare, photographs_for, sample_inputs
from r2mrf_deploy.progress import Progress, ProgressCallback
from r2mrf_deploy.runtimes.base import Availability
from r2mrf_deploy.runtimes.onnxruntime import OnnxRuntimeCPU, installed
from r2mrf_deploy.web import library

LARGE = 8 << 20
"""Bytes of a model whose weights are worth rounding: ONNX Runtime Web itself is 4 MB to load."""
HALF = {"weights": "fp16"}
"""What a contract's export options then say."""


class WebExporter(Exporter):
    """The page computes what the graph says, in the graph's precision. BF16 has no kernels on a processor.

    Every visitor downloads the model. So the weights of a large FP32 graph are stored as FP16, at half the size, and
    expanded when the page loads them, if the maps of photographs stay within the bounds of FP16.
    """

    suffix = web.SUFFIX
    title = "web page"
    precisions = ("fp32", "fp16", "int8")

    def availability(self) -> Availability:
        if not (state := installed()).ok:
            return state
        if reason := library.missing():
            return Availability(False, reason=reason, cure=library.cure())
        return Availability(True, library.version())

    def write(self, source: Artifact, file: Path, options: FormatOptions, progress: ProgressCallback) -> Written:
        said = source.contract
        if said is None or len(said.inputs) != 1 or said.inputs[0].layout is None:
            raise BuildError(f"{source.path.name} does not take a photograph: a page can only show what does")
        package = library.find()
        progress(Progress("checking that the page has the graph's operators"))
        session(source.path)
        graph = files.read(source.path)
        filled = fill_channels(graph)
        lacking = without_webgpu(filled, package.read(library.OPERATORS).decode())
        model = file.with_name("model.onnx")
        if filled is graph:
            shutil.copyfile(source.path, model)
        else:
            model.write_bytes(files.serialized(filled))
        progress(Progress("choosing the precision of the weights"))
        halved = _halve(source, said, model)
        progress(Progress("writing the page"))
        tools = environment.tool_versions("r2mrf-deploy", "onnx") | {library.NAME: package.version}
        contract = derived(source, said, tools, kind=web.KIND, export=said.export | (HALF if halved else {}))
        write_site(contract, source.path.stem, model, file, package)
        return contract, "; ".join(_notes(package.version, halved, lacking))


def _notes(version: str, halved: bool, lacking: list[str]) -> list[str]:
    notes = [f"runs in a browser by {library.NAME} {version}"]
    if halved:
        notes.append("the weights are stored as FP16")
    if lacking:
        notes.append(f"with WebGPU, the processor still computes {', '.join(lacking)}")
    return notes


def _halve(source: Artifact, said: Contract, model: Path) -> bool:
    """Store the weights of a large FP32 model as FP16, if the maps of photographs then stay within the bounds of FP16."""
    if said.precision != "fp32" or said.export.get("weights") == "fp16" or model.stat().st_size <= LARGE:
        return False
    half = model.with_name("half.onnx")
    half.write_bytes(files.serialized(store_half(files.read(model))))
    if half.stat().st_size < model.stat().st_size and _within_bounds(source, said, half):
        half.replace(model)
        return True
    half.unlink()
    return False


def _within_bounds(source: Artifact, said: Contract, half: Path) -> bool:
    """Whether a graph whose weights are FP16 passes the comparison with its original; False if nothing can be compared."""
    (spec,) = said.inputs
    try:
        photographs = photographs_for(None)
    except RuntimeUnavailable:
        return False
    profile = said.profile(spec.name)
    arrays = sample_inputs(spec, said.preprocess, photographs, {"max": profile["opt"]} if profile else {})
    rounded = Artifact(half, None, said.model_copy(update={"export": said.export | HALF}))
    with OnnxRuntimeCPU().open(source) as reference, OnnxRuntimeCPU().open(rounded) as candidate:
        return compare(rounded, candidate, reference, arrays).passed
