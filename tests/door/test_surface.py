"""What a user meets first: which names there are, and what is said to whoever takes them for something else."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any, get_type_hints

import pytest
from conftest import HANG, recounted, until

import cmwq
import cmwq.aio


async def fetch(url: str = "") -> str:
    return url


async def pages() -> Any:
    yield 1


class Client:
    async def fetch(self) -> None: ...


COROUTINE_FUNCTIONS: list[Callable[..., Any]] = [fetch, pages, Client().fetch, partial(fetch, "url")]


# ------------------------------------------------------------------------------------------- names


def test_the_package_shows_its_public_names_only() -> None:
    assert dir(cmwq) == sorted({*cmwq.__all__, "__version__", "aio", "testing"})
    assert [name for name in dir(cmwq) if name.startswith("_")] == ["__version__"]


def test_aio_and_testing_need_no_import_of_their_own(python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    program = """
        import sys
        import cmwq
        print("asyncio" in sys.modules, "cmwq.testing.sim" in sys.modules)
        print(cmwq.aio.run.__name__, cmwq.testing.Simulation.__name__)
        try:
            cmwq.nothing
        except AttributeError as error:
            print(error)
    """
    done = python(program)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "False False", "run Simulation", "module 'cmwq' has no attribute 'nothing'",
    ]  # fmt: skip


def test_a_star_import_of_aio_brings_what_is_promised() -> None:
    namespace: dict[str, Any] = {}
    exec("from cmwq.aio import *", namespace)
    assert sorted(namespace.keys() - {"__builtins__"}) == sorted(cmwq.aio.__all__)
    assert {"asyncio", "threading", "P", "T", "drive"}.isdisjoint(namespace)


def test_choices_are_literal_types() -> None:
    """An editor completes them, and a type checker finds a typing error."""
    from cmwq._workqueue import options, room, settings

    assert set(options.Scope.__args__) == set(options.SCOPES)  # type: ignore[attr-defined]
    assert set(options.AtClose.__args__) == set(options.DELAYED)  # type: ignore[attr-defined]
    assert set(room.WhenFull.__args__) == set(room.FULL)  # type: ignore[attr-defined]
    from cmwq._sensor import NAMES

    assert set(settings.SensorName.__args__) == set(NAMES)  # type: ignore[attr-defined]
    hints = cmwq.WorkQueue.__init__.__annotations__
    assert hints["scope"] == "Scope"
    assert "WhenFull" in hints["full"]
    assert get_type_hints(cmwq.snapshot, {"Snapshot": cmwq.Snapshot})["return"] is cmwq.Snapshot


# ------------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize("kind", [cmwq.Work, cmwq.DelayedWork])
def test_a_work_is_no_decorator_of_methods(kind: Any) -> None:
    # Python 3.11 raises a RuntimeError of its own, which is raised from ours.
    with pytest.raises((TypeError, RuntimeError)) as caught:

        class Cache:
            @kind
            def refresh(self, force: bool = False) -> None: ...

    exc = caught.value if isinstance(caught.value, TypeError) else caught.value.__cause__
    assert re.search(r"Cache\.refresh would be called without its object: .* as cmwq\.Work\(self\.refresh\)", str(exc))


def test_a_work_may_be_in_a_class_nevertheless(runtime: cmwq.Runtime) -> None:
    ran = []

    class Cache:
        @cmwq.Work
        def shared(n: int = 1) -> None:  # type: ignore[misc]
            ran.append(n)

        given = cmwq.Work(ran.append, 2)
        renamed = cmwq.Work(shared._fn, 3)

        def __init__(self) -> None:
            self.own = cmwq.Work(self.refresh)

        def refresh(self) -> None:
            ran.append(4)

    with cmwq.WorkQueue("q", ordered=True, runtime=runtime) as wq:
        for work in (Cache.shared, Cache.given, Cache.renamed, Cache().own):
            wq.queue(work)
    assert ran == [1, 2, 3, 4]


# ------------------------------------------------------------------------------------------- coroutine functions


@pytest.mark.parametrize("fn", COROUTINE_FUNCTIONS)
def test_a_coroutine_function_makes_no_work(fn: Callable[..., Any]) -> None:
    for kind in (cmwq.Work, cmwq.DelayedWork, cmwq.PeriodicWork):
        with pytest.raises(TypeError, match=f"the function of a {kind.__name__} is .*a coroutine function"):
            kind(fn)


@pytest.mark.parametrize("fn", COROUTINE_FUNCTIONS)
def test_a_coroutine_function_is_not_submitted_many_times(universe: cmwq.Runtime, fn: Callable[..., Any]) -> None:
    queue = cmwq.WorkQueue("q", runtime=universe)
    for submit in (queue.submit_many, queue.map, queue.offload):
        with pytest.raises(TypeError, match=r"what is submitted to queue 'q' is .*a coroutine function.*asyncio.run"):
            submit(fn)
    assert queue.nr_unfinished() == 0


def test_submit_is_as_in_the_standard_library_here(executor: cmwq.Executor) -> None:
    """Programs rely on it: the coroutine is returned, for somebody else to await. A look would cost each call."""
    for coroutine in (executor.submit(fetch, "url").result(HANG), executor.queue.submit(fetch, "url").result(HANG)):
        assert asyncio.run(coroutine) == "url"  # type: ignore[arg-type]
    coroutines = [*executor.map(fetch, ["a"]), executor.queue.submit_many(fetch, ["b"])[0].result(HANG)]
    assert [asyncio.run(each) for each in coroutines] == ["a", "b"]  # type: ignore[arg-type]


def test_other_callables_are_taken_as_ever(universe: cmwq.Runtime) -> None:
    queue = cmwq.WorkQueue("q", runtime=universe)
    assert queue.submit(lambda: 1).result(HANG) == 1
    assert queue.submit(len, "abc").result(HANG) == 3
    assert queue.submit("abc".upper).result(HANG) == "ABC"
    assert queue.submit(partial(pow, 2), 5).result(HANG) == 32
    assert queue.submit(dict, a=1).result(HANG) == {"a": 1}
    assert queue.submit(cmwq.Work(len, "ab")).result(HANG) == 2
    assert isinstance(queue.submit(7).exception(HANG), TypeError)  # type: ignore[call-overload]


# ------------------------------------------------------------------------------------------- the wrong thing


def test_aio_says_what_it_was_given() -> None:
    async def main() -> None:
        work = cmwq.Work(int)
        for call, message in (
            (lambda: cmwq.aio.run("thumbnails", int), "'thumbnails' is neither a WorkQueue nor a cmwq.Executor"),
            (lambda: cmwq.aio.run_to_end(None, int), "None is neither"),
            (lambda: cmwq.aio.run(cmwq.system, fetch), "what is run on a worker is fetch, a coroutine function"),
            (lambda: cmwq.aio.flush("thumbnails"), "queue is 'thumbnails', and must be a WorkQueue"),
            (lambda: cmwq.aio.drain(work), "must be a WorkQueue"),
            (lambda: cmwq.aio.close("thumbnails"), "must be a WorkQueue"),
            (lambda: cmwq.aio.cancel_sync(cmwq.system), "must be a Work"),
            (lambda: cmwq.aio.disable_sync(len), "must be a Work"),
            (lambda: cmwq.aio.wait([]), "must be a Batch"),
            (lambda: cmwq.aio.freeze(runtime=3), "Runtime"),
            (lambda: cmwq.aio.outcome(3), "future is 3, and must be a Future, not int"),
        ):
            with pytest.raises(TypeError, match=message):
                await call()  # type: ignore[no-untyped-call]
        with pytest.raises(ValueError, match="delayed 'later' is none of 'cancel', 'run'"):
            await cmwq.aio.close(cmwq.WorkQueue("q"), delayed="later")  # type: ignore[arg-type]

    asyncio.run(main())


def test_aio_says_that_it_was_given_no_loop() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    for call, message in (
        (lambda: cmwq.aio.install(3), "loop is 3, and must be an event loop, not int"),
        (lambda: cmwq.aio.run_coroutine(fetch("url"), None), "loop is None, and must be an event loop, not NoneType"),
        (lambda: cmwq.aio.run_coroutine(fetch, loop), "must be a coroutine: call the function"),
        (lambda: cmwq.aio.run_coroutine(fetch("url"), loop, "soon"), "timeout"),
    ):
        with pytest.raises(TypeError, match=message):
            call()  # type: ignore[no-untyped-call]
        assert isinstance(cmwq.system.submit(call).exception(HANG), TypeError), "on a worker, too"
    with pytest.raises(RuntimeError, match="closed"):
        cmwq.aio.run_coroutine(fetch("url"), loop)  # no coroutine is left that was never awaited


# ------------------------------------------------------------------------------------------- what was missing


def test_a_work_tells_its_function() -> None:
    @cmwq.Work
    def refresh() -> str:
        return "refreshed"

    assert refresh.function() == "refreshed", "called here and now"
    assert cmwq.DelayedWork(len, "ab").function is len
    with pytest.raises(AttributeError):
        refresh.function = len  # type: ignore[misc,assignment]


def test_a_runtime_takes_whom_to_tell() -> None:
    told: list[tuple[str, str]] = []
    stalls: list[cmwq.Stall] = []

    def note(name: str, error: BaseException) -> None:
        told.append((name, str(error)))

    with cmwq.Runtime(on_stall=stalls.append, on_unfetched=note) as runtime:
        assert runtime.on_stall == stalls.append
        queue = cmwq.WorkQueue("q", runtime=runtime)
        queue.submit(int, "x")
        queue.flush(HANG)
    until(lambda: recounted() and bool(told))
    assert [name for name, _ in told] == ["call int of queue 'q'"]
    assert cmwq.Runtime().on_stall is None


def test_a_function_given_to_queue_is_told_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"is <built-in function len>, and must be a Work, not a function.* submit\(\)"):
        cmwq.system.queue(len)  # type: ignore[arg-type]
