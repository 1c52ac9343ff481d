"""The command that runs over photographs and films: predict."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

from typer import Argument, Context, Option

from r2mrf_deploy.cli import clusters, flags, served, values
from r2mrf_deploy.cli.common import app, err, line, print_json, shown_progress
from r2mrf_deploy.cli.help import Group, Verb
from r2mrf_deploy.errors import InputError, R2mrfError, UsageError
from r2mrf_deploy.progress import Interrupted, ProgressCallback
from r2mrf_deploy.wording import count, masked

if TYPE_CHECKING:
    from r2mrf_deploy.artifact import Artifact
    from r2mrf_deploy.predict import Outputs, Sources
    from r2mrf_deploy.predict.film import Film
    from r2mrf_deploy.predictor import Predictor


@app.command(cls=Verb)
def predict(
    context: Context,
    inputs: Annotated[
        list[str],
        Argument(
            metavar="[FILE] IMAGE...",
            autocompletion=values.shipped_or_files,
            help="An artifact, a checkpoint or shipped weights (by default r2mrf-lite); then images, folders, globs, "
            "addresses (s3://...), films, cameras (camera:0, rtsp://...), or - for a list on standard input.",
        ),
    ],
    output: Annotated[Path, Option("-o", "--output", help="Folder for what is made.")] = Path("out"),
    save: Annotated[
        list[str],
        Option(
            metavar="KIND,...",
            autocompletion=values.listed(values.SAVED),
            help="What to write: map, map16, float, overlay, cutout, contour, thumbnail, scores, coco.",
        ),
    ] = ["map,overlay"],  # noqa: B006
    recursive: Annotated[
        bool, Option("-r", "--recursive", help="Search folders in folders too.", rich_help_panel=Group.INPUT)
    ] = False,
    resume: Annotated[bool, Option("--resume", help="Skip what predictions.jsonl in the folder says is done.")] = False,
    report: Annotated[
        Path | None,
        Option(
            metavar="FILE.html",
            help="Write a page to sort and filter the photographs by score.",
            rich_help_panel=Group.OUTPUT,
        ),
    ] = None,
    xmp: Annotated[
        bool,
        Option("--xmp", help="Write a sidecar with a rating beside each photograph.", rich_help_panel=Group.OUTPUT),
    ] = False,
    scores_format: Annotated[
        Literal["jsonl", "csv", "parquet"], Option(help="Format of the scores.", rich_help_panel=Group.OUTPUT)
    ] = "jsonl",
    roi: Annotated[
        Path | None,
        Option(
            metavar="PATH",
            help="Where each subject is: a folder of masks, or a JSON or CSV file of boxes.",
            rich_help_panel=Group.INPUT,
        ),
    ] = None,
    tile: Annotated[
        bool,
        Option(
            "--tile",
            help="Compute maps at the photograph's own scale, tile by tile, of any size.",
            rich_help_panel=Group.INPUT,
        ),
    ] = False,
    overlap: Annotated[
        float | None,
        Option(help="Share of a tile that overlaps the next; by default 0.25.", rich_help_panel=Group.INPUT),
    ] = None,
    map_side: Annotated[
        int | None,
        Option(
            min=1, help="Longest side of maps, in pixels; by default the photograph's.", rich_help_panel=Group.OUTPUT
        ),
    ] = None,
    overlay_side: Annotated[
        int, Option(min=1, help="Longest side of overlays, in pixels.", rich_help_panel=Group.OUTPUT)
    ] = 2048,
    overlay_format: Annotated[
        Literal["png", "jpg"],
        Option(
            help="Format of overlays; png keeps every value and takes ten times as long.", rich_help_panel=Group.OUTPUT
        ),
    ] = "jpg",
    float_format: Annotated[
        Literal["npy", "tiff"], Option(help="Format of float maps.", rich_help_panel=Group.OUTPUT)
    ] = "npy",
    smooth: Annotated[
        float,
        Option(
            min=0,
            metavar="SECONDS",
            help="Smooth the maps of a film over about this time, but not over cuts.",
            rich_help_panel=Group.FILMS,
        ),
    ] = 0.0,
    limit: Annotated[
        float | None,
        Option(min=0, metavar="SECONDS", help="End a film or a camera after this time.", rich_help_panel=Group.FILMS),
    ] = None,
    ray: Annotated[
        bool,
        Option(
            "--ray",
            help="Spread photographs over the cores of this machine, and write Parquet files.",
            rich_help_panel=Group.CLUSTER,
        ),
    ] = False,
    ray_address: Annotated[
        str | None,
        Option(
            metavar="ADDRESS", help="The same over a Ray cluster: HOST:PORT, or auto.", rich_help_panel=Group.CLUSTER
        ),
    ] = None,
    actors: Annotated[
        int | None,
        Option(
            min=1,
            help="Workers of --ray that open the model; by default as many as suit the machines.",
            rich_help_panel=Group.CLUSTER,
        ),
    ] = None,
    server: flags.Server = None,
    deadline: flags.Deadline = None,
    retry_for: flags.RetryFor = None,
    token_file: flags.TokenFile = None,
    ca: flags.CA = None,
    certificate: flags.Certificate = None,
    key: flags.Key = None,
    runtime: flags.Runtime = None,
    flip: flags.Flip = False,
    batch: Annotated[
        int | None,
        Option(
            min=1,
            help="Photographs of one inference; by default the artifact's own batch.",
            rich_help_panel=Group.RUNTIME,
        ),
    ] = None,
    streams: Annotated[
        int | None,
        Option(
            min=1, help="Inferences side by side; by default as many as pay, up to 8.", rich_help_panel=Group.RUNTIME
        ),
    ] = None,
    buffers: flags.Buffers = None,
    runtime_cache: flags.RuntimeCache = None,
    threads: flags.Threads = None,
    cache: flags.Cache = True,
    trust: flags.Trust = False,
    network: flags.Network = None,
    settings: flags.Set = None,
    weights_key: flags.WeightsKey = None,
    rename: flags.Rename = None,
    as_json: flags.Json = False,
) -> None:
    """Find what is in focus: maps, overlays, contours, scores."""
    from r2mrf_deploy.artifact import Artifact
    from r2mrf_deploy.predict import Outputs, Sources, footage, summaries
    from r2mrf_deploy.predict.rois import Rois
    from r2mrf_deploy.predict.tiles import OVERLAP
    from r2mrf_deploy.predictor import Predictor
    from r2mrf_deploy.runtimes import OpenOptions

    connections = flags.connections(
        [server] if server else [], deadline=deadline, retry_for=retry_for, token_file=token_file, ca=ca,
        certificate=certificate, key=key,
    )  # fmt: skip
    if connections:
        flags.refuse_given(context, (*served.LOCAL, "cache"), "has no meaning for a server (`server`)")
    loading = flags.loading(network, settings, weights_key, rename)
    artifact, given = _artifact_first(inputs, needs_checkpoint=_needs_checkpoint(runtime) or any(loading.values()))
    outputs = Outputs.of(
        save, map_side=map_side, overlay_side=overlay_side, overlay_format=overlay_format, float_format=float_format
    )
    films = [each for each in given if footage.is_film(each) or footage.is_live(each)]
    if ray or ray_address is not None:
        clusters.refuse_with_ray(context, [*films, *(each for each in given if each == "-")])
        if not flags.is_given(context, "save"):
            outputs = replace(outputs, save=("map",))
        clusters.run(
            artifact, given, output, outputs, as_json, address=ray_address, actors=actors, recursive=recursive,
            runtime=runtime, trust=trust, flip=flip, batch=batch, resume=resume,
            model=_identity(Artifact.open(artifact), loading),
            options=OpenOptions.of(loading, threads=threads, streams=streams, buffers=buffers, runtime_cache=runtime_cache),
        )  # fmt: skip
        return
    if actors:
        raise UsageError("`actors` is for `ray`: leave it out")
    named = [each for each in given if each != "-" and each not in films]
    listed = sys.stdin.buffer if "-" in given else None
    sources = None
    if named or listed:
        sources = Sources(named, output=output, listed=listed, recursive=recursive, large=tile)
    _refuse_unused(
        {"tile": tile, "resume": resume, "xmp": xmp, "roi": roi, "report": report, "batch": batch, "map_side": map_side,
         "recursive": recursive} if sources is None else {},
        {"smooth": smooth, "limit": limit} if not films else {},
        {"overlap": overlap} if not tile else {},
    )  # fmt: skip
    if report:
        _refuse_report(report, sources, [*films, artifact])
        outputs = outputs.with_kind("thumbnail")
    if scores_format == "parquet" and "scores" in outputs.save:
        summaries.refuse_without_parquet()
    one = len(films) == 1 if sources is None else sources.one and not films
    run = _Run(output, outputs, scores_format, report, as_json, one)
    options = OpenOptions.of(loading, threads=threads, streams=streams, buffers=buffers, runtime_cache=runtime_cache)
    opened = None if connections else Artifact.open(artifact)
    try:
        with (
            shown_progress(rate=True) as progress,
            served.opened(connections[0], artifact if len(given) < len(inputs) else None, options, flip=flip)
            if opened is None
            else Predictor.open(
                opened, runtime, trust=trust, options=options, flip=flip,
                many=bool(films) or not one, cache=cache,
            ) as predictor,
        ):  # fmt: skip
            if sources:
                run.photographs(
                    predictor, sources, progress,
                    rois=Rois(roi) if roi else None, xmp=xmp, batch=batch, resume=resume,
                    tile=(OVERLAP if overlap is None else overlap) if tile else None,
                    model=_identity(opened, loading) if opened else getattr(predictor.runner, "identity", ""),
                )  # fmt: skip
            run.films(predictor, films, sources, progress, smooth=smooth, limit=limit)
    except BaseException:  # Ctrl-C too: what is done is said
        run.end(whole=False)
        raise
    run.end(whole=True)


def _refuse_unused(for_photographs: dict[str, Any], for_films: dict[str, Any], for_tiles: dict[str, Any]) -> None:
    """Refuse options that are given and would do nothing."""
    missing = ((for_photographs, "photographs"), (for_films, "films"), (for_tiles, "`tile`"))
    for options, what in missing:
        if given := [name for name, value in options.items() if value not in (None, False, 0.0)]:
            raise UsageError(f"`{given[0]}` is for {what}, of which there is none here: leave it out")


def _refuse_report(report: Path, sources: Sources | None, others: Sequence[str | Path]) -> None:
    """Refuse a page that would take the place of something that was given."""
    from r2mrf_deploy.files import refuse_unwritable

    if report.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"`report` {report}: the page is an HTML file, so its name must end in .html")
    if (sources and sources.holds(report)) or any(os.path.realpath(report) == os.path.realpath(o) for o in others):
        raise UsageError(f"`report` {report} would lie among what was given: name another place")
    refuse_unwritable(report)


def _identity(artifact: Artifact, loading: Mapping[str, Any]) -> str:
    """What tells a network from others: the bytes of its file, and how they are read."""
    from r2mrf_deploy.files import sha256

    file, manifest = artifact.path, artifact.manifest
    # what was compared with the manifest is not read once more
    found = [manifest.sha256 if manifest else sha256(file)]
    if file.suffix.lower() == ".xml":
        values = file.with_suffix(".bin")
        found.append(manifest.companions[values.name] if manifest else sha256(values))
    how = {name: value for name, value in loading.items() if value}
    return " ".join([*found, *([str(how)] if how else [])])


@dataclass
class _Run:
    """What is printed of a run, and what is made at its end."""

    output: Path
    outputs: Outputs
    scores_format: Literal["jsonl", "csv", "parquet"]
    report: Path | None
    as_json: bool
    one: bool
    """Whether there is one photograph or film, whose error is then the command's."""
    started: float = field(default_factory=time.perf_counter)
    results: list[dict[str, Any]] = field(default_factory=list)
    """For --json."""
    done: int = 0
    resumed: bool = False
    errors: list[str] = field(default_factory=list)
    """The first of them."""
    failed: int = 0

    def photographs(self, predictor: Predictor, sources: Sources, progress: ProgressCallback, **how: Any) -> None:
        from r2mrf_deploy.predict import predict, summaries

        self.resumed = how["resume"]
        total = sources.count() if err.is_terminal else None
        found = predict(predictor, sources, self.output, self.outputs, progress=progress, total=total, **how)
        for prediction in found:
            shown = next(iter(prediction.outputs.values()), prediction.source)
            self.took(prediction.to_dict(), str(shown), prediction.in_focus, prediction.error, prediction.note)
        if not self.done + self.failed and not self.resumed:
            return
        if "scores" in self.outputs.save:
            line(f"{summaries.write_scores(self.output, self.scores_format)}: the scores", exact=True, to=err)
        if "coco" in self.outputs.save:
            line(f"{summaries.write_coco(self.output)}: the contours", exact=True, to=err)
        if self.report:
            self._write_report(self.report)

    def films(
        self,
        predictor: Predictor,
        films: Sequence[str],
        sources: Sources | None,
        progress: ProgressCallback,
        **how: Any,
    ) -> None:
        if not films:
            return
        from r2mrf_deploy.predict import film, footage
        from r2mrf_deploy.predict.names import names

        save = {"map", "overlay", "scores"} & set(self.outputs.save)
        called = names([Path(footage.called(each)) for each in films])
        given = {os.path.realpath(each): each for each in films}
        for name in called:
            for file in (self.output / f"{name}{film.OUTPUTS[kind]}" for kind in save):
                if victim := given.get(os.path.realpath(file)) or (sources and sources.holds(file)):
                    raise UsageError(f"{file} would overwrite {victim}: choose another `output` folder")
        for source, name in zip(films, called, strict=True):
            try:
                found = film.film(
                    predictor, source, self.output, name,
                    save=save, overlay_side=self.outputs.overlay_side, streams=predictor.streams, progress=progress, **how,
                )  # fmt: skip
            except Interrupted as e:
                self._took_film(e.done)
                raise
            except R2mrfError as e:
                self.took({"source": masked(source), "error": str(e)}, source, None, str(e))
            else:
                self._took_film(found)

    def _took_film(self, found: Film) -> None:
        shown = ", ".join(map(str, found.outputs.values()))
        if found.error and found.outputs and not self.as_json:  # it broke off: what was seen of it is there
            line(f"{shown}: {found.summary()}", exact=True)
        self.took(found.to_dict(), shown, found.in_focus, found.error, found.summary())

    def took(
        self, result: dict[str, Any], shown: str, in_focus: float | None, error: str | None, note: str = ""
    ) -> None:
        """Print what became of a photograph or a film."""
        if self.as_json:
            self.results.append(result)
        if error is not None:
            self.failed += 1
            self.errors = self.errors or [error]
            if not self.one:
                line(f"error: {error}", to=err, style="red")
            return
        self.done += 1
        if not self.as_json:
            more = f" ({note})" if note else ""
            line(f"{shown}: {100 * (in_focus or 0):.0f} % in focus{more}", exact=True)

    def end(self, *, whole: bool) -> None:
        """Say what was done; if that is all, fail if something failed."""
        many = self.done + self.failed
        if self.as_json and (self.results or whole):
            print_json(self.results)
        elif not self.as_json and not self.one and many:
            rate = many / (time.perf_counter() - self.started)
            failed = f", {self.failed:,} failed" if self.failed else ""
            line(f"{self.done:,} done{failed}; {rate:.1f} per second", to=err)
        if whole and not many and not self.resumed:
            raise InputError("there is nothing to predict: the list on standard input is empty")
        if whole and self.failed:
            said = f"{self.failed:,} of {count(many, 'image')} failed; the errors are above"
            raise InputError(self.errors[0] if self.one else said)

    def _write_report(self, page: Path) -> None:
        from r2mrf_deploy.report import contact_sheet

        number = contact_sheet.write(page, self._rows(page), title="What is in focus")
        line(f"{page}: a page of {count(number, 'photograph')}", exact=True, to=err)

    def _rows(self, page: Path) -> Iterator[dict[str, Any]]:
        """The journal's records, each with its thumbnail and the address of its photograph as seen from the page."""
        from r2mrf_deploy.predict.journal import records
        from r2mrf_deploy.predict.sources import JOURNAL

        for record in records(self.output / JOURNAL):
            thumbnail = None
            with suppress(KeyError, OSError):
                thumbnail = (self.output / record["outputs"]["thumbnail"]).read_bytes()
            yield record | {"thumbnail": thumbnail, "href": _link(record["source"], page)}


