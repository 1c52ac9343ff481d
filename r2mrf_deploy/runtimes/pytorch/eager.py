"""PyTorch on the CPU: eager, it is the reference that every artifact is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from r2mrf_deploy import checkpoint_files, environment
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.runtimes.base import Arrays, Availability, OpenOptions, Runner, Runtime
from r2mrf_deploy.wording import count

if TYPE_CHECKING:
    from torch import nn

    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.networks.deployed import Deployed

Program = Callable[..., Sequence[Any]]
"""(input tensors) -> output tensors: a module, a compiled one, an AOTInductor package."""


class PyTorch(Runtime):
    name = "pytorch"
    title = "PyTorch"
    suffixes = checkpoint_files.SUFFIXES
    supported_options = frozenset({"threads", "network", "settings", "weights_key", "rename"})

    def availability(self) -> Availability:
        if not environment.importable("torch", "torchvision"):
            return Availability(False, reason="PyTorch is not installed", cure=environment.installs("torch"))
        return Availability(True, environment.version("torch"))

    def _open(self, artifact: Artifact, options: OpenOptions) -> Runner:
        from r2mrf_deploy.checkpoint import Checkpoint

        loaded = Checkpoint.load(artifact.path, **options.loading)
        return PyTorchRunner(loaded, threads=options.threads)


class ProgramRunner(Runner):
    """A program on the CPU.

    Args:
        form: what is run and its precision, which `device` mentions.
        threads: PyTorch's number of threads, set for the whole process.
    """

    def __init__(
        self,
        runtime: str,
        program: Program,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        form: str,
        threads: int | None,
    ) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.runtime = runtime
        self.device = f"CPU, {count(torch.get_num_threads(), 'thread')}, {form}"
        self.inputs, self.outputs = inputs, outputs
        self._program = program

    def _run(self, arrays: Arrays) -> Arrays:
        import torch

        # a tensor cannot share a read-only array's memory: those are copied
        tensors = [torch.from_numpy(np.require(arrays[s.name], requirements="W")) for s in self.inputs]
        with torch.inference_mode():
            outputs = self._program(*tensors)
        return {spec.name: value.numpy() for spec, value in zip(self.outputs, outputs, strict=True)}


class PyTorchRunner(ProgramRunner):
    """A checkpoint run by PyTorch in FP32 on the CPU, with free batch, height and width.

    Args:
        io, steps, all_steps, logits: as for `networks.deployed.Deployed`.
        double: compute in FP64, and return it.
        threads: as for `ProgramRunner`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        io: Literal["image", "tensor"] = "image",
        steps: int | None = None,
        all_steps: bool = False,
        logits: bool = False,
        double: bool = False,
        threads: int | None = None,
    ) -> None:
        from r2mrf_deploy.networks.deployed import Deployed

        module = Deployed(
            checkpoint.module(), checkpoint.preprocess, io=io, steps=steps, all_steps=all_steps, logits=logits
        ).eval()
        inputs, outputs = specs_of(module)
        if double:
            super().__init__("pytorch", widened(module), inputs, doubles(outputs), "eager FP64", threads)
        else:
            super().__init__("pytorch", module, inputs, outputs, "eager FP32", threads)
        self.preprocess, self.network = checkpoint.preprocess, checkpoint.network


def widened(module: nn.Module) -> Program:
    """A module in FP64. It takes the same inputs: floats become FP64 at once, an image's bytes where they meet the scale."""
    module = module.double()
    return lambda *inputs: module(*(x.double() if x.is_floating_point() else x for x in inputs))


def doubles(outputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Outputs in FP64."""
    return tuple(spec.model_copy(update={"dtype": "float64"}) for spec in outputs)


def specs_of(module: Deployed) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs of a network in PyTorch: batch, height and width are free."""
    outputs = (
        TensorSpec(name=n, dtype="float32", shape=["batch", 1, "height", "width"], layout="NCHW")
        for n in module.output_names
    )
    return (module.input_spec("batch", "height", "width"),), tuple(outputs)
