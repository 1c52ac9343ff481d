"""Photographs in, maps and overlays out, with any artifact on any runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import images, runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, InputError, UsageError
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.fitting import Fitting, as_input
from r2mrf_deploy.manifest import NEUTRAL, Preprocess, side_outputs
from r2mrf_deploy.runtimes import OpenOptions, Runner


@dataclass(frozen=True)
class Prediction:
    """What became of one photograph."""

    source: Path
    map: Path | None = None
    overlay: Path | None = None
    in_focus: float | None = None
    """The share of the image, 0 to 1, that is in focus according to the map."""
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Predictor:
    """An opened artifact or checkpoint, and how to feed it."""

    runner: Runner
    preprocess: Preprocess
    """How a photograph is fitted into the input, and normalised for an artifact that takes a normalised tensor."""
    profile: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """The smallest and largest input shape, if the artifact leaves it free."""

    @classmethod
    def open(
        cls,
        artifact: Artifact | Path | str,
        runtime: str | None = None,
        *,
        trust: bool = False,
        options: OpenOptions | None = None,
    ) -> Predictor:
        """Open an artifact for photographs. Raises what `runtimes.open` does, and InputError if it takes no image."""
        artifact = Artifact.open(artifact)
        runner = runtimes.open(artifact, runtime, trust=trust, options=options)
        contract, spec = artifact.contract, runner.inputs[0]
        if len(runner.inputs) != 1 or spec.layout is None:
            raise InputError(f"{artifact.path} has no contract that says how its input takes a photograph")
        preprocess = contract.preprocess if contract else runner.preprocess
        return cls(runner, preprocess or NEUTRAL, contract.profile(spec.name) if contract else {})

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.close()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The map of a photograph.

        Args:
            image: uint8 [H, W, 3] RGB, any size.

        Returns:
            float32 [H, W] in [0, 1], 1 = in focus.

        Raises:
            ArtifactError: the network's map is not finite.
        """
        focus = self._run(image, ["map"])["map"]
        if not np.isfinite(focus).all():
            raise ArtifactError(
                "the map is not finite: the artifact's weights or its normalisation are damaged; make it again"
            )
        return np.clip(focus, 0, 1)

    def sides(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The map of every side output that the artifact gives: name -> float32 [H, W] in [0, 1]."""
        logits = self._run(image, side_outputs(o.name for o in self.runner.outputs))
        return {name: 1 / (1 + np.exp(-np.clip(x, -50, 50))) for name, x in logits.items()}

    def _run(self, image: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Outputs for a photograph, float32 of its size."""
        spec = self.runner.inputs[0]
        fitting = Fitting.of(image.shape[:2], spec, self.preprocess, self.profile)
        outputs = self.runner.run({spec.name: as_input(image, spec, self.preprocess, self.profile)})
        return {name: fitting.cut(outputs[name][0, 0].astype(np.float32)) for name in names}


def predict(
    predictor: Predictor, sources: Sequence[Path], output: Path, *, overlays: bool = True
) -> Iterator[Prediction]:
    """Write `NAME_map.png` (8-bit grey, white = in focus) and `NAME_overlay.png` for every source, at its size.

    A source that cannot be read is reported in its `Prediction.error`; the others go on.

    Raises:
        UsageError: `output` is not a folder, or a source would be overwritten; raised before anything is written.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"`output` {output} is a file: name a folder for the maps")
    planned = [
        (source, output / f"{name}_map.png", output / f"{name}_overlay.png" if overlays else None)
        for source, name in zip(sources, _names(sources), strict=True)
    ]
    resolved = {source.resolve(): source for source in sources}
    for source, *files in planned:
        for file in filter(None, files):
            if victim := resolved.get(file.resolve()):
                raise UsageError(f"what is made from {source} would overwrite {victim}: choose another `output` folder")
    for source, map_path, overlay in planned:
        try:
            image = images.read(source)
        except InputError as e:
            yield Prediction(source, error=str(e))
            continue
        focus = predictor(image)
        write_atomically(map_path, images.png(np.round(focus * 255).astype(np.uint8)))
        if overlay:
            write_atomically(overlay, images.png(images.overlay(image, focus)))
        yield Prediction(source, map_path, overlay, float((focus >= 0.5).mean()))


def _names(sources: Sequence[Path]) -> list[str]:
    """A name for each source: its stem, and as much more of its path as is needed to make it unique."""
    chosen: list[str] = []
    for source in sources:
        same = [s for s in sources if s.stem == source.stem]
        if len(same) == 1:
            chosen.append(source.stem)
        elif len({s.name for s in same}) == len(same):
            chosen.append(source.name)
        else:
            chosen.append("_".join(p for p in source.resolve().parts if p != source.anchor))
    return chosen
