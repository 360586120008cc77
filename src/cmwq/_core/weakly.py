"""A set of weak references, for objects that have to be told of something and must not be kept alive for that.

Guarantees: each change, and each look at all elements, is one step of C code, so neither another thread nor a signal
handler nor a finaliser can come in between (F10). `weakref.WeakSet` runs Python code for all three, also when an
element dies; a Ctrl-C there would be lost, because an exception in a weak reference's callback is not propagated.
Elements are compared as weak references are, so they should not define `__eq__`: then that is by identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar
from weakref import ref

T = TypeVar("T")


class Weakly(Generic[T]):
    """Thread-safe. Iterating yields the elements that were in it at the start and are still alive."""

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
