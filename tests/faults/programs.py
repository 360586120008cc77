"""The programs that suffer faults. Each is a class: the methods are what it can be asked, `machine.Program` asks."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import random
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import cmwq
from cmwq._host import caps

PATIENCE = 50.0  # seconds; less than the test's, so that it hears what is wrong


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def threads_left(than: int = 1) -> int:
    """More than so many. A thread that was joined may still be on its way out of the kernel."""
    deadline = time.monotonic() + 10
    while threads() > than and time.monotonic() < deadline:
        time.sleep(0.01)
    return threads() - than


class Log(logging.Handler):
    """What was logged to "cmwq"."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logging.getLogger("cmwq").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Common:
    """What every program can be asked."""

    runtime: cmwq.Runtime

    def __init__(self, **config: float) -> None:
        self.config = cmwq.Config(**config)  # type: ignore[arg-type]
        self.log = Log()
        self.stalls: list[str] = []

    def make_runtime(self, **options: Any) -> cmwq.Runtime:
        runtime = cmwq.Runtime(config=self.config, **options)
        runtime.on_stall = lambda stall: self.stalls.append(str(stall))
        return runtime

    def snapshot(self) -> dict[str, Any]:
        return self.runtime.snapshot().to_dict()

    def check_cpus(self) -> bool:
        return self.runtime.check_cpus()

    def reports(self) -> dict[str, Any]:
        """Of stalls: what `on_stall` was told, and what was logged."""
        return {"told": self.stalls, "logged": self.log.lines}

    def close(self) -> int:
        """How many threads are left."""
        self.runtime.check_invariants()
        self.runtime.close(PATIENCE)
        return threads_left()


class Allocates(Common):
    """Works that allocate, and hold what they have while they sleep."""

    def __init__(self, **config: float) -> None:
        super().__init__(**config)
        self.runtime = self.make_runtime()
        self.wq = cmwq.WorkQueue("allocates", runtime=self.runtime)
        self.running = self.most = 0

    def run(self, number: int, megabytes: int, seconds: float) -> int:
        """How many ran at once, at most. Returns when all have ended."""

        def body() -> None:
            self.running += 1
            self.most = max(self.most, self.running)
            held = bytearray(megabytes << 20)  # zeroed by the kernel, page by page, when it is written to
            for start in range(0, len(held), 4096):
                held[start] = 1
            time.sleep(seconds)
            self.running -= 1

        for future in [self.wq.submit(body) for _ in range(number)]:
            future.result(PATIENCE)
        return self.most


class Chains(Common):
    """Works that wait for one another, where threads may be refused."""

    LENGTH = 10
    """Of a chain."""

    def __init__(self, **config: float) -> None:
        super().__init__(**config)
        self.runtime = self.make_runtime()
        self.sure = cmwq.WorkQueue("sure", max_active=16, rescuer=True, runtime=self.runtime)
        self.unsure = cmwq.WorkQueue("unsure", runtime=self.runtime)
        self.stranded: cmwq.Future[int] | None = None

    def blind(self, blind: bool) -> None:
        """The caps are not seen before a thread is tried: the system itself has to refuse it."""
        host: Any = self.runtime.host
        host._headroom, host._headroom_until = (1 << 30, float("inf")) if blind else (0, 0.0)

    def forwards(self, number: int) -> bool:
        """Each waits for one queued before it. True: all have their results."""

        def link(before: cmwq.Future[int] | None) -> int:
            time.sleep(0.00005)
            return 1 + (before.result() if before is not None else 0)

        futures: list[cmwq.Future[int]] = []
        for n in range(number):
            futures.append(self.sure.submit(link, futures[-1] if n % self.LENGTH else None))
        return [future.result(PATIENCE) for future in futures] == [n % self.LENGTH + 1 for n in range(number)]

    def backwards(self, number: int) -> dict[str, Any]:
        """Each waits for one queued after it. How many have their results, what the others were told."""
        futures: list[cmwq.Future[int]] = []
        queued = threading.Event()

        def link(n: int) -> int:
            queued.wait()
            return 1 + (futures[n + 1].result() if (n + 1) % self.LENGTH else 0)

        futures.extend(self.sure.submit(link, n) for n in range(number))
        queued.set()
        self.sure.flush(PATIENCE)
        told = [str(future.exception()) for future in futures if isinstance(future.exception(), cmwq.ThreadLimit)]
        right = sum(
            future.exception() is None and future.result() == self.LENGTH - n % self.LENGTH
            for n, future in enumerate(futures)
        )
        return {"right": right, "told": len(told), "words": told[0] if told else ""}

    def strand(self) -> None:
        """A work of the queue without a rescuer."""
        self.stranded = self.unsure.submit(abs, -7)

    def result(self) -> int:
        """The stranded work's. -1: it is not there."""
        assert self.stranded is not None
        try:
            return self.stranded.result(PATIENCE)
        except TimeoutError:
            return -1

    def is_stranded(self) -> bool:
        return self.stranded is not None and not self.stranded.done()

    def until_workers(self) -> bool:
        """Queue works until a worker does one."""
        began = time.monotonic()
        while not self.sure.submit(lambda: not threading.current_thread().name.startswith("cmwq/R-")).result(PATIENCE):
            if time.monotonic() - began > PATIENCE:
                return False
            time.sleep(0.01)
        return True

    def make_queue(self, *, fresh: bool) -> dict[str, Any]:
        """One more with a rescuer, in this runtime or in a fresh one. What is raised, and how many threads are left."""
        runtime = cmwq.Runtime() if fresh else self.runtime
        before, raised = threads(), ""
        try:
            cmwq.WorkQueue("more", rescuer=True, runtime=runtime)
        except cmwq.ThreadLimit as exc:
            raised = str(exc)
        if fresh:
            runtime.close()
        return {"raised": raised, "threads": threads_left(before), "names": [q.name for q in runtime.snapshot().queues]}

    # What the process does to itself.

    def limit_memory(self, spare: int) -> None:
        """Hardly any more address space; but thread stacks would take a lot of it."""
        threading.stack_size(1 << 32)
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        self._limit(resource.RLIMIT_AS, used + spare)

    def limit_threads(self, number: int) -> None:
        """Of its user's: so many."""
        self._limit(resource.RLIMIT_NPROC, number)

    def lift(self) -> None:
        threading.stack_size(0)
        for limit in (resource.RLIMIT_AS, resource.RLIMIT_NPROC):
            self._limit(limit, resource.getrlimit(limit)[1])

    def _limit(self, which: int, soft: int) -> None:
        resource.setrlimit(which, (soft, resource.getrlimit(which)[1]))

    def become(self, user: int) -> int:
        """Another user. How many threads it has."""
        os.setgid(user)
        os.setuid(user)
        return threads()


