"""Tests and times the network on a GPU, the most valuable steps first, each in a process of its own.

    python benchmarks/gpu/first_minutes.py

Every step adds a line of JSON to `steps.jsonl`, and then the table and the results file are written anew. A step that
hangs is stopped at its time limit. If a step fails, its line says why, and the others still run. A new run continues
where the last one ended. With `--dry-run` all steps run on the CPU with a small network, and write the same files.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import report  # noqa: E402
import steps as all_steps  # noqa: E402
from place import Place  # noqa: E402
from timings import NOT_MADE  # noqa: E402

from r2mrf_deploy.files import write_atomically  # noqa: E402
from r2mrf_deploy.runtimes.pytorch.cuda import cuda_availability  # noqa: E402

SMALL = {"steps": "2", "width": "4", "amdf_channels": "8", "initial_channels": "8"}
MINIMAL = "aotinductor-minimal"
FAMILIES = ("pytorch", "aotinductor", "onnxruntime", "tensorrt")


def main() -> None:
    given = _parser().parse_args()
    sizes = [_size(s) for s in given.size or (["65x96"] if given.dry_run else ["320x320", "427x640"])]
    batches = given.batch or ([1] if given.dry_run else [1, 16])
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(folder, "cuda", given.network, (), given.seconds)
    if given.dry_run:
        place = Place(folder, "cpu", "r2mrf-edge", tuple(SMALL.items()), 0.1)
    families = given.runtimes or list(FAMILIES)
    order = {"place": place.order(), "sizes": sizes, "batches": batches}
    _refuse_other(folder, order["place"] | {"card": None if given.dry_run else _card()})
    log = folder / "steps.jsonl"
    done = {line["step"] for line in report.lines(log) if _is_done(line, given.again)}
    if not given.dry_run:
        _refuse_without_gpu()
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: what runs is stopped too
        signal.signal(number, lambda *_: sys.exit(1))
    end = time.monotonic() + given.minutes * 60
    for step in all_steps.steps(sizes, batches, families):
        wanted = not given.only or any(fnmatch.fnmatch(step.name, pattern) for pattern in given.only)
        if step.name in done or not wanted:
            continue
        order["families"] = families if step.name == MINIMAL else _unbroken(families, report.lines(log))
        if "aotinductor" in step.name and "aotinductor" not in order["families"]:
            continue
        if (left := end - time.monotonic()) < 5:
            print(f"the {given.minutes:g} minutes are over: run this again to continue with {step.name}")
            break
        limit = step.limit * (4 if given.dry_run else 1)
        line = run(step, folder, order, min(limit, left))
        if left < limit and not line["ok"] and time.monotonic() > end:
            print(f"the {given.minutes:g} minutes are over: run this again to repeat {step.name}")
            break
        report.add(log, line)
        print(f"{step.name}: {'done' if line['ok'] else line['reason']} ({line['seconds']:.1f} s)", flush=True)
        report.write(folder, given.output or folder, "dry-run" if given.dry_run else "unknown")
    print((folder / "table.md").read_text() if (folder / "table.md").exists() else "there are no results yet")


def _is_done(line: report.Line, again: bool) -> bool:
    """Whether a step need not run again: it did, and the artifacts that it wanted were there."""
    whys = [line.get("reason", ""), *(line.get("result") or {}).get("skipped", {}).values()]
    return (line["ok"] or not again) and not any(NOT_MADE in why for why in whys)


def _unbroken(families: list[str], lines: list[report.Line]) -> list[str]:
    """The families without AOTInductor where its smallest package failed: others would only take time."""
    broken = any(line["step"] == MINIMAL and not line["ok"] for line in lines)
    return [family for family in families if not (broken and family == "aotinductor")]


def run(step: Any, folder: Path, order: dict[str, Any], limit: float) -> dict[str, Any]:
    """Run one step in a process of its own, and return its line."""
    result, started = folder / f"{step.name}.json", time.monotonic()
    result.unlink(missing_ok=True)
    command = json.dumps(order | {"step": step.name, "result": str(result)})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1"}
    environment["LD_PRELOAD"] = ":".join(filter(None, (native_stack(folder), os.environ.get("LD_PRELOAD"))))
    with (folder / f"{step.name}.log").open("w") as log:
        program = [sys.executable, "-X", "faulthandler", str(HERE / "steps.py"), command]
        process = subprocess.Popen(
            program, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(limit)
            reason = "" if code == 0 and result.exists() else _why(code, folder / f"{step.name}.log")
        except subprocess.TimeoutExpired:
            reason = f"it was stopped after {limit:.0f} s"
        finally:
            _end(process)
    line = {"step": step.name, "ok": not reason, "seconds": time.monotonic() - started}
    if reason:
        line["reason"] = reason
    with contextlib.suppress(OSError, ValueError):  # of a step that failed, what it had found until then
        line["result"] = json.loads(result.read_text())
    return line


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a step and everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def native_stack(folder: Path) -> str | None:
    """The library that prints the native stack of a crash; None if there is no C compiler to make it."""
    library, compiler = folder / "native_stack.so", shutil.which("cc") or shutil.which("g++")
    if not library.exists() and compiler:
        source = HERE / "native_stack.c"
        subprocess.run([compiler, "-x", "c", "-shared", "-fPIC", "-o", str(library), str(source)], capture_output=True)
    return str(library) if library.exists() else None


def _why(code: int, log: Path) -> str:
    """Why a step failed: the last line of its log, or where it crashed, in Python and below it."""
    found = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if code < 0:
        where = next((line for line in found if line.startswith("File ")), "")
        title = next((n for n, line in enumerate(found) if line.startswith("Native stack")), len(found))
        ours = ("native_stack.so", "libc.so")  # the handler itself, and how it was called
        native = next((line for line in found[title + 1 :] if not any(name in line for name in ours)), "")
        return ", ".join(filter(None, (f"it crashed with signal {-code}", where, native)))
    return found[-1][:500] if found else f"it ended with exit code {code}"


def _refuse_other(folder: Path, place: dict[str, Any]) -> None:
    """Refuse a folder with results of another network, device or card."""
    kept, same = folder / "order.json", ("device", "card", "network", "settings")
    now = json.loads(json.dumps({key: place[key] for key in same}))
    if kept.exists() and json.loads(kept.read_text()) != now:
        raise SystemExit(f"{folder} holds results for {json.loads(kept.read_text())}: choose another --folder")
    write_atomically(kept, json.dumps(now).encode())


def _card() -> str | None:
    """The name and the identifier of the card; None if PyTorch has none."""
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"{found.name} {getattr(found, 'uuid', '')}".strip()


def _refuse_without_gpu() -> None:
    """Without a GPU, or a PyTorch for it, every step would fail, and be taken for done."""
    if not (state := cuda_availability()).ok:
        raise SystemExit(f"{state.reason}; {state.cure}, or use --dry-run")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise SystemExit(f"--size {text}: write it as 320x320, height first")
    return int(height), int(width)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    several = "may be given several times"
    parser.add_argument("--folder", type=Path, default=Path("out/gpu"), help="where all files are written")
    parser.add_argument("--output", type=Path, help="where to write gpu-NAME.json (default: --folder)")
    parser.add_argument("--network", default="r2mrf", help="a preset")
    parser.add_argument("--size", action="append", help=f"height x width, such as 320x320; {several}")
    parser.add_argument("--batch", action="append", type=int, help=several)
    parser.add_argument("--runtimes", action="append", choices=FAMILIES, help=f"time only these; {several}")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each candidate")
    parser.add_argument("--minutes", type=float, default=60.0, help="start no step after this time")
    parser.add_argument("--only", action="append", metavar="PATTERN", help="run only such steps, as 'pytorch-*'")
    parser.add_argument("--again", action="store_true", help="run failed steps again")
    parser.add_argument("--dry-run", action="store_true", help="run all steps on the CPU, with a small network")
    return parser


if __name__ == "__main__":
    main()
