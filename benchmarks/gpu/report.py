"""What the steps found, as one results file and a table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def lines(log: Path) -> list[Line]:
    """The steps that ended, the newest of each; a line that was cut off is left out."""
    found: dict[str, Line] = {}
    for text in log.read_text().splitlines() if log.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        found[line["step"]] = line
    return list(found.values())


def write(folder: Path, output: Path) -> None:
    """Write `table.md` into the folder, and `gpu-NAME.json` into `output`."""
    found = lines(folder / "steps.jsonl")
    roofs: dict[str, Any] = {}
    for file in sorted(folder.glob("*/*.roof.json")):
        form = file.name.removesuffix(".roof.json").removesuffix("-fp16")
        said = roofs.setdefault(file.parent.name, {})
        said |= {f"{form}-{precision}": roof for precision, roof in json.loads(file.read_text()).items()}
    card = next((line["result"] for line in found if line["step"] == "card" and line["ok"]), {})
    name = str(card.get("machine", {}).get("gpu") or "dry-run")
    stem = "gpu-" + re.sub(r"\W+", "-", name.replace("NVIDIA ", "")).strip("-").lower()
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{stem}.json").write_text(json.dumps({"steps": found, "roofs": roofs}, indent=1) + "\n")
    (folder / "table.md").write_text(table(found, roofs, name) + "\n")


def table(found: list[Line], roofs: dict[str, Any], name: str) -> str:
    """Every measurement beside its roof, and what could not be measured."""
    said = [f"# {name}", ""]
    configs = dict.fromkeys(m["config"] for line in found for m in _timings(line))
    for config in configs:
        said += [
            "",
            f"## {config}",
            "",
            "| runtime | network | median ms | images/s | of the roof | against the first |",
        ]
        said.append("|---|---|---:|---:|---:|---:|")
        for line in found:
            for timing in _timings(line):
                if timing["config"] == config:
                    said += [_row(m, roofs.get(config, {}), timing) for m in timing["measurements"]]
        said += [
            f"\n- {what} was not timed: {why}"
            for line in found
            for timing in _timings(line)
            if timing["config"] == config
            for what, why in timing["skipped"].items()
        ]
    said += [f"\n- {line['step']} failed: {line['reason']}" for line in found if not line["ok"]]
    return "\n".join(said)


def _timings(line: Line) -> list[dict[str, Any]]:
    """The benchmark that a step's result is, if it is one."""
    return [line["result"]] if "measurements" in line.get("result", {}) else []


def _row(m: dict[str, Any], roofs: dict[str, Any], timing: dict[str, Any]) -> str:
    roof = roofs.get(f"{m['form']}-{m['precision']}", {}).get("roof_ms")
    compute = m["compute"]["median"] if "compute" in m else m["latency"]["median"]
    share = f"{100 * roof / compute:.0f} %" if roof else ""
    return (
        f"| {m['runtime']} | {m['name']} | {m['latency']['median']:.2f} | {m['images_per_second']:.0f} | {share} | "
        f"{m['speed_up']:.2f} |"
    )
