"""`r2mrf`: one command a verb. Parsing and printing; what a verb does is in the module of its name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of one inference.")]
Runtime = Annotated[str | None, typer.Option("--runtime", help="pytorch, onnxruntime, openvino, tensorrt, ...")]


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
    precision: Annotated[Literal["fp32"], typer.Option("--precision")] = "fp32",
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
    from r2mrf_deploy.export import ExportOptions, to_onnx

    options = ExportOptions(_size(size), batch, dynamic, steps, io, opset, all_steps, optimize)
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
    out.print(
        f"parity with PyTorch: {done.parity.verdict}, map within {done.parity.map.largest:.1e}",
        highlight=False,
        soft_wrap=True,
    )
    if done.parity.reason:
        err.print(f"warning: {done.parity.reason}", style="yellow", highlight=False, soft_wrap=True)


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
    if as_json:
        _print_json([r.to_dict() for r in results])
    else:
        for r in results if per_step else []:
            out.print(report.steps_table(r))
        out.print(report.parity_table(results))
        for r in results:
            if r.reason:
                out.print(f"{r.artifact}: {r.reason}", highlight=False, soft_wrap=True)
    if failed := [r.artifact for r in results if r.verdict in ("fail", "uninformative")]:
        raise CheckFailed(f"no parity: {', '.join(failed)}")
    if absent := [r.artifact for r in results if r.verdict == "not run"]:
        raise RuntimeUnavailable(f"not compared, for want of a device or a runtime: {', '.join(absent)}")


@app.command()
def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifacts and checkpoints, timed side by side.")],
    runtime: Annotated[list[str] | None, typer.Option("--runtime", help="Time each on these, where they can.")] = None,
    size: Annotated[str, typer.Option("--size", metavar="HxW", help="Where an input's size is free.")] = "320x320",
    warm_up: Annotated[float, typer.Option("--warmUp", help="Milliseconds.")] = 200,
    duration: Annotated[float, typer.Option("--duration", help="Seconds.")] = 3,
    iterations: Annotated[int, typer.Option("--iterations", help="At least so many inferences.")] = 10,
    avg_runs: Annotated[int, typer.Option("--avgRuns", help="Inferences in a turn.")] = 10,
    percentile: Annotated[str, typer.Option("--percentile", help="Comma-separated.")] = "90,95,99",
    threads: Threads = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Time artifacts side by side by trtexec's protocol; ratios to PyTorch eager, or to the first."""
    from r2mrf_deploy import machine, report
    from r2mrf_deploy.benchmark import Protocol, bench_artifacts

    try:
        percentiles = tuple(float(p) for p in percentile.split(","))
    except ValueError:
        raise UsageError(f"--percentile {percentile}: give numbers, as 90,95,99") from None
    protocol = Protocol(warm_up, duration, iterations, avg_runs, percentiles)
    with _phases() as say:
        done = bench_artifacts(
            artifacts, runtime or [], protocol, size=_size(size), threads=threads, trust=trust, phase=say
        )
    if as_json:
        _print_json(done.to_dict())
        return
    versions = ", ".join(f"{k} {v}" for k, v in done.tools.items())
    out.print(f"{machine.cpu()}, {machine.cores()} cores; {versions}", highlight=False, soft_wrap=True)
    out.print(report.bench_table(done.measurements))
    out.print(f"speed-up: over {done.baseline}, median and middle half of the turns", highlight=False, soft_wrap=True)
    for name, reason in done.skipped:
        out.print(f"{name} was not run: {reason}", highlight=False, soft_wrap=True)


@app.command()
def predict(
    artifact: Annotated[Path, typer.Argument(help="An artifact or a checkpoint.")],
    inputs: Annotated[list[str], typer.Argument(help="Images, folders, globs.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for maps and overlays.")],
    runtime: Runtime = None,
    overlays: Annotated[bool, typer.Option("--overlays/--no-overlays")] = True,
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
        predictor = Predictor.open(artifact, runtime, trust=trust, options=OpenOptions(threads=threads))
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
    out.print(", ".join(map(str, machine.describe().values())), highlight=False, soft_wrap=True)
    out.print(report.doctor_table(rows))


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


@contextmanager
def _phases() -> Iterator[Any]:
    """A line on the terminal that says what is going on; nothing where there is no terminal."""
    with err.status("starting") as status:
        yield lambda text: status.update(text)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


if __name__ == "__main__":
    sys.exit(main())
