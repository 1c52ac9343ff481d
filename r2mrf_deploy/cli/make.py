"""Commands that make checkpoints and artifacts: init, calibrate, export, convert, optimize, build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from r2mrf_deploy import weights
from r2mrf_deploy.cli import flags, values
from r2mrf_deploy.cli.common import app, err, kept_when_interrupted, line, print_json, shown_progress, table
from r2mrf_deploy.cli.help import Group, Verb
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.progress import Progress

if TYPE_CHECKING:
    from r2mrf_deploy.export.base import Exported


_CHECKPOINTS = (".pth", ".pt")


@app.command(cls=Verb)
def init(
    network: Annotated[
        str, Argument(help="A preset: r2mrf, r2mrf-r50, r2mrf-edge, ...", autocompletion=values.one_of(values.PRESETS))
    ],
    output: Annotated[Path, Option("-o", "--output", help="The checkpoint to write.")],
    settings: flags.Set = None,
    images: flags.Images = None,
    seed: Annotated[int, Option(help="Seed of the weights.")] = 0,
    as_json: flags.Json = False,
) -> None:
    """Make an untrained checkpoint whose map is informative."""
    from r2mrf_deploy.checkpoint import Checkpoint

    _refuse_other_names(output)
    with shown_progress() as progress:
        progress(Progress("taking statistics from photographs"))
        checkpoint = Checkpoint.init(network, flags.parse_settings(settings), folder=images, seed=seed)
        checkpoint.save(output)
    if as_json:
        facts = {"file": str(output), "network": checkpoint.network, "config": checkpoint.config.to_dict()}
        print_json(facts | {"parameters": checkpoint.parameters})
        return
    line(f"{output}: {checkpoint.network}, {checkpoint.parameters / 1e6:.1f} M parameters, untrained")


def _refuse_other_names(output: Path) -> None:
    if output.suffix not in _CHECKPOINTS:
        raise UsageError(f"-o {output}: the name of a checkpoint must end in {' or '.join(_CHECKPOINTS)}")


@app.command(cls=Verb)
def calibrate(
    checkpoint: Annotated[
        Path,
        Argument(
            parser=flags.model_file,
            autocompletion=values.shipped_or_files,
            metavar="CHECKPOINT",
            help="A checkpoint or a plain state dict.",
        ),
    ],
    data: Annotated[Path, Option(help="Folder of photographs and masks that it was not trained on.")],
    output: Annotated[Path, Option("-o", "--output", help="The calibrated checkpoint to write.")],
    white: flags.MaskWhite = None,
    dataset: flags.Dataset = None,
    split: Annotated[
        Path | None,
        Option(
            help=f"Names to use: {flags.SPLIT}.", autocompletion=values.splits_or_files, rich_help_panel=Group.DATASET
        ),
    ] = None,
    image_folder: flags.ImageFolder = None,
    mask_folder: Annotated[
        str | None, Option("--masks", help="Folder of the masks in --data.", rich_help_panel=Group.DATASET)
    ] = None,
    network: flags.Network = None,
    settings: flags.Set = None,
    weights_key: flags.WeightsKey = None,
    rename: flags.Rename = None,
    as_json: flags.Json = False,
) -> None:
    """Make a checkpoint's map a probability, by temperature scaling."""
    from r2mrf_deploy.calibration import calibrate as verb
    from r2mrf_deploy.datasets import polarity, read_dataset
    from r2mrf_deploy.report import tables

    _refuse_other_names(output)
    photographs = read_dataset(
        data, white=polarity(dataset, white), split=split, image_folder=image_folder, mask_folder=mask_folder,
        dataset=dataset,
    )  # fmt: skip
    with shown_progress() as progress:
        done = verb(
            checkpoint, photographs, output, progress=progress, **flags.loading(network, settings, weights_key, rename)
        )
    if as_json:
        print_json(done.to_dict())
        return
    table(tables.calibration_table(done))
    line(tables.evaluation_line(photographs, "sharp", len(photographs)))
    line(f"{done.path}: {done.network}, temperature {done.temperature:.3f}")


