"""Commands that use what exists: demo, predict, inspect, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from r2mrf_deploy.cli import flags
from r2mrf_deploy.cli.common import app, err, line, out, print_json, shown_progress, table
from r2mrf_deploy.errors import InputError, UsageError
from r2mrf_deploy.progress import Progress
from r2mrf_deploy.wording import count


@app.command()
def demo(
    output: Annotated[Path, Option("-o", "--output", help="Folder for the artifacts.")] = Path("out/demo"),
    as_json: flags.Json = False,
) -> None:
    """Run the whole chain on a sample photograph."""
    from r2mrf_deploy import demo as verb
    from r2mrf_deploy.report import tables

    with shown_progress() as progress:
        result = verb.run(output, progress=progress)
    if as_json:
        print_json(result.to_dict())
    else:
        table(tables.demo_table(result.rows))
        line(*result.summary())


@app.command()
def predict(
    inputs: Annotated[
        list[str],
        Argument(
            metavar="[FILE] IMAGE...",
            help="An artifact, a checkpoint or shipped weights (by default r2mrf-lite); then images, folders, globs.",
        ),
    ],
    output: Annotated[Path, Option("-o", "--output", help="Folder for maps and overlays.")] = Path("out"),
    runtime: flags.Runtime = None,
    flip: flags.Flip = False,
    overlays: Annotated[bool, Option(help="Write overlays beside the maps.")] = True,
    overlay_side: Annotated[int, Option(min=1, help="Longest side of overlays, in pixels.")] = 2048,
    overlay_format: Annotated[
        Literal["png", "jpg"], Option(help="Format of overlays; jpg is smaller and faster to write.")
    ] = "png",
    buffers: flags.Buffers = None,
    runtime_cache: flags.RuntimeCache = None,
    threads: flags.Threads = None,
    trust: flags.Trust = False,
    network: flags.Network = None,
    settings: flags.Set = None,
    weights_key: flags.WeightsKey = None,
    rename: flags.Rename = None,
    as_json: flags.Json = False,
) -> None:
    """Predict maps (white = in focus) and overlays of photographs."""
    from r2mrf_deploy import images, runtimes
    from r2mrf_deploy.predict import Prediction
    from r2mrf_deploy.predict import predict as verb
    from r2mrf_deploy.predictor import Predictor
    from r2mrf_deploy.runtimes import OpenOptions

    loading = flags.loading(network, settings, weights_key, rename)
    other = runtime is not None and ".onnx" not in runtimes.get(runtime).suffixes
    artifact, photographs = _artifact_first(inputs, needs_checkpoint=other or any(loading.values()))
    sources = images.find(photographs)
    options = OpenOptions.of(loading, threads=threads, buffers=buffers, runtime_cache=runtime_cache)
    results: list[Prediction] = []

    try:
        with (
            shown_progress() as progress,
            Predictor.open(artifact, runtime, trust=trust, options=options, flip=flip) as predictor,
        ):
            done = verb(
                predictor, sources, output, overlays=overlays, overlay_side=overlay_side, overlay_format=overlay_format
            )
            for r in done:
                results.append(r)
                if r.error and len(sources) > 1:
                    line(f"error: {r.error}", to=err, style="red")
                elif not r.error and not as_json:
                    line(f"{r.map}: {100 * (r.in_focus or 0):.0f} % in focus", exact=True)
                progress(Progress(r.source.name, len(results), len(sources)))
    finally:  # after Ctrl-C too
        if as_json and results:
            print_json([r.to_dict() for r in results])
    failures = [r.error for r in results if r.error]
    if failures and len(sources) > 1:
        raise InputError(f"{len(failures):,} of {count(len(sources), 'image')} failed; the errors are above")
    if failures:
        raise InputError(failures[0])


def _artifact_first(given: list[str], *, needs_checkpoint: bool) -> tuple[Path, list[str]]:
    """Split what `predict` is given into the model, by default the shipped weights, and the photographs.

    What a file is, is decided by its content: a checkpoint under any name is a model, a picture under any name is none.
    """
    from r2mrf_deploy import images, runtimes, weights

    first, *others = map(flags.model_file, given)
    if models := [path for path in others if _is_model(path)]:
        raise UsageError(f"{models[0]} is a model: name one model, before the photographs")
    if _is_model(first):
        if not others:
            raise UsageError(f"{given[0]} is a model: name the photographs after it")
        return first, given[1:]
    if first.is_file() and first.suffix.lower() not in images.SUFFIXES and not images.is_picture(first):
        known = " ".join(dict.fromkeys(s for name in runtimes.names() for s in runtimes.get(name).suffixes))
        raise InputError(f"{first} is neither a picture nor a model ({known})")
    # the artifact starts in a fraction of PyTorch's time
    return (weights.checkpoint if needs_checkpoint else weights.artifact)(weights.DEFAULT), given


def _is_model(path: Path) -> bool:
    """Whether a file is a model. Its name decides only if its content is neither a checkpoint's nor a picture's."""
    from r2mrf_deploy import checkpoint_files, images, runtimes

    if checkpoint_files.kind(path) is not None:
        return True
    named = path.suffix.lower() in images.SUFFIXES or not runtimes.suitable(path)
    return not named and not (path.is_file() and images.is_picture(path))


@app.command()
def inspect(
    file: Annotated[
        Path,
        Argument(
            parser=flags.model_file,
            metavar="FILE",
            help="A checkpoint, an ONNX file, a plan, an OpenVINO model, a .pt2 package or a manifest.",
        ),
    ],
    network: flags.Network = None,
    settings: flags.Set = None,
    weights_key: flags.WeightsKey = None,
    rename: flags.Rename = None,
    as_json: flags.Json = False,
) -> None:
    """Show what a file is, without running it."""
    from r2mrf_deploy.inspection import inspect as verb
    from r2mrf_deploy.report.facts import facts_lines

    facts = verb(file, **flags.loading(network, settings, weights_key, rename))
    if as_json:
        print_json(facts)
    else:
        for text in facts_lines(facts, out.width):
            out.print(text, soft_wrap=True)


@app.command()
def doctor(as_json: flags.Json = False) -> None:
    """Show what is installed, what is missing, and how to get it."""
    from r2mrf_deploy import environment
    from r2mrf_deploy.doctor import examine
    from r2mrf_deploy.report import tables

    machine, rows = environment.describe(), examine()
    if as_json:
        print_json({"machine": machine, "rows": [r.to_dict() for r in rows]})
        return
    line(tables.where(machine, {}))
    table(tables.doctor_table(rows))
    line(*tables.doctor_lines(rows))
