"""OpenVINO models: `.xml` and `.bin`, with the contract in `rt_info`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from r2mrf_deploy import environment, formats
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import BuildError, GraphError, last_line
from r2mrf_deploy.export.base import Exporter, Written, derived
from r2mrf_deploy.export.options import FormatOptions
from r2mrf_deploy.manifest import Contract
from r2mrf_deploy.progress import Progress, ProgressCallback
from r2mrf_deploy.runtimes import specs
from r2mrf_deploy.runtimes.base import Availability
from r2mrf_deploy.runtimes.openvino import OpenVINO, core, spec

WINOGRAD_CHANNELS = 256
WINOGRAD_TILES = 25
"""The fewest channels, in and out, and 4×4 tiles of a convolution that becomes Winograd's minimal filtering. Measured: with
64 channels, or with 256 at 10×10 pixels, that is no faster than the convolution; wider ones at 20×20 or more are."""


class OpenVINOExporter(Exporter):
    suffix = ".xml"
    title = "OpenVINO"

    def availability(self) -> Availability:
        return OpenVINO().availability()

    def write(self, source: Artifact, file: Path, options: FormatOptions, progress: ProgressCallback) -> Written:
        import openvino

        progress(Progress("converting to OpenVINO"))
        try:
            # not convert_model, which rewrites quantised graphs and changes their maps
            model = core().read_model(_filtered(source) or source.path)
        except Exception as e:  # RuntimeError, or one of OpenVINO's own, with a message of many lines
            raise GraphError(f"OpenVINO cannot read {source.path.name}: {last_line(e)}") from None
        layouts, said = specs.layouts(source), source.contract
        inputs = [spec(port, layouts) for port in model.inputs]
        outputs = [spec(port, layouts) for port in model.outputs]
        if said and (differs := specs.difference(inputs, said.inputs) or specs.difference(outputs, said.outputs)):
            raise BuildError(f"the model has {differs}; export it again")
        said = said or Contract(kind="openvino", inputs=inputs, outputs=outputs)
        contract = derived(source, said, environment.tool_versions("r2mrf-deploy", "openvino"), kind="openvino")
        model.set_rt_info(contract.embedded(), formats.KEY)
        info: dict[str, Any] = {"reverse_input_channels": False}  # OpenVINO's Model API reads these; the order is RGB
        if contract.preprocess and not contract.preprocess.inside:
            info["mean_values"] = [255 * v for v in contract.preprocess.mean]
            info["scale_values"] = [255 * v for v in contract.preprocess.std]
        for name, value in info.items():
            model.set_rt_info(value, ["model_info", name])
        # Precision is the graph's: the default would store the weights in FP16.
        openvino.save_model(model, file, compress_to_fp16=False)
        return contract, f"converted by OpenVINO {environment.version('openvino')}"


def _filtered(source: Artifact) -> bytes | None:
    """The FP32 model with Winograd's minimal filtering in its wide convolutions, which OpenVINO multiplies directly.

    None if it has no such convolutions or is not known to be in FP32: in a type of fewer digits the filtering's sums are
    too inexact.
    """
    from r2mrf_deploy.graph import files
    from r2mrf_deploy.graph.rewrites.pipeline import rewrite_once
    from r2mrf_deploy.graph.rewrites.winograd import minimal_filtering

    if source.contract is None or source.contract.precision != "fp32":
        return None
    read = files.read(source.path)
    filtered = rewrite_once(read, partial(minimal_filtering, channels=WINOGRAD_CHANNELS, tiles=WINOGRAD_TILES))
    return None if filtered is read else files.serialized(filtered)
