"""Triton's configs: parsed as the server parses them, and compared with the artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r2mrf_deploy import weights
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, UsageError
from r2mrf_deploy.manifest import Contract, Preprocess, TensorSpec
from r2mrf_deploy.serving import checks, triton, triton_files
from r2mrf_deploy.serving.options import Options
from tests.conftest import TinyOnnx, forge, manifest_of

pytest.importorskip("tritonclient.grpc", reason="needs tritonclient")

MAP = TensorSpec(name="map", dtype="float32", shape=[1, 1, 64, 64], layout="NCHW")


def parsed(config: triton.Config) -> Any:
    """A config as Triton reads it."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(triton.text(config), model_config_pb2.ModelConfig())


def service(path: Path, **options: Any) -> triton.Service:
    return triton_files.service("net", Artifact.open(path), Options(**options))


def network(path: Path, **options: Any) -> Any:
    return parsed(triton.network(service(path, **options)))


def dims(tensors: Any) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in tensors}


def forged(tiny_onnx: TinyOnnx, name: str, **said: Any) -> Path:
    """A file whose manifest says something else: a config is made of the manifest alone."""
    path = tiny_onnx(name)
    manifest = manifest_of(path)
    assert manifest
    forge(manifest.model_copy(update=said), path)
    return path


@pytest.fixture
def four(tiny_onnx: TinyOnnx) -> Path:
    """An artifact whose batch is four, 96x128."""
    image = TensorSpec(name="image", dtype="uint8", shape=[4, 96, 128, 3], layout="NHWC")
    return forged(tiny_onnx, "four", inputs=[image], outputs=[MAP.model_copy(update={"shape": [4, 1, 96, 128]})])


def test_a_fixed_batch_is_sent_as_it_is(exported: Path, four: Path) -> None:
    """A backend that reads the file itself cannot change a batch that the graph fixes."""
    for batch, path in ((1, exported), (4, four)):
        config = network(path)
        assert (config.backend, config.max_batch_size) == ("onnxruntime", 0)
        assert dims(config.input) == {"image": [batch, 96, 128, 3]}
        assert dims(config.output)["map"] == [batch, 1, 96, 128]
        assert not config.HasField("dynamic_batching")
        assert list(config.model_warmup[0].inputs["image"].dims) == [batch, 96, 128, 3]


def test_a_free_batch_is_the_servers() -> None:
    path = weights.artifact("r2mrf-lite")
    profile = Artifact.open(path).contract.profile("image")  # type: ignore[union-attr]
    most = profile["max"][0]
    config = network(path)
    assert config.max_batch_size == most > 1
    assert dims(config.input) == {"image": [-1, -1, 3]} and dims(config.output) == {"map": [1, -1, -1]}
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert list(config.model_warmup[0].inputs["image"].dims) == profile["opt"][1:]
    assert network(path, max_batch=1).max_batch_size == 1
    with pytest.raises(UsageError, match=f"`max_batch` {most + 1}: r2mrf-lite.onnx takes at most {most}"):
        network(path, max_batch=most + 1)


def test_the_python_backend_forms_batches_for_any_artifact(exported: Path, four: Path) -> None:
    for path in (exported, four):
        config = network(path, backend="python")
        assert config.max_batch_size == triton_files.MAX_BATCH
        assert dims(config.input) == {"image": [96, 128, 3]}
        assert dims(config.output)["map"] == [1, 96, 128]
        assert config.parameters["artifact"].string_value == "model.onnx"
    steps = {spec.name for spec in Artifact.open(exported).contract.outputs}  # type: ignore[union-attr]
    assert len(steps) > 1 and {t.name for t in network(exported, backend="python").output} == steps
    assert network(exported, backend="python", max_batch=3).max_batch_size == 3


@pytest.mark.parametrize("options", [{}, {"backend": "python"}], ids=str)
def test_the_parts_of_the_ensemble_fit_together(
    options: dict[str, str], exported: Path, four: Path, tiny_onnx: TinyOnnx
) -> None:
    tensor = TensorSpec(name="tensor", dtype="float32", shape=[2, 3, 64, 64], layout="NCHW")
    half = MAP.model_copy(update={"dtype": "float16"})
    others = forged(tiny_onnx, "normalised", inputs=[tensor]), forged(tiny_onnx, "half", outputs=[half])
    for path in (exported, four, weights.artifact("r2mrf-lite"), *others):
        made = service(path, **options)
        found = {name: parsed(config) for name, config in triton.configs(made).items()}
        assert list(found) == ["net", "net_decode", "net_draw", "net_jpeg"]
        checks.check_network(found["net"], made.contract)
        checks.check_ensemble(found["net_jpeg"], found)
        assert len({config.max_batch_size for config in found.values()}) == 1
        assert {config.parameters["r2mrf"].string_value for config in found.values()} == {"net"}


