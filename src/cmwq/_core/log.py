"""The logger "cmwq", as the core uses it: nobody who handles its records harms whoever told of something.

A handler may raise because the disk is full, and so may a filter, or the `repr` of what is told. All of these are other
people's code, and they run on our workers, at moments when a work, a pool or the end of the process has to be seen
through. So what they raise is written to stderr, like the standard library's own logging errors, and goes no further.
On the main thread what is no Exception passes, since a signal's handler may have raised it. On any other thread a
work's `repr` did, and it would end the worker again and again.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

_logger = logging.getLogger("cmwq")


def debug(message: str, *args: object, exc_info: Any = None) -> None:
    """As `logging.Logger.debug`."""
    _tell(logging.DEBUG, message, args, exc_info)


def info(message: str, *args: object) -> None:
    """As `logging.Logger.info`."""
    _tell(logging.INFO, message, args, None)


def warning(message: str, *args: object) -> None:
    """As `logging.Logger.warning`."""
    _tell(logging.WARNING, message, args, None)


def error(message: str, *args: object, exc_info: Any = None) -> None:
    """As `logging.Logger.error`."""
    _tell(logging.ERROR, message, args, exc_info)


def exception(message: str, *args: object) -> None:
    """As `logging.Logger.exception`. Context: an exception is being handled."""
    _tell(logging.ERROR, message, args, True)


def _tell(level: int, message: str, args: tuple[object, ...], exc_info: Any) -> None:
    try:
        _logger.log(level, message, *args, exc_info=exc_info, stacklevel=3)
    except BaseException as exc:
        if not isinstance(exc, Exception) and threading.get_ident() == threading.main_thread().ident:
            raise
        _tell_stderr(message, args, exc)


def _tell_stderr(message: str, args: tuple[object, ...], why: BaseException) -> None:
    try:
        try:
            text = message % args
        except BaseException:  # what is told has no words
            text = message
        if logging.raiseExceptions and sys.stderr is not None:
            sys.stderr.write(f"cmwq: {text} [told here because logging raised {type(why).__name__}]\n")
    except Exception:
        pass
