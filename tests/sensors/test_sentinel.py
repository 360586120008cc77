"""The sentinel by itself: its words, its descriptors, its lookouts. What it is for is tested in tests/real."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from conftest import HANG

from cmwq import ThreadLimit
from cmwq._host import ThreadHost, caps, topology
from cmwq._sensor import procfs, sentinel

if TYPE_CHECKING:
    from cmwq._sensor._sentinel import Lookout, Slot, Watch

pytestmark = pytest.mark.skipif(sentinel.usable() is not None, reason=str(sentinel.usable()))

MANY = 4096
"""Lookouts that one watch has room for."""


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = sentinel._sentinel.Watch()
    yield watch
    watch.stop()


def make_lookout(watch: Watch, *, capacity: int = 4) -> Lookout:
    return watch.lookout(topology.cpus(), 1, capacity)


def is_in_read(tid: int) -> bool:
    """Does this thread sleep in read()? That is the very call that shows itself in one's own file."""
    return procfs._read(tid).split()[0] == procfs._read(threading.get_native_id()).split()[0]


@contextmanager
def sleeper(lookout: Lookout) -> Iterator[Slot]:
    """The slot of a thread that sleeps for something that isn't a lock."""
    slot = lookout.slot()
    ours, theirs = os.pipe()
    there = threading.Event()

    def sleep() -> None:
        slot.attach()
        slot.unpark()
        slot.park()
        there.set()
        os.read(ours, 1)

    thread = threading.Thread(target=sleep)
    thread.start()
    try:
        assert there.wait(HANG)
        assert thread.native_id is not None
        deadline = time.monotonic() + HANG
        while not is_in_read(thread.native_id):  # it may still wait for the GIL, which would be taken for a lock
            assert time.monotonic() < deadline, "the thread never reads"
        yield slot
    finally:
        os.write(theirs, b"x")
        thread.join(HANG)
        os.close(ours)
        os.close(theirs)
        slot.free()


def review(lookout: Lookout, looker: Slot) -> list[tuple[int, bool, bool]]:
    looker.review(MANY)
    return list(lookout.deliver())


def review_until_seen(lookout: Lookout, looker: Slot) -> list[tuple[int, bool, bool]]:
    deadline = time.monotonic() + HANG
    while not (marks := review(lookout, looker)):
        assert time.monotonic() < deadline, "a sleeping thread was never seen to sleep"
    return marks


def syscall_files() -> set[tuple[int, str]]:
    """Descriptors on the syscall file of a thread: number, and which file."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that listed them
        if link.endswith("/syscall"):
            found.add((int(name), link))
    return found


others: set[tuple[int, str]] = set()
"""Those of runtimes that other tests made and that are still there."""


@pytest.fixture(autouse=True)
def _note_what_others_keep() -> None:
    others.clear()
    others.update(syscall_files())


def kept_descriptors() -> list[int]:
    return [number for number, link in syscall_files() - others]


# ------------------------------------------------------------------------------------- slots


def sentinels(others: set[Path]) -> list[int]:
    """The sentinels among the process's threads, but for the others."""
    found = []
    for task in set(Path("/proc/self/task").iterdir()) - others:
        with suppress(OSError):  # it has just ended
            if (task / "comm").read_text().strip() == "cmwq/sentinel":
                found.append(int(task.name))
    return found


def rests(tid: int) -> bool:
    """It sleeps, in the kernel's words."""
    return "(sleeping)" in Path(f"/proc/self/task/{tid}/status").read_text()


def test_A3_sentinels_have_idle_priority(watch: Watch) -> None:
    """Else the kernel gives them their share of a busy CPU, and each look costs the workers two switches."""
    before = set(Path("/proc/self/task").iterdir())
    watch.start(topology.cpus()[0])
    deadline = time.monotonic() + HANG
    while {os.sched_getscheduler(tid) for tid in sentinels(before)} != {os.SCHED_IDLE}:  # it sets its own as it begins
        assert time.monotonic() < deadline


