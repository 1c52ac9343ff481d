"""Reduced precision from end to end: artifacts that are what they say, near enough, readable by every runtime."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from r2mrf_deploy import images, runtimes, sample_photographs
from r2mrf_deploy.cli import main
from r2mrf_deploy.errors import CheckFailed, GraphError, InputError, UsageError
from r2mrf_deploy.export import check
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.convert import convert_artifact
from r2mrf_deploy.export.options import PrecisionOptions
from r2mrf_deploy.graph import naming, precision, quantize
from r2mrf_deploy.parity import compare
from r2mrf_deploy.parity.artifacts import compare_artifacts
from r2mrf_deploy.progress import Progress
from tests.conftest import manifest_of

pytestmark = pytest.mark.artifact

REDUCED = ("fp16", "bf16", "int8")


@pytest.mark.parametrize("kind", REDUCED)
def test_the_artifact_says_what_it_is(converted: Callable[[str], Path], exported: Path, kind: str) -> None:
    file = converted(kind)
    manifest, source = manifest_of(file), manifest_of(exported)
    assert manifest is not None and source is not None
    assert manifest.precision == kind and precision.precisions(onnx.load(file)) == [kind]
    assert manifest.source_sha256 == source.sha256 and manifest.checkpoint_sha256 == source.checkpoint_sha256
    assert (manifest.inputs, manifest.outputs, manifest.rewrites) == (source.inputs, source.outputs, source.rewrites)
    assert manifest.parity[0]["precision"] == kind and manifest.parity[0]["reference_spread"] > 0.02
    assert manifest.bytes < 0.75 * source.bytes
    if kind == "int8":
        assert manifest.calibration == {"photographs": 6, "method": "percentile"}
        assert manifest.kept == quantize.ends(onnx.load(exported))


@pytest.mark.parametrize("kind", REDUCED)
def test_a_plan_is_built_from_it_with_the_same_inputs_and_outputs(
    converted: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    built = build_artifact(converted(kind), tmp_path / "x.plan")
    source = manifest_of(converted(kind))
    assert source is not None and built.manifest.precision == kind
    assert (built.manifest.inputs, built.manifest.outputs) == (source.inputs, source.outputs)


@pytest.mark.parametrize("kind", REDUCED)
def test_what_it_was_computed_in_is_said(converted: Callable[[str], Path], small: Path, kind: str) -> None:
    """ONNX Runtime emulates FP16 on a CPU and has no BF16; OpenVINO computes what the CPU has instructions for."""
    pytest.importorskip("openvino", reason="needs openvino")
    (by_default,) = compare_artifacts(small, [converted(kind)])
    assert by_default.runtime == ("onnxruntime" if kind == "fp16" else "openvino")
    manifest = manifest_of(converted(kind))
    assert manifest is not None and manifest.parity[0]["runtime"] == by_default.runtime  # who converts hears the same
    if kind == "int8":
        assert re.search(r"int8 in [1-9]\d* of \d+ convolutions, the rest f32", by_default.device)
    (by_openvino,) = compare_artifacts(small, [converted(kind)], runtime="openvino")
    import openvino

    has = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert bool(by_openvino.emulates) == (kind == "fp16" or kind.upper() not in has)
    for result in (by_default, by_openvino):
        assert result.precision == kind and result.map.mean > 1e-7
        if result.emulates:
            assert result.verdict != "pass"
    if kind == "bf16":
        (refused,) = compare_artifacts(small, [converted(kind)], runtime="onnxruntime")
        assert refused.verdict == "not run" and "no BF16 kernels" in refused.reason


def test_openvino_converts_it_and_still_computes_so(converted: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs openvino")
    built = build_artifact(converted("int8"), tmp_path / "x.xml")
    assert built.manifest.precision == "int8"
    image = images.resize(sample_photographs.sample("coffee"), (96, 128))[None].copy()
    with runtimes.open(built.path) as a, runtimes.open(converted("int8"), "openvino") as b:
        np.testing.assert_allclose(a.run({"image": image})["map"], b.run({"image": image})["map"], atol=1e-3)


def test_export_reduces_too_keeps_parts_and_warns_of_few_photographs(
    small: Path, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "k.onnx"
    command = ["export", str(small), "-o", str(file), "--size", "96x128", "--precision", "int8"]
    command += ["--calibration", str(album), "--keep", "backbone", "--allow-failed-parity", "--json"]
    assert main(command) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert any("6 photographs: fewer than 20" in w for w in manifest["warnings"])
    assert (manifest["parity"][0]["verdict"], manifest["parity"][0]["allowed"]) == ("fail", True)
    assert any(w.startswith("written although parity fails") for w in manifest["warnings"])
    assert manifest["precision"] == "int8" and {naming.scope(n) for n in manifest["kept"]} == {"backbone", "fusion"}
    graph = onnx.load(file)
    made = {output: node.op_type for node in graph.graph.node for output in node.output}
    quantised = [n for n in graph.graph.node if n.op_type == "Conv" and made.get(n.input[0]) == "DequantizeLinear"]
    assert quantised and not {naming.scope(n.name) for n in quantised} & {"backbone", "fusion"}


@pytest.mark.parametrize("verb", ["convert", "build"])
def test_an_artifact_that_fails_is_not_written(
    exported: Path, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """Untrained weights pass the rounding of INT8 on."""
    pytest.importorskip("openvino", reason="needs openvino")
    file = tmp_path / ("x.onnx" if verb == "convert" else "x.xml")
    command = [verb, str(exported), "-o", str(file), "--precision", "int8", "--calibration", str(album)]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "was not written: it is too far from FP32" in said and "--allow-failed-parity" in said
    assert not list(tmp_path.iterdir())


# what is left to quantise is little, so that a search is short
MOST = ("backbone", "amdf", "initial", "shared", *(f"step{t}.branch{b}" for t in (1, 2) for b in (2, 3, 4, 5)))


def test_the_search_keeps_what_the_bound_asks_for(exported: Path, album: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    untrained: dict[str, Any] = {"allow_failed_parity": True}
    plain = convert_artifact(
        exported, tmp_path / "a.onnx", PrecisionOptions("int8", album, keep=MOST, max_drop=0.9), **untrained
    )
    assert plain.search is not None and not plain.search.kept
    bound = max(plain.search.before.mae, plain.search.before.f) / 3
    options = PrecisionOptions("int8", album, keep=MOST, max_drop=bound, resume=tmp_path / "search.json")
    done = convert_artifact(exported, tmp_path / "b.onnx", options, progress=told.append, **untrained)
    assert done.search is not None and done.search.kept
    assert max(done.search.after.mae, done.search.after.f) <= bound
    assert {k.node for k in done.search.kept} <= set(done.manifest.kept)
    assert Progress("calibrating", 6, 6) in told and any(p.description.startswith("searching") for p in told)
    assert done.manifest.calibration["drop"]["mae"] == done.search.after.mae
    again = convert_artifact(exported, tmp_path / "c.onnx", options, **untrained)
    assert again.search == done.search
    others = tmp_path / "others"
    others.mkdir()
    for number, photograph in enumerate(sample_photographs.sharp()[6:12]):
        (others / f"{number}.png").write_bytes(images.png(images.resize(photograph, (120, 160))))
    with pytest.raises(InputError, match="another model, other photographs, options"):
        convert_artifact(exported, tmp_path / "d.onnx", replace(options, calibration=others))


@pytest.mark.parametrize("kind", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])  # searched in the same way
def test_the_search_keeps_arithmetic_in_fp32(exported: Path, album: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("openvino", reason="needs openvino")
    plain = convert_artifact(exported, tmp_path / "a.onnx", PrecisionOptions(kind, album, keep=MOST, max_drop=0.9))  # type: ignore[arg-type]
    assert plain.search is not None and not plain.search.kept and plain.search.before.mae > 0
    bound = max(plain.search.before.mae, plain.search.before.f) / 2
    options = PrecisionOptions(kind, album, keep=MOST, max_drop=bound)  # type: ignore[arg-type]
    done = convert_artifact(exported, tmp_path / "b.onnx", options)
    assert done.search is not None and done.search.kept
    assert max(done.search.after.mae, done.search.after.f) <= bound
    kept, graph = {k.node for k in done.search.kept}, onnx.load(exported).graph
    assert kept <= set(precision.computing(onnx.load(exported))) & set(done.manifest.kept)
    assert not {n.op_type for n in graph.node if n.name in kept} & {"Cast", "Concat", "Reshape", "Slice", "Transpose"}


def test_with_all_arithmetic_in_fp32_nothing_is_lost(exported: Path) -> None:
    graph = onnx.load(exported)
    every = precision.computing(graph)
    half = precision.to_half(graph, "bf16", [*every, *precision.carried(graph, every)])
    assert precision.precisions(half) == []


def test_bisect_names_the_nodes_that_explain_a_failure(
    small: Path,
    exported: Path,
    album: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from r2mrf_deploy.parity import bisect, compare

    file = tmp_path / "i.onnx"
    low = PrecisionOptions("int8", album, keep=MOST, quantize_ends=True)
    done = convert_artifact(exported, file, low, allow_failed_parity=True)
    assert done.parity is not None
    limit = done.parity.map.mean / 2
    tolerance = compare.Tolerance(map=1, logits=9, mean=limit, f=1)
    monkeypatch.setattr(compare, "TOLERANCES", compare.TOLERANCES | {"int8": tolerance})
    monkeypatch.setattr(bisect, "TOLERANCES", compare.TOLERANCES)
    assert main(["parity", str(small), str(file), "--runtime", "openvino", "--bisect", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    kept = found["bisect"]["kept"]
    assert kept and found["bisect"]["after"]["mae"] <= limit < found["bisect"]["before"]["mae"]
    assert all(k["without"]["mae"] > limit for k in kept)
    with pytest.raises(UsageError, match="`bisect` needs"):
        bisect.bisect(small, exported)


def test_wrong_use(exported: Path, album: Path, tmp_path: Path, converted: Callable[[str], Path]) -> None:
    out = tmp_path / "out.onnx"
    (tmp_path / "none").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    for options, error, said in [
        (lambda: PrecisionOptions("int8"), UsageError, "give `calibration` a folder"),
        (lambda: PrecisionOptions("int8", tmp_path / "none"), InputError, "holds no images"),
        (lambda: PrecisionOptions("int8", tmp_path / "broken"), InputError, "a.png.*remove it"),
        (lambda: PrecisionOptions("int9"), UsageError, "choose from fp32, fp16"),  # type: ignore[arg-type]
        (lambda: PrecisionOptions("fp16", gpus=("gtx1080ti",)), UsageError, "1/64 of its FP32 rate.*fp32, or int8"),
        (lambda: PrecisionOptions("bf16", gpus=("rtx2080ti",)), UsageError, "no BF16"),
        (lambda: PrecisionOptions("fp16", method="percentile"), UsageError, "`method` is for INT8"),
        (lambda: PrecisionOptions("bf16", quantize_ends=True), UsageError, "`quantize_ends` is for INT8"),
        (lambda: PrecisionOptions("int8", album, resume=tmp_path / "s.json"), UsageError, "also give `max_drop`"),
        (lambda: PrecisionOptions("fp16", max_drop=0.01), UsageError, "`max_drop` needs photographs"),
        (lambda: PrecisionOptions("int8", album, max_drop=5), UsageError, "between 0 and 1"),
        (lambda: PrecisionOptions("fp32", keep=("fusion",)), UsageError, "`keep` is for a reduced precision"),
        (lambda: PrecisionOptions("fp16", keep=("fusoin",)), UsageError, "no node 'fusoin'"),
        (lambda: PrecisionOptions("fp32"), UsageError, "FP32 already"),
        (lambda: PrecisionOptions("fp32", keep=[]), UsageError, "FP32 already"),  # type: ignore[arg-type]
    ]:
        with pytest.raises(error, match=said):
            convert_artifact(exported, out, options())
        assert not out.exists()
    with pytest.raises(UsageError, match="INT8 already"):
        convert_artifact(converted("int8"), out, PrecisionOptions("fp16"))
    with pytest.raises(UsageError, match=r"must end in \.onnx"):
        convert_artifact(exported, tmp_path / "x.plan", PrecisionOptions("fp16"))
    with pytest.raises(InputError, match="no such file"):
        convert_artifact(tmp_path / "no.onnx", out, PrecisionOptions("fp16"))
    before = exported.read_bytes()
    with pytest.raises(UsageError, match="would overwrite the FP32 graph"):
        convert_artifact(
            exported, exported.parent / ".." / exported.parent.name / exported.name, PrecisionOptions("fp16")
        )
    assert exported.read_bytes() == before


def test_what_fp16_would_overflow_stays_in_fp32(exported: Path, tmp_path: Path) -> None:
    """A factor of 2^30 and back. ONNX Runtime, which emulates FP16 on a CPU, would not show what becomes of it."""
    model = onnx.load(exported)
    node = next(n for n in model.graph.node if n.name == "fusion/Conv")
    for name, value in (("up", 2.0**15), ("down", 2.0**-15)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), name))
    steps = [(node.input[0], "up", "a"), ("a", "up", "b"), ("b", "down", "c"), ("c", "down", "d")]
    at = list(model.graph.node).index(node)
    for x, y, z in reversed(steps):
        model.graph.node.insert(at, onnx.helper.make_node("Mul", [x, y], [z], name=f"fusion/{z}"))
    next(n for n in model.graph.node if n.name == "fusion/Conv").input[0] = "d"
    onnx.save(model, tmp_path / "large.onnx")
    options = PrecisionOptions("fp16")
    done = convert_artifact(tmp_path / "large.onnx", tmp_path / "h.onnx", options, allow_failed_parity=True)
    # untrained weights pass rounding on; had the factors overflowed, nothing would be left of the map
    assert done.parity is not None and done.parity.emulates and done.parity.map.mean < 0.02
    (warning,) = (w for w in done.warnings if "would overflow" in w)
    assert "fusion/b" in warning or "fusion/a" in warning
    half = onnx.load(done.path)
    types = {v.name: v.type.tensor_type.elem_type for v in half.graph.value_info}
    (large,) = next(n for n in half.graph.node if n.name == "fusion/b").output
    assert types[large] == onnx.TensorProto.FLOAT


def test_success_is_compared_with_the_types_in_the_file(
    tiny_onnx: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converter that finds nothing to convert leaves a graph that computes what it should, in FP32."""
    model = tiny_onnx()
    done = convert_artifact(model, tmp_path / "half.onnx", PrecisionOptions("fp16"), allow_failed_parity=True)
    assert done.manifest.share == 1
    monkeypatch.setattr(precision, "to_half", lambda graph, *_: graph)
    with pytest.raises(
        CheckFailed, match=r"only 0% of the multiply-adds would be in FP16: the precision of 2 nodes \(conv1, conv2\)"
    ):
        convert_artifact(model, tmp_path / "nothing.onnx", PrecisionOptions("fp16"))
    assert not (tmp_path / "nothing.onnx").exists()
    kept = convert_artifact(model, tmp_path / "kept.onnx", PrecisionOptions("fp16", keep=("conv1", "conv2")))
    assert kept.manifest.share == 0


