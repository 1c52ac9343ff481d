"""The command that trades accuracy for time: compress."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from r2mrf_deploy.cli import flags, values
from r2mrf_deploy.cli.common import app, err, kept_when_interrupted, line, print_json, shown_progress, table
from r2mrf_deploy.cli.help import Group, Verb
from r2mrf_deploy.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from r2mrf_deploy.compression import Compressed
    from r2mrf_deploy.datasets import Dataset


@app.command(cls=Verb)
def compress(
    source: Annotated[
        Path,
        Argument(
            parser=flags.model_file,
            autocompletion=values.shipped_or_files,
            metavar="SOURCE",
            help="A checkpoint, or an FP32 ONNX file.",
        ),
    ],
    output: Annotated[Path, Option("-o", "--output", help="The ONNX file to write; its curve is written beside it.")],
    images: Annotated[Path, Option(help="Folder of photographs like those that it will see; 80 are used at most.")],
    max_drop: Annotated[float, Option(help="How much MAE and F may get worse, each.")] = 0.005,
    costs: Annotated[
        str | None,
        Option(
            "--for",
            help="What to be fast on: onnxruntime or openvino, measured here, or a device of `budget`.",
            autocompletion=values.measured_or_devices,
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "int8"], Option(help="int8: also compute parts of the network in INT8, where that pays.")
    ] = "int8",
    finetune: Annotated[int, Option(min=0, help="Iterations of distillation from the full network.")] = 0,
    size: Annotated[
        str | None, Option(metavar="HxW", help="Input size to export a checkpoint at.", rich_help_panel=Group.GRAPH)
    ] = None,
    steps: Annotated[
        int | None, Option(min=1, help="Recurrent steps of the full network.", rich_help_panel=Group.GRAPH)
    ] = None,
    data: Annotated[
        Path | None,
        Option(help="Folder of photographs and masks: the bound is on these then.", rich_help_panel=Group.DATASET),
    ] = None,
    white: flags.MaskWhite = None,
    dataset: flags.Dataset = None,
    split: Annotated[
        Path | None,
        Option(
            help=f"Names in --data to use: {flags.SPLIT}.",
            autocompletion=values.splits_or_files,
            rich_help_panel=Group.DATASET,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        Option(help="File that stores the search, so that it can be resumed.", rich_help_panel=Group.OUTPUT),
    ] = None,
    point: Annotated[
        int | None,
        Option(min=1, help="Write this point of the curve beside -o; no search.", rich_help_panel=Group.OUTPUT),
    ] = None,
    plot: Annotated[
        Path | None, Option(help="Plot the curve as .png, .svg or .pdf.", rich_help_panel=Group.OUTPUT)
    ] = None,
    network: flags.Network = None,
    settings: flags.Set = None,
    weights_key: flags.WeightsKey = None,
    rename: flags.Rename = None,
    allow_failed_parity: flags.AllowFailedParity = False,
    as_json: flags.Json = False,
) -> None:
    """Make a network cheaper within a bound on its map."""
    from r2mrf_deploy.compression import CompressionOptions, compress_artifact
    from r2mrf_deploy.compression.artifacts import curve_file
    from r2mrf_deploy.compression.curve import Curve
    from r2mrf_deploy.report import compression_tables, plots, tables

    if plot is not None:
        plots.refuse(plot)
    options = CompressionOptions(
        max_drop,
        costs,
        precision,
        finetune,
        flags.parse_size(size) if size else None,
        steps,
        resume,
        allow_failed_parity,
    )

    def show(done: Compressed) -> None:
        draw()
        if as_json:
            curve = done.curve.model_dump()
            print_json(
                {"file": str(done.path), "warnings": done.warnings, "manifest": done.manifest.model_dump()} | curve
            )
            return
        table(compression_tables.pareto_table(done.curve))
        line(*tables.exported_lines(done))
        line(*compression_tables.compressed_lines(done.curve))
        line(*(f"warning: {warning}" for warning in done.warnings), to=err, style="yellow")

    def draw() -> None:
        if plot is not None:
            plots.pareto(Curve.read(curve_file(output)), plot)

    try:
        with kept_when_interrupted(show), shown_progress() as progress:
            done = compress_artifact(
                source, output, images, options, dataset=_masks(data, white, dataset, split), point=point,
                progress=progress, **flags.loading(network, settings, weights_key, rename),
            )  # fmt: skip
    except CheckFailed:  # the curve shows why
        if curve_file(output).is_file():
            draw()
        raise
    show(done)


def _masks(data: Path | None, white: flags.White | None, dataset: str | None, split: Path | None) -> Dataset | None:
    from r2mrf_deploy.datasets import polarity, read_dataset

    if data is None:
        if white or dataset or split:
            raise UsageError("--white, --dataset and --split are about masks: also give --data")
        return None
    found = read_dataset(data, white=polarity(dataset, white), split=split, dataset=dataset)
    found.check_sizes()
    return found
