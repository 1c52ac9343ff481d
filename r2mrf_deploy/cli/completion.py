"""Completion of commands, options and values in bash, zsh and fish.

A shell's script asks `r2mrf __complete WORD...`, of which the last word is the one to complete, and gets a line for each
word that fits: the word, a tab, and what it means. A line of a tab alone says that names of files fit too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import typer

from r2mrf_deploy.cli.common import command, verbs
from r2mrf_deploy.cli.help import ANYWHERE
from r2mrf_deploy.cli.values import FILES
from r2mrf_deploy.wording import plain

ASKED = "__complete"
"""The first word of a shell's question."""

_BASH = r"""
_r2mrf() {
    local word meaning files="" current="${COMP_WORDS[COMP_CWORD]}"
    COMPREPLY=()
    while IFS=$'\t' read -r word meaning; do
        if [[ -n $word ]]; then COMPREPLY+=("$word"); else files=yes; fi
    done < <("${1/#\~\//$HOME/}" __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    if [[ $files && ${#COMPREPLY[@]} -eq 0 ]]; then
        compopt -o default
    elif [[ $files ]]; then
        compopt -o filenames
        mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- "${current#=}")
    fi
}
complete -F _r2mrf r2mrf
"""

_ZSH = r"""
#compdef r2mrf
_r2mrf() {
    local line files
    local -a found
    for line in "${(@f)$("${(Q)words[1]/#\~\//$HOME/}" __complete "${(@Q)words[2,CURRENT]}" 2>/dev/null)}"; do
        if [[ $line == $'\t'* ]]; then
            files=yes
        elif [[ -n $line ]]; then
            found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
        fi
    done
    [[ $PREFIX == --*=* ]] && compset -P '*='
    (( $#found )) && _describe 'r2mrf' found
    [[ -n $files ]] && _files
}
if [[ $funcstack[1] == _r2mrf ]]; then _r2mrf "$@"; else compdef _r2mrf r2mrf; fi
"""

_FISH = r"""
function __r2mrf_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l option (string match -r -- '^--[^=]*=' "$current")
    for line in (command $words[1] __complete $words[2..-1] "$current" 2>/dev/null)
        if string match -q -- \t'*' "$line"
            for file in (__fish_complete_path (string replace -r -- '^--[^=]*=' '' "$current"))
                echo "$option$file"
            end
        else
            echo "$option$line"
        end
    end
end
complete -c r2mrf -f -a '(__r2mrf_complete)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
"""What a shell has to run, by the name of the shell."""


def answer(words: Sequence[str]) -> None:
    """Print the words that fit in the place of the last word."""
    *before, current = words or [""]
    for word, meaning in _fitting(before, current):
        short = meaning.partition("; ")[0].partition(". ")[0]
        sys.stdout.write(f"{plain(word)}\t{plain(short)}\n")


def _fitting(before: Sequence[str], current: str) -> Iterator[tuple[str, str]]:
    """The words that fit, each with its meaning; an empty word stands for names of files."""
    before = [word for word in before if word != "="]  # bash makes three words of --size=320x320
    while before and any(before[0] in names for names in ANYWHERE):
        before = before[1:]
    if running := command(before):
        yield from _in_command(running, before[1:], current.removeprefix("="))
    elif not before:
        options = {"--version": "Show the version and exit.", "--help": "Show the commands and exit."}
        options |= {name: text for names, text in ANYWHERE.items() for name in names}
        yield from _beginning(current, options if current.startswith("-") else verbs())


def _in_command(running: Any, before: Sequence[str], current: str) -> Iterator[tuple[str, str]]:
    context = typer.Context(running)
    options = [p for p in running.get_params(context) if p.param_type_name == "option"]
    named = {name: p for p in options for name in (*p.opts, *p.secondary_opts)}
    name, equals, value = current.partition("=")
    if equals and name in named:
        before, current = [*before, name], value
    place, awaiting = 0, None
    for word in before:  # where the last word stands: after an option that takes a value, or in which argument's place
        if awaiting is None and word in named:
            awaiting = None if named[word].is_flag else named[word]
        else:
            place, awaiting = place + (awaiting is None and not word.startswith("-")), None
    if awaiting is not None:
        yield from _values(awaiting, context, current)
    elif current.startswith("-"):
        free = {
            name: p.help or ""
            for name, p in named.items()
            if p.multiple or not {*p.opts, *p.secondary_opts} & {*before}
        }
        anywhere = {name: text for names, text in ANYWHERE.items() for name in names if name not in before}
        yield from _beginning(current, free | anywhere)
    else:
        arguments = [p for p in running.params if p.param_type_name == "argument"]
        if place < len(arguments) or (arguments and arguments[-1].nargs == -1):
            yield from _values(arguments[min(place, len(arguments) - 1)], context, current)


def _values(param: Any, context: Any, current: str) -> Iterator[tuple[str, str]]:
    """The values of an option or an argument that fit; names of files, if it has no values of its own."""
    for item in param.shell_complete(context, current):
        yield ("", "") if item.help == FILES else (item.value, item.help or "")
    if not param.shell_complete(context, ""):
        yield "", ""


def _beginning(current: str, words: dict[str, str]) -> Iterator[tuple[str, str]]:
    return ((word, meaning) for word, meaning in words.items() if word.startswith(current))
