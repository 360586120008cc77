"""What the logs of `cmwq exec` say of a command, and the log that is only written.

Guarantees: `record` returns when the kernel has the line. What the file had before is left as it is.
"""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING

from cmwq.cli.output import Refusal, reason, write_all

if TYPE_CHECKING:
    from cmwq.cli.child import Ended


def members(command: str, ended: Ended, start: float, seconds: float, tries: int) -> bytes:
    """The members of a line that both logs have, as JSON without braces."""
    said = {
        "command": command,
        "start": round(start, 3),
        "seconds": round(seconds, 6),
        "status": ended.status,
        "signal": ended.signal,
        "tries": tries,
    }
    if ended.late:
        said["timed_out"] = True
    return json.dumps(said)[1:-1].encode("ascii")


class JobLog:
    """A file to which a line is appended for each command that ended. Thread-safe. Raises Refusal."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()  # one line at a time, and none after one that failed
        self._failure: str | None = None
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise Refusal(f"job log {path!r}: {reason(error).removeprefix(path + ': ')}") from error

    def record(self, index: int, item: str, ok: bool, tail: bytes) -> None:
        """Raises Refusal; after that every call raises it again."""
        head = json.dumps({"index": index, "item": item, "ok": ok})[:-1].encode("ascii")
        with self._lock:
            if self._failure is None:
                try:
                    write_all(self._fd, head, b", ", tail, b"}\n")
                    return
                except OSError as error:
                    self._failure = f"job log {self._path!r}: {reason(error)}"
            raise Refusal(self._failure)
