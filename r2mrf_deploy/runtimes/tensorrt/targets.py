"""What an engine is built with and for: the library, the GPU at hand, the GPU classes that were asked for.

TensorRT builds for the GPU at hand and for no other. TensorRT-RTX builds one plan for a list of compute capabilities,
on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from r2mrf_deploy import gpus
from r2mrf_deploy.errors import BuildError, RuntimeUnavailable
from r2mrf_deploy.gpus import GPU, Flavour
from r2mrf_deploy.manifest import Target
from r2mrf_deploy.runtimes.cuda import bindings
from r2mrf_deploy.runtimes.tensorrt import api
from r2mrf_deploy.runtimes.tensorrt.api import Library
from r2mrf_deploy.runtimes.tensorrt.builder import Engine
from r2mrf_deploy.runtimes.tensorrt.inspector import achieved_precision


@dataclass(frozen=True)
class Targets:
    """Where a build stands, before and after it."""

    library: Library
    named: tuple[GPU, ...]
    """The classes that were asked for by name."""
    device: bindings.Device | None
    why_no_device: str = ""

    @classmethod
    def choose(cls, named: Sequence[GPU], wanted: Flavour | None = None) -> Targets:
        """Look what is installed and at hand, and choose the library.

        That is the one that is asked for; else `tensorrt` where it is installed and every named GPU is the one at hand,
        since its engines are compiled to the end; else `tensorrt_rtx`.

        Raises:
            RuntimeUnavailable: the library that is asked for is not installed, or none is.
        """
        try:
            device, why = bindings.device(), ""
        except bindings.CudaError as e:
            device, why = None, str(e)
        return cls(api.load(wanted or _flavour(named, device)), tuple(named), device, why)

    def refuse(self, precisions: Sequence[str]) -> None:
        """Refuse what must not be built.

        Args:
            precisions: the types in the graph, as far as they are known.

        Raises:
            BuildError: a GPU cannot run such a graph, or this library does not build for it; with what to do instead.
            RuntimeUnavailable: TensorRT is to build and there is no GPU.
        """
        known = [p for p in precisions if p in gpus.PRECISIONS]
        for gpu in self.named or self._implied():
            if reasons := gpus.refusals(gpu, self.library.flavour, self.library.version, known):
                asked = f"`gpus` {gpu.name}: " if self.named else ""
                raise BuildError(f"{asked}{'; also, '.join(reasons)}")
        if not self.library.is_rtx:
            self._refuse_elsewhere()

    def requested(self, precisions: Sequence[str]) -> list[int]:
        """The compute capabilities to ask TensorRT-RTX for; none leaves it to the library: Ampere and later.

        That default leaves Turing out, which would slow the plan on the others (so NVIDIA) and triple its size.
        """
        if not self.library.is_rtx:
            return []
        chosen = {g.compute_capability for g in self.named or self._implied()}
        if not chosen and "fp8" in precisions:  # the default holds cards that cannot run it
            chosen = {c for c in gpus.RTX_COMPUTE_CAPABILITIES if gpus.sm(c) >= 89}
        return sorted(map(gpus.sm, chosen))

    def record(self, engine: Engine, options: dict[str, str]) -> Target:
        """The manifest's entry for an engine that was built."""
        built_for = engine.header.compute_capabilities
        if not built_for and self.device is not None:
            built_for = (self.device.compute_capability,)
        return Target(
            runtime=self.library.flavour,
            runtime_version=engine.header.version,
            compute_capabilities=list(built_for),
            gpus=[g.name for g in self.named],
            options=options,
            built_without_gpu=self.device is None,
            achieved_precision=self._achieved(engine, built_for),
        )

    def note(self, target: Target) -> str:
        """What the user of a new plan has to know."""
        built_for = ", ".join(target.compute_capabilities)
        note = f"built by {self.library.title} {self.library.version} for compute capability {built_for}"
        if self.device is None:
            return f"{note}, without a GPU: it was not run ({self.why_no_device})"
        if self.device.compute_capability not in target.compute_capabilities:
            return f"{note}: not for the GPU at hand, a {self.device.name} ({self.device.compute_capability})"
        return note

    def _implied(self) -> tuple[GPU, ...]:
        """The GPU at hand, as a class, where it is what an engine without a name is built for."""
        device = self.device
        if device is None or (self.library.is_rtx and device.compute_capability != "7.5"):
            return ()
        alike = [g for g in gpus.GPUS.values() if g.compute_capability == device.compute_capability]
        return tuple(replace(g, title=device.name) for g in alike[:1])

    def _refuse_elsewhere(self) -> None:
        title, device = self.library.title, self.device
        if device is None:
            raise RuntimeUnavailable(
                f"{title} builds on the GPU that it builds for, and there is none ({self.why_no_device}); "
                'TensorRT-RTX builds without: pip install "r2mrf-deploy[tensorrt-rtx]"'
            )
        for gpu in self.named:
            if gpu.compute_capability != device.compute_capability:
                raise BuildError(
                    f"`gpus` {gpu.name}: {title} builds for the GPU at hand, a {device.name} "
                    f"({device.compute_capability}, not {gpu.compute_capability}): build on a {gpu.title}"
                )

    def _achieved(self, engine: Engine, built_for: Sequence[str]) -> str:
        if self.device is None:
            return "not verified: no device to ask"
        if self.device.compute_capability not in built_for:
            return f"not verified: the {self.device.name} is none of the GPUs it was built for"
        return achieved_precision(self.library, engine.plan)


def _flavour(named: Sequence[GPU], device: bindings.Device | None) -> Flavour:
    found = api.installed()
    if not found:
        raise RuntimeUnavailable(
            'no TensorRT is installed: pip install "r2mrf-deploy[tensorrt-rtx]" (builds without a GPU), '
            'or "r2mrf-deploy[tensorrt]" on a machine with one'
        )
    here = device is not None and all(g.compute_capability == device.compute_capability for g in named)
    return "tensorrt" if "tensorrt" in found and (here or len(found) == 1) else "tensorrt_rtx"
