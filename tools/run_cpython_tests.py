"""Run CPython's own tests of ThreadPoolExecutor, those of the Python that runs this, on `cmwq.Executor`.

Its one job: put our executor in the place of theirs, in this process and in those that the tests start, and judge what
comes of it. Everything must pass but what `EXPECTED` lists, and that must fail: the exit status is 1 otherwise.
Arguments are names of tests or classes, as unittest's `-k` takes them.
"""

from __future__ import annotations

import faulthandler
import importlib
import sys
import threading
import unittest
from fnmatch import fnmatchcase
from typing import Any
from unittest import mock

EXPECTED = {
    "ThreadPoolExecutorTest.test_default_workers": "asks for a number of threads chosen in advance; there is none",
    "ThreadPoolExecutorTest.test_saturation": "counts threads right after submit; they are made as calls block",
    "ThreadPoolExecutorTest.test_idle_thread_reuse": "counts idle threads; none of them is the executor's",
    "ThreadPoolShutdownTest.test_threads_terminate": "counts threads right after submit; they are made as calls block",
    "ThreadPoolShutdownTest.test_submit_after_interpreter_shutdown": (
        "looks for 'RuntimeError: cannot schedule ...' in a traceback; the words are there, behind a subclass's name"
    ),
}
LETS_GO = ("ThreadPoolExecutorTest.test_saturation", "ThreadPoolShutdownTest.test_threads_terminate")
"""Of those, what holds calls at a semaphore and fails before it lets them go."""

NOT_RUN = {
    "ThreadPoolShutdownTest.test_cancel_futures": "wants a call to have begun by the end of the thread's time slice",
    "ThreadPoolShutdownTest.test_thread_names_assigned": "numbers below max_workers; shared threads have higher ones",
    "ThreadPoolShutdownTest.test_thread_names_default": "looks for the standard library's default name",
}
"""They depend on what happens to run at that moment, and so pass or fail by chance."""

MODULES = ("test_thread_pool", "test_shutdown", "test_wait", "test_as_completed", "test_init")
REAL_SEMAPHORE = threading.Semaphore
HANGS = 600  # seconds: only a hang takes so long
SWAP = """\
import cmwq, concurrent.futures, concurrent.futures.thread
concurrent.futures.ThreadPoolExecutor = concurrent.futures.thread.ThreadPoolExecutor = cmwq.Executor
"""


def swap_executors() -> None:
    exec(SWAP, {})
    helper = importlib.import_module("test.support.script_helper")
    run = helper.run_python_until_end

    def run_swapped(*args: str, **env: str) -> Any:
        option, program, *rest = args
        assert option == "-c", f"a child that is started otherwise than by -c: {args}"
        return run(option, SWAP + program, *rest, **env)

    helper.run_python_until_end = run_swapped  # type: ignore[attr-defined]
    # They would wait a second after each test for the pools' threads to end, and complain.
    importlib.import_module("test.support.threading_helper").threading_cleanup = _no_cleanup  # type: ignore[attr-defined]


def _no_cleanup(*before: object) -> None:
    """The threads are not the test's."""


def tests() -> unittest.TestSuite:
    """Those of thread pools; each runs as the standard library's own runner would have it."""
    suite = unittest.TestSuite()
    for name in MODULES:
        module = importlib.import_module(f"test.test_concurrent_futures.{name}")
        for case in vars(module).values():
            if (
                isinstance(case, type)
                and issubclass(case, unittest.TestCase)
                and case.__name__.startswith("ThreadPool")
            ):
                suite.addTests(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    return suite


def name_of(test: unittest.TestCase) -> str:
    whole: unittest.TestCase = getattr(test, "test_case", test)  # of a subtest
    return ".".join(whole.id().split(".")[-2:])


def let_go(test: unittest.TestCase) -> None:
    """The calls that the test holds go on after it, whatever becomes of it."""
    method = getattr(test, test._testMethodName)
    made: list[threading.Semaphore] = []

    def semaphore(value: int) -> threading.Semaphore:
        made.append(REAL_SEMAPHORE(value))
        return made[-1]

    def run() -> None:
        try:
            with mock.patch.object(threading, "Semaphore", semaphore):
                method()
        finally:
            for each in made:
                each.release(1000)

    setattr(test, test._testMethodName, run)


def chosen(suite: unittest.TestSuite, patterns: list[str]) -> unittest.TestSuite:
    found: dict[str, unittest.TestCase] = {}
    for test in suite:
        assert isinstance(test, unittest.TestCase)
        name = name_of(test)
        if name not in NOT_RUN and (not patterns or any(fnmatchcase(name, f"*{pattern}*") for pattern in patterns)):
            found[name] = test
            if name in LETS_GO:
                let_go(test)
    return unittest.TestSuite(found.values())


def main(patterns: list[str]) -> int:
    try:
        importlib.import_module("test.test_concurrent_futures")
    except ImportError:
        print("this Python came without its tests", file=sys.stderr)
        return 1
    faulthandler.dump_traceback_later(HANGS, exit=True)
    swap_executors()
    suite = chosen(tests(), patterns)
    names = {name_of(test) for test in suite if isinstance(test, unittest.TestCase)}
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    faulthandler.cancel_dump_traceback_later()
    bad = {name_of(test) for test, _ in (*result.failures, *result.errors) if isinstance(test, unittest.TestCase)}
    skipped = {name_of(test) for test, _ in result.skipped}
    expected = {name for name in EXPECTED if name in names - skipped}
    for name in sorted(bad & expected):
        print(f"failed, as expected: {name}: {EXPECTED[name]}")
    for name, reason in NOT_RUN.items():
        print(f"not run: {name}: {reason}")
    for name in sorted(bad - expected):
        print(f"FAILED: {name}")
    for name in sorted(expected - bad):
        print(f"PASSED, and should not: {name}: {EXPECTED[name]}")
    print(f"{len(names)} tests, {len(skipped)} skipped, {len(bad & expected)} failed as expected")
    return int(bad != expected or not names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