@app.command(cls=Verb)
def export(
    checkpoint: Annotated[
        Path | None,
        Argument(
            parser=flags.model_file,
            autocompletion=values.shipped_or_files,
            metavar="CHECKPOINT",
            help="A checkpoint or a plain state dict.",
        ),
    ] = None,
    outputs: Annotated[
        list[Path] | None,
        Option(
            "-o",
            "--output",
            parser=flags.output_file,
            metavar="FILE",
            help="A file to write; its suffix is the format, and a folder (site/) becomes a web page. "
            "Repeat it for several. By default an .onnx beside the checkpoint.",
        ),
    ] = None,
    formats: Annotated[bool, Option("--formats", help="List the formats and exit.")] = False,
    size: Annotated[
        str | None, Option(metavar="HxW", help="Input size in pixels; by default a square of the checkpoint's scale.")
    ] = None,
    batch: Annotated[int, Option(min=1, help="Images per inference.", rich_help_panel=Group.GRAPH)] = 1,
    dynamic: Annotated[
        bool, Option("--dynamic", help="Leave batch, height and width free.", rich_help_panel=Group.GRAPH)
    ] = False,
    steps: Annotated[int | None, Option(min=1, help="Number of recurrent steps.", rich_help_panel=Group.GRAPH)] = None,
    precision: flags.Precision = "fp32",
    calibration: flags.Calibration = None,
    method: flags.Method = None,
    keep: flags.Keep = None,
    quantize_ends: flags.QuantizeEnds = False,
    max_drop: flags.MaxDrop = None,
    resume: flags.Resume = None,
    gpus: flags.Gpus = None,
    io: Annotated[
        Literal["image", "tensor"],
        Option(help="Input: uint8 NHWC RGB, or normalised float NCHW.", rich_help_panel=Group.GRAPH),
    ] = "image",
    fit: Annotated[
        Literal["letterbox", "stretch"],
        Option(help="What a static input does with a photograph of another aspect.", rich_help_panel=Group.GRAPH),
    ] = "letterbox",
    opset: Annotated[int, Option(help="ONNX opset, 17 to 23.", rich_help_panel=Group.GRAPH)] = 17,
    optimize: Annotated[bool, Option(help="Apply the exact rewrites.", rich_help_panel=Group.GRAPH)] = True,
    all_steps: Annotated[
        bool, Option("--all-steps", help="Output every step of every branch too.", rich_help_panel=Group.GRAPH)
    ] = False,
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        Option(
            help="Device that a .pt2 package is compiled for; by default the GPU if there is one.",
            rich_help_panel=Group.RUNTIME,
        ),
    ] = None,
    network: flags.Network = None,
    settings: flags.Set = None,
    weights_key: flags.WeightsKey = None,
    rename: flags.Rename = None,
    allow_failed_parity: flags.AllowFailedParity = False,
    as_json: flags.Json = False,
) -> None:
    """Export a checkpoint to checked files of any format."""
    from r2mrf_deploy.export import exporter, exporters
    from r2mrf_deploy.export.options import ExportOptions, FormatOptions, PrecisionOptions
    from r2mrf_deploy.report import tables

    if formats:
        rows = tables.format_rows(exporters())
        if as_json:
            print_json(rows)
        else:
            table(tables.format_table(rows))
            line(*tables.format_lines(rows))
        return
    if checkpoint is None:
        raise UsageError("name a CHECKPOINT to export")
    paths = outputs or []
    if not paths and checkpoint == weights.find(checkpoint.stem):  # nothing is written beside the shipped weights
        paths = [Path(f"{checkpoint.stem}.onnx")]
    targets = tuple(gpus or ())
    builds = any("gpus" in exporter(path).options for path in paths)
    reduce = PrecisionOptions(
        precision, calibration, method, tuple(keep or ()), quantize_ends, max_drop, resume, targets
    )
    options = ExportOptions(
        flags.parse_size(size) if size else None, batch, dynamic, steps, io, fit, opset, all_steps, optimize, reduce,
        FormatOptions(targets if builds else (), device), allow_failed_parity,
    )  # fmt: skip
    from r2mrf_deploy.export.chain import export_artifacts

    def show(done: list[Exported]) -> None:
        if as_json and (found := [_facts(made) for made in done]):
            print_json(found if len(paths) > 1 else found[0])
        if as_json or not done:
            return
        if rewrites := done[0].manifest.rewrites:
            line(*tables.rewrite_lines(rewrites))
        for made in done:
            _print_exported(made)

    with kept_when_interrupted(show), shown_progress() as progress:
        done = export_artifacts(
            checkpoint, paths, options, progress=progress, **flags.loading(network, settings, weights_key, rename)
        )
    show(done)


