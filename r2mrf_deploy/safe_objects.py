"""What may lie beside the weights in a file that is read without running code from it.

`torch.load(weights_only=True)` makes tensors, numbers, texts and containers, and refuses every other class. Training
scripts also save their options and their scores. The classes here only hold values, so that making one runs nothing.
"""

from __future__ import annotations

import argparse
import pathlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_SCALAR = np.float64(0).__reduce__()[0]
"""What makes a NumPy scalar from its type and bytes; `multiarray.scalar` in every version of NumPy."""

_ALLOWED: tuple[Any, ...] = (
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdFD"},
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    # as values without a file system, so that a path of Windows can be read on Linux
    *((pathlib.PurePosixPath, f"{module}.{name}") for module in ("pathlib", "pathlib._local")
      for name in ("PosixPath", "PurePosixPath")),
    *((pathlib.PureWindowsPath, f"{module}.{name}") for module in ("pathlib", "pathlib._local")
      for name in ("WindowsPath", "PureWindowsPath")),
)  # fmt: skip
"""Classes, or (class, the name in the file that stands for it)."""

_LOCK = threading.Lock()


@contextmanager
def allowed() -> Iterator[None]:
    """Let `torch.load(weights_only=True)` make the values that lie beside weights.

    PyTorch keeps one list of allowed classes for all threads, so that only one thread is inside at a time.
    """
    with _LOCK, torch.serialization.safe_globals([*_ALLOWED]):
        yield
