"""Traced graphs: valid, of one file, static where asked, free where asked, and PyTorch's function at any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from r2mrf_deploy import sample_photographs
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.graph.trace import trace
from r2mrf_deploy.images import resize
from r2mrf_deploy.networks.deployed import Deployed

pytestmark = pytest.mark.artifact


def deployed(checkpoint: Path, **options: Any) -> Deployed:
    loaded = Checkpoint.load(checkpoint)
    return Deployed(loaded.module(), loaded.preprocess, **options).eval()


def shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def example(module: Deployed, size: tuple[int, int]) -> torch.Tensor:
    image = torch.from_numpy(resize(sample_photographs.sample("chelsea"), size))[None]
    if module.io == "image":
        return image
    return image.permute(0, 3, 1, 2).float() * module.scale + module.shift


def assert_same(module: Deployed, model: onnx.ModelProto, size: tuple[int, int]) -> None:
    """The graph's logits are PyTorch's to within rounding: 1e-4 of their spread."""
    x = example(module, size)
    with torch.no_grad():
        expected = module(x)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {module.io: x.numpy()})
    assert len(found) == len(expected)
    for e, f in zip(expected[1:], found[1:], strict=True):
        assert float(e.std()) > 0.05
        assert np.abs(f - e.numpy()).max() < 1e-4 * float(e.std())


OTHERS = [(17, "tensor"), (18, "image"), (20, "tensor")]
"""Combinations of an opset and an input, each of which others have too."""


@pytest.mark.parametrize(
    ("opset", "io"),
    [(17, "image"), (18, "tensor"), (20, "image"), *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS)],
)
def test_static(small: Path, opset: int, io: str) -> None:
    module = deployed(small, io=io, logits=True)
    model = trace(module, (64, 96), opset=opset)
    onnx.checker.check_model(model, full_check=True)
    assert {o.domain: o.version for o in model.opset_import}[""] == opset
    assert shape(model.graph.input[0]) == ([1, 64, 96, 3] if io == "image" else [1, 3, 64, 96])
    assert shape(model.graph.output[0]) == [1, 1, 64, 96]
    assert not any(n.op_type in ("Loop", "If", "Scan", "Shape") for n in model.graph.node)
    assert_same(module, model, (64, 96))


@pytest.mark.parametrize(
    "io", ["image", pytest.param("tensor", marks=pytest.mark.slow)]
)  # an export has free tensors too
def test_dynamic(small: Path, io: str) -> None:
    module = deployed(small, io=io, logits=True)
    model = trace(module, (64, 64), dynamic=True)
    free = ["batch", "height", "width"]
    assert shape(model.graph.input[0]) == ([*free, 3] if io == "image" else ["batch", 3, "height", "width"])
    assert shape(model.graph.output[0]) == ["batch", 1, "height", "width"]
    for size in ((64, 64), (96, 160), (117, 83)):
        assert_same(module, model, size)


@pytest.fixture(scope="module")
def four_steps(small: Path) -> tuple[Deployed, onnx.ModelProto]:
    module = deployed(small, all_steps=True, logits=True, steps=4)
    return module, trace(module, (64, 64))


def test_bytes_are_cast_before_they_are_permuted(four_steps: tuple[Deployed, onnx.ModelProto]) -> None:
    """TensorRT refuses to permute uint8."""
    nodes = four_steps[1].graph.node
    assert [n.op_type for n in nodes[:2]] == ["Cast", "Transpose"]


def test_the_recurrence_is_unrolled_and_every_step_can_be_seen(four_steps: tuple[Deployed, onnx.ModelProto]) -> None:
    module, model = four_steps
    names = [o.name for o in model.graph.output]
    assert names == ["map", "logits", *(f"step{t}_branch{b}" for t in range(1, 5) for b in (5, 4, 3, 2, 1))]
    assert_same(module, model, (64, 64))


def test_weights_are_stored_once_however_often_they_are_used(four_steps: tuple[Deployed, onnx.ModelProto]) -> None:
    graph = four_steps[1].graph
    weights = [w for n in graph.node if n.op_type == "Conv" for w in n.input[1:2]]
    assert len(weights) > len(set(weights)), "each step uses the same ones"
    stored = {t.name: (tuple(t.dims), t.raw_data) for t in graph.initializer}
    assert len({stored[name] for name in set(weights)}) == len(set(weights))


def test_nothing_of_this_machine_is_in_the_graph(four_steps: tuple[Deployed, onnx.ModelProto]) -> None:
    text = four_steps[1].SerializeToString()
    assert str(Path(__file__).parents[1]).encode() not in text
    assert b"site-packages" not in text


def test_out_of_range(small: Path) -> None:
    with pytest.raises(UsageError, match="opset 16"):
        trace(deployed(small), (64, 64), opset=16)
    with pytest.raises(UsageError, match="too small"):
        trace(deployed(small), (16, 64))
