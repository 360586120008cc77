"""Where the time of one submit -> run -> done cycle goes, part by part.

Its one job: call every part of the cycle in a tight loop on one thread, and print nanoseconds beside those of the
whole. How: the pool is real, with its real lock and sensor, but its target is 0, so nobody is ever woken; the calling
thread is the worker. So nothing is contended, no thread switches, and the parts add up; what the real pool needs beyond
that is contention, hand-over and, where there is one, the GIL's. Loops are timed without the collector, the loop itself
is taken off, and the fastest of some rounds counts. It looks into private parts: whoever changes those changes this.
"""

from __future__ import annotations

import concurrent.futures as cf
import queue
import resource
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures._base import FINISHED
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache
from typing import Any

from measure import Report, no_collections

import cmwq
from cmwq._pool.policy import keep_working
from cmwq._pool.worker import RESCUER, Worker, be_worker
from cmwq._pool.worker_thread import process_works
from cmwq._workqueue.future import Future
from cmwq._workqueue.inserting import insert
from cmwq._workqueue.queued import Queued


def nothing() -> None:
    pass


def per(statement: str, things: Iterable[Any], **names: Any) -> float:
    """Nanoseconds of a statement for each `thing`, the loop included (`empty` is that alone)."""
    function = _loop(statement, tuple(names))
    began, ended, times = function(things, time.perf_counter_ns, **names)
    return (ended - began) / times


@cache
def _loop(statement: str, names: tuple[str, ...]) -> Callable[..., tuple[int, int, int]]:
    """Compiled, so that nothing but the statement is added to the loop."""
    body = "".join(f"\n        {line}" for line in statement.splitlines())
    source = f"""
def loop({", ".join(("things", "clock", *names))}):
    things = list(things)
    began = clock()
    for thing in things:{body}
    return began, clock(), len(things)
"""
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    loop: Callable[..., tuple[int, int, int]] = namespace["loop"]
    return loop


class Quiet:
    """A pool that wakes nobody, and the calling thread as its worker."""

    def __init__(self, runtime: cmwq.Runtime) -> None:
        self.wq = cmwq.WorkQueue("cycle", runtime=runtime, max_active=1 << 30)
        self.wq.submit(nothing).result()  # starts the pool
        self.pool = self.wq._only.pool  # type: ignore[union-attr]
        self.pwq: Any = self.wq._only
        self.target = self.pool.target
        while not self.pool.quiet_or_tell(None):
            time.sleep(0.001)
        with self.pool.lock:
            self.pool.target = 0
            self.pool.lookout.set_target(0)
        self.worker = Worker(self.pool, RESCUER, self.pool.lookout.parker())
        be_worker(self.worker)
        self.pool.lookout.attach(self.worker)
        self.worker.served = self.pwq.phase  # else the thread is named anew

    def process(self) -> float:
        """Everything that waits, by the hot loop itself. Nanoseconds."""
        self.pool.lock.acquire()  # by hand, for it is let go of around each item
        self.pool.count(self.worker)
        self.pool.target = 1  # the worker stops for nobody
        began = time.perf_counter_ns()
        process_works(self.pool, self.worker)
        took = time.perf_counter_ns() - began
        self.pool.target = 0
        self.pool.lock.release()
        self.worker.last = None
        return took

    def futures(self, number: int) -> list[Any]:
        """As submitted, but in no list."""
        made = [self.wq.submit(nothing) for _ in range(number)]
        with self.pool.lock:
            self.pool.worklist.clear()
            self.pwq.phase.queued -= number
            self.pwq.nr_active -= number
            self.pool.settle()
        return made

    @contextmanager
    def something_listed(self) -> Iterator[None]:
        with self.pool.lock:
            self.pool.worklist.append(None)  # type: ignore[arg-type]
            self.pool.settle()
            try:
                yield
            finally:
                self.pool.worklist.clear()
                self.pool.settle()

    def close(self) -> None:
        self.process()
        be_worker(None)
        self.pool.lookout.detach(self.worker)
        with self.pool.lock:
            self.pool.target = self.target
            self.pool.lookout.set_target(self.target)
        self.wq.close(30)


@contextmanager
def quiet_pool() -> Iterator[Quiet]:
    with cmwq.Runtime() as runtime:
        quiet = Quiet(runtime)
        try:
            yield quiet
        finally:
            quiet.close()


Part = tuple[str, Callable[[], float]]
"""Indented under what it is part of; and nanoseconds for each time, once."""


def simple(statement: str, number: int, **names: Any) -> Callable[[], float]:
    return lambda: per(statement, range(number), **names)


def keeping(expression: str, number: int, **names: Any) -> Callable[[], float]:
    """What it makes lives on, as in a flood: no free list serves the next."""
    return lambda: per(f"kept[thing] = {expression}", range(number), kept=[None] * number, **names)


