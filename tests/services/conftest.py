"""Servers for the tests, each on a free port of 127.0.0.1, and stopped whatever happens."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright isn't installed here")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium here; `make test-services` installs it if it may (Debian, root)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Redis of these tests alone, which keeps nothing on the disk."""
    client = pytest.importorskip("redis", reason="Redis for Python can't be imported here")
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("there is no redis-server here; `make test-services` installs it if it may (Debian, root)")
    port = free_port()
    folder: Path = tmp_path_factory.mktemp("redis")
    command = [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--dir", str(folder)], stdout=log, stderr=log)
    try:
        with client.Redis(port=port) as connection:

            def answers() -> bool:
                assert process.poll() is None, (folder / "log").read_text()
                try:
                    return bool(connection.ping())
                except client.ConnectionError:
                    return False

            until(answers)
        yield port
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def redis(redis_port: int) -> Iterator[Any]:
    """A connection to an empty Redis."""
    import redis

    with redis.Redis(port=redis_port, decode_responses=True) as connection:
        connection.flushall()
        yield connection
