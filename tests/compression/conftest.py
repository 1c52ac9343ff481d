"""A network that is quickly searched, and photographs for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from r2mrf_deploy import sample_photographs
from r2mrf_deploy.artifact import publish
from r2mrf_deploy.export import onnx as exporting
from r2mrf_deploy.graph.trace import checked
from r2mrf_deploy.manifest import NEUTRAL, Contract, TensorSpec


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 27 photographs: parts of three."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in (sample_photographs.DEMO, "coffee", "astronaut"):
        whole = sample_photographs.sample(name)
        for i in range(9):
            top, left = (whole.shape[0] - 160) * (i // 3) // 2, (whole.shape[1] - 220) * (i % 3) // 2
            Image.fromarray(whole[top : top + 150, left : left + 200]).save(folder / f"{name}-{i}.png")
    return folder


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX artifact that is no blur detector: contrast at two scales, by more channels than it takes."""
    rng = np.random.default_rng(0)
    few = rng.standard_normal((6, 3, 3, 3))
    many = np.einsum("mf,fchw->mchw", rng.standard_normal((24, 6)), few)
    wide = rng.standard_normal((24, 24, 5, 5)) / 12
    arrays = {"w": many, "v": wide, "u": rng.standard_normal((1, 24, 1, 1)) / 3, "c": np.array([0.1])}
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1, 3, 48, 64] tensor) => (float[1, 1, 48, 64] map) {'
        "a = Conv<pads = [1, 1, 1, 1]>(tensor, w) r = Relu(a) b = Conv<pads = [2, 2, 2, 2]>(r, v) s = Relu(b) "
        "l = Conv(s, u, c) map = Sigmoid(l) }"
    )
    for node in model.graph.node:
        node.name = f"body/{node.output[0]}"
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()
    )
    graph = checked(model)
    contract = Contract(
        kind="onnx", preprocess=NEUTRAL.model_copy(update={"inside": False}),
        inputs=[TensorSpec(name="tensor", dtype="float32", shape=[1, 3, 48, 64], layout="NCHW")],
        outputs=[TensorSpec(name="map", dtype="float32", shape=[1, 1, 48, 64], layout="NCHW")],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("detector") / "detector.onnx"
    publish(path, lambda file: exporting.write(graph, contract, file), lambda _: [])
    return path
