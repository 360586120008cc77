"""`cmwq top`: a process that uses cmwq, in a terminal, about once a second. It needs Textual (the extra `top`).

Guarantees
- The process is only read. It is asked for a picture once a second, and not before it has answered and the answer is
  shown; one that took long to answer is left in peace for as long, but for 2 seconds at most.
- When the process ends, that is said, and the last picture stays. A process that does not answer is asked again.
- Drawing costs as much as fits into the terminal, however many workers there are.
"""

from __future__ import annotations

import textwrap
import threading
import time
from itertools import accumulate
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal
from textual.events import Click
from textual.message import Message
from textual.theme import Theme
from textual.widgets import Footer, Input, Static

from cmwq.observing.top_details import Details, Help
from cmwq.observing.top_numbers import VIEWS, WORKERS, History, Picture, View, duration, plain, size
from cmwq.observing.top_plot import Plot
from cmwq.observing.top_source import Over, Silent, Source
from cmwq.observing.top_table import Table, descends

EVERY = 1.0
"""Seconds from one picture to the next."""

WHY_LINES = 3
"""So many lines the reasons why no more workers come may take. What has no room ends in a mark."""

LATE = 3.0
"""Seconds without an answer after which that is said, although the answer may still come."""

DARK = Theme(
    "cmwq-dark", primary="#7aa2f7", secondary="#9ece6a", accent="#bb9af7", foreground="#c8d0e8", background="#14161f",
    surface="#1b1e2b", panel="#232738", error="#f7768e", warning="#e0af68", success="#9ece6a", dark=True,
    variables={"running": "#73c991", "blocked": "#e0af68", "idle": "#4d5775", "pending": "#f7768e",
               "inactive": "#9d7cd8", "footer-key-foreground": "#7aa2f7"},
)  # fmt: skip
LIGHT = Theme(
    "cmwq-light", primary="#2457c5", secondary="#3f7d20", accent="#7a3fb8", foreground="#23283b", background="#fbfbf8",
    surface="#f2f2ee", panel="#e6e7e4", error="#c4264a", warning="#9a6700", success="#2f7d32", dark=False,
    variables={"running": "#2f8f4e", "blocked": "#c98a1b", "idle": "#b3b9c9", "pending": "#d1365b",
               "inactive": "#8457c2", "footer-key-foreground": "#2457c5"},
)  # fmt: skip


class Told(Message):
    """What the thread that asks has to say: a picture, or a sentence."""

    def __init__(self, picture: Picture | None, sentence: str = "", over: bool = False) -> None:
        super().__init__()
        self.picture = picture
        self.sentence = sentence
        self.over = over
        self.shown = threading.Event()


