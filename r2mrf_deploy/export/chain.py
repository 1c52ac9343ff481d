"""`r2mrf export`: a checkpoint becomes checked artifacts of any format.

The network is traced once into an FP32 ONNX artifact, which is compared with PyTorch. If a lower precision is asked for, the
artifact is converted to it. Every other file is made from the result.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2mrf_deploy import checkpoint_files, environment, web
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import no_file
from r2mrf_deploy.export import destination, exporter, onnx
from r2mrf_deploy.export.base import Exported, Exporter, refuse_unsupported
from r2mrf_deploy.export.check import Check
from r2mrf_deploy.export.convert import convert_artifact
from r2mrf_deploy.export.options import ExportOptions, FormatOptions
from r2mrf_deploy.files import refuse_unwritable, scratch
from r2mrf_deploy.graph import cost, interface
from r2mrf_deploy.graph.rewrites import optimize
from r2mrf_deploy.graph.trace import checked, trace
from r2mrf_deploy.manifest import Contract, RewriteRecord
from r2mrf_deploy.networks.deployed import Deployed
from r2mrf_deploy.progress import Interrupted, Progress, ProgressCallback, silent, timed
from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner
from r2mrf_deploy.wording import count

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from r2mrf_deploy.checkpoint_files import Loading

_LOG = logging.getLogger(__name__)
SMALLEST, LARGEST = 64, 1280
"""Sides of a dynamic graph's profile, in pixels."""
LARGEST_BATCH = 4


def export_artifact(
    checkpoint: Path | str, output: Path | str | None = None, options: ExportOptions | None = None, **further: Any
) -> Exported:
    """Export a checkpoint to one file. See `export_artifacts`."""
    return export_artifacts(checkpoint, [output] if output else [], options, **further)[0]


def export_artifacts(
    checkpoint: Path | str,
    outputs: Sequence[Path | str] = (),
    options: ExportOptions | None = None,
    *,
    progress: ProgressCallback = silent,
    **loading: Unpack[Loading],
) -> list[Exported]:
    """Export a checkpoint to files. A file's suffix gives its format. All files share one trace.

    Args:
        checkpoint: a checkpoint or a plain state dict.
        outputs: by default one `.onnx` beside the checkpoint. A folder becomes a web page.
        loading: as for `Checkpoint.load`.

    Returns:
        One result per output. A file that nothing here can run is written with the verdict "not run".

    Raises:
        InputError, CheckpointError, UsageError: the checkpoint or an option is wrong.
        RuntimeUnavailable: a package that a format needs is not installed.
        GraphError, BuildError: a file cannot be made this way.
        CheckFailed: a file does not compute what PyTorch does; that file is not written.
        ArtifactError: a file cannot be written.
        Interrupted: Ctrl-C, with the results of the files that are written.
    """
    options = options or ExportOptions()
    checkpoint = Path(checkpoint)
    if not checkpoint.is_file():
        raise no_file(checkpoint)
    paths = [destination(o) for o in outputs] or [checkpoint.with_name(f"{checkpoint_files.stem(checkpoint)}.onnx")]
    writers = [exporter(path) for path in paths]
    refuse_unsupported(writers, options.precision.precision, options.format)
    options.precision.refuse_uncalibrated()
    for path in paths:
        refuse_unwritable(path)
    progress(Progress("reading the checkpoint"))
    defaults = {"steps": str(options.steps)} if options.steps else {}
    loaded = Checkpoint.load(checkpoint, defaults=defaults, **loading)
    reference = partial(PyTorchRunner, loaded, io=options.io, steps=options.steps, all_steps=options.all_steps)
    check = Check(
        reference, "PyTorch", progress, per_step=options.all_steps, exact=partial(reference, double=True),
        allow_failed_parity=options.allow_failed_parity,
    )  # fmt: skip
    done: dict[Path, Exported] = {}
    try:
        stem = checkpoint_files.stem(checkpoint)
        for path, made in _export(loaded, stem, dict(zip(paths, writers, strict=True)), options, check):
            done[path] = made
    except KeyboardInterrupt:
        raise Interrupted([done[path] for path in paths if path in done]) from None
    return [done[path] for path in paths]


