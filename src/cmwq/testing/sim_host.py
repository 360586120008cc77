"""The simulated host: threads that run one at a time, a clock that only timers move, CPUs, and child processes.

Guarantees: simulated threads change only at seams, so a run is a function of its seed. A state in which no thread can
run and no timer is due is reported as SimDeadlock, with what each thread waits for.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

from cmwq._core.held import about_to_take, accounts, holding
from cmwq._core.here import be_of
from cmwq._core.ports import Memory, Process
from cmwq._errors import REFUSALS, Refused, ThreadLimit

if TYPE_CHECKING:
    from cmwq._workqueue.runtime import Runtime

_TIME_BOUND = 60.0  # real seconds a thread may run without reaching a seam
_OFTEN_ENOUGH = 100  # a thread is told that the run is over


class SimDeadlock(AssertionError):
    """No thread can run, and no timer is due: a wake-up was lost."""


class SimStopped(BaseException):
    """Ends the simulated threads when the run has failed or is over."""


class SimThread:
    """A real thread that runs only while it has the baton."""

    def __init__(self, host: SimHost, name: str, body: Callable[[], None]) -> None:
        self.name = name
        self.waits_for = ""
        self.ended = False
        self.tid = 0
        self.cpus: tuple[int, ...] = ()
        self.burnt = 0.0
        self.burns_since: float | None = None
        self._host = host
        self._body = body
        self._joiners: list[SimThread] = []
        self.holds: list[SimLock] = []
        self.deferred: deque[Callable[[], object]] = deque()
        self.ready = False  # it is among those that can run
        self._gone = threading.Event()  # it has ended, or never will: see `SimHost.leave`
        self._nr_told = 0  # how often it was told that the run is over
        self._baton = allocate_lock()  # held; the thread that hands over releases it
        self._baton.acquire()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        self._baton.acquire()
        be_of(self._host)  # a real lock of a work, held across a seam, would stop the simulation
        try:
            if not self._host.stopped:
                self._body()
        except SimStopped:
            pass
        except BaseException as exc:
            self._host.fail(exc)
        self.ended = True
        for joiner in self._joiners:
            self._host.make_ready(joiner)
        self._host.pass_on()
        self._gone.set()

    def is_alive(self) -> bool:
        return not self.ended

    def cpu_time(self) -> float:
        """Seconds of simulated CPU that this thread has used."""
        return self.burnt + (0.0 if self.burns_since is None else self._host.now - self.burns_since)

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended. For simulated threads only; `timeout` is ignored."""
        me = self._host.me()
        while not self.ended:
            self._joiners.append(me)
            self._host.block(f"join of {self.name}")


