"""What it costs to hand work over: throughput of calls and works, the way there and back, several producers.

A no-op is the work wherever the cost of handing it over is what is measured. Without a GIL the targets are lower, since
there ThreadPoolExecutor, too, has two CPUs for its own cost.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from measure import CPUS, FREE_THREADED, Report, medians, percentile, seconds, turns

import cmwq


def nothing() -> None:
    pass


def flood(pool: Executor, number: int) -> None:
    """Submit, then take all results."""
    futures = [pool.submit(nothing) for _ in range(number)]
    for future in futures:
        future.result()


def wait_for_all(pool: Executor, number: int) -> None:
    wait([pool.submit(nothing) for _ in range(number)])


def take_as_completed(pool: Executor, number: int) -> None:
    deque(as_completed([pool.submit(nothing) for _ in range(number)]), 0)


def wait_for_tens(pool: Executor, number: int) -> None:
    for _ in range(number // 10):
        wait_for_all(pool, 10)


def queue_and_flush(wq: cmwq.WorkQueue, works: list[cmwq.Work]) -> None:
    for work in works:
        wq.queue(work)
    wq.flush()


def submit_together(wq: cmwq.WorkQueue, number: int) -> None:
    """Submit in one call, then take all results."""
    for future in wq.submit_many(nothing_of, range(number)):
        future.result()


def map_over(wq: cmwq.WorkQueue, number: int) -> None:
    deque(wq.map(nothing_of, range(number)), 0)


def stdlib_pools(stack: ExitStack) -> dict[str, ThreadPoolExecutor]:
    """As many threads as CPUs, and its own default."""
    pools = {f"ThreadPoolExecutor({CPUS})": ThreadPoolExecutor(CPUS), "ThreadPoolExecutor()": ThreadPoolExecutor()}
    for pool in pools.values():
        stack.enter_context(pool)
    return pools


def dispatch(report: Report, quick: bool) -> None:
    report.heading("Dispatch: what handing over costs")
    rounds = 3 if quick else 7
    number = 2_000 if quick else 20_000
    with ExitStack() as stack:
        ours = stack.enter_context(cmwq.Executor())
        theirs = stdlib_pools(stack)
        throughput(report, ours, theirs, number, rounds)
        waits(report, ours, theirs, number // 2, rounds)
        there_and_back(report, ours, theirs, number // 10, rounds)
        producers(report, ours, theirs, number, min(rounds, 5))


def throughput(report: Report, ours: cmwq.Executor, theirs: dict[str, ThreadPoolExecutor], n: int, rounds: int) -> None:
    wq = ours.queue
    works = [cmwq.Work(nothing) for _ in range(n)]

    with hand_over() as bare:
        pools: dict[str, Executor] = {"cmwq": ours, **theirs}
        contenders = {name: partial(seconds, partial(flood, pool, n)) for name, pool in pools.items()}
        contenders["queue"] = partial(seconds, partial(queue_and_flush, wq, works))
        contenders["submit_many"] = partial(seconds, partial(submit_together, wq, n))
        contenders["map"] = partial(seconds, partial(map_over, wq, n))
        contenders["bare"] = partial(seconds, partial(bare, n))
        for name in contenders:
            contenders[name]()  # warm
        took = medians(contenders, rounds, "throughput")
    per = {name: time / n * 1e6 for name, time in took.items()}
    report.details["dispatch_us_per_item"] = per
    how = f"{n:,} no-ops submitted, then all results taken"
    report.say(f"{how}; us per no-op: " + ", ".join(f"{name} {us:.2f}" for name, us in per.items()))
    targets = {
        "submit": ("cmwq", "submit and result", 5.0 if FREE_THREADED else 10.0, how),
        "queue": ("queue", "queue(work), then flush", 4.0 if FREE_THREADED else 8.0,
                  f"{n:,} different works, made before; flushed once"),
        "submit_many": ("submit_many", "submit_many and results", 10.0 if FREE_THREADED else 20.0, ""),
        "map": ("map", "map", 10.0 if FREE_THREADED else 20.0, ""),
    }  # fmt: skip
    for id, (contender, title, target, note) in targets.items():
        for name in theirs:
            report.add(f"dispatch.{id}.{kind_of(name)}", f"{title}: throughput, of submit to {name}",
                       took[name] / took[contender],
                       target=target, note="" if kind_of(name) == "default" else note)  # fmt: skip
    report.add("dispatch.bare", "the limit: queue.SimpleQueue to one thread, throughput, of cmwq's submit",
               took["cmwq"] / took["bare"])  # fmt: skip


def waits(report: Report, ours: cmwq.Executor, theirs: dict[str, ThreadPoolExecutor], n: int, rounds: int) -> None:
    """The standard library's functions that wait for several futures."""
    kinds = {
        "wait": (wait_for_all, f"{n:,} no-ops submitted, then concurrent.futures.wait"),
        "as_completed": (take_as_completed, f"{n:,} no-ops submitted, then concurrent.futures.as_completed"),
        "tens": (wait_for_tens, "ten no-ops submitted, then wait, again and again"),
    }
    for id, (how, title) in kinds.items():
        pools: dict[str, Executor] = {"cmwq": ours, **theirs}
        took = medians({name: partial(seconds, partial(how, pool, n)) for name, pool in pools.items()}, rounds, id)
        for name in theirs:
            report.add(f"dispatch.{id}.{kind_of(name)}", f"{title}: throughput, of {name}", took[name] / took["cmwq"],
                       target=1.0)  # fmt: skip