def _export(
    loaded: Checkpoint, stem: str, writers: Mapping[Path, Exporter], options: ExportOptions, check: Check
) -> Iterator[tuple[Path, Exported]]:
    """Each file as soon as it is written, the ONNX file that others are made from first."""
    paths = list(writers)
    with scratch() as folder:
        plain = options.precision.precision == "fp32"
        name = f"{stem if paths[0].name == web.INDEX else paths[0].stem}.onnx"  # a page shows it
        # the first ONNX file is written where it belongs, and the others are made from it
        place = next((p for p in paths if p.suffix == ".onnx"), folder / name)
        graph = _export_onnx(loaded, place if plain else folder / "fp32" / name, options, check)
        if not plain:
            graph = convert_artifact(
                graph.artifact,
                place,
                options.precision,
                allow_failed_parity=options.allow_failed_parity,
                progress=check.progress,
            )
            check = replace(check, per_step=False)
        if place in writers:
            yield place, graph
        for path in paths:
            if path != place:
                made = export_graph(graph.artifact, path, writers[path], options.format, check)
                yield path, made_from(graph, made) if path == paths[0] and place not in writers else made


def export_graph(source: Artifact, path: Path, writer: Exporter, options: FormatOptions, check: Check) -> Exported:
    """Write an ONNX artifact in another format, and compare it before it is published."""
    note = ""

    def write(file: Path) -> Contract:
        nonlocal note
        contract, note = writer.write(source, file, options, check.progress)
        return contract

    return replace(check.publish(path, write), note=note)


def made_from(graph: Exported, made: Exported) -> Exported:
    """A file with what its user has to know of the graph that it was made from, which is not kept."""
    return replace(made, warnings=(*graph.warnings, *made.warnings), search=graph.search)


def _export_onnx(checkpoint: Checkpoint, path: Path, options: ExportOptions, check: Check) -> Exported:
    """Trace a checkpoint into an FP32 ONNX artifact."""
    deployed = Deployed(
        checkpoint.module(), checkpoint.preprocess, io=options.io, steps=options.steps, all_steps=options.all_steps
    )
    check.progress(Progress("tracing"))
    size = options.size or (checkpoint.preprocess.longest_side,) * 2
    with timed(_LOG, "traced %s at %dx%d", checkpoint.network, *size):
        model = trace(deployed, size, batch=options.batch, dynamic=options.dynamic, opset=options.opset)
    _LOG.debug("the graph has %s of opset %d", count(len(model.graph.node), "node"), onnx.opset(model))
    rewrites: list[RewriteRecord] = []
    left_out: list[str] = []
    if options.optimize:
        check.progress(Progress("rewriting"))
        optimized = optimize(model)
        model, rewrites, left_out = checked(optimized.model), optimized.records, optimized.warnings
    contract = _describe(model, checkpoint, deployed, size, options, rewrites)
    done = check.publish(path, lambda file: onnx.write(model, contract, file))
    return replace(done, warnings=(*left_out, *done.warnings))


def _describe(
    model: Any,
    checkpoint: Checkpoint,
    deployed: Deployed,
    size: tuple[int, int],
    options: ExportOptions,
    rewrites: list[RewriteRecord],
) -> Contract:
    free: tuple[int | str, ...] = ("batch", "height", "width")
    spec = deployed.input_spec(*(free if options.dynamic else (options.batch, *size)))
    profile = {
        "min": deployed.input_shape(1, SMALLEST, SMALLEST),
        "opt": deployed.input_shape(1, *size),
        "max": deployed.input_shape(LARGEST_BATCH, *(max(LARGEST, side) for side in size)),
    }
    return Contract(
        kind="onnx",
        checkpoint_sha256=checkpoint.sha256,
        network=checkpoint.network,
        config=checkpoint.config.to_dict() | {"steps": deployed.steps},
        export=options.record(size, deployed.steps),
        inputs=[spec],
        outputs=[interface.spec(value, "NCHW") for value in model.graph.output],
        profiles={spec.name: profile} if options.dynamic else {},
        preprocess=checkpoint.preprocess.model_copy(update={"inside": options.io == "image", "fit": options.fit}),
        opset=options.opset,
        rewrites=rewrites,
        parameters=checkpoint.parameters,
        multiply_adds=cost.multiply_adds_per_image(model, {spec.name: profile["opt"]} if options.dynamic else None),
        tools=environment.tool_versions("r2mrf-deploy", "torch", "torchvision", "onnx", "onnxscript", "onnxsim"),
    )
