"""`r2mrf VERB --help`: the options that most users need first, then groups of the others, as plain text of 80 columns.

An option says itself which group it is in (`rich_help_panel`, Typer's name for it); without one it is a common option.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from rich.text import Text
from typer.core import TyperCommand

from r2mrf_deploy.report.screen import Screen, screen

FEW = 12
"""Options of which a list needs no groups."""

ANYWHERE = {
    ("-v", "--verbose"): "Log what is done on standard error, with times.",
    ("--debug",): "Show the traceback of an error.",
}
"""Options that every command takes, and what they do; `cli.main` reads them, not the command."""


class Group(str, Enum):
    """The groups of options, in the order in which they are shown."""

    DATASET = "Dataset"
    COMPOSITES = "Composites"
    VALIDATION = "Validation"
    RECIPE = "Recipe"
    TRAINING = "Training"
    INPUT = "Input"
    FILMS = "Films"
    OUTPUT = "Output"
    GRAPH = "Graph"
    PRECISION = "Precision"
    TENSORRT = "TensorRT, with trtexec's names"
    MEASUREMENT = "Measurement"
    RUNTIME = "Runtime"
    SERVER = "Model on a server"
    CLUSTER = "Many machines"
    SERVING = "How models are served"
    ADDRESSES = "Where the server listens"
    CHECKPOINT = "Network and checkpoint"


class Verb(TyperCommand):
    """A command whose help is in groups."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", *(_usage(p) for p in self.params if p.param_type_name == "argument")]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        sections |= {group.value: [] for group in Group}
        params: list[Any] = [*self.get_params(ctx)]
        help_option = params.pop()
        few = sum(p.param_type_name == "option" for p in params) <= FEW
        for p in params:
            name, text = p.get_help_record(ctx)
            if p.param_type_name == "argument":
                sections["Arguments"].append((_name(p), text))
            else:
                sections[(not few and p.rich_help_panel) or "Options"].append((name.replace(" range>", ">"), text))
        sections["Options"] += [(", ".join(names), text) for names, text in ANYWHERE.items()]
        sections["Options"].append(help_option.get_help_record(ctx))
        shown = screen()
        for title, rows in sections.items():
            if rows:
                with formatter.section(_styled(shown, title, "bold")):
                    formatter.write_dl([(_styled(shown, name, "cyan"), text) for name, text in rows])


def _name(argument: Any) -> str:
    return argument.metavar or argument.name.upper()


def _usage(argument: Any) -> str:
    """An argument in the line of usage: `[FILE]...`. A metavar with signs of its own says it already."""
    name = _name(argument)
    if any(sign in name for sign in "[|."):
        return name
    return (name if argument.required else f"[{name}]") + ("" if argument.nargs == 1 else "...")


def _styled(shown: Screen, text: str, style: str) -> str:
    """Text with a style, where the screen has colours."""
    if shown.no_color or shown.color_system is None:
        return text
    with shown.capture() as captured:
        shown.print(Text(text, style), end="", soft_wrap=True)
    return captured.get()
