"""tables: how a dictionary is read that several threads share.

Its one job: `lookup(table, key)` in place of `table.get(key)`.

Why: without a GIL, CPython 3.13's `dict.get` takes the dictionary's lock and then, when the entry was made by another
thread, once more. It so waits for itself: it yields the CPU forty times, parks, and is given the lock that it lets go
of by that. This takes 29 microseconds in place of a tenth of one. On a busy CPU each yield costs the rest of a time
slice, and who does it within a critical section keeps everybody else out for tens of milliseconds. `table[key]` takes
the lock once. So no dictionary that threads share is asked with `get` where that could happen (tests/test_shape.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


def lookup(table: Mapping[Key, Value], key: Key) -> Value | None:
    """Return what the table has for this key, or None. As atomic as `dict.get`."""
    try:
        return table[key]
    except KeyError:
        return None
