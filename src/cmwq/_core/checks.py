"""What users pass is checked where they pass it: the kind (TypeError), then the range (ValueError).

Guarantees: a value that was let in fails nowhere later; a message says what was given, as what, and what is allowed.
Whatever is a number to Python will do, from other libraries too; a `bool` won't: it is mostly an argument in the wrong
place. Costs nothing where the default is given.

Context of all: no lock held, for `repr()` is the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from operator import index
from typing import TypeVar

from cmwq._core.naming import MAX_NAME, name_of

T = TypeVar("T")

MAX_COUNT = 2**31 - 1
"""So many works are as good as no limit."""
MAX_THREADS = 2**22
"""More threads than any Linux can have."""
ENDLESS = 1e9
"""Seconds: a wait of 31 years is one without a limit. Longer ones overflow here and there in the system."""
MIN_PERIOD = 1e-3
"""Seconds between two executions of a periodic work: one thread serves the timers of all."""


def shown(value: object) -> str:
    """The value in a message: its repr(), as far as that can be had, and short."""
    try:
        text = repr(value)
    except Exception:
        text = name_of(value)
    return text if len(text) <= MAX_NAME else text[: MAX_NAME - 3] + "..."


def integer(what: str, value: object, least: int, most: int = MAX_COUNT) -> int:
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{what} is {shown(value)}, and must be an integer, not {type(value).__name__}")
    number = index(value)  # type: ignore[arg-type]
    if number < least:
        raise ValueError(f"{what} is {number}, and must be at least {least}")
    if number > most:
        raise ValueError(f"{what} is {shown(number)}, and must be at most {most}")
    return number


def seconds(what: str, value: object, least: float = -inf, most: float = inf) -> float:
    """A number of seconds; not NaN."""
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
    """Of a wait, in seconds. None, and what is as good as never: no limit. Negative: not at all, as everywhere in the
    standard library.
    """
    if value is None:
        return None
    number = seconds("timeout", value)
    return None if number >= ENDLESS else number


def text(what: str, value: object) -> str:
    """A string, and of no class of the user's: it is compared and written under locks."""
    if not isinstance(value, str):
        raise TypeError(f"{what} is {shown(value)}, and must be a string, not {type(value).__name__}")
    return value if type(value) is str else str.__str__(value)


def choice(what: str, value: object, allowed: Iterable[str]) -> str:
    for each in allowed:
        if isinstance(value, str) and value == each:
            return each
    kind = ValueError if isinstance(value, str) else TypeError
    raise kind(f"{what} {shown(value)} is none of {', '.join(map(repr, allowed))}")


def flag(what: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{what} is {shown(value)}, and must be True or False")
    return value


def instance(what: str, value: object, cls: type[T]) -> T:
    if not isinstance(value, cls):
        raise TypeError(f"{what} is {shown(value)}, and must be a {cls.__name__}, not {type(value).__name__}")
    return value


def port(what: str, value: object, method: str) -> None:
    """Something with that method is meant, and more is not asked."""
    if not callable(getattr(value, method, None)):
        raise TypeError(f"{what} is {shown(value)}, and must be a {what}, which {type(value).__name__} is not")


def function(what: str, value: Callable[..., T]) -> Callable[..., T]:
    if not callable(value):
        raise TypeError(f"{what} is {shown(value)}, and must be callable, which {type(value).__name__} is not")
    return value


def cpu(value: object) -> int:
    return integer("cpu", value, 0)


def cpus(value: object) -> tuple[int, ...]:
    """A collection of CPUs, sorted, each once."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"cpus is {shown(value)}, and must be a collection of CPUs' numbers")
    found = tuple(sorted({integer("one of cpus", each, 0) for each in value}))
    if not found:
        raise ValueError("cpus is empty: a runtime needs one at least")
    return found
