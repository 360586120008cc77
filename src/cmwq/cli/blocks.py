"""Text for people, laid out for a width: headings, paragraphs, tables, code. With rich where it is a terminal and rich
is there, else as plain text.

Guarantees: rich is imported only if it is used. Whatever a foreign process says cannot break a line, move the cursor or
colour anything. NO_COLOR is respected. No line is longer than the width.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cmwq.cli.output import one_line

LEAST, MOST, USUAL = 40, 160, 80


@dataclass(frozen=True, slots=True)
class Heading:
    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """mark: what stands before its first line; further lines begin below its text. tone: "", "bad", "good", "dim",
    "code" or "strong".
    """

    text: str
    indent: int = 0
    mark: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """rank: 0 stays; of the others those with the highest go first where there is not enough room, and each goes if it
    says nothing.
    """

    head: str
    right: bool = True
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Code:
    """Lines, each with its tone."""

    lines: Sequence[tuple[str, str]]
    indent: int = 4


Block = Heading | Paragraph | Table | Code
SAYS_NOTHING = frozenset({"", "0", "-", "0 s"})
GAP = "  "
READABLE, SHORTEST = 24, 4
"""Characters to which a text in a table is cut: before columns are left out, and after that."""


def show(blocks: Sequence[Block]) -> None:
    """Print the blocks to standard output."""
    width = min(max(shutil.get_terminal_size((USUAL, 24)).columns, LEAST), MOST)
    if not (sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and _show_rich(blocks, width)):
        print(plain(blocks, width))


def plain(blocks: Sequence[Block], width: int) -> str:
    """The blocks as plain text."""
    lines: list[str] = []
    for number, block in enumerate(blocks):
        if isinstance(block, Heading):
            lines += [""] * bool(number) + [one_line(block.text).upper()]
        elif isinstance(block, Paragraph):
            lines += wrapped(block, width)
        elif isinstance(block, Code):
            lines += [cut(" " * block.indent + _code(line), width) for line, _ in block.lines]
        else:
            lines += _table(block, width)
    return "\n".join(line.rstrip() for line in lines)


def wrapped(block: Paragraph, width: int) -> list[str]:
    """The lines of a paragraph."""
    mark, text = one_line(block.mark), one_line(block.text)
    if len(mark) > width // 2:
        mark, text = "", mark + text
    first = " " * block.indent + mark
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False
    ) or [first]


def cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"


def fitted(table: Table, width: int) -> Table:
    """The table, as it has room: long texts are cut a little, then columns are left out by their rank, then texts are
    cut for good. Columns with a rank that say nothing are left out in any case.
    """
    rows = [[one_line(cell) for cell in row] for row in table.rows]
    kept = [
        index
        for index, column in enumerate(table.columns)
        if not column.rank or any(row[index] not in SAYS_NOTHING for row in rows)
    ]

    def wide(index: int) -> int:
        return max(len(table.columns[index].head), *(len(row[index]) for row in rows))

    def excess() -> int:
        return sum(wide(index) + len(GAP) for index in kept) - width

    def cut_texts(least: int) -> None:
        for index in sorted(kept, key=wide, reverse=True):
            if not table.columns[index].right and excess() > 0:
                room = max(wide(index) - excess(), least, len(table.columns[index].head))
                for row in rows:
                    row[index] = cut(row[index], room)

    cut_texts(READABLE)
    while excess() > 0 and any(table.columns[index].rank for index in kept):
        kept.remove(max(kept, key=lambda index: table.columns[index].rank))
    cut_texts(SHORTEST)
    return Table([table.columns[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _table(block: Table, width: int) -> list[str]:
    if not block.rows:
        return []
    table = fitted(block, width)
    cells = [[column.head for column in table.columns], *table.rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(table.columns))]
    lines = [GAP + GAP.join(map(_aligned, row, widths, table.columns)) for row in cells]
    return [cut(line.rstrip(), width) for line in lines]


def _aligned(cell: str, width: int, column: Column) -> str:
    return cell.rjust(width) if column.right else cell.ljust(width)


def _code(line: str) -> str:
    return one_line(line.expandtabs(4))


# ------------------------------------------------------------------------------- rich

TONES = {"bad": "bold red", "good": "green", "dim": "dim", "code": "yellow", "strong": "bold", "": ""}


def _show_rich(blocks: Sequence[Block], width: int) -> bool:
    """Print with colours. False: rich is not there."""
    try:
        from rich.console import Console
    except ImportError:
        return False
    # Its width is one more, so that a full line does not break.
    print_rich(blocks, width, Console(width=width + 1, no_color=bool(os.environ.get("NO_COLOR"))))
    return True


def print_rich(blocks: Sequence[Block], width: int, console: Any) -> None:
    """Print the blocks to a console of rich."""
    from rich.text import Text

    for number, block in enumerate(blocks):
        if isinstance(block, Heading):
            title = Text("\n" * bool(number)).append(f"{one_line(block.text)} ", "bold cyan")
            _print(console, title.append("─" * max(width - len(block.text) - 1, 0), "cyan dim"))
        elif isinstance(block, Paragraph):
            _print_paragraph(console, block, width)
        elif isinstance(block, Code):
            for line, tone in block.lines:
                _print(console, Text(cut(" " * block.indent + _code(line), width), TONES[tone]))
        elif block.rows:
            head, *rows = _table(block, width)
            _print(console, Text(head, "bold"))
            for row in rows:
                _print(console, Text(row))


def _print(console: Any, text: Any) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _print_paragraph(console: Any, block: Paragraph, width: int) -> None:
    from rich.text import Text

    for number, line in enumerate(wrapped(block, width)):
        text = Text(line, TONES[block.tone])
        if not number and block.mark:
            text.stylize("bold", block.indent, block.indent + len(block.mark))
        _print(console, text)
