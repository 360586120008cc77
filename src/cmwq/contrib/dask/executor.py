"""executor: what a worker of Dask runs its tasks on, and how the slot of a task that blocks is given back.

Guarantees
- A task occupies a slot of Dask's (`nthreads`) only while it computes, as far as is known. While it is blocked, Dask
  sees it as one that has seceded, and begins another. So `nthreads` is how many tasks compute at a time, and no number
  of tasks that wait for something can keep others from running. At most `max_blocked` tasks of a worker have given
  their slots back and not ended; beyond that, tasks keep theirs.
- The slot of a task that *computes* for long is given back only if a task of another kind waits on this worker, and
  while no more than `PASSING` per slot of such tasks have given theirs back. So short tasks pass long ones, and a flood
  of equal long ones is run `nthreads` at a time, as by Dask alone. The kind of a task is the prefix of its key.
- `secede`, `rejoin`, `worker_client`, `get_worker` and `get_client` work in tasks as on Dask's own executor. `rejoin`
  does not wait: the pool takes care that no more workers run than there are CPUs.

How blocking is noticed although nothing is queued here: the source `_could_begin_one_more` is served to the queue of
the tasks (E12). It never has a call to give. But as long as it stands in line, work waits, and the sensor is armed. It
is asked when, and only when, a worker could begin something: then a CPU is free while Dask's slots may all be taken.

      a task begins                  the source goes in line again (`notify`), behind all tasks handed over
      a task blocks, nobody waits    the sensor wakes a worker, which asks the source
      the source is asked            the event loop looks which tasks are blocked, and gives their slots back
      Dask begins another            it is handed over, begins, and the source goes in line again

There is no moment in which a task is unwatched: whenever all slots are taken, the task that took the last one began
after that, and has put the source in line. If the look finds nobody (the task runs again by then), and all slots are
still taken, it is repeated after `PAUSE`.

Letters: E: the worker's event loop only; A: one atomic step; I: never changed.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Any

from dask.utils import key_split
from distributed.metrics import time
from distributed.threadpoolexecutor import thread_state as dask_thread
from distributed.utils import thread_state as dask_task  # type: ignore[attr-defined,unused-ignore]
from distributed.worker_state_machine import SecedeEvent

import cmwq
from cmwq.contrib._routes import Routes
from cmwq.contrib.dask.calls import Cancellations

_log = logging.getLogger("cmwq")

PASSING = 4
"""So many tasks per slot that compute for long may be passed by others."""
AT_ONCE = 65_535
"""So many tasks may be active: it is Dask that bounds them."""
PAUSE = 0.02
"""Seconds until the next look, if all slots are taken and nobody is found blocked although a worker could begin."""
LEFT_BEHIND = 30.0
"""Seconds that a worker which closes waits for its tasks, as Dask's own executor does."""


class Task:
    """A task that was handed over and has not ended."""

    __slots__ = ("began", "future", "key", "kind", "slot")

    def __init__(self, key: Any, kind: str) -> None:
        self.key = key  # I
        self.kind = kind  # I
        self.future: Any = None  # E
        self.began = 0.0  # A: on Dask's clock; 0: it has not begun
        self.slot = ""  # E: why it gave its slot back: "blocked", "passed" or "seceded"; empty: it has it


