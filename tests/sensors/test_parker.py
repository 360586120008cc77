"""Parkers: each unpark ends one park, whether it comes before, while the thread spins, or once it sleeps."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest
from conftest import HANG

from cmwq._core.ports import Parker
from cmwq._host.parker import LockParker

try:
    from cmwq._sensor import _sentinel
except ImportError:
    _sentinel = None  # type: ignore[assignment]

needs_c = pytest.mark.skipif(_sentinel is None, reason="the C extension was not built")


KINDS: dict[str, Callable[[], Callable[[], Parker]]] = {
    "lock": lambda: LockParker,
    "parker": lambda: _sentinel.Parker,
    "slot": lambda: _sentinel.Watch().lookout((0,), 1, 8).slot,
}


@pytest.fixture(params=["lock", pytest.param("parker", marks=needs_c), pytest.param("slot", marks=needs_c)])
def new(request: pytest.FixtureRequest) -> Callable[[], Parker]:
    return KINDS[request.param]()


@pytest.mark.parametrize("spins", [False, True])
def test_an_early_unpark_is_kept_once(new: Callable[[], Parker], spins: bool) -> None:
    parker = new()
    parker.unpark()
    parker.unpark()
    assert parker.park(-1, spins)
    assert not parker.park(0.001, spins)
    assert not parker.park(0, spins)


@pytest.mark.parametrize("spins", [False, True])
def test_it_sleeps_no_less_than_its_timeout(new: Callable[[], Parker], spins: bool) -> None:
    parker = new()
    for timeout in (0.0, 1e-5, 1e-4, 0.003, 0.03):  # within the spinning, and on both sides of the first, short sleep
        began = time.monotonic()
        assert not parker.park(timeout, spins)
        assert time.monotonic() - began >= timeout


@pytest.mark.parametrize("spins", [False, True])
def test_no_unpark_is_lost(new: Callable[[], Parker], spins: bool) -> None:
    """Two threads take turns, at distances from none to beyond all spinning."""
    ours, theirs = new(), new()
    turns = 3000

    def serve() -> None:
        for _ in range(turns):
            if not theirs.park(HANG, spins):
                return
            ours.unpark()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    pauses = random.Random(1)
    for turn in range(turns):
        theirs.unpark()
        if turn % 10 == 0:
            time.sleep(pauses.random() * 3e-4)
        assert ours.park(HANG, spins), f"turn {turn}"
    thread.join(HANG)
    assert not thread.is_alive()


@needs_c
def test_who_is_never_unparked_sleeps() -> None:
    """It spins for a moment only."""
    parker = _sentinel.Parker()
    used = []

    def rest() -> None:
        before = time.thread_time()
        for _ in range(200):
            parker.park(0.002, True)
        used.append(time.thread_time() - before)

    thread = threading.Thread(target=rest)
    thread.start()
    thread.join()
    assert used[0] < 0.2  # of 0.4 s; 40 yields each, and 50 us now and then
