"""How what users pass is called in messages, logs and reports. No code of theirs is asked for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any


def name_of(fn: object) -> str:
    """How a callable is called in messages: by its own name, or that of its class.

    No code of the user's is asked: it may be called with a lock held, and a `repr()` may call us, take long, or tell of
    addresses that are never the same. A property may be such code, and so may a metaclass, `__class__`, or what a bound
    method is a method of; so only what `type` and functions keep themselves counts.
    """
    kind = type(fn)
    for _ in range(MAX_NAME):  # a partial may be one of itself
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
    """What is called instead of `func`, and is named like it."""

    __slots__ = ("func",)

    func: Callable[..., Any]


_qualname_of = type.__dict__["__qualname__"].__get__  # whatever its metaclass would have to say


MAX_NAME = 100
"""Characters of a name in messages and reports."""
