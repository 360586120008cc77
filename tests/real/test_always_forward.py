"""Rescuers, CPUs by hand and the watchdog on real threads: what only they show."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
from conftest import HANG, UNTIL_QUIET

import cmwq
from cmwq._host import ThreadHost

Python = Callable[..., "subprocess.CompletedProcess[str]"]


def check(done: subprocess.CompletedProcess[str], expected: str) -> None:
    assert (done.stdout.split(), done.stderr, done.returncode) == (expected.split(), "", 0)


class NoWorkers(ThreadHost):
    """Refuses workers while told to, and no other thread."""

    refuses = True

    def spawn(self, name: str, body: Callable[[], None], *more: Any) -> threading.Thread:
        if self.refuses and name.startswith("cmwq/") and not name.startswith(("cmwq/R-", "cmwq/timers")):
            raise cmwq.ThreadLimit(f"no thread {name}")
        return super().spawn(name, body, *more)  # type: ignore[return-value]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_D2_D4_D5_cpus_taken_and_given_back_under_load(runtime: cmwq.Runtime) -> None:
    """Four threads queue, one takes CPUs and gives them back, by hand. Nothing is lost or out of order, and in the end
    every worker is where it belongs.
    """
    queues = [
        cmwq.WorkQueue("c", scope="cpu", runtime=runtime),
        cmwq.WorkQueue("r", scope="cpu", max_active=2, rescuer=True, runtime=runtime),
        cmwq.WorkQueue("s", runtime=runtime),
    ]
    ordered = cmwq.WorkQueue("o", ordered=True, rescuer=True, runtime=runtime)
    order: list[int] = []
    numbers, queueing = count(), threading.Lock()
    ran: list[int] = []
    queued = [0]
    failures: list[BaseException] = []
    stop = threading.Event()

    def work(number: int) -> None:
        ran.append(number)
        if number % 3 == 0:
            time.sleep(0.001)
        elif number % 50 == 1:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    def queue(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(300):
                with queueing:
                    number = queued[0]
                    queued[0] += 1
                rng.choice(queues).submit(work, number)
                if number % 10 == 0:
                    with queueing:
                        ordered.submit(order.append, next(numbers))
        except BaseException as exc:
            failures.append(exc)

    def toggle() -> None:
        rng = random.Random(0)
        try:
            while not stop.is_set():
                cpu = rng.choice(sorted(os.sched_getaffinity(os.getpid())))
                with suppress(ValueError):  # the last, or it has really left: other tests may take CPUs away
                    runtime.cpu_offline(cpu)
                stop.wait(rng.random() * 0.01)
                with suppress(ValueError):
                    runtime.cpu_online(cpu)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=queue, args=(seed,)) for seed in range(4)]
    toggling = threading.Thread(target=toggle)
    for thread in (*threads, toggling):
        thread.start()
    for thread in threads:
        thread.join(HANG)
    stop.set()
    toggling.join(HANG)
    for each in (*queues, ordered):
        each.flush(HANG)
    assert not failures
    assert sorted(ran) == list(range(queued[0]))
    assert order == list(range(next(numbers)))
    deadline = time.monotonic() + HANG
    runtime.check_cpus()
    while misplaced := not_in_their_place(runtime):
        assert time.monotonic() < deadline, misplaced
        time.sleep(0.001)
        runtime.check_cpus()  # whoever was busy as it was seen to be elsewhere is idle by and by


def not_in_their_place(runtime: cmwq.Runtime) -> list[str]:
    """Pools without a CPU, and workers bound to others than their pool's. A rescuer is only for a while where it is."""
    found = []
    for pool in runtime._pools.values():
        with pool.lock:
            tids = {worker.name: worker.tid for worker in pool.workers if worker.tid and worker.index >= 0}
        if pool.disassociated:
            found.append(f"pool {pool.name} is disassociated")
        for name, tid in tids.items():
            if (bound := runtime.host.bound_to(tid)) not in (set(pool.cpus), None):
                found.append(f"{name} is bound to {bound}")
    return found


