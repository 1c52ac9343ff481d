"""The TensorRT that is installed: which of the two, which version, and what goes by another name in it.

`tensorrt` (8.6, 10, 11) and `tensorrt_rtx` share one Python API with names that came and went. They are looked up here
when they are needed, so that nothing else asks for a version.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections import deque
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from r2mrf_deploy import environment
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


class Messages:
    """The errors that TensorRT reported, from whatever thread: a reader gets its own thread's where there are any."""

    def __init__(self) -> None:
        self._errors: deque[tuple[int, str]] = deque(maxlen=100)  # safe to append to from any thread

    def add(self, message: str) -> None:
        self._errors.append((threading.get_ident(), message))

    def clear(self) -> None:
        """Forget this thread's errors, before it begins something new."""
        mine = threading.get_ident()
        for error in [e for e in self._errors if e[0] == mine]:
            self._errors.remove(error)

    def first(self) -> str:
        """The first error in plain words, without the library's file names."""
        return plain(self._mine()[0])

    def last(self) -> str:
        """The last error, likewise: what a long-lived runner was just told."""
        return plain(self._mine()[-1])

    def _mine(self) -> list[str]:
        every = list(self._errors)
        mine = [text for thread, text in every if thread == threading.get_ident()]
        return mine or [text for _, text in every] or ["TensorRT gave no reason"]


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


def driver_refusal(flavour: Flavour) -> str | None:
    """Why the NVIDIA driver is too old for a TensorRT that is installed; None where it is not, or where one does not say.

    It is asked before anything of TensorRT's is made: where CUDA cannot start, 11.4 returns a runtime that is none, and
    the next call crashes. A driver supports every minor version of its CUDA ("CUDA Compatibility", NVIDIA).
    """
    there = environment.driver_cuda()
    built_for = [major for major in range(11, 20) if environment.version(f"{flavour}_cu{major}_bindings")]
    if there is None or not built_for or there >= max(built_for):
        return None
    return f"{TITLES[flavour]} is built for CUDA {max(built_for)}, and the NVIDIA driver supports CUDA {there} at most"


NEWER_DRIVER = "install a newer NVIDIA driver, or the package for the driver's CUDA"


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


@cache
def logger(library: Library) -> Any:
    """The library's one logger, silent and never freed.

    TensorRT keeps the first logger of the process for whatever has none of its own, so a second or a freed one does harm.
    Nor is it written in Python: TensorRT logs thousands of lines a build, and an interpreter that runs inside its calls may
    there collect garbage that is TensorRT's. What a user must read comes through `record_errors`.
    """
    return library.module.Logger(library.module.Logger.INTERNAL_ERROR)


def record_errors(library: Library, owner: Any) -> Messages:
    """Have a builder or a runtime report its errors, and those of what it makes, and say where to read them."""
    recorder, messages = _recorder(library)
    owner.error_recorder = recorder
    messages.clear()
    return messages


@cache
def _recorder(library: Library) -> tuple[Any, Messages]:
    """The library's one error recorder, never freed: TensorRT's objects use theirs until their own end."""
    base: Any = library.module.IErrorRecorder
    messages = Messages()

    class Recorder(base):
        def __init__(self) -> None:
            base.__init__(self)  # the bindings want it called by name

        def report_error(self, code: Any, description: str) -> bool:
            messages.add(description)
            return False  # go on

        def num_errors(self) -> int:  # TensorRT asks nothing back: what was reported is kept in `messages`
            return 0

        get_num_errors = num_errors  # as the parser calls it

        def get_error_code(self, index: int) -> Any:
            return library.module.ErrorCodeTRT.SUCCESS

        def get_error_desc(self, index: int) -> str:
            return ""

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> bool:
            return True

    return Recorder(), messages
