"""Commands that make artifacts: init, export, convert, optimize, build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from r2mrf_deploy.cli.common import (
    Calibration,
    Gpu,
    Images,
    Json,
    Keep,
    MaxDrop,
    Method,
    Network,
    Precision,
    QuantizeEnds,
    Resume,
    Set,
    app,
    away_from_package,
    err,
    graph_file,
    model_file,
    out,
    parse_settings,
    parse_size,
    phases,
    print_json,
)
from r2mrf_deploy.errors import UsageError


@app.command()
def init(
    network: Annotated[str, typer.Argument(help="A preset: r2mrf, r2mrf-r50, r2mrf-edge, ...")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The checkpoint to write.")],
    settings: Set = None,
    images: Images = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the weights.")] = 0,
    as_json: Json = False,
) -> None:
    """An untrained checkpoint for trials. Its map is informative: its statistics are taken from photographs."""
    from r2mrf_deploy.checkpoint import Checkpoint

    if output.suffix not in (".pth", ".pt"):
        raise UsageError(f"-o {output}: a checkpoint ends in .pth or .pt")
    with phases() as say:
        say("taking statistics from photographs")
        checkpoint = Checkpoint.init(network, parse_settings(settings), folder=images, seed=seed)
        checkpoint.save(output)
    if as_json:
        facts = {"file": str(output), "network": checkpoint.network, "config": checkpoint.config.to_dict()}
        print_json(facts | {"parameters": checkpoint.parameters})
        return
    out.print(f"{output}: {checkpoint.network}, {checkpoint.parameters / 1e6:.1f} M parameters, untrained")


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(parser=model_file, metavar="CHECKPOINT", help="A checkpoint or a plain state dict.")
    ],
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
    method: Method = None,
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
    network: Network = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """A checkpoint becomes ONNX, or an AOTInductor package. It is checked against PyTorch."""
    from r2mrf_deploy.convert import PrecisionOptions
    from r2mrf_deploy.export import ExportOptions, to_onnx

    reduce = PrecisionOptions(
        precision, calibration, method, tuple(keep or ()), quantize_ends, max_drop, resume, tuple(gpu or ())
    )
    options = ExportOptions(parse_size(size), batch, dynamic, steps, io, opset, all_steps, optimize, reduce)
    chosen = parse_settings(settings)
    output = output or away_from_package(checkpoint)
    if output is not None and output.suffix == ".pt2":
        from r2mrf_deploy.aotinductor import to_aotinductor

        with phases() as say:
            done = to_aotinductor(
                checkpoint, output, options, device=device, network=network, settings=chosen, phase=say
            )
    elif device is not None:
        raise UsageError("--device means nothing for an ONNX artifact, which runs on any; with -o FILE.pt2 it does")
    else:
        with phases() as say:
            done = to_onnx(checkpoint, output, options, network=network, settings=chosen, phase=say)
    m = done.manifest
    if as_json:
        print_json(m.model_dump())
        return
    from r2mrf_deploy.report import tables

    for r in m.rewrites:
        before, after = r.multiply_adds_before / 1e9, r.multiply_adds_after / 1e9
        out.print(
            f"{r.name}: {r.count} times, {before:.2f} -> {after:.2f} G multiply-adds", highlight=False, soft_wrap=True
        )
    work = f"{(m.multiply_adds or 0) / 1e9:.2f} G multiply-adds"
    out.print(
        f"{done.path}: {tables.size(m.bytes)}, {precision}, {m.inputs[0]}, {work}",
        highlight=False,
        markup=False,  # a free dimension's name in brackets is no markup
        soft_wrap=True,
    )
    _print_converted("PyTorch" if precision == "fp32" else "FP32", done.parity, done.search, done.warnings)


@app.command()
def convert(
    model: Annotated[Path, typer.Argument(parser=graph_file, metavar="MODEL", help="An FP32 ONNX artifact.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The ONNX file to write.")],
    precision: Precision = "fp16",
    calibration: Calibration = None,
    method: Method = None,
    keep: Keep = None,
    quantize_ends: QuantizeEnds = False,
    max_drop: MaxDrop = None,
    resume: Resume = None,
    gpu: Gpu = None,
    as_json: Json = False,
) -> None:
    """An FP32 graph becomes an FP16, BF16 or INT8 one. Every runtime takes it."""
    from r2mrf_deploy.convert import PrecisionOptions, convert_artifact
    from r2mrf_deploy.report import tables

    options = PrecisionOptions(
        precision, calibration, method, tuple(keep or ()), quantize_ends, max_drop, resume, tuple(gpu or ())
    )
    with phases() as say:
        done = convert_artifact(model, output, options, phase=say)
    if as_json:
        print_json(done.manifest.model_dump() | {"warnings": done.warnings})
        return
    out.print(f"{done.path}: {tables.size(done.manifest.bytes)}, {precision}", highlight=False, soft_wrap=True)
    _print_converted("FP32", done.parity, done.search, done.warnings)


@app.command()
def optimize(
    model: Annotated[Path, typer.Argument(help="Any ONNX model of opset 13 or later.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The ONNX file to write.")],
    explain: Annotated[bool, typer.Option("--explain", help="Say why rewrites left things alone.")] = False,
    as_json: Json = False,
) -> None:
    """The exact rewrites on any ONNX model. The same function with less work."""
    from r2mrf_deploy.optimize import optimize_file
    from r2mrf_deploy.report import tables

    with phases() as say:
        say("rewriting")
        done = optimize_file(model, output, explain=explain)
    if as_json:
        records = [r.model_dump() for r in done.optimized.records]
        print_json({"file": str(done.path), "rewrites": records, "explanations": done.optimized.explanations})
        return
    for line in (*tables.rewrite_lines(done.optimized.records), *done.optimized.explanations):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    out.print(f"{done.path}: {tables.size(done.path.stat().st_size)}", highlight=False, soft_wrap=True)


@app.command()
def build(
    model: Annotated[Path, typer.Argument(parser=graph_file, metavar="MODEL", help="An ONNX artifact.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help=".plan for TensorRT (default, beside the model), .xml for OpenVINO."),
    ] = None,
    gpu: Annotated[list[str] | None, typer.Option("--gpu", help="GPU class to build for, e.g. rtx3090.")] = None,
    min_shapes: Annotated[str, typer.Option("--min", metavar="image:1x64x64x3", help="Smallest shapes.")] = "",
    opt_shapes: Annotated[str, typer.Option("--opt", help="Shapes to be fastest at.")] = "",
    max_shapes: Annotated[str, typer.Option("--max", help="Largest shapes.")] = "",
    memory: Annotated[
        str,
        typer.Option(
            "--memPoolSize", metavar="workspace:1G", help="What the builder may use: workspace, tacticSharedMem, ..."
        ),
    ] = "",
    level: Annotated[
        int | None, typer.Option("--builderOptimizationLevel", min=0, max=5, help="0 builds fastest, 5 runs fastest.")
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option("--timingCacheFile", help="Kernels' times, read and written back: later builds are faster."),
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--versionCompatible", help="Later minor versions open the plan too.")
    ] = False,
    hardware: Annotated[
        Literal["none", "ampere+", "sameComputeCapability"] | None,
        typer.Option("--hardwareCompatibilityLevel", help="Other GPUs that the plan runs on."),
    ] = None,
    strip: Annotated[bool, typer.Option("--stripWeights", help="Leave the weights out, to be refitted.")] = False,
    no_tf32: Annotated[bool, typer.Option("--noTF32", help="Full FP32 where TF32 would be faster.")] = False,
    aux_streams: Annotated[
        int | None, typer.Option("--maxAuxStreams", min=0, help="Streams beside the main one.")
    ] = None,
    verbosity: Annotated[
        Literal["layer_names_only", "detailed", "none"] | None,
        typer.Option(
            "--profilingVerbosity", help="What the plan tells of its layers; detailed where a GPU is at hand."
        ),
    ] = None,
    library: Annotated[
        Literal["tensorrt", "tensorrt_rtx"] | None,
        typer.Option("--library", help="Which builds; by default what fits the GPU."),
    ] = None,
    as_json: Json = False,
) -> None:
    """An ONNX artifact becomes a TensorRT plan or an OpenVINO model."""
    from r2mrf_deploy.build import BuildOptions, parse_pool_sizes, parse_shapes
    from r2mrf_deploy.build import build_engine as verb
    from r2mrf_deploy.report import tables

    options = BuildOptions(
        parse_shapes(min_shapes), parse_shapes(opt_shapes), parse_shapes(max_shapes), parse_pool_sizes(memory), level,
        timing_cache, version_compatible, hardware, strip, no_tf32, aux_streams, verbosity, library,
    )  # fmt: skip
    with phases() as say:
        say("building")
        done = verb(model, output, gpus=gpu or [], options=options, progress=lambda p, n, of: say(f"{p} {n}/{of}"))
    if as_json:
        print_json(done.manifest.model_dump())
        return
    out.print(f"{done.path}: {tables.size(done.manifest.bytes)}, {done.note}", highlight=False, soft_wrap=True)


def _print_converted(reference: str, parity: Any, search: Any, warnings: tuple[str, ...]) -> None:
    from r2mrf_deploy.report import tables

    if search is not None:
        out.print(f"{search.before} with nothing kept, {search.after} now", highlight=False, soft_wrap=True)
        if search.kept:
            out.print(tables.kept_table(search))
    if parity is not None:
        found = f"{parity.verdict}, map within {parity.map.largest:.1e}, {parity.map.mean:.1e} on average"
        out.print(
            f"parity with {reference}: {found} ({parity.runtime}, {parity.device})", highlight=False, soft_wrap=True
        )
    if parity is not None and parity.verdict == "emulated":
        warnings = (*warnings, parity.reason)
    for warning in dict.fromkeys(warnings):
        err.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
