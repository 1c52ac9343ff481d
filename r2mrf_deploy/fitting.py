"""How a photograph of any size lies in a network's input, and how its map is cut out of the network's output.

The photograph keeps its aspect and is never enlarged. An input that it does not fill is filled up with its own pixels,
mirrored at its edges. The C++ library does the same (`engines/cpp/src/fitting.cpp`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from r2mrf_deploy import images
from r2mrf_deploy.manifest import Preprocess, TensorSpec

SMALLEST = 32
"""The smallest side, in pixels, of an input whose size is free: the networks reduce by 32."""


@dataclass(frozen=True)
class Fitting:
    """Where the pixels of a photograph are in a network's input. Every size is (height, width) in pixels."""

    photograph: tuple[int, int]
    content: tuple[int, int]
    """What the photograph is resized to."""
    canvas: tuple[int, int]
    """The input. The content lies in its middle."""

    @classmethod
    def of(
        cls,
        photograph: tuple[int, int],
        spec: TensorSpec,
        preprocess: Preprocess,
        profile: Mapping[str, Sequence[int]] | None = None,
    ) -> Fitting:
        """Fit a photograph into an input.

        Args:
            photograph: its height and width.
            spec: the input, NHWC or NCHW. A free side becomes that of the resized photograph.
            preprocess: `fit` says what a static input does with another aspect, `longest_side` limits a free size.
            profile: the smallest (`min`) and largest (`max`) shape that the artifact takes, where its size is free.
        """
        least, most = _bounds(spec, preprocess, profile or {})
        if preprocess.fit == "stretch" and least == most:
            return cls(photograph, most, most)
        height, width = images.within(photograph, most)
        return cls(photograph, (height, width), (max(least[0], height), max(least[1], width)))

    @property
    def corner(self) -> tuple[int, int]:
        """Where the content begins in the canvas."""
        return (self.canvas[0] - self.content[0]) // 2, (self.canvas[1] - self.content[1]) // 2

    def place(self, image: np.ndarray) -> np.ndarray:
        """The canvas, uint8 [H, W, 3], with the photograph, uint8 [h, w, 3], in it."""
        content = images.resize(image, self.content)
        (top, left), (height, width) = self.corner, self.canvas
        around = (top, height - top - self.content[0]), (left, width - left - self.content[1]), (0, 0)
        return np.pad(content, around, mode="symmetric")

    def content_of(self, values: np.ndarray) -> np.ndarray:
        """The part of a map, float32 [H, W] of the canvas, that is the content's.

        A map of another size is that of the whole canvas too: some networks round odd sizes.
        """
        if self.content == self.canvas:
            return values
        (top, left), (height, width) = self.corner, self.content
        return images.resize(values, self.canvas)[top : top + height, left : left + width]

    def cut(self, values: np.ndarray) -> np.ndarray:
        """The part of a map that is the photograph's, at its size."""
        return images.resize(self.content_of(values), self.photograph)


def as_input(
    image: np.ndarray, spec: TensorSpec, preprocess: Preprocess, profile: Mapping[str, Sequence[int]] | None = None
) -> np.ndarray:
    """A photograph as a network's input: uint8 [N, h, w, 3] or normalised floats [N, 3, h, w].

    Args:
        image: uint8 [H, W, 3] RGB.
        spec, preprocess, profile: as for `Fitting.of`. A static batch of N holds copies; a free one is 1.
    """
    pixels = Fitting.of(image.shape[:2], spec, preprocess, profile).place(image)
    batch = spec.shape[0] if isinstance(spec.shape[0], int) else 1
    if spec.layout == "NCHW":
        mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (preprocess.mean, preprocess.std))
        pixels = ((pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255) - mean) / std).astype(spec.dtype)
    return np.repeat(pixels[None], batch, axis=0)


def largest(spec: TensorSpec, preprocess: Preprocess, profile: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """The largest height and width of the input that photographs lie in; arguments as for `Fitting.of`."""
    return _bounds(spec, preprocess, profile)[1]


def size_in_words(spec: TensorSpec, preprocess: Preprocess, profile: Mapping[str, Sequence[int]]) -> str:
    """The height and width of the input that photographs lie in: `640x640`, and `at most 640x640` where it is free.

    Args:
        spec, preprocess, profile: as for `Fitting.of`.
    """
    least, most = _bounds(spec, preprocess, profile)
    size = "x".join(map(str, most))
    if least != most:
        return f"at most {size}"
    return stretched_in_words(most) if preprocess.fit == "stretch" else size


def stretched_in_words(size: tuple[int, int]) -> str:
    """The size of an input that every photograph is stretched to."""
    return f"{size[0]}x{size[1]}, stretched"


def _bounds(
    spec: TensorSpec, preprocess: Preprocess, profile: Mapping[str, Sequence[int]]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The least and the most that the height and the width of the input can be."""
    (least_h, most_h), (least_w, most_w) = (
        _range(spec, axis, preprocess.longest_side, profile) for axis in spec.spatial_axes
    )
    return (least_h, least_w), (most_h, most_w)


def _range(spec: TensorSpec, axis: int, longest: int, profile: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """The least and the most that one side of the input can have."""
    side = spec.shape[axis]
    if isinstance(side, int):
        return side, side
    least = max(SMALLEST, profile["min"][axis]) if "min" in profile else SMALLEST
    return least, min(longest, profile["max"][axis]) if "max" in profile else longest
