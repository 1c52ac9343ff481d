"""Models of other tools: what `adopt` writes is an artifact that every verb can use. The model finds saliency."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from r2mrf_deploy import images
from r2mrf_deploy.cli import main
from r2mrf_deploy.errors import CheckFailed, UsageError
from r2mrf_deploy.export.adopt import adopt_artifact
from r2mrf_deploy.parity.compare import photographs_for
from r2mrf_deploy.predictor import Predictor

SIZE = (48, 64)


def saliency(folder: Path, *form: str) -> Path:
    """Three convolutions; the last two are applied again to the same features and the map before, as an unrolled recurrence.

    Args:
        form: "nhwc"; "bytes": uint8; "flat": the map is [N, H, W]; "logits"; "two": features that nothing else needs are an
            output too; "body": the branches of an If read the input and the features; "old": opset 11; "clash": tensors have
            names that `adopt` gives.
    """
    rng = np.random.default_rng(3)
    constants = {
        name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in (("w0", (32, 3, 3, 3)), ("w1", (32, 33, 3, 3)), ("w2", (1, 32, 1, 1)))
    }
    nodes, current = [], "photo"
    if "bytes" in form:
        nodes.append(helper.make_node("Cast", [current], ["floats"], to=TensorProto.FLOAT))
        current = "floats"
    if "nhwc" in form:
        nodes.append(helper.make_node("Transpose", [current], ["channels_first"], perm=[0, 3, 1, 2]))
        current = "channels_first"
    nodes += [
        helper.make_node("Conv", [current, "w0"], ["c0"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["features"]),
    ]
    constants["w2"] *= 6  # a map that is not flat
    constants["before"] = np.zeros((1, 1, *SIZE), np.float32)
    before = "before"
    for step in range(4):
        nodes += [
            helper.make_node("Concat", ["features", before], [f"cat{step}"], axis=1),
            helper.make_node("Conv", [f"cat{step}", "w1"], [f"c{step}a"], name=f"wide{step}", pads=[1] * 4),
            helper.make_node("Relu", [f"c{step}a"], [f"r{step}"]),
            helper.make_node("Conv", [f"r{step}", "w2"], [f"logits{step}"], name=f"score{step}"),
            helper.make_node("Sigmoid", [f"logits{step}"], [f"m{step}"]),
        ]
        before = f"m{step}"
    result = "logits3" if "logits" in form else before
    if "body" in form:
        # divides by the length of the input's last axis: 3 channels
        floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("then", "else")]
        yes = helper.make_graph(
            [
                helper.make_node("Shape", ["photo"], ["sides"]),
                helper.make_node("Gather", ["sides", "three"], ["last"]),
                helper.make_node("Cast", ["last"], ["number"], to=TensorProto.FLOAT),
                helper.make_node("Div", [result, "number"], ["then"]),
            ],
            "then", [], floats[:1],
        )  # fmt: skip
        no = helper.make_graph([helper.make_node("Identity", ["features"], ["else"])], "else", [], floats[1:])
        constants |= {"three": np.array(3), "true": np.array(True)}
        nodes.append(helper.make_node("If", ["true"], ["chosen"], then_branch=yes, else_branch=no))
        result = "chosen"
    if "flat" in form:
        constants["axis"] = np.array([1])
        squeeze = ([result], {"axes": [1]}) if "old" in form else ([result, "axis"], {})
        nodes.append(helper.make_node("Squeeze", squeeze[0], ["flat"], **squeeze[1]))
        result = "flat"
    taken = helper.make_tensor_value_info(
        "photo",
        TensorProto.UINT8 if "bytes" in form else TensorProto.FLOAT,
        [1, *SIZE, 3] if "nhwc" in form else [1, 3, *SIZE],
    )
    given = [helper.make_tensor_value_info(result, TensorProto.FLOAT, [1, *SIZE] if "flat" in form else [1, 1, *SIZE])]
    if "two" in form:
        constants["w3"] = constants["w0"]
        nodes.append(helper.make_node("Conv", [current, "w3"], ["more"], pads=[1] * 4))
        given.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1, 32, *SIZE]))
    if "clash" in form:
        for node in nodes:
            for names in (node.input, node.output):
                names[:] = [{"c0": "map", "features": "photo.inside", "w0": "r2mrf.axes"}.get(n, n) for n in names]
        constants["r2mrf.axes"] = constants.pop("w0")
    weights = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "saliency", [taken], given, weights)
    path = folder / "saliency.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11 if "old" in form else 17)], ir_version=8),
        path,
    )
    return path


@pytest.mark.parametrize(
    "form",
    ["", "nhwc", "flat", "flat old", "nhwc bytes", "bytes", "two", "nhwc body", "nhwc flat clash"],
    ids=lambda form: form or "plain",
)
def test_what_is_adopted_computes_what_the_model_computes(form: str, tmp_path: Path) -> None:
    model = saliency(tmp_path, *form.split())
    done = adopt_artifact(model, tmp_path / "mine.onnx", normalize="unit", map_output="m3" if "two" in form else None)
    photograph = images.resize(photographs_for(None)[0], SIZE)
    pixels = photograph if "bytes" in form else photograph.astype(np.float32) / np.float32(255)
    fed = (pixels if "nhwc" in form else pixels.transpose(2, 0, 1))[None]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"photo": fed})[0].reshape(SIZE)
    assert wanted.std() > 0.01, "a flat map proves nothing"
    with Predictor.open(done.path) as predictor:
        # the same nodes on the same numbers; a transposed input may be convolved in another order
        np.testing.assert_allclose(predictor(photograph), wanted, atol=1e-6)
    # without the nodes and the weights of outputs that are dropped
    assert (
        done.manifest.parameters
        == adopt_artifact(
            saliency(tmp_path, *form.replace("two", "").split()), tmp_path / "alone.onnx", normalize="unit"
        ).manifest.parameters
    )


def test_logits_become_a_map_and_are_refused_as_one(tmp_path: Path) -> None:
    model = saliency(tmp_path, "logits", "flat")
    with pytest.raises(CheckFailed, match=r"has values from -?\d.* set `logits`"):
        adopt_artifact(model, tmp_path / "mine.onnx", normalize="bytes")
    assert not (tmp_path / "mine.onnx").exists()
    adopt_artifact(model, tmp_path / "mine.onnx", normalize="bytes", logits=True)
    with Predictor.open(tmp_path / "mine.onnx") as predictor:
        focus = predictor(photographs_for(None)[0])
    assert 0 <= focus.min() < focus.max() <= 1


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("two", {}, "has the outputs m3, more: set `map_output`"),
        ("two", {"map_output": "m4"}, "`map_output` m4: the model has no such output"),
        ("two", {"map_output": "more"}, r"a map is float32 \[N, 1, H, W\]"),
        ("", {"normalize": "imagnet"}, "`normalize` imagnet: give imagenet, unit, bytes"),
        ("", {"normalize": "0,0,0/1,1"}, "`normalize` 0,0,0/1,1: give"),
    ],
)
def test_what_does_not_fit_is_refused(form: str, options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        adopt_artifact(saliency(tmp_path, *form.split()), tmp_path / "mine.onnx", **options)
    assert {p.name for p in tmp_path.iterdir()} == {"saliency.onnx"}


def unet(folder: Path) -> Path:
    """Any batch, and any even height and width."""
    rng = np.random.default_rng(5)
    shapes = {"w0": (8, 3, 3, 3), "w1": (8, 8, 2, 2), "w2": (1, 16, 1, 1)}
    weights = [
        numpy_helper.from_array((rng.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32), n)
        for n, s in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["photo", "w0"], ["full"], pads=[1] * 4),
        helper.make_node("MaxPool", ["full"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("ConvTranspose", ["half", "w1"], ["again"], strides=[2, 2]),
        helper.make_node("Concat", ["full", "again"], ["both"], axis=1),
        helper.make_node("Conv", ["both", "w2"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["saliency"]),
    ]
    taken = helper.make_tensor_value_info("photo", TensorProto.FLOAT, ["n", 3, "h", "w"])
    given = helper.make_tensor_value_info("saliency", TensorProto.FLOAT, ["n", 1, "h", "w"])
    model = helper.make_model(
        helper.make_graph(nodes, "unet", [taken], [given], weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, folder / "unet.onnx")
    return folder / "unet.onnx"


def test_a_free_size_that_must_be_even_can_be_fixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, mine = unet(tmp_path), tmp_path / "mine.onnx"
    assert main(["adopt", str(model), "-o", str(mine)]) == 1  # a sample photograph has an odd height
    assert "set --size to one that is; nothing was written" in capsys.readouterr().err
    assert main(["adopt", str(model), "-o", str(mine), "--size", "47x64"]) == 2
    assert "--size 47x64: the model cannot compute it" in capsys.readouterr().err
    assert not mine.exists()
    done = adopt_artifact(model, mine, normalize="unit", size=SIZE)
    assert (done.manifest.inputs[0].shape, done.manifest.outputs[0].shape) == ([1, 3, *SIZE], [1, 1, *SIZE])
    photograph = images.resize(photographs_for(None)[0], SIZE)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"photo": (photograph.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)[None]})[0]
    with Predictor.open(mine) as predictor:
        np.testing.assert_allclose(predictor(photograph), wanted[0, 0], atol=1e-6)
    assert wanted.std() > 0.01, "a flat map proves nothing"
    with pytest.raises(UsageError, match=r"`size` 64x48: the input is .*, and cannot have another size"):
        adopt_artifact(saliency(tmp_path), tmp_path / "other.onnx", size=(SIZE[1], SIZE[0]))


def test_the_model_itself_is_never_replaced(tmp_path: Path) -> None:
    model = saliency(tmp_path)
    before = model.read_bytes()
    with pytest.raises(UsageError, match="would overwrite the model"):
        adopt_artifact(model, model)
    assert model.read_bytes() == before


def test_an_artifact_is_not_adopted_twice(tmp_path: Path) -> None:
    adopt_artifact(saliency(tmp_path), tmp_path / "mine.onnx")
    with pytest.raises(UsageError, match="says already"):
        adopt_artifact(tmp_path / "mine.onnx", tmp_path / "again.onnx")


@pytest.mark.artifact
def test_every_verb_takes_a_model_that_was_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of docs/any-model.md."""
    monkeypatch.chdir(tmp_path)
    saliency(tmp_path)
    (tmp_path / "photographs").mkdir()
    for number, photograph in enumerate(photographs_for(None)):
        Image.fromarray(photograph).save(tmp_path / "photographs" / f"{number}.png")
    refused = ("convert saliency.onnx -o x.onnx --precision fp16", "parity saliency.onnx saliency.onnx")
    for command in refused:
        assert main(command.split()) == 2
        assert "r2mrf adopt" in capsys.readouterr().err
    for command in (
        "adopt saliency.onnx -o mine.onnx --normalize imagenet",
        "optimize mine.onnx -o fast.onnx",
        "convert fast.onnx -o half.onnx --precision fp16",
        "convert fast.onnx -o int8.onnx --precision int8 --calibration photographs",
        "build fast.onnx -o fast.xml",
        "parity mine.onnx fast.onnx half.onnx int8.onnx fast.xml",
        "bench mine.onnx fast.onnx fast.xml --duration 0.05 --iterations 3",
        "predict fast.xml photographs -o maps",
    ):
        assert main(command.split()) == 0, capsys.readouterr().err
    optimized = json.loads((tmp_path / "fast.onnx.json").read_text())
    first, last = optimized["rewrites"][0], optimized["rewrites"][-1]
    # the features are convolved once, and not at each of the four steps
    assert last["multiply_adds_after"] < 0.5 * first["multiply_adds_before"]
    assert {p["reference"] for p in json.loads((tmp_path / "int8.onnx.json").read_text())["parity"]} == {
        "FP32",
        "mine.onnx",
    }


def test_a_reference_that_takes_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, form in (("floats", ""), ("bytes", "nhwc bytes")):
        (tmp_path / name).mkdir()
        adopt_artifact(saliency(tmp_path / name, *form.split()), tmp_path / f"{name}.onnx")
    assert main(["parity", str(tmp_path / "floats.onnx"), str(tmp_path / "bytes.onnx")]) == 2
    assert "which is not what the artifact takes" in capsys.readouterr().err
    assert main(["parity", str(tmp_path / "floats.onnx"), str(tmp_path / "floats.onnx"), "--bisect"]) == 2
    assert "--bisect compares with a checkpoint" in capsys.readouterr().err