def test_a_graph_without_names_is_converted(tiny_onnx: Callable[..., Path], tmp_path: Path) -> None:
    graph = onnx.load(tiny_onnx(manifest=False))
    for node in graph.graph.node:
        node.name = ""
    onnx.save(graph, tmp_path / "nameless.onnx")
    done = convert_artifact(tmp_path / "nameless.onnx", tmp_path / "half.onnx", PrecisionOptions("fp16"))
    kinds = {i.name: i.data_type for i in onnx.load(done.path).graph.initializer}
    assert (kinds["w1"], kinds["w2"], done.manifest.share) == (*[onnx.TensorProto.FLOAT16] * 2, 1)


def test_a_graph_with_nothing_to_compute_is_refused(tmp_path: Path) -> None:
    text = "g (uint8[1,8,8,3] x) => (float[1,8,8,3] map) { f = Cast<to=1>(x) map = Sigmoid(f) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'), tmp_path / "x.onnx")
    for kind, said in (("bf16", "no convolution and no matrix product"), ("int8", "nothing to quantise")):
        with pytest.raises(UsageError, match=said):
            convert_artifact(tmp_path / "x.onnx", tmp_path / "y.onnx", PrecisionOptions(kind, tmp_path))  # type: ignore[arg-type]


def test_weights_that_are_not_finite_are_refused(exported: Path, tmp_path: Path) -> None:
    """Before any runtime sees them: OpenVINO's sigmoid makes a number of NaN on a CPU without AVX-512."""
    model = onnx.load(exported)
    bias = next(i for i in model.graph.initializer if i.name == "network.fusion.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(1, np.nan, np.float32), bias.name))
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(GraphError, match=r"network\.fusion\.bias has values that are not finite"):
        convert_artifact(tmp_path / "nan.onnx", tmp_path / "h.onnx", PrecisionOptions("bf16"))
    assert not (tmp_path / "h.onnx").exists()


def test_a_map_that_is_not_finite_is_not_written(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = check.compare

    def overflowing(*args: Any, **options: Any) -> compare.Parity:
        result = original(*args, **options)
        result.map.largest = float("inf")
        return result

    monkeypatch.setattr(check, "compare", overflowing)
    with pytest.raises(CheckFailed, match=r"h\.onnx was not written: its map is not finite"):
        convert_artifact(exported, tmp_path / "h.onnx", PrecisionOptions("fp16"))
    assert not list(tmp_path.iterdir())