def parts_of_submit(quiet: Quiet, number: int) -> list[Part]:
    wq, pwq, pool = quiet.wq, quiet.pwq, quiet.pool
    context = copy_context()

    def whole() -> float:
        took = per("submit(nothing)", range(number), submit=wq.submit, nothing=nothing)
        quiet.process()
        return took

    def inserting() -> float:
        took = per("insert(pwq, thing)", quiet.futures(number), insert=insert, pwq=pwq)
        quiet.process()
        return took

    def kicking() -> float:
        with quiet.something_listed():
            return per("pool.kick_or_settle()", range(number), pool=pool)

    counting = "phase = pwq.phase\nphase.queued += 1\nif pwq.attends or pwq.nr_active >= pwq.max_active: pass"
    counting += "\nelse: pwq.nr_active += 1\nphase.queued -= 1\npwq.nr_active -= 1"
    creating = "Future(pwq.phase, (nothing,), {}, context)"
    return [
        ("submit, whole", whole),
        ("  copy_context()", keeping("copy_context()", number, copy_context=copy_context)),
        ("  Future(...)", keeping(creating, number, Future=Future, pwq=pwq, nothing=nothing, context=context)),
        ("  insert(), whole", inserting),
        ("    with pool.lock: pass", simple("with lock: pass", number, lock=pool.lock)),
        ("    phase.queued, nr_active, max_active (and undone)", simple(counting, number, pwq=pwq)),
        ("    worklist.append", simple("append(thing)", number, append=deque[Any](maxlen=number).append)),
        ("    kick_or_settle(), at the target", kicking),
    ]


def parts_of_run(quiet: Quiet, number: int) -> list[Part]:
    wq, pwq, pool, worker = quiet.wq, quiet.pwq, quiet.pool, quiet.worker

    def futures() -> list[Any]:
        return quiet.futures(number)

    def processing(callback: bool = False) -> Callable[[], float]:
        def whole() -> float:
            kept = [wq.submit(nothing) for _ in range(number)]
            if callback:
                for future in kept:
                    future.add_done_callback(nothing_of)
            return quiet.process() / number

        return whole

    def held(statement: str, things: Callable[[], Iterable[Any]], **names: Any) -> Callable[[], float]:
        def measured() -> float:
            made = things()
            pool.lock.acquire()  # by hand, for a statement may let go of it
            try:
                return per(statement, made, **names)
            finally:
                pool.lock.release()

        return measured

    def counted(statement: str, things: Callable[[], Iterable[Any]], **names: Any) -> Callable[[], float]:
        """As if so many had been inserted, for what takes them off the count."""
        inner = held(statement, things, **names)

        def measured() -> float:
            with pool.lock:
                pwq.phase.queued += number
                pwq.nr_active += number
            return inner()

        return measured

    def going_on() -> float:
        with quiet.something_listed():
            pool.target = 1
            try:
                return per("keep_working(pool)", range(number), keep_working=keep_working, pool=pool)
            finally:
                pool.target = 0

    def popping() -> float:
        return per("popleft()", range(number), popleft=deque(range(number)).popleft)

    def ended() -> list[Any]:
        made = futures()
        for future in made:
            future.run()
            future._state = FINISHED
        return made

    def numbers() -> range:
        return range(number)

    switching = "lock.release(); lock.acquire()"
    asking = "if worker.served is thing.phase: pass"
    return [
        ("one item through process_works, whole", processing()),
        ("  worklist.popleft", popping),
        ("  keep_working(pool), asked only where too many run", going_on),
        ("  item.claim(worker)", held("thing.claim(worker)", futures, worker=worker)),
        ("  lock.release(); lock.acquire()", held(switching, numbers, lock=pool.lock)),
        ("  worker.served is item.phase", lambda: per(asking, futures(), worker=worker)),
        ("  item.run(), whole", lambda: per("thing.run()", futures())),
        (
            "    context.run(*call)",
            simple("run(*call)", number, run=copy_context().run, call=(nothing,)),
        ),
        ("    nothing()", simple("nothing()", number, nothing=nothing)),
        ("  worker.ended()", held("ended()", numbers, ended=worker.ended)),
        ("  item.end(), whole", counted("thing.end()", futures)),
        ("    phase.retire()", counted("phase.retire()", numbers, phase=pwq.phase)),
        ("result() of a future that ended", lambda: per("thing.result()", ended())),
        ("dropping a future", lambda: per("made[thing] = None", range(number), made=futures())),
        ("one item with a callback through process_works", processing(callback=True)),
    ]


def nothing_of(_: Any) -> None:
    pass