def kind_of(name: str) -> str:
    return "default" if name.endswith("()") else "cpus"


def nothing_of(_: object) -> None:
    pass


@contextmanager
def serving(serve: Callable[[], None], calls: queue.SimpleQueue[Any]) -> Iterator[None]:
    """A thread that serves meanwhile; None in its queue ends it."""
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        calls.put(None)
        thread.join()


@contextmanager
def hand_over() -> Iterator[Callable[[int], None]]:
    """So many calls through a SimpleQueue to one thread that calls them; returns when it called the last."""
    calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()

    def serve() -> None:
        while (call := calls.get()) is not None:
            call()

    def run(number: int) -> None:
        done = threading.Event()
        for _ in range(number - 1):
            calls.put(nothing)
        calls.put(done.set)
        done.wait()

    with serving(serve, calls):
        yield run


def there_and_back(
    report: Report, ours: cmwq.Executor, theirs: dict[str, ThreadPoolExecutor], n: int, rounds: int
) -> None:
    """Submit one, wait for its result, and again."""
    clock = time.perf_counter_ns
    tails: dict[str, list[float]] = {}

    def pinging(name: str, ping: Callable[[], object]) -> float:
        took = []
        for _ in range(n):
            began = clock()
            ping()
            took.append((clock() - began) / 1e3)
        took.sort()
        tails.setdefault(name, []).append(percentile(took, 0.99))
        return statistics.median(took)

    with answering() as bare:
        pools: dict[str, Executor] = {"cmwq": ours, **theirs}
        contenders = {name: partial(pinging, name, partial(ping, pool)) for name, pool in pools.items()}
        contenders["bare"] = partial(pinging, "bare", bare)
        for pool in pools.values():
            flood(pool, 100)
        took = medians(contenders, rounds, "there and back")
    report.details["pingpong_us"] = took
    for name, theirs_took in [(name, took[name]) for name in theirs]:
        report.add(
            f"dispatch.pingpong.{kind_of(name)}", f"submit one, wait for it, repeat: time, of {name}",
            took["cmwq"] / theirs_took, target=1.0, at_most=True,
            note=f"medians {took['cmwq']:.1f} and {theirs_took:.1f} us; 99 % within "
            f"{statistics.median(tails['cmwq']):.0f} and {statistics.median(tails[name]):.0f} us",
        )  # fmt: skip
    report.add("dispatch.pingpong.bare", "the limit: SimpleQueue to a thread and back: time, of cmwq's",
               took["bare"] / took["cmwq"], note=f"median {took['bare']:.1f} us")  # fmt: skip


def ping(pool: Executor) -> None:
    pool.submit(nothing).result()


@contextmanager
def answering() -> Iterator[Callable[[], object]]:
    """One call through a SimpleQueue, its end through another."""
    calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
    answers: queue.SimpleQueue[None] = queue.SimpleQueue()

    def serve() -> None:
        while (call := calls.get()) is not None:
            answers.put(call())

    def run() -> None:
        calls.put(nothing)
        answers.get()

    with serving(serve, calls):
        yield run


def producers(report: Report, ours: cmwq.Executor, theirs: dict[str, ThreadPoolExecutor], n: int, rounds: int) -> None:
    """The same number of no-ops, from one, two and four threads: do they help or hinder each other?"""
    pools: dict[str, Executor] = {"cmwq": ours, **theirs}
    counts = (1, 2, 4)
    contenders = {
        f"{name} {count}": partial(produce, pool, n, count) for name, pool in pools.items() for count in counts
    }
    took = {name: statistics.median(values) for name, values in turns(contenders, rounds, "producers").items()}
    busy_note = ""
    if FREE_THREADED:
        busy = statistics.median(cpus_busy(partial(produce, ours, n, 1)) for _ in range(rounds))
        busy_note = f"; one producer and its worker keep {busy:.2f} CPUs busy"
    for count in counts[1:]:
        scaled = {name: took[f"{name} 1"] / took[f"{name} {count}"] for name in pools}
        beside = {name: took[f"{name} {count}"] / took[f"cmwq {count}"] for name in theirs}
        report.add(
            f"dispatch.producers.{count}", f"{count} producers: total throughput, of one producer's", scaled["cmwq"],
            target=1.6 if FREE_THREADED else None,
            note="; ".join(f"{name} {scaled[name]:.2f}" for name in theirs)
            + "; with so many, cmwq's throughput is "
            + ", ".join(f"{ratio:.2f} of {name}'s" for name, ratio in beside.items())
            + busy_note,
        )  # fmt: skip


def cpus_busy(run: Callable[[], float]) -> float:
    """How many CPUs this process kept busy in the seconds that it returns."""
    before = time.process_time()
    seconds = run()
    return (time.process_time() - before) / seconds


def produce(pool: Executor, number: int, count: int) -> float:
    """Seconds until all have taken their results."""
    barrier = threading.Barrier(count + 1)

    def body() -> None:
        barrier.wait()
        flood(pool, number // count)

    threads = [threading.Thread(target=body) for _ in range(count)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began
