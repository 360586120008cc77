"""Fork and interpreter exit: tells every runtime that was made, however far its start has come (G2, G3).

The hooks are installed when this module is imported, which making any runtime on real threads does, so with `cmwq`
itself. First use would be too late for both: a fork in the middle of it would find no hook, and after the main
thread's end none can be installed any more.

Exit uses threading's own hook, as concurrent.futures does: it runs before the interpreter stops threads from starting,
and before non-daemon threads are joined. atexit would be too late for both. The last installed runs first, so that of
concurrent.futures comes before ours: works that are done at exit may use its executors.

*Why no runtime is missed at exit.* `watch` adds the runtime, then looks whether the end has come; `_at_exit` says that
it has, then looks which there are. Whichever is first, one of the two sees the other. A runtime made after the end is
closed from birth: its queues raise QueueClosed, rather than take what nobody would wait for.

*Why a fork in the middle of a start is safe.* In the child `Runtime.process_forked` replaces every lock that the start
holds, and makes void what the start has written so far. So it need not know how far that came, and nobody has to wait
for it before the fork. The runtime is known here from its making on, and until then only one thread knows it.

*Why not a WeakSet.* To iterate over one runs Python code, in which another thread or a finaliser may make or drop a
runtime: RuntimeError, in a fork's child of all places. See `_core/weakly.py`.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  # before our hook is installed
import logging
import os
import threading
from typing import TYPE_CHECKING

from cmwq._core.weakly import Weakly

if TYPE_CHECKING:
    from cmwq._workqueue.runtime import Runtime

_log = logging.getLogger("cmwq")
_runtimes: Weakly[Runtime] = Weakly()
_over = False


def watch(runtime: Runtime) -> None:
    """From now on it is told. If the end has come already it is told so at once."""
    _runtimes.add(runtime)
    if _over:
        runtime.process_exits()


def _at_exit() -> None:
    global _over
    _over = True
    # Ctrl-C here means now, and is passed on, as by the standard library: the interpreter then leaves behind our
    # workers and those who wait for them, on threads that it would join, as asyncio's in `shutdown()`.
    for runtime in _runtimes:
        try:
            runtime.process_exits()
        except Exception:
            _log.exception("%r could not be closed at exit", runtime)


def _after_fork() -> None:
    for runtime in _runtimes:
        try:
            runtime.process_forked()
        except Exception:  # the next one has a right to be told, too
            _log.exception("%r could not be freed of what its parent had queued", runtime)


def _install() -> None:
    global _over
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)
    try:
        threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
    except RuntimeError:  # imported after the end
        _over = True


_install()
