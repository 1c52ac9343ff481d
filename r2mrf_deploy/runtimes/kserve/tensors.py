"""Arrays as the protocol's binary tensors, and what a server may answer. Nothing that comes from a server is trusted."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from r2mrf_deploy.errors import ArtifactError, InputError, RuntimeUnavailable, reading
from r2mrf_deploy.manifest import Contract, TensorSpec

DTYPES = {
    f"{kind}{bits}": f"{name}{bits}"
    for kind, name in (("UINT", "uint"), ("INT", "int"), ("FP", "float"))
    for bits in (8, 16, 32, 64)
    if (kind, bits) != ("FP", 8)
} | {"BOOL": "bool", "BF16": "bfloat16", "BYTES": "object"}
"""The protocol's datatype -> numpy's name. BYTES are arrays of objects, each a `bytes`."""
_DATATYPES = {name: datatype for datatype, name in DTYPES.items()}

LARGEST = 1 << 28
"""Bytes of an answer, and of one input at its smallest: a map of 8192×8192 in FP32."""
MOST = 256
"""Tensors of a model, dimensions of a tensor and characters of a name: ours have far fewer."""


@dataclass(frozen=True)
class Tensor:
    """An array as it is sent: row by row, little-endian."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | memoryview


def encode(name: str, array: np.ndarray) -> Tensor:
    """An array as a tensor; one of objects must hold `bytes`."""
    datatype = _DATATYPES.get(array.dtype.name)
    if datatype is None:
        raise InputError(f"{name}: {array.dtype.name} cannot be sent to a server")
    if datatype == "BYTES":
        raw = b"".join(struct.pack("<I", len(item)) + item for item in array.ravel())
    else:
        raw = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return Tensor(name, datatype, array.shape, raw)


def decode(tensor: Tensor) -> np.ndarray:
    """A tensor as an array, which is read-only.

    Raises:
        ArtifactError: its bytes are not those of its shape.
    """
    count = math.prod(tensor.shape)
    if tensor.datatype == "BYTES":
        items = _items(tensor, count)
        array = np.empty(count, object)
        array[:] = items
        return array.reshape(tensor.shape)
    dtype = _dtype(DTYPES[tensor.datatype])
    if len(tensor.raw) != count * dtype.itemsize:
        wanted = f"{list(tensor.shape)} {dtype.name} needs {count * dtype.itemsize:,}"
        raise ArtifactError(f"{tensor.name} has {len(tensor.raw):,} bytes; {wanted}")
    return np.frombuffer(tensor.raw, dtype).reshape(tensor.shape)


def _items(tensor: Tensor, count: int) -> list[bytes]:
    items, raw, at = [], tensor.raw, 0
    while at < len(raw):
        size = struct.unpack_from("<I", raw, at)[0] if at + 4 <= len(raw) else len(raw)
        if at + 4 + size > len(raw):
            raise ArtifactError(f"{tensor.name}: its bytes end too early")
        items.append(bytes(raw[at + 4 : at + 4 + size]))
        at += 4 + size
    if len(items) != count:
        raise ArtifactError(f"{tensor.name} has {len(items):,} elements; {list(tensor.shape)} needs {count:,}")
    return items


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise RuntimeUnavailable("bfloat16 arrays need ml_dtypes: pip install ml_dtypes") from None
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def specs(found: Any, contract: Contract | None) -> tuple[TensorSpec, ...]:
    """The inputs or the outputs that a model's metadata list.

    Args:
        contract: says what servers do not know, the layouts, and sizes that the server leaves open. Without it, uint8 of
            rank 4 that ends in 3 is NHWC, and floats of rank 4 with 1 or 3 channels are NCHW.

    Raises:
        ArtifactError: the metadata are not what the protocol says, or contradict the contract.
    """
    if not isinstance(found, list) or len(found) > MOST:
        raise ArtifactError("its metadata list no inputs and outputs")
    said = {s.name: s for s in (*contract.inputs, *contract.outputs)} if contract else {}
    with reading("its metadata", ArtifactError, "are damaged"):
        listed = tuple(_spec(each, said) for each in found)
    if len({s.name for s in listed}) != len(listed):
        raise ArtifactError("its metadata name a tensor twice")
    return listed


