"""Libraries that make a `ThreadPoolExecutor` themselves, or take one: handed `cmwq.Executor`, they work unchanged."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG

import cmwq


class Server(ThreadingHTTPServer):
    """Keeps what is put, as S3 does; a GET of /meet/N is answered when N of them are there."""

    daemon_threads = True
    request_queue_size = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.kept: dict[str, bytes] = {}
        self.barriers: dict[int, threading.Barrier] = {}
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def meet(self, number: int) -> None:
        with self.lock:
            barrier = self.barriers.setdefault(number, threading.Barrier(number))
        barrier.wait(HANG)


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), "ETag": '"etag"', **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_PUT(self) -> None:
        self.server.kept[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer()

    def do_HEAD(self) -> None:
        self.answer(Content_Length=str(len(self.server.kept[self.path])))

    def do_GET(self) -> None:
        if self.path.startswith("/meet/"):
            self.server.meet(int(self.path.rpartition("/")[2]))
            return self.answer(b"met")
        body = self.server.kept[self.path.partition("?")[0]]
        wanted = self.headers.get("Range")
        if wanted is None:
            return self.answer(body)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        stop = int(last) + 1 if last else len(body)
        shown = f"bytes {first}-{stop - 1}/{len(body)}"
        return self.answer(body[int(first) : stop], 206, Content_Range=shown)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_tqdm_thread_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no slot for an executor: it takes what `concurrent.futures` has by that name when it is called."""
    tqdm = pytest.importorskip("tqdm.contrib.concurrent", reason="tqdm can't be imported here")
    monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor", cmwq.Executor)
    barrier, shown = threading.Barrier(50), io.StringIO()

    def task(number: int) -> int:
        barrier.wait(HANG)
        return number

    assert tqdm.thread_map(task, range(50), max_workers=50, file=shown) == list(range(50))
    assert tqdm.thread_map(abs, [-1, -2], file=shown) == [1, 2]
    assert "50/50" in shown.getvalue()


def test_tqdm_hands_over_an_initializer_that_prepares_each_thread() -> None:
    tqdm = pytest.importorskip("tqdm.contrib.concurrent", reason="tqdm can't be imported here")
    from tqdm.auto import tqdm as bar

    lock = threading.RLock()
    bar.set_lock(lock)

    def task(_: int) -> bool:
        return bar.get_lock() is lock

    assert all(tqdm._executor_map(cmwq.Executor, task, range(20), file=io.StringIO()))


def test_requests_futures(server: Server) -> None:
    sessions = pytest.importorskip("requests_futures.sessions", reason="requests-futures can't be imported here")
    with cmwq.Executor() as executor, sessions.FuturesSession(executor=executor) as session:
        answers = [session.get(f"{server.url}/meet/30") for _ in range(30)]
        assert {answer.result(HANG).text for answer in answers} == {"met"}
        assert not executor.queue.nr_unfinished()


@pytest.fixture
def s3(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    boto3 = pytest.importorskip("boto3", reason="boto3 can't be imported here")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    client = boto3.client(
        "s3", endpoint_url=server.url, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
    )
    with contextlib.closing(client):
        yield client


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_s3transfer_uploads_and_downloads_in_parts(s3: Any, server: Server, tmp_path: Path) -> None:
    manager = pytest.importorskip("s3transfer.manager", reason="s3transfer can't be imported here")
    data = bytes(range(256)) * 4096
    (tmp_path / "data").write_bytes(data)
    told: list[int] = []

    class Told(pytest.importorskip("s3transfer.subscribers").BaseSubscriber):  # type: ignore[misc]
        def on_progress(self, bytes_transferred: int, **_: Any) -> None:
            told.append(bytes_transferred)

    with manager.TransferManager(s3, executor_cls=cmwq.Executor) as transfers:
        uploads = [transfers.upload(str(tmp_path / "data"), "bucket", f"key{number}") for number in range(8)]
        for each in uploads:
            each.result()
    parts = manager.TransferConfig(multipart_threshold=1 << 16, multipart_chunksize=1 << 16)
    with manager.TransferManager(s3, parts, executor_cls=cmwq.Executor) as transfers:
        downloads = [
            transfers.download("bucket", f"key{number}", str(tmp_path / f"copy{number}"), subscribers=[Told()])
            for number in range(8)
        ]
        for each in downloads:
            each.result()
    assert all((tmp_path / f"copy{number}").read_bytes() == data for number in range(8))
    assert sum(told) == 8 * len(data)
