"""The screen: the only way in which anything is printed for people.

Nothing in a text is markup here, nothing in it reaches the terminal as a control character, and no table breaks inside a
name or a number.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from r2mrf_deploy.wording import plain

PIPED = 120
"""Columns of a table that is not shown on a terminal, unless COLUMNS says otherwise."""
NARROWEST = 20
"""Columns that a column of prose needs at least."""


class Screen(Console):
    """A console for text of users, files and libraries: square brackets stay, control characters become visible escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)
        self.bars = 0
        """How many moving bars are shown."""

    def set_live(self, live: Live) -> bool:
        self.bars += 1
        return super().set_live(live)

    def clear_live(self) -> None:
        self.bars -= 1
        super().clear_live()

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The one gate: whatever is printed, in a table, a bar or a line, passes here."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text == "\n" or segment.text.isprintable():
                yield segment
            else:
                shown = "\n".join(map(plain, segment.text.split("\n")))
                yield Segment(shown, segment.style)


def screen(*, stderr: bool = False) -> Screen:
    """A console on standard output or standard error, as they are when something is printed."""
    stream = sys.stderr if stderr else sys.stdout
    fixed = stream.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Screen(stderr=stderr, width=None if fixed else PIPED)


class Sheet:
    """A table of names, prose and numbers that fits the screen or is not a table.

    Names and numbers are never broken. Prose is folded between words, and so is a name that is in `prose` too. Where the
    width does not suffice, the columns in `spare` are left out, the last first; where that does not suffice either, each row
    is printed as a record: the row's name, and below it a line for each column. A column in `once` is a line above the table
    if all its cells are alike.
    """

    def __init__(
        self,
        *names: str,
        numbers: Sequence[str] = (),
        prose: Sequence[str] = (),
        spare: Sequence[str] = (),
        once: Sequence[str] = (),
        title: str = "",
    ) -> None:
        self.heads = [plain(head) for head in dict.fromkeys((*names, *prose, *numbers))]
        self.numbers, self.prose, self.title = frozenset(numbers), frozenset(prose), plain(title)
        self.rows: list[list[Text]] = []
        self.sections: set[int] = set()
        """Rows that begin a section, set apart by a rule."""
        self._spare, self._once = ([self.heads.index(head) for head in some] for some in (spare, once))

    def add(self, *cells: object) -> None:
        """Add a row. A cell is a `Text`, where it has a style, or anything that is printed as it is."""
        row = [Text(plain(cell), cell.style if isinstance(cell, Text) else "") for cell in cells]
        self.rows.append(row + [Text("")] * (len(self.heads) - len(row)))

    def rule(self) -> None:
        """Set the rows that follow apart from those before."""
        self.sections.add(len(self.rows))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield _unbroken(Text(self.title))
        alike = [c for c in self._once if len({row[c].plain for row in self.rows}) == 1]
        for column in alike:
            if cell := self.rows[0][column].plain:
                yield _unbroken(Text(f"{self.heads[column]}: {cell}"))
        columns = [c for c in range(len(self.heads)) if c not in alike]
        for dropped in (None, *reversed(self._spare)):
            columns = [c for c in columns if c != dropped]
            if sum(map(self._needed, columns)) + 3 * len(columns) - 1 <= options.max_width:
                yield self._table(columns)
                return
        wide = max(map(len, self.heads))
        for row in self.rows:
            yield _unbroken(row[0])
            for column in range(1, len(row)):
                if row[column].plain and column not in alike:
                    head = self.heads[column].ljust(wide)
                    yield _unbroken(Text.assemble("  ", (head, "dim"), "  ", row[column]))

    def _table(self, columns: Sequence[int]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for head in (self.heads[c] for c in columns):
            number = head in self.numbers
            table.add_column(head, justify="right" if number else "left", no_wrap=head not in self.prose)
        for index, row in enumerate(self.rows):
            if index in self.sections:
                table.add_section()
            table.add_row(*(row[c] for c in columns))
        return table

    def _needed(self, column: int) -> int:
        """The width that a column needs, if its prose is folded as far as it may be."""
        cells = [self.heads[column], *(row[column].plain for row in self.rows)]
        whole = max(map(cell_len, cells))
        if self.heads[column] not in self.prose:
            return whole
        return max(min(whole, NARROWEST), *(cell_len(word) for cell in cells for word in cell.split() or [""]))


def _unbroken(text: Text) -> Text:
    """A line as long as it is: where it does not fit, the terminal folds it, and it can be copied whole."""
    return Text.assemble(text, no_wrap=True, overflow="ignore")
