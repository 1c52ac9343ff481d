"""Photographs in, maps and overlays out, with any artifact on any runtime."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from r2mrf_deploy import images, runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, InputError, R2mrfError, UsageError, first_line
from r2mrf_deploy.files import refuse_unwritable, short, write_atomically
from r2mrf_deploy.manifest import NEUTRAL, Preprocess, side_outputs
from r2mrf_deploy.runtimes import OpenOptions, Runner

LONGEST = 640
"""Longest side, in pixels, that a photograph is reduced to if neither the artifact nor its profile sets a size. Networks
learn blur at about this scale: what looks sharp in a photograph of 12 megapixels is soft from pixel to pixel."""


OverlayFormat = Literal["png", "jpg"]


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
    """The normalisation, for an artifact that takes a normalised tensor."""
    limit: Sequence[int] = ()
    """The largest input shape, if the artifact leaves it free."""

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
        limit = (contract.limit(spec.name) if contract else []) or [LONGEST] * len(spec.shape)
        return cls(runner, (contract.preprocess if contract else None) or NEUTRAL, limit)

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
        focus = self._run(image)["map"]
        if not np.isfinite(focus).all():
            raise ArtifactError(
                "the map is not finite: the artifact's weights or its normalisation are damaged; make it again"
            )
        focus = images.resize(focus, image.shape[:2])
        return np.clip(focus, 0, 1, out=focus)

    def sides(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The map of every side output that the artifact gives: name -> float32 [H, W] in [0, 1]."""
        outputs = self._run(image)
        logits = {name: images.resize(outputs[name], image.shape[:2]) for name in side_outputs(outputs)}
        return {name: 1 / (1 + np.exp(-np.clip(x, -50, 50))) for name, x in logits.items()}

    def _run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Every output for a photograph, float32 [h, w]."""
        spec = self.runner.inputs[0]
        array = images.as_input(image, spec, self.preprocess, self.limit)
        batch = spec.shape[0]
        if isinstance(batch, int) and batch > 1:  # a static batch is filled up with copies
            array = np.repeat(array, batch, axis=0)
        outputs = self.runner.run({spec.name: array})
        return {name: output[0, 0].astype(np.float32) for name, output in outputs.items()}


def predict(
    predictor: Predictor,
    sources: Sequence[Path],
    output: Path,
    *,
    overlays: bool = True,
    overlay_side: int = images.OVERLAY_SIDE,
    overlay_format: OverlayFormat = "png",
) -> Iterator[Prediction]:
    """Write `NAME_map.png` (8-bit grey, white = in focus) at the size of every source, and `NAME_overlay.png` or `.jpg`,
    whose longest side is at most `overlay_side` pixels.

    Whatever goes wrong with a source is said in its `Prediction.error`; the others go on.

    Raises:
        UsageError: `output` is not a folder, or a source would be overwritten; raised before anything is written.
        ArtifactError: `output` cannot be written; raised likewise.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"`output` {output} is a file: name a folder for the maps")
    refuse_unwritable(output / "_map.png")
    planned = [
        (source, output / f"{name}_map.png", output / f"{name}_overlay.{overlay_format}" if overlays else None)
        for source, name in zip(sources, _names(sources), strict=True)
    ]
    resolved = {os.path.realpath(source): source for source in sources}
    for source, *files in planned:
        for file in filter(None, files):
            if victim := resolved.get(os.path.realpath(file)):
                raise UsageError(f"what is made from {source} would overwrite {victim}: choose another `output` folder")
    for source, map_path, overlay in planned:
        try:
            image = images.read(source)
            focus = predictor(image)
            if overlay:
                encode = images.jpeg if overlay_format == "jpg" else images.png
                write_atomically(overlay, encode(images.overlay(image, focus, overlay_side)), within=output)
            del image  # a large one takes hundreds of megabytes, which encoding the map can use
            write_atomically(map_path, images.png(images.grey(focus)), within=output)
            done = Prediction(source, map_path, overlay, float((focus >= 0.5).mean()))
        except Exception as e:  # of any library: one photograph must not end a batch of thousands
            said = str(e) if isinstance(e, R2mrfError) else f"{type(e).__name__}: {first_line(e)}"
            done = Prediction(source, error=said if str(source) in said else f"{source}: {said}")
        yield done


def _names(sources: Sequence[Path]) -> list[str]:
    """A name for each source, and for no other: its stem, or its name, or as many of its folders before it as are needed.

    Case is ignored, as some file systems do. A name leaves room for the longest end of an output's name.
    """
    parts = [source.absolute().parts[1:] for source in sources]
    names, depths = [source.stem for source in sources], [0] * len(sources)
    while True:
        keys = [unicodedata.normalize("NFC", name).casefold() for name in names]
        count = Counter(keys)
        again = [n for n, key in enumerate(keys) if count[key] > 1 and depths[n] < len(parts[n])]
        if not again:
            break
        for n in again:
            depths[n] += 1
            names[n] = "_".join(parts[n][-depths[n] :])
    room = 255 - len("_overlay.png")
    return [
        short(name, source, room, always=count[key] > 1) for name, source, key in zip(names, sources, keys, strict=True)
    ]
