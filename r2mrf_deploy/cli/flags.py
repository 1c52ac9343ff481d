"""Options that several commands share, each declared once, and how their texts are read.

An option without a name has its parameter's: `max_drop` is --max-drop.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Context, Option

from r2mrf_deploy import weights
from r2mrf_deploy.checkpoint_files import Loading
from r2mrf_deploy.cli import values
from r2mrf_deploy.cli.help import Group
from r2mrf_deploy.errors import InputError, UsageError, no_file, reading

if TYPE_CHECKING:
    from r2mrf_deploy.runtimes.kserve.connection import Connection

White = Literal["sharp", "blurred"]

Json = Annotated[bool, Option("--json", help="Print one JSON document and nothing else.")]
Set = Annotated[
    list[str] | None,
    Option("--set", metavar="K=V", help="Set a field of the network's config.", rich_help_panel=Group.CHECKPOINT),
]
Network = Annotated[
    str | None,
    Option(
        help="Network of a plain state dict.",
        autocompletion=values.one_of(values.PRESETS),
        rich_help_panel=Group.CHECKPOINT,
    ),
]
WeightsKey = Annotated[
    str | None,
    Option(
        metavar="KEY",
        help="Key of the weights in the file (ema, state_dict.net), where several fit.",
        rich_help_panel=Group.CHECKPOINT,
    ),
]
Rename = Annotated[
    list[str] | None,
    Option(
        metavar="FROM=TO",
        help="Replace a part of the tensors' names, by a regular expression; repeat it for several.",
        rich_help_panel=Group.CHECKPOINT,
    ),
]
Images = Annotated[Path | None, Option(help="Folder of photographs; by default those of scikit-image.")]
Record = Annotated[
    bool,
    Option(
        "--record/--no-record",
        help="Record the figures in the manifests of the artifacts.",
        rich_help_panel=Group.OUTPUT,
    ),
]
Cache = Annotated[
    bool,
    Option(
        "--cache/--no-cache",
        help="Keep what the runtime compiled in a folder of yours, to start sooner.",
        rich_help_panel=Group.RUNTIME,
    ),
]
Trust = Annotated[
    bool,
    Option("--trust", help="Open a plan, a package or a page that has no manifest.", rich_help_panel=Group.RUNTIME),
]
Threads = Annotated[int | None, Option(min=1, help="CPU threads of the inferences.", rich_help_panel=Group.RUNTIME)]
Runtime = Annotated[
    str | None,
    Option(
        help="Runtime: pytorch, onnxruntime, openvino, tensorrt, ...", autocompletion=values.one_of(values.RUNTIMES)
    ),
]
Buffers = Annotated[
    Literal["cuda-python", "pycuda"] | None,
    Option(help="Package that allocates and copies on the GPU.", rich_help_panel=Group.RUNTIME),
]
RuntimeCache = Annotated[
    Path | None,
    Option("--runtimeCache", help="File that keeps what was compiled for this GPU.", rich_help_panel=Group.RUNTIME),
]

Server = Annotated[
    str | None,
    Option(
        metavar="URL",
        help="A model on an inference server (KServe v2): http://HOST:8000/NAME, grpc://HOST/NAME.",
        rich_help_panel=Group.SERVER,
    ),
]
Deadline = Annotated[
    float | None,
    Option(
        metavar="SECONDS",
        help="Within what time a server must answer a request; by default 60.",
        rich_help_panel=Group.SERVER,
    ),
]
RetryFor = Annotated[
    float | None,
    Option(
        metavar="SECONDS",
        help="For how long a request is repeated while a server is away; by default 60, in bench 0.",
        rich_help_panel=Group.SERVER,
    ),
]
TokenFile = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="File of the server's bearer token; by default R2MRF_TOKEN's value.",
        rich_help_panel=Group.SERVER,
    ),
]
CA = Annotated[
    Path | None,
    Option("--ca", metavar="FILE", help="Certificates of the server's authority, PEM.", rich_help_panel=Group.SERVER),
]
Certificate = Annotated[
    Path | None,
    Option("--cert", metavar="FILE", help="Our own certificate for the server, PEM.", rich_help_panel=Group.SERVER),
]
Key = Annotated[
    Path | None,
    Option(metavar="FILE", help="Its key, PEM, unless it is in the same file.", rich_help_panel=Group.SERVER),
]

Flip = Annotated[
    bool, Option("--flip", help="Average each map with that of the mirrored photograph; it takes twice the time.")
]

MaskWhite = Annotated[White | None, Option(help="What is white in the masks.", rich_help_panel=Group.DATASET)]
Dataset = Annotated[
    str | None,
    Option(
        help="Name of the dataset: cuhk, cuhk-320, dut, ctcug, ebd.",
        autocompletion=values.one_of(values.DATASETS),
        rich_help_panel=Group.DATASET,
    ),
]
SPLIT = "a file, one name per line, or if there is none a shipped split: cuhk-train, cuhk-test, ..."
ImageFolder = Annotated[
    str | None, Option("--images", help="Folder of the photographs in --data.", rich_help_panel=Group.DATASET)
]

Precision = Annotated[Literal["fp32", "fp16", "bf16", "int8"], Option(help="Precision of the graph.")]
Calibration = Annotated[
    Path | None,
    Option(help="Folder of photographs like those to come; 300 are recommended.", rich_help_panel=Group.PRECISION),
]
Method = Annotated[
    Literal["minmax", "entropy", "percentile"] | None,
    Option(help="How INT8 finds ranges; by default percentile.", rich_help_panel=Group.PRECISION),
]
Keep = Annotated[
    list[str] | None,
    Option(
        metavar="NAME",
        help="Node or scope (step1.branch5) that stays in higher precision.",
        rich_help_panel=Group.PRECISION,
    ),
]
QuantizeEnds = Annotated[
    bool, Option("--quantize-ends", help="Quantise the first and the last layers too.", rich_help_panel=Group.PRECISION)
]
MaxDrop = Annotated[
    float | None,
    Option(
        help="Keep the fewest nodes for which MAE and F get worse by no more than this.",
        rich_help_panel=Group.PRECISION,
    ),
]
Resume = Annotated[
    Path | None, Option(help="File that keeps a search, so that it can be resumed.", rich_help_panel=Group.PRECISION)
]
AllowFailedParity = Annotated[
    bool, Option("--allow-failed-parity", help="Write a file that fails its comparison too; its manifest says so.")
]
Gpus = Annotated[
    list[str] | None,
    Option("--gpu", metavar="NAME", help="GPU class to build for, e.g. rtx3090.", autocompletion=values.cards),
]


def model_file(text: str) -> Path:
    """The file that an argument names: its path, or the shipped weights of that name.

    Raises:
        InputError: there is neither, but something nearby has a similar name.
        UsageError: it is a network without shipped weights.
    """
    from r2mrf_deploy import web  # imports pydantic, for which neither help nor completion should wait

    path = web.file_of(Path(text))
    if path.is_file() or any(c in text for c in "*?["):
        return path
    if (shipped := weights.find(text)) or path.exists():
        return shipped or path
    known: Collection[str] = ()
    # PyTorch is not needed to run artifacts, and may be absent
    if path.name == text and not path.suffix and importlib.util.find_spec("torch"):
        from r2mrf_deploy import networks

        known = networks.presets()
    if text in known:
        raise UsageError(
            f"{text}: no weights are shipped for it; train it (r2mrf train {text}) or start from r2mrf init {text}"
        )
    beside = map(str, path.parent.iterdir()) if path.parent.is_dir() else ()
    if near := difflib.get_close_matches(str(path), {*known, *weights.SHIPPED, *beside}, n=1, cutoff=0.55):
        what = "no such file" if path.suffix else "no such file, and no shipped weights"
        raise InputError(f"{text}: {what}; did you mean {near[0]!r}?")
    return path


def output_file(text: str) -> Path:
    """The file that `-o` names: for a folder, the page in it."""
    from r2mrf_deploy.export import destination

    return destination(text)


def graph_file(text: str) -> Path:
    """The ONNX file that an argument names. For the name of shipped weights, the error says how to make one."""
    if not (path := Path(text)).exists() and text in weights.SHIPPED:
        raise UsageError(f"{text} is the name of shipped weights, not a graph: export it first: r2mrf export {text}")
    return path


def parse_settings(pairs: list[str] | None, option: str = "--set") -> dict[str, str]:
    settings = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not (equals and name.strip()):
            raise UsageError(f"{option} {pair}: write it as name=value")
        settings[name.strip()] = value.strip()
    return settings


def loading(
    network: str | None, settings: list[str] | None, weights_key: str | None, rename: list[str] | None
) -> Loading:
    """How a command is told to read checkpoints."""
    return {
        "network": network,
        "settings": parse_settings(settings),
        "weights_key": weights_key,
        "rename": parse_settings(rename, "--rename"),
    }


def connections(
    servers: Sequence[str],
    *,
    deadline: float | None,
    retry_for: float | None,
    token_file: Path | None,
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
    patience: float = 60.0,
) -> list[Connection]:
    """How a command is told to reach servers.

    Args:
        patience: the default of `retry_for`.

    Raises:
        UsageError: an option has a meaning for servers only, and there is none; or an address is wrong.
    """
    from r2mrf_deploy.runtimes.kserve.connection import Connection

    given = {
        "deadline": deadline, "retry_for": retry_for, "token_file": token_file, "ca": ca, "certificate": certificate,
        "key": key,
    }  # fmt: skip
    if not servers and (alone := [name for name, value in given.items() if value is not None]):
        raise UsageError(f"`{alone[0]}` is for a server: give its address too (`server`)")
    token = _token(token_file) if servers else None
    seconds = 60.0 if deadline is None else deadline
    tries = patience if retry_for is None else retry_for
    return [
        Connection(server, seconds, tries, token=token, ca=ca, certificate=certificate, key=key) for server in servers
    ]


def _token(file: Path | None) -> str | None:
    """The bearer token, which is no argument, since every user of a machine can see those."""
    if file is None:
        return os.environ.get("R2MRF_TOKEN", "").strip() or None
    if not file.is_file():
        raise no_file(file)
    with reading(file, InputError, "holds no token"):
        token = file.read_bytes()[: 1 << 16].decode("ascii").strip()
        if not token or not token.isprintable():
            raise ValueError("it must be one line")
    return token


def is_given(context: Context, name: str) -> bool:
    """Whether one of the command's parameters was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_given(context: Context, names: Collection[str], why: str) -> None:
    """Raise UsageError if one of the command's parameters was given on the command line."""
    for name in names:
        if is_given(context, name):
            raise UsageError(f"`{name}` {why}: leave it out")


def parse_size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UsageError(f"--size {text}: write height x width in pixels, such as 320x320")
    return int(height), int(width)


def parse_numbers(option: str, text: str, example: str) -> tuple[float, ...]:
    try:
        return tuple(float(n) for n in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text}: give numbers, such as {example}") from None


def parse_duration(option: str, text: str) -> float:
    """Seconds of HH:MM:SS, MM:SS or SS."""
    parts = text.split(":")
    if not all(part.isdigit() for part in parts) or len(parts) > 3:
        raise UsageError(f"{option} {text}: write it as HH:MM:SS")
    return float(sum(int(part) * 60**n for n, part in enumerate(reversed(parts))))
