"""Refusal of sub-interpreters (G5): cmwq works in the main interpreter only. In others, starting a thread raises.

Why they are refused. What a sensor watches belongs to the process: CPUs, threads, the main GIL. An isolated
sub-interpreter may have no thread that outlives its code, but a runtime consists of such threads. A sub-interpreter
that is not isolated can't be ended while it has such threads: CPython up to 3.12 then ends the process.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable

from cmwq._errors import ThreadLimit


def _never_asked() -> bool:
    return True


def _find_out() -> Callable[[], bool]:
    """A function that says whether this is the main interpreter.

    Called at import, because a fork during a later import would leave that module's lock taken in the child (G2).
    """
    is_main: Callable[[], bool] | None = getattr(_thread, "_is_main_interpreter", None)  # 3.13
    if is_main is not None:
        return is_main
    try:
        import _xxsubinterpreters as interpreters  # type: ignore[import-not-found]
    except ImportError:
        return _never_asked
    main: bool = interpreters.get_current() == interpreters.get_main()
    return lambda: main


is_main = _find_out()


def check() -> None:
    """Raises ThreadLimit in any interpreter but the main one."""
    if not is_main():
        raise ThreadLimit(
            "this is a sub-interpreter, and cmwq starts its threads in the main interpreter only: use it there, or "
            "concurrent.futures.ThreadPoolExecutor here"
        )
