"""The dashboard's doors: who is let in, what the page asks for, the streams, and the command.

Processes are stood in for by `standin`, and requests are made without a network.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("starlette", reason="Starlette isn't installed here")
pytest.importorskip("uvicorn", reason="uvicorn isn't installed here")

from conftest import HANG, until

from cmwq.cli import main
from cmwq.observing.dashboard import app as apps
from cmwq.observing.dashboard import watch
from cmwq.observing.dashboard.gate import Gate
from cmwq.observing.dashboard.serving import address, is_loopback
from cmwq.observing.dashboard.watches import Watches
from observing.standin import SHORT, Machine, Program, picture, worker

pytest_plugins = ("observing.watching",)


def first(seen: Watches) -> watch.Watch:
    return seen.all()[0]


TOKEN = "a-token-of-this-test"


class Answer:
    """What came back."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.status_code = status
        self.headers = {name.decode().lower(): value.decode() for name, value in headers}
        self.text = body.decode()

    def json(self) -> Any:
        return json.loads(self.text)


class Browser:
    """Asks an application, keeps the cookie that it is given, and follows no redirect."""

    def __init__(self, app: Gate) -> None:
        self._app = app
        self.cookie = ""

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        return self.request("GET", path, list({"host": "127.0.0.1:8000", **(headers or {})}.items()))

    def request(self, method: str, path: str, headers: list[tuple[str, str]]) -> Answer:
        path, _, query = path.partition("?")
        if self.cookie and "cookie" not in dict(headers):
            headers = [*headers, ("cookie", self.cookie)]
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "path": unquote(path), "raw_path": path.encode(),
            "query_string": query.encode(), "root_path": "", "scheme": "http", "server": ("127.0.0.1", 8000),
            "headers": [(name.encode(), value.encode()) for name, value in headers],
        }  # fmt: skip
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)
            if b"event: view" in message.get("body", b""):
                raise OSError("that is enough of a stream")

        with contextlib.suppress(OSError):
            asyncio.run(self._app(scope, receive, send))
        body = b"".join(bytes(message.get("body", b"")) for message in sent[1:])
        answer = Answer(sent[0]["status"], sent[0]["headers"], body)
        self.cookie = answer.headers.get("set-cookie", self.cookie).partition(";")[0]
        return answer


@pytest.fixture
def page(watched: Callable[..., Watches]) -> Browser:
    """A browser without a cookie."""
    seen = watched(Program(1, now=picture(workers=[worker("cmwq/u0:0")])), look=0)
    until(lambda: first(seen).state is watch.State.LIVE)
    return Browser(Gate(apps.make_app(seen, apps.News()), TOKEN, {"localhost", "127.0.0.1", "testhost"}, 8000))


PATHS = ["/", "/processes", "/events?process=0", "/history?process=0", "/timeline?process=0",
         "/worker?process=0&name=x", "/static/main.js", "/nothing"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_without_the_token_nothing_is_told(page: Browser, path: str) -> None:
    for query in ("", "token=", "token=wrong", f"token={TOKEN}x", f"token={TOKEN[:-1]}", "token=%FF"):
        answer = page.get(f"{path}{'&' if '?' in path else '?'}{query}")
        assert answer.status_code == 401
        assert answer.text == "Not authorised. Open the address that `cmwq dashboard` printed when it was started.\n"
        assert "set-cookie" not in answer.headers


def test_the_token_stands_in_the_address_once_and_then_a_cookie_takes_its_place(page: Browser) -> None:
    answer = page.get(f"/?token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite" in cookie
    assert TOKEN not in cookie
    assert page.get("/").status_code == 200
    assert page.get("/processes").json()["processes"][0]["pid"] == 1


@pytest.mark.parametrize("others", ['state={"a":1}', "a b", "d=\u00e9", '"', "k[0]=1; flag"])
def test_cookies_of_other_servers_of_this_host_lock_nobody_out(page: Browser, others: str) -> None:
    page.get(f"/?token={TOKEN}")
    for cookie in (
        f"{others}; {page.cookie}",
        f"{page.cookie}; {others}",
        f"{page.cookie.partition('=')[0]}=x; {page.cookie}",
    ):
        assert page.get("/processes", headers={"cookie": cookie}).status_code == 200, cookie


def test_arguments_and_names_that_are_no_text_are_shown_all_the_same(watched: Callable[..., Watches]) -> None:
    """Python reads bytes that are no UTF-8 as half characters."""
    command = ["python", "\udcff.py"]
    there = picture(workers=[worker("cmwq/u0:0", work="\udcfe")])
    seen = watched(Program(1, command, now=there), look=0)
    until(lambda: first(seen).state is watch.State.LIVE)
    page = Browser(Gate(apps.make_app(seen, apps.News()), None, {"localhost", "127.0.0.1"}, 8000))
    assert page.get("/processes").json()["processes"][0]["command"] == "python \udcff.py"

    async def read() -> list[tuple[str, Any]]:
        news = apps.News()
        news.open()
        async with asyncio.timeout(HANG):
            return await events(apps._Views(seen, news)._stream(0), 2)

    told = dict(asyncio.run(read()))
    assert told["processes"]["processes"][0]["command"] == told["view"]["command"] == "python \udcff.py"
    for path in ("/history?process=0", "/timeline?process=0", "/worker?process=0&name=cmwq/u0:0"):
        assert page.get(path).status_code == 200, path


@pytest.mark.parametrize(
    "cookie", ["x=y", "cmwq-dashboard-8000=", f"cmwq-dashboard-8000={TOKEN}", "cmwq-dashboard-8000=ü"]
)
def test_a_wrong_cookie_is_no_token(page: Browser, cookie: str) -> None:
    assert page.get("/processes", headers={"cookie": cookie}).status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "localhost.evil"])
