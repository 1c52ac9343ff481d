"""`r2mrf train`, as it is typed."""

import json
import re
import shutil

import numpy as np
import pytest

from r2mrf_deploy import images
from r2mrf_deploy.cli import main
from r2mrf_deploy.cli.flags import parse_duration
from r2mrf_deploy.errors import UsageError

pytestmark = pytest.mark.artifact

TINY = [word for k in ("width=4", "amdf_channels=8", "initial_channels=4", "steps=1") for word in ("--set", k)]


@pytest.fixture
def dataset(tmp_path):
    """Noise; white = blurred on the right."""
    rng, half = np.random.default_rng(0), np.zeros((70, 70), np.uint8)
    half[:, 35:] = 255
    for folder in ("image", "gt"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    for n in range(3):
        (tmp_path / "set" / "image" / f"{n}.png").write_bytes(images.png(rng.integers(0, 256, (70, 70, 3), np.uint8)))
        (tmp_path / "set" / "gt" / f"{n}.png").write_bytes(images.png(half))
    return tmp_path / "set"


def test_a_dataset_becomes_a_checkpoint(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("r2mrf_deploy.training.module.STATISTICS", 2)
    small = ["--iterations", "2", "--batch", "2", "--size", "64", "--accelerator", "cpu", "--json", *TINY]
    other = shutil.copytree(dataset, tmp_path / "other")
    given = ["--data", str(dataset), "--white", "blurred", "--val", str(other), "--val-white", "blurred"]
    assert main(["train", "r2mrf-edge", *given, "-o", str(tmp_path / "run"), *small]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["finished"] and said["validation"]["photographs"] == 3
    assert main(["inspect", str(tmp_path / "run" / "r2mrf-edge.pth")]) == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give --data"),
        (["--data", "d"], "--data needs --white"),
        (["--sharp", "d", "--masks", "m"], "--masks needs --masks-white"),
        (["--sharp", "d", "--val", "v"], "--val needs --val-white"),
        (["--sharp", "d", "--white", "sharp"], "--white says what is white"),
        (["--sharp", "d", "--time", "soon"], "HH:MM:SS"),
        (["--sharp", "absent"], "absent: no such file"),
        (["--sharp", "d", "--images", "photos"], "they go with --data"),
        (["--sharp", "d", "--val-split", "s"], "it goes with --val"),
        (["--data", "d", "--white", "sharp", "--dataset", "cuhk"], "in cuhk white is blurred"),
        (
            ["--data", "d", "--white", "sharp", "--masks-white", "sharp"],
            "--masks-white says what is white in drawn masks",
        ),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(given, said, tmp_path, capsys):
    assert main(["train", "r2mrf-edge", "-o", str(tmp_path / "run"), *given]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_progress_without_a_terminal(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("r2mrf_deploy.training.module.STATISTICS", 2)
    monkeypatch.setattr("r2mrf_deploy.cli.train.LINES", 2)
    small = ["--iterations", "9", "--batch", "2", "--size", "64", "--accelerator", "cpu", *TINY]
    given = ["--data", str(dataset), "--images", "image", "--masks", "gt", "--white", "blurred"]
    assert main(["train", "r2mrf-edge", *given, "-o", str(tmp_path / "run"), *small]) == 0
    recipe, first, second, last = capsys.readouterr().err.splitlines()
    assert recipe.startswith(
        "recipe scratch (the network starts from random weights): 9 iterations of 2 pictures of 64×64"
    )
    for line, done in ((first, 5), (second, 9)):
        assert re.fullmatch(rf"{done}/9: loss \d\.\d+, \d+\.\d\d it/s, 0:00:\d\d left", line)
    assert "f_max" in last


def test_durations():
    assert parse_duration("--time", "01:02:03") == 3723 and parse_duration("--time", "90") == 90
    for text in ("", "1:2:3:4", "-5", "1.5"):
        with pytest.raises(UsageError):
            parse_duration("--time", text)