def test_only_our_own_model_takes_several_shapes_together(tiny_onnx: TinyOnnx) -> None:
    free, fixed = tiny_onnx("free", dynamic=True), tiny_onnx("fixed")
    ragged = [network(free, backend="python"), network(free), network(fixed, backend="python")]
    assert [config.input[0].allow_ragged_batch for config in ragged] == [True, False, False]


def test_types_are_tritons_names() -> None:
    names = {"float16": "TYPE_FP16", "bfloat16": "TYPE_BF16", "float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}
    for dtype, name in names.items():
        assert triton.triton_type(TensorSpec(name="x", dtype=dtype, shape=[1])) == name
    with pytest.raises(ArtifactError, match=r"x: complex64 .* Triton has no type complex64"):
        triton.triton_type(TensorSpec(name="x", dtype="complex64", shape=[1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c.input[0], "name", "picture"), r"net has \['picture'\], the artifact says \['image'\]"),
        (lambda c: setattr(c.output[0], "name", "maps"), r"net has \['maps'\], the artifact says \['map'\]"),
        (lambda c: c.output.add(name="more"), r"\['map', 'more'\], the artifact says \['map'\]"),
        (lambda c: c.input.pop(), r"net has \[\], the artifact says \['image'\]"),
        (lambda c: setattr(c.input[0], "data_type", 11), "image is TYPE_FP32 .* says TYPE_UINT8"),
        (lambda c: setattr(c.output[0], "data_type", 10), "map is TYPE_FP16 .* says TYPE_FP32"),
        (lambda c: c.input[0].dims.__setitem__(1, 32), r"image is TYPE_UINT8 \[64, 32, 3\].* says .*\[64, 64, 3\]"),
        (lambda c: c.output[0].dims.pop(), r"map is TYPE_FP32 \[1, 64\]"),
        (lambda c: setattr(c, "max_batch_size", 0), r"says TYPE_UINT8 \[1, 64, 64, 3\]"),
    ],
)
def test_a_config_that_says_otherwise_is_refused(
    change: Callable[[Any], object], message: str, tiny_onnx: TinyOnnx
) -> None:
    made = service(tiny_onnx(), backend="python")
    config = parsed(triton.network(made))
    checks.check_network(config, made.contract)
    change(config)
    with pytest.raises(ArtifactError, match=message):
        checks.check_network(config, made.contract)


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ("net_decode", lambda c: setattr(c.output[0], "data_type", 11), "net_decode gives image as TYPE_FP32"),
        ("net_decode", lambda c: c.output[0].dims.__setitem__(0, 32), r"\[32, 64, 3\], net takes .*\[64, 64, 3\]"),
        ("net_decode", lambda c: c.output.pop(), "net_decode has no output size"),
        ("net_draw", lambda c: setattr(c.input[0], "name", "other"), r"to net_draw, which takes \['other', 'size'\]"),
        ("net_draw", lambda c: setattr(c, "max_batch_size", 2), "at most 8, net_draw of 2"),
        ("net_jpeg", lambda c: setattr(c.ensemble_scheduling.step[1], "model_name", "x"), "there is no model x"),
        (
            "net_jpeg",
            lambda c: c.ensemble_scheduling.step[1].input_map.__setitem__("image", "nothing"),
            "nothing makes nothing, which net takes",
        ),
        ("net_jpeg", lambda c: c.output.add(name="more"), "nothing makes its output more"),
        ("net_jpeg", lambda c: setattr(c.output[1], "data_type", 10), "map as TYPE_FP32 .* net_jpeg takes TYPE_FP16"),
    ],
)
def test_an_ensemble_that_does_not_fit_is_refused(
    model: str, change: Callable[[Any], object], message: str, tiny_onnx: TinyOnnx
) -> None:
    configs = triton.configs(service(tiny_onnx(), backend="python"))
    found = {name: parsed(config) for name, config in configs.items()}
    change(found[model])
    with pytest.raises(ArtifactError, match=message):
        checks.check_ensemble(found["net_jpeg"], found)


