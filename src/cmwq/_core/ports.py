"""The two doors through which the core meets the world: `Host` and `Sensor`.

Its one job: say what the core needs of threads, locks, time and CPUs, and of whoever knows that a worker sleeps. The
real ones are `cmwq._host.ThreadHost` and the sensors in `cmwq._sensor`; `cmwq.testing` has simulated ones. All
durations are seconds as float, on the host's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Set
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cmwq._core.held import holding, not_holding, outside

if TYPE_CHECKING:
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.runtime import Runtime


class Lock(Protocol):
    """A lock that no exception leaves behind, and that a thread never waits for twice. See `cmwq._host.locks`.

    `with lock:` raises `Reentered` if the thread holds a lock of the same or of a higher rank; it, or what it
    interrupted as a finaliser or a signal handler. After a section that ended by an exception other than a `CmwqError`
    `mend` is called, with the lock held. If that raises, whoever takes the lock next mends first.
    """

    mend: Callable[[], object] | None  # L, or before others know the lock

    @property
    def rank(self) -> int:
        """A `Rank`."""
        ...

    def __enter__(self) -> None: ...
    @property
    def __exit__(self) -> Callable[..., None]:
        """For `with` alone: to read it is to take the lock, and what it returns, when it is called or dies, lets go."""
        ...

    def acquire(self) -> None:
        """For who can't say `with`, and sees to it that `release` follows, whatever happens."""
        ...

    def release(self) -> None: ...
    def locked(self) -> bool:
        """Does anybody hold it?"""
        ...

    def held(self) -> bool:
        """Does this thread hold it?"""
        ...

    @holding("self")
    def wake(self, parker: Parker) -> None:
        """Unpark as soon as the lock is free: whoever decided it can't be interrupted before it is done.

        It may be unparked at once: those in Python do so always, those in C where they have noted many already. So what
        the thread that wakes looks at without the lock is written before.
        """
        ...


class Parker(Protocol):
    """Where one thread sleeps until told. An early unpark is kept (once); returning for no reason is allowed."""

    def park(self, timeout: float = ..., spins: bool = ..., /) -> bool:
        """False: `timeout` seconds have passed (-1: never). spins: it may not take long, and to stay awake for a moment
        is in nobody's way."""
        ...

    def unpark(self, *_: object) -> None:
        """Whatever it is given: so it can be the callback of a weak reference."""
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
    """Signals that are blocked."""