def _spec(found: Any, said: dict[str, TensorSpec]) -> TensorSpec:
    if not isinstance(found, dict):
        raise ArtifactError("its metadata are damaged")
    name, datatype, shape = found.get("name"), found.get("datatype"), found.get("shape", [])
    if not isinstance(name, str) or not 0 < len(name) <= MOST or datatype not in DTYPES:
        raise ArtifactError(f"its metadata list a tensor {str(name)[:MOST]!r} of type {str(datatype)[:MOST]!r}")
    sizes = dimensions(shape, least=-1)
    own = [d if d >= 0 else f"{name}_{i}" for i, d in enumerate(sizes)]
    spec = TensorSpec(name=name, dtype=DTYPES[datatype], shape=own)
    if (ours := said.get(name)) is not None:
        return _agreed(spec, ours)
    kind, rank = np.dtype(spec.dtype if spec.dtype != "bfloat16" else "float32").kind, len(own)
    if spec.dtype == "uint8" and rank == 4 and own[3] == 3:
        return spec.model_copy(update={"layout": "NHWC"})
    return spec.model_copy(update={"layout": "NCHW"}) if kind == "f" and rank == 4 and own[1] in (1, 3) else spec


def _agreed(spec: TensorSpec, ours: TensorSpec) -> TensorSpec:
    """A tensor with what our contract says of it, too. The batch is the server's, which may put several together."""
    sizes = zip(spec.shape, ours.shape, strict=False)
    if (
        spec.dtype != ours.dtype
        or len(spec.shape) != len(ours.shape)
        or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in sizes)
    ):
        raise ArtifactError(f"it has {spec}, its contract says {ours}: another artifact is served than the contract's")
    shape = [
        mine if i and isinstance(mine, int) else own
        for i, (own, mine) in enumerate(zip(spec.shape, ours.shape, strict=True))
    ]
    return spec.model_copy(update={"shape": shape, "layout": ours.layout})


def dimensions(found: Any, least: int = 0) -> tuple[int, ...]:
    """A shape that a server says: whole numbers, or in the JSON of protobuf their digits.

    Raises:
        ArtifactError: it is none.
    """
    try:
        shape = tuple(int(d) for d in found if isinstance(d, (int, str)))
    except (ValueError, TypeError):
        shape = ()
    if not isinstance(found, list) or len(shape) != len(found) or len(shape) > 8 or any(d < least for d in shape):
        raise ArtifactError(f"a shape of it is {str(found)[:MOST]}")
    smallest = math.prod(max(1, d) for d in shape)
    if smallest > LARGEST:
        raise ArtifactError(f"a shape of it is {list(shape)}, which is more than {LARGEST >> 20} MiB")
    return shape


def checked(
    tensors: Sequence[Tensor], outputs: Sequence[TensorSpec], asked: Collection[str], batch: int | None
) -> dict[str, np.ndarray]:
    """The outputs that were asked for, as the model's metadata say they are.

    Args:
        batch: how many images were sent, which an output with a layout must have too; None where the input is none.

    Raises:
        ArtifactError: one is missing, or has another type or shape or too few bytes.
    """
    found = {t.name: t for t in tensors}
    wanted = {s.name: s for s in outputs}
    arrays = {}
    for name in asked:
        if name not in found:
            raise ArtifactError(f"the output {name!r} is missing")
        tensor, spec = found[name], wanted[name]
        if DTYPES.get(tensor.datatype) != spec.dtype:
            raise ArtifactError(f"{name} is {tensor.datatype[:MOST]}, not {_DATATYPES[spec.dtype]} as its metadata say")
        whole = batch is None or spec.layout is None or tensor.shape[:1] == (batch,)
        if not spec.accepts(tensor.shape) or not whole:
            raise ArtifactError(
                f"{name} has shape {list(tensor.shape)}, not {[batch or spec.shape[0], *spec.shape[1:]]}"
            )
        arrays[name] = decode(tensor)
    return arrays
