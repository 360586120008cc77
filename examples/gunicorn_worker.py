"""gunicorn with cmwq's worker: requests that wait hold up nobody, and nobody said how many threads.

    python examples/gunicorn_worker.py

starts a server with one process, asks it for 50 slow pages and then for a quick one, and stops it. To serve your own
application: `gunicorn -k cmwq.contrib.gunicorn.Worker myproject.wsgi`
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.5)  # a database, another service
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]


def get(url: str) -> float:
    """Returns how many seconds it took."""
    began = time.monotonic()
    with urllib.request.urlopen(url, timeout=60) as answer:
        answer.read()
    return time.monotonic() - began


def main() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = ["-m", "gunicorn", "-b", address, "-k", "cmwq.contrib.gunicorn.Worker", "--log-level", "warning"]
    server = subprocess.Popen(
        [sys.executable, *command, "gunicorn_worker:application"], cwd=Path(__file__).parent.resolve()
    )
    try:
        while True:
            try:
                get(f"http://{address}/")
                break
            except OSError:
                time.sleep(0.05)
        began = time.monotonic()
        slow = [threading.Thread(target=get, args=(f"http://{address}/slow",)) for _ in range(50)]
        for each in slow:
            each.start()
        quick = get(f"http://{address}/")
        for each in slow:
            each.join()
        print(f"50 pages of 0.5 s: {time.monotonic() - began:.2f} s; a quick one beside them: {quick * 1000:.0f} ms")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
