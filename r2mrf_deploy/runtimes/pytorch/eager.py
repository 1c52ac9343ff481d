"""PyTorch, eager: the reference that every artifact is compared with."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Literal

from r2mrf_deploy import environment
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.runtimes.base import Arrays, Availability, OpenOptions, Runner, Runtime

if TYPE_CHECKING:
    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.networks.deployed import Deployed


class PyTorch(Runtime):
    name = "pytorch"
    title = "PyTorch"
    suffixes = (".pth", ".pt")
    supported_options = frozenset({"threads", "network", "settings"})

    def availability(self) -> Availability:
        if importlib.util.find_spec("torch") is None or importlib.util.find_spec("torchvision") is None:
            return Availability(False, reason="PyTorch is not installed", cure='pip install "r2mrf-deploy[export]"')
        return Availability(True, environment.version("torch"))

    def _open(self, artifact: Artifact, options: OpenOptions) -> Runner:
        from r2mrf_deploy.checkpoint import Checkpoint

        loaded = Checkpoint.load(artifact.path, network=options.network, settings=dict(options.settings))
        return PyTorchRunner(loaded, threads=options.threads)


class PyTorchRunner(Runner):
    """A checkpoint run by PyTorch in FP32 on the CPU, with free batch, height and width.

    Args:
        io, steps, all_steps, logits: as for `networks.deployed.Deployed`.
        threads: for PyTorch; it holds for the whole process.
    """

    runtime = "pytorch"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        io: Literal["image", "tensor"] = "image",
        steps: int | None = None,
        all_steps: bool = False,
        logits: bool = False,
        threads: int | None = None,
    ) -> None:
        import torch

        from r2mrf_deploy.networks.deployed import Deployed

        if threads:
            torch.set_num_threads(threads)
        self.device = f"CPU, {torch.get_num_threads()} threads, eager FP32"
        self.network = checkpoint.network
        self._module = Deployed(
            checkpoint.module(), checkpoint.preprocess, io=io, steps=steps, all_steps=all_steps, logits=logits
        ).eval()
        self.inputs, self.outputs = specs_of(self._module)

    def _run(self, arrays: Arrays) -> Arrays:
        import torch

        array = arrays[self.inputs[0].name]
        with torch.inference_mode():  # a tensor may not look into an array that is read-only
            outputs = self._module(torch.from_numpy(array if array.flags.writeable else array.copy()))
        return {spec.name: value.numpy() for spec, value in zip(self.outputs, outputs, strict=True)}


def specs_of(module: Deployed) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs of a network in PyTorch: batch, height and width are free."""
    outputs = (
        TensorSpec(name=n, dtype="float32", shape=["batch", 1, "height", "width"], layout="NCHW")
        for n in module.output_names
    )
    return (module.input_spec("batch", "height", "width"),), tuple(outputs)
