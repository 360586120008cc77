"""H1, H3, H4: the picture that `cmwq.snapshot()` takes, on real threads and in the simulator."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cmwq
from cmwq._pool import reasons
from cmwq._pool.blocking import SEEN_ON_LOCK
from cmwq._pool.figures import BOUNDS
from cmwq._workqueue import picture, place_view
from cmwq._workqueue.place_view import AT_ONCE
from cmwq.testing import Simulation
from tests.conftest import HANG, Gate, until

TOP = {
    "pools", "queues", "sensor", "sensor_reason", "gil", "cpus", "cpu_limit", "pid", "version", "time", "uptime",
    "command", "python", "cpu_seconds", "frozen", "memory", "workers", "workers_left_out", "functions", "stalls",
    "stall_after",
}  # fmt: skip
WORKER = {
    "name", "pool", "tid", "state", "rescuer", "queue", "work", "item", "since", "cpu_seconds", "waits_for", "stack",
    "held_by",
}  # fmt: skip
FUNCTION = {"name", "queue", "ended", "failed", "seconds", "cpu_seconds", "running"}

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no Linux /proc")


def worker_of(runtime: cmwq.Runtime, work: str, stacks: bool = False) -> dict[str, Any]:
    """The one worker that executes a work of that name; one of which nothing is known, if none does yet."""
    found = [w for w in runtime.snapshot(stacks).to_dict()["workers"] if w["work"].endswith(work)]
    assert len(found) <= 1, found
    return found[0] if found else {**dict.fromkeys(WORKER), "waits_for": ""}


def queue_of(runtime: cmwq.Runtime, name: str) -> cmwq.QueueView:
    return next(view for view in runtime.snapshot().queues if view.name == name)


# ----------------------------------------------------------------------------------- the contract


def test_H1_the_picture_has_what_version_1_promises_and_is_JSON(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    assert universe.snapshot().uptime == 0.0, "nothing has run"
    held = wq.submit(gate)
    gate.await_arrivals(1)
    seen = universe.snapshot(stacks=True).to_dict()
    assert json.loads(json.dumps(seen)) == seen
    assert seen.keys() == TOP
    assert (seen["version"], seen["python"]) == (1, sys.version.split()[0])
    assert seen["uptime"] > 0
    assert seen["memory"].keys() == {"held", "used", "limit", "source"}
    assert all(worker.keys() == WORKER for worker in seen["workers"])
    assert all(function.keys() == FUNCTION for function in seen["functions"])
    assert {"cpu_seconds", "why"} <= seen["pools"][0].keys()
    new = {"started", "completed", "failed", "cpu_seconds", "wakeups", "why", "waiting", "running"}
    assert new <= seen["queues"][0].keys()
    gate.open.set()
    held.result(HANG)
    wq.flush()
    histogram = universe.snapshot().to_dict()["queues"][0]["running"]
    assert histogram["bounds"] == list(BOUNDS)
    assert len(histogram["counts"]) == len(BOUNDS) + 1
    assert sum(histogram["counts"]) == histogram["sampled"] == 1


def test_H1_a_picture_that_was_taken_does_not_change(universe: cmwq.Runtime, gate: Gate) -> None:
    held = cmwq.WorkQueue("q", runtime=universe).submit(gate)
    gate.await_arrivals(1)
    first = universe.snapshot()
    before = first.to_dict()
    before["workers"][0]["name"] = "changed by whoever got it"
    again = first.to_dict()
    assert again["workers"][0]["name"].startswith("cmwq/")
    gate.open.set()
    held.result(HANG)
    universe.snapshot()
    assert first.to_dict() == again
    assert [worker.name for worker in first.workers] == [worker["name"] for worker in again["workers"]]


# ----------------------------------------------------------------------------------- workers


@linux
def test_H1_a_lone_sleeper_is_seen_to_block_though_no_sensor_looks(runtime: cmwq.Runtime) -> None:
    """Nothing else is queued, so no sensor is armed. The words name the connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    served, _ = listener.accept()
    own, peer = (f"127.0.0.1:{one.getsockname()[1]}" for one in (client, listener))

    def reads() -> bytes:
        return client.recv(1)

    future = cmwq.WorkQueue("net", runtime=runtime).submit(reads)
    try:
        until(lambda: "recvfrom" in worker_of(runtime, "reads")["waits_for"])
        worker = worker_of(runtime, "reads")
        assert worker["state"] == "blocked"
        assert f"the TCP connection {own} to {peer} (fd {client.fileno()})" in worker["waits_for"]
        pool = runtime.snapshot().pools[0]
        assert (pool.running, pool.blocked) == (0, 1)
    finally:
        served.send(b"x")
        future.result(HANG)
        for one in (listener, client, served):
            one.close()