def test_another_name_of_the_host_is_refused_even_with_the_token(page: Browser, host: str) -> None:
    page.get(f"/?token={TOKEN}")
    answer = page.get("/processes", headers={"host": host})
    assert (answer.status_code, answer.text) == (403, "Forbidden.\n")


@pytest.mark.parametrize(
    "host", ["localhost:8000", "LOCALHOST", "127.0.0.1", "[::1]:8000", "10.1.2.3:8000", "testhost"]
)
def test_own_names_and_addresses_are_let_in(page: Browser, host: str) -> None:
    page.get(f"/?token={TOKEN}")
    assert page.get("/processes", headers={"host": host}).status_code == 200


def test_two_host_headers_are_refused(page: Browser) -> None:
    page.get(f"/?token={TOKEN}")
    for hosts in (("127.0.0.1", "evil.example"), ("evil.example", "127.0.0.1")):
        assert page.request("GET", "/processes", [("host", host) for host in hosts]).status_code == 403


def test_requests_that_another_site_makes_behind_the_readers_back_are_refused(page: Browser) -> None:
    page.get(f"/?token={TOKEN}")
    for site in ("cross-site", "same-site"):
        headers = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}
        assert page.get("/processes", headers=headers).status_code == 403
        assert page.get("/", headers={"sec-fetch-site": site, "sec-fetch-mode": "navigate"}).status_code == 200


def test_nothing_can_be_changed(page: Browser) -> None:
    page.get(f"/?token={TOKEN}")
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert page.request(method, "/processes", [("host", "127.0.0.1")]).status_code == 405


def test_every_answer_forbids_what_the_page_does_not_need(page: Browser) -> None:
    answers = [page.get("/"), page.get(f"/?token={TOKEN}"), page.get("/"), page.get("/static/main.js"),
               page.get("/nothing"), page.get("/processes", headers={"host": "evil.example"})]  # fmt: skip
    assert [answer.status_code for answer in answers] == [401, 303, 200, 200, 404, 403]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"


def test_the_page_names_nothing_from_elsewhere(page: Browser) -> None:
    page.get(f"/?token={TOKEN}")
    for name in apps.FILES:
        text = page.get(f"/static/{name}").text
        for scheme in ("http://", "https://"):
            outside = [line for line in text.replace(f"{scheme}www.w3.org/", "").splitlines() if scheme in line]
            if not name.startswith("vendor/"):
                assert outside == [], name


@pytest.mark.parametrize("name", ["../app.py", "..%2fapp.py", "vendor/../index.html", "vendor", "", "%00"])
def test_only_the_files_of_the_page_are_served(page: Browser, name: str) -> None:
    page.get(f"/?token={TOKEN}")
    assert page.get(f"/static/{name}").status_code == 404


def test_without_a_token_everybody_is_let_in_but_under_another_name(watched: Callable[..., Watches]) -> None:
    browser = Browser(Gate(apps.make_app(watched(Program(1)), apps.News()), None, {"localhost"}, 8000))
    assert browser.get("/processes").status_code == 200
    assert browser.get("/processes", headers={"host": "evil.example"}).status_code == 403


# ----------------------------------------------------------------------------------- what the page asks for


def test_what_is_not_there_is_not_found(page: Browser) -> None:
    page.get(f"/?token={TOKEN}")
    wrong = ["/history?process=7", "/history?process=0&range=3", "/history?process=0&range=-1", "/worker"]
    for path in [*wrong, *(f"/timeline?process={number}" for number in ("x", "9" * 30, "%C2%B2", "-1"))]:
        assert page.get(path).status_code == 404, path


def test_a_worker_is_shown_with_its_stack(page: Browser) -> None:
    page.get(f"/?token={TOKEN}")
    found = page.get("/worker?process=0&name=cmwq/u0:0").json()
    assert found["worker"]["stack"] == ['  File "shop.py", line 7, in fetch\n']
    assert page.get("/worker?process=0&name=nobody").json()["worker"] is None


