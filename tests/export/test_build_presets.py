"""Every preset builds: static and dynamic, image and tensor, for every compute capability of TensorRT-RTX at once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from r2mrf_deploy import gpus
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.graph.rewrites import optimize
from r2mrf_deploy.manifest import Preprocess
from r2mrf_deploy.runtimes.tensorrt import api, plan_header
from r2mrf_deploy.runtimes.tensorrt.options import BuildOptions

pytest.importorskip("torch", reason="needs torch")
from r2mrf_deploy import networks
from r2mrf_deploy.graph.trace import trace
from r2mrf_deploy.networks.deployed import Deployed

pytestmark = [
    pytest.mark.artifact,
    pytest.mark.skipif("tensorrt_rtx" not in api.installed(), reason="needs tensorrt-rtx"),
]
QUICK = "r2mrf-edge"
PRESETS = [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in networks.presets()]
PREPROCESS = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
RESAMPLING = ("btbnet", "btbcrl")
"""Of free sizes, they multiply by matrices made on the way, and Turing has no such product in FP32: a clear refusal."""
ONE_FOR_EACH = {g.compute_capability: g.name for g in gpus.GPUS.values()}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("io", ["image", "tensor"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_builds(preset: str, io: Literal["image", "tensor"], dynamic: bool, tmp_path: Path) -> None:
    # BTBNet at full width would take an hour, and a quarter of the channels has the same nodes
    settings = {"width": "0.25"} if preset.startswith("btb") else {}
    deployed = Deployed(networks.create(*networks.preset(preset, settings)), PREPROCESS, io=io)
    model = tmp_path / "m.onnx"
    model.write_bytes(optimize(trace(deployed, (320, 320), dynamic=dynamic)).model.SerializeToString())  # as is shipped
    shapes = {
        size: {io: (n, side, side, 3) if io == "image" else (n, 3, side, side)}
        for size, n, side in (("min", 1, 64), ("opt", 1, 320), ("max", 2, 640))
    }
    options = BuildOptions(min_shapes=shapes["min"], opt_shapes=shapes["opt"], max_shapes=shapes["max"])
    refused = ("7.5",) if dynamic and preset in RESAMPLING else ()
    capabilities = tuple(c for c in gpus.RTX_COMPUTE_CAPABILITIES if c not in refused)
    names = [ONE_FOR_EACH[c] for c in capabilities]
    built = build_artifact(model, gpus=names, options=options if dynamic else None)

    assert plan_header.read(built.path).header.compute_capabilities == capabilities
    (found,), (map_,) = built.manifest.inputs, built.manifest.outputs
    free: tuple[int | str, int | str, int | str] = ("batch", "height", "width") if dynamic else (1, 320, 320)
    said = deployed.input_spec(*free)
    assert (found.name, found.dtype, found.shape) == (said.name, said.dtype, said.shape)
    assert (map_.name, map_.dtype, len(map_.shape)) == ("map", "float32", 4)
    assert built.path.stat().st_size > 0.9 * model.stat().st_size  # the weights are in it
