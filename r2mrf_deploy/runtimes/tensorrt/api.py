"""The installed TensorRT: which library, which version, and what differs between versions.

`tensorrt` (8.6, 10, 11) and `tensorrt_rtx` share one Python API, in which names have come and gone. Names are looked up
here when they are needed, so that no other code compares versions.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from r2mrf_deploy import environment
from r2mrf_deploy.errors import RuntimeUnavailable
from r2mrf_deploy.gpus import Flavour
from r2mrf_deploy.manifest import TensorSpec

TITLES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
NEWER_DRIVER = "install a newer NVIDIA driver, or the package for the driver's CUDA"

# TensorRT's element types (not every version has all of them) -> numpy's names
_DTYPES = {
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
        """Whether it builds without a GPU, and for several compute capabilities at once."""
        return self.flavour == "tensorrt_rtx"

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    def member(self, enum: str, name: str) -> Any | None:
        """A member of an enumeration, or None if this version has no such enumeration or member."""
        return getattr(getattr(self.module, enum, None), name, None)

    def dtype(self, trt_dtype: Any) -> str:
        """numpy's name for one of TensorRT's element types."""
        return next((n for trt, n in _DTYPES.items() if self.member("DataType", trt) == trt_dtype), str(trt_dtype))

    def spec(
        self, name: str, trt_dtype: Any, dims: Sequence[int], axis_name: Callable[[int], str | None] = lambda axis: None
    ) -> TensorSpec:
        """An input or output. A free dimension, -1 in `dims`, is called `axis_name(axis)` if the model names that axis."""
        shape = [int(d) if d >= 0 else axis_name(axis) or f"{name}_{axis}" for axis, d in enumerate(dims)]
        return TensorSpec(name=name, dtype=self.dtype(trt_dtype), shape=shape)


class Messages:
    """The errors that TensorRT reported from any thread. A reader gets those of its own thread, if there are any."""

    def __init__(self) -> None:
        self._errors: deque[tuple[int, str]] = deque(maxlen=100)  # safe to append to from any thread

    def add(self, message: str) -> None:
        self._errors.append((threading.get_ident(), message))

    def clear(self) -> None:
        """Forget the errors of this thread, before it begins something new."""
        mine = threading.get_ident()
        for error in [e for e in self._errors if e[0] == mine]:
            self._errors.remove(error)

    def first(self) -> str:
        """The first error, shortened by `plain`."""
        return plain(self._mine()[0])

    def last(self) -> str:
        """The last error, shortened by `plain`."""
        return plain(self._mine()[-1])

    def _mine(self) -> list[str]:
        every = list(self._errors)
        mine = [text for thread, text in every if thread == threading.get_ident()]
        return mine or [text for _, text in every] or ["TensorRT gave no reason"]


def plain(message: str) -> str:
    """One of TensorRT's messages without its prefix, error code and source position: 'IBuilder::f: Error Code 4: API
    Usage Error (what is wrong. In g at /_src/h.cpp:1)' becomes 'what is wrong'."""
    line = message.strip().partition("\n")[0]
    if inner := re.search(r"Error(?: Code[^(]*)? ?\((.*)", line):
        line = inner[1].removesuffix(")")
    line = line.partition(" In ")[0]
    return line.strip().rstrip(".;,") or message.strip()


def installed() -> dict[Flavour, str]:
    """The TensorRTs that can be imported here, with their versions."""
    found: dict[Flavour, str] = {}
    for flavour in TITLES:
        with suppress(RuntimeUnavailable):
            found[flavour] = load(flavour).version
    return found


def driver_refusal(flavour: Flavour) -> str | None:
    """Why the NVIDIA driver is too old for an installed TensorRT; None if it is not, or if either CUDA version is unknown.

    Ask before any object of TensorRT is made: where CUDA cannot start, TensorRT 11.4 returns an invalid runtime, and the
    next call crashes. A driver supports every minor version of its CUDA ("CUDA Compatibility", NVIDIA).
    """
    supported = environment.driver_cuda()
    built_for = [major for major in range(11, 20) if environment.version(f"{flavour}_cu{major}_bindings")]
    if supported is None or not built_for or supported >= max(built_for):
        return None
    return (
        f"{TITLES[flavour]} is built for CUDA {max(built_for)}, but the NVIDIA driver supports at most CUDA {supported}"
    )


def load(flavour: Flavour) -> Library:
    """Import a TensorRT.

    Raises:
        RuntimeUnavailable: it is not installed, or its libraries do not load.
    """
    try:
        library = Library(flavour, importlib.import_module(flavour))
        _ = library.version  # a stub package has none
    except (ImportError, OSError, AttributeError) as e:
        why = f" ({e})" if importlib.util.find_spec(flavour) else ""
        cure = f'pip install "r2mrf-deploy[{flavour.replace("_", "-")}]"'
        raise RuntimeUnavailable(f"{TITLES[flavour]} is not installed{why}: {cure}") from None
    return library


@cache
def logger(library: Library) -> Any:
    """The library's only logger, silent and never freed.

    TensorRT keeps the first logger of the process for every object that has none, so a second or a freed one does harm.
    It is not written in Python: TensorRT logs thousands of lines in a build, and an interpreter that runs inside its calls
    may collect garbage that belongs to TensorRT. Errors come through `record_errors`.
    """
    return library.module.Logger(library.module.Logger.INTERNAL_ERROR)


def record_errors(library: Library, owner: Any) -> Messages:
    """Make a builder or a runtime, and all objects made by it, report errors to the messages that are returned."""
    recorder, messages = _recorder(library)
    owner.error_recorder = recorder
    messages.clear()
    return messages


@cache
def _recorder(library: Library) -> tuple[Any, Messages]:
    """The library's only error recorder, never freed: TensorRT's objects use it as long as they live."""
    base: Any = library.module.IErrorRecorder
    messages = Messages()

    class Recorder(base):
        def __init__(self) -> None:
            base.__init__(self)  # the bindings need this call, not super()

        def report_error(self, code: Any, description: str) -> bool:
            messages.add(description)
            return False  # go on

        def num_errors(self) -> int:  # none: TensorRT need not read back what is kept in `messages`
            return 0

        get_num_errors = num_errors  # the parser's name for it

        def get_error_code(self, index: int) -> Any:
            return library.module.ErrorCodeTRT.SUCCESS

        def get_error_desc(self, index: int) -> str:
            return ""

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> bool:
            return True

    return Recorder(), messages
