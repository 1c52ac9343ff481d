"""Makes the artifacts that engine_test opens. Their map is 0.5 R + 0.3 G + 0.2 B of every pixel."""

from __future__ import annotations

import hashlib
import json
import os
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


def write_alone(path: Path, changed: dict[str, Any] | str) -> None:
    """The model of weighted.onnx without a manifest, and inside it a contract with `changed` fields, or `changed` itself."""
    said = json.loads((path.parent / "weighted.onnx.json").read_text())
    inside = {k: v for k, v in said.items() if k not in ("file", "sha256", "bytes", "companions")}
    kind = {"kind": "openvino"} if path.suffix == ".xml" else {}
    text = changed if isinstance(changed, str) else json.dumps(inside | kind | changed)
    made = model([1, 48, 64, 3], [1, 1, 48, 64], True)
    if path.suffix == ".xml":
        graph = openvino.Core().read_model(made.SerializeToString())
        graph.set_rt_info(text, "r2mrf")
        openvino.save_model(graph, path, compress_to_fp16=False)
    else:
        helper.set_model_props(made, {"other": "x", "r2mrf": text})
        path.write_bytes(made.SerializeToString())


def write(path: Path, image: list[Any], map_: list[Any], uint8: bool = True, **fields: Any) -> None:
    """Write the model to `path`, in the format of its suffix, and its manifest with `fields` changed."""
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
    ranges = {"mean": [0.1, 0.2, 0.05], "std": [0.5, 0.8, 0.4]}
    write(folder / "normalised.onnx", [1, 3, 48, 64], [1, 1, 48, 64], uint8=False, preprocess=ranges)
    ranges = {"mean": [3e38, 3e38, 3e38], "std": [0.1, 0.1, 0.1]}
    write(folder / "not_finite.onnx", [1, 3, 48, 64], [1, 1, 48, 64], uint8=False, preprocess=ranges)
    free = (["n", "h", "w", 3], ["n", 1, "h", "w"])
    largest = {"image": {"min": [1, 32, 32, 3], "opt": [1, 32, 64, 3], "max": [1, 40, 160, 3]}}
    write(folder / "dynamic.onnx", *free, profiles=largest)
    write(folder / "free.onnx", *free)
    neutral = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    write(folder / "letterbox.onnx", *fixed, preprocess=neutral | {"fit": "letterbox"})
    write(folder / "half_size.onnx", *free, preprocess=neutral | {"longest_side": 320})
    for suffix in (".onnx", ".xml"):
        write_alone(folder / f"alone{suffix}", {})
        write_alone(folder / f"alone_broken{suffix}", "{")
        write_alone(folder / f"alone_bent{suffix}", {"inputs": 5})
        shape = {"outputs": [{"name": "map", "dtype": "float32", "shape": [1, 1, 48, 65]}]}
        write_alone(folder / f"alone_other{suffix}", shape)
        write_alone(folder / f"alone_plan{suffix}", {"kind": "plan"})
        write_alone(folder / f"alone_deep{suffix}", "[" * 100_000 + "]" * 100_000)
        write_alone(folder / f"alone_large{suffix}", " " * ((64 << 20) + 1))
    # the files that are left if a process is stopped while it replaces an artifact
    write(folder / "pending.onnx", *fixed)
    (folder / "pending.onnx.json").rename(folder / "pending.onnx.json.next")
    write(folder / "old.onnx", *free)
    (folder / "old.onnx.json").rename(folder / "pending.onnx.json")
    refused(folder)


def special(folder: Path) -> None:
    """FIFOs where files should be. Opening one waits for ever."""
    fixed = ([1, 48, 64, 3], [1, 1, 48, 64])
    fifos = [folder / name for name in ("fifo.onnx", "fifo", "fifo_manifest.onnx.json", "fifo_weights.bin")]
    for path in fifos:  # of an earlier run
        path.unlink(missing_ok=True)
    write(folder / "fifo_manifest.onnx", *fixed)
    write(folder / "fifo_companion.onnx", *fixed, companions={"fifo": "0"})
    write(folder / "as_onnx.xml", *fixed, kind="onnx", companions={})  # so that nobody would check its weights
    write_alone(folder / "fifo_weights.xml", {})
    for path in fifos:
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    for name in ("weights.pth", "weights.pth.tar", "weights.safetensors", "photo.jpg"):
        (folder / name).write_bytes(b"PK")


def refused(folder: Path) -> None:
    """Artifacts that must not open, or not run."""
    fixed = ([1, 48, 64, 3], [1, 1, 48, 64])
    write(folder / "said_free.onnx", *fixed)
    said = json.loads((folder / "free.onnx.json").read_text())
    said["sha256"] = digest(folder / "said_free.onnx")
    (folder / "said_free.onnx.json").write_text(json.dumps(said))
    write(folder / "unlisted_weights.xml", *fixed, companions={})
    write(folder / "changed_weights.xml", *fixed)
    weights = (folder / "changed_weights.bin").read_bytes()
    (folder / "changed_weights.bin").write_bytes(bytes([weights[0] ^ 1]) + weights[1:])
    write(folder / "changed.onnx", *fixed, sha256="0" * 64)
    write(folder / "other_shape.onnx", *fixed, outputs=[{"name": "map", "dtype": "float32", "shape": [1, 1, 48, 65]}])
    write(folder / "other_kind.onnx", *fixed, kind="plan")
    write(folder / "no_map.onnx", *fixed, outputs=[{"name": "mask", "dtype": "float32", "shape": [1, 1, 48, 64]}])
    write(folder / "escape.onnx", *fixed, companions={"../weighted.onnx": "0"})
    write(folder / "long_companion.onnx", *fixed, companions={"x" * 5000: "0"})
    write(folder / "coloured.onnx", *fixed, format="\x1b[31mred")
    for name in ("no_manifest.onnx", "not_json.onnx", "not_utf8.onnx", "large_manifest.onnx"):
        (folder / name).write_bytes((folder / "weighted.onnx").read_bytes())
    (folder / "not_json.onnx.json").write_text("{")
    (folder / "not_utf8.onnx.json").write_bytes(b'{"kind": "\xff')
    (folder / "large_manifest.onnx.json").touch()
    os.truncate(folder / "large_manifest.onnx.json", (64 << 20) + 1)
    special(folder)
    (folder / "loop.onnx").unlink(missing_ok=True)
    (folder / "loop.onnx").symlink_to("loop.onnx")
    damaged = folder / "damaged.onnx"
    damaged.write_bytes(b"this is no model, but its digest is right")
    said = json.loads((folder / "weighted.onnx.json").read_text()) | {"sha256": digest(damaged)}
    (folder / "damaged.onnx.json").write_text(json.dumps(said))
    # a truncated plan, and one of an unknown version: the size is at byte 16, the version at 24, 8.6 and 8.9 at 32
    whole = b"vtrt" + bytes(12) + (80).to_bytes(8, "little") + bytes([9, 9, 9, 9, 0, 0, 0, 0, 0b1100]) + bytes(47)
    target = {"runtime": "tensorrt_rtx", "runtime_version": "9.9.9.9", "compute_capabilities": ["8.6", "8.9"]}
    for name, content in (("cut.plan", whole[:34]), ("other_version.plan", whole)):
        (folder / name).write_bytes(content)
        said |= {"sha256": digest(folder / name), "kind": "plan", "target": target}
        (folder / f"{name}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
