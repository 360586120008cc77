"""Fork and interpreter exit: notifies every runtime, however far its start has come (G2, G3).

The hooks are installed when this module is imported, which happens when `cmwq` is imported, since any runtime on real
threads needs it. First use would be too late: a fork in the middle of it would find no hook, and after the main
thread's end none can be installed any more.

Exit uses threading's own hook, as concurrent.futures does, because it runs before the interpreter refuses new threads
and before it joins non-daemon threads; atexit runs after both. The hook that was installed last runs first.
concurrent.futures is imported here before our hook is installed, so ours runs first, and works that are executed at
exit may still use its executors.

*Why no runtime is missed at exit.* `watch` adds the runtime and then checks whether the end has come; `_at_exit` sets
that flag and then reads the set of runtimes. Whichever is first, one of the two sees the other. A runtime made after
the end is closed at once: its queues raise QueueClosed, rather than accept works that nobody would wait for.

*Why a fork in the middle of a start is safe.* In the child `Runtime.process_forked` replaces every lock that the start
holds, and discards what the start has written so far. So it need not know how far the start came, and the fork need not
wait for it. The runtime is in the set from its creation on, and before that only one thread knows it.

*A hook of others that comes before ours, in the child.* It may call us while the locks are those of the parent, and
one of the parent's threads may have held one. A lock in C knows in which process it was taken, and is not waited for
where its holder is gone; a thread that such a hook started is in this process, and is waited for. What such a call
leaves is dropped by `_after_fork`.

*Why not a WeakSet.* Iterating over one runs Python code, in which another thread or a finaliser may make or drop a
runtime, and then raises RuntimeError, possibly in the child of a fork. See `_core/weakly.py`.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  # before our hook is installed
import os
import threading
from typing import TYPE_CHECKING

from cmwq._core import log
from cmwq._core.weakly import Weakly

if TYPE_CHECKING:
    from cmwq._workqueue.runtime import Runtime

_runtimes: Weakly[Runtime] = Weakly()
_over = False


def watch(runtime: Runtime) -> None:
    """Notify the runtime of fork and exit from now on. If the end has come already, it is notified at once.

    Thread-safe. The runtime is referenced weakly.
    """
    _runtimes.add(runtime)
    if _over:
        runtime.process_exits()


def _at_exit() -> None:
    global _over
    _over = True
    # Ctrl-C here ends the wait and is passed on, as by the standard library. The interpreter then abandons our workers
    # and the threads that wait for them, which it would otherwise join, such as asyncio's in `shutdown()`.
    for runtime in _runtimes:
        try:
            runtime.process_exits()
        except Exception:
            log.exception("%r could not be closed at exit", runtime)


def _after_fork() -> None:
    for runtime in _runtimes:
        try:
            runtime.process_forked()
        except Exception:  # the other runtimes must still be notified
            log.exception("%r could not be freed of what its parent had queued", runtime)


def _install() -> None:
    global _over
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)
    try:
        threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
    except RuntimeError:  # imported after the end
        _over = True


_install()
