"""PyTorch on a GPU, in the ways that people run it: FP32 and TF32, FP16, channels last, compiled, as a CUDA graph.

Each is a runtime of its own, so that a benchmark finds a GPU's best and does not assume it; what tells them apart is data.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from r2mrf_deploy import environment, gpus
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.runtimes.base import Availability, OpenOptions, Runner, Runtime
from r2mrf_deploy.runtimes.cuda.execution_context import PREPARING
from r2mrf_deploy.runtimes.pytorch.eager import PyTorch, specs_of
from r2mrf_deploy.runtimes.pytorch.execution_context import Program, TorchCuda, TorchRunner

if TYPE_CHECKING:
    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.networks.deployed import Deployed


@dataclass(frozen=True)
class Variant:
    """A way of running the network. Inputs and outputs are the contract's whatever it is."""

    tf32: bool = False
    """Let FP32 convolutions round their operands to TF32's 11 bits."""
    half: bool = False
    """FP16 weights and activations; the scaling of the input, batch norms' statistics and the sigmoid stay FP32."""
    channels_last: bool = False
    compiled: bool = False
    """By torch.compile."""
    cuda_graph: bool = False
    """Launch it as a CUDA graph unless told otherwise."""

    def __str__(self) -> str:
        layout = ", channels last" if self.channels_last else ""
        return ("compiled " if self.compiled else "eager ") + self._precision + layout

    @property
    def _precision(self) -> str:
        return "FP16" if self.half else "TF32" if self.tf32 else "FP32"


class PyTorchCUDA(Runtime):
    """Eager FP32 without TF32: the reference on the GPU."""

    name = "pytorch-cuda"
    title = "PyTorch CUDA"
    suffixes = (".pth", ".pt")
    supported_options = frozenset({"cuda_graph", "spin_wait", "network", "settings"})
    variant: ClassVar[Variant] = Variant()

    def availability(self) -> Availability:
        return triton_availability() if self.variant.compiled else cuda_availability()

    def _open(self, artifact: Artifact, options: OpenOptions) -> Runner:
        from r2mrf_deploy.checkpoint import Checkpoint

        if self.variant.cuda_graph and options.cuda_graph is False:
            raise UsageError(f"{self.name} is the one that uses a CUDA graph: without it, it is {ChannelsLast.name}")
        loaded = Checkpoint.load(artifact.path, network=options.network, settings=dict(options.settings))
        with PREPARING:
            module, program = make_program(loaded, self.variant, "cuda")
        inputs, outputs = specs_of(module)
        return TorchRunner(
            TorchCuda(),
            program,
            inputs,
            outputs,
            runtime=self.name,
            device=str(self.variant),
            tf32=None if self.variant.half else self.variant.tf32,
            cuda_graph=self.variant.cuda_graph if options.cuda_graph is None else options.cuda_graph,
            options=options,
        )


class TF32(PyTorchCUDA):
    name = "pytorch-cuda-tf32"
    title = "PyTorch CUDA TF32"
    variant_of = PyTorchCUDA.name
    variant = Variant(tf32=True)


class FP16(PyTorchCUDA):
    name = "pytorch-cuda-fp16"
    title = "PyTorch CUDA FP16"
    variant_of = PyTorchCUDA.name
    variant = Variant(half=True)


class ChannelsLast(PyTorchCUDA):
    name = "pytorch-cuda-channels-last"
    title = "PyTorch CUDA FP16 channels last"
    variant_of = PyTorchCUDA.name
    variant = Variant(half=True, channels_last=True)


class Compiled(PyTorchCUDA):
    name = "pytorch-cuda-compile"
    title = "PyTorch CUDA compiled"
    variant_of = PyTorchCUDA.name
    variant = Variant(half=True, channels_last=True, compiled=True)


class Graph(PyTorchCUDA):
    name = "pytorch-cuda-graph"
    title = "PyTorch CUDA graph"
    variant_of = PyTorchCUDA.name
    variant = Variant(half=True, channels_last=True, cuda_graph=True)


