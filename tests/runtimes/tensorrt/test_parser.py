"""What TensorRT's parser cannot take is said as the node, its operator, the reason and the cure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2mrf_deploy.errors import BuildError, GraphError
from r2mrf_deploy.runtimes.tensorrt import api
from r2mrf_deploy.runtimes.tensorrt.api import Library
from r2mrf_deploy.runtimes.tensorrt.builder import Build
from r2mrf_deploy.runtimes.tensorrt.options import BuildOptions

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
onnx = pytest.importorskip("onnx", reason="needs onnx")
helper, TensorProto = onnx.helper, onnx.TensorProto
FLOAT = TensorProto.FLOAT


@pytest.fixture(scope="module")
def library() -> Library:
    return api.load("tensorrt_rtx")


def one_node(
    path: Path,
    node: Any,
    image: tuple[int, list[int]] = (FLOAT, [1, 3, 8, 8]),
    constants: dict[str, np.ndarray] | None = None,
) -> Path:
    """A model of one node, from `image` to `map`, written to `path`."""
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("image", *image)],
        [helper.make_tensor_value_info("map", FLOAT, None)],
        [onnx.numpy_helper.from_array(v, k) for k, v in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ours", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    return path


@pytest.mark.parametrize(
    ("node", "model", "where", "reason", "cure"),
    [
        (
            helper.make_node("Transpose", ["image"], ["map"], name="perm", perm=[0, 3, 1, 2]),
            {"image": (TensorProto.UINT8, [1, 8, 8, 3])},
            "'perm' (Transpose)",
            "type UInt8",
            "Cast before Transpose",
        ),
        (
            helper.make_node("Blur", ["image"], ["map"], name="b", domain="ours"),
            {},
            "'b' (Blur)",
            "Plugin not found",
            "no such operator",
        ),
        (helper.make_node("Det", ["image"], ["map"], name="d"), {}, "'d' (Det)", "not supported", "onnxruntime"),
        (
            helper.make_node("Conv", ["image", "w"], ["map"], name="c"),
            {"constants": {"w": np.zeros((4, 3, 1, 1), np.float16)}},
            "'c' (Conv)",
            "must be of same type",
            "mixes precisions",
        ),
        (
            helper.make_node("Resize", ["image", "", "s"], ["map"], name="r", mode="linear", antialias=1),
            {"constants": {"s": np.array([1, 1, 0.5, 0.5], np.float32)}},
            "'r' (Resize)",
            "Antialiasing",
            "antialias=False",
        ),
        (
            helper.make_node("PRelu", ["image", "a"], ["map"], name="p"),
            {"constants": {"a": np.zeros(3, np.float32)}},
            "'p' (PRelu)",
            "slope tensor",
            "[C, 1, 1]",
        ),
        (
            helper.make_node("QuantizeLinear", ["image", "s", "z"], ["map"], name="q"),
            {"constants": {"s": np.float32(0.1), "z": np.int8(3)}},
            "'q' (QuantizeLinear)",
            "zero point",
            "every zero point must be 0",
        ),
        (helper.make_node("Add", ["image", "?"], ["map"], name="a"), {}, "'a' (Add)", "not registered", "onnx.checker"),
        (
            helper.make_node("Add", ["image", "b"], ["map"], name="a"),
            {"constants": {"b": np.zeros(5, np.float32)}},
            "'a' (Add)",
            "conformable",
            "shape inference",
        ),
    ],
)
def test_parser_errors_name_node_operator_reason_and_cure(
    library: Library, tmp_path: Path, node: Any, model: dict[str, Any], where: str, reason: str, cure: str
) -> None:
    file = one_node(tmp_path / "m.onnx", node, **model)
    with pytest.raises(BuildError) as e:
        Build(library, BuildOptions()).parse(file)
    said = str(e.value)
    assert said.startswith(f"m.onnx: node 0 {where}: ")
    assert reason in said and cure in said.partition(reason)[2]
    assert "\n" not in said and "_src/" not in said  # one line, and nothing of the library's insides


@pytest.mark.parametrize("content", [b"", b"I am a text\n" * 9, b"\0" * 100, b"\x08\x09\x3a\xff\xff\xff\x0f"])
def test_files_that_are_no_models(library: Library, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(content)
    with pytest.raises(GraphError, match=r"m\.onnx is"):
        Build(library, BuildOptions()).parse(file)


def test_truncated_model(library: Library, tiny_onnx: Callable[..., Path]) -> None:
    file = tiny_onnx()
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(GraphError, match="damaged"):
        Build(library, BuildOptions()).parse(file)
