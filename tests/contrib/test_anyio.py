"""cmwq.contrib.anyio: anyio's calls on cmwq's workers, with all that anyio promises about its own threads."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from conftest import HANG, Gate, until

pytest.importorskip("anyio", reason="anyio is not installed")

import anyio.from_thread
import anyio.to_thread
from anyio._backends import _asyncio as backend

import cmwq
import cmwq.contrib.anyio as contrib

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
ORIGINAL = backend.AsyncIOBackend.__dict__["run_sync_in_worker_thread"]


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        with anyio.fail_after(HANG):
            await main()

    anyio.run(limited)


@pytest.fixture(autouse=True)
def _left_as_it_was() -> Iterator[None]:
    yield
    assert backend.AsyncIOBackend.__dict__["run_sync_in_worker_thread"] is ORIGINAL
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("AnyIO")]


@pytest.fixture
def on_cmwq() -> Iterator[None]:
    with contrib.installed() as full:
        assert full, contrib.why_not()
        yield


def begun(gate: Gate, number: int = 1) -> Coroutine[Any, Any, None]:
    return asyncio.to_thread(gate.await_arrivals, number)


# ------------------------------------------------------------------------------------------- calls


@pytest.mark.usefixtures("on_cmwq")
def test_more_calls_than_there_are_tokens_wait_at_the_same_time(gate: Gate) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(60):
                group.start_soon(anyio.to_thread.run_sync, gate)
            await begun(gate, 60)
            assert not [thread for thread in threading.enumerate() if thread.name.startswith("AnyIO")]
            gate.open.set()

    run(main)


@pytest.mark.usefixtures("on_cmwq")
@pytest.mark.parametrize("default", [False, True])
def test_a_limiter_that_is_given_keeps_its_bound(default: bool) -> None:
    lock, all_places = threading.Lock(), threading.Barrier(3)
    now, most = 0, 0

    def count() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        all_places.wait(HANG)
        anyio.from_thread.run(anyio.sleep, 0.005)
        with lock:
            now -= 1

    async def main() -> None:
        limiter = anyio.to_thread.current_default_thread_limiter() if default else anyio.CapacityLimiter(3)
        limiter.total_tokens = 3
        async with anyio.create_task_group() as group:
            for _ in range(21):
                group.start_soon(lambda: anyio.to_thread.run_sync(count, limiter=limiter))
        assert most == 3
        assert limiter.borrowed_tokens == 0

    run(main)


@pytest.mark.usefixtures("on_cmwq")
def test_a_call_returns_or_raises() -> None:
    async def main() -> None:
        assert await anyio.to_thread.run_sync(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await anyio.to_thread.run_sync(divmod, 1, 0)
        with pytest.raises(RuntimeError, match="coroutine raised StopIteration"):
            await anyio.to_thread.run_sync(next, iter(()))
        with pytest.raises(SystemExit):
            await anyio.to_thread.run_sync(exit_with, 3)

    def exit_with(code: int) -> None:
        raise SystemExit(code)

    run(main)


@pytest.mark.usefixtures("on_cmwq")
def test_a_call_gets_back_to_its_loop() -> None:
    async def main() -> None:
        loop_thread = threading.get_ident()

        async def here(number: int) -> int:
            await anyio.sleep(0)
            assert threading.get_ident() == loop_thread
            return number

        def call() -> int:
            assert threading.get_ident() != loop_thread
            assert anyio.from_thread.run_sync(threading.get_ident) == loop_thread
            return anyio.from_thread.run(here, 5)

        assert await anyio.to_thread.run_sync(call) == 5

    run(main)


@pytest.mark.usefixtures("on_cmwq")
def test_works_of_others_on_the_same_threads_have_no_loop_to_get_back_to() -> None:
    def get_back() -> tuple[int, bool]:
        try:
            anyio.from_thread.run_sync(print)
        except RuntimeError:
            return threading.get_ident(), False
        return threading.get_ident(), True

    async def main() -> None:
        seen: set[int] = set()
        for _ in range(1000):
            seen.add(await anyio.to_thread.run_sync(threading.get_ident))
            worker, got_back = await asyncio.wrap_future(cmwq.system.submit(get_back))
            assert not got_back
            if worker in seen:
                return
        raise AssertionError("no thread served both")

    run(main)


@pytest.mark.usefixtures("on_cmwq")
def test_context_variables_are_the_tasks_and_stay_so() -> None:
    def swap(new: str) -> str:
        old = variable.get()
        variable.set(new)
        return old

    async def read() -> str:
        return variable.get()

    def swap_and_read(new: str) -> tuple[str, str]:
        return swap(new), anyio.from_thread.run(read)

    async def task(name: str) -> None:
        variable.set(name)
        for _ in range(10):
            assert await anyio.to_thread.run_sync(swap_and_read, f"{name} of the call") == (name, f"{name} of the call")
            assert variable.get() == name

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(task, f"task {number}")

    run(main)


@pytest.mark.usefixtures("on_cmwq")
def test_the_library_that_sniffio_sees_in_a_call_is_none() -> None:
    sniffio = pytest.importorskip("sniffio", reason="sniffio is not installed")

    async def main() -> None:
        with pytest.raises(sniffio.AsyncLibraryNotFoundError):
            await anyio.to_thread.run_sync(sniffio.current_async_library)
        assert sniffio.current_async_library() == "asyncio"

    run(main)


# ------------------------------------------------------------------------------------------- cancellation


@pytest.mark.usefixtures("on_cmwq")
def test_a_cancelled_scope_waits_for_a_call_that_runs(gate: Gate) -> None:
    async def main() -> None:
        ended = False

        async def call() -> None:
            nonlocal ended
            await anyio.to_thread.run_sync(gate)
            ended = True  # the end of the call is no checkpoint

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await begun(gate)
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                for _ in range(10):
                    await anyio.sleep(0)
                assert not ended
                gate.open.set()
        assert ended

    run(main)


@pytest.mark.usefixtures("on_cmwq")
def test_abandon_on_cancel_leaves_a_call_that_runs_behind(gate: Gate) -> None:
    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: anyio.to_thread.run_sync(gate, abandon_on_cancel=True))
                await begun(gate)
                scope.cancel()
        assert scope.cancelled_caught
        gate.open.set()

    run(main)


def test_abandon_on_cancel_takes_back_a_call_that_has_not_begun(gate: Gate, universe: cmwq.Runtime) -> None:
    ran: list[int] = []
    queue = cmwq.WorkQueue("one", max_active=1, runtime=universe)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, gate)
            await begun(gate)
            with anyio.move_on_after(0.01) as scope:
                await anyio.to_thread.run_sync(ran.append, 1, abandon_on_cancel=True)
            assert scope.cancelled_caught
            gate.open.set()
        await anyio.to_thread.run_sync(ran.append, 2)
        assert ran == [2]

    with contrib.installed(queue):
        run(main)


@pytest.mark.usefixtures("on_cmwq")
@pytest.mark.parametrize("abandon", [False, True])
def test_a_call_can_ask_whether_it_is_cancelled(abandon: bool) -> None:
    asked = threading.Event()
    told: list[bool] = []

    def call() -> None:
        anyio.from_thread.check_cancelled()  # not yet
        asked.set()
        try:
            until(lambda: anyio.from_thread.check_cancelled() is not None)
        except BaseException:
            told.append(True)
            raise

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: anyio.to_thread.run_sync(call, abandon_on_cancel=abandon))
            await asyncio.to_thread(asked.wait, HANG)
            group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.to_thread(until, lambda: bool(told))

    run(main)


# ------------------------------------------------------------------------------------------- installing


def test_installations_nest_and_the_last_one_undoes_it() -> None:
    assert contrib.install()
    with contrib.installed():
        pass
    assert backend.AsyncIOBackend.__dict__["run_sync_in_worker_thread"] is not ORIGINAL
    contrib.uninstall()
    assert backend.AsyncIOBackend.__dict__["run_sync_in_worker_thread"] is ORIGINAL
    with pytest.raises(RuntimeError, match="not installed"):
        contrib.uninstall()


def test_it_has_one_queue_at_a_time(universe: cmwq.Runtime) -> None:
    first, second = (cmwq.WorkQueue(name, runtime=universe) for name in ("first", "second"))
    with contrib.installed(first), contrib.installed(), contrib.installed(first):
        with pytest.raises(RuntimeError, match=r"uses .*'first'.*, not .*'second'"):
            contrib.install(second)
    with contrib.installed(second):
        pass


def test_who_replaced_the_replacement_gets_anyios_own_function_afterwards() -> None:
    with contrib.installed():
        ours = backend.AsyncIOBackend.__dict__["run_sync_in_worker_thread"]
        theirs = classmethod(lambda cls, *args, **options: ours.__get__(None, cls)(*args, **options))
        backend.AsyncIOBackend.run_sync_in_worker_thread = theirs  # type: ignore[assignment, method-assign]
    names: list[str] = []

    async def main() -> None:
        names.append(await anyio.to_thread.run_sync(lambda: threading.current_thread().name))

    try:
        run(main)
    finally:
        backend.AsyncIOBackend.run_sync_in_worker_thread = ORIGINAL  # type: ignore[method-assign]
    assert names[0].startswith("AnyIO")
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("AnyIO")])


@pytest.mark.parametrize("version", ["3.7.1", "4.11.0", "4.17.0", "5.0.0rc1", "unknown"])
def test_only_versions_that_were_tried_are_accepted(version: str) -> None:
    assert version in (contrib.why_not(version) or "")


def test_an_unknown_version_gets_the_supported_way_and_one_warning(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    monkeypatch.setattr(contrib, "NEWEST", (4, 0))
    monkeypatch.setattr(contrib._here, "warned", False)

    async def main() -> None:
        limiter = anyio.to_thread.current_default_thread_limiter()
        with contrib.installed() as full:
            assert not full
            async with anyio.create_task_group() as group:
                for _ in range(60):
                    group.start_soon(anyio.to_thread.run_sync, gate)
                await begun(gate, 60)
                gate.open.set()
        assert limiter.total_tokens == 40
        assert not contrib.install()
        assert limiter.total_tokens == float("inf")

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run(main)
        assert not contrib.install()  # no loop
    assert [each.category for each in seen] == [RuntimeWarning]
    assert "is not one of 4.12 to 4.0; its calls stay" in str(seen[0].message)
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("AnyIO")])


def test_a_function_with_other_arguments_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.AsyncIOBackend, "run_sync_in_worker_thread", lambda func, arguments: None)
    assert "takes other arguments" in (contrib.why_not() or "")


def test_unlimited_says_how_many_tokens_there_were() -> None:
    async def main() -> None:
        assert contrib.unlimited() == 40
        assert contrib.unlimited() == float("inf")

    run(main)


@pytest.mark.usefixtures("on_cmwq")
def test_trio_is_left_alone() -> None:
    pytest.importorskip("trio", reason="trio is not installed")
    names: list[str] = []

    async def main() -> None:
        names.append(await anyio.to_thread.run_sync(lambda: threading.current_thread().name))

    anyio.run(main, backend="trio")
    assert not names[0].startswith("cmwq")