def turn(tid: int) -> int | None:
    """How long a turn the thread asks for, ns (sched_getattr(2)); None: this kernel doesn't say (before Linux 6.12)."""
    libc, attr = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint64 * 6)()
    number = {"x86_64": 315, "aarch64": 275}.get(os.uname().machine)
    if number is None or libc.syscall(number, tid, attr, ctypes.sizeof(attr), 0):
        return None
    return attr[3] or None


@pytest.mark.skipif(turn(0) is None, reason="the kernel has no turns of a length of one's own (Linux 6.12)")
def test_G3_sentinels_ask_for_the_shortest_turns(watch: Watch) -> None:
    """The longer a turn is, the later it comes to a thread of idle priority on a busy CPU, and it needs one to end.
    With the kernel's usual 3 ms a process ends a second or two after it has finished."""
    before = set(Path("/proc/self/task").iterdir())
    watch.start(topology.cpus()[0])
    deadline = time.monotonic() + HANG
    while {turn(tid) for tid in sentinels(before)} != {100_000}:
        assert time.monotonic() < deadline
    assert turn(0) != 100_000


def test_G4_a_sentinel_on_a_busy_cpu_sleeps_once_no_work_waits(watch: Watch) -> None:
    """Being kept off its CPU is an event only while it looks out for somebody."""
    cpu = topology.cpus()[0]
    before = set(Path("/proc/self/task").iterdir())
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            os.sched_setaffinity(busy.pid, {cpu})
            lookout = make_lookout(watch)
            watch.start(cpu)
            lookout.arm(lookout.slot())
            lookout.arm(None)
            deadline = time.monotonic() + HANG
            while not all(rests(tid) for tid in sentinels(before) or [os.getpid()]):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            busy.kill()


def test_a_sleeping_thread_is_marked_once_and_anew_after_the_end_of_an_item(watch: Watch) -> None:
    lookout = make_lookout(watch)
    looker = lookout.slot()
    with sleeper(lookout) as slot:
        assert review_until_seen(lookout, looker) == [(slot.index, True, False)]
        assert review(lookout, looker) == []
        slot.ended()
        assert review(lookout, looker) == [(slot.index, True, False)]


def test_a_look_ends_where_it_could_change_nothing_any_more(watch: Watch) -> None:
    """`enough` others were seen to run: none here, so none need be."""
    lookout = make_lookout(watch)
    looker = lookout.slot()
    with sleeper(lookout) as slot:
        looker.review(0)
        assert lookout.deliver() == ()
        assert review_until_seen(lookout, looker) == [(slot.index, True, False)]


def test_no_more_than_an_eighth_of_the_descriptors_is_kept(python: Python) -> None:
    done = python("""
        import os, resource, threading
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        from cmwq._sensor import _sentinel
        lookout = _sentinel.Watch().lookout((0,), 1, 32)
        looker, there, (pipe, _) = lookout.slot(), threading.Semaphore(0), os.pipe()
        def sleep(slot):
            slot.attach(), slot.unpark(), slot.park(), there.release(), os.read(pipe, 1)
        slots = [lookout.slot() for _ in range(20)]
        threads = [threading.Thread(target=sleep, args=(slot,), daemon=True) for slot in slots]
        for thread in threads: thread.start()
        for _ in threads: there.acquire()
        seen = []
        while len(seen) < 20: looker.review(99); seen += lookout.deliver()
        files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        print(sum(file.endswith("/syscall") for file in files), flush=True)
        os._exit(0)  # not what is tested: how such an improvised lookout ends
    """)
    assert done.stdout.strip() == "8", done.stderr


def test_an_unpark_that_comes_late_does_not_end_an_exemption(watch: Watch) -> None:
    lookout = make_lookout(watch)
    looker = lookout.slot()
    with sleeper(lookout) as slot:
        assert review_until_seen(lookout, looker)
        slot.exempt(True)
        slot.unpark()
        assert review(lookout, looker) == []
        slot.exempt(False)
        assert review(lookout, looker) == [(slot.index, True, False)]