class SimLock:
    """A lock like `cmwq._host.locks.Lock`: it has a rank and a holder, refuses to be entered again, and mends.

    Taking locks out of order is always an error here, not only in the debug mode of `cmwq._core.held`.
    """

    def __init__(self, host: SimHost, rank: int, mend: Callable[[], object] | None = None) -> None:
        self._host = host
        self.rank = rank
        self.mend = mend
        self.holder: SimThread | None = None
        self._queue: deque[SimThread] = deque()
        self._to_wake: list[SimParker] = []

    def by_hand(self) -> AbstractContextManager[None]:
        return nullcontext()  # no exception comes between two steps here

    def acquire(self) -> None:
        self._take(3)

    def _take(self, depth: int) -> None:
        me = self._host.current
        if me is None:  # before the run begins, on the test's own thread
            return
        about_to_take(self.rank, self._host.inside(), depth)
        if me.holds and me.holds[-1].rank >= self.rank:
            raise Refused(f"rank {self.rank} is taken while rank {me.holds[-1].rank} is held")
        self._host.seam()
        while self.holder is not None:
            self._queue.append(me)
            self._host.block(f"a lock held by {self.holder.name}")
        self.holder = me
        me.holds.append(self)

    def release(self) -> None:
        me = self._host.current
        if me is None:
            return
        assert self.holder is me, "released by another than its holder"
        self.holder = None
        me.holds.remove(self)
        if self._queue:
            self._host.make_ready(self._queue.popleft())
        woken, self._to_wake = self._to_wake, []
        for parker in woken:
            parker.ring()
        self._host.seam()
        while me.deferred and not me.holds:
            me.deferred.popleft()()

    def held(self) -> bool:
        host = self._host
        if host.current is None or host.checking:
            return True  # nothing else moves: before the run, and while invariants are checked
        if host.stopped:
            host.leave()  # all threads run on to their ends, and none is the current one
        return self.holder is host.current

    @property
    def stained(self) -> bool:
        return False

    def locked(self) -> bool:
        return self.holder is not None

    @holding("self")
    def wake(self, parker: Any) -> None:
        self._to_wake.append(parker)

    def __enter__(self) -> None:
        self._take(3)

    @property
    def __exit__(self) -> Callable[..., None]:
        return self._leave

    def _leave(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is not None and issubclass(exc_type, SimStopped):
            self.holder = None
            return
        if exc_type is not None and not issubclass(exc_type, REFUSALS) and self.mend is not None:
            self.mend()
        self.release()


class SimParker:
    def __init__(self, host: SimHost) -> None:
        self._host = host
        self._token = False
        self._sleeper: SimThread | None = None
        self._wake_up: SimTimer | None = None  # of a thread that was woken and does not run yet

    def park(self, timeout: float = -1, spins: bool = False) -> bool:
        host = self._host
        host.seam()
        timer = None
        if not self._token:
            me = self._sleeper = host.me()
            if timeout >= 0:
                timer = host.wake_later(timeout, me)
            host.block("unpark")
            self._sleeper = None
        for on_its_way in (timer, self._wake_up):
            if on_its_way is not None:
                on_its_way.cancel()
        self._wake_up = None
        token, self._token = self._token, False
        return token

    def unpark(self, *_: object) -> None:
        self.ring()
        self._host.seam()

    def ring(self) -> None:
        """Unpark, called by code that is not on a simulated thread."""
        self._token = True
        if self._sleeper is not None and self._wake_up is None:
            if self._host.wake_cost:
                self._wake_up = self._host.wake_later(self._host.wake_cost, self._sleeper)
            else:
                self._host.make_ready(self._sleeper)


class SimTimer:
    def __init__(self, fn: Callable[[], None]) -> None:
        self.fn: Callable[[], None] | None = fn

    def cancel(self) -> None:
        self.fn = None


class SimHost:
    """The core's `Host`, simulated. One host serves one run only, and not several tests at a time.

    spawn_cost: seconds for which creating a thread holds up its creator. wake_cost: seconds from an unpark until the
    sleeper runs. Neither uses a CPU.
    """

    universe = None

    def __init__(self, cpus: int = 1, seed: int | None = None, gil: bool = False) -> None:
        self.gil = gil
        self.now = 0.0
        self.current: SimThread | None = None
        self.stopped = False
        self.failure: BaseException | None = None
        self.steps = 0
        self.on_step: list[Callable[[], None]] = []
        self.check_every = 1  # steps between two calls of `on_step`
        self.refuse: Callable[[str], bool] = lambda name: False  # whether the thread of that name is refused
        self.spawn_cost = 0.0
        self.wake_cost = 0.0
        self.here: int | None = 0  # the CPU that it reports for each calling thread
        self.memory_limit: int | None = None  # bytes; None: not known
        self.memory_used = 0
        self._cpus = tuple(range(cpus))
        self._free_cpus = cpus
        self._cpu_queue: deque[SimThread] = deque()
        self._random = None if seed is None else random.Random(seed)
        self._ready: deque[SimThread] = deque()
        self._threads: list[SimThread] = []
        self._agenda: list[tuple[float, int, SimTimer]] = []
        self._numbers = itertools.count()
        self._due: deque[Callable[[], None]] = deque()
        self._timer_thread: SimThread | None = None
        self._children: dict[int, list[SimThread]] = {}  # by the number of the thread that started them
        self._over = threading.Event()
        self.checking = False
        self._next_check = 0  # at which step

    # ------------------------------------------------------------------------------- Host

    def monotonic(self) -> float:
        return self.now

    def lock(self, rank: int, mend: Callable[[], object] | None = None) -> SimLock:
        return SimLock(self, rank, mend)

    def reinit_lock(self, lock: Any) -> SimLock:
        return SimLock(self, lock.rank, lock.mend)

    def inside(self) -> int:
        return sum(1 << lock.rank for lock in self.current.holds) if self.current is not None else 0

    def defer(self, fn: Callable[[], object]) -> None:
        if self.inside():
            self.me().deferred.append(fn)
        else:
            fn()

    def forget(self) -> None:
        pass

    def parker(self) -> SimParker:
        return SimParker(self)

    def spawn(self, name: str, body: Callable[[], None], began: Callable[[Any], object] | None = None) -> SimThread:
        self.seam()
        if self.refuse(name):
            raise ThreadLimit(f"the script refuses thread {name}")
        if self.spawn_cost and self.current is not None:
            self.sleep(self.spawn_cost)
        thread = self._start(name, body)
        if began is not None:
            began(thread)
        self.make_ready(thread)
        self.seam()
        return thread

    def thread_headroom(self, *, needed: bool = False) -> int:
        return 1 << 30

    def call_later(self, delay: float, fn: Callable[[], None]) -> SimTimer:
        """Call fn after `delay` seconds on the simulated timer thread. fn may block there."""
        if self._timer_thread is None:
            self._timer_thread = self._start("timers", self._run_timers)
            self.make_ready(self._timer_thread)
        thread = self._timer_thread

        def due() -> None:
            self._due.append(fn)
            self.make_ready(thread)

        return self._at(delay, due)

    def bind(self, cpus: Iterable[int], tid: int = 0) -> bool:
        thread = self._threads[tid - 1] if tid else self.me()
        thread.cpus = tuple(cpus)
        return True

    def bound_to(self, tid: int) -> tuple[int, ...]:
        return self._threads[tid - 1].cpus

    def traits(self) -> None:
        pass  # works change no simulated thread

    def set_mask(self, mask: Iterable[int]) -> None:
        pass

    def thread_id(self) -> int:
        return self.me().tid

    def stack_of(self, thread: Any) -> tuple[str, ...]:
        return ()

    def stacks_of(self, threads: Iterable[Any], most: int) -> dict[int, tuple[str, ...]]:
        return {}

    def awaited(self, threads: Iterable[Any]) -> dict[int, Any]:
        return {}

    def epoch(self) -> float:
        return self.now

    def process_cpu(self) -> float:
        return sum(thread.cpu_time() for thread in self._threads)

    def memory(self) -> Memory | None:
        self.seam()
        return None if self.memory_limit is None else Memory(self.memory_used, self.memory_limit, "the script")

    def has_children(self) -> bool:
        return bool(self._children)

    def children_of(self, tid: int) -> tuple[int, ...]:
        self.seam()
        return tuple(child.tid for child in self._children.get(tid, ()))

    def processes_below(self, roots: tuple[int, ...]) -> Iterator[Process]:
        for pid in roots:
            self.seam()
            thread = self._threads[pid - 1]
            runnable = thread.ready or thread.burns_since is not None or thread in self._cpu_queue
            yield Process(pid, thread.cpu_time(), runnable)
            yield from self.processes_below(tuple(child.tid for child in self._children.get(pid, ())))

    def sleeps(self, tid: int) -> bool:
        return self._threads[tid - 1].waits_for.endswith("of sleep")

    def waits_in(self, tid: int) -> str:
        return self._threads[tid - 1].waits_for

    def set_thread_name(self, name: str) -> None:
        pass

    def set_nice(self, nice: int) -> bool:
        return True

    def start_timers(self) -> None:
        pass

    def stop_timers(self) -> None:
        self._agenda.clear()

    def cpu_clock(self) -> Callable[[], float | None]:
        me = self.me()
        return lambda: me.cpu_time()

    def cpus(self) -> tuple[int, ...]:
        return self._cpus

    def cpu_groups(self, scope: str, cpus: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Pairs of CPUs share a core, fours a cache, eights a NUMA node."""
        width = {"cpu": 1, "smt": 2, "cache": 4, "numa": 8}.get(scope, cpus[-1] + 1)
        return tuple(tuple(group) for _, group in itertools.groupby(cpus, lambda cpu: cpu // width))

    def cpu_limit(self) -> int:
        return len(self._cpus)

    def current_cpu(self) -> int | None:
        return self.here

    def gil_enabled(self) -> bool:
        return self.gil

    def watch_process(self, runtime: Runtime) -> None:
        pass  # there is no process that forks or exits

    # ------------------------------------------------------------------------------- what a script does

    def refuse_during(self, *windows: tuple[float, float]) -> None:
        """Refuse threads within each window, from its first to its second time, in seconds."""
        self.refuse = lambda name: any(begin <= self.now < end for begin, end in windows)

    def set_cpus(self, cpus: Iterable[int]) -> None:
        """Set the CPUs, at least one. A thread that burns a CPU that leaves burns it to the end."""
        before, self._cpus = len(self._cpus), tuple(sorted(set(cpus)))
        assert self._cpus, "a host without a CPU"
        self._free_cpus += len(self._cpus) - before
        while self._cpu_queue and self._free_cpus > 0:
            self._free_cpus -= 1
            self.make_ready(self._cpu_queue.popleft())

    # ------------------------------------------------------------------------------- what simulated threads do

    def sleep(self, seconds: float) -> None:
        """Be off the CPU for so many seconds. No sensor is told: see `Simulation.sleep`."""
        me = self.me()
        self.wake_later(seconds, me)
        self.block(f"{seconds * 1000:g} ms of sleep")

    def start_child(self, body: Callable[[], None]) -> SimThread:
        """Start a process, a child of the current thread; `body` runs as the process. It is gone when it has ended."""
        children = self._children.setdefault(self.me().tid, [])

        def live() -> None:
            body()
            children.remove(child)

        child = self._start(f"child {len(self._threads)}", live)
        children.append(child)
        self.make_ready(child)
        self.seam()
        return child

    def burn(self, seconds: float) -> None:
        """Use a CPU for so many seconds. CPUs are given first come, first served, and not taken away."""
        me = self.me()
        if self._free_cpus <= 0:
            self._cpu_queue.append(me)
            self.block("a CPU")  # the thread that leaves it hands it over
        else:
            self._free_cpus -= 1
        self.wake_later(seconds, me)
        me.burns_since = self.now
        self.block(f"{seconds * 1000:g} ms of CPU")
        me.burnt, me.burns_since = me.cpu_time(), None
        if self._cpu_queue and self._free_cpus >= 0:
            self.make_ready(self._cpu_queue.popleft())
        else:
            self._free_cpus += 1
        self.seam()

    # ------------------------------------------------------------------------------- scheduling

    def me(self) -> SimThread:
        """The simulated thread that runs."""
        assert self.current is not None, "not on a simulated thread"
        return self.current

    def make_ready(self, thread: SimThread) -> None:
        """Let the thread run when it is its turn."""
        if not (thread.ready or thread.ended):
            thread.ready = True
            self._ready.append(thread)

    def wake_later(self, delay: float, thread: SimThread) -> SimTimer:
        """Call `make_ready` in so many seconds."""
        return self._at(delay, lambda: self.make_ready(thread))

    def seam(self) -> None:
        """Be a point at which another thread may go first."""
        if self.current is None:
            return
        self._step()
        if self._random is not None and self._ready and self._random.random() < 0.5:
            me = self.current
            next_ = self._pick()
            self.make_ready(me)
            self._hand_over(me, next_)

    def pause(self) -> None:
        """Let the threads that can run go first, at least one of them."""
        if self.current is not None and self._ready:
            me, next_ = self.current, self._pick()
            self.make_ready(me)
            self._hand_over(me, next_)

    def block(self, waits_for: str) -> None:
        """Stop the current thread until `make_ready`. waits_for: shown in a SimDeadlock."""
        self._step()
        me = self.me()
        me.waits_for = waits_for
        self._hand_over(me, self._next())
        me.waits_for = ""

    def pass_on(self) -> None:
        """Hand over to the next thread: the current one has ended."""
        if self.stopped:
            return
        try:
            next_ = self._next()
        except SimStopped:
            return
        self.current = next_
        next_._baton.release()

    def fail(self, exc: BaseException) -> None:
        """End the run. It raises the first exception that was given here."""
        if self.failure is None:
            self.failure = exc
        self.stop()

    def stop(self) -> None:
        """End the run, and with it all simulated threads."""
        if not self.stopped:
            self.stopped = True
            for thread in self._threads:
                if thread._baton.locked():
                    thread._baton.release()
            self._over.set()

    def run(self, main: Callable[[], None]) -> None:
        """Run `main` as the first simulated thread until it returns."""

        def body() -> None:
            main()
            self._check()
            self.stop()

        accounts.append(self._inside_here)
        try:
            self._run(body)
        finally:
            accounts.remove(self._inside_here)

    def _inside_here(self) -> int:
        """`inside`, if a simulated thread asks and it is its turn; else 0."""
        me = self.current
        mine = me is not None and me._thread is threading.current_thread()
        return self.inside() if mine and not self.stopped else 0

    def _run(self, body: Callable[[], None]) -> None:
        self.current = self._start("main", body)
        self.current._baton.release()
        steps = -1
        while not self._over.wait(_TIME_BOUND):
            if self.steps == steps:
                self.fail(AssertionError(f"{self.current and self.current.name} did not come to a seam"))
            steps = self.steps
        for thread in self._threads:
            if thread._gone.wait(_TIME_BOUND) and thread.ended:
                thread._thread.join(_TIME_BOUND)
        self.current = None  # whatever a finaliser still does is outside of the run
        if self.failure is not None:
            raise self.failure

    def _start(self, name: str, body: Callable[[], None]) -> SimThread:
        thread = SimThread(self, name, body)
        self._threads.append(thread)
        thread.tid = len(self._threads)
        thread._thread.start()
        return thread

    def _at(self, delay: float, fn: Callable[[], None]) -> SimTimer:
        timer = SimTimer(fn)
        heapq.heappush(self._agenda, (self.now + delay, next(self._numbers), timer))
        return timer

    def _run_timers(self) -> None:
        while True:
            while self._due:
                self._due.popleft()()
            self.block("timers")

    def _pick(self) -> SimThread:
        ready = self._ready
        if self._random is not None and len(ready) > 1:
            ready.rotate(-self._random.randrange(len(ready)))
        thread = ready.popleft()
        thread.ready = False
        return thread

    def _next(self) -> SimThread:
        while not self._ready:
            if not self._agenda:
                waits = ", ".join(f"{t.name}: {t.waits_for}" for t in self._threads if not t.ended)
                self.fail(SimDeadlock(f"at {self.now * 1000:g} ms nobody can run: {waits}"))
                raise SimStopped
            self.now, _, timer = heapq.heappop(self._agenda)
            if timer.fn is not None:
                timer.fn()
        return self._pick()

    def _hand_over(self, me: SimThread, next_: SimThread) -> None:
        if next_ is me:
            return
        self.current = next_
        next_._baton.release()
        me._baton.acquire()
        if self.stopped:
            self.leave()

    def leave(self) -> NoReturn:
        """Raises SimStopped, which ends the calling thread: the run is over. A thread that survives whatever is raised
        in it, as a rescuer does, is left asleep for ever.
        """
        here = threading.current_thread()
        for thread in self._threads:
            if thread._thread is here:
                thread._nr_told += 1
                if thread._nr_told > _OFTEN_ENOUGH:
                    thread._gone.set()
                    threading.Event().wait()
        raise SimStopped

    def _step(self) -> None:
        if self.stopped:
            self.leave()
        self.steps += 1
        if self.steps >= self._next_check:
            self._check()

    def _check(self) -> None:
        self._next_check = self.steps + self.check_every
        if not self.checking:
            self.checking = True
            try:
                for check in self.on_step:
                    check()
            except BaseException as exc:
                self.fail(exc)
                raise SimStopped from None
            finally:
                self.checking = False
