"""`r2mrf`: one command a verb. Parsing and printing; what a verb does is in the module of its name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from r2mrf_deploy.errors import CheckFailed, InputError, R2mrfError, RuntimeUnavailable, UsageError

app = typer.Typer(
    name="r2mrf",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Recurrent defocus-blur detectors from PyTorch to ONNX, TensorRT and OpenVINO, with proof of parity.",
    epilog="--debug after any command shows the traceback of an error.",
)
out = Console(width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Set a field of the network's config.")]
Images = Annotated[
    Path | None,
    typer.Option("--images", help="Folder of photographs; by default scikit-image's."),
]
Trust = Annotated[bool, typer.Option("--trust", help="Open a plan or a .pt2 package that has no manifest.")]
Buffers = Annotated[
    Literal["cuda-python", "pycuda"] | None, typer.Option("--buffers", help="What allocates on the GPU and copies.")
]
RuntimeCache = Annotated[
    Path | None, typer.Option("--runtimeCache", help="File that keeps what was compiled for this GPU.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of one inference.")]
Runtime = Annotated[str | None, typer.Option("--runtime", help="pytorch, onnxruntime, openvino, tensorrt, ...")]


Precision = Annotated[
    Literal["fp32", "fp16", "bf16", "int8"], typer.Option("--precision", help="The types in the graph.")
]
Calibration = Annotated[
    Path | None, typer.Option("--calibration", help="Folder of photographs like those to come; 300 are well.")
]
Method = Annotated[Literal["minmax", "entropy", "percentile"], typer.Option("--method", help="How INT8 finds ranges.")]
Keep = Annotated[
    list[str] | None, typer.Option("--keep", metavar="NAME", help="Node, or part (step1.branch5), in higher precision.")
]
QuantizeEnds = Annotated[bool, typer.Option("--quantize-ends", help="INT8 for the first and last layers too.")]
MaxDrop = Annotated[
    float | None, typer.Option("--max-drop", help="Keep the fewest nodes for which MAE and F drop no more than this.")
]
Resume = Annotated[Path | None, typer.Option("--resume", help="File that keeps a search, to go on with.")]
Gpu = Annotated[list[str] | None, typer.Option("--gpu", help="GPU class that it is for, e.g. rtx3090.")]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code is 0 done, 1 a check failed, 2 wrong use or bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        return app(arguments, prog_name="r2mrf", standalone_mode=False) or 0
    except R2mrfError as e:
        code, message = e.exit_code, str(e)
        if debug:
            raise
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    except Exception as e:
        said = getattr(e, "format_message", None)  # click's own errors: an unknown option, a missing argument
        code, message = 2, said() if said else f"unexpected {type(e).__name__}: {e}; see --debug"
        if debug and not said:
            raise
    err.print(f"error: {' '.join(message.split())}", style="red", markup=False, highlight=False, soft_wrap=True)
    return code


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the artifacts.")] = Path("out/demo"),
    iterations: Annotated[
        int | None,
        typer.Option("--iterations", min=1, help="Training iterations; by default about a minute of them."),
    ] = None,
    as_json: Json = False,
) -> None:
    """The whole chain on a sample photograph: train, export, build, compare, time, predict."""
    from r2mrf_deploy import demo as verb

    result = verb.run(output, iterations=iterations, console=err)
    if as_json:
        _print_json(result.to_dict())
    else:
        out.print(result.table())
        out.print(result.summary(), highlight=False, soft_wrap=True)


@app.command()
def init(
    network: Annotated[str, typer.Argument(help="A preset: r2mrf, r2mrf-r50, r2mrf-edge, ...")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The checkpoint to write.")],
    settings: Set = None,
    images: Images = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the weights.")] = 0,
) -> None:
    """An untrained checkpoint for trials, whose map is informative: its statistics are taken from photographs."""
    from r2mrf_deploy.checkpoint import Checkpoint

    with _phases() as say:
        say("taking statistics from photographs")
        checkpoint = Checkpoint.init(network, _settings(settings), folder=images, seed=seed)
        checkpoint.save(output)
    out.print(f"{output}: {checkpoint.network}, {checkpoint.parameters / 1e6:.1f} M parameters, untrained")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint or a plain state dict.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help=".onnx (default, beside the checkpoint), or .pt2 for AOTInductor."),
    ] = None,
    size: Annotated[str, typer.Option("--size", metavar="HxW", help="Input size in pixels.")] = "320x320",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images at once.")] = 1,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Leave batch, height and width free.")] = False,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Recurrent steps.")] = None,
    precision: Precision = "fp32",
    calibration: Calibration = None,
    method: Method = "percentile",
    keep: Keep = None,
    quantize_ends: QuantizeEnds = False,
    max_drop: MaxDrop = None,
    resume: Resume = None,
    gpu: Gpu = None,
    io: Annotated[
        Literal["image", "tensor"], typer.Option("--io", help="uint8 NHWC RGB, or normalised NCHW.")
    ] = "image",
    opset: Annotated[int, typer.Option("--opset", help="ONNX opset, 17 to 23.")] = 17,
    optimize: Annotated[bool, typer.Option("--optimize/--no-optimize", help="The exact rewrites.")] = True,
    all_steps: Annotated[bool, typer.Option("--all-steps", help="Output every step of every branch too.")] = False,
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option("--device", help="Of a .pt2 package; by default the GPU where there is one."),
    ] = None,
    network: Annotated[str | None, typer.Option("--network", help="Of a plain state dict.")] = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """A checkpoint becomes an ONNX artifact, or an AOTInductor package, checked against PyTorch."""
    from r2mrf_deploy.convert import PrecisionOptions
    from r2mrf_deploy.export import ExportOptions, to_onnx

    reduce = PrecisionOptions(
        precision, calibration, method, tuple(keep or ()), quantize_ends, max_drop, resume, tuple(gpu or ())
    )
    options = ExportOptions(_size(size), batch, dynamic, steps, io, opset, all_steps, optimize, reduce)
    chosen = _settings(settings)
    if output is not None and output.suffix == ".pt2":
        from r2mrf_deploy.aotinductor import to_aotinductor

        with _phases() as say:
            done = to_aotinductor(
                checkpoint, output, options, device=device, network=network, settings=chosen, phase=say
            )
    elif device is not None:
        raise UsageError("--device means nothing for an ONNX artifact, which runs on any; with -o FILE.pt2 it does")
    else:
        with _phases() as say:
            done = to_onnx(checkpoint, output, options, network=network, settings=chosen, phase=say)
    m = done.manifest
    if as_json:
        _print_json(m.model_dump())
        return
    from r2mrf_deploy import report

    for r in m.rewrites:
        before, after = r.multiply_adds_before / 1e9, r.multiply_adds_after / 1e9
        out.print(
            f"{r.name}: {r.count} times, {before:.2f} -> {after:.2f} G multiply-adds", highlight=False, soft_wrap=True
        )
    work = f"{(m.multiply_adds or 0) / 1e9:.2f} G multiply-adds"
    out.print(
        f"{done.path}: {report.size(m.bytes)}, {precision}, {m.inputs[0]}, {work}",
        highlight=False,
        markup=False,  # a free dimension's name in brackets is no markup
        soft_wrap=True,
    )
    _print_converted("PyTorch" if precision == "fp32" else "FP32", done.parity, done.search, done.warnings)


@app.command()
def convert(
    model: Annotated[Path, typer.Argument(help="An FP32 ONNX artifact.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The ONNX file to write.")],
    precision: Precision = "fp16",
    calibration: Calibration = None,
    method: Method = "percentile",
    keep: Keep = None,
    quantize_ends: QuantizeEnds = False,
    max_drop: MaxDrop = None,
    resume: Resume = None,
    gpu: Gpu = None,
    as_json: Json = False,
) -> None:
    """An FP32 graph becomes an FP16, BF16 or INT8 one, for every runtime."""
    from r2mrf_deploy import report
    from r2mrf_deploy.convert import PrecisionOptions, convert_artifact

    options = PrecisionOptions(
        precision, calibration, method, tuple(keep or ()), quantize_ends, max_drop, resume, tuple(gpu or ())
    )
    with _phases() as say:
        done = convert_artifact(model, output, options, phase=say)
    if as_json:
        _print_json(done.manifest.model_dump() | {"warnings": done.warnings})
        return
    out.print(f"{done.path}: {report.size(done.manifest.bytes)}, {precision}", highlight=False, soft_wrap=True)
    _print_converted("FP32", done.parity, done.search, done.warnings)


@app.command()
def optimize(
    model: Annotated[Path, typer.Argument(help="Any ONNX model of opset 13 or later.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The ONNX file to write.")],
    explain: Annotated[bool, typer.Option("--explain", help="Say why rewrites left things alone.")] = False,
    as_json: Json = False,
) -> None:
    """The exact rewrites on any ONNX model: the same function with less work."""
    from r2mrf_deploy import report
    from r2mrf_deploy.optimize import optimize_file

    with _phases() as say:
        say("rewriting")
        done = optimize_file(model, output, explain=explain)
    if as_json:
        records = [r.model_dump() for r in done.optimized.records]
        _print_json({"file": str(done.path), "rewrites": records, "explanations": done.optimized.explanations})
        return
    for line in (*report.rewrite_lines(done.optimized.records), *done.optimized.explanations):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    out.print(f"{done.path}: {report.size(done.path.stat().st_size)}", highlight=False, soft_wrap=True)


@app.command()
def build(
    model: Annotated[Path, typer.Argument(help="An ONNX artifact.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help=".plan for TensorRT (default, beside the model), .xml for OpenVINO."),
    ] = None,
    gpu: Annotated[list[str] | None, typer.Option("--gpu", help="GPU class to build for, e.g. rtx3090.")] = None,
    min_shapes: Annotated[str, typer.Option("--min", metavar="image:1x64x64x3", help="Smallest shapes.")] = "",
    opt_shapes: Annotated[str, typer.Option("--opt", help="Shapes to be fastest at.")] = "",
    max_shapes: Annotated[str, typer.Option("--max", help="Largest shapes.")] = "",
    memory: Annotated[str, typer.Option("--memPoolSize", metavar="workspace:1G")] = "",
    level: Annotated[int | None, typer.Option("--builderOptimizationLevel", min=0, max=5)] = None,
    timing_cache: Annotated[Path | None, typer.Option("--timingCacheFile")] = None,
    version_compatible: Annotated[bool, typer.Option("--versionCompatible")] = False,
    hardware: Annotated[
        Literal["none", "ampere+", "sameComputeCapability"] | None,
        typer.Option("--hardwareCompatibilityLevel"),
    ] = None,
    strip: Annotated[bool, typer.Option("--stripWeights")] = False,
    no_tf32: Annotated[bool, typer.Option("--noTF32")] = False,
    aux_streams: Annotated[int | None, typer.Option("--maxAuxStreams", min=0)] = None,
    verbosity: Annotated[
        Literal["layer_names_only", "detailed", "none"] | None,
        typer.Option("--profilingVerbosity"),
    ] = None,
    library: Annotated[Literal["tensorrt", "tensorrt_rtx"] | None, typer.Option("--library")] = None,
    as_json: Json = False,
) -> None:
    """An ONNX artifact becomes a TensorRT plan or an OpenVINO model."""
    from r2mrf_deploy import report
    from r2mrf_deploy.build import BuildOptions, parse_pool_sizes, parse_shapes
    from r2mrf_deploy.build import build_engine as verb

    options = BuildOptions(
        parse_shapes(min_shapes), parse_shapes(opt_shapes), parse_shapes(max_shapes), parse_pool_sizes(memory), level,
        timing_cache, version_compatible, hardware, strip, no_tf32, aux_streams, verbosity, library,
    )  # fmt: skip
    with _phases() as say:
        say("building")
        done = verb(model, output, gpus=gpu or [], options=options, progress=lambda p, n, of: say(f"{p} {n}/{of}"))
    if as_json:
        _print_json(done.manifest.model_dump())
        return
    out.print(f"{done.path}: {report.size(done.manifest.bytes)}, {done.note}", highlight=False, soft_wrap=True)


@app.command()
def parity(
    checkpoint: Annotated[Path, typer.Argument(help="The reference, run by PyTorch in FP32.")],
    artifacts: Annotated[list[Path], typer.Argument(help="What to compare with it.")],
    images: Images = None,
    per_step: Annotated[bool, typer.Option("--per-step", help="Compare every step of every branch.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="The steps' errors as a picture.")] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Of one that fails: the fewest nodes whose precision explains it.")
    ] = False,
    runtime: Runtime = None,
    trust: Trust = False,
    network: Annotated[str | None, typer.Option("--network", help="Of a plain state dict.")] = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Compare artifacts with the checkpoint on photographs."""
    from r2mrf_deploy import report
    from r2mrf_deploy.parity import compare_artifacts

    with _phases() as say:
        results = compare_artifacts(
            checkpoint, artifacts, images, per_step=per_step, runtime=runtime, trust=trust,
            network=network, settings=_settings(settings), phase=say,
        )  # fmt: skip
        if plot is not None:
            from r2mrf_deploy import plots

            plots.drift(results, plot)
        blamed = {}
        for artifact, r in zip(artifacts, results, strict=True):
            if bisect and r.verdict == "fail":
                from r2mrf_deploy.blame import blame

                blamed[r.artifact] = blame(
                    checkpoint, artifact, images, network=network, settings=_settings(settings), phase=say
                )
    if as_json:
        _print_json(
            [r.to_dict() | {"blamed": asdict(blamed[r.artifact]) if r.artifact in blamed else None} for r in results]
        )
    else:
        for r in results:
            if r.steps:
                out.print(report.steps_table(r))
        out.print(report.parity_table(results))
        for r in results:
            if r.reason:
                out.print(f"{r.artifact}: {r.reason}", highlight=False, soft_wrap=True)
        for name, search in blamed.items():
            nodes = f"{len(search.kept)} nodes in FP32 bring {name} from {search.before} to {search.after}:"
            out.print(nodes, highlight=False, soft_wrap=True)
            out.print(report.kept_table(search))
    if failed := [r.artifact for r in results if r.verdict in ("fail", "uninformative")]:
        raise CheckFailed(f"no parity: {', '.join(failed)}")
    if absent := [r.artifact for r in results if r.verdict == "not run"]:
        raise RuntimeUnavailable(f"not compared, for want of a device or a runtime: {', '.join(absent)}")


