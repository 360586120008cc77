"""joblib: a backend for `joblib.Parallel` that needs no `n_jobs`.

    cmwq.contrib.joblib.register()
    with joblib.parallel_config(backend="cmwq"):
        joblib.Parallel()(joblib.delayed(fetch)(url) for url in urls)

Guarantees:
- Each `Parallel` has a lease of its own on the process's pools, for as long as it runs. It closes nothing else.
- A task may use `Parallel` in turn, to any depth. The inner one has the same backend, and waiting for it takes no
  thread away from others.
- If a task raises, or takes longer than `timeout`, those that have not begun are cancelled. Those that run go on to
  their end, and nobody waits for them, as with joblib's threads.
- If no more tasks can be handed over, `Parallel` raises the reason.
- Tasks are told apart by what they call, so that short ones do not wait behind those of another `Parallel` that compute
  for long (A9).
- A task runs in a copy of the context of whoever submitted it: the caller, or the task whose end made room for it.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any

import joblib  # type: ignore[import-untyped,import-not-found,unused-ignore]
from joblib._parallel_backends import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
    FallbackToBackend,
    SequentialBackend,
)
from joblib.parallel import ParallelBackendBase  # type: ignore[import-untyped,import-not-found,unused-ignore]

import cmwq
from cmwq.contrib._routes import InsteadOf

__all__ = ("JoblibBackend", "register")

AT_ONCE = 256
"""How many tasks `n_jobs=-1` lets be active at a time: as for any queue without a limit of its own."""


def register(name: str = "cmwq", *, make_default: bool = False) -> None:
    """Let joblib know the backend by this name. May be called again. Thread-safe.

    make_default: use it wherever no backend is asked for, and threads will do. (joblib calls this experimental.)
    """
    joblib.register_parallel_backend(name, JoblibBackend, make_default=make_default)


class JoblibBackend(ParallelBackendBase):  # type: ignore[misc,unused-ignore]
    """What joblib's context holds. Each `Parallel` gets a `CmwqBackend` from it, so that nothing is shared among them.

    n_jobs=-1: as many tasks run as pays, at most 256 at a time. Also the default, except within a task, where nothing
        is parallel unless it is asked for. Other numbers mean what they mean with joblib's threads: n is a bound, 1 is
        no parallelism at all, -2 is a bound of one less than there are CPUs.
    """

    default_n_jobs = -1
    supports_retrieve_callback = True
    supports_sharedmem = True
    uses_threads = True

    def __init__(self, nesting_level: int | None = None, **options: Any) -> None:
        super().__init__(nesting_level=nesting_level, **options)
        if nesting_level:
            self.default_n_jobs = 1

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Into how many parts to cut what is to be computed: as many as there are CPUs, unless a number is given.

        Raises ValueError for 0.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(1, joblib.cpu_count() + 1 + n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Send each `Parallel` to a backend of its own, as joblib wants it: by raising FallbackToBackend."""
        if n_jobs != -1 and self.effective_n_jobs(n_jobs) == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        raise FallbackToBackend(CmwqBackend(nesting_level=self.nesting_level))

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Any:
        """Raise RuntimeError: only the backend of a `Parallel` takes tasks."""
        raise RuntimeError("joblib.Parallel asks for this only after `configure`")


class CmwqBackend(JoblibBackend):
    """The backend of one `Parallel`: a lease, to which its tasks are submitted."""

    def __init__(self, nesting_level: int | None = None) -> None:
        super().__init__(nesting_level=nesting_level)
        self._lease: cmwq.Executor | None = None
        self._limit: int | None = None
        self._begun = False
        """A batch was handed over. From then on joblib hands over the next ones in callbacks, too."""

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many tasks may be active at a time: joblib hands over twice as many at first, then one for each end."""
        return AT_ONCE if n_jobs == -1 else super().effective_n_jobs(n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        self.parallel = parallel
        limit = self.effective_n_jobs(n_jobs)
        self._limit = None if n_jobs == -1 else limit
        self._begin()
        return limit

    def _begin(self) -> None:
        self._lease, self._begun = cmwq.Executor("joblib", max_active=self._limit), False

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Any:
        """Hand over a batch of tasks. What can't be handed over, QueueClosed after the end of the `Parallel` included,
        is raised for the first batch, and is the outcome of a later one: joblib hands these over in callbacks, where an
        exception would be lost, and `Parallel` would wait for the batch for ever.
        """
        lease, future = self._lease, concurrent.futures.Future[Any]()
        try:
            if lease is None:
                raise cmwq.QueueClosed("this joblib.Parallel has ended: it accepts no tasks")
            future = lease.submit(InsteadOf(_called_by(func), func))
        except BaseException as exc:
            if not self._begun:
                raise
            future.set_exception(exc)
        self._begun = True
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Any) -> Any:
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel what has not begun, and leave what runs to its end. joblib heeds no outcome of these any more. What
        comes next gets a lease of its own, in which they take up no place.
        """
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.shutdown(wait=False, cancel_futures=True)
        if ensure_ready:
            self._begin()

    def terminate(self) -> None:
        """End the lease. All tasks have ended, but their callbacks may still run, which this waits for."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.shutdown()

    def get_nested_backend(self) -> tuple[JoblibBackend, int | None]:
        """What `Parallel` uses within a task."""
        return JoblibBackend(nesting_level=(self.nesting_level or 0) + 1), None


def _called_by(batch: Any) -> Any:
    """The function of its first task. joblib makes an object of one class for every batch."""
    items = getattr(batch, "items", None)
    return items[0][0] if items else batch
