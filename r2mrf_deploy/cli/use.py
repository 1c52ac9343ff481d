"""Commands that use what there is: demo, predict, inspect, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2mrf_deploy.cli.common import (
    Buffers,
    Json,
    Runtime,
    RuntimeCache,
    Threads,
    Trust,
    app,
    err,
    out,
    phases,
    print_json,
)
from r2mrf_deploy.errors import InputError


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
        print_json(result.to_dict())
    else:
        out.print(result.table())
        out.print(result.summary(), highlight=False, soft_wrap=True)


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
    with phases() as say:
        options = OpenOptions(threads, buffers=buffers, runtime_cache=runtime_cache)
        predictor = Predictor.open(artifact, runtime, trust=trust, options=options)
        results = []
        for r in verb(predictor, sources, output, overlays=overlays):
            results.append(r)
            say(f"{len(results)}/{len(sources)} {r.source.name}")
            if not as_json and not r.error:
                out.print(f"{r.map}: {100 * (r.in_focus or 0):.0f} % in focus", highlight=False, soft_wrap=True)
    if as_json:
        print_json([r.to_dict() for r in results])
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
        print_json(facts)
        return
    out.print(report.facts_table(facts), highlight=False, soft_wrap=True)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What is installed, what is missing, and how to get it."""
    from r2mrf_deploy import machine, report
    from r2mrf_deploy.doctor import examine

    rows = examine()
    if as_json:
        print_json({"machine": machine.describe(), "rows": [r.to_dict() for r in rows]})
        return
    out.print(report.where(machine.describe(), {}), highlight=False, soft_wrap=True)
    out.print(report.doctor_table(rows))
