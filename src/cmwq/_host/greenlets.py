"""Refusal of greenlets: gevent and eventlet can replace a process's threads by greenlets.

Then all "threads" take turns on one real thread, a wait in C stops them all, and what the system says of a thread
applies to all of them. Using the original threads all the same would be no better: a greenlet that waits for a work
would stop the others, which the work may need. So an error is raised before the first thread is started.
"""

from __future__ import annotations

import _thread

from cmwq._errors import ThreadLimit


def refuse_greenlets() -> None:
    """Raises ThreadLimit if greenlets have replaced threads in this process."""
    # Debuggers replace the function that starts a thread, but only greenlet libraries replace get_ident().
    owner = _thread.get_ident.__module__
    if owner != "_thread":
        raise ThreadLimit(
            f"cmwq needs real threads, and {owner} has put greenlets in their place: "
            "call monkey.patch_all(thread=False), or use that library's own pool"
        )
