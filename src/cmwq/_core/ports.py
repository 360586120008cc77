"""The two ports through which the core uses the system: `Host` and `Sensor`.

They state what the core needs of threads, locks, time and CPUs, and how it learns that a worker sleeps. The real ones
are `cmwq._host.ThreadHost` and the sensors in `cmwq._sensor`; `cmwq.testing` has simulated ones. All durations are
seconds as float, on the host's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Set
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cmwq._core.held import holding, not_holding, outside

if TYPE_CHECKING:
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.runtime import Runtime


class Lock(Protocol):
    """A lock that no exception leaves locked, and that a thread never waits for twice. See `cmwq._host.locks`.

    `with lock:` raises `Reentered` if the thread already holds a lock of the same or a higher rank, be it in this code
    or in code that it interrupted as a finaliser or a signal handler. After a section that ended by an exception, and
    refused nothing (`REFUSALS`), `mend` is called with the lock held. If that raises, the next thread that takes
    the lock mends first.
    """

    mend: Callable[[], object] | None  # L, or while no other thread knows the lock

    @property
    def rank(self) -> int:
        """Its `Rank`."""
        ...

    def __enter__(self) -> None: ...
    @property
    def __exit__(self) -> Callable[..., None]:
        """For `with` alone. Reading it takes the lock; what it returns releases the lock when it is called or dies."""
        ...

    def by_hand(self) -> AbstractContextManager[None]:
        """For a `with` around code that uses `acquire` and `release`: after it the thread does not hold the lock."""
        ...

    def acquire(self) -> None:
        """For code that releases the lock and takes it again, in a `with` of `by_hand`."""
        ...

    def release(self) -> None: ...
    @property
    def stained(self) -> bool:
        """Will the next thread that takes it mend first, because `mend` was interrupted as well?"""
        ...

    def locked(self) -> bool:
        """Does any thread hold it?"""
        ...

    def held(self) -> bool:
        """Does the calling thread hold it?"""
        ...

    @holding("self")
    def wake(self, parker: Parker) -> None:
        """Unpark as soon as the lock is released. The thread that decides this cannot be interrupted before it is done.

        It may also be unparked at once: locks in Python always do so, locks in C when they have noted many already. So
        everything that the woken thread reads without the lock is written before.
        """
        ...


class Parker(Protocol):
    """The place where one thread parks until it is unparked. An unpark that comes early is kept (one of them). `park`
    may return for no reason. Only its thread parks; any thread may unpark.
    """

    def park(self, timeout: float = ..., spins: bool = ..., /) -> bool:
        """Wait to be unparked. False: `timeout` seconds have passed (-1: no limit). spins: the wait may be short, and
        the thread may stay awake for a moment without holding up others.
        """
        ...

    def unpark(self, *_: object) -> None:
        """Wake the thread. Arguments are ignored, so that this can be the callback of a weak reference."""
        ...


class Timer(Protocol):
    def cancel(self) -> object: ...


class Thread(Protocol):
    name: str

    def join(self, timeout: float | None = None) -> None: ...
    def is_alive(self) -> bool:
        """Its body runs, or is about to."""
        ...


class Traits(NamedTuple):
    """What a work may change of its thread. None: not known."""

    cpus: Set[int] | None
    nice: int | None
    mask: Set[int] | None
    """The signals that are blocked."""


class Memory(NamedTuple):
    """A limit on memory, and what counts against it, in bytes."""

    used: int
    limit: int
    source: str
    """In words, or a folder: whose limit it is."""


def is_lock(words: str) -> bool:
    """Return whether these words of `Host.waits_in` are about a lock, so that it may be the interpreter's own."""
    return words.startswith("waits for a lock")


class Awaited(NamedTuple):
    """A lock or the like that a thread waits for, as far as stacks tell."""

    words: str
    """What it is, and where it is waited for."""
    holder: int
    """The identifier of the thread that holds it; 0: not known."""
    holder_name: str
    """Of the thread, or of the worker if it is known to be one."""
    sure: bool
    """Whether that is sure; else it is a guess."""
    holder_does: str = ""
    """What the holder does, as words that follow a "which"; empty if it is a worker, or not known."""

    def instead_of(self, words: str) -> str:
        """What the thread waits for, where the system says these words: of a lock it knows neither name nor kind."""
        if not is_lock(words):
            return words
        held = f", {'held' if self.sure else 'probably held'} by {self.holder_name}" if self.holder else ""
        does = f", which {self.holder_does}" if held and self.holder_does else ""
        return f"waits for {self.words}{held}{does}"


