"""Names of callables in messages: made without the user's code, short, and few are kept."""

from __future__ import annotations

import functools
import logging
import time
import types
from typing import Any

import pytest
from conftest import HANG, Gate
from simulated import simulate

import cmwq
from cmwq._core.naming import MAX_NAME, name_of
from cmwq._pool.hogs import REMEMBERED, HogReports
from cmwq.testing import Simulation


class Hostile:
    """Whatever is asked of it but to be called is noted, and raises."""

    asked: list[str] = []  # noqa: RUF012

    def __call__(self, *args: object) -> None:
        pass

    def __getattr__(self, name: str) -> object:
        Hostile.asked.append(name)
        raise RuntimeError(name)

    def __repr__(self) -> str:
        Hostile.asked.append("repr")
        raise RuntimeError("repr")

    __str__ = __repr__

    @property
    def __name__(self) -> str:
        Hostile.asked.append("name")
        raise RuntimeError("name")


class Disguised(Hostile):
    """It says that it is of another class."""

    __class__ = __func__ = vars(Hostile)["__name__"]  # type: ignore[assignment]


class Meta(type):
    """Its classes tell nothing."""

    def __getattribute__(cls, name: str) -> object:
        Hostile.asked.append(name)
        raise RuntimeError(name)

    def __repr__(cls) -> str:
        raise RuntimeError("repr")


def of_meta() -> type:
    return Meta("Built", (list,), {"__call__": lambda self: None})


def of_itself() -> Any:
    fn = functools.partial(plain)
    fn.__setstate__((fn, (), {}, {}))  # type: ignore[attr-defined]
    return fn


@pytest.fixture(autouse=True)
def _nothing_asked() -> Any:
    Hostile.asked.clear()
    yield
    assert [name for name in Hostile.asked if name not in ("__wrapped__",)] == []


def plain() -> None:
    pass


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (plain, "plain"),
        (len, "len"),
        ([].append, "list.append"),
        (dict.fromkeys, "dict.fromkeys"),
        (object.__new__, "object.__new__"),
        (int, "int"),
        (functools.partial(plain), "plain"),
        (functools.partial(functools.partial(len), []), "len"),
        (functools.partial(max, list(range(300_000))), "max"),
        (Hostile(), "Hostile object"),
        (functools.partial(Hostile(), 1), "Hostile object"),
        (Gate().__call__, "Gate.__call__"),
        (types.MethodType(Disguised(), 1), "Disguised object"),
        (of_meta(), "Built"),
        (type.__call__(of_meta()), "Built object"),
        (type.__call__(of_meta()).append, "Built.append"),
        (of_itself(), "partial object"),
    ],
    ids=range(17),
)
def test_a_callables_name(fn: Any, name: str) -> None:
    assert name_of(fn) == name


def test_a_name_is_short_and_costs_nothing() -> None:
    plain_twice = type("N" * 5000, (), {"__call__": lambda self: None})
    assert len(name_of(plain_twice())) == MAX_NAME
    huge = functools.partial(max, list(range(300_000)))
    begun = time.perf_counter()
    for _ in range(1000):
        name_of(huge)
    assert time.perf_counter() - begun < 5, "a repr() would take 10 s and more"


def test_B4_hostile_callables_are_shown_everywhere(universe: cmwq.Runtime, gate: Gate, caplog: Any) -> None:
    wq = cmwq.WorkQueue("q", ordered=True, runtime=universe)
    work, delayed = cmwq.Work(Hostile()), cmwq.DelayedWork(functools.partial(Hostile(), [0] * 300_000))
    held = wq.submit(gate)
    gate.await_arrivals(1)
    future = wq.submit(Hostile())
    wq.queue(work)
    wq.queue_delayed(delayed, 3600)
    shown = [repr(each) for each in (work, delayed, future, wq, universe)]
    assert shown[0] == "<cmwq.Work Hostile object pending>"
    assert shown[1] == "<cmwq.DelayedWork Hostile object pending>"
    assert all(len(text) < 200 for text in shown)
    with pytest.raises(cmwq.CmwqTimeout, match="Hostile object"):
        work.flush(0)
    with pytest.raises(cmwq.CmwqTimeout):
        future.result(0)
    work.disable()
    with pytest.raises(cmwq.WorkDisabled, match="Hostile object"):
        wq.submit(work)
    work.enable()
    wq.queue(work)
    gate.open.set()
    for each in (held, future):
        assert each.result(HANG) is None
    universe.snapshot()
    delayed.cancel()
    failing = cmwq.Work(functools.partial(Hostile(), 1), oops=1)  # it takes no such argument
    with caplog.at_level(logging.ERROR, "cmwq"):
        wq.queue(failing)
        wq.flush(HANG)
    assert "<cmwq.Work Hostile object running> of queue 'q' raised" in caplog.text


def test_F7_a_refused_wait_of_a_hostile_callable(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)

    class Flushes(Hostile):
        def __call__(self, *args: object) -> None:
            wq.flush()

    with pytest.raises(cmwq.FlushDeadlock, match=r"call .*Flushes object of queue 'q' flushes its own queue"):
        wq.submit(Flushes()).result(HANG)


def test_A9_the_hog_timer_asks_no_user(caplog: pytest.LogCaptureFixture) -> None:
    """With the pool's lock held: a repr() that called us would stop the process."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        class Hog(Hostile):
            def __call__(self, *args: object) -> None:
                sim.burn(0.1)

        wq = cmwq.WorkQueue("q", runtime=runtime)
        hog, behind = wq.submit(Hog()), wq.submit(int)
        assert (hog.result(), behind.result()) == (None, 0)

    with caplog.at_level(logging.INFO, "cmwq"):
        simulate(scenario)
    assert "Hog object used the CPU for more than 10 ms" in caplog.text


def test_A9_reports_are_remembered_of_the_last_thousands_of_functions(caplog: pytest.LogCaptureFixture) -> None:
    reports = HogReports()
    with caplog.at_level(logging.INFO, "cmwq"):
        for n in range(3 * REMEMBERED):
            reports.report(("q", "constant"), 0.01)
            reports.report(("q", f"lambda {n}"), 0.01)
    assert len(reports._counts) == REMEMBERED
    assert reports._counts["q", "constant"] == 3 * REMEMBERED, "one that comes again and again is not forgotten"
    assert sum("constant" in record.getMessage() for record in caplog.records) < 20
