"""What the workers of a cluster do with a part: read it, compute its maps, pack and write it.

The three steps are a task, a method of an actor that keeps one artifact open, and a task again. They take and give batches
of Ray Data with one row: a part's number and, packed, its photographs on their way. Nothing but overlays and the like needs
the decoded pictures, and for them the last step reads the photographs again; so a part takes little memory between steps.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import images, runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.concurrency import ordered_map
from r2mrf_deploy.files import scratch, sha256
from r2mrf_deploy.manifest import Manifest, Preprocess, TensorSpec
from r2mrf_deploy.predict.outputs import Outputs
from r2mrf_deploy.predict.parts import MOST_DEATHS, Parts
from r2mrf_deploy.predict.photographs import Prediction, Work, decoded_side, infer, made, read_photograph, said
from r2mrf_deploy.predict.scores import Scores
from r2mrf_deploy.predict.stores import Source
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.runtimes import OpenOptions, Runner
from r2mrf_deploy.runtimes.base import Arrays

Batch = dict[str, np.ndarray]
FETCHES = 8
"""Photographs of a part that are fetched from a store at once."""
NOTHING = np.empty((0, 0, 3), np.uint8)
"""In the place of a picture of which nothing is drawn."""


@dataclass(frozen=True)
class Model:
    """The files of an artifact, and their content for machines that do not have them."""

    path: Path
    digests: Mapping[str, str]
    """Name of each file -> its SHA-256."""
    content: Any
    """Ray's reference to name -> bytes."""

    @classmethod
    def of(cls, path: Path) -> Model:
        import ray

        artifact = Artifact.open(path)
        beside = [Manifest.path_for(path), path.with_suffix(".bin")]
        beside += [path.with_name(name) for name in (artifact.manifest.companions if artifact.manifest else ())]
        files = {file.name: file for file in (path, *beside) if file.is_file()}
        content = ray.put({name: file.read_bytes() for name, file in files.items()})
        return cls(path.resolve(), {name: sha256(file) for name, file in files.items()}, content)

    @contextmanager
    def here(self) -> Iterator[Path]:
        """The artifact on this machine: the file itself, or as long as it is opened a copy."""
        files = {self.path.with_name(name): digest for name, digest in self.digests.items()}
        if all(file.is_file() and sha256(file) == digest for file, digest in files.items()):
            yield self.path
            return
        import ray

        with scratch() as folder:
            for name, content in ray.get(self.content).items():
                (folder / name).write_bytes(content)
            yield folder / self.path.name


@dataclass(frozen=True)
class Opening:
    """How an artifact is opened: the arguments of `Predictor.open`."""

    model: Model
    runtime: str | None
    trust: bool
    options: OpenOptions
    flip: bool
    batch: int | None

    @contextmanager
    def open(self) -> Iterator[Predictor]:
        """Open it, on one CPU thread unless `options` says more."""
        with self.model.here() as path:
            artifact, options = Artifact.open(path), self.options
            chosen = runtimes.get(self.runtime) if self.runtime else runtimes.default(artifact)
            if options.threads is None and "threads" in chosen.supported_options:
                options = replace(options, threads=1)
            predictor = Predictor.open(
                artifact, chosen.name, trust=self.trust, options=options, flip=self.flip, many=True
            )
        with predictor:
            predictor.refuse_batch(self.batch)
            yield predictor


@dataclass(frozen=True)
class Opened:
    """What there is to know of an opened artifact without opening it again."""

    inputs: tuple[TensorSpec, ...]
    preprocess: Preprocess
    profile: Mapping[str, Any]
    flip: bool
    runtime: str
    on_gpu: bool

    @property
    def predictor(self) -> Predictor:
        """A predictor that fits photographs into the input, and can do nothing else."""
        return Predictor(_Inputs(self.inputs), self.preprocess, self.profile, self.flip)


class _Inputs(Runner):
    """Inputs, and no network behind them."""

    runtime, device = "none", "none"

    def __init__(self, inputs: tuple[TensorSpec, ...]) -> None:
        self.inputs = inputs

    def _run(self, arrays: Arrays) -> Arrays:
        raise AssertionError("this predictor only fits photographs")


