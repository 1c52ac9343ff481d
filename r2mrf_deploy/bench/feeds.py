"""Inputs for a measurement: random or from files, at every requested shape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from r2mrf_deploy.errors import InputError, UsageError, did_you_mean, no_file, reading
from r2mrf_deploy.manifest import DEFAULT_SIZE, TensorSpec
from r2mrf_deploy.wording import count

Feed = dict[str, np.ndarray]


def sweep(
    specs: Sequence[TensorSpec],
    batches: Sequence[int],
    size: tuple[int, int],
    shapes: Mapping[str, Sequence[int]],
    files: Mapping[str, Path],
) -> list[tuple[int, Feed]]:
    """Pair each batch size with its inputs; there is only one if the specs or `shapes` fix the batch.

    Args:
        specs: the inputs.
        batches, size: batch sizes, height and width where they are free.
        shapes: input name -> shape; names of other inputs are ignored.
        files: input name -> file with its values; names of other inputs are ignored.

    Raises:
        UsageError: a shape does not fit, or another batch is fixed.
        InputError: a file cannot be used.
    """
    fixed = [d for s in specs if isinstance(d := shapes.get(s.name, s.shape)[0], int)]
    if fixed and fixed[0] not in batches and list(batches) != [1]:
        asked = ",".join(map(str, batches))
        raise UsageError(
            f"`batch` {asked}: the batch is fixed at {fixed[0]} here; export another batch or a dynamic graph"
        )
    found = []
    for batch in fixed[:1] if fixed else batches:
        feed = random(specs, (batch, *size), shapes)
        feed.update({s.name: load(files[s.name], s, feed[s.name].shape) for s in specs if s.name in files})
        found.append((batch, feed))
    return found


def refuse_size(
    name: str, specs: Sequence[TensorSpec], size: tuple[int, int], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Raise UsageError if an input has another, fixed size."""
    for spec in specs:
        if spec.name not in shapes and (fixed := _fixed_size(spec)) not in (None, size):
            raise UsageError(
                f"`size` {size[0]}x{size[1]}: {name} has a fixed size, {'x'.join(map(str, fixed or ()))}: omit `size`, "
                "or export with that size or a dynamic graph"
            )


def fixed_size(specs: Iterable[TensorSpec]) -> tuple[int, int] | None:
    """Height and width of the first image whose size is fixed; None if there is none."""
    return next(filter(None, map(_fixed_size, specs)), None)


def _fixed_size(spec: TensorSpec) -> tuple[int, int] | None:
    height, width = (spec.shape[axis] for axis in spec.spatial_axes) if len(spec.shape) == 4 else (None, None)
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def random(
    specs: Sequence[TensorSpec],
    free: Sequence[int] = (1, *DEFAULT_SIZE),
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> Feed:
    """Random inputs, since the time of a convolution does not depend on the image.

    Args:
        specs: the inputs.
        free: batch, height and width where they are free.
        shapes: input name -> shape; overrides `free`.

    Raises:
        UsageError: a shape does not fit its input.
    """
    generator = np.random.default_rng(seed)
    feed = {}
    for spec in specs:
        values = dict(zip((0, *spec.spatial_axes), free, strict=True))
        shape = [d if isinstance(d, int) else values.get(i, 1) for i, d in enumerate(spec.shape)]
        if shapes and spec.name in shapes:
            shape = list(shapes[spec.name])
            if not spec.accepts(tuple(shape)):
                raise UsageError(f"`shapes` {spec.name}:{'x'.join(map(str, shape))} does not fit {spec}")
        if spec.dtype == "uint8":
            feed[spec.name] = generator.integers(0, 256, shape, dtype=np.uint8)
        else:
            feed[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    return feed


def load(file: Path, spec: TensorSpec, shape: Sequence[int]) -> np.ndarray:
    """Read the values of an input from a NumPy `.npy` file, or from raw bytes as trtexec does.

    Raises:
        InputError: the file does not exist, or contains something else.
    """
    if not file.is_file():
        raise no_file(file)
    with reading(file, InputError, f"cannot be read as the values of {spec.name}"):
        if file.suffix == ".npy":
            array: np.ndarray = np.lib.format.open_memmap(
                file, mode="r"
            )  # allocates nothing, whatever size the header claims
        else:
            content = file.read_bytes()
            wanted = math.prod(shape) * np.dtype(spec.dtype).itemsize
            if len(content) != wanted:
                raise InputError(
                    f"{file} has {count(len(content), 'byte')}; {spec.name} {list(shape)} {spec.dtype} needs {wanted}"
                )
            array = np.frombuffer(content, spec.dtype).reshape(shape)
    if array.dtype.name != spec.dtype or list(array.shape) != list(shape):
        raise InputError(
            f"{file} contains {array.dtype.name} {list(array.shape)}; {spec.name} is {spec.dtype} {list(shape)}"
        )
    return np.array(array)


def parse_files(text: str) -> dict[str, Path]:
    """Parse trtexec's notation, `image:a.bin,mask:b.npy`. Raises UsageError if the text has another form."""
    files = {}
    for item in filter(None, text.split(",")):
        name, colon, file = item.partition(":")
        if not (name and colon and file):
            raise UsageError(f"`inputs` {item}: write it as name:file, with commas between inputs")
        files[name.strip()] = Path(file.strip())
    return files


def refuse_unknown(known: Iterable[str], *given: Mapping[str, object]) -> None:
    """Raise UsageError if a name is not among the known inputs."""
    names = sorted(known)
    for name in chain(*given):
        if name not in names:
            raise UsageError(f"no input {name!r}: {did_you_mean(name, names)}")
