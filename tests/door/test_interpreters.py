"""G5: in a sub-interpreter cmwq can be imported, says that it isn't served there, and harms nobody."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import pytest

NAME = next((name for name in ("_interpreters", "_xxsubinterpreters") if importlib.util.find_spec(name)), None)
pytestmark = pytest.mark.skipif(NAME is None, reason="no sub-interpreters here")

IN_SUB = """
    import sys
    sys.path[:] = PATH
    import cmwq
    refused = []
    queue = cmwq.WorkQueue("q")
    runtime = cmwq.Runtime(sensor="hints")
    work, delayed, periodic = cmwq.Work(int), cmwq.DelayedWork(int), cmwq.PeriodicWork(int)
    uses = [
        lambda: cmwq.system.submit(int),
        lambda: cmwq.Executor().submit(int),
        lambda: list(queue.map(abs, [1])),
        lambda: queue.queue(work),
        lambda: queue.queue_delayed(delayed, 0.01),
        lambda: queue.queue_periodic(periodic, 0.01),
        lambda: cmwq.WorkQueue("r", rescuer=True),
        lambda: cmwq.WorkQueue("other", runtime=runtime).submit(int),
    ]
    for use in uses:
        try:
            use()
        except cmwq.ThreadLimit as exc:
            assert "this is a sub-interpreter" in str(exc), exc
            refused.append(exc)
    assert len(refused) == len(uses), len(refused)
    assert not (work.pending or delayed.pending or periodic.pending)
    assert not cmwq.snapshot().pools
    queue.flush(); queue.close(); runtime.close()
"""

MAIN = """
    import os, sys, threading, time
    try:
        import _interpreters as interpreters
        make = interpreters.create
        def run(id, code):
            failure = interpreters.exec(id, code)
            if failure is not None:
                raise RuntimeError(failure.formatted)
    except ImportError:
        import _xxsubinterpreters as interpreters
        make = lambda config: interpreters.create(isolated=config == "isolated")
        run = interpreters.run_string
    import textwrap
    import cmwq
    code = textwrap.dedent(IN_SUB).replace("PATH", repr(sys.path))
    if BEFORE:
        assert cmwq.system.submit(int).result(60) == 0
    def strangers():  # threads that aren't this interpreter's, whose own may still come: the next worker in reserve
        while None in (known := {thread.native_id for thread in threading.enumerate()}):
            time.sleep(0.001)
        return {int(tid) for tid in os.listdir("/proc/self/task")} - known
    before = strangers()
    for _ in range(3):
        for config in ("legacy", "isolated"):
            id = make(config)
            run(id, code)
            interpreters.destroy(id)
    left = make("legacy")
    run(left, code)
    while not strangers() <= before:  # one that has just ended, or is listed next
        time.sleep(0.001)
    assert cmwq.system.submit(int).result(60) == 0
    print("done")
"""


@pytest.mark.parametrize("before", [False, True])
def test_G5_a_sub_interpreter_is_refused_in_words(python: Callable[..., Any], before: bool) -> None:
    """Of either kind; before and after the main interpreter's first use; and one that is never ended."""
    done = python(f"IN_SUB = {IN_SUB!r}\nBEFORE = {before}\n", MAIN)
    assert done.stderr == ""
    assert (done.returncode, done.stdout) == (0, "done\n")


@pytest.mark.skipif(sys.version_info < (3, 14), reason="InterpreterPoolExecutor is of Python 3.14")
def test_G5_calls_of_an_InterpreterPoolExecutor_are_refused_in_words(python: Callable[..., Any]) -> None:
    """And one whose calls do not use cmwq works beside it."""
    program = """
    import sys
    from concurrent.futures import InterpreterPoolExecutor
    import cmwq
    code = '''
    import cmwq
    try:
        cmwq.system.submit(int)
    except cmwq.ThreadLimit as error:
        assert "this is a sub-interpreter" in str(error), error
    else:
        raise AssertionError("it was not refused")
    '''
    with InterpreterPoolExecutor(2) as pool:
        for _ in range(4):
            assert pool.submit(exec, textwrap.dedent(code)).result(60) is None
        assert cmwq.system.submit(lambda: pool.submit(pow, 2, 5).result(60)).result(60) == 32
    print("done")
    """
    done = python("import textwrap\n", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
