"""PyTorch on a GPU, in the ways that people run it: FP32 and TF32, FP16, channels last, compiled, as a CUDA graph.

Each is its own runtime, so that a benchmark finds out which is fastest on a GPU. They differ only in their `Variant`.
They run checkpoints, and ONNX graphs too: the rewritten graph computes the same with less work.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from r2mrf_deploy import checkpoint_files, environment, gpus
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.runtimes import specs
from r2mrf_deploy.runtimes.base import Availability, OpenOptions, Runner, Runtime, changed
from r2mrf_deploy.runtimes.cuda.execution_context import PREPARING
from r2mrf_deploy.runtimes.pytorch.eager import Program, PyTorch, specs_of
from r2mrf_deploy.runtimes.pytorch.execution_context import TorchCuda, TorchRunner

if TYPE_CHECKING:
    import onnx

    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.networks.deployed import Deployed


@dataclass(frozen=True)
class Variant:
    """A way of running the network. None changes the dtypes and shapes of its inputs and outputs."""

    tf32: bool = False
    """Let FP32 convolutions round their operands to TF32's 11 bits."""
    half: bool = False
    """FP16 weights and activations; the input's scaling, batch norms' statistics and the sigmoid stay FP32."""
    channels_last: bool = False
    compiled: bool = False
    """Compile it with torch.compile."""
    cuda_graph: bool = False
    """Launch it as a CUDA graph unless the options say otherwise."""

    def __str__(self) -> str:
        how = "compiled" if self.compiled else "eager"
        precision = "FP16" if self.half else "TF32" if self.tf32 else "FP32"
        return f"{how} {precision}" + (", channels last" if self.channels_last else "")


# What follows "pytorch-cuda" in a runtime's name -> what follows "PyTorch CUDA" in its title, and how it runs.
_VARIANTS = {
    "": ("", Variant()),
    "-tf32": (" TF32", Variant(tf32=True)),
    "-fp16": (" FP16", Variant(half=True)),
    "-channels-last": (" FP16 channels last", Variant(half=True, channels_last=True)),
    "-compile": (" compiled", Variant(half=True, channels_last=True, compiled=True)),
    "-graph": (" graph", Variant(half=True, channels_last=True, cuda_graph=True)),
}


class PyTorchCUDA(Runtime):
    """PyTorch on the GPU in one of its variants; by default eager FP32 without TF32, the reference there.

    A checkpoint is computed in the variant's precision. A graph has its own, and is refused by the variants of another.
    """

    suffixes = (*checkpoint_files.SUFFIXES, ".onnx")
    unsupported_precisions = frozenset({"bf16", "int8"})
    supported_options = frozenset({"cuda_graph", "spin_wait", "network", "settings", "weights_key", "rename"})

    def __init__(self, variant: str = "") -> None:
        title, self.variant = _VARIANTS[variant]
        self.name, self.title = f"pytorch-cuda{variant}", f"PyTorch CUDA{title}"
        self.variant_of = "pytorch-cuda" if variant else ""

    def availability(self) -> Availability:
        return triton_availability() if self.variant.compiled else cuda_availability()

    def _check(self, artifact: Artifact, options: OpenOptions) -> None:
        if self.variant.cuda_graph and options.cuda_graph is False:
            raise UsageError(f"{self.name} always uses a CUDA graph: choose `runtime` pytorch-cuda-channels-last")
        if _is_graph(artifact) and (given := [name for name in changed(options) if name in options.loading]):
            raise UsageError(f"{artifact.path.name} is no checkpoint, so `{given[0]}` has no meaning: leave it out")

    def _open(self, artifact: Artifact, options: OpenOptions) -> Runner:
        if _is_graph(artifact):
            return self._open_graph(artifact, options)
        from r2mrf_deploy.checkpoint import Checkpoint

        loaded = Checkpoint.load(artifact.path, **options.loading)
        with PREPARING:
            module, program = make_program(loaded, self.variant, "cuda")
        runner = self._runner(program, *specs_of(module), options)
        runner.preprocess, runner.network = loaded.preprocess, loaded.network
        return runner

    def _open_graph(self, artifact: Artifact, options: OpenOptions) -> Runner:
        from r2mrf_deploy.graph import files, interface

        model = files.read(artifact.path)
        if (found := _precision(artifact, model)) != (wanted := "FP16" if self.variant.half else "FP32"):
            cure = "convert it with `--precision fp16`" if self.variant.half else "choose `runtime` pytorch-cuda-fp16"
            raise RuntimeUnavailable(f"{self.title} computes in {wanted}, and {artifact.path.name} in {found}: {cure}")
        with PREPARING:
            program = make_graph_program(model, self.variant, "cuda")
        layouts = specs.layouts(artifact)
        inputs, outputs = (
            tuple(interface.spec(value, layouts.get(value.name)) for value in values)
            for values in (interface.inputs(model), model.graph.output)
        )
        return self._runner(program, inputs, outputs, options)

    def _runner(
        self,
        program: Program,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        options: OpenOptions,
    ) -> TorchRunner:
        return TorchRunner(
            TorchCuda(),
            program,
            inputs,
            outputs,
            runtime=self.name,
            form=str(self.variant),
            # FP16 graphs may have nodes in FP32. The compiler reads PyTorch's older switches, which `precision` forbids.
            tf32=None if self.variant.compiled else self.variant.tf32,
            cuda_graph=self.variant.cuda_graph,
            options=options,
        )


