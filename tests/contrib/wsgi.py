"""What the tests of servers share: a server in a process of its own, and requests to it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from conftest import HANG

TESTS = Path(__file__).parent.parent


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run_example(name: str) -> str:
    """Run one of the examples, and return what it printed."""
    path = TESTS.parent / "examples" / name
    if not path.exists():
        pytest.skip("no examples here")
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Server:
    """A server at `port`. Its process ends with the `with` block of `serving`."""

    def __init__(self, process: subprocess.Popen[str], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self._log = log

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG)

    def get(self, path: str) -> Any:
        """The JSON that it answers. Fails unless it is all right."""
        with closing(self.connect()) as connection:
            return ask(connection, path)

    def log(self) -> str:
        return self._log.read_text()

    def stop(self, sign: int = signal.SIGTERM) -> int:
        self.process.send_signal(sign)
        return self.process.wait(HANG)


def ask(connection: http.client.HTTPConnection, path: str) -> Any:
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, (answer.status, body)
    return json.loads(body)


class Asking(threading.Thread):
    """One request on a thread of its own."""

    def __init__(self, server: Server, path: str) -> None:
        super().__init__()
        self._server = server
        self._path = path
        self._answer: Any = None
        self._failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._answer = self._server.get(self._path)
        except BaseException as exc:
            self._failure = exc

    def answer(self) -> Any:
        self.join(HANG)
        assert not self.is_alive(), f"no answer to {self._path}"
        if self._failure is not None:
            raise self._failure
        return self._answer


@contextmanager
def serving(command: Sequence[str], port: int, folder: Path) -> Iterator[Server]:
    """Run a server, wait until it answers, and stop it at the end, in any case."""
    log = folder / "log"
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "CMWQ_DEBUG": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", *command], env=environment, stdout=output, stderr=output, text=True,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + HANG
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.01)
        yield Server(process, port, log)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(HANG)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Start(Protocol):
    def __call__(self, *options: str) -> Server: ...


@contextmanager
def starting(command: Callable[[str, tuple[str, ...]], list[str]], folder: Path) -> Iterator[Start]:
    """Servers with options, each at a port of its own, until the end of the block. command: of address and options."""
    with ExitStack() as running:

        def start(*options: str) -> Server:
            port = free_port()
            return running.enter_context(serving(command(f"127.0.0.1:{port}", options), port, folder))

        yield start
