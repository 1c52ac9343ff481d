"""`r2mrf VERB --help`: 80 columns, the common options first, then the groups in one order, every option once."""

from __future__ import annotations

import re

import pytest

from r2mrf_deploy.cli import common, main
from r2mrf_deploy.cli.help import FEW, Group

TITLES = ["Arguments", "Options", *(group.value for group in Group)]


def sections(capsys: pytest.CaptureFixture[str], verb: str) -> dict[str, list[str]]:
    """The lines of each section of a command's help."""
    assert main([verb, "--help"]) == 0
    found: dict[str, list[str]] = {"": []}
    for line in capsys.readouterr().out.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            found[line.removesuffix(":")] = []
        else:
            list(found.values())[-1].append(line)
    return found


def named(lines: list[str]) -> list[str]:
    """The options that lines begin with: `  -o, --output FILE  A file` is -o and --output."""
    starts = [start[1] for line in lines if (start := re.match(r"  (-\S.*?)(?:  |$)", line))]
    return [word.rstrip(",") for start in starts for word in start.split() if word.startswith("-")]


@pytest.mark.parametrize("verb", common.verbs())
def test_the_help_of_a_command(verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = sections(capsys, verb)
    lines = [line for part in found.values() for line in part]
    assert max(map(len, lines)) <= 80
    usage, *_ = lines
    assert (
        usage.startswith(f"Usage: r2mrf {verb} [OPTIONS]")
        and "[[" not in usage
        and "..." not in usage.replace("...", "", 1)
    )
    titles = [title for title in found if title]
    assert titles == [title for title in TITLES if title in titles], (
        "the groups have one order, the common options first"
    )
    assert "Options" in titles and all(map(any, found.values()))
    options = [p for p in common.command([verb]).params if p.param_type_name == "option"]
    shown = [name for title in titles[titles.index("Options") :] for name in named(found[title])]
    known = [name for p in options for name in (*p.opts, *p.secondary_opts)]
    assert sorted(shown) == sorted([*known, "-v", "--verbose", "--debug", "--help"])
    grouped = [title for title in titles if title in {group.value for group in Group}]
    assert bool(grouped) == (len(options) > FEW), "few options need no groups"
    if grouped:
        common_ones = named(found["Options"])
        assert 4 < len(common_ones) <= 20 and {"--json", "--help"} <= {*common_ones}


def test_an_option_says_its_group_itself() -> None:
    """One of `Group`; and the same option is in the same group of every command that shares it."""
    shared = ("network", "settings", "weights_key", "rename", "token_file", "calibration", "record")
    found: dict[str, set[str | None]] = {}
    for verb in common.verbs():
        for p in common.command([verb]).params:
            assert p.rich_help_panel is None or p.rich_help_panel in {group.value for group in Group}
            assert p.param_type_name == "option" or p.rich_help_panel is None
            if p.param_type_name == "option" and p.name in shared:
                found.setdefault(p.name, set()).add(p.rich_help_panel)
    assert found.keys() == {*shared} and all(len(groups) == 1 and None not in groups for groups in found.values())


def test_options_that_every_command_takes_are_none_of_a_command_s_own() -> None:
    for verb in common.verbs():
        own = {name for p in common.command([verb]).params for name in (*p.opts, *p.secondary_opts)}
        assert own.isdisjoint({"-v", "--verbose", "--debug"})