def test_C2_C3_C4_the_rescuer_does_it_all_where_no_worker_can_be_had() -> None:
    host = NoWorkers()
    with cmwq.Runtime(host=host) as runtime:
        wq = cmwq.WorkQueue("q", scope="cpu", max_active=4, rescuer=True, runtime=runtime)
        ordered = cmwq.WorkQueue("o", ordered=True, rescuer=True, runtime=runtime)
        order: list[int] = []
        works = [cmwq.Work(order.append, n) for n in range(50)]
        for work in works:
            ordered.queue(work)
        futures = [wq.submit(abs, -n) for n in range(50)]
        assert [future.result(HANG) for future in futures] == list(range(50))
        ordered.flush(HANG)
        assert order == list(range(50))
        assert not any(pool.created for pool in runtime.snapshot().pools)
    host.stop_timers()


ended_by_exceptions = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@ended_by_exceptions
def test_C1_F10_a_rescuer_that_is_interrupted_at_rest_or_at_work_goes_on() -> None:
    host = NoWorkers()
    with cmwq.Runtime(host=host, config=cmwq.Config(mayday_initial_timeout=0.001)) as runtime:
        wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
        assert wq.rescuer is not None
        threads = set()
        for n in range(50):
            thread = wq.rescuer.thread
            assert isinstance(thread, threading.Thread)
            threads.add(thread)
            future = wq.submit(abs, n) if n % 2 else None  # else it rests
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
            with suppress(SystemExit):  # it was interrupted within the work
                assert future is None or future.result(HANG) == n
            assert wq.submit(abs, -n).result(HANG) == n
        assert len(threads) < 25, "it needs a successor, which may be refused, each time"
    host.stop_timers()


