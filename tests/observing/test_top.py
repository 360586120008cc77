"""`cmwq top` in a terminal of 80x24, moved by its keys: Textual's pilot."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pictures
import pytest
from conftest import HANG

pytest.importorskip("textual", reason="Textual can't be imported here")

from rich.text import Text
from textual.pilot import Pilot

from cmwq._workqueue.report import own_part
from cmwq.observing.top import Top
from cmwq.observing.top_details import Details, Help, _add_stack, _of_queue
from cmwq.observing.top_source import Over, Silent
from cmwq.observing.top_table import Table


class Given:
    """A source that gives the pictures that the test hands it. The last one stays."""

    def __init__(self, *given: Any) -> None:
        self.given = list(given)
        self.asked: list[bool] = []
        self.closed = threading.Event()

    def picture(self, stacks: bool = False) -> dict[str, Any]:
        self.asked.append(stacks)
        found = self.given[0] if len(self.given) == 1 else self.given.pop(0)
        if isinstance(found, Exception):
            raise found
        return {**found, "workers": [{**each, "stack": ["  File x\n"] if stacks else []} for each in found["workers"]]}

    def close(self) -> None:
        self.closed.set()


def story(*, number: int = 3, workers: int = 24) -> list[dict[str, Any]]:
    told = pictures.Story(workers=workers)
    return [told.next() for _ in range(number)]


def run(
    source: Given, act: Callable[[Top, Pilot[None]], Awaitable[None]], size: tuple[int, int] = (80, 24), **options: Any
) -> None:
    """Let it run, and act once it has a picture."""

    last = [each for each in source.given if isinstance(each, dict)][-1]

    async def main() -> None:
        app = Top(source, "4242", **{"every": 0.1, **options})
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app.history.picture.get("uptime") == last.get("uptime"))
            await act(app, pilot)
        assert source.closed.is_set()

    asyncio.run(main())


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await pilot.pause(0.01)


def screen(app: Top) -> list[str]:
    """What is to be read, line by line."""
    lines = app.screen._compositor.render_strips()
    return ["".join(segment.text for segment in line) for line in lines]


def line_with(app: Top, *words: str) -> str:
    found = [line for line in screen(app) if all(word in line for word in words)]
    assert found, "\n".join(screen(app))
    return found[0]


def test_at_80_by_24_everything_is_there() -> None:
    async def act(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "q quit" in screen(app)[-1])  # the last to come
        assert line_with(app, "cmwq top", "4242", "python server.py", "live")
        assert line_with(app, "cmwq in use 1h00m", "memory 512M of 2.0G")
        assert line_with(app, "running", "blocked", "idle", "pending", "inactive")
        assert line_with(app, "why no more workers", "as many workers run as may")
        titles = line_with(app, "queue", "total").split()
        assert titles == ["queue", "total", "/s▼", "infl", "wait", "CPU%", "CPUtime", "CPUitsv", "CMW", "mayday",
                          "rescued"]  # fmt: skip
        assert line_with(app, "thumbnails")
        assert line_with(app, "q quit", "/ filter", "? help")
        assert len(screen(app)) == 24

    run(Given(*story()), act)


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (250, 70)])
@pytest.mark.parametrize("light", [False, True])
def test_every_view_is_drawn_at_every_size_in_both_themes(size: tuple[int, int], light: bool) -> None:
    async def act(app: Top, pilot: Pilot[None]) -> None:
        for key in "12345":
            await pilot.press(key)
            await pilot.pause()
            assert len(screen(app)) == size[1]
        await pilot.press("question_mark")
        await pilot.pause()
        assert isinstance(app.screen, Help)

    run(Given(*story(number=3)), act, size, light=light, every=0.2)


def test_keys_and_clicks_choose_the_view() -> None:
    async def act(app: Top, pilot: Pilot[None]) -> None:
        seen = []
        for key in ("2", "3", "4", "5", "1", "tab", "shift+tab", "shift+tab"):
            await pilot.press(key)
            seen.append(app.view.name)
        assert seen == ["functions", "workers", "pools", "stalls", "queues", "functions", "queues", "stalls"]
        await pilot.click("#views", offset=(30, 0))
        assert app.view.name == "workers"

    run(Given(*story(number=2)), act)


def test_rows_are_sorted_by_key_and_by_click_and_reversed() -> None:
    async def act(app: Top, pilot: Pilot[None]) -> None:
        table = app.query_one(Table)

        def names() -> list[str]:
            return [row["name"] for row in table.rows]

        by_rate = names()
        assert [row["rate"] for row in table.rows] == sorted((row["rate"] for row in table.rows), reverse=True)
        await pilot.press("r")
        assert [row["rate"] for row in table.rows] == sorted(row["rate"] for row in table.rows)
        await pilot.press("r", "s")
        assert table.sorted_by == "active"
        await pilot.press("S")
        assert names() == by_rate
        await pilot.click(Table, offset=(3, 0))  # the title of the names
        assert names() == sorted(by_rate)
        await pilot.click(Table, offset=(3, 0))
        assert names() == sorted(by_rate, reverse=True)

    run(Given(*story()), act)


def test_a_filter_keeps_the_rows_with_these_words_until_it_is_left() -> None:
    async def act(app: Top, pilot: Pilot[None]) -> None:
        table = app.query_one(Table)
        await pilot.press("3", "slash", *"prices", "enter")
        assert {row["queue"] for row in table.rows} == {"prices"}
        assert line_with(app, "“prices”", "of 24")
        await pilot.press("2")  # keys are keys again, and the words hold for each view
        assert [row["name"] for row in table.rows] == ["shop.http.fetch_price"]
        await pilot.press("escape")
        assert len(table.rows) == 5
        await pilot.press("slash", *"nobody", "enter")
        await pilot.pause()
        assert line_with(app, "no row has these words")

    run(Given(*story()), act)


def test_keys_typed_into_the_filter_are_no_commands() -> None:
    async def act(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("slash", *"qps d3")
        assert (app.view.name, app.paused, app._words) == ("queues", False, "qps d3")

    run(Given(*story(number=2)), act)


def test_while_it_is_paused_nothing_is_asked_and_nothing_changes() -> None:
    source = Given(*story())

    async def act(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("p")
        await until(pilot, lambda: app.state == "paused")
        await pilot.pause(0.1)
        asked, before = len(source.asked), screen(app)
        assert line_with(app, "paused")
        await pilot.pause(0.3)
        assert len(source.asked) == asked
        assert screen(app) == before
        await pilot.press("space")
        await until(pilot, lambda: len(source.asked) > asked)

    run(source, act)


def test_details_of_a_worker_have_its_stack_and_stacks_are_asked_for_only_then() -> None:
    source = Given(*story())

    async def act(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("3")
        assert not any(source.asked)
        await pilot.press("enter")
        await until(pilot, lambda: "File x" in "\n".join(screen(app)))
        assert isinstance(app.screen, Details)
        row = app.screen.row
        assert line_with(app, "works on", row["work"])
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, Details))
        await until(pilot, lambda: not source.asked[-1])

    run(source, act)


def test_a_stack_is_asked_for_even_in_a_pause_and_nothing_else_changes() -> None:
    source = Given(*story())

    async def act(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("3", "p")
        await pilot.pause(0.1)
        shown = app.history.picture
        await pilot.press("enter")
        await until(pilot, lambda: "File x" in "\n".join(screen(app)))
        assert app.history.picture is shown
        asked = len(source.asked)
        await pilot.pause(0.2)
        assert len(source.asked) == asked

    run(source, act)


def test_a_worker_that_is_gone_keeps_its_details() -> None:
    first, second = story(number=2)
    source = Given(first)

    async def act(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("3", "enter")
        await until(pilot, lambda: isinstance(app.screen, Details))
        source.given = [{**second, "workers": []}]
        await until(pilot, lambda: "It is gone" in "\n".join(screen(app)))
        assert line_with(app, "works on")

    run(source, act)


def test_details_of_a_queue_have_its_histograms() -> None:
    async def act(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("down", "enter")
        await pilot.pause(0.1)
        assert line_with(app, "How long works waited to begin", "measured")
        assert line_with(app, "< 1.0ms", "█")

    run(Given(*story()), act, (120, 40))


def test_at_80_by_24_the_whole_reason_is_to_be_read() -> None:
    place = "max_active is 2, and 2 works have a place"
    why = f"nothing waits for a worker; works of queue 'ledger' wait for their place: {place}"
    shown = story(number=1)[0]
    shown["pools"][0]["why"] = why

    async def act(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "q quit" in screen(app)[-1])
        lines = screen(app)
        first = next(index for index, line in enumerate(lines) if "why no more workers" in line)
        assert why in " ".join(" ".join(lines[first : first + 2]).split())
        assert "1 Queues" in lines[first + 2], "it takes no more room than it needs"
        shown["pools"][0]["why"] = "x " * 500
        await until(pilot, lambda: any(line.rstrip().endswith(" …") and "x x" in line for line in screen(app)))
        assert "1 Queues" in screen(app)[first + 3], "and never much"

    run(Given(shown), act)


def test_what_a_worker_waits_for_says_so_once() -> None:
    worker = pictures.worker(
        "cmwq/u0:1", state="blocked", work="f", waits_for="waits for the lock ledger (l.py:2, in f)"
    )

    async def act(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("3")
        assert "waits for" not in line_with(app, "cmwq/u0:1", "for the lock")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Details))
        await pilot.pause(0.1)
        assert line_with(app, "waits ", " for the lock ledger (l.py:2, in f)")
        assert line_with(app, "pgup pgdn scroll", "esc closes")

    run(Given({**story(number=1)[0], "workers": [worker]}), act)


def test_a_stack_begins_with_the_work() -> None:
    stack = (
        '  File "/lib/python3.11/threading.py", line 1002, in _bootstrap\n    self._bootstrap_inner()\n',
        '  File "/x/site-packages/cmwq/_pool/worker_thread.py", line 47, in worker_thread\n    serve()\n',
        '  File "/srv/shop.py", line 7, in f\n    ready.wait()\n',
        '  File "/lib/python3.11/threading.py", line 327, in wait\n    waiter.acquire()\n',
    )
    assert own_part(stack) == stack[2:]
    assert own_part(stack[:2]) == stack[:2], "nothing else is there"
    shown = Text()
    _add_stack(shown, {"stack": list(stack)})
    assert "ready.wait()" in shown.plain
    assert "_bootstrap" not in shown.plain


def test_a_queue_without_a_limit_says_so_and_numbers_have_their_nouns() -> None:
    row = {"state": "open", "scope": "system", "active": 1, "inactive": 0, "learns": False, "max_active": 2**31 - 1,
           "rate": None, "hogs": 1, "rescuer": True, "maydays": 1, "rescued": 2, "wakeups": 1}  # fmt: skip
    said = dict(_of_queue(row))
    assert said["works"] == "1 has a place, 0 wait for one; max_active is unlimited"
    assert said["hogs"] == "1 work computed for long while others waited"
    assert said["rescuer"] == "called 1 time, began 2 works"
    assert said["woke"] == "1 worker, because others blocked"


def test_details_of_a_stall_have_the_whole_report() -> None:
    report = "pool u0: 3 works wait\n  [bold]worker[/bold] waits for lock 7"
    stall = {"time": 1_700_000_000.0, "over": False, "text": report, "pool": "u0", "queue": ""}

    async def act(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("5")
        assert line_with(app, "stalled", "pool u0: 3 works wait")
        await pilot.press("enter")
        await pilot.pause(0.1)
        assert line_with(app, "[bold]worker[/bold] waits for lock 7")  # no markup

    run(Given({**story(number=1)[0], "stalls": [stall]}), act)


def test_a_stall_that_has_ended_is_not_called_stalled_beside_its_end() -> None:
    began = {"time": 1_700_000_000.0, "over": False, "text": "pool u0: 3 works wait", "pool": "u0", "queue": ""}
    over = {**began, "time": 1_700_000_009.0, "over": True, "text": "pool u0 goes on, after 31 s"}
    other = {**began, "text": "queue 'a': 3 works wait", "queue": "a"}

    async def act(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("5")
        assert line_with(app, " over ", "pool u0 goes on")
        assert line_with(app, " was ", "pool u0: 3 works wait")
        assert line_with(app, " stalled ", "queue 'a'")

    run(Given({**story(number=1)[0], "stalls": [began, other, over]}), act)


@pytest.mark.parametrize(
    "name", ["[/]", "[bold]x", "[$error]x[/]", "a\\[b]", "[@click=app.quit]x", "[/x]", "[=", "[[", "]"]
)
def test_a_title_is_no_markup(name: str) -> None:
    async def act(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("enter")
        await pilot.pause(0.1)
        assert line_with(app, f"─ Queue {name} ─")

    run(Given({**story(number=1)[0], "queues": [pictures.queue(name)]}), act)


@pytest.mark.parametrize("size", [(2, 10), (1, 1), (3, 1)])
def test_no_terminal_is_too_narrow(size: tuple[int, int]) -> None:
    async def act(app: Top, pilot: Pilot[None]) -> None:
        for key in ("1", "2", "3", "4", "5", "enter", "escape"):
            await pilot.press(key)
            await pilot.pause(0.01)

    pools = [pictures.pool(pending=3, why="as many workers run as may: 2 of 2")]
    run(Given({**story(number=1)[0], "pools": pools}), act, size)


def test_when_the_process_ends_that_is_said_and_the_last_picture_stays() -> None:
    async def act(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: app.state == "ended")
        await pilot.pause(0.1)
        assert line_with(app, "process 4242 has ended", "the last picture stays")
        assert line_with(app, "thumbnails")
        await pilot.press("3", "enter")  # it can still be read
        await pilot.pause(0.1)
        assert line_with(app, "process 4242 has ended: this is the last picture.")

    source = Given(*story(), Over("process 4242 has ended"))
    run(source, act)
    assert len(source.asked) == 4  # and nobody asks any more


def test_who_does_not_answer_is_asked_again_and_the_last_picture_stays() -> None:
    source = Given(*story(), Silent("it takes longer than 5 s"))

    async def act(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: app.state == "silent")
        await pilot.pause(0.05)
        assert line_with(app, "no answer for")
        assert line_with(app, "it takes longer than 5 s")
        assert line_with(app, "thumbnails")
        source.given = story(number=1)
        await until(pilot, lambda: app.state == "live")

    run(source, act)


def test_whatever_the_source_raises_the_last_picture_stays() -> None:
    async def act(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: app.state == "ended")
        await pilot.pause(0.05)
        assert line_with(app, "ZeroDivisionError: oops")

    run(Given(*story(), ZeroDivisionError("oops")), act)


def test_a_real_picture_and_one_of_before_version_1_are_shown() -> None:
    """The older one has no workers, functions or times."""
    import cmwq

    real = cmwq.snapshot(stacks=True).to_dict()
    without = {"version", "time", "uptime", "command", "python", "cpu_seconds", "frozen", "memory", "workers",
               "workers_left_out", "functions", "stalls"}  # fmt: skip
    older = {name: value for name, value in real.items() if name not in without}

    class Old(Given):
        def picture(self, stacks: bool = False) -> dict[str, Any]:
            return dict(self.given[0])

    async def act(app: Top, pilot: Pilot[None]) -> None:
        for key in "12345":
            await pilot.press(key)
            await pilot.pause()
        await pilot.press("1", "enter")
        await pilot.pause(0.05)
        assert isinstance(app.screen, Details)

    for picture in (real, older):
        run(Old(picture), act)


def test_with_thousands_of_workers_only_those_in_sight_are_written() -> None:
    busy = [pictures.worker(f"cmwq/u0:{n}", tid=n, state="blocked", work="f", since=1.0) for n in range(20_000)]
    picture = pictures.picture(pools=[pictures.pool(workers=20_000, blocked=20_000)], workers=busy)
    source = Given(picture)

    async def act(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("3", "p", "end")
        table = app.query_one(Table)
        assert table.cursor == 19_999
        written: list[str] = []
        name = table.view.columns[0]
        counted = name._replace(words=lambda row: written.append(row["name"]) or str(row["name"]))
        object.__setattr__(table, "view", type(table.view)(
            table.view.name, table.view.title, (counted, *table.view.columns[1:]), table.view.rows,
            table.view.sorted_by, table.view.empty))  # fmt: skip
        table.refresh()
        await pilot.pause(0.1)
        assert 0 < len(set(written)) <= 24
        assert line_with(app, "20000 rows")

    run(source, act, every=5.0)


def test_the_cursor_stays_on_its_row_when_others_change_places() -> None:
    def queues(*rates: int) -> dict[str, Any]:
        named = zip("abcd", rates, strict=True)
        return pictures.picture(
            uptime=100.0 + sum(rates), queues=[pictures.queue(name, completed=rate) for name, rate in named]
        )

    source = Given(queues(0, 0, 0, 0), queues(40, 30, 20, 10))

    async def act(app: Top, pilot: Pilot[None]) -> None:
        table = app.query_one(Table)
        assert [row["name"] for row in table.rows] == ["a", "b", "c", "d"]
        await pilot.press("down")
        assert table.rows[table.cursor]["name"] == "b"
        source.given = [queues(41, 31, 60, 90)]
        await until(pilot, lambda: table.rows[0]["name"] == "d")
        assert table.rows[table.cursor]["name"] == "b"

    run(source, act)


def test_the_process_is_not_asked_again_before_it_has_answered() -> None:
    gate, asked = threading.Event(), []

    class Slow(Given):
        def picture(self, stacks: bool = False) -> dict[str, Any]:
            asked.append(threading.active_count())
            if len(asked) > 1:
                gate.wait(HANG)
            return self.given[0]

    async def act(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: len(asked) == 2)
        await pilot.pause(0.3)
        assert len(asked) == 2
        await pilot.press("3")  # and the keys go on working
        assert app.view.name == "workers"
        gate.set()
        await until(pilot, lambda: len(asked) > 3)

    run(Slow(*story(number=1)), act)


def test_a_process_that_hangs_is_said_to_be_silent_while_its_answer_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cmwq.observing.top.LATE", 0.1)
    gate = threading.Event()

    class Hanging(Given):
        def picture(self, stacks: bool = False) -> dict[str, Any]:
            self.asked.append(stacks)
            if len(self.asked) > 1:
                gate.wait(HANG)
            return self.given[0]

    async def act(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "no answer for" in screen(app)[0])
        assert line_with(app, "thumbnails")
        gate.set()
        await until(pilot, lambda: "live" in screen(app)[0])

    run(Hanging(*story(number=1)), act)


def test_at_80_characters_a_worker_says_what_it_waits_for() -> None:
    busy = pictures.worker(
        "cmwq/u0:7", state="blocked", queue="mail", work="mail.send", waits_for="a socket, 10.0.9.2:25"
    )

    async def act(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("3")
        await pilot.pause()
        assert line_with(app, "cmwq/u0:7", "blocked", "mail.send", "a socket, 10.0.9")

    run(Given(pictures.picture(workers=[busy])), act)


def test_no_more_is_asked_than_can_be_shown() -> None:
    source = Given(*story())

    async def act(app: Top, pilot: Pilot[None]) -> None:
        asked = len(source.asked)
        time.sleep(1.5)  # the terminal hangs
        assert len(source.asked) <= asked + 1
        await until(pilot, lambda: len(source.asked) > asked + 2)

    run(source, act)


def test_dark_and_light_are_a_key_apart() -> None:
    async def act(app: Top, pilot: Pilot[None]) -> None:
        assert app.theme == "cmwq-dark"
        await pilot.press("d")
        assert app.theme == "cmwq-light"
        await pilot.press("d")
        assert app.theme == "cmwq-dark"

    run(Given(*story(number=1)), act)


def test_the_plots_show_a_single_worker_among_thousands() -> None:
    from rich.style import Style

    from cmwq.observing.top_plot import cell, scale

    green, amber = Style(color="green"), Style(color="yellow")
    segment = cell((1, 0), 5000, 10, 0, [green, amber], Style())
    assert (segment.text, segment.style) == ("▁", green)
    assert cell((1, 4999), 5000, 10, 5, [green, amber], Style()).style == Style(bgcolor="yellow")
    assert cell((0, 0), 5000, 10, 0, [green, amber], Style()).text == " "
    assert [scale(most, 4) for most in (0, 4, 7, 11, 61, 999)] == [4, 4, 8, 20, 80, 1000]
