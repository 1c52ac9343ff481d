"""Files of photographs become files of maps, overlays, contours and scores.

Reading, inference and writing overlap: threads read ahead while the network computes, and others draw, pack and
write. At any time a few photographs are in memory, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import environment, images
from r2mrf_deploy.concurrency import ordered_map
from r2mrf_deploy.errors import R2mrfError, UsageError, first_line
from r2mrf_deploy.files import refuse_unwritable, staging, write_atomically
from r2mrf_deploy.predict import sidecars, tiled_files
from r2mrf_deploy.predict.journal import Journal
from r2mrf_deploy.predict.outputs import Outputs
from r2mrf_deploy.predict.regions import Region, regions
from r2mrf_deploy.predict.rois import Rois
from r2mrf_deploy.predict.scores import Scores
from r2mrf_deploy.predict.sources import Sources
from r2mrf_deploy.predict.stores import Source
from r2mrf_deploy.predictor import Fitted, Focus, Predictor
from r2mrf_deploy.progress import Progress, ProgressCallback, silent
from r2mrf_deploy.runtimes.kserve.connection import ServerUnavailable

DECODED_SIDE = 2048
"""A JPEG file may be decoded at a half, a quarter or an eighth of its size, as long as its longest side stays at least this
and twice the network's."""

MOST_THREADS = 16
"""The most threads that read, and the most that write: each has a photograph in memory."""


@dataclass(frozen=True)
class Prediction:
    """What became of one photograph."""

    source: str
    """Its path, or its address in an object store."""
    outputs: dict[str, Path] = field(default_factory=dict)
    """Kind -> file."""
    scores: Scores | None = None
    note: str = ""
    """What there is to know: that only the first frame was read, for example."""
    error: str | None = None

    @property
    def map(self) -> Path | None:
        return self.outputs.get("map")

    @property
    def overlay(self) -> Path | None:
        return self.outputs.get("overlay")

    @property
    def in_focus(self) -> float | None:
        """The share of the photograph, 0 to 1, that is in focus."""
        return self.scores.in_focus if self.scores else None

    def to_dict(self) -> dict[str, Any]:
        scores = self.scores.to_dict() if self.scores else {}
        files = {kind: str(file) for kind, file in self.outputs.items()}
        return {"source": self.source, "outputs": files, **scores, "note": self.note, "error": self.error}


@dataclass(frozen=True)
class Work:
    """A photograph on its way. Where something went wrong, `error` says it, and the rest of the way does nothing."""

    source: Source
    bytes: int | None = None
    image: np.ndarray | None = None
    note: str = ""
    whole: tuple[int, int] = (0, 0)
    """The photograph's own (height, width), where the decoder reduced it."""
    fitted: Fitted | None = None
    focus: Focus | None = None
    error: str | None = None

    @property
    def shape(self) -> object:
        """What those of a batch have in common; what failed is alone."""
        return self.fitted.shape if self.fitted else self


