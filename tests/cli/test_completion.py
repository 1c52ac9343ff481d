"""Completion: shells really complete with the scripts, and without waiting for PyTorch."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from r2mrf_deploy import baselines, datasets, networks, protocols, runtimes, weights
from r2mrf_deploy.cli import common, main, values
from r2mrf_deploy.predict import outputs
from tests.cli.terminal import Terminal, shown

ROOT = Path(__file__).parents[2]


def completed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    """The words that fit in the place of the last one, each with its meaning; the empty word stands for names of files."""
    assert main(["__complete", *words]) == 0
    return dict(line.split("\t") for line in capsys.readouterr().out.splitlines())


def test_commands_and_options_are_completed(capsys: pytest.CaptureFixture[str]) -> None:
    assert completed(capsys, "").keys() == common.verbs().keys() and len(common.verbs()) > 15
    assert completed(capsys, "serve") == {
        "serve-repo": "Write a model repository for an inference server.",
        "serve": "Start an inference server, or show a web page.",
    }
    assert completed(capsys, "--ve")["--version"] == "Show the version and exit."
    assert completed(capsys, "-v", "insp").keys() == {"inspect"}
    assert completed(capsys, "explode", "") == {}
    found = completed(capsys, "export", "--")
    assert {"--output", "--no-optimize", "--quantize-ends", "--help", "--debug", "--verbose"} <= found.keys()
    assert completed(capsys, "export", "--prec") == {"--precision": "Precision of the graph."}
    assert completed(capsys, "export", "--precision", "int8", "--prec") == {}, "it is given already"
    assert "--set" in completed(capsys, "export", "--set", "steps=2", "--s"), "it can be given again"
    assert {"-o", "-v"} <= completed(capsys, "export", "-").keys()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("export --precision ?", {"fp32", "fp16", "bf16", "int8"}),
        ("export --precision fp", {"fp32", "fp16"}),
        ("export --precision=fp", {"fp32", "fp16"}),
        ("export --precision = fp", {"fp32", "fp16"}),  # as bash splits it
        ("export --precision =", {"fp32", "fp16", "bf16", "int8"}),
        ("export x.pth --gpu rtx3", {"rtx3060", "rtx3090"}),
        ("-v export --gpu rtx309", {"rtx3090"}),
        ("budget --gpu p", {"pi5"}),
        ("compress --for open", {"openvino"}),
        ("predict --save m", {"map", "map16"}),
        ("predict --save map,o", {"map,overlay"}),
        ("predict --runtime onnx", {"onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt"}),
        ("eval --dataset c", {"cuhk", "cuhk-320", "ctcug"}),
        ("eval --split cuhk-te", {"cuhk-test", ""}),
        ("eval --baseline s", {"svd", "ss", "spectrum"}),
        ("inspect --network r2mrf-l", {"r2mrf-lite"}),
        ("init r2mrf-r", {"r2mrf-r50"}),
        ("init r2mrf-r50 ?", set()),  # it takes one
        ("train btb", {"btbnet", "btbnet-1s", "btbcrl"}),
        ("inspect r2mrf-", {"r2mrf-lite", "r2mrf-edge", ""}),
        ("predict ?", {"r2mrf-lite", "r2mrf-edge", ""}),
        ("predict --flip r2mrf-lite a.jpg b", {""}),
        ("serve-repo r2mrf", {"r2mrf-lite", ""}),
        ("parity r2mrf-lite ?", {""}),  # an artifact
        ("export -o ?", {""}),
        ("completion ?", {"bash", "zsh", "fish"}),
        ("doctor ?", set()),
    ],
)
def test_values_are_completed(capsys: pytest.CaptureFixture[str], words: str, found: set[str]) -> None:
    assert completed(capsys, *(word.replace("?", "") for word in words.split())).keys() == found


def test_the_names_are_those_that_the_library_knows() -> None:
    assert list(values.PRESETS) == list(networks.presets())
    assert list(values.RUNTIMES) == runtimes.names()
    assert list(values.DATASETS) == list(datasets.KNOWN)
    assert list(values.SPLITS) == datasets.split_names()
    assert list(values.PROTOCOLS) == list(protocols.PROTOCOLS)
    assert list(values.BASELINES) == list(baselines.BASELINES)
    assert list(values.SAVED) == list(get_args(outputs.Kind))
    assert set(weights.SHIPPED) <= set(values.PRESETS)


@pytest.mark.parametrize(
    "words", [[""], ["export", "--"], ["eval", "--runtime", ""], ["build", "--gpu", "r"], ["predict", ""]]
)
def test_nothing_heavy_is_imported(words: list[str]) -> None:
    heavy = ("torch", "onnx", "onnxruntime", "numpy", "pydantic")
    code = (
        f"import sys; from r2mrf_deploy.cli import main; main(['__complete', *{words}]); "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n") and done.stdout.count("\n") > 1


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with an `r2mrf`, in a folder with some files."""
    program = tmp_path / "bin" / "r2mrf"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m r2mrf_deploy "$@"\n')
    program.chmod(0o755)
    folder = tmp_path / "here"
    (folder / "photographs").mkdir(parents=True)
    for name in ("two words.pth", "first.jpg", "second.jpg"):
        (folder / name).write_text("")
    monkeypatch.chdir(folder)
    return os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "TERM": "xterm",
    }  # fmt: skip


SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "PS1=ready; bind 'set bell-style none'"),
    "zsh": (["zsh", "-f", "-i"], "PROMPT=ready; autoload -Uz compinit; compinit -D -u; unsetopt beep"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_on_a_terminal_completes_what_is_typed(shell: str, place: dict[str, str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    command, settings = SHELLS[shell]
    with Terminal(command, place) as terminal:
        terminal.type(f"{settings}; source <(r2mrf completion {shell}); echo do''ne\n")
        terminal.read("done")
        for typed, wanted in (
            ("r2mrf insp", "r2mrf inspect "),
            ("r2mrf export --quantize", "r2mrf export --quantize-ends "),
            ("r2mrf export --precision b", "r2mrf export --precision bf16 "),
            ("r2mrf export --precision=b", "r2mrf export --precision=bf16 "),
            ("r2mrf build --gpu rtx3", "r2mrf build --gpu rtx30"),  # 3060 and 3090
            ("r2mrf build --gpu rtx309", "r2mrf build --gpu rtx3090 "),
            ("r2mrf predict r2mrf-l", "r2mrf predict r2mrf-lite "),
            ("r2mrf predict r2mrf-lite fir", "r2mrf predict r2mrf-lite first.jpg "),
            ("r2mrf predict phot", "r2mrf predict photographs/"),
            ("r2mrf inspect two", r"r2mrf inspect two\ words.pth "),
            ("r2mrf export x.pth -o sec", "r2mrf export x.pth -o second.jpg "),
            ("r2mrf predict --save map,sc", "r2mrf predict --save map,scores "),
        ):
            terminal.type(f"{typed}\t")
            assert wanted in shown(terminal.read(wanted, seconds=30)), typed
            terminal.type("\x15")  # the line is taken back


def test_fish_completes(place: dict[str, str]) -> None:
    if shutil.which("fish") is None:
        pytest.skip("there is no fish here")

    def completions(line: str) -> list[list[str]]:
        script = f"r2mrf completion fish | source; complete -C {shlex.quote(line)}"
        done = subprocess.run(
            ["fish", "--no-config", "-c", script], env=place, capture_output=True, text=True, check=True
        )
        return [each.split("\t") for each in done.stdout.splitlines()]

    assert {verb for verb, _ in completions("r2mrf ")} == common.verbs().keys()
    assert completions("r2mrf insp") == [["inspect", "Show what a file is, without running it."]]
    assert completions("r2mrf export --precision b") == [["bf16"]]
    assert completions("r2mrf export --precision=b") == [["--precision=bf16"]]
    assert completions("r2mrf build --gpu rtx309") == [["rtx3090", "GeForce RTX 3090"]]
    found = {each[0] for each in completions("r2mrf predict ")}
    assert found == {"r2mrf-lite", "r2mrf-edge", "photographs/", "first.jpg", "second.jpg", "two words.pth"}
    assert [each[0] for each in completions("r2mrf predict --report=fir")] == ["--report=first.jpg"]


def test_bash_lists_what_fits(place: dict[str, str]) -> None:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    script = """
        source <(r2mrf completion bash)
        compopt() { :; }  # outside of an interactive shell there is nothing to set
        COMP_WORDS=(r2mrf inspect r2mrf-) COMP_CWORD=2
        _r2mrf r2mrf; printf '%s\\n' "${COMPREPLY[@]}"; echo
        COMP_WORDS=(r2mrf export --method "") COMP_CWORD=3
        _r2mrf r2mrf; printf '%s\\n' "${COMPREPLY[@]}"; complete -p r2mrf
    """
    done = subprocess.run(["bash", "-c", script], env=place, capture_output=True, text=True, check=True)
    assert (
        done.stdout == ("r2mrf-lite\nr2mrf-edge\n\nminmax\nentropy\npercentile\ncomplete -F _r2mrf r2mrf\n")
        and not done.stderr
    )


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "tcsh" in error and "fish" in error
