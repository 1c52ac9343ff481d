"""PyTorch's part of a device made of host memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from host_cuda import HostCuda


class HostTorch(HostCuda):
    """PyTorch on a CPU computes as it is called, so a graph here is the call."""

    capturable = True

    def on(self, stream: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def tensor(self, address: int, shape: Sequence[int], dtype: np.dtype[Any]) -> torch.Tensor:
        size = int(np.prod(shape)) * dtype.itemsize
        return torch.from_numpy(self.memory(address, size).view(dtype).reshape(shape))

    def capture(self, stream: Any, work: Callable[[], bool]) -> Any | None:
        if not self.capturable:
            return None
        graph = super().capture(stream, work)
        return None if graph is None else [work]
