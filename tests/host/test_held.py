"""The debug mode: locks out of order, and functions without the lock they need, fail at once and say where."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG

import cmwq
from cmwq._core import held
from cmwq._core.held import LockOrder, WrongContext, holding, not_holding, outside, watched
from cmwq._core.ranks import Rank
from cmwq._errors import Reentered
from cmwq._host import locks
from cmwq.testing import SimHost, Simulation

pytestmark = pytest.mark.skipif(os.environ["CMWQ_DEBUG"] != "1", reason="CMWQ_DEBUG is off")

OURS = str(Path(cmwq.__file__).parent / "imagined.py")


def ours(source: str) -> Callable[..., Any]:
    """A function `f` as if it stood in the package."""
    names: dict[str, Any] = {}
    exec(compile(source, OURS, "exec"), names)
    f: Callable[..., Any] = names["f"]
    return f


NEST = ours("""
def f(outer, inner):
    with outer:
        with inner:
            return True
""")
CALL_WITHIN = ours("""
def f(lock, fn):
    with lock:
        return fn()
""")
CALL = ours("""
def f(fn, *args):
    return fn(*args)
""")


@pytest.fixture(autouse=True)
def _forgiven(_nothing_broken: None) -> Iterator[None]:
    """What is broken here on purpose is no failure."""
    before = len(held.broken)
    yield
    del held.broken[before:]


def new_lock(kind: str) -> Callable[[Rank], Any]:
    make = {"C": locks.Lock, "Python": locks.PyLock}[kind]
    account = {"C": locks.inside, "Python": locks.py_inside}[kind]
    return lambda rank: watched(make(rank), account)


@pytest.fixture(params=["C", "Python"])
def lock(request: pytest.FixtureRequest) -> Callable[[Rank], Any]:
    if request.param == "C" and locks.Lock is locks.PyLock:
        pytest.skip("no compiler was there")
    return new_lock(request.param)


def test_F10_locks_in_order_are_taken(lock: Callable[[Rank], Any]) -> None:
    assert NEST(lock(Rank.QUEUE), lock(Rank.POOL))
    assert not held.broken


@pytest.mark.parametrize("inner", [Rank.QUEUE, Rank.POOL])
def test_F10_out_of_order_fails_and_names_both_places(lock: Callable[[Rank], Any], inner: Rank) -> None:
    with pytest.raises(LockOrder) as caught:
        NEST(lock(Rank.POOL), lock(inner))
    assert f"{inner.name} is about to be taken at {OURS}:4, in f" in str(caught.value)
    assert f"holds POOL, taken at {OURS}:3, in f" in str(caught.value)
    assert held.broken[-1:] == [caught.value], "it is kept, whoever may catch it"


def test_F10_a_pools_lock_is_checked_whatever_the_sensor(runtime: cmwq.Runtime) -> None:
    with cmwq.WorkQueue("checked", runtime=runtime) as wq:
        assert wq.submit(len, "abc").result(HANG) == 3
        (pool,) = runtime._pools.values()
        with pytest.raises(LockOrder, match="QUEUE is about to be taken"):
            NEST(pool.lock, wq._lock)
        assert NEST(wq._lock, pool.lock)


def test_F10_an_interruption_is_no_mistake_and_is_refused(lock: Callable[[Rank], Any]) -> None:
    one, other = lock(Rank.POOL), lock(Rank.QUEUE)

    def handler() -> None:  # this frame is none of the package's
        with pytest.raises(Reentered):
            NEST(other, one)

    CALL_WITHIN(one, handler)
    assert not held.broken


def test_F10_the_simulators_locks_keep_the_order_too() -> None:
    sim = Simulation(cpus=1)

    def main() -> None:
        pool, queue = sim.host.lock(Rank.POOL), sim.host.lock(Rank.QUEUE)
        assert NEST(queue, pool)
        NEST(pool, queue)

    with pytest.raises(LockOrder, match=r"QUEUE is about to be taken at .*:4, in f, while .* POOL, taken at .*:3"):
        sim.run(main)


class Guarded:
    def __init__(self, lock: Any) -> None:
        self.lock = lock

    @holding("self.lock")
    def needs(self) -> str:
        return "done"

    @not_holding("self.lock")
    def takes(self) -> str:
        with self.lock:
            return "done"


@outside
def calls_users() -> str:
    return "done"


def test_F10_a_function_that_needs_a_lock_fails_without_it(lock: Callable[[Rank], Any]) -> None:
    guarded = Guarded(lock(Rank.POOL))
    assert CALL_WITHIN(guarded.lock, guarded.needs) == "done"
    with pytest.raises(
        WrongContext, match=r"Guarded\.needs, called at .*:3, in f: .* whoever holds self\.lock"
    ) as caught:
        CALL(guarded.needs)
    assert held.broken[-1:] == [caught.value]


def test_F10_another_threads_hold_does_not_count(lock: Callable[[Rank], Any]) -> None:
    guarded, found = Guarded(lock(Rank.POOL)), []

    def other() -> None:
        try:
            guarded.needs()
        except WrongContext as exc:
            found.append(exc)

    thread = threading.Thread(target=other)
    with guarded.lock:
        thread.start()
        thread.join(HANG)
    assert len(found) == 1


def test_F10_a_function_that_takes_the_lock_fails_with_it(lock: Callable[[Rank], Any]) -> None:
    guarded = Guarded(lock(Rank.POOL))
    assert CALL(guarded.takes) == "done"
    with pytest.raises(WrongContext, match=r"must not be called with self\.lock held, which was taken at .*:3, in f"):
        CALL_WITHIN(guarded.lock, guarded.takes)


def test_F10_users_code_is_called_outside_of_all_locks() -> None:
    assert CALL(calls_users) == "done"
    with pytest.raises(WrongContext, match=r"without any lock, and ROOM is held, .*imagined\.py:3, in f"):
        CALL_WITHIN(locks.new(Rank.ROOM), calls_users)


def test_F10_simulated_threads_are_told_apart() -> None:
    sim = Simulation(cpus=1)

    def main() -> None:
        guarded = Guarded(sim.host.lock(Rank.POOL))
        assert CALL_WITHIN(guarded.lock, guarded.needs) == "done"
        with pytest.raises(WrongContext):
            CALL_WITHIN(guarded.lock, calls_users)

        def other() -> None:
            with pytest.raises(WrongContext):
                guarded.needs()

        with guarded.lock:
            sim.host.spawn("other", other).join()

    sim.run(main)
    assert len(held.broken) >= 2


def test_F10_the_core_declares_what_it_needs(runtime: cmwq.Runtime) -> None:
    with cmwq.WorkQueue("declared", runtime=runtime) as wq:
        assert wq.submit(len, "abc").result(HANG) == 3
        (pool,) = runtime._pools.values()
        with pytest.raises(WrongContext, match=r"WorkerPool\.kick, called"):
            pool.kick()
        with pool.lock:
            pool.kick()


def test_a_checked_call_keeps_no_argument_alive() -> None:
    guarded = Guarded(locks.new(Rank.POOL))
    Guarded.fails = holding("self.lock")(lambda self: 1 // 0)  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError) as caught, guarded.lock:
        guarded.fails()  # type: ignore[attr-defined]
    traceback = caught.value.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == held.__file__:
            assert not {"args", "kwargs"} & set(traceback.tb_frame.f_locals)
        traceback = traceback.tb_next


def test_off_it_costs_nothing(
    python: Callable[..., subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMWQ_DEBUG", "0")
    run = python("""
        import cmwq
        from cmwq._core import held
        from cmwq._pool.pool import WorkerPool
        from cmwq._host import locks
        def f(lock): pass
        assert held.holding("lock")(f) is held.not_holding("lock")(f) is held.outside(f) is f
        assert type(locks.new(1)) is locks.Lock
        assert WorkerPool.kick.__code__.co_name == "kick"
        print("done")
    """)
    assert (run.returncode, run.stdout, run.stderr) == (0, "done\n", "")


def test_what_fails_is_told_even_if_it_is_caught(python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    run = python("""
        from cmwq._core.held import holding
        from cmwq._host import locks
        @holding("lock")
        def f(lock): pass
        try:
            f(locks.new(1))
        except AssertionError:
            print("done")
    """)
    assert (run.returncode, run.stdout) == (0, "done\n")
    assert run.stderr.startswith("cmwq: WrongContext: __main__.f, called at <string>")


def test_the_simulated_host_is_what_it_says() -> None:
    assert SimHost().lock(Rank.POOL).held(), "before the run nobody else moves"