@app.command()
def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifacts and checkpoints, timed side by side.")],
    runtime: Annotated[list[str] | None, typer.Option("--runtime", help="Time each on these, where they can.")] = None,
    size: Annotated[str, typer.Option("--size", metavar="HxW", help="Where an input's size is free.")] = "320x320",
    batch: Annotated[
        str, typer.Option("--batch", metavar="N,N", help="Where the batch is free; several: a sweep.")
    ] = "1",
    shapes: Annotated[
        str, typer.Option("--shapes", metavar="image:1x320x320x3", help="Of inputs with free sizes.")
    ] = "",
    inputs: Annotated[str, typer.Option("--loadInputs", metavar="image:FILE", help=".npy or bare bytes.")] = "",
    warm_up: Annotated[float, typer.Option("--warmUp", help="Milliseconds.")] = 200,
    duration: Annotated[float, typer.Option("--duration", help="Seconds.")] = 3,
    iterations: Annotated[int, typer.Option("--iterations", help="At least so many inferences.")] = 10,
    avg_runs: Annotated[int, typer.Option("--avgRuns", help="Inferences in a turn.")] = 10,
    percentile: Annotated[str, typer.Option("--percentile", help="Comma-separated.")] = "90,95,99",
    streams: Annotated[int, typer.Option("--infStreams", "--streams", help="Inferences side by side.")] = 1,
    cuda_graph: Annotated[bool | None, typer.Option("--useCudaGraph/--noCudaGraph", show_default=False)] = None,
    no_transfers: Annotated[bool, typer.Option("--noDataTransfers", help="Leave the copies out.")] = False,
    spin_wait: Annotated[bool, typer.Option("--useSpinWait", help="Wait for the GPU awake.")] = False,
    buffers: Buffers = None,
    runtime_cache: RuntimeCache = None,
    threads: Threads = None,
    export_times: Annotated[Path | None, typer.Option("--exportTimes", help="JSON of every inference.")] = None,
    dump_profile: Annotated[bool, typer.Option("--dumpProfile", help="Print where the time goes.")] = False,
    export_profile: Annotated[Path | None, typer.Option("--exportProfile", help="JSON of every layer.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="The figures.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="The table.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Latencies as a picture: .png, .svg, .pdf.")] = None,
    summary: Annotated[bool, typer.Option("--summary", help="trtexec's lines for each, not only for one.")] = False,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Time artifacts side by side by trtexec's protocol; ratios to the first."""
    from r2mrf_deploy import bench_files, feeds, report
    from r2mrf_deploy.benchmark import Protocol, bench_artifacts
    from r2mrf_deploy.runtimes import OpenOptions
    from r2mrf_deploy.runtimes.tensorrt_options import parse_shapes

    percentiles = _numbers("--percentile", percentile, "90,95,99")
    batches = [int(b) for b in _numbers("--batch", batch, "1,2,4") if b >= 1 and b == int(b)]
    if not batches:
        raise UsageError(f"--batch {batch}: give whole numbers from 1, as 1,2,4")
    protocol = Protocol(warm_up, duration, iterations, avg_runs, percentiles, streams, not no_transfers)
    with _phases() as say:
        done = bench_artifacts(
            artifacts, runtime or [], protocol, size=_size(size), batches=batches, shapes=parse_shapes(shapes),
            inputs=feeds.parse_files(inputs), options=OpenOptions(threads, cuda_graph, spin_wait, buffers, runtime_cache),
            profiles=dump_profile or export_profile is not None, trust=trust, phase=say,
        )  # fmt: skip
    written = bench_files.write(done, export_times, export_profile, csv, markdown, plot)
    if as_json:
        _print_json(done.to_dict())
        return
    out.print(report.where(done.machine, done.tools), highlight=False, soft_wrap=True)
    if len(done.measurements) > 1:
        out.print(report.bench_table(done.measurements))
        out.print(
            f"speed-up: over {done.baseline}, median and middle half of the turns", highlight=False, soft_wrap=True
        )
    if len(done.measurements) == 1 or summary:
        for m in done.measurements:
            out.print(f"=== Performance summary: {m.title}, {m.device} ===", highlight=False, soft_wrap=True)
            for line in m.summary.lines(m.on_gpu):
                out.print(line, highlight=False, soft_wrap=True)
    for p in done.profiles if dump_profile else []:
        out.print(report.profile_title(p), highlight=False, soft_wrap=True)
        for table in report.profile_tables(p):
            out.print(table)
    for line in (*report.bench_lines(done.measurements), *(f"{name} was not run: {why}" for name, why in done.skipped)):
        out.print(line, highlight=False, soft_wrap=True)
    for file in written:
        out.print(str(file), highlight=False, soft_wrap=True)


