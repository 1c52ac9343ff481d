"""What an engine is built with and for: the library, the GPU at hand, and the GPU classes that were named.

TensorRT builds only for the GPU at hand. TensorRT-RTX builds one plan for a list of compute capabilities, on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r2mrf_deploy import gpus
from r2mrf_deploy.errors import BuildError, RuntimeUnavailable
from r2mrf_deploy.formats import plan as plan_header
from r2mrf_deploy.gpus import GPU, Flavour
from r2mrf_deploy.manifest import Target
from r2mrf_deploy.runtimes.cuda import bindings
from r2mrf_deploy.runtimes.tensorrt import api
from r2mrf_deploy.runtimes.tensorrt.api import Library
from r2mrf_deploy.runtimes.tensorrt.inspector import achieved_precision


@dataclass(frozen=True)
class Targets:
    """The library and the GPUs of a build."""

    library: Library
    named: tuple[GPU, ...]
    """The classes that the user named."""
    device: bindings.Device | None
    """The GPU at hand."""
    why_no_device: str = ""

    @classmethod
    def choose(cls, named: Sequence[GPU], wanted: Flavour | None = None) -> Targets:
        """Choose the library from what is installed and the GPU at hand.

        `wanted` if it is given; else `tensorrt`, whose engines are fully compiled, if it is installed and every named GPU
        is like the one at hand; else `tensorrt_rtx`.

        Raises:
            RuntimeUnavailable: the wanted library, or any at all, is not installed.
        """
        try:
            device, why = bindings.device(), ""
        except bindings.CudaError as e:
            device, why = None, str(e)
        library = api.load(wanted or _flavour(named, device))
        if device is not None and (refusal := api.driver_refusal(library.flavour)):
            device, why = None, refusal  # TensorRT would crash if it were asked for anything on it
        return cls(library, tuple(named), device, why)

    def refuse(self, precisions: Sequence[str]) -> None:
        """Refuse a build that must not be made. `precisions` are the types in the graph, as far as they are known.

        Raises:
            BuildError: a GPU cannot run such a graph, or this library does not build for it. Names the cure.
            RuntimeUnavailable: TensorRT needs a GPU to build, and there is none.
        """
        known = [p for p in precisions if p in gpus.PRECISIONS]
        for gpu in self.named or self._implied():
            if reasons := gpus.refusals(gpu, self.library.flavour, self.library.version, known):
                prefix = f"`gpus` {gpu.name}: " if self.named else ""
                raise BuildError(f"{prefix}{'; also, '.join(reasons)}")
        if self.library.is_rtx:
            return
        title, device = self.library.title, self.device
        if device is None:
            cure = 'TensorRT-RTX builds without a GPU: pip install "r2mrf-deploy[tensorrt-rtx]"'
            advised = next((gpu.advice for gpu in self.named if gpu.advice), cure)
            raise RuntimeUnavailable(
                f"{title} builds only for a GPU at hand, and can use none here ({self.why_no_device}); {advised}"
            )
        for gpu in self.named:
            if gpu.compute_capability != device.compute_capability:
                raise BuildError(
                    f"`gpus` {gpu.name}: {title} builds only for the GPU at hand, a {device.name} "
                    f"({device.compute_capability}, not {gpu.compute_capability}): build on a {gpu.title}"
                )

    def requested(self, precisions: Sequence[str]) -> list[int]:
        """The compute capabilities to request from TensorRT-RTX; empty for the library's default, Ampere and later.

        The default leaves Turing out: including it, NVIDIA says, slows the plan on the others; it also triples its size.
        """
        if not self.library.is_rtx:
            return []
        chosen = {g.compute_capability for g in self.named or self._implied()}
        if not chosen and "fp8" in precisions:  # the default includes cards without FP8
            chosen = {c for c in gpus.RTX_COMPUTE_CAPABILITIES if gpus.sm(c) >= 89}
        return sorted(map(gpus.sm, chosen))

    def record(self, plan: bytes, options: dict[str, str]) -> Target:
        """The manifest's entry for a plan that was built."""
        header, device = plan_header.parse(plan[:64], len(plan)), self.device
        built_for = list(header.compute_capabilities)
        if device is None:
            achieved = "not verified: no device to ask"
        elif built_for and device.compute_capability not in built_for:
            achieved = f"not verified: the plan was not built for the GPU at hand, a {device.name}"
        else:
            built_for = built_for or [device.compute_capability]
            achieved = achieved_precision(self.library, plan)
        return Target(
            runtime=self.library.flavour,
            runtime_version=header.version,
            compute_capabilities=built_for,
            gpus=[g.name for g in self.named],
            options=options,
            built_without_gpu=device is None,
            achieved_precision=achieved,
        )

    def note(self, target: Target) -> str:
        """What the user of a new plan must know."""
        built_for = ", ".join(target.compute_capabilities)
        note = f"built by {self.library.title} {self.library.version} for compute capability {built_for}"
        if self.device is None:
            return f"{note}, without a GPU: it was not run ({self.why_no_device})"
        if self.device.compute_capability not in target.compute_capabilities:
            return f"{note}, not for the GPU at hand, a {self.device.name} ({self.device.compute_capability})"
        return note

    def _implied(self) -> tuple[GPU, ...]:
        """The class of the GPU at hand, if an engine is built for that GPU when none is named."""
        device = self.device
        if device is None or (self.library.is_rtx and device.compute_capability != "7.5"):
            return ()
        alike = gpus.alike(device.name, device.compute_capability)
        return (alike,) if alike else ()


def _flavour(named: Sequence[GPU], device: bindings.Device | None) -> Flavour:
    found = api.installed()
    if not found:
        raise RuntimeUnavailable(
            'no TensorRT is installed: pip install "r2mrf-deploy[tensorrt-rtx]" (builds without a GPU) '
            'or "r2mrf-deploy[tensorrt]" (needs one)'
        )
    here = device is not None and all(g.compute_capability == device.compute_capability for g in named)
    return "tensorrt" if "tensorrt" in found and (here or len(found) == 1) else "tensorrt_rtx"
