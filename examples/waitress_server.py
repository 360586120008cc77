"""waitress with cmwq's dispatcher: requests that wait hold up nobody, and nobody said how many threads.

    python examples/waitress_server.py

serves an application on a thread of this process, asks it for 50 slow pages and then for a quick one. To serve
your own: `cmwq.contrib.waitress.serve(application, listen="127.0.0.1:8080")`
"""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

import cmwq.contrib.waitress


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.5)  # a database, another service
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"done"]


def get(url: str) -> float:
    """Returns how many seconds it took."""
    began = time.monotonic()
    with urllib.request.urlopen(url, timeout=60) as answer:
        answer.read()
    return time.monotonic() - began


def main() -> None:
    server = cmwq.contrib.waitress.create_server(application, listen="127.0.0.1:0", connection_limit=1000)
    threading.Thread(target=server.run, daemon=True).start()
    address = f"http://127.0.0.1:{server.effective_port}"
    get(f"{address}/")  # the first call of urllib reads certificates, which takes long
    began = time.monotonic()
    slow = [threading.Thread(target=get, args=(f"{address}/slow",)) for _ in range(50)]
    for each in slow:
        each.start()
    quick = get(f"{address}/")
    for each in slow:
        each.join()
    print(f"50 pages of 0.5 s: {time.monotonic() - began:.2f} s; a quick one beside them: {quick * 1000:.0f} ms")
    server.task_dispatcher.shutdown()


if __name__ == "__main__":
    main()
