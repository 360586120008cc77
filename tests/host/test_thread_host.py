"""ThreadHost: what it does to the calling thread."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

import pytest
from conftest import HANG

from cmwq._host import ThreadHost

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="niceness is the process's elsewhere")


def on_its_own_thread(body: Callable[[], object]) -> object:
    """A thread that changed stays changed: not the main one."""
    result: list[object] = []
    thread = threading.Thread(target=lambda: result.append(body()))
    thread.start()
    thread.join(HANG)
    return result[0]


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@linux
def test_niceness_is_that_of_the_calling_thread_alone() -> None:
    before = niceness()
    wanted = min(before + 3, 19)
    assert on_its_own_thread(lambda: (ThreadHost().set_nice(wanted), niceness())) == (True, wanted)
    assert niceness() == before


@linux
@pytest.mark.parametrize("error", [PermissionError, OSError, OverflowError])
def test_niceness_that_is_not_permitted_is_no_error(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def refuse(which: int, who: int, priority: int) -> None:
        raise error

    monkeypatch.setattr(os, "setpriority", refuse)
    assert ThreadHost().set_nice(-20) is False


def test_niceness_where_threads_have_none_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "setpriority", lambda *_: pytest.fail("a thread's id is no process's"))
    assert ThreadHost().set_nice(5) is False
