"""cmwq.contrib.waitress, with real servers and requests to them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, Gate, until
from handlers import handler_raises

pytest.importorskip("waitress", reason="waitress is not installed")

from cmwq.contrib.waitress import Dispatcher, create_server
from contrib.wsgi import Asking, Server, Start, ask, free_port, run_example, starting


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server with these options. It is stopped after the test."""
    with starting(
        lambda address, options: [
            "-m", "cmwq.contrib.waitress", f"--listen={address}", *options, "contrib.wsgi_app:app",
        ],
        tmp_path,
    ) as start:  # fmt: skip
        yield start


def test_waiting_requests_beyond_any_number_of_threads_do_not_hold_up_another_one(start: Start, tmp_path: Path) -> None:
    server = start()
    waiting = [Asking(server, f"/wait?folder={tmp_path}&number={number}") for number in range(60)]
    until(lambda: len(list(tmp_path.glob("begun-*"))) == 60)
    about = server.get("/about")
    assert about["in_pool"]
    assert not about["main"]
    (tmp_path / "go").touch()
    assert {each.answer()["number"] for each in waiting} == {str(number) for number in range(60)}


def test_a_request_sees_nothing_of_the_context_of_an_earlier_one(start: Start) -> None:
    server = start()
    with closing(server.connect()) as connection:
        assert {ask(connection, "/about")["left"] for _ in range(20)} == {"nothing"}


def test_connection_limit_stays_the_bound(start: Start, tmp_path: Path) -> None:
    server = start("--connection-limit=8")
    waiting = [Asking(server, f"/wait?folder={tmp_path}&number={number}") for number in range(20)]
    until(lambda: "reached the connection limit" in server.log())
    (tmp_path / "go").touch()
    for each in waiting:
        each.answer()
    assert server.get("/most")["most"] <= 8


def test_requests_are_told_apart_by_their_routes(start: Start) -> None:
    server = start()
    server.get("/hogs")

    def compute() -> bool:
        for each in [Asking(server, "/compute?seconds=0.05") for _ in range(8)]:
            each.answer()
        return any(name.startswith("/compute") for name in server.get("/hogs")["hogs"])

    until(compute)


def test_an_application_that_raises_gets_its_answer_and_the_server_goes_on(start: Start) -> None:
    server = start()
    with closing(server.connect()) as connection:
        connection.request("GET", "/fail")
        assert connection.getresponse().status == 500
    assert server.get("/about")["in_pool"]


def test_ctrl_c_ends_the_server_after_the_requests_that_run(start: Start, tmp_path: Path) -> None:
    server = start()
    waiting = Asking(server, f"/wait?folder={tmp_path}&number=1")
    until(lambda: (tmp_path / "begun-1").exists())
    server.process.send_signal(signal.SIGINT)
    (tmp_path / "go").touch()
    server.process.wait(HANG)
    with pytest.raises((OSError, AssertionError)):
        server.get("/about")
    assert waiting.answer()["number"] == "1"  # small answers are sent by the thread that made them


def test_several_sockets_share_one_dispatcher() -> None:
    ports = [free_port(), free_port()]

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", "2")])
        return [b"{}"]

    server = create_server(app, listen=" ".join(f"127.0.0.1:{port}" for port in ports))
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            server.asyncore.loop(timeout=0.05, map=server.map, count=1)
        server.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for port in ports:
            assert Server(None, port, Path()).get("/") == {}  # type: ignore[arg-type]
    finally:
        over.set()
        thread.join(HANG)
    assert not thread.is_alive()
    late = Task()
    server.task_dispatcher.add_task(late)
    assert late.cancelled


class Task:
    """A task of the test's own, in place of a channel."""

    def __init__(self, gate: Gate | None = None, raises: bool = False) -> None:
        self.gate = gate
        self.raises = raises
        self.done = threading.Event()
        self.cancelled = False

    def service(self) -> None:
        if self.gate is not None:
            self.gate()
        self.done.set()
        if self.raises:
            raise SystemExit

    def cancel(self) -> None:
        self.cancelled = True


@pytest.mark.parametrize("path", ["/\0", "/" + "a/" * 100_000, None])
def test_whatever_the_path_is_its_task_is_done(path: Any) -> None:
    dispatcher, task = Dispatcher(), Task()
    task.requests = [type("Request", (), {"path": path})()]  # type: ignore[attr-defined]
    dispatcher.add_task(task)
    assert task.done.wait(HANG)
    dispatcher.shutdown()


