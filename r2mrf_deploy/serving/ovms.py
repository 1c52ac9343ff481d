"""The folders of a repository for OpenVINO Model Server (OVMS).

`NAME` takes the artifact's own input, RGB. OVMS also decodes JPEG and PNG, and gives the network BGR, resized to its input
(its documentation, "Support for Binary Encoded Image Input Data"); so `NAME_jpeg` is the same network behind a node that
turns the channels around. `config.json` lists the models, with paths that are relative to it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import formats
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, UsageError, last_line, reading
from r2mrf_deploy.files import document, flush
from r2mrf_deploy.fitting import SMALLEST, largest
from r2mrf_deploy.manifest import NEUTRAL, Contract, TensorSpec
from r2mrf_deploy.runtimes.openvino import core
from r2mrf_deploy.serving.copies import contract_of, copied
from r2mrf_deploy.serving.options import Entry, Options

CONFIG = "config.json"
JPEG = "jpeg"
_SUFFIXES = (".xml", ".onnx")


def write(name: str, artifact: Artifact, repository: Path, options: Options) -> list[Entry]:
    """Write the folders of an artifact's models.

    Raises:
        UsageError: OVMS does not open such a file, or decodes no files for its input.
        ArtifactError: OpenVINO cannot read it.
    """
    contract, suffix = contract_of(artifact), artifact.path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise UsageError(f"OpenVINO Model Server does not open {artifact.path.name}: give {' or '.join(_SUFFIXES)}")
    (repository / name / "1").mkdir(parents=True)
    copied(artifact, repository / name / "1" / f"model{suffix}")
    image = contract.inputs[0]
    entries = [_entry(name, contract.inputs, contract.outputs)]
    if options.jpeg:
        if len(contract.inputs) != 1 or image.layout != "NHWC" or image.dtype != "uint8":
            raise UsageError(
                f"OpenVINO Model Server decodes files for uint8 NHWC inputs only, and {artifact.path.name} has {image}: "
                "export it with --io image, or serve tensors only, with --no-jpeg"
            )
        folder = repository / f"{name}_{JPEG}" / "1"
        folder.mkdir(parents=True)
        write_bgr(artifact, folder / "model.xml")
        entries.append(_entry(f"{name}_{JPEG}", [image], contract.outputs))
    return entries


def write_bgr(artifact: Artifact, file: Path) -> None:
    """Write an artifact as an OpenVINO model that takes BGR; its maps are those of the artifact for RGB, to the bit.

    A free height and width are limited to what the artifact is used at, since OVMS resizes a picture to the nearest size
    that is allowed, and would else compute photographs at their full size.

    Raises:
        ArtifactError: OpenVINO cannot read the artifact.
    """
    import openvino

    contract = contract_of(artifact)
    spec = contract.inputs[0]
    try:
        model = core().read_model(artifact.path)
        if not spec.static:
            model.reshape({spec.name: openvino.PartialShape(_ranges(spec, contract))})
        _turn_channels(model)
        model.set_rt_info("", formats.KEY)  # the contract says RGB
        openvino.save_model(model, file, compress_to_fp16=False)
    except RuntimeError as e:
        raise ArtifactError(f"OpenVINO cannot read {artifact.path.name}: {last_line(e)}") from None
    for written in (file, file.with_suffix(".bin")):
        flush(written)


def _turn_channels(model: Any) -> None:
    """Put a node behind the input, NHWC, that turns its channels around.

    PrePostProcessor's `convert_color` is a Gather, which OpenVINO moves into the weights of the first convolution: its sums
    then have another order, and maps differ in the last bits. It leaves a Slice with a step of -1 where it is.
    """
    import openvino
    from openvino import opset13

    image = model.inputs[0].get_node()
    image.set_layout(openvino.Layout("NHWC"))
    takers = list(image.output(0).get_target_inputs())
    start, stop, step, axis = (opset13.constant(np.array([n], np.int64)) for n in (2, -4, -1, 3))
    turned = opset13.slice(image, start, stop, step, axis)
    for taker in takers:
        taker.replace_source_output(turned.output(0))
    model.validate_nodes_and_infer_types()


def config(names: Sequence[str], artifacts: Sequence[Artifact], options: Options) -> list[dict[str, Any]]:
    """The entries of `config.json` for some artifacts."""
    return [
        {"config": _model(f"{name}_{JPEG}" if files else name, artifact, options, files)}
        for name, artifact in zip(names, artifacts, strict=True)
        for files in ((False, True) if options.jpeg else (False,))
    ]


def write_list(repository: Path, models: Sequence[dict[str, Any]]) -> None:
    """Write `config.json`."""
    path = repository / CONFIG
    path.write_text(json.dumps({"model_config_list": list(models)}, indent=2) + "\n", encoding="utf-8")
    flush(path)


def read(repository: Path) -> list[dict[str, Any]]:
    """The entries of a repository's `config.json`, which `write_list` wrote.

    Raises:
        ArtifactError: it is no such document.
    """
    path = repository / CONFIG
    with reading(path, ArtifactError, "is not a list of models"):
        found = json.loads(document(path))
        if set(found) != {"model_config_list"} or any(
            not isinstance(each["config"]["name"], str) or each["config"]["base_path"] != each["config"]["name"]
            for each in found["model_config_list"]
        ):
            raise ValueError("it was not written by r2mrf serve-repo")
    return list(found["model_config_list"])


def _model(name: str, artifact: Artifact, options: Options, files: bool) -> dict[str, Any]:
    # left to itself, OpenVINO computes FP32 graphs in BF16 on CPUs that have it
    plugin: dict[str, str] = {"INFERENCE_PRECISION_HINT": "bf16" if artifact.precision == "bf16" else "f32"}
    if options.threads:
        plugin["INFERENCE_NUM_THREADS"] = str(options.threads)
    many = options.instances or 1
    plugin |= {"NUM_STREAMS": str(many)} if many > 1 else {"PERFORMANCE_HINT": "LATENCY"}
    found: dict[str, Any] = {
        "name": name,
        "base_path": name,
        "target_device": "CPU",
        "model_version_policy": {"latest": {"num_versions": 1}},
        "plugin_config": plugin,
    }
    if many > 1:
        found["nireq"] = many
    if files:
        found["layout"] = {contract_of(artifact).inputs[0].name: "NHWC"}
    return found


def _ranges(spec: TensorSpec, contract: Contract) -> list[Any]:
    """The sizes of a free input: a side is at most what photographs are reduced to."""
    import openvino

    profile = contract.profile(spec.name)
    most = dict(zip(spec.spatial_axes, largest(spec, contract.preprocess or NEUTRAL, profile), strict=True))
    least = profile.get("min", [SMALLEST] * len(spec.shape))
    return [
        openvino.Dimension(side)
        if isinstance(side, int)
        else openvino.Dimension(least[axis], most[axis])
        if axis in most
        else openvino.Dimension()
        for axis, side in enumerate(spec.shape)
    ]


def _entry(name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Entry:
    own = inputs[0].shape[0]
    found = ({spec.name: f"{spec.dtype} {spec.shape}" for spec in specs} for specs in (inputs, outputs))
    return Entry(name, "openvino", own if isinstance(own, int) else 0, None, *found)
