"""Whatever a user passes is looked at where it is passed: kinds get TypeError, ranges ValueError, with what may be."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Coroutine
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from conftest import HANG, Gate
from simulated import simulate

import cmwq
import cmwq.aio
from cmwq._core import checks
from cmwq.testing import Simulation

Call = Callable[[Any], object]


class Hostile:
    """Nothing that is asked of it goes well."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr()")

    __str__ = __eq__ = __lt__ = __bool__ = __repr__  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


class Long:
    def __repr__(self) -> str:
        return "long" * 100_000


class Name(str):
    """A string that can't be sorted, shown, or hashed."""

    def __lt__(self, other: object) -> bool:
        raise RuntimeError("not to be sorted")

    __gt__ = __lt__

    def __str__(self) -> str:
        raise RuntimeError("not to be shown")

    __repr__ = __format__ = __str__  # type: ignore[assignment]


NO_NUMBERS = ("3", b"3", [3], Hostile(), Long(), object, 1j, True)
NO_INTEGERS = (*NO_NUMBERS, 1.5, 2.0, math.nan, math.inf)
NO_FLAGS = ("yes", 1, 0, Hostile(), [])
HUGE = 10**400


def queue(**options: Any) -> cmwq.WorkQueue:
    return cmwq.WorkQueue("q", **options)