def cuda_availability() -> Availability:
    """Whether PyTorch reaches a CUDA device here."""
    state = PyTorch().availability()
    if not state.ok:
        return state
    if reason := environment.cuda_driver():
        return Availability(False, state.version, reason, "run it on a machine with an NVIDIA GPU")
    import torch

    if not torch.cuda.is_available():
        reason = "this PyTorch cannot use the GPU: it was built without CUDA, or for a newer driver"
        return Availability(False, state.version, reason, "install PyTorch for the driver's CUDA (pytorch.org)")
    major, minor = torch.cuda.get_device_capability()
    name, capability = torch.cuda.get_device_name(), f"{major}.{minor}"
    if not has_code_for(torch.cuda.get_arch_list(), capability):
        reason = f"this PyTorch holds no code for compute capability {capability}, that of the {name}"
        cure = "install a build of PyTorch that does: docs/gpu.md" if major < 8 else "install a newer PyTorch"
        return Availability(False, state.version, reason, cure)
    return Availability(True, state.version, details={"device": name, "compute_capability": capability})


def triton_availability() -> Availability:
    """Whether PyTorch can also compile for the CUDA device: its compiler writes Triton, which begins with Volta."""
    state = cuda_availability()
    if not state.ok:
        return state
    if importlib.util.find_spec("triton") is None:
        return Availability(False, state.version, "PyTorch's compiler needs Triton", "pip install triton")
    if gpus.sm(capability := state.details["compute_capability"]) < 70:
        reason = f"Triton, which PyTorch's compiler writes, needs compute capability 7.0; this GPU has {capability}"
        return Availability(False, state.version, reason, "choose another `runtime`: docs/gpu.md")
    return state


def has_code_for(architectures: Sequence[str], compute_capability: str) -> bool:
    """Whether a library runs on a GPU.

    Machine code runs on its own minor version and later ones of the same major; PTX, which the driver compiles, on every
    later one ("CUDA C++ Programming Guide", Binary Compatibility and PTX Compatibility).

    Args:
        architectures: what the library was compiled for, as PyTorch says it: "sm_86" is machine code, "compute_90" PTX.
    """
    here = gpus.sm(compute_capability)
    for architecture in architectures:
        kind, _, number = architecture.partition("_")
        made_for = int(re.sub(r"\D", "", number))
        if made_for <= here and (kind == "compute" or made_for // 10 == here // 10):
            return True
    return False


def make_program(
    checkpoint: Checkpoint, variant: Variant, device: str, *, all_steps: bool = False
) -> tuple[Deployed, Program]:
    """A checkpoint's network on a device, as a variant runs it.

    Args:
        device: PyTorch's name of it: "cuda", "cpu".
        all_steps: as for `Deployed`.

    Returns:
        (the network with its preprocessing, what runs it): the contract's input to the contract's outputs, as tensors.
    """
    import torch

    from r2mrf_deploy.networks.deployed import Deployed

    module = Deployed(checkpoint.module(), checkpoint.preprocess, all_steps=all_steps)
    module.eval().requires_grad_(False).to(device)
    # An image comes as NHWC, and convolutions keep the layout of their input: without this every variant is channels last.
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    dtype = torch.float16 if variant.half else torch.float32
    module.network.to(memory_format=layout)
    if variant.half:
        _halve(module.network)

    def enter(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0].to(dtype, memory_format=layout), *inputs[1:])

    def leave(_: Any, __: Any, outputs: tuple[Any, dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
        logits, side = outputs
        return logits.float(), {name: value.float() for name, value in side.items()}

    module.network.register_forward_pre_hook(enter)
    module.network.register_forward_hook(leave)
    # fullgraph: past the limit of recompilations it raises; otherwise it would go on uncompiled, and say nothing
    return module, torch.compile(module, fullgraph=True) if variant.compiled else module


def _halve(network: Any) -> None:
    """Make the weights FP16 but for batch norms', which may be too large for it; PyTorch mixes the two there."""
    from torch.nn.modules.batchnorm import _BatchNorm

    for module in network.modules():
        if not isinstance(module, _BatchNorm):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.half()
