"""Threads of the host: started all or nothing, and to everybody else threads like any other."""

from __future__ import annotations

import _thread
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from conftest import HANG, until
from handlers import handler_raises

from cmwq import ThreadLimit
from cmwq._host import ThreadHost, threads
from cmwq._host.threads import HostThread

Python = Callable[..., "subprocess.CompletedProcess[str]"]


class Interrupted(BaseException):
    """What a handler raises."""


@pytest.fixture
def host() -> ThreadHost:
    return ThreadHost()


def in_limbo() -> list[threading.Thread]:
    limbo: dict[threading.Thread, object] = threading._limbo  # type: ignore[attr-defined]
    return [thread for thread in limbo if isinstance(thread, HostThread)]


# ------------------------------------------------------------------------------------- a thread like any other


def test_it_is_the_current_thread_and_listed_by_its_name(host: ThreadHost) -> None:
    found: list[Any] = []
    gate = threading.Event()

    def body() -> None:
        found.append((threading.current_thread(), threading.get_ident(), threading.get_native_id()))
        gate.wait(HANG)

    thread: Any = host.spawn("cmwq/x:1", body)
    assert [each.name for each in threading.enumerate() if each is thread] == ["cmwq/x:1"]
    assert thread.is_alive()
    thread.join(0)
    assert thread.is_alive()
    gate.set()
    thread.join()
    assert not thread.is_alive()
    assert found == [(thread, thread.ident, thread.native_id)]
    assert thread not in threading.enumerate()


def test_began_is_told_on_the_new_thread_before_the_body_and_before_spawn_returns(host: ThreadHost) -> None:
    told: list[Any] = []
    thread = host.spawn("x", lambda: told.append("body"), lambda thread: told.append((thread, threading.get_ident())))
    assert told[0] == (thread, thread.ident)  # type: ignore[attr-defined]
    thread.join(HANG)
    assert told[1:] == ["body"]


def test_G6_hooks_of_settrace_and_setprofile_reach_it(host: ThreadHost) -> None:
    traced: set[str] = set()
    profiled: set[str] = set()

    def trace(frame: Any, event: str, argument: object) -> None:
        traced.add(frame.f_code.co_name)

    def profile(frame: Any, event: str, argument: object) -> None:
        profiled.add(frame.f_code.co_name)

    def named_body() -> None:
        pass

    before, before_profile = threading.gettrace(), threading.getprofile()
    threading.settrace(trace)
    threading.setprofile(profile)
    try:
        host.spawn("x", named_body).join(HANG)
    finally:
        threading.settrace(before)  # type: ignore[arg-type]
        threading.setprofile(before_profile)
    assert "named_body" in traced
    assert "named_body" in profiled


def test_what_a_body_raises_goes_to_the_excepthook(host: ThreadHost, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append((args.exc_type, args.thread.name)))

    def fail() -> None:
        raise Interrupted

    host.spawn("failing", fail).join(HANG)
    assert seen == [(Interrupted, "failing")]


def test_it_keeps_nothing_of_its_body_alive(host: ThreadHost) -> None:
    class Big:
        alive = True

        def __del__(self) -> None:
            Big.alive = False

    big = Big()
    thread = host.spawn("x", lambda big=big: None)  # type: ignore[misc]
    thread.join(HANG)
    del big
    until(lambda: (gc.collect(), not Big.alive)[1])


# ------------------------------------------------------------------------------------- all or nothing