def test_fields_that_triton_does_not_have_are_refused() -> None:
    from google.protobuf.json_format import ParseError

    with pytest.raises(ParseError, match="max_batch"):
        triton.text({"name": "net", "max_batch": 8})
    with pytest.raises(ParseError, match="TYPE_FLOAT"):
        triton.text({"input": [{"name": "image", "data_type": "TYPE_FLOAT"}]})


def test_the_delay_leaves_time_for_the_computation() -> None:
    assert triton.delay_us(None, 40) == 0
    assert triton.delay_us(100, None) == 10_000
    assert triton.delay_us(100, 40) == 30_000
    assert triton.delay_us(100, 140) == 0


def test_the_time_of_the_computation_is_the_manifests(tiny_onnx: TinyOnnx) -> None:
    artifact = Artifact.open(tiny_onnx(dynamic=True))
    assert artifact.manifest
    evidence = [
        {"runtime": runtime, "device": "", "batch": batch, "shape": [], "options": [], "latency": {"median": ms}}
        for runtime, batch, ms in (("onnxruntime", 1, 30), ("onnxruntime", 2, 20), ("openvino", 2, 1))
    ]
    artifact.record(latency=[*evidence, {"runtime": "onnxruntime", "batch": "?"}, {"runtime": "onnxruntime"}])
    found = Artifact.open(artifact.path)
    delays = {}
    for name, options in {
        "native": {},
        "one": {"max_batch": 1},
        "python": {"backend": "python", "max_batch": 4},
    }.items():
        options = {"target_ms": 60, "runtime": "openvino" if name == "python" else None} | options
        delays[name] = triton_files.service("net", found, Options(**options)).delay_us  # type: ignore[arg-type]
    assert delays == {"native": 20_000, "one": 15_000, "python": 29_000}  # the last: 1 ms for 2, so 2 for 4


def test_where_and_how_often_a_network_runs(tiny_onnx: TinyOnnx) -> None:
    path = tiny_onnx(dynamic=True)
    config = network(path, instances=3, threads=2)
    assert (config.instance_group[0].kind, config.instance_group[0].count) == (2, 3)  # KIND_CPU
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert network(path, gpu=True).instance_group[0].kind == 1  # KIND_GPU
    assert network(path, gpu=True, backend="python").parameters["runtime"].string_value == "onnxruntime-cuda"
    python = network(path, backend="python", runtime="openvino", threads=2)
    assert [python.parameters[name].string_value for name in ("runtime", "threads", "streams")] == ["openvino", "2", ""]
    assert python.instance_group[0].count == 1
    made = service(path, workers=3)
    for config in (triton.decode(made), triton.draw(made)):
        assert parsed(config).instance_group[0].count == 3


def test_the_warm_up_has_a_size_that_the_artifact_takes() -> None:
    image = TensorSpec(name="image", dtype="uint8", shape=["n", "h", "w", 3], layout="NHWC")
    tensor = TensorSpec(name="image", dtype="float32", shape=["n", 3, "h", "w"], layout="NCHW")
    preprocess = Preprocess(mean=(0, 0, 0), std=(1, 1, 1), longest_side=400)
    for spec, shape in ((image, [1, 400, 400, 3]), (tensor, [1, 3, 400, 400])):
        contract = Contract(kind="onnx", inputs=[spec], outputs=[], preprocess=preprocess)
        assert triton.usual_shape(contract, spec) == shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "openvino"}, r"`backend` openvino does not open tiny\.onnx: choose onnxruntime or python"),
        ({"backend": "pyton"}, "no `backend` 'pyton': did you mean 'python'"),
        ({"runtime": "openvino"}, "`runtime`: the backend onnxruntime runs the artifact itself"),
        ({"backend": "python", "runtime": "tensorrt"}, r"`runtime` tensorrt does not open \.onnx files"),
        ({"gpu": True, "threads": 2}, "`threads`: it is for a CPU"),
        ({"max_batch": 2}, "`max_batch`: the batch of tiny.onnx is fixed at 1: export it with --dynamic"),
        ({"target_ms": 0}, "`target_ms` must be above 0, and 1,000,000 at most, not 0"),
        ({"target_ms": float("nan")}, "`target_ms` must be above 0, .* not nan"),
        ({"target_ms": float("inf")}, "`target_ms` must be above 0, .* not inf"),
        ({"instances": 10**10}, "`instances` must be above 0, and 1,000,000 at most"),
    ],
)
def test_options_without_a_use_are_refused(options: dict[str, Any], message: str, tiny_onnx: TinyOnnx) -> None:
    with pytest.raises(UsageError, match=message):
        service(tiny_onnx(), **options)
