"""A set that keeps nothing alive, for all who must be told of something.

Guarantees: each change, and a look at all of them, is one step of C: nothing can come in between, neither another
thread nor a signal's handler nor a finaliser (F10). `weakref.WeakSet` runs Python code in all three, also when an
element dies; a Ctrl-C there would be lost, for an exception in a weak reference's callback goes nowhere. Elements are
compared by identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar
from weakref import ref

T = TypeVar("T")


class Weakly(Generic[T]):
    """Thread-safe. Iterating goes over those that were there when it began and are still alive."""

    __slots__ = ("_refs",)

    def __init__(self) -> None:
        self._refs: set[ref[T]] = set()  # A

    def add(self, element: T) -> None:
        self._refs.add(ref(element, self._refs.discard))

    def discard(self, element: T) -> None:
        self._refs.discard(ref(element))

    def __iter__(self) -> Iterator[T]:
        return iter([element for weak in self._refs.copy() if (element := weak()) is not None])

    def __len__(self) -> int:
        return len(self._refs)
