"""Sleeping on a lock (`_core.asleep`): how often the main thread looks for signals, and that nobody else does."""

from __future__ import annotations

import resource
import threading
import time
from _thread import LockType
from collections.abc import Callable
from typing import cast

import pytest
from conftest import HANG
from handlers import handled_again_and_again

from cmwq._core.asleep import INSTANT, acquire
from cmwq._core.ports import Parker
from cmwq._core.told import Told
from cmwq._host import parker
from cmwq._sensor import why_not

PARKERS: list[Callable[[], Parker]] = [parker.LockParker]
if why_not("sentinel") is None:
    from cmwq._sensor import _sentinel

    PARKERS.append(_sentinel.Parker)


class Lock:
    """It is acquired at the last of so many attempts."""

    def __init__(self, attempts: int) -> None:
        self.attempts = attempts
        self.timeouts: list[float] = []

    def acquire(self, blocking: bool, timeout: float) -> bool:
        assert blocking
        self.timeouts.append(timeout)
        return len(self.timeouts) == self.attempts


def asks(timeout: float, attempts: int = 3) -> tuple[bool, list[float]]:
    lock = Lock(attempts)
    return acquire(cast(LockType, lock), timeout), lock.timeouts


def test_F8_the_main_thread_looks_again_and_again_and_the_more_seldom_the_longer_it_waits() -> None:
    assert asks(-1, attempts=1) == (True, [INSTANT])
    assert asks(-1, attempts=5) == (True, [INSTANT, 2 * INSTANT, 4 * INSTANT, 8 * INSTANT, 16 * INSTANT])
    assert asks(4 * INSTANT, attempts=9) == (False, pytest.approx([INSTANT, 2 * INSTANT, INSTANT]))
    assert asks(2.5 * INSTANT, attempts=9) == (False, pytest.approx([INSTANT, 1.5 * INSTANT]))


@pytest.mark.parametrize("parker", PARKERS)
def test_F8_so_does_each_parker(parker: Callable[[], Parker]) -> None:
    """Each look is a switch of the thread. 50 ms, 100, 200, 400, 800: six sleeps in 1.6 s, or more from 10 ms on."""
    begun = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    assert not parker().park(1.6)
    looks = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - begun
    assert 5 <= looks <= 50


@pytest.mark.parametrize("timeout", [0.0, INSTANT / 2, INSTANT])
def test_not_in_a_wait_that_is_over_by_then(timeout: float) -> None:
    assert asks(timeout) == (False, [timeout])


@pytest.mark.parametrize("timeout", [-1, 0.0, INSTANT, 4 * INSTANT])
def test_no_other_thread_wakes_for_that(timeout: float) -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(asks(timeout)))
    thread.start()
    thread.join(HANG)
    assert found == [(False, [timeout])]


@pytest.mark.parametrize("parker", PARKERS)
def test_F8_however_many_signals_are_handled_meanwhile(parker: Callable[[], Parker]) -> None:
    """A wait that two hundred signals interrupt is no longer, and does not compute."""
    with handled_again_and_again(int, pause=lambda: 0.004):
        begun, used = time.monotonic(), time.thread_time()
        assert not parker().park(1.0)
        assert time.monotonic() - begun < HANG / 2
        assert time.thread_time() - used < 0.3


class RaisesFirst:
    """A lock of which a signal handler keeps the first release from happening, by an error like that of `release`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.release: Callable[[], None] = self._fail

    def _fail(self) -> None:
        self.release = self.lock.release
        raise RuntimeError("the handler's")


def test_F10_no_wake_up_is_lost_to_an_error_that_looks_like_that_of_release() -> None:
    told, bed = Told(), RaisesFirst()
    told.sleepers.append(bed)
    with pytest.raises(RuntimeError, match="the handler's"):
        told.set()
    told.set()
    told.set()
    assert not bed.lock.locked()

    sleeper = parker.LockParker()
    sleeper._lock = bed = RaisesFirst()  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="the handler's"):
        sleeper.unpark()
    assert not bed.lock.locked()
    sleeper.unpark()