@ended_by_exceptions
@pytest.mark.parametrize("refused", [False, True], ids=["at once", "the watchdog"])
def test_C1_F10_a_rescuer_that_is_ended_all_the_same_has_a_successor(
    refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an exception that comes while another one is handled. It had not yet left the pool that it helped. If it can't
    have its successor at once, the watchdog sees to it."""
    host = NoWorkers()
    with cmwq.Runtime(host=host, config=cmwq.Config(mayday_initial_timeout=0.001)) as runtime:
        wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
        rescuer = wq.rescuer
        assert rescuer is not None
        thread, queue, retire = rescuer.thread, rescuer._queue, rescuer._retire

        def end(*_: object) -> None:
            monkeypatch.setattr(rescuer, "_retire", retire)
            raise SystemExit

        def refuse(*_: object) -> None:
            raise cmwq.ThreadLimit("refused")

        def needed_no_more() -> None:
            monkeypatch.setattr(rescuer, "_queue", queue)  # the next question has its answer
            raise SystemExit

        def work() -> None:
            monkeypatch.setattr(rescuer, "_retire", end)
            monkeypatch.setattr(rescuer, "_queue", needed_no_more)
            if refused:
                monkeypatch.setattr(host, "spawn", refuse)

        assert wq.submit(work).result(HANG) is None
        assert thread is not None
        thread.join(HANG)
        assert not thread.is_alive()
        assert refused or rescuer.thread is not thread
        monkeypatch.undo()
        assert wq.submit(abs, -7).result(HANG) == 7
        assert rescuer.thread is not thread
        runtime.check_invariants()
        deadline = time.monotonic() + HANG
        while any(pool.workers for pool in runtime._pools.values()):
            assert time.monotonic() < deadline, "what the first thread was in the pool is still there"
            time.sleep(0.001)
    host.stop_timers()


def test_G3_exit_while_threads_are_refused(python: Python) -> None:
    """What a rescuer can do is done; what was cancelled holds nothing up."""
    check(
        python("""
            import cmwq
            from cmwq._host import ThreadHost
            class NoWorkers(ThreadHost):
                def spawn(self, name, body, *more):
                    if name.startswith("cmwq/") and not name.startswith(("cmwq/R-", "cmwq/timers")):
                        raise cmwq.ThreadLimit(name)
                    return super().spawn(name, body, *more)
            runtime = cmwq.Runtime(host=NoWorkers())
            wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
            other = cmwq.WorkQueue("other", scope="cpu", runtime=runtime)
            assert other.submit(print, "never").cancel()
            def again(n):
                print(n, flush=True)
                if n < 3: wq.submit(again, n + 1)
            wq.submit(again, 0)
        """),
        "0 1 2 3",
    )


def test_G2_a_rescuers_work_that_forks(python: Python) -> None:
    """The child has an unstarted runtime, a rescuer of its own when it needs one, and ends when its work does."""
    check(
        python("""
            import cmwq, os, warnings
            from cmwq._host import ThreadHost
            warnings.simplefilter("ignore", DeprecationWarning)
            class NoWorkers(ThreadHost):
                def spawn(self, name, body, *more):
                    if name.startswith("cmwq/") and not name.startswith(("cmwq/R-", "cmwq/timers")):
                        raise cmwq.ThreadLimit(name)
                    return super().spawn(name, body, *more)
            runtime = cmwq.Runtime(host=NoWorkers())
            wq = cmwq.WorkQueue("q", scope="cpu", rescuer=True, runtime=runtime)
            affinity = os.sched_getaffinity(0)
            def fork():
                pid = os.fork()
                if pid == 0:
                    fine = runtime.snapshot().pools == () and wq.rescuer is None
                    fine &= os.sched_getaffinity(0) == affinity
                    fine &= [wq.submit(abs, -n).result(30) for n in range(20)] == list(range(20))
                    os._exit(7 if fine else 1)
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            print(*[wq.submit(fork).result(30) for _ in range(3)])
        """),
        "7 7 7",
    )


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_G2_forks_while_cpus_come_and_go(python: Python) -> None:
    """Others hold the locks of hotplug and watchdog as it happens."""
    check(
        python("""
            import cmwq, os, threading, time, warnings
            from contextlib import suppress
            warnings.simplefilter("ignore", DeprecationWarning)
            runtime = cmwq.Runtime(config=cmwq.Config(watch_period=0.002))
            wq = cmwq.WorkQueue("q", scope="cpu", rescuer=True, runtime=runtime)
            stop = threading.Event()
            def toggle():
                while not stop.is_set():
                    for cpu in runtime.cpus()[1:]:
                        with suppress(ValueError): runtime.cpu_offline(cpu)
                        with suppress(ValueError): runtime.cpu_online(cpu)
            def churn():
                while not stop.is_set():
                    wq.submit(int).result(30)
            threads = [threading.Thread(target=f) for f in (toggle, churn, churn)]
            for thread in threads: thread.start()
            bad, end = 0, time.monotonic() + 20
            for _ in range(30):
                if time.monotonic() > end: break  # on a busy machine each of these processes takes long to end
                pid = os.fork()
                if pid == 0:
                    cpu = runtime.cpus()[-1]
                    with suppress(ValueError): runtime.cpu_offline(cpu)
                    fine = wq.submit(pow, 3, 2).result(30) == 9
                    with suppress(ValueError): runtime.cpu_online(cpu)
                    runtime.check_cpus()
                    os._exit(0 if fine else 1)
                bad += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0
            stop.set()
            for thread in threads: thread.join()
            print(bad)
        """),
        "0",
    )


def test_G4_a_rescuer_and_a_watchdog_that_have_nothing_to_do_do_not_wake_up(python: Python) -> None:
    check(
        python(
            UNTIL_QUIET,
            """
            import cmwq, time, concurrent.futures as cf
            runtime = cmwq.Runtime()
            wq = cmwq.WorkQueue("q", scope="cpu", rescuer=True, runtime=runtime)
            cf.wait([wq.submit(time.sleep, 0.002) for _ in range(50)])
            for cpu in runtime.cpus()[1:]:
                runtime.cpu_offline(cpu)
                cf.wait([wq.submit(time.sleep, 0.002) for _ in range(50)])
                runtime.cpu_online(cpu)
            while runtime.watchdog.on: time.sleep(0.1)
            time.sleep(2)  # what ticks finds out that there is nothing to do
            print(*until_quiet())
            """,
        ),
        "True {}",
    )


def test_G2_the_first_work_imports_nothing(python: Python) -> None:
    """A fork while another thread is in the middle of an import leaves that module's lock taken in the child."""
    check(
        python("""
            import sys, cmwq
            wq = cmwq.WorkQueue("q", scope="cpu", runtime=cmwq.Runtime())
            before = set(sys.modules)
            wq.submit(int).result()
            print(sorted(set(sys.modules) - before))
        """),
        "[]",
    )
