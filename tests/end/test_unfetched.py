"""on_unfetched: exceptions of submitted calls that nobody fetched."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import gc
import logging
import subprocess
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import HANG, recounted, until

import cmwq

Python = Callable[..., "subprocess.CompletedProcess[str]"]


def fail() -> None:
    raise LookupError("lost")


class Heard:
    """A hook."""

    def __init__(self) -> None:
        self.told: list[tuple[str, BaseException]] = []

    def __call__(self, name: str, exception: BaseException) -> None:
        self.told.append((name, exception))


@pytest.fixture
def heard(universe: cmwq.Runtime) -> Iterator[Heard]:
    heard = Heard()
    universe.on_unfetched = heard
    yield heard
    universe.on_unfetched = None


def settled(universe: cmwq.Runtime, *dropped: weakref.ref[Any]) -> None:
    """Every worker has let go of what it ran, and has ended; and these have died, with what they held."""
    gc.collect()
    for _ in range(2):
        universe.close(HANG)
    until(lambda: (gc.collect(), all(each() is None for each in dropped))[1])


def test_one_that_is_dropped_is_told_once(universe: cmwq.Runtime, heard: Heard) -> None:
    queue = cmwq.WorkQueue("q", runtime=universe)
    queue.submit(fail)  # nobody has it
    until(lambda: recounted() and len(heard.told) == 1)
    future = queue.submit(fail)
    cf.wait([future])  # to know that it failed is not to look why
    settled(universe)
    assert len(heard.told) == 1
    there = weakref.ref(future)
    del future
    until(lambda: recounted() and len(heard.told) == 2)
    settled(universe, there)
    assert [(name, type(exc), str(exc)) for name, exc in heard.told] == [
        ("call fail of queue 'q'", LookupError, "lost")
    ] * 2


LOOKS: dict[str, Callable[[cf.Future[Any]], object]] = {
    "result": lambda future: _result(future),
    "exception": lambda future: future.exception(HANG),
    "a callback before": lambda future: future.add_done_callback(id),
    "a callback after": lambda future: (cf.wait([future]), future.add_done_callback(id)),
    "as_completed": lambda future: [each.exception() for each in cf.as_completed([future])],
    "asyncio": lambda future: asyncio.run(_await(future)),
}


def _result(future: cf.Future[Any]) -> None:
    with pytest.raises(LookupError):
        future.result(HANG)


async def _await(future: cf.Future[Any]) -> None:
    with pytest.raises(LookupError):
        await asyncio.wrap_future(future)


@pytest.mark.parametrize("looks", LOOKS)
@pytest.mark.parametrize("kind", ["call", "bounded", "work"])
def test_one_that_somebody_looked_at_is_not(universe: cmwq.Runtime, heard: Heard, looks: str, kind: str) -> None:
    queue = cmwq.WorkQueue("q", max_pending=5 if kind == "bounded" else None, runtime=universe)
    future = queue.submit(cmwq.Work(fail) if kind == "work" else fail)
    LOOKS[looks](future)
    cf.wait([future])
    there = weakref.ref(future)
    del future
    settled(universe, there)
    assert heard.told == []


@pytest.mark.parametrize("kind", ["call", "bounded", "work"])
def test_every_kind_of_future_tells(universe: cmwq.Runtime, heard: Heard, kind: str) -> None:
    queue = cmwq.WorkQueue("q", max_pending=5 if kind == "bounded" else None, runtime=universe)
    future = queue.submit(cmwq.Work(fail) if kind == "work" else fail)
    cf.wait([future])
    there = weakref.ref(future)
    del future
    settled(universe, there)
    until(lambda: recounted() and len(heard.told) == 1)
    assert [name for name, _ in heard.told] == [f"{'work' if kind == 'work' else 'call'} fail of queue 'q'"]


def test_what_did_not_fail_is_nobodys_business(universe: cmwq.Runtime, heard: Heard) -> None:
    queue = cmwq.WorkQueue("q", max_active=1, runtime=universe)
    gate = threading.Event()
    queue.submit(gate.wait, HANG)
    queue.submit(fail).cancel()
    gate.set()
    settled(universe)
    assert heard.told == []


def test_without_a_hook_nothing_is_kept(universe: cmwq.Runtime) -> None:
    future = cmwq.WorkQueue("q", runtime=universe).submit(fail)
    cf.wait([future])
    heard = Heard()
    universe.on_unfetched = heard  # it is for what fails from now on
    assert future._result is None
    there = weakref.ref(future)
    del future
    settled(universe, there)
    assert heard.told == []


def test_a_hook_that_raises_is_logged(universe: cmwq.Runtime, caplog: pytest.LogCaptureFixture) -> None:
    def hook(name: str, exception: BaseException) -> None:
        raise SystemExit("hook")

    universe.on_unfetched = hook
    queue = cmwq.WorkQueue("q", runtime=universe)
    with caplog.at_level(logging.ERROR, "cmwq"):
        queue.submit(fail)
        assert queue.submit(len, "abc").result(HANG) == 3, "and no worker died of it"
        settled(universe)
        until(lambda: recounted() and bool(caplog.messages))
    assert caplog.messages == ["on_unfetched raised while it dealt with call fail of queue 'q'"]


def test_a_future_that_dies_in_the_middle_of_a_section_of_ours(universe: cmwq.Runtime, heard: Heard) -> None:
    """The hook calls us; it runs when the section is over."""
    queue = cmwq.WorkQueue("q", runtime=universe)
    future = queue.submit(fail)
    cf.wait([future])
    queue.flush(HANG)
    queue.submit(int).result(HANG)  # no worker has the other any more
    calls: list[cmwq.Future[int]] = []
    told_on: list[int] = []

    def hook(name: str, exception: BaseException) -> None:
        told_on.append(threading.get_ident())
        calls.append(queue.submit(len, "abc"))

    universe.on_unfetched = hook
    (pool,) = universe.pools()
    while not calls:
        with pool.lock:
            del future
            # Of an earlier one a worker may tell at any moment, if it was the last to let go of it.
            assert threading.get_ident() not in told_on
        future = queue.submit(fail)
        cf.wait([future])
        if not calls:
            queue.flush(HANG)
    assert calls[0].result(HANG) == 3
    future.exception()


def test_it_can_be_configured_and_is_called_at_exit_too(python: Python) -> None:
    done = python("""
        import cmwq, concurrent.futures as cf
        def told(name, exception): print(name, repr(exception), flush=True)
        cmwq.configure(on_unfetched=told)
        def fail(): raise LookupError("lost")
        cmwq.Executor("pool").submit(fail)
        kept = cmwq.system.submit(fail)
        cf.wait([kept])  # it dies with this module
    """)
    assert (done.stderr, done.returncode) == ("", 0)
    assert sorted(done.stdout.splitlines()) == [
        "call fail of queue 'pool' LookupError('lost')",
        "call fail of queue 'system' LookupError('lost')",
    ]
