"""Threads that are none: gevent and eventlet can put greenlets in the place of a process's threads.

Then all "threads" take turns on one real thread, whatever waits in C stops them all, and what the system says of a
thread is said of all. To use the originals behind their backs would be no better: a greenlet that waits for a work
would stop the others, which the work may need. So whoever would start a thread is told, before anything is half there.
"""

from __future__ import annotations

import _thread

from cmwq._errors import ThreadLimit


def refuse_greenlets() -> None:
    """Raises ThreadLimit."""
    # Debuggers replace what starts a thread; who one is only those replace for whom it is no thread.
    owner = _thread.get_ident.__module__
    if owner != "_thread":
        raise ThreadLimit(
            f"cmwq needs real threads, and {owner} has put greenlets in their place: "
            "call monkey.patch_all(thread=False), or use that library's own pool"
        )
