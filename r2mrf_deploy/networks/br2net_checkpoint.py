"""The checkpoints of BR²Net's authors: plain state dicts of their code, renamed to ours.

Their backbone is a ResNeXt converted from Torch 7. A block there is Sequential(table of branches, sum, ReLU). Its first
branch is Sequential(Sequential(conv, norm, ReLU, conv, norm, ReLU), conv, norm), its second the downsampling, if any. Every
name is a path of indices. Source: github.com/ChangTang/BR2Net, `model.py` and `resnext/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from r2mrf_deploy.networks.base import COUNTER, Adopted, Shapes

_BLOCK = r"layer([1-4])\.(\d+)\.0"
_RLRM = ("conv1", "norm1", "act1", "conv2", "norm2", "act2", "residual")

RULES: tuple[tuple[str, str], ...] = (
    (r"layer0\.0", r"backbone.body.conv1"),
    (r"layer0\.1", r"backbone.body.bn1"),
    (_BLOCK + r"\.0\.0\.0", r"backbone.body.layer\1.\2.conv1"),
    (_BLOCK + r"\.0\.0\.1", r"backbone.body.layer\1.\2.bn1"),
    (_BLOCK + r"\.0\.0\.3", r"backbone.body.layer\1.\2.conv2"),
    (_BLOCK + r"\.0\.0\.4", r"backbone.body.layer\1.\2.bn2"),
    (_BLOCK + r"\.0\.1", r"backbone.body.layer\1.\2.conv3"),
    (_BLOCK + r"\.0\.2", r"backbone.body.layer\1.\2.bn3"),
    (_BLOCK + r"\.1\.(\d)", r"backbone.body.layer\1.\2.downsample.\3"),
    (r"CAlayer(\d)\.0\.conv_du\.0", r"attention.\1.squeeze"),
    (r"CAlayer(\d)\.0\.conv_du\.2", r"attention.\1.excite"),
    (r"predictL2H0", r"l2h.first"),
    (r"predictH2L0", r"h2l.first"),
    *(
        (rf"predict{theirs}{k}\.{i}", f"{ours}.later.{k - 1}.{name}")
        for theirs, ours in (("L2H", "l2h"), ("H2L", "h2l"))
        for k in range(1, 5)
        for i, name in enumerate(_RLRM)
    ),
)
"""Module of theirs, as a regular expression -> module of ours."""


def ours(name: str) -> str | None:
    """Our name for one of the authors' parameters or buffers; None if it is not one of theirs."""
    if not name.startswith(("layer", "CAlayer", "predict")):
        return None
    module, _, leaf = name.rpartition(".")
    for pattern, replacement in RULES:
        if found := re.fullmatch(pattern, module):
            return f"{found.expand(replacement)}.{leaf}"
    return None


def adopt(state: Mapping[str, Tensor], shapes: Callable[[bool], Shapes]) -> Adopted | None:
    """The authors' state dict with our names, or None if it is not one of theirs.

    `RULES` map the names. If a copy of their code names its modules differently, the structure decides: the same shapes in
    the same order, which is the order of computation in both. What has no place keeps its name.

    Their code has two versions. The older one, before the commit "Update model.py", has no channel attention, and its map in
    evaluation is the sigmoid of the last L2H map, not of the fusion.

    Args:
        shapes: those of our network, with attention or without.
    """
    given = {k: v for k, v in state.items() if not k.endswith(COUNTER)}
    names = {k: name for k in given if (name := ours(k)) is not None}
    if len(names) < len(given):
        names = next(filter(None, (_in_order(given, shapes(attention)) for attention in (True, False))), names)
    if 2 * len(names) <= len(given):
        return None
    adopted = {names.get(k, k): v for k, v in given.items()}
    means = [k for k in names.values() if k.endswith("running_mean")]
    adopted |= {k.replace("running_mean", COUNTER): torch.tensor(0) for k in means}
    older = not any(name.startswith("attention.") for name in names.values())
    return adopted, {"attention": False, "output": "l2h"} if older else {}


def _in_order(given: Mapping[str, Tensor], shapes: Shapes) -> dict[str, str]:
    """Our name for each tensor, if all have our shapes in our order and none has our name."""
    wanted = {k: v for k, v in shapes.items() if not k.endswith(COUNTER)}
    if given.keys() & wanted.keys() or [tuple(v.shape) for v in given.values()] != list(wanted.values()):
        return {}
    return dict(zip(given, wanted, strict=True))
