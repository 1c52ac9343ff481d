"""Every reader of files from outside, given damaged ones: an error of ours, or a sound value.

Checkpoints are in `test_torch_file.py`.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from r2mrf_deploy import formats
from r2mrf_deploy.bench import feeds
from r2mrf_deploy.errors import ArtifactError, GraphError, InputError, R2mrfError
from r2mrf_deploy.graph import cost, files
from r2mrf_deploy.inspection import inspect
from r2mrf_deploy.manifest import Manifest, Target, TensorSpec
from r2mrf_deploy.parity import node_search
from r2mrf_deploy.parity.node_search import Drop
from tests.fuzzing import COUNTS, mutations, survivors

INPUT = TensorSpec(name="image", dtype="uint8", shape=["batch", 64, 64, 3], layout="NHWC")
MANIFEST = Manifest(
    kind="onnx",
    network="r2mrf",
    config={"steps": 2},
    inputs=[INPUT],
    outputs=[TensorSpec(name="map", dtype="float32", shape=[1, 1, 64, 64], layout="NCHW")],
    profiles={"image": {"min": [1, 64, 64, 3], "opt": [1, 64, 64, 3], "max": [2, 64, 64, 3]}},
    target=Target(runtime="tensorrt", runtime_version="10.0", compute_capabilities=["8.6"]),
    file="x.onnx",
    sha256="0" * 64,
    bytes=1,
    companions={"x.bin": "1" * 64},
    parity=[{"runtime": "onnxruntime", "verdict": "pass"}],
)


def _onnx(folder: Path) -> bytes:
    from tests.conftest import _tiny

    model = _tiny("fp32", False)
    onnx.helper.set_model_props(model, {"r2mrf": MANIFEST.embedded()})
    return model.SerializeToString()


def _package(folder: Path) -> bytes:
    file = io.BytesIO()
    facts = {"AOTI_DEVICE_KEY": "cpu", "r2mrf": MANIFEST.embedded()}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data/aotinductor/model/a.wrapper_metadata.json", json.dumps(facts))
        archive.writestr("x/data/aotinductor/model/a.wrapper.so", b"not code" * 1000)
    return file.getvalue()


def _ir(folder: Path) -> bytes:
    openvino = pytest.importorskip("openvino", reason="needs openvino")
    model = openvino.Core().read_model(_onnx(folder))
    model.set_rt_info(MANIFEST.embedded(), formats.KEY)
    openvino.save_model(model, folder / "x.xml", compress_to_fp16=False)
    return (folder / "x.xml").read_bytes()


def _search(folder: Path) -> bytes:
    evaluate = node_search.resumable(lambda kept: Drop(0.1 * len(kept), 0.0), folder / "s.json", {"model": 1})
    for kept in ((), ("a",), ("a", "b")):
        evaluate(frozenset(kept))
    return (folder / "s.json").read_bytes()


def _resumed(path: Path) -> float:
    evaluate = node_search.resumable(lambda kept: Drop(0.0, 0.0), path, {"model": 1})
    drop = evaluate(frozenset("a"))
    assert isinstance(drop.within(Drop(1.0, 1.0)), bool)
    return drop.mae


def _values(folder: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(64, dtype=np.float32).reshape(1, 64))
    return file.getvalue()


def _graph(path: Path) -> object:
    model = files.read(path)
    files.refuse_not_finite(model)
    return cost.parameters(model), cost.multiply_adds_per_image(model)


_PLAN = struct.pack("<4sII4xQ4s4sI28x", b"vtrt", 0, 2, 64, b"\1\7\1t", b"vtrt", 4)
SPEC = TensorSpec(name="x", dtype="float32", shape=[1, 64])
READERS: dict[str, tuple[str, Callable[[Path], bytes], Callable[[Path], Any], type[R2mrfError]]] = {
    "manifest": ("x.json", lambda _: MANIFEST.model_dump_json(indent=2).encode(), Manifest.read, ArtifactError),
    "contract in ONNX": ("x.onnx", _onnx, formats.read, ArtifactError),
    "ONNX graph": ("x.onnx", _onnx, _graph, GraphError),
    "inspected ONNX": ("x.onnx", _onnx, inspect, R2mrfError),
    "plan": ("x.plan", lambda _: _PLAN, formats.read, ArtifactError),
    "package": ("x.pt2", _package, formats.read, ArtifactError),
    "inspected package": ("x.pt2", _package, inspect, ArtifactError),
    "IR": ("x.xml", _ir, formats.read, ArtifactError),
    "stored search": ("s.json", _search, _resumed, InputError),
    "values": ("x.npy", _values, lambda path: feeds.load(path, SPEC, (1, 64)), InputError),
}  # fmt: skip


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("reader", READERS)
def test_damage_ends_in_an_error_of_ours(reader: str, tmp_path: Path, count: int) -> None:
    name, make, read, error = READERS[reader]
    whole = make(tmp_path)
    path = tmp_path / name
    path.write_bytes(whole)
    read(path)  # it is sound before it is damaged
    for found in survivors(path, mutations(whole, count), read, error):
        assert found is not None
