"""The precision that an engine computes in, according to the engine itself.

Other tools have shipped "FP16" engines that ran in FP32, so the requested precision is not taken on trust. This needs a
device, since the engine has to be deserialised.
"""

from __future__ import annotations

import json
import re
from collections import Counter

from r2mrf_deploy.runtimes.tensorrt.api import Library, logger, record_errors
from r2mrf_deploy.wording import count

# How the inspector of the various versions writes an output's type. The first match counts.
_TYPES = (
    ("fp8", r"\bfp8\b|\bfloat8"),
    ("int8", r"\bint8\b"),
    ("bf16", r"\bbf16\b|\bbfloat16\b"),
    ("fp16", r"\bfp16\b|\bhalf\b|\bfloat16\b"),
    ("fp32", r"\bfp32\b|\bfloat\b|\bfloat32\b"),
)


def achieved_precision(library: Library, plan: bytes) -> str:
    """The precisions of a plan's layers on the device at hand, worded for the manifest."""
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
        return "not verified: the engine inspector gives no layers"
    kinds = [_precision(layer) for layer in layers if isinstance(layer, dict)]
    counts = Counter(kind for kind in kinds if kind)
    if not counts:
        return "not verified: the plan holds only the layers' names; build it with `profiling_verbosity` detailed"
    (first, n), *others = counts.most_common()
    return ", ".join([f"{first} in {count(n, 'layer')}", *(f"{kind} in {n}" for kind, n in others)])


def _precision(layer: dict[str, object]) -> str | None:
    """The lowest precision of a layer's outputs; None if none of them has a known type, or they are written otherwise."""
    outputs = layer.get("Outputs")
    types = (o.get("Format/Datatype") for o in outputs if isinstance(o, dict)) if isinstance(outputs, list) else ()
    written = " ".join(map(str, types)).lower()
    return next((kind for kind, pattern in _TYPES if re.search(pattern, written)), None)
