"""A thread of cmwq begins with an empty context, whoever starts it (G6).

From Python 3.14 on, `sys.flags.thread_inherit_context` lets threads begin with their starter's. Older Pythons have no
such flag; there the primitive that starts threads is replaced by one that does the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

INHERITED = """
    import contextvars, sys, threading
    if sys.version_info < (3, 14):
        name = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"
        plain = getattr(threading, name)
        def start(function, *args, **kwargs):
            context = contextvars.copy_context()
            return plain(lambda *given: context.run(function, *given), *args, **kwargs)
        setattr(threading, name, start)
    import cmwq
    variable = contextvars.ContextVar("variable", default="nobody's")
    inherits = threading.Thread(target=lambda: seen.append(variable.get()))
    seen = []
    variable.set("the starter's")
    inherits.start()
    inherits.join()
    assert seen == ["the starter's"], "threads don't inherit here, and the test would show nothing"
"""


@pytest.fixture
def program(python: Callable[..., Any]) -> Callable[[str], None]:
    def run(text: str) -> None:
        import subprocess
        import textwrap

        flag = ["-X", "thread_inherit_context=1"] if sys.version_info >= (3, 14) else []
        command = [sys.executable, *flag, "-c", textwrap.dedent(INHERITED) + textwrap.dedent(text)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")

    return run


def test_G6_a_worker_has_nothing_of_who_made_it(program: Callable[[str], None]) -> None:
    """Nor has its reserve, which a worker makes; nor the thread of the timers."""
    program(
        """
        from cmwq._host.threads import HostThread
        own = []
        body = HostThread.run
        def run(thread):
            own.append((thread.name, len(contextvars.copy_context())))
            body(thread)
        HostThread.run = run
        def nested():
            return cmwq.system.submit(int).result(60)
        with cmwq.WorkQueue("q", delayed="run") as queue:
            assert queue.submit(nested).result(60) == 0
            queue.queue_delayed(cmwq.DelayedWork(int), 0.001)
        assert len(own) >= 3, own
        assert not [name for name, number in own if number], own
        print("done")
        """
    )


def test_G6_works_have_the_context_of_who_queued_them_all_the_same(program: Callable[[str], None]) -> None:
    program(
        """
        assert cmwq.system.submit(variable.get).result(60) == "the starter's"
        variable.set("the next one's")
        assert cmwq.system.submit(variable.get).result(60) == "the next one's"
        print("done")
        """
    )
