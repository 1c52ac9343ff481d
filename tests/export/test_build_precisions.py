"""Every precision of every preset becomes a TensorRT plan, with the inputs and outputs that its manifest says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest

from r2mrf_deploy import images, sample_photographs
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.graph import precision, quantize
from r2mrf_deploy.graph.rewrites import optimize
from r2mrf_deploy.runtimes.tensorrt import api

pytest.importorskip("torch", reason="needs torch")
from r2mrf_deploy import networks

pytestmark = [
    pytest.mark.artifact,
    pytest.mark.skipif("tensorrt_rtx" not in api.installed(), reason="needs tensorrt-rtx"),
]
QUICK = "r2mrf-edge"
PRESETS = [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in networks.presets()]


@pytest.mark.parametrize("kind", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_precision_builds(
    preset: str, kind: Literal["fp16", "bf16", "int8"], tmp_path: Path, traced: Callable[..., Path]
) -> None:
    graph = optimize(onnx.load(traced(preset, (64, 96)))).model
    if kind == "int8":
        feed = {"image": np.ascontiguousarray(images.resize(sample_photographs.sample("chelsea"), (64, 96))[None])}
        graph = quantize.quantize(graph, quantize.calibrate(graph, [feed]), quantize.ends(graph))
    else:
        graph = precision.to_half(graph, kind)
    model = tmp_path / "m.onnx"
    model.write_bytes(graph.SerializeToString())
    built = build_artifact(model)
    assert built.manifest.precision == kind
    (found,), (map_,) = built.manifest.inputs, built.manifest.outputs
    assert (found.name, found.dtype, found.shape) == ("image", "uint8", [1, 64, 96, 3])
    assert (map_.name, map_.dtype, map_.shape) == ("map", "float32", [1, 1, 64, 96])