def _is_graph(artifact: Artifact) -> bool:
    return artifact.path.suffix.lower() == ".onnx"


def _precision(artifact: Artifact, model: onnx.ModelProto) -> str:
    """The precision that a graph computes in, in words: as its contract says, otherwise that of its weights."""
    from onnx import TensorProto

    if artifact.contract:
        return artifact.precision.upper()
    return "FP16" if any(t.data_type == TensorProto.FLOAT16 for t in model.graph.initializer) else "FP32"


def cuda_availability() -> Availability:
    """Whether PyTorch can use a CUDA device here."""
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
        reason = f"this PyTorch has no code for compute capability {capability} ({name})"
        cure = "install a build of PyTorch that has: docs/gpu.md" if major < 8 else "install a newer PyTorch"
        return Availability(False, state.version, reason, cure)
    return Availability(True, state.version, details={"device": name, "compute_capability": capability})


def triton_availability() -> Availability:
    """Whether PyTorch can also compile for the CUDA device: its compiler emits Triton code, which needs Volta or later."""
    state = cuda_availability()
    if not state.ok:
        return state
    if importlib.util.find_spec("triton") is None:
        return Availability(False, state.version, "PyTorch's compiler needs Triton", "pip install triton")
    if gpus.sm(capability := state.details["compute_capability"]) < 70:
        reason = f"Triton, which PyTorch's compiler uses, needs compute capability 7.0; this GPU has {capability}"
        return Availability(False, state.version, reason, "choose another `runtime`: docs/gpu.md")
    return state


def has_code_for(architectures: Sequence[str], compute_capability: str) -> bool:
    """Whether a library has code that a GPU can run.

    Machine code runs on its own compute capability and later ones of the same major version. PTX, which the driver
    compiles, runs on all later ones ("CUDA C++ Programming Guide", Binary Compatibility and PTX Compatibility).

    Args:
        architectures: what the library was compiled for, in PyTorch's notation: "sm_86" is machine code, "compute_90" PTX.
    """
    here = gpus.sm(compute_capability)
    codes = [(kind, int(sm)) for kind, sm in re.findall(r"(sm|compute)_(\d+)", " ".join(architectures))]
    return any(sm <= here and (kind == "compute" or sm // 10 == here // 10) for kind, sm in codes)


def make_program(
    checkpoint: Checkpoint, variant: Variant, device: str, *, all_steps: bool = False
) -> tuple[Deployed, Program]:
    """A checkpoint's network on a device, prepared for a variant.

    Args:
        device: "cuda" or "cpu".
        all_steps: as for `Deployed`.

    Returns:
        The network with its preprocessing, and the program that runs it: the compiled network, or the network itself.
    """
    import torch

    from r2mrf_deploy.networks.deployed import Deployed

    module = Deployed(checkpoint.module(), checkpoint.preprocess, all_steps=all_steps)
    module.eval().requires_grad_(False).to(device)
    # Images are NHWC, and convolutions keep their input's layout: without this, every variant would be channels last.
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
    # fullgraph: beyond the recompilation limit it raises, instead of silently running uncompiled
    return module, torch.compile(module, fullgraph=True) if variant.compiled else module


def make_graph_program(model: onnx.ModelProto, variant: Variant, device: str) -> Program:
    """An ONNX graph on a device as a program, prepared for a variant but for its precision, which is the graph's own.

    Args:
        model: with its weights loaded.
        device: "cuda" or "cpu".

    Raises:
        GraphError: it has an operator that cannot be turned into PyTorch.
    """
    import torch

    from r2mrf_deploy.graph.torch_module import OPERATORS, to_module

    operators = dict(OPERATORS)
    if not variant.channels_last:  # images are NHWC, and convolutions keep the layout of their input
        operators["Transpose"] = lambda x, *, perm: x.permute(perm).contiguous()
    module = to_module(model, operators).to(device)
    for weight in module.buffers() if variant.channels_last else ():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return torch.compile(module, fullgraph=True) if variant.compiled else module


def _halve(network: Any) -> None:
    """Make weights FP16, except batch norms', which may overflow in it. PyTorch allows FP32 ones there."""
    from torch.nn.modules.batchnorm import _BatchNorm

    for module in network.modules():
        if not isinstance(module, _BatchNorm):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.half()