def predict(
    predictor: Predictor,
    sources: Sources | Sequence[Path],
    output: Path,
    outputs: Outputs | None = None,
    *,
    batch: int | None = None,
    tile: float | None = None,
    rois: Rois | None = None,
    xmp: bool = False,
    resume: bool = False,
    model: str = "",
    progress: ProgressCallback = silent,
    total: int | None = None,
) -> Iterator[Prediction]:
    """Write what `outputs` says of every photograph, and a journal (`predictions.jsonl`) with its scores.

    Whatever goes wrong with a photograph is said in its `Prediction.error`; the others go on. Photographs are only read:
    nothing that was given is changed, moved or overwritten.

    Args:
        sources: a stream of photographs, or a few files.
        output: a folder.
        batch: as for `Predictor.map`.
        tile: compute the map at the photograph's own scale by tiles that overlap by this share of their size.
        rois: regions of interest, for `Scores.roi`.
        xmp: write a sidecar with a rating beside each photograph too.
        resume: skip what the journal says is done.
        model: what identifies the network, for the journal; a run of another cannot be resumed.
        total: how many photographs there are, if that is known, for `progress`.

    Yields:
        One for each photograph that was not skipped, in their order.

    Raises:
        UsageError: `output` is not a folder, or photographs would be overwritten; or as `Journal` raises it.
        ArtifactError: `output` cannot be written. Both are raised before anything is written.
    """
    outputs = outputs or Outputs()
    if output.exists() and not output.is_dir():
        raise UsageError(f"`output` {output} is a file: name a folder for the maps")
    if tile is not None:
        tiled_files.refuse_options(outputs, tile)
    refuse_unwritable(output / "_map.png")
    if not isinstance(sources, Sources):
        sources = Sources(sources, output=output)
    _refuse_overwriting(sources, output, outputs)
    predictor.refuse_batch(batch)
    settings = {
        "model": model,
        "runtime": predictor.runner.runtime,
        **asdict(outputs),
        "save": sorted(outputs.save),
        "flip": predictor.flip,
        "tile": tile,
        "rois": rois and str(rois.path),
        "xmp": xmp,
    }
    stream = iter(sources)
    if (first := next(stream, None)) is None:  # nothing was listed: what is there stays as it is
        return
    with Journal(output, settings, resume=resume) as journal, staging(output / "predictions") as staged:
        maker = _Maker(predictor, sources, output, staged, outputs, rois, xmp, tile, batch, progress)
        taken = 0

        def left() -> Iterator[Source]:
            nonlocal taken
            for source in chain([first], stream):
                if journal.has(source):
                    taken += 1
                else:
                    yield source

        todo = left()
        with closing(maker.each(todo) if tile is None else maker.each_tiled(todo)) as done:
            for size, prediction in done:
                journal.append(_record(prediction, size, output))
                taken += 1
                progress(Progress(Path(prediction.source).name, taken, total))
                yield prediction
        journal.finish()


def _record(prediction: Prediction, size: int | None, output: Path) -> dict[str, Any]:
    """A line of the journal. Outputs are relative to it, so that their folder can be moved."""
    files = {kind: file.relative_to(output).as_posix() for kind, file in prediction.outputs.items()}
    return prediction.to_dict() | {"outputs": files, "bytes": size}


def _refuse_overwriting(sources: Sources, output: Path, outputs: Outputs) -> None:
    for source in sources.files:
        for file in outputs.files(output, source.name).values():
            if victim := sources.holds(file):
                raise UsageError(
                    f"what is made from {source.address} would overwrite {victim}: choose another `output` folder"
                )


def decoded_side(largest: tuple[int, int]) -> int:
    """The longest side down to which a JPEG file may be decoded, for a network whose input has at most (height, width)."""
    return max(DECODED_SIDE, 2 * max(largest))


def read_photograph(predictor: Predictor, source: Source) -> Work:
    """A photograph, decoded and fitted into the network's input. It needs nothing of the runner but its `inputs`."""
    if source.error:
        return Work(source, error=source.error)
    try:
        photograph = images.load(source.content(), decoded_side(predictor.largest), name=source.address)
        fitted = predictor.fit(photograph.pixels)
        return Work(source, source.size(), photograph.pixels, photograph.note, photograph.size, fitted)
    except Exception as e:  # of any library: one photograph must not end a batch of thousands
        return Work(source, source.size(), error=said(source, e))


def infer(predictor: Predictor, works: list[Work]) -> list[Work]:
    """The maps of photographs whose inputs have one shape."""
    if works[0].fitted is None:
        return works
    try:
        found = predictor.infer([work.fitted for work in works if work.fitted])
    except ServerUnavailable:  # every photograph would fail: the run ends, and can be resumed
        raise
    except Exception as e:
        if len(works) > 1:  # one of them may be the cause
            return [each for work in works for each in infer(predictor, [work])]
        return [replace(works[0], error=said(works[0].source, e))]
    return [
        replace(work, focus=replace(focus, photograph=work.whole), fitted=None)
        for work, focus in zip(works, found, strict=True)
    ]


def made(work: Work, outputs: Outputs) -> tuple[Iterator[tuple[str, bytes]], np.ndarray, list[Region]]:
    """What is made of a photograph and its map: the content of each output as it is asked for, the map at the network's
    own scale, float32 [h, w], and the regions in focus."""
    assert work.image is not None and work.focus is not None
    image, focus, needed = work.image, work.focus, outputs.drawn_side
    if image.shape[:2] != work.whole and (needed is None or needed > max(image.shape)):
        image = images.load(work.source.content(), name=work.source.address).pixels
    small = focus.at(focus.shape)
    found = regions(small, work.whole)
    return outputs.contents(image, focus, found), small, found


