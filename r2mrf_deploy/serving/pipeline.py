"""The two ends of a served pipeline: a file's bytes become a network's input, and its map becomes the photograph's.

They are `predict`'s own steps, so that a client that sends a file gets what `predict` writes, to the byte.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import get_args

import numpy as np

from r2mrf_deploy import images
from r2mrf_deploy.errors import ArtifactError, InputError
from r2mrf_deploy.fitting import Fitting, as_input, largest
from r2mrf_deploy.manifest import NEUTRAL, Contract
from r2mrf_deploy.predict.photographs import decoded_side
from r2mrf_deploy.predict.regions import regions
from r2mrf_deploy.predict.scores import Scores, Verdict
from r2mrf_deploy.predictor import Focus

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
MOST_BYTES = 64 << 20
"""The largest file that is decoded."""
MOST_PIXELS = 100_000_000
"""The most pixels of a photograph: as many as are decoded in about 0.3 GB of memory."""
NAME = "the file"
"""What messages call a client's photograph."""


@dataclass(frozen=True)
class Limits:
    """How large a client's file may be. Both are checked before anything is decoded."""

    bytes: int = MOST_BYTES
    pixels: int = MOST_PIXELS


def decode(content: bytes, contract: Contract, limits: Limits) -> tuple[np.ndarray, tuple[int, int]]:
    """A photograph in a file as the network's input, and its (height, width).

    Returns:
        The input of a batch of one, as `as_input` makes it; and the size of the upright photograph.

    Raises:
        InputError: it is empty, no picture, damaged, or larger than the limits.
    """
    if not content:
        raise InputError(f"{NAME} is empty")
    if len(content) > limits.bytes:
        raise InputError(f"{NAME} has {len(content):,} bytes, and at most {limits.bytes:,} are taken")
    height, width = images.size(content, name=NAME)
    if height * width > limits.pixels:
        raise InputError(f"{NAME} has {height * width:,} pixels, and at most {limits.pixels:,} are taken")
    spec, preprocess = contract.inputs[0], contract.preprocess or NEUTRAL
    profile = contract.profile(spec.name)
    photograph = images.load(content, decoded_side(largest(spec, preprocess, profile)), name=NAME)
    return as_input(photograph.pixels, spec, preprocess, profile)[:1], photograph.size


def draw(
    network_map: np.ndarray,
    size: tuple[int, int],
    contract: Contract,
    wanted: Collection[str],
    limits: Limits,
) -> dict[str, np.ndarray | bytes]:
    """What a client gets of a photograph.

    Args:
        network_map: float [h, w], the network's, of its whole input.
        size: the photograph's (height, width).
        wanted: which of these are made. `png`: the map at the photograph's size, as `predict` writes it. `map`: float32
            [h, w] at the scale of the network. `scores`: JSON, as in `predict`'s tables. `verdict`: float32 [4], which is 1
            for one of `VERDICTS`.

    Raises:
        InputError: there is no such size, or it is over the limits.
        ArtifactError: the map is not finite.
    """
    if min(size) < 1 or size[0] * size[1] > limits.pixels or not network_map.size:
        raise InputError(f"a map of {size[0]}x{size[1]} cannot be drawn: at most {limits.pixels:,} pixels are")
    if not np.isfinite(network_map).all():
        raise ArtifactError("the map is not finite: the artifact's weights or its normalisation are damaged")
    spec = contract.inputs[0]
    fitting = Fitting.of(size, spec, contract.preprocess or NEUTRAL, contract.profile(spec.name))
    focus = Focus(size, (fitting.content_of(network_map.astype(np.float32)),))
    found: dict[str, np.ndarray | bytes] = {}
    if "png" in wanted:
        found["png"] = images.png(images.grey(focus.at(size)))
    if rest := {"map", "scores", "verdict"} & set(wanted):
        small = focus.at(focus.shape)
        scores = Scores.of(small, size, None, regions(small, size)) if rest - {"map"} else None
        found["map"] = small
        if scores is not None:
            found["scores"] = json.dumps(scores.to_dict()).encode()
            found["verdict"] = np.array([scores.verdict == each for each in VERDICTS], np.float32)
    return {name: value for name, value in found.items() if name in wanted}
