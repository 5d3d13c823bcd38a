"""Tables of text, and how the terminal and Markdown show them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import isfinite

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WIDTH = 100  # characters of a table where the terminal does not tell
WORD = 12  # the least width of a column of words, which are broken there

BEST, FAILED, DIM, SCOPE = "bold green", "red", "dim", "italic"


@dataclass(frozen=True)
class Entry:
    """One piece of text in a sheet and how it is meant (BEST, FAILED, DIM, SCOPE or plain)."""

    text: str
    style: str = ""
    spans: bool = False  # stands for its whole group; the group's other entries are empty


@dataclass(frozen=True)
class Heading:
    """A column of a sheet; neighbours of one group stand under the group's name."""

    name: str
    group: str = ""
    left: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table of text. `breaks` are the rows before which a rule is drawn."""

    title: str
    headings: list[Heading]
    rows: list[list[Entry]]
    breaks: frozenset[int] = frozenset()
    detail: bool = False  # folded away where the medium can


def number(value: float | None, pattern: str) -> str:
    """A figure as text; a dash where there is none."""
    if value is None:
        return "-"
    return format(value, pattern) if isfinite(value) else str(value)


def number_entry(value: float | None, pattern: str = ",.1f", style: str = "") -> Entry:
    return Entry(number(value, pattern), style)


@dataclass(frozen=True)
class _Run:
    """Neighbours in a sheet that the terminal shows as one column: a group, or a lone heading.

    The width is counted here, not by rich, which takes seconds over a thousand rows.
    """

    headings: list[Heading]
    rows: list[list[Entry]]

    @cached_property
    def marked(self) -> list[bool]:
        """For each heading whether its best is marked: then the others leave room for a star."""
        columns = zip(*self.rows, strict=True)
        return [any(entry.style == BEST for entry in column) for column in columns]

    @cached_property
    def widths(self) -> list[int]:
        """Characters of each heading's place inside the column."""
        texts = [row for row in self.rows if not row[0].spans]
        return [
            max(
                [len(heading.name) if heading.group else 0]
                + [len(line) for row in texts for line in row[i].text.split("\n")]
            )
            + self.marked[i]
            for i, heading in enumerate(self.headings)
        ]

    @cached_property
    def inner_width(self) -> int:
        return sum(self.widths) + 2 * (len(self.widths) - 1)

    @cached_property
    def header(self) -> str:
        first = self.headings[0]
        if first.left:
            return first.name
        if not first.group:
            return self._folded(first.name)
        names = (h.name.rjust(w) for h, w in zip(self.headings, self.widths, strict=True))
        group = self._folded(first.group).split("\n")
        return "\n".join([*(line.center(self.inner_width) for line in group), "  ".join(names)])

    @cached_property
    def width(self) -> int:
        spans = {self._folded(row[0].text) for row in self.rows if row[0].spans}
        lines = "\n".join([self.header, *spans]).split("\n")
        return max(self.inner_width, *map(len, lines))

    def _folded(self, name: str) -> str:
        return _fold(name, max(self.inner_width, 9))

    def text(self, row: list[Entry]) -> Text:
        """One cell: its entries in their places, the best marked with a star."""
        first = row[0]
        if first.spans:
            return Text(self._folded(first.text), style=first.style)
        if self.headings[0].left:
            return Text(first.text, style=first.style)
        cell = Text()
        for entry, room, width in zip(row, self.marked, self.widths, strict=True):
            star = "*" if entry.style == BEST else " " * room
            cell.append("  " if cell else "").append(
                (entry.text + star).rjust(width), style=entry.style
            )
        return cell


def _runs(sheet: Sheet) -> list[_Run]:
    runs = []
    start = 0
    for group, members in groupby(sheet.headings, key=lambda heading: heading.group):
        for headings in [list(members)] if group else [[heading] for heading in members]:
            stop = start + len(headings)
            runs.append(_Run(headings, [row[start:stop] for row in sheet.rows]))
            start = stop
    return runs


def natural_width(sheet: Sheet) -> int:
    """The characters that rich_table takes, with 3 between columns."""
    runs = _runs(sheet)
    return sum(run.width for run in runs) + 3 * (len(runs) - 1)


@dataclass(frozen=True)
class FittingTable:
    """A sheet for the terminal: in blocks below each other, all of which have the first column,
    where it is too narrow for one. No figure is cut off."""

    sheet: Sheet

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for i, runs in enumerate(_blocks(_runs(self.sheet), options.max_width)):
            if i:
                yield Text()
            yield _table(self.sheet, runs)


def rich_table(sheet: Sheet) -> FittingTable:
    """A sheet for the terminal, each column as wide as its longest text."""
    return FittingTable(sheet)


def _blocks(runs: list[_Run], width: int) -> list[list[_Run]]:
    """The columns that fit side by side; those of words need less than their longest text."""
    needed = [min(run.width, WORD) if run.headings[0].left else run.width for run in runs]
    blocks, used = [runs[:1]], needed[0]
    for run, own in zip(runs[1:], needed[1:], strict=True):
        if used + own + 3 > width and len(blocks[-1]) > 1:
            blocks.append(runs[:1])
            used = needed[0]
        blocks[-1].append(run)
        used += own + 3
    return blocks


def _table(sheet: Sheet, runs: list[_Run]) -> Table:
    # Padding by rich, cell by cell, is half of its time; here the columns of figures are wider.
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for i, run in enumerate(runs):
        gap = 2 if i else 0
        if run.headings[0].left:  # words, which may wrap in a narrow terminal
            table.add_column(Padding(run.header, (0, 0, 0, gap)), overflow="fold")
        else:
            table.add_column(run.header, justify="right", no_wrap=True, width=run.width + gap)
    for number in range(len(sheet.rows)):
        if number in sheet.breaks:
            table.add_section()
        cells = (run.text(run.rows[number]) for run in runs)
        table.add_row(
            *(
                Padding(cell, (0, 0, 0, 2)) if run.headings[0].left and i else cell
                for i, (run, cell) in enumerate(zip(runs, cells, strict=True))
            )
        )
    return table


def _fold(name: str, width: int) -> str:
    """Break a name into lines of about `width` characters after `_`, `-`, `,` and spaces."""
    lines = [""]
    for part in re.findall(r"[^_\-, ]+[_\-, ]*|[_\-, ]+", name):
        if lines[-1] and len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(sheet: Sheet) -> list[str]:
    """A sheet as lines of a Markdown table; a group's name stands over its first column."""
    names, group = [], ""
    for heading in sheet.headings:
        above = escaped(heading.group) if heading.group != group else ""
        name = escaped(heading.name)
        names.append(f"{above}<br>{name}" if heading.group else name)
        group = heading.group
    lines = [names, [":--" if heading.left else "--:" for heading in sheet.headings]]
    for row in sheet.rows:
        texts = [(escaped(entry.text), entry.style) for entry in row]
        lines.append([f"**{text}**" if style == BEST else text for text, style in texts])
    return [f"| {' | '.join(line)} |" for line in lines]


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")
