"""Writes the results of the steps as one JSON file and a table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

Line = dict[str, Any]
HEAD = (
    "| runtime | network | median ms | images/s | share of the roof | speed-up over the first |",
    "|---|---|---:|---:|---:|---:|",
)


def lines(log: Path) -> list[Line]:
    """The newest result of each step. A line that was cut off is skipped."""
    found: dict[str, Line] = {}
    for text in log.read_text().splitlines() if log.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        found[line["step"]] = line
    return list(found.values())


def add(log: Path, line: Line) -> None:
    """Add a step's result, on a line of its own also if the last one was cut off."""
    text = log.read_bytes() if log.exists() else b""
    with log.open("ab") as file:
        file.write((b"" if not text or text.endswith(b"\n") else b"\n") + json.dumps(line).encode() + b"\n")


def write(folder: Path, output: Path, unnamed: str = "unknown") -> None:
    """Write `table.md` to `folder`, and `gpu-NAME.json` to `output`.

    Args:
        unnamed: the name where the steps do not tell the card's.
    """
    found = lines(folder / "steps.jsonl")
    roofs: dict[str, Any] = {}
    for file in sorted(folder.glob("*/*.roof.json")):
        form = file.name.removesuffix(".roof.json").removesuffix("-fp16")
        said = roofs.setdefault(file.parent.name, {})
        said |= {f"{form}-{precision}": roof for precision, roof in json.loads(file.read_text()).items()}
    card = next((line.get("result") or {} for line in found if line["step"] == "card"), {})
    name = str(card.get("machine", {}).get("gpu") or unnamed)
    stem = "gpu-" + re.sub(r"\W+", "-", name.replace("NVIDIA ", "")).strip("-").lower()
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{stem}.json").write_text(json.dumps({"steps": found, "roofs": roofs}, indent=1) + "\n")
    (folder / "table.md").write_text(table(found, roofs, name) + "\n")


def table(found: list[Line], roofs: dict[str, Any], name: str) -> str:
    """Every measurement with its roof, and what could not be measured."""
    said = [f"# {name}", ""]
    timings = [line["result"] for line in found if "measurements" in line.get("result", {})]
    for config in dict.fromkeys(timing["config"] for timing in timings):
        said += ["", f"## {config}"]
        own = [timing for timing in timings if timing["config"] == config]
        for timing in own:  # a table each: the speed-up is over the first that was timed beside it
            said += ["", *HEAD, *(_row(m, roofs.get(config, {})) for m in timing["measurements"])]
        said += [f"\n- {what} was not timed: {why}" for timing in own for what, why in timing["skipped"].items()]
    for line in found:
        if line["ok"] and "passed" in line["result"]:
            skipped = ", ".join(dict.fromkeys(line["result"]["skipped"].values()))
            said.append(
                f"\n- {line['step']}: {line['result']['passed']} passed" + (f"; skipped: {skipped}" if skipped else "")
            )
    said += [f"\n- {line['step']} failed: {line['reason']}" for line in found if not line["ok"]]
    return "\n".join(said)


def _row(m: dict[str, Any], roofs: dict[str, Any]) -> str:
    roof = roofs.get(f"{m['form']}-{m['precision']}", {}).get("roof_ms")
    compute = m["compute"]["median"] if "compute" in m else m["latency"]["median"]
    share = f"{100 * roof / compute:.0f} %" if roof else ""
    speed_up = "" if m["speed_up"] is None else f"{m['speed_up']:.2f}"
    return (
        f"| {m['runtime']} | {m['name']} | {m['latency']['median']:.2f} | {m['images_per_second']:.0f} | {share} | "
        f"{speed_up} |"
    )


def medians(found: dict[str, Any]) -> str:
    """Median milliseconds by configuration; where a CUDA graph runs, the share of the roof in brackets."""
    timings = [line["result"] for line in found["steps"] if "measurements" in (line.get("result") or {})]
    configs = list(dict.fromkeys(timing["config"] for timing in timings))
    rows: dict[str, dict[str, str]] = {}
    for timing in timings:
        for m in timing["measurements"]:
            rows.setdefault(_title(m), {})[timing["config"]] = _median(m, found["roofs"].get(timing["config"], {}))
    head = ["median milliseconds", *(_config(config) for config in configs)]
    lines = [[title, *(cells.get(config, "-") for config in configs)] for title, cells in sorted(rows.items())]
    rule = ["---", *["---:"] * len(configs)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


LIBRARIES = {
    "aotinductor": "AOTInductor",
    "onnxruntime-cuda": "ONNX Runtime CUDA",
    "pytorch-cuda-compile": "PyTorch, compiled",
    "tensorrt": "TensorRT",
}
"""Runtime -> what the tables call it; the others are PyTorch."""


def _title(m: dict[str, Any]) -> str:
    library = LIBRARIES.get(m["runtime"], "PyTorch")
    last = ", channels last" if "channels last" in m["device"] else ""
    graph = ", CUDA graph" if "CUDA graph" in m["name"] else ", eager" if library == "PyTorch" else ""
    return f"{library}, {m['precision'].upper()}, {m['form'] if m['form'] == 'rewritten' else 'as traced'}{last}{graph}"


def _median(m: dict[str, Any], roofs: dict[str, Any]) -> str:
    ms, roof = f"{m['latency']['median']:.2f}", roofs.get(f"{m['form']}-{m['precision']}")
    if roof is None or "CUDA graph" not in m["name"]:
        return ms
    return f"{ms} ({100 * roof['roof_ms'] / m['compute']['median']:.0f} %)"


def _config(config: str) -> str:
    """`427x640-b16` -> 640×427, batch 16: width first, as photographs' sizes are said."""
    size, batch = config.split("-b")
    height, width = size.split("x")
    return f"{width}×{height}" + (f", batch {batch}" if batch != "1" else "")
