"""Commands that serve artifacts: serve-repo, serve."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from typer import Argument, Context, Option

from r2mrf_deploy import weights
from r2mrf_deploy.cli import flags, values
from r2mrf_deploy.cli.common import app, line, print_json, table
from r2mrf_deploy.cli.help import Group, Verb
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError

if TYPE_CHECKING:
    from r2mrf_deploy.report.screen import Sheet
    from r2mrf_deploy.serving.options import Entry
    from r2mrf_deploy.serving.server import Running

Backend = Annotated[
    Literal["tensorrt", "onnxruntime", "openvino", "python"] | None,
    Option(
        help="Triton's backend: python is this package's runtimes. serve-repo's default is the file's, serve's python.",
        rich_help_panel=Group.SERVING,
    ),
]
Runtime = Annotated[
    str | None,
    Option(
        help="Runtime in the backend python: onnxruntime, openvino, tensorrt, ...",
        autocompletion=values.one_of(values.RUNTIMES),
        rich_help_panel=Group.SERVING,
    ),
]
TargetMs = Annotated[
    float | None, Option(help="Answer within so many milliseconds: requests wait for others as long as that allows.")
]
Instances = Annotated[
    int | None, Option(min=1, help="How often a network is loaded; by default once.", rich_help_panel=Group.SERVING)
]
Workers = Annotated[
    int | None,
    Option(
        min=1,
        help="Processes that decode files, and that draw maps; by default up to 4.",
        rich_help_panel=Group.SERVING,
    ),
]
Threads = Annotated[int | None, Option(min=1, help="CPU threads of each instance.", rich_help_panel=Group.SERVING)]
MaxBatch = Annotated[int | None, Option(min=1, help="The most images of one inference.", rich_help_panel=Group.SERVING)]
Gpu = Annotated[bool, Option("--gpu", help="Run .onnx files on a GPU; plans always do.")]
NoJpeg = Annotated[
    bool, Option("--no-jpeg", help="Serve tensors only, not files of photographs.", rich_help_panel=Group.SERVING)
]


def artifact_file(text: str) -> Path:
    """The file that an argument names: its path, or the shipped artifact of that name."""
    if text in weights.ARTIFACTS and not Path(text).exists():
        return weights.artifact(text)
    from r2mrf_deploy import web

    return page if web.is_page(page := web.file_of(Path(text))) or page.is_dir() else flags.model_file(text)


@app.command("serve-repo", cls=Verb)
def serve_repo(
    artifacts: Annotated[
        list[Path],
        Argument(
            parser=artifact_file,
            autocompletion=values.artifacts_or_files,
            metavar="ARTIFACT...",
            help=".onnx, .xml or .plan files, or shipped weights.",
        ),
    ],
    output: Annotated[Path, Option("-o", "--output", help="Folder of the repository; one that is there is added to.")],
    server: Annotated[Literal["triton", "ovms"], Option(help="Triton, or OpenVINO Model Server.")] = "triton",
    backend: Backend = None,
    runtime: Runtime = None,
    target_ms: TargetMs = None,
    instances: Instances = None,
    workers: Workers = None,
    threads: Threads = None,
    max_batch: MaxBatch = None,
    gpu: Gpu = False,
    no_jpeg: NoJpeg = False,
    as_json: flags.Json = False,
) -> None:
    """Write a model repository for an inference server."""
    from r2mrf_deploy.serving.repository import write_repository

    entries = write_repository(
        artifacts, output, server=server, backend=backend, runtime=runtime, target_ms=target_ms, instances=instances,
        workers=workers, threads=threads, max_batch=max_batch, gpu=gpu, jpeg=not no_jpeg,
    )  # fmt: skip
    if as_json:
        print_json({"repository": str(output), "server": server, "models": [entry.to_dict() for entry in entries]})
        return
    table(_table(entries))
    line(f"{output}: start it with {_start(output, server, entries)}", exact=True)


@app.command(cls=Verb)
def serve(
    context: Context,
    served: Annotated[
        list[Path] | None,
        Argument(
            parser=artifact_file,
            autocompletion=values.artifacts_or_files,
            metavar="[REPOSITORY|ARTIFACT...|PAGE]",
            help=f"A repository of serve-repo, artifacts to make one of, by default {weights.DEFAULT}, or a web page.",
        ),
    ] = None,
    server: Annotated[
        Path | None, Option(metavar="PATH", help="tritonserver or ovms; by default what is found.")
    ] = None,
    host: Annotated[
        str, Option(help="Address to listen on; 0.0.0.0 is every network.", rich_help_panel=Group.ADDRESSES)
    ] = "127.0.0.1",
    http_port: Annotated[int, Option(min=1, max=65535, help="Port of HTTP.", rich_help_panel=Group.ADDRESSES)] = 8000,
    grpc_port: Annotated[int, Option(min=1, max=65535, help="Port of gRPC.", rich_help_panel=Group.ADDRESSES)] = 8001,
    metrics_port: Annotated[
        int, Option(min=1, max=65535, help="Port of Triton's metrics.", rich_help_panel=Group.ADDRESSES)
    ] = 8002,
    log: Annotated[Path | None, Option(help="File for what the server says; - is standard error.")] = None,
    backend: Backend = None,
    runtime: Runtime = None,
    target_ms: TargetMs = None,
    instances: Instances = None,
    workers: Workers = None,
    threads: Threads = None,
    max_batch: MaxBatch = None,
    gpu: Gpu = False,
    no_jpeg: NoJpeg = False,
    as_json: flags.Json = False,
) -> None:
    """Start an inference server, or show a web page."""
    from r2mrf_deploy import web
    from r2mrf_deploy.files import refuse_unwritable, scratch
    from r2mrf_deploy.serving import server as servers

    paths = served or [weights.artifact(weights.DEFAULT)]
    if pages := [path for path in paths if web.is_page(path)]:
        if len(paths) > 1:
            raise UsageError(f"{pages[0]} is a web page: serve it alone")
        flags.refuse_given(context, _FOR_MODELS, "has no meaning for a web page")
        _show_page(pages[0], host, http_port, as_json)
        return
    given = {
        "backend": backend, "runtime": runtime, "target_ms": target_ms, "instances": instances, "workers": workers,
        "threads": threads, "max_batch": max_batch, "gpu": gpu or None, "no_jpeg": no_jpeg or None,
    }  # fmt: skip
    repository = _repository_of(paths, given)
    if log is not None and log != Path("-"):
        refuse_unwritable(log)
    with _sigterm_is_ctrl_c(), scratch() if repository is None else nullcontext(repository) as folder:
        if repository is None:
            folder = _made(paths, folder / "models", servers.find(server).kind, given)
        try:
            with servers.serve(
                folder, program=server, host=host, http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port,
                log=log,
            ) as running:  # fmt: skip
                _show(running, as_json)
                code = running.wait()
        except KeyboardInterrupt:
            return
    raise RuntimeUnavailable(
        f"the server ended by itself, with code {code}" + ("; give `log` to see why" if log is None else "")
    )


_FOR_MODELS = (
    "server", "grpc_port", "metrics_port", "log", "backend", "runtime", "target_ms", "instances", "workers", "threads",
    "max_batch", "gpu", "no_jpeg",
)  # fmt: skip
"""The options of `serve` that are for models on an inference server."""


def _show_page(page: Path, host: str, port: int, as_json: bool) -> None:
    """Serve a web page until Ctrl-C."""
    from r2mrf_deploy.artifact import Artifact
    from r2mrf_deploy.runtimes.web.site import Server

    with _sigterm_is_ctrl_c(), Server(Artifact.open(page), host=host, port=port) as running:
        try:
            if as_json:
                print_json({"addresses": {"http": running.address}, "page": str(page)})
                sys.stdout.flush()
            else:
                line(f"http: {running.address}", exact=True)
                line("Ctrl-C stops it")
            running.wait()
        except KeyboardInterrupt:
            return


def _repository_of(paths: Sequence[Path], given: Mapping[str, Any]) -> Path | None:
    """The repository that is to be served; None if artifacts are."""
    folders = [path for path in paths if path.is_dir()]
    if not folders:
        return None
    if len(paths) > 1:
        raise UsageError(f"{folders[0]} is a folder: serve one repository, or some artifacts")
    if meant := [name for name, value in given.items() if value is not None]:
        raise UsageError(f"`{meant[0]}` is for artifacts; {folders[0]} says already how it is served: write it again")
    return folders[0]


def _made(paths: Sequence[Path], folder: Path, kind: Literal["triton", "ovms"], given: Mapping[str, Any]) -> Path:
    """A repository of artifacts, for as long as they are served."""
    from r2mrf_deploy.serving.repository import write_repository

    options = {name: value for name, value in given.items() if value is not None and name != "no_jpeg"}
    if kind == "triton":
        options.setdefault("backend", "python")
    write_repository(paths, folder, server=kind, jpeg=given["no_jpeg"] is None, **options)
    return folder


def _show(running: Running, as_json: bool) -> None:
    """Print where the server is, and how to send it a photograph."""
    if as_json:
        print_json({"addresses": dict(running.addresses), "models": list(running.models)})
        sys.stdout.flush()
        return
    line(*(f"{name}: {address}" for name, address in running.addresses.items()), exact=True)
    line(f"models: {', '.join(running.models)}", exact=True)
    files = [name for name in running.models if name.endswith("_jpeg")]
    if files and "metrics" in running.addresses:  # Triton takes the bare bytes of a single input
        url = f"{running.addresses['http']}/v2/models/{files[0]}/infer"
        header = "Inference-Header-Content-Length: 0"
        line(f"try: curl -X POST {url} -H '{header}' --data-binary @PHOTOGRAPH.jpg -o answer", exact=True)
    line("Ctrl-C stops it")


@contextmanager
def _sigterm_is_ctrl_c() -> Iterator[None]:
    """Stop cleanly when a service manager or a container asks for it."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _table(entries: Sequence[Entry]) -> Sheet:
    from r2mrf_deploy.report.screen import Sheet

    found = Sheet("model", "backend", prose=("inputs", "outputs"), numbers=("batch", "delay ms"))
    for entry in entries:
        tensors = (", ".join(f"{name} {kind}" for name, kind in t.items()) for t in (entry.inputs, entry.outputs))
        batch = entry.max_batch or "fixed"
        found.add(entry.name, entry.backend, *tensors, batch, "" if entry.delay_ms is None else f"{entry.delay_ms:g}")
    return found


def _start(output: Path, server: str, entries: Sequence[Entry]) -> str:
    """The command that serves a repository."""
    if server == "ovms":
        return f"ovms --config_path {output / 'config.json'} --rest_port 8000 --port 8001"
    if {entry.backend for entry in entries} <= {"python", "ensemble"}:
        return f"r2mrf serve {output}"
    return f"tritonserver --model-repository {output}"
