"""Unfetched: the exception of a submitted call, until somebody looks at it (`Runtime.on_unfetched`).

Guarantees: where a hook is set when a call fails, and the call's future is dropped although neither `result()` nor
`exception()` has shown the exception to anybody, and no callback was added, the hook is called with it, once. Where no
hook is set it costs a comparison per failed call, and none per other call.

How: a failed future has no result, so its place is free. There this object is kept, by the future alone; it dies with
the future, and its finaliser tells, unless it was told that somebody looked. A finaliser may run anywhere, in the
middle of our critical sections too; so what it calls is deferred until this thread has left them (`Host.defer`).
Without a GIL that comes later: there an object that another thread drops last dies when the thread that made it goes
on, here the worker with its next work, or at the next collection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from sys import is_finalizing
from typing import TYPE_CHECKING

from cmwq._core.held import outside

if TYPE_CHECKING:
    from cmwq._workqueue.runtime import Runtime

_log = logging.getLogger("cmwq")


class Unfetched:
    """Kept by one failed future."""

    __slots__ = ("_exception", "_name", "_runtime", "seen")

    def __init__(self, runtime: Runtime, name: str, exception: BaseException) -> None:
        self.seen = False  # ~: only ever set
        self._runtime = runtime  # I
        self._name = name  # I
        self._exception = exception  # I

    # Bound here, for at the very end the module's own names are gone.
    def __del__(self, is_finalizing: Callable[[], bool] = is_finalizing) -> None:
        if self.seen or self._runtime.on_unfetched is None:
            return
        if is_finalizing():
            self._tell()  # modules may be gone, and what defers with them; and no section of ours is in progress
        else:
            self._runtime.host.defer(self._tell)  # the object goes on until then

    @outside
    def _tell(self, is_finalizing: Callable[[], bool] = is_finalizing) -> None:
        hook = self._runtime.on_unfetched
        if hook is None or self.seen:
            return
        self.seen = True
        try:
            hook(self._name, self._exception)
        except BaseException:
            if not is_finalizing():  # else what it needs may be gone
                _log.exception("on_unfetched raised while it dealt with %s", self._name)
