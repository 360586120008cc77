"""Unfetched: holds the exception of a failed call until somebody looks at it (`Runtime.on_unfetched`).

Guarantees: if a hook is set when a call fails, and the future of the call is dropped without that `result()` or
`exception()` has shown the exception to anybody or a callback was added, the hook is called with the exception, once.
Without a hook this costs one comparison for each failed call, and nothing for others.

How: a failed future has no result, so the place of the result is free. It holds this object, which nothing else
references. So the object dies with the future, and its finaliser calls the hook, unless it was noted that somebody
looked. A finaliser may run anywhere, also in the middle of our critical sections; so the call is deferred until this
thread has left them (`Host.defer`). Without a GIL that may be later: if another thread drops the last reference, the
object dies when the thread that made it goes on (here the worker, with its next work), or at the next collection.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import is_finalizing
from typing import TYPE_CHECKING

from cmwq._core import log

if TYPE_CHECKING:
    from cmwq._workqueue.runtime import Runtime


class Unfetched:
    """The exception of one failed future, which holds this object."""

    __slots__ = ("_exception", "_name", "_runtime", "seen")

    def __init__(self, runtime: Runtime, name: str, exception: BaseException) -> None:
        self.seen = False  # ~: only ever set
        self._runtime = runtime  # I
        self._name = name  # I
        self._exception = exception  # I

    # Bound here, because at interpreter exit the module's own names may be gone.
    def __del__(self, is_finalizing: Callable[[], bool] = is_finalizing) -> None:
        if self.seen or self._runtime.on_unfetched is None:
            return
        if is_finalizing():
            self._tell()  # now: modules may be gone, and deferring with them; and no section of ours is in progress
        else:
            self._runtime.host.defer(self._tell)  # keeps this object alive until then

    def _tell(self, is_finalizing: Callable[[], bool] = is_finalizing) -> None:
        hook = self._runtime.on_unfetched
        if hook is None or self.seen:
            return
        self.seen = True
        try:
            hook(self._name, self._exception)
        except BaseException:
            if not is_finalizing():  # else what the hook needs may be gone
                log.exception("on_unfetched raised while it dealt with %s", self._name)
