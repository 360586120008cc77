"""CPUs that come and go (D): taken offline, out of the process's affinity or cpuset, or by hand; and the CPU quota.

Guarantees: `check`, which the watchdog calls once a second while work is unfinished, notices each of these (D1). A pool
of several CPUs gets another target, and its workers' affinity follows (D6). A pool whose last CPU left is
*disassociated*: its workers may run anywhere, its concurrency is not managed any more, and no work goes there except
what was there already, or follows an execution there (D2, D3). When its CPU returns, even before the pool has drained,
surplus idle workers die, the others are bound again, and concurrency is managed again (D4). One CPU always remains
(D5). An ordered queue has its place on the pool of all CPUs, which always exists.

How: the duties of the trustee, which was a thread in early kernels, are a flag and a few functions here, as in later
kernels. The trustee also created workers and called rescuers until no work was left; the pool's own managers and
maydays do that here. A timer looks after every `trustee_cooldown` whether the pool has drained, and then dismisses the
workers that were created meanwhile.

Why not inotify: for files in cgroups and sysfs it tells of writes to them, not of what becomes of the values (a
parent's cpuset, another namespace, a hypervisor). It would also take a thread to read. Reading the files costs 0.1 ms a
second.

Why threads are bound again that were bound already: the kernel moves a thread off a CPU that leaves, and does not move
it back; a change of the cpuset overwrites the affinity. If the CPU was gone and back between two looks, only the
thread's own affinity tells: `_bind_strays`.

The letters are those of `pool`; H: `Hotplug._lock`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cmwq._core import checks
from cmwq._core.held import holding, holding_any, not_holding, outside
from cmwq._core.ranks import Rank
from cmwq._core.tables import lookup
from cmwq._pool import events

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.pools import PoolKey, Pools

UNMANAGED = 1 << 30
"""The target of a disassociated pool, in which all workers may run (D2)."""


class Hotplug:
    """Which CPUs a runtime uses, and which pool serves which of them."""

    def __init__(self, pools: Pools, cpus: Iterable[int] | None) -> None:
        """cpus: those to use; None: all that the process may use.

        Raises TypeError, ValueError: they are checked here, so none can be made with CPUs that were not.
        """
        self._pools = pools  # I
        self._wanted = None if cpus is None else _usable(checks.cpus(cpus), pools.host.cpus())  # I
        self._taken: frozenset[int] = frozenset()  # H: offline by hand
        self._cpus: tuple[int, ...] = ()  # H and R to change, read freely: CPUs noticed last; empty: none yet
        self._there: frozenset[int] = frozenset()  # H and R to change, read freely: the same CPUs as a set
        self._limit = 0  # H and R to change, read freely: the CPU limit noticed last; 0: none yet
        self._most: int | None = None  # H to change, read freely: the limit set by hand
        self._homes: dict[tuple[str, int], int] = {}  # R to change, read freely: (scope, CPU) to the pool's first CPU
        self._served: dict[tuple[str, int], tuple[int, ...]] = {}  # R to change, read freely: the CPUs of each home
        self._lock = pools.host.lock(Rank.HOTPLUG)  # F

    def take_over(self, other: Hotplug) -> None:
        """Replace `other`: what was set by hand there stays so. Context: nothing runs yet."""
        self._taken, self._most = other._taken, other._most

    def cpus(self) -> tuple[int, ...]:
        """Return the CPUs in use, as far as noticed."""
        return self._cpus or self._present()

    def uses(self, cpu: int) -> bool:
        """Return whether this CPU is in use, as far as noticed."""
        return cpu in (self._there or self._present())

    def limit(self) -> int:
        """Return the CPU quota, but at most the number of CPUs there are, as far as noticed."""
        return self._limit or self._allowed()

    @holding("self._pools.lock")
    def begin(self) -> None:
        """Note the CPUs and the limit. Context: nothing runs yet."""
        self._note(self._present(), self._allowed())
        self._learn({scope for scope, _ in self._served})  # with the CPUs just noted

    @holding("self._pools.lock")
    def _note(self, cpus: tuple[int, ...], limit: int) -> None:
        """Note what is in use from now on."""
        self._cpus, self._there, self._limit = cpus, frozenset(cpus), limit

    def forget(self) -> None:
        """Forget what was noticed, in the child of a fork. Another thread may have been in the middle of `_learn`."""
        self._lock = self._pools.host.lock(Rank.HOTPLUG)
        self._cpus, self._there, self._limit = (), frozenset(), 0
        self._homes, self._served = {}, {}

    def _present(self) -> tuple[int, ...]:
        """Read which CPUs are in use now: there, wanted, and not taken offline by hand; at least one."""
        there = self._pools.host.cpus()
        if self._wanted is not None:
            usable = frozenset(there)
            there = tuple(cpu for cpu in self._wanted if cpu in usable) or self._wanted[:1]
        return tuple(cpu for cpu in there if cpu not in self._taken) or there

    def _allowed(self) -> int:
        """Read how many CPUs' worth of time may be used now: what the system allows, at most the limit set by hand."""
        limit = self._pools.host.cpu_limit()
        return limit if self._most is None else min(limit, self._most)

    # ------------------------------------------------------------------------------- which pool

    @not_holding("self._pools.lock")
    def home(self, scope: str, cpu: int) -> int:
        """Return the first CPU of the pool that serves this CPU. It stays the same while CPUs come and go."""
        if scope == "cpu":
            return cpu
        home = lookup(self._homes, (scope, cpu))
        if home is None:
            with self._pools.lock:
                self._learn({scope})
                home = self._homes.setdefault((scope, cpu), cpu)
        return home

    @holding_any("self._pools.lock", "self._lock")
    def served_by(self, key: PoolKey) -> tuple[int, ...]:
        """Return the CPUs that the pool serves now; empty if its last CPU left."""
        scope, first, _ = key
        if first < 0:
            return self.cpus()
        if scope == "cpu":
            return (first,) if self.uses(first) else ()
        return lookup(self._served, (scope, first)) or ()

    def target(self, cpus: tuple[int, ...]) -> int:
        """Return how many workers may run on these CPUs (A2). Only this decides the target of a managed pool, but that
        the pool takes 0 for it while memory is short (`WorkerPool.set_target`).
        """
        return min(len(cpus), self.limit())

    @holding("self._pools.lock")
    def _learn(self, scopes: set[str]) -> None:
        """Add new CPUs to the groups they belong to. Known CPUs keep theirs: the files tell nothing of absent CPUs."""
        served: dict[tuple[str, int], list[int]] = {}
        for scope in scopes:
            for group in self._pools.host.cpu_groups(scope, self.cpus()):
                homes = [self._homes[scope, cpu] for cpu in group if (scope, cpu) in self._homes]
                for cpu in group:
                    home = self._homes.setdefault((scope, cpu), homes[0] if homes else group[0])
                    served.setdefault((scope, home), []).append(cpu)
        kept = {key: cpus for key, cpus in self._served.items() if key[0] not in scopes}
        self._served = kept | {key: tuple(sorted(cpus)) for key, cpus in served.items()}

    # ------------------------------------------------------------------------------- what changed

    def take(self, cpu: int) -> None:
        """Take a CPU offline by hand; again is harmless. Raises ValueError: it is not in use, or the last (D5)."""
        with self._lock:
            cpus = self._present()
            if cpu in self._taken:
                return
            if cpu not in cpus:
                raise ValueError(f"CPU {cpu!r} can't go offline: it is none of those in use, {cpus}")
            if len(cpus) == 1:
                raise ValueError(f"CPU {cpu} can't go offline: it is the last one (D5)")
            self._taken |= {cpu}
        self.check()

    def give_back(self, cpu: int) -> None:
        """Undo `take`. Raises ValueError if the CPU cannot be used for another reason."""
        with self._lock:
            self._taken -= {cpu}
            if cpu not in self._present():
                raise ValueError(
                    f"CPU {cpu!r} can't go online here: it is offline, or outside the process's affinity, cpuset or "
                    "the runtime's own CPUs; when it comes it will be noticed"
                )
        self.check()

    def restrict(self, most: int | None) -> None:
        """Use at most so many CPUs' worth of time; None: as many as the system allows."""
        with self._lock:
            self._most = most
        self.check()

    @outside
    def check(self) -> bool:
        """Notice what changed, and have the pools follow (D1). Returns whether anything changed."""
        with self._lock:
            now = self._present(), self._allowed()
            with self._pools.lock:
                sensor = self._pools.sensor
                if sensor is None or self._pools.closed:
                    return False
                pools = list(self._pools.items())
                changed = now != (self._cpus, self._limit)
                if changed:
                    self._note(*now)
                    self._learn({scope for scope, _ in self._served})
            if changed:
                sensor.cpus_changed()
                for key, pool in pools:
                    self._follow(pool, self.served_by(key))
            for _, pool in pools:
                _bind_strays(pool)
        return changed

    @holding("self._lock")
    def _follow(self, pool: WorkerPool, cpus: tuple[int, ...]) -> None:
        """Have a pool serve these CPUs; none: disassociate it (D2, D4, D6)."""
        events.cpus_change(pool, cpus)
        if not cpus:
            if not pool.disassociated:
                with pool.lock:
                    pool.disassociated = True
                    _look_after(pool)
            pool.serve(self._cpus, UNMANAGED)
        else:
            if pool.disassociated:
                with pool.lock:
                    pool.disassociated = False
                _dismiss_surplus(pool)
            pool.serve(cpus, self.target(cpus))