@linux
def test_H1_waits_are_told_in_words(universe: cmwq.Runtime) -> None:
    wq, done = cmwq.WorkQueue("q", runtime=universe), threading.Event()
    reading, writing = os.pipe()
    here, there = socket.socketpair()
    here.settimeout(HANG)  # so it is polled
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    def inner() -> None:
        done.wait(HANG)

    def asks() -> None:
        wq.submit(inner).result(HANG)

    def sleeps() -> None:
        while not done.is_set():
            time.sleep(0.2)

    def pipe() -> bytes:
        return os.read(reading, 1)

    def polls() -> bytes:
        return here.recv(1)

    def child_ends() -> int:
        return child.wait()

    gil = getattr(sys, "_is_gil_enabled", lambda: True)()  # without one no stack is looked at for that
    expected: dict[Callable[[], object], str] = {
        pipe: "waits in read() for a pipe",
        polls: "waits in poll() for the Unix socket",
        child_ends: f"waits for child process {child.pid}, ",
        sleeps: "sleeps (",
        asks: "waits for the result of call ",
        inner: f"waits for the Event done to be set ({Path(__file__).name}:" if gil else "waits for a lock",
    }
    futures = [wq.submit(work) for work in expected if work is not inner]
    try:
        for work, words in expected.items():

            def told(name: str = work.__name__, words: str = words) -> bool:
                worker = worker_of(universe, f".{name}", True)
                return worker["state"] == "blocked" and worker["waits_for"].startswith(words)

            until(told)
    finally:
        done.set()
        os.write(writing, b"x")
        there.send(b"x")
        assert child.stdin is not None
        child.stdin.close()
        for future in futures:
            future.result(HANG)
        here.close()
        there.close()
        os.close(reading)
        os.close(writing)


def test_H1_who_computes_is_seen_to_run_and_its_CPU_time_grows(universe: cmwq.Runtime) -> None:
    stop: list[bool] = []

    def computes() -> None:
        while not stop:
            pass

    future = cmwq.WorkQueue("q", runtime=universe).submit(computes)
    try:
        until(lambda: queue_of(universe, "q").started == 1)
        until(lambda: (worker_of(universe, "computes")["cpu_seconds"] or 0) > 0.02)
        assert worker_of(universe, "computes")["state"] == "running"
        seen = universe.snapshot()
        assert seen.pools[0].cpu_seconds is not None
        assert seen.pools[0].cpu_seconds >= seen.queues[0].cpu_seconds >= 0.02, "while it runs, too"
    finally:
        stop.append(True)
    future.result(HANG)


def test_H1_stacks_are_of_the_work_and_only_there_if_asked_for(universe: cmwq.Runtime, gate: Gate) -> None:
    held = cmwq.WorkQueue("q", runtime=universe).submit(gate)
    gate.await_arrivals(1)
    assert worker_of(universe, "Gate object")["stack"] == []
    stack = worker_of(universe, "Gate object", stacks=True)["stack"]
    assert "conftest.py" in stack[0]
    assert len(stack) <= picture.MAX_FRAMES
    gate.open.set()
    held.result(HANG)