class Top(App[None]):
    """The program. source: where pictures come from; it is closed at the end. name: what is looked at; empty: the
    process's number, from the picture. every: seconds between pictures. light: colours for a light background.
    """

    ENABLE_COMMAND_PALETTE = False
    TITLE = "cmwq top"
    VERTICAL_BREAKPOINTS = [(0, "-short"), (30, "-tall")]  # noqa: RUF012 (Textual's own is no ClassVar)
    BINDINGS: ClassVar[list[Any]] = [
        Binding("q,ctrl+c", "quit", "quit", key_display="q"),
        Binding("p,space", "pause", "pause", key_display="p"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("s", "sort(1)", "sort"),
        Binding("S", "sort(-1)", show=False),
        Binding("r", "reverse", "reverse"),
        Binding("d", "dark", "dark/light"),
        Binding("question_mark,h", "help", "help", key_display="?"),
        Binding("tab", "next(1)", show=False, priority=True),
        Binding("shift+tab", "next(-1)", show=False, priority=True),
        *(Binding(str(index + 1), f"view({index})", show=False) for index in range(len(VIEWS))),
    ]
    CSS = """
    #head { height: 1; background: $panel; }
    #title { width: 1fr; height: 1; padding: 0 1; }
    #state { width: auto; height: 1; padding: 0 1; }
    #facts { height: 1; padding: 0 1; color: $foreground 70%; }
    #plots { height: 7; padding: 0 1; }
    .-tall #plots { height: 12; margin: 1 0 0 0; }
    #workers-plot { width: 3fr; margin: 0 2 0 0; }
    #works-plot { width: 2fr; }
    #why { height: auto; padding: 0 1; color: $warning; display: none; }
    #why.said { display: block; }
    .-tall #why { margin: 1 0 0 0; }
    #views { height: 1; background: $surface; }
    .-tall #views { margin: 1 0 0 0; }
    #words { height: 1; border: none; padding: 0 1; background: $panel; display: none; }
    #words.asked { display: block; }
    Table { height: 1fr; }
    """

    def __init__(self, source: Source, name: str, every: float = EVERY, light: bool = False) -> None:
        super().__init__()
        self._source = source
        self._whose = name
        self._every = every
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = (LIGHT if light else DARK).name
        self.history = History()
        self.view = VIEWS[0]
        self.paused = False
        self.state = "asking"
        """What is said at the right of the first line: live, paused, silent or ended."""
        self._sentence = ""
        self._answered = time.monotonic()
        self._order = {view.name: (view.sorted_by, descends(view.sorted_by)) for view in VIEWS}
        self._words = ""
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._once = False
        self._stacks = False

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return dict(DARK.variables)

    def compose(self) -> ComposeResult:
        with Horizontal(id="head"):
            yield Static(id="title")
            yield Static(id="state")
        yield Static(id="facts")
        with Horizontal(id="plots"):
            yield Plot("workers", ("running", "blocked", "idle"), 4, id="workers-plot")
            yield Plot("works", ("pending", "inactive"), 4, id="works-plot")
        yield Static(id="why")
        yield Static(id="views")
        yield Table(id="table")
        yield Input(placeholder="only rows with these words", id="words")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one(Table).focus()
        self._write()
        self.set_interval(1.0, self._write_state)
        threading.Thread(target=self._ask_until_over, name="cmwq top", daemon=True).start()

    def on_unmount(self) -> None:
        self._stop.set()
        self._wake.set()
        self._source.close()

    # ------------------------------------------------------------------------------- asking, on a thread of its own

    def _ask_until_over(self) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            if not self.paused or self._once:
                self._once = False
                told = self._ask()
                self.post_message(told)
                while not told.shown.wait(0.5):
                    if self._stop.is_set():
                        return
                if told.over:
                    return
            took = time.monotonic() - begun
            self._wake.wait(max(self._every - took, min(took, 2 * self._every)))
            self._wake.clear()

    def _ask(self) -> Told:
        try:
            return Told(self._source.picture(self._stacks))
        except Silent as silent:
            return Told(None, str(silent))
        except Over as over:
            return Told(None, str(over), over=True)
        except Exception as error:  # whatever it is, the reader keeps the last picture
            return Told(None, f"no picture could be had: {type(error).__name__}: {error}", over=True)

    def on_told(self, told: Told) -> None:
        try:
            if not (self.screen_stack and self.screen_stack[0].query("#title")):
                return  # the program ends, and its widgets are gone
            if told.picture is not None:
                self._answered, self._sentence = time.monotonic(), ""
                self.state = "paused" if self.paused else "live"
                if not self.paused:
                    self.history.add(told.picture)
                self._show_details(told.picture)
            else:
                self.state, self._sentence = ("ended" if told.over else "silent"), told.sentence
                self._show_details(None)
            self._write()
        finally:
            told.shown.set()

    # ------------------------------------------------------------------------------- showing

    def _write(self) -> None:
        """Write everything anew."""
        picture = self.history.picture
        base = self.screen_stack[0]
        base.query_one("#title", Static).update(self._title(picture), layout=False)
        self._write_state()
        base.query_one("#facts", Static).update(self._facts(picture), layout=False)
        self._write_why()
        samples = list(self.history.total)
        last = samples[-1] if samples else (0, 0, 0, 0, 0)
        target = sum(pool["target"] for pool in picture.get("pools", ()))
        base.query_one("#workers-plot", Plot).draw(
            [sample[:3] for sample in samples], (f"{last[0]}/{target}", str(last[1]), str(last[2]))
        )
        base.query_one("#works-plot", Plot).draw([sample[3:] for sample in samples], (str(last[3]), str(last[4])))
        self._write_table()

    def _write_why(self) -> None:
        pools = self.history.picture.get("pools", ())
        why = "; ".join([f"{plain(pool['name'])}: {plain(pool['why'])}" for pool in pools if pool.get("why")][:3])
        width = max(1, self.size.width - 2)  # a terminal may be as narrow as one likes
        words = textwrap.wrap(f"why no more workers  {why}", width, max_lines=WHY_LINES, placeholder=" …")
        for base in self.screen_stack[:1]:  # there is none before the first and at the end
            for line in base.query("#why").results(Static):
                line.update(Text("\n".join(words)))
                line.set_class(bool(why), "said")

    def on_resize(self) -> None:
        self._write_why()

    def _write_state(self) -> None:
        for base in self.screen_stack[:1]:
            for state in base.query("#state").results(Static):
                state.update(self._state())

    def _write_table(self) -> None:
        base = self.screen_stack[0]
        table = base.query_one(Table)
        rows = self.view.rows(self.history) if self.history.picture else []
        table.show(self.view, rows, *self._order[self.view.name], self._words)
        base.query_one("#views", Static).update(self._views(len(rows), len(table.rows)), layout=False)

    def _title(self, picture: Picture) -> Text:
        text = Text("cmwq top", no_wrap=True, overflow="ellipsis")
        text.stylize(f"bold {self.current_theme.primary}")
        text.append(f"  {plain(self._whose or picture.get('pid', ''))}", "bold")
        command = " ".join(plain(word) for word in picture.get("command", ()))
        return text.append(f"  {command}")

    def _state(self) -> Text:
        late = time.monotonic() - self._answered
        state = "silent" if self.state == "live" and late > LATE + self._every else self.state
        return {
            "asking": Text("asking …"),
            "live": Text("● live", self.current_theme.success or ""),
            "paused": Text(" ❚❚ paused ", f"bold reverse {self.current_theme.warning}"),
            "silent": Text(f" no answer for {late:.0f} s ", f"bold reverse {self.current_theme.warning}"),
            "ended": Text(" ended ", f"bold reverse {self.current_theme.error}"),
        }[state]

    def _facts(self, picture: Picture) -> Text:
        if self._sentence:
            kept = {True: ": the last picture stays", False: ""}[bool(picture)]
            return Text(plain(self._sentence) + kept, f"bold {self.current_theme.error}", no_wrap=True)
        if not picture:
            return Text()
        used = self.history.before.get("cpu_seconds")
        lately = (
            (picture.get("cpu_seconds", 0) - used) / self.history.seconds if used and self.history.seconds else None
        )
        memory = picture.get("memory") or {}
        facts = [
            f"cmwq in use {duration(picture.get('uptime'))}",
            f"CPU {lately:.2f} of {picture['cpu_limit']}" if lately is not None else f"{picture['cpu_limit']} CPUs",
            f"memory {size(memory['used'])} of {size(memory.get('limit'))}" if memory.get("used") is not None else "",
            f"Python {plain(picture.get('python', ''))}{'' if picture['gil'] else ', no GIL'}",
            f"sensor {plain(picture['sensor'])}" if picture["sensor"] else "",
            "memory is short" if memory.get("held") else "",
            "FROZEN" if picture.get("frozen") else "",
        ]
        line = ""
        for fact in filter(None, facts):  # as many as fit
            longer = f"{line}  ·  {fact}" if line else fact
            line = longer if len(longer) <= self.size.width - 2 else line
        return Text(line, no_wrap=True)

    def _views(self, there: int, shown: int) -> Text:
        text = Text(no_wrap=True)
        for index, view in enumerate(VIEWS):
            here = view is self.view
            style = f"bold reverse {self.current_theme.primary}" if here else ""
            label = _tab(index)
            text.append(label, style)
        notes = [f"“{plain(self._words)}”: {shown} of {there}" if self._words else f"{there} row{'s' * (there != 1)}"]
        left_out = self.history.picture.get("workers_left_out", 0)
        if self.view is WORKERS and left_out:
            notes.append(f"{left_out:,} more are not in the picture")
        text.append(f"  {', '.join(notes)}", "dim")
        return text

    # ------------------------------------------------------------------------------- keys

    def action_view(self, index: int) -> None:
        self.view = VIEWS[index]
        self._write_table()

    def on_click(self, event: Click) -> None:
        """Another view, if its name was hit."""
        if event.widget is not None and event.widget.id == "views":
            ends = accumulate(len(_tab(index)) for index in range(len(VIEWS)))
            hit = next((index for index, end in enumerate(ends) if event.x < end), None)
            if hit is not None:
                self.action_view(hit)

    def action_next(self, step: int) -> None:
        if len(self.screen_stack) == 1:
            self.action_view((VIEWS.index(self.view) + step) % len(VIEWS))

    def action_pause(self) -> None:
        self.paused = not self.paused
        if self.state in ("live", "paused"):
            self.state = "paused" if self.paused else "live"
        self._wake.set()
        self._write()

    def action_sort(self, step: int) -> None:
        keys = [column.key for column, _ in self.query_one(Table).columns()]
        key, _ = self._order[self.view.name]
        self._sort_by(keys[(keys.index(key) + step) % len(keys)] if key in keys else keys[0])

    def _sort_by(self, key: str) -> None:
        self._order[self.view.name] = (key, descends(key))
        self._write_table()

    def action_reverse(self) -> None:
        key, descending = self._order[self.view.name]
        self._order[self.view.name] = (key, not descending)
        self._write_table()

    def on_table_sorted(self, message: Table.Sorted) -> None:
        if message.key == self._order[self.view.name][0]:
            self.action_reverse()
        else:
            self._sort_by(message.key)

    def action_dark(self) -> None:
        self.theme = (LIGHT if self.theme == DARK.name else DARK).name
        self._write()

    def action_help(self) -> None:
        self.push_screen(Help(self.view))

    def action_filter(self) -> None:
        words = self.query_one("#words", Input)
        words.add_class("asked")
        words.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._words = event.value
        self._write_table()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._leave_filter()

    def on_key(self, event: Any) -> None:
        if event.key == "escape" and len(self.screen_stack) == 1:
            self.query_one("#words", Input).value = ""
            self._leave_filter()

    def _leave_filter(self) -> None:
        words = self.query_one("#words", Input)
        words.set_class(bool(words.value), "asked")
        self.query_one(Table).focus()

    # ------------------------------------------------------------------------------- details

    def on_table_chosen(self, message: Table.Chosen) -> None:
        details = Details(message.view, message.row, self._note())
        self._stacks = message.view is WORKERS
        self._once = self._stacks
        self._wake.set()
        self.push_screen(details, lambda _: self._forget_stacks())

    def _forget_stacks(self) -> None:
        self._stacks = False

    def _note(self) -> str:
        return f"{self._sentence}: this is the last picture." if self._sentence else ""

    def _show_details(self, picture: Picture | None) -> None:
        details = next((screen for screen in self.screen_stack if isinstance(screen, Details)), None)
        if details is None:
            self._stacks = False
        elif picture is None:
            details.show(details.row, self._note())
        else:
            details.show(_row_of(details.view, picture, details.row["key"], self.history), "")


def _tab(index: int) -> str:
    """What is written for a view in the line of views."""
    return f" {index + 1} {VIEWS[index].title} "


def _row_of(view: View, picture: Picture, key: Any, history: History) -> dict[str, Any] | None:
    """The row of this key, of a picture that may not be in the history, because that is paused."""
    if history.picture is not picture and view is WORKERS:
        history = History()
        history.add(picture)
    return next((row for row in view.rows(history) if row["key"] == key), None)