def parts_of_work(quiet: Quiet, number: int) -> list[Part]:
    wq, pwq = quiet.wq, quiet.pwq
    context = copy_context()

    def works() -> list[cmwq.Work]:
        return [cmwq.Work(nothing) for _ in range(number)]

    def queueing() -> float:
        took = per("queue(thing)", works(), queue=wq.queue)
        quiet.process()
        return took

    def through() -> float:
        for work in (made := works()):
            wq.queue(work)
        took = quiet.process() / number
        made.clear()
        return took

    def again() -> float:
        work = cmwq.Work(nothing)
        wq.queue(work)
        took = per("queue(work)", range(number), queue=wq.queue, work=work)
        quiet.process()
        return took

    return [
        ("queue(work), whole", queueing),
        ("  work.is_idle", lambda: per("thing.is_idle", works())),
        ("  with work._lock: pass", lambda: per("with thing._lock: pass", works())),
        ("  new_context()", keeping("new_context()", number, new_context=wq.new_context)),
        ("  Queued(...)", keeping("Queued(None, pwq.phase, context)", number, Queued=Queued, pwq=pwq, context=context)),
        ("queue(work) of a pending one", again),
        ("one work through process_works, whole", through),
    ]


def parts_of_others(number: int) -> list[Part]:
    """The standard library's, for comparison: made and run by the same one thread."""
    pool = cf.ThreadPoolExecutor(1)
    pool._adjust_thread_count = nothing  # type: ignore[method-assign]  # nobody takes them
    hand_over: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def submitting() -> float:
        took = per("submit(nothing)", range(number), submit=pool.submit, nothing=nothing)
        taken.clear()
        while not pool._work_queue.empty():
            taken.append(pool._work_queue.get_nowait())
        return took

    taken: list[Any] = []

    def running() -> float:
        """What the last `submitting` made."""
        if "ctx" in taken[0].run.__code__.co_varnames:  # 3.14 on: a worker's context goes in
            return per("thing.run(context)", taken, context=pool._create_worker_context())  # type: ignore[attr-defined]
        return per("thing.run()", taken)

    return [
        ("ThreadPoolExecutor.submit, nobody takes it", submitting),
        ("  concurrent.futures.Future()", keeping("Future()", number, Future=cf.Future)),
        ("_WorkItem.run()", running),
        ("SimpleQueue put, get", simple("put(thing); get()", number, put=hand_over.put, get=hand_over.get)),
        ("with threading.Lock(): pass", simple("with lock: pass", number, lock=threading.Lock())),
    ]


def flood(pool: Any, number: int) -> dict[str, float]:
    """The real thing: per item, on however many threads."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    cpu, began = time.process_time_ns(), time.perf_counter_ns()
    futures = [pool.submit(nothing) for _ in range(number)]
    submitted = time.perf_counter_ns()
    for future in futures:
        future.result()
    ended = time.perf_counter_ns()
    after = resource.getrusage(resource.RUSAGE_SELF)
    switches = after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw
    return {
        "submit": (submitted - began) / number,
        "all": (ended - began) / number,
        "CPU": (time.process_time_ns() - cpu) / number,
        "switches": switches / number * 1000,
    }


def profile(report: Report, quick: bool) -> None:
    report.heading("Where one cycle's time goes (one thread, nothing contended; ns, the fastest of some rounds)")
    number, rounds = (500, 3) if quick else (5_000, 15)
    table: dict[str, float] = {}
    with quiet_pool() as quiet:
        for parts in (
            parts_of_submit(quiet, number),
            parts_of_run(quiet, number),
            parts_of_work(quiet, number),
            parts_of_others(number),
        ):
            times: dict[str, list[float]] = {title: [] for title, _ in parts}
            loop: list[float] = []
            for _ in range(rounds):
                with no_collections():
                    loop.append(per("pass", range(number)))
                    for title, measured in parts:
                        times[title].append(measured())
            for title, values in times.items():
                table[title] = min(values) - (0 if "process_works" in title else min(loop))
                report.say(f"{title:<52} {table[title]:>8.0f}")
            report.say("")
    report.say("the same on real threads, per item: ns of submit, of all, of CPU; context switches per 1,000 items")
    number = 2_000 if quick else 20_000
    with cmwq.Executor() as ours, cf.ThreadPoolExecutor() as theirs, cf.ThreadPoolExecutor(2) as two:
        for name, pool in (("cmwq", ours), ("ThreadPoolExecutor()", theirs), ("ThreadPoolExecutor(2)", two)):
            for collector in (True, False):
                rows = []
                for _ in range(rounds // 3):
                    if collector:
                        rows.append(flood(pool, number))
                    else:
                        with no_collections():
                            rows.append(flood(pool, number))
                row = {key: statistics.median(r[key] for r in rows) for key in rows[0]}
                title = name + ("" if collector else ", collector off")
                table[title] = row["all"]
                report.say(
                    f"{title:<36} {row['submit']:>8.0f} {row['all']:>8.0f} {row['CPU']:>8.0f} {row['switches']:>8.1f}"
                )
    report.details["profile"] = table