def test_a_loop_that_was_woken_waits_until_all_requests_have_begun(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a loop that looks at every connection after each answer finds several answers at a look."""
    monkeypatch.setattr("cmwq.contrib.waitress._rests_until", 0.0)
    monkeypatch.setattr("cmwq.contrib.waitress.REST", HANG)
    dispatcher = Dispatcher(max_active=1)
    dispatcher.add_task(Task(gate))
    gate.await_arrivals(1)
    assert dispatcher.let_begin(), "it has begun"
    for _ in range(3):
        dispatcher.add_task(Task())
    assert not dispatcher.let_begin(), "none can begin: patience ends"
    monkeypatch.setattr("cmwq.contrib.waitress.PATIENCE", HANG)
    assert not dispatcher.let_begin(), "it was in vain just now: no second try"
    monkeypatch.setattr("cmwq.contrib.waitress._rests_until", 0.0)
    gate.open.set()
    assert dispatcher.let_begin()
    held = Gate()
    dispatcher.add_task(Task(held))
    held.await_arrivals(1)
    dispatcher.add_task(Task())
    threading.Timer(0.1, held.open.set).start()
    dispatcher.shutdown()
    dispatcher.add_task(Task())
    assert dispatcher.let_begin(), "what was cancelled does not begin"


def test_a_task_that_is_refused_or_ends_unbegun_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = Dispatcher()
    monkeypatch.setattr("cmwq.contrib.waitress.PATIENCE", HANG)

    def refuse(*args: Any) -> Any:
        raise MemoryError

    ended: Future[None] = Future()
    ended.set_exception(MemoryError())
    for submit in (refuse, lambda *args: ended):
        with monkeypatch.context() as patch, suppress(MemoryError):
            patch.setattr(dispatcher._lease, "submit", submit)
            dispatcher.add_task(Task())
        assert dispatcher.let_begin()
    dispatcher.shutdown()


def test_an_interrupt_in_a_wait_for_requests_to_begin_keeps_nothing_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an Event, which is Python code with a lock, one in three interrupts kept the lock."""
    dispatcher, gate = Dispatcher(max_active=1), Gate()
    for _ in range(2):
        dispatcher.add_task(Task(gate))
    gate.await_arrivals(1)
    monkeypatch.setattr("cmwq.contrib.waitress.REST", 0.0)

    with handler_raises(signal.SIGALRM, KeyboardInterrupt) as interrupted:
        for microseconds in range(1, 1000):
            before = interrupted.lost
            with suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, microseconds * 1e-6)
                while interrupted.lost == before:
                    dispatcher.let_begin()
    gate.open.set()
    monkeypatch.setattr("cmwq.contrib.waitress.PATIENCE", HANG)
    assert dispatcher.let_begin()
    assert dispatcher.shutdown()


def test_ctrl_c_ends_a_loop_that_lets_requests_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(dispatcher: Dispatcher) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Dispatcher, "let_begin", interrupted)
    watched: dict[int, Any] = {}
    servers = [create_server(Task, listen="127.0.0.1:0", map=watched) for _ in range(2)]
    try:
        servers[0].pull_trigger()
        with pytest.raises(KeyboardInterrupt):
            servers[0].asyncore.loop(timeout=HANG, map=watched, count=1)
    finally:
        for server in servers:
            server.close()
            server.task_dispatcher.shutdown()


def test_shutdown_cancels_what_has_not_begun_and_waits_for_what_runs(gate: Gate) -> None:
    dispatcher = Dispatcher(max_active=1)
    running, waiting, late = Task(gate), Task(), Task()
    dispatcher.add_task(running)
    gate.await_arrivals(1)
    dispatcher.add_task(waiting)
    ending = threading.Thread(target=dispatcher.shutdown)
    ending.start()
    until(lambda: waiting.cancelled)
    dispatcher.add_task(late)
    assert late.cancelled
    gate.open.set()
    ending.join(HANG)
    assert running.done.is_set()
    assert not running.cancelled
    assert not waiting.done.is_set()


def test_shutdown_gives_up_after_its_time(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    dispatcher = Dispatcher()
    running = Task(gate)
    dispatcher.add_task(running)
    gate.await_arrivals(1)
    assert dispatcher.shutdown(timeout=0.01)
    assert "still run" in caplog.text
    gate.open.set()
    assert dispatcher.shutdown(cancel_pending=False) is False
    assert running.done.is_set()


def test_what_a_task_raises_is_logged_and_others_are_served(caplog: pytest.LogCaptureFixture) -> None:
    dispatcher = Dispatcher()
    broken, next_one = Task(raises=True), Task()
    dispatcher.add_task(broken)
    dispatcher.add_task(next_one)
    assert next_one.done.wait(HANG)
    dispatcher.set_thread_count(0)
    dispatcher.shutdown()
    assert "Exception when servicing" in caplog.text


def test_the_example_runs() -> None:
    assert "50 pages" in run_example("waitress_server.py")
