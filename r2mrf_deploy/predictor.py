"""A photograph in, its map out, with any artifact on any runtime."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from r2mrf_deploy import images, runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.concurrency import ordered_map
from r2mrf_deploy.errors import ArtifactError, InputError, UsageError
from r2mrf_deploy.fitting import Fitting, as_input, largest, size_in_words
from r2mrf_deploy.manifest import NEUTRAL, Contract, Preprocess, side_outputs
from r2mrf_deploy.model_cache import ModelCache
from r2mrf_deploy.pixels import as_pixels
from r2mrf_deploy.progress import timed
from r2mrf_deploy.runtimes import OpenOptions, Runner, Runtime
from r2mrf_deploy.wording import count

T = TypeVar("T")
R = TypeVar("R")
_LOG = logging.getLogger(__name__)
MOST_STREAMS = runtimes.MOST_STREAMS
"""The most inferences that are computed side by side on a CPU unless more are asked for."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """An opened artifact or checkpoint, and how to feed it."""

    runner: Runner
    preprocess: Preprocess
    """How a photograph is fitted into the input, and normalised for an artifact that takes a normalised tensor."""
    profile: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """The smallest and largest input shape, if the artifact leaves it free."""
    flip: bool = False
    """Average every map with that of the mirrored photograph, mirrored back: it takes twice the time.

    The two are computed one after the other even where the artifact has a batch of several. Only then is the map of the
    mirrored photograph exactly the mirrored map: runtimes may round differently at another place in a batch.
    """
    network: str | None = None
    """The name of the network, if the artifact or the checkpoint says it."""

    @classmethod
    def open(
        cls,
        artifact: Artifact | Path | str,
        runtime: str | None = None,
        *,
        trust: bool = False,
        options: OpenOptions | None = None,
        flip: bool = False,
        many: bool = False,
        cache: bool = False,
    ) -> Predictor:
        """Open an artifact for photographs.

        Args:
            many: open it for many photographs: on a CPU, several are computed side by side, as many as pay and up to
                `MOST_STREAMS`, if the runtime can. One alone then takes longer. `options.streams` and `options.threads` say
                how many, too.
            cache: keep what the runtime compiles in a folder of the user, and look for it there (`ModelCache.of_user`), if
                the runtime can. Opening it again then takes less time.

        Raises:
            InputError: it takes no image.
            R2mrfError: what `runtimes.open` raises.
        """
        artifact = Artifact.open(artifact)
        options = options or OpenOptions()
        if many or cache:
            chosen = runtimes.get(runtime) if runtime else runtimes.default(artifact)
            options = replace(options, **_suited(chosen, options, many=many, cache=cache))
        runner = runtimes.open(artifact, runtime, trust=trust, options=options)
        if len(runner.inputs) != 1 or runner.inputs[0].layout is None:
            runner.close()
            raise InputError(f"{artifact.path} has no contract that says how its input takes a photograph")
        return cls.of(runner, artifact.contract, flip=flip)

    @classmethod
    def of(cls, runner: Runner, contract: Contract | None = None, *, flip: bool = False) -> Predictor:
        """Feed a runner as its artifact's contract says, or if it has none as its checkpoint says."""
        if contract is None:
            return cls(runner, runner.preprocess or NEUTRAL, flip=flip, network=runner.network)
        profile = contract.profile(runner.inputs[0].name)
        return cls(runner, contract.preprocess or NEUTRAL, profile, flip, contract.network)

    def stretched(self, size: tuple[int, int]) -> Predictor:
        """The same runner, with every photograph stretched to one height and width, whatever the artifact or the checkpoint
        says of `fit` and `longest_side`.

        Raises:
            UsageError: its input cannot have this size.
        """
        spec, words = self.runner.inputs[0], "x".join(map(str, size))
        shape = [d if isinstance(d, int) else 1 for d in spec.shape]
        for axis, side in zip(spec.spatial_axes, size, strict=True):
            least, most = (self.profile[end][axis] if end in self.profile else side for end in ("min", "max"))
            if spec.shape[axis] != side and (isinstance(spec.shape[axis], int) or not least <= side <= most):
                cure = f"export it again with --size {words}, or give its checkpoint"
                raise UsageError(f"its input is {self.size}, and cannot be {words}: {cure}")
            shape[axis] = side
        preprocess = self.preprocess.model_copy(update={"fit": "stretch", "longest_side": max(size)})
        return replace(self, preprocess=preprocess, profile={"min": shape, "max": shape})

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        if "_threads" in self.__dict__:
            self._threads.shutdown()
        self.runner.close()

    @property
    def size(self) -> str:
        """The size of the input, in words: see `size_in_words`."""
        return size_in_words(self.runner.inputs[0], self.preprocess, self.profile)

    @property
    def largest(self) -> tuple[int, int]:
        """The largest (height, width) that the input can have."""
        return largest(self.runner.inputs[0], self.preprocess, self.profile)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The map of a photograph.

        Args:
            image: uint8 [H, W, 3] RGB, any size.

        Returns:
            float32 [H, W] in [0, 1], 1 = in focus.

        Raises:
            ArtifactError: the network's map is not finite.
        """
        return self.focus([image])[0].at(image.shape[:2])

    def map(self, photographs: Iterable[Any], batch: int | None = None) -> Iterator[np.ndarray]:
        """The maps of many photographs, in order, several of them computed at once. Few are in memory at any time.

        Args:
            photographs: each an array, a PIL image or a tensor, of any size: whatever `as_pixels` takes.
            batch: how many are computed in one inference; by default what the artifact has, and 1 where that is free. Those
                of one batch have one size in the network's input, and follow one another.

        Yields:
            float32 [H, W] in [0, 1], 1 = in focus.

        Raises:
            UsageError: the artifact cannot have this batch.
            InputError: something is no photograph.
            ArtifactError: a map is not finite.
        """
        self.refuse_batch(batch)
        prepared = ordered_map(lambda image: self.fit(as_pixels(image)), photographs, self.streams)
        found = self.side_by_side(self.infer, self.together(prepared, lambda f: f.shape, batch))
        yield from (focus.at(focus.photograph) for together in found for focus in together)

    def side_by_side(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
        """`ordered_map` by as many threads as there are streams. They stay, since on a GPU each has memory of its own."""
        return ordered_map(function, items, self.streams, pool=self._threads, abandon=self.runner.abandon)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.streams, "inference")

    @property
    def streams(self) -> int:
        """How many threads may use it at once to some advantage."""
        return self.runner.streams

    def focus(self, images: Sequence[np.ndarray]) -> list[Focus]:
        """The maps of photographs, uint8 [H, W, 3] each, at the scale at which the network computes them. All must have the
        same size in its input."""
        return self.infer([self.fit(image) for image in images])

    def fit(self, image: np.ndarray) -> Fitted:
        """A photograph, uint8 [H, W, 3], as the network's input, which `infer` takes."""
        spec = self.runner.inputs[0]
        views = (image, image[:, ::-1]) if self.flip else (image,)
        fitting = Fitting.of(image.shape[:2], spec, self.preprocess, self.profile)
        return Fitted(fitting, tuple(as_input(view, spec, self.preprocess, self.profile)[:1] for view in views))

    def together(self, items: Iterable[T], shape: Callable[[T], object], batch: int | None = None) -> Iterator[list[T]]:
        """Items that follow one another and have the same shape, as many together as one inference takes.

        Args:
            shape: tells an item's shape in the network's input.
            batch: as for `map`.
        """
        own = self.runner.inputs[0].shape[0]
        most = batch or (own if isinstance(own, int) else 1)
        found: list[T] = []
        for item in items:
            if found and (len(found) == most or shape(item) != shape(found[0])):
                yield found
                found = []
            found.append(item)
        if found:
            yield found

    def refuse_batch(self, batch: int | None) -> None:
        """Raise UsageError if the artifact cannot have a batch."""
        own, most = self.runner.inputs[0].shape[0], self.runner.most_batch
        if batch is not None and (batch < 1 or (isinstance(own, int) and batch > own)):
            raise UsageError(f"`batch` {batch}: the artifact's is {own}; export it again with --batch {batch}")
        if batch is not None and most is not None and batch > most:
            raise UsageError(f"`batch` {batch}: the server takes {most} at most")

    def infer(self, fitted: Sequence[Fitted]) -> list[Focus]:
        """The maps of inputs of one size, no more of them than the artifact's batch.

        Raises:
            ArtifactError: a map is not finite.
        """
        found = []
        for views in zip(*(each.views for each in fitted), strict=True):
            maps = self._run(views)["map"]
            if not np.isfinite(maps).all():
                raise ArtifactError(
                    "the map is not finite: the artifact's weights or its normalisation are damaged; make it again"
                )
            found.append(maps)
        return [
            Focus(each.fitting.photograph, tuple(each.fitting.content_of(maps[n]) for maps in found))
            for n, each in enumerate(fitted)
        ]

    def sides(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The map of every side output that the artifact gives: name -> float32 [H, W] in [0, 1]."""
        fitted = self.fit(image)
        found = [self._sides(view, fitted.fitting) for view in fitted.views]
        return {name: _mean([sides[name] for sides in found]) for name in found[0]}

    def _sides(self, view: np.ndarray, fitting: Fitting) -> dict[str, np.ndarray]:
        outputs = self._run([view])
        logits = {name: images.resize(outputs[name][0], fitting.canvas) for name in side_outputs(outputs)}
        return {name: fitting.cut(1 / (1 + np.exp(-np.clip(x, -50, 50)))) for name, x in logits.items()}

    def _run(self, views: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Every output for some inputs, float32 [N, h, w]. A batch that is not full is filled with the last of them."""
        spec = self.runner.inputs[0]
        own = spec.shape[0] if isinstance(spec.shape[0], int) else len(views)
        full = [*views, *[views[-1]] * (own - len(views))]
        with timed(_LOG, "computed %s of %s", count(len(views), "map"), views[0].shape):
            outputs = self.runner.run({spec.name: full[0] if own == 1 else np.concatenate(full)})
        return {name: output[: len(views), 0].astype(np.float32) for name, output in outputs.items()}


def _suited(runtime: Runtime, options: OpenOptions, *, many: bool, cache: bool) -> dict[str, Any]:
    """The options for what a predictor is opened for, among those that a runtime supports."""
    known, found = runtime.supported_options, dict[str, Any]()
    if cache and "cache" in known and options.cache is None:
        found["cache"] = ModelCache.of_user()
    if many and options.streams is None:
        if options.threads is not None and "streams" in known:
            found["streams"] = min(MOST_STREAMS, options.threads)
        elif "throughput" in known:
            found["throughput"] = True
    return found


@dataclass(frozen=True, eq=False)
class Fitted:
    """A photograph as a network's input."""

    fitting: Fitting
    views: tuple[np.ndarray, ...]
    """The input, of a batch of one; with `flip`, that of the mirrored photograph too."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the input, without the batch."""
        return self.views[0].shape[1:]


@dataclass(frozen=True, eq=False)
class Focus:
    """The map of a photograph, at the scale at which the network computed it."""

    photograph: tuple[int, int]
    """The photograph's (height, width)."""
    views: tuple[np.ndarray, ...]
    """float32 [h, w]; with `flip`, that of the mirrored photograph too."""

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.views[0].shape
        return height, width

    def at(self, size: tuple[int, int]) -> np.ndarray:
        """The map, float32 in [0, 1], resized to (height, width)."""
        focus = _mean([images.resize(view, size) for view in self.views])
        return np.clip(focus, 0, 1, out=focus)


def _mean(views: Sequence[np.ndarray]) -> np.ndarray:
    """A map, float32 [H, W]; or the mean of it and of the mirrored photograph's. Neither comes first, so that nothing
    depends on which of the two photographs is the mirrored one."""
    if len(views) == 1:
        return views[0]
    found, mirrored = views
    return (found + mirrored[:, ::-1]) / 2
