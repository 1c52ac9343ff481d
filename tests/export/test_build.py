"""`build`: real plans from TensorRT-RTX on any machine, OpenVINO models, their manifests, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from r2mrf_deploy import gpus
from r2mrf_deploy.cli import main
from r2mrf_deploy.errors import ArtifactError, BuildError, GraphError, InputError, RuntimeUnavailable, UsageError
from r2mrf_deploy.export import tensorrt as build_module
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.options import PrecisionOptions
from r2mrf_deploy.files import sha256
from r2mrf_deploy.formats import plan as plan_header
from r2mrf_deploy.manifest import Manifest
from r2mrf_deploy.runtimes.cuda import bindings
from r2mrf_deploy.runtimes.tensorrt import api, targets
from r2mrf_deploy.runtimes.tensorrt.api import Library
from r2mrf_deploy.runtimes.tensorrt.options import BuildOptions
from tests.conftest import forge, manifest_of

pytestmark = pytest.mark.artifact

needs_rtx = pytest.mark.skipif("tensorrt_rtx" not in api.installed(), reason="needs tensorrt-rtx")
pytest.importorskip("onnx", reason="needs onnx")
TinyOnnx = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here is building without a GPU, also on a machine that has one."""

    def none() -> bindings.Device:
        raise bindings.failure(35, "no driver")

    monkeypatch.setattr(bindings, "device", none)


def files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


# ---- plans


@needs_rtx
@pytest.mark.parametrize("capability", gpus.RTX_COMPUTE_CAPABILITIES)
def test_a_plan_for_each_compute_capability(tiny_onnx: TinyOnnx, capability: str) -> None:
    name = next(g.name for g in gpus.GPUS.values() if g.compute_capability == capability)
    built = build_artifact(tiny_onnx(), gpus=[name])
    header = plan_header.read(built.path).header
    assert header.flavour == "tensorrt_rtx"
    assert header.compute_capabilities == (capability,)
    target = built.manifest.target
    assert target is not None and target.compute_capabilities == [capability] and target.gpus == [name]


@needs_rtx
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_plan_and_its_manifest(tiny_onnx: TinyOnnx, precision: str, dynamic: bool) -> None:
    model = tiny_onnx(precision=precision, dynamic=dynamic)
    source = manifest_of(model)
    assert source is not None
    built = build_artifact(model)
    assert built.path == model.with_suffix(".plan")
    manifest = manifest_of(built.path)  # checks the SHA-256
    assert manifest == built.manifest
    plan_header.check_manifest(plan_header.read(built.path).header, manifest)
    assert manifest.bytes == built.path.stat().st_size
    assert manifest.source_sha256 == sha256(model)
    for field in ("inputs", "outputs", "profiles", "precision", "network", "opset", "multiply_adds"):
        assert getattr(manifest, field) == getattr(source, field), field
    target = manifest.target
    assert target is not None
    assert target.built_without_gpu and target.achieved_precision.startswith("not verified")
    assert target.runtime == "tensorrt_rtx" and target.runtime_version == manifest.tools["tensorrt-rtx"]
    assert "without a GPU" in built.note


@needs_rtx
def test_without_a_name_the_plan_is_for_ampere_and_later(tiny_onnx: TinyOnnx) -> None:
    built = build_artifact(tiny_onnx())
    assert plan_header.read(built.path).header.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")


@needs_rtx
def test_several_names_make_one_plan(tiny_onnx: TinyOnnx) -> None:
    built = build_artifact(tiny_onnx(), gpus=["rtx5090", "rtx2080ti", "T4"])
    assert plan_header.read(built.path).header.compute_capabilities == ("7.5", "12.0")