@linux
def test_a_hog_runs_and_is_not_blocked(universe: cmwq.Runtime) -> None:
    """The pool does not count it (A9), but whoever looks wants to see what uses the CPU."""
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(1000))

    with cmwq.WorkQueue("sums", runtime=universe) as queue:
        for _ in range(2 * len(universe.cpus())):
            queue.submit(compute)
        for _ in range(10):
            queue.submit(int)
        try:
            until(lambda: any(pool.nr_hogs for pool in universe.pools()))
            seen = universe.snapshot()
            busy = [worker for worker in seen.workers if worker.work.endswith("compute")]
            assert sum(pool.running for pool in seen.pools) >= len(busy) > 0
            assert sum(pool.blocked for pool in seen.pools) == 0
            assert {worker.state for worker in busy} == {"running"}
        finally:
            over.set()


def test_a_command_of_many_arguments_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of `cmwq exec *`, which is asked for its picture once a second."""
    monkeypatch.setattr(sys, "orig_argv", ["x" * 1000] * 30_000)
    assert cmwq.snapshot().command == ("x" * 200,) * 50


def test_H1_a_picture_is_bounded_in_size_and_in_looks(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    """Those that execute something come first; without stacks only so many threads are looked at, in turn."""
    monkeypatch.setattr(picture, "MAX_WORKERS", 10)
    looks: list[int] = []
    with cmwq.Runtime() as runtime:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        futures = [wq.submit(gate) for _ in range(20)]
        gate.await_arrivals(20)
        look = runtime.host.waits_in

        def looking(tid: int) -> str:
            looks.append(tid)
            return look(tid)

        monkeypatch.setattr(runtime.host, "waits_in", looking)
        seen = runtime.snapshot()
        assert {worker.work for worker in seen.workers} == {"Gate object"}
        assert len(seen.workers) == 10
        assert seen.workers_left_out == seen.pools[0].workers - 10 > 0
        assert len(looks) <= picture.LOOKS
        for _ in range(30):
            runtime.snapshot()
        assert len(set(looks)) == 20
        gate.open.set()
        for future in futures:
            future.result(HANG)


def test_H1_each_worker_names_its_pool_as_the_pool_does(universe: cmwq.Runtime) -> None:
    """Pools of high priority, too, which serve the same CPUs."""
    for name, highpri in (("plain", False), ("high", True)):
        cmwq.WorkQueue(name, highpri=highpri, runtime=universe).submit(int).result(HANG)
    seen = universe.snapshot()
    assert sorted(pool.name for pool in seen.pools) == ["u0", "u0H"]
    assert {worker.pool for worker in seen.workers} == {"u0", "u0H"}


# ----------------------------------------------------------------------------------- queues, functions, histograms


def fails() -> None:
    raise LookupError


def test_H1_what_comes_slowly_is_measured_exactly(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    for _ in range(5):
        wq.submit(time.sleep, 0.02).result(HANG)
        wq.flush()
    assert isinstance(wq.submit(fails).exception(HANG), LookupError)
    wq.flush()
    view = queue_of(universe, "q")
    assert (view.started, view.completed, view.failed) == (6, 6, 1)
    assert view.running is not None
    assert view.waiting is not None
    assert view.running.sampled == view.waiting.sampled == 6
    assert view.running.sum >= 0.1
    assert sum(view.running.counts[: BOUNDS.index(1e-2) + 1]) <= 1, "the one that failed at once"
    by_name = {function.name: function for function in universe.snapshot().functions}
    sleep, failing = by_name["sleep"], by_name["fails"]
    assert (sleep.queue, sleep.ended, sleep.failed, sleep.running) == ("q", 5, 0, 0)
    assert sleep.seconds >= 0.1 > sleep.cpu_seconds
    assert (failing.ended, failing.failed) == (1, 1)


def test_H1_of_a_flood_a_sample_is_measured_that_stands_for_all(universe: cmwq.Runtime) -> None:
    wq, number = cmwq.WorkQueue("q", runtime=universe), 20_000
    for future in [wq.submit(len, "x") for _ in range(number)]:
        future.result(HANG)
    wq.flush()
    view = queue_of(universe, "q")
    assert (view.started, view.completed, view.failed) == (number, number, 0)
    assert view.running is not None
    assert 1 <= view.running.sampled < number / 10
    (function,) = universe.snapshot().functions
    assert view.running.sampled <= function.ended <= number


def test_H1_a_worker_woken_because_another_blocks_is_counted_for_the_queue_that_waited(gate: Gate) -> None:
    with cmwq.Runtime(cpus=[min(cmwq.default_runtime().cpus())]) as runtime:
        first, second = (cmwq.WorkQueue(name, runtime=runtime) for name in ("first", "second"))
        meeting = threading.Barrier(2)
        for future in [first.submit(meeting.wait, HANG), second.submit(meeting.wait, HANG)]:
            future.result(HANG)
        until(lambda: runtime.snapshot().pools[0].idle >= 3)  # so that none who is woken has to create others first
        before = [queue_of(runtime, name).wakeups for name in ("first", "second")]
        futures = [first.submit(gate), second.submit(gate)]
        gate.await_arrivals(2)
        after = [queue_of(runtime, name).wakeups for name in ("first", "second")]
        assert [new - old for new, old in zip(after, before, strict=True)] == [0, 1]
        gate.open.set()
        for future in futures:
            future.result(HANG)


def test_H1_CPU_time_is_charged_to_the_queue_whose_works_used_it(universe: cmwq.Runtime) -> None:
    def burn() -> None:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass

    heavy, light = (cmwq.WorkQueue(name, runtime=universe) for name in ("heavy", "light"))
    for _ in range(3):
        heavy.submit(burn).result(HANG)
        light.submit(int).result(HANG)
    seen = universe.snapshot(stacks=True)
    views = {view.name: view for view in seen.queues}
    assert views["heavy"].cpu_seconds >= 0.1
    assert views["light"].cpu_seconds < 0.05
    assert (seen.pools[0].cpu_seconds or 0) >= views["heavy"].cpu_seconds + views["light"].cpu_seconds - 1e-6


def test_H4_a_work_whose_end_is_being_told_has_completed(universe: cmwq.Runtime, gate: Gate) -> None:
    """Its callbacks run on the worker, which is still busy with it."""
    wq, begin = cmwq.WorkQueue("q", runtime=universe), threading.Event()
    future = wq.submit(begin.wait, HANG)
    future.add_done_callback(lambda _: gate())
    begin.set()
    gate.await_arrivals(1)
    seen = universe.snapshot()
    assert (seen.queues[0].started, seen.queues[0].completed) == (1, 1)
    assert (seen.pools[0].started, seen.pools[0].completed) == (1, 1)
    gate.open.set()
    wq.flush(HANG)
    assert queue_of(universe, "q").completed == 1


# ----------------------------------------------------------------------------------- why


def test_H1_the_picture_says_why_no_more_worker_was_started() -> None:
    sim = Simulation(cpus=1)
    told: dict[str, str] = {}

    def main() -> None:
        with sim.runtime(max_workers=5) as runtime:
            wq = cmwq.WorkQueue("q", max_active=1, freezable=True, runtime=runtime)
            other = cmwq.WorkQueue("other", runtime=runtime)
            burning = wq.submit(sim.burn, 1.0)
            sim.sleep(0.001)
            told["nothing"] = runtime.snapshot().pools[0].why + queue_of(runtime, "q").why
            wq.submit(int)
            told["pool"], told["queue"] = runtime.snapshot().pools[0].why, queue_of(runtime, "q").why
            other.submit(int)
            told["target"] = runtime.snapshot().pools[0].why
            burning.result()
            wq.flush()
            runtime.freeze()
            wq.submit(int)
            told["frozen"] = queue_of(runtime, "q").why
            runtime.thaw()
            futures = [other.submit(sim.sleep, 10.0) for _ in range(6)]
            sim.sleep(5.0)
            told["capped"] = runtime.snapshot().pools[0].why
            for future in futures:
                future.result()

    sim.run(main)
    assert told["nothing"] == ""
    assert told["queue"] == "max_active is 1, and 1 work has a place"
    assert told["pool"] == f"nothing waits for a worker; works of queue 'q' wait for their place: {told['queue']}"
    assert told["target"].startswith("as many run as may: 1 of 1 that may run is believed to run")
    assert told["frozen"] == "it is frozen"
    assert told["capped"] == "it has as many workers as it may have (max_workers is 5); without a rescuer: 'other'"


def test_the_reason_counts_those_that_wait_for_a_lock_as_blocked(universe: cmwq.Runtime) -> None:
    lock = threading.Lock()

    def want() -> None:
        with lock:
            pass

    with cmwq.WorkQueue("q", runtime=universe) as queue:
        with lock:
            for _ in range(20):
                queue.submit(want)
            pool = universe.pools()[0]

            def seen_on_lock() -> int:
                with pool.lock:
                    return [worker.blocked for worker in pool.workers].count(SEEN_ON_LOCK)

            until(lambda: seen_on_lock() >= 10)
            with pool.lock:
                blocked = sum(worker.blocked is not None for worker in pool.workers)
                assert f"{blocked} to block" in reasons._as_seen(pool)


def test_H3_the_last_reports_of_stalls_are_in_the_picture() -> None:
    sim = Simulation(cpus=1)
    seen: list[cmwq.StallView] = []

    def main() -> None:
        with sim.runtime(watchdog=True) as runtime:
            wq = cmwq.WorkQueue("q", ordered=True, runtime=runtime)
            wq.submit(sim.sleep, 60.0)
            wq.submit(sim.sleep, 3.0).result()
            seen.extend(runtime.snapshot().stalls)

    sim.run(main)
    assert [(stall.queue, stall.over) for stall in seen] == [("q", False), ("q", True)]
    assert "it is ordered" in seen[0].text
    assert seen[0].time < seen[1].time


# ----------------------------------------------------------------------------------- counters that add up


def check_sums(runtime: cmwq.Runtime) -> None:
    seen = runtime.snapshot()
    for queue in seen.queues:
        assert queue.completed <= queue.started, queue
        assert queue.failed <= queue.started, queue
    for pool in seen.pools:
        workers = [worker for worker in seen.workers if worker.pool == pool.name]
        assert len(workers) == pool.workers
        assert 0 <= pool.started - pool.completed <= sum(bool(worker.item) for worker in workers)
        assert pool.running + pool.blocked <= pool.workers


def test_H4_a_picture_of_thousands_of_queues_holds_up_no_work(
    universe: cmwq.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its critical sections are short, and works run to their end between any two of them."""
    queues = [cmwq.WorkQueue(f"tenant {n}", runtime=universe) for n in range(1001)]
    for queue in queues:
        queue.submit(int)
    for queue in queues:
        queue.flush(HANG)
    read: list[int] = [0]

    class Counted(place_view.Place):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            read[-1] += 1

    class Pause:
        def park(self, timeout: float) -> None:
            assert queues[0].submit(len, "abc").result(HANG) == 3, "the lock is free"
            read.append(0)

    monkeypatch.setattr(place_view, "Place", Counted)
    monkeypatch.setattr(picture, "Place", Counted)
    own, first = universe.host.parker, [Pause()]
    monkeypatch.setattr(universe.host, "parker", lambda: first.pop() if first else own())
    seen = universe.snapshot()
    assert sum(read) == 1001
    assert max(read) <= 100
    assert len(seen.queues) == len(queues)
    assert all(view.completed >= 1 for view in seen.queues)
    assert all(view.started >= view.completed for view in seen.queues)