@app.command(cls=Verb)
def convert(
    model: Annotated[Path, Argument(parser=flags.graph_file, metavar="MODEL", help="An FP32 ONNX artifact.")],
    output: Annotated[Path, Option("-o", "--output", help="The ONNX file to write.")],
    precision: flags.Precision = "fp16",
    calibration: flags.Calibration = None,
    method: flags.Method = None,
    keep: flags.Keep = None,
    quantize_ends: flags.QuantizeEnds = False,
    max_drop: flags.MaxDrop = None,
    resume: flags.Resume = None,
    gpus: flags.Gpus = None,
    allow_failed_parity: flags.AllowFailedParity = False,
    as_json: flags.Json = False,
) -> None:
    """Convert an FP32 graph to FP16, BF16 or INT8. Every runtime takes the result."""
    from r2mrf_deploy.export.convert import convert_artifact
    from r2mrf_deploy.export.options import PrecisionOptions

    options = PrecisionOptions(
        precision, calibration, method, tuple(keep or ()), quantize_ends, max_drop, resume, tuple(gpus or ())
    )
    with shown_progress() as progress:
        done = convert_artifact(model, output, options, allow_failed_parity=allow_failed_parity, progress=progress)
    if as_json:
        print_json(_facts(done))
    else:
        _print_exported(done)


@app.command(cls=Verb)
def optimize(
    model: Annotated[Path, Argument(help="Any ONNX model of opset 13 or later.")],
    output: Annotated[Path, Option("-o", "--output", help="The ONNX file to write.")],
    explain: Annotated[bool, Option("--explain", help="Explain why rewrites did not apply.")] = False,
    allow_failed_parity: flags.AllowFailedParity = False,
    as_json: flags.Json = False,
) -> None:
    """Apply the exact rewrites to any ONNX model."""
    from r2mrf_deploy.export.optimize import optimize_artifact
    from r2mrf_deploy.report import tables

    with shown_progress() as progress:
        done = optimize_artifact(
            model, output, explain=explain, allow_failed_parity=allow_failed_parity, progress=progress
        )
    if as_json:
        found = {"rewrites": [r.model_dump() for r in done.optimized.records], "warnings": done.warnings}
        print_json({"file": str(done.path), "explanations": done.optimized.explanations} | found)
        return
    line(*tables.rewrite_lines(done.optimized.records), *done.optimized.explanations)
    _print_exported(done)


