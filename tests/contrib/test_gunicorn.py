"""cmwq.contrib.gunicorn, with real servers: a master, its worker processes, and requests to them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from conftest import until

pytest.importorskip("gunicorn", reason="gunicorn is not installed")

from contrib.wsgi import Asking, Start, ask, run_example, starting


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server with these options. It is stopped after the test."""
    with starting(
        lambda address, options: [
            "-m", "gunicorn", "-b", address, "-k", "cmwq.contrib.gunicorn.Worker", *options, "contrib.wsgi_app:app",
        ],
        tmp_path,
    ) as start:  # fmt: skip
        yield start


def test_waiting_requests_beyond_any_number_of_threads_do_not_hold_up_another_one(start: Start, tmp_path: Path) -> None:
    server = start()
    waiting = [Asking(server, f"/wait?folder={tmp_path}&number={number}") for number in range(60)]
    until(lambda: len(list(tmp_path.glob("begun-*"))) == 60)
    assert server.get("/about")["in_pool"]
    (tmp_path / "go").touch()
    assert {each.answer()["number"] for each in waiting} == {str(number) for number in range(60)}


def test_the_lease_begins_in_the_worker_process(start: Start) -> None:
    server = start("--preload")  # the application was imported by the master
    about = server.get("/about")
    assert about["parent"] == server.process.pid
    assert about["in_pool"]
    assert not about["main"]
    assert "gunicorn" in about["queues"]


def test_a_request_sees_nothing_of_the_context_of_an_earlier_one(start: Start) -> None:
    server = start()
    with closing(server.connect()) as connection:
        assert {ask(connection, "/about")["left"] for _ in range(20)} == {"nothing"}


def test_a_graceful_stop_lets_requests_end(start: Start, tmp_path: Path) -> None:
    server = start()
    waiting = [Asking(server, f"/wait?folder={tmp_path}&number={number}") for number in range(10)]
    until(lambda: len(list(tmp_path.glob("begun-*"))) == 10)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: "Handling signal: term" in server.log())
    (tmp_path / "go").touch()
    for each in waiting:
        each.answer()
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.log()


def test_the_server_ends_although_a_request_does_not(start: Start, tmp_path: Path) -> None:
    server = start("--graceful-timeout", "1")
    waiting = Asking(server, f"/wait?folder={tmp_path}&number=1")
    until(lambda: (tmp_path / "begun-1").exists())
    assert server.stop(signal.SIGTERM) == 0
    with pytest.raises((OSError, AssertionError)):
        waiting.answer()


def test_a_quick_stop_ends_the_server(start: Start) -> None:
    server = start()
    server.get("/about")
    assert server.stop(signal.SIGQUIT) == 0
    assert "Traceback" not in server.log()


def test_max_requests_replaces_the_process_and_loses_no_request(start: Start) -> None:
    server = start("--max-requests", "5")
    assert len({server.get("/about")["pid"] for _ in range(20)}) >= 3


def test_reload_replaces_the_process_and_loses_no_request(start: Start, tmp_path: Path) -> None:
    server = start()
    before = server.get("/about")["pid"]
    waiting = Asking(server, f"/wait?folder={tmp_path}&number=1")
    until(lambda: (tmp_path / "begun-1").exists())
    server.process.send_signal(signal.SIGHUP)
    until(lambda: server.get("/about")["pid"] != before)
    (tmp_path / "go").touch()
    assert waiting.answer()["number"] == "1"


def test_a_request_that_takes_longer_than_timeout_is_answered(start: Start) -> None:
    server = start("--timeout", "3")  # it is about the process, as with gthread: the main loop goes on
    server.get("/sleep?seconds=5")
    assert "WORKER TIMEOUT" not in server.log()


def test_worker_connections_stays_the_bound(start: Start, tmp_path: Path) -> None:
    server = start("--worker-connections", "4", "--keep-alive", "0")
    waiting = [Asking(server, f"/wait?folder={tmp_path}&number={number}") for number in range(12)]
    until(lambda: len(list(tmp_path.glob("begun-*"))) == 4)
    (tmp_path / "go").touch()
    for each in waiting:
        each.answer()
    assert server.get("/most")["most"] == 4


def test_an_application_that_raises_gets_its_answer_and_the_server_goes_on(start: Start) -> None:
    server = start()
    with closing(server.connect()) as connection:
        connection.request("GET", "/fail")
        assert connection.getresponse().status == 500
    assert server.get("/about")["in_pool"]


def test_requests_are_told_apart_by_their_routes(start: Start) -> None:
    server = start()
    server.get("/hogs")

    def compute() -> bool:
        """Eight long computations at a time. Returns whether they were reported as such, by their route."""
        for connection in connections:
            connection.request("GET", "/compute?seconds=0.05")
        for connection in connections:
            connection.getresponse().read()
        return any(name.startswith("/compute") for name in server.get("/hogs")["hogs"])

    with ExitStack() as stack:
        connections = [stack.enter_context(closing(server.connect())) for _ in range(8)]
        for connection in connections:
            ask(connection, "/about")  # from now on requests are there before they are submitted
        until(compute)


def test_a_path_that_is_no_text_ends_no_worker(start: Start) -> None:
    server = start()
    with closing(server.connect()) as connection:
        before = ask(connection, "/about")["pid"]  # from now on requests are there before they are submitted
        assert connection.sock is not None
        connection.sock.sendall(b"GET /\0\x1b HTTP/1.1\r\nHost: x\r\n\r\n")
        with suppress(OSError):
            connection.sock.recv(4096)
    assert server.get("/about")["pid"] == before, server.log()
    assert "Exception in worker process" not in server.log()


def test_the_example_runs() -> None:
    assert "50 pages" in run_example("gunicorn_worker.py")