def test_H4_of_many_queues_those_with_works_are_read_together_with_their_pool() -> None:
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(check_every=1000) as runtime:
            queues = [cmwq.WorkQueue(f"q{n}", max_active=1, runtime=runtime) for n in range(3 * AT_ONCE)]
            for queue in queues:
                queue.submit(int).result()
            for queue in (busy := queues[:: 3 * AT_ONCE // 50]):
                queue.submit(sim.sleep, 1.0)
                queue.submit(sim.sleep, 1.0)
            sim.sleep(0.5)
            seen = runtime.snapshot()
            (pool,) = seen.pools
            works = {view.name: (view.started, view.completed, view.active, view.inactive) for view in seen.queues}
            assert works == {queue.name: (2, 1, 1, 1) if queue in busy else (1, 1, 0, 0) for queue in queues}
            assert sum(view.started for view in seen.queues) == pool.started
            assert pool.inactive == len(busy)
            for queue in queues:
                queue.submit(sim.sleep, 1.0)
            sim.sleep(0.01)
            more = runtime.snapshot().queues
            assert sum(view.started - view.completed for view in more) == len(queues), "those that are read later, too"

    sim.run(main)


@pytest.mark.parametrize("seed", range(12))
def test_H4_counters_add_up_with_hotplug_cancellation_rescuers_and_freezing_at_once(seed: int) -> None:
    sim = Simulation(cpus=4, seed=seed, late=0.01)

    def main() -> None:
        with sim.runtime(max_workers=6, config=cmwq.Config(mayday_initial_timeout=0.005)) as runtime:
            queues = [
                cmwq.WorkQueue("plain", runtime=runtime),
                cmwq.WorkQueue("cold", freezable=True, max_active=2, runtime=runtime),
                cmwq.WorkQueue("sure", rescuer=True, scope="cpu", runtime=runtime),
                cmwq.WorkQueue("row", ordered=True, runtime=runtime),
            ]
            sim.host.refuse_during((0.02, 0.2))
            works = [lambda: sim.sleep(0.004), lambda: sim.burn(0.002), fails]
            futures: list[cmwq.Future[Any]] = []
            changes: dict[int, Callable[[], object]] = {
                15: lambda: runtime.cpu_offline(3),
                20: runtime.freeze,
                30: lambda: runtime.cpu_online(3),
                40: runtime.thaw,
            }
            for step in range(60):
                futures.append(queues[step % 4].submit(works[step % 3]))
                if step % 7 == 3:
                    futures[-1].cancel()
                changes.get(step, int)()
                if step % 5 == 0:
                    sim.sleep(0.003)
                check_sums(runtime)
            for wq in queues:
                wq.flush()
            check_sums(runtime)
            seen = runtime.snapshot()
            cancelled = sum(future.cancelled() for future in futures)
            failed = sum(not future.cancelled() and future.exception() is not None for future in futures)
            assert sum(view.completed for view in seen.queues) == 60 - cancelled
            assert sum(pool.completed for pool in seen.pools) == 60 - cancelled
            assert sum(view.failed for view in seen.queues) == failed
            assert all(view.started == view.completed and not view.unfinished for view in seen.queues)
            burnt = 0.002 * sum(step % 3 == 1 and not futures[step].cancelled() for step in range(60))
            spent = sum(view.cpu_seconds for view in runtime.snapshot(stacks=True).queues)
            assert spent <= burnt + 1e-6

    sim.run(main)


def test_H4_counters_add_up_on_real_threads_while_pictures_are_taken(runtime: cmwq.Runtime) -> None:
    queues = [cmwq.WorkQueue("a", runtime=runtime), cmwq.WorkQueue("b", max_active=3, runtime=runtime)]
    stop = threading.Event()
    broken: list[BaseException] = []

    def look() -> None:
        while not stop.is_set():
            try:
                seen = runtime.snapshot()
                for pool in seen.pools:  # all of its figures, and of its queues, are of one moment
                    assert sum(queue.started for queue in seen.queues) == pool.started
                    assert sum(queue.completed for queue in seen.queues) == pool.completed
            except BaseException as exc:
                broken.append(exc)
                return

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        works: list[Callable[[], object]] = [int, fails, lambda: time.sleep(0.0005)]
        futures = [queues[n % 2].submit(works[n % 3]) for n in range(3_000)]
        cancelled = sum(future.cancel() for future in futures[::11])
        for wq in queues:
            wq.flush(HANG)
    finally:
        stop.set()
        watcher.join(HANG)
    assert not broken, broken
    views = runtime.snapshot().queues
    failed = sum(not future.cancelled() and future.exception() is not None for future in futures)
    assert (sum(view.completed for view in views), sum(view.failed for view in views)) == (3_000 - cancelled, failed)
