"""Sub-interpreters (G5): cmwq serves the main one, and says so in others where a thread would be started first.

Why they are refused, rather than served apart. What a sensor watches is the process's: CPUs, threads, the main GIL. An
isolated sub-interpreter may have no thread that outlives its code, and a runtime is made of such; another can't be
ended while it has any: CPython up to 3.12 ends the process then.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable

from cmwq._errors import ThreadLimit


def _never_asked() -> bool:
    return True


def _find_out() -> Callable[[], bool]:
    """Imported now: a fork in the middle of an import leaves that module's lock taken in the child (G2)."""
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