def _link(source: str, page: Path) -> str:
    """The address of a photograph, as seen from a page."""
    if "://" in source:
        return source
    try:
        return quote(os.fsencode(Path(os.path.relpath(source, page.resolve().parent)).as_posix()))
    except ValueError:  # another drive
        return Path(source).as_uri()


def _needs_checkpoint(runtime: str | None) -> bool:
    """Whether the shipped weights must be a checkpoint: a runtime that opens ONNX files too may not compute in theirs."""
    from r2mrf_deploy import checkpoint_files, runtimes

    opens = {".onnx"} if runtime is None else {*runtimes.get(runtime).suffixes}
    return ".onnx" not in opens or bool(opens & {*checkpoint_files.SUFFIXES})


def _artifact_first(given: list[str], *, needs_checkpoint: bool) -> tuple[Path, list[str]]:
    """Split what `predict` is given into the model, by default the shipped weights, and the photographs.

    What a file is, is decided by its content: a checkpoint under any name is a model, a picture under any name is none.
    """
    from r2mrf_deploy import images, large_images, runtimes, weights

    first, *others = (None if _no_model(text) else flags.model_file(text) for text in given)
    if models := [path for path in others if path and _is_model(path)]:
        raise UsageError(f"{models[0]} is a model: name one model, before the photographs")
    if first and _is_model(first):
        if not others:
            raise UsageError(f"{given[0]} is a model: name the photographs after it")
        return first, given[1:]
    known_names = images.SUFFIXES | large_images.SUFFIXES
    if first and first.is_file() and first.suffix.lower() not in known_names and not images.is_picture(first):
        raise InputError(f"{first} is neither a picture nor a model ({' '.join(runtimes.known_suffixes())})")
    # the artifact starts in a fraction of PyTorch's time
    return (weights.checkpoint if needs_checkpoint else weights.artifact)(weights.DEFAULT), given


def _no_model(text: str) -> bool:
    """Whether an input is a film, a camera, an address or a list: whatever a model cannot be."""
    from r2mrf_deploy.predict import footage

    return text == "-" or "://" in text or footage.is_film(text) or footage.is_live(text)


def _is_model(path: Path) -> bool:
    """Whether a file is a model. Its name decides only if its content is neither a checkpoint's nor a picture's."""
    from r2mrf_deploy import checkpoint_files, images, runtimes, web

    if checkpoint_files.kind(path) is not None:
        return True
    if path.suffix.lower() == web.SUFFIX and not web.is_page(path):
        return False  # any other page that lies among photographs
    named = path.suffix.lower() in images.SUFFIXES or not runtimes.suitable(path)
    return not named and not (path.is_file() and images.is_picture(path))
