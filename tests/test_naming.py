"""Which callables are calls of the same function, for what is remembered of functions (A9)."""

from __future__ import annotations

import hashlib
import math
from contextvars import copy_context
from functools import partial

import pytest

from cmwq._core.naming import called, kind_of, name_of


class Thing:
    def method(self) -> None: ...

    @classmethod
    def of_class(cls) -> None: ...

    def __call__(self) -> None: ...


def function(n: int = 0) -> None: ...


def handler(*args: object, **kwargs: object) -> None:
    """What a framework calls instead of what its user gave it."""


def key(fn: object) -> tuple[object, ...]:
    """What calls of a function are looked up by."""
    anchors, name = kind_of(fn)
    return (*map(id, anchors), name)


def a_closure(n: int) -> object:
    return lambda: n


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (function, partial(function, 1)),
        (partial(partial(function), 2), partial(function, n=3)),
        (Thing().method, Thing().method),
        (Thing().method, Thing.method),
        (Thing.of_class, Thing.of_class),
        (Thing(), Thing()),
        (a_closure(1), a_closure(2)),
        (partial(copy_context().run, function, 4), function),
        (partial(copy_context().run, partial(function, 4)), function),
        (partial(handler, function=function, n=1), partial(handler, function=function, n=2)),
        (partial(handler, a_closure(1)), partial(handler, a_closure(2))),
        ([].append, [1].append),
        (math.sqrt, math.sqrt),
        (Thing, Thing),
    ],
)
def test_A9_calls_of_the_same_function(one: object, other: object) -> None:
    assert key(one) == key(other)


def test_A9_calls_of_different_functions() -> None:
    kinds = [
        function, Thing().method, Thing(), Thing, a_closure(1), a_closure, math.sqrt, math.sin, [].append, {}.pop,
        [].pop, hashlib.sha256, hashlib.md5, partial(copy_context().run, Thing.of_class), handler,
        partial(handler, function=function), partial(handler, function=a_closure), partial(handler, None, a_closure(1)),
        partial(handler, function, a_closure), partial(handler, copy_context().run, partial(Thing().method)),
    ]  # fmt: skip
    assert len(set(map(key, kinds))) == len(kinds)


@pytest.mark.parametrize("run", [copy_context().run, partial(copy_context().run)])
def test_A9_a_call_of_run_of_a_context_is_one_of_what_it_is_given(run: object) -> None:
    assert called((run, function, 4)) is function
    assert called((run, copy_context().run, function)) is function
    assert called((function, 4)) is called((function,)) is function
    assert called((run,)) is run, "and raises"
    assert called((copy_context().get, function)) is not function


def test_A9_a_partial_call_is_named_with_the_function_that_it_is_given() -> None:
    """Else all endpoints of FastAPI, which hands over `partial(run_it, function=users)`, have one name in a report."""
    assert name_of(partial(handler, function=function)) == "handler(function)"
    assert name_of(partial(handler, None, partial(Thing().method, 1))) == "handler(Thing.method)"
    assert name_of(partial(handler, key=len)) == "handler"


def test_A9_a_partial_call_that_contains_itself_is_no_endless_loop() -> None:
    endless = partial(function)
    endless.__setstate__((endless, (), {}, {}))  # type: ignore[attr-defined]
    kind_of(endless)