@needs_rtx
def test_a_model_without_a_manifest_is_described_from_its_network(tiny_onnx: TinyOnnx) -> None:
    with_manifest = build_artifact(tiny_onnx("a", precision="fp16", dynamic=True)).manifest
    shapes = {"image": (1, 64, 64, 3)}
    alone = build_artifact(
        tiny_onnx("b", precision="fp16", dynamic=True, manifest=False), options=BuildOptions(opt_shapes=shapes)
    ).manifest
    assert alone.precision == with_manifest.precision == "fp16"
    assert alone.inputs[0].shape == with_manifest.inputs[0].shape == ["batch", "height", "width", 3]
    assert [s.dtype for s in (*alone.inputs, *alone.outputs)] == ["uint8", "float32"]
    assert alone.profiles == {"image": {kind: [1, 64, 64, 3] for kind in ("min", "opt", "max")}}


@needs_rtx
def test_shapes_given_go_before_the_manifests(tiny_onnx: TinyOnnx) -> None:
    options = BuildOptions(opt_shapes={"image": (1, 96, 96, 3)}, no_tf32=True)
    manifest = build_artifact(tiny_onnx(dynamic=True), options=options).manifest
    assert manifest.profiles["image"] == {"min": [1, 32, 32, 3], "opt": [1, 96, 96, 3], "max": [2, 128, 128, 3]}
    assert manifest.target is not None and manifest.target.options == {"noTF32": "true"}


@needs_rtx
def test_progress(tiny_onnx: TinyOnnx) -> None:
    phases: list[str] = []
    build_artifact(tiny_onnx(), progress=lambda p: phases.append(p.description))
    assert phases[-1].startswith("comparing tiny.plan") and phases[0] == phases[-2]


@pytest.fixture
def edge(request: pytest.FixtureRequest) -> Path:
    """The smallest of the networks at 320×320, with its preprocessing inside."""
    pytest.importorskip("torch", reason="needs torch")
    path: Path = request.getfixturevalue("traced")("r2mrf-edge")
    return path


@needs_rtx
def test_a_network_builds(edge: Path, tmp_path: Path) -> None:
    built = build_artifact(edge, tmp_path / "edge.plan", gpus=["rtx3090"])
    assert [str(s) for s in built.manifest.inputs] == ["image: uint8 [1×320×320×3]"]
    assert [str(s) for s in built.manifest.outputs] == ["map: float32 [1×1×320×320]"]
    assert built.path.stat().st_size > 0.9 * edge.stat().st_size  # the weights are in it


@needs_rtx
def test_turing_is_left_out_because_it_would_bloat_the_plan(edge: Path, tmp_path: Path) -> None:
    """The grounds of the default: should a later version do better, this test says so."""
    usual = build_artifact(edge, tmp_path / "a.plan").path.stat().st_size
    turing = build_artifact(edge, tmp_path / "b.plan", gpus=["rtx2080ti", "rtx3090"]).path.stat().st_size
    assert turing > 2 * usual


# ---- what is refused


@needs_rtx
@pytest.mark.parametrize(
    ("precision", "gpu", "message"),
    [
        ("fp16", "gtx1080ti", "`gpus` gtx1080ti: .*computes FP16 at .*; also, TensorRT-RTX does not support Pascal"),
        ("fp32", "gtx1080ti", "does not support Pascal .*tensorrt 8.6.1"),
        ("fp32", "v100", "does not support Volta"),
        ("fp32", "h200", "does not support Hopper"),
        ("fp32", "orin", "compute capability 8.7"),
        ("bf16", "rtx2080ti", "has no BF16.*`precision` fp16"),
    ],
)
@pytest.mark.parametrize("manifest", [True, False])
def test_what_a_gpu_cannot_do_is_refused(
    tiny_onnx: TinyOnnx, precision: str, gpu: str, message: str, manifest: bool
) -> None:
    model = tiny_onnx(precision=precision, manifest=manifest)
    if precision == "fp16" and not manifest:
        message = "does not support Pascal"  # the library is ruled out before the graph is read
    before = files(model.parent)
    with pytest.raises(BuildError, match=message):
        build_artifact(model, gpus=["rtx3090", gpu])
    assert files(model.parent) == before