@app.command()
def budget(
    source: Annotated[str, typer.Argument(help="An ONNX file, a checkpoint or a preset's name.")],
    gpu: Annotated[
        list[str] | None, typer.Option("--gpu", help="GPU class; by default all. Exit 1 if over budget.")
    ] = None,
    ms: Annotated[float, typer.Option("--ms", min=0.001, help="The budget for one image.")] = 100,
    size: Annotated[str | None, typer.Option("--size", metavar="HxW", help="Default: the file's, or 320x320.")] = None,
    efficiency: Annotated[float, typer.Option("--efficiency", help="Share of the roof that kernels reach.")] = 0.5,
    settings: Set = None,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="Check the model on this machine.")] = True,
    as_json: Json = False,
) -> None:
    """What a graph must cost on a class of GPUs, by its roofline, against a latency budget."""
    from r2mrf_deploy import report
    from r2mrf_deploy.budget import draw_up

    with _phases() as say:
        done = draw_up(
            source, gpu or (), budget_ms=ms, size=_size(size) if size else None, efficiency=efficiency,
            settings=_settings(settings), check=measure, phase=say,
        )  # fmt: skip
    if as_json:
        _print_json(done.to_dict())
    else:
        out.print(report.budget_table(done))
        for p in done.predictions[-1:] if gpu else []:
            out.print(f"{p.graph} on {p.title}:", highlight=False, soft_wrap=True)
            out.print(report.costliest_table(p))
        for line in report.budget_lines(done):
            out.print(line, highlight=False, soft_wrap=True)
    if gpu and done.refused:
        raise UsageError(done.refused[0])
    if gpu and (over := [f"{p.device} {p.ms:.1f} ms" for p in done.over]):
        raise CheckFailed(f"over the budget of {ms:g} ms: {', '.join(over)}")


