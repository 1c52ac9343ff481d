"""The command line: exit codes, one-line errors, JSON alone on standard output, and no heavy imports."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from rich.console import Console

from r2mrf_deploy import datasets, environment, sample_photographs
from r2mrf_deploy.cli import common, main
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.images import png
from r2mrf_deploy.progress import Progress

pytestmark = pytest.mark.artifact

HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "numpy")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from r2mrf_deploy.cli import main; main(['--help']); "
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    for verb in ("init", "export", "build", "parity", "bench", "predict", "inspect", "doctor", "demo"):
        assert verb in done.stdout


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    alone = capsys.readouterr()
    assert main(["--help"]) == 0
    assert alone.out == capsys.readouterr().out and not alone.err


def test_the_commands_are_described_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert len(lines) > 10
    assert [line for line in lines if "..." in line or not line.endswith(".")] == []


def test_a_plain_state_dict_is_used_with_what_its_messages_ask_for(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from r2mrf_deploy.checkpoint import Checkpoint

    monkeypatch.chdir(tmp_path)
    torch.save(dict(Checkpoint.load(small).state_dict), "plain.pth")
    for folder in ("data/image", "data/gt"):
        Path(folder).mkdir(parents=True)
    photograph = sample_photographs.sample("chelsea")
    Path("data/image/cat.png").write_bytes(png(photograph))
    Path("data/gt/cat.png").write_bytes(png((photograph[..., 0] > 128).astype("uint8") * 255))
    quick = "--duration 0 --iterations 1 --size 64x64 --warmUp 0"
    for command in (
        "inspect plain.pth",
        "predict plain.pth data/image/cat.png",
        "eval plain.pth --data data --white sharp",
        "eval plain.pth --data data --white sharp --steps",
        f"bench plain.pth {quick}",
    ):
        assert main(command.split()) == 2
        assert "give --set steps=..." in capsys.readouterr().err
        assert main([*command.split(), "--set", "steps=2"]) == 0, command
    capsys.readouterr()
    assert main(["inspect", "plain.pth", "--set", "steps=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["steps"] == 2


def test_every_option_is_explained() -> None:
    app = typer.main.get_command(common.app)
    for command in (app, *app.commands.values()):  # type: ignore[attr-defined]
        assert [p.name for p in command.params if not getattr(p, "help", None)] == [], command.name


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"r2mrf-deploy {environment.version('r2mrf-deploy')}\n"


def test_a_checkpoint_under_any_name_is_the_model_and_a_picture_under_any_name_is_none(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped weights are never run in place of those that were given."""
    import torch

    from r2mrf_deploy.checkpoint import Checkpoint

    monkeypatch.chdir(tmp_path)
    state = dict(Checkpoint.load(small).state_dict)
    for name in ("my.ckpt", "my.pth.tar", "my.png"):
        torch.save({"state_dict": {f"net.{k}": v for k, v in state.items()}, "ema": state}, name)
    photograph = sample_photographs.sample("chelsea")[:96, :128]
    for name in ("cat.png", "cat.pth", "cat"):
        Path(name).write_bytes(png(photograph))
    wanted = None
    for name in (str(small), "my.ckpt", "my.pth.tar", "my.png"):
        given = [] if name == str(small) else ["--set", "steps=2"]
        assert main(["predict", name, "cat.png", "-o", f"out/{Path(name).name}", "--save", "map", *given]) == 0
        said = capsys.readouterr().err
        assert not given or ("'state_dict.net'; other weights that fit: 'ema' (--weights-key chooses)" in said)
        found = Path(f"out/{Path(name).name}/cat_map.png").read_bytes()
        wanted = wanted or found
        assert found == wanted
    assert main(["predict", "cat.pth", "-o", "out/shipped"]) == main(["predict", "cat", "-o", "out/shipped"]) == 0
    assert Path("out/shipped/cat_map.png").read_bytes() != wanted
    capsys.readouterr()
    assert main(["predict", "cat.png", "my.ckpt", "-o", "none"]) == 2
    assert "my.ckpt is a model" in capsys.readouterr().err and not Path("none").exists()
    read = ["--set", "steps=2", "--weights-key", "ema", "--json"]
    assert main(["inspect", "my.pth.tar", *read]) == 0
    assert json.loads(capsys.readouterr().out)["found"]["prefix"] == "ema"


