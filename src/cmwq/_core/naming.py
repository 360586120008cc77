"""What messages, logs and reports call things: users' callables, and which of them are the same; numbers with their
nouns. No user code runs for that.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from functools import partial
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any


def counted(number: int, one: str, more: str = "") -> str:
    """The number and what it counts: "1 work waits", "1,200 works wait". one: the words for a single one. more: those
    for several; empty: the same with an s.
    """
    return f"{number:,} {noun(number, one, more)}"


def noun(number: float | None, one: str, more: str = "") -> str:
    """The words alone, as of `counted`. A number that isn't known is none."""
    return one if number == 1 else more or f"{one}s"


def name_of(fn: object) -> str:
    """The name of a callable in messages: its own, or that of its class. At most `MAX_NAME` characters.

    No user code runs, because this may be called with a lock held, and a `repr()` may call cmwq, take long, or contain
    an address. A property, a metaclass, `__class__` and the object of a bound method may be user code as well, so only
    what `type` and functions store themselves is read.
    """
    fn = _innermost(fn)
    kind = type(fn)
    if kind is FunctionType:
        name: str = fn.__qualname__  # type: ignore[attr-defined]
    elif kind is BuiltinFunctionType:
        name = _name_of_builtin(fn)
    elif issubclass(kind, type):
        name = _qualname_of(fn)
    else:
        name = f"{_qualname_of(kind)} object"
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 3] + "..."


def kind_of(fn: object) -> tuple[object, str]:
    """What calls of the same function have in common, although it may be another object each time: an object, to be
    compared by identity, and a name. A function of Python is its code. A partial call, a method, and a call in a
    context count as the function that they call.

    No user code runs, and neither arguments nor the object of a method are kept alive.
    """
    fn = _innermost(fn)
    kind = type(fn)
    if kind is FunctionType:
        return fn.__code__, ""  # type: ignore[attr-defined]
    if kind is BuiltinFunctionType:
        owner = fn.__self__  # type: ignore[attr-defined]
        return (owner if type(owner) is ModuleType else type(owner)), fn.__name__  # type: ignore[attr-defined]
    return (fn, "") if issubclass(kind, type) else (kind, "its object")


def is_coroutine_function(fn: object) -> bool:
    """Whether a call of it only makes something that is to be awaited. No user code runs, as above."""
    fn = _innermost(fn)
    return type(fn) is FunctionType and bool(fn.__code__.co_flags & (CO_COROUTINE | CO_ASYNC_GENERATOR))


def _innermost(fn: object) -> object:
    """The function that a partial call, a method, a stand-in, or a call in a context calls in the end."""
    for _ in range(MAX_NAME):  # a partial may contain itself
        kind = type(fn)
        if kind is partial:
            inner, args = fn.func, fn.args  # type: ignore[attr-defined]
            in_context = type(inner) is BuiltinFunctionType and type(inner.__self__) is Context and args
            fn = args[0] if in_context else inner  # asyncio.to_thread makes such partial calls of Context.run
        elif issubclass(kind, StandIn):
            fn = fn.func  # type: ignore[attr-defined]
        elif kind is MethodType:
            fn = fn.__func__  # type: ignore[attr-defined]
        else:
            break
    return fn


def _name_of_builtin(fn: Any) -> str:
    """Its `__qualname__`, for which a metaclass would be asked: a method is named with its class."""
    owner = fn.__self__
    if owner is None or type(owner) is ModuleType:
        return str(fn.__name__)
    return f"{_qualname_of(owner if issubclass(type(owner), type) else type(owner))}.{fn.__name__}"


class StandIn:
    """Something that is called instead of `func` and has its name."""

    __slots__ = ("func",)

    func: Callable[..., Any]


_qualname_of = type.__dict__["__qualname__"].__get__  # without asking its metaclass


MAX_NAME = 100
"""Characters of a name in messages and reports, at most."""
