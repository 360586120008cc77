"""Signals as bytes in a pipe, read by a thread of their own, so that none is lost.

A Python handler runs in the main thread, between two bytecodes: a signal that arrives just before that thread goes to
sleep on a lock is seen only when something else wakes it. What the interpreter's C handler writes to the wake-up
descriptor has no such gap.

Guarantees: while `caught`, each signal reaches `tell` (on the reading thread) and has no other effect in this process;
children made by `os.fork` have the handlers from before. Signals that were ignored stay ignored (`nohup`).
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
    """Within this, `tell(number)` instead of those signals. Only the main thread can: elsewhere it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    wanted = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before: dict[int, Any] = {}
    before_fd: list[int] = []

    def restore() -> None:
        # Once: the hook for children of a fork cannot be taken back, and outlives this.
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

    # Before any handler is changed: if there is no thread to be had, nothing is to be undone.
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
    """Leave the process as if that signal had never been caught. A shell shows the same status (128 + number), but
    stops its loop after Ctrl-C only then; and a service manager knows that it was asked for."""
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(128 + number)  # blocked, or the first process of a container, which no signal ends by default


def _nothing(number: int, frame: object) -> None:
    """Handled by the reader. There must be a handler in Python for the wake-up descriptor to be written."""
