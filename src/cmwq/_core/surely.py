"""Undoing something whatever interrupts (F10)."""

from __future__ import annotations

from collections.abc import Callable


class surely:
    """A context manager that calls `undo` at the end, whatever happens. It may call it twice, so that must do no harm.

    An interruption may come before the first step of `__exit__`. So where `undo` must be called for sure, write it
    twice: `with surely(undo), surely(undo):`. Then one interruption, wherever it comes, prevents at most one of the
    calls (F10).
    """

    __slots__ = ("_undo",)

    def __init__(self, undo: Callable[[], object]) -> None:
        self._undo = undo  # S

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        self._undo()
