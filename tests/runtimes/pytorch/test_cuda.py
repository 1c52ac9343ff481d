"""PyTorch on a GPU as far as it goes without one: what the variants compute, what they refuse, what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from r2mrf_deploy import environment, runtimes, sample_photographs
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError
from r2mrf_deploy.images import resize
from r2mrf_deploy.runtimes import OpenOptions
from r2mrf_deploy.runtimes.base import Availability
from r2mrf_deploy.runtimes.pytorch import cuda
from r2mrf_deploy.runtimes.pytorch.cuda import PyTorchCUDA, Variant, make_program
from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner

IMAGE = resize(sample_photographs.sample("chelsea"), (96, 128))[None].copy()
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


@pytest.mark.slow
def test_the_compiled_variant_traces_whole_at_every_kind_of_size(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = torch.compile  # without the code generation, which is the GPU's
    monkeypatch.setattr(torch, "compile", lambda m, **options: compile_(m, backend="eager", **options))
    checkpoint = Checkpoint.load(small)
    _, eager = make_program(checkpoint, variant("pytorch-cuda-channels-last"), "cpu")
    _, compiled = make_program(checkpoint, variant("pytorch-cuda-compile"), "cpu")
    with torch.inference_mode():
        for height, width in ((96, 128), (64, 128), (66, 99), (71, 97)):
            image = torch.from_numpy(IMAGE[:, :height, :width].copy())
            torch.testing.assert_close(compiled(image), eager(image), rtol=0, atol=1e-6)
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
        assert runtimes.get(name).supported_options == {"cuda_graph", "spin_wait", "network", "settings"}
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
    with pytest.raises(UsageError, match="without it, it is pytorch-cuda-channels-last"):
        runtimes.open(small, "pytorch-cuda-graph", options=OpenOptions(cuda_graph=False))