class Few(Common):
    """A runtime of which nothing has begun, where threads are few."""

    def __init__(self, **config: float) -> None:
        super().__init__(**config)
        self.runtime = self.make_runtime()
        self.queue = cmwq.WorkQueue("few", runtime=self.runtime)

    def first_work(self) -> str:
        """Whether it is done, or why not."""
        try:
            return str(self.queue.submit(pow, 2, 3).result(PATIENCE))
        except cmwq.CmwqError as exc:
            return repr(exc)

    def one_lets_the_other_go(self) -> bool:
        """A work that sleeps, in no way that is told to anybody, until one behind it runs."""
        gate = threading.Event()
        works = [self.queue.submit(gate.wait, PATIENCE), self.queue.submit(gate.set)]
        return all(future.exception(PATIENCE) is None for future in works) and works[0].result()

    def headroom(self) -> int:
        """How many threads more there may be, by what the caps say."""
        return caps.headroom()

    def limit_user(self, user: int, number: int) -> None:
        """Another user, of whom there may be so many threads."""
        os.setgid(user)
        os.setuid(user)
        resource.setrlimit(resource.RLIMIT_NPROC, (number, number))


class Load(Common):
    """Queues of all kinds at once, whose works queue themselves again, and calls of other queues."""

    def __init__(self, **config: float) -> None:
        super().__init__(**config)
        self.runtime = self.make_runtime()
        self.random = random.Random(1)
        self.light = self.stopping = False
        self.wrong: list[str] = []
        self.lock, self.alone = threading.Lock(), threading.Lock()
        self.order: list[int] = []
        self.numbers = itertools.count()
        self.calls: dict[str, list[cmwq.Future[Any]]] = {}
        self.queues = {
            name: cmwq.WorkQueue(name, runtime=self.runtime, **options)  # type: ignore[arg-type]
            for name, options in {
                "percpu": {"scope": "cpu"},
                "system": {},
                "ordered": {"ordered": True},
                "delayed": {},
                "heavy": {"cpu_intensive": True},
                "high": {"scope": "cpu", "highpri": True},
            }.items()
        }
        self.calls = {name: [] for name in self.queues}
        kinds = {"percpu": 6, "system": 6, "delayed": 4, "heavy": 1, "high": 3}
        self.loops = [Loop(self, name, n) for name, number in kinds.items() for n in range(number)]
        for loop in self.loops:
            loop.again()
        for _ in range(8):
            self.queue_in_order()

    def queue_in_order(self) -> None:
        with self.lock:
            self.calls["ordered"].append(self.queues["ordered"].submit(self.in_order, next(self.numbers)))

    def in_order(self, number: int) -> None:
        if not self.alone.acquire(blocking=False):
            self.wrong.append("two works of the ordered queue run at once")
        self.order.append(number)
        self.do("ordered")
        self.alone.release()
        if not self.stopping:
            self.queue_in_order()

    def do(self, kind: str) -> None:
        if self.light:
            time.sleep(0.01)
        elif kind == "heavy":
            until = time.thread_time() + 0.003
            while time.thread_time() < until:
                hashlib.sha256(bytes(20_000))
        elif self.random.random() < 0.5:
            time.sleep(self.random.random() * 0.001)
        else:
            hashlib.sha256(bytes(20_000))

    def lighten(self) -> None:
        """From now on hardly any CPU time is used, but every pool has works."""
        self.light = True

    def where(self, cpu: int) -> str:
        """The pool in which a work runs that is queued on this CPU."""
        names: list[str] = []
        work = cmwq.Work(lambda: names.append(threading.current_thread().name))
        self.queues["percpu"].queue_on(cpu, work)
        work.flush(PATIENCE)
        return names[0].removeprefix("cmwq/").partition(":")[0]

    def progress(self) -> dict[str, int]:
        """How many works of each queue have run."""
        ran = Counter({"ordered": len(self.order)})
        for loop in self.loops:
            ran[loop.name] += loop.ran
        return dict(ran)

    def stop(self) -> dict[str, Any]:
        """Let it all end. What went wrong, and what was queued and has run."""
        self.stopping = True
        for loop in self.loops:
            if not loop.ended.wait(PATIENCE):
                self.wrong.append(f"{loop.name} {loop.number} never ended")
        for name, calls in self.calls.items():
            for future in list(calls):
                try:
                    future.result(PATIENCE)
                except BaseException as exc:
                    self.wrong.append(f"a call of queue {name!r}: {exc!r}")
                    break
        for queue in self.queues.values():
            try:
                queue.flush(PATIENCE)
            except cmwq.CmwqTimeout as exc:
                self.wrong.append(str(exc))
        if self.order != list(range(next(self.numbers))):
            self.wrong.append("the ordered queue's works ran in another order")
        for loop in self.loops:
            if loop.queued != loop.ran:
                self.wrong.append(f"{loop.name} {loop.number} was queued {loop.queued} times, and ran {loop.ran} times")
        self.runtime.check_invariants()
        snapshot = self.runtime.snapshot()
        for view in snapshot.queues:
            if view.unfinished or view.active or view.inactive:
                self.wrong.append(f"works are left: {view}")
        for pool in snapshot.pools:
            if pool.started != pool.completed or pool.pending:
                self.wrong.append(f"works are left: {pool}")
        return {"wrong": self.wrong, "ran": self.progress()}


