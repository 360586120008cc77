"""Checks of what users pass, made where they pass it: first the kind (TypeError), then the range (ValueError).

Guarantees: a value that was accepted does not fail later. A message says what was given, for what, and what is allowed.
Everything that Python treats as a number is accepted, from other libraries too, except `bool`, which is mostly an
argument in the wrong place. Checks cost nothing where the default is given.

Context of all functions: no lock held, because `repr()` is user code. All are thread-safe. `what` names the argument in
the message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from operator import index
from types import FunctionType
from typing import TypeVar

from cmwq._core.naming import MAX_NAME, is_coroutine_function, name_of

T = TypeVar("T")
S = TypeVar("S", bound=str)

MAX_COUNT = 2**31 - 1
"""A limit of this many works is as good as none."""
MAX_THREADS = 2**22
"""More threads than any Linux can have."""
ENDLESS = 1e9
"""Seconds: a wait of 31 years counts as one without a limit. Some system calls overflow with longer ones."""
MIN_PERIOD = 1e-3
"""Seconds between two executions of a periodic work, at least: one thread serves all timers."""


def shown(value: object) -> str:
    """The value for a message: its repr(), shortened; its name if repr() raises."""
    try:
        text = repr(value)
    except Exception:
        text = name_of(value)
    return text if len(text) <= MAX_NAME else text[: MAX_NAME - 3] + "..."


def integer(what: str, value: object, least: int, most: int = MAX_COUNT) -> int:
    """An integer in that range. Raises TypeError, ValueError."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{what} is {shown(value)}, and must be an integer, not {type(value).__name__}")
    number = index(value)  # type: ignore[arg-type]
    if number < least:
        raise ValueError(f"{what} is {number}, and must be at least {least}")
    if number > most:
        raise ValueError(f"{what} is {shown(number)}, and must be at most {most}")
    return number


def seconds(what: str, value: object, least: float = -inf, most: float = inf) -> float:
    """A number of seconds in that range; never NaN. Raises TypeError, ValueError."""
    kind = type(value)
    if kind is not float and kind is not int and (kind is bool or not _is_number(kind)):
        raise TypeError(f"{what} is {shown(value)}, and must be a number of seconds, not {kind.__name__}")
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        number = inf if value > 0 else -inf  # type: ignore[operator]
    if number != number:
        raise ValueError(f"{what} is nan, and must be a number of seconds")
    if number < least:
        raise ValueError(f"{what} is {shown(value)} s, and must be at least {least:g} s")
    if number > most:
        raise ValueError(f"{what} is {shown(value)} s, and must be at most {most:g} s")
    return number


def _is_number(kind: type) -> bool:
    return hasattr(kind, "__float__") or hasattr(kind, "__index__")


def timeout(value: object) -> float | None:
    """The timeout of a wait, in seconds; None: no limit, which is also what `ENDLESS` and more become. A negative one
    means not to wait, as in the standard library. Raises TypeError, ValueError.
    """
    if value is None:
        return None
    number = seconds("timeout", value)
    return None if number >= ENDLESS else number


def text(what: str, value: object) -> str:
    """A string, as a plain `str`: it is compared and written while locks are held, so no user's class may take part."""
    if not isinstance(value, str):
        raise TypeError(f"{what} is {shown(value)}, and must be a string, not {type(value).__name__}")
    return value if type(value) is str else str.__str__(value)


def choice(what: str, value: object, allowed: Iterable[S]) -> S:
    """The one of the allowed strings that was given. Raises TypeError, ValueError."""
    for each in allowed:
        if isinstance(value, str) and value == each:
            return each
    kind = ValueError if isinstance(value, str) else TypeError
    raise kind(f"{what} {shown(value)} is none of {', '.join(map(repr, allowed))}")


def flag(what: str, value: object) -> bool:
    """True or False. Raises TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{what} is {shown(value)}, and must be True or False")
    return value


def instance(what: str, value: object, cls: type[T]) -> T:
    """An instance of that class. Raises TypeError."""
    if not isinstance(value, cls):
        raise TypeError(f"{what} is {shown(value)}, and must be a {cls.__name__}, not {type(value).__name__}")
    return value


def port(what: str, value: object, method: str) -> None:
    """Check that the value has this method. The rest of the port is not checked. Raises TypeError."""
    if not callable(getattr(value, method, None)):
        raise TypeError(f"{what} is {shown(value)}, and must be a {what}, which {type(value).__name__} is not")


def function(what: str, value: Callable[..., T]) -> Callable[..., T]:
    """Something callable. Raises TypeError."""
    if not callable(value):
        raise TypeError(f"{what} is {shown(value)}, and must be callable, which {type(value).__name__} is not")
    return value


def plain_function(what: str, value: Callable[..., T]) -> Callable[..., T]:
    """Something callable that is no coroutine function. Raises TypeError."""
    function(what, value)
    no_coroutine_function(what, value)
    return value


def no_coroutine_function(what: str, value: object) -> None:
    """Refuse a function whose call on a worker would do nothing, because nobody awaits what it returns. Partial calls
    and methods are seen through. Raises TypeError.
    """
    if is_coroutine_function(value):
        raise TypeError(
            f"{what} is {name_of(value)}, a coroutine function: to call it on a worker would do nothing. Await it in "
            "an event loop, or give a function that runs it, by asyncio.run() or cmwq.aio.run_coroutine()"
        )


def no_method_of(owner: type, name: str, value: object, *, given: int) -> None:
    """Refuse a function of the class's body that needs more arguments than are given: it was meant to be a method, and
    nobody would give it its object. Raises TypeError.
    """
    if not isinstance(value, FunctionType) or value.__qualname__.rpartition(".")[0] != owner.__qualname__:
        return
    needed = value.__code__.co_argcount - len(value.__defaults__ or ())
    if needed > given:
        raise TypeError(
            f"{value.__qualname__} would be called without its object: give each {owner.__qualname__} a work of its "
            f"own, made of the bound method, as cmwq.Work(self.{name})"
        )


def cpu(value: object) -> int:
    """The number of a CPU, 0 or more. Raises TypeError, ValueError."""
    return integer("cpu", value, 0)


def cpus(value: object) -> tuple[int, ...]:
    """A collection of CPUs' numbers, sorted, without duplicates. Raises TypeError, ValueError."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"cpus is {shown(value)}, and must be a collection of CPUs' numbers")
    found = tuple(sorted({integer("one of cpus", each, 0) for each in value}))
    if not found:
        raise ValueError("cpus is empty: a runtime needs one at least")
    return found
