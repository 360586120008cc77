"""G2, G3: a first use, or any, in the middle of a fork or of the end: the right value or an error in words, no hang."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from thorough import often

from cmwq._host import locks

Python = Callable[..., "subprocess.CompletedProcess[str]"]

FORKED = often(200, 60)

FORKS = """
    import cmwq, os, threading, time, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    def forked(in_child):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                in_child()
                code = 0
            except BaseException:
                import traceback; traceback.print_exc()
            finally:
                os._exit(code)
        return pid
    def status(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    def rounds(most):
        # As many as there is time for: on a busy machine each of these processes takes long to end.
        until = time.monotonic() + 20
        for n in range(most):
            if time.monotonic() > until: return
            yield n
"""


def check(done: subprocess.CompletedProcess[str], expected: str = "") -> None:
    assert (done.stdout, done.stderr, done.returncode) == (expected, "", 0)


@pytest.mark.parametrize("scope", ["system", "cpu", "cache"])
def test_G2_forks_each_in_the_middle_of_a_first_use(python: Python, scope: str) -> None:
    """Of a runtime of its own each time; and of the default one, of which there is but one first use."""
    check(
        python(
            FORKS,
            f"""
            def fork_while_it_begins(runtime, n):
                queue = cmwq.WorkQueue("q", scope={scope!r}, runtime=runtime)
                go = threading.Event()
                def first():
                    go.set()
                    queue.submit(int).result()
                thread = threading.Thread(target=first)
                thread.start()
                go.wait()
                for _ in range(n % 50 * 20): pass
                pid = forked(lambda: queue.submit(pow, 2, 3).result(30) == 8 or 1 / 0)
                thread.join()
                return status(pid)
            bad = fork_while_it_begins(cmwq.default_runtime(), 0) != 0
            for n in rounds({FORKED}):
                with cmwq.Runtime() as runtime:
                    bad += fork_while_it_begins(runtime, n) != 0
            print(bad)
            """,
        ),
        "0\n",
    )


def test_G2_what_is_queued_before_the_fork_by_a_hook_of_it_is_the_parents(python: Python) -> None:
    check(
        python(
            FORKS,
            f"""
            executor, futures = cmwq.Executor(), []
            os.register_at_fork(before=lambda: futures.append(executor.submit(pow, 2, 3)))
            def child():
                for future in futures:
                    try:
                        assert future.result(30) == 8  # it had ended before the fork
                    except cmwq.ForeignProcess as exc:
                        assert "was queued before this process was forked" in str(exc)
                assert executor.submit(pow, 2, 4).result(30) == 16
            bad = 0
            for _ in rounds({FORKED}):
                bad += status(forked(child)) != 0
                del futures[:-1]
            print(bad, [future.result() for future in futures])
            """,
        ),
        "0 [8]\n",
    )


@pytest.mark.parametrize("used", [False, True])
def test_G2_what_is_queued_in_the_child_by_a_hook_before_ours(python: Python, used: bool) -> None:
    """It is taken by nobody; whoever waits for it is told. Where it is the first use its worker may have been there
    already, and have done it, or have said that it was interrupted."""
    done = python(
        """
            import os, threading  # whose own hook comes first: before it no thread can be started
            futures = []
            def early():
                futures.append(executor.submit(pow, 2, 3))
                futures.append(executor.queue.submit(work))
            os.register_at_fork(after_in_child=early)
            """,
        FORKS,
        f"""
            executor = cmwq.Executor()
            work = cmwq.Work(int)
            def child():
                try:
                    futures[0].result(30)
                except cmwq.ForeignProcess as exc:
                    assert "by a hook of the fork that came before cmwq's own" in str(exc)
                    assert "Queue it anew" in str(exc)
                else:
                    assert not {used}
                assert executor.submit(pow, 2, 4).result(30) == 16
                assert not work.pending
                assert executor.queue.submit(work).result(30) == 0
            bad = 0
            if {used}:
                executor.submit(int).result()
                (pool,) = cmwq.default_runtime().pools()  # at rest: locks in Python know of a fork only from our hook
                while not all(worker.idle for worker in list(pool.workers)): time.sleep(0.001)
                with pool.lock: pass
            for _ in rounds(50): bad += status(forked(child)) != 0
            print(bad)
            """,
    )
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr
    assert not (used and done.stderr)


@pytest.mark.skipif(locks.Lock is locks.PyLock, reason="the locks in Python know of a fork only from our hook")
def test_G2_a_hook_before_ours_does_not_wait_for_a_lock_that_a_thread_of_the_parent_holds(python: Python) -> None:
    check(
        python(
            """
            import os
            futures = []
            def early():
                futures.append(executor.submit(pow, 2, 3))
            os.register_at_fork(after_in_child=early)
            """,
            FORKS,
            """
            executor = cmwq.Executor()
            executor.submit(int).result()
            (pool,) = cmwq.default_runtime()._pools.values()
            held, over = threading.Event(), threading.Event()
            def hold():
                with pool.lock:
                    held.set()
                    over.wait()
            thread = threading.Thread(target=hold)
            thread.start()
            held.wait()
            def child():
                try:
                    futures[0].result(30)
                except cmwq.ForeignProcess:
                    assert executor.submit(pow, 2, 4).result(30) == 16
            pid = forked(child)
            print(status(pid))
            over.set()
            thread.join()
            """,
        ),
        "0\n",
    )


@pytest.mark.skipif(locks.Lock is locks.PyLock, reason="the locks in Python know of a fork only from our hook")
@pytest.mark.parametrize("held_by", ["nobody", "a thread", "the forking thread"])
def test_G2_a_lock_that_a_thread_of_the_child_holds_is_not_taken_from_it(python: Python, held_by: str) -> None:
    """Whoever held it in the parent, neither by those who come before our hook nor by that hook."""
    check(
        python(
            f"""
            import _thread, os, time
            held_by, order = {held_by!r}, []
            def early():
                asked, there = _thread.allocate_lock(), _thread.allocate_lock()
                asked.acquire()
                there.acquire()
                def hold():
                    asked.release()
                    with lock:
                        there.release()
                        time.sleep(0.3)
                        order.append("thread of the child")
                _thread.start_new_thread(hold, ())
                asked.acquire()
                if held_by == "the forking thread":
                    time.sleep(0.2)  # so that it waits
                    assert there.locked(), "it took the lock from the forking thread"
                    lock.release()
                there.acquire()
                lock._at_fork_reinit()
                with lock: order.append("main")
            os.register_at_fork(after_in_child=early)
            """,
            FORKS,
            """
            from cmwq._host import locks
            lock = locks.Lock(3)
            there, over = threading.Event(), threading.Event()
            def hold():
                with lock:
                    there.set()
                    over.wait()
            if held_by == "a thread":
                threading.Thread(target=hold).start()
                there.wait()
            if held_by == "the forking thread": lock.acquire()
            def child(): assert order == ["thread of the child", "main"], order
            print(status(forked(child)))
            if held_by == "the forking thread": lock.release()
            over.set()
            """,
        ),
        "0\n",
    )


def test_G2_a_batch_of_the_parents_calls_is_not_waited_for_in_the_child(python: Python) -> None:
    check(
        python(
            FORKS,
            """
            from cmwq import aio
            import asyncio
            over = threading.Event()
            batch = cmwq.Batch(cmwq.WorkQueue("q"))
            batch.submit(int).result()
            batch.submit(over.wait)
            async def wait(): await aio.wait(batch, 60)
            def child():
                for waits in (lambda: batch.wait(60), lambda: batch.results(60), lambda: asyncio.run(wait())):
                    try: waits()
                    except cmwq.ForeignProcess: continue
                    assert False
            print(status(forked(child)))
            over.set()
            batch.wait()
            """,
        ),
        "0\n",
    )


def test_G2_what_is_queued_in_the_child_by_a_hook_after_ours_is_done(python: Python) -> None:
    check(
        python(
            FORKS,
            """
            executor, futures = cmwq.Executor(), []
            executor.submit(int).result()
            os.register_at_fork(after_in_child=lambda: futures.append(executor.submit(pow, 2, 3)))
            print(sum(status(forked(lambda: futures[0].result(30) == 8 or 1 / 0)) for _ in rounds(50)))
            """,
        ),
        "0\n",
    )


LATE = """
    import atexit, cmwq, threading
    def late():
        try:
            print(cmwq.Executor().submit(pow, 2, 3).result(), flush=True)
        except cmwq.QueueClosed as exc:
            print("cannot schedule new futures after interpreter shutdown" in str(exc), flush=True)
"""


@pytest.mark.parametrize(
    "when",
    [
        "atexit.register(late)",
        "threading.Thread(target=lambda: (threading.main_thread().join(), late())).start()",
        """
    class Last:
        def __del__(self): late()
    last = Last()
        """,
        """
    class Last:
        def __del__(self): late()
    last = Last(); last.me = last
        """,
        "threading._register_atexit(late)",
    ],
    ids=["atexit", "a thread after the main one's end", "a finaliser", "a finaliser in a cycle", "a hook before ours"],
)
def test_G3_a_first_use_at_the_end_is_done_or_refused(python: Python, when: str) -> None:
    done = python(LATE, f"    {when.strip()}\n")
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout in ("True\n", "8\n")


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="CPython 3.12 refuses forks once the main thread has ended")
def test_G3_at_exit_a_work_that_forks_does_not_hang(python: Python) -> None:
    """The child is, as the parent, one that ends."""
    check(
        python(
            FORKS,
            """
            def work():
                threading.main_thread().join(0.3)  # into the exit hook
                print(status(forked(lambda: None)), flush=True)
            cmwq.system.submit(work)
            """,
        ),
        "0\n",
    )


def test_G2_forks_while_another_thread_makes_queues(python: Python) -> None:
    """Without a GIL whatever stops all threads of the process must not be done then: CPython's child would hang."""
    check(
        python(
            FORKS,
            f"""
            import threading
            over = threading.Event()
            def make():
                while not over.is_set():
                    with cmwq.WorkQueue("new") as queue: queue.submit(int).result()
            thread = threading.Thread(target=make)
            thread.start()
            def child():
                assert cmwq.WorkQueue("own").submit(pow, 2, 3).result(30) == 8
            print(sum(status(forked(child)) != 0 for _ in rounds({FORKED // 4})))
            over.set()
            thread.join()
            """,
        ),
        "0\n",
    )


@pytest.mark.parametrize("twin", ["0", "1"])
def test_G2_a_work_that_forks_ends_in_the_child_too_although_others_of_its_queue_waited(
    python: Python, twin: str
) -> None:
    """They are the parent's, so in the child nobody gets its place."""
    check(
        python(
            FORKS,
            """
            queues = cmwq.WorkQueue("one", max_active=1), cmwq.WorkQueue("learned", max_active="auto")
            for queue in queues:
                call = queue.submit(os.fork)
                queue.submit_many(int, [0] * 300)
                print(status(call.result()))
                queue.flush()
            """,
            env={**os.environ, "CMWQ_TWIN": twin},
        ),
        "0\n0\n",
    )


@pytest.mark.parametrize("has_c", [False, True])
def test_G2_E9_works_of_the_parent_are_taken_back_in_the_child_whoever_held_the_lock_of_their_room(
    python: Python, has_c: bool
) -> None:
    without = "" if has_c else "import sys; sys.modules['cmwq._sensor._sentinel'] = None"
    check(
        python(
            without,
            FORKS,
            """
            queue, open_ = cmwq.WorkQueue("q", max_active=1, max_pending=3), threading.Event()
            queue.submit(open_.wait)
            while queue._room.taken: time.sleep(0.001)
            call, work = queue.submit(int), cmwq.Work(int)
            queue.queue(work)
            held, over = threading.Event(), threading.Event()
            def hold():
                with queue._room._lock:
                    held.set()
                    over.wait()
            thread = threading.Thread(target=hold)
            thread.start()
            held.wait()
            def child():
                threading.Timer(30, os._exit, (3,)).start()  # it hangs
                assert call.cancel()
                work.cancel()
                assert queue._room.taken == 0
                assert queue.submit(pow, 2, 3).result(30) == 8
            print(status(forked(child)))
            over.set()
            thread.join()
            open_.set()
            """,
        ),
        "0\n",
    )
