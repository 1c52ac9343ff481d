"""The command eval: how good maps are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from r2mrf_deploy.cli import flags, values
from r2mrf_deploy.cli.common import app, err, kept_when_interrupted, line, print_json, shown_progress, table
from r2mrf_deploy.cli.help import Group, Verb
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.progress import Progress

if TYPE_CHECKING:
    from r2mrf_deploy.evaluation import Evaluation
    from r2mrf_deploy.report.screen import Sheet


@app.command("eval", cls=Verb)
def evaluate(
    data: Annotated[Path, Option(help="Folder of photographs and masks: image/ and gt/.")],
    sources: Annotated[
        list[Path] | None,
        Argument(
            parser=flags.model_file,
            autocompletion=values.shipped_or_files,
            metavar="FILE",
            help="Artifacts, checkpoints, names of shipped weights.",
        ),
    ] = None,
    white: flags.MaskWhite = None,
    dataset: flags.Dataset = None,
    split: Annotated[
        Path | None,
        Option(
            help=f"Names to evaluate: {flags.SPLIT}",
            autocompletion=values.splits_or_files,
            rich_help_panel=Group.DATASET,
        ),
    ] = None,
    image_folder: flags.ImageFolder = None,
    mask_folder: Annotated[
        str | None, Option("--masks", help="Folder of the masks in --data.", rich_help_panel=Group.DATASET)
    ] = None,
    protocol: Annotated[
        str | None,
        Option(
            help="Published protocol: common, r2mrf. Fixes --positive, and for common the input's size.",
            autocompletion=values.one_of(values.PROTOCOLS),
        ),
    ] = None,
    positive: Annotated[
        flags.White | None,
        Option(help="The positive class of precision and recall; by default sharp.", rich_help_panel=Group.MEASUREMENT),
    ] = None,
    baselines: Annotated[
        list[str] | None,
        Option(
            "--baseline",
            metavar="NAME",
            help="A baseline: lbp, svd, hifst, spectrum, asvb, jnb, dbdf, ss, ksfv, dhde.",
            autocompletion=values.one_of(values.BASELINES),
        ),
    ] = None,
    table1: Annotated[
        bool, Option("--table1", help="Table 1 of the R²MRF paper beside your figures, by its protocol.")
    ] = False,
    steps: Annotated[
        bool,
        Option(
            "--steps",
            help="Evaluate the map after each recurrent step of a checkpoint.",
            rich_help_panel=Group.MEASUREMENT,
        ),
    ] = False,
    branches: Annotated[
        bool,
        Option("--branches", help="Evaluate each branch of the last step alone.", rich_help_panel=Group.MEASUREMENT),
    ] = False,
    flip: flags.Flip = False,
    output: Annotated[Path | None, Option("-o", "--output", help="Folder for curves and worst cases.")] = None,
    markdown: Annotated[
        Path | None, Option(help="Write the table to a Markdown file.", rich_help_panel=Group.OUTPUT)
    ] = None,
    latex: Annotated[
        Path | None,
        Option(help="Write the table to a LaTeX file, for the package booktabs.", rich_help_panel=Group.OUTPUT),
    ] = None,
    runtime: flags.Runtime = None,
    record: flags.Record = True,
    trust: flags.Trust = False,
    network: flags.Network = None,
    settings: flags.Set = None,
    weights_key: flags.WeightsKey = None,
    rename: flags.Rename = None,
    as_json: flags.Json = False,
) -> None:
    """Evaluate maps on photographs with masks."""
    from r2mrf_deploy import evaluation, protocols
    from r2mrf_deploy.datasets import polarity, read_dataset
    from r2mrf_deploy.report import evaluation_files, tables
    from r2mrf_deploy.report import table1 as comparison

    if table1:
        if baselines or steps or branches or protocol not in (None, comparison.PROTOCOL.name):
            raise UsageError(
                "`table1` has its own baselines, `protocol` r2mrf and no parts of maps: leave out --baseline, `steps`, "
                "`branches` and other protocols"
            )
        protocol, baselines = comparison.PROTOCOL.name, list(comparison.BASELINES_OF_IT)
    chosen = None if protocol is None else protocols.get(protocol)
    scored = protocols.positive_class(chosen, positive)
    photographs = read_dataset(
        data, white=polarity(dataset, white), split=split, image_folder=image_folder, mask_folder=mask_folder,
        dataset=dataset,
    )  # fmt: skip
    printed = protocols.table1(photographs.published) if table1 else []
    loading = flags.loading(network, settings, weights_key, rename)
    evaluation_files.check(output, markdown, latex)
    opening = evaluation.opened(
        sources or [], runtime=runtime, baselines=baselines or [], steps=steps, branches=branches, trust=trust,
        size=None if chosen is None else chosen.size, flip=flip, **loading,
    )  # fmt: skip
    facts: dict[str, Any] = {"data": photographs.folder.name, "white": photographs.white, "positive": scored}
    published = protocols.published(chosen, photographs.published) if chosen else []
    if chosen is not None:
        facts |= {
            "protocol": chosen.to_dict(), "published": [row.to_dict() for row in published],
            "test_split": photographs.is_test_split,
        }  # fmt: skip

    def sheet(rows: list[Evaluation]) -> Sheet:
        if table1:
            return comparison.sheet(comparison.lines(rows, printed))
        return tables.protocol_table(rows, chosen, published) if chosen else tables.evaluation_table(rows)

    def notes(rows: list[Evaluation]) -> list[str]:
        absent = comparison.missing(comparison.lines(rows, printed)) if table1 else []
        done = len(rows[0].photographs)
        return absent + (tables.protocol_lines(chosen, published, photographs, done) if chosen else [])

    def compared(rows: list[Evaluation]) -> dict[str, Any]:
        return {"table1": [each.to_dict() for each in comparison.lines(rows, printed)]} if table1 else {}

    def show(rows: list[Evaluation]) -> None:
        if as_json:
            found = [tables.evaluation_dict(row, chosen) for row in rows]
            print_json(facts | compared(rows) | (found[0] if len(found) == 1 else {}) | {"rows": found})
        elif rows:
            done = len(rows[0].photographs)
            table(sheet(rows))
            line(tables.evaluation_line(photographs, scored, done), *notes(rows))
            if chosen is not None and not photographs.published:
                line("published figures are shown beside a published dataset: name it with `dataset`")
        if rows and (doubt := evaluation.doubt(rows, photographs)):
            line(f"warning: {doubt}", to=err, style="yellow")

    with kept_when_interrupted(show), shown_progress() as progress, opening as methods:
        rows = evaluation.evaluate(methods, photographs, positive=scored, progress=progress)
        unrecorded = evaluation.record(rows, methods, photographs, scored, chosen) if record else []
        show(rows)  # at once, since writing and drawing may fail
        if not as_json:
            line(*(f"not recorded: {why}" for why in unrecorded))
        written = evaluation_files.write_tables(sheet(rows), notes(rows), markdown, latex)
        if output is not None:
            progress(Progress("drawing"))
            written += evaluation_files.write(
                rows, facts | compared(rows), methods, photographs, output, chosen, published
            )
    if not as_json:
        line(*map(str, written), exact=True)
