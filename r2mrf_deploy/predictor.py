"""A photograph in, its map out, with any artifact on any runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from r2mrf_deploy import images, runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, InputError, UsageError
from r2mrf_deploy.fitting import Fitting, as_input, size_in_words
from r2mrf_deploy.manifest import NEUTRAL, Contract, Preprocess, side_outputs
from r2mrf_deploy.runtimes import OpenOptions, Runner


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

    @classmethod
    def open(
        cls,
        artifact: Artifact | Path | str,
        runtime: str | None = None,
        *,
        trust: bool = False,
        options: OpenOptions | None = None,
        flip: bool = False,
    ) -> Predictor:
        """Open an artifact for photographs. Raises what `runtimes.open` does, and InputError if it takes no image."""
        artifact = Artifact.open(artifact)
        runner = runtimes.open(artifact, runtime, trust=trust, options=options)
        if len(runner.inputs) != 1 or runner.inputs[0].layout is None:
            runner.close()
            raise InputError(f"{artifact.path} has no contract that says how its input takes a photograph")
        return cls.of(runner, artifact.contract, flip=flip)

    @classmethod
    def of(cls, runner: Runner, contract: Contract | None = None, *, flip: bool = False) -> Predictor:
        """Feed a runner as its artifact's contract says, or if it has none as its checkpoint says."""
        if contract is None:
            return cls(runner, runner.preprocess or NEUTRAL, flip=flip)
        return cls(runner, contract.preprocess or NEUTRAL, contract.profile(runner.inputs[0].name), flip)

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
        self.runner.close()

    @property
    def size(self) -> str:
        """The size of the input, in words: see `size_in_words`."""
        return size_in_words(self.runner.inputs[0], self.preprocess, self.profile)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The map of a photograph.

        Args:
            image: uint8 [H, W, 3] RGB, any size.

        Returns:
            float32 [H, W] in [0, 1], 1 = in focus.

        Raises:
            ArtifactError: the network's map is not finite.
        """
        focus = self._map(image)
        return _averaged(focus, self._map(image[:, ::-1])) if self.flip else focus

    def sides(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The map of every side output that the artifact gives: name -> float32 [H, W] in [0, 1]."""
        sides = self._sides(image)
        if not self.flip:
            return sides
        mirrored = self._sides(image[:, ::-1])
        return {name: _averaged(side, mirrored[name]) for name, side in sides.items()}

    def _map(self, image: np.ndarray) -> np.ndarray:
        fitting, outputs = self._run(image)
        focus = outputs["map"]
        if not np.isfinite(focus).all():
            raise ArtifactError(
                "the map is not finite: the artifact's weights or its normalisation are damaged; make it again"
            )
        focus = fitting.cut(focus)
        return np.clip(focus, 0, 1, out=focus)

    def _sides(self, image: np.ndarray) -> dict[str, np.ndarray]:
        fitting, outputs = self._run(image)
        logits = {name: images.resize(outputs[name], fitting.canvas) for name in side_outputs(outputs)}
        return {name: fitting.cut(1 / (1 + np.exp(-np.clip(x, -50, 50)))) for name, x in logits.items()}

    def _run(self, image: np.ndarray) -> tuple[Fitting, dict[str, np.ndarray]]:
        """Every output for a photograph, float32 [h, w], and where the photograph lies in them."""
        spec = self.runner.inputs[0]
        fitting = Fitting.of(image.shape[:2], spec, self.preprocess, self.profile)
        outputs = self.runner.run({spec.name: as_input(image, spec, self.preprocess, self.profile)})
        return fitting, {name: output[0, 0].astype(np.float32) for name, output in outputs.items()}


def _averaged(found: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """The mean of a map, float32 [H, W], and the mirrored photograph's. Neither comes first, so that nothing depends on
    which of the two photographs is the mirrored one."""
    return (found + mirrored[:, ::-1]) / 2
