"""Makes the artifacts that are timed, and computes their rooflines on the card."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from place import FORMS, Config, Place, Result

from r2mrf_deploy import budget, environment, runtimes
from r2mrf_deploy.errors import R2mrfError, RuntimeUnavailable
from r2mrf_deploy.export.aotinductor import cuda_home
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.convert import convert_artifact
from r2mrf_deploy.export.options import ExportOptions, PrecisionOptions
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.graph import files
from r2mrf_deploy.runtimes.tensorrt.options import BuildOptions

PROGRAM = Path(__file__).with_name("steps.py")
"""Makes one artifact in a process of its own."""


def minimal(place: Place) -> Result:
    """Make, load and run PyTorch's own packages of one convolution: whether a crash is PyTorch's. Of this project it takes
    only where CUDA's toolkit is.

    The log says how far it came. The library in a package asks for an executable stack because of the assembly file with the
    constants; loading one for the CPU beside CUDA, and one for the GPU whose constants are C++, tells whether that matters.
    """
    import torch

    ways: list[tuple[str, dict[str, bool]]] = [("cpu", {})]
    if place.device != "cpu":
        ways += [("cpu", {}), (place.device, {"aot_inductor.use_consts_asm_build": False}), (place.device, {})]
    found: Result = {}
    for number, (device, settings) in enumerate(ways):
        name = f"minimal-{number}-{device}{'-plain' if settings else ''}"
        if number:
            torch.zeros(1, device=place.device)  # CUDA's threads are there
        path, image = place.folder / f"{name}.pt2", torch.rand(1, 3, 64, 96, device=device)
        module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU()).to(device).eval()
        with torch.no_grad(), cuda_home(device):
            print(f"making {path.name}")
            exported = torch.export.export(module, (image,))
            torch._inductor.aoti_compile_and_package(exported, package_path=str(path), inductor_configs=settings)
            print(f"loading {path.name}")
            package = torch._inductor.aoti_load_package(str(path))
            print(f"running {path.name}")
            found[name] = float((package(image) - module(image)).abs().max())
    return found


def export(place: Place, config: Config, suffixes: Sequence[str]) -> Result:
    """Make artifacts of the traced and the rewritten network in FP32 and FP16, several at once.

    Each is made in a process of its own, so that a compiler that crashes loses only its own artifact.
    """
    (place.folder / str(config)).mkdir(parents=True, exist_ok=True)
    _ = place.checkpoint  # made once, before the processes need it

    def make(form: str, half: bool, suffix: str) -> tuple[str, bool, str, str]:
        path = place.artifact(config, form, half, suffix)
        log = path.with_name(path.name + ".log")
        order = {"place": place.order(), "config": [config.size, config.batch], "make": [form, half, suffix]}
        command = [sys.executable, "-X", "faulthandler", str(PROGRAM), json.dumps(order)]
        with log.open("w") as output:
            code = subprocess.run(command, stdout=output, stderr=output).returncode
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        return form, half, suffix, last[0] if not code and last else f"exit code {code}: {' '.join(last)}"

    found: Result = {}
    with ThreadPoolExecutor(max(1, min(6, environment.cores() // 2))) as pool:
        waiting = {pool.submit(make, form, False, ".onnx") for form in FORMS}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for form, half, suffix, said in (job.result() for job in done):
                path = place.artifact(config, form, half, suffix)
                found[path.name] = said
                if suffix == ".onnx" and path.exists():  # the others are made from it
                    further = [] if half else [(True, ".onnx")]
                    further += [(half, other) for other in suffixes if other != ".onnx"]
                    waiting |= {pool.submit(make, form, h, other) for h, other in further}
    return found


def make(place: Place, config: Config, form: str, half: bool, suffix: str) -> str:
    """Make one file unless it exists, and return what became of it."""
    path, source = (place.artifact(config, form, half, s) for s in (suffix, ".onnx"))
    said = "already there" if path.exists() else _made(place, config, form, half, path, source)
    roof_file = path.with_suffix(".roof.json")
    if suffix == ".onnx" and path.exists() and not roof_file.exists():
        with suppress(RuntimeUnavailable):  # the card is not in the table: its times have no roof beside them
            write_atomically(roof_file, json.dumps(roof(place, path)).encode())
    return said


def _made(place: Place, config: Config, form: str, half: bool, path: Path, source: Path) -> str:
    suffix = path.suffix
    try:
        if suffix == ".plan" and not (state := runtimes.get("tensorrt").availability()).ok:
            raise RuntimeUnavailable(f"nothing on this machine runs a plan: {state.reason}")
        if suffix != ".onnx":
            device = place.device if suffix == ".pt2" else None
            exact = BuildOptions(no_tf32=True) if suffix == ".plan" and not half else None
            made = build_artifact(source, path, options=exact, device=device, allow_failed_parity=half)  # type: ignore[arg-type]
        elif half:
            fp32 = place.artifact(config, form, False, ".onnx")
            # random weights may fail, and are timed all the same
            made = convert_artifact(fp32, path, PrecisionOptions("fp16"), allow_failed_parity=True)
        else:
            options = ExportOptions(config.size, batch=config.batch, optimize=FORMS[form])
            made = export_artifact(place.checkpoint, path, options)
    except R2mrfError as e:
        return str(e)
    return made.parity.verdict if made.parity else "made"


def roof(place: Place, onnx: Path) -> Result:
    """The least time in milliseconds that a graph takes on this card by its published figures, in each precision."""
    card_class, graph, found = place.card(), budget.Graph.of(onnx.stem, files.read(onnx)), {}
    half = onnx.stem.endswith("-fp16")
    if half and card_class.tflops["fp16"] < card_class.tflops["fp32"]:
        return {}
    for precision in ("fp16",) if half else ("fp32", "tf32"):
        said = budget.predict(graph, budget.Roof.of(card_class, tf32=precision == "tf32"))
        found[precision] = {"roof_ms": said.roof, "multiply_adds": said.multiply_adds, "kernels": said.kernels}
    return found