class DaskThreadPoolExecutor(cmwq.Executor):
    """The executor of one worker. (Dask asks for "ThreadPoolExecutor" in the name of the class.)

    worker: the `distributed.Worker` whose tasks it runs. max_blocked: how many tasks may be blocked, without a slot,
    at a time. cancellations: whom to tell of a task that was cancelled.

    Made on the worker's event loop, which also calls `submit`. The rest is thread-safe.
    """

    def __init__(self, worker: Any, max_blocked: int, cancellations: Cancellations) -> None:
        name, prefix = ("dask", "") if worker.name is None else (f"dask {worker.name}", f"{worker.name}-")
        super().__init__(name, f"{prefix}Dask-Default-Threads", max_active=AT_ONCE)
        self._worker = worker  # I
        self._loop = worker.loop.asyncio_loop  # I
        self._max_blocked = max_blocked  # I
        self._cancellations = cancellations  # I
        self._kinds = Routes()  # I
        self._tasks: dict[Any, Task] = {}  # E: by key
        self._gone: Counter[str] = Counter()  # E: tasks without a slot that have not ended, by why
        self._look_due = False  # E
        self._repeats = False  # E: a further look is due
        self.given_back = 0  # E to change: slots, so far
        # What `secede` and `rejoin` of Dask expect of an executor.
        self._rejoin_lock = threading.Lock()  # I
        self._rejoin_list = _Rejoining()  # I
        self._seats = _Seats(self)  # I
        self._serving = self.queue.serve(self._could_begin_one_more)  # I

    @property
    def _max_workers(self) -> int:  # type: ignore[override]
        return int(self._worker.state.nthreads)

    @property
    def _threads(self) -> Any:  # type: ignore[override]
        """The threads whose tasks have a slot: Dask removes one from here to secede."""
        return self._seats

    # ------------------------------------------------------------------------------- tasks

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run a task of Dask's, or anything else that Dask runs on this executor. Raises QueueClosed after shutdown."""
        key = _key_of(fn)
        if key is None:
            return super().submit(fn, *args, **kwargs)
        prefix = key_split(key)
        task = self._tasks[key] = Task(key, prefix)
        try:
            call = self._kinds.call(self._run, str, prefix)
            task.future = super().submit(call, task, fn)
        except BaseException:
            del self._tasks[key]
            raise
        self._serving.notify()  # those that are set aside, because their kind computes for long, begin late
        return task.future

    def _run(self, task: Task, fn: Callable[[], Any]) -> Any:
        """Context: the worker of cmwq that runs the task."""
        dask_thread.proceed, dask_thread.executor, dask_thread.seceded = True, self, False
        self._cancellations.begin(task.key)
        task.began = time()
        self._serving.notify()
        try:
            return fn()
        finally:
            self._cancellations.end(task.key)
            del dask_thread.proceed, dask_thread.executor, dask_thread.seceded
            # Before the event loop hears of the result: it may hand over the same key again after that.
            self._call_soon(self._over, task)

    def _over(self, task: Task) -> None:
        """Context: the event loop."""
        if self._tasks.get(task.key) is task:
            del self._tasks[task.key]
        if task.slot:
            self._gone[task.slot] -= 1
            task.slot = ""
            self._serving.notify()  # there may be room to give back more

    def _call_soon(self, call: Callable[..., object], *args: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed, and so is the worker
            self._loop.call_soon_threadsafe(call, *args)

    # ------------------------------------------------------------------------------- slots

    def _could_begin_one_more(self) -> None:
        """The source. Context: a worker of cmwq that could begin something, and finds nothing."""
        if not self._look_due:
            self._look_due = True
            self._call_soon(self._look, self.queue.blocked())

    def _look(self, asleep: list[Any]) -> None:
        """Give back the slots of those that are blocked, if all slots are taken. Context: the event loop."""
        self._look_due = False
        state = self._worker.state
        if not self._tasks or len(state.executing) < state.nthreads:
            return  # Dask begins another as soon as it has one
        if not self._give_back(state, set(map(id, asleep))) and not self._repeats:
            self._repeats = True
            self._loop.call_later(PAUSE, self._look_again)

    def _look_again(self) -> None:
        self._repeats = False
        self._serving.notify()

    def _give_back(self, state: Any, asleep: set[int]) -> bool:
        """Give back what may be given back. Returns whether any slot was. Context: the event loop."""
        holders = [task for ts in list(state.executing) if (task := self._tasks.get(ts.key)) is not None]
        found = [task for task in holders if id(task.future) in asleep]
        room = self._max_blocked - self._gone["blocked"]
        for task in found[: max(room, 0)]:
            self._secede(task, "blocked")
        if found and room > 0:
            return True
        # All that have a slot compute, or wait aside because many of their kind do. Others may pass them.
        kinds = {task.kind for task in holders}
        if self._gone["passed"] >= PASSING * state.nthreads or not _other_kind_waits(state, kinds):
            return False
        if not holders:
            return False
        self._secede(min(holders, key=lambda task: task.began or inf), "passed")
        return True

    def _secede(self, task: Task, why: str) -> None:
        """Have Dask see the task as one that has left its slot. Context: the event loop."""
        self._leave(task, why)
        began = task.began or time()
        self._worker.handle_stimulus(
            SecedeEvent(key=task.key, compute_duration=time() - began, stimulus_id=f"cmwq-{why}-{time()}")
        )

    def _leave(self, task: Task, why: str) -> None:
        if not task.slot and self._tasks.get(task.key) is task:
            task.slot = why
            self._gone[why] += 1
            self.given_back += 1

    def leave_by_hand(self) -> None:
        """The calling thread's task secedes: Dask sends the event itself. Context: a task."""
        task = self._tasks.get(getattr(dask_task, "key", None))
        if task is not None:
            self._call_soon(self._leave, task, "seceded")

    def nr_blocked(self) -> int:
        """How many tasks are without a slot now, for whatever reason."""
        return sum(self._gone.values())

    # ------------------------------------------------------------------------------- end

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """Accept no more tasks, and cancel those that have not begun: Dask runs them elsewhere. Tasks that run are told
        that they are cancelled. wait: return when they have ended, or after 30 s; then they are left behind, and the
        process does not wait for them when it ends.
        """
        self._serving.stop()
        self._cancellations.cancel_all()
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        if wait:
            try:
                self.queue.close(LEFT_BEHIND)
                return
            except cmwq.CmwqTimeout as exc:
                _log.warning("a worker of Dask closes, and leaves tasks behind: %s", exc)
        if self.queue.nr_unfinished():
            self.queue.runtime.exit_timeout = 0.0  # Dask's own threads hold up no exit either

    def leave_to_end(self) -> None:
        """Watch no more, and let everything that was handed over end. Nothing is cancelled, and it does not wait."""
        self._serving.stop()
        super().shutdown(wait=False)


class _Seats:
    """What Dask uses of an executor's `_threads`: a task secedes by removing its thread."""

    def __init__(self, executor: DaskThreadPoolExecutor) -> None:
        self._executor = executor

    def remove(self, thread: object) -> None:
        """Raises KeyError if the task has seceded, by which `worker_client` knows."""
        if getattr(dask_thread, "seceded", False):
            raise KeyError(thread)
        dask_thread.seceded = True
        self._executor.leave_by_hand()

    def add(self, thread: object) -> None:
        dask_thread.seceded = False

    def __len__(self) -> int:
        return len(self._executor.queue.threads())

    def __iter__(self) -> Any:
        return iter(self._executor.queue.threads())


class _Rejoining:
    """Stands for the list of threads that want to rejoin: none of them has to wait."""

    def append(self, waiting: tuple[object, threading.Event]) -> None:
        dask_thread.seceded = False
        waiting[1].set()

    def __len__(self) -> int:
        return 0


def _other_kind_waits(state: Any, kinds: set[str]) -> bool:
    """Whether a task that is ready on this worker is of none of these kinds. Context: the event loop."""
    return any(key_split(ts.key) not in kinds for ts in state.ready)


def _key_of(fn: Callable[..., Any]) -> Any:
    """The key of the task that Dask hands over: a closure over the arguments of `_run_task`. None: it is no task."""
    code, cells = getattr(fn, "__code__", None), getattr(fn, "__closure__", None)
    if code is None or not cells:
        return None
    names = dict(zip(code.co_freevars, cells, strict=False))
    try:
        function, args = names["func"].cell_contents, names["args"].cell_contents
    except (KeyError, ValueError):
        return None
    return args[3] if getattr(function, "__name__", "") == "_run_task" and len(args) > 3 else None