class Process(NamedTuple):
    """What was seen of a process."""

    pid: int
    used: float
    """Seconds of CPU that all its threads have used so far."""
    runnable: bool
    """Whether its first thread runs, or waits for a CPU."""


class Host(Protocol):
    """Threads, locks, time and CPUs."""

    @property
    def universe(self) -> str | None:
        """Threads of all hosts that share this value may wait for each other. None: only threads of this host do."""
        ...

    def monotonic(self) -> float: ...
    def lock(self, rank: int, mend: Callable[[], object] | None = None) -> Lock:
        """A new lock of that `Rank`. mend: see `Lock`; it must not make a cycle with the lock's owner, or the cycle
        stays.
        """
        ...

    def inside(self) -> int:
        """The ranks of the locks that the calling thread holds, one bit per rank; 0: none."""
        ...

    def defer(self, fn: Callable[[], object]) -> None:
        """Call fn on this thread as soon as it holds no lock any more; now, if it holds none."""
        ...

    def reinit_lock(self, lock: Lock) -> Lock:
        """In the child of a fork: the same lock, released, whichever thread held it. If a section is still to end in
        the child, it ends as usual.
        """
        ...

    def forget(self) -> None:
        """In the child of a fork: drop all timers, and all that is known of the process."""
        ...

    def parker(self) -> Parker: ...
    def spawn(self, name: str, body: Callable[[], None], began: Callable[[Thread], object] | None = None) -> Thread:
        """Start a thread. Raises `ThreadLimit` if the system refuses one, or if the thread dies before it runs.

        All or nothing: once this has ended, even by an exception, either `began(thread)` has been called on the new
        thread, and the body runs; or neither will ever happen. So after a Ctrl-C the caller can rely on what `began`
        noted.
        """
        ...

    def thread_headroom(self, *, needed: bool = False) -> int:
        """How many more threads may be created before a cap (B6) is near.

        needed: nothing can go on without the thread, as with a pool's first worker and its reserve. Then no margin is
        kept, and the result is the number of threads before a cap is reached.
        """
        ...

    def call_later(self, delay: float, fn: Callable[[], None]) -> Timer:
        """Call fn after `delay` seconds on the host's one timer thread. fn must not block for long. Raises
        `ThreadLimit`.
        """
        ...

    def bind(self, cpus: Iterable[int], tid: int = 0) -> bool:
        """Bind a thread of this process (0: the calling one) to these CPUs. False: it cannot be done."""
        ...

    def bound_to(self, tid: int) -> Collection[int] | None:
        """The CPUs to which a thread is bound; None: not known, or the thread is gone."""
        ...

    def traits(self) -> Traits | None:
        """The traits of the calling thread. This must cost next to nothing."""
        ...

    def set_mask(self, mask: Iterable[int]) -> None:
        """Block these signals in the calling thread, and no others."""
        ...

    def thread_id(self) -> int:
        """The system's number of the calling thread."""
        ...

    def set_thread_name(self, name: str) -> None:
        """Name the calling thread for `top -H` and debuggers."""
        ...

    def set_nice(self, nice: int) -> bool:
        """Set the calling thread's nice value. False: not permitted, or not possible here."""
        ...

    def start_timers(self) -> None:
        """Ensure that `call_later` works from now on, even when no more thread can be created. Raises `ThreadLimit`."""
        ...

    @outside
    def stop_timers(self) -> None:
        """Drop all timers and end their thread. A later timer starts a new one."""
        ...

    def cpu_clock(self) -> Callable[[], float | None]:
        """A clock of the calling thread: any thread may call it for the seconds of CPU used so far; None: unknown."""
        ...

    def cpus(self) -> tuple[int, ...]:
        """The CPUs on which the process may run now, at least one."""
        ...

    def cpu_groups(self, scope: str, cpus: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """These CPUs in the groups of that scope. Each CPU is in one group."""
        ...

    def cpu_limit(self) -> int:
        """How many CPUs' worth of time the process may use now: `cpus()`, capped by the cgroup's quota, at least 1."""
        ...

    def current_cpu(self) -> int | None: ...
    def gil_enabled(self) -> bool: ...
    def stack_of(self, thread: Thread | None) -> tuple[str, ...]:
        """The stack of a thread, as of `traceback.format_stack`; empty: not known."""
        ...

    @outside
    def stacks_of(self, threads: Iterable[Thread | None], most: int) -> dict[int, tuple[str, ...]]:
        """The stacks of many threads at one moment, by the `id` of the thread object; at most so many innermost calls
        of each. Threads of which nothing is known are left out.
        """
        ...

    @outside
    def awaited(self, threads: Iterable[Thread | None]) -> dict[int, Awaited]:
        """What threads wait for in the way of locks, by the `id` of the thread object, as far as it can be told."""
        ...

    def epoch(self) -> float:
        """The time of day, in seconds since the epoch."""
        ...

    def process_cpu(self) -> float:
        """The CPU time of the process, in seconds."""
        ...

    @outside
    def memory(self) -> Memory | None:
        """The limit on memory of which the least is left; None: not known."""
        ...

    def has_children(self) -> bool:
        """Whether the process may have children. This must cost next to nothing."""
        ...

    def children_of(self, tid: int) -> tuple[int, ...]:
        """The processes that a thread of this process has started and that it or another thread has not waited for."""
        ...

    def processes_below(self, roots: tuple[int, ...]) -> Iterable[Process]:
        """These processes and those below them, as far as they can be seen."""
        ...

    def waits_in(self, tid: int) -> str:
        """What a thread waits for in the system, in words; empty: nothing, or not known."""
        ...

    def sleeps(self, tid: int) -> bool:
        """Whether a thread sleeps for a time that it chose itself, as in `time.sleep`; False: no, or not known."""
        ...

    def watch_process(self, runtime: Runtime) -> None:
        """From now on call `runtime.process_forked()` in the child of a fork, and `runtime.process_exits()` at exit, or
        at once if exit is over. The runtime is complete and has started nothing.
        """
        ...


class Sensor(Protocol):
    """Finds out which workers are blocked.

    A sensor may be late, repeat itself or miss a short sleep. The pool stays correct, and is only less precise.
    """

    @property
    def name(self) -> str: ...
    @property
    def reason(self) -> str:
        """Why this sensor was chosen, for `cmwq doctor`."""
        ...

    def lookout(self, pool: WorkerPool) -> Lookout:
        """Begin to watch a pool. Called once per pool, before its first worker."""
        ...

    def cpus_changed(self) -> None:
        """CPUs were added or removed."""
        ...

    def stop(self) -> None:
        """The runtime ends. Nothing is reported after this."""
        ...


class Lookout(Protocol):
    """A sensor's view of one pool. All methods but `lock`, `parker`, `attach`, `detach` and `sleeps` are called with
    pool.lock held.

    There are two ways to report. A sensor that can run Python takes pool.lock, calls `pool.worker_sleeping(worker)` or
    `pool.worker_running(worker)`, then `pool.kick()`, and releases the lock. A sensor that cannot (the sentinel) marks
    what it sees and unparks the reserve that it was armed with; that worker calls `deliver`, which passes the marks on.
    """

    def lock(self) -> Lock:
        """The pool's lock. Waiting for it should not be taken for blocking, if that can be avoided."""
        ...

    def parker(self) -> Parker:
        """A parker for a new worker. Raises ThreadLimit."""
        ...

    def take_back(self, parker: Parker) -> None:
        """The thread for which this parker was made did not start."""
        ...

    def attach(self, worker: Worker) -> None:
        """Called on the worker's own thread, before its first item. Must cost next to nothing.

        It may set `worker.ended`, which is called with pool.lock held whenever the worker has ended an item: what was
        seen of that item is void.
        """
        ...

    @not_holding("worker.pool.lock")
    def detach(self, worker: Worker) -> None:
        """Called on the worker's own thread after its last item, or once that thread has ended. Its parker is taken
        back.
        """
        ...

    def arm(self, reserve: Worker | None) -> None:
        """Work waits and no worker is on its way to it: from now on, wake `reserve` for it if a worker blocks. None:
        stop looking.
        """
        ...

    def deliver(self) -> None:
        """Call `worker_sleeping` and `worker_running` for what was marked."""
        ...

    def remind(self) -> None:
        """What was delivered may not have been noted: deliver again all that holds now."""
        ...

    def review(self, worker: Worker, enough: int) -> None:
        """The worker would go idle because too many run: report those of the others that sleep by now.

        It does go idle if `enough` others were seen to run, so the search may end there. May do nothing.
        """
        ...

    @outside
    def sleeps(self, worker: Worker) -> bool:
        """Whether the worker's thread sleeps right now; also if that can't be told."""
        ...

    def exempt(self, worker: Worker, flag: bool) -> None:
        """While the flag is set, do not watch this worker: the pool knows better (a hint, or a CPU-intensive item)."""
        ...

    def set_target(self, target: int) -> None: ...
    def set_cpus(self, cpus: tuple[int, ...]) -> None:
        """The CPUs on which the pool's workers run from now on."""
        ...
