"""cmwq.contrib._routes: how requests are told apart, whatever a client sends."""

from __future__ import annotations

from typing import Any

import pytest

from cmwq._core.naming import is_coroutine_function, kind_of, name_of
from cmwq.contrib._routes import KEPT, LONGEST, InsteadOf, Routes, shape


def serve(request: object) -> object:
    return request


def test_paths_of_one_shape_are_one_route() -> None:
    assert shape("/users/7?page=2") == shape("/users/8") == "/users/*"
    routes = Routes()
    seven, eight, other = (routes.call(serve, shape, path) for path in ("/users/7", "/users/8", "/health"))
    assert type(seven) is type(eight) is not type(other)
    assert seven("request") == "request"
    assert name_of(seven).startswith("/users/*")


ANYTHING = ["/\0", "/a\0b", "/\r\n\x1b[2J", "/\udc80", "/\u2028", "/" + "\U0001f600" * 10, "/'\"\\"]


@pytest.mark.parametrize("path", ANYTHING)
def test_a_route_may_hold_anything_and_its_name_is_printable(path: str) -> None:
    call = Routes().call(serve, shape, path)
    assert call is not serve
    assert call("request") == "request"
    name = name_of(call)
    assert name.isascii()
    assert name.isprintable()


def test_little_is_kept_of_a_long_path_and_of_many() -> None:
    routes = Routes()
    for number in range(3 * KEPT):
        routes.call(serve, str, "/" + chr(0x4E00 + number) * 50_000)
    assert len(routes._kinds) <= KEPT
    assert max(map(len, routes._kinds)) <= LONGEST


@pytest.mark.parametrize("error", [ValueError, TypeError, MemoryError, RecursionError])
def test_what_fails_in_the_look_up_leaves_the_plain_function(error: type[Exception]) -> None:
    def find(*_: object) -> Any:
        raise error

    assert Routes().call(serve, find, "request") is serve
    assert Routes().call(serve, len, []) is serve  # type: ignore[arg-type]  # no route
    assert Routes().call(serve, iter, []) is serve  # type: ignore[arg-type]  # what is no text


def test_A9_what_is_called_instead_of_a_function_counts_as_it_and_does_what_it_likes() -> None:
    async def coroutine_function() -> None: ...

    call = InsteadOf(coroutine_function, serve)
    assert call("request") == "request"
    assert kind_of(call) == kind_of(coroutine_function)
    assert name_of(call) == name_of(coroutine_function)
    assert not is_coroutine_function(call), "its result is what `serve` returns, and nothing to be awaited"
