"""What the commands share: consoles, options that several have, and the texts that options are written in."""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.main
from rich.console import Console

from r2mrf_deploy.errors import InputError, UsageError
from r2mrf_deploy.progress import ProgressCallback

app = typer.Typer(
    name="r2mrf",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Recurrent defocus-blur detectors from PyTorch to ONNX, TensorRT and OpenVINO, with proof of parity.",
    epilog="--debug after any command shows the traceback of an error.",
)
out = Console(width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True)

White = Literal["sharp", "blurred"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Set a field of the network's config.")]
Network = Annotated[str | None, typer.Option("--network", help="Network of a plain state dict.")]
Images = Annotated[
    Path | None,
    typer.Option("--images", help="Folder of photographs; by default those of scikit-image."),
]
Record = Annotated[
    bool, typer.Option("--record/--no-record", help="Record the figures in the manifests of the artifacts.")
]
Trust = Annotated[bool, typer.Option("--trust", help="Open a plan or a .pt2 package that has no manifest.")]
Buffers = Annotated[
    Literal["cuda-python", "pycuda"] | None,
    typer.Option("--buffers", help="Package that allocates and copies on the GPU."),
]
RuntimeCache = Annotated[
    Path | None, typer.Option("--runtimeCache", help="File that keeps what was compiled for this GPU.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of one inference.")]
Runtime = Annotated[
    str | None, typer.Option("--runtime", help="Runtime: pytorch, onnxruntime, openvino, tensorrt, ...")
]


Precision = Annotated[
    Literal["fp32", "fp16", "bf16", "int8"], typer.Option("--precision", help="Precision of the graph.")
]
Calibration = Annotated[
    Path | None, typer.Option("--calibration", help="Folder of photographs like those to come; 300 are recommended.")
]
Method = Annotated[
    Literal["minmax", "entropy", "percentile"] | None,
    typer.Option("--method", help="How INT8 finds ranges; by default percentile."),
]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", metavar="NAME", help="Node or scope (step1.branch5) that stays in higher precision."),
]
QuantizeEnds = Annotated[bool, typer.Option("--quantize-ends", help="Quantise the first and the last layers too.")]
MaxDrop = Annotated[
    float | None, typer.Option("--max-drop", help="Keep the fewest nodes for which MAE and F drop no more than this.")
]
Resume = Annotated[Path | None, typer.Option("--resume", help="File that keeps a search, so that it can be resumed.")]
Gpus = Annotated[list[str] | None, typer.Option("--gpu", metavar="NAME", help="GPU class to build for, e.g. rtx3090.")]


def command(arguments: Sequence[str]) -> Any:
    """The command that arguments begin with; None where they begin with none."""
    return getattr(typer.main.get_command(app), "commands", {}).get(*arguments[:1]) if arguments else None


RUNNING: ContextVar[Any] = ContextVar("RUNNING", default=None)
"""The command that is running."""


def with_flags(text: str) -> str:
    """A text of the library with its parameters as the running command's flags: `max_drop` becomes --max-drop."""
    of = RUNNING.get()
    names = (
        {p.name: max(p.opts, key=len) if p.opts[0][:1] == "-" else p.metavar or p.name for p in of.params} if of else {}
    )
    return re.sub(r"`(\w+)`", lambda m: names.get(m[1], m[0]), text)


def line(text: str, to: Console | None = None, style: str | None = None) -> None:
    """Print one line as it is, whatever it holds; parameters of the library become flags."""
    (to or out).print(with_flags(text), style=style, markup=False, highlight=False, soft_wrap=True)


def model_file(text: str) -> Path:
    """The file that an argument means: its path, or the shipped weights of that name.

    Raises:
        InputError: there is neither, and something nearby has nearly that name.
    """
    from r2mrf_deploy import weights

    path = Path(text)
    if path.is_file() or any(c in text for c in "*?["):
        return path
    shipped = weights.find(text)
    if shipped is None and not path.exists():
        _refuse_mistaken(path)
    return shipped or path


def _refuse_mistaken(path: Path) -> None:
    """Raise where what is not there is a network's name, or nearly the name of something that is."""
    from r2mrf_deploy import weights

    text = str(path)
    known: Collection[str] = ()
    if (
        path.name == text and not path.suffix and importlib.util.find_spec("torch")
    ):  # torch: not needed to run artifacts
        from r2mrf_deploy import networks

        known = networks.presets()
    if text in known:
        raise UsageError(f"{text}: no weights are shipped for it; train some (r2mrf train {text}) or r2mrf init {text}")
    beside = map(str, path.parent.iterdir()) if path.parent.is_dir() else ()
    if near := difflib.get_close_matches(text, {*known, *weights.SHIPPED, *beside}, n=1, cutoff=0.55):
        what = "no such file" if path.suffix else "no such file, and no shipped weights"
        raise InputError(f"{text}: {what}; did you mean {near[0]!r}?")


def graph_file(text: str) -> Path:
    """The ONNX file that an argument means. The name of shipped weights means none, and says how to make one."""
    from r2mrf_deploy import weights

    if not (path := Path(text)).exists() and text in weights.SHIPPED:
        raise UsageError(f"{text} is the name of shipped weights, no graph: export it first: r2mrf export {text}")
    return path


def default_output(checkpoint: Path) -> Path | None:
    """Where an export of shipped weights goes by default: nothing is written beside those."""
    from r2mrf_deploy import weights

    return Path(f"{checkpoint.stem}.onnx") if checkpoint == weights.find(checkpoint.stem) else None


def parse_settings(pairs: list[str] | None) -> dict[str, str]:
    settings = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: write it as name=value")
        settings[name.strip()] = value.strip()
    return settings


def parse_size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UsageError(f"--size {text}: write height x width in pixels, as 320x320")
    return int(height), int(width)


def parse_numbers(option: str, text: str, example: str) -> tuple[float, ...]:
    try:
        return tuple(float(n) for n in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text}: give numbers, as {example}") from None


def parse_duration(option: str, text: str) -> float:
    """Seconds of HH:MM:SS, MM:SS or SS."""
    parts = text.split(":")
    if not all(part.isdigit() for part in parts) or len(parts) > 3:
        raise UsageError(f"{option} {text}: write it as HH:MM:SS")
    return float(sum(int(part) * 60**n for n, part in enumerate(reversed(parts))))


@contextmanager
def shown_progress() -> Iterator[ProgressCallback]:
    """A line on the terminal that says what is being done, with a bar; nothing where there is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    text = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), text)
    with Bar(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda p: bar.update(task, description=p.description, completed=p.done, total=p.total)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