@app.command(cls=Verb)
def adopt(
    model: Annotated[Path, Argument(help="An ONNX model from a photograph to one map.")],
    output: Annotated[Path, Option("-o", "--output", help="The ONNX file to write.")],
    normalize: Annotated[
        str,
        Option(
            metavar="HOW",
            help="What the model expects of a photograph: imagenet, unit (0 to 1), bytes (0 to 255), or means/deviations of "
            "R, G and B: 0.5,0.5,0.5/0.25,0.25,0.25.",
        ),
    ] = "imagenet",
    map_output: Annotated[
        str | None, Option("--map", metavar="NAME", help="The output that is the map; by default the only one.")
    ] = None,
    logits: Annotated[bool, Option("--logits", help="The output is the map's logits: add a sigmoid.")] = False,
    size: Annotated[
        str | None, Option(metavar="HxW", help="Input size in pixels, where the model leaves it free.")
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """Make an artifact of another tool's ONNX model."""
    from r2mrf_deploy.export.adopt import adopt_artifact

    with shown_progress() as progress:
        done = adopt_artifact(
            model, output, normalize=normalize, map_output=map_output, logits=logits,
            size=flags.parse_size(size) if size else None, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json({"file": str(done.path), "inputs": done.manifest.inputs, "outputs": done.manifest.outputs})
        return
    _print_exported(done)


@app.command(cls=Verb)
def build(
    model: Annotated[Path, Argument(parser=flags.graph_file, metavar="MODEL", help="An ONNX artifact.")],
    output: Annotated[
        Path | None,
        Option(
            "-o",
            "--output",
            parser=flags.output_file,
            metavar="FILE",
            help=".plan for TensorRT (default, beside the model), .xml for OpenVINO, .pt2 for AOTInductor, .pte for "
            "ExecuTorch, a folder for a web page.",
        ),
    ] = None,
    gpus: flags.Gpus = None,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"] | None, Option(help="Convert the graph to it first, as `convert` does.")
    ] = None,
    fp16: Annotated[
        bool, Option("--fp16", help="trtexec's name for --precision fp16.", rich_help_panel=Group.TENSORRT)
    ] = False,
    bf16: Annotated[
        bool, Option("--bf16", help="trtexec's name for --precision bf16.", rich_help_panel=Group.TENSORRT)
    ] = False,
    int8: Annotated[
        bool, Option("--int8", help="trtexec's name for --precision int8.", rich_help_panel=Group.TENSORRT)
    ] = False,
    calibration: flags.Calibration = None,
    method: flags.Method = None,
    keep: flags.Keep = None,
    quantize_ends: flags.QuantizeEnds = False,
    max_drop: flags.MaxDrop = None,
    resume: flags.Resume = None,
    min_shapes: Annotated[
        str, Option("--min", metavar="image:1x64x64x3", help="Smallest shapes.", rich_help_panel=Group.TENSORRT)
    ] = "",
    opt_shapes: Annotated[str, Option("--opt", help="Shapes to optimise for.", rich_help_panel=Group.TENSORRT)] = "",
    max_shapes: Annotated[str, Option("--max", help="Largest shapes.", rich_help_panel=Group.TENSORRT)] = "",
    mem_pool_size: Annotated[
        str,
        Option(
            "--memPoolSize",
            metavar="workspace:1G",
            help="Memory of the builder: workspace, tacticSharedMem, ...",
            rich_help_panel=Group.TENSORRT,
        ),
    ] = "",
    builder_optimization_level: Annotated[
        int | None,
        Option(
            "--builderOptimizationLevel",
            min=0,
            max=5,
            help="0 builds fastest, 5 runs fastest.",
            rich_help_panel=Group.TENSORRT,
        ),
    ] = None,
    timing_cache_file: Annotated[
        Path | None,
        Option(
            "--timingCacheFile",
            help="File that keeps kernel times, so that later builds are faster.",
            rich_help_panel=Group.TENSORRT,
        ),
    ] = None,
    version_compatible: Annotated[
        bool,
        Option("--versionCompatible", help="Later minor versions open the plan too.", rich_help_panel=Group.TENSORRT),
    ] = False,
    hardware_compatibility_level: Annotated[
        Literal["none", "ampere+", "sameComputeCapability"] | None,
        Option(
            "--hardwareCompatibilityLevel",
            help="Which other GPUs the plan must run on.",
            rich_help_panel=Group.TENSORRT,
        ),
    ] = None,
    strip_weights: Annotated[
        bool,
        Option("--stripWeights", help="Leave the weights out, to be refitted later.", rich_help_panel=Group.TENSORRT),
    ] = False,
    no_tf32: Annotated[
        bool, Option("--noTF32", help="Compute FP32 in full precision, not as TF32.", rich_help_panel=Group.TENSORRT)
    ] = False,
    max_aux_streams: Annotated[
        int | None,
        Option("--maxAuxStreams", min=0, help="Number of auxiliary streams.", rich_help_panel=Group.TENSORRT),
    ] = None,
    profiling_verbosity: Annotated[
        Literal["layer_names_only", "detailed", "none"] | None,
        Option(
            "--profilingVerbosity",
            help="How much the plan says of its layers; by default detailed if there is a GPU.",
            rich_help_panel=Group.TENSORRT,
        ),
    ] = None,
    library: Annotated[
        Literal["tensorrt", "tensorrt_rtx"] | None,
        Option(help="Library that builds; by default the one that fits the GPU.", rich_help_panel=Group.TENSORRT),
    ] = None,
    allow_failed_parity: flags.AllowFailedParity = False,
    as_json: flags.Json = False,
) -> None:
    """Build a plan, .xml, .pt2, .pte or web page from an ONNX file."""
    from r2mrf_deploy.cli.trtexec import one_precision, parse_pool_sizes, parse_shapes
    from r2mrf_deploy.export.build import build_artifact
    from r2mrf_deploy.export.options import PrecisionOptions
    from r2mrf_deploy.runtimes.tensorrt.options import BuildOptions

    options = BuildOptions(
        parse_shapes(min_shapes), parse_shapes(opt_shapes), parse_shapes(max_shapes), parse_pool_sizes(mem_pool_size),
        builder_optimization_level, timing_cache_file, version_compatible, hardware_compatibility_level, strip_weights,
        no_tf32, max_aux_streams, profiling_verbosity, library,
    )  # fmt: skip
    asked = one_precision(precision, fp16=fp16, bf16=bf16, int8=int8)
    reduce = PrecisionOptions(
        asked or "fp32", calibration, method, tuple(keep or ()), quantize_ends, max_drop, resume, tuple(gpus or ())
    )
    with shown_progress() as progress:
        done = build_artifact(
            model, output, gpus=gpus or [], options=options, precision=reduce if asked else None,
            allow_failed_parity=allow_failed_parity, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(_facts(done))
    else:
        _print_exported(done)


def _facts(done: Exported) -> dict[str, Any]:
    """What --json prints of an artifact that was made."""
    return done.manifest.model_dump() | {"warnings": done.warnings}


def _print_exported(done: Exported) -> None:
    """What was made, how it compares with what it was made from, and what its user has to know."""
    from r2mrf_deploy.report import tables

    if done.search is not None:
        line(f"{done.search.before} with nothing kept, {done.search.after} now")
        if done.search.kept:
            table(tables.kept_table(done.search))
    line(*tables.exported_lines(done))
    line(*(f"warning: {warning}" for warning in done.warnings), to=err, style="yellow")
