"""ONNX Runtime on the CPU and through CUDA. It never falls back from one to the other unsaid."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from r2mrf_deploy import machine
from r2mrf_deploy.errors import ArtifactError, RuntimeUnavailable
from r2mrf_deploy.manifest import Manifest, TensorSpec
from r2mrf_deploy.runtimes.base import Arrays, Availability, LayerTimes, OpenOptions, Runner, Runtime

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int64)": "int64",
    "tensor(double)": "float64",
}


class OnnxRuntimeCPU(Runtime):
    name = "onnxruntime"
    title = "ONNX Runtime"
    suffixes = (".onnx",)
    honours = frozenset({"threads", "profile"})
    provider: ClassVar[str] = "CPUExecutionProvider"
    cannot = frozenset({"bf16"})

    def availability(self) -> Availability:
        if importlib.util.find_spec("onnxruntime") is None:
            return Availability(False, reason="onnxruntime is not installed", cure="pip install onnxruntime-gpu")
        return Availability(True, machine.version("onnxruntime-gpu") or machine.version("onnxruntime"))

    def _open(self, artifact: Path, manifest: Manifest | None, options: OpenOptions) -> Runner:
        return OnnxRuntimeRunner(self, artifact, manifest, options)


class OnnxRuntimeCUDA(OnnxRuntimeCPU):
    name = "onnxruntime-cuda"
    title = "ONNX Runtime CUDA"
    provider = "CUDAExecutionProvider"
    cannot: ClassVar[frozenset[str]] = frozenset()

    def availability(self) -> Availability:
        state = super().availability()
        if not state.ok:
            return state
        import onnxruntime

        if self.provider not in onnxruntime.get_available_providers():
            return Availability(
                False, state.version, "this build has no CUDA provider", "pip install onnxruntime-gpu in its place"
            )
        if reason := machine.cuda_driver():
            return Availability(False, state.version, reason, "run it on a machine with an NVIDIA GPU")
        return state


class OnnxRuntimeRunner(Runner):
    def __init__(
        self, runtime: OnnxRuntimeCPU, artifact: Path, manifest: Manifest | None, options: OpenOptions
    ) -> None:
        import onnxruntime

        self.runtime = runtime.name
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # errors; what matters of its warnings is checked below
        if options.threads:
            settings.intra_op_num_threads = options.threads
        self._profiles = tempfile.TemporaryDirectory() if options.profile else None
        if self._profiles:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(self._profiles.name) / "profile")
        onnxruntime.set_default_logger_severity(3)
        try:
            self._session = onnxruntime.InferenceSession(
                str(artifact), settings, providers=list(dict.fromkeys([runtime.provider, "CPUExecutionProvider"]))
            )
        except Exception as e:  # its exceptions share no base class
            raise ArtifactError(f"ONNX Runtime cannot open {artifact}: {str(e).splitlines()[0]}") from None
        got = self._session.get_providers()
        if got[0] != runtime.provider:
            raise RuntimeUnavailable(
                f"ONNX Runtime could not use {runtime.provider} and offered {got[0]} instead; "
                "see its log for the missing library, or choose --runtime onnxruntime"
            )
        if runtime.provider == "CPUExecutionProvider" and manifest is not None and manifest.precision == "fp16":
            self.emulates = "ONNX Runtime computes FP16 in FP32 on a CPU"
        threads = options.threads or machine.cores()
        self.device = f"CPU, {threads} threads" if runtime.provider == "CPUExecutionProvider" else "CUDA"
        layouts = {s.name: s.layout for s in (*manifest.inputs, *manifest.outputs)} if manifest else {}
        self.inputs = tuple(_spec(v, layouts) for v in self._session.get_inputs())
        self.outputs = tuple(_spec(v, layouts) for v in self._session.get_outputs())

    def _run(self, arrays: Arrays) -> Arrays:
        names = [s.name for s in self.outputs]
        try:
            return dict(zip(names, self._session.run(names, arrays), strict=True))
        except Exception as e:  # its exceptions share no base class
            raise ArtifactError(f"ONNX Runtime failed: {str(e).splitlines()[0]}") from None

    def _profile(self, arrays: Arrays, runs: int) -> list[LayerTimes]:
        if self._profiles is None:
            return super()._profile(arrays, runs)
        for _ in range(runs):
            self._run(arrays)
        events = json.loads(Path(self._session.end_profiling()).read_text())
        times: dict[str, list[float]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                times.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"] / 1e3)
        return [LayerTimes(name, tuple(ms[-runs:])) for name, ms in times.items()]  # what came before was warming up

    def close(self) -> None:
        if self._profiles is not None:
            self._profiles.cleanup()


def _spec(value: Any, layouts: dict[str, Any]) -> TensorSpec:
    shape = [d if isinstance(d, (int, str)) else "?" for d in value.shape]
    return TensorSpec(
        name=value.name, dtype=_DTYPES.get(value.type, value.type), shape=shape, layout=layouts.get(value.name)
    )