Done = Generator[tuple[int | None, Prediction], None, None]


@dataclass(frozen=True)
class _Maker:
    """The steps from a photograph to its files. The fields are `predict`'s arguments."""

    predictor: Predictor
    sources: Sources
    output: Path
    staged: Path
    """A folder beside the outputs, in which files are written before they are moved to their place."""
    outputs: Outputs
    rois: Rois | None
    xmp: bool
    tile: float | None
    batch: int | None
    progress: ProgressCallback

    def each(self, sources: Iterable[Source]) -> Done:
        """The number of bytes of each photograph, and what became of it."""
        threads = min(MOST_THREADS, environment.cores())
        read = ordered_map(partial(read_photograph, self.predictor), sources, threads)
        found = self.predictor.side_by_side(
            partial(infer, self.predictor), self.predictor.together(read, lambda work: work.shape, self.batch)
        )
        written = ordered_map(self.write, (work for works in found for work in works), threads)
        with ExitStack() as stack:  # the last first, so that none waits for what nobody takes
            stack.enter_context(closing(read))
            stack.enter_context(closing(found))
            stack.enter_context(closing(written))
            yield from written

    def each_tiled(self, sources: Iterable[Source]) -> Done:
        for source in sources:
            yield source.size(), self._attempted(source, self._tiled)

    def write(self, work: Work) -> tuple[int | None, Prediction]:
        if work.error is not None:
            return work.bytes, Prediction(work.source.address, error=work.error)
        return work.bytes, self._attempted(work.source, lambda source: self._written(source, work))

    def _written(self, source: Source, work: Work) -> Prediction:
        files = self._files(source)
        contents, small, found = made(work, self.outputs)
        for kind, content in contents:
            write_atomically(files[kind], content, within=self.output, staged=self.staged)
        return self._scored(source, files, small, work.whole, work.note, found)

    def _tiled(self, source: Source) -> Prediction:
        files = self._files(source)
        assert self.tile is not None
        small, size, note = tiled_files.write(
            self.predictor, source.content(), source.address, files, self.outputs, self.output,
            overlap=self.tile, batch=self.batch, progress=self.progress,
        )  # fmt: skip
        return self._scored(source, files, small, size, note, regions(small, size))

    def _scored(
        self,
        source: Source,
        files: dict[str, Path],
        small: np.ndarray,
        size: tuple[int, int],
        note: str,
        found: Sequence[Region],
    ) -> Prediction:
        shape = (small.shape[0], small.shape[1])
        weight = self.rois.weight(source.address, source.name, shape, size) if self.rois else None
        scores = Scores.of(small, size, weight, found)
        if self.xmp:
            where = "it lies in no folder here" if source.read else sidecars.write(Path(source.address), scores)
            note = "; ".join(filter(None, (note, where)))
        return Prediction(source.address, files, scores, note)

    def _files(self, source: Source) -> dict[str, Path]:
        files = self.outputs.files(self.output, source.name)
        for file in files.values():
            if victim := self.sources.holds(file):
                raise UsageError(f"{file} would lie among the photographs in {victim}: choose another `output` folder")
        return files

    def _attempted(self, source: Source, step: Callable[[Source], Prediction]) -> Prediction:
        """What a step makes of a photograph; or why it failed, in its place."""
        if source.error:
            return Prediction(source.address, error=source.error)
        try:
            return step(source)
        except ServerUnavailable:
            raise
        except Exception as e:  # of any library: one photograph must not end a batch of thousands
            return Prediction(source.address, error=said(source, e))


def said(source: Source, e: Exception) -> str:
    """What a photograph's `error` says of an exception."""
    if isinstance(e, ModuleNotFoundError) and e.name in environment.EXTRAS:
        return f"{source.address} needs {e.name}: {environment.installs(e.name)}"
    said = str(e) if isinstance(e, R2mrfError) else f"{type(e).__name__}: {first_line(e)}"
    return said if source.address in said else f"{source.address}: {said}"
