"""The names of users' callables in messages, logs and reports. They are found without running user code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any


def name_of(fn: object) -> str:
    """The name of a callable in messages: its own, or that of its class. At most `MAX_NAME` characters.

    No user code runs, because this may be called with a lock held, and a `repr()` may call cmwq, take long, or contain
    an address. A property, a metaclass, `__class__` and the object of a bound method may be user code as well, so only
    what `type` and functions store themselves is read.
    """
    kind = type(fn)
    for _ in range(MAX_NAME):  # a partial may contain itself
        if kind is partial or issubclass(kind, StandIn):
            fn = fn.func  # type: ignore[attr-defined]
        elif kind is MethodType:
            fn = fn.__func__  # type: ignore[attr-defined]
        else:
            break
        kind = type(fn)
    if kind is FunctionType:
        name: str = fn.__qualname__  # type: ignore[attr-defined]
    elif kind is BuiltinFunctionType:
        name = fn.__name__  # type: ignore[attr-defined]
    elif issubclass(kind, type):
        name = _qualname_of(fn)
    else:
        name = f"{_qualname_of(kind)} object"
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 3] + "..."


class StandIn:
    """Something that is called instead of `func` and has its name."""

    __slots__ = ("func",)

    func: Callable[..., Any]


_qualname_of = type.__dict__["__qualname__"].__get__  # without asking its metaclass


MAX_NAME = 100
"""Characters of a name in messages and reports, at most."""
