"""The TensorRT builder: options, profiles, progress, and versions that are not installed here by their names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r2mrf_deploy import gpus
from r2mrf_deploy.errors import BuildError, UsageError
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.progress import Progress
from r2mrf_deploy.runtimes.tensorrt import api, builder
from r2mrf_deploy.runtimes.tensorrt.api import Library
from r2mrf_deploy.runtimes.tensorrt.builder import Build, resolve_profiles
from r2mrf_deploy.runtimes.tensorrt.inspector import summarise
from r2mrf_deploy.runtimes.tensorrt.options import BuildOptions

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")


@pytest.fixture(scope="module")
def library() -> Library:
    return api.load("tensorrt_rtx")


# ---- options


@pytest.mark.parametrize(
    ("options", "name", "instead"),
    [
        (BuildOptions(timing_cache_file=Path("t.cache")), "`timing_cache_file`", "runtime cache"),
        (BuildOptions(version_compatible=True), "`version_compatible`", "each version"),
        (BuildOptions(hardware_compatibility_level="ampere+"), "`hardware_compatibility_level`", "`gpus`"),
        (BuildOptions(strip_weights=True), "`strip_weights`", "with its weights"),
        (BuildOptions(builder_optimization_level=5), "`builder_optimization_level`", "on the GPU"),
        (BuildOptions(mem_pool_size={"dlaSRAM": 1 << 20}), "`mem_pool_size` dlaSRAM", "no such pool"),
    ],
)
def test_rtx_refuses_by_name_what_it_would_ignore(
    library: Library, options: BuildOptions, name: str, instead: str
) -> None:
    with pytest.raises(BuildError, match=f"TensorRT-RTX .* does not support {name}: .*{instead}"):
        Build(library, options)


def test_refused_options_really_do_nothing_or_fail(library: Library, tiny_onnx: Callable[..., Path]) -> None:
    """The grounds of the refusals: should a later version support one of these, this test says so."""
    trt = library.module
    model = tiny_onnx()

    def plan(setting: Callable[[Any], object]) -> bytes | None:
        job = Build(library, BuildOptions())
        job.parse(model)
        config = job._builder.create_builder_config()
        setting(config)
        made = job._builder.build_serialized_network(job._network, config)
        return made if made is None else bytes(made)

    for flag in ("REFIT", "STRIP_PLAN", "VERSION_COMPATIBLE"):
        assert plan(lambda c, flag=flag: c.set_flag(getattr(trt.BuilderFlag, flag))) is None
    quick, slow = (plan(lambda c, n=n: setattr(c, "builder_optimization_level", n)) for n in (0, 5))
    assert quick is not None and slow is not None and len(quick) == len(slow)


def test_bad_values_are_refused_before_anything_is_built(library: Library) -> None:
    with pytest.raises(UsageError, match="no memory pool 'workspce': did you mean 'workspace'"):
        Build(library, BuildOptions(mem_pool_size={"workspce": 1}))
    with pytest.raises(UsageError, match="`max_aux_streams` -1"):
        Build(library, BuildOptions(max_aux_streams=-1))


def test_honoured_options_reach_the_builder(library: Library) -> None:
    config = Build(library, BuildOptions())._builder.create_builder_config()
    options = BuildOptions(
        mem_pool_size={"workspace": 1 << 28, "tacticSharedMem": 1 << 16},
        no_tf32=True,
        max_aux_streams=2,
        profiling_verbosity="detailed",
    )
    trt = library.module
    assert config.get_flag(trt.BuilderFlag.TF32)
    builder._apply_options(library, config, options)
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 1 << 28
    assert config.get_memory_pool_limit(trt.MemoryPoolType.TACTIC_SHARED_MEMORY) == 1 << 16
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.max_aux_streams == 2
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED


def test_a_build_that_fails_says_why(library: Library, tiny_onnx: Callable[..., Path]) -> None:
    job = Build(library, BuildOptions(mem_pool_size={"workspace": 1}))
    job.parse(tiny_onnx())
    with pytest.raises(BuildError, match=r"TensorRT-RTX .* failed: .*workspace limit"):
        job.build({})


def test_options_are_recorded_by_trtexecs_names() -> None:
    options = BuildOptions(mem_pool_size={"workspace": 4096}, no_tf32=True, max_aux_streams=0, library="tensorrt_rtx")
    assert options.recorded() == {"memPoolSize": "workspace:4096B", "noTF32": "true", "maxAuxStreams": "0"}
    assert BuildOptions().recorded() == {}


# ---- profiles

FREE = TensorSpec(name="image", dtype="uint8", shape=["n", "h", "w", 3])
FIXED = TensorSpec(name="image", dtype="uint8", shape=[1, 8, 8, 3])


def test_a_shape_that_is_not_given_is_the_nearest_that_is() -> None:
    def resolved(**shapes: dict[str, tuple[int, ...]]) -> list[list[int]]:
        return list(resolve_profiles([FREE], BuildOptions(**shapes), None)["image"].values())

    small, middle, large = (1, 8, 8, 3), (1, 16, 16, 3), (4, 32, 32, 3)
    assert resolved(opt_shapes={"image": middle}) == [list(middle)] * 3
    assert resolved(min_shapes={"image": small}, max_shapes={"image": large}) == [list(small), list(large), list(large)]
    assert resolved(min_shapes={"image": small}, opt_shapes={"image": middle}, max_shapes={"image": large}) == [
        list(small),
        list(middle),
        list(large),
    ]


@pytest.mark.parametrize(
    ("spec", "shapes", "message"),
    [
        (FREE, {}, "has free dimensions: give `opt_shapes` image:1x320x320x3, `min_shapes`"),
        (FREE, {"opt_shapes": {"img": (1, 8, 8, 3)}}, "`opt_shapes` img: no input of that name"),
        (FREE, {"opt_shapes": {"image": (1, 8, 8)}}, "`opt_shapes` image:1x8x8 does not fit"),
        (FREE, {"opt_shapes": {"image": (1, 8, 8, 4)}}, "does not fit"),
        (FREE, {"min_shapes": {"image": (2, 8, 8, 3)}, "opt_shapes": {"image": (1, 8, 8, 3)}}, "not min ≤ opt ≤ max"),
        (FIXED, {"opt_shapes": {"image": (1, 8, 8, 3)}}, "this model's shapes are all fixed"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(spec: TensorSpec, shapes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_profiles([spec], BuildOptions(**shapes), None)


# ---- progress


def test_progress_is_reported_to_the_end(library: Library, tiny_onnx: Callable[..., Path]) -> None:
    seen: list[Progress] = []
    job = Build(library, BuildOptions())
    job.parse(tiny_onnx())
    job.build({}, progress=seen.append)
    assert seen and all(0 <= p.done <= (p.total or 0) for p in seen)
    assert seen[-1].description == seen[0].description and seen[-1].done == seen[-1].total


def test_what_progress_raises_ends_the_build(library: Library, tiny_onnx: Callable[..., Path]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    job = Build(library, BuildOptions())
    job.parse(tiny_onnx())
    with pytest.raises(KeyboardInterrupt):
        job.build({}, progress=interrupt)


# ---- versions that are not installed here, by their names alone


def fake_library(version: str, flags: dict[str, int], flavour: gpus.Flavour = "tensorrt") -> Library:
    names = {"NetworkDefinitionCreationFlag": SimpleNamespace(**flags), "__version__": version}
    builder_flags = {} if version.startswith("11") else {"FP16": 0, "INT8": 1, "BF16": 17, "TF32": 6}
    return Library(flavour, SimpleNamespace(**names, BuilderFlag=SimpleNamespace(**builder_flags)))


@pytest.mark.parametrize(
    ("version", "flags", "expected"),
    [
        ("8.6.1", {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1}, 0b01),
        ("9.3.0", {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1, "STRONGLY_TYPED": 2}, 0b101),
        ("10.3.0", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, 0b10),
        ("11.4.0", {"STRONGLY_TYPED": 0, "PREFER_AOT_PYTHON_PLUGINS": 2}, 0b01),
    ],
)
def test_networks_are_strongly_typed_wherever_the_version_has_it(
    version: str, flags: dict[str, int], expected: int
) -> None:
    assert builder._network_flags(fake_library(version, flags)) == expected


@pytest.mark.parametrize(
    ("version", "flags", "allowed"),
    [
        ("8.6.1", {"EXPLICIT_BATCH": 0}, {0, 1}),  # no typed networks: permissions for the graph's types
        ("10.3.0", {"STRONGLY_TYPED": 1}, set()),  # a typed network refuses such flags
        ("11.4.0", {"STRONGLY_TYPED": 0}, set()),
    ],
)
def test_precision_flags_are_set_only_without_typed_networks(
    version: str, flags: dict[str, int], allowed: set[int]
) -> None:
    given: set[int] = set()
    config = SimpleNamespace(set_flag=given.add)
    builder._allow_precisions(fake_library(version, flags), config, ["int8", "fp16", "fp32"])
    assert given == allowed


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        (BuildOptions(strip_weights=True), "ship the plan with its weights"),
        (
            BuildOptions(hardware_compatibility_level="sameComputeCapability"),
            "sameComputeCapability needs a later version",
        ),
    ],
)
def test_what_came_with_a_later_version_is_refused_before_the_build(options: BuildOptions, instead: str) -> None:
    with pytest.raises(BuildError, match=rf"TensorRT 8\.6\.1 does not support `.*`: {instead}"):
        builder.refuse_options(fake_library("8.6.1", {}), options)


# ---- messages


def test_messages_are_said_in_plain_words() -> None:
    raw = "IBuilder::build: Error Code 4: API Usage Error (no profile has been defined. In validate at /_src/n.cpp:40)"
    assert api.plain(raw) == "no profile has been defined"
    raw = "x: Error Code 1: Cuda Runtime (In f at /_src/g.cpp:25 (cudaError 35: CUDA driver version is insufficient))"
    assert "cudaError 35" in api.plain(raw)
    assert api.plain("just words") == "just words"


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([{"Outputs": [{"Format/Datatype": "Half"}]}] * 3, "fp16 in 3 layers"),
        (
            [{"Outputs": [{"Format/Datatype": "Row major linear FP32"}]}]
            + [{"Outputs": [{"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}]}] * 2,
            "fp16 in 2 layers, fp32 in 1",
        ),
        ([{"Outputs": [{"Format/Datatype": "BFloat16"}]}], "bf16 in 1 layer"),
        ([{"Outputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}]}], "int8 in 1"),
        (["conv1", "conv2"], "not verified: the plan holds only the layers' names"),
    ],
)
def test_achieved_precision_is_read_from_the_inspector(layers: list[Any], said: str) -> None:
    import json

    assert summarise(json.dumps({"Layers": layers})).startswith(said)


def test_an_inspector_without_layers_verifies_nothing() -> None:
    import json

    assert summarise("{}").startswith("not verified")
    assert summarise("no JSON").startswith("not verified")
    for outputs in (None, "fp16", ["fp16"], [{"Format/Datatype": None}], [{}]):
        assert summarise(json.dumps({"Layers": [{"Outputs": outputs}]})).startswith("not verified")