@dataclass(frozen=True)
class Job:
    """What every step is told."""

    parts: Parts
    outputs: Outputs
    stores: tuple[Any, ...]
    """fsspec's file systems, with what they need to open their files."""
    opened: Opened


def opened(opening: Opening) -> Opened:
    """Open an artifact on a worker, to see whether and how it opens there."""
    with opening.open() as predictor:
        runner = predictor.runner
        return Opened(
            runner.inputs, predictor.preprocess, predictor.profile, predictor.flip, runner.runtime, runner.on_gpu
        )


def read(batch: Batch, job: Job) -> Batch:
    """Read and decode a part's photographs, and fit them into the network's input.

    A decoder may crash, and its worker with it. Ray starts the task again; a photograph that `MOST_DEATHS` workers were
    reading when they died is not read any more, and has an error instead.
    """
    number, start, length = (int(batch[name][0]) for name in ("number", "start", "length"))
    sources = job.parts.sources(start, length, job.stores)
    attempts, predictor = job.parts.attempts(number), job.opened.predictor
    deaths = attempts.deaths()

    def one(item: tuple[int, Source]) -> Work:
        place, source = item
        if deaths.get(f"photograph {place}", 0) >= MOST_DEATHS:
            return Work(source, error=f"{source.address}: {MOST_DEATHS} workers died while they read it")
        with attempts.at(f"photograph {place}"):
            return replace(read_photograph(predictor, source), image=None)

    # after a death one at a time, to know the photograph by which the next one dies
    at_once = FETCHES if any(source.read for source in sources) and not deaths else 1
    return _packed(number, list(ordered_map(one, enumerate(sources), at_once)))


class Network:
    """An actor: an opened artifact."""

    def __init__(self, job: Job, opening: Opening) -> None:
        self._job, self._batch = job, opening.batch
        self._open = opening.open()  # for as long as the actor lives
        self._predictor = self._open.__enter__()

    def __call__(self, batch: Batch) -> Batch:
        """Compute the maps of a part, those of one shape together."""
        number, works = _unpacked(batch)
        order = sorted(range(len(works)), key=lambda n: works[n].fitted.shape if works[n].fitted else ())  # type: ignore[union-attr]
        with self._job.parts.attempts(number).step("the network"):
            groups = self._predictor.together((works[n] for n in order), lambda work: work.shape, self._batch)
            computed = self._predictor.side_by_side(partial(infer, self._predictor), groups)
            found = dict(zip(order, (work for group in computed for work in group), strict=True))
        return _packed(number, [found[n] for n in range(len(works))])


def write(batch: Batch, job: Job) -> Batch:
    """Make the outputs of a part, and write its file. Gives the part's number, how many of its photographs failed, and the
    first error."""
    number, works = _unpacked(batch)
    attempts = job.parts.attempts(number)
    with attempts.step("writing"):
        failed, error = job.parts.write(number, (row(work, job) for work in works), tuple(job.outputs.endings))
    attempts.forget()
    return {name: np.array([value]) for name, value in (("number", number), ("failed", failed), ("error", error))}


def row(work: Work, job: Job) -> dict[str, Any]:
    """A photograph's scores and outputs."""
    source, contents = work.source, {}
    prediction = Prediction(source.address, error=work.error)
    if work.error is None:
        try:
            image = NOTHING
            if job.outputs.drawn_side != 0:
                side = decoded_side(job.opened.predictor.largest)
                image = images.load(source.content(), side, name=source.address).pixels
            stream, small, found = made(replace(work, image=image), job.outputs)
            contents = dict(stream)
            prediction = Prediction(source.address, scores=Scores.of(small, work.whole, None, found), note=work.note)
        except Exception as e:  # of any library: one photograph must not end a batch of millions
            prediction, contents = Prediction(source.address, error=said(source, e)), {}
    return prediction.to_dict() | contents


def _packed(number: int, works: list[Work]) -> Batch:
    content = np.empty(1, object)
    content[0] = pickle.dumps(works, protocol=pickle.HIGHEST_PROTOCOL)
    return {"number": np.array([number]), "works": content}


def _unpacked(batch: Batch) -> tuple[int, list[Work]]:
    return int(batch["number"][0]), pickle.loads(batch["works"][0])