@app.command()
def predict(
    artifact: Annotated[Path, typer.Argument(help="An artifact or a checkpoint.")],
    inputs: Annotated[list[str], typer.Argument(help="Images, folders, globs.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for maps and overlays.")],
    runtime: Runtime = None,
    overlays: Annotated[bool, typer.Option("--overlays/--no-overlays")] = True,
    buffers: Buffers = None,
    runtime_cache: RuntimeCache = None,
    threads: Threads = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Photographs of any size in, maps (white = in focus) and overlays out, at the photographs' size."""
    from r2mrf_deploy import images
    from r2mrf_deploy.predict import Predictor
    from r2mrf_deploy.predict import predict as verb
    from r2mrf_deploy.runtimes import OpenOptions

    sources = images.find(inputs)
    with _phases() as say:
        options = OpenOptions(threads, buffers=buffers, runtime_cache=runtime_cache)
        predictor = Predictor.open(artifact, runtime, trust=trust, options=options)
        results = []
        for r in verb(predictor, sources, output, overlays=overlays):
            results.append(r)
            say(f"{len(results)}/{len(sources)} {r.source.name}")
            if not as_json and not r.error:
                out.print(f"{r.map}: {100 * (r.in_focus or 0):.0f} % in focus", highlight=False, soft_wrap=True)
    if as_json:
        _print_json([r.to_dict() for r in results])
    failures = [r for r in results if r.error]
    for r in failures[1:]:
        err.print(f"error: {r.error}", style="red", markup=False, highlight=False, soft_wrap=True)
    if failures:
        rest = f" ({len(results) - len(failures)} of {len(results)} images were done)" if len(results) > 1 else ""
        raise InputError(f"{failures[0].error}{rest}")


@app.command()
def inspect(
    file: Annotated[
        Path, typer.Argument(help="A checkpoint, an ONNX file, a plan, an OpenVINO model, a .pt2 package, a manifest.")
    ],
    as_json: Json = False,
) -> None:
    """What a file is, without running it."""
    from r2mrf_deploy import report
    from r2mrf_deploy.inspection import inspect as verb

    facts = verb(file)
    if as_json:
        _print_json(facts)
        return
    out.print(report.facts_table(facts), highlight=False, soft_wrap=True)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What is installed, what is missing, and how to get it."""
    from r2mrf_deploy import machine, report
    from r2mrf_deploy.doctor import examine

    rows = examine()
    if as_json:
        _print_json({"machine": machine.describe(), "rows": [r.to_dict() for r in rows]})
        return
    out.print(report.where(machine.describe(), {}), highlight=False, soft_wrap=True)
    out.print(report.doctor_table(rows))


def _print_converted(reference: str, parity: Any, search: Any, warnings: tuple[str, ...]) -> None:
    from r2mrf_deploy import report

    if search is not None:
        out.print(f"{search.before} with nothing kept, {search.after} now", highlight=False, soft_wrap=True)
        if search.kept:
            out.print(report.kept_table(search))
    if parity is not None:
        found = f"{parity.verdict}, map within {parity.map.largest:.1e}, {parity.map.mean:.1e} on average"
        out.print(
            f"parity with {reference}: {found} ({parity.runtime}, {parity.device})", highlight=False, soft_wrap=True
        )
    if parity is not None and parity.verdict == "emulated":
        warnings = (*warnings, parity.reason)
    for warning in dict.fromkeys(warnings):
        err.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _settings(pairs: list[str] | None) -> dict[str, str]:
    settings = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: write it as name=value")
        settings[name.strip()] = value.strip()
    return settings


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UsageError(f"--size {text}: write height x width in pixels, as 320x320")
    return int(height), int(width)


def _numbers(option: str, text: str, example: str) -> tuple[float, ...]:
    try:
        return tuple(float(n) for n in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text}: give numbers, as {example}") from None


@contextmanager
def _phases() -> Iterator[Any]:
    """A line on the terminal that says what is going on; nothing where there is no terminal."""
    with err.status("starting") as status:
        yield lambda text: status.update(text)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


if __name__ == "__main__":
    sys.exit(main())
