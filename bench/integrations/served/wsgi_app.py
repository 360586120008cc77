"""What the WSGI servers serve: /sleep/<ms>, /zlib/<KB> and /python/<rounds>, as in a database, native code, Python."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any

NOISE = random.Random(1).randbytes(1 << 20)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    what, _, number = environ["PATH_INFO"].strip("/").partition("/")
    if what == "sleep":
        time.sleep(int(number) / 1000)
    elif what == "zlib":
        zlib.compress(NOISE[: int(number) * 1024], 6)  # without the GIL
    elif what == "python":
        sum(range(int(number) * 1000))
    body = b"done"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
