"""The plots of `cmwq top`: numbers over time, one above the other, an eighth of a row exact.

Guarantees: a number above 0 is always to be seen. Each column of characters is one picture; the newest is at the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from cmwq.observing.top_numbers import BARS, count

GUTTER = 5
"""Characters left of the plot, for the scale."""


class Plot(Widget):
    """Several numbers over time, stacked. `kinds` names the colours of the numbers, the lowest first."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "plot--running", "plot--blocked", "plot--idle", "plot--pending", "plot--inactive", "plot--scale", "plot--text",
    }  # fmt: skip
    DEFAULT_CSS = """
    Plot { height: 1fr; }
    Plot > .plot--running { color: $running; }
    Plot > .plot--blocked { color: $blocked; }
    Plot > .plot--idle { color: $idle; }
    Plot > .plot--pending { color: $pending; }
    Plot > .plot--inactive { color: $inactive; }
    Plot > .plot--scale { color: $foreground 45%; }
    Plot > .plot--text { color: $foreground; }
    """

    def __init__(self, title: str, kinds: tuple[str, ...], at_least: int, **options: Any) -> None:
        super().__init__(**options)
        self._title = title
        self._kinds = kinds
        self._least = at_least
        self._notes: tuple[str, ...] = ()
        self._columns: list[Sequence[int]] = []
        self._top = at_least

    def draw(self, samples: Sequence[Sequence[int]], notes: tuple[str, ...]) -> None:
        """Show these numbers. notes: what the legend says of each kind now."""
        shown = samples[-max(self.size.width - GUTTER, 1) :]
        self._columns = list(shown)
        self._top = scale(max((sum(each) for each in shown), default=0), self._least)
        self._notes = notes
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width, height = self.size
        base = self.rich_style
        if y == 0:
            return self._legend(width, base)
        scale_style = base + self.get_component_rich_style("plot--scale", partial=True)
        label = {1: count(self._top), height - 1: "0"}.get(y, "")
        segments = [Segment(f"{label:>{GUTTER - 1}}" + ("┤" if label else "│"), scale_style)]
        space = width - GUTTER - len(self._columns)
        if space > 0:
            segments.append(Segment(" " * space, base))
        rows, row = height - 1, height - 1 - y
        styles = [self.get_component_rich_style(f"plot--{kind}", partial=True) for kind in self._kinds]
        segments += [cell(column, self._top, rows, row, styles, base) for column in self._columns]
        return Strip(segments).simplify().adjust_cell_length(width, base)

    def _legend(self, width: int, base: Style) -> Strip:
        text = base + self.get_component_rich_style("plot--text", partial=True)
        said = [f"{kind} {note}" for kind, note in zip(self._kinds, self._notes, strict=False)]
        title = [Segment(f"{self._title} ", text + Style(bold=True))]
        segments: list[Segment] = []
        for kind, words in zip(self._kinds, said, strict=False):
            style = base + self.get_component_rich_style(f"plot--{kind}", partial=True)
            segments += [Segment(" ■ " if segments else "■ ", style), Segment(words, text)]
        room = width - len(self._title) - 1 - sum(len(segment.text) for segment in segments)
        return Strip([*(title if room >= 0 else []), *segments]).adjust_cell_length(width, base)


def scale(most: int, least: int) -> int:
    """The top of the scale: a round number that holds the most."""
    most = max(most, least)
    size = 1
    while True:
        for step in (1, 2, 3, 4, 5, 6, 8):
            if step * size >= most:
                return step * size
        size *= 10


def cell(column: Sequence[int], top: int, rows: int, row: int, styles: Sequence[Style], base: Style) -> Segment:
    """One character of the plot: the two largest parts that fall into it, in their order. row: from below."""
    bounds, total, level = [0], 0, 0
    for number in column:
        total += number
        level = max(round(total * rows * 8 / top), level + 1 if number else level)
        bounds.append(level)
    low = row * 8
    inside = [min(max(bound - low, 0), 8) for bound in bounds]
    parts = [(high - start, index) for index, (start, high) in enumerate(pairwise(inside))]
    empty = 8 - inside[-1]
    largest = sorted(sorted(part for part in parts if part[0])[-2:], key=lambda part: part[1])
    if not largest:
        return Segment(" ", base)
    (eighths, first), *second = largest
    lower = styles[first]
    if eighths == 8:
        return Segment(" ", base + Style(bgcolor=lower.color))  # without the gaps that some terminals leave in a block
    if not second:
        return Segment(BARS[eighths - 1], base + lower)
    if empty:  # two colours and an empty place need three: the upper one gives way to what is larger
        return Segment(
            BARS[min(inside[-1], 8) - 1], base + (lower if eighths >= second[0][0] else styles[second[0][1]])
        )
    upper = styles[second[0][1]].color
    return Segment(BARS[min(8 - second[0][0], 8) - 1], base + lower + Style(bgcolor=upper))
