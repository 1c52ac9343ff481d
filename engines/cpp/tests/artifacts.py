"""The models that engine_test opens: a map that is 0.5 R + 0.3 G + 0.2 B of every pixel, as artifacts of every kind."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper

WEIGHTS = np.array([0.5, 0.3, 0.2], np.float32).reshape(1, 3, 1, 1)


def model(image: list[Any], map_: list[Any], uint8: bool) -> onnx.ModelProto:
    kind, name = (TensorProto.UINT8, "image") if uint8 else (TensorProto.FLOAT, "tensor")
    nodes = [helper.make_node("Conv", ["x", "w"], ["map"])]
    if uint8:
        nodes = [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["float"], ["x"], perm=[0, 3, 1, 2]),
            *nodes,
        ]
    nodes[-1].input[0] = "x" if uint8 else "tensor"
    graph = helper.make_graph(
        nodes,
        "weighted",
        [helper.make_tensor_value_info(name, kind, image)],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, map_)],
        [numpy_helper.from_array(WEIGHTS / np.float32(255 if uint8 else 1), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(path: Path, image: list[Any], map_: list[Any], uint8: bool = True, **fields: Any) -> None:
    """The model at `path`, in the format of its suffix, and its manifest with `fields` changed."""
    made = model(image, map_, uint8)
    companions = {}
    if path.suffix == ".xml":
        openvino.save_model(openvino.Core().read_model(made.SerializeToString()), path, compress_to_fp16=False)
        companions = {path.with_suffix(".bin").name: digest(path.with_suffix(".bin"))}
    else:
        path.write_bytes(made.SerializeToString())
    name, dtype, layout = ("image", "uint8", "NHWC") if uint8 else ("tensor", "float32", "NCHW")
    manifest = {
        "format": "r2mrf-artifact/1",
        "file": path.name,
        "sha256": digest(path),
        "bytes": path.stat().st_size,
        "companions": companions,
        "kind": "openvino" if path.suffix == ".xml" else "onnx",
        "inputs": [{"name": name, "dtype": dtype, "shape": image, "layout": layout}],
        "outputs": [{"name": "map", "dtype": "float32", "shape": map_, "layout": "NCHW"}],
        "preprocess": {"mean": [0, 0, 0], "std": [1, 1, 1], "color": "RGB", "inside": uint8},
    }
    path.with_name(path.name + ".json").write_text(json.dumps(manifest | fields))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fixed = ([1, 48, 64, 3], [1, 1, 48, 64])
    write(folder / "weighted.onnx", *fixed)
    write(folder / "weighted.xml", *fixed)
    write(folder / "tensor.onnx", [2, 3, 48, 64], [2, 1, 48, 64], uint8=False)
    largest = {"image": {"min": [1, 32, 32, 3], "opt": [1, 64, 64, 3], "max": [1, 80, 80, 3]}}
    write(folder / "dynamic.onnx", ["n", "h", "w", 3], ["n", 1, "h", "w"], profiles=largest)
    write(folder / "changed.onnx", *fixed, sha256="0" * 64)
    write(folder / "other_shape.onnx", *fixed, outputs=[{"name": "map", "dtype": "float32", "shape": [1, 1, 48, 65]}])
    write(folder / "other_kind.onnx", *fixed, kind="plan")
    write(folder / "no_map.onnx", *fixed, outputs=[{"name": "mask", "dtype": "float32", "shape": [1, 1, 48, 64]}])
    write(folder / "escape.onnx", *fixed, companions={"../weighted.onnx": "0"})
    for name in ("no_manifest.onnx", "not_json.onnx"):
        (folder / name).write_bytes((folder / "weighted.onnx").read_bytes())
    (folder / "not_json.onnx.json").write_text("{")
    damaged = folder / "damaged.onnx"
    damaged.write_bytes(b"this is no model, but its digest is right")
    said = json.loads((folder / "weighted.onnx.json").read_text()) | {"sha256": digest(damaged)}
    (folder / "damaged.onnx.json").write_text(json.dumps(said))
    plan = folder / "cut.plan"
    plan.write_bytes(b"vtrt" + bytes(30))
    target = {"runtime": "tensorrt_rtx", "runtime_version": "1.7.1.116", "compute_capabilities": ["8.6"]}
    said |= {"sha256": digest(plan), "kind": "plan", "target": target}
    (folder / "cut.plan.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