@needs_rtx
def test_wrong_use(tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    model = tiny_onnx()
    cases: list[tuple[type[Exception], str, Path, dict[str, Any]]] = [
        (InputError, "no such file", tmp_path / "none.onnx", {}),
        (UsageError, "is not an .onnx file", Manifest.path_for(model), {}),
        (UsageError, "no exporter writes .engine files", model, {"output": tmp_path / "x.engine"}),
        (UsageError, "no GPU class 'rtx3091': did you mean", model, {"gpus": ["rtx3091"]}),
        (UsageError, "`gpus` is not supported by OpenVINO", model, {"output": tmp_path / "x.xml", "gpus": ["rtx3090"]}),
        (
            UsageError,
            "`build` is not supported by OpenVINO",
            model,
            {"output": tmp_path / "x.xml", "options": BuildOptions(no_tf32=True)},
        ),
        (RuntimeUnavailable, "TensorRT is not installed", model, {"options": BuildOptions(library="tensorrt")}),
    ]
    before = files(tmp_path)
    for error, message, path, options in cases:
        with pytest.raises(error, match=message):
            build_artifact(path, **options)
    assert files(tmp_path) == before


@needs_rtx
def test_a_model_that_is_not_its_manifests_is_refused(tiny_onnx: TinyOnnx) -> None:
    model = tiny_onnx()
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="SHA-256"):
        build_artifact(model)


@needs_rtx
@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        ("inputs", {"name": "picture"}, r"the model.* \['image'\], the manifest says \['picture'\]"),
        ("inputs", {"dtype": "float32"}, "image: uint8 .*, the manifest says image: float32"),
        ("inputs", {"shape": [1, 64, 64], "layout": None}, "says image: uint8 .1×64×64."),
        ("outputs", {"shape": [1, 1, 64, 65]}, "map: float32 .*64×64.*, the manifest says .*64×65"),
    ],
)
@pytest.mark.parametrize("suffix", [".plan", ".xml"])
def test_a_manifest_that_says_something_else_is_refused(
    tiny_onnx: TinyOnnx, which: str, change: dict[str, Any], message: str, suffix: str
) -> None:
    if suffix == ".xml":
        pytest.importorskip("openvino", reason="needs openvino")
    model = tiny_onnx()
    manifest = Manifest.read(Manifest.path_for(model))
    (spec,) = getattr(manifest, which)
    forge(manifest.model_copy(update={which: [spec.model_copy(update=change)]}), model)
    before = files(model.parent)
    with pytest.raises(BuildError, match=message):
        build_artifact(model, model.with_suffix(suffix))
    assert files(model.parent) == before


@needs_rtx
def test_a_graph_that_is_not_of_the_precision_it_is_said_to_be(tiny_onnx: TinyOnnx) -> None:
    model = tiny_onnx(precision="fp32")
    forge(Manifest.read(Manifest.path_for(model)).model_copy(update={"precision": "fp16"}), model)
    with pytest.raises(BuildError, match="the manifest says fp16, but the graph holds only fp32"):
        build_artifact(model)


def test_no_builder_at_all(tiny_onnx: TinyOnnx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "installed", dict)
    with pytest.raises(RuntimeUnavailable, match=r"pip install \"r2mrf-deploy\[tensorrt\]\" .*\[tensorrt-rtx\]"):
        build_artifact(tiny_onnx())


@needs_rtx
def test_tensorrt_8_6_is_not_given_an_opset_it_cannot_read() -> None:
    old, new = (Library("tensorrt", SimpleNamespace(__version__=v)) for v in ("8.6.1", "10.3.0"))
    with pytest.raises(BuildError, match=r"TensorRT 8\.6\.1 .*`opset` 17"):
        build_module._refuse_opset(old, 18)
    build_module._refuse_opset(old, 17)
    build_module._refuse_opset(new, 20)


# ---- whole or not at all


