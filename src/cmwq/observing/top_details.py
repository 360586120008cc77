"""What `cmwq top` shows over its table: one row in full, with stack or histograms; and the help.

Guarantees: what a process says is shown as it is and never obeyed, neither by the terminal nor as markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from cmwq._core.naming import noun
from cmwq._workqueue.report import own_part
from cmwq.observing.findings import limit_of
from cmwq.observing.top_numbers import Row, View, count, cpus, duration, percent, plain, rate, waits

KEYS = (
    ("1 … 5, tab", "queues, functions, workers, pools, stalls"),
    ("↑ ↓ pgup pgdn", "move the cursor; also j, k, home, end and the mouse"),
    ("enter", "details: a worker's stack, a queue's times, a whole report; ↑ ↓ pgup pgdn scroll them, esc closes"),
    ("s, S", "sort by the next column, by the one before; or click on its title"),
    ("r", "sort the other way round"),
    ("/", "only rows that have these words; esc: all rows again"),
    ("p, space", "pause: nothing is asked, and everything stays as it is"),
    ("d", "dark or light"),
    ("q", "quit: the process is not touched"),
)
BAR = 30
"""Characters of the longest bar of a histogram."""


class Over(ModalScreen[None]):
    """A sheet over the table, which any of a few keys closes."""

    BINDINGS: ClassVar[list[Any]] = [
        Binding("escape,q,enter,question_mark,h", "app.pop_screen", "close"),
        Binding("up,k", "scroll(-1)", show=False),
        Binding("down,j", "scroll(1)", show=False),
        Binding("pageup", "scroll(-10)", show=False),
        Binding("pagedown,space", "scroll(10)", show=False),
    ]
    DEFAULT_CSS = """
    Over { align: center middle; background: $background 50%; }
    Over > VerticalScroll {
        width: 92%; max-width: 110; height: auto; max-height: 90%;
        border: round $primary; border-title-color: $primary; border-title-style: bold;
        border-subtitle-color: $foreground 60%; background: $surface; padding: 0 1; scrollbar-size-vertical: 1;
    }
    Over Static { width: 100%; height: auto; }
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self._said = title

    def compose(self) -> ComposeResult:
        with VerticalScroll() as sheet:
            sheet.border_title = Text(self._said)  # as a text it would be markup, of Textual's and not of Rich's kind
            sheet.border_subtitle = "↑ ↓ pgup pgdn scroll · esc closes"
            yield Static(self.text())

    def text(self) -> RenderableType:
        """What the sheet says now."""
        raise NotImplementedError

    def again(self) -> None:
        """Say it anew. A picture may come before the sheet is made, which then says it at once."""
        for words in self.query(Static):
            words.update(self.text())

    def action_scroll(self, lines: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)


class Help(Over):
    """The keys, and what the columns of a view mean."""

    def __init__(self, view: View) -> None:
        super().__init__("cmwq top")
        self._view = view

    def text(self) -> RenderableType:
        columns = [
            (column.title, f"{column.about}{', in wide terminals' * bool(column.from_width)}")
            for column in self._view.columns
        ]
        return Group(
            _pairs(KEYS),
            Text(f"\n{self._view.title}", "bold underline"),
            _pairs(columns),
            Text("\nA blank is a number that is not known. The plots show the whole process, a picture per column."),
        )


class Details(Over):
    """One row in full."""

    def __init__(self, view: View, row: Row, note: str) -> None:
        super().__init__(_title(view, row))
        self.view = view
        self.row = row
        self.note = note
        """What is to be known of the row's picture: that it is the last one, or that a better one is asked for."""

    def show(self, row: Row | None, note: str) -> None:
        """Another picture came. row: the same row in it, or None if it is gone."""
        if row is not None:
            self.row = row
        self.note = note if row is not None else "It is gone. This was the last of it."
        self.again()

    def text(self) -> RenderableType:
        text = Text()
        if self.view.name == "workers":
            _add_stack(text, self.row)
        if self.view.name == "queues":
            _add_times(text, "waited to begin", self.row.get("waiting"))
            _add_times(text, "ran", self.row.get("running"))
        if self.view.name == "stalls":
            text.append("\n" + "\n".join(map(plain, self.row["text"].split("\n"))) + "\n")
        if self.note:
            text.append(f"\n{self.note}", "italic")
        text.rstrip()
        return Group(_pairs([pair for pair in _FACTS[self.view.name](self.row) if pair[1]]), text)


