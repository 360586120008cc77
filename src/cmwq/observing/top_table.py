"""The table of `cmwq top`: one view's rows, of which only those are written that can be seen.

Guarantees: what a refresh costs does not depend on how many rows there are beyond the height of the table, except for
sorting them. The cursor stays on its row when rows come, go and change places, as long as that row is in sight;
otherwise it stays where it is. Columns for which there is no room are left out, those at least.
"""

from __future__ import annotations

from typing import Any, ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from cmwq.observing.top_numbers import ASCENDING, QUEUES, Column, Row, View, arranged

COLOURS = ("running", "blocked", "idle", "waking", "pending", "bad")
LEAST = 10
"""The least width of a column that takes what is left over."""
WHEEL = 3
"""Rows that the wheel of a mouse moves."""


class Table(ScrollView, can_focus=True):
    """One view of the pictures, as a table with a cursor."""

    BINDINGS: ClassVar[list[Any]] = [
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("down,j", "move(1)", "down", show=False),
        Binding("pageup", "page(-1)", "page up", show=False),
        Binding("pagedown", "page(1)", "page down", show=False),
        Binding("home", "move(-1000000000)", "first", show=False),
        Binding("end", "move(1000000000)", "last", show=False),
        Binding("enter", "choose", "details"),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "table--head", "table--sorted", "table--cursor", "table--empty", *(f"table--{each}" for each in COLOURS)
    }  # fmt: skip
    DEFAULT_CSS = """
    Table { background: $background; overflow-x: hidden; scrollbar-size-vertical: 1;
            scrollbar-background: $surface; scrollbar-background-hover: $surface; scrollbar-background-active: $surface;
            scrollbar-color: $foreground 25%; }
    Table > .table--head { background: $panel; color: $foreground 70%; }
    Table > .table--sorted { background: $panel; color: $primary; text-style: bold; }
    Table > .table--cursor { background: $foreground 12%; }
    Table:focus > .table--cursor { background: $primary 25%; }
    Table > .table--empty { color: $foreground 50%; text-style: italic; }
    Table > .table--running { color: $running; }
    Table > .table--blocked { color: $blocked; }
    Table > .table--idle { color: $idle; }
    Table > .table--waking { color: $accent; }
    Table > .table--pending { color: $pending; }
    Table > .table--bad { color: $error; }
    """

    class Chosen(Message):
        """Details of a row are asked for."""

        def __init__(self, view: View, row: Row) -> None:
            super().__init__()
            self.view = view
            self.row = row

    class Sorted(Message):
        """The table is to be sorted by another column."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.view = QUEUES
        self.rows: list[Row] = []
        self.cursor = 0
        self.sorted_by = QUEUES.sorted_by
        self.descending = True
        self._words = ""

    # ------------------------------------------------------------------------------- what is shown

    def show(self, view: View, rows: list[Row], sorted_by: str, descending: bool, words: str = "") -> None:
        """Show these rows of a view, sorted by a column, and only those that have the words."""
        same, key = view is self.view, self.chosen_key()
        self.view, self.sorted_by, self.descending, self._words = view, sorted_by, descending, words
        self.rows = arranged(rows, sorted_by, descending, words)
        self.virtual_size = Size(self.size.width, len(self.rows) + 1)
        if not same:
            self.cursor = 0
            self.scroll_to(y=0, animate=False, force=True)
        elif key is not None and self.cursor:
            first = self.scroll_offset.y
            seen = range(first, min(first + self.size.height - 1, len(self.rows)))
            self.cursor = next((index for index in seen if self.rows[index]["key"] == key), self.cursor)
        self.cursor = max(0, min(self.cursor, len(self.rows) - 1))
        self.refresh()

    def chosen_key(self) -> Any:
        """The key of the row under the cursor, or None."""
        return self.rows[self.cursor]["key"] if self.cursor < len(self.rows) else None

    def columns(self) -> list[tuple[Column, int]]:
        """The columns for which there is room, with their widths. Those without a width share what is left over."""
        room = self.scrollable_content_region.width
        shown = [column for column in self.view.columns if column.from_width <= room]
        left = room - 1 - sum(column.width + 1 for column in shown)
        share = max(left // max(sum(not column.width for column in shown), 1), LEAST)
        return [(column, column.width or share) for column in shown]

    # ------------------------------------------------------------------------------- drawing

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y == 0:
            return self._head(width)
        index = y - 1 + self.scroll_offset.y
        base = self.rich_style
        if index >= len(self.rows):
            if index == 0:
                text = "no row has these words" if self._words else self.view.empty
                style = base + self._style("empty")
                return Strip([Segment(f" {text}", style)]).adjust_cell_length(width, base)
            return Strip.blank(width, base)
        if index == self.cursor:
            base = base + self.get_component_rich_style("table--cursor")
        row, segments = self.rows[index], [Segment(" ", base)]
        for column, size in self.columns():
            colour = column.style(row) if column.style is not None else ""
            style = base + Style(color=self._style(colour).color) if colour else base
            segments.append(Segment(_fitted(column.words(row), size, column.left) + " ", style))
        return Strip(segments).adjust_cell_length(width, base)

    def _head(self, width: int) -> Strip:
        base = self.get_component_rich_style("table--head")
        segments = [Segment(" ", base)]
        for column, size in self.columns():
            chosen = column.key == self.sorted_by
            title = column.title
            if chosen and len(title) < size:
                title += "▼" if self.descending else "▲"
            style = self.get_component_rich_style("table--sorted") if chosen else base
            segments.append(Segment(_fitted(title, size, column.left) + " ", style))
        return Strip(segments).adjust_cell_length(width, base)

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(f"table--{name}", partial=True)

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self.refresh()

    # ------------------------------------------------------------------------------- moving

    def action_move(self, rows: int) -> None:
        self.cursor = max(0, min(self.cursor + rows, len(self.rows) - 1))
        self._reveal()

    def action_page(self, pages: int) -> None:
        self.action_move(pages * max(self.size.height - 2, 1))

    def action_choose(self) -> None:
        if self.cursor < len(self.rows):
            self.post_message(self.Chosen(self.view, self.rows[self.cursor]))

    def _reveal(self) -> None:
        height = max(self.size.height - 1, 1)
        first = min(max(self.scroll_offset.y, self.cursor - height + 1), self.cursor)
        self.scroll_to(y=first, animate=False, force=True)
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        if event.y == 0:
            if (key := self._column_at(event.x)) is not None:
                self.post_message(self.Sorted(key))
            return
        index = event.y - 1 + self.scroll_offset.y
        if index < len(self.rows):
            if index == self.cursor and event.chain > 1:
                self.action_choose()
            self.cursor = index
            self.refresh()

    def _column_at(self, x: int) -> str | None:
        right = 1
        for column, size in self.columns():
            right += size + 1
            if x < right:
                return column.key
        return None

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self.refresh(Region(0, 0, self.size.width, self.size.height))


def descends(column: str) -> bool:
    """Whether a column is sorted downwards at first: numbers are, words are not."""
    return column not in ASCENDING


def _fitted(text: str, size: int, left: bool) -> str:
    """The text in so many places, cut with a mark, at its side."""
    length = cell_len(text)
    if length > size:
        return set_cell_size(text, size - 1) + "…" if size > 1 else "…"
    return text + " " * (size - length) if left else " " * (size - length) + text
