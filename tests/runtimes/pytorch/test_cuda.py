"""PyTorch on a GPU as far as it goes without one: what the variants compute, what they refuse, what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from host_torch import HostTorch

from r2mrf_deploy import environment, runtimes, sample_photographs
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import GraphError, InputError, RuntimeUnavailable, UsageError
from r2mrf_deploy.graph import files, torch_module
from r2mrf_deploy.images import resize
from r2mrf_deploy.runtimes import OpenOptions
from r2mrf_deploy.runtimes.base import Availability
from r2mrf_deploy.runtimes.pytorch import cuda
from r2mrf_deploy.runtimes.pytorch.cuda import PyTorchCUDA, Variant, make_graph_program, make_program
from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner

IMAGE = resize(sample_photographs.sample("chelsea"), (96, 128))[None].copy()
Export = Callable[..., Path]
NAMES = [n for n in runtimes.names() if n.startswith("pytorch-cuda")]


def variant(name: str) -> Variant:
    runtime = runtimes.get(name)
    assert isinstance(runtime, PyTorchCUDA)
    return runtime.variant


@pytest.mark.parametrize(
    # FP32: sums in another order. FP16 rounds every activation to 11 bits: measured 3e-3 on this network
    ("name", "tolerance"),
    [("pytorch-cuda", 1e-5), ("pytorch-cuda-fp16", 1e-2), ("pytorch-cuda-channels-last", 1e-2)],
)
def test_a_variant_computes_the_map(small: Path, name: str, tolerance: float) -> None:
    checkpoint = Checkpoint.load(small)
    wanted = PyTorchRunner(checkpoint).run({"image": IMAGE})["map"]
    module, program = make_program(checkpoint, variant(name), "cpu")
    with torch.inference_mode():
        (found,) = program(torch.from_numpy(IMAGE))
    assert found.dtype == torch.float32 and wanted.std() > 0.05
    np.testing.assert_allclose(found.numpy(), wanted, atol=tolerance)
    half = variant(name).half
    assert (np.abs(found.numpy() - wanted).max() > 1e-5) == half  # it was computed in the precision that it names
    for m in module.modules():
        if isinstance(m, torch.nn.Conv2d):
            assert m.weight.dtype == (torch.float16 if half else torch.float32)
        if isinstance(m, torch.nn.BatchNorm2d):
            assert m.weight.dtype == m.running_var.dtype == torch.float32
    seen: list[bool] = []
    conv = module.network.first[0].first3
    conv.register_forward_hook(lambda _, x, y: seen.append(y.is_contiguous(memory_format=torch.channels_last)))
    with torch.inference_mode():
        program(torch.from_numpy(IMAGE))
    assert seen == [variant(name).channels_last]


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> HostTorch:
    """The variants on host memory."""
    host = HostTorch()
    monkeypatch.setattr(cuda, "cuda_availability", lambda: Availability(True))
    monkeypatch.setattr(cuda, "TorchCuda", lambda: host)
    monkeypatch.setattr(cuda, "make_graph_program", lambda model, variant, _: make_graph_program(model, variant, "cpu"))
    return host


@pytest.mark.parametrize(
    # as above; every step's logits and confidences are outputs, whose errors are measured by their spread
    ("name", "precision", "tolerance"),
    [
        ("pytorch-cuda", "fp32", 1e-5),
        ("pytorch-cuda-tf32", "fp32", 1e-5),
        ("pytorch-cuda-fp16", "fp16", 1e-2),
        ("pytorch-cuda-channels-last", "fp16", 1e-2),
        ("pytorch-cuda-graph", "fp16", 1e-2),
    ],
)
def test_a_graph_gives_its_outputs_by_name(
    on_the_cpu: HostTorch, exported: Path, converted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch,
    name: str, precision: str, tolerance: float,
) -> None:  # fmt: skip
    layouts, conv = [], torch_module.F.conv2d

    def spied(x: torch.Tensor, *arguments: object) -> torch.Tensor:
        if x.shape[1] > 1 and min(x.shape[2:]) > 1:  # the others are in both layouts
            layouts.append(x.is_contiguous(memory_format=torch.channels_last))
        return conv(x, *arguments)

    monkeypatch.setattr(torch_module.F, "conv2d", spied)
    with runtimes.open(exported, "onnxruntime") as reference:
        wanted = reference.run({"image": IMAGE})
    with runtimes.open(exported if precision == "fp32" else converted(precision), name) as runner:
        for _ in range(2):
            found = runner.run({"image": IMAGE})
        assert runner.inputs == reference.inputs and runner.outputs == reference.outputs and len(found) > 1
        assert runner.device == f"fake GPU, {variant(name)}" + (", CUDA graph" if name.endswith("-graph") else "")
    assert found["map"].dtype == np.float32 and found["map"].std() > 0.05
    for output, value in wanted.items():
        np.testing.assert_allclose(found[output], value, atol=tolerance * (1 if output == "map" else 10 * value.std()))
    assert (np.abs(found["map"] - wanted["map"]).max() > 1e-5) == (precision == "fp16")
    # PyTorch joins a map of one channel, which is in both layouts, to others as NCHW: some convolutions get that
    assert sum(layouts) > 0.8 * len(layouts) if variant(name).channels_last else not any(layouts)
    assert on_the_cpu.live == {} and on_the_cpu.held == 0


def test_a_graph_of_free_sizes_is_run_at_every_size(on_the_cpu: HostTorch, small: Path, export: Export) -> None:
    whole = PyTorchRunner(Checkpoint.load(small))
    with runtimes.open(export(dynamic=True), "pytorch-cuda", options=OpenOptions(cuda_graph=True)) as runner:
        for height, width in ((96, 128), (71, 97), (64, 66), (96, 128)):
            image = {"image": IMAGE[:, :height, :width].copy()}
            np.testing.assert_allclose(runner.run(image)["map"], whole.run(image)["map"], atol=1e-5)
        with pytest.raises(InputError, match="image must have shape"):
            runner.run({"image": IMAGE[..., :2].copy()})
    assert on_the_cpu.captures == 4


def test_a_graph_of_another_precision_is_refused_with_the_cure(
    on_the_cpu: HostTorch, exported: Path, converted: Callable[[str], Path], tmp_path: Path
) -> None:
    bare = tmp_path / "bare.onnx"  # without a contract
    model = onnx.load(converted("fp16"))
    del model.metadata_props[:]
    onnx.save(model, bare)
    with pytest.raises(
        RuntimeUnavailable, match=r"graph computes in FP16, and small\.onnx in FP32: convert it with `--pre"
    ):
        runtimes.open(exported, "pytorch-cuda-graph")
    for half in (converted("fp16"), bare):
        with pytest.raises(RuntimeUnavailable, match=r"computes in FP32, and .*\.onnx in FP16: choose .*cuda-fp16"):
            runtimes.open(half, "pytorch-cuda")
        runtimes.open(half, "pytorch-cuda-fp16").close()
    with pytest.raises(RuntimeUnavailable, match="has no INT8 kernels"):
        runtimes.open(converted("int8"), "pytorch-cuda-graph")


def test_what_is_said_of_checkpoints_has_no_meaning_for_a_graph(on_the_cpu: HostTorch, exported: Path) -> None:
    with pytest.raises(UsageError, match=r"small\.onnx is no checkpoint, so `network` has no meaning"):
        runtimes.open(exported, "pytorch-cuda", options=OpenOptions(network="r2mrf"))


def test_an_operator_that_pytorch_does_not_get_is_named(on_the_cpu: HostTorch, tiny_onnx: Callable[..., Path]) -> None:
    with pytest.raises(GraphError, match="the operator Resize cannot be turned into PyTorch"):
        runtimes.open(tiny_onnx(), "pytorch-cuda")


def test_libraries_for_onnx_files_come_first(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "cuda_availability", lambda: Availability(True))
    assert runtimes.default(Artifact.open(exported)).name == "onnxruntime"
    assert set(NAMES) < {runtime.name for runtime in runtimes.suitable(exported)}


@pytest.mark.slow
def test_a_compiled_graph_computes_the_same(exported: Path) -> None:
    model = files.read(exported)
    eager, compiled = (make_graph_program(model, Variant(compiled=c), "cpu") for c in (False, True))
    with torch.inference_mode():
        for found, wanted in zip(compiled(torch.from_numpy(IMAGE)), eager(torch.from_numpy(IMAGE)), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.std()))
    torch._dynamo.reset()


@pytest.mark.slow
def test_the_compiled_variant_traces_whole_at_every_kind_of_size(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = torch.compile  # without the code generation, which takes long
    monkeypatch.setattr(torch, "compile", lambda m, **options: compile_(m, backend="eager", **options))
    checkpoint = Checkpoint.load(small)
    _, eager = make_program(checkpoint, variant("pytorch-cuda-channels-last"), "cpu")
    _, compiled = make_program(checkpoint, variant("pytorch-cuda-compile"), "cpu")
    with torch.inference_mode():
        for height, width in ((96, 128), (64, 128), (66, 99), (71, 97)):
            image = torch.from_numpy(IMAGE[:, :height, :width].copy())
            torch.testing.assert_close(compiled(image), eager(image), rtol=0, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.slow
def test_the_compiled_variant_is_compiled_to_the_same_map(small: Path) -> None:
    """With the code that the compiler generates for a CPU, in channels last, at a first size and at one that differs."""
    checkpoint = Checkpoint.load(small)
    _, eager = make_program(checkpoint, variant("pytorch-cuda"), "cpu")
    _, compiled = make_program(checkpoint, variant("pytorch-cuda-compile"), "cpu")
    with torch.inference_mode():
        for height, width in ((96, 128), (71, 97)):
            image = torch.from_numpy(IMAGE[:, :height, :width].copy())
            (found,), (wanted,) = compiled(image), eager(image)
            assert wanted.std() > 0.05
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-2)  # FP16, as on a GPU
    torch._dynamo.reset()


def test_the_variants_differ_and_are_registered() -> None:
    assert NAMES == [
        "pytorch-cuda",
        "pytorch-cuda-tf32",
        "pytorch-cuda-fp16",
        "pytorch-cuda-channels-last",
        "pytorch-cuda-compile",
        "pytorch-cuda-graph",
    ]
    assert len({variant(n) for n in NAMES}) == len(NAMES)
    assert str(variant("pytorch-cuda-compile")) == "compiled FP16, channels last"
    assert str(variant("pytorch-cuda-tf32")) == "eager TF32"
    for name in NAMES:
        assert runtimes.get(name).supported_options == {
            *("cuda_graph", "spin_wait", "network", "settings", "weights_key", "rename")
        }
    assert runtimes.suitable(Path("x.pth"))[0].name == "pytorch"


def test_without_a_device_they_say_so(small: Path) -> None:
    if environment.cuda_driver() is None:
        pytest.skip("there is a GPU here")
    for name in NAMES:
        with pytest.raises(RuntimeUnavailable, match=r"PyTorch CUDA.* cannot run small\.pth: .*NVIDIA"):
            runtimes.open(small, name)


def test_a_pytorch_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cuda_driver", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    state = cuda.cuda_availability()
    assert not state.ok and "built without CUDA" in state.reason and "install PyTorch" in state.cure


def test_options_that_mean_nothing_are_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "cuda_availability", lambda: Availability(True))
    with pytest.raises(UsageError, match="PyTorch CUDA FP16 does not support `threads`"):
        runtimes.open(small, "pytorch-cuda-fp16", options=OpenOptions(threads=2))
    with pytest.raises(UsageError, match=r"always uses a CUDA graph: choose .* pytorch-cuda-channels-last"):
        runtimes.open(small, "pytorch-cuda-graph", options=OpenOptions(cuda_graph=False))


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (["sm_75", "sm_80", "sm_90"], "6.1", False),  # CUDA 13's wheels on a GTX 1080 Ti
        (["sm_50", "sm_60", "sm_70"], "6.1", True),  # its own major version, an older minor one
        (["sm_75", "sm_80", "sm_86"], "8.9", True),
        (["sm_86"], "8.0", False),
        (["sm_90a"], "9.0", True),
        (["sm_90"], "12.0", False),
        (["sm_90", "compute_90"], "12.0", True),  # PTX
        ([], "9.0", False),
    ],
)
def test_a_gpu_needs_code_of_its_own_major_version_or_ptx(
    architectures: list[str], capability: str, runs: bool
) -> None:
    assert cuda.has_code_for(architectures, capability) == runs


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int], list[str]], None]:
    """PyTorch's answers where there is a GPU."""

    def set_up(capability: tuple[int, int], architectures: list[str]) -> None:
        monkeypatch.setattr(environment, "cuda_driver", lambda: None)
        for name, value in (
            ("is_available", True),
            ("get_device_capability", capability),
            ("get_device_name", "a card"),
        ):
            monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)

    return set_up


def test_a_pytorch_without_code_for_the_gpu_says_so_before_it_is_used(card: Callable[..., None]) -> None:
    card((6, 1), ["sm_75", "sm_90"])
    state = cuda.cuda_availability()
    assert not state.ok and "no code for compute capability 6.1" in state.reason and "docs/gpu.md" in state.cure


def test_pascal_runs_eagerly_but_is_not_compiled_for(card: Callable[..., None]) -> None:
    card((6, 1), ["sm_61"])
    assert runtimes.get("pytorch-cuda").availability().ok
    for state in (runtimes.get("pytorch-cuda-compile").availability(), cuda.triton_availability()):
        assert not state.ok and "needs compute capability 7.0" in state.reason
    card((7, 0), ["sm_70"])
    assert cuda.triton_availability().ok