async def events(stream: Any, number: int) -> list[tuple[str, Any]]:
    """The next so many events of a stream."""
    found: list[tuple[str, Any]] = []
    async for piece in stream:
        for block in bytes(piece).decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
            if "event" in fields:
                found.append((fields["event"], json.loads(fields["data"])))
        if len(found) >= number:
            break
    return found


def test_a_stream_tells_the_processes_and_then_each_picture(watched: Callable[..., Watches]) -> None:
    async def read() -> list[tuple[str, Any]]:
        news = apps.News()
        news.open()
        views = apps._Views(watched(Program(1), look=0, announce=news.ring), news)
        async with asyncio.timeout(HANG):
            return await events(views._stream(0), 6)

    found = asyncio.run(read())
    assert found[0][0] == "processes"
    sequences = [data["sequence"] for name, data in found if name == "view"]
    assert len(sequences) >= 3
    assert sequences == sorted(set(sequences))


def test_a_browser_that_reads_slowly_is_skipped_and_not_queued_for(watched: Callable[..., Watches]) -> None:
    async def read() -> tuple[int, int]:
        news = apps.News()
        news.open()
        seen = watched(Program(1), look=0, announce=news.ring)
        await asyncio.to_thread(until, lambda: first(seen).state is watch.State.LIVE)  # what changes comes first
        stream = apps._Views(seen, news)._stream(0)
        async with asyncio.timeout(HANG):
            before = dict(await events(stream, 2))["view"]["sequence"]
            while first(seen).sequence < before + 50:  # it does not read meanwhile
                await asyncio.sleep(SHORT)
            name, after = (await events(stream, 1))[-1]
            assert name == "view"
            return before, after["sequence"]

    before, after = asyncio.run(read())
    assert after >= before + 50, "the newest picture comes next, and not the one after the last"


def test_streams_are_limited_and_end_with_the_dashboard(
    watched: Callable[..., Watches], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apps, "STREAMS", 2)

    async def read() -> None:
        news = apps.News()
        news.open()
        views = apps._Views(watched(Program(1), look=0), news)
        open_ones = [views._stream(None) for _ in range(2)]
        for stream in open_ones:
            await anext(stream)
        request = apps.Request({"type": "http", "query_string": b"", "headers": []})
        assert (await views.events(request)).status_code == 503
        news.close()
        async with asyncio.timeout(HANG):
            for stream in open_ones:
                assert [piece async for piece in stream if b"event" not in piece] == []
        assert news.streams == 0

    asyncio.run(read())


# ----------------------------------------------------------------------------------- the command


def test_the_address_is_one_that_can_be_opened() -> None:
    assert address("127.0.0.1", 80, "t") == "http://127.0.0.1:80/?token=t"
    assert address("::1", 80, None) == "http://[::1]:80/"
    assert socket.gethostname() in address("0.0.0.0", 80, None)
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")] == [
        True, True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_dashboard_though_a_page_is_open(tmp_path: Path, number: int) -> None:
    recording = tmp_path / "pictures.json"
    recording.write_text(json.dumps(picture()))
    command = [sys.executable, "-m", "cmwq", "dashboard", "--replay", str(recording)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = urlsplit(process.stdout.readline().split()[-1])
            connection = http.client.HTTPConnection("127.0.0.1", url.port or 0, timeout=HANG)
            connection.request("GET", f"/?{url.query}")
            answer = connection.getresponse()
            answer.read()
            cookie = (answer.headers["set-cookie"] or "").partition(";")[0]
            connection.request("GET", "/events?process=0", headers={"cookie": cookie})
            stream = connection.getresponse()
            assert stream.readline() == b"retry: 2000\n"
            process.send_signal(number)
            stream.read()  # until it ends
            connection.close()
            assert process.wait(HANG) == -number
            assert process.stderr is not None
            assert process.stderr.read() == "", "nothing is said, and no token"
        finally:
            process.kill()


def test_what_cannot_be_served_is_told_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recording = tmp_path / "pictures.json"
    assert main(["dashboard", "--replay", str(recording)]) == 2
    assert "can't be read" in capfd.readouterr().err
    recording.write_text(json.dumps(picture()))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["dashboard", "--replay", str(recording), "--port", str(taken.getsockname()[1])]) == 2
    said = capfd.readouterr().err
    assert "in use" in said
    assert said.count("\n") == 1


def test_a_process_that_does_not_answer_is_refused_by_the_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from cmwq.cli import dashboard

    monkeypatch.setattr(dashboard, "import_module", lambda name: Machine() if name.endswith("client") else __import__(
        name, fromlist=["serve"]))  # fmt: skip
    assert main(["dashboard", "4242"]) == 2
    assert "There is no process 4242." in capfd.readouterr().err
