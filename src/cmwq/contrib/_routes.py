"""_routes: tells the pool what a request is for, so that it tells requests apart.

A server runs every request by the same function. To the pool all of them would be works of one kind, and where some
compute for long, the others would be held back with them (A9). Here each route has a class of its own, and a call is an
object of that class: that is what the pool goes by, and its reports name the route.

Guarantees: a route is the shape of a path, so that `/users/7` and `/users/8` are the same. A guess that is wrong costs
time at most, never a request. At most `KEPT` routes are remembered.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

KEPT = 1024
"""How many routes are told apart. When another one comes, the table is begun anew."""
LONGEST = 80
"""Characters of a route's name, at most."""
_ARGUMENT = re.compile(r"(?<=/)(?:[^/]*\d[^/]*|[^/]{24,})")
"""Parts of a path that are taken for arguments: those with a digit, and long ones."""


class Call:
    """A call of `function`. Each route has a subclass."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class Routes:
    """The routes of one server. Thread-safe: of two threads that meet a new route at once, one is not remembered."""

    def __init__(self) -> None:
        self._kinds: dict[object, type[Call]] = {}  # each change is atomic

    def kind(self, key: object, name: str) -> type[Call]:
        """The class of the calls that have this key. name: what reports call it."""
        found = self._kinds.get(key)
        if found is None:
            if len(self._kinds) >= KEPT:
                self._kinds.clear()
            found = self._kinds[key] = type(name[:LONGEST], (Call,), {"__slots__": ()})
        return found

    def of_path(self, path: str) -> type[Call]:
        """The class of the requests for paths like this one, which may still have its query."""
        shape = _ARGUMENT.sub("*", path.partition("?")[0])
        return self.kind(shape, shape)
