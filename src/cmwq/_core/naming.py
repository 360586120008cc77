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

    A partial call that is given a function is named with it, as `run_it(users)`: they are told apart by it (`kind_of`).
    """
    fn, given = _taken_apart(fn)
    name = _own_name(fn)
    if given:
        name += f"({_own_name(_innermost(given[0]))})"
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 3] + "..."


def _own_name(fn: object) -> str:
    """The name of a callable that calls no other."""
    kind = type(fn)
    if kind is FunctionType:
        name: str = fn.__qualname__  # type: ignore[attr-defined]
        return name
    if kind is BuiltinFunctionType:
        return _name_of_builtin(fn)
    if issubclass(kind, type):
        return _qualname_of(fn)  # type: ignore[no-any-return]
    return f"{_qualname_of(kind)} object"


def kind_of(fn: object) -> tuple[tuple[object, ...], str]:
    """What calls of the same function have in common, although it may be another object each time: objects, to be
    compared by identity, and a name. A function of Python is its code. A partial call, a method, and a call in a
    context count as the function that they call.

    Functions that a partial call is given belong to it: frameworks hand over `partial(run_it, function=users)`, and to
    tell these calls by `run_it` alone would hold back short ones with the long ones of another function (A9).

    No user code runs, and neither arguments nor the object of a method are kept alive.
    """
    if type(fn) is MethodType:
        fn = fn.__func__
    if type(fn) is FunctionType:  # the usual one
        return (fn.__code__,), ""
    inner, given = _taken_apart(fn)
    anchor, name = _anchor_of(inner)
    if not given:
        return (anchor,), name
    return (anchor, *[_anchor_of(_innermost(each))[0] for each in given]), name


def _anchor_of(fn: object) -> tuple[object, str]:
    """What a call of a function that calls no other is told by."""
    kind = type(fn)
    if kind is FunctionType:
        return fn.__code__, ""  # type: ignore[attr-defined]
    if kind is BuiltinFunctionType:
        owner = fn.__self__  # type: ignore[attr-defined]
        return (owner if type(owner) is ModuleType else type(owner)), fn.__name__  # type: ignore[attr-defined]
    return (fn, "") if issubclass(kind, type) else (kind, "its object")


def called(call: tuple[object, ...]) -> object:
    """The function that this call, a function and its arguments, is known by: the first of the arguments if the other
    only runs it in a context, as `submit(copy_context().run, fn)` does; else the function itself.
    """
    while len(call) > 1 and type(call[0]) is not FunctionType and _runs_in_context(_innermost(call[0])):
        call = call[1:]
    return call[0]


def is_coroutine_function(fn: object) -> bool:
    """Whether a call of it only makes something that is to be awaited. No user code runs, as above. A stand-in is none:
    what becomes of that is up to what is called instead.
    """
    if issubclass(type(fn), StandIn):
        return False
    fn = _innermost(fn)
    return type(fn) is FunctionType and bool(fn.__code__.co_flags & (CO_COROUTINE | CO_ASYNC_GENERATOR))


def _innermost(fn: object) -> object:
    """The function that a partial call, a method, a stand-in, or a call in a context calls in the end."""
    return _taken_apart(fn)[0]


def _taken_apart(fn: object) -> tuple[object, list[object]]:
    """That function, and the functions among what partial calls give it."""
    given: list[object] = []
    for _ in range(MAX_NAME):  # a partial may contain itself
        kind = type(fn)
        if kind is partial:
            inner, args = fn.func, fn.args  # type: ignore[attr-defined]
            if args and _runs_in_context(inner):  # asyncio.to_thread makes such partial calls of Context.run
                inner, args = args[0], args[1:]
            if fn.keywords:  # type: ignore[attr-defined]
                args += tuple(fn.keywords.copy().values())  # type: ignore[attr-defined]  # others may change it
            for value in args[:MAX_GIVEN]:
                kind = type(value)
                if kind is FunctionType or kind is MethodType or kind is partial:  # a builtin tells nothing: `key=len`
                    given.append(value)
            fn = inner
        elif issubclass(kind, StandIn):
            fn = fn.func  # type: ignore[attr-defined]
        elif kind is MethodType:
            fn = fn.__func__  # type: ignore[attr-defined]
        else:
            break
    return fn, given[:MAX_GIVEN]


def _runs_in_context(fn: object) -> bool:
    """Whether it is a context's `run`, which calls its first argument."""
    return type(fn) is BuiltinFunctionType and type(fn.__self__) is Context and fn.__name__ == "run"


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
MAX_GIVEN = 8
"""So many of the first arguments of a partial call are looked at."""
