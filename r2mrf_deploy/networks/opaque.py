"""When a network's operators are opaque: traced as one operator each, by torch.export only."""

from __future__ import annotations

import torch


def exporting() -> bool:
    """Whether torch.export is tracing.

    In PyTorch 2.11, though not in 2.15, `is_exporting` is true under torch.compile as well, which is to see and fuse what is
    inside an operator.
    """
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