class Loop:
    """A work that queues itself again."""

    def __init__(self, load: Load, name: str, number: int) -> None:
        self.load, self.name, self.number = load, name, number
        self.queue = load.queues[name]
        self.random = random.Random(number)
        self.queued = self.ran = 0
        self.inside = threading.Lock()
        self.ended = threading.Event()
        self.due = 0.0
        self.work = cmwq.DelayedWork(self.run) if name == "delayed" else cmwq.Work(self.run)

    def again(self) -> None:
        self.queued += 1
        if isinstance(self.work, cmwq.DelayedWork):
            delay = self.random.random() * 0.01
            self.due = time.monotonic() + delay
            queued = self.queue.queue_delayed(self.work, delay)
        elif self.queue.scope == "cpu" and self.random.random() < 0.5:
            queued = self.queue.queue_on(self.random.randrange(os.cpu_count() or 1), self.work)
        else:
            queued = self.queue.queue(self.work)
        if not queued:
            self.load.wrong.append(f"{self.name} {self.number} could not be queued: it is pending")

    def run(self) -> None:
        load = self.load
        if not self.inside.acquire(blocking=False):
            load.wrong.append(f"{self.name} {self.number} runs twice at once")
        if time.monotonic() < self.due:
            load.wrong.append(f"{self.name} {self.number} runs too early")
        self.ran += 1
        load.do(self.name)
        if self.ran % 10 == 0:
            name = self.random.choice(list(load.calls))
            if name != "ordered":
                load.calls[name].append(load.queues[name].submit(load.do, name))
        self.inside.release()
        if load.stopping:
            self.ended.set()
        else:
            self.again()


class Held(Load):
    """The load, and a runtime beside it in which a work waits behind others, until it is let go. Stalls are that one's:
    the load's works may really be kept from beginning, on a busy machine.
    """

    def __init__(self, **config: float) -> None:
        super().__init__(**config)
        self.runtime.on_stall = None
        self.beside = self.make_runtime(max_workers=2)
        self.queue = cmwq.WorkQueue("held", runtime=self.beside)
        self.gate = threading.Event()
        self.held: list[cmwq.Future[Any]] = []

    def hold(self) -> None:
        """Works of which two run, and wait."""
        self.gate = threading.Event()
        self.held = [self.queue.submit(self.gate.wait) for _ in range(4)]

    def counted(self) -> float:
        """For how many seconds that pool has stalled, by the watchdog's count."""
        return sum(self.beside.watchdog.progress(pool).stalled_for for pool in self.beside.pools())

    def let_go(self) -> bool:
        self.gate.set()
        return all(future.result(PATIENCE) for future in self.held)

    def close(self) -> int:
        self.beside.check_invariants()
        self.beside.close(PATIENCE)
        return super().close()


def main() -> None:
    """Of the class named, with options as JSON; each line of input is a method with arguments, each of output what it
    returned. The first says that it is ready.
    """
    program = {each.__name__: each for each in (Allocates, Chains, Few, Load, Held)}[sys.argv[1]](
        **json.loads(sys.argv[2])
    )
    print('"ready"', flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        method: Callable[..., Any] = getattr(program, name)
        print(json.dumps(method(**arguments)), flush=True)


if __name__ == "__main__":
    main()
