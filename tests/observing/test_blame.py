"""H3: which lock a report names, and what it calls a guess, with a GIL and without.

Without one, stacks of other threads can't be read. So here the tests say what is waited for, or read their own stack.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

import cmwq
from cmwq._core.ports import Awaited
from cmwq._host.awaited import MISSING, _holder_of, _item
from tests.conftest import HANG, Gate

from .conftest import SOON_REPORTED, stall_of


@pytest.mark.parametrize(("waiting", "others", "blamed"), [(2, 1, True), (2, 3, True), (1, 3, False), (2, 5, False)])
def test_H3_a_lock_is_named_if_half_of_the_workers_hold_it_or_wait_for_it(
    waiting: int, others: int, blamed: bool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[cmwq.Stall] = []
    wanting: list[int] = []
    holding: list[int] = []

    def said(threads: Iterable[Any]) -> dict[int, Awaited]:
        ledger = Awaited("the lock ledger", holding[0], "the holder", True)
        return {id(thread): ledger for thread in threads if thread.ident in wanting}

    monkeypatch.setattr("cmwq._host.awaited.awaited", said)

    def wait(role: list[int]) -> None:
        role.append(threading.get_ident())
        gate()

    total = 1 + waiting + others
    with cmwq.Runtime(max_workers=total, config=SOON_REPORTED) as runtime:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        futures = [wq.submit(wait, role) for role in [holding, *[wanting] * waiting, *[[]] * others]]
        gate.await_arrivals(total)
        runtime.on_stall = told.append
        futures.append(wq.submit(int))  # nobody is left for it
        stall = stall_of(told)
        gate.open.set()
        for future in futures:
            future.result(HANG)
    assert ("the lock ledger, held by" in stall.reason) is blamed, stall.reason


def test_H3_who_called_acquire_seems_to_hold_and_who_called_release_does_not() -> None:
    lock, me = threading.Lock(), {7: sys._getframe()}
    take = lock.acquire
    assert _holder_of(lock, me, {}) == (0, False)
    lock.acquire()
    assert _holder_of(lock, me, {}) == (7, False), "a guess"
    lock.release()
    take()
    assert _holder_of(lock, me, {}) == (0, False), "somebody has it, and this function gave it back"
    lock.release()
    with lock:
        assert _holder_of(lock, me, {}) == (7, True)


def test_H3_who_defines_a_function_that_acquires_a_lock_does_not_seem_to_hold_it() -> None:
    """As a module does whose work has left its lock held: its main thread was told to have it."""
    lock = threading.Lock()

    class Other:
        lock.acquire()
        lock.release()

    def take() -> dict[int, FrameType]:
        lock.acquire()
        return {7: sys._getframe()}

    within = take()
    assert _holder_of(lock, {7: sys._getframe()}, {}) == (0, False)
    assert _holder_of(lock, within, {}) == (7, False)


class Spy(str):
    """A key that must not be asked."""

    __hash__ = str.__hash__
    asked = 0

    def __eq__(self, other: object) -> bool:
        Spy.asked += 1
        return False


def test_H3_a_lock_with_a_key_or_an_index_is_found() -> None:
    me = {7: sys._getframe()}
    lock, other, third = threading.Lock(), threading.Lock(), threading.Lock()
    locks = {Spy("a"): other, True: third, "a": lock, ("x", 1): lock}
    kept = SimpleNamespace(locks=locks, rows=[other, lock], pair=(lock, other))
    name, key, last, odd = "a", ("x", 1), 1, Spy("b")
    locks[odd, 1] = other
    with kept.locks[name]:
        asked = Spy.asked
        assert _holder_of(lock, me, {}) == (7, True)
        assert Spy.asked == asked, "what the program's own keys are equal to is not asked"
    with kept.locks[odd, 1]:
        asked = Spy.asked
        assert _holder_of(other, me, {}) == (0, False)
        assert Spy.asked == asked, "nor what its objects are equal to"
    with kept.locks["x", 1]:
        assert _holder_of(lock, me, {}) == (7, True)
    with kept.locks[key]:
        assert _holder_of(lock, me, {}) == (7, True)
    with kept.rows[last]:
        assert _holder_of(lock, me, {}) == (7, True)
    with kept.pair[0]:
        assert _holder_of(lock, me, {}) == (7, True)
    assert lock.acquire()
    with kept.locks[True], kept.rows[0]:
        assert _holder_of(other, me, {}) == (7, True)
        assert _holder_of(lock, {7: sys._getframe(0)}, {}) == (7, False), "a guess, by its own name"
    lock.release()


def test_H3_what_is_looked_into_is_not_asked_for_its_class_or_length() -> None:
    asked: list[object] = []

    class Masked:
        __class__ = property(asked.append)  # type: ignore[assignment]

    class Counting(dict[str, int]):
        def __len__(self) -> int:
            asked.append(self)
            return 0

    class Meta(type):
        __hash__ = type.__hash__

        def __eq__(cls, other: object) -> bool:
            asked.append(cls)
            return False

    class Equal(metaclass=Meta):
        pass

    assert _item({"a": 1}, Equal()) is MISSING
    assert _item(Masked(), 0) is MISSING
    assert _item(Counting(a=1), "a") == 1
    assert asked == []
