"""Fork and exit, whenever the first use comes (G2, G3). In interpreters of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

Python = Callable[..., "subprocess.CompletedProcess[str]"]

TOO_LATE = """
    import cmwq, threading
    def late():
        if cmwq.Executor is None:  # an interpreter that clears modules before finalisers: there is nothing to call
            print([], flush=True)
            return
        runtime = cmwq.Runtime
        calls = {
            "the default runtime": lambda: cmwq.Executor().submit(int),
            "a queue": lambda: cmwq.system.submit(int),
            "a work": lambda: cmwq.system.queue(cmwq.Work(int)),
            "a delayed work": lambda: cmwq.system.queue_delayed(cmwq.DelayedWork(int), 0.01),
            "a late runtime": lambda: cmwq.Executor(runtime=runtime()).submit(int),
            "a rescuer": lambda: cmwq.WorkQueue("r", rescuer=True),
        }
        for name, call in calls.items():
            try:
                print(name, "was taken:", call())
            except cmwq.QueueClosed as exc:
                if "cannot schedule new futures after interpreter shutdown" not in str(exc):
                    print(name, "words:", exc)
            except ImportError:
                pass  # of a runtime that would be made when modules are gone
        print([thread.name for thread in threading.enumerate() if "cmwq" in thread.name], flush=True)
"""
"""Part of a program. late() tries every kind of first use, and prints what was not refused in the right words."""


def check(done: subprocess.CompletedProcess[str], expected: str) -> None:
    assert (done.stdout, done.stderr, done.returncode) == (expected, "", 0)


@pytest.mark.parametrize("used", [False, True], ids=["never used", "used before"])
@pytest.mark.parametrize(
    "when",
    [
        "import atexit; atexit.register(late)",
        "threading.Thread(target=lambda: (threading.main_thread().join(), late())).start()",
        """
    class Last:
        def __del__(self): late()
    _last = Last()  # names like this one go first
        """,
    ],
    ids=["atexit", "a thread after the main one's end", "a finaliser"],
)
def test_G3_first_use_after_the_end_is_refused(python: Python, when: str, used: bool) -> None:
    check(python(TOO_LATE, "    cmwq.system.submit(int).result()\n" * used, f"    {when.strip()}\n"), "[]\n")


def test_G3_what_is_imported_after_the_end_is_refused_too(python: Python) -> None:
    done = python("""
        import atexit, concurrent.futures.thread
        def late():
            import cmwq
            try:
                print(cmwq.system.submit(int))
            except cmwq.QueueClosed as exc:
                print("closed")
        atexit.register(late)
    """)
    check(done, "closed\n")


def test_G3_a_runtime_of_which_the_first_use_is_in_a_work_at_exit(python: Python) -> None:
    """It is refused, or done; not accepted and lost."""
    done = python("""
        import cmwq, threading
        other, out = cmwq.Runtime(), []
        def work():
            threading.main_thread().join(0.2)  # into the exit hook, mostly; right wherever it is
            try:
                future = cmwq.Executor(runtime=other).submit(print, "done", flush=True)
            except cmwq.QueueClosed:
                print("done", flush=True)
        cmwq.system.submit(work)
    """)
    check(done, "done\n")


def test_G2_fork_in_the_middle_of_the_first_use(python: Python) -> None:
    """The start is held up while it has the runtime's lock; meanwhile the process forks."""
    done = python("""
        import cmwq, os, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        there, go = threading.Event(), threading.Event()
        class Slow(cmwq.default_runtime().host.__class__):
            pauses = True
            def start_timers(self):
                if self.pauses:
                    there.set(); go.wait()
                super().start_timers()
        runtime = cmwq.Runtime(host=Slow())
        pool = cmwq.Executor(runtime=runtime)
        thread = threading.Thread(target=lambda: print("parent", pool.submit(pow, 2, 2).result(), flush=True))
        thread.start()
        there.wait()
        pid = os.fork()
        if pid == 0:
            Slow.pauses = False
            assert pool.submit(pow, 2, 3).result(30) == 8
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        go.set()
        thread.join()
        runtime.close()
    """)
    check(done, "0\nparent 4\n")


def test_G2_fork_while_other_threads_begin(python: Python) -> None:
    """At whatever point of the start the fork happens to come."""
    done = python("""
        import cmwq, os, threading, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        bad, end = 0, time.monotonic() + 20
        for n in range(30):
            if time.monotonic() > end: break  # on a busy machine each of these processes takes long to end
            runtime = cmwq.Runtime()
            queues = [cmwq.WorkQueue("q", scope=scope, runtime=runtime) for scope in ("system", "cpu", "cache")]
            threads = [threading.Thread(target=lambda q=q: q.submit(int).result()) for q in queues]
            for thread in threads: thread.start()
            pid = os.fork()
            if pid == 0:
                for queue in queues: queue.submit(int).result(30)
                os._exit(0)
            bad += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0
            for thread in threads: thread.join()
            runtime.close()
        print(bad)
    """)
    check(done, "0\n")


def test_a_runtime_that_nobody_has_any_more_is_forgotten(python: Python) -> None:
    done = python("""
        import cmwq, gc
        from cmwq._host import life
        gc.collect()
        before = len(life._runtimes)
        for _ in range(10):
            cmwq.Runtime().close()
            cmwq.Runtime()
        gc.collect()
        print(len(life._runtimes) - before)
    """)
    check(done, "0\n")


def test_G1_the_import_installs_hooks_and_starts_nothing(python: Python) -> None:
    done = python("""
        import os, threading
        hooks = []
        real = os.register_at_fork
        def note(**kinds):
            hooks.extend(f"{kind} {fn.__module__}" for kind, fn in kinds.items())
            real(**kinds)
        os.register_at_fork = note
        import cmwq
        print([hook for hook in hooks if "cmwq" in hook], threading.active_count())
    """)
    check(done, "['after_in_child cmwq._host.life'] 1\n")