class Host(Protocol):
    """Threads, locks, time and CPUs."""

    @property
    def universe(self) -> str | None:
        """Threads of hosts that have this in common may wait for each other. None: only its own do."""
        ...

    def monotonic(self) -> float: ...
    def lock(self, rank: int, mend: Callable[[], object] | None = None) -> Lock:
        """A new lock of that `Rank`. mend: see `Lock`; it makes no cycle with what owns the lock, or that stays."""
        ...

    def inside(self) -> int:
        """Bits of the ranks of the locks that the calling thread holds; 0: none."""
        ...

    def defer(self, fn: Callable[[], object]) -> None:
        """Call fn on this thread as soon as it holds no lock any more; now, if it holds none."""
        ...

    def reinit_lock(self, lock: Lock) -> Lock:
        """In the child of a fork: the same lock, free whoever held it. A section that is still to end there does so."""
        ...

    def forget(self) -> None:
        """In the child of a fork: timers and what is known of the process are void."""
        ...

    def parker(self) -> Parker: ...
    def spawn(self, name: str, body: Callable[[], None], began: Callable[[Thread], object] | None = None) -> Thread:
        """Start a thread. Raises `ThreadLimit` where the system refuses one, and where one dies before it runs.

        All or nothing: once this has ended, however it ended, either `began(thread)` has been called, on the new
        thread, and the body runs; or neither ever will be. So who must know after Ctrl-C looks at what `began` noted.
        """
        ...

    def thread_headroom(self, *, needed: bool = False) -> int:
        """How many more threads may be created before a cap (B6) is near.

        needed: nothing can go on without it, so there need be no margin: before a cap is reached. A pool's first
        worker and its reserve are such.
        """
        ...

    def call_later(self, delay: float, fn: Callable[[], None]) -> Timer:
        """Call fn on the host's one timer thread. fn must not block for long. Raises `ThreadLimit`."""
        ...

    def bind(self, cpus: Iterable[int], tid: int = 0) -> bool:
        """Bind a thread of this process (0: the calling one) to these CPUs. False: it can't be done."""
        ...

    def bound_to(self, tid: int) -> Collection[int] | None:
        """The CPUs to which a thread is bound; None: not known, or it is gone."""
        ...

    def traits(self) -> Traits | None:
        """Those of the calling thread. It must cost next to nothing."""
        ...

    def set_mask(self, mask: Iterable[int]) -> None:
        """Block these signals in the calling thread, and no others."""
        ...

    def thread_id(self) -> int:
        """The system's name for the calling thread."""
        ...

    def set_thread_name(self, name: str) -> None:
        """Name the calling thread for `top -H` and debuggers."""
        ...

    def set_nice(self, nice: int) -> bool:
        """Set the calling thread's nice value. False: not permitted, or not possible here."""
        ...

    def start_timers(self) -> None:
        """See to it that `call_later` works from now on, even when no more thread can be had. Raises `ThreadLimit`."""
        ...

    @outside
    def stop_timers(self) -> None:
        """Drop all timers and end their thread. A later timer starts it anew."""
        ...

    def cpu_clock(self) -> Callable[[], float | None]:
        """A clock that tells, to any thread, how many seconds of CPU the calling thread has used; None: unknown."""
        ...

    def cpus(self) -> tuple[int, ...]:
        """Those the process may run on now, at least one."""
        ...

    def cpu_groups(self, scope: str, cpus: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """These CPUs, in the groups of that scope. Each is in one."""
        ...

    def cpu_limit(self) -> int:
        """How many CPUs' worth of time the process may use now: `cpus()`, capped by the cgroup's quota, at least 1."""
        ...

    def current_cpu(self) -> int | None: ...
    def gil_enabled(self) -> bool: ...
    def stack_of(self, thread: Thread | None) -> tuple[str, ...]:
        """Where a thread is, as `traceback.format_stack`; empty: not known."""
        ...

    def waits_in(self, tid: int) -> str:
        """What a thread waits for in the system, in words; empty: nothing, or not known."""
        ...

    def watch_process(self, runtime: Runtime) -> None:
        """From now on: call `runtime.process_forked()` in the child of a fork, and `runtime.process_exits()` at exit,
        at once if that is over. The runtime is complete and has started nothing.
        """
        ...


class Sensor(Protocol):
    """Who is blocked.

    A sensor may be late, may repeat itself, may miss a short sleep; the pool stays correct, only less sharp.
    """

    @property
    def name(self) -> str: ...
    @property
    def reason(self) -> str:
        """Why this one, for `cmwq doctor`."""
        ...

    def lookout(self, pool: WorkerPool) -> Lookout:
        """Begin to watch a pool. Called once per pool, before its first worker."""
        ...

    def cpus_changed(self) -> None:
        """CPUs came or went."""
        ...

    def stop(self) -> None:
        """End of the runtime. Nothing is reported afterwards."""
        ...


class Lookout(Protocol):
    """A sensor's view of one pool. All but `lock`, `parker`, `attach` and `detach` are called with pool.lock
    held.

    Two ways to report. A sensor that can run Python takes pool.lock, calls `pool.worker_sleeping(worker)` or
    `pool.worker_running(worker)`, then `pool.kick()`, and releases the lock. One that can't
    (the sentinel) marks what it sees and unparks the reserve it was armed with; that worker calls `deliver`, which
    passes the marks on.
    """

    def lock(self) -> Lock:
        """The pool's lock. Waiting for it must not be taken for blocking if that can be helped."""
        ...

    def parker(self) -> Parker:
        """A parker for a new worker. Raises ThreadLimit."""
        ...

    def take_back(self, parker: Parker) -> None:
        """No thread came to be for which it was made."""
        ...

    def attach(self, worker: Worker) -> None:
        """On the worker's own thread, before its first item.

        May set `worker.ended`, which is called with pool.lock held whenever it ended an item: whatever was seen of it
        is void. It must cost next to nothing.
        """
        ...

    @not_holding("worker.pool.lock")
    def detach(self, worker: Worker) -> None:
        """On the worker's own thread, after its last item, or once that has ended. Its parker is taken back."""
        ...

    def arm(self, reserve: Worker | None) -> None:
        """Work waits that no worker is on its way to, and `reserve` is who to wake for it. None: stop looking."""
        ...

    def deliver(self) -> None:
        """Call `worker_sleeping` and `worker_running` for what was marked."""
        ...

    def remind(self) -> None:
        """What was delivered may not have been understood: deliver again all that holds now."""
        ...

    def review(self, worker: Worker, enough: int) -> None:
        """The worker would go idle because too many run: if others of those sleep by now, say so.

        It does go idle if `enough` others were seen to run, so there is no need to look further. May do nothing.
        """
        ...

    def exempt(self, worker: Worker, flag: bool) -> None:
        """While set, the pool knows better (a hint, a CPU-intensive item): do not look at this worker."""
        ...

    def set_target(self, target: int) -> None: ...
    def set_cpus(self, cpus: tuple[int, ...]) -> None:
        """Where the pool's workers run from now on."""
        ...
