"""Ctrl-C at exit: one is enough, whoever else waits for our works (G3). And in a first use (F8)."""

from __future__ import annotations

import concurrent.futures as cf
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest
from conftest import HANG, until
from interrupted.whole import Gate
from opcodes import Interrupt, InterruptAt, at_each
from thorough import often

import cmwq

EXIT_HOOK = """
    import cmwq, sys, threading
    cmwq.system.submit(int).result()
    # The last hook registered runs first: from here on a Ctrl-C finds the interpreter on its way out.
    threading._register_atexit(lambda: print("exiting", flush=True))
    began = threading.Event()
    def hang(): began.set(); threading.Event().wait()
"""


def press_once(program: str, *, before: str | None) -> tuple[str, int]:
    """Run it, press Ctrl-C when it says `before`, if that is given, and once more when it exits. It must then end.

    Returns its errors and its status.
    """
    child = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(EXIT_HOOK) + textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        if before is not None:
            assert child.stdout.readline() == f"{before}\n"
            child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "exiting\n"
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=HANG)
    finally:
        child.kill()
    return err, child.returncode


SOMEBODY_ELSES = {
    "shutdown": """
        executor = cmwq.Executor()
        executor.submit(hang)
        threading.Thread(target=executor.shutdown).start()
    """,
    "result": """
        future = cmwq.system.submit(hang)
        threading.Thread(target=future.result).start()
    """,
    "flush": """
        cmwq.system.submit(hang)
        threading.Thread(target=cmwq.system.flush).start()
    """,
    "nobody": """
        cmwq.system.submit(hang)
    """,
}


def test_what_is_left_behind_is_told() -> None:
    program = """
        import cmwq, os, signal, threading
        from cmwq._workqueue import end
        waits = threading.Event()
        def interrupt():
            waits.wait()
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=interrupt, daemon=True).start()
        def drain(*args):
            waits.set()
            return drained(*args)
        drained, end._drain = end._drain, drain
        def import_orders(): threading.Event().wait()
        queue = cmwq.WorkQueue("orders", max_active=2)
        for _ in range(3):
            queue.submit(import_orders)
        queue.queue(cmwq.Work(print))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=HANG, check=True
    )
    told = "KeyboardInterrupt at exit: works are not waited for any more: 3 times import_orders, print\n"
    assert told in done.stderr


@pytest.mark.parametrize("waits", SOMEBODY_ELSES)
def test_one_is_enough_whoever_waits(waits: str) -> None:
    err, status = press_once(textwrap.dedent(SOMEBODY_ELSES[waits]) + "\nbegan.wait()", before=None)
    assert "Fatal" not in err
    assert status == 0


@pytest.mark.parametrize("executor", ["cmwq.Executor()", "concurrent.futures.ThreadPoolExecutor()"])
def test_asyncios_default_executor_takes_as_many_as_with_the_standard_librarys(executor: str) -> None:
    """asyncio.run waits for it on a thread of its own, in `shutdown()`: one Ctrl-C ends the program, one the exit."""
    program = f"""
    import asyncio, concurrent.futures
    from functools import partial
    async def main():
        loop = asyncio.get_running_loop()
        loop.set_default_executor({executor})
        loop.run_in_executor(None, hang)
        began.wait()
        loop.shutdown_default_executor = partial(shut_down, loop.shutdown_default_executor)
    def shut_down(real, *limit):  # asyncio takes no Ctrl-C for its own any more
        threading.Timer(0.2, lambda: print("waiting", flush=True)).start()
        return real(*limit)
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
    """
    err, status = press_once(program, before="waiting")
    assert "Fatal" not in err
    assert status == 0


def test_F8_B1_a_first_use_interrupted_at_any_bytecode_leaves_a_pool_that_works() -> None:
    """Nor is a worker forgotten between the start of its thread and its place on the idle list."""

    def run(interrupt: InterruptAt) -> None:
        runtime = cmwq.Runtime(sensor="procfs", config=cmwq.Config(create_cooldown=0.001))
        wq = cmwq.WorkQueue("q", runtime=runtime)
        with suppress(Interrupt), interrupt:
            wq.submit(int)
        assert wq.submit(int).result(HANG) == 0
        (pool,) = runtime.pools()
        until(lambda: all(worker.idle for worker in list(pool.workers)))
        runtime.check_invariants()
        runtime.close(HANG)

    files = ("_pool/pools.py", "_core/surely.py", "_pool/manager.py", "_pool/pool.py", "_pool/mend.py")
    assert at_each(run, *files, step=often(1, 3)) > 500


def test_F10_a_thread_in_wait_whose_event_was_interrupted_is_woken() -> None:
    gate = Gate()
    with cmwq.Runtime() as runtime:
        wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
        wq.submit(gate)
        future = wq.submit(int)
        thread = threading.Thread(target=cf.wait, args=([future],))
        thread.start()
        until(lambda: future._audience is not None and bool(future._waiters.copy()))  # type: ignore[union-attr]
        (waiter,) = future._waiters.copy()  # type: ignore[union-attr]
        real = waiter.event

        def interrupted() -> None:
            waiter.event = real
            raise KeyboardInterrupt

        waiter.event = SimpleNamespace(set=interrupted, wait=real.wait)  # the thread may not have come to its wait yet
        with pytest.raises(KeyboardInterrupt):
            future.cancel()
        thread.join(HANG)
        assert not thread.is_alive()
        gate.open()
