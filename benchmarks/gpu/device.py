"""Describes and checks the card: its speed, the CUDA bindings, and PyTorch's parity step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from place import Place, Result

from r2mrf_deploy import environment, gpus, runtimes, sample_photographs
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import R2mrfError, first_line
from r2mrf_deploy.images import resize


def card(place: Place) -> Result:
    """The machine, the versions, and the speed that the device reaches on a large convolution and a large copy."""
    found: Result = {"machine": environment.describe(), "tools": environment.tool_versions(), "network": place.network}
    if place.device == "cpu":
        return found | {"class": None}
    import torch

    from r2mrf_deploy.runtimes.pytorch.execution_context import precision

    rates: dict[str, float] = {}
    for name, dtype, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("fp16", torch.float16, None),
    ):
        channels, side, batch = 512, 128, 16
        layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False).to("cuda", dtype)
        layer, image = layer.to(memory_format=torch.channels_last), torch.randn(batch, channels, side, side)
        image = image.to("cuda", dtype).to(memory_format=torch.channels_last)
        with torch.inference_mode(), precision(tf32):
            ms = milliseconds(lambda layer=layer, image=image: layer(image))[0]
        rates[name] = 2 * 9 * channels**2 * side**2 * batch / ms / 1e9
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    ms = milliseconds(lambda: target.copy_(source))[0]
    card = gpus.of_device(torch.cuda.get_device_name(), "{}.{}".format(*torch.cuda.get_device_capability()))
    return found | {
        "class": card and card.name,
        "architectures": torch.cuda.get_arch_list(),
        "measured_tflops": rates,
        "measured_gb_s": 2 * source.nbytes / ms / 1e6,
    }


def smoke(place: Place) -> Result:
    """Test every CUDA binding: memory, pinned copies, events, a captured copy that is replayed, two copies in flight."""
    from r2mrf_deploy.runtimes.cuda import bindings
    from r2mrf_deploy.runtimes.pytorch.execution_context import TorchCuda

    found: Result = {}
    failed: list[Exception] = []
    makers: dict[str, Callable[[], bindings.Cuda]] = {"cuda-python": bindings.CudaPython, "pycuda": bindings.PyCuda}
    for name, make in (makers | {"torch": TorchCuda}).items():
        try:
            found[name] = _provider(make())
        except ImportError:
            found[name] = "not installed"
        except (R2mrfError, RuntimeError, AssertionError) as e:
            found[name] = f"not run: {first_line(e)}"
            failed.append(e)
        place.keep(found)
    if failed and place.device != "cpu":
        raise failed[0]
    return found


def _provider(cuda: Any) -> Result:
    device, size = cuda.device(), 1 << 24
    stream, events = cuda.stream(), [cuda.event(spin) for spin in (True, False)]
    address, hosts = cuda.malloc(size), [cuda.pinned(size) for _ in range(3)]
    for number, host in enumerate(hosts):
        host[:] = number + 1
    cuda.copy_in(address, hosts[0], stream)
    cuda.record(events[0], stream)
    cuda.copy_out(hosts[1], address, stream)
    cuda.record(events[1], stream)
    cuda.wait(events[1])
    assert (hosts[1] == 1).all(), "a copy to the device and back changed the bytes"
    ms, captured = cuda.elapsed(*events), False
    if cuda.graphs:

        def work() -> bool:
            cuda.copy_in(address, hosts[2], stream)
            cuda.copy_out(hosts[1], address, stream)
            return True

        graph = cuda.capture(stream, work)
        assert (hosts[1] == 1).all(), "work ran while it was captured"
        assert graph is not None, "copies could not be captured"
        for value in (7, 9):  # a graph reads the memory when it is launched
            hosts[2][:] = value
            cuda.launch(graph, stream)
            cuda.synchronize(stream)
            assert (hosts[1] == value).all(), "a replayed copy changed the bytes"
        cuda.destroy_graph(graph)
        captured = True
    hosts[0][:], hosts[2][:] = 3, 5  # two in flight: each must see its own bytes
    cuda.copy_in(address, hosts[0], stream)
    cuda.copy_out(hosts[0], address, stream)
    cuda.copy_in(address, hosts[2], stream)
    cuda.copy_out(hosts[2], address, stream)
    cuda.synchronize(stream)
    assert (hosts[0] == 3).all() and (hosts[2] == 5).all(), "two copies in flight were mixed up"
    for host in hosts:
        cuda.unpin(host)
    cuda.free(address)
    for event in events:
        cuda.destroy_event(event)
    cuda.destroy_stream(stream)
    return {
        "device": device.name, "compute_capability": device.compute_capability, "captured": captured,
        "copy_out_gb_s": size / ms / 1e6,
    }  # fmt: skip


VARIANTS = {
    "pytorch-cuda": 5e-4,
    "pytorch-cuda-tf32": 0.05,
    "pytorch-cuda-fp16": 0.05,
    "pytorch-cuda-channels-last": 0.05,
}
"""PyTorch's variants, and the bound for the mean difference of a step's logits from FP32 on the CPU, as a fraction of their
standard deviation. These are parity's bounds for FP32 and FP16 (TF32 has the eleven significant bits of FP16)."""


def parity(place: Place) -> Result:
    """Compare PyTorch's variants with FP32 on the CPU, step by step, on a photograph with odd sides."""
    import torch

    from r2mrf_deploy.networks.deployed import Deployed
    from r2mrf_deploy.runtimes.pytorch.cuda import make_program
    from r2mrf_deploy.runtimes.pytorch.execution_context import precision

    loaded = Checkpoint.load(place.checkpoint)
    image = resize(sample_photographs.sample("chelsea"), (213, 317))[None]
    reference = Deployed(loaded.module(), loaded.preprocess, all_steps=True).eval()
    with torch.inference_mode():
        wanted = [o.numpy() for o in reference(torch.from_numpy(image))]
    found: Result = {"spread": float(wanted[0].std())}
    for name, bound in VARIANTS.items():
        variant = runtimes.get(name).variant  # type: ignore[attr-defined]
        _, program = make_program(Checkpoint.load(place.checkpoint), variant, place.device, all_steps=True)
        tf32 = None if variant.half or place.device == "cpu" else variant.tf32
        with torch.inference_mode(), precision(tf32):
            given = [o.cpu().numpy() for o in program(torch.from_numpy(image).to(place.device))]
        relative = {
            output: float(np.abs(a - b).mean() / b.std())
            for output, a, b in zip(reference.output_names, given, wanted, strict=True)
        }
        worst = max(relative, key=relative.__getitem__)
        found[name] = {
            "map_largest": float(np.abs(given[0] - wanted[0]).max()),
            "map_mean": float(np.abs(given[0] - wanted[0]).mean()),
            "worst_output": worst, "worst_relative": relative[worst], "bound": bound, "ok": relative[worst] < bound,
            "relative": relative,
        }  # fmt: skip
    place.keep(found)
    if wrong := [name for name in VARIANTS if not found[name]["ok"]]:
        raise AssertionError(
            f"{', '.join(wrong)} differs from FP32 on the CPU by more than is allowed: see the results"
        )
    return found


def milliseconds(work: Callable[[], Any], repeats: int = 30) -> list[float]:
    """The durations of several runs on the device, shortest first."""
    import torch

    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)
