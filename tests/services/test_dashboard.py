"""The dashboard in a real browser: Chromium without a window, driven by Playwright.

The processes are stood in for (`observing.standin`), but for the last tests, which watch a real one.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("playwright.sync_api", reason="Playwright isn't installed here")
pytest.importorskip("starlette", reason="Starlette isn't installed here")
pytest.importorskip("uvicorn", reason="uvicorn isn't installed here")

from conftest import HANG, until
from observing.load import Load
from observing.standin import Machine, Program, function, histogram, picture, pool, queue, worker
from playwright import sync_api as playwright

from cmwq.observing.dashboard import watch
from cmwq.observing.dashboard.serving import Dashboard, Settings
from cmwq.observing.dashboard.sources import Sockets, Source

GENEROUS = HANG * 1000  # milliseconds
PID = 2**22 + 1  # no process has this number, so it counts as gone when it does not answer
Open = Callable[..., Any]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """served(source): the address of a dashboard that serves it, until the test ends."""
    monkeypatch.setattr(watch, "AGAIN", 0.1)
    made: list[tuple[Dashboard, threading.Thread]] = []

    def serve(source: Source, interval: float = 0.1, **settings: Any) -> str:
        told: list[str] = []
        dashboard = Dashboard(source, Settings(interval=interval, **settings))
        thread = threading.Thread(target=dashboard.serve, args=(told.append,))
        thread.start()
        made.append((dashboard, thread))
        until(lambda: bool(told) or not thread.is_alive())
        return told[0]

    yield serve
    for dashboard, thread in made:
        dashboard.stop()
        thread.join(HANG)
        assert not thread.is_alive()


class Problems(list[str]):
    """What a page complained of, and which requests it made."""

    def __init__(self, page: Any) -> None:
        super().__init__()
        self.requests: list[str] = []
        page.on("pageerror", lambda error: self.append(str(error)))
        page.on("console", lambda message: self.append(message.text) if message.type in ("error", "warning") else None)
        page.on("request", lambda request: self.requests.append(request.url))


@pytest.fixture
def opened(chromium: Any) -> Iterator[Open]:
    """opened(address, **options of a context): a page, which must have had no problem by the end of the test."""
    made = []

    def open_page(address: str, **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        context.set_default_timeout(GENEROUS)
        page = context.new_page()
        page.problems = Problems(page)
        made.append((context, page))
        page.goto(address)
        return page

    yield open_page
    for context, page in made:
        context.close()
        assert page.problems == []


def busy(**changes: Any) -> dict[str, Any]:
    """A picture with something in every table."""
    workers = [worker("cmwq/u0:0"), worker("cmwq/u0:1", "blocked", waits_for="sleeps"), worker("cmwq/u0:2", "idle")]
    why = "2 of 2 that may run do"
    queues = [
        queue("orders", active=2, inactive=4, completed=1234, failed=5, waiting=histogram(0, 1, 2), why="8 places")
    ]
    stalls = [{"time": time.time(), "over": True, "text": "it goes on", "pool": "u0", "queue": ""}]
    pools = [pool(running=1, blocked=1, idle=1, pending=17, why=why), pool("u0", nice=-20, workers=0, idle=0)]
    shown = picture(pools=pools, queues=queues, workers=workers, functions=[function(ended=99)], stalls=stalls)
    return shown | changes


def text(page: Any, selector: str) -> str:
    return str(page.locator(selector).first.inner_text())


def shows(page: Any, selector: str, wanted: str) -> None:
    """Wait until the element has this text."""
    playwright.expect(page.locator(selector).first).to_have_text(wanted, timeout=GENEROUS)


def holds(page: Any, expression: str) -> None:
    """Wait until this is true in the page. (Playwright's own way needs `eval` in the page, which it forbids.)"""
    until(lambda: bool(page.evaluate(expression)))


def cells(page: Any, table: str) -> list[list[str]]:
    rows = page.locator(f"#{table} tbody tr").all()
    return [[str(cell.inner_text()) for cell in row.locator("th, td").all()] for row in rows]


# ----------------------------------------------------------------------------------- what is shown


def test_the_page_shows_the_numbers_of_the_process(served: Callable[..., str], opened: Open) -> None:
    program = Program(PID, now=busy())
    page = opened(served(Sockets(Machine(program))))
    shows(page, "#figure-running", "1")
    shows(page, "#figure-blocked", "1")
    shows(page, "#figure-waiting", "17")
    shows(page, "#verdict-title", "17 works wait for a worker")
    assert "2 of 2 that may run do" in text(page, "#verdict-text")
    assert "2 of 2 that may run do" in text(page, "#pools")
    assert "8 places" in text(page, "#pools"), "queues of which works have no place stand beside the pools"
    (orders,) = cells(page, "queues")
    assert orders[0].split("\n")[0] == "orders"
    assert orders[1:6] == ["2 of 256", "4", "0", "1,234", "5"]
    program.now = busy(pools=[pool(running=2, blocked=3, pending=0)], queues=[queue("orders", completed=2000)])
    shows(page, "#figure-running", "2")
    shows(page, "#verdict-title", "No work waits")
    shows(page, "#queues tbody td:nth-child(5)", "2,000")
    program.now = busy(queues=[queue("orders", max_active=2**31 - 1, active=3, learns=False)])
    shows(page, "#queues tbody td:nth-child(2)", "3 (unlimited)")


def test_rates_are_those_of_the_counters_under_load(served: Callable[..., str], opened: Open) -> None:
    program = Program(PID)
    begun = time.time()

    def counts(stacks: bool = False) -> dict[str, Any]:
        now = time.time()
        done = int((now - begun) * 1000)
        pools = [pool(running=2, completed=done, started=done, cpu_seconds=1.5 * (now - begun))]
        queues = [queue("system", active=2, completed=done, cpu_seconds=1.5 * (now - begun))]
        return {**picture(pools=pools, queues=queues, cpu_seconds=1.5 * (now - begun)), "time": now}

    program.picture = counts  # type: ignore[method-assign]
    page = opened(served(Sockets(Machine(program))))
    holds(page, "Number(document.getElementById('figure-cpu')?.textContent) === 1.5")
    holds(page, "Math.abs(Number(document.getElementById('figure-rate').textContent.replace(',', '')) - 1000) < 100")
    (row,) = cells(page, "queues")
    assert abs(float(row[6]) - 1.5) < 0.2


def test_no_cell_is_blank(served: Callable[..., str], opened: Open) -> None:
    page = opened(served(Sockets(Machine(Program(PID, now=busy())))))
    shows(page, "#figure-running", "1")
    page.wait_for_selector("#workers .rows .row")
    blank = """[...document.querySelectorAll("td, th, dd, [role=cell], [role=columnheader]")]
        .filter((cell) => cell.checkVisibility() && !cell.closest("[hidden]") && !cell.textContent.trim())
        .map((cell) => cell.outerHTML)"""
    assert page.evaluate(blank) == []
    assert len(cells(page, "functions")) == 1


def test_names_are_shown_as_they_are_and_never_as_html(served: Callable[..., str], opened: Open) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    shown = busy(
        queues=[queue(nasty, inactive=1, why=nasty)],
        functions=[function(nasty)],
        workers=[worker(nasty, work=nasty, queue=nasty, waits_for=nasty)],
        stalls=[{"time": 1, "over": False, "text": f"{nasty}\n{nasty}", "pool": nasty, "queue": nasty}],
        command=[nasty],
    )
    page = opened(served(Sockets(Machine(Program(PID, now=shown, command=[nasty])))))
    shows(page, "#functions tbody th .name", nasty)
    assert page.locator("main img").count() == 0
    assert nasty in text(page, "#stalls")


def test_a_stall_is_shown_with_its_stacks(served: Callable[..., str], opened: Open) -> None:
    said = "pool u0: 5 works wait, and none has begun for 31 s\n  cmwq/u0:1 in fetch\n    File shop.py, line 7"
    stalls = [{"time": time.time(), "over": False, "text": said, "pool": "u0", "queue": ""}]
    page = opened(served(Sockets(Machine(Program(PID, now=busy(stalls=stalls))))))
    shows(page, "#verdict-title", "Stalled")
    assert "none has begun for 31 s" in text(page, "#verdict-text")
    page.wait_for_selector("#stalls details[open] pre")
    assert "File shop.py, line 7" in text(page, "#stalls pre")


def test_a_screen_reader_is_told_of_a_change_and_not_of_every_number(served: Callable[..., str], opened: Open) -> None:
    program = Program(PID, now=busy())
    page = opened(served(Sockets(Machine(program))))
    shows(page, "#figure-waiting", "17")
    spoken = text(page, "#announcement")
    assert "17 works wait for a worker" in spoken
    program.now = busy(pools=[pool(pending=18)])
    shows(page, "#figure-waiting", "18")
    assert text(page, "#announcement") == spoken
    program.now = busy(pools=[pool()], queues=[queue()])
    playwright.expect(page.locator("#announcement")).to_contain_text("Nothing to do", timeout=GENEROUS)
    live = "[...document.querySelectorAll('[aria-live], [role=status], [role=alert]')].map((each) => each.id).sort()"
    assert page.evaluate(live) == ["announcement", "notice", "state", "workers-note"]


def test_several_processes_can_be_chosen_from(served: Callable[..., str], opened: Open) -> None:
    one = Program(PID, ["python", "one.py"], now=busy(pools=[pool(running=11)]))
    two = Program(PID + 1, ["python", "two.py"], now=busy(pools=[pool(running=22)]))
    page = opened(served(Sockets(Machine(one, two))))
    shows(page, "#figure-running", "11")
    page.locator("#process").select_option(label="python two.py")
    shows(page, "#figure-running", "22")


# ----------------------------------------------------------------------------------- its end


def test_the_page_survives_the_end_of_the_process_and_finds_it_again(
    served: Callable[..., str], opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(Program(PID, now=busy()))
    page = opened(served(Sockets(machine)))
    shows(page, "#figure-waiting", "17")
    machine.programs[0].gone = True
    shows(page, "#state", "Ended")
    shows(page, "#verdict-title", f"Process {PID} has ended")
    assert "last picture" in text(page, "#verdict-text")
    assert text(page, "#figure-waiting") == "17", "the last picture stays"
    machine.programs.append(Program(PID + 1, now=busy(pools=[pool(running=2, pending=3)])))
    shows(page, "#figure-waiting", "3")
    shows(page, "#state", "Live")


def test_the_page_says_when_the_dashboard_itself_is_gone(chromium: Any, served: Callable[..., str]) -> None:
    address = served(Sockets(Machine(Program(PID, now=busy()))))
    context = chromium.new_context()
    page = context.new_page()
    page.goto(address)
    shows(page, "#figure-waiting", "17")
    context.set_offline(True)
    page.evaluate("window.cmwqPage.stream.close(); window.cmwqPage.stream.dispatchEvent(new Event('error'))")
    playwright.expect(page.locator("#notice")).to_be_visible(timeout=GENEROUS)
    assert text(page, "#figure-waiting") == "17"
    context.set_offline(False)
    playwright.expect(page.locator("#notice")).to_be_hidden(timeout=GENEROUS)  # it has found it again
    context.close()


# ----------------------------------------------------------------------------------- who is let in


def test_a_wrong_token_shows_nothing(chromium: Any, served: Callable[..., str]) -> None:
    address = served(Sockets(Machine(Program(PID, now=busy()))))
    page = chromium.new_page()
    for wrong in (address.replace("token=", "token=x"), address.partition("?")[0]):
        answer = page.goto(wrong)
        assert answer.status == 401
        assert "Not authorised" in page.content()
        assert "orders" not in page.content()
        assert page.evaluate("fetch('/processes').then((answer) => answer.status)") == 401
    page.close()


def test_the_token_leaves_the_address_bar_and_scripts_cannot_read_the_cookie(
    served: Callable[..., str], opened: Open
) -> None:
    page = opened(served(Sockets(Machine(Program(PID, now=busy())))))
    shows(page, "#figure-waiting", "17")
    assert "token" not in page.url
    assert page.evaluate("document.cookie") == ""
    (cookie,) = page.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Lax"


def test_nothing_is_loaded_from_elsewhere(served: Callable[..., str], opened: Open) -> None:
    address = served(Sockets(Machine(Program(PID, now=busy()))))
    page = opened(address)
    shows(page, "#figure-waiting", "17")
    here = urlsplit(address).netloc
    assert {urlsplit(url).netloc for url in page.problems.requests} == {here}
    assert len(page.problems.requests) > 10


def test_the_browser_itself_forbids_scripts_and_images_from_elsewhere(served: Callable[..., str], opened: Open) -> None:
    page = opened(served(Sockets(Machine(Program(PID, now=busy())))))
    shows(page, "#figure-waiting", "17")
    refused = """() => new Promise((done) => {
        const seen = [];
        document.addEventListener("securitypolicyviolation", (event) => {
            seen.push(event.effectiveDirective);
            if (seen.length === 5) done(seen.sort());
        });
        for (const harm of [
            () => (document.createElement("script").textContent = "window.harm = 1"),
            () => (document.body.innerHTML = "<b>"),
        ]) {
            try {
                harm();
                seen.push("nothing was refused");
            } catch (refused) {
                // What only text may be set to was to be made a script, or HTML.
            }
        }
        new Image().src = "http://127.0.0.2:9/picture.png";
        fetch("http://127.0.0.2:9/").catch(() => 0);
        document.body.setAttribute("style", "color: red");
    })"""
    directives = page.evaluate(refused)
    assert directives == ["connect-src", "img-src", *["require-trusted-types-for"] * 2, "style-src-attr"]
    assert page.evaluate("window.harm") is None
    page.problems.clear()  # this test made them


# ----------------------------------------------------------------------------------- using it


def test_the_page_can_be_used_with_the_keyboard(served: Callable[..., str], opened: Open) -> None:
    page = opened(served(Sockets(Machine(Program(PID, now=busy())))))
    page.wait_for_selector("#workers .rows .row")
    page.keyboard.press("/")
    page.keyboard.type("u0:1")
    shows(page, "#workers-note", "1 of 3 workers")
    page.keyboard.press("Escape")
    shows(page, "#workers-note", "3 workers")
    page.locator("#workers .rows").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#details")).to_be_visible(timeout=GENEROUS)
    playwright.expect(page.locator("#details-stack")).to_contain_text("shop.py", timeout=GENEROUS)
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#details")).to_be_hidden(timeout=GENEROUS)
    page.keyboard.press("?")
    playwright.expect(page.locator("#help")).to_be_visible(timeout=GENEROUS)
    page.keyboard.press("Escape")
    page.keyboard.press("p")
    shows(page, "#state", "Paused")
    page.keyboard.press("p")
    shows(page, "#state", "Live")


def test_what_was_paused_goes_on_with_the_newest_picture(served: Callable[..., str], opened: Open) -> None:
    program = Program(PID, now=busy())
    page = opened(served(Sockets(Machine(program))))
    shows(page, "#figure-waiting", "17")
    page.locator("#pause").click()
    shows(page, "#state", "Paused")
    program.now = busy(pools=[pool(pending=99)])
    holds(page, "window.cmwqPage.latest.totals.pending === 99")
    assert text(page, "#figure-waiting") == "17"
    page.locator("#pause").click()
    shows(page, "#figure-waiting", "99")


def test_the_theme_is_the_systems_or_the_chosen_one(served: Callable[..., str], opened: Open) -> None:
    page = opened(served(Sockets(Machine(Program(PID, now=busy())))), color_scheme="dark")
    back = "getComputedStyle(document.documentElement).backgroundColor"
    dark = page.evaluate(back)
    page.locator("#theme").click()
    light = page.evaluate(back)
    assert light != dark
    page.reload()
    page.wait_for_selector("#figure-running")
    assert page.evaluate(back) == light, "what was chosen is remembered"


@pytest.mark.parametrize("width", [320, 390, 768, 1100, 1440, 2560])
def test_the_page_fits_any_width(served: Callable[..., str], opened: Open, width: int) -> None:
    page = opened(served(Sockets(Machine(Program(PID, now=busy())))), viewport={"width": width, "height": 800})
    shows(page, "#figure-waiting", "17")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width


# ----------------------------------------------------------------------------------- thousands of workers, days


def test_five_thousand_workers_leave_the_page_responsive(served: Callable[..., str], opened: Open) -> None:
    load = Load(size=5000, target=64)
    for _ in range(5):
        load.step()
    program = Program(PID)

    def shown(stacks: bool = False) -> dict[str, Any]:
        load.step()
        load.time = time.time()
        return load.picture(stacks)

    program.picture = shown  # type: ignore[method-assign]
    page = opened(served(Sockets(Machine(program)), interval=1.0))
    shows(page, "#workers-note", "5,000 workers")
    page.evaluate("""() => {
        window.frames_ = 0; window.longest = 0;
        let last = performance.now();
        const frame = (now) => {
            window.frames_ += 1; window.longest = Math.max(window.longest, now - last); last = now;
            requestAnimationFrame(frame);
        };
        requestAnimationFrame(frame);
    }""")
    sequence = page.evaluate("window.cmwqPage.latest.sequence")
    page.locator("#timeline-mode").get_by_text("Workers").click()
    holds(page, f"window.cmwqPage.latest.sequence >= {sequence + 5}")
    page.locator("#filter").fill("u0:4321")
    shows(page, "#workers-note", "1 of 5,000 workers")
    page.locator("#filter").fill("")
    page.locator("#workers .rows").evaluate("(rows) => rows.scrollTo(0, rows.scrollHeight)")
    holds(page, "document.querySelector('[aria-rowindex=\"5001\"]') !== null")
    assert page.evaluate("document.querySelectorAll('*').length") < 3000, "only the rows in sight exist"
    longest, frames = page.evaluate("[window.longest, window.frames_]")
    print(f"longest time between two frames: {longest:.0f} ms, of {frames} frames")
    assert longest < 10_000


def test_days_of_pictures_leave_the_browser_with_as_much_as_ten_minutes_of_them(
    served: Callable[..., str], opened: Open
) -> None:
    page = opened(served(Sockets(Machine(Program(PID, now=busy())))))
    shows(page, "#figure-waiting", "17")
    holds(page, "!window.cmwqPage.timeline.loading")
    kept = page.evaluate("""() => {
        const { occupancy, timeline, latest } = window.cmwqPage;
        window.cmwqPage.stream.close();
        for (let second = 1; second <= 50000; second++) {
            const time = latest.time + second;
            const workers = { ...latest.workers, fresh: [1, 1, 0], begin: [time - 1, time - 1, time] };
            const view = { ...latest, time, sequence: latest.sequence + second, workers };
            occupancy.add(view);
            timeline.add(view);
        }
        return [occupancy.data.times.length, timeline.count, timeline.sums.length, timeline.rows.size];
    }""")
    assert kept[0] <= 1500
    assert kept[1] <= 2 * 620
    assert kept[2] <= 620
    assert kept[3] == 3


# ----------------------------------------------------------------------------------- a real process

PROGRAM = """
import sys, threading, time
import cmwq
queue = cmwq.WorkQueue("orders", max_active=3)
gate = threading.Event()
def wait_for_the_bank():
    gate.wait()
def add(a, b):
    return a + b
for n in range(40):
    cmwq.system.submit(add, n, n).result()
waiting = [queue.submit(wait_for_the_bank) for _ in range(10)]
cmwq.monitor()
print("ready", flush=True)
sys.stdin.read()
gate.set()
"""


def test_a_real_process_is_shown_as_it_is(served: Callable[..., str], opened: Open) -> None:
    client = pytest.importorskip("cmwq.observing.client", reason="the monitor is another part")
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            page = opened(served(Sockets(client, process.pid)))
            shows(page, "#figure-blocked", "3")
            rows = {row[0].split("\n")[0]: row for row in cells(page, "queues")}
            assert rows["orders"][1:3] == ["3 of 3", "7"]
            assert rows["system"][4] == "40"
            page.locator("#workers .rows .row").filter(has_text="wait_for_the_bank").first.click()
            playwright.expect(page.locator("#details-stack")).to_contain_text("in wait_for_the_bank", timeout=GENEROUS)
            page.keyboard.press("Escape")
            process.communicate("")
            shows(page, "#state", "Ended")
            assert text(page, "#figure-blocked") == "3"
        finally:
            process.kill()
