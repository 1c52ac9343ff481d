"""Commands that compare and time artifacts: parity, bench, budget."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Context, Option

from r2mrf_deploy.cli import flags, values
from r2mrf_deploy.cli.common import app, kept_when_interrupted, line, print_json, shown_progress, table
from r2mrf_deploy.cli.help import Group, Verb
from r2mrf_deploy.errors import CheckFailed, R2mrfError, RuntimeUnavailable, UsageError
from r2mrf_deploy.wording import count

if TYPE_CHECKING:
    from r2mrf_deploy.bench.protocol import Bench
    from r2mrf_deploy.parity.compare import Parity


@app.command(cls=Verb)
def parity(
    checkpoint: Annotated[
        Path,
        Argument(
            parser=flags.model_file,
            autocompletion=values.shipped_or_files,
            metavar="REFERENCE",
            help="A checkpoint, run by PyTorch in FP32, or an artifact.",
        ),
    ],
    artifacts: Annotated[list[Path] | None, Argument(help="Artifacts to compare with it.")] = None,
    server: flags.Server = None,
    deadline: flags.Deadline = None,
    retry_for: flags.RetryFor = None,
    token_file: flags.TokenFile = None,
    ca: flags.CA = None,
    certificate: flags.Certificate = None,
    key: flags.Key = None,
    images: flags.Images = None,
    per_step: Annotated[bool, Option("--per-step", help="Compare every step of every branch.")] = False,
    plot: Annotated[
        Path | None, Option(help="Plot the errors of the steps: .png, .svg, .pdf.", rich_help_panel=Group.OUTPUT)
    ] = None,
    bisect: Annotated[
        bool, Option("--bisect", help="Find the fewest nodes whose precision explains a failure.")
    ] = False,
    runtime: flags.Runtime = None,
    record: flags.Record = True,
    trust: flags.Trust = False,
    network: flags.Network = None,
    settings: flags.Set = None,
    weights_key: flags.WeightsKey = None,
    rename: flags.Rename = None,
    as_json: flags.Json = False,
) -> None:
    """Compare artifacts with a checkpoint or a graph on photographs."""
    from r2mrf_deploy.parity.artifacts import compare_artifacts
    from r2mrf_deploy.report import plots, tables

    connections = flags.connections(
        [server] if server else [], deadline=deadline, retry_for=retry_for, token_file=token_file, ca=ca,
        certificate=certificate, key=key,
    )  # fmt: skip
    if not artifacts and not server:
        raise UsageError(
            "there is nothing to compare with the reference: name artifacts, or a served model by `server`"
        )
    if plot is not None:
        plots.refuse(plot)

    def show(results: list[Parity]) -> None:
        if as_json:
            print_json([r.to_dict() for r in results])
            return
        table(*(tables.steps_table(r) for r in results if r.steps), tables.parity_table(results))
        for r in results:
            line(*tables.parity_lines(r, bisect))
            if r.bisect is not None:
                table(tables.kept_table(r.bisect))

    with kept_when_interrupted(show), shown_progress() as progress:
        results = compare_artifacts(
            checkpoint, artifacts or [], images, per_step=per_step, bisect=bisect, record=record, runtime=runtime,
            trust=trust, server=next(iter(connections), None), progress=progress,
            **flags.loading(network, settings, weights_key, rename),
        )  # fmt: skip
    if plot is not None:
        plots.drift(results, plot)
    show(results)
    if failed := [r.artifact for r in results if r.verdict in ("fail", "uninformative")]:
        raise CheckFailed(f"no parity: {', '.join(failed)}")
    if absent := [r.artifact for r in results if r.verdict == "not run"]:
        raise RuntimeUnavailable(f"not compared, for want of a device or a runtime: {', '.join(absent)}")


@app.command(cls=Verb)
def bench(
    context: Context,
    artifacts: Annotated[
        list[Path] | None,
        Argument(
            parser=flags.model_file,
            autocompletion=values.shipped_or_files,
            metavar="FILE",
            help="Artifacts and checkpoints, timed side by side.",
        ),
    ] = None,
    server: Annotated[
        list[str] | None,
        Option(
            "--server",
            metavar="URL",
            help="Put a served model (http://HOST:8000/NAME) under load; repeatable.",
            rich_help_panel=Group.SERVER,
        ),
    ] = None,
    concurrency: Annotated[
        str, Option(metavar="N,N", help="Requests in flight at a server, a row for each.", rich_help_panel=Group.SERVER)
    ] = "1",
    rate: Annotated[
        str | None,
        Option(
            metavar="R,R",
            help="Requests in a second at a server, at random times, a row for each.",
            rich_help_panel=Group.SERVER,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        Option(
            help="Folder of photographs to send to a server; by default random values.", rich_help_panel=Group.SERVER
        ),
    ] = None,
    outputs: Annotated[
        str,
        Option(
            metavar="NAME,...",
            help="Outputs to ask a server for; of a model that takes files by default png.",
            rich_help_panel=Group.SERVER,
        ),
    ] = "",
    deadline: flags.Deadline = None,
    retry_for: flags.RetryFor = None,
    token_file: flags.TokenFile = None,
    ca: flags.CA = None,
    certificate: flags.Certificate = None,
    key: flags.Key = None,
    runtime: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="Runtime to time each file on; repeat it for several.",
            autocompletion=values.one_of(values.RUNTIMES),
        ),
    ] = None,
    mode: Annotated[
        Literal["latency", "throughput", "both"],
        Option(help="Time one inference after the other, as many side by side as pay, or both."),
    ] = "latency",
    size: Annotated[str | None, Option(metavar="HxW", help="Input size where it is free; by default 320x320.")] = None,
    batch: Annotated[
        str,
        Option(
            metavar="N,N", help="Batch size where it is free; several sizes make a sweep.", rich_help_panel=Group.INPUT
        ),
    ] = "1",
    shapes: Annotated[
        str,
        Option(metavar="image:1x320x320x3", help="Shapes of inputs with free dimensions.", rich_help_panel=Group.INPUT),
    ] = "",
    inputs: Annotated[
        str,
        Option(
            "--loadInputs",
            metavar="image:FILE",
            help="Values of an input: a .npy file, or raw bytes.",
            rich_help_panel=Group.INPUT,
        ),
    ] = "",
    warm_up: Annotated[
        float, Option("--warmUp", help="Length of the warm-up in milliseconds.", rich_help_panel=Group.MEASUREMENT)
    ] = 200,
    duration: Annotated[float, Option(help="Minimum length of a measurement in seconds.")] = 3,
    iterations: Annotated[int, Option(help="Minimum number of inferences.", rich_help_panel=Group.MEASUREMENT)] = 10,
    avg_runs: Annotated[
        int | None,
        Option(
            "--avgRuns",
            help="Inferences per turn, by default 10; prints the average of each turn.",
            rich_help_panel=Group.MEASUREMENT,
        ),
    ] = None,
    percentiles: Annotated[
        str,
        Option("--percentile", help="Percentiles of the latency, comma-separated.", rich_help_panel=Group.MEASUREMENT),
    ] = "90,95,99",
    streams: Annotated[
        int, Option("--infStreams", "--streams", help="Number of inference streams.", rich_help_panel=Group.MEASUREMENT)
    ] = 1,
    cuda_graph: Annotated[
        bool | None,
        Option(
            "--useCudaGraph/--noCudaGraph",
            help="Launch each inference as a CUDA graph.",
            rich_help_panel=Group.MEASUREMENT,
        ),
    ] = None,
    transfers: Annotated[
        bool,
        Option(
            "--dataTransfers/--noDataTransfers",
            help="Include the copies to and from the device.",
            rich_help_panel=Group.MEASUREMENT,
        ),
    ] = True,
    spin_wait: Annotated[
        bool, Option("--useSpinWait", help="Poll the GPU instead of sleeping.", rich_help_panel=Group.MEASUREMENT)
    ] = False,
    buffers: flags.Buffers = None,
    runtime_cache: flags.RuntimeCache = None,
    threads: flags.Threads = None,
    export_times: Annotated[
        Path | None,
        Option("--exportTimes", help="Write every inference's times to a JSON file.", rich_help_panel=Group.OUTPUT),
    ] = None,
    profile: Annotated[
        bool, Option("--dumpProfile", help="Print where the time goes.", rich_help_panel=Group.OUTPUT)
    ] = False,
    export_profile: Annotated[
        Path | None,
        Option("--exportProfile", help="Write every layer's times to a JSON file.", rich_help_panel=Group.OUTPUT),
    ] = None,
    csv: Annotated[Path | None, Option(help="Write the figures to a CSV file.", rich_help_panel=Group.OUTPUT)] = None,
    markdown: Annotated[
        Path | None, Option(help="Write the table to a Markdown file.", rich_help_panel=Group.OUTPUT)
    ] = None,
    plot: Annotated[
        Path | None, Option(help="Plot the latencies: .png, .svg, .pdf.", rich_help_panel=Group.OUTPUT)
    ] = None,
    summary: Annotated[
        bool, Option("--summary", help="Print trtexec's summary of each file.", rich_help_panel=Group.OUTPUT)
    ] = False,
    record: flags.Record = True,
    trust: flags.Trust = False,
    network: flags.Network = None,
    settings: flags.Set = None,
    weights_key: flags.WeightsKey = None,
    rename: flags.Rename = None,
    as_json: flags.Json = False,
) -> None:
    """Time artifacts side by side as trtexec does, or load a server."""
    from r2mrf_deploy.bench import feeds
    from r2mrf_deploy.bench.protocol import Protocol, bench_artifacts
    from r2mrf_deploy.cli import load
    from r2mrf_deploy.cli.trtexec import parse_shapes
    from r2mrf_deploy.report import bench_files
    from r2mrf_deploy.runtimes import OpenOptions

    shares = flags.parse_numbers("--percentile", percentiles, "90,95,99")
    batches = flags.parse_numbers("--batch", batch, "1,2,4")
    if any(b < 1 or b % 1 for b in batches):
        raise UsageError(f"--batch {batch}: give whole numbers from 1, such as 1,2,4")
    free = flags.parse_size(size) if size else None
    connections = flags.connections(
        server or [], deadline=deadline, retry_for=retry_for, token_file=token_file, ca=ca, certificate=certificate,
        key=key, patience=0.0,
    )  # fmt: skip
    if connections:
        load.refuse(context, artifacts or [])
        load.run(
            connections, load.loads(concurrency, rate, duration, warm_up), artifacts or [], csv, markdown, as_json,
            folder=images, outputs=[*filter(None, outputs.split(","))], size=free, batches=[*map(int, batches)],
            shapes=parse_shapes(shapes), inputs=feeds.parse_files(inputs),
        )  # fmt: skip
        return
    flags.refuse_given(context, load.OWN, "is for a server (`server`)")
    if not artifacts:
        raise UsageError("there is nothing to time: name artifacts, or a served model by `server`")
    protocol = Protocol(warm_up, duration, iterations, 10 if avg_runs is None else avg_runs, shares, streams, transfers)
    options = OpenOptions.of(
        flags.loading(network, settings, weights_key, rename), threads=threads, cuda_graph=cuda_graph, spin_wait=spin_wait,
        buffers=buffers, runtime_cache=runtime_cache,
    )  # fmt: skip
    bench_files.refuse(plot, export_times, export_profile, csv, markdown)

    def show(done: Bench) -> None:
        if as_json:
            print_json(done.to_dict())
        else:
            _print_bench(done, summary=summary, averages=avg_runs, profiles=profile)
        # written after printing: a full disk must not lose the measurements
        if done.measurements:
            written = bench_files.write(done, export_times, export_profile, csv, markdown, plot)
            if not as_json:
                line(*map(str, written), exact=True)

    def keep(done: Bench) -> None:
        with suppress(OSError, R2mrfError):  # the end of the benchmark tells
            bench_files.write(done, table=csv, markdown=markdown)

    with kept_when_interrupted(show), shown_progress() as progress:
        done = bench_artifacts(
            artifacts, runtime or [], protocol, size=free, batches=[*map(int, batches)],
            shapes=parse_shapes(shapes), inputs=feeds.parse_files(inputs), options=options, mode=mode,
            profiles=profile or export_profile is not None, record=record, trust=trust, progress=progress,
            keep=keep if csv or markdown else None,
        )  # fmt: skip
    show(done)


def _print_bench(done: Bench, *, summary: bool, averages: int | None, profiles: bool) -> None:
    from r2mrf_deploy.bench.summary import trace_averages
    from r2mrf_deploy.report import bench_tables, tables

    line(tables.where(done.machine, done.tools))
    if len(done.measurements) > 1:
        table(bench_tables.bench_table(done.measurements))
        line(bench_tables.speed_up_line(done.measurements))
    if len(done.measurements) == 1 or summary or averages:
        for m in done.measurements:
            flying = f", {m.requests} in flight" if m.mode == "throughput" else ""
            line(f"=== Performance summary: {m.title}, {m.input}, {m.device}{flying} ===")
            line(*(trace_averages(m.turns, averages, m.on_gpu) if averages else ()), *m.summary.lines(m.on_gpu))
    for p in done.profiles if profiles else []:
        line(
            f"{p.name} on {p.runtime}: {tables.figure(p.average)} ms in {count(len(p.layers), 'layer')}, one after another"
        )
        table(*bench_tables.profile_tables(p))
    absent = [f"{name} was not run: {why}" for name, why in done.skipped]
    unrecorded = [f"not recorded: {why}" for why in done.not_recorded]
    line(*bench_tables.bench_lines(done.measurements), *absent, *unrecorded)


@app.command(cls=Verb)
def budget(
    source: Annotated[
        str, Argument(help="An ONNX file, a checkpoint or a preset's name.", autocompletion=values.presets_or_files)
    ],
    gpus: Annotated[
        list[str] | None,
        Option(
            "--gpu",
            metavar="NAME",
            help="GPU class, Jetson or pi5; by default all. Exits with 1 if over budget.",
            autocompletion=values.devices,
        ),
    ] = None,
    ms: Annotated[float, Option(min=0.001, help="The budget for one image.")] = 100,
    size: Annotated[str | None, Option(metavar="HxW", help="Input size; by default the file's, or 320x320.")] = None,
    efficiency: Annotated[
        float, Option(help="Share of the roofline that kernels reach.", rich_help_panel=Group.MEASUREMENT)
    ] = 0.5,
    threads: Annotated[
        int | None,
        Option(
            min=1, help="CPU cores that compute, on a pi5 and here; by default all.", rich_help_panel=Group.MEASUREMENT
        ),
    ] = None,
    network: flags.Network = None,
    settings: flags.Set = None,
    weights_key: flags.WeightsKey = None,
    rename: flags.Rename = None,
    measure: Annotated[
        bool, Option("--measure/--no-measure", help="Compare the prediction with a measurement on this machine.")
    ] = True,
    as_json: flags.Json = False,
) -> None:
    """Check a latency budget on a GPU or small device: a roofline."""
    from r2mrf_deploy.budget import draw_up
    from r2mrf_deploy.report import tables

    with shown_progress() as progress:
        done = draw_up(
            source, gpus or (), budget_ms=ms, size=flags.parse_size(size) if size else None, efficiency=efficiency,
            threads=threads, check=measure, progress=progress, **flags.loading(network, settings, weights_key, rename),
        )  # fmt: skip
    if as_json:
        print_json(done.to_dict())
    else:
        table(*tables.budget_tables(done), *(tables.costliest_table(p) for p in done.predictions[-1:] if gpus))
        line(*tables.budget_lines(done))
    if gpus and done.refused:
        raise UsageError(done.refused[0])
    if gpus and (over := [f"{p.device} {p.ms:.1f} ms" for p in done.over]):
        raise CheckFailed(f"over the budget of {ms:g} ms: {', '.join(over)}")
