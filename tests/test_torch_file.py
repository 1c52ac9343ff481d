"""Files of torch.save: what is damaged is refused; what is read is what was written."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from r2mrf_deploy import weights
from r2mrf_deploy.errors import CheckpointError
from r2mrf_deploy.torch_file import read_file
from tests.fuzzing import COUNTS, mutations, survivors

CONTENT = {
    "format": "r2mrf-checkpoint/1",
    "config": {"steps": 2},
    "state_dict": {f"layer{i}.weight": torch.arange(0.0, 60).reshape(3, 4, 5) + i for i in range(4)},
}


def saved(content: object = CONTENT, **options: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def repacked(whole: bytes, changes: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with other members, their checksums right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as before, zipfile.ZipFile(file, "w", compression) as after:
        members = {name: before.read(name) for name in before.namelist()}
        for name, content in (members | changes).items():
            after.writestr(name, content)
    return file.getvalue()


def same(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


@pytest.mark.parametrize("count", COUNTS)
def test_whatever_is_damaged_is_refused_or_read_as_it_was(tmp_path: Path, count: int) -> None:
    whole = saved()
    found = survivors(tmp_path / "x.pth", mutations(whole, count), read_file, CheckpointError)
    assert all(same(content, CONTENT) for content in found)


@pytest.mark.parametrize("count", COUNTS)
def test_a_pickle_whose_checksum_is_right_may_still_lie(tmp_path: Path, count: int) -> None:
    """Somebody who damages a file on purpose corrects its checksum."""
    whole = saved()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        pickled = archive.read(name)
    damaged: Iterator[bytes] = (repacked(whole, {name: p}) for p in mutations(pickled, count, range(len(pickled))))
    for content in survivors(tmp_path / "x.pth", damaged, read_file, CheckpointError):
        assert isinstance(content, dict)


@pytest.mark.parametrize("count", COUNTS)
def test_a_bare_pickle_that_is_damaged(tmp_path: Path, count: int) -> None:
    whole = saved(_use_new_zipfile_serialization=False)
    for content in survivors(tmp_path / "x.pth", mutations(whole, count), read_file, CheckpointError):
        assert isinstance(content, dict)


def test_zeros_in_the_middle_of_the_shipped_weights_are_seen(tmp_path: Path) -> None:
    shipped = weights.find("r2mrf-edge")
    assert shipped is not None
    whole, path = bytearray(shipped.read_bytes()), tmp_path / "x.pth"
    middle = len(whole) // 2
    whole[middle : middle + (64 << 10)] = bytes(64 << 10)
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"x\.pth is damaged.*the checksum of its member '.*/data/\d+' differs"):
        read_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (repacked(saved(), {}, zipfile.ZIP_DEFLATED), "is compressed"),
        (repacked(saved(), {"../../outside": b"1"}), "outside its folder"),
        (saved({"w": torch.zeros(1).expand(1 << 40)}), r"a tensor \[1099511627776\] is larger than the file"),
        (saved({"a": [{"b": (torch.zeros(1).expand(1 << 40),)}]}), "larger than the file"),
    ],
    ids=["compressed", "outside", "inflated", "deep"],
)
def test_what_claims_more_than_it_has_is_refused_before_it_is_unpacked(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_file(path)


def test_weights_that_are_marked_as_a_folder_are_refused(tmp_path: Path) -> None:
    """PyTorch takes one bit in the directory of the archive to mean that there is nothing to read."""
    whole, path = saved(), tmp_path / "x.pth"
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data/3")).encode()
    at = whole.rindex(b"PK\x01\x02", 0, whole.rindex(name)) + 38  # the external attributes
    path.write_bytes(whole[:at] + b"\x10" + whole[at + 1 :])
    with pytest.raises(CheckpointError, match="marked as a folder"):
        read_file(path)


def test_a_file_saved_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        (tmp_path / "x.pth").write_bytes(saved())
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_file(tmp_path / "x.pth"), CONTENT)


def test_a_pickle_that_refers_to_itself_ends(tmp_path: Path) -> None:
    content: dict[str, object] = {"w": torch.zeros(1)}
    content["self"] = [content]
    (tmp_path / "x.pth").write_bytes(saved(content))
    assert torch.equal(read_file(tmp_path / "x.pth")["w"], torch.zeros(1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archive_is_refused_without_advice_to_run_it(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"TorchScript.*state_dict") as error:
        read_file(tmp_path / "x.pt")
    assert "weights_only" not in str(error.value)