def test_the_chain_by_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--set=width=4", "--set=amdf_channels=8", "--set=initial_channels=8", "--set=steps=2"]
    Path("cat.png").write_bytes(png(sample_photographs.sample("chelsea")))
    assert main(["init", "r2mrf-edge", "-o", "c.pth", *small, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["width"] == 4
    assert main(["export", "c.pth", "--size", "96x128", "--all-steps"]) == 0
    assert "parity with PyTorch: pass" in capsys.readouterr().out
    assert main(["build", "c.onnx", "--gpu", "rtx3090"]) == 0
    assert "compute capability 8.6" in capsys.readouterr().out
    assert main(["build", "c.onnx", "-o", "c.xml"]) == 0
    capsys.readouterr()
    assert main(["parity", "c.pth", "c.onnx", "c.xml", "--per-step", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [(r["verdict"], r["shapes"]) for r in results] == [("pass", [[1, 96, 128, 3]])] * 2
    assert main(["bench", "c.pth", "c.onnx", "c.xml", "--duration", "0", "--iterations", "2", "--size", "96x128"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("pytorch", "onnxruntime", "openvino", "over c.pth on pytorch"))
    assert "input: 1x96x128x3\n" in table
    assert main(["predict", "c.onnx", "cat.png", "-o", "maps", "--json"]) == 0
    (done,) = json.loads(capsys.readouterr().out)
    assert done["outputs"].keys() == {"map", "overlay"} and all(map(Path.is_file, map(Path, done["outputs"].values())))
    for file, kind in (("c.pth", "checkpoint"), ("c.onnx", "onnx"), ("c.plan", "plan"), ("c.xml", "openvino")):
        assert main(["inspect", file, "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["kind"] == kind
        assert main(["inspect", file]) == 0
        assert kind in capsys.readouterr().out
    assert main(["inspect", "c.plan.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["target"]["compute_capabilities"] == ["8.6"]


def test_a_plan_needs_a_gpu_to_run_and_says_so(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if environment.cuda_driver() is None:
        pytest.skip("there is a GPU here")
    plan = tmp_path / "x.plan"
    assert main(["build", str(exported), "-o", str(plan)]) == 0
    (tmp_path / "cat.png").write_bytes(png(sample_photographs.sample("chelsea")))
    for command in (
        ["predict", str(plan), str(tmp_path / "cat.png"), "-o", str(tmp_path / "maps")],
        ["bench", str(plan)],
        ["parity", str(exported.with_suffix(".pth")), str(plan)],
    ):
        capsys.readouterr()
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("error: ")
        assert str(environment.cuda_driver()) in error or "for want of a device" in error


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("init r2mrf-edg -o x.pth", "did you mean 'r2mrf-edge'"),
        ("init r2mrf-edge -o x.pth --set steps", "write it as name=value"),
        ("init r2mrf-edge -o x.onnx", "must end in .pth or .pt"),
        ("init r2mrf-edge -o x.pth --set steps=abc", "give a whole number"),
        ("init r2mrf-edge -o x.pth --set steps=1000000000", "from 1 to 1024"),
        ("export r2mrf-egde", "did you mean 'r2mrf-edge'"),
        ("predict tex.onnx text.md", "did you mean 'text.onnx'"),
        ("predict r2mrf-egde text.md", "did you mean 'r2mrf-edge'"),
        ("inspect text.onnx --set steps=2", "is not a checkpoint: leave out --set"),
        ("predict text.md text.md -o out", "is neither a picture nor a model"),
        ("predict text.onnx text.pth -o out", "text.pth is a model: name one model, before"),
        ("export absent.pth", "absent.pth: no such file"),
        ("export .", ". is a folder, not a file"),
        ("build .", ". is a folder, not a file"),
        ("optimize . -o x.onnx", ". is a folder, not a file"),
        ("inspect .", ". is a folder, not a file"),
        ("export text.pth", "is not a PyTorch checkpoint"),
        ("export text.pth --size 320", "write height x width"),
        ("export text.pth --precision fp8", "fp8"),
        ("build absent.onnx", "no such file"),
        ("build r2mrf-edge", "export it first: r2mrf export r2mrf-edge"),
        ("convert r2mrf-edge -o x.onnx", "export it first: r2mrf export r2mrf-edge"),
        ("parity text.pth text.onnx --json out.json", "write --json > out.json"),
        ("bench text.onnx --json out.json", "write --json > out.json"),
        ("build text.onnx --gpu rtx3091", "did you mean 'rtx3090'"),
        ("build text.onnx -o x.engine", ".plan"),
        ("inspect text.onnx", "not an ONNX file that can be read"),
        ("inspect text.plan", "is not a TensorRT plan"),
        ("inspect text.md", "inspect reads"),
        ("bench text.onnx", "cannot open"),
        ("bench text.onnx --percentile many", "give numbers"),
        ("bench text.onnx --batch 2,1.5", "give whole numbers from 1"),
        ("predict text.onnx absent.jpg -o out", "no such file"),
        ("explode", "explode"),
        ("export", "CHECKPOINT"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("text.pth", "text.onnx", "text.plan", "text.md"):
        Path(name).write_text("hello\n")
    assert main(command.split()) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert message.lower() in said.err.lower()
    assert {p.name for p in tmp_path.iterdir()} == {"text.md", "text.onnx", "text.pth", "text.plan"}


@pytest.mark.parametrize("command", ["eval --data d --dataset cuhk", "train r2mrf -o run --data d --dataset cuhk"])
def test_a_parameter_in_a_message_of_the_library_is_shown_as_its_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    def refuse(*_: object) -> None:
        raise UsageError("`mask_folder` and `image_folder` are wrong, `elsewhere` is not")

    monkeypatch.setattr(datasets, "polarity", refuse)
    assert main(command.split()) == 2
    assert capsys.readouterr().err == "error: --masks and --images are wrong, `elsewhere` is not\n"


def test_a_failed_check_is_exit_code_1(small: Path, exported: Path, tmp_path: Path) -> None:
    from r2mrf_deploy.checkpoint import Checkpoint

    read = Checkpoint.load(small)
    changed = {k: v * 1.1 if k == "fusion.weight" else v for k, v in read.state_dict.items()}
    other = Checkpoint(read.network, read.config, changed).save(tmp_path / "other.pth")
    assert main(["parity", str(other), str(exported)]) == 1


def test_a_flat_map_is_not_a_pass(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from r2mrf_deploy.checkpoint import Checkpoint

    read = Checkpoint.load(small)
    flat = {k: v * 1e-3 if k.startswith("fusion") else v for k, v in read.state_dict.items()}
    path = Checkpoint(read.network, read.config, flat).save(tmp_path / "flat.pth")
    assert main(["export", str(path), "--size", "64x64"]) == 0
    assert "nearly flat" in capsys.readouterr().err
    assert main(["parity", str(path), str(path.with_suffix(".onnx"))]) == 1


def test_bad_images_are_reported_when_they_come_and_counted_at_the_end(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bad.png", "worse.png"):
        (tmp_path / name).write_text("x")
    (tmp_path / "cat.png").write_bytes(png(sample_photographs.sample("chelsea")))
    assert main(["predict", str(exported), str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    first, second, summary, last = capsys.readouterr().err.splitlines()
    assert "bad.png" in first and "worse.png" in second and summary.startswith("1 done, 2 failed; ")
    assert last.startswith("error: 2 of 3 images failed")
    assert (tmp_path / "out" / "cat_map.png").is_file()


@pytest.mark.parametrize("progress", [Progress("calibrating", 3, 16), Progress("tracing")])
def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, progress: Progress) -> None:
    for terminal in (True, False):
        shown = io.StringIO()
        monkeypatch.setattr(common, "err", Console(file=shown, force_terminal=terminal, width=100))
        with common.shown_progress() as show:
            show(progress)
        assert (progress.description in shown.getvalue()) == terminal
        assert ("3/16" in shown.getvalue()) == (terminal and progress.total is not None)


def test_bisect_says_where_there_is_nothing_to_explain(
    small: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parity", str(small), str(exported), "--bisect"]) == 0
    assert "small.onnx: there is nothing to bisect, its verdict is pass" in capsys.readouterr().out


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    from r2mrf_deploy.errors import InputError

    with pytest.raises(InputError):
        main(["export", str(tmp_path / "absent.pth"), "--debug"])


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["onnxruntime"]["ok"] and rows["pytorch"]["ok"]
    assert main(["doctor"]) == 0
    assert "tensorrt" in capsys.readouterr().out


def test_the_scripts_are_the_commands(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    for script in ("export/to_onnx.py", "engines/build_engine.py", "benchmarks/run.py"):
        done = subprocess.run([sys.executable, root / script, "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "Usage: r2mrf" in done.stdout