@holding("pool.lock")
def _look_after(pool: WorkerPool) -> None:
    """Look after `trustee_cooldown` whether the disassociated pool has drained."""
    if pool.alarms.drained.timer is None:  # one timer is enough for a CPU that comes and goes
        pool.alarms.drained.set(pool.host, pool.config.trustee_cooldown, partial(_end_if_drained, pool))


@outside
def _end_if_drained(pool: WorkerPool) -> None:
    """Dismiss the surplus workers if the pool has drained (D2); otherwise look again later. Context: the timer."""
    with pool.lock:
        pool.alarms.drained.cancel()
        if not pool.disassociated or pool.closing:
            return
        if pool.office.taken or not pool.is_quiet():
            _look_after(pool)
            return
    _dismiss_surplus(pool)


def _dismiss_surplus(pool: WorkerPool) -> None:
    """Let the idle workers die, except one in reserve (B1). While the pool had no CPU, it may have created a worker for
    each work (D4).
    """
    with pool.lock:
        for _ in pool.idle_list[1:]:
            pool.office.dismiss_coldest()
        pool.settle()


@holding("pool.runtime.hotplug._lock")
def _bind_strays(pool: WorkerPool) -> None:
    """Bind again the workers whose threads are bound to other CPUs than the pool's: by the kernel, or by a work (B4).

    A worker that executes something binds itself before its next item, because that work may have wished it so.
    """
    host = pool.host
    with pool.lock:
        cpus, served = pool.cpus, set(pool.cpus)
        threads = [(worker, worker.tid) for worker in pool.workers if worker.tid]
    strays = []
    for worker, tid in threads:
        bound = host.bound_to(tid)
        if bound is not None and set(bound) != served:
            strays.append(worker)
    if not strays:
        return
    idle = []
    with pool.lock:
        for worker in strays:
            if worker.item is None and worker in pool.workers:
                idle.append(worker.tid)
            elif not worker.is_rescuer:
                worker.stray = True
                worker.served = None  # so that it goes through `execute_specially`, which looks at `stray`
    for tid in idle:
        host.bind(cpus, tid)


def _usable(wanted: tuple[int, ...], there: tuple[int, ...]) -> tuple[int, ...]:
    """The CPUs that were wanted, of which one at least must be there: others may come. Raises ValueError."""
    if not set(wanted) & set(there):
        raise ValueError(f"cpus is {wanted}, and this process may use none of them, but {tuple(there)}")
    return wanted
