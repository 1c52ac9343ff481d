"""Protocols: what the figures of a published table fix beside the photographs, and the figures that were published so.

The literature does not agree on a protocol. The F of the same maps can differ by 0.05 from one to the next, so a figure of
one may only stand beside figures of the same.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from r2mrf_deploy.datasets import KNOWN
from r2mrf_deploy.errors import UsageError, did_you_mean
from r2mrf_deploy.metrics import Positive, Scores

FIGURES = Path(__file__).parent / "data" / "published.json"
"""The published rows, each with its source."""


@dataclass(frozen=True)
class Protocol:
    """How maps are computed and scored. MAE is the same in all: the mean of each photograph, then over the photographs."""

    name: str
    positive: Positive
    """The positive class of precision and recall."""
    f: Literal["f_max", "f_adaptive", "f_half"]
    """The F-measure that stands for its F."""
    size: tuple[int, int] | None
    """Height and width that every photograph is stretched to; None: as each method takes it."""
    about: str
    """Where it is from and what it leaves open, in words."""

    def f_of(self, scores: Scores) -> float:
        return getattr(scores, self.f)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol(
            "common",
            positive="blurred",
            f="f_half",
            size=(320, 320),
            about="as in D-DFFNet's test code, photographs are stretched to 320x320, and F is f_half",
        ),
        # The paper says no more than "F-measure scores (F_β)", and of the input only "for each input image, we feed it into
        # our network". A threshold that is the best for the test masks flatters, so f_max is not taken.
        Protocol(
            "r2mrf",
            positive="sharp",
            f="f_adaptive",
            size=None,
            about="as in Table 1 of the paper, which does not say which F it prints; f_adaptive is taken",
        ),
    )
}


TABLE1 = {
    "ASVB": "asvb",
    "SVD": "svd",
    "JNB": "jnb",
    "DBDF": "dbdf",
    "SS": "ss",
    "LBP": "lbp",
    "KSFV": "ksfv",
    "DHDE": "dhde",
    "HiFST": "hifst",
    "BTBNet": "btbnet",
    "DeFusionNet": "defusionnet",
    "R²MRF": "r2mrf",
}
"""The rows of Table 1 of the R²MRF paper in its order, and what computes each: a baseline or a network."""


@dataclass(frozen=True)
class Published:
    """One published row."""

    method: str
    authors: str
    venue: str
    """Of the method's paper, with the year; empty if the source leaves open which of several papers it is."""
    dataset: str
    """A key of `datasets.KNOWN`."""
    split: str
    protocol: str
    f: float
    mae: float
    source: str
    """Where the figures are printed. It need not be the paper of the method."""
    note: str = ""
    """What a reader should know before comparing with it."""

    @property
    def title(self) -> str:
        return f"{self.method} ({self.venue})" if self.venue else self.method

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def get(name: str) -> Protocol:
    """The protocol of a name. Raises UsageError if there is none."""
    if name not in PROTOCOLS:
        raise UsageError(f"no protocol {name!r}: {did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def positive_class(protocol: Protocol | None, positive: Positive | None) -> Positive:
    """The positive class: as given, or the protocol's; what is in focus if neither says.

    Raises:
        UsageError: the two contradict each other.
    """
    if protocol is not None and positive not in (None, protocol.positive):
        raise UsageError(
            f"`positive` {positive} contradicts `protocol` {protocol.name}, whose positive class is {protocol.positive}: "
            "leave one of them out"
        )
    return positive or (protocol.positive if protocol else "sharp")


def published(protocol: Protocol, dataset: str) -> list[Published]:
    """The rows published under a protocol for a dataset (a key of `datasets.KNOWN`, or empty)."""
    name = KNOWN[dataset].copy_of or dataset if dataset else ""
    return [row for row in read_published() if (row.protocol, row.dataset) == (protocol.name, name)]


def table1(dataset: str) -> list[Published]:
    """The twelve rows of Table 1 of the R²MRF paper for a dataset (a key of `datasets.KNOWN`, or empty), in its order.

    Raises:
        UsageError: the table has no figures of the dataset.
    """
    if found := published(PROTOCOLS["r2mrf"], dataset):
        return found
    have = [name for name in KNOWN if published(PROTOCOLS["r2mrf"], name)]
    raise UsageError(f"`table1` has figures of {', '.join(have)}: name yours with `dataset`")


def read_published() -> list[Published]:
    """All published rows, in the order of the file."""
    return [Published(**row) for row in json.loads(FIGURES.read_text(encoding="utf-8"))]
