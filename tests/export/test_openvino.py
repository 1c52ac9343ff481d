"""OpenVINO models: wide FP32 convolutions are written as minimal filtering, and compute what the source computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.openvino import WINOGRAD_CHANNELS
from r2mrf_deploy.files import sha256
from tests.conftest import forge, manifest_of

pytestmark = pytest.mark.artifact
onnx = pytest.importorskip("onnx", reason="needs onnx")
openvino = pytest.importorskip("openvino", reason="needs openvino")
TinyOnnx = Callable[..., Path]


@pytest.mark.parametrize(
    ("width", "kernel"), [(WINOGRAD_CHANNELS, 3), (WINOGRAD_CHANNELS, 5), (WINOGRAD_CHANNELS - 1, 3)]
)
def test_wide_convolutions_become_minimal_filtering(tiny_onnx: TinyOnnx, width: int, kernel: int) -> None:
    model = _widened(tiny_onnx(), width, kernel)
    built = build_artifact(model, model.with_suffix(".xml"))
    replaced = width >= WINOGRAD_CHANNELS
    assert _convolutions(built.path) == (2 if replaced else 3)
    assert _convolutions(model) == 3
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    found, expected = (_logits(path, image) for path in (built.path, model))
    # FP32 sums of up to 6,400 products, which the filtering's transforms make one to two digits less exact
    assert expected.std() > 0.02 and np.abs(found - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("kind", [{"dynamic": True}, {"manifest": False}])
def test_others_stay_as_they_are(tiny_onnx: TinyOnnx, kind: dict[str, bool]) -> None:
    """Free sizes; and a model that does not say that it is in FP32."""
    model = _widened(tiny_onnx(**kind), WINOGRAD_CHANNELS, 3)
    built = build_artifact(model, model.with_suffix(".xml"))
    assert _convolutions(built.path) == 3


def _widened(path: Path, width: int, kernel: int) -> Path:
    """The model with a further convolution, `width` to `width`, between its two."""
    manifest = manifest_of(path)
    model, rng = onnx.load(path), np.random.default_rng(1)
    weights = {
        "w1": rng.standard_normal((width, 3, 3, 3)) / 5,
        "wide": rng.standard_normal((width, width, kernel, kernel)) / (width * kernel**2) ** 0.5,
        "w2": rng.standard_normal((1, width, 3, 3)) / (9 * width) ** 0.5,
    }
    for tensor in [t for t in model.graph.initializer if t.name in weights]:
        model.graph.initializer.remove(tensor)
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    (second,) = (i for i, node in enumerate(model.graph.node) if node.name == "conv2")
    node = onnx.helper.make_node("Conv", ["r1", "wide"], ["r2"], pads=[kernel // 2] * 4, name="wide")
    model.graph.node[second].input[0] = "r2"
    model.graph.node.insert(second, node)
    path.write_bytes(model.SerializeToString())
    if manifest is not None:
        forge(manifest.model_copy(update={"sha256": sha256(path), "bytes": path.stat().st_size}), path)
    return path


def _convolutions(path: Path) -> int:
    return sum(op.get_type_name() == "Convolution" for op in openvino.Core().read_model(path).get_ordered_ops())


def _logits(path: Path, image: np.ndarray) -> np.ndarray:
    """What the map's sigmoid was computed of."""
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    found = openvino.Core().compile_model(path, "CPU", settings)(image)[0].astype(np.float64)
    return np.asarray(np.log(found / (1 - found)))