def test_a_free_slot_is_not_looked_at_even_if_it_is_unparked(watch: Watch) -> None:
    lookout = make_lookout(watch)
    looker = lookout.slot()
    with sleeper(lookout) as slot:
        assert review_until_seen(lookout, looker)
        slot.free()
        slot.unpark()
        assert review(lookout, looker) == []
        assert lookout.slot().index == slot.index
    assert kept_descriptors() == []


def test_a_slot_is_freed_once_for_by_then_it_may_be_anothers(watch: Watch) -> None:
    lookout = make_lookout(watch)
    first = lookout.slot()
    first.free()
    second = lookout.slot()
    assert second.index == first.index
    first.free()
    assert lookout.slot().index != second.index


def test_slots_taken_by_several_threads_at_once_are_different(watch: Watch) -> None:
    threads, each = 4, 50
    lookout = make_lookout(watch, capacity=threads * each)
    start = threading.Barrier(threads)
    slots: list[Slot] = []

    def take() -> None:
        start.wait(HANG)
        slots.extend(lookout.slot() for _ in range(each))

    takers = [threading.Thread(target=take) for _ in range(threads)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join(HANG)
    assert sorted(slot.index for slot in slots) == list(range(threads * each))
    with pytest.raises(RuntimeError, match="every place"):
        lookout.slot()
    slots[7].free()
    assert lookout.slot().index == slots[7].index


# ------------------------------------------------------------------------------------- descriptors


def test_a_kept_descriptor_that_became_another_file_is_neither_read_nor_closed(watch: Watch, tmp_path: Path) -> None:
    lookout = make_lookout(watch)
    looker = lookout.slot()
    (tmp_path / "file").write_bytes(b"running")
    with sleeper(lookout) as slot, open(tmp_path / "file") as file:
        assert review_until_seen(lookout, looker)
        (kept,) = kept_descriptors()
        os.dup2(file.fileno(), kept)  # as after os.closerange()
        slot.ended()
        assert review(lookout, looker) == [(slot.index, True, False)]
        assert len(kept_descriptors()) == 1
        slot.free()
        assert kept_descriptors() == []
        assert os.path.sameopenfile(file.fileno(), kept)
        os.close(kept)


NO_DESCRIPTORS = """
    import os, resource, threading
    from cmwq._host import topology
    pipe, taken = os.pipe(), []
    def use_up_descriptors():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        try:
            while True: taken.append(os.dup(0))
        except OSError:
            pass
    def give_them_back():  # the C library needs one for a thread's end
        for fd in taken: os.close(fd)
"""
Python = Callable[..., "subprocess.CompletedProcess[str]"]


def test_without_descriptors_nobody_is_woken_in_vain(python: Python) -> None:
    """The CPU clock is left to go by: it is woken when the sleeper was marked, not before."""
    done = python(
        NO_DESCRIPTORS
        + """
    from cmwq._sensor._sentinel import Watch
    watch = Watch()
    for cpu in (-1, *topology.cpus()): watch.start(cpu)
    lookout = watch.lookout(topology.cpus(), 1, 3)
    slot, reserve = lookout.slot(), lookout.slot()
    there = threading.Event()
    def sleep():
        slot.attach(); slot.unpark(); slot.park(); there.set(); os.read(pipe[0], 1)
    thread = threading.Thread(target=sleep); thread.start(); there.wait()
    use_up_descriptors()
    reserve.attach()
    lookout.arm(reserve)
    print(reserve.park(40), *lookout.deliver(), watch.statistics()["wakes"])
    give_them_back(); os.write(pipe[1], b"x"); thread.join(); watch.stop()
    """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True (0, True, False) 1\n", "", 0)


def test_A4_blocking_is_noticed_without_descriptors(python: Python, sensor: str) -> None:
    done = python(
        NO_DESCRIPTORS
        + f"""
    import cmwq
    with cmwq.Runtime(sensor={sensor!r}) as runtime:
        executor = cmwq.Executor(runtime=runtime)
        target = executor.submit(runtime.snapshot).result().pools[0].target
        arrived, gate = threading.Semaphore(0), threading.Event()
        def read(): arrived.release(); os.read(pipe[0], 1)
        def wait(): arrived.release(); gate.wait()
        use_up_descriptors()
        works = [executor.submit(block) for _ in range(target + 1) for block in (read, wait)]
        print(all(arrived.acquire(timeout=40) for _ in works))
        give_them_back(); os.write(pipe[1], b"x" * len(works)); gate.set()
    """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


# ------------------------------------------------------------------------------------- lookouts


def test_a_lookout_that_was_given_up_is_used_again(watch: Watch) -> None:
    lookouts = [make_lookout(watch) for _ in range(MANY)]
    with pytest.raises(RuntimeError, match="too many"):
        make_lookout(watch)
    lookout = lookouts.pop()
    looker = lookout.slot()
    with sleeper(lookout) as slot:
        assert review_until_seen(lookout, looker)
        slot.ended()
        looker.review(MANY)  # a mark that is not delivered
        lookout.arm(looker)
        lookout.acquire()
        del lookout, looker
        with pytest.raises(RuntimeError, match="too many"):
            make_lookout(watch)  # as long as there is a slot somebody may use it
    del slot
    with pytest.raises(RuntimeError, match="too many"):
        make_lookout(watch, capacity=1000)  # it has not so many places
    again = make_lookout(watch)
    assert not again.locked()
    assert not again.deliver()
    assert again.slot().index == 0
    assert kept_descriptors() == []


def test_pools_may_come_and_go_under_the_eyes_of_the_sentinels(watch: Watch) -> None:
    for cpu in (-1, *topology.cpus()):
        watch.start(cpu)
    for _ in range(100):
        lookout = make_lookout(watch)
        lookout.arm(lookout.slot())  # and nobody comes
        del lookout
        lookout = make_lookout(watch)
        reserve = lookout.slot()
        reserve.attach()
        lookout.arm(reserve)
        assert reserve.park(HANG)


@pytest.mark.skipif(not ThreadHost().gil_enabled(), reason="no GIL")
def test_who_waits_for_the_gil_does_not_hold_the_pools_lock(python: Python) -> None:
    """Else whoever has the GIL stops at its next item, and two workers change places, at four switches, for each.

    A thread gives up the GIL once it sleeps for the lock. Then it gets the lock, but not the GIL for a moment.
    """
    done = python("""
        import sys, threading, time
        from cmwq._sensor import _sentinel
        sys.setswitchinterval(60)  # from now on a thread has the GIL until it gives it up
        lock = _sentinel.Watch().lookout((0,), 1, 1)
        def wait():
            there.release()
            with lock: pass
        free = 0
        for _ in range(100):
            lock.acquire()
            there = threading.Semaphore(0)
            thread = threading.Thread(target=wait)
            thread.start()
            there.acquire()
            lock.release()
            end = time.perf_counter() + 1e-3
            while time.perf_counter() < end: pass
            free += not lock.locked()
            thread.join()
        print(free)
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("100\n", "", 0)


# ------------------------------------------------------------------------------------- the Sensor


class RefusedThreads:
    """A `Watch` that can have no thread, for a while."""

    def __init__(self, refuses: str) -> None:
        self.refuses = refuses
        self.done: list[str] = []

    def _do(self, what: str) -> None:
        if what.startswith(self.refuses):
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        self.done.append(what)

    def learn_gil(self) -> bool:
        self._do("learn_gil")
        return True

    def start(self, cpu: int) -> None:
        self._do(f"start {cpu}")

    def lookout(self, *_: object) -> Any:
        return SimpleNamespace(set_target=None, set_cpus=None, slot=lambda: None)


class ScriptedHost(ThreadHost):
    """So many CPUs, so many of them by the quota, so many threads below the caps."""

    def __init__(self, cpus: int, *, limit: int, room: int = 1 << 30) -> None:
        super().__init__()
        self._numbers, self._limit, self.room = tuple(range(cpus)), limit, room

    def gil_enabled(self) -> bool:
        return True

    def cpus(self) -> tuple[int, ...]:
        return self._numbers

    def cpu_limit(self) -> int:
        return self._limit

    def thread_headroom(self, *, needed: bool = False) -> int:
        self.room -= 1
        return self.room + 1 - (0 if needed else caps.SPARE)


def make_sensor(host: ThreadHost, monkeypatch: pytest.MonkeyPatch, refuses: str = "nothing") -> tuple[Any, list[str]]:
    """And what its native threads are told."""
    sensor = sentinel.make(host, "")
    fake = RefusedThreads(refuses)
    monkeypatch.setattr(sensor, "_watch", cast("Watch", fake))
    return sensor, fake.done


def fake_pool(*cpus: int, target: int | None = None) -> Any:
    return SimpleNamespace(name="u0", cpus=cpus, target=target or len(cpus), office=SimpleNamespace(max_workers=3))


@pytest.mark.parametrize("refused", ["learn_gil", "start -1", "start 1"])
def test_B6_sentinels_that_are_refused_are_posted_with_a_later_worker(
    monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    sensor, done = make_sensor(ScriptedHost(2, limit=2), monkeypatch, refused)
    lookout = sensor.lookout(fake_pool(0, 1))
    assert refused not in done
    sensor._watch.refuses = "nothing"
    lookout.parker()
    assert sorted(done) == ["learn_gil", "start -1", "start 0", "start 1"]
    lookout.parker()
    assert len(done) == 4


def test_B6_no_more_sentinels_than_may_run_by_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """But each pool has one on a CPU of its own."""
    sensor, done = make_sensor(ScriptedHost(96, limit=2), monkeypatch)
    sensor.lookout(fake_pool(*range(96), target=2))
    assert done == ["learn_gil", "start -1", "start 0", "start 1"]
    sensor.lookout(fake_pool(*range(96), target=1 << 30))  # one whose CPU left: all may run there
    sensor.cpus_changed()
    assert len(done) == 4
    sensor.lookout(fake_pool(70))
    assert done[4:] == ["start 70"]


def test_B6_where_threads_are_few_sentinels_leave_half_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    host = ScriptedHost(96, limit=96, room=98)  # of 100
    sensor, done = make_sensor(host, monkeypatch)
    lookout = sensor.lookout(fake_pool(*range(96)))
    started = sum(each.startswith("start") for each in done)
    assert 40 <= started <= 50
    host.room = 98 - started
    for _ in range(10):
        lookout.parker()
    assert sum(each.startswith("start") for each in done) <= 50
    host.room = 1000
    lookout.parker()
    assert sum(each.startswith("start") for each in done) == 97


@pytest.mark.parametrize(
    ("room", "started"), [(2, []), (3, ["start -1"]), (5, ["start -1"]), (7, ["start -1", "start 0"])]
)
def test_B6_the_last_threads_are_left_to_the_first_worker_and_its_reserve(
    monkeypatch: pytest.MonkeyPatch, room: int, started: list[str]
) -> None:
    sensor, done = make_sensor(ScriptedHost(1, limit=1, room=room), monkeypatch)
    sensor.lookout(fake_pool(0))
    assert done[1:] == started


def test_too_many_pools_are_a_thread_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Any:
        raise RuntimeError("too many pools for one watch")

    sensor = sentinel.make(ThreadHost(), "")
    monkeypatch.setattr(sensor, "_watch", cast("Watch", SimpleNamespace(lookout=refuse)))
    with pytest.raises(ThreadLimit, match="too many pools"):
        sensor.lookout(
            cast("Any", SimpleNamespace(name="u0", cpus=(0,), target=1, office=SimpleNamespace(max_workers=3)))
        )
