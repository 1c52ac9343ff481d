import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from r2mrf_deploy import images
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import ArtifactError, CheckpointError, InputError, RuntimeUnavailable, UsageError
from r2mrf_deploy.progress import Notice
from r2mrf_deploy.training import callbacks, resuming, run
from r2mrf_deploy.training.data import TrainingData
from r2mrf_deploy.training.recipe import FINETUNE, PAPER, SCRATCH, Iteration
from r2mrf_deploy.training.run import Hardware, TrainingConfig
from tests.fuzzing import COUNTS, mutations, survivors
from tests.test_full_disk import full

pytestmark = pytest.mark.artifact

SETTINGS = {"width": "4", "amdf_channels": "8", "initial_channels": "4", "steps": "2"}
CPU = Hardware(accelerator="cpu")
LATER = {"scales": (1.0, 1.0), "aspect": (1.0, 1.0), "augmented": False, "backbone_rate": 1.0, "overlap": 0.0}
"""Fields that recipes did not have at first, and what was done before they had them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three photographs of noise, and two masks, white = blurred."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("sharp", "masks"):
        (folder / name).mkdir()
    for n in range(3):
        (folder / "sharp" / f"{n}.png").write_bytes(images.png(rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)))
        half = np.zeros((60, 60), np.uint8)
        half[:, 20 + 10 * n :] = 255
        Image.fromarray(half).save(folder / "masks" / f"{n}.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("r2mrf_deploy.training.module.STATISTICS", 2)
        patch.setattr("r2mrf_deploy.training.data.VALIDATED", 4)
        patch.setattr("r2mrf_deploy.training.data.VALIDATION_SIDE", 64)
        yield


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """What a training gives that nothing stopped. Tests copy its folder before they change it."""
    return run.train(order(folder), tmp_path_factory.mktemp("whole"), CPU)


@pytest.fixture
def begun(whole, tmp_path):
    return shutil.copytree(whole.path.parent, tmp_path / "begun")


def order(folder, recipe=SCRATCH, **changed):
    small = replace(recipe, iterations=11, batch=2, size=64, one_step=min(recipe.one_step, 0.25))
    given = {"sharp": folder / "sharp", "masks": folder / "masks", "every": 3, "validate_every": 6}
    return TrainingConfig("r2mrf-edge", small, SETTINGS, **(given | changed))


def same(a, b):
    a, b = (Checkpoint.load(path).state_dict for path in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Killed(BaseException):
    pass


def killed_at(iteration):
    def stop(progress):
        if isinstance(progress, Iteration) and progress.done == iteration:
            raise Killed

    return stop


@pytest.mark.parametrize("recipe", [SCRATCH, PAPER], ids=lambda r: r.name)
def test_a_training_broken_off_at_any_iteration_ends_in_the_same_weights(folder, whole, tmp_path, recipe):
    wanted = whole if recipe is SCRATCH else run.train(order(folder, recipe), tmp_path / "whole", CPU)
    for iteration in (1, 4, 6, 8, 10):  # before anything was kept; within a round; while a round is being kept
        with pytest.raises(Killed):
            run.train(order(folder, recipe), tmp_path / "broken", CPU, resume=True, progress=killed_at(iteration))
    done = run.train(order(folder, recipe), tmp_path / "broken", CPU, resume=True)
    assert done.finished and done.iterations == wanted.iterations == 11
    assert done.validation == wanted.validation and done.best == wanted.best
    assert same(done.path, wanted.path)
    other = run.train(order(folder, recipe, seed=1), tmp_path / "other", CPU)
    assert not same(done.path, other.path)


def test_the_checkpoint_says_how_it_was_trained_and_names_no_folder(folder, whole):
    checkpoint = Checkpoint.load(whole.path)
    assert checkpoint.config.width == 4
    assert checkpoint.metrics["recipe"]["name"] == "scratch" and checkpoint.metrics["seed"] == 0
    assert checkpoint.metrics["iterations"] == whole.best and checkpoint.metrics["validation"] == whole.validation
    assert str(folder) not in json.dumps(checkpoint.metrics)
    module = checkpoint.module()
    assert all(p.is_contiguous() for p in module.parameters())
    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {int(m.num_batches_tracked) for m in norms} == {2}  # estimated again, for the averaged weights
    lines = (whole.path.parent / "log" / "version_0" / "metrics.csv").read_text().splitlines()
    assert {"loss", "val_f_max", "val_mae", "learning_rate"} <= set(lines[0].split(","))


def test_mixed_precision_trains_other_weights_from_the_same_batches(folder, whole, tmp_path):
    mixed = run.train(order(folder, precision="bf16-mixed"), tmp_path / "mixed", replace(CPU, logger="tensorboard"))
    assert mixed.finished and not same(whole.path, mixed.path)
    assert Checkpoint.load(mixed.path).state_dict["amdf.weight"].dtype == torch.float32
    assert list((tmp_path / "mixed" / "log").rglob("events.*"))


def test_a_time_limit_leaves_weights_and_a_training_to_resume(folder, whole, tmp_path):
    done = run.train(order(folder), tmp_path, replace(CPU, limit=0.0))
    assert not done.finished and done.iterations == 3 and done.path.is_file()
    again = run.train(order(folder), tmp_path, CPU, resume=True)
    assert again.finished and same(again.path, whole.path) and again.validation == whole.validation


def test_it_stops_early_when_nothing_improves(folder, whole, tmp_path, monkeypatch):
    flat = callbacks.Scores(**whole.validation)
    monkeypatch.setattr("r2mrf_deploy.training.module.Training.validate", lambda _: flat)
    done = run.train(order(folder, validate_every=3, patience=1), tmp_path / "flat", CPU)
    assert done.iterations == 6 and done.finished and done.best == 3
    again = run.train(order(folder, validate_every=3, patience=1), tmp_path / "flat", CPU, resume=True)
    assert again.iterations == 6 and again.finished


def test_what_was_begun_is_not_overwritten_nor_resumed_as_something_else(folder, begun):
    with pytest.raises(UsageError, match="`resume`"):
        run.train(order(folder), begun, CPU)
    with pytest.raises(UsageError, match="seed was 0 and is now 1"):
        run.train(order(folder, seed=1), begun, CPU, resume=True)
    with pytest.raises(UsageError, match=r"weight_decay was 0\.01 and is now 0"):
        run.train(order(folder, replace(SCRATCH, weight_decay=0.0)), begun, CPU, resume=True)


def test_a_training_that_is_over_frees_its_photographs(folder, tmp_path):
    run.train(order(folder), tmp_path / "run", CPU)
    assert not [o for o in gc.get_objects() if type(o) is TrainingData]


def test_a_finished_training_goes_on_with_more_iterations_and_says_what_changes(folder, begun):
    said = []
    longer = replace(order(folder), recipe=replace(order(folder).recipe, iterations=20, one_step=0.7))
    with pytest.raises(UsageError, match="one_step was"):  # nothing else may change
        run.train(longer, begun, CPU, resume=True)
    longer = replace(longer, recipe=replace(order(folder).recipe, iterations=15))
    done = run.train(longer, begun, CPU, resume=True, progress=said.append)
    assert done.finished and done.iterations == 15
    rates = [f"{longer.recipe.rate(12 / 15):.2g}", f"{order(folder).recipe.rate(1.0):.2g}"]
    (notice,) = [p.description for p in said if isinstance(p, Notice)]
    assert "from iteration 11 to 15, not 11" in notice and "at {} instead of {}".format(*rates) in notice
    assert [p.done for p in said if isinstance(p, Iteration) and p.scores is None] == [12, 13, 14, 15]
    with pytest.raises(UsageError, match="iterations was 15 and is now 11"):
        run.train(order(folder), begun, CPU, resume=True)


def test_one_step_that_is_trained_again_is_said():
    class Recurrent:
        recipe = replace(SCRATCH, iterations=12_000)

        def runs_one_step(self, iteration):
            return self.recipe.runs_one_step(iteration)

    last = resuming.Resumed(None, 8000, 8000)
    assert resuming.stretched(Recurrent(), last).endswith(
        "one recurrent step alone is trained again until iteration 8,400"
    )
    Recurrent.recipe = replace(SCRATCH, iterations=10_000)
    assert "one recurrent step" not in resuming.stretched(Recurrent(), last)


def test_validations_that_come_at_other_iterations_than_asked_for_are_said(folder, tmp_path):
    said = []
    with pytest.raises(Killed):
        run.train(order(folder, validate_every=4), tmp_path, CPU, progress=lambda p: (said.append(p), killed_at(1)(p)))
    assert [p.description for p in said if isinstance(p, Notice)] == [
        "`validate_every` 4: validating every 6 iterations, the next multiple of `every` 3"
    ]


def test_ctrl_c_is_not_turned_into_an_exit_and_can_be_pressed_again(folder, tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def stop(progress):
        if isinstance(progress, Iteration) and progress.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.train(order(folder), tmp_path, CPU, progress=stop)
    assert signal.getsignal(signal.SIGINT) is before and (tmp_path / "last.ckpt").is_file()


def test_weights_of_an_older_training_are_never_handed_out(folder, begun):
    (begun / "last.ckpt").unlink()
    wider = replace(order(folder), settings=SETTINGS | {"width": "8"})
    done = run.train(wider, begun, replace(CPU, limit=0.0))  # over before anything is validated
    checkpoint = Checkpoint.load(done.path)
    assert checkpoint.config.width == 8 and checkpoint.metrics["iterations"] == done.best == done.iterations == 3


def test_a_refused_training_leaves_nothing(folder, tmp_path):
    wrong = order(folder, backbone=str(tmp_path / "none.pth"))
    with pytest.raises(InputError, match="no such file"):
        run.train(wrong, tmp_path / "run", CPU)
    with pytest.raises(RuntimeUnavailable, match="use `accelerator` cpu"):
        run.train(order(folder), tmp_path / "run", Hardware(accelerator="gpu"))
    assert not (tmp_path / "run").exists()
    done = run.train(order(folder), tmp_path / "run", replace(CPU, limit=0.0))
    kept = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    with pytest.raises(UsageError, match="seed was 0"):
        run.train(order(folder, seed=1), tmp_path / "run", CPU, resume=True)
    assert done.path in kept and kept == {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}


@pytest.mark.parametrize("file", ["last.ckpt", "training.json"])
def test_what_is_damaged_is_answered_with_the_cure(folder, tmp_path, file):
    run.train(order(folder), tmp_path, replace(CPU, limit=0.0))
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises((CheckpointError, InputError), match=rf"{file} is damaged.*; delete .*to (begin again|go on)"):
        run.train(order(folder), tmp_path, CPU, resume=True)
    (tmp_path / file).unlink()
    assert run.train(order(folder), tmp_path, CPU, resume=True).finished


@pytest.mark.parametrize("count", COUNTS)
def test_a_damaged_configuration_is_said_or_read(folder, begun, monkeypatch, count):
    monkeypatch.setattr(resuming, "read_file", lambda _: {"global_step": 1})  # see test_torch_file.py
    file, config = begun / "training.json", order(folder)
    errors = (InputError, UsageError)  # the latter where another value can be read
    for found in survivors(
        file, mutations(file.read_bytes(), count), lambda _: resuming.find(config.to_dict(), begun, True), errors
    ):
        assert found.path == begun / "last.ckpt"


@pytest.mark.parametrize("wrong", [{}, {"optimizer_states": [{}]}, {"callbacks": 1}])
def test_a_sound_file_that_is_no_training_is_refused_with_the_cure(folder, begun, wrong):
    last = begun / "last.ckpt"
    content = torch.load(last, weights_only=True)
    torch.save(content | wrong if wrong else {}, last)
    with pytest.raises(CheckpointError, match=r"last\.ckpt cannot be resumed .*; delete last\.ckpt to begin again"):
        run.train(order(folder), begun, CPU, resume=True)


def test_a_full_disk_stops_the_training_with_one_clear_line(folder, tmp_path):
    with full(4096), pytest.raises(ArtifactError, match=r"File too large"):
        run.train(order(folder), tmp_path / "run", CPU)
    assert not (tmp_path / "run" / "last.ckpt").exists()


@pytest.fixture
def dataset(tmp_path):
    """Six photographs with masks in folders of unusual names; two are of something else."""
    rng = np.random.default_rng(0)
    for name in ("photos", "drawn"):
        (tmp_path / name).mkdir()
    for n, name in enumerate((*(f"out_of_focus{n}" for n in range(4)), "motion0", "motion1")):
        (tmp_path / "photos" / f"{name}.png").write_bytes(images.png(rng.integers(0, 256, (70, 80, 3), np.uint8)))
        half = np.zeros((70, 80), np.uint8)
        half[:, 20 + 10 * n :] = 255
        (tmp_path / "drawn" / f"{name}.png").write_bytes(images.png(half))
    return tmp_path


def test_a_dataset_is_read_by_the_names_given(folder, dataset, tmp_path):
    given = {"sharp": None, "masks": None, "data": dataset, "image_folder": "photos", "mask_folder": "drawn"}
    training_data = run.read(order(folder, **given))
    assert len(training_data.dataset) + len(training_data.validation) == 6 and training_data.left_out == 0
    training_data = run.read(order(folder, **given, dataset="cuhk", white="blurred"))
    assert len(training_data.dataset) + len(training_data.validation) == 4 and training_data.left_out == 2


def test_a_dataset_and_composites_are_trained_on_together(folder, dataset, tmp_path):
    given = {"masks": None, "data": dataset, "image_folder": "photos", "mask_folder": "drawn"}
    mixed = order(folder, replace(FINETUNE, scales=(0.8, 1.0)), **given, mix=0.5)
    training_data = run.read(mixed)
    assert len(training_data.photographs) == 3 and len(training_data.masks) == len(training_data.dataset) == 5
    assert training_data.longest_side == 72  # of 80: 0.8 to 1.0 times the size
    assert training_data.validation.images[0].shape[:2] == (63, 72)
    assert training_data.mix == 0.5 and len(training_data.validation) == 1  # of the dataset
    assert [m.max() for m in training_data.masks] == [255] * 5
    done = run.train(mixed, tmp_path / "mixed", CPU)
    assert Checkpoint.load(done.path).metrics["data"] == {"photographs": 3, "masks": 5, "dataset": 5}
    again = run.train(mixed, tmp_path / "again", CPU)
    assert same(done.path, again.path)
    alone = run.train(replace(mixed, sharp=None, mix=None), tmp_path / "alone", CPU)
    assert not same(done.path, alone.path)


def test_a_training_from_before_a_recipe_had_a_field_is_resumed(folder, begun):
    saved = begun / "training.json"
    older = json.loads(saved.read_text())
    for name in LATER:
        del older["recipe"][name]
    del older["mix"]
    saved.write_text(json.dumps(older))
    recipe = replace(SCRATCH, **LATER)
    assert run.train(order(folder, recipe), begun, CPU, resume=True).finished
    saved.write_text(json.dumps(older))
    with pytest.raises(UsageError, match=r"overlap was 0\.0 and is now 1\.0"):
        run.train(order(folder, replace(recipe, overlap=1.0)), begun, CPU, resume=True)


def test_what_is_trained_on_is_not_validated_on(folder, dataset):
    (dataset / "photos").rename(dataset / "image")
    (dataset / "drawn").rename(dataset / "gt")
    train, val = dataset / "train.txt", dataset / "val.txt"
    train.write_text("out_of_focus0\nmotion0\n")
    val.write_text("out_of_focus1\n")
    given = {"sharp": None, "masks": None, "data": dataset, "val": dataset}
    apart = run.read(order(folder, **given, split=train, val_split=val))
    assert len(apart.dataset) == 2 and len(apart.validation) == 1
    for more, count in (({}, 6), ({"split": train}, 2), ({"split": train, "val_split": train}, 2)):
        with pytest.raises(UsageError, match=f"^{count} photographs would be used for both training and validation"):
            run.read(order(folder, **given, **more))
    with pytest.raises(UsageError, match="1 photograph would be"):
        run.read(order(folder, sharp=dataset / "image", val=dataset, val_split=val))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image_folder": "photos"}, "they go with `data`"),
        ({"val_split": "s"}, "it goes with `val`"),
        ({"sharp": None, "masks": None}, "give `data`"),
        ({"data": "d"}, "`masks` goes with `sharp` alone"),
        ({"mix": 0.5}, "it goes with `data` and `sharp`"),
        ({"data": "d", "masks": None, "mix": 1.0}, "`mix` must be between 0 and 1"),
        ({"data": "d", "masks": None, "mix": 0.1}, "`mix` 0.1 of a batch of 2 is, in whole pictures, all of one kind"),
        ({"split": "s"}, "`split`"),
        ({"processes": 3}, "a batch of 2 cannot be split evenly among 3"),
        ({"every": 0}, "at least 1"),
    ],
)
def test_contradictions_are_refused(folder, changed, said):
    with pytest.raises(UsageError, match=said):
        order(folder, **changed)


def test_an_interrupted_checkpoint_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    callbacks.AtomicCheckpoints().save_checkpoint({"n": 1}, path)

    def half(content, target):
        target.write_bytes(b"half")
        raise Killed

    monkeypatch.setattr(callbacks.torch, "save", half)
    with pytest.raises(Killed):
        callbacks.AtomicCheckpoints().save_checkpoint({"n": 2}, path)
    assert torch.load(path, weights_only=True) == {"n": 1}


def command(folder, output, *more):
    settings = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    sizes = ("--size", "64", "--batch", "2", "--iterations", "60", "--every", "5", "--validate-every", "30")
    given = ("--sharp", folder / "sharp", "--masks", folder / "masks", "--masks-white", "blurred")
    line = ["train", "r2mrf-edge", *given, *settings, *sizes, "--accelerator", "cpu", "-o", output, *more]
    return [sys.executable, "-m", "r2mrf_deploy", *map(str, line)]


@pytest.mark.slow
def test_a_process_killed_by_sigkill_is_resumed_to_the_same_weights(folder, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # sums depend on the number of threads
    output, last = tmp_path / "killed", tmp_path / "killed" / "last.ckpt"
    seen = 0.0
    for wait in (0.0, 0.13):  # at once when something was kept, perhaps while it is being written; and some time after
        process = subprocess.Popen(command(folder, output, "--resume"), env=environment)
        while process.poll() is None and (not last.is_file() or last.stat().st_mtime == seen):
            time.sleep(0.01)
        time.sleep(wait)
        assert process.poll() is None, "it ended before it could be killed"
        seen = last.stat().st_mtime
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (output / "r2mrf-edge.pth").exists()
    for name, more in (("killed", ["--resume"]), ("whole", [])):
        subprocess.run(command(folder, tmp_path / name, *more), env=environment, check=True, timeout=300)
    assert same(output / "r2mrf-edge.pth", tmp_path / "whole" / "r2mrf-edge.pth")


@pytest.mark.slow
def test_two_processes_share_a_batch(folder, tmp_path):
    done = subprocess.run(
        command(folder, tmp_path / "two", "--devices", "2", "--json"),
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    said = json.loads(done.stdout)  # of the first process alone
    assert said["iterations"] == 60 and said["finished"] and said["rank"] == 0
    assert Checkpoint.load(tmp_path / "two" / "r2mrf-edge.pth").metrics["processes"] == 2
