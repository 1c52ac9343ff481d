"""What a file says of itself, as indented fields and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from r2mrf_deploy.wording import plain


def facts_lines(facts: Mapping[str, Any], width: int) -> list[Text]:
    """Fields and values, nested ones indented. A value that does not fit beside its name is on the line below it."""
    found = list(_flat(facts))
    wide = min(max(len(name) for name, _ in found), width // 2)
    lines = []
    for name, value in found:
        beside = len(name) <= wide and wide + 2 + len(value) <= width
        lines.append(
            Text.assemble((name, "bold"), f"  {value:>{len(value) + wide - len(name)}}" if value and beside else "")
        )
        if not beside:
            lines.append(Text(" " * (len(name) - len(name.lstrip()) + 4) + value))
    return lines


def _flat(facts: Mapping[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    """(indented name, value) of each field that is not empty; the value of a nested one is empty."""
    for name, value in facts.items():
        if value is None or value in ("", [], (), {}):
            continue
        yield indent + plain(name), "" if _nested(value) else plain(_value(value))
        for title, item in _nested(value):
            yield from _flat({title: item}, indent + "  ")


def _nested(value: Any) -> list[tuple[str, Any]]:
    """The parts of a dictionary, or of a list of dictionaries, which are called by their name or number."""
    if isinstance(value, Mapping):
        return [(str(name), item) for name, item in value.items()]
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        named = [(str(item.get("name", number)), item) for number, item in enumerate(value, 1)]
        return [(title, {k: v for k, v in item.items() if k != "name"}) for title, item in named]
    return []


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        shape = any(type(v) is int for v in value)
        return ("×" if shape else ", ").join(map(_value, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:,.0f}" if 10_000 <= abs(value) < 1e15 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)
