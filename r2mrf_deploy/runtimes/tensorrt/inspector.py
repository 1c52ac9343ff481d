"""What precision an engine computes in, asked of the engine itself.

"FP16" engines that were FP32 are a known accident, so what was asked for is not taken for what was built. Only a device
can answer: the engine has to be deserialised.
"""

from __future__ import annotations

import json
import re
from collections import Counter

from r2mrf_deploy.runtimes.tensorrt.api import Library, logger, record_errors

# How the inspector writes an output's type, over the years.
_TYPES = (
    ("fp8", r"\bfp8\b|\bfloat8"),
    ("int8", r"\bint8\b"),
    ("bf16", r"\bbf16\b|\bbfloat16\b"),
    ("fp16", r"\bfp16\b|\bhalf\b|\bfloat16\b"),
    ("fp32", r"\bfp32\b|\bfloat\b|\bfloat32\b"),
)


def achieved_precision(library: Library, plan: bytes) -> str:
    """The precisions of a plan's layers on the device at hand, in words for the manifest."""
    runtime = library.module.Runtime(logger(library))
    messages = record_errors(library, runtime)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return f"not verified: {messages.last()}"
    inspector = engine.create_engine_inspector()
    return summarise(inspector.get_engine_information(library.module.LayerInformationFormat.JSON))


def summarise(information: str) -> str:
    """The engine inspector's JSON in words: 'fp16 in 110 layers, fp32 in 8'."""
    try:
        layers = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError):
        return "not verified: the engine inspector says nothing of its layers"
    written = [_output_types(layer) for layer in layers if isinstance(layer, dict)]
    counts = Counter(kind for kind in map(_precision, written) if kind)
    if not counts:
        return "not verified: the plan holds names only; build it with `profiling_verbosity` detailed"
    (first, n), *others = counts.most_common()
    return ", ".join([f"{first} in {n} layers", *(f"{kind} in {count}" for kind, count in others)])


def _output_types(layer: dict[str, object]) -> str:
    outputs = layer.get("Outputs")
    if not isinstance(outputs, list):
        return ""
    return " ".join(str(o.get("Format/Datatype", "")) for o in outputs if isinstance(o, dict)).lower()


def _precision(written: str) -> str | None:
    """The first of the known types in what the inspector wrote; None where a layer has none of them."""
    return next((kind for kind, pattern in _TYPES if re.search(pattern, written)), None)
