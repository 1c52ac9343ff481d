"""The TensorRT that is installed: which of the two, which version, and what goes by another name in it.

`tensorrt` (8.6, 10, 11) and `tensorrt_rtx` share one Python API with names that came and went. They are looked up here
when they are needed, so that nothing else asks for a version.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from r2mrf_deploy.errors import RuntimeUnavailable
from r2mrf_deploy.gpus import Flavour

FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt_rtx")
TITLES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_CURES: dict[Flavour, str] = {
    "tensorrt": 'pip install "r2mrf-deploy[tensorrt]"',
    "tensorrt_rtx": 'pip install "r2mrf-deploy[tensorrt-rtx]"',
}


@dataclass(frozen=True)
class Library:
    """An imported TensorRT."""

    flavour: Flavour
    module: Any

    @property
    def title(self) -> str:
        return TITLES[self.flavour]

    @property
    def version(self) -> str:
        return self.module.__version__

    @property
    def is_rtx(self) -> bool:
        """Whether it builds without a GPU, for several compute capabilities at once."""
        return self.flavour == "tensorrt_rtx"

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    def member(self, enum: str, name: str) -> Any | None:
        """A member of an enumeration, or None where this version has no such enumeration or member."""
        return getattr(getattr(self.module, enum, None), name, None)

    @cached_property
    def dtypes(self) -> dict[Any, str]:
        """TensorRT's element types, those that this version has, with numpy's name for each."""
        names = {
            "FLOAT": "float32",
            "HALF": "float16",
            "BF16": "bfloat16",
            "FP8": "float8_e4m3fn",
            "INT8": "int8",
            "UINT8": "uint8",
            "INT32": "int32",
            "INT64": "int64",
            "BOOL": "bool",
        }
        known = {self.member("DataType", trt): numpy for trt, numpy in names.items()}
        return {trt: numpy for trt, numpy in known.items() if trt is not None}

    def dtype(self, trt_dtype: Any) -> str:
        """numpy's name of one of TensorRT's element types."""
        return self.dtypes.get(trt_dtype, str(trt_dtype))


@dataclass
class Messages:
    """What TensorRT said while it worked, of severity error or worse; filled from its own threads."""

    errors: deque[str] = field(default_factory=lambda: deque(maxlen=100))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, message: str) -> None:
        with self._lock:
            self.errors.append(message)

    def first(self) -> str:
        """The first error in plain words, without the library's file names."""
        return plain(self.errors[0]) if self.errors else "TensorRT gave no reason"

    def last(self) -> str:
        """The last error, likewise: what a long-lived runner was just told."""
        return plain(self.errors[-1]) if self.errors else "TensorRT gave no reason"


def plain(message: str) -> str:
    """One of TensorRT's messages without its prefix, error code and source position: 'IBuilder::f: Error Code 4: API
    Usage Error (what is wrong. In g at /_src/h.cpp:1)' becomes 'what is wrong'."""
    line = message.strip().splitlines()[0] if message.strip() else ""
    _, found, inner = line.partition("Error (")
    if found:
        line = inner.removesuffix(")")
    elif "Error Code" in line and "(" in line:
        line = line.partition("(")[2].removesuffix(")")
    line = line.partition(" In ")[0]
    return line.strip().rstrip(".;,") or message.strip()


def installed() -> dict[Flavour, str]:
    """The TensorRTs that import here and their versions."""
    found: dict[Flavour, str] = {}
    for flavour in FLAVOURS:
        if importlib.util.find_spec(flavour):
            try:
                found[flavour] = importlib.import_module(flavour).__version__
            except (ImportError, OSError, AttributeError):  # a stub, or libraries that do not load
                continue
    return found


def load(flavour: Flavour) -> Library:
    """Import a TensorRT.

    Raises:
        RuntimeUnavailable: it is not installed, or its libraries do not load.
    """
    try:
        library = Library(flavour, importlib.import_module(flavour))
        _ = library.version
    except (ImportError, OSError, AttributeError) as e:
        why = f" ({e})" if importlib.util.find_spec(flavour) else ""
        raise RuntimeUnavailable(f"{TITLES[flavour]} is not installed{why}: {_CURES[flavour]}") from None
    return library


def logger(library: Library, messages: Messages) -> Any:
    """A TensorRT logger that writes into `messages` and nowhere else."""
    base: Any = library.module.ILogger
    worst = (base.ERROR, base.INTERNAL_ERROR)

    class Log(base):
        def __init__(self) -> None:
            base.__init__(self)  # the bindings want it called by name

        def log(self, severity: Any, message: str) -> None:
            if severity in worst:
                messages.add(message)

    return Log()
