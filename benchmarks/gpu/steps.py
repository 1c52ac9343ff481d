"""The steps that `first_minutes.py` runs, each in a process of its own.

A step returns its results as JSON values. It writes files to the folder, where later steps find them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from artifacts import export, make, minimal
from device import card, parity, smoke
from place import Config, Place, Result
from suite import files, tests
from timings import COMPILE, GRAPHS, PAIRS, PYTORCH, SUFFIXES, kernel_times, overlap, pair, timing


@dataclass(frozen=True)
class Step:
    """One step. `limit`: the seconds after which it is stopped."""

    name: str
    limit: float
    run: Callable[[Place], Result]


def steps(sizes: Sequence[tuple[int, int]], batches: Sequence[int], families: Sequence[str]) -> list[Step]:
    """All steps, the most valuable first.

    Args:
        families: the runtimes to time: "pytorch", "aotinductor", "onnxruntime", "tensorrt".
    """
    first = Config(sizes[0], batches[0])
    found = [Step("card", 60, card), Step("bindings", 60, smoke), Step("parity", 150, parity)]
    if "aotinductor" in families:
        found.append(Step("aotinductor-minimal", 200, minimal))
    suffixes = list(dict.fromkeys(SUFFIXES[family] for family in families))
    for config in (Config(size, batch) for batch in batches for size in sizes):
        if "pytorch" in families:
            ways = PYTORCH if config == first else GRAPHS
            found.append(Step(f"pytorch-{config}", 120, partial(timing, config=config, ways=ways)))
        found.append(Step(f"export-{config}", 280, partial(export, config=config, suffixes=suffixes)))
        for family in families:
            for precision, graph in PAIRS:  # a step each: a crash ends one
                name = f"{family}-{config}-{precision}{'-graph' if graph else ''}"
                found.append(Step(name, 90, partial(timing, config=config, ways=pair(family, precision, graph))))
    if "pytorch" in families:
        for what, ways in COMPILE.items():
            found.append(Step(f"compile-{first}-{what}", 280, partial(timing, config=first, ways=ways)))
        found.append(Step(f"streams-{first}", 90, partial(overlap, config=first)))
        found.append(Step(f"kernels-{first}", 90, partial(kernel_times, config=first)))
    found += [Step(f"tests-{name}", 600, partial(tests, name=name)) for name in files(families)]
    return found


def main(order: dict[str, Any]) -> None:
    """Run one step and write its result, or make one artifact and print what became of it."""
    place = Place.ordered(order["place"])
    if "make" in order:
        size, batch = order["config"]
        print(make(place, Config(tuple(size), batch), *order["make"]))
        return
    chosen = steps([tuple(s) for s in order["sizes"]], order["batches"], order["families"])
    step = next(s for s in chosen if s.name == order["step"])
    place = replace(place, result=Path(order["result"]))
    place.keep(step.run(place))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
