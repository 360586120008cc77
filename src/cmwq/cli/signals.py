"""Signals as bytes in a pipe, read by a thread of their own, so that none is lost.

A Python handler runs in the main thread, between two bytecodes. So a signal that arrives just before that thread goes
to sleep on a lock is noticed only when something else wakes the thread. The interpreter's C handler writes to the
wake-up descriptor at once, without such a gap.

Guarantees: within `caught` each signal reaches `tell` (on the reading thread) and has no other effect in this process.
Children made by `os.fork` have the handlers from before. Signals that were ignored stay ignored (`nohup`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from cmwq.cli.output import Refusal, one_line

_STOP = 0  # no signal has this number


@contextlib.contextmanager
def caught(numbers: Iterable[int], tell: Callable[[int], object]) -> Iterator[None]:
    """Within this context call `tell(number)` for each of those signals, in place of its effect. In a thread other than
    the main thread it does nothing. Raises Refusal if no thread can be had.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    wanted = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before: dict[int, Any] = {}
    before_fd: list[int] = []

    def restore() -> None:
        # Only once: the hook for children of a fork cannot be removed, and outlives this context.
        while before_fd:
            signal.set_wakeup_fd(before_fd.pop())
        while before:
            signal.signal(*before.popitem())

    def read() -> None:
        while True:
            for number in os.read(reading, 64):
                if number == _STOP:
                    return
                if number in wanted:
                    tell(number)

    # Started before any handler is changed: if no thread can be had, nothing has to be undone.
    reader = threading.Thread(target=read, name="cmwq signals", daemon=True)
    try:
        reader.start()
    except RuntimeError as error:
        raise Refusal(one_line(str(error))) from None
    os.register_at_fork(after_in_child=restore)
    before_fd.append(signal.set_wakeup_fd(writing, warn_on_full_buffer=False))
    before.update((number, signal.signal(number, _nothing)) for number in wanted)
    try:
        yield
    finally:
        restore()
        os.write(writing, bytes([_STOP]))
        reader.join()
        os.close(reading)
        os.close(writing)


def end_by(number: int) -> NoReturn:
    """Leave the process as if that signal had never been caught.

    A shell shows the status 128 + number for an exit as well. But only a process that a signal ended makes it stop its
    loop after Ctrl-C, and tells a service manager that the end was asked for.
    """
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(128 + number)  # it is blocked, or this is a container's first process, which no signal ends by default


def _nothing(number: int, frame: object) -> None:
    """Do nothing; the reader handles it. The wake-up descriptor is written only if there is a handler in Python."""
