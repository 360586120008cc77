"""Fork and interpreter exit: tells the runtimes that have started (G2, G3).

Hooks are installed by the first of them, once.

Exit uses threading's own hook, as concurrent.futures does: it runs before the interpreter stops threads from starting,
and before non-daemon threads are joined. atexit would be too late for both.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from cmwq._core.runtime import Runtime

_log = logging.getLogger("cmwq")
_started: WeakSet[Runtime] = WeakSet()
_once = threading.Lock()  # taken for good by who installs the hooks


def watch(runtime: Runtime) -> None:
    _started.add(runtime)
    if _once.acquire(blocking=False):
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_after_fork)
        threading._register_atexit(_at_exit)  # type: ignore[attr-defined]


def _at_exit() -> None:
    # Ctrl-C here means now, and is passed on, as by the standard library: the interpreter then leaves behind our
    # workers and those who wait for them, on threads that it would join, as asyncio's in `shutdown()`.
    for runtime in list(_started):
        try:
            runtime.process_exits()
        except Exception:
            _log.exception("%r could not be closed at exit", runtime)


def _after_fork() -> None:
    for runtime in list(_started):
        runtime.process_forked()
