"""What an ExecuTorch program says of itself, read without ExecuTorch, and what is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from r2mrf_deploy import formats
from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.formats.executorch import Program
from r2mrf_deploy.inspection import inspect
from tests.conftest import manifest_of
from tests.fuzzing import COUNTS, mutations, survivors

CAST = "dim_order_ops::_to_dim_order_copy.out"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_network_is_one_part_and_the_contract_is_inside(programs: Callable[[str], Path], precision: str) -> None:
    """Outside of XNNPACK, only the cast of the image's bytes is left: each further cut would copy tensors back and forth."""
    path = programs(precision)
    content, manifest = formats.read(path), manifest_of(path)
    assert content.header == Program(0, {"XnnpackBackend": 1}, [CAST], content.header.planned_bytes)
    assert content.header.planned_bytes >= 96 * 128 * 3 * 5, "the bytes of the image and the floats that they become"
    assert content.contract is not None and manifest is not None
    assert content.contract.model_dump() == manifest.model_dump(include=set(type(content.contract).model_fields))
    said = inspect(path)
    assert said["delegates"] == {"XnnpackBackend": 1} and said["manifest"]["precision"] == precision


@pytest.mark.parametrize("size", [0, 7, 39, 40, 5000, -1])
def test_a_program_that_is_cut_off_is_refused(programs: Callable[[str], Path], tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.pte"
    path.write_bytes(programs("fp32").read_bytes()[:size])
    with pytest.raises(
        ArtifactError, match=r"x\.pte is not an ExecuTorch program, or is damaged \(it .*; export it again"
    ):
        formats.read(path)


@pytest.mark.parametrize("count", COUNTS)
def test_damage_is_refused_or_harmless(programs: Callable[[str], Path], tmp_path: Path, count: int) -> None:
    path = programs("fp32")
    whole = path.read_bytes()
    (flatbuffer,) = struct.unpack_from("<Q", whole, 16)
    for found in survivors(tmp_path / "x.pte", mutations(whole, count, range(flatbuffer)), formats.read, ArtifactError):
        assert isinstance(found.header, Program)  # type: ignore[attr-defined]


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pte"
    path.write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(ArtifactError, match="it does not begin as one"):
        formats.read(path)
