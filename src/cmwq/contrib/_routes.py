"""_routes: tells the pool what a request is for, so that it tells requests apart.

A server runs every request by the same function. To the pool all of them would be works of one kind, and where some
compute for long, the others would be held back with them (A9). Here each route has a class of its own, and a call is an
object of that class: that is what the pool goes by, and its reports name the route.

Guarantees: a route is the shape of a path, so that `/users/7` and `/users/8` are the same. A guess that is wrong, or
that fails, costs time at most, never a request. At most `KEPT` routes are remembered, and little of each: clients
choose paths, and may choose long ones that hold anything.

Where a framework's own function runs its user's, `InsteadOf` has the call count as one of the user's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from cmwq._core.naming import StandIn
from cmwq._core.tables import lookup

KEPT = 1024
"""How many routes are told apart. When another one comes, the table is begun anew."""
LONGEST = 80
"""Characters by which routes are told apart, and of a route's name, at most."""
LOOKED_AT = 1024
"""Characters of a path that are looked at."""
_ARGUMENT = re.compile(r"(?<=/)(?:[^/]*\d[^/]*|[^/]{24,})")
"""Parts of a path that are taken for arguments: those with a digit, and long ones."""


class Call:
    """A call of `function`. Each route has a subclass."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class InsteadOf(StandIn):
    """A call of `calls` that counts as one of `func`, and has its name."""

    __slots__ = ("_calls",)

    def __init__(self, func: Callable[..., Any], calls: Callable[..., Any]) -> None:
        self.func = func
        self._calls = calls

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._calls(*args, **kwargs)


class Routes:
    """The routes of one server. Thread-safe: of two threads that meet a new route at once, one is not remembered."""

    def __init__(self) -> None:
        self._kinds: dict[str, type[Call]] = {}  # each change is atomic

    def call(self, fn: Callable[..., Any], find: Callable[..., str | None], *about: Any) -> Callable[..., Any]:
        """What is to be called in place of `fn`, so that it counts as a call of the route `find(*about)`.

        That is `fn` itself where the route is None or empty, or can't be told: of what a client sends nothing is known,
        and no Exception that it causes may reach a server's loop.
        """
        try:
            route = find(*about)
            return self._kind(route)(fn) if route else fn
        except Exception:
            return fn

    def _kind(self, route: str) -> type[Call]:
        """The class of the calls of this route."""
        key = route[:LONGEST]
        kind = lookup(self._kinds, key)
        if kind is None:
            if len(self._kinds) >= KEPT:
                self._kinds.clear()
            name = ascii(key)[1:-1][:LONGEST]  # no class may have a NUL in its name, and no report should
            kind = self._kinds[key] = type(name, (Call,), {"__slots__": ()})
        return kind


def shape(path: str) -> str:
    """The route of the requests for paths like this one, which may still have its query."""
    return _ARGUMENT.sub("*", path[:LOOKED_AT].partition("?")[0])[:LONGEST]