# What is called with the value, what is no kind of it, what is out of its range, what may be.
DOORS: dict[str, tuple[Call, tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]] = {
    "name": (cmwq.WorkQueue, (1, None, b"q", Hostile(), Long(), ["q"]), (), ("", "q", "\0", "\udcff", "q" * 10_000)),
    "max_active": (lambda v: queue(max_active=v), NO_INTEGERS, (0, -1, 2**31, HUGE), (None, 1, 2**31 - 1)),
    "max_pending": (lambda v: queue(max_pending=v), NO_INTEGERS, (0, -1, 2**31, HUGE), (None, 1)),
    "scope": (
        lambda v: queue(scope=v),
        (1, None, b"cpu", Hostile(), Long()),
        ("socket", ""),
        ("cpu", "smt", "cache", "numa", "system"),
    ),
    "full": (lambda v: queue(full=v), (1, None, Hostile()), ("wait",), ("block", "raise")),
    "ordered": (lambda v: queue(ordered=v), NO_FLAGS, (), (True, False)),
    "highpri": (lambda v: queue(highpri=v), NO_FLAGS, (), (True, False)),
    "cpu_intensive": (lambda v: queue(cpu_intensive=v), NO_FLAGS, (), (True, False)),
    "freezable": (lambda v: queue(freezable=v), NO_FLAGS, (), (True, False)),
    "rescuer": (lambda v: queue(rescuer=v), NO_FLAGS, (), (False,)),
    "on_error": (lambda v: queue(on_error=v), (1, "print", Hostile(), Long()), (), (None, print)),
    "context": (lambda v: queue(context=v), (1, {}, Hostile()), (), (None,)),
    "runtime": (lambda v: queue(runtime=v), (1, "default", Hostile()), (), (None,)),
    "cpus": (
        lambda v: cmwq.Runtime(cpus=v),
        (0, "0", b"0", Hostile(), ["0"], [0.0], [True]),
        ([], [-1], [2**31]),
        (None,),
    ),
    "max_workers": (lambda v: cmwq.Runtime(max_workers=v), (*NO_INTEGERS, None), (1, -1, 2**31, HUGE), (2, 2**22)),
    "config": (lambda v: cmwq.Runtime(config=v), ({}, 1, Hostile()), (), (None, cmwq.Config())),
    "sensor": (lambda v: cmwq.Runtime(sensor=v), (1, Hostile()), ("radar", ""), (None, "hints")),
    "host": (lambda v: cmwq.Runtime(host=v), (1, "real", Hostile()), (), (None,)),
    "on_stall": (lambda v: setattr(cmwq.Runtime(), "on_stall", v), (1, Hostile()), (), (None, print)),
    "on_stall=": (lambda v: cmwq.Runtime(on_stall=v), (1, Hostile()), (), (None, print)),
    "on_unfetched=": (lambda v: cmwq.Runtime(on_unfetched=v), (1, Hostile()), (), (None, print)),
    "cpu_offline": (cmwq.cpu_offline, NO_INTEGERS, (-1, 2**31, 60_000), ()),
    "cpu_online": (cmwq.cpu_online, NO_INTEGERS, (-1, 2**31, 60_000), ()),
    "Batch": (cmwq.Batch, (1, None, Hostile()), (), (cmwq.system,)),
    "Work": (cmwq.Work, (1, None, Hostile(), Long()), (), (print,)),
    "DelayedWork": (cmwq.DelayedWork, (1, None, Hostile()), (), (print,)),
}
DOORS |= {
    f"Config.{name}": (lambda v, name=name: cmwq.Config(**{name: v}), (*NO_INTEGERS, None), (-1, 2**31), (0, 1))  # type: ignore[misc]
    for name in ("max_idle_workers_ratio", "slack_per_cpu")
}
DOORS |= {
    f"Config.{name}": (
        lambda v, name=name: cmwq.Config(**{name: v}),  # type: ignore[misc]
        (*NO_NUMBERS, None),
        (-1, -math.inf, math.nan),
        (1, 0.5, Fraction(1, 3), Decimal("0.1"), math.inf, HUGE),
    )
    for name in (
        "idle_worker_timeout", "create_cooldown", "mayday_initial_timeout", "mayday_interval", "trustee_cooldown",
        "watch_period", "watchdog_thresh", "cpu_intensive_thresh",
    )
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_a_value_is_looked_at_where_it_is_given(door: str) -> None:
    call, kinds, ranges, allowed = DOORS[door]
    for error, values in ((TypeError, kinds), (ValueError, ranges)):
        for value in values:
            with pytest.raises(error) as caught:
                call(value)
            message = str(caught.value)
            assert type(caught.value) is error
            assert len(message) < 400, "what is long is cut"
            if not isinstance(value, (Hostile, Long, float, int)):
                shown = value[0] if isinstance(value, list) and value else value
                assert repr(shown) in message or repr(value) in message or value == [], (value, message)
            assert re.search("must be|none of|can't go|is empty|can be", message), message
    for value in allowed:
        call(value)


def test_numbers_of_other_kinds_are_numbers(universe: cmwq.Runtime) -> None:
    class Index:
        def __index__(self) -> int:
            return 3

    assert cmwq.WorkQueue("q", max_active=Index(), runtime=universe).max_active == 3  # type: ignore[arg-type]
    assert cmwq.Config(watch_period=Fraction(1, 2)).watch_period == 0.5  # type: ignore[arg-type]
    assert cmwq.WorkQueue("q", runtime=universe).submit(int).result(Decimal(HANG)) == 0  # type: ignore[arg-type]


def test_none_of_the_cpus_is_there() -> None:
    with pytest.raises(ValueError, match=r"cpus is \(60000,\), and this process may use none of them, but \(\d"):
        cmwq.Runtime(cpus=[60_000])


def test_settings_that_are_never_too_often() -> None:
    for name in ("create_cooldown", "mayday_interval", "trustee_cooldown"):
        with pytest.raises(ValueError, match=rf"Config\.{name} is 0 s, and must be at least 0\.001 s"):
            cmwq.Config(**{name: 0})


# ----------------------------------------------------------------------------------- waits


def waits_of(runtime: cmwq.Runtime, gate: Gate) -> dict[str, Call]:
    """Each call that waits, of something that doesn't end before the gate opens."""
    wq = cmwq.WorkQueue("q", runtime=runtime)
    future = wq.submit(gate)
    work = cmwq.Work(gate)
    wq.queue(work)
    gate.await_arrivals(2)
    batch = cmwq.Batch(wq)
    batch.submit(gate)
    freezable = cmwq.WorkQueue("freezable", freezable=True, runtime=runtime)
    freezable.submit(gate)
    gate.await_arrivals(2)

    def run(coroutine: Callable[[Any], Coroutine[Any, Any, object]]) -> Call:
        return lambda timeout: asyncio.run(coroutine(timeout))

    return {
        "result": future.result,
        "exception": future.exception,
        "map": lambda timeout: list(wq.map(lambda _: gate(), [1], timeout=timeout)),
        "flush": wq.flush,
        "drain": wq.drain,
        "close": cmwq.WorkQueue("closes", runtime=runtime).close,
        "work.flush": work.flush,
        "cancel_sync": work.cancel_sync,
        "batch.wait": batch.wait,
        "batch.results": batch.results,
        "freeze": runtime.freeze,
        "runtime.close": runtime.close,
        "aio.flush": run(lambda timeout: cmwq.aio.flush(wq, timeout)),
        "aio.drain": run(lambda timeout: cmwq.aio.drain(wq, timeout)),
        "aio.cancel_sync": run(lambda timeout: cmwq.aio.cancel_sync(work, timeout)),
        "aio.wait": run(lambda timeout: cmwq.aio.wait(batch, timeout)),
        "aio.freeze": run(lambda timeout: cmwq.aio.freeze(timeout, runtime)),
        "disable_sync": cmwq.Work(gate).disable_sync,
        "aio.disable_sync": run(lambda timeout: cmwq.aio.disable_sync(work, timeout)),
    }


def test_F8_every_wait_looks_at_its_timeout(universe: cmwq.Runtime, gate: Gate) -> None:
    for name, wait in waits_of(universe, gate).items():
        for value in NO_NUMBERS:
            with pytest.raises(TypeError, match=r"timeout is .*, and must be a number of seconds, not"):
                wait(value)
        with pytest.raises(ValueError, match="timeout is nan"):
            wait(math.nan)
        if name in ("close", "disable_sync"):
            continue  # nothing to wait for
        for value in (-1, -math.inf, -HUGE, 0):
            with pytest.raises(TimeoutError):
                wait(value)
    assert not cmwq.Work(int).disabled


def test_F8_a_timeout_refused_changes_nothing(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    work = cmwq.DelayedWork(int)
    wq.queue_delayed(work, 3600)
    for call in (work.cancel_sync, work.disable_sync, work.flush, wq.drain, wq.close):
        with pytest.raises(TypeError):
            call("1")  # type: ignore[arg-type]
    assert work.pending
    assert not work.disabled
    assert wq.submit(int).result(HANG) == 0
    work.cancel()


@pytest.mark.parametrize("timeout", [2**31, 2**63, HUGE, math.inf, 1e300, Fraction(HUGE)])
def test_F8_a_long_timeout_is_none(universe: cmwq.Runtime, gate: Gate, timeout: float) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    future = wq.submit(gate)
    gate.await_arrivals(1)
    waiting = wq.submit(lambda: (future.result(timeout), wq.runtime.snapshot()))
    cmwq.Work(gate.open.set).disable()
    wq.submit(gate.open.set)
    assert future.result(timeout) is None
    wq.flush(timeout)
    assert waiting.result(timeout)[0] is None


# ----------------------------------------------------------------------------------- delays, works, names


@pytest.mark.parametrize("delay", NO_NUMBERS)
def test_F9_a_delay_is_a_number(universe: cmwq.Runtime, delay: Any) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    work = cmwq.DelayedWork(int)
    for call in (wq.queue_delayed, wq.mod_delayed):
        with pytest.raises(TypeError, match=r"delay is .*, and must be a number of seconds, not"):
            call(work, delay)
    assert not work.pending


@pytest.mark.parametrize("what", [1, None, int, Hostile(), Long()])
def test_only_works_are_queued(universe: cmwq.Runtime, what: Any) -> None:
    for options in ({}, {"max_pending": 2}):
        wq = cmwq.WorkQueue("q", runtime=universe, **options)  # type: ignore[arg-type]
        for call in (wq.queue, lambda work, wq=wq: wq.queue_on(0, work)):  # type: ignore[misc]
            with pytest.raises(TypeError, match=r"what is queued to queue 'q' is .*, and must be a Work, not"):
                call(what)


def test_E1_the_limit_is_looked_at_when_it_is_set_too() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=2, runtime=runtime)
        wq.submit(int).result()
        for value, error in (("3", TypeError), (1.5, TypeError), (0, ValueError), (None, TypeError)):
            with pytest.raises(error, match="queue 'q': max_active is"):
                wq.max_active = value  # type: ignore[assignment]
        assert wq.max_active == 2

    simulate(scenario)


def test_H1_a_snapshot_of_odd_names(universe: cmwq.Runtime) -> None:
    names = ["", "q", "\0", "\udcff", "q" * 100_000, Name("own"), Name("own")]
    queues = [cmwq.WorkQueue(name, runtime=universe) for name in names]
    for wq in queues:
        assert wq.submit(int).result(HANG) == 0
    seen = universe.snapshot()
    assert sorted(view.name for view in seen.queues) == sorted(str.__str__(name) for name in names)
    assert all(type(view.name) is str for view in seen.queues)
    repr(queues)


def test_a_value_in_a_message_is_short() -> None:
    assert checks.shown(Hostile()).startswith("Hostile object")
    assert len(checks.shown(Long())) == 100