@needs_rtx
def test_a_failure_while_writing_leaves_what_was_there(tiny_onnx: TinyOnnx, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_onnx()
    built = build_artifact(model, gpus=["rtx3090"])
    before, content = files(model.parent), built.path.read_bytes()

    def full(*_: object) -> Path:
        raise ArtifactError("no space left on device")

    monkeypatch.setattr(Manifest, "write", full)
    with pytest.raises(ArtifactError, match="no space"):
        build_artifact(model, gpus=["rtx4090"])
    assert files(model.parent) == before
    assert built.path.read_bytes() == content
    monkeypatch.undo()
    assert manifest_of(built.path) == built.manifest


@needs_rtx
def test_a_folder_that_cannot_be_made(tiny_onnx: TinyOnnx) -> None:
    model = tiny_onnx()
    with pytest.raises(ArtifactError, match="cannot write"):
        build_artifact(model, model / "folder" / "x.plan")


@needs_rtx
def test_folders_are_made(tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    built = build_artifact(tiny_onnx(), tmp_path / "a" / "b" / "x.plan")
    assert files(built.path.parent) == {"x.plan", "x.plan.json"}


# ---- OpenVINO


@pytest.mark.parametrize("dynamic", [False, True])
def test_an_openvino_model_and_its_manifest(tiny_onnx: TinyOnnx, dynamic: bool) -> None:
    pytest.importorskip("openvino", reason="needs openvino")
    model = tiny_onnx(dynamic=dynamic)
    source = manifest_of(model)
    assert source is not None
    built = build_artifact(model, model.with_suffix(".xml"))
    manifest = manifest_of(built.path)
    assert manifest == built.manifest
    assert set(manifest.companions) == {"tiny.bin"}
    assert (manifest.inputs, manifest.outputs, manifest.profiles) == (source.inputs, source.outputs, source.profiles)
    assert manifest.source_sha256 == sha256(model)
    built.path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"tiny\.bin does not match"):
        manifest_of(built.path)


def test_openvino_computes_what_onnxruntime_computes(tiny_onnx: TinyOnnx) -> None:
    openvino = pytest.importorskip("openvino", reason="needs openvino")
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    model = tiny_onnx(manifest=False)
    built = build_artifact(model, model.with_suffix(".xml"))
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    found = openvino.Core().compile_model(built.path, "CPU", settings)(image)[0]
    (expected,) = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"image": image})
    assert expected.std() > 0.02  # informative
    # FP32 sums of 72 terms in another order; FP16 weights, the default of save_model, would be out by 1e-4
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_damaged_model_is_refused_by_openvino(tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs openvino")
    model = tiny_onnx(manifest=False)
    model.write_bytes(model.read_bytes()[:-200])
    with pytest.raises(GraphError, match=r"OpenVINO cannot read tiny\.onnx") as e:
        build_artifact(model, tmp_path / "x.xml")
    assert "\n" not in str(e.value)
    assert files(tmp_path) == {"tiny.onnx"}


def test_openvino_that_is_not_installed(tiny_onnx: TinyOnnx, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    model = tiny_onnx()
    with pytest.raises(RuntimeUnavailable, match=r"pip install \"r2mrf-deploy\[openvino\]\""):
        build_artifact(model, model.with_suffix(".xml"))


# ---- in a lower precision


@pytest.mark.parametrize("flag", ["--precision=fp16", "--fp16", "--bf16", "--int8"])
def test_a_build_converts_first_as_trtexec_is_asked_to(
    tiny_onnx: TinyOnnx, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    pytest.importorskip("openvino", reason="needs openvino")
    kind = flag[-4:]
    options = ["--calibration", str(album), "--quantize-ends"] if kind == "int8" else []
    command = ["build", str(tiny_onnx()), "-o", str(tmp_path / "low.xml"), flag, *options, "--allow-failed-parity"]
    assert main([*command, "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert (manifest["precision"], manifest["share"], manifest["kind"]) == (kind, 1.0, "openvino")
    assert len(manifest["parity"]) == 1 and manifest["parity"][0]["precision"] == kind
    if kind == "int8":
        assert manifest["calibration"] == {"photographs": 6, "method": "percentile"}
        assert any(
            "6 photographs: fewer than 20" in w for w in manifest["warnings"]
        )  # what the conversion said is not lost
        assert "FakeQuantize" in (tmp_path / "low.xml").read_text()
    assert files(tmp_path) == {"tiny.onnx", "tiny.onnx.json", "low.xml", "low.xml.json", "low.bin"}


@needs_rtx
def test_an_fp16_plan_from_an_fp32_graph(tiny_onnx: TinyOnnx) -> None:
    built = build_artifact(tiny_onnx(), precision=PrecisionOptions("fp16"), allow_failed_parity=True)
    assert built.manifest.precision == "fp16" and built.manifest.share == 1
    reduced = tiny_onnx("half", precision="fp16")
    assert build_artifact(reduced, precision=PrecisionOptions("fp16")).manifest.precision == "fp16"  # it is already


def test_precisions_that_contradict_are_refused(tiny_onnx: TinyOnnx, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_onnx()
    for flags, said in [
        (["--fp16", "--int8"], "fp16 and int8 exclude each other"),
        (["--bf16", "--precision", "fp16"], "bf16 and fp16 exclude each other"),
        (["--int8"], "INT8 needs photographs to calibrate on: give --calibration a folder"),
        (["--keep", "conv1"], "--keep is for a reduced precision"),
    ]:
        assert main(["build", str(model), "-o", str(model.with_suffix(".xml")), *flags]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(UsageError, match="FP16 already"):
        build_artifact(
            tiny_onnx("half", precision="fp16"), model.with_suffix(".xml"), precision=PrecisionOptions("bf16")
        )
    assert files(model.parent) == {"tiny.onnx", "tiny.onnx.json", "half.onnx", "half.onnx.json"}


# ---- with a device, as far as it can be said without one


def at_hand(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    gpu = gpus.get(name)
    monkeypatch.setattr(bindings, "device", lambda: bindings.Device(gpu.title, gpu.compute_capability))


@needs_rtx
def test_a_product_that_no_rewrite_takes_out_of_a_turing_s_way_is_refused_with_a_cure(tmp_path: Path) -> None:
    import onnx

    text = "g (float[1,8,16,16] x) => (float[1,8,16,16] y) { t = Transpose<perm=[0,1,3,2]>(x) y = MatMul(x, t) }"
    model = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'), model)
    with pytest.raises(BuildError, match=r"FP32 GEMM is not supported; export with `precision` fp16"):
        build_artifact(model, gpus=["rtx2080ti"])
    assert build_artifact(model, gpus=["rtx3090"]).path.exists()


@needs_rtx
def test_a_turing_at_hand_is_built_for(tiny_onnx: TinyOnnx, monkeypatch: pytest.MonkeyPatch) -> None:
    at_hand(monkeypatch, "rtx2080ti")
    monkeypatch.setattr(targets, "achieved_precision", lambda library, plan: "fp32 in 9 layers")
    built = build_artifact(tiny_onnx())
    target = built.manifest.target
    assert target is not None and target.compute_capabilities == ["7.5"]
    assert not target.built_without_gpu and target.achieved_precision == "fp32 in 9 layers"
    assert target.options == {"profilingVerbosity": "detailed"}  # without it an engine tells no precision
    terse = build_artifact(tiny_onnx(), options=BuildOptions(profiling_verbosity="none")).manifest.target
    assert terse is not None and terse.options == {"profilingVerbosity": "none"}


@needs_rtx
def test_a_graph_that_the_turing_at_hand_cannot_run_is_refused(
    tiny_onnx: TinyOnnx, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_hand(monkeypatch, "t4")
    with pytest.raises(BuildError, match=r"^the Tesla T4 \(Turing\) has no BF16"):
        build_artifact(tiny_onnx(precision="bf16"))


@needs_rtx
def test_a_plan_for_another_gpu_than_the_one_at_hand_says_so(
    tiny_onnx: TinyOnnx, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_hand(monkeypatch, "h200")
    built = build_artifact(tiny_onnx(), gpus=["rtx4090"])
    target = built.manifest.target
    assert target is not None and target.achieved_precision.startswith("not verified: the plan was not built for")
    assert "not for the GPU at hand, a H200" in built.note


def test_the_model_is_found_again_after_the_folder_moves(tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs openvino")
    built = build_artifact(tiny_onnx(), tmp_path / "a" / "x.xml")
    shutil.move(built.path.parent, tmp_path / "b")
    assert manifest_of(tmp_path / "b" / "x.xml") == built.manifest
