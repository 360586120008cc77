"""Where greenlets stand in for threads, the first use says so."""

from __future__ import annotations

import _thread
import importlib.util
from typing import Any

import pytest

import cmwq

gevent = pytest.mark.skipif(
    importlib.util.find_spec("gevent") is None, reason="gevent is not installed (make setup EXTRAS=peers)"
)


@gevent
@pytest.mark.parametrize("first", ["import cmwq", "pass"])
def test_patched_threads_are_refused_at_first_use(python: Any, first: str) -> None:
    done = python(f"""
        {first}
        from gevent import monkey
        monkey.patch_all()
        import cmwq
        uses = (
            lambda: cmwq.Executor().submit(int),
            lambda: cmwq.Executor(1).submit(int),
            lambda: cmwq.WorkQueue("q").queue(cmwq.Work(int)),
            lambda: cmwq.WorkQueue("r", rescuer=True),
        )
        for use in uses:
            try:
                use()
            except RuntimeError as exc:
                print(type(exc).__name__, exc)
    """)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    assert all(line.startswith("ThreadLimit ") and "gevent" in line and "thread=False" in line for line in lines)
    assert done.returncode == 0, "and nothing is left that the exit would wait for"


@gevent
def test_what_is_patched_but_threads_does_no_harm(python: Any) -> None:
    done = python("""
        from gevent import monkey
        monkey.patch_all(thread=False)
        import cmwq, time
        with cmwq.Executor() as executor:
            futures = [executor.submit(time.sleep, 0.01) for _ in range(50)]
            print(sum(executor.map(abs, range(100))), {future.result() for future in futures})
    """)
    assert done.stdout == "4950 {None}\n", done.stderr


def test_whoever_replaces_threads_is_named(runtime: cmwq.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    def get_ident() -> int:
        return 0

    get_ident.__module__ = "greenlets.thread"
    monkeypatch.setattr(_thread, "get_ident", get_ident)
    with pytest.raises(cmwq.ThreadLimit, match=r"greenlets\.thread"):
        cmwq.Executor(runtime=runtime).submit(int)


def test_a_debugger_that_watches_threads_start_is_none_of_these(
    runtime: cmwq.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    real = _thread.start_new_thread

    def start_new_thread(*args: Any) -> int:
        started.append(args)
        return real(*args)

    monkeypatch.setattr(_thread, "start_new_thread", start_new_thread)
    with cmwq.Executor(runtime=runtime) as executor:
        assert executor.submit(int).result() == 0