def _pairs(pairs: Sequence[tuple[str, str]]) -> Table:
    """Words in bold, each with what is said of it, which may take several lines."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for words, said in pairs:
        table.add_row(Text(words), Text(said))
    return table


def _some(number: float | None, one: str, more: str = "") -> str:
    """A number, as short as in the tables, and what it counts."""
    return f"{count(number)} {noun(number, one, more)}"


def _title(view: View, row: Row) -> str:
    name = row.get("name") or " ".join(filter(None, (row.get("pool"), row.get("queue"))))
    return f"{view.title.removesuffix('s')} {plain(name)}"


def _of_worker(row: Row) -> list[tuple[str, str]]:
    return [
        ("state", f"{row['state']}{', the rescuer of a queue' * row['rescuer']}"),
        ("idle for" if row["state"] == "idle" else "in it for", duration(row["since"])),
        ("works on", plain(row["work"])),
        ("of queue", plain(row["queue"])),
        ("waits", waits(row)),
        ("CPU time", duration(row["cpu_seconds"])),
        ("item", str(row["item"] or "")),
        ("thread", f"{row['tid']}, of pool {plain(row['pool'])}"),
    ]


def _of_queue(row: Row) -> list[tuple[str, str]]:
    limit = f"{limit_of(row)}{', learned' * row['learns']}"
    failed = f", of which {count(row['failed'])} raised" if row.get("failed") is not None else ""
    return [
        ("state", f"{row['state']}, scope {plain(row['scope'])}"),
        (
            "works",
            f"{_some(row['active'], 'has', 'have')} a place, {_some(row['inactive'], 'waits', 'wait')} for one; "
            f"max_active is {limit}",
        ),
        ("so far", f"{count(row.get('started'))} began, {count(row.get('completed'))} ended{failed}"),
        (
            "lately",
            f"{rate(row['rate'])} a second, {percent(row['share'])} of a CPU" if row["rate"] is not None else "",
        ),
        ("CPU time", duration(row.get("cpu_seconds"))),
        ("woke", f"{_some(row.get('wakeups'), 'worker')}, because others blocked"),
        ("hogs", f"{_some(row['hogs'], 'work')} computed for long while others waited" if row["hogs"] else ""),
        (
            "rescuer",
            f"called {_some(row['maydays'], 'time')}, began {_some(row['rescued'], 'work')}" if row["rescuer"] else "",
        ),
        ("why it waits", plain(row.get("why", ""))),
    ]


def _of_function(row: Row) -> list[tuple[str, str]]:
    return [
        ("of queue", plain(row["queue"])),
        ("now", _some(row["running"], "runs", "run")),
        ("so far", f"{count(row['ended'])} ended, of which {count(row['failed'])} raised"),
        (
            "lately",
            f"{rate(row['rate'])} a second, {percent(row['share'])} of a CPU" if row["rate"] is not None else "",
        ),
        (
            "takes",
            f"{duration(row['mean'])} in the mean, {percent(row['waits'])} of it not on a CPU" if row["mean"] else "",
        ),
        ("in all", f"{duration(row['seconds'])}, of which {duration(row['cpu_seconds'])} on a CPU"),
    ]


def _of_pool(row: Row) -> list[tuple[str, str]]:
    states = ", ".join(
        said for said, is_so in (
            ("memory is short, so works are held back", row["held"]),
            ("its CPU is gone, and all of its workers may run", row["disassociated"]),
        ) if is_so
    )  # fmt: skip
    return [
        ("CPUs", f"{cpus(row['cpus'])}; {count(row['target'])} may run at a time"),
        ("workers", f"{count(row['workers'])}: {_some(row['running'], 'runs', 'run')}, "
                    f"{_some(row['blocked'], 'is', 'are')} blocked, {_some(row['idle'], 'is', 'are')} idle; "
                    f"at most there were {count(row['peak_workers'])}"),
        ("works", f"{_some(row['pending'], 'waits', 'wait')} for a worker, {count(row['inactive'])} for a place "
                  "in a queue"),
        ("why", plain(row.get("why", ""))),
        ("state", states),
        ("so far", f"{_some(row['started'], 'work')} began, {count(row['completed'])} ended"),
        ("threads", f"{count(row['created'])} created, {count(row['culled'])} ended, {count(row['refused'])} refused"),
        ("woken", _some(row["wakeups"], "time")),
        ("CPU time", duration(row.get("cpu_seconds"))),
        ("nice", str(row["nice"] or "")),
    ]  # fmt: skip


_STATES = {
    "over": "it is over: works begin again", "stalled": "works wait, and none began",
    "was": "works waited, and none began; it is over",
}  # fmt: skip


def _of_stall(row: Row) -> list[tuple[str, str]]:
    return [
        ("where", f"pool {plain(row['pool'])}{', queue ' + plain(row['queue']) if row['queue'] else ''}"),
        ("reported", f"{duration(row['age'])} ago"),
        ("state", _STATES[row["state"]]),
    ]


_FACTS = {
    "workers": _of_worker, "queues": _of_queue, "functions": _of_function, "pools": _of_pool, "stalls": _of_stall,
}  # fmt: skip


def _add_stack(text: Text, row: Row) -> None:
    lines = [line for entry in own_part(row["stack"]) for line in entry.rstrip().split("\n")]
    if lines:
        text.append("\nStack, the innermost call last\n", "bold underline")
        for line in lines:
            place = line.lstrip().startswith("File ")
            text.append(plain(line.removeprefix("  ")) + "\n", "dim" if place else "")


def _add_times(text: Text, what: str, times: Any) -> None:
    """A histogram as bars, without the empty ends."""
    if not times or not sum(times["counts"]):
        return
    measured = sum(times["counts"])
    mean = duration(times["sum"] / measured)
    text.append(f"\nHow long works {what}", "bold underline")
    text.append(f"  {count(measured)} measured, {mean} in the mean\n")
    counts = times["counts"]
    first = next(index for index, number in enumerate(counts) if number)
    last = len(counts) - next(index for index, number in enumerate(reversed(counts)) if number)
    for index in range(first, last):
        bounds = times["bounds"]
        name = f"< {duration(bounds[index])}" if index < len(bounds) else f"≥ {duration(bounds[-1])}"
        length = -(-counts[index] * BAR // max(counts))
        text.append(f"{name:>10} ")
        text.append("█" * length, "cyan")
        text.append(f" {count(counts[index])}\n")
