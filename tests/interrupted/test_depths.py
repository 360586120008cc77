"""F10 at the recursion limit, where RecursionError comes again and again: in what undoes something, too.

The sweeps call operations at every depth near the limit. The other tests are of what once broke.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

import cmwq
from cmwq._core import surely
from cmwq._host import ThreadHost
from interrupted.attacks import dig, room
from interrupted.operations import OPERATIONS
from interrupted.sweep import Sweep

SEED = int(os.environ.get("CMWQ_SEED", "1"))
DRAINS = ["drain", "drain, served"]
UNDONE = [
    "cancel_sync, pending", "cancel_sync, running", "cancel, with a future",
    "Future.cancel, callbacks", "Future.cancel, cf.wait", "Future.cancel, max_pending", "submit, max_pending",
    "queue, max_pending", "mod_delayed, pending", "freeze, thaw", "result(timeout)", "Batch",
]  # fmt: skip
"""The operations that have to undo something, or finish it, when they fail."""


def sweep(names: list[str], locks: str, samples: int = 0) -> Sweep:
    done = Sweep("depth", "procfs", SEED, locks=locks, samples=samples, hangs=1, enough=3, most=5, patience=10.0)
    done.run(names)
    return done


@pytest.mark.timeout(900)  # of code that is broken; else half a minute
@pytest.mark.parametrize("locks", ["", "python"])
def test_F10_a_recursion_error_at_any_depth_leaves_nothing_undone(locks: str) -> None:
    done = sweep(UNDONE, locks)
    assert done.whole, done.failures()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("locks", ["", "python"])
def test_F3_a_drain_that_fails_at_the_recursion_limit_opens_the_queue_again(locks: str) -> None:
    done = sweep(DRAINS, locks)
    assert done.whole, done.failures()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("locks", ["", "python"])
def test_F10_a_recursion_error_in_any_operation_leaves_everything_whole(locks: str) -> None:
    done = sweep([name for name in OPERATIONS if name not in (*UNDONE, *DRAINS)], locks, samples=6)
    assert done.whole, done.failures()


@pytest.fixture
def runtime() -> Iterator[cmwq.Runtime]:
    with cmwq.Runtime() as runtime:
        yield runtime


def at_each_depth(call: Callable[[], object], before: Callable[[], object] = int) -> None:
    """Make the call with ever fewer frames left, until there are none."""
    most = room()
    for frames in range(most - surely.ASKED_FRAMES - 20, most):
        before()
        with suppress(RecursionError):
            dig(frames, call)


def test_F10_what_undoes_has_room_wherever_something_could_be_begun() -> None:
    begun, undone = [], []

    def undo() -> None:
        surely.frames(surely.MORE_FRAMES - 10)
        undone.append(True)

    def call() -> None:
        with surely.surely(undo):
            begun.append(True)

    at_each_depth(call)
    assert begun
    assert undone == begun


def test_F5_a_cancel_sync_that_fails_at_the_recursion_limit_does_not_block_its_work(runtime: cmwq.Runtime) -> None:
    queue, work = cmwq.WorkQueue("q", runtime=runtime), cmwq.Work(time.sleep, 0.002)
    at_each_depth(work.cancel_sync, before=lambda: queue.queue(work))
    assert not work.is_blocked
    work.flush(30)
    assert queue.queue(work)


@pytest.mark.parametrize("what", ["queue", "submit a work", "submit"])
def test_E9_no_place_is_lost_to_a_recursion_error(runtime: cmwq.Runtime, what: str) -> None:
    queue = cmwq.WorkQueue("q", max_pending=2, full="raise", runtime=runtime)
    work = cmwq.Work(int)
    calls = {"queue": lambda: queue.queue(work), "submit a work": lambda: queue.submit(work)}
    at_each_depth(calls.get(what, lambda: queue.submit(int)), before=lambda: queue.flush(30))
    queue.flush(30)
    assert queue._room is not None
    assert queue._room.taken == 0


def test_F10_a_thread_that_is_asked_for_at_the_recursion_limit_is_not_said_to_be_refused() -> None:
    host = ThreadHost()
    at_each_depth(lambda: host.spawn("one", int))  # RecursionError, and no ThreadLimit


def test_F10_what_undoes_has_frames_beyond_the_limit_and_what_it_calls_no_more_of_them() -> None:
    most = room()
    for at_any_depth in (surely.at_any_depth, surely.py_at_any_depth):
        if at_any_depth is surely.py_at_any_depth and surely.FREE_THREADED:
            continue  # it asks for them before

        def so_deep(times: int, at_any_depth: Callable[..., int] = at_any_depth) -> int:
            return at_any_depth(so_deep, times - 1) if times else room()

        plain, once, again = (dig(most - 30, lambda times=times: so_deep(times)) for times in range(3))
        assert plain < 30 < surely.MORE_FRAMES <= once
        assert once - 10 < again <= once
        assert room() == most


def test_F10_the_recursion_limit_that_somebody_sets_meanwhile_stays() -> None:
    before, most = sys.getrecursionlimit(), room()
    try:
        dig(most - 10, lambda: surely.py_at_any_depth(sys.setrecursionlimit, before + 500))
        assert sys.getrecursionlimit() == before + 500
        sys.setrecursionlimit(before)
        dig(most - 10, lambda: surely.py_at_any_depth(int))
        assert sys.getrecursionlimit() == before
    finally:
        sys.setrecursionlimit(before)