def test_a_thread_that_dies_in_its_bootstrap_is_a_refusal_at_once(
    host: ThreadHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that runs out of memory there: `Thread.start` would wait for it for ever."""

    def die(self: threading.Thread) -> None:
        raise MemoryError

    told = threading.Event()
    monkeypatch.setattr(threads, "PATIENCE", HANG)
    monkeypatch.setattr(sys, "unraisablehook", lambda args: told.set())
    monkeypatch.setattr(threading.Thread, "_bootstrap_inner", die)
    began = time.monotonic()
    with pytest.raises(ThreadLimit, match="refused thread cmwq/dies: it was created, and then ended"):
        host.spawn("cmwq/dies", lambda: pytest.fail("it runs"))
    assert time.monotonic() - began < HANG / 2
    assert in_limbo() == []
    assert told.wait(HANG)  # while this hook is there


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Threads come when this is set."""
    come = threading.Event()
    come.arrived = threading.Event()  # type: ignore[attr-defined]
    bootstrap: Any = HostThread._bootstrap

    def wait_first(self: HostThread) -> None:
        come.arrived.set()  # type: ignore[attr-defined]
        come.wait(HANG)
        bootstrap(self)
        gone.release()

    gone = threading.Semaphore(0)
    come.gone = gone  # type: ignore[attr-defined]
    monkeypatch.setattr(HostThread, "_bootstrap", wait_first)
    return come


def test_a_thread_that_does_not_come_is_given_up_and_never_runs(
    host: ThreadHost, monkeypatch: pytest.MonkeyPatch, late: Any
) -> None:
    ran: list[int] = []
    monkeypatch.setattr(threads, "PATIENCE", 0.01)
    with pytest.raises(ThreadLimit):
        host.spawn("late", lambda: ran.append(1), lambda thread: ran.append(2))
    assert "late" not in [thread.name for thread in threading.enumerate()]
    late.set()
    assert late.gone.acquire(timeout=HANG)
    assert ran == []


def test_F8_ctrl_c_while_a_thread_does_not_come_ends_the_wait_for_good(
    host: ThreadHost, monkeypatch: pytest.MonkeyPatch, late: Any
) -> None:
    ran: list[int] = []
    monkeypatch.setattr(threads, "PATIENCE", HANG)
    with handler_raises(signal.SIGINT, Interrupted):

        def press() -> None:
            late.arrived.wait(HANG)
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

        presser = threading.Thread(target=press)
        presser.start()
        with pytest.raises(Interrupted):
            host.spawn("late", lambda: ran.append(1))
    presser.join()
    late.set()
    assert late.gone.acquire(timeout=HANG)
    assert ran == []


def test_a_thread_given_up_in_the_middle_of_its_bootstrap_ends_quietly(
    host: ThreadHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The standard library's part misses itself in its own table then."""
    there, go, gone = threading.Event(), threading.Event(), threading.Event()
    errors: list[object] = []
    set_ident: Any = threading.Thread._set_ident  # type: ignore[attr-defined]
    bootstrap: Any = HostThread._bootstrap

    def pause(self: threading.Thread) -> None:
        set_ident(self)
        if isinstance(self, HostThread):
            there.set()
            go.wait(HANG)

    def note_the_end(self: HostThread) -> None:
        bootstrap(self)
        gone.set()

    monkeypatch.setattr(sys, "unraisablehook", errors.append)
    monkeypatch.setattr(threading.Thread, "_set_ident", pause)
    monkeypatch.setattr(HostThread, "_bootstrap", note_the_end)
    monkeypatch.setattr(HostThread, "_await_answer", lambda self: there.wait(HANG))  # and then it is given up
    with pytest.raises(ThreadLimit):
        host.spawn("x", lambda: pytest.fail("it runs"))
    go.set()
    assert gone.wait(HANG)
    assert errors == []
    assert "x" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("first", ["the thread", "the handler"])
def test_F8_an_exception_of_a_handler_once_the_thread_is_created_is_what_comes_out(
    host: ThreadHost, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """The standard library takes it for a refusal: `start` removes the thread from its table, as the thread does."""

    class Late(Exception):
        """What a handler raises."""

    name = "_start_joinable_thread" if hasattr(_thread, "start_joinable_thread") else "_start_new_thread"
    create: Any = getattr(threading, name)
    set_ident: Any = threading.Thread._set_ident  # type: ignore[attr-defined]
    left, gone = threading.Event(), threading.Event()
    errors: list[object] = []

    def create_and_raise(bootstrap: Callable[[], object], *args: object, **kwargs: object) -> None:
        def begin() -> None:
            bootstrap()
            gone.set()

        create(begin, *args, **kwargs)
        if first == "the thread":
            assert ran.acquire(timeout=HANG)
        raise Late

    def pause(self: threading.Thread) -> None:
        set_ident(self)
        if first == "the handler":
            left.wait(HANG)

    monkeypatch.setattr(sys, "unraisablehook", errors.append)
    monkeypatch.setattr(threading, name, create_and_raise)
    monkeypatch.setattr(threading.Thread, "_set_ident", pause)
    ran = threading.Semaphore(0)
    thread = HostThread("x", ran.release, None)
    with pytest.raises(Late) as raised:
        thread.start()
    assert getattr(raised.value.__context__, "args", ()) != (thread,)
    left.set()
    assert gone.wait(HANG)
    assert errors == []
    assert (in_limbo(), thread in threading.enumerate()) == ([], False)
    assert thread._settle() is (first == "the thread")


class Handler:
    """Raises TimeoutError, as handlers of alarms do: an OSError, which may be a refusal of the system, too."""

    def __call__(self, number: int, frame: object) -> None:
        raise TimeoutError("of the handler")

    def method(self, number: int, frame: object) -> None:
        self(number, frame)


def function(number: int, frame: object) -> None:
    raise RuntimeError("of the handler")


@pytest.mark.parametrize("created", [False, True])
@pytest.mark.parametrize(
    "handler",
    [Handler(), Handler().method, function, partial(partial(Handler().method))],
    ids=["object", "method", "function", "partial"],
)
def test_F8_what_a_handler_raises_is_not_taken_for_a_refusal(
    host: ThreadHost, monkeypatch: pytest.MonkeyPatch, handler: Any, created: bool
) -> None:
    """Neither when the thread exists, nor when it doesn't yet."""
    name = "_start_joinable_thread" if hasattr(_thread, "start_joinable_thread") else "_start_new_thread"
    create: Any = getattr(threading, name)

    def interrupted(*args: object, **kwargs: object) -> None:
        if created:
            create(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGUSR1)
        for _ in range(1000):  # the handler comes
            pass

    monkeypatch.setattr(threading, name, interrupted)
    ran: list[int] = []
    began: list[object] = []
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises((TimeoutError, RuntimeError)) as raised:  # ThreadLimit is one, too
            host.spawn("x", lambda: ran.append(1), began.append)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert str(raised.value) == "of the handler"
    assert in_limbo() == []
    if began:
        began[0].join(HANG)  # type: ignore[attr-defined]
    assert len(ran) == len(began)


def raise_at(step: int, body: Callable[[], object]) -> bool:
    """Raise `Interrupted` before that bytecode of what the host does in `body`. False: it has no more than that.

    Not within the standard library's frames: an exception between any two bytecodes of its own `with` statements may
    leave its locks held, and no signal can come there.
    """
    count = 0

    def trace(frame: Any, event: str, argument: object) -> Any:
        nonlocal count
        if f"cmwq{os.sep}_host" not in frame.f_code.co_filename:
            return None
        frame.f_trace = trace  # first: else 3.13 tells of no bytecode the first time that a function is traced
        frame.f_trace_opcodes = True
        count += event == "opcode"
        if count == step + 1:
            sys.settrace(None)
            count += 1
            raise Interrupted
        return trace

    sys.settrace(trace)
    try:
        body()
    except Interrupted:
        return True
    finally:
        sys.settrace(None)
    return False


def test_F8_wherever_an_interruption_hits_began_tells_whether_the_body_runs(host: ThreadHost) -> None:
    outcomes, step, raised = set(), 0, True
    while raised:
        began: list[Any] = []
        ran = threading.Event()
        raised = raise_at(step, lambda: host.spawn("cmwq/step", ran.set, began.append))  # noqa: B023
        if began:
            assert ran.wait(HANG), step
            began[0].join(HANG)
        else:
            assert in_limbo() == [], step
            for thread in [each for each in threading.enumerate() if each.name == "cmwq/step"]:
                thread.join(HANG)
            assert not ran.is_set(), step
        outcomes.add((raised, bool(began)))
        step += 1
    assert outcomes == {(True, False), (True, True), (False, True)}
    assert step > 100


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no such signals")
def test_F8_a_handler_that_raises_at_any_moment_of_many_spawns(host: ThreadHost) -> None:
    moments = random.Random(1)
    with handler_raises(signal.SIGALRM, Interrupted):
        for _ in range(300):
            began: list[Any] = []
            ran = threading.Event()
            with suppress(Interrupted):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 + moments.random() * 300e-6)
                    host.spawn("cmwq/round", ran.set, began.append)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            if began:
                assert ran.wait(HANG)
                began[0].join(HANG)
            else:
                assert in_limbo() == []
                assert not ran.is_set()


def test_no_thread_to_be_had_is_a_thread_limit(host: ThreadHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    name = "_start_joinable_thread" if hasattr(_thread, "start_joinable_thread") else "_start_new_thread"
    monkeypatch.setattr(threading, name, refuse)
    with pytest.raises(ThreadLimit, match="can't start new thread"):
        host.spawn("x", lambda: None)
    assert in_limbo() == []


# ------------------------------------------------------------------------------------- what its own threads inherit


def test_G3_threads_that_a_work_starts_are_waited_for_at_exit(python: Python) -> None:
    done = python("""
        import cmwq, threading
        def save():
            threading.main_thread().join()  # it is none of those that the exit hook waits for
            print("saved", flush=True)
        cmwq.system.submit(lambda: threading.Thread(target=save).start()).result()
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("saved\n", "", 0)


def test_G3_the_interpreter_does_not_wait_for_workers_themselves(python: Python) -> None:
    """Else a Ctrl-C at exit could not leave at once."""
    done = python("""
        import threading
        from cmwq._host import ThreadHost
        ThreadHost().spawn("x", threading.Event().wait)
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="niceness is the process's elsewhere")
def test_E7_what_a_nice_worker_starts_is_as_nice_as_anybody(host: ThreadHost) -> None:
    found: list[object] = []

    def body() -> None:
        found.append(host.set_nice(-5))
        nice = "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        found.append(int(subprocess.run([sys.executable, "-c", nice], capture_output=True, check=True).stdout))
        inner = host.spawn("y", lambda: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
        inner.join(HANG)

    host.spawn("x", body).join(HANG)
    if found[0] is False:
        pytest.skip("negative niceness is not permitted here")
    assert found == [True, -5, 0, 0]
