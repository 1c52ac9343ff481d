"""Commands that use what exists: demo, inspect, doctor, completion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from r2mrf_deploy.cli import flags, values
from r2mrf_deploy.cli.common import app, line, out, print_json, shown_progress, table
from r2mrf_deploy.cli.help import Verb


@app.command(cls=Verb)
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


@app.command(cls=Verb)
def inspect(
    file: Annotated[
        Path,
        Argument(
            parser=flags.model_file,
            autocompletion=values.shipped_or_files,
            metavar="FILE",
            help="A checkpoint, an ONNX file, a plan, an OpenVINO model, a .pt2 or .pte file or a manifest.",
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


@app.command(cls=Verb)
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


@app.command(cls=Verb)
def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Argument(help="The shell to complete commands in.")],
) -> None:
    """Print the script that completes commands in a shell."""
    from r2mrf_deploy.cli.completion import SCRIPTS

    out.print(SCRIPTS[shell].strip(), soft_wrap=True)
